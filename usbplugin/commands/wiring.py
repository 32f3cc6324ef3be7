"""What several commands need: the configuration, the sources and the places that flags name."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from usbplugin.config import Config, Front, load
from usbplugin.discovery import DirectorySource
from usbplugin.errors import ConfigError
from usbplugin.foundation.places import Places

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from usbplugin.discovery import Source


def config_of(options: argparse.Namespace) -> Config:
    """The configuration that ``--config`` names, or the defaults.

    Raises:
        ConfigError: it cannot be read, or makes no sense.
    """
    return load(Path(options.config)) if options.config else Config()


def front_of(options: argparse.Namespace) -> Callable[[Config], Config]:
    """What ``--front`` makes of any configuration."""
    if not options.front:
        return lambda config: config
    front = Front(options.front)
    return lambda config: config.with_front(front)


def sources_of(options: argparse.Namespace, config: Config) -> list[Source]:
    """The sources that ``--udev`` and ``--device-dir`` ask for.

    Raises:
        ConfigError: they ask for none, or for a directory without a name.
        DiscoveryError: there is no libudev.
    """
    directories = options.device_dir
    if directories is None:
        value = os.environ.get("USBPLUGIN_DEVICE_DIR", "")
        directories = [directory for directory in value.split(os.pathsep) if directory]
    if "" in directories:
        raise ConfigError("--device-dir: expected a directory, found ''")
    sources: list[Source] = [DirectorySource(Path(directory)) for directory in directories]
    if options.udev:
        # Only here: libudev exists on Linux alone.
        from usbplugin.discovery.udev import UdevSource

        sources.insert(0, UdevSource(config.nodes))
    if not sources:
        raise ConfigError("nothing to discover: --no-udev needs at least one --device-dir")
    return sources


_POD = re.compile(r"[a-z0-9-]+/[a-z0-9.-]+")


def places_of(options: argparse.Namespace) -> Places:
    """Where on this node things are, as the flags say.

    Raises:
        ConfigError: one of them says what cannot be.
    """
    own_pod = options.own_pod or ""
    if own_pod and not _POD.fullmatch(own_pod):
        raise ConfigError(f"--own-pod: expected NAMESPACE/NAME, found {own_pod!r}")
    return Places(
        kubelet_dir=Path(options.kubelet_dir),
        registry_dir=Path(options.registry_dir),
        pod_resources=Path(options.pod_resources),
        link_dir=Path(options.link_dir),
        state_dir=Path(options.state_dir),
        cdi_dir=Path(options.cdi_dir),
        features_dir=Path(options.features_dir),
        api_server=options.api_server or "",
        service_account=Path(options.service_account),
        node_name=options.node_name or "",
        own_pod=own_pod,
    )
