"""Small builders that tests share."""

from __future__ import annotations

import msgspec

from usbplugin.discovery import AllPorts, DeviceNumber, Port, PortGone, PortPresent, UsbInterface

SOURCE = "udev"


def usb_port(
    name: str = "ttyUSB0",
    *,
    serial: str = "A5069RR4",
    location: str = "0000:00:14.0-1",
    vendor_id: str = "0403",
    product_id: str = "6001",
    interface: int = 0,
    **changes: object,
) -> Port:
    """A port as the udev source would describe it."""
    minor = int("".join(filter(str.isdigit, name)) or 0)
    port = Port(
        name=name,
        node=f"/dev/{name}",
        number=DeviceNumber(166 if "ACM" in name else 188, minor),
        driver="cdc_acm" if "ACM" in name else "ftdi_sio",
        usb=UsbInterface(
            vendor_id=vendor_id,
            product_id=product_id,
            serial=serial,
            manufacturer="FTDI",
            product="FT232R USB UART",
            interface=interface,
            location=location,
            speed="12",
        ),
    )
    return msgspec.structs.replace(port, **changes)


def present(port: Port, source: str = SOURCE) -> PortPresent:
    return PortPresent(source, port)


def gone(port: Port, source: str = SOURCE) -> PortGone:
    return PortGone(source, port.name)


def all_ports(*ports: Port, source: str = SOURCE, reason: str = "start") -> AllPorts:
    return AllPorts(source, ports, reason)
