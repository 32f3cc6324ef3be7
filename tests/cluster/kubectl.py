"""kubectl as these tests use it: objects in and out as JSON, and waits that are watches.

This module knows no scenario. A wait sees each state that the API server tells of, so that no short
one is missed, and the time of each is when its line arrived here.
"""

from __future__ import annotations

import contextlib
import json
import queue
import subprocess
import threading
import time
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, NoReturn, Self
from urllib.parse import urlencode

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

Document = dict[str, Any]
"""An object of the API, as JSON has it: its shape is the API's, and not ours to type."""

_PATIENCE_S = 60.0


class KubectlError(AssertionError):
    """kubectl ended with an error; the text is its own."""


@dataclass(frozen=True, slots=True)
class Sight:
    """One state of an object, and when this machine learned of it (``time.monotonic``)."""

    object: Document
    at: float
    deleted: bool


class Kubectl:
    """One cluster, and one namespace in it for whatever has one."""

    def __init__(self, program: str, namespace: str = "default") -> None:
        self._program = program
        self.namespace = namespace

    def within(self, namespace: str) -> Kubectl:
        return Kubectl(self._program, namespace)

    def command(self, *arguments: str) -> list[str]:
        return [self._program, "--namespace", self.namespace, *arguments]

    def run(self, *arguments: str, stdin: str = "", timeout: float = _PATIENCE_S) -> str:
        """What kubectl printed.

        Raises:
            KubectlError: it ended with an error, or not at all in ``timeout`` seconds.
        """
        try:
            done = subprocess.run(
                self.command(*arguments),
                input=stdin,
                capture_output=True,
                text=True,
                check=False,
                timeout=timeout,
            )
        except subprocess.TimeoutExpired as error:
            raise KubectlError(f"kubectl {' '.join(arguments)}: no end in {timeout} s") from error
        if done.returncode != 0:
            raise KubectlError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def get(self, *what: str) -> Document:
        found: Document = json.loads(self.run("get", "--output=json", *what))
        return found

    def apply(self, *documents: Document) -> None:
        items = {"apiVersion": "v1", "kind": "List", "items": documents}
        self.run("apply", "--filename=-", stdin=json.dumps(items))

    def create(self, document: Document) -> None:
        self.run("create", "--filename=-", stdin=json.dumps(document))

    @contextlib.contextmanager
    def watch(self, resource: str, name: str = "", *, labels: str = "") -> Iterator[Watch]:
        """Watch one object (or all that have the labels) from its present state on."""
        query = {"watch": "1"}
        if name:
            query["fieldSelector"] = f"metadata.name={name}"
        if labels:
            query["labelSelector"] = labels
        group, _, plural = resource.rpartition("/")
        api = f"/apis/{group}" if group else "/api/v1"
        where = "" if plural in ("nodes", "namespaces") else f"/namespaces/{self.namespace}"
        path = f"{api}{where}/{plural}?{urlencode(query)}"
        with Watch(self.command("get", "--raw", path), f"{plural} {name or labels}") as watch:
            yield watch


class Watch:
    """A running watch. Not for more than one thread."""

    def __init__(self, command: list[str], what: str) -> None:
        self._what = what
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self._seen: queue.SimpleQueue[Sight | None] = queue.SimpleQueue()
        self._last: Sight | None = None
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,))
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._reader.join()
        self._process.communicate()

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            event = json.loads(line)
            self._seen.put(Sight(event["object"], time.monotonic(), event["type"] == "DELETED"))
        self._seen.put(None)

    def started(self) -> Sight:
        """Wait for the first state, after which nothing is missed."""
        return self.until(lambda _: True, "to be there")

    def until(
        self, wanted: Callable[[Document], bool], what: str, timeout: float = _PATIENCE_S
    ) -> Sight:
        """Wait for a state that is as wanted.

        Raises:
            AssertionError: it did not come in time; the last state is told.
        """
        for sight in self._sights(what, timeout):
            if not sight.deleted and wanted(sight.object):
                return sight
        return self._fail(f"not seen in {timeout} s: {what}")

    def until_deleted(self, timeout: float = _PATIENCE_S) -> Sight:
        for sight in self._sights("the end of it", timeout):
            if sight.deleted:
                return sight
        return self._fail(f"not deleted in {timeout} s")

    def _sights(self, what: str, timeout: float) -> Iterable[Sight]:
        deadline = time.monotonic() + timeout
        while True:
            try:
                sight = self._seen.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return
            if sight is None:
                self._fail(f"the watch ended while waiting for: {what}")
            self._last = sight
            yield sight

    def _fail(self, why: str) -> NoReturn:
        last = json.dumps(self._last.object.get("status", {})) if self._last else "none"
        raise AssertionError(f"{self._what}: {why}; its last state: {last:.3000}")
