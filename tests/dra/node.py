"""A node with both halves of the DRA front: an embedded kubelet, and a small API server."""

from __future__ import annotations

import dataclasses
import itertools
import os
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Self

from tests.apiserver import NODE, FakeApiServer, wait_until
from tests.node import SERIAL, Node, Process
from usbplugin.config import Config, Flapping, Front, ResourceConfig
from usbplugin.dra.names import device_name
from usbplugin.virtual.kubelet import EmbeddedKubelet

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from usbplugin.agent import Agent
    from usbplugin.virtual.dra import ClaimContainer, DraManager

GPS = "usb-0403:6001-GPS-A7-if00"
MODEM = "usb-0403:6001-MODEM-B3-if00"


def config(evict_after: str = "0s", *resources: ResourceConfig) -> Config:
    return Config(
        flapping=Flapping(times=60),
        front=Front.DRA,
        evict_after=evict_after,
        resources=resources or (ResourceConfig(name=SERIAL),),
    )


class DraNode(Node):
    """Its claims are what ``allocate`` says; nobody schedules."""

    def __init__(self) -> None:
        super().__init__()
        account = self.root / "account"
        account.mkdir()
        self.api = FakeApiServer(account)
        self.places = dataclasses.replace(self.places, service_account=account, node_name=NODE)
        self.kubelet = EmbeddedKubelet(
            self.kubelet_dir,
            pod_resources=self.places.pod_resources,
            registry=self.places.registry_dir,
            cdi=self.places.cdi_dir,
            on_wipe=self.api.wipe,
        )
        self._uids = itertools.count(1)
        self._environment: dict[str, str | None] = {}

    async def __aenter__(self) -> Self:
        await self.api.start()
        self._exits.push_async_callback(self.api.stop)
        for name, value in (
            ("KUBERNETES_SERVICE_HOST", self.api.access.host),
            ("KUBERNETES_SERVICE_PORT", str(self.api.access.port)),
        ):
            self._environment[name] = os.environ.get(name)
            os.environ[name] = value
        return await super().__aenter__()

    async def __aexit__(self, *exception: object) -> None:
        await super().__aexit__(*exception)
        for name, value in self._environment.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value

    @property
    def dra(self) -> DraManager:
        return self.kubelet.dra

    def allocate(
        self,
        *device_ids: str,
        name: str = "claim",
        requests: tuple[str, ...] = (),
        configs: tuple[dict[str, Any], ...] = (),
        names: tuple[str, ...] = (),
        **extra: object,
    ) -> tuple[str, str, str]:
        """A claim that was allocated these devices; its namespace, name and UID."""
        uid = f"00000000-0000-0000-0000-{next(self._uids):012}"
        results = [
            {
                "request": requests[index] if requests else "tty",
                "driver": "usbplugin",
                "pool": NODE,
                "device": one,
                **extra,
            }
            for index, one in enumerate((*map(device_name, device_ids), *names))
        ]
        self.api.claims["default", name] = {
            "apiVersion": "resource.k8s.io/v1",
            "kind": "ResourceClaim",
            "metadata": {"uid": uid, "namespace": "default", "name": name},
            "status": {"allocation": {"devices": {"results": results, "config": list(configs)}}},
        }
        return "default", name, uid

    async def run(self, *device_ids: str, name: str = "claim", **more: Any) -> ClaimContainer:  # noqa: ANN401 -- allocate's
        """A container with a claim of these devices."""
        return await self.dra.run_container(
            *self.allocate(*device_ids, name=name, **more), pod=f"pod-of-{name}"
        )

    def specs(self) -> list[str]:
        return sorted(path.name for path in self.places.cdi_dir.glob("usbplugin-claim_*"))

    def claim_files(self) -> list[str]:
        return sorted(path.stem for path in self.places.claims_dir.glob("*.json"))

    async def until(self, is_so: Callable[[], bool], seconds: float = 10.0) -> None:
        await wait_until(is_so, seconds)

    async def until_published(self, *device_ids: str) -> None:
        """Wait until the kubelet has registered the driver, and exactly these are published."""
        wanted = {device_name(one) for one in device_ids}
        await self.until(lambda: bool(self.dra.drivers) and self.api.devices.keys() == wanted)

    @asynccontextmanager
    async def driver(self, evict_after: str = "0s") -> AsyncIterator[Agent]:
        """An agent with everything under ``front: dra``."""
        async with self.agent(config(evict_after)) as agent:
            await self.until(lambda: bool(self.dra.drivers))
            yield agent

    @asynccontextmanager
    async def serve_dra(self, *flags: str) -> AsyncIterator[Process]:
        """The same as a process of its own."""
        async with self.serve(
            *("--front", "dra", "--node-name", NODE),
            *("--service-account", str(self.places.service_account), *flags),
        ) as process:
            yield process
