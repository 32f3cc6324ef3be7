"""Headless Chromium, spoken to over a pipe in the DevTools protocol: needs no other package."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import shutil
import tempfile
from contextlib import asynccontextmanager
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_LARGEST_MESSAGE = 64 << 20
_PATIENCE = 30.0


def chromium() -> str:
    """Its path; skips the test where there is none, or fails it where nothing may be skipped."""
    for name in _NAMES:
        if path := shutil.which(name):
            return path
    reason = "no Chromium here (Debian: apt-get install chromium)"
    if os.environ.get("USBPLUGIN_REQUIRE_ALL"):
        pytest.fail(reason)
    pytest.skip(reason)


class Page:
    """A page in a browser of its own."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._numbers = count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._session = ""
        self.complaints: list[str] = []
        """Errors, also of the security policy, that the page has caused."""

    async def open(self, url: str) -> None:
        target = await self.call("Target.createTarget", url="about:blank")
        attached = await self.call(
            "Target.attachToTarget", targetId=target["targetId"], flatten=True
        )
        self._session = attached["sessionId"]
        for domain in ("Runtime", "Log", "Page"):
            await self.call(f"{domain}.enable")
        await self.call("Page.navigate", url=url)

    async def evaluate(self, expression: str) -> Any:  # noqa: ANN401 -- whatever JavaScript gives
        """The value of an expression; of a promise, what it is fulfilled with."""
        answer = await self.call(
            "Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    async def until(self, condition: str) -> None:
        """Wait until an expression is true; it is looked at whenever the document changes."""
        await self.evaluate(
            f"new Promise((done) => {{ const look = () => ({condition}) && done(true); look();"
            " new MutationObserver(look).observe(document,"
            " {subtree: true, childList: true, characterData: true, attributes: true}); })"
        )

    async def resize(self, width: int, height: int, scale: float = 1) -> None:
        await self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=False,
        )

    async def prefer(self, scheme: str) -> None:
        """Prefer a ``dark`` or ``light`` colour scheme."""
        await self.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": scheme}],
        )

    async def screenshot(self) -> bytes:
        """The whole page as PNG."""
        answer = await self.call("Page.captureScreenshot", captureBeyondViewport=True)
        return base64.b64decode(answer["data"])

    async def call(self, method: str, **parameters: object) -> dict[str, Any]:
        number = next(self._numbers)
        self._answers[number] = asyncio.get_running_loop().create_future()
        message: dict[str, object] = {"id": number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._writer.write(json.dumps(message).encode() + b"\0")
        return await asyncio.wait_for(self._answers[number], _PATIENCE)

    async def listen(self) -> None:
        while message := (await self._reader.readuntil(b"\0")).rstrip(b"\0"):
            document = json.loads(message)
            if waiting := self._answers.pop(document.get("id", 0), None):
                if "error" in document:
                    waiting.set_exception(RuntimeError(document["error"]["message"]))
                else:
                    waiting.set_result(document["result"])
            elif document.get("method") in {"Runtime.exceptionThrown", "Log.entryAdded"}:
                self.complaints.append(json.dumps(document["params"]))


@asynccontextmanager
async def browsing(url: str) -> AsyncIterator[Page]:
    """A page that shows ``url``."""
    loop = asyncio.get_running_loop()
    to_browser, commands = os.pipe()
    answers, from_browser = os.pipe()
    with tempfile.TemporaryDirectory(prefix="up-", ignore_cleanup_errors=True) as profile:
        process = await asyncio.create_subprocess_exec(
            # Chromium reads commands from 3, and answers on 4.
            *("bash", "-c", f'exec "$@" 3<&{to_browser} 4>&{from_browser}', "bash"),
            *(chromium(), "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
            *("--no-first-run", "--disable-background-networking", "--disable-dev-shm-usage"),
            *("--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
            pass_fds=(to_browser, from_browser),
        )
        os.close(to_browser)
        os.close(from_browser)
        reader = asyncio.StreamReader(limit=_LARGEST_MESSAGE)
        await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(answers, "rb")
        )
        transport, protocol = await loop.connect_write_pipe(
            asyncio.streams.FlowControlMixin, os.fdopen(commands, "wb")
        )
        page = Page(reader, asyncio.StreamWriter(transport, protocol, None, loop))
        listening = asyncio.create_task(page.listen())
        try:
            await page.open(url)
            yield page
        finally:
            listening.cancel()
            process.kill()
            await process.wait()
            transport.close()


def write(path: Path, picture: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(picture)
