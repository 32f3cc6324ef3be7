"""The DeviceClass by which pods ask for a resource's devices. Pure."""

from __future__ import annotations

import msgspec

from usbplugin.dra.device import fitted
from usbplugin.dra.names import DRIVER, class_name
from usbplugin.dra.slices import API_VERSION


class CelSelector(msgspec.Struct, frozen=True):
    """A condition on devices, in CEL."""

    expression: str


class DeviceSelector(msgspec.Struct, frozen=True):
    """Which devices are meant."""

    cel: CelSelector


class DeviceClassSpec(msgspec.Struct, frozen=True, rename="camel"):
    """What a class means."""

    selectors: tuple[DeviceSelector, ...]
    extended_resource_name: str
    """Pods that name it in their limits are served by this class, too, without a claim."""


class ClassMetadata(msgspec.Struct, frozen=True):
    """A class's name, and what it belongs to."""

    name: str
    labels: dict[str, str]


class DeviceClass(msgspec.Struct, frozen=True, rename="camel"):
    """A class as it is applied."""

    metadata: ClassMetadata
    spec: DeviceClassSpec
    api_version: str = API_VERSION
    kind: str = "DeviceClass"


def device_class(resource: str) -> DeviceClass:
    """The class of one resource: any of its devices, on whatever node."""
    expression = (
        f'device.driver == "{DRIVER}" &&'
        f' device.attributes["{DRIVER}"].resource == "{fitted(resource)}"'
    )
    return DeviceClass(
        ClassMetadata(class_name(resource), {"app.kubernetes.io/name": "usbplugin"}),
        DeviceClassSpec((DeviceSelector(CelSelector(expression)),), resource),
    )
