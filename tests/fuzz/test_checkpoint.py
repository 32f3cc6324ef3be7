"""Whatever lies where the kubelet keeps its checkpoint: replays that may be shown, or one error."""

from __future__ import annotations

import base64
import json

from hypothesis import example, given
from hypothesis import strategies as st

from tests.fuzz.support import SERIAL, directory
from usbplugin.api import deviceplugin_v1beta1_pb2 as v1beta1
from usbplugin.errors import KubeletError
from usbplugin.kubelet import Checkpoint, Replay

ID = "usb-0403:6001-A5069RR4-if00"

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.sampled_from(
    ["", "..", "\0", "\n", ID, SERIAL, "/dev/ttyUSB0", "/dev/pts/7"]
)
answers = st.builds(
    v1beta1.ContainerAllocateResponse,
    envs=st.dictionaries(texts, texts, max_size=2),
    mounts=st.lists(st.builds(v1beta1.Mount, container_path=texts, host_path=texts), max_size=2),
    devices=st.lists(
        st.builds(v1beta1.DeviceSpec, container_path=texts, host_path=texts, permissions=texts),
        max_size=2,
    ),
    cdi_devices=st.lists(st.builds(v1beta1.CDIDevice, name=texts), max_size=2),
    annotations=st.dictionaries(texts, texts, max_size=1),
).map(lambda answer: answer.SerializeToString())
scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=4,
)
encoded = st.builds(lambda raw: base64.b64encode(raw).decode(), answers | st.binary(max_size=20))
device_ids = st.lists(texts, max_size=2) | st.dictionaries(
    st.integers(-1, 8).map(str) | texts, st.lists(texts, max_size=2), max_size=2
)
entries = st.fixed_dictionaries(
    {},
    optional={
        "PodUID": texts | values,
        "ContainerName": texts | values,
        "ResourceName": texts | values,
        "DeviceIDs": device_ids | values,
        "AllocResp": encoded | values,
    },
)
files = st.fixed_dictionaries(
    {
        "Data": values
        | st.fixed_dictionaries(
            {"PodDeviceEntries": st.lists(entries | values, max_size=3) | values},
            optional={"RegisteredDevices": values},
        )
    },
    optional={"Checksum": values},
).map(lambda document: json.dumps(document).encode())


@st.composite
def spoiled(draw: st.DrawFn) -> bytes:
    content = bytearray(draw(files))
    for _ in range(draw(st.integers(0, 3))):
        if content:
            content[draw(st.integers(0, len(content) - 1))] = draw(st.integers(0, 255))
    return bytes(content[: draw(st.integers(0, len(content)))])


def check(content: bytes) -> None:
    with directory() as root:
        file = root / "kubelet_internal_checkpoint"
        file.write_bytes(content)
        try:
            replays = Checkpoint(file).read()
        except KubeletError as error:
            assert str(error).startswith(f"cannot read {file}: ")
            assert str(error).isprintable()
            replays = ()
        assert [path.name for path in root.iterdir()] == [file.name]
        assert file.read_bytes() == content
    for replay in replays:
        check_replay(replay)


def check_replay(replay: Replay) -> None:
    """It may be looked up, compared and printed; and if it is not legible, nothing is made up."""
    given_to_it = (replay.host_paths, replay.cdi_devices, replay.environment)
    names = (replay.resource, replay.pod_uid, replay.container)
    assert list(replay.device_ids) == sorted(set(replay.device_ids))
    if replay.is_legible:
        assert all(names)
        assert replay.device_ids
        assert all(replay.host_paths.values())
    else:
        assert not any(given_to_it)
    for text in (
        *names,
        *replay.device_ids,
        *replay.host_paths,
        *replay.host_paths.values(),
        *replay.cdi_devices,
        *replay.environment,
        *replay.environment.values(),
    ):
        assert text.isprintable()


@given(st.binary(max_size=200))
@example(b"[" * 100_000)
@example(b'{"Data":' * 50_000)
@example(b'{"Data":{"PodDeviceEntries":[' + b'{"AllocResp":' * 50_000)
@example(b'{"Data":{"PodDeviceEntries":[{"\xff":"\xff"}]}}')
@example(b'{"Data":{"PodDeviceEntries":[{"PodUID":"\\ud800"}]}}')
@example(b"\xff")
def test_any_bytes(content: bytes) -> None:
    check(content)


@given(files | spoiled())
def test_a_checkpoint_with_odd_values(content: bytes) -> None:
    check(content)


@given(answers | st.binary(max_size=100))
@example(b"\x0b" * 10_000)  # groups in groups, which protobuf nests
@example(b"\x1a\x80\x80\x80\x80\x08")
def test_any_bytes_as_an_answer(answer: bytes) -> None:
    entry = {
        "PodUID": "uid",
        "ContainerName": "main",
        "ResourceName": SERIAL,
        "DeviceIDs": {"-1": [ID]},
        "AllocResp": base64.b64encode(answer).decode(),
    }
    check(json.dumps({"Data": {"PodDeviceEntries": [entry]}, "Checksum": 1}).encode())
