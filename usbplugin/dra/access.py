"""Where the API server is, and what opens it: from a pod's environment, or from a flag."""

from __future__ import annotations

import os
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from usbplugin.errors import ApiServerError

if TYPE_CHECKING:
    from collections.abc import Mapping

SERVICE_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
"""Where a pod's token and the cluster's CA are mounted."""

_PORTS = {"https": 443, "http": 80}


@dataclass(frozen=True, slots=True)
class Access:
    """Where the API server is, and what opens it."""

    host: str
    port: int
    token_file: Path
    ca_file: Path
    is_plain: bool = False
    """Whether there is no TLS, as with ``kubectl proxy``, which listens on this machine alone."""

    @classmethod
    def in_cluster(
        cls, environment: Mapping[str, str] = os.environ, directory: Path = SERVICE_ACCOUNT
    ) -> Access:
        """What the kubelet tells a container of it.

        Raises:
            ApiServerError: it tells nothing: this is no pod.
        """
        host = environment.get("KUBERNETES_SERVICE_HOST", "").strip("[]")
        port = environment.get("KUBERNETES_SERVICE_PORT_HTTPS") or environment.get(
            "KUBERNETES_SERVICE_PORT", "443"
        )
        if not host or not port.isdecimal():
            raise ApiServerError(
                None,
                "KUBERNETES_SERVICE_HOST and _PORT do not say where the API server is: front: dra"
                " needs to run in a pod, or with --api-server",
            )
        return cls(host, int(port), directory / "token", directory / "ca.crt")

    @classmethod
    def of(cls, url: str, directory: Path = SERVICE_ACCOUNT) -> Access:
        """What a URL says: ``https://host:port``, or ``http://`` to this machine alone.

        Raises:
            ApiServerError: it cannot be that of an API server.
        """
        text = f"{url!r} is no API server's URL: expected https://HOST:PORT"
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port or _PORTS.get(parts.scheme, 0)
        except ValueError as error:
            raise ApiServerError(None, text) from error
        if not host or not port or parts.path.strip("/") or parts.query:
            raise ApiServerError(None, text)
        if parts.scheme == "http" and not _is_here(host):
            # The token would be there to read for whoever is in between.
            raise ApiServerError(None, f"{url} is not on this machine: expected https://")
        token, authority = directory / "token", directory / "ca.crt"
        return cls(host, port, token, authority, is_plain=parts.scheme == "http")

    @property
    def authority(self) -> str:
        """Host and port as in a URL."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _is_here(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
