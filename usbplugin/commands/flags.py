"""Flags that several commands share, and what the environment decides in their place.

Cheap to import: ``--help`` waits for nothing that it does not show.
"""

from __future__ import annotations

import argparse
import os
import sys

from usbplugin.foundation.places import Places


def settle(options: argparse.Namespace) -> None:
    """What flags leave open, the environment and the machine decide."""
    # Only now, for what the environment says is none of the other commands' business, nor --help's.
    for name, choices in options.choices.items():
        if getattr(options, name) not in (None, *choices):  # a flag's value has been looked at
            variable = _variable(name)
            options.complain(
                f"{variable}={os.environ[variable]}: expected one of {', '.join(choices)}"
            )
    if "link_dir" in options:
        # Who says where the daemon's socket is means that there is one.
        options.needs_daemon = options.link_dir is not None
        default = os.environ.get(_variable("--link-dir")) or str(Places().link_dir)
        options.link_dir = options.link_dir or default
    if "udev" in options:
        flags = (options.config, options.device_dir, options.udev)
        # Who says where to look means to look there, and not to ask a daemon that looks elsewhere.
        options.direct = options.direct or any(flag is not None for flag in flags)
        if options.udev is None:
            options.udev = _default_udev(options)
    if "config" in options:
        options.config = options.config or os.environ.get(_variable("--config"))


def add(
    parser: argparse.ArgumentParser,
    flag: str,
    metavar: str | None,
    text: str,
    default: str | None = None,
    choices: tuple[str, ...] | None = None,
) -> None:
    """A flag that an environment variable can set too."""
    variable = _variable(flag)
    value = os.environ.get(variable) or default
    shown = f"default {default}; " if default else ""
    action = parser.add_argument(
        flag,
        metavar=metavar,
        default=value,
        type=str.lower if choices else str,
        choices=choices,
        help=f"{text} ({shown}${variable})",
    )
    if choices:
        parser.get_default("choices")[action.dest] = choices


def add_config(parser: argparse.ArgumentParser) -> None:
    """``--config``."""
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="the configuration file; without one, every port is a usbplugin/serial"
        f" (${_variable('--config')})",
    )


def add_front(parser: argparse.ArgumentParser) -> None:
    """``--front``."""
    add(
        parser,
        "--front",
        None,
        "through what devices are given to pods, whatever the configuration says",
        choices=("device-plugin", "dra"),
    )


def add_daemon(parser: argparse.ArgumentParser) -> None:
    """``--direct``, and where the daemon's socket is."""
    parser.add_argument(
        "--direct",
        action="store_true",
        help="look at the hardware even if a daemon is running; implied by --config, --device-dir"
        " and --udev",
    )
    _add_link_dir(parser)


def add_places(parser: argparse.ArgumentParser) -> None:
    """Where on this node things are; ``wiring.places_of`` reads them."""
    places = Places()
    add(
        parser,
        "--kubelet-dir",
        "DIR",
        "the kubelet's device plugin directory",
        default=str(places.kubelet_dir),
    )
    _add_link_dir(parser)
    add(
        parser,
        "--state-dir",
        "DIR",
        "what was granted, and which devices share a serial number; must survive reboots, and need"
        " not be the same path on the host",
        default=str(places.state_dir),
    )
    add(
        parser,
        "--pod-resources",
        "FILE",
        "the kubelet's PodResources socket, to know who holds devices",
        default=str(places.pod_resources),
    )
    add(
        parser,
        "--own-pod",
        "NAMESPACE/NAME",
        "this pod's name: the kubelet's list of holders is trusted once it includes it",
    )
    add(
        parser,
        "--registry-dir",
        "DIR",
        "the kubelet's plugin registry, used with registration: watcher and with front: dra",
        default=str(places.registry_dir),
    )
    add(parser, "--cdi-dir", "DIR", "where CDI specs are written", default=str(places.cdi_dir))
    add(
        parser,
        "--node-name",
        "NAME",
        "this node's name in the cluster: for the status page, and needed with front: dra",
    )
    add(
        parser,
        "--api-server",
        "URL",
        "the API server, if not where a pod's environment says; http:// to this machine alone, as"
        " with kubectl proxy",
    )
    add(
        parser,
        "--service-account",
        "DIR",
        "the token and the CA's certificate for the API server, used with front: dra",
        default=str(places.service_account),
    )
    add(
        parser,
        "--features-dir",
        "DIR",
        "Node Feature Discovery's features.d, used with nodeFeatures: true",
        default=str(places.features_dir),
    )


def add_sources(parser: argparse.ArgumentParser) -> None:
    """Where ports are discovered; ``wiring.sources_of`` reads them."""
    variable = _variable("--device-dir")
    parser.add_argument(
        "--device-dir",
        metavar="DIR",
        action="append",
        help="also discover ttyUSB* and ttyACM* entries of DIR; may be repeated"
        f" (${variable}, separated by '{os.pathsep}')",
    )
    parser.add_argument(
        "--udev",
        action=argparse.BooleanOptionalAction,
        help=f"discover real USB devices (default on Linux; ${_variable('--udev')}=true|false)",
    )
    parser.set_defaults(direct=False)


def _add_link_dir(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--link-dir",
        metavar="DIR",
        help="directory for stable links to device nodes and the daemon's socket; must be the same"
        f" path on the host (default {Places().link_dir}; ${_variable('--link-dir')})",
    )


def _variable(flag: str) -> str:
    return "USBPLUGIN_" + flag.lstrip("-").upper().replace("-", "_")


def _default_udev(options: argparse.Namespace) -> bool:
    variable = _variable("--udev")
    value = os.environ.get(variable, "")
    known = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if value and value.lower() not in known:
        options.complain(f"{variable}={value}: expected true or false")
    return known.get(value.lower(), sys.platform == "linux")
