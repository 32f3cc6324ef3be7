"""What a claim's containers are given, or why not; and what is published. Pure."""

from __future__ import annotations

import json
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import pytest

from usbplugin.custody import Offer
from usbplugin.discovery import DeviceNumber, Port, UsbInterface
from usbplugin.dra.claim import Allotted, Claim, Handover, decode
from usbplugin.dra.contracts import ClaimRef, Terms
from usbplugin.dra.names import class_name, device_name
from usbplugin.dra.prepare import (
    PreparedClaim,
    UnknownDeviceError,
    cdi_ids,
    conflict,
    prepared,
    spec,
)
from usbplugin.dra.roster import Roster
from usbplugin.errors import ClaimError
from usbplugin.inventory import Device, Grant, GrantedPort, Health, Holding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from usbplugin.dra.contracts import PublishedDevice

SERIAL = "usbplugin/serial"
REF = ClaimRef("uid-1", "default", "gps")
NO_WISH = Handover()


def port(name: str, minor: int, interface: int = 0) -> Port:
    usb = UsbInterface("0403", "6001", "A", interface=interface)
    return Port(name, f"/dev/{name}", DeviceNumber(188, minor), usb)


def device(
    device_id: str, *ports: Port, health: Health = Health.READY, since: float = 0.0
) -> Device:
    ports = ports or (port("ttyUSB0", 0),)
    reason = "" if health is Health.READY else "because"
    return Device(device_id, SERIAL, health, reason, ports, since)


A = device("usb-0403:6001-A-if00")
B = device("usb-0403:6001-B-if00", port("ttyUSB1", 1))
OFFERS = {SERIAL: Offer(SERIAL, by_claim=True)}


def claim(*allotted: Allotted, uid: str = "uid-1", name: str = "gps") -> Claim:
    return Claim(uid, "default", name, allotted)


def one(of: Device, request: str = "tty", handover: Handover = NO_WISH) -> Allotted:
    return Allotted(request, "node", device_name(of.id), handover=handover)


def known(*devices: Device) -> dict[str, Device]:
    return {device_name(each.id): each for each in devices}


def body(config: Iterable[object] = (), **result: object) -> bytes:
    results = [{"request": "tty", "driver": "usbplugin", "pool": "node", "device": "d", **result}]
    devices = {"results": results, "config": list(config)}
    return json.dumps(
        {
            "metadata": {"uid": "uid-1", "namespace": "default", "name": "gps"},
            "status": {"allocation": {"devices": devices}},
        }
    ).encode()


def parameters(source: str, *requests: str, **what: str) -> dict[str, object]:
    given = {"apiVersion": "usbplugin/v1", "kind": "Handover", **what}
    opaque = {"driver": "usbplugin", "parameters": given}
    return {"source": source, "requests": list(requests), "opaque": opaque}


def paths_of(made: Mapping[str, Any]) -> list[str]:
    (entry,) = made["devices"]
    return [node["path"] for node in entry["containerEdits"]["deviceNodes"]]


def test_a_class_bounds_and_a_claim_narrows_in_whatever_order() -> None:
    found = decode(
        body(
            [
                parameters("FromClaim", permissions="r", containerPath="/dev/gps"),
                parameters("FromClass", permissions="rw", containerPath="/dev/any"),
                parameters("FromClaim", "other", containerPath="/dev/other"),
            ]
        ),
        REF,
    )
    assert found.allotted[0].handover == Handover("/dev/gps", "r")


def test_a_claim_cannot_widen_its_class() -> None:
    configs = [
        parameters("FromClass", permissions="r"),
        parameters("FromClaim", permissions="rw"),
    ]
    with pytest.raises(ClaimError, match="it may have r at most"):
        decode(body(configs), REF)


def test_the_configuration_of_a_request_counts_for_its_alternatives() -> None:
    configs = [parameters("FromClaim", "tty", containerPath="/dev/gps")]
    found = decode(body(configs, request="tty/second"), REF)
    assert found.allotted[0].handover.container_path == "/dev/gps"


def test_what_other_drivers_have_is_not_ours() -> None:
    assert decode(body(driver="gpu.example.com"), REF).allotted == ()
    with pytest.raises(ClaimError, match="has no device"):
        prepared(claim(), "node", known(A), OFFERS, "boot")


@pytest.mark.parametrize(
    "path",
    ["gps", "/", "/dev/", "/dev//gps", "/dev/./gps", "/dev/../gps", "/dev/g\nps", "/dev/{serial}"],
)
def test_paths_that_could_mean_something_else_are_refused(path: str) -> None:
    with pytest.raises(ClaimError, match="containerPath"):
        decode(body([parameters("FromClaim", containerPath=path)]), REF)


def test_a_share_keeps_its_name() -> None:
    found = decode(body(shareID="share-1"), REF)
    assert found.allotted[0].share_id == "share-1"


def test_each_request_is_one_cdi_device_named_once() -> None:
    made = prepared(claim(one(A), one(B)), "node", known(A, B), OFFERS, "boot")
    assert [names for _, names in cdi_ids(made)] == [("usbplugin/claim=uid-1-tty",), ()]
    paths = paths_of(spec(made, known(A, B)))
    assert paths == ["/dev/ttyUSB0", "/dev/ttyUSB1"]


def test_two_ports_on_one_path_are_refused() -> None:
    path = Handover("/dev/gps")
    with pytest.raises(ClaimError, match="would both be /dev/gps"):
        prepared(
            claim(one(A, handover=path), one(B, handover=path)),
            *("node", known(A, B), OFFERS, "boot"),
        )
    made = prepared(
        claim(*(one(each, handover=Handover("/dev/gps{device}")) for each in (A, B))),
        *("node", known(A, B), OFFERS, "boot"),
    )
    paths = paths_of(spec(made, known(A, B)))
    assert paths == ["/dev/gps0", "/dev/gps1"]


def test_a_request_whose_name_cdi_cannot_spell_has_a_name_of_its_own() -> None:
    made = prepared(claim(one(A, "tty/first")), "node", known(A), OFFERS, "boot")
    ((_, (name,)),) = cdi_ids(made)
    assert name.startswith("usbplugin/claim=uid-1-tty-first-")


def test_what_cannot_be_had_is_refused_with_its_reason() -> None:
    away = device(A.id, health=Health.UNPLUGGED)
    for bad, text in (
        ((claim(one(A)), "node", known(away), OFFERS), "is unplugged: because"),
        ((claim(one(A)), "node", known(A), {}), "which claims may not have here"),
        ((claim(one(A)), "other", known(A), OFFERS), "is not of this node"),
        ((claim(one(A), one(A)), "node", known(A), OFFERS), "more than once"),
    ):
        with pytest.raises(ClaimError, match=text):
            prepared(*bad, "boot")
    with pytest.raises(UnknownDeviceError) as error:
        prepared(claim(one(A)), "node", {}, OFFERS, "boot")
    assert error.value.names == [device_name(A.id)]


def test_a_device_is_one_claims_or_has_shares() -> None:
    def made(uid: str, shares: int) -> PreparedClaim:
        offers = {SERIAL: Offer(SERIAL, shares=shares, by_claim=True)}
        return prepared(claim(one(A), uid=uid, name=uid), "node", known(A), offers, "boot")

    assert conflict(made("b", 1), [made("a", 1)], {SERIAL: 1})
    assert not conflict(made("b", 2), [made("a", 2)], {SERIAL: 2})
    assert conflict(made("c", 2), [made("a", 2), made("b", 2)], {SERIAL: 2})
    assert conflict(made("b", 2), [made("a", 1)], {SERIAL: 2}), "it was promised to one"
    assert not conflict(made("a", 1), [made("a", 1)], {SERIAL: 1}), "its own"


def test_names_are_labels_and_differ_for_different_ids() -> None:
    ids = ["usb-0403:6001-A.B-if00", "usb-0403:6001-A-B-if00", "usb-0403:6001-a_b-if00", "-", "ä"]
    names = [device_name(each) for each in ids]
    assert len(set(names)) == len(ids)
    assert all(len(name) <= 63 and name[0].isalnum() for name in names)
    assert device_name("x" * 200).startswith("x" * 50)
    assert class_name("usbplugin/gps") == "gps.usbplugin"


def listed(
    roster: Roster,
    *devices: Device,
    at: float,
    wall: float,
    holdings: Callable[[str], Iterable[Holding]] = lambda _: (),
    offers: Mapping[str, Offer] = MappingProxyType(OFFERS),
) -> list[PublishedDevice]:
    return roster.list(devices, offers, holdings, frozenset(), 5.0, (at, wall))


def test_the_moment_of_an_unplugging_stays_when_clocks_are_set() -> None:
    roster = Roster(60.0)
    away = device(A.id, health=Health.UNPLUGGED, since=90.0)
    (first,) = listed(roster, away, at=100.0, wall=1000.0)
    (second,) = listed(roster, away, at=101.0, wall=5000.0)
    assert (first.since, second.since) == (990.0, 990.0)
    (third,) = listed(roster, device(A.id, since=102.0), at=102.0, wall=5001.0)
    assert third.since == 5001.0


def test_who_has_it_decides_on_what_terms_it_is_published() -> None:
    roster = Roster(60.0)
    ports = {"if00": GrantedPort(DeviceNumber(188, 0), "")}
    of_claim = Holding(A.id, ("claim d/c", "x"), Grant(SERIAL, "x", ports, claim="d/c"))
    of_plugin = Holding(A.id, (SERIAL, A.id), Grant(SERIAL, A.id, ports))

    def terms(held: Holding | None, offers: dict[str, Offer]) -> list[Terms]:
        found = listed(
            roster,
            A,
            at=1.0,
            wall=1.0,
            offers=offers,
            holdings=lambda _: () if held is None else (held,),
        )
        return [each.terms for each in found]

    assert terms(None, OFFERS) == [Terms.OFFERED]
    assert terms(of_claim, OFFERS) == [Terms.OFFERED]
    assert terms(of_plugin, OFFERS) == [Terms.HELD_ELSEWHERE]
    assert terms(of_claim, {}) == [Terms.DRAINING]
    assert terms(of_plugin, {}) == []
    assert terms(None, {}) == []


def test_a_ghost_ends() -> None:
    roster = Roster(60.0)
    roster.haunt(["ghost"], 1000.0)
    (ghost,) = listed(roster, at=0.0, wall=1001.0)
    assert (ghost.name, ghost.terms, ghost.evict_after) == ("ghost", Terms.GHOST, 5.0)
    assert roster.next_end() == 1060.0
    assert listed(roster, at=0.0, wall=1060.0) == []
