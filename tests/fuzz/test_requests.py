"""Whatever the kubelet, or somebody in its place, asks: an answer or a refusal, nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import grpc
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.fuzz.support import SERIAL, AbortedError, Context, Keeper, answer, directory, within_loop
from tests.support import present, usb_port
from usbplugin.api import deviceplugin_v1beta1_pb2 as v1beta1
from usbplugin.custody import Offer
from usbplugin.discovery import DeviceNumber

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

REFUSALS = {
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.FAILED_PRECONDITION,
}
LONGEST_REFUSAL = 2000
READY = [f"usb-0403:6001-SN{number}-if00" for number in range(3)]

ids = (
    st.sampled_from([*READY, *(f"{one}.{share}" for one in READY for share in range(3))])
    | st.sampled_from(
        ["", ".", "..", "/", "../../etc", "usb-0403:6001-SN0-if00.\N{SUPERSCRIPT TWO}"]
    )
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=80)
)


@pytest.fixture(params=[1, 3], ids=["unshared", "shared"], scope="module")
def keeper(request: pytest.FixtureRequest) -> Iterator[Keeper]:
    with directory() as root:
        keeper = Keeper(root, Offer(SERIAL, shares=request.param))
        ports = [
            usb_port(f"ttyUSB{n}", serial=f"SN{n}", node="/dev/null", number=DeviceNumber(1, 3))
            for n in range(3)
        ]
        within_loop(lambda: keeper.custody.apply([present(port) for port in ports]))
        assert [device.id for device in keeper.custody.devices] == READY
        yield keeper


def check(answered: object) -> None:
    if isinstance(answered, AbortedError):
        assert answered.code in REFUSALS
        assert len(answered.details) <= LONGEST_REFUSAL


@given(containers=st.lists(st.lists(ids, max_size=4), max_size=3))
@example(containers=[["x" * 1_000_000]])
@example(containers=[["usb-0403:6001-SN0-if00.\N{SUPERSCRIPT TWO}"]])
@example(containers=[["usb-0403:6001-SN0-if00." + "1" * 5000]])
@example(containers=[["usb-0403:6001-SN0-if00.1", "usb-0403:6001-SN0-if00.01"]])
@example(containers=[[READY[0]], [READY[0]]])
def test_allocate(keeper: Keeper, containers: Sequence[Sequence[str]]) -> None:
    request = v1beta1.AllocateRequest(
        container_requests=[v1beta1.ContainerAllocateRequest(devices_ids=ids) for ids in containers]
    )
    before = keeper.written()
    answered = answer(lambda: keeper.plugin.Allocate(request, Context()))  # type: ignore[arg-type]
    check(answered)
    if isinstance(answered, v1beta1.AllocateResponse):
        assert len(answered.container_responses) == len(containers)
        asked = [one for wanted in containers for one in wanted]
        assert len(asked) == len(set(asked))
        # The bare ones were listed before the configuration said how often they are shared.
        listed = {*READY, *(device.ID for device in shown(keeper))}
        assert set(asked) <= listed, "what was never listed was handed over"
    assert keeper.written() == before


def shown(keeper: Keeper) -> Sequence[v1beta1.Device]:
    """What the kubelet is told."""
    return v1beta1.ListAndWatchResponse.FromString(keeper.plugin._list).devices


@given(wanted=st.lists(ids, max_size=4))
def test_pre_start_container(keeper: Keeper, wanted: Sequence[str]) -> None:
    request = v1beta1.PreStartContainerRequest(devices_ids=wanted)
    before = keeper.written()
    check(answer(lambda: keeper.plugin.PreStartContainer(request, Context())))  # type: ignore[arg-type]
    assert keeper.written() == before


@given(
    available=st.lists(ids, max_size=8),
    must=st.lists(ids, max_size=4),
    size=st.integers(-(2**31), 2**31 - 1) | st.integers(-1, 9),
)
def test_get_preferred_allocation(
    keeper: Keeper, available: Sequence[str], must: Sequence[str], size: int
) -> None:
    request = v1beta1.PreferredAllocationRequest(
        container_requests=[
            v1beta1.ContainerPreferredAllocationRequest(
                available_deviceIDs=available, must_include_deviceIDs=must, allocation_size=size
            )
        ]
    )
    answered = answer(lambda: keeper.plugin.GetPreferredAllocation(request, Context()))  # type: ignore[arg-type]
    assert isinstance(answered, v1beta1.PreferredAllocationResponse)
    (container,) = answered.container_responses
    chosen = list(container.deviceIDs)
    assert len(chosen) == len(set(chosen))
    assert set(must) <= set(chosen) <= {*available, *must}
    assert len(chosen) <= max(size, len(set(must)))


def test_a_choice_among_many_is_made_at_once(keeper: Keeper) -> None:
    many = [f"{one}.{share}" for one in READY for share in range(400)]
    request = v1beta1.PreferredAllocationRequest(
        container_requests=[
            v1beta1.ContainerPreferredAllocationRequest(
                available_deviceIDs=many, allocation_size=600
            )
        ]
    )
    answered = answer(lambda: keeper.plugin.GetPreferredAllocation(request, Context()))  # type: ignore[arg-type]
    assert isinstance(answered, v1beta1.PreferredAllocationResponse)
    assert len(answered.container_responses[0].deviceIDs) == 600
