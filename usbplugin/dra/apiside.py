"""The API server's side put together: what a front needs of it, and how it ends."""

from __future__ import annotations

import asyncio
import os
from typing import TYPE_CHECKING

from usbplugin.dra.apiserver import Access, ApiServer
from usbplugin.dra.cluster import Cluster
from usbplugin.dra.poolfile import PoolFile
from usbplugin.dra.publisher import SlicePublisher

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from usbplugin.dra.contracts import DraObserver


class ApiSide:
    """Reads claims and publishes slices, over one set of connections."""

    def __init__(
        self,
        node: str,
        pool_file: Path,
        observer: DraObserver,
        access: Access | None = None,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        """Put the parts together; nothing is asked yet.

        Args:
            node: Our node's name.
            pool_file: Where to keep how devices are divided into slices.
            observer: Told of what happens.
            access: Where the API server is; if not given, as the environment of a pod says.
            environment: That environment.

        Raises:
            ApiServerError: this is no pod.
        """
        self._server = ApiServer(access or Access.in_cluster(environment))
        self.claims = Cluster(self._server)
        self.publisher = SlicePublisher(self.claims, node, PoolFile(pool_file), observer)

    async def run(self) -> None:
        """Publish until cancelled; then hang up."""
        try:
            await self.publisher.run()
        finally:
            await asyncio.shield(self._server.close())
