"""``usbplugin serve``: the device plugin itself, until it is told to stop."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from usbplugin import __version__
from usbplugin.commands import flags
from usbplugin.commands.command import Command

if TYPE_CHECKING:
    import argparse

_LOG_LEVELS = ("debug", "info", "warning", "error")
_LOG_FORMATS = ("text", "json")


def _add_flags(parser: argparse.ArgumentParser) -> None:
    flags.add_config(parser)
    flags.add_sources(parser)
    flags.add_places(parser)
    flags.add_front(parser)
    flags.add(
        parser,
        "--http-address",
        "HOST:PORT",
        "address for metrics, health and a status page, e.g. :9808; without it, only root on"
        " this node can ask",
    )
    flags.add(parser, "--log-level", None, "the least severe level to log", "info", _LOG_LEVELS)
    flags.add(parser, "--log-format", None, "format of log lines", "text", _LOG_FORMATS)


def _run(options: argparse.Namespace) -> int:
    from usbplugin.agent import Agent
    from usbplugin.commands.wiring import config_of, front_of, places_of, sources_of
    from usbplugin.config import warnings
    from usbplugin.telemetry import logs
    from usbplugin.telemetry.http import parse_address

    logs.configure(options.log_level, logs.LogFormat(options.log_format))
    adapt = front_of(options)
    config = adapt(config_of(options))
    address = parse_address(options.http_address) if options.http_address else None
    sources = sources_of(options, config)
    places = places_of(options)
    logs.catch_the_uncaught()
    logger = logs.logger(__name__)
    for warning in warnings(config):
        logger.warning("configuration is odd", extra=logs.fields(warning=warning))
    logger.info(
        "starting",
        extra=logs.fields(
            version=__version__,
            config=options.config or "defaults",
            resources=[resource.name for resource in config.resources],
            kubelet=options.kubelet_dir,
        ),
    )
    config_file = Path(options.config) if options.config else None

    async def run() -> None:
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping.set)
        await Agent(config, sources, places, config_file, address, adapt).run(stopping)

    asyncio.run(run())
    logger.info("stopped")
    return 0


COMMAND = Command("serve", "run the device plugin on this node", _add_flags, _run)
