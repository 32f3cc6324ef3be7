"""What may happen to the directories and files that the plugin shares with others."""

from __future__ import annotations

import asyncio
import shutil
from contextlib import suppress
from typing import TYPE_CHECKING

from tests.faults.catalogue import LOOK, fault
from tests.faults.rig import CONFIG, SERIAL
from usbplugin.virtual import EmbeddedKubeletError

if TYPE_CHECKING:
    import random
    from contextlib import AbstractContextManager

    from tests.faults.rig import Rig

_BACK_OFF = "the plugin tries again to make its socket after 5 s at most"


@fault("links deleted")
async def links_deleted(rig: Rig, rng: random.Random) -> None:
    for link in rig.link_dir.glob("*/if*"):
        if rng.random() < 0.7:
            link.unlink(missing_ok=True)


@fault("links led to other devices")
async def links_astray(rig: Rig, rng: random.Random) -> None:
    nodes = [thing.port.node for thing in rig.things if thing.port]
    for link in rig.link_dir.glob("*/if*"):
        if nodes and rng.random() < 0.7:
            link.unlink(missing_ok=True)
            with suppress(FileExistsError):  # the plugin was faster
                link.symlink_to(rng.choice(nodes))


@fault("link directory deleted")
async def link_directory_deleted(rig: Rig, rng: random.Random) -> None:
    rig.forgetful = True
    shutil.rmtree(rig.link_dir, ignore_errors=True)
    rig.move_a_cable(rng)


@fault("a file in the link directory's place")
async def link_directory_is_a_file(rig: Rig, rng: random.Random) -> None:
    rig.forgetful = True
    shutil.rmtree(rig.link_dir, ignore_errors=True)
    with suppress(OSError):  # the plugin may have made it anew
        rig.link_dir.write_text("in the way")
    await _shake(rig, rng)
    with suppress(OSError):
        rig.link_dir.unlink()


@fault("link directory read-only", mounts=True)
async def links_read_only(rig: Rig, rng: random.Random) -> None:
    await _during(rig.link_volume.read_only(), rig, rng)


@fault("link directory full", mounts=True)
async def links_full(rig: Rig, rng: random.Random) -> None:
    await _during(rig.link_volume.full(), rig, rng)


@fault("link directory unmounted, and another one mounted", mounts=True)
async def links_unmounted(rig: Rig, rng: random.Random) -> None:
    rig.forgetful = True
    rig.link_volume.unmount()
    await _shake(rig, rng)
    rig.link_volume.mount()


@fault("state directory deleted")
async def states_deleted(rig: Rig, rng: random.Random) -> None:
    shutil.rmtree(rig.state_dir, ignore_errors=True)
    rig.move_a_cable(rng)
    await rig.until_remembered(LOOK)


@fault("a file in the state directory's place")
async def state_directory_is_a_file(rig: Rig, rng: random.Random) -> None:
    shutil.rmtree(rig.state_dir, ignore_errors=True)
    with suppress(OSError):  # the plugin may have made it anew
        rig.state_dir.write_text("in the way")
    await _shake(rig, rng)
    with suppress(OSError):
        rig.state_dir.unlink()
    await rig.until_remembered(LOOK)


@fault("state directory read-only", mounts=True)
async def states_read_only(rig: Rig, rng: random.Random) -> None:
    await _during(rig.state_volume.read_only(), rig, rng)


@fault("state directory full", mounts=True)
async def states_full(rig: Rig, rng: random.Random) -> None:
    await _during(rig.state_volume.full(), rig, rng)


@fault("state directory unmounted, and another one mounted", mounts=True)
async def states_unmounted(rig: Rig, rng: random.Random) -> None:
    rig.state_volume.unmount()
    await _shake(rig, rng)
    rig.state_volume.mount()
    await rig.until_remembered(LOOK)


@fault("kubelet's directory read-only", mounts=True, within=10, why=_BACK_OFF)
async def kubelet_read_only(rig: Rig, rng: random.Random) -> None:
    with rig.kubelet_volume.read_only():
        await _shake(rig, rng)
        with suppress(EmbeddedKubeletError):  # it has none at the moment
            await rig.kubelet.disconnect(SERIAL)
        await asyncio.sleep(rng.uniform(0.1, 1))


@fault("kubelet's directory full", mounts=True, within=10, why=_BACK_OFF)
async def kubelet_full(rig: Rig, rng: random.Random) -> None:
    with rig.kubelet_volume.full():
        await _shake(rig, rng)
        for path in rig.sockets():
            path.unlink(missing_ok=True)
            with suppress(OSError):  # its inode is free only when nobody has it open any longer
                (rig.kubelet_dir / "in-its-place").touch()
        await asyncio.sleep(rng.uniform(0.1, 1))
    (rig.kubelet_dir / "in-its-place").unlink(missing_ok=True)


@fault("kubelet's directory unmounted, and another one mounted", mounts=True)
async def kubelet_unmounted(rig: Rig, rng: random.Random) -> None:
    await rig.kubelet.stop()
    rig.kubelet_volume.unmount()
    await asyncio.sleep(rng.uniform(0, 0.5))
    rig.kubelet_volume.mount()
    await rig.kubelet.start()


@fault("device directory away for a while")
async def devices_away(rig: Rig, rng: random.Random) -> None:
    aside = rig.root / "aside"
    rig.stuck = True
    rig.bus.directory.rename(aside)
    await asyncio.sleep(rng.uniform(0.05, 1))
    aside.rename(rig.bus.directory)
    rig.stuck = False


@fault("configuration spoiled, changed, and restored")
async def configuration_changed(rig: Rig, rng: random.Random) -> None:
    good = rig.config.read_text()
    new = rig.config.with_name("new.yaml")
    for text in (
        rng.randbytes(rng.randint(1, 300)),
        b"resources: 17\n",
        b"",
        (CONFIG + "resources: [{name: usbplugin/serial, permissions: r}]\n").encode(),
        good.encode(),
    ):
        new.write_bytes(text)
        new.replace(rig.config)
        await asyncio.sleep(rng.uniform(0.05, 0.4))


async def _during(trouble: AbstractContextManager[None], rig: Rig, rng: random.Random) -> None:
    with trouble:
        await _shake(rig, rng)
        await rig.kubelet.restart()
        await _shake(rig, rng)


async def _shake(rig: Rig, rng: random.Random) -> None:
    for _ in range(rng.randint(3, 10)):
        rig.move_a_cable(rng)
        await asyncio.sleep(rng.uniform(0, 0.02))
