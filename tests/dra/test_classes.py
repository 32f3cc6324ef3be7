from __future__ import annotations

import msgspec

from usbplugin.dra.classes import device_class


def test_a_class_serves_claims_and_limits_alike() -> None:
    found = device_class("usbplugin/gps")
    assert msgspec.json.decode(msgspec.json.encode(found)) == {
        "apiVersion": "resource.k8s.io/v1",
        "kind": "DeviceClass",
        "metadata": {"name": "gps.usbplugin", "labels": {"app.kubernetes.io/name": "usbplugin"}},
        "spec": {
            "selectors": [
                {
                    "cel": {
                        "expression": 'device.driver == "usbplugin" &&'
                        ' device.attributes["usbplugin"].resource == "usbplugin/gps"'
                    }
                }
            ],
            "extendedResourceName": "usbplugin/gps",
        },
    }


def test_a_name_longer_than_an_attribute_is_cut_as_the_attribute_is() -> None:
    (selector,) = device_class(f"example.com/{'x' * 63}").spec.selectors
    value = selector.cel.expression.rpartition(" == ")[2].strip('"')
    assert len(value) == 64
