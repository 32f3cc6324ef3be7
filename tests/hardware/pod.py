"""A pod's surroundings for a process: namespaces, mounts and capabilities, by unshare(1)."""

from __future__ import annotations

import os
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from tests.deploy.manifests import environment

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_CHECKOUT = Path(__file__).resolve().parents[2]
_DAEMON_SET = _CHECKOUT / "deploy/kustomize/base/daemonset.yaml"


def pod_command(command: Sequence[str], *, uid: int = 0) -> list[str]:
    """Wrap a command so that it runs as in a pod without hostNetwork and with all caps dropped.

    The loopback device is up. The mounts are the machine's own.
    """
    return [
        *["unshare", "--net", "--"],
        # While there are still the rights to do so.
        *["sh", "-c", 'busybox ip link set lo up && exec "$@"', "sh"],
        *_unprivileged(command, uid, uid),
    ]


def without_udev(command: Sequence[str]) -> list[str]:
    """Wrap a command so that it finds an empty /run/udev/data."""
    script = 'mount -t tmpfs tmpfs /run/udev/data && exec "$@"'
    return ["unshare", "--mount", "--", "sh", "-c", script, "sh", *command]


def user_namespace_command(command: Sequence[str]) -> list[str]:
    """Wrap a command so that it runs as in a pod with hostUsers: false."""
    return ["unshare", "--user", "--map-root-user", "--net", "--", *command]


def _unprivileged(command: Sequence[str], uid: int, gid: int) -> list[str]:
    return [
        *["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs"],
        *[f"--reuid={uid}", f"--regid={gid}", "--clear-groups", "--"],
        *command,
    ]


@dataclass
class DaemonSetPod:
    """What deploy/kustomize/base/daemonset.yaml makes of the plugin, without an image.

    The root file system is the machine's, read-only; of /run, /dev, /sys and /var/lib/kubelet it
    sees what the manifest mounts and what a container runtime gives to every container. The
    network namespace is its own. Only the seccomp filter is missing.
    """

    host_paths: Mapping[str, Path]
    """What is to be mounted in place of paths of the host."""
    config: Path
    """The directory that plays the ConfigMap."""
    manifest: dict[str, Any] = field(
        default_factory=lambda: yaml.safe_load(_DAEMON_SET.read_text())
    )

    def __post_init__(self) -> None:
        self._spec = self.manifest["spec"]["template"]["spec"]
        (self._container,) = self._spec["containers"]
        security = self._container["securityContext"]
        assert security["capabilities"] == {"drop": ["ALL"]}
        assert not security["privileged"]
        assert not security["allowPrivilegeEscalation"]
        assert security["readOnlyRootFilesystem"]
        assert not self._spec["hostNetwork"]
        assert self._spec.get("hostUsers", True)

    def command(self, command: Sequence[str], root: Path) -> list[str]:
        """Wrap a command; ``root`` is an empty directory where its root file system is put."""
        user = self._spec["securityContext"]
        variables = [f"{name}={value}" for name, value in environment(self._container).items()]
        inner = ["env", f"--chdir={_CHECKOUT}", *variables, *command]
        inner = _unprivileged(inner, user["runAsUser"], user["runAsGroup"])
        script = self._script(shlex.quote(str(root))) + f"exec chroot {shlex.quote(str(root))} "
        return ["unshare", "--mount", "--net", "--", "sh", "-euc", script + shlex.join(inner)]

    @property
    def args(self) -> list[str]:
        """The arguments of usbplugin."""
        args: list[str] = self._container["args"]
        return args

    def _script(self, root: str) -> str:
        lines = ["mount --make-rprivate /", "busybox ip link set lo up"]
        mounts = [self._mount(mount, root) for mount in self._container["volumeMounts"]]
        # Paths below those that are covered are made there, all others in the machine's own.
        points = [shlex.quote(mount["mountPath"]) for mount in self._container["volumeMounts"]]
        lines += [f"mkdir -p {' '.join(points)} /var/lib/kubelet"]
        lines += [f"mount --bind / {root}"]
        lines += [f"mount -t tmpfs tmpfs {root}{path}" for path in ("/run", "/var/lib/kubelet")]
        lines += [f"mount --rbind /proc {root}/proc", f"mount -t sysfs -o ro sysfs {root}/sys"]
        lines += [f"mount -t tmpfs tmpfs {root}/dev"]
        for mount in mounts:
            lines += mount
        lines += [
            f"mount -o remount,ro,bind {root}{path}" for path in ("/run", "/var/lib/kubelet", "")
        ]
        return "\n".join(lines) + "\n"

    def _mount(self, mount: dict[str, Any], root: str) -> list[str]:
        (volume,) = [v for v in self._spec["volumes"] if v["name"] == mount["name"]]
        target = root + shlex.quote(mount["mountPath"])
        lines = [f"mkdir -p {target}"]
        if "emptyDir" in volume:
            return [*lines, f"mount -t tmpfs tmpfs {target}"]
        if "configMap" in volume:
            source = self.config
        else:
            path = volume["hostPath"]["path"]
            source = self.host_paths.get(path, Path(path))
            if volume["hostPath"]["type"] == "DirectoryOrCreate":
                source.mkdir(parents=True, exist_ok=True)
        lines += [f"mount --rbind {shlex.quote(os.fspath(source))} {target}"]
        if mount.get("recursiveReadOnly"):
            # mount(8) has ro=recursive only since 2.39.
            below = f"awk -v at={target}/ 'index($2 \"/\", at) == 1 {{print $2}}' /proc/self/mounts"
            lines += [f'{below} | while read -r it; do mount -o remount,ro,bind "$it"; done']
        elif mount.get("readOnly"):
            lines += [f"mount -o remount,ro,bind {target}"]
        return lines
