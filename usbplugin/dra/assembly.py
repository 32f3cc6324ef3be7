"""The DRA front put together: the kubelet's side, the API server's side, and what is on disk."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from usbplugin.dra.access import Access
from usbplugin.dra.apiserver import ApiServer
from usbplugin.dra.claims import ClaimStore
from usbplugin.dra.cluster import Cluster
from usbplugin.dra.front import DraFront
from usbplugin.dra.poolfile import PoolFile
from usbplugin.dra.preparer import Custody, Preparer
from usbplugin.dra.publisher import SlicePublisher
from usbplugin.dra.reaper import Reaper
from usbplugin.dra.specs import ClaimSpecs
from usbplugin.dra.unreachable import Unreachable
from usbplugin.errors import ApiServerError, ConfigError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from usbplugin.dra.contracts import ClaimReader, DraObserver, Publisher
    from usbplugin.foundation.places import Places
    from usbplugin.kubelet import PluginDirectory

_POOL = "pool"
"""Where in the state directory it is noted how devices are divided into slices."""


class _Closable(Protocol):
    async def close(self) -> None: ...


class Assembly:
    """A front and its parts."""

    def __init__(
        self,
        custody: Custody,
        places: Places,
        registry: PluginDirectory,
        observer: DraObserver,
        refresh: Callable[[], Awaitable[None]],
        on_state: Callable[[], None],
        on_claims: Callable[[Mapping[str, tuple[str, ...]]], None],
        *,
        boot: str,
        retention: float,
        has_to_publish: bool,
    ) -> None:
        """Put it together, and take up what an earlier process has prepared.

        Args:
            custody: Decides about devices.
            places: Where on this node things are, and where the API server is.
            registry: Where the kubelet finds sockets.
            observer: Told what happens.
            refresh: Has the kubelet asked who holds what.
            on_state: Called when the front's state changes.
            on_claims: Told what is prepared: the IDs of a claim's devices by its name.
            boot: Names the present boot.
            retention: Seconds for which devices that are unknown here are published, once a claim
                was allocated one.
            has_to_publish: Whether it is of no use without an API server.

        Raises:
            ConfigError: it has to publish, and nobody says how.
        """
        self._on_claims = on_claims
        store = ClaimStore(places.claims_dir)
        reader: ClaimReader
        self._server: _Closable
        self.publisher: Publisher
        try:
            access = access_of(places)
        except ConfigError as error:
            if has_to_publish:
                raise
            nobody = Unreachable(str(error))
            reader = self.publisher = self._server = nobody
        else:
            server = self._server = ApiServer(access)
            reader = cluster = Cluster(server)
            self.publisher = SlicePublisher(
                cluster, places.node_name, PoolFile(places.state_dir / _POOL), observer
            )
        self.preparer = Preparer(
            custody,
            store,
            ClaimSpecs(places.cdi_dir),
            reader,
            places.node_name,
            boot,
            self._changed,
        )
        self.front = DraFront(
            custody,
            self.preparer,
            self.publisher,
            registry,
            places.node_name,
            observer,
            retention,
            on_state,
        )
        self.reaper = Reaper(self.preparer, custody, reader, refresh)
        custody.claimed.precede(self.front.make_true)
        self.preparer.begin()
        self._changed()

    async def close(self) -> None:
        """Hang up on the API server."""
        await self._server.close()

    def _changed(self) -> None:
        """Claims have come or gone."""
        self.front.changed()
        self._on_claims(
            {
                claim.full_name: tuple(one.device_id for one in claim.devices)
                for claim in self.preparer.claims.values()
            }
        )


def access_of(places: Places) -> Access:
    """Where the API server is.

    Raises:
        ConfigError: nobody says so, or not who we are.
    """
    if not places.node_name:
        raise ConfigError("front: dra needs to know this node's name: set --node-name")
    try:
        if places.api_server:
            return Access.of(places.api_server, places.service_account)
        return Access.in_cluster(directory=places.service_account)
    except ApiServerError as error:
        raise ConfigError(str(error)) from error
