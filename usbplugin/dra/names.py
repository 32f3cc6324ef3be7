"""The names by which Kubernetes knows us and our devices. Pure."""

from __future__ import annotations

import hashlib
import re

from usbplugin.inventory.grant import DRA_DRIVER

DRIVER = DRA_DRIVER
"""Driver, attribute domain and taint domain: one label is a valid domain."""

CDI_KIND = "usbplugin/claim"
"""Vendor and class of the CDI devices that claims are given."""

PARAMETERS_VERSION = "usbplugin/v1"
PARAMETERS_KIND = "Handover"
"""``apiVersion`` and ``kind`` of the opaque parameters in claims and classes."""

SHARE_CAPACITY = "share"
"""The capacity of a device that several claims may have at once."""

_LONGEST_LABEL = 63  # RFC 1123, as the API server holds device names to it
_DIGEST_LENGTH = 6
_NOT_IN_LABEL = re.compile(r"[^a-z0-9]+")


def device_name(device_id: str) -> str:
    """A device's name in slices and claims: its ID as a DNS label, the same after a reboot.

    IDs may differ in what a label cannot hold, so each name ends in a digest of the whole ID.
    """
    digest = hashlib.sha256(device_id.encode()).hexdigest()[:_DIGEST_LENGTH]
    room = _LONGEST_LABEL - _DIGEST_LENGTH - 1
    label = _NOT_IN_LABEL.sub("-", device_id.lower())[:room].strip("-")
    return f"{label}-{digest}" if label else f"device-{digest}"


def class_name(resource: str) -> str:
    """The DeviceClass of a resource: ``gps.usbplugin`` of ``usbplugin/gps``."""
    domain, _, name = resource.partition("/")
    label = _NOT_IN_LABEL.sub("-", name.lower()).strip("-")
    return f"{label}.{domain.lower()}"
