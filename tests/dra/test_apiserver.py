"""What becomes of each thing that an API server, or what is between us and it, can do."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import pytest

from tests.apiserver import NODE, TOKEN, Answer, FakeApiServer, HangUpError, status, wait_until
from tests.certificates import Authority
from usbplugin.dra import cluster as cluster_module
from usbplugin.dra.access import Access
from usbplugin.dra.apiserver import ApiServer
from usbplugin.dra.cluster import Cluster, RefusedError
from usbplugin.dra.contracts import ClaimRef
from usbplugin.errors import ApiServerError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

CLAIM = ClaimRef("uid-1", "default", "gps")


@pytest.fixture
async def fake(tmp_path: Path) -> AsyncIterator[FakeApiServer]:
    server = FakeApiServer(tmp_path)
    await server.start()
    server.claims["default", "gps"] = {"metadata": {"uid": "uid-1", "name": "gps"}}
    yield server
    await server.stop()


@pytest.fixture
async def api(fake: FakeApiServer) -> AsyncIterator[ApiServer]:
    server = ApiServer(fake.access)
    yield server
    await server.close()


@pytest.fixture
def cluster(api: ApiServer) -> Cluster:
    return Cluster(api)


async def test_a_claim_is_read_with_the_pods_token(fake: FakeApiServer, cluster: Cluster) -> None:
    assert json.loads(await cluster.claim(CLAIM))["metadata"]["uid"] == "uid-1"
    assert fake.asked[0].token == TOKEN


async def test_one_connection_serves_all_requests(fake: FakeApiServer, cluster: Cluster) -> None:
    for _ in range(5):
        await cluster.node_uid(NODE)
    assert fake.connections == 1


async def test_a_hanging_request_does_not_delay_another_one(
    fake: FakeApiServer, cluster: Cluster
) -> None:
    fake.delay = lambda asked: 3600 if "nodes" in asked.path else 0
    hanging = asyncio.create_task(cluster.node_uid(NODE))
    await wait_until(lambda: fake.count("GET") == 1)
    assert await cluster.claim(CLAIM)
    hanging.cancel()


async def test_a_hanging_server_costs_a_request_its_time_and_no_more(
    fake: FakeApiServer, api: ApiServer
) -> None:
    fake.delay = lambda asked: 3600
    with pytest.raises(ApiServerError, match=r"did not answer within 0\.2 s") as caught:
        await api.request("GET", "/", seconds=0.2)
    assert caught.value.status is None
    fake.delay = lambda asked: 0
    assert (await api.request("GET", f"/api/v1/nodes/{NODE}")).is_ok


async def test_a_server_that_hangs_up_between_requests_is_called_again(
    fake: FakeApiServer, cluster: Cluster
) -> None:
    await cluster.node_uid(NODE)
    fake.hang_up()
    # Before it is needed: the next request is perhaps the one that evicts a pod.
    await wait_until(lambda: fake.connections == 2)
    await cluster.node_uid(NODE)
    assert fake.connections == 2


async def test_a_connection_that_ends_under_a_request_is_made_again_once(
    fake: FakeApiServer, cluster: Cluster
) -> None:
    await cluster.node_uid(NODE)

    def hang_up_once(asked: object) -> None:
        if len(fake.asked) == 2:
            raise HangUpError

    fake.interfere = hang_up_once
    await cluster.node_uid(NODE)
    assert len(fake.asked) == 3


async def test_a_server_that_always_hangs_up_is_no_answer(
    fake: FakeApiServer, cluster: Cluster
) -> None:
    def hang_up(asked: object) -> None:
        raise HangUpError

    fake.interfere = hang_up
    with pytest.raises(ApiServerError, match="hung up"):
        await cluster.node_uid(NODE)


async def test_a_server_that_is_down_is_no_answer(fake: FakeApiServer, cluster: Cluster) -> None:
    await fake.stop()
    with pytest.raises(ApiServerError, match="cannot be reached") as caught:
        await cluster.node_uid(NODE)
    assert caught.value.status is None


async def test_a_stranger_with_another_certificate_is_told_nothing(
    fake: FakeApiServer, cluster: Cluster, tmp_path: Path
) -> None:
    Authority.new("stranger").write(tmp_path / "ca.crt")
    with pytest.raises(ApiServerError, match=r"ca\.crt does not vouch for"):
        await cluster.node_uid(NODE)
    assert not fake.asked


async def test_a_new_ca_is_trusted_without_a_restart(
    fake: FakeApiServer, cluster: Cluster, tmp_path: Path
) -> None:
    await cluster.node_uid(NODE)
    await fake.stop()
    renewed = Authority.new("renewed")
    renewed.certify("127.0.0.1", tmp_path / "server.pem")
    (tmp_path / "ca.crt").unlink()
    renewed.write(tmp_path / "ca.crt")
    await fake.start()
    await cluster.node_uid(NODE)


async def test_a_token_is_read_for_each_request(
    fake: FakeApiServer, cluster: Cluster, tmp_path: Path
) -> None:
    await cluster.node_uid(NODE)
    fake.tokens = {"renewed": NODE}
    (tmp_path / "token").write_text("renewed\n")
    await cluster.node_uid(NODE)
    assert [asked.token for asked in fake.asked] == [TOKEN, "renewed"]


async def test_an_expired_token_is_read_again_once(fake: FakeApiServer, cluster: Cluster) -> None:
    fake.tokens = {}
    with pytest.raises(RefusedError, match="401: Unauthorized"):
        await cluster.node_uid(NODE)
    assert len(fake.asked) == 2


@pytest.mark.parametrize("content", [None, "", "two\nlines", "\u20ac"])
async def test_without_a_token_the_message_says_what_is_missing(
    cluster: Cluster, tmp_path: Path, content: str | None
) -> None:
    (tmp_path / "token").unlink()
    if content is not None:
        (tmp_path / "token").write_text(content)
    with pytest.raises(ApiServerError, match="no token"):
        await cluster.node_uid(NODE)


async def test_without_a_ca_nobody_is_trusted(cluster: Cluster, tmp_path: Path) -> None:
    (tmp_path / "ca.crt").write_text("nothing")
    with pytest.raises(ApiServerError, match=r"cannot be trusted: .*ca\.crt"):
        await cluster.node_uid(NODE)


async def test_an_answer_that_is_no_json_is_an_error(fake: FakeApiServer, cluster: Cluster) -> None:
    fake.interfere = lambda asked: Answer(200, {"items": []})
    with pytest.raises(ApiServerError, match="is a proxy in between"):
        await cluster.node_uid(NODE)


async def raw_server(answer: bytes) -> tuple[asyncio.Server, int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    return server, server.sockets[0].getsockname()[1]


async def test_a_server_without_tls_is_no_answer(tmp_path: Path, fake: FakeApiServer) -> None:
    server, port = await raw_server(b"HTTP/1.1 200 OK\r\n\r\n")
    access = Access("127.0.0.1", port, fake.access.token_file, fake.access.ca_file)
    with pytest.raises(ApiServerError, match="cannot be reached"):
        await ApiServer(access).request("GET", "/")
    server.close()


@pytest.mark.parametrize("code", [429, 500, 503])
async def test_a_claim_is_asked_for_again_while_the_server_is_in_trouble(
    fake: FakeApiServer, cluster: Cluster, code: int
) -> None:
    fake.interfere = lambda asked: status(code, "busy") if len(fake.asked) < 3 else None
    assert await cluster.claim(CLAIM)
    assert len(fake.asked) == 3


async def test_a_claim_is_not_asked_for_for_ever(
    fake: FakeApiServer, cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cluster_module, "CLAIM_SECONDS", 0.6)
    await fake.stop()
    with pytest.raises(ApiServerError, match="cannot be reached"):
        await cluster.claim(CLAIM)


@pytest.mark.parametrize("code", [403, 404])
async def test_a_refused_claim_is_not_asked_for_again(
    fake: FakeApiServer, cluster: Cluster, code: int
) -> None:
    fake.interfere = lambda asked: status(code, "no")
    with pytest.raises(RefusedError, match=f"ResourceClaim default/gps: .* {code}: no") as caught:
        await cluster.claim(CLAIM)
    assert caught.value.status == code
    assert len(fake.asked) == 1


async def test_names_from_elsewhere_lead_nowhere_else(
    fake: FakeApiServer, cluster: Cluster
) -> None:
    with pytest.raises(RefusedError):
        await cluster.claim(ClaimRef("u", "../../..", "x?y#z\r\nHost: a"))
    assert fake.asked[0].path.count("/") == 7


async def test_what_a_server_says_is_one_printable_line(
    fake: FakeApiServer, cluster: Cluster
) -> None:
    fake.interfere = lambda asked: status(403, "no\x1b[31m\n" + "x" * 10_000)
    with pytest.raises(RefusedError) as caught:
        await cluster.node_uid(NODE)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1200


async def test_closed_means_no_connection_is_left(fake: FakeApiServer, api: ApiServer) -> None:
    fake.delay = lambda asked: 3600
    hanging = asyncio.create_task(api.request("GET", "/"))
    await wait_until(lambda: len(fake.asked) == 1)
    await api.close()
    with pytest.raises(ApiServerError, match="hung up"):
        await hanging


@pytest.mark.parametrize(
    ("environment", "authority"),
    [
        ({"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "10.0.0.1:443"),
        (
            {"KUBERNETES_SERVICE_HOST": "fd00::1", "KUBERNETES_SERVICE_PORT": "6443"},
            "[fd00::1]:6443",
        ),
        (
            {
                "KUBERNETES_SERVICE_HOST": "10.0.0.1",
                "KUBERNETES_SERVICE_PORT": "80",
                "KUBERNETES_SERVICE_PORT_HTTPS": "443",
            },
            "10.0.0.1:443",
        ),
    ],
)
def test_a_pod_knows_where_the_api_server_is(environment: dict[str, str], authority: str) -> None:
    assert Access.in_cluster(environment).authority == authority


def test_outside_of_a_pod_the_message_says_so() -> None:
    with pytest.raises(ApiServerError, match="needs to run in a pod"):
        Access.in_cluster({})


def test_a_url_says_where_it_is() -> None:
    assert Access.of("https://[fd00::1]:6443/").authority == "[fd00::1]:6443"
    assert Access.of("https://example.net").port == 443
    assert Access.of("http://127.0.0.1:8001").is_plain


@pytest.mark.parametrize(
    "url",
    ["", "example.net", "https://", "https://a:b", "ftp://a", "https://a/b", "http://10.0.0.1:80"],
)
def test_a_url_that_leads_nowhere_or_shows_the_token_is_refused(url: str) -> None:
    with pytest.raises(ApiServerError, match="https://"):
        Access.of(url)
