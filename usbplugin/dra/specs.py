"""CDI specs of prepared claims: a file for each, which the container runtime reads.

A spec that names a device that is not there would let a restarted container in with its old
numbers, which may be another device's by then. So it is taken away the moment a device goes, and
written anew once all are back.
"""

from __future__ import annotations

import logging
import re
import secrets
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from usbplugin.errors import ClaimError
from usbplugin.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping
    from pathlib import Path

_log = logging.getLogger(__name__)

_OURS = re.compile(r"usbplugin-claim_([A-Za-z0-9-]{1,64})\.json")


class ClaimSpecs:
    """Keeps the specs of claims in the CDI directory."""

    def __init__(self, directory: Path) -> None:
        """Use ``directory``, which is created with the first spec."""
        self._directory = directory
        self._token = secrets.token_hex(4)
        self._complained = False

    def is_kept(self, uid: str, spec: Mapping[str, object]) -> bool:
        """Whether that very spec is on disk."""
        try:
            return self._path(uid).read_bytes() == msgspec.json.encode(spec)
        except OSError:
            return False

    def write(self, uid: str, spec: Mapping[str, object]) -> None:
        """Make this the claim's spec.

        Raises:
            ClaimError: it cannot be written.
        """
        path = self._path(uid)
        temporary = path.with_suffix(f".{self._token}")  # a runtime reads *.json and *.yaml only
        try:
            self._directory.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(msgspec.json.encode(spec))
            temporary.replace(path)
        except OSError as error:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise self._unwritable(error) from error
        self._complained = False

    def withdraw(self, uid: str) -> None:
        """Take a claim's spec away, if there is one.

        Raises:
            ClaimError: it cannot be removed.
        """
        try:
            self._path(uid).unlink(missing_ok=True)
        except OSError as error:
            raise self._unwritable(error) from error

    def keep_only(self, uids: Collection[str]) -> None:
        """Remove the specs of claims that are not prepared."""
        for uid in self.uids() - set(uids):
            _log.info("CDI spec of an earlier run removed", extra=fields(file=self._path(uid)))
            try:
                self.withdraw(uid)
            except ClaimError as error:
                self.complain(error)

    def uids(self) -> set[str]:
        """The claims that have a spec on disk."""
        try:
            found = [_OURS.fullmatch(path.name) for path in self._directory.iterdir()]
        except OSError:
            return set()  # there are none
        return {name[1] for name in found if name is not None}

    def complain(self, error: ClaimError) -> None:
        """Log a problem with the directory once, until something could be written again."""
        if not self._complained:
            self._complained = True
            _log.error("cannot keep the CDI specs of claims", extra=fields(reason=error))

    def _path(self, uid: str) -> Path:
        return self._directory / f"usbplugin-claim_{uid}.json"

    def _unwritable(self, error: OSError) -> ClaimError:
        return ClaimError(
            f"CDI specs cannot be written to {self._directory}: {error.strerror}: mount the CDI"
            " directory writable"
        )
