"""The prepared claims on disk: a file for each, which several instances of us may read and write.

They are read afresh whenever something is decided, for another instance may have prepared or
unprepared one meanwhile. A claim's file is written before its spec, and removed after it.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import re
import secrets
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING

import msgspec

from usbplugin.discovery.identity import is_device_id
from usbplugin.dra.prepare import PreparedClaim
from usbplugin.errors import ClaimError
from usbplugin.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

_log = logging.getLogger(__name__)

UID = re.compile(r"[A-Za-z0-9-]{1,64}")
"""What a claim's UID may be, so that it can be part of a file's name."""

_SUFFIX = ".json"
_LOCK = ".lock"
_PATIENCE = 5.0
_PAUSE = 0.005


class ClaimStore:
    """Keeps prepared claims in one directory."""

    def __init__(self, directory: Path) -> None:
        """Use ``directory``, which outlives a reboot, and is created with the first claim."""
        self._directory = directory
        self._token = secrets.token_hex(4)
        self._ignored: set[str] = set()
        self._seen: tuple[int, int, int] | None = None

    @asynccontextmanager
    async def locked(self) -> AsyncIterator[None]:
        """Keep other instances from deciding anything meanwhile; for a moment without awaits only.

        Raises:
            ClaimError: another one has it for too long, or there can be no lock.
        """
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            file = os.open(self._directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            await self._take(file)
            yield
        finally:
            os.close(file)  # which unlocks it

    async def _take(self, file: int) -> None:
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _PATIENCE
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if loop.time() >= deadline:
                    raise ClaimError(
                        f"another instance has locked {self._directory} for {_PATIENCE:g} s"
                    ) from None
                await asyncio.sleep(_PAUSE)
            except OSError as error:
                raise self._unwritable(error) from error
            else:
                return

    def is_disturbed(self) -> bool:
        """Whether files may have come or gone since the last call, whoever did it."""
        before, self._seen = self._seen, None
        with suppress(OSError):
            status = self._directory.stat()
            self._seen = status.st_dev, status.st_ino, status.st_mtime_ns
        return self._seen != before

    def load(self) -> dict[str, PreparedClaim]:
        """All there are, by UID; one that cannot be read is logged, and left out."""
        found = {}
        for path in self._files():
            claim = self._read(path)
            if claim is not None:
                found[claim.uid] = claim
        return found

    def save(self, claim: PreparedClaim) -> None:
        """Remember a claim.

        Raises:
            ClaimError: it cannot be written.
        """
        path = self._path(claim.uid)
        # A dot in front: no other instance reads it.
        temporary = self._directory / f".{claim.uid}.{self._token}"
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(msgspec.json.encode(claim))
            temporary.replace(path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise self._unwritable(error) from error

    def update(self, claim: PreparedClaim) -> None:
        """Remember more of a claim that is prepared; at once, for a spec waits for it.

        Raises:
            ClaimError: it cannot be written now, or another instance has unprepared it.
        """
        try:
            file = os.open(self._directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not self._path(claim.uid).exists():
                raise ClaimError(f"claim {claim.full_name} is not prepared any longer")
            self.save(claim)
        except OSError as error:
            raise self._unwritable(error) from error
        finally:
            os.close(file)

    def forget(self, uid: str) -> None:
        """Remove a claim, if it is there.

        Raises:
            ClaimError: it cannot be removed.
        """
        try:
            self._path(uid).unlink(missing_ok=True)
        except OSError as error:
            raise self._unwritable(error) from error

    def _path(self, uid: str) -> Path:
        return self._directory / f"{uid}{_SUFFIX}"

    def _files(self) -> list[Path]:
        try:
            found = sorted(self._directory.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            self._ignore(self._directory, error)
            return []
        return [path for path in found if path.suffix == _SUFFIX and path.name[0] != "."]

    def _read(self, path: Path) -> PreparedClaim | None:
        try:
            claim = msgspec.json.decode(path.read_bytes(), type=PreparedClaim)
        except FileNotFoundError:
            return None  # another instance was faster
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            self._ignore(path, error)
            return None
        if claim.uid != path.stem or not _is_ours(claim):
            self._ignore(path, "not written by usbplugin")
            return None
        return claim

    def _ignore(self, path: Path, reason: object) -> None:
        if str(path) not in self._ignored:  # it is read again and again
            self._ignored.add(str(path))
            _log.warning("prepared claim ignored", extra=fields(file=path, error=reason))

    def _unwritable(self, error: OSError) -> ClaimError:
        return ClaimError(
            f"prepared claims cannot be kept in {self._directory}: {error.strerror}: make it"
            " writable, or choose another --state-dir"
        )


def _is_ours(claim: PreparedClaim) -> bool:
    """Whether it is as we write it."""
    texts = [claim.uid, claim.namespace, claim.name, claim.boot]
    for one in claim.devices:
        texts += [one.request, one.pool, one.name, one.resource, one.container_path, one.share_id]
    return (
        UID.fullmatch(claim.uid) is not None
        and all(text.isprintable() for text in texts)
        and all(is_device_id(one.device_id) for one in claim.devices)
        and all(not set(one.permissions) - set("rwm") for one in claim.devices)
    )
