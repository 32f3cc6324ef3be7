"""A node with a real kubelet: no API server, static pods, and a containerd of its own.

The kubelet, containerd, the containers and the plugin share namespaces in which all paths are the
default ones. What is behind them is in a temporary directory, and nothing of the machine changes.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tests.deploy.containerd import IMAGE, Daemon, children
from tests.deploy.real_nodes import DeviceNodes
from tests.node import SERIAL, Process
from usbplugin.errors import KubeletError
from usbplugin.kubelet import PodResources

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping, Sequence

    from tests.deploy.real_nodes import Ended

PATIENCE = 60.0
"""Seconds. What has failed, a kubelet tries again after 10 to 20."""
_PERIOD = 0.02
_PORT = 10255
# What a kubelet demands of the kernel: it would change the machine's own settings otherwise.
_TUNABLES = {
    "vm/overcommit_memory": 1,
    "vm/panic_on_oom": 0,
    "kernel/panic": 10,
    "kernel/panic_on_oops": 1,
    "kernel/keys/root_maxkeys": 1_000_000,
    "kernel/keys/root_maxbytes": 25_000_000,
}
# Where kubelets know nothing but the Docker of old unless told otherwise.
_DOCKERSHIM_LEFT = (1, 24)


@dataclass(frozen=True, slots=True)
class PodContainer:
    """The only container of a pod, as the kubelet tells of it."""

    id: str
    """Empty if it was never started."""
    running: bool
    restarts: int
    reason: str
    """Why it is waiting, or why its pod has failed."""
    message: str


class InsideProcess(Process):
    """A process within the node's namespaces."""

    def __init__(self, node: int, command: Sequence[str]) -> None:
        super().__init__([*enter(node), *command])

    @property
    def pid(self) -> int:
        """The process that nsenter waits for, and to which it passes no signal on."""
        deadline = time.monotonic() + PATIENCE
        while not (found := children(super().pid)):
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.001)
        return found[0]

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    @property
    def registrations(self) -> int:
        """How often usbplugin has registered."""
        return self.log().count(" registered resource=")

    async def wait_registered(self, times: int) -> None:
        """Wait until usbplugin has registered so many times."""
        async with asyncio.timeout(PATIENCE):
            while True:
                if self.registrations >= times:
                    return
                await asyncio.sleep(_PERIOD)

    def kill(self) -> None:
        with suppress(FileNotFoundError):
            for child in children(super().pid):
                os.kill(child, signal.SIGKILL)
        super().kill()


def enter(pid: int) -> list[str]:
    """How to run a command in the namespaces of the node's first process."""
    return ["nsenter", f"--target={pid}", "--mount", "--pid", "--net", "--"]


class RealKubelet(DeviceNodes):
    """The node. Its device nodes have the numbers of devices that any machine has."""

    def __init__(self, kubelet: Path) -> None:
        self._exits = AsyncExitStack()
        self._binary = kubelet
        self.root = Path(self._exits.enter_context(tempfile.TemporaryDirectory(prefix="up-")))
        self.device_dir = self.root / "dev"
        self.link_dir = self.root / "links"
        self.kubelet_dir = self.root / "lib/kubelet"
        self.plugin_dir = self.kubelet_dir / "device-plugins"
        self._pods = self.root / "pods"
        for path in (self.device_dir, self.link_dir, self.kubelet_dir, self._pods):
            path.mkdir(parents=True)
        self._containerd = Daemon(
            self.root / "containerd", unshare=["--net"], prepare=self._prepare()
        )

    async def __aenter__(self) -> Self:
        try:
            await self._exits.enter_async_context(self._containerd)
            await self.start_kubelet()
        except BaseException:
            await self._exits.aclose()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        left: list[str] = []
        try:
            self.kubelet.kill()
            left = (await self._containerd.ctr("containers", "list", "--quiet")).split()
        finally:
            await self._exits.aclose()
            _remove_cgroups(left)

    async def start_kubelet(self) -> None:
        """Start it, and wait until it answers."""
        command = [
            *(str(self._binary), f"--config={self._configure()}", "--v=4"),
            f"--container-runtime-endpoint=unix://{self._containerd.socket}",
            "--hostname-override=node",
        ]
        if self.version() < _DOCKERSHIM_LEFT:
            command.append("--container-runtime=remote")
        self.kubelet = InsideProcess(self._containerd.pid, command)
        try:
            await self.until(lambda: self._ask("healthz") == "ok")
        except BaseException:
            self.kubelet.kill()
            raise

    async def restart_kubelet(self, how: signal.Signals) -> None:
        """End it by a signal, and start it again."""
        self.kubelet.signal(how)
        await self.kubelet.wait(PATIENCE)
        await self.start_kubelet()

    def version(self) -> tuple[int, ...]:
        """The kubelet's."""
        done = subprocess.run(
            [self._binary, "--version"], capture_output=True, text=True, check=True
        )
        found = re.search(r"v(\d+)\.(\d+)\.(\d+)", done.stdout)
        assert found, done.stdout
        return tuple(map(int, found.groups()))

    @asynccontextmanager
    async def serve(self, *flags: str, **config: object) -> AsyncIterator[InsideProcess]:
        """``usbplugin serve`` with its default paths; ``config`` is its configuration."""
        path = self.root / "config.yaml"
        path.write_text(json.dumps({"resources": [{"name": SERIAL}], **config}))
        command = [
            *(sys.executable, "-m", "usbplugin", "serve", "--no-udev"),
            *("--device-dir", str(self.device_dir), "--config", str(path), *flags),
        ]
        process = InsideProcess(self._containerd.pid, command)
        try:
            yield process
        except BaseException as error:
            error.add_note(f"usbplugin's log:\n{process.log()}")
            raise
        finally:
            process.kill()

    def run(self, *command: str) -> str:
        """What a command of usbplugin prints on this node."""
        done = subprocess.run(
            [*enter(self._containerd.pid), sys.executable, "-m", "usbplugin", *command],
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout

    def healthy(self, resource: str = SERIAL) -> set[str]:
        """The devices that the kubelet has last been told are healthy, by its checkpoint."""
        try:
            checkpoint = json.loads((self.plugin_dir / "kubelet_internal_checkpoint").read_text())
        except FileNotFoundError:
            return set()
        return set(checkpoint["Data"]["RegisteredDevices"].get(resource) or ())

    async def wait_healthy(self, *device_ids: str, resource: str = SERIAL) -> None:
        await self.until(lambda: self.healthy(resource) == set(device_ids))

    def pod_resources(self, own_pod: str = "") -> PodResources:
        """Who can be asked who holds what."""
        return PodResources(self.kubelet_dir / "pod-resources/kubelet.sock", own_pod)

    async def holders(self) -> dict[str, str]:
        """Who holds which device, as PodResources tells."""
        held = await self.pod_resources().list()
        return {holding.device_id: holding.holder for holding in held}

    def create_pod(self, name: str, resource: str = SERIAL, count: int = 1, init: str = "") -> None:
        """Have the kubelet run a static pod with so many devices; ``init`` is a script."""
        container = {
            "name": "main",
            "image": IMAGE,
            "imagePullPolicy": "Never",
            "resources": {"limits": {resource: str(count)}},
        }
        command = {"name": "init", "command": ["/bin/sh", "-c", init]}
        pod = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {
                "hostNetwork": True,
                "terminationGracePeriodSeconds": 1,
                "initContainers": [container | command] if init else [],
                "containers": [container],
            },
        }
        draft = self.root / f"{name}.json"
        draft.write_text(json.dumps(pod))
        draft.rename(self._pods / draft.name)

    def delete_pod(self, name: str) -> None:
        (self._pods / f"{name}.json").unlink()

    def container(self, pod: str) -> PodContainer | None:
        """What the kubelet says of a pod's container; None if it does not know the pod."""
        pods: list[dict[str, Any]] = json.loads(self._ask("pods") or "{}").get("items") or []
        # A kubelet without API server calls a static pod by its name and the node's.
        for found in pods:
            if found["metadata"]["name"] == f"{pod}-node":
                return _container_of(found["status"])
        return None

    async def wait_running(self, pod: str, restarts: int = 0) -> PodContainer:
        """Wait until the pod's container runs, and has been started anew so many times."""

        def runs(container: PodContainer | None) -> bool:
            return bool(container and container.running and container.restarts >= restarts)

        return await self.wait_for_pod(pod, runs)

    async def wait_for_pod(
        self, pod: str, condition: Callable[[PodContainer | None], bool]
    ) -> PodContainer:
        """Wait until the kubelet says such a thing of a pod's container."""
        seen: PodContainer | None = None

        def holds() -> bool:
            nonlocal seen
            seen = self.container(pod)
            return condition(seen)

        try:
            await self.until(holds)
        except TimeoutError as error:
            error.add_note(f"{pod}: {seen}")
            raise
        assert seen
        return seen

    async def exec(self, pod: str, script: str) -> Ended:
        """Run a script in the pod's container."""
        container = self.container(pod)
        assert container
        return await self._containerd.exec_in(container.id, script)

    async def kill_container(self, pod: str) -> None:
        """Kill it from outside; the kubelet starts another one."""
        container = self.container(pod)
        assert container
        await self._containerd.ctr("tasks", "kill", "--signal=SIGKILL", container.id)

    async def reboot(self) -> None:
        """What a reboot leaves: no process, nothing in /run, and a kubelet that starts."""
        self.kubelet.kill()
        for container in (await self._containerd.ctr("tasks", "list", "--quiet")).split():
            await self._containerd.ctr("tasks", "kill", "--signal=SIGKILL", container)
        for path in self.link_dir.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        await self.start_kubelet()

    async def until(self, condition: Callable[[], bool], within: float = PATIENCE) -> None:
        """Wait until a condition holds, which nobody tells of."""
        try:
            async with asyncio.timeout(within):
                while True:
                    if condition():
                        return
                    await asyncio.sleep(_PERIOD)
        except TimeoutError as error:
            error.add_note(f"the kubelet's log:\n{self.kubelet.log()[-5000:]}")
            raise

    async def until_held(self, holders: Mapping[str, str]) -> None:
        """Wait until PodResources says that these containers hold these devices, and no others."""
        async with asyncio.timeout(PATIENCE):
            while True:
                with suppress(KubeletError):
                    if await self.holders() == holders:
                        return
                await asyncio.sleep(_PERIOD)

    def _ask(self, path: str) -> str:
        url = f"http://127.0.0.1:{_PORT}/{path}"
        command = [*enter(self._containerd.pid), "busybox", "wget", "-q", "-O-", url]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout

    def _configure(self) -> Path:
        config = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "staticPodPath": str(self._pods),
            "syncFrequency": "1s",
            "fileCheckFrequency": "1s",
            "address": "127.0.0.1",
            "readOnlyPort": _PORT,
            "authentication": {"anonymous": {"enabled": False}, "webhook": {"enabled": False}},
            "authorization": {"mode": "AlwaysAllow"},
            # Of this machine's cgroups, none is managed but those of the containers.
            "cgroupDriver": "cgroupfs",
            "cgroupsPerQOS": False,
            "enforceNodeAllocatable": [],
            "failSwapOn": False,
            "protectKernelDefaults": True,
            "makeIPTablesUtilChains": False,
            # The machine's disks may be as full as they are.
            "evictionHard": {"memory.available": "1Mi"},
            "imageGCHighThresholdPercent": 100,
            "volumePluginDir": "/var/lib/kubelet/volume-plugins",
        }
        path = self.root / "kubelet.json"
        path.write_text(json.dumps(config))
        return path

    def _prepare(self) -> str:
        log = self.root / "log"
        log.mkdir()
        mounts = {"/var/lib": self.root / "lib", "/var/log": log, "/run/usbplugin": self.link_dir}
        for name, value in _TUNABLES.items():
            path = self.root / name.replace("/", "-")
            path.write_text(f"{value}\n")
            mounts[f"/proc/sys/{name}"] = path
        lines = ["busybox ip link set lo up", "mkdir /run/usbplugin"]
        lines += [shlex.join(["mount", "--bind", str(at), to]) for to, at in mounts.items()]
        return " && ".join(lines)


def _remove_cgroups(containers: Sequence[str]) -> None:
    """What outlives containers that were killed with their runtime."""
    for container in containers:
        for folder in Path("/sys/fs/cgroup").glob(f"**/k8s.io/{container}"):
            folder.rmdir()


def _container_of(status: dict[str, Any]) -> PodContainer:
    (container,) = status.get("containerStatuses") or [{}]
    state = container.get("state", {})
    waiting = state.get("waiting") or state.get("terminated") or {}
    return PodContainer(
        container.get("containerID", "").removeprefix("containerd://"),
        "running" in state,
        container.get("restartCount", 0),
        status.get("reason") or waiting.get("reason", ""),
        status.get("message") or waiting.get("message", ""),
    )
