"""How a resource's devices appear in a container: what an operator decides once for all of them."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_CONTAINER_PATH = "/dev/{name}"
PLACEHOLDERS = ("name", "device", "port")


@dataclass(frozen=True, slots=True)
class Offer:
    """On what terms a resource's devices are offered to containers."""

    resource: str
    permissions: str = "rw"
    """cgroup permissions: any of r, w, m."""
    container_path: str = DEFAULT_CONTAINER_PATH
    """With ``{name}`` (kernel name), ``{device}`` and ``{port}`` (both count from 0)."""
    by_id_links: bool = False
    """Whether the node is also given under its /dev/serial/by-id names."""
    pre_start: bool = True
    """Whether the kubelet asks before each start of a container."""
    shares: int = 1
    """How often a device is offered."""
    cdi: bool = False
    """Whether a container is given CDI devices in place of device nodes."""
    by_claim: bool = False
    """Whether ResourceClaims give out its devices, and the device plugin does not."""
