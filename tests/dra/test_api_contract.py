"""What an API server does with our requests: the small one of the tests, and a real one.

A real one is started if the programs are named; see ``tests.real_api_server``. Where they differ,
the small one is wrong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import msgspec
import pytest

from tests.apiserver import NODE, FakeApiServer
from tests.real_api_server import APISERVER, ETCD, NEEDS, RealApiServer
from tests.support import usb_port
from usbplugin.dra.apiserver import ApiServer
from usbplugin.dra.cluster import Cluster, RefusedError
from usbplugin.dra.contracts import ClaimRef, PublishedDevice
from usbplugin.dra.device import Entry, entry_of, sample
from usbplugin.dra.slices import Pool, dropped_fields, slice_name, slices_of
from usbplugin.dra.taints import KEYS, Effect, Taint, taints_of
from usbplugin.inventory import Device, Health

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from usbplugin.dra.slices import ResourceSlice

pytestmark = pytest.mark.timeout(120)

SLICES = "/apis/resource.k8s.io/v1/resourceslices"
INVALID, FORBIDDEN, NOT_FOUND = 422, 403, 404


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealApiServer]:
    if not (APISERVER and ETCD):
        pytest.skip(NEEDS)  # also with USBPLUGIN_REQUIRE_ALL: no package has them
    with RealApiServer(tmp_path_factory.mktemp("real")) as server:
        yield server


@pytest.fixture(params=["small", "real"])
async def server(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[ApiServer]:
    if request.param == "real":
        real: RealApiServer = request.getfixturevalue("real")
        asked = ApiServer(real.access)
        yield asked
        await asked.close()
        return
    fake = FakeApiServer(tmp_path)
    await fake.start()
    asked = ApiServer(fake.access)
    yield asked
    await asked.close()
    await fake.stop()


@pytest.fixture
async def cluster(server: ApiServer) -> AsyncIterator[Cluster]:
    one = Cluster(server)
    for number in range(3):
        await one.delete(slice_name(NODE, number))
    yield one
    for number in range(3):
        await one.delete(slice_name(NODE, number))


async def made(cluster: Cluster, *entries: Entry, node: str = NODE) -> ResourceSlice:
    """A slice of these devices, as it is applied."""
    pool = Pool(1, {entry.name: 0 for entry in entries})
    by_name = {entry.name: entry for entry in entries}
    (wanted,) = slices_of(pool, by_name, node, await cluster.node_uid(NODE))
    return wanted


def device(name: str = "tty-0", health: Health = Health.READY, **changes: object) -> Entry:
    port = usb_port(location="0000:00:14.0-1.2", numa_node=0)
    found = Device(name, "usbplugin/serial", health, "", (port,), 0)
    one = PublishedDevice(name, found, since=1_000_000_000.25, evict_after=0.0)
    one = msgspec.structs.replace(one, **changes)
    return entry_of(one, taints_of(one, 2_000_000_000.0))


async def test_a_slice_is_made_and_kept(cluster: Cluster) -> None:
    wanted = await made(cluster, device())
    first = await cluster.apply(wanted)
    again = await cluster.apply(wanted)
    assert first.metadata.uid == again.metadata.uid
    assert first.devices.keys() == again.devices.keys() == {"tty-0"}


async def test_what_is_said_is_what_is_kept(cluster: Cluster) -> None:
    entries = [device("tty-0", Health.UNPLUGGED), device("tty-1", shares=3), sample()]
    applied = await cluster.apply(await made(cluster, *entries))
    assert dropped_fields(entries, applied.devices) == set()
    for entry in entries:
        sent = msgspec.json.decode(msgspec.json.encode(entry))
        kept = applied.devices[entry.name]
        assert kept.get("attributes", {}) == sent["attributes"]
        assert kept.get("taints", []) == sent.get("taints", [])
        assert kept.get("capacity", {}) == sent.get("capacity", {})


async def test_every_taint_there_is(cluster: Cluster) -> None:
    taints = tuple(
        Taint(key, effect, "2026-01-01T00:00:00Z") for key in KEYS[:8] for effect in Effect
    )
    entry = msgspec.structs.replace(device(), taints=taints[:4])
    applied = await cluster.apply(await made(cluster, entry))
    assert len(list(applied.devices["tty-0"]["taints"])) == 4  # type: ignore[call-overload]


async def test_the_next_state_replaces_the_one_before(cluster: Cluster) -> None:
    await cluster.apply(await made(cluster, device("tty-0", Health.UNPLUGGED), device("tty-1")))
    applied = await cluster.apply(await made(cluster, device("tty-0")))
    assert applied.devices.keys() == {"tty-0"}
    assert "taints" not in applied.devices["tty-0"]


async def test_a_node_without_devices(cluster: Cluster) -> None:
    assert (await cluster.apply(await made(cluster))).devices == {}


async def test_a_slice_is_deleted_once_and_made_anew_as_another_one(cluster: Cluster) -> None:
    wanted = await made(cluster, device())
    first = await cluster.apply(wanted)
    assert await cluster.delete(wanted.metadata.name) is True
    assert await cluster.delete(wanted.metadata.name) is False
    assert (await cluster.apply(wanted)).metadata.uid != first.metadata.uid


async def test_a_dry_run_leaves_nothing(cluster: Cluster) -> None:
    wanted = await made(cluster, device())
    assert (await cluster.apply(wanted, dry_run=True)).devices.keys() == {"tty-0"}
    assert await cluster.delete(wanted.metadata.name) is False


async def test_an_invalid_device_is_named_by_its_place(cluster: Cluster) -> None:
    wanted = await made(cluster, device("tty-0"), device("Not A Label"), device("tty-2"))
    with pytest.raises(RefusedError) as caught:
        await cluster.apply(wanted)
    assert caught.value.status == INVALID
    place = [entry.name for entry in wanted.spec.devices].index("Not A Label")
    assert {field.partition(".name")[0] for field in caught.value.fields} == {
        f"spec.devices[{place}]"
    }


async def test_a_text_that_is_too_long_is_named_by_its_place(cluster: Cluster) -> None:
    entry = Entry("tty-0", {"serial": {"string": "x" * 65}})
    with pytest.raises(RefusedError) as caught:
        await cluster.apply(await made(cluster, entry))
    assert caught.value.status == INVALID
    assert all(field.startswith("spec.devices[0].attributes[") for field in caught.value.fields)


async def test_another_nodes_slice_is_refused_and_names_no_device(cluster: Cluster) -> None:
    with pytest.raises(RefusedError) as caught:
        await cluster.apply(await made(cluster, device(), node="node-2"))
    assert caught.value.status == FORBIDDEN
    assert caught.value.fields == ()
    assert "only ResourceSlices of the node this pod runs on" in str(caught.value)


async def test_another_pools_slice_is_refused(cluster: Cluster) -> None:
    wanted = await made(cluster, device())
    pool = msgspec.structs.replace(wanted.spec.pool, name="elsewhere")
    spec = msgspec.structs.replace(wanted.spec, pool=pool)
    with pytest.raises(RefusedError) as caught:
        await cluster.apply(msgspec.structs.replace(wanted, spec=spec))
    assert caught.value.status == FORBIDDEN


async def test_another_drivers_slice_is_refused(cluster: Cluster) -> None:
    wanted = await made(cluster, device())
    spec = msgspec.structs.replace(wanted.spec, driver="another.example.com")
    with pytest.raises(RefusedError) as caught:
        await cluster.apply(msgspec.structs.replace(wanted, spec=spec))
    assert caught.value.status == FORBIDDEN


async def test_a_claim_that_is_not_there(cluster: Cluster) -> None:
    with pytest.raises(RefusedError) as caught:
        await cluster.claim(ClaimRef("uid", "default", "nobodys"))
    assert caught.value.status == NOT_FOUND


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("GET", SLICES),
        ("GET", f"{SLICES}/{NODE}-usbplugin-0"),
        ("GET", f"{SLICES}?watch=1"),
        ("GET", "/apis/resource.k8s.io/v1/resourceclaims"),
        ("GET", "/api/v1/nodes"),
        ("GET", "/api/v1/namespaces/default/secrets/any"),
        ("GET", "/api/v1/namespaces/default/pods/any"),
        ("DELETE", f"/api/v1/nodes/{NODE}"),
        ("DELETE", SLICES),
    ],
)
async def test_all_else_is_forbidden(server: ApiServer, method: str, target: str) -> None:
    assert (await server.request(method, target)).status == FORBIDDEN


CLAIM = """
apiVersion: resource.k8s.io/v1
kind: ResourceClaim
metadata: {{name: toleration, namespace: default}}
spec:
  devices:
    requests:
    - name: tty
      {request}
"""
TEMPLATE = """
apiVersion: resource.k8s.io/v1
kind: ResourceClaimTemplate
metadata: {{name: toleration, namespace: default}}
spec:
  spec:
    devices:
      requests:
      - name: tty
        {request}
"""
CLASS = "deviceClassName: serial.usbplugin"


@pytest.mark.parametrize("kind", [CLAIM, TEMPLATE], ids=["claim", "template"])
@pytest.mark.parametrize(
    ("toleration", "is_warned_of"),
    [
        ("{key: usbplugin/unplugged, operator: Exists, effect: NoExecute}", False),
        ("{key: usbplugin/unplugged, operator: Exists}", True),
        ("{key: example.com/other, operator: Exists}", False),
    ],
)
@pytest.mark.parametrize(
    "request_",
    [
        f"exactly: {{{CLASS}, tolerations: [%s]}}",
        f"firstAvailable: [{{name: a, {CLASS}}}, {{name: b, {CLASS}, tolerations: [%s]}}]",
    ],
    ids=["exactly", "firstAvailable"],
)
def test_whoever_writes_a_toleration_that_loops_is_warned(
    real: RealApiServer, kind: str, toleration: str, request_: str, *, is_warned_of: bool
) -> None:
    text = kind.format(request=request_ % toleration)
    warnings = real.warnings("apply", "--dry-run=server", "--filename=-", text=text)
    assert ("say effect: NoExecute" in warnings) is is_warned_of, warnings
