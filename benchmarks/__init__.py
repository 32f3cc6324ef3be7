"""Benchmarks, kept out of the tests; run them with ``make bench``."""
