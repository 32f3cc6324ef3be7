"""The dashboard and the alert rules name metrics and labels that exist, in PromQL that parses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import promql_parser as promql
import pytest
import yaml

from usbplugin.inventory import Health
from usbplugin.telemetry.catalogue import METRICS
from usbplugin.telemetry.dra import OUTCOMES as PREPARED
from usbplugin.telemetry.instruments import Kind, Metric
from usbplugin.telemetry.metrics import FORGOTTEN, METHODS, OUTCOMES, RELOADS, RESCAN_REASONS

ROOT = Path(__file__).parents[1] / "deploy/monitoring"
DASHBOARD = json.loads((ROOT / "grafana-dashboard.json").read_text())
RULES = yaml.safe_load((ROOT / "rules.yaml").read_text())
ALERTS = [rule for group in RULES["groups"] for rule in group["rules"]]
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]

# Grafana's own variables, and what the dashboard asks the viewer for.
VARIABLES = {"$__rate_interval": "5m", "$instance": ".*"}
# What Prometheus adds to each series of a target.
OF_THE_TARGET = {"instance", "job"}
VALUES = {
    "health": {"healthy", "unhealthy"},
    "reason": {health.value for health in Health} | set(RESCAN_REASONS),
    "to": {health.value for health in Health} | {FORGOTTEN},
    "method": set(METHODS),
    "outcome": {*OUTCOMES, *RELOADS, *PREPARED, "accepted", "failed"},
    "learns_by": {"uevents", "inotify", "polling"},
    "level": {"debug", "info", "warning", "error", "critical"},
}

EXPRESSIONS = [
    *((f"panel {p['title']}", target["expr"]) for p in PANELS for target in p["targets"]),
    *((a["name"], a["expr"]) for a in DASHBOARD["annotations"]["list"]),
    *((f"alert {alert['alert']}", alert["expr"]) for alert in ALERTS),
]


def parsed(expression: str) -> promql.Expr:
    for variable, value in VARIABLES.items():
        expression = expression.replace(variable, value)
    assert "$" not in expression, "a variable that nobody sets"
    return promql.parse(expression)


def parts(expression: promql.Expr) -> list[promql.Expr]:
    found: list[promql.Expr] = []
    promql.walk(expression, found.append)
    return found


def metric_of(name: str | None) -> Metric:
    for metric in METRICS:
        histogram = metric.kind is Kind.HISTOGRAM
        suffixes = ("_bucket", "_sum", "_count") if histogram else ("",)
        if name in {metric.name + suffix for suffix in suffixes}:
            return metric
    raise AssertionError(f"there is no metric {name}")


def labels_of(expression: promql.Expr) -> set[str]:
    """Labels that the series in it have."""
    labels = set(OF_THE_TARGET)
    for part in parts(expression):
        if isinstance(part, promql.VectorSelector):
            metric = metric_of(part.name)
            labels |= {*metric.labels, *(["le"] if metric.buckets else [])}
    return labels


@pytest.mark.parametrize(("where", "text"), EXPRESSIONS, ids=[name for name, _ in EXPRESSIONS])
def test_expressions_parse_and_name_what_exists(where: str, text: str) -> None:
    expression = parsed(text)
    selectors = [part for part in parts(expression) if isinstance(part, promql.VectorSelector)]
    assert selectors, where
    for selector in selectors:
        known = labels_of(selector)
        for matcher in selector.matchers.matchers:
            assert matcher.name in known
            if values := VALUES.get(matcher.name):
                assert set(matcher.value.split("|")) <= values
    for part in parts(expression):
        if isinstance(part, promql.AggregateExpr) and part.modifier:
            assert set(part.modifier.labels) <= labels_of(part)


@pytest.mark.parametrize(("where", "text"), EXPRESSIONS, ids=[name for name, _ in EXPRESSIONS])
def test_counters_are_rated_and_gauges_are_not(where: str, text: str) -> None:
    for part in parts(parsed(text)):
        if isinstance(part, promql.Call) and part.func.name in {"rate", "increase"}:
            for selector in parts(part):
                if isinstance(selector, promql.VectorSelector):
                    assert metric_of(selector.name).kind is not Kind.GAUGE, where
    plain = re.sub(r"(rate|increase)\([^()]*\)", "", text)
    for name in re.findall(r"\b(?:usbplugin|process)_\w+", plain):
        assert metric_of(name).kind is Kind.GAUGE, f"{where}: {name} needs a rate"


def test_every_metric_is_of_use_to_somebody() -> None:
    used = set(
        re.findall(r"\b(?:usbplugin|process)_\w+", " ".join(text for _, text in EXPRESSIONS))
    )
    unused = {metric.name for metric in METRICS} - {metric_of(name).name for name in used}
    # Of use when something is wrong with the server itself, or to see whether it was asked.
    assert unused == {
        "process_open_fds",
        "usbplugin_http_requests_total",
        "usbplugin_http_listening",
    }


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: str(alert["alert"]))
def test_alerts_say_what_is_wrong_and_what_to_do(alert: dict[str, Any]) -> None:
    assert re.fullmatch(r"Usb(Plugin|Device)[A-Z][A-Za-z]+", alert["alert"])
    assert alert["labels"]["severity"] in {"info", "warning", "critical"}
    if "for" in alert:
        assert promql.parse_duration(alert["for"])
    summary, description = alert["annotations"]["summary"], alert["annotations"]["description"]
    assert len(summary) <= 100
    assert description.endswith((".", "?"))
    labels = labels_of(parsed(alert["expr"]))
    for text in (summary, description):
        assert set(re.findall(r"\$labels\.(\w+)", text)) <= labels
        assert "\n" not in text


def test_alerts_have_names_of_their_own() -> None:
    assert len({alert["alert"] for alert in ALERTS}) == len(ALERTS)


def test_the_operators_resource_has_the_same_rules() -> None:
    resource = yaml.safe_load((ROOT / "prometheusrule.yaml").read_text())
    assert (resource["apiVersion"], resource["kind"]) == (
        "monitoring.coreos.com/v1",
        "PrometheusRule",
    )
    assert resource["spec"] == RULES


def test_panels_do_not_overlap_and_explain_themselves() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        position = panel["gridPos"]
        assert position["x"] + position["w"] <= 24
        cells = {
            (position["x"] + x, position["y"] + y)
            for x in range(position["w"])
            for y in range(position["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert len({panel["title"] for panel in PANELS}) == len(PANELS)
    for panel in PANELS:
        references = [target["refId"] for target in panel["targets"]]
        assert len(set(references)) == len(references)
        assert panel["datasource"]["uid"] == "${datasource}", "the viewer's, and nobody else's"
