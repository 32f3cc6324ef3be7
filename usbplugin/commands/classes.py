"""``usbplugin classes``: the DeviceClasses by which pods claim devices, ready for kubectl."""

from __future__ import annotations

from typing import TYPE_CHECKING

from usbplugin.commands import flags
from usbplugin.commands.command import Command
from usbplugin.errors import ConfigError

if TYPE_CHECKING:
    import argparse


def _add_flags(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", nargs="?", metavar="FILE", help="the file (default: --config)")
    flags.add_config(parser)
    flags.add_front(parser)


def _run(options: argparse.Namespace) -> int:
    import msgspec
    import yaml

    from usbplugin.commands.wiring import config_of, front_of
    from usbplugin.config import Front
    from usbplugin.dra.classes import device_class
    from usbplugin.dra.names import class_name

    options.config = options.file or options.config
    config = front_of(options)(config_of(options))
    names = [r.name for r in config.resources if config.front_of(r) is Front.DRA]
    if not names:
        raise ConfigError(
            f"{options.config or 'the defaults'}: no resource has front: dra; print the classes all"
            " the same with --front dra"
        )
    by_class: dict[str, str] = {}
    for name in names:
        if (other := by_class.setdefault(class_name(name), name)) != name:
            raise ConfigError(
                f"{other} and {name} would both have the class {class_name(name)}: rename one"
            )
    classes = [msgspec.to_builtins(device_class(name)) for name in names]
    print(yaml.safe_dump_all(classes, explicit_start=True, sort_keys=True, width=1000), end="")
    return 0


COMMAND = Command(
    "classes", "print the DeviceClasses of resources with front: dra", _add_flags, _run
)
