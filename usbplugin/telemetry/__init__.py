"""Logs and metrics. Nothing here makes decisions."""
