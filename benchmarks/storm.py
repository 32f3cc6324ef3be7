"""Many devices plugged and unplugged as fast as a source can report it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.latency import node
from benchmarks.process import cpu
from benchmarks.subject import RESOURCE, device_id

if TYPE_CHECKING:
    from benchmarks.report import Report


async def measure(report: Report, rounds: int, size: int = 256) -> None:
    messages, times, used = [], [], []
    for _ in range(rounds):
        async with node(1) as ours:
            kubelet, plugin = ours.kubelet, ours.plugin
            kubelet.log.clear()
            before = cpu(plugin.pid)
            plugin.tell("storm", size)
            await kubelet.wait_healthy(RESOURCE, {device_id(0), device_id(size)})
            times.append(kubelet.log.messages[-1].time - await plugin.answer())
            messages.append(len(kubelet.log.messages))
            used.append(cpu(plugin.pid) - before)
    report.times(f"storm of {size} plugs and pulls, to the final state", times)
    report.add("  messages at most", max(messages), "")
    report.times("  the plugin's CPU", used)
