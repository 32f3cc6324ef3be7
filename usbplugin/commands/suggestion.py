"""What to write into a configuration and a pod for a USB device that is plugged in. Pure.

A resource has to select just that device, and go on doing so when it is plugged in again: by its
serial number where that is worth the name, else by the socket. What cannot be had is said in the
result itself, so that it is still there when the text has been pasted.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from usbplugin.custody.container import variable_prefix
from usbplugin.discovery.identity import is_usable_serial, place_of, serial_of
from usbplugin.inventory import Selector, first_match

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from usbplugin.discovery import Port
    from usbplugin.inventory import ResourceRule

_LONGEST_NAME = 40
_SHORTEST_NAME = 2  # CDI's classes have at least two characters, the first of them a letter
_DOMAIN = "usbplugin"

Key = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Suggestion:
    """A resource for one USB device, and what is to be said about it."""

    name: str
    """Of the pod, and of the resource within its domain."""
    ports: tuple[Port, ...]
    """All ports of the device, in interface order."""
    selector: Selector
    by_location: bool
    """Whether it means the socket, although the device has a serial number of its own."""
    taken_by: str
    """The resource that has the device now; empty if none has."""
    warnings: tuple[str, ...]

    @property
    def resource(self) -> str:
        """What pods request."""
        return f"{_DOMAIN}/{self.name}"

    @property
    def container_path(self) -> str:
        """Where its node is in a container."""
        # No device node of the kernel's begins like this, whatever a product calls itself.
        return f"/dev/usb-{self.name}" + ("-{port}" if len(self.ports) > 1 else "")


def by_device(ports: Iterable[Port]) -> dict[Key, tuple[Port, ...]]:
    """The ports of each USB device; one without descriptors stands for itself."""
    found: dict[Key, list[Port]] = {}
    for port in ports:
        key: Key = (port.origin, port.name)
        if port.usb and place_of(port):
            key = (place_of(port), port.usb.vendor_id, port.usb.product_id, port.usb.serial)
        found.setdefault(key, []).append(port)
    return {key: tuple(sorted(group, key=_position)) for key, group in found.items()}


def suggest(
    wanted: Iterable[Sequence[Port]],
    present: Collection[Port],
    rules: Sequence[ResourceRule],
    names_taken: Collection[str] = (),
) -> list[Suggestion]:
    """A suggestion for each of the devices whose ports are ``wanted``.

    Args:
        wanted: The ports of each device.
        present: All ports that are here, to tell what else would be selected.
        rules: The resources that are there now.
        names_taken: Names, without their domain, that other suggestions have.
    """
    taken = {*names_taken, *(rule.name.partition("/")[2] for rule in rules)}
    found = []
    for ports in wanted:
        name = _free(_name(ports[0]), taken)
        taken.add(name)
        found.append(_suggestion(name, tuple(ports), present, rules))
    return found


def configuration(suggestions: Sequence[Suggestion], *, file: str | None, default: str) -> str:
    """The resources in YAML, with comments that say where they go and what to know.

    Args:
        suggestions: What to write.
        file: The configuration that they are to be added to; None if there is none yet.
        default: The resource that all ports belong to without a configuration.
    """
    lines = []
    if file is None:
        lines.append("# The configuration: a whole file.")
    else:
        lines += [
            f"# For {json.dumps(file, ensure_ascii=False)[1:-1]}: add this at the top of its",
            "# resources, because the first resource that matches takes the device.",
        ]
    lines.append("resources:")
    for suggestion in suggestions:
        lines += _resource(suggestion)
    if file is None:
        lines += ["  # All other ports, as without a configuration.", f"  - name: {default}"]
    return "\n".join(lines)


def pod(suggestion: Suggestion, group: int | None) -> str:
    """A pod that uses the device, in YAML.

    Args:
        suggestion: The resource that it requests.
        group: The ID of the group that may open the node; None if only root may.
    """
    variable = f"{variable_prefix(suggestion.resource)}_DEVICES"
    path = suggestion.container_path
    paths = [path.replace("{port}", str(number)) for number in range(len(suggestion.ports))]
    lines = [
        "apiVersion: v1",
        "kind: Pod",
        "metadata:",
        f"  name: {suggestion.name}",
        "spec:",
        "  automountServiceAccountToken: false",
    ]
    if group is not None:
        lines += [
            "  securityContext:",
            f"    supplementalGroups: [{group}] # the node's group: for an image without root",
        ]
    lines += [
        "  containers:",
        "    - name: app",
        "      image: busybox # put your image here, and leave out the command",
        f'      command: [sh, -c, "ls -l {" ".join(paths)}; exec sleep infinity"]',
        f"      # The path is also in ${variable}.",
        "      resources:",
        "        limits:",
        f"          {suggestion.resource}: 1",
    ]
    return "\n".join(lines)


def _suggestion(
    name: str, ports: tuple[Port, ...], present: Collection[Port], rules: Sequence[ResourceRule]
) -> Suggestion:
    others = [port for port in present if port not in ports]
    selector, by_location, warnings = _selector(ports[0], others)
    also = sorted(port.node for port in others if selector.matches(port))
    if also:
        warnings.append(f"it also selects {', '.join(also)}, which nothing tells from it")
    warnings += [f"not usable now: {port.fault}" for port in ports if port.fault]
    resources = Counter(rule.name for port in ports if (rule := first_match(rules, port)))
    taken_by = ", ".join(resources)
    return Suggestion(name, ports, selector, by_location, taken_by, tuple(warnings))


def _selector(port: Port, others: Iterable[Port]) -> tuple[Selector, bool, list[str]]:
    """What selects just this device, if anything does; whether by place; what to warn of."""
    usb = port.usb
    if usb is None:
        return (
            Selector(node=_exactly(f"/dev/{port.name}")),
            False,
            ["it has no USB descriptors: whatever has this name is selected"],
        )
    model = Selector(vendor=usb.vendor_id, product=usb.product_id)
    serial = _exactly(usb.serial)
    location = _exactly(usb.location) or None
    socket = (
        "so this selects the socket: any stick of this model in it, and this one nowhere else"
        if location
        else "and hardware does not decide on its place, so this selects all sticks of its kind"
    )
    if not is_usable_serial(usb.serial):
        by_place = Selector(model.vendor, model.product, location=location)
        why = f"its serial number {usb.serial!r} is on many sticks"
        why = why if usb.serial else "it has no serial number"
        return by_place, False, [f"{why}, {socket}"]
    twins = sorted(other.node for other in others if serial_of(other) == serial_of(port))
    if not twins:
        return Selector(model.vendor, model.product, serial), False, []
    return (
        Selector(model.vendor, model.product, serial, location=location),
        location is not None,
        [f"{', '.join(twins)} has the same serial number, {socket}"],
    )


def _resource(suggestion: Suggestion) -> list[str]:
    usb = suggestion.ports[0].usb
    names = [text for text in (usb.manufacturer, usb.product) if text] if usb else []
    nodes = ", ".join(port.node for port in suggestion.ports)
    place = f", plugged into {usb.location}" if usb and usb.location else ""
    lines = [f"  # {' '.join(names) or 'A port'}: now {nodes}{place}"]
    if suggestion.taken_by:
        lines.append(f"  # Now a device of {suggestion.taken_by}.")
    lines += [f"  # WARNING: {warning}" for warning in suggestion.warnings]
    lines += [
        f"  - name: {suggestion.resource}",
        "    selectors:",
        f"      - {{{', '.join(_keys(suggestion.selector))}}}",
    ]
    if suggestion.by_location:
        lines.append("    identity: location")
    if len(suggestion.ports) > 1:
        lines += _whole(suggestion.ports)
    return [*lines, f"    containerPath: {json.dumps(suggestion.container_path)}"]


def _whole(ports: Sequence[Port]) -> list[str]:
    """How several ports become one device, and how not."""
    interfaces = [port.usb.interface for port in ports if port.usb]
    lines = ["    unit: usb-device # all its ports go to one container"]
    if len(set(interfaces)) == len(ports):
        each = (f"{number} is {port.node}" for port, number in zip(ports, interfaces, strict=True))
        lines += [
            "    # For one port of it alone: leave out unit and {port}, and add its interface to",
            f"    # the selector ({', '.join(each)}).",
        ]
    return lines


def _keys(selector: Selector) -> list[str]:
    values = {
        key: getattr(selector, key) for key in ("vendor", "product", "serial", "location", "node")
    }
    # JSON's strings are YAML's, too; all of ours are printable.
    return [
        f"{key}: {json.dumps(value, ensure_ascii=False)}"
        for key, value in values.items()
        if value is not None
    ]


def _exactly(text: str) -> str:
    """A glob that matches this text and nothing else."""
    return re.sub(r"([*?\[])", r"[\1]", text)


def _name(port: Port) -> str:
    """A name that may be part of a resource's, and a pod's, out of what a product is called."""
    usb = port.usb
    name = re.sub(r"[^a-z0-9]+", "-", (usb.product if usb else port.name).lower())
    name = name.strip("-")[:_LONGEST_NAME].strip("-")
    if not name and usb:
        name = f"serial-{usb.vendor_id}-{usb.product_id}"
    return name if len(name) >= _SHORTEST_NAME and name[0].isalpha() else f"serial-{name}"


def _free(name: str, taken: Collection[str]) -> str:
    number = 1
    free = name
    while free in taken:
        number += 1
        free = f"{name}-{number}"
    return free


def _position(port: Port) -> tuple[tuple[int, int], str]:
    return port.position, port.name
