"""Publishes node labels through Node Feature Discovery: which devices are here, and how many.

NFD's local source turns ``key=value`` lines in features.d into labels. They carry only counts and
vendor and product IDs: labels must not reveal serial numbers to the whole cluster.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING

from usbplugin.telemetry.logs import fields

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from usbplugin.inventory import Device

_log = logging.getLogger(__name__)

FILE_NAME = "usbplugin"

# NFD ignores files whose names begin with a dot.
_TEMPORARY = ".usbplugin.new"
_NOT_IN_LABEL = re.compile(r"[^A-Za-z0-9._-]")
_LONGEST_NAME = 63
"""The limit for a label's name part (apimachinery, pkg/util/validation)."""


class NodeFeatures:
    """Maintains our file in NFD's features.d."""

    def __init__(self, directory: Path) -> None:
        """Use ``directory``, which must exist: NFD's worker mounts it from the node."""
        self._directory = directory
        self._written: str | None = None
        self._complained = False

    def write(self, devices: Iterable[Device]) -> None:
        """Publish labels for the devices that are usable now."""
        text = features(devices)
        if text == self._written:
            return
        try:
            temporary = self._directory / _TEMPORARY
            temporary.write_text(text)
            temporary.replace(self._directory / FILE_NAME)
        except OSError as error:
            if not self._complained:
                self._complained = True
                _log.warning(
                    "cannot write node features",
                    extra=fields(
                        directory=self._directory, error=error, hint="mount it read-write"
                    ),
                )
        else:
            self._written = text

    def remove(self) -> None:
        """Withdraw all labels."""
        self._written = None
        with suppress(OSError):  # already reported by write()
            (self._directory / FILE_NAME).unlink()


def features(devices: Iterable[Device]) -> str:
    """``<domain>_<resource>.count=N`` per resource, ``usb-<vendor>-<product>.count=N`` a model."""
    resources: Counter[str] = Counter()
    models: Counter[str] = Counter()
    for device in devices:
        if not device.health.is_usable:
            continue
        resources[_NOT_IN_LABEL.sub("_", device.resource)] += 1
        models.update(
            {f"usb-{p.usb.vendor_id}-{p.usb.product_id}" for p in device.ports if p.usb is not None}
        )
    lines = [f"{name}.count={count}" for name, count in sorted((resources + models).items())]
    return "".join(f"{line}\n" for line in lines if line.index("=") <= _LONGEST_NAME)
