"""How much memory the plugin takes with few devices, with many, and after a million facts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.latency import bare_node, node
from benchmarks.process import process, resident, served
from benchmarks.subject import RESOURCE

if TYPE_CHECKING:
    from benchmarks.report import Report
    from usbplugin.virtual import EmbeddedKubelet

_BARS = {10: 48.0, 1000: 60.0}
_WARM_UP = 100_000
"""Facts after which memory should stop growing: one in 500 is about a new device, and only 256
unplugged devices are remembered."""
_GROWTH_BAR = 2.0


async def measure(report: Report, facts: int) -> None:
    for count in (0, 10, 1000):
        with served(count) as (kubelet, serve):
            async with kubelet:
                with process(*serve) as pid:
                    await kubelet.wait_for(lambda n=count: _has(kubelet, n))  # type: ignore[misc]
                    report.add(f"resident, {count} devices", resident(pid), "MiB", _BARS.get(count))
    async with bare_node(10) as bare:
        report.add("  the floor's, 10 devices", resident(bare.plugin.pid), "MiB")
    async with node(10) as ours:
        await ours.plugin.ask("churn", _WARM_UP)
        before = resident(ours.plugin.pid)
        await ours.plugin.ask("churn", facts)
        after = resident(ours.plugin.pid)
    report.add(f"resident after {_WARM_UP:,} facts", before, "MiB")
    report.add(f"  growth over {facts:,} more", after - before, "MiB", _GROWTH_BAR)


def _has(kubelet: EmbeddedKubelet, count: int) -> bool:
    resource = kubelet.resource(RESOURCE)
    return resource.connected and len(resource.healthy) == count
