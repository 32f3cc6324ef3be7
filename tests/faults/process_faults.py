"""What may happen to the plugin's process, and to what it lives on."""

from __future__ import annotations

import asyncio
import json
import resource
import shutil
import signal
import subprocess
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING

from tests.faults import http2
from tests.faults.catalogue import LOOK, fault
from tests.faults.rig import SERIAL
from tests.version_0_1 import old_instance

if TYPE_CHECKING:
    import random
    from pathlib import Path

    from tests.faults.rig import Rig

_START = "the process has to start first"
_HALF = 0.5


_IN_NAMESPACE = ("unshare", "--user", "--map-root-user", "sh", "-c")
_NO_INOTIFY = "echo 0 > /proc/sys/user/max_inotify_instances"


@cache
def _can_limit_inotify() -> bool:
    """Whether a user namespace of one's own, with limits of its own, can be had."""
    return (
        shutil.which("unshare") is not None
        and subprocess.run(
            [*_IN_NAMESPACE, _NO_INOTIFY], capture_output=True, check=False
        ).returncode
        == 0
    )


def _answers(path: Path) -> bool:
    with suppress(OSError), http2.connect(path):
        return True
    return False


@fault("SIGSTOP, and SIGCONT")
async def stopped(rig: Rig, rng: random.Random) -> None:
    rig.send(signal.SIGSTOP)
    for _ in range(rng.randint(5, 30)):
        rig.move_a_cable(rng)
        await asyncio.sleep(rng.uniform(0, 0.05))
    rig.send(signal.SIGCONT)


@fault("SIGSTOP while the kubelet restarts")
async def stopped_over_restart(rig: Rig, rng: random.Random) -> None:
    rig.send(signal.SIGSTOP)
    await rig.kubelet.restart()
    rig.move_a_cable(rng)
    await asyncio.sleep(rng.uniform(0.1, 1))
    rig.send(signal.SIGCONT)


@fault("watchdog's threads killed")
async def watchdog_killed(rig: Rig, rng: random.Random) -> None:
    rig.send(signal.SIGUSR1)
    await asyncio.sleep(0.05)  # until the signal is heeded
    rig.move_a_cable(rng)
    (rig.kubelet_dir / "wake").touch()
    (rig.kubelet_dir / "wake").unlink()
    await asyncio.sleep(rng.uniform(0, 0.2))
    rig.move_a_cable(rng)
    await rig.kubelet.restart()


@fault("the source's thread killed")
async def source_killed(rig: Rig, rng: random.Random) -> None:
    rig.send(signal.SIGUSR2)
    await asyncio.sleep(0.05)
    for _ in range(rng.randint(1, 5)):
        rig.move_a_cable(rng)


@fault(
    "no file descriptors left",
    within=20,
    why="whatever failed is tried again, after a delay that doubles with each failure",
)
async def descriptors_exhausted(rig: Rig, rng: random.Random) -> None:
    soft, hard = resource.prlimit(rig.pid, resource.RLIMIT_NOFILE)
    in_use = rig.usage().descriptors
    resource.prlimit(rig.pid, resource.RLIMIT_NOFILE, (in_use + rng.randint(0, 3), hard))
    try:
        for _ in range(rng.randint(5, 20)):
            rig.move_a_cable(rng)
            await asyncio.sleep(rng.uniform(0, 0.05))
        await rig.kubelet.restart()
        await asyncio.sleep(rng.uniform(0.2, 1))
    finally:
        resource.prlimit(rig.pid, resource.RLIMIT_NOFILE, (soft, hard))


@fault("SIGKILL", kills=True, within=15, why=_START)
async def killed(rig: Rig, rng: random.Random) -> None:
    await rig.end(signal.SIGKILL)
    rig.move_a_cable(rng)
    rig.forget_names()
    rig.start()


@fault("SIGKILL again and again while it starts", kills=True, within=15, why=_START)
async def killed_while_starting(rig: Rig, rng: random.Random) -> None:
    for _ in range(3):
        await rig.end(signal.SIGKILL)
        rig.forget_names()
        rig.start()
        await asyncio.sleep(rng.uniform(0, 0.4))
    await rig.end(signal.SIGKILL)
    rig.start()


@fault("SIGTERM", kills=True, within=15, why=_START)
async def terminated(rig: Rig, rng: random.Random) -> None:
    mine = set(rig.sockets())
    status = await rig.end(signal.SIGTERM)
    assert status == 0, f"ended with status {status}"
    # Not those of an instance that was killed after it had been started.
    left = [path for path in mine.intersection(rig.sockets()) if _answers(path)]
    assert not left, f"left {left}"
    rig.move_a_cable(rng)
    rig.forget_names()
    rig.start()


@fault("a second instance takes over", kills=True, within=15, why=_START)
async def taken_over(rig: Rig, rng: random.Random) -> None:
    rig.forget_names()
    before = rig.replace(rig.launch())
    await asyncio.sleep(rng.uniform(0, 1))
    before.send_signal(rng.choice([signal.SIGTERM, signal.SIGKILL]))
    await asyncio.to_thread(before.wait, 10)


@fault("a newer instance comes and goes", within=15, why=_START)
async def stood_by(rig: Rig, rng: random.Random) -> None:
    newer = rig.launch()
    try:
        for _ in range(rng.randint(0, 20)):
            rig.move_a_cable(rng)
            await asyncio.sleep(rng.uniform(0, 0.1))
        if rng.random() < _HALF:
            await rig.kubelet.restart()
            await asyncio.sleep(rng.uniform(0, 1))
        newer.send_signal(rng.choice([signal.SIGTERM, signal.SIGKILL, signal.SIGSTOP]))
        await asyncio.sleep(rng.uniform(0, 0.5))
    finally:
        newer.kill()
        await asyncio.to_thread(newer.wait, 10)


@fault("version 0.1 comes and goes", within=15, why=_START)
async def old_version_came(rig: Rig, rng: random.Random) -> None:
    known = [thing.device_id for thing in rig.things if thing.device_id]
    async with old_instance(rig.kubelet_dir, SERIAL, known):
        for _ in range(rng.randint(0, 5)):
            rig.move_a_cable(rng)
            await asyncio.sleep(rng.uniform(0, 0.2))


@fault("another project's plugin takes the resource for a while", within=15, why=_START)
async def stranger_came(rig: Rig, rng: random.Random) -> None:
    async with old_instance(rig.kubelet_dir, SERIAL, ["theirs"], name="stranger.sock"):
        rig.move_a_cable(rng)
        await asyncio.sleep(rng.uniform(0, 3))


@fault("state files spoiled, then SIGKILL", kills=True, within=15, why=_START)
async def state_spoiled(rig: Rig, rng: random.Random) -> None:
    held = {pod.thing.device_id for pod in rig.pods}
    await rig.end(signal.SIGKILL)
    files = {path.parent.name: path for path in rig.link_dir.glob("*/device.json")}
    files |= {path.name.removesuffix(".json"): path for path in rig.state_dir.glob("*.json")}
    for device_id, path in files.items():
        if device_id in held:
            continue  # what is lost of these, nothing can tell again
        whole = path.read_bytes()
        match rng.randrange(4):
            case 0:
                path.write_bytes(rng.randbytes(rng.randint(0, 300)))
            case 1:
                path.write_bytes(whole[: rng.randrange(len(whole))])
            case 2:
                path.write_text(json.dumps({"id": "../../etc", "resource": "x", "ports": []}))
            case _:
                path.unlink()
    rig.forgetful = True
    rig.forget_names()
    rig.start()


@fault(
    "started without inotify, and with a storm",
    kills=True,
    within=12,
    why="without inotify, all directories are looked at every second",
)
async def no_inotify(rig: Rig, rng: random.Random) -> None:
    """Then ended, and started with inotify."""
    await rig.end(signal.SIGTERM)
    rig.forget_names()
    if not _can_limit_inotify():
        rig.start()
        return
    rig.start(*_IN_NAMESPACE, f'{_NO_INOTIFY}; exec "$@"', "sh")
    await rig.until_true(LOOK)
    for _ in range(10):
        rig.move_a_cable(rng)
    await rig.until_true(LOOK)
    await rig.kubelet.restart()
    await rig.until_true(LOOK)
    await rig.end(signal.SIGTERM)
    rig.start()
