from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from usbplugin.api import deviceplugin_v1beta1_pb2 as v1beta1

ROOT = Path(__file__).parents[2]


def test_what_is_checked_in_is_what_the_protos_generate(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, ROOT / "protos/generate.py", tmp_path], check=True, capture_output=True
    )
    checked_in = {path.name: path.read_text() for path in (ROOT / "usbplugin/api").glob("*_pb2*")}
    generated = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert generated == checked_in, "run make protos"


def field(number: int, value: bytes) -> bytes:
    """A length-delimited field, short enough for one-byte varints."""
    assert len(value) < 128
    return bytes([number << 3 | 2, len(value)]) + value


def varint(number: int, value: int) -> bytes:
    assert value < 128
    return bytes([number << 3, value])


def test_register_request() -> None:
    golden = (
        field(1, b"v1beta1")
        + field(2, b"usb.sock")
        + field(3, b"usbplugin/serial")
        + field(4, varint(1, 1) + varint(2, 1))
    )
    assert v1beta1.RegisterRequest.FromString(golden) == v1beta1.RegisterRequest(
        version="v1beta1",
        endpoint="usb.sock",
        resource_name="usbplugin/serial",
        options=v1beta1.DevicePluginOptions(
            pre_start_required=True, get_preferred_allocation_available=True
        ),
    )


def test_list_and_watch_response() -> None:
    topology = field(1, varint(1, 1))
    golden = field(1, field(1, b"id-1") + field(2, b"Healthy") + field(3, topology))
    message = v1beta1.ListAndWatchResponse.FromString(golden)
    (device,) = message.devices
    assert (device.ID, device.health, device.topology.nodes[0].ID) == ("id-1", "Healthy", 1)
    assert message.SerializeToString() == golden


def test_allocate_request() -> None:
    golden = field(1, field(1, b"id-1") + field(1, b"id-2"))
    request = v1beta1.AllocateRequest.FromString(golden)
    assert list(request.container_requests[0].devices_ids) == ["id-1", "id-2"]


def test_allocate_response() -> None:
    env = field(1, b"KEY") + field(2, b"value")
    mount = field(1, b"/c") + field(2, b"/h") + varint(3, 1)
    device = field(1, b"/dev/c") + field(2, b"/dev/h") + field(3, b"rw")
    annotation = field(1, b"a") + field(2, b"b")
    cdi = field(1, b"vendor/class=name")
    golden = field(
        1,
        field(1, env) + field(2, mount) + field(3, device) + field(4, annotation) + field(5, cdi),
    )
    message = v1beta1.AllocateResponse.FromString(golden)
    (container,) = message.container_responses
    assert dict(container.envs) == {"KEY": "value"}
    assert container.mounts[0] == v1beta1.Mount(container_path="/c", host_path="/h", read_only=True)
    assert container.devices[0] == v1beta1.DeviceSpec(
        container_path="/dev/c", host_path="/dev/h", permissions="rw"
    )
    assert dict(container.annotations) == {"a": "b"}
    assert container.cdi_devices[0].name == "vendor/class=name"
    assert message.SerializeToString(deterministic=True) == golden


def test_preferred_allocation() -> None:
    golden = field(1, field(1, b"a") + field(1, b"b") + field(2, b"a") + varint(3, 1))
    (request,) = v1beta1.PreferredAllocationRequest.FromString(golden).container_requests
    assert list(request.available_deviceIDs) == ["a", "b"]
    assert list(request.must_include_deviceIDs) == ["a"]
    assert request.allocation_size == 1
    response = v1beta1.PreferredAllocationResponse.FromString(field(1, field(1, b"a")))
    assert list(response.container_responses[0].deviceIDs) == ["a"]


def test_pre_start_container() -> None:
    request = v1beta1.PreStartContainerRequest.FromString(field(1, b"a"))
    assert list(request.devices_ids) == ["a"]


def test_service_and_method_names() -> None:
    methods = {
        service.full_name: sorted(method.name for method in service.methods)
        for service in v1beta1.DESCRIPTOR.services_by_name.values()
    }
    assert methods == {
        "v1beta1.Registration": ["Register"],
        "v1beta1.DevicePlugin": [
            "Allocate",
            "GetDevicePluginOptions",
            "GetPreferredAllocation",
            "ListAndWatch",
            "PreStartContainer",
        ],
    }
