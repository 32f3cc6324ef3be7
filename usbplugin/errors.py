"""Every error usbplugin raises on purpose.

::

    UsbPluginError
    ├── ConfigError        the operator wrote something that cannot be meant
    ├── DiscoveryError     a source cannot see ports (any longer)
    ├── KubeletError       the kubelet refused us, or cannot be reached
    ├── AllocationError    a device cannot be handed over; carries the gRPC status
    └── VirtualTtyError    a virtual tty cannot be made or controlled

Messages name the thing, say what was wrong with it, and where possible what to do.
"""


class UsbPluginError(Exception):
    """Base of all of them: catching it catches what usbplugin foresaw, and nothing else."""


class ConfigError(UsbPluginError):
    """One line: file, path within it, what was found, what was expected."""


class DiscoveryError(UsbPluginError):
    """A source failed; the supervisor restarts it and rescans."""


class KubeletError(UsbPluginError):
    """Registration failed; the session retries with back-off."""


class VirtualTtyError(UsbPluginError):
    """A virtual tty pair could not be made, plugged or unplugged."""
