"""What can go wrong before and around the command."""

from __future__ import annotations


class MachineError(Exception):
    """The virtual machine could not be prepared, or did not live to report a result."""


class MachineTimeoutError(MachineError):
    """It took too long."""
