from __future__ import annotations

import re
import shutil
import subprocess

import pytest

from tests.deploy.tools import ROOT

RULES = ROOT / "udev-rules" / "95-usbplugin.rules"
README = ROOT / "udev-rules" / "README.md"
# man 7 udev: a match or an assignment, as this file uses them.
_TERM = re.compile(
    r"(ACTION|SUBSYSTEMS?|KERNEL|TEST|ENV\{[.\w]+\}|ATTRS?\{[\w/]+\}|GOTO|LABEL|GROUP|MODE|SYMLINK)"
    r'(==|!=|=|\+=)"([^"]*)"'
)
_MATCHES = {"ACTION", "SUBSYSTEM", "SUBSYSTEMS", "KERNEL", "TEST"}
_ASSIGNMENTS = {"GOTO", "LABEL", "GROUP", "MODE", "SYMLINK"}


def rules() -> list[list[tuple[str, str, str]]]:
    found = []
    for line in RULES.read_text("ascii").splitlines():
        if line and not line.startswith("#"):
            terms = line.split(", ")
            matched = [_TERM.fullmatch(term) for term in terms]
            assert all(matched), line
            found.append([(m[1], m[2], m[3]) for m in matched if m])
    return found


def test_every_key_has_an_operator_that_it_takes() -> None:
    for rule in rules():
        for key, operator, _ in rule:
            if key in _MATCHES:
                assert operator in {"==", "!="}
            if key in _ASSIGNMENTS:
                assert operator in {"=", "+="}


def test_every_goto_leads_forward_to_a_label() -> None:
    labels = {
        value: line for line, rule in enumerate(rules()) for key, _, value in rule if key == "LABEL"
    }
    jumps = [
        (value, line)
        for line, rule in enumerate(rules())
        for key, _, value in rule
        if key == "GOTO"
    ]
    assert jumps
    for label, line in jumps:
        assert labels[label] > line


def test_it_comes_after_what_it_relies_on_and_before_systemd() -> None:
    others = [
        "50-udev-default.rules",
        "60-serial.rules",
        "85-brltty.rules",
        "90-brltty-device.rules",
    ]
    assert max(others) < RULES.name < "99-systemd.rules"
    text = README.read_text("utf-8")
    assert RULES.name in text


def test_modems_are_left_to_whoever_wants_them() -> None:
    text = RULES.read_text("ascii")
    for vendor in ("2c7c", "1e0e", "12d1", "1199"):  # Quectel, SIMCom, Huawei, Sierra
        assert vendor not in text


def test_udev_itself_finds_no_fault() -> None:
    udevadm = shutil.which("udevadm") or "/usr/bin/udevadm"
    try:
        done = subprocess.run(
            [udevadm, "verify", RULES], capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        pytest.skip("udevadm is not here")
    if "Unknown command verb" in done.stderr:
        pytest.skip("udevadm verify came with systemd 254")
    assert done.returncode == 0, done.stdout + done.stderr
