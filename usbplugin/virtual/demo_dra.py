"""The DRA front's job as a short story: a claim by serial, unplugged, evicted, plugged in, running.

A real ``usbplugin serve --front dra`` runs beside an embedded kubelet and a small API server. What
a cluster's scheduler and its eviction controller do with what is published, the story does.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from usbplugin.virtual.apiserver import VirtualApiServer
from usbplugin.virtual.dra import PrepareError, UnresolvableCdiError
from usbplugin.virtual.kubelet import EmbeddedKubelet
from usbplugin.virtual.telling import PATIENCE, Teller, kill, since
from usbplugin.virtual.ttys import Descriptors, VirtualBus

if TYPE_CHECKING:
    from asyncio.subprocess import Process

    from usbplugin.virtual.dra import ClaimContainer

_NODE = "demo-node"
_SERIAL = "GPS-A7"
_GPS = Descriptors(
    vendor_id="0403",
    product_id="6001",
    serial=_SERIAL,
    manufacturer="FTDI",
    product="GPS receiver",
    location="virtual-1",
)


async def tell(*, verbose: bool = False) -> bool:
    """Run the demo; return whether every check passed. Takes a few seconds and needs no root."""
    teller = Teller()
    began = time.monotonic()
    async with AsyncExitStack() as exits:
        root = Path(exits.enter_context(tempfile.TemporaryDirectory(prefix="usbplugin-")))
        log = None if verbose else exits.enter_context((root / "log").open("w+b"))
        demo = _Demo(root, teller)
        try:
            await demo.run(exits, log.fileno() if log else None)
        except (TimeoutError, OSError, PrepareError, UnresolvableCdiError) as error:
            teller.check(f"the demo stopped here: {str(error) or 'it took too long'}", held=False)
        if teller.failed and log:
            log.seek(0)
            teller.say("The driver's log:\n" + log.read().decode("utf-8", "backslashreplace"))
    return teller.conclude(
        began, "On a cluster of Kubernetes 1.36, real USB ports work the same way: see docs/dra.md."
    )


class _Demo:
    def __init__(self, root: Path, teller: Teller) -> None:
        self._root = root
        self._tell = teller
        self._api = VirtualApiServer(_NODE)
        self._kubelet = EmbeddedKubelet(
            root / "kubelet",
            pod_resources=root / "pod-resources",
            registry=root / "registry",
            cdi=root / "cdi",
            on_wipe=self._api.wipe,
        )
        self._bus_directory = root / "dev"

    async def run(self, exits: AsyncExitStack, log: int | None) -> None:
        await exits.enter_async_context(self._api)
        await exits.enter_async_context(self._kubelet)
        bus = exits.enter_context(VirtualBus(self._bus_directory))
        driver = await self._start(exits, log)
        device = await self._plug(bus)
        container = await self._claim(device, "gps-1")
        await self._unplug(bus, device, container)
        await self._replug(bus, device)
        await self._restart_kubelet(device)
        await self._stop(driver, device)

    async def _start(self, exits: AsyncExitStack, log: int | None) -> Process:
        self._tell.chapter("usbplugin starts beside a kubelet and an API server, as a DRA driver")
        account = self._root / "account"
        account.mkdir()
        (account / "token").write_text("demo")
        command = [
            *(sys.executable, "-m", "usbplugin", "serve", "--no-udev", "--front", "dra"),
            *("--node-name", _NODE, "--api-server", self._api.url),
            *("--service-account", str(account)),
            *("--device-dir", str(self._bus_directory)),
            *("--kubelet-dir", str(self._root / "kubelet")),
            *("--registry-dir", str(self._root / "registry")),
            *("--cdi-dir", str(self._root / "cdi")),
            *("--link-dir", str(self._root / "links")),
            *("--state-dir", str(self._root / "state")),
            *("--pod-resources", str(self._root / "pod-resources")),
        ]
        self._tell.say("$ usbplugin " + " ".join(command[3:]))
        began = time.monotonic()
        environment = {k: v for k, v in os.environ.items() if not k.startswith("USBPLUGIN_")}
        driver = await asyncio.create_subprocess_exec(*command, stderr=log, env=environment)
        exits.callback(kill, driver)  # before anything can go wrong
        await self._kubelet.wait_for(lambda: bool(self._kubelet.dra.drivers), within=PATIENCE)
        self._tell.check(f"registered as driver usbplugin {since(began)} after the process started")
        return driver

    async def _plug(self, bus: VirtualBus) -> str:
        self._tell.chapter("A GPS receiver is plugged in as ttyUSB0")
        began = time.monotonic()
        bus.plug("ttyUSB0", _GPS)
        await self._api.until(lambda: bool(self._api.devices), PATIENCE)
        ((name, device),) = self._api.devices.items()
        found = device["attributes"]["serial"]["string"]
        self._tell.check(
            f"the API server has a ResourceSlice with it after {since(began)}: {name}",
            held=found == _SERIAL,
        )
        self._tell.say(f'CEL: device.attributes["usbplugin"].serial == "{found}"')
        return name

    async def _claim(self, device: str, claim: str) -> ClaimContainer:
        self._tell.chapter(f"A pod claims the device with the serial {_SERIAL}")
        self._tell.say(f"the scheduler allocates {device} to claim {claim}")
        uid = self._api.allocate("default", claim, "tty", device)
        container = await self._kubelet.dra.run_container(
            "default", claim, uid, pod=f"reader-of-{claim}"
        )
        for path, node in container.nodes.items():
            self._tell.say(f"{node} -> {path}")
        for name, value in sorted(container.envs.items()):
            self._tell.say(f"{name}={value}")
        self._tell.check(
            f"prepared in {1000 * self._kubelet.dra.prepare_seconds[-1]:.1f} ms; the container runs"
            " with one port and nothing else",
            held=len(container.nodes) == 1,
        )
        return container

    async def _unplug(self, bus: VirtualBus, device: str, container: ClaimContainer) -> None:
        self._tell.chapter("Somebody pulls the cable")
        began = time.monotonic()
        bus.unplug("ttyUSB0")
        await self._api.until(lambda: "NoSchedule" in self._api.effects(device), PATIENCE)
        self._tell.check(
            f"tainted after {since(began)}: no pod is scheduled for it",
            held=device in self._api.devices,
        )
        try:
            container.start()
        except UnresolvableCdiError as error:
            self._tell.say(str(error))
            self._tell.check(
                "the container is not restarted with its old numbers: its spec is gone"
            )
        else:
            self._tell.check("the container is not restarted with its old numbers", held=False)
        await self._api.until(lambda: "NoExecute" in self._api.effects(device), PATIENCE)
        self._tell.check(f"evicted after {since(began)} (evictAfter: 5s)")
        self._tell.say("the eviction controller deletes the pod, the kubelet unprepares its claim")
        await self._kubelet.dra.remove(container)
        self._api.delete_claim("default", container.claim.name)
        self._tell.check(
            "nothing of the claim is left on the node",
            held=not list((self._root / "cdi").glob("*.json")),
        )

    async def _replug(self, bus: VirtualBus, device: str) -> None:
        self._tell.chapter("It is plugged in again, and comes up as ttyUSB5")
        began = time.monotonic()
        bus.replug("ttyUSB0", "ttyUSB5")
        await self._api.until(
            lambda: device in self._api.devices and not self._api.effects(device), PATIENCE
        )
        self._tell.check(f"free of taints after {since(began)}: the same {device}")
        container = await self._claim(device, "gps-2")
        self._tell.check(
            "the replacement runs, on the new node",
            held=list(container.nodes) == ["/dev/ttyUSB5"],
        )

    async def _restart_kubelet(self, device: str) -> None:
        self._tell.chapter("The kubelet restarts, and deletes the node's slices")
        await self._kubelet.stop()
        began = time.monotonic()
        await self._kubelet.start()
        await self._api.until(lambda: device in self._api.devices, PATIENCE)
        self._tell.check(f"published again after {since(began)}; the pod never noticed")

    async def _stop(self, driver: Process, device: str) -> None:
        self._tell.chapter("The driver is told to stop (SIGTERM)")
        began = time.monotonic()
        driver.send_signal(signal.SIGTERM)
        code = await asyncio.wait_for(driver.wait(), PATIENCE)
        left = list((self._root / "registry").glob("*.sock"))
        self._tell.check(
            f"it exits after {since(began)} with code {code}; no socket is left, its slices stay",
            held=code == 0 and not left and device in self._api.devices,
        )
