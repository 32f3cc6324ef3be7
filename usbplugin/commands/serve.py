"""``usbplugin serve``: the device plugin itself, until it is told to stop."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from usbplugin import __version__
from usbplugin.agent import Agent
from usbplugin.commands.common import config_of, places_of, sources_of
from usbplugin.telemetry import logs
from usbplugin.telemetry.http import parse_address

if TYPE_CHECKING:
    import argparse


def serve(options: argparse.Namespace) -> int:
    """Run until SIGTERM or SIGINT."""
    logs.configure(options.log_level, logs.LogFormat(options.log_format))
    config = config_of(options)
    address = parse_address(options.http_address) if options.http_address else None
    sources = sources_of(options, config)
    places = places_of(options)
    logs.catch_the_uncaught()
    logger = logs.logger(__name__)
    for warning in config.warnings():
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
        await Agent(config, sources, places, config_file, address).run(stopping)

    asyncio.run(run())
    logger.info("stopped")
    return 0
