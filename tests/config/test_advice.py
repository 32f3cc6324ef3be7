"""What can never work is refused, and what probably was not meant is warned of."""

from __future__ import annotations

import pytest

from usbplugin.config import Config, notes, parse, warnings
from usbplugin.errors import ConfigError


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text.encode())
    return str(caught.value)


def selecting(**conditions: str) -> str:
    inner = ", ".join(f'{key}: "{value}"' for key, value in conditions.items())
    return f"resources: [{{name: a/b, selectors: [{{{inner}}}]}}]"


@pytest.mark.parametrize(
    "text",
    [
        "nodes: ['/dev/serial/by-id/*']",
        "nodes: [/dev/serial/by-path/x]",
        selecting(node="/dev/serial/by-id/usb-Maker_Stick_ZB1-if00"),
        selecting(node="/dev/serial/by-path/pci-0000:00:14.0-usb-0:1:1.0-port0"),
    ],
)
def test_udevs_links_never_match_and_what_does_is_told(text: str) -> None:
    message = refusal(text)
    assert "links are not looked at" in message
    assert "list" in message


def test_the_serial_in_a_link_is_named() -> None:
    message = refusal(selecting(node="/dev/serial/by-id/usb-Maker_Stick_ZB1-if00"))
    assert "use serial (here probably 'ZB1'), vendor and product" in message


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (selecting(node="ttyUSB*"), "such as /dev/ttyUSB*, found 'ttyUSB*'"),
        (selecting(node="/dev/ttyUSB["), "expected a ']' for each '['"),
        (selecting(driver="[abc"), "expected a ']' for each '['"),
        (selecting(vendor="[0403"), "expected a ']' for each '['"),
        (selecting(vendor="?????"), "expected a glob that matches four hexadecimal digits"),
        (selecting(vendor="0-03"), "expected four hexadecimal digits"),
        (selecting(vendor="04]3"), "expected four hexadecimal digits"),
        (selecting(vendor="04?"), "expected a glob that matches four hexadecimal digits"),
        ("nodes: ['/dev/tty[']", "expected a ']' for each '['"),
        ("nodes: [/dev/bus/usb/001]", "without a further slash"),
    ],
)
def test_a_glob_that_cannot_match_is_refused(text: str, problem: str) -> None:
    assert problem in refusal(text)


@pytest.mark.parametrize(
    "text",
    [
        selecting(node="/dev/ttyUSB[0-3]"),
        selecting(node="*/ttyACM0"),
        selecting(vendor="04[0-9a-f]3"),
        selecting(vendor="*"),
        selecting(serial="[abc"),
        selecting(location="0000:00:14.0-1.*"),
        selecting(location="*-1.2"),
        "nodes: [/dev/ttyUSB*, '/dev/ttyXR[0-9]*', /dev/ttyrpc0]",
    ],
)
def test_one_that_can_is_not(text: str) -> None:
    assert warnings(parse(text.encode())) == []


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        ("nodes: [/dev/zigbee]", "nodes[0]: /dev/zigbee names no tty of the kernel's"),
        (
            "nodes: ['/dev/ttyS*']",
            "nodes[0]: /dev/ttyS* names consoles or serial ports of the main",
        ),
        ("nodes: [/dev/ttyAMA0]", "nodes[0]: /dev/ttyAMA0 names consoles or serial ports of the"),
        ("nodes: [/dev/tty1]", "nodes[0]: /dev/tty1 names consoles or serial ports of"),
        ("nodes: []", "nodes: without a glob no USB device is found"),
        (selecting(node="/dev/zigbee"), "resources[0].selectors[0].node: /dev/zigbee names no tty"),
        (selecting(node="/dev/ttyS0"), "resources[0].selectors[0].node: /dev/ttyS0 is not among"),
        (selecting(location="1-1.2"), "resources[0].selectors[0].location: 1-1.2 lacks the host"),
    ],
)
def test_a_value_that_hardly_matches_is_warned_of(text: str, warning: str) -> None:
    (found,) = warnings(parse(text.encode()))
    assert found.startswith(warning)


@pytest.mark.parametrize("path", ["/dev/modem", "/dev/{device}"])
def test_the_ports_of_a_usb_device_need_paths_of_their_own(path: str) -> None:
    text = f"resources: [{{name: a/b, unit: usb-device, containerPath: '{path}'}}]"
    assert "each port of a usb-device needs a path of its own" in refusal(text)
    parse(text.replace(path, path + "-{port}").encode())


@pytest.mark.parametrize(
    ("first", "second", "collides"),
    [
        ("/dev/radio", "/dev/radio", True),
        ("/dev/ttyUSB0", "/dev/{name}", True),
        ("/dev/{name}", "/dev/ttyACM7", True),
        ("/dev/gps{device}", "/dev/gps1", True),
        ("/dev/gps{device}", "/dev/gps{port}", True),
        ("/dev/{name}", "/dev/{name}", False),
        ("/dev/{name}", "/dev/radio", False),
        ("/dev/gps{device}", "/dev/modem{device}", False),
        ("/dev/a/{name}", "/dev/ttyUSB0", False),
    ],
)
def test_one_path_for_two_resources(first: str, second: str, *, collides: bool) -> None:
    text = f"""
resources:
- {{name: a/b, selectors: [{{vendor: "10c4"}}], containerPath: "{first}"}}
- {{name: a/c, selectors: [{{vendor: "0658"}}], containerPath: "{second}"}}
"""
    found = warnings(parse(text.encode()))
    assert len(found) == collides
    if found:
        assert found[0].startswith("resources[1].containerPath: devices of a/b and a/c may both be")


def test_names_whose_environment_variables_are_the_same() -> None:
    text = """
resources:
- {name: x.io/gps-a, selectors: [{serial: A}]}
- {name: x.io/gps_a, selectors: [{serial: B}]}
"""
    (found,) = warnings(parse(text.encode()))
    assert "x.io/gps-a and x.io/gps_a have the same environment variables (X_IO_GPS_A_" in found


@pytest.mark.parametrize(
    ("earlier", "later", "takes_all"),
    [
        ("", "{vendor: '10c4'}", True),
        ("{vendor: '10c4'}", "{vendor: '10C4', product: ea60}", True),
        ("{vendor: '10*'}", "{vendor: '10c4'}", True),
        ("{vendor: '10c4'}, {vendor: '0403'}", "{vendor: '0403', serial: A}, {vendor: 10c4}", True),
        ("{vendor: '10c4', serial: A}", "{vendor: '10c4'}", False),
        ("{serial: '[AB]'}", "{serial: '[BC]'}", False),
        ("{vendor: '10c4'}", "", False),
        ("{interface: 1}", "{interface: 1, vendor: '10c4'}", True),
        ("{interface: 1}", "{interface: 2}", False),
    ],
)
def test_a_resource_that_an_earlier_one_leaves_nothing(
    earlier: str, later: str, *, takes_all: bool
) -> None:
    text = f"""
resources:
- {{name: a/b{earlier and f", selectors: [{earlier}]"}}}
- {{name: a/c{later and f", selectors: [{later}]"}}}
"""
    found = warnings(parse(text.encode()))
    assert len(found) == takes_all
    assert all("a/c never gets a device, because a/b above it" in line for line in found)


def test_two_resources_may_together_leave_nothing() -> None:
    text = b"""
resources:
- {name: a/b, selectors: [{serial: A}]}
- {name: a/c, selectors: [{serial: B}]}
- {name: a/d, selectors: [{serial: A}, {serial: B}]}
"""
    (found,) = warnings(parse(text))
    assert "a/d never gets a device, because a/b and a/c above it match all that it sel" in found


def test_a_selector_that_an_earlier_resource_leaves_nothing_is_named() -> None:
    text = b"""
resources:
- {name: a/b, selectors: [{serial: A}]}
- {name: a/c, selectors: [{serial: B}, {serial: A}]}
"""
    (found,) = warnings(parse(text))
    assert found == (
        "resources[1].selectors[1]: it selects nothing, because a/b above it matches all that it"
        " does"
    )


@pytest.mark.parametrize("nothing", ["[]", "[{}]", "[{serial: A}, {}]"])
def test_selectors_without_a_condition_do_not_take_every_port(nothing: str) -> None:
    message = refusal(f"resources: [{{name: a/b, selectors: {nothing}}}]")
    assert "resources[0].selectors" in message
    assert message.endswith(": leave selectors out for a resource of every port")


@pytest.mark.parametrize(
    ("resource", "is_noted"),
    [
        ("selectors: [{vendor: '10c4'}], containerPath: /dev/radio", True),
        ("selectors: [{serial: 'A*'}], containerPath: /dev/radio", True),
        ("containerPath: '/dev/modem{port}'", True),
        ("selectors: [{serial: A}], containerPath: /dev/radio", False),
        ("selectors: [{location: '0000:00:14.0-1.2'}], containerPath: /dev/radio", False),
        ("containerPath: '/dev/radio{device}'", False),
        ("identity: auto", False),
    ],
)
def test_a_path_for_one_device_where_there_may_be_several_is_noted(
    resource: str, *, is_noted: bool
) -> None:
    found = notes(parse(f"resources: [{{name: a/b, {resource}}}]".encode()))
    assert len(found) == is_noted
    assert all("one that asks for two is refused" in line for line in found)


def test_the_defaults_need_no_advice() -> None:
    assert warnings(Config()) == notes(Config()) == []
