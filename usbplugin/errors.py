"""Every error usbplugin raises on purpose.

::

    UsbPluginError
    ├── ConfigError        the configuration is invalid
    ├── DiscoveryError     a source cannot see ports
    ├── KubeletError       the kubelet refused us or cannot be reached
    ├── AllocationError    a device cannot be granted; carries the gRPC status
    ├── ClaimError         a ResourceClaim cannot be prepared; its pod's events say why
    ├── ApiServerError     the API server refused us or cannot be reached
    ├── DaemonError        this node's daemon does not answer properly
    └── VirtualTtyError    a virtual tty cannot be created or controlled

A message names the thing, says what is wrong with it and, where possible, what to do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import grpc


class UsbPluginError(Exception):
    """The base class: catches every error usbplugin anticipates, and nothing else."""


class ConfigError(UsbPluginError):
    """One line: the file, the key's path, what was expected and what was found."""


class DiscoveryError(UsbPluginError):
    """A source failed; its supervisor restarts it, which rescans."""


class KubeletError(UsbPluginError):
    """The kubelet refused a call or did not answer; callers retry with back-off."""


class AllocationError(UsbPluginError):
    """The kubelet's request cannot be met; the message ends up in the pod's events."""

    def __init__(self, status: grpc.StatusCode, message: str) -> None:
        """Carry the status to return to the kubelet."""
        super().__init__(message)
        self.status = status


class ClaimError(UsbPluginError):
    """A ResourceClaim cannot be prepared; the message ends up in the pod's events."""


class ApiServerError(UsbPluginError):
    """The API server refused a request, or did not answer; callers retry with back-off."""

    def __init__(self, status: int | None, message: str) -> None:
        """Carry the HTTP status; None if there was no answer."""
        super().__init__(message)
        self.status = status


class DaemonError(UsbPluginError):
    """A command could not get what it needs from the running daemon."""


class VirtualTtyError(UsbPluginError):
    """A virtual tty could not be created, plugged or unplugged."""
