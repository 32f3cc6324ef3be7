"""What Prometheus reads of devices: a series says something that an operator can act on."""

from __future__ import annotations

from tests.support import usb_port
from usbplugin.inventory import Device, Health
from usbplugin.status.collect import of_devices
from usbplugin.telemetry import catalogue

SERIAL = "usbplugin/serial"
POD = "default/gps/main"


def test_a_retired_device_that_is_held_is_not_one_that_ought_to_be_ready() -> None:
    devices = [
        Device(name, SERIAL, health, "", (usb_port(),), 0.0, (POD,))
        for name, health in (("away", Health.UNPLUGGED), ("retired", Health.RETIRED))
    ]
    read = {reading.metric: reading._values for reading in of_devices(devices, [SERIAL])}
    assert read[catalogue.DEVICE_HOLDERS] == {(SERIAL, "away"): 1, (SERIAL, "retired"): 1}
    assert read[catalogue.DEVICE_READY] == {(SERIAL, "away"): False}
    assert read[catalogue.DEVICES][SERIAL, "unhealthy", "retired"] == 1
