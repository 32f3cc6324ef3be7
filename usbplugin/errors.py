"""Every error usbplugin raises on purpose.

::

    UsbPluginError
    ├── ConfigError        the operator wrote something that makes no sense
    ├── DiscoveryError     a source cannot see ports (any longer)
    ├── KubeletError       the kubelet refused us, or cannot be reached
    ├── AllocationError    a device cannot be given to a container; carries the gRPC status
    ├── DaemonError        the daemon of this node does not answer as it should
    └── VirtualTtyError    a virtual tty cannot be made or controlled

Messages name the thing, say what was wrong with it, and where possible what to do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import grpc


class UsbPluginError(Exception):
    """Base of all of them: catching it catches what usbplugin foresaw, and nothing else."""


class ConfigError(UsbPluginError):
    """One line: file, path within it, what was found, what was expected."""


class DiscoveryError(UsbPluginError):
    """A source failed; the supervisor restarts it and rescans."""


class KubeletError(UsbPluginError):
    """Registration failed; the session retries with back-off."""


class AllocationError(UsbPluginError):
    """A request of the kubelet cannot be met; the message ends up in the pod's events."""

    def __init__(self, status: grpc.StatusCode, message: str) -> None:
        """Keep the status that the kubelet is to get."""
        super().__init__(message)
        self.status = status


class DaemonError(UsbPluginError):
    """A command could not get from the running daemon what it asked for."""


class VirtualTtyError(UsbPluginError):
    """A virtual tty pair could not be made, plugged or unplugged."""
