"""A containerd of one's own, spoken to as the kubelet speaks to it."""

from __future__ import annotations

import asyncio
import importlib.util
import json
import os
import platform
import signal
import subprocess
import tarfile
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import grpc

from tests.deploy.real_nodes import Ended, make_root
from tests.deploy.tools import module

if TYPE_CHECKING:
    from collections.abc import Sequence

    from usbplugin.api import deviceplugin_v1beta1_pb2 as v1beta1

IMAGE = "example.com/busybox:1"
_PATIENCE = 60.0
_HOST_NETWORK = 2
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


class Daemon:
    """The daemon. All that it starts ends with the first process of its namespace."""

    def __init__(
        self, root: Path, settings: str = "", unshare: Sequence[str] = (), prepare: str = "true"
    ) -> None:
        """Use ``root``; ``settings`` are lines of the CRI plugin's section.

        ``unshare`` are further namespaces, as flags, and ``prepare`` is a command to run in them
        before the daemon starts.
        """
        root.mkdir()
        self._root = root
        self._unshare = unshare
        self._prepare = prepare
        self.socket = root / "containerd.sock"
        (root / "config.toml").write_text(
            f"""
version = 2
root = "{root}/root"
state = "{root}/state"
[grpc]
  address = "{self.socket}"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{IMAGE}"
  # Not every root may make a process less likely to be killed than itself.
  restrict_oom_score_adj = true
  disable_apparmor = true
  {settings}
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "native"
"""
        )
        self._messages = _messages(root)

    @property
    def pid(self) -> int:
        """The daemon's, which is the first process of its namespaces."""
        (child,) = children(self._process.pid)
        return child

    async def __aenter__(self) -> Self:
        image = self._root / "image.tar"
        _make_image(self._root / "image", image)
        # Whatever it keeps in /run is its own, and so are its mounts.
        script = f'mount -t tmpfs none /run && {self._prepare} && exec containerd --config "$1"'
        isolated = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        isolated += self._unshare
        with (self._root / "log").open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(*isolated, "sh", "-c", script, "sh", str(self._root / "config.toml")), stderr=log
            )
        options = [("grpc.default_authority", "localhost"), ("grpc.max_reconnect_backoff_ms", 100)]
        self._channel = grpc.aio.insecure_channel(f"unix:{self.socket}", options=options)
        try:
            async with asyncio.timeout(_PATIENCE):
                await self._channel.channel_ready()
                await self.ctr("images", "import", "--snapshotter=native", str(image))
                await self._until_known()
        except BaseException as error:
            await self._kill()
            error.add_note((self._root / "log").read_text())
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._kill()

    async def exec_in(self, container_id: str, script: str) -> Ended:
        """Run a script in a container that is running."""
        done = await self._call(
            "ExecSync", container_id=container_id, cmd=["/bin/sh", "-c", script]
        )
        return Ended(done.exit_code, done.stdout.decode(), done.stderr.decode())

    async def ctr(self, *command: str) -> str:
        """What containerd's own client prints."""
        process = await asyncio.create_subprocess_exec(
            *("ctr", f"--address={self.socket}", "--namespace=k8s.io", *command),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        output, errors = await process.communicate()
        assert process.returncode == 0, errors.decode()
        return output.decode()

    async def _until_known(self) -> None:
        """Wait until CRI has heard of the image, which containerd tells nobody."""
        wanted = self._messages.ImageSpec(image=IMAGE)
        while True:
            try:
                status = await self._call("ImageStatus", service="ImageService", image=wanted)
                if status.HasField("image"):
                    return
            except grpc.aio.AioRpcError as error:
                if "not initialized" not in str(error.details()):
                    raise
            await asyncio.sleep(0.02)

    async def _call(self, method: str, service: str = "RuntimeService", **request: Any) -> Any:  # noqa: ANN401
        cri = self._messages
        call = self._channel.unary_unary(
            f"/runtime.v1.{service}/{method}",
            request_serializer=getattr(cri, f"{method}Request").SerializeToString,
            response_deserializer=getattr(cri, f"{method}Response").FromString,
        )
        return await call(getattr(cri, f"{method}Request")(**request), timeout=_PATIENCE)

    async def _kill(self) -> None:
        await self._channel.close()
        # It is waited for by its parent, and outlives all others in its namespace.
        for child in children(self._process.pid) if self._process.returncode is None else ():
            os.kill(child, signal.SIGKILL)
        await asyncio.wait_for(self._process.wait(), _PATIENCE)


class Containerd(Daemon):
    """With one pod on it."""

    _pod = ""
    _containers = 0

    async def __aenter__(self) -> Self:
        await super().__aenter__()
        try:
            self._pod = await self._run_pod()
        except BaseException:
            await self._kill()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        try:
            await self._call("RemovePodSandbox", pod_sandbox_id=self._pod)
        finally:
            await self._kill()

    async def exec(
        self,
        script: str,
        answer: v1beta1.ContainerAllocateResponse,
        user: int = 0,
        groups: Sequence[int] = (),
    ) -> Ended:
        """Start a container with what its device plugin answered, and run a script in it."""
        cri = self._messages
        security = cri.LinuxContainerSecurityContext(
            namespace_options=cri.NamespaceOption(network=_HOST_NETWORK, pid=1),
            run_as_user=cri.Int64Value(value=user),
            run_as_group=cri.Int64Value(value=user),
            supplemental_groups=groups,
        )
        devices = [
            cri.Device(
                container_path=each.container_path,
                host_path=each.host_path,
                permissions=each.permissions,
            )
            for each in answer.devices
        ]
        self._containers += 1
        created = await self._call(
            "CreateContainer",
            pod_sandbox_id=self._pod,
            sandbox_config=self._pod_config(),
            config=cri.ContainerConfig(
                metadata=cri.ContainerMetadata(name=f"container-{self._containers}"),
                image=cri.ImageSpec(image=IMAGE),
                devices=devices,
                linux=cri.LinuxContainerConfig(security_context=security),
            ),
        )
        await self._call("StartContainer", container_id=created.container_id)
        return await self.exec_in(created.container_id, script)

    async def _run_pod(self) -> str:
        answer = await self._call("RunPodSandbox", config=self._pod_config())
        return str(answer.pod_sandbox_id)

    def _pod_config(self) -> Any:  # noqa: ANN401 -- as all of these messages
        cri = self._messages
        # The host's network, or it would have to be configured.
        options = cri.NamespaceOption(network=_HOST_NETWORK)
        security = cri.LinuxSandboxSecurityContext(namespace_options=options)
        return cri.PodSandboxConfig(
            metadata=cri.PodSandboxMetadata(name="pod", uid="1", namespace="default"),
            linux=cri.LinuxPodSandboxConfig(security_context=security),
        )


def children(pid: int) -> list[int]:
    """Processes that the first thread of a process has started."""
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def _messages(folder: Path) -> Any:  # noqa: ANN401 -- generated
    protoc = module("grpc_tools.protoc")
    here = Path(__file__).parent
    assert protoc.main(["protoc", f"-I{here}", f"--python_out={folder}", "cri.proto"]) == 0
    spec = importlib.util.spec_from_file_location("cri_pb2", folder / "cri_pb2.py")
    assert spec
    assert spec.loader
    generated = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generated)
    return generated


def _make_image(folder: Path, path: Path) -> None:
    """Pack an image of busybox as docker saves them; left to itself, it sleeps."""
    make_root(folder / "root")
    layer = folder / "layer.tar"
    with tarfile.open(layer, "w") as archive:
        archive.add(folder / "root", ".")
    config = {
        "architecture": _ARCHITECTURES.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {"Cmd": ["/bin/sleep", "1000"], "Env": ["PATH=/bin"]},
        "rootfs": {
            "type": "layers",
            "diff_ids": [f"sha256:{sha256(layer.read_bytes()).hexdigest()}"],
        },
    }
    (folder / "config.json").write_text(json.dumps(config))
    manifest = [{"Config": "config.json", "RepoTags": [IMAGE], "Layers": ["layer.tar"]}]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with tarfile.open(path, "w") as archive:
        for name in ("layer.tar", "config.json", "manifest.json"):
            archive.add(folder / name, name)
