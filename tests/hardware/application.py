"""What runs in a container of the tests: opens device nodes and moves bytes, a command per line.

It needs nothing but Python's standard library, no device node of its own, and answers in JSON.
"""

from __future__ import annotations

import errno
import json
import os
import sys
from contextlib import closing

from tests.hardware.line import Line


def answer(command: str, path: str, data: str = "") -> str | None:
    """Do one thing with the node at ``path``; what it gives, or why not."""
    try:
        if command == "send":
            with closing(Line(path)) as line:
                line.write(data.encode())
                return None
        if command == "number":
            number = os.stat(path).st_rdev
            return f"{os.major(number)}:{os.minor(number)}"
        if command == "make":
            os.mknod(path, 0o020600, os.makedev(*map(int, data.split(":"))))
            return None
    except OSError as error:
        return errno.errorcode[error.errno or 0]
    raise ValueError(command)


def main() -> None:
    for line in sys.stdin:
        print(json.dumps(answer(*json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
