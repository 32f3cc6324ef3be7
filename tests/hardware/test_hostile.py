"""Descriptors are written by whoever makes the device, and reach nothing unescaped."""

from __future__ import annotations

import json
import re
import signal
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING

import pytest

from tests.node import SERIAL
from usbplugin.kubelet.checkpoint import FILE_NAME

from .serve import HardwareNode

if TYPE_CHECKING:
    from pathlib import Path

    from tests.node import Process

    from .conftest import GadgetFactory

pytestmark = pytest.mark.timeout(300)

HOSTILE = {
    "control": b"\x01\x1b[31mred\x07\x7f",
    "newlines": b"a\nb\r\n2026-01-01T00:00:00.000Z INFO    forged",
    "path": b"../../../../etc/passwd",
    "absolute": b"/etc/cron.d/evil",
    "dots": b"..",
    "format": b"%s%n%x{name}{0.__class__}",
    "quotes": b"'\"`\\'\"\\\\",
    "shell": b"$(touch /tmp/pwned); `id` | rm -rf / #",
    "yaml": b"- !!python/object:os.system {a: [*x, &y]}: |\n  - #",
    "json": b'", "level": "error", "x": {"y": ["',
    "location": b"at-dummy_hcd.0-1",
    "longest": b"x" * 126,
    "not ASCII": "Grüße 世界 \N{RIGHT-TO-LEFT OVERRIDE}\N{ZERO WIDTH SPACE}\U0001f980".encode(),
    "long and not ASCII": "ü".encode() * 63,
    "tab": b"\t",
    "blanks": b"   ",
    "empty": b"",
    "none": None,
}

RESOURCES = f"- {{name: {SERIAL}, byIdLinks: true}}"


async def test_hostile_descriptors_reach_nothing_unescaped(gadget: GadgetFactory) -> None:
    found: list[set[str]] = []
    async with AsyncExitStack() as stack:
        nodes = [HardwareNode(), HardwareNode()]
        plugins: list[Process] = []
        for node, log_format in zip(nodes, ("text", "json"), strict=True):
            await stack.enter_async_context(node)
            flags = ("--log-format", log_format, "--log-level", "debug")
            plugins.append(await stack.enter_async_context(node.serve(*flags, resources=RESOURCES)))
        for text in HOSTILE.values():
            device = gadget(serial=text, manufacturer=text, product=text, port=0)
            device.plug(wait=False)
            found.append(set())
            for node in nodes:
                (device_id,) = await node.some_healthy(1)
                found[-1].add(device_id)
                assert re.fullmatch(r"usb-2341:0043-[A-Za-z0-9_.:-]+-if00", device_id)
                assert len(device_id) <= 63
                await grant(node, device_id, device.nodes[0])
            device.remove()
            for node in nodes:
                await node.healthy()
        for node, process in zip(nodes, plugins, strict=True):
            assert len(node.states()) == len(set.union(*found))
            assert not node.kubelet.log.violations
            process.signal(signal.SIGTERM)
            assert await process.wait(within=20) == 0
            check_files(node)
        check_text_log(plugins[0])
        check_json_log(plugins[1])
    assert all(len(ids) == 1 for ids in found), "both know it by the same name"
    # Those without any usable serial are known by the place, and that is one place.
    by_place = [name for name, ids in zip(HOSTILE, found, strict=True) if "-at-" in ids.pop()]
    assert by_place == ["blanks", "empty", "none"]


async def grant(node: HardwareNode, device_id: str, path: str) -> None:
    container = await node.kubelet.run_container(SERIAL)
    for name, value in container.envs.items():
        assert re.fullmatch(r"[A-Z_]+", name)
        assert value.isprintable()
        assert value.isascii()
    assert container.envs["USBPLUGIN_SERIAL_DEVICES"] == path
    assert container.envs["USBPLUGIN_SERIAL_IDS"] == device_id
    (info,) = json.loads(container.envs["USBPLUGIN_SERIAL_INFO"])
    assert (info["id"], info["vendor"], info["location"]) == (device_id, "2341", "dummy_hcd.0-1")
    for spec in container.devices:
        assert spec.host_path == str(node.link_dir / device_id / "if00")
        assert re.fullmatch(r"/dev/(ttyACM\d+|serial/by-id/[!-~]+)", spec.container_path)
        assert "/.." not in spec.container_path
        assert all(len(part) <= 255 for part in spec.container_path.split("/"))
    container.remove()


async def check_documents(node: HardwareNode) -> None:
    """What it tells of its devices and of itself, while it runs."""
    rows = json.loads(await node.get("/devices"))
    assert {row["device"] for row in rows} >= set(node.states())
    for path in ("/devices", "/events"):
        assert (await node.get(path)).strip().isprintable()
    for sample in await node.metrics():
        assert all(value.isprintable() for value in sample.labels.values())


def check_files(node: HardwareNode) -> None:
    """Nothing is anywhere but in the folders of the devices, and in their states."""
    ids = set(node.states())
    assert {path.name for path in node.link_dir.iterdir()} <= ids
    for device_id in ids:
        names = {path.name for path in (node.link_dir / device_id).iterdir()}
        assert names <= {"if00"}
    assert {path.name for path in node.state_dir.rglob("*")} <= {f"{each}.json" for each in ids}
    assert others(node) <= {
        *(node.kubelet_dir / name for name in ("", "kubelet.sock", FILE_NAME)),
        *(node.places.pod_resources.parent, node.places.pod_resources),
        *(node.places.registry_dir, node.config.parent, node.config),
        *(node.link_dir, node.state_dir),
    }


def others(node: HardwareNode) -> set[Path]:
    ours = {node.link_dir, node.state_dir}
    return {path for path in node.root.rglob("*") if ours.isdisjoint(path.parents)}


def check_text_log(process: Process) -> None:
    """One line is one record."""
    for line in process.log().splitlines():
        assert line.isprintable()
        assert re.match(r"\d{4}-\d\d-\d\dT\S+Z (DEBUG|INFO|WARNING) ", line), line
    assert "forged" not in re.sub(r'"[^"]*"', "", process.log())


def check_json_log(process: Process) -> None:
    records = [json.loads(line) for line in process.log().splitlines()]
    assert all(record["level"] in {"debug", "info", "warning"} for record in records)
    assert sum(record["event"] == "allocated" for record in records) == len(HOSTILE)
