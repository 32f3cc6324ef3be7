"""Writes ``docs/metrics.md`` from the catalogue: ``python -m usbplugin.telemetry.document``."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from usbplugin.telemetry.catalogue import SECTIONS

if TYPE_CHECKING:
    from usbplugin.telemetry.instruments import Metric

_HEAD = """\
# Metrics

If `serve` has an `--http-address`, `/metrics` serves these in Prometheus's text format. On the node
itself, `curl --unix-socket /run/usbplugin/usbplugin.sock http://node/metrics` shows the same. This
page is generated from the code (`make docs`).

All labels are bounded. `resource` and `source` are the operator's; `device` is an ID the inventory
lists: those of the devices present, and of at most 256 unplugged ones (those that a pod holds count
too, but are never dropped). The others take one of a few values. Counters start at zero, so they
are there from the beginning. Strings that devices report are escaped and on one line, as
everywhere.

`deploy/monitoring/` has dashboards and alert rules that use these metrics.
"""


def document() -> str:
    """The whole page."""
    lines = [_HEAD]
    for title, metrics in SECTIONS.items():
        lines += [f"## {title}", "", "| metric | type | labels | |", "|---|---|---|---|"]
        lines += [_row(metric) for metric in metrics]
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


def _row(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    buckets = ""
    if metric.buckets:
        buckets = " Buckets: " + ", ".join(f"{bound:g}" for bound in metric.buckets) + "."
    return f"| `{metric.name}` | {metric.kind.value} | {labels} | {metric.help}{buckets} |"


if __name__ == "__main__":
    sys.stdout.write(document())
