"""Counts events for Prometheus. Values that can be read on demand are not counted here.

For use in the event loop only. Expected series start at zero, so that the first event already
yields a rate, and alerts find the series they watch.
"""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

from usbplugin import __version__
from usbplugin.telemetry import catalogue
from usbplugin.telemetry.instruments import Counter, Histogram, Readings, render
from usbplugin.telemetry.logs import COUNTS
from usbplugin.telemetry.observer import Observer

if TYPE_CHECKING:
    from collections.abc import Iterable

    from usbplugin.telemetry.dra import DraMetrics

METHODS = ("Allocate", "PreStartContainer", "GetPreferredAllocation")
OUTCOMES = ("ok", "invalid_argument", "not_found", "failed_precondition", "internal")
RELOADS = ("applied", "unchanged", "refused")
RESCAN_REASONS = ("start", "change", "period", "overflow")
PORT_EVENTS = ("present", "gone")
FORGOTTEN = "forgotten"
PATHS = ("/", "/metrics", "/healthz", "/readyz", "/devices", "/events")
OTHER_PATH = "other"
LISTENERS = ("tcp", "unix")


class Metrics(Observer):
    """All counters and histograms, and how they are rendered."""

    def __init__(self, states: Iterable[str]) -> None:
        """Start at zero.

        Args:
            states: Every state of health a device can have.
        """
        self._states = (*states, FORGOTTEN)
        self.port_events = Counter(catalogue.PORT_EVENTS)
        self.rescans = Counter(catalogue.RESCANS)
        self.device_changes = Counter(catalogue.DEVICE_CHANGES)
        self.device_replugs = Counter(catalogue.DEVICE_REPLUGS)
        self.hotplug_to_stream = Histogram(catalogue.HOTPLUG_TO_STREAM)
        self.kubelet_calls = Counter(catalogue.KUBELET_CALLS)
        self.kubelet_call_seconds = Histogram(catalogue.KUBELET_CALL_SECONDS)
        self.registrations = Counter(catalogue.REGISTRATIONS)
        self.generations = Counter(catalogue.GENERATIONS)
        self.kubelet_restarts = Counter(catalogue.KUBELET_RESTARTS)
        self.holder_queries = Counter(catalogue.HOLDER_QUERIES)
        self.config_reloads = Counter(catalogue.CONFIG_RELOADS)
        self.http_requests = Counter(catalogue.HTTP_REQUESTS)
        self.http_refused = Counter(catalogue.HTTP_REFUSED)
        self.dra: DraMetrics | None = None
        """What the DRA front counts, while there is one."""
        self._config_is_good = True
        self._config_applied_at = time.time()
        self._started = _start_time()
        self._listening = dict.fromkeys(LISTENERS, 0)
        for outcome in ("ok", "failed"):
            self.holder_queries.expect(outcome)
        for outcome in RELOADS:
            self.config_reloads.expect(outcome)
        for path in PATHS:
            self.http_requests.expect(path, "200")

    def expect_source(self, name: str) -> None:
        """Show a source's series, which is about to run."""
        for event in PORT_EVENTS:
            self.port_events.expect(name, event)
        for reason in RESCAN_REASONS:
            self.rescans.expect(name, reason)

    def expect_resource(self, name: str) -> None:
        """Show the series of a resource that is about to be served."""
        for state in self._states:
            self.device_changes.expect(name, state)
        for counter in (self.device_replugs, self.generations, self.kubelet_restarts):
            counter.expect(name)
        self.hotplug_to_stream.expect(name)
        for method in METHODS:
            self.kubelet_call_seconds.expect(name, method)
            for outcome in OUTCOMES:
                self.kubelet_calls.expect(name, method, outcome)
        for outcome in ("accepted", "failed"):
            self.registrations.expect(name, outcome)

    def kubelet_called(self, resource: str, method: str, outcome: str, seconds: float) -> None:  # noqa: D102 -- Observer
        self.kubelet_calls.add(resource, method, outcome)
        self.kubelet_call_seconds.observe(seconds, resource, method)

    def streamed(self, resource: str, seconds: float) -> None:  # noqa: D102
        self.hotplug_to_stream.observe(seconds, resource)

    def generation_began(self, resource: str, *, kubelet_is_new: bool) -> None:  # noqa: D102
        self.generations.add(resource)
        if kubelet_is_new:
            self.kubelet_restarts.add(resource)

    def registered(self, resource: str, *, accepted: bool) -> None:  # noqa: D102
        self.registrations.add(resource, "accepted" if accepted else "failed")

    def config_looked_at(self, outcome: str) -> None:
        """The configuration file was applied, unchanged or refused."""
        self.config_reloads.add(outcome)
        self._config_is_good = outcome != "refused"
        if outcome == "applied":
            self._config_applied_at = time.time()

    def http_answered(self, path: str, code: int) -> None:
        """A request was answered."""
        self.http_requests.add(path if path in PATHS else OTHER_PATH, str(code))

    def http_listening(self, listener: str, *, yes: bool) -> None:
        """A listener is open, or could not be opened."""
        self._listening[listener] = int(yes)

    def render(self, readings: Iterable[Readings]) -> bytes:
        """Prometheus's page: these readings, and everything counted."""
        counted = [value for value in vars(self).values() if isinstance(value, Counter | Histogram)]
        of_dra = self.dra.instruments(time.time()) if self.dra is not None else ()
        items = (*readings, *counted, *of_dra, *self._own_readings())
        shown = {item.metric: item for item in items}
        return render(shown[metric] for metric in catalogue.METRICS if metric in shown)

    def _own_readings(self) -> list[Readings]:
        python = ".".join(map(str, sys.version_info[:3]))
        return [
            Readings(catalogue.BUILD_INFO, {(__version__, python): 1}),
            Readings(catalogue.CONFIG_GOOD, {(): int(self._config_is_good)}),
            Readings(catalogue.CONFIG_APPLIED, {(): self._config_applied_at}),
            Readings(
                catalogue.HTTP_LISTENING, {(name,): up for name, up in self._listening.items()}
            ),
            Readings(catalogue.LOG_RECORDS, COUNTS.logged()),
            Readings(catalogue.LOG_SUPPRESSED, COUNTS.suppressed()),
            Readings(catalogue.CPU, {(): time.process_time()}),
            Readings(catalogue.STARTED, {(): self._started}),
            *_process(),
        ]


def _process() -> list[Readings]:
    """What proc(5) says about this process; nothing if there is no procfs."""
    try:
        resident = int(_stat()[21])
        descriptors = len(os.listdir("/proc/self/fd"))  # noqa: PTH208 -- at each scrape
    except OSError:
        return []
    return [
        Readings(catalogue.RESIDENT, {(): resident * os.sysconf("SC_PAGE_SIZE")}),
        Readings(catalogue.DESCRIPTORS, {(): descriptors}),
    ]


def _start_time() -> float:
    """When this process started, in seconds since 1970; now, if there is no procfs."""
    try:
        ticks = int(_stat()[19])
    except OSError:
        return time.time()
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    return booted + ticks / os.sysconf("SC_CLK_TCK")


def _stat() -> list[bytes]:
    """The fields of /proc/self/stat after the name, which is in parentheses and may have spaces."""
    with open("/proc/self/stat", "rb") as file:  # noqa: PTH123 -- at each scrape
        return file.read().rpartition(b")")[2].split()
