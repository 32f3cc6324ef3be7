"""Shell completion and manual pages: made from the parser, and understood by their readers."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from usbplugin.cli import build_parser, main
from usbplugin.commands.grammar import grammar_of
from usbplugin.commands.manual import page
from usbplugin.commands.shells import SHELLS

if TYPE_CHECKING:
    from pathlib import Path

PROGRAM = grammar_of(build_parser())
NAMES = [command.name for command in PROGRAM.commands]


def completed(*words: str, cwd: Path | None = None) -> list[str]:
    """What bash offers for the last of these words."""
    quoted = " ".join(f"'{word}'" for word in words)
    script = (
        f"{SHELLS['bash'](PROGRAM)}\n"
        "compopt() { :; }  # only readline may call the real one\n"
        f"COMP_WORDS=(usbplugin {quoted}); COMP_CWORD={len(words)}; _usbplugin\n"
        "printf '%s\\n' \"${COMPREPLY[@]}\"\n"
    )
    result = subprocess.run(
        ["bash", "-u", "-c", script], cwd=cwd, capture_output=True, text=True, check=True
    )
    assert result.stderr == ""
    return sorted(result.stdout.split())


def test_bash_completes_commands_and_their_flags() -> None:
    assert completed("") == sorted([*NAMES, *PROGRAM.flags])
    assert completed("ev") == ["events"]
    assert completed("events", "--fo") == ["--follow"]
    assert completed("doctor", "--fo") == []
    assert completed("nonsense", "") == []


def test_bash_completes_values(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("")
    (tmp_path / "config.d").mkdir()
    assert completed("serve", "--log-level", "w") == ["warning"]
    assert completed("serve", "--log-level", "=", "w") == ["warning"]
    assert completed("serve", "--log-format", "=") == ["json", "text"]
    assert completed("serve", "--config", "con", cwd=tmp_path) == ["config.d", "config.yaml"]
    assert completed("serve", "--device-dir", "con", cwd=tmp_path) == ["config.d"]
    assert completed("check", "con", cwd=tmp_path) == ["config.d", "config.yaml"]
    assert completed("serve", "--own-pod", "con", cwd=tmp_path) == []
    assert completed("completion", "") == ["--help", "-h", "bash", "fish", "zsh"]


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_has_every_command_and_flag(
    shell: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", shell]) == 0
    shown = capsys.readouterr().out
    for command in PROGRAM.commands:
        assert command.name in shown
        for flag in command.flags:
            assert (flag if shell != "fish" else f" {flag.lstrip('-')} ") in shown
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=shown, text=True, check=True, capture_output=True)


@pytest.mark.parametrize("name", ["", *NAMES])
def test_a_manual_page_has_every_flag_and_none_of_its_text_is_a_request(name: str) -> None:
    about = next((command for command in PROGRAM.commands if command.name == name), PROGRAM)
    source = page(PROGRAM, "1.0", name)
    known = (".TH ", ".SH ", ".TP", ".B", ".I", ".RI ", ".nf", ".fi")
    for line in source.splitlines():
        assert line.startswith(known) or not line.startswith((".", "'"))
    for flag in about.flags:
        assert flag.replace("-", "\\-") in source
    if shutil.which("groff"):
        command = ["groff", "-man", "-Tutf8", "-ww"]
        result = subprocess.run(command, input=source, text=True, check=True, capture_output=True)
        assert result.stderr == ""
        assert "usbplugin" in result.stdout


def test_man_of_an_unknown_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["man", "lits"])
    assert caught.value.code == 2
    assert "lits: expected one of serve, list" in capsys.readouterr().err
