"""Kernel and initramfs, made once and kept in a cache.

Everything in the cache is named after what it was made from and appears under its final name only
when complete, so a stale or a half-made entry is never used.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import stat
import struct
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from . import packages
from .errors import MachineError
from .packages import say

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_INIT = Path(__file__).with_name("init")

# In the order in which init loads them. The first line leads to the root file system.
_MODULES = [
    *["virtio_pci", "virtio_console", "9pnet_virtio", "9p", "overlay"],
    *["dummy_hcd", "libcomposite", "usb_f_acm", "usb_f_serial", "xhci_pci"],
    *["cdc_acm", "ftdi_sio", "usb_serial_simple"],
]
_MODULE_OPTIONS = {"dummy_hcd": "num=8"}


@dataclass(frozen=True, slots=True)
class Image:
    """What QEMU boots."""

    kernel: Path
    initramfs: Path
    modules: Path
    """The kernel's directory below lib/modules."""


def cache_directory() -> Path:
    """Return where kernel and initramfs are kept."""
    if configured := os.environ.get("USBPLUGIN_VM_CACHE"):
        return Path(configured).absolute()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "usbplugin-vm"


@contextmanager
def prepared() -> Iterator[Image]:
    """Hold an image that nobody changes or removes meanwhile, nor the packages of this machine.

    Runs share the lock. Whoever has something to make or to install waits until it is alone: the
    guests' root file system is this machine's, and files must not change below a running guest.
    """
    cache = cache_directory()
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as lock:
        _acquire(lock.fileno(), fcntl.LOCK_SH)
        image = _find(cache)
        while image is None:
            # Changing a lock's kind lets go of it in between, hence the second look each time.
            _acquire(lock.fileno(), fcntl.LOCK_EX)
            _make(cache)
            _acquire(lock.fileno(), fcntl.LOCK_SH)
            image = _find(cache)
        yield image


def _acquire(lock: int, kind: int) -> None:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        say("waiting for another run to end")
        fcntl.flock(lock, kind)


def _find(cache: Path) -> Image | None:
    if packages.missing():
        return None
    tree = _kernel_tree(cache)
    if tree is None or not tree.is_dir():
        return None
    recipe = _Recipe.of(tree)
    initramfs = cache / recipe.name
    if not initramfs.exists():
        return None
    return Image(tree / "kernel", initramfs, _modules_directory(tree))


def _make(cache: Path) -> None:
    if missing := packages.missing():
        packages.install(missing)
    tree = _kernel_tree(cache)
    if tree is None:
        packages.update_lists()
        tree = _kernel_tree(cache)
    if tree is None:
        raise MachineError(
            f"apt offers no package {_kernel_package()}; the guest needs Debian's kernel for amd64 "
            "(try apt-get update, or name another package in USBPLUGIN_VM_KERNEL)"
        )
    if not tree.is_dir():
        _make_kernel(tree)
    recipe = _Recipe.of(tree)
    if not (cache / recipe.name).exists():
        recipe.make(cache / recipe.name)
    for pattern in ("linux-image-*", "initramfs-*", ".new-*"):
        for entry in cache.glob(pattern):
            if entry.name not in {tree.name, recipe.name}:
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _kernel_package() -> str:
    return os.environ.get("USBPLUGIN_VM_KERNEL", packages.KERNEL_PACKAGE)


def _kernel_tree(cache: Path) -> Path | None:
    """Name the directory of the kernel that apt offers now, or, unknown to apt, of any we have."""
    package = _kernel_package()
    version = packages.candidate(package)
    if version is None:
        return max(cache.glob(f"{package}_*"), default=None)
    return cache / f"{package}_{version}"


def _make_kernel(tree: Path) -> None:
    with tempfile.TemporaryDirectory(prefix=".new-", dir=tree.parent) as name:
        work = Path(name)
        new = work / "tree"
        archive = packages.download(_kernel_package(), work)
        packages.call("dpkg-deb", "-x", archive, new)
        if not (new / "lib").exists():
            # Newer packages ship usr/lib/modules; depmod and modprobe look below lib.
            (new / "lib").symlink_to("usr/lib")
        modules = _modules_directory(new)
        packages.call("depmod", "-b", new, modules.name)
        _uncompress_kernel(new / "boot" / f"vmlinuz-{modules.name}", new / "kernel")
        new.rename(tree)


def _modules_directory(tree: Path) -> Path:
    return next((tree / "lib/modules").iterdir())


def _uncompress_kernel(compressed: Path, target: Path) -> None:
    """Extract the ELF kernel from a bzImage (Documentation/x86/boot.rst); QEMU starts it by PVH."""
    image = compressed.read_bytes()
    setup_sectors = image[0x1F1]
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (setup_sectors + 1) * 512 + offset
    payload = image[start : start + length]
    if payload.startswith(b"\xfd7zXZ"):
        # Its last four bytes say how long the result is.
        target.write_bytes(packages.call("xz", "--decompress", "--stdout", data=payload[:-4]))
    else:
        # Another compression is slower, but the guest knows how.
        shutil.copyfile(compressed, target)


class _Module(NamedTuple):
    path: Path
    options: str


@dataclass(frozen=True, slots=True)
class _Recipe:
    """The initramfs: busybox, modules, and the script that loads them and mounts the root."""

    busybox: Path
    modules: list[_Module]

    @classmethod
    def of(cls, tree: Path) -> _Recipe:
        return cls(packages.find("busybox"), list(_modules_with_dependencies(tree)))

    @property
    def name(self) -> str:
        digest = hashlib.sha256(Path(__file__).read_bytes())
        digest.update(_INIT.read_bytes())
        digest.update(self.busybox.read_bytes())
        for module in self.modules:
            digest.update(f"{module.path} {module.options}\n".encode())
        return f"initramfs-{digest.hexdigest()[:16]}"

    def make(self, target: Path) -> None:
        say("building the initramfs")
        files = {
            "init": _INIT.read_bytes(),
            "bin/busybox": self.busybox.read_bytes(),
            "modules/list": "".join(
                f"{module.path.stem} {module.options}\n" for module in self.modules
            ).encode(),
        }
        for module in self.modules:
            files[f"modules/{module.path.stem}"] = _read_module(module.path)
        new = target.with_name(f".new-{target.name}")
        new.write_bytes(b"".join(_cpio(files)))
        new.rename(target)


def _modules_with_dependencies(tree: Path) -> Iterator[_Module]:
    answer = packages.call(
        "modprobe",
        *("--dirname", tree, "--set-version", _modules_directory(tree).name),
        *("--show-depends", "--all", *_MODULES),
    )
    seen = set()
    for line in answer.decode().splitlines():
        # Behind the path, there are the options of this machine's modprobe.d.
        kind, _, rest = line.partition(" ")
        path = Path(rest.partition(" ")[0])
        if kind == "insmod" and path not in seen:
            seen.add(path)
            yield _Module(path, _MODULE_OPTIONS.get(path.name.partition(".")[0], ""))


def _read_module(path: Path) -> bytes:
    content = path.read_bytes()
    if path.suffix == ".xz":
        return packages.call("xz", "--decompress", "--stdout", data=content)
    return content


def _cpio(files: dict[str, bytes]) -> Iterator[bytes]:
    """Archive executable files, the mount points and the directories as "newc" (see cpio(5))."""
    directories = {str(Path(name).parent) for name in files} - {"."}
    for name in sorted(directories | {"proc", "sys", "dev", "lower", "upper", "root"}):
        yield from _cpio_entry(name, stat.S_IFDIR | 0o755, b"")
    for name, content in files.items():
        yield from _cpio_entry(name, stat.S_IFREG | 0o755, content)
    yield from _cpio_entry("TRAILER!!!", 0, b"")


def _cpio_entry(name: str, mode: int, content: bytes) -> Iterable[bytes]:
    encoded = name.encode() + b"\0"
    # ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor,
    # namesize, check
    fields = [0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(encoded), 0]
    header = b"070701" + b"".join(b"%08X" % field for field in fields) + encoded
    return [_padded(header), _padded(content)]


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 4)
