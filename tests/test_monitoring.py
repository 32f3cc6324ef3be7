"""The dashboard and the alert rules name metrics and labels that exist, in PromQL that parses."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import promql_parser
import pytest
import yaml

from usbplugin.inventory import Health
from usbplugin.telemetry.catalogue import METRICS
from usbplugin.telemetry.instruments import Kind, Metric
from usbplugin.telemetry.metrics import FORGOTTEN, METHODS, OUTCOMES, RELOADS, RESCAN_REASONS

ROOT = Path(__file__).parents[1] / "deploy/monitoring"
DASHBOARD = json.loads((ROOT / "grafana-dashboard.json").read_text())
RULES = yaml.safe_load((ROOT / "rules.yaml").read_text())
ALERTS = [rule for group in RULES["groups"] for rule in group["rules"]]

# Grafana's own variables, and what the dashboard asks the viewer for.
VARIABLES = {"$__rate_interval": "5m", "$instance": ".*"}
# What Prometheus adds to each series of a target.
OF_THE_TARGET = {"instance", "job"}
VALUES = {
    "health": {"healthy", "unhealthy"},
    "reason": {health.value for health in Health} | set(RESCAN_REASONS),
    "to": {health.value for health in Health} | {FORGOTTEN},
    "method": set(METHODS),
    "outcome": {*OUTCOMES, *RELOADS, "accepted", "failed"},
    "learns_by": {"uevents", "inotify", "polling"},
    "level": {"debug", "info", "warning", "error", "critical"},
}


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def expressions() -> list[tuple[str, str]]:
    found = [
        (f"panel {panel['title']}", target["expr"])
        for panel in panels()
        for target in panel["targets"]
    ]
    found += [(a["name"], a["expr"]) for a in DASHBOARD["annotations"]["list"]]
    found += [(f"alert {alert['alert']}", alert["expr"]) for alert in ALERTS]
    for where, expression in found:
        for variable, value in VARIABLES.items():
            expression = expression.replace(variable, value)  # noqa: PLW2901
        assert "$" not in expression, where
        yield_ = (where, expression)
        found[found.index((where, yield_[1])) if yield_ in found else 0] = found[0]
    return [(where, _without_variables(expression)) for where, expression in found]


def _without_variables(expression: str) -> str:
    for variable, value in VARIABLES.items():
        expression = expression.replace(variable, value)
    return expression


def selectors(expression: str) -> list[promql_parser.VectorSelector]:
    found = []

    def look(node: object) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            found.append(node)
        return True

    promql_parser.walk(promql_parser.parse(expression), look)
    return found


def metric_of(name: str) -> Metric:
    for metric in METRICS:
        suffixes = ("_bucket", "_sum", "_count") if metric.kind is Kind.HISTOGRAM else ("",)
        if name in {metric.name + suffix for suffix in suffixes}:
            return metric
    raise AssertionError(f"there is no metric {name}")
