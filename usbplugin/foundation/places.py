"""Where on a node things are, by default and as the flags say."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Places:
    """What usbplugin shares with the kubelet and the container runtime, and the pod it is in."""

    kubelet_dir: Path = Path("/var/lib/kubelet/device-plugins")
    """kubelet.sock, and the plugins' own sockets."""
    registry_dir: Path = Path("/var/lib/kubelet/plugins_registry")
    """Where the kubelet's plugin watcher looks for sockets."""
    pod_resources: Path = Path("/var/lib/kubelet/pod-resources/kubelet.sock")
    """The socket on which the kubelet tells who holds what."""
    link_dir: Path = Path("/run/usbplugin")
    """Stable links to device nodes; the same path on the host."""
    cdi_dir: Path = Path("/var/run/cdi")
    """CDI specs, for the container runtime."""
    features_dir: Path = Path("/etc/kubernetes/node-feature-discovery/features.d")
    """What Node Feature Discovery's local source reads."""

    own_pod: str = ""
    """``namespace/name`` of the pod that usbplugin runs in, if it is known to run in one."""

    @property
    def control_socket(self) -> Path:
        """Where this node's daemon can be asked; nobody but root can."""
        return self.link_dir / "usbplugin.sock"
