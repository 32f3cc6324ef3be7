"""Paths on a node: the defaults, which flags override."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Places:
    """The paths usbplugin shares with the kubelet and the container runtime, and its own pod."""

    kubelet_dir: Path = Path("/var/lib/kubelet/device-plugins")
    """Holds kubelet.sock and the plugins' own sockets."""
    registry_dir: Path = Path("/var/lib/kubelet/plugins_registry")
    """Where the kubelet's plugin watcher looks for sockets."""
    pod_resources: Path = Path("/var/lib/kubelet/pod-resources/kubelet.sock")
    """The kubelet's PodResources socket, which says which pod holds which device."""
    link_dir: Path = Path("/run/usbplugin")
    """Stable links to device nodes; must be the same path on the host."""
    state_dir: Path = Path("/var/lib/usbplugin")
    """What was granted to whom, and which devices share a serial number; survives a reboot."""
    cdi_dir: Path = Path("/var/run/cdi")
    """Where the container runtime looks for CDI specs."""
    features_dir: Path = Path("/etc/kubernetes/node-feature-discovery/features.d")
    """What Node Feature Discovery's local source reads."""

    service_account: Path = Path("/var/run/secrets/kubernetes.io/serviceaccount")
    """The token with which the API server is asked, and whom to trust; used by the DRA front."""

    api_server: str = ""
    """Its URL; empty if it is where a pod's environment says."""
    node_name: str = ""
    """Our Node at the API server; needed by the DRA front."""
    own_pod: str = ""
    """``namespace/name`` of the pod usbplugin runs in; empty if unknown."""

    @property
    def claims_dir(self) -> Path:
        """What ResourceClaims were given; survives a reboot."""
        return self.state_dir / "claims"

    @property
    def control_socket(self) -> Path:
        """The socket of this node's daemon, open to root only."""
        return self.link_dir / "usbplugin.sock"
