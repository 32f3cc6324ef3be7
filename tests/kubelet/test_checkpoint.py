"""The kubelet's checkpoint, as kubelets write it, and as nobody should."""

from __future__ import annotations

import base64
import json
import os
from typing import TYPE_CHECKING

import pytest

from usbplugin.api import deviceplugin_v1beta1_pb2 as v1beta1
from usbplugin.errors import KubeletError
from usbplugin.kubelet import Checkpoint, Replay

if TYPE_CHECKING:
    from pathlib import Path

GPS = "usb-1546:01a7-at-0000:00:14.0-1-if00"
MODEM = "usb-1e0e:9001-0123456789ABCDEF"
POD = "6d3ad6a0-4c0c-4bd4-9e2b-9f1f2a7cd0a5"
ANSWER = v1beta1.ContainerAllocateResponse(
    envs={"SERIAL_DEVICES": "/dev/ttyUSB0", "EMPTY": ""},
    mounts=[v1beta1.Mount(container_path="/dev/ttyUSB1", host_path="/dev/pts/7")],
    devices=[
        v1beta1.DeviceSpec(
            container_path="/dev/ttyUSB0",
            host_path=f"/run/usbplugin/{GPS}/if00",
            permissions="rw",
        )
    ],
    cdi_devices=[v1beta1.CDIDevice(name="usbplugin/serial=gps")],
)
REPLAY = Replay(
    "usbplugin/serial",
    (GPS, MODEM),
    POD,
    "main",
    {"/dev/ttyUSB0": f"/run/usbplugin/{GPS}/if00", "/dev/ttyUSB1": "/dev/pts/7"},
    ("usbplugin/serial=gps",),
    {"SERIAL_DEVICES": "/dev/ttyUSB0", "EMPTY": ""},
)


def encoded(answer: v1beta1.ContainerAllocateResponse) -> str:
    return base64.b64encode(answer.SerializeToString()).decode()


def entry(**changes: object) -> dict[str, object]:
    return {
        "PodUID": POD,
        "ContainerName": "main",
        "ResourceName": "usbplugin/serial",
        "DeviceIDs": {"-1": [MODEM], "0": [GPS], "1": [GPS]},
        "AllocResp": encoded(ANSWER),
    } | changes


def without(key: str) -> dict[str, object]:
    return {name: value for name, value in entry().items() if name != key}


def file_of(*entries: object) -> bytes:
    """A file as a kubelet writes it."""
    document = {
        "Data": {
            "PodDeviceEntries": list(entries),
            "RegisteredDevices": {"usbplugin/serial": [GPS], "example.com/fpga": None},
        },
        "Checksum": 3154023461,
        "BootID": "9c4f5f3c-8a3c-4c7b-8f0e-2e8a5f1d7c11",
    }
    return json.dumps(document, separators=(",", ":")).encode()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "kubelet_internal_checkpoint"


def read(file: Path, content: bytes) -> tuple[Replay, ...]:
    file.write_bytes(content)
    return Checkpoint(file).read()


def problem(file: Path) -> str:
    """What is wrong with it."""
    with pytest.raises(KubeletError) as caught:
        Checkpoint(file).read()
    message = str(caught.value)
    assert message.isprintable()
    assert message.startswith(f"cannot read {file}: ")
    assert message.endswith("; what the kubelet will replay is unknown")
    return message


def test_it_says_what_each_container_is_given_at_each_start(file: Path) -> None:
    other = entry(ContainerName="other", DeviceIDs={"-1": [MODEM]}, AllocResp="")
    assert read(file, file_of(entry(), other)) == (
        REPLAY,
        Replay("usbplugin/serial", (MODEM,), POD, "other", {}, (), {}),
    )


def test_kubelets_before_1_20_knew_no_numa_nodes(file: Path) -> None:
    assert read(file, file_of(entry(DeviceIDs=[MODEM, GPS]))) == (REPLAY,)


@pytest.mark.parametrize("entries", [b"[]", b"null"])
def test_nothing_is_allocated(file: Path, entries: bytes) -> None:
    content = b'{"Data":{"PodDeviceEntries":%s,"RegisteredDevices":{}},"Checksum":1}' % entries
    assert read(file, content) == ()


def test_other_fields_may_come(file: Path) -> None:
    content = json.loads(file_of(entry(Phase={"of": ["the moon"]})))
    content["Data"]["Claims"] = content["Version"] = 3
    assert read(file, json.dumps(content).encode()) == (REPLAY,)


def test_what_the_kubelet_notes_later_is_seen(file: Path) -> None:
    checkpoint = Checkpoint(file)
    assert "No such file or directory" in problem(file)
    for entries in ([entry()], []):
        new = file.with_name("new")
        new.write_bytes(file_of(*entries))
        new.rename(file)
        assert len(checkpoint.read()) == len(entries)


def test_there_is_no_such_file(file: Path) -> None:
    assert "No such file or directory" in problem(file)


def test_it_is_a_directory(file: Path) -> None:
    file.mkdir()
    assert "Is a directory" in problem(file)


def test_a_fifo_in_its_place_is_not_waited_for(file: Path) -> None:
    os.mkfifo(file)
    assert "it is not a regular file" in problem(file)


def test_a_file_that_is_too_large_is_not_read_to_its_end(file: Path) -> None:
    content = file_of(entry())
    assert read(file, content.ljust(4 << 20)) == (REPLAY,)
    file.write_bytes(content.ljust((4 << 20) + 1))
    assert "it is larger than 4 MiB" in problem(file)
    os.truncate(file, 1 << 40)
    assert "it is larger than 4 MiB" in problem(file)


def test_there_are_too_many_entries(file: Path) -> None:
    assert len(read(file, file_of(*[0] * 10_000))) == 10_000
    file.write_bytes(file_of(*[0] * 10_001))
    assert "it has 10001 entries, more than 10000" in problem(file)


def test_a_file_cut_off_anywhere_is_refused(file: Path) -> None:
    whole = file_of(entry(), entry(DeviceIDs=[GPS]))
    for length in range(len(whole)):
        file.write_bytes(whole[:length])
        assert "it has another form than expected" in problem(file)


@pytest.mark.parametrize(
    "content",
    [
        b"null",
        b"[]",
        b"{}",
        b'{"Data":null}',
        b'{"Data":[]}',
        b'{"Data":{}}',
        b'{"data":{"podDeviceEntries":[]}}',
        b'{"Data":{"RegisteredDevices":{}}}',
        b'{"Data":{"PodDeviceEntries":{}}}',
        b'{"Data":{"PodDeviceEntries":"[]"}}',
        b'{"Data":{"PodDeviceEntries":7}}',
        file_of() + b"}",
        b"\xef\xbb\xbf" + file_of(),
        b"\x00" * 100,
        b"[" * 1_000_000,
        b'{"Data":' * 100_000,
        b'{"Data":{"PodDeviceEntries":[' + b"[" * 1_000_000,
        b'{"Data":{"PodDeviceEntries":[],"Claims":' + b"[" * 100_000 + b"]" * 100_000 + b"}}",
    ],
)
def test_a_file_of_another_form_does_not_pass_for_an_empty_one(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    assert "it has another form than expected" in problem(file)


@pytest.mark.parametrize(
    "value", [None, True, 7, 1.5, "", "\n", "x" * 200_000, [], ["\0"], {}, {"0": None}, [[[]]]]
)
@pytest.mark.parametrize(
    "key", ["PodUID", "ContainerName", "ResourceName", "DeviceIDs", "AllocResp"]
)
def test_an_entry_with_an_odd_value_hides_no_other_and_is_not_taken_for_nothing(
    file: Path, key: str, value: object
) -> None:
    if (key, value) == ("AllocResp", ""):
        return  # the plugin answered that nothing is to be done
    odd, after = read(file, file_of(entry(**{key: value}), entry()))
    assert after == REPLAY
    check_illegible(odd, key)


@pytest.mark.parametrize(
    "key", ["PodUID", "ContainerName", "ResourceName", "DeviceIDs", "AllocResp"]
)
def test_an_entry_that_lacks_a_value(file: Path, key: str) -> None:
    odd, after = read(file, file_of(without(key), entry()))
    assert after == REPLAY
    check_illegible(odd, key)


def check_illegible(odd: Replay, key: str) -> None:
    """It names whom it concerns, as far as is known without that value, and nothing else."""
    assert not odd.is_legible
    assert (odd.host_paths, odd.cdi_devices, odd.environment) == ({}, (), {})
    assert odd.resource == ("" if key == "ResourceName" else REPLAY.resource)
    assert odd.device_ids == (() if key == "DeviceIDs" else REPLAY.device_ids)
    assert odd.pod_uid == ("" if key == "PodUID" else REPLAY.pod_uid)
    assert odd.container == ("" if key == "ContainerName" else REPLAY.container)


@pytest.mark.parametrize("odd", [None, True, 7, "entry", [], [entry()], {}])
def test_an_entry_that_is_none(file: Path, odd: object) -> None:
    nothing, after = read(file, file_of(odd, entry()))
    assert nothing == Replay("", (), "", "", {}, (), {}, is_legible=False)
    assert after == REPLAY


def test_an_entry_that_is_no_unicode(file: Path) -> None:
    content = file_of(entry(ContainerName="odd"), entry()).replace(b'"odd"', b'"\xff"')
    odd, after = read(file, content)
    check_illegible(odd, "ContainerName")
    assert after == REPLAY


@pytest.mark.parametrize(
    "device_ids",
    [
        {"-1": [""]},
        {"-1": [GPS], "0": [f"{GPS}\n"]},
        {"-1": [GPS], "0": [None]},
        {"-1": [GPS], "0": {}},
        [GPS, 7],
        [GPS, "\N{RIGHT-TO-LEFT OVERRIDE}"],
        [GPS, "x" * 4096],
    ],
)
def test_of_several_ids_one_is_none(file: Path, device_ids: object) -> None:
    (odd,) = read(file, file_of(entry(DeviceIDs=device_ids)))
    check_illegible(odd, "DeviceIDs")


@pytest.mark.parametrize(
    "text", ["*", "QUI", "QUI=QUI=", "Q U I =", "-_-_", "QUI=\n", b"\x7f".hex(), "////", "AAAA"]
)
def test_an_answer_that_is_not_base64_or_no_answer(file: Path, text: str) -> None:
    (odd,) = read(file, file_of(entry(AllocResp=text)))
    check_illegible(odd, "AllocResp")


def test_an_answer_cut_off_anywhere_is_not_taken_for_nothing(file: Path) -> None:
    """What is left of it may be an answer, too, since each field stands for itself."""
    whole = ANSWER.SerializeToString()
    for length in range(1, len(whole)):
        text = base64.b64encode(whole[:length]).decode()
        (found,) = read(file, file_of(entry(AllocResp=text)))
        if found.is_legible:
            assert found.host_paths or found.cdi_devices or found.environment
        else:
            check_illegible(found, "AllocResp")


def test_an_answer_of_a_later_version_alone_is_not_taken_for_nothing(file: Path) -> None:
    text = base64.b64encode(b"\xfa\x01\x01x").decode()  # field 31
    (odd,) = read(file, file_of(entry(AllocResp=text)))
    check_illegible(odd, "AllocResp")


def device(container_path: str, host_path: str) -> v1beta1.ContainerAllocateResponse:
    spec = v1beta1.DeviceSpec(container_path=container_path, host_path=host_path)
    return v1beta1.ContainerAllocateResponse(devices=[spec])


def mount(container_path: str, host_path: str) -> v1beta1.ContainerAllocateResponse:
    spec = v1beta1.Mount(container_path=container_path, host_path=host_path)
    return v1beta1.ContainerAllocateResponse(mounts=[spec])


@pytest.mark.parametrize(
    "odd",
    [
        device("", "/dev/ttyUSB0"),
        device("/dev/ttyUSB9", ""),
        device("/dev/tty\n", "/dev/ttyUSB0"),
        device("/dev/ttyUSB9", "/dev/\0"),
        device("/dev/ttyUSB9", "/" * 4096),
        device("/dev/ttyUSB0", "/dev/ttyUSB0"),  # as ANSWER has it, to another node
        mount("", "/dev/pts/8"),
        mount("/dev/ttyUSB9", "/dev/\x1b[31m"),
        mount("/dev/ttyUSB0", "/dev/ttyUSB0"),
        v1beta1.ContainerAllocateResponse(envs={"": "1"}),
        v1beta1.ContainerAllocateResponse(envs={"A\n": "1"}),
        v1beta1.ContainerAllocateResponse(envs={"A": "\0"}),
        v1beta1.ContainerAllocateResponse(envs={"A": "x" * ((128 << 10) + 1)}),
        v1beta1.ContainerAllocateResponse(cdi_devices=[v1beta1.CDIDevice(name="")]),
        v1beta1.ContainerAllocateResponse(cdi_devices=[v1beta1.CDIDevice(name="a\nb")]),
    ],
)
def test_an_answer_with_odd_values(file: Path, odd: v1beta1.ContainerAllocateResponse) -> None:
    answer = v1beta1.ContainerAllocateResponse()
    answer.MergeFrom(ANSWER)
    answer.MergeFrom(odd)
    found, after = read(file, file_of(entry(AllocResp=encoded(answer)), entry()))
    check_illegible(found, "AllocResp")
    assert after == REPLAY


def test_an_answer_may_be_as_long_as_what_a_process_can_be_given(file: Path) -> None:
    answer = v1beta1.ContainerAllocateResponse(
        envs={"A": "x" * (128 << 10)},
        devices=[v1beta1.DeviceSpec(container_path="/" * 4095, host_path="/" * 4095)] * 2,
    )
    (found,) = read(file, file_of(entry(AllocResp=encoded(answer))))
    assert (found.is_legible, found.host_paths) == (True, {"/" * 4095: "/" * 4095})
