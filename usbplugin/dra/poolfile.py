"""How the devices are divided into slices, on disk: for our next life, and for a second instance.

Instances that publish side by side read it before they write, and so come to one division; of two
that write at the same time the later one wins, and the other one sees that at its next look.
"""

from __future__ import annotations

import logging
import secrets
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from usbplugin.dra.slices import MOST_SLICES, SLICE_SIZE, Pool
from usbplugin.telemetry.logs import fields

if TYPE_CHECKING:
    from pathlib import Path

_log = logging.getLogger(__name__)

_NOTHING = (0, 0, 0)


class PoolFile:
    """A pool in a file. What cannot be read is as good as none; what cannot be written is kept."""

    def __init__(self, path: Path) -> None:
        """Use ``path``, whose directory is created if need be."""
        self._path = path
        self._seen = _NOTHING
        self._pool = Pool()
        self._complained = False

    def load(self) -> Pool:
        """The pool as it is now; read only if the file has changed."""
        seen = self._stamp()
        if seen not in (self._seen, _NOTHING):
            self._seen = seen
            try:
                found = msgspec.json.decode(self._path.read_bytes(), type=Pool)
            except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
                _log.warning(
                    "cannot read how devices are divided into slices; dividing them anew",
                    extra=fields(file=self._path, error=error),
                )
            else:
                if found.generation >= self._pool.generation and _is_sound(found):
                    self._pool = found
        return self._pool

    def save(self, pool: Pool) -> None:
        """Keep this one."""
        self._pool = pool
        temporary = self._path.with_suffix(f".{secrets.token_hex(4)}")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(msgspec.json.encode(pool))
            temporary.replace(self._path)
            self._seen = self._stamp()
            self._complained = False
        except OSError as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            if not self._complained:
                self._complained = True
                _log.warning(
                    "cannot keep how devices are divided into slices: a restart divides them anew",
                    extra=fields(file=self._path, error=error),
                )

    def _stamp(self) -> tuple[int, int, int]:
        try:
            found = self._path.stat()
        except OSError:
            return _NOTHING
        return found.st_ino, found.st_size, found.st_mtime_ns


def _is_sound(pool: Pool) -> bool:
    """Whether it is a pool that could be published: the file may have been edited."""
    sizes = Counter(pool.places.values())
    return (
        pool.generation > 0
        and all(0 <= place < MOST_SLICES for place in sizes)
        and all(size <= SLICE_SIZE for size in sizes.values())
    )
