"""The agent: builds the daemon's parts, supervises them, and applies a changed configuration.

It is the composition root. Only the command that runs it imports it.
"""

from usbplugin.agent.agent import Agent

__all__ = ["Agent"]
