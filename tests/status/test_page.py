"""The status page in a real browser: what it shows, live, and what hostile devices cannot do."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.browser import browsing, chromium, write
from tests.node import SERIAL, Node
from usbplugin.status.site import policy
from usbplugin.virtual.ttys import Descriptors

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

pytestmark = pytest.mark.timeout(90)

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "usbplugin/status/page.html"
PICTURES = ROOT / "results/status-page"

GPS = "usb-0403:6001-GPS-A7-if00"
HOSTILE = "<img src=x onerror=\"document.title='taken'\">"
EVIL = Descriptors(
    vendor_id="2341",
    product_id="0043",
    serial="</script><script>document.title='taken'</script>",
    manufacturer=HOSTILE,
    product="'\"`${document.title='taken'}",
    location="<b>here</b>",
)


@pytest.fixture
async def node() -> AsyncIterator[Node]:
    chromium()
    async with Node() as node:
        yield node


def test_the_policy_lets_nothing_in_but_the_pages_own_script_and_style() -> None:
    text = policy(PAGE.read_bytes())
    assert text.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe" not in text
    assert "*" not in text
    assert "http" not in text


def test_the_page_needs_nothing_from_elsewhere() -> None:
    page = PAGE.read_text()
    assert "http://" not in page
    assert "https://" not in page
    assert "innerHTML" not in page, "what devices say must not become markup"
    assert " on" not in page.partition("<body>")[2].partition("<script>")[0], "no handlers"


async def test_the_page_shows_what_is_here_and_what_happens(node: Node) -> None:
    node.plug("ttyUSB0", "GPS-A7")
    node.bus.plug("ttyACM0", EVIL)
    async with node.serve("--http-address", "127.0.0.1:0") as process:
        await node.kubelet.wait_for(lambda: len(node.kubelet.resource(SERIAL).healthy) == 2)
        await process.wait_for_log("serving metrics and health addresses=")
        address = process.log().partition("addresses=")[2].split()[0]
        async with browsing(f"http://{address}/") as page:
            await page.resize(1200, 900)
            await page.until("document.title == 'usbplugin: ready'")
            await page.until("document.querySelectorAll('#events li').length == 2")
            shown = await page.evaluate("document.body.innerText")
            assert GPS in shown
            assert HOSTILE in shown, "as text"
            assert "<b>here</b>" in shown
            write(PICTURES / "desktop.png", await page.screenshot())
            await page.prefer("dark")
            write(PICTURES / "dark.png", await page.screenshot())
            await page.resize(400, 900)
            assert await page.evaluate("document.documentElement.scrollWidth") <= 400
            write(PICTURES / "phone.png", await page.screenshot())

            # Live: nothing is reloaded.
            node.bus.unplug("ttyUSB0")
            await page.until("/unplugged/.test(document.querySelector('#events li').innerText)")
            await page.until("/is gone/.test(document.querySelector('table').innerText)")
            node.bus.replug("ttyUSB0", "ttyUSB5")
            await page.until("document.querySelectorAll('td .pill.good').length == 2")
            await node.kubelet.run_container(SERIAL, pod="gps-reader", device_ids=[GPS])
            await page.until(
                "/default\\/gps-reader\\/main/.test(document.querySelector('table').innerText)"
            )
            await node.kubelet.stop()
            await page.until("document.title == 'usbplugin: not ready'")
            await page.until(
                "/session usbplugin.serial/.test(document.querySelector('#trouble').innerText)"
            )
            # Chromium logs that /readyz answers 503; nothing else may have gone wrong.
            assert [text for text in page.complaints if "503" not in text] == []
            assert not await page.evaluate("document.querySelector('img, b, #devices script')")

            process.kill()
            await page.until("document.title == 'usbplugin: no answer'")
            await page.until("document.body.classList.contains('stale')")
            soft, shown = await page.evaluate(
                "[document.querySelector('.soft'), document.querySelector('td .pill.good')]"
                ".map((element) => getComputedStyle(element).color)"
            )
            assert shown == soft, "nothing is green that nobody vouches for"


async def test_a_resource_without_a_device_is_shown(node: Node) -> None:
    node.plug("ttyUSB0", "GPS-A7")
    config = node.root / "config.yaml"
    config.write_text("resources: [{name: a/gps, selectors: [{vendor: '1546'}]}, {name: a/all}]")
    flags = ("--config", str(config), "--http-address", "127.0.0.1:0", "--node-name", "pi-7")
    async with node.serve(*flags) as process:
        await process.wait_for_log("serving metrics and health addresses=")
        address = process.log().partition("addresses=")[2].split()[0]
        async with browsing(f"http://{address}/") as page:
            await page.until("/nothing here/.test(document.body?.innerText)")
            rows = await page.evaluate(
                "[...document.querySelectorAll('tbody tr')].map((row) => row.innerText)"
            )
            assert len(rows) == 2
            assert "a/gps" in rows[1]
            await page.until("document.title == 'pi-7 - usbplugin: ready'")
            assert "USB serial ports of pi-7" in await page.evaluate("document.body.innerText")
