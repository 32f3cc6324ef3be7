"""A node that runs pods with runc, set up as containerd would: for trying manifests for real.

Needs root and a mount namespace of its own (deploy/image/test.sh sees to both). A directory plays
the node's file system; the runtime resolves host paths in it, as it would on a node.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import platform
import shutil
import stat
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tests.deploy.manifests import environment

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tests.deploy.manifests import Manifest
    from usbplugin.api import deviceplugin_v1beta1_pb2 as v1beta1

PATH = "/opt/usbplugin/bin:/usr/sbin:/usr/bin:/sbin:/bin"
RUNTIMES = ("runc", "crun")
SECCOMP = Path("/usr/share/containers/seccomp.json")
_PATIENCE = 20.0
_NAMESPACES = ("pid", "ipc", "uts", "mount", "network")
_PLAIN_DEVICES = {"null": (1, 3), "zero": (1, 5), "full": (1, 7), "urandom": (1, 9)}
_ids = itertools.count()

Json = dict[str, Any]


class Node:
    """A node's file system below ``root``, and the pods that run on it."""

    def __init__(self, root: Path, image: Path, runtime: str) -> None:
        self.root = root
        self._image = image
        self._command = [runtime, "--root", str(root / "runtime")]
        self._mounted: list[Path] = []
        for folder in ("dev", "run", "var/lib/kubelet/device-plugins", "bundles"):
            (root / folder).mkdir(parents=True)

    def make_dev(self) -> None:
        """As in a kind node, which is a container itself: few nodes, ptmx for everyone."""
        dev = self.root / "dev"
        for name, (major, minor) in _PLAIN_DEVICES.items():
            os.mknod(dev / name, stat.S_IFCHR | 0o666, os.makedev(major, minor))
        (dev / "pts").mkdir()
        self._mount("-t", "devpts", "-o", "newinstance,ptmxmode=0666,gid=5", "devpts", dev / "pts")
        (dev / "ptmx").symlink_to("pts/ptmx")

    def bind_dev(self) -> None:
        """The machine's own, with whatever ptmx its /dev/pts has."""
        # Private: what is unmounted here must not be unmounted there.
        self._mount("--make-rprivate", "--rbind", "/dev", self.root / "dev")

    def _mount(self, *arguments: str | Path) -> None:
        subprocess.run(["mount", *arguments], check=True)
        self._mounted.append(Path(arguments[-1]))

    def close(self) -> None:
        """Take it all away, but only once nothing of the machine's own is mounted there."""
        for path in self._mounted:
            subprocess.run(["umount", "--lazy", "--recursive", path], check=True)
            assert not path.is_mount()
        shutil.rmtree(self.root)

    def path(self, path: str) -> Path:
        """Where a path of the node is here; links lead to where they lead on the node."""
        here = self.root / path.lstrip("/")
        while here.is_symlink():
            target = here.parent / here.readlink()
            if not target.is_relative_to(self.root):
                target = self.root / target.relative_to("/")
            here = target
        return here

    async def run(
        self,
        spec: Manifest,
        config_maps: Mapping[str, Mapping[str, str]] | None = None,
        answer: v1beta1.ContainerAllocateResponse | None = None,
    ) -> Pod:
        """Start the pod's one container, with what its device plugin answered."""
        (container,) = spec["containers"]
        mounts = self._volumes(spec, container, config_maps or {})
        env = {"PATH": PATH} | environment(container)
        for mount in answer.mounts if answer else ():
            source = self.path(mount.host_path)
            mounts.append(_bind(source, mount.container_path, "ro" if mount.read_only else ""))
        env |= dict(answer.envs) if answer else {}
        bundle = self.root / "bundles" / f"{container['name']}-{next(_ids)}"
        bundle.mkdir()
        if "terminationMessagePath" in container:
            (bundle / "termination-log").touch()
            mounts.append(_bind(bundle / "termination-log", container["terminationMessagePath"]))
        command = container.get("command") or ["usbplugin"]
        arguments = [*command, *container.get("args", ())]
        config = _config(self._image, arguments, env, mounts)
        (bundle / "config.json").write_text(json.dumps(config))
        process = await asyncio.create_subprocess_exec(
            *self._command, "run", "--bundle", bundle, bundle.name, stdout=subprocess.PIPE
        )
        return Pod(bundle.name, process, self._command)

    def _volumes(
        self, spec: Manifest, container: Manifest, config_maps: Mapping[str, Mapping[str, str]]
    ) -> list[Json]:
        volumes = {volume["name"]: volume for volume in spec.get("volumes", ())}
        mounts = []
        for mount in container.get("volumeMounts", ()):
            volume = volumes[mount["name"]]
            if "hostPath" in volume:
                source = self.path(volume["hostPath"]["path"])
                if volume["hostPath"]["type"] == "DirectoryOrCreate":
                    source.mkdir(parents=True, exist_ok=True)
            else:
                source = self.root / f"volume-{next(_ids)}"
                source.mkdir()
                files = config_maps[volume["configMap"]["name"]] if "configMap" in volume else {}
                for name, text in files.items():
                    (source / name).write_text(text)
            access = "ro" if mount.get("readOnly") else ""
            if mount.get("recursiveReadOnly", "Disabled") != "Disabled":
                access = "rro"
            mounts.append(_bind(source, mount["mountPath"], access))
        return mounts


class Pod:
    """A pod that runs, or ran."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, command: list[str]) -> None:
        self._name = name
        self._process = process
        self._command = command

    async def line(self) -> str:
        assert self._process.stdout is not None
        return (await asyncio.wait_for(self._process.stdout.readline(), _PATIENCE)).decode()

    async def exec(self, *arguments: str) -> str:
        process = await asyncio.create_subprocess_exec(
            *self._command,
            *("exec", self._name, *arguments),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        output, _ = await asyncio.wait_for(process.communicate(), _PATIENCE)
        assert process.returncode == 0, output
        return output.decode()

    async def ended(self) -> int:
        """Wait for its end; its exit code."""
        return await asyncio.wait_for(self._process.wait(), _PATIENCE)

    async def stop(self) -> int:
        self._signal("TERM")
        return await self.ended()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._process.returncode is None:
            self._signal("KILL")
            await self.ended()

    def _signal(self, name: str) -> None:
        subprocess.run([*self._command, "kill", self._name, name], check=False)


def runtime() -> str | None:
    return next(filter(None, map(shutil.which, RUNTIMES)), None)


def _bind(source: Path, target: str, access: str = "") -> Json:
    """With ``ro``, read-only but for what is mounted below; with ``rro``, all of it."""
    options = ["rbind", "rprivate", *filter(None, [access])]
    return {"destination": target, "type": "bind", "source": str(source), "options": options}


def _config(image: Path, arguments: list[str], env: Json, mounts: list[Json]) -> Json:
    """What containerd makes of the security context that tests here hold all manifests to."""
    replaced = {mount["destination"] for mount in mounts}
    defaults = [mount for mount in _default_mounts() if mount["destination"] not in replaced]
    if "/dev" in replaced:  # it comes with all that is below
        defaults = [each for each in defaults if not each["destination"].startswith("/dev/")]
    none: list[str] = []
    return {
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": 0, "gid": 0},
            "args": arguments,
            "env": [f"{name}={value}" for name, value in env.items()],
            "cwd": "/",
            "capabilities": {"bounding": none, "effective": none, "permitted": none},
            "noNewPrivileges": True,
        },
        "root": {"path": str(image), "readonly": True},
        "mounts": [*defaults, *sorted(mounts, key=lambda mount: str(mount["destination"]))],
        "linux": {
            "namespaces": [{"type": kind} for kind in _NAMESPACES],
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "maskedPaths": ["/proc/kcore", "/proc/keys", "/proc/timer_list", "/sys/firmware"],
            "readonlyPaths": ["/proc/sys", "/proc/sysrq-trigger", "/proc/irq", "/proc/bus"],
        }
        | ({"seccomp": _seccomp(json.loads(SECCOMP.read_text()))} if SECCOMP.exists() else {}),
    }


def _default_mounts() -> list[Json]:
    def special(target: str, kind: str, *options: str) -> Json:
        return {"destination": target, "type": kind, "source": kind, "options": list(options)}

    return [
        special("/proc", "proc", "nosuid", "noexec", "nodev"),
        special("/dev", "tmpfs", "nosuid", "strictatime", "mode=755", "size=65536k"),
        special("/dev/pts", "devpts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "gid=5"),
        special("/dev/shm", "tmpfs", "nosuid", "noexec", "nodev", "mode=1777", "size=65536k"),
        special("/dev/mqueue", "mqueue", "nosuid", "noexec", "nodev"),
        special("/sys", "sysfs", "nosuid", "noexec", "nodev", "ro"),
    ]


def _seccomp(profile: Json) -> Json:
    """The runtimes' default profile in OCI's form, for a container without capabilities."""
    machine = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]

    def applies(rule: Json) -> bool:
        includes, excludes = rule.get("includes") or {}, rule.get("excludes") or {}
        return (
            not includes.get("caps")
            and machine in includes.get("arches", [machine])
            and machine not in excludes.get("arches", [])
        )

    keys = ("names", "action", "args", "errnoRet")
    names = {"amd64": "SCMP_ARCH_X86_64", "arm64": "SCMP_ARCH_AARCH64"}
    return {
        "defaultAction": profile["defaultAction"],
        "defaultErrnoRet": profile.get("defaultErrnoRet", 1),
        "architectures": [names[machine]],
        "syscalls": [
            {key: rule[key] for key in keys if rule.get(key)}
            for rule in profile["syscalls"]
            if applies(rule)
        ],
    }
