"""Generate the Python code and type stubs of every .proto file beside this script.

Usage: ``python protos/generate.py DIRECTORY``. The test suite runs it into a temporary
directory and compares the result with what is checked in under ``usbplugin/api``.
"""

import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

PROTOS = Path(__file__).parent
PACKAGE = Path("usbplugin/api")
BINARIES = Path(sys.executable).parent


def generate(directory: Path) -> list[Path]:
    """Write ``*_pb2.py``, ``*_pb2_grpc.py`` and their stubs into ``directory``; return them.

    Raises:
        SystemExit: protoc refused a file; it has printed why.
    """
    sources = sorted(PROTOS.glob("*.proto"))
    with tempfile.TemporaryDirectory() as scratch:
        arguments = [
            "protoc",
            # Beside this interpreter, whether or not its environment was activated.
            f"--plugin=protoc-gen-mypy={BINARIES / 'protoc-gen-mypy'}",
            f"--plugin=protoc-gen-mypy_grpc={BINARIES / 'protoc-gen-mypy_grpc'}",
            # A virtual import path: the generated modules import each other as usbplugin.api.*
            f"--proto_path={PACKAGE}={PROTOS}",
            *(
                f"--{plugin}_out={scratch}"
                for plugin in ("python", "grpc_python", "mypy", "mypy_grpc")
            ),
            *(str(PACKAGE / source.name) for source in sources),
        ]
        if status := protoc.main(arguments):
            raise SystemExit(status)
        directory.mkdir(parents=True, exist_ok=True)
        written = []
        for generated in sorted((Path(scratch) / PACKAGE).iterdir()):
            target = directory / generated.name
            target.write_bytes(generated.read_bytes())
            written.append(target)
    return written


if __name__ == "__main__":
    if len(sys.argv) != 2:  # noqa: PLR2004
        sys.exit(__doc__)
    for path in generate(Path(sys.argv[1])):
        print(path)
