"""The CDI specs that the plugin writes, against a schema of such files."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.deploy.tools import module
from tests.node import SERIAL, Node
from tests.support import usb_port
from usbplugin.config import Config, ResourceConfig
from usbplugin.custody import CdiDirectory, Offer
from usbplugin.custody.cdi import qualified_name, spec
from usbplugin.discovery import DeviceNumber, IdentityMode, Unit
from usbplugin.discovery.identity import candidate_ids
from usbplugin.discovery.port import printable
from usbplugin.inventory import Device, Health

if TYPE_CHECKING:
    from collections.abc import Callable

    from usbplugin.discovery import Port

SCHEMA = json.loads((Path(__file__).parent / "cdi.schema.json").read_text("utf-8"))

Json = dict[str, Any]


def problems(document: Json) -> list[str]:
    """What a runtime would refuse the file for."""
    validator = module("jsonschema").Draft202012Validator
    validator.check_schema(SCHEMA)
    found = [
        f"{error.json_path}: {error.message}" for error in validator(SCHEMA).iter_errors(document)
    ]
    names = [device.get("name") for device in document.get("devices", ())]
    return found + [f"{name} twice" for name in sorted({n for n in names if names.count(n) > 1})]


def device(*ports: Port, device_id: str = "", health: Health = Health.READY) -> Device:
    device_id = device_id or candidate_ids(ports[0], IdentityMode.AUTO)[0]
    return Device(device_id, SERIAL, health, "", ports, 0.0)


MODEM = device(
    *(usb_port(f"ttyUSB{n}", serial="MODEM-1", interface=n) for n in range(4)),
    device_id="usb-1e0e:9001-MODEM-1",
)
OFFERS = {
    "plain": Offer(SERIAL, cdi=True),
    "permissions": Offer(SERIAL, cdi=True, permissions="r"),
    "all permissions": Offer(SERIAL, cdi=True, permissions="rwm"),
    "shares": Offer(SERIAL, cdi=True, shares=3),
    "containerPath": Offer(SERIAL, cdi=True, container_path="/dev/modem{port}"),
    "no preStart": Offer(SERIAL, cdi=True, pre_start=False),
    "dots": Offer("hardware.example.com/serial.v2_x", cdi=True),
}
DEVICES = {
    "one": [device(usb_port())],
    "several": [device(usb_port(f"ttyUSB{n}", serial=f"S{n}X")) for n in range(3)],
    "usb-device": [MODEM],
    "acm": [device(usb_port("ttyACM0"))],
    "pty": [device(usb_port(node="/dev/pts/7", number=DeviceNumber(136, 7)))],
    "both": [MODEM, device(usb_port("ttyUSB9", number=DeviceNumber(136, 1)))],
    "displaced": [device(usb_port(), health=Health.DISPLACED)],
}


def written(directory: Path, devices: list[Device], offer: Offer) -> Json:
    """What is in the one file that is there once the plugin has written it."""
    CdiDirectory(directory).write(devices, offer)
    (path,) = directory.iterdir()
    assert path.suffix == ".json", "runtimes read no others"
    document: Json = json.loads(path.read_bytes())
    return document


@pytest.mark.parametrize("devices", DEVICES.values(), ids=DEVICES)
@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS)
def test_what_is_written_keeps_the_rules(
    tmp_path: Path, offer: Offer, devices: list[Device]
) -> None:
    document = written(tmp_path, devices, offer)
    assert problems(document) == []
    assert len(document["devices"]) == len(devices)
    ports = [port for each in devices for port in each.ports]
    edits = [each["containerEdits"] for each in document["devices"]]
    nodes = [node for each in edits for node in each.get("deviceNodes", ())]
    mounts = [mount for each in edits for mount in each.get("mounts", ())]
    assert {(n["hostPath"], n["major"], n["minor"]) for n in nodes} == {
        (port.node, *port.number) for port in ports if not port.number.is_pty
    }
    assert {m["hostPath"] for m in mounts} == {p.node for p in ports if p.number.is_pty}
    assert {node["permissions"] for node in nodes} <= {offer.permissions}


def test_no_newer_version_than_needed_is_declared(tmp_path: Path) -> None:
    """A runtime refuses a version that it does not know, whatever is in the file."""
    plain = written(tmp_path / "plain", DEVICES["one"], OFFERS["plain"])
    dots = written(tmp_path / "dots", DEVICES["one"], OFFERS["dots"])
    assert (plain["cdiVersion"], dots["cdiVersion"]) == ("0.5.0", "0.6.0")
    dots["cdiVersion"] = "0.5.0"
    assert problems(dots)


@given(st.binary(max_size=126), st.sampled_from(IdentityMode), st.sampled_from(Unit))
def test_no_serial_spoils_the_file(serial: bytes, mode: IdentityMode, unit: Unit) -> None:
    port = usb_port(serial=printable(serial), location="0000:00:14.0-1")
    ids = candidate_ids(port, mode, unit)
    document = spec([device(port, device_id=each) for each in ids], OFFERS["plain"])
    assert problems(document) == []


@pytest.mark.parametrize("end", ["-", "_", ".", ":"])
def test_a_name_that_had_to_be_changed_is_nobody_elses(end: str) -> None:
    port = usb_port(serial=f"A{end}")
    (device_id, *_) = candidate_ids(port, IdentityMode.SERIAL, Unit.USB_DEVICE)
    assert device_id.endswith(end)
    others = [f"{device_id}0", f"{device_id[:-1]}0", device_id[:-1]]
    devices = [device(port, device_id=each) for each in (device_id, *others)]
    document = spec(devices, OFFERS["plain"])
    assert problems(document) == []
    name = document["devices"][0]["name"]  # type: ignore[index]
    assert qualified_name(SERIAL, device_id) == f"{SERIAL}={name}"


@pytest.mark.timeout(30)
async def test_what_serve_writes_for_devices_that_say_odd_things() -> None:
    config = Config(
        resources=(
            ResourceConfig(name=SERIAL, unit=Unit.USB_DEVICE, container_path="/dev/tty{port}"),
        ),
        cdi=True,
    )
    async with Node() as node:
        for number, serial in enumerate(("GPS-A7", "A-", "B.", "../../x", "c\n\u202e=d/", "")):
            node.plug(f"ttyUSB{number}", serial)
        async with node.agent(config):
            await node.kubelet.wait_for(lambda: len(node.kubelet.resource(SERIAL).healthy) == 6)
            containers = [await node.kubelet.run_container(SERIAL, pod=f"p{n}") for n in range(6)]
            asked = {each.name for one in containers for each in one.answer.cdi_devices}
            (path,) = node.places.cdi_dir.iterdir()
            document = json.loads(path.read_bytes())
    assert problems(document) == []
    assert asked == {f"{document['kind']}={each['name']}" for each in document["devices"]}


def _node_of(document: Json) -> Json:
    node: Json = document["devices"][0]["containerEdits"]["deviceNodes"][0]
    return node


def _change(where: Callable[[Json], Json], **values: object) -> Callable[[Json], None]:
    return lambda document: where(document).update(values)


def _drop(where: Callable[[Json], Json], key: str) -> Callable[[Json], None]:
    return lambda document: where(document).pop(key)


def _top(document: Json) -> Json:
    return document


def _device_of(document: Json) -> Json:
    first: Json = document["devices"][0]
    return first


def _edits_of(document: Json) -> Json:
    edits: Json = _device_of(document)["containerEdits"]
    return edits


SPOILED = {
    "no version": _drop(_top, "cdiVersion"),
    "an unknown version": _change(_top, cdiVersion="0.9.0"),
    "no kind": _drop(_top, "kind"),
    "a kind without a vendor": _change(_top, kind="serial"),
    "a kind of three parts": _change(_top, kind="usbplugin/serial/port"),
    "a vendor that begins with a digit": _change(_top, kind="3com.example/serial"),
    "a class that begins with a digit": _change(_top, kind="usbplugin/4g"),
    "a class of one letter": _change(_top, kind="usbplugin/a"),
    "a class with a dot in 0.5.0": _change(_top, kind="usbplugin/serial.v2"),
    "no device": _change(_top, devices=[]),
    "an unknown key": _change(_top, shares=3),
    "a device without a name": _drop(_device_of, "name"),
    "a name that ends in a dash": _change(_device_of, name="usb-A-"),
    "a name with a slash": _change(_device_of, name="usb/A"),
    "annotations in 0.5.0": _change(_device_of, annotations={"a": "b"}),
    "a device without edits": _change(_device_of, containerEdits={}),
    "an unknown edit": _change(_edits_of, devices=[]),
    "additionalGids in 0.5.0": _change(_edits_of, additionalGids=[20]),
    "a node without a path": _drop(_node_of, "path"),
    "a relative path": _change(_node_of, hostPath="dev/ttyUSB0"),
    "an unknown type": _change(_node_of, type="char"),
    "a negative minor": _change(_node_of, minor=-1),
    "a number as text": _change(_node_of, major="188"),
    "unknown permissions": _change(_node_of, permissions="rwx"),
    "a mount without a target": _change(_edits_of, mounts=[{"hostPath": "/dev/pts/1"}]),
    "mount options as one text": _change(
        _edits_of,
        mounts=[{"hostPath": "/dev/pts/1", "containerPath": "/dev/x", "options": "bind,rw"}],
    ),
    "an unknown hook": _change(_edits_of, hooks=[{"hookName": "later", "path": "/bin/true"}]),
    "one name twice": lambda document: document["devices"].append(
        copy.deepcopy(document["devices"][0])
    ),
}


@pytest.mark.parametrize("spoil", SPOILED.values(), ids=SPOILED)
def test_a_file_that_breaks_a_rule_is_found(spoil: Callable[[Json], None]) -> None:
    document: Json = json.loads(json.dumps(spec(DEVICES["one"], OFFERS["plain"])))
    assert problems(document) == []
    spoil(document)
    assert problems(document)


def test_what_newer_versions_allow_is_not_found() -> None:
    document: Json = json.loads(json.dumps(spec(DEVICES["one"], OFFERS["plain"])))
    document |= {"cdiVersion": "0.7.0", "kind": "usbplugin/serial.v2", "annotations": {"a": "b"}}
    _edits_of(document)["additionalGids"] = [20]
    document["containerEdits"] = {"env": ["A=b"], "hooks": [{"hookName": "prestart", "path": "/x"}]}
    assert problems(document) == []


def test_a_container_gets_a_node_that_it_may_open_whoever_it_runs_as(tmp_path: Path) -> None:
    document = written(tmp_path, DEVICES["one"], Offer(SERIAL, cdi=True, permissions="r"))
    assert _edits_of(document) == {
        "deviceNodes": [
            {
                "path": "/dev/ttyUSB0",
                "hostPath": "/dev/ttyUSB0",
                "type": "c",
                "major": 188,
                "minor": 0,
                "fileMode": 0o666,
                "permissions": "r",
            }
        ]
    }


@pytest.mark.parametrize(("permissions", "mode"), [("rw", "rw"), ("r", "ro"), ("w", "rw")])
def test_a_pty_is_mounted_as_it_may_be_used(tmp_path: Path, permissions: str, mode: str) -> None:
    document = written(tmp_path, DEVICES["pty"], Offer(SERIAL, cdi=True, permissions=permissions))
    (mount,) = _edits_of(document)["mounts"]
    assert mount["options"] == ["bind", mode]


def test_the_ports_of_a_modem_are_counted_from_zero(tmp_path: Path) -> None:
    document = written(tmp_path, [MODEM], Offer(SERIAL, cdi=True, container_path="/dev/m{port}"))
    paths = [node["path"] for node in _edits_of(document)["deviceNodes"]]
    assert paths == ["/dev/m0", "/dev/m1", "/dev/m2", "/dev/m3"]


def test_the_spec_goes_with_the_last_device_and_comes_back_with_the_next(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cdi, offer = CdiDirectory(tmp_path / "run/cdi"), OFFERS["dots"]
    away = device(usb_port(), health=Health.UNPLUGGED)
    cdi.write([away], offer)
    assert not (tmp_path / "run").exists()
    cdi.write([*DEVICES["one"], away], offer)
    (path,) = (tmp_path / "run/cdi").iterdir()
    assert path.name == "hardware.example.com_serial.v2_x.json"
    assert len(json.loads(path.read_bytes())["devices"]) == 1
    cdi.write([away], offer)
    assert not path.exists()
    cdi.write(DEVICES["one"], offer)
    cdi.remove(offer.resource)
    cdi.remove(offer.resource)
    assert not path.exists()
    assert not caplog.records, "a spec that is gone already is no failure"


def test_a_directory_that_fails_is_complained_of_once_until_it_has_worked_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cdi, devices = CdiDirectory(tmp_path / "cdi"), DEVICES["one"]
    for _ in range(2):
        (tmp_path / "cdi").write_text("not a directory")
        cdi.write(devices, OFFERS["plain"])
        cdi.remove(SERIAL)
        (tmp_path / "cdi").unlink()
        cdi.write(devices, OFFERS["plain"])
        cdi.remove(SERIAL)
        (tmp_path / "cdi").rmdir()
    assert [(r.levelname, r.message.split(":")[0]) for r in caplog.records] == [
        ("ERROR", "cannot write the CDI spec")
    ] * 2
