"""In place of the API server where nobody says how to reach it: claims can still be given back."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, NoReturn

from usbplugin.dra.contracts import Publication
from usbplugin.errors import ApiServerError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from usbplugin.dra.contracts import ClaimRef, PublishedDevice


class Unreachable:
    """Publishes nothing, and knows no claim."""

    def __init__(self, reason: str) -> None:
        """Say so to whoever asks."""
        self._reason = reason

    async def claim(self, ref: ClaimRef) -> NoReturn:
        """Nobody can say what the claim has.

        Raises:
            ApiServerError: always.
        """
        raise ApiServerError(None, f"claim {ref} cannot be read: {self._reason}")

    def publish(self, devices: Sequence[PublishedDevice]) -> None:
        """Nobody hears of them; the kubelet deletes slices once the driver is gone."""

    def registered(self) -> None:
        """Nothing follows from it."""

    async def run(self) -> None:
        """Do nothing until cancelled."""
        await asyncio.Event().wait()

    async def withdraw(self) -> None:
        """Nothing was published."""

    async def close(self) -> None:
        """There is nothing to close."""

    @property
    def taints(self) -> Mapping[str, tuple[str, ...]]:
        """Nothing was published."""
        return {}

    @property
    def publication(self) -> Publication:
        """Why nothing is published."""
        return Publication(problem=self._reason)
