"""Tests on whatever cluster KUBECONFIG names: ``make cluster-test``.

They are skipped, with the reason, unless USBPLUGIN_CLUSTER_TEST=1 says that they are wanted: a
kubeconfig that happens to be there is no reason to touch a cluster.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.cluster import ground
from tests.cluster.cluster import Cluster
from tests.cluster.report import Report, Times

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

_REPORT = pytest.StashKey[Report]()
_HERE = Path(__file__).parent
_TABLE = Path("results/cluster/table.md")


def pytest_runtest_setup() -> None:
    if os.environ.get("USBPLUGIN_CLUSTER_TEST") != "1":
        pytest.skip("needs a cluster that may be touched: make cluster-test")


@pytest.fixture(scope="session")
def cluster_report(pytestconfig: pytest.Config) -> Report:
    return pytestconfig.stash.setdefault(_REPORT, Report())


@pytest.fixture(scope="session")
def shared_cluster(cluster_report: Report) -> Iterator[Cluster]:
    try:
        found = ground.find()
    except ground.NoGroundError as error:
        pytest.skip(str(error))
    except ground.RefusedError as error:
        pytest.exit(f"cluster-test: {error}", returncode=4)
    cluster = Cluster(found, os.environ.get("USBPLUGIN_CLUSTER_PORTS") or "auto")
    try:
        cluster.setup()
        cluster_report.ground.update(
            {
                "Kubernetes": found.facts["kubeletVersion"],
                "container runtime": found.facts["containerRuntimeVersion"],
                "kernel": found.facts["kernelVersion"],
                "system": found.facts["osImage"],
                "architecture": found.facts["architecture"],
                "ports": f"{cluster.bus.kind} {cluster.bus.obstacle}".strip(),
            }
        )
        yield cluster
    finally:
        cluster.teardown()


@pytest.fixture
def cluster(shared_cluster: Cluster) -> Iterator[Cluster]:
    """The cluster, without pods and with nothing plugged in."""
    yield shared_cluster
    shared_cluster.delete_pods()
    shared_cluster.bus.unplug_all()


@pytest.fixture
def times(cluster_report: Report, record_property: Callable[[str, object], None]) -> Times:
    return Times(cluster_report, record_property)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.when == "call" or report.outcome != "passed":
        _note(item, report)
    return report


def _note(item: pytest.Item, report: pytest.TestReport) -> None:
    if _HERE in item.path.parents and (found := item.config.stash.get(_REPORT, None)):
        name = item.name.removeprefix("test_").replace("_", " ")
        found.results.append((name, report.outcome, report.duration))


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if (report := config.stash.get(_REPORT, None)) and report.ground:
        lines = report.lines()
        terminalreporter.section("on this cluster")
        for line in lines:
            terminalreporter.write_line(line)
        _TABLE.parent.mkdir(parents=True, exist_ok=True)
        _TABLE.write_text("\n".join([*lines, ""]), "utf-8")
