"""The image, and the manifests with it, run for real; ``make image-test`` runs these as root."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.deploy.manifests import DEPLOY, POD, load, of_kind, plugin, rendered
from tests.deploy.oci import Node, Pod, runtime
from usbplugin import __version__
from usbplugin.virtual import CreateContainerConfigError, EmbeddedKubelet

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.deploy.manifests import Manifest

IMAGE = os.environ.get("USBPLUGIN_IMAGE_ROOT", "")
RESOURCE = "usbplugin/serial"
PLUGINS = "/var/lib/kubelet/device-plugins"
POD_RESOURCES = "/var/lib/kubelet/pod-resources/kubelet.sock"
BUS = "/run/usbplugin-virtual"
MEGABYTE = 1000 * 1000

pytestmark = pytest.mark.skipif(not IMAGE, reason="runs in make image-test, which needs root")


@pytest.fixture(params=["kind", "machine"])
def node(request: pytest.FixtureRequest) -> Iterator[Node]:
    """A node like kind's, and one with this machine's /dev."""
    name = runtime()
    assert name, "neither runc nor crun is here"
    # Not tmp_path: Unix sockets' paths are short.
    node = Node(Path(tempfile.mkdtemp(prefix="node-")), Path(IMAGE), name)
    try:
        if request.param == "kind":
            node.make_dev()
        else:
            node.bind_dev()
        yield node
    finally:
        node.close()


def shell(*command: str) -> Manifest:
    return {"containers": [{"name": "shell", "command": list(command)}]}


def config_maps(manifests: list[Manifest]) -> dict[str, dict[str, str]]:
    return {each["metadata"]["name"]: each["data"] for each in of_kind("ConfigMap", manifests)}


def daemon_set(name: str, manifests: list[Manifest]) -> Manifest:
    (spec,) = (
        each["spec"]["template"]["spec"]
        for each in of_kind("DaemonSet", manifests)
        if each["metadata"]["name"] == name
    )
    return dict(spec)


async def test_it_is_this_version(node: Node) -> None:
    async with await node.run(shell("usbplugin", "--version")) as pod:
        assert await pod.line() == f"usbplugin {__version__}\n"
        assert await pod.ended() == 0


async def test_libudev_is_found_without_a_writable_root(node: Node) -> None:
    async with await node.run(shell("usbplugin", "list", "--udev", "--json")) as pod:
        assert await pod.line() == "[]\n"
        assert await pod.ended() == 0


async def test_the_demo(node: Node) -> None:
    spec = shell("usbplugin", "demo")
    spec["volumes"] = [{"name": "tmp", "emptyDir": {}}]
    spec["containers"][0]["volumeMounts"] = [{"name": "tmp", "mountPath": "/tmp"}]
    async with await node.run(spec) as pod:
        while line := await pod.line():
            assert "FAIL" not in line
        assert await pod.ended() == 0


async def test_nothing_that_builds_or_installs(node: Node) -> None:
    code = (
        "import importlib.util as u, shutil as s;"
        "print([n for n in ('pip', 'setuptools', 'wheel') if u.find_spec(n)],"
        "[n for n in ('pip', 'pip3', 'gcc', 'cc', 'make', 'git', 'curl') if s.which(n)])"
    )
    async with await node.run(shell("python", "-c", code)) as pod:
        assert await pod.line() == "[] []\n"


def test_all_bytecode_is_there() -> None:
    sources = list(Path(IMAGE, "opt/usbplugin").rglob("*.py"))
    assert sources
    for source in sources:
        assert list((source.parent / "__pycache__").glob(f"{source.stem}.*.pyc")), source


def test_size() -> None:
    """What is there beyond the base: Python, and our environment."""
    folders = [Path(IMAGE, "opt/usbplugin"), *Path(IMAGE, "usr/lib").glob("python3*")]
    files = [path for folder in folders for path in folder.rglob("*") if not path.is_symlink()]
    size = sum(path.stat().st_size for path in files)
    assert size < 80 * MEGABYTE


def on_node(volume: str, spec: Manifest) -> str:
    """The host path of one of the plugin's volumes."""
    (path,) = (each["hostPath"]["path"] for each in spec["volumes"] if each["name"] == volume)
    return str(path)


@pytest.mark.parametrize(
    "target", ["base", "k0s", "microk8s", "cdi", "nfd", "helm", "helm-watcher"]
)
async def test_the_pod_registers_and_leaves_no_trace(node: Node, target: str) -> None:
    manifests = rendered(target)
    spec = plugin(manifests)
    folder = node.path(on_node("device-plugins", spec))
    registry = node.path("/var/lib/kubelet/plugins_registry")
    for each in (folder, registry):
        each.mkdir(parents=True, exist_ok=True)
    socket = node.path(on_node("pod-resources", spec)) / "kubelet.sock"
    async with EmbeddedKubelet(folder, pod_resources=socket, registry=registry) as kubelet:
        async with await node.run(spec, config_maps(manifests)) as pod:
            await kubelet.wait_for(lambda: kubelet.resource(RESOURCE).connected, within=20)
            assert await pod.stop() == 0
        left = [*folder.glob("usbplugin-*.sock"), *registry.glob("usbplugin-*.sock")]
        assert left == []


async def test_dev_is_for_looking_only(node: Node) -> None:
    (node.path("/dev") / "shm").mkdir(exist_ok=True)
    manifests = rendered("base")
    async with (
        EmbeddedKubelet(node.path(PLUGINS)) as kubelet,
        await node.run(plugin(manifests), config_maps(manifests)) as pod,
    ):
        await kubelet.wait_for(lambda: kubelet.resource(RESOURCE).connected, within=20)
        for folder in ("/dev", "/dev/shm"):
            with pytest.raises(AssertionError, match="Read-only file system"):
                await pod.exec("python3", "-c", f"open('{folder}/x', 'w')")


async def until_held(serving: Pod, holder: str) -> None:
    """Wait until the plugin knows it: so it has found its own pod in what the kubelet says."""
    async with asyncio.timeout(20):
        while holder not in await serving.exec("usbplugin", "list", "--json"):
            pass


async def test_the_kind_overlays_story(node: Node) -> None:
    manifests = rendered("kind")
    (reader,) = load((DEPLOY / "kind" / "reader.yaml").read_text("utf-8"))
    async with (
        EmbeddedKubelet(node.path(PLUGINS), pod_resources=node.path(POD_RESOURCES)) as kubelet,
        await node.run(daemon_set("virtual-ttys", manifests)) as bus,
        await node.run(plugin(manifests), config_maps(manifests)) as serving,
    ):
        kubelet.other_pods = [POD]
        await kubelet.wait_for(lambda: len(kubelet.resource(RESOURCE).healthy) == 2, within=20)
        container = await kubelet.run_container(RESOURCE, pod="reader")
        await until_held(serving, "default/reader/main")
        (device,) = container.device_ids
        tty = container.envs["USBPLUGIN_SERIAL_DEVICES"].removeprefix("/dev/")
        async with await node.run(reader["spec"], answer=container.answer) as pod:
            first = json.loads(await pod.line())
            assert device == f"usb-0403:6001-{first['device']}-if00"

            await bus.exec("usbplugin", "virtual", "--dir", BUS, "--unplug", tty)
            await kubelet.wait_for(lambda: len(kubelet.resource(RESOURCE).healthy) == 1, within=20)
            assert set(kubelet.resource(RESOURCE).devices) > set(kubelet.resource(RESOURCE).healthy)
            while await pod.line():
                pass
            assert await pod.ended() == 1
        with pytest.raises(CreateContainerConfigError):
            await container.restart()

        await bus.exec("usbplugin", "virtual", "--dir", BUS, "--plug", tty, "--as", "ttyUSB7")
        await kubelet.wait_for(lambda: len(kubelet.resource(RESOURCE).healthy) == 2, within=20)
        await container.restart()
        async with await node.run(reader["spec"], answer=container.answer) as pod:
            assert json.loads(await pod.line())["device"] == first["device"]
