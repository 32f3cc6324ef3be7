from __future__ import annotations

import ast
import configparser
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

import usbplugin
from usbplugin.config import parse, warnings
from usbplugin.inventory import Health

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def test_what_is_generated_is_current(tmp_path: Path) -> None:
    subprocess.run([sys.executable, ROOT / "docs/generate.py", tmp_path], check=True)
    schemas = ("deploy/config.schema.json", "deploy/helm/usbplugin/values.schema.json")
    for path in (*schemas, "docs/configuration.md"):
        assert (tmp_path / path).read_text() == (ROOT / path).read_text(), "run make docs"


def test_every_key_of_the_schema_is_described() -> None:
    schema = json.loads((ROOT / "deploy/config.schema.json").read_text())
    structs = [d for d in schema["$defs"].values() if d.get("type") == "object"]
    assert all("description" in p for d in structs for p in d["properties"].values())
    assert all(d["additionalProperties"] is False for d in structs)


def blocks(language: str) -> list[tuple[str, str]]:
    return [
        (name_of(path), block)
        for path in PAGES
        for block in re.findall(
            rf"^```{language}\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL
        )
    ]


def test_every_configuration_shown_is_valid() -> None:
    shown = [
        text
        for _, text in blocks("yaml")
        if isinstance(document := yaml.safe_load(text), dict)
        and isinstance(document.get("resources"), list)
    ]
    assert len(shown) >= 2
    for text in shown:
        assert warnings(parse(text.encode())) == []


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text()):
        if not re.match(r"[a-z]+:", target):
            assert (page.parent / target).exists(), f"{name_of(page)} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_paths_of_this_repository_exist(page: Path) -> None:
    # A resource's name, usbplugin/serial, looks like one of the package's, but for the ending.
    folders = "benchmarks|deploy|docs|protos|tests|udev-rules"
    named = rf"`((?:{folders})/[\w./-]*|usbplugin/[\w/]*(?:\.py|/))`"
    for path in re.findall(named, page.read_text()):
        assert (ROOT / path).exists(), f"{name_of(page)} names {path}"


def first_cells(page: Path, heading: str) -> list[str]:
    """The first cell of each row of the table below ``heading``."""
    _, _, rest = page.read_text().partition(f"\n{heading}\n")
    table = re.search(r"^\|.*\n\|[-|]+\n((?:\|.*\n)+)", rest, re.MULTILINE)
    assert table, f"{page.name} has no table below {heading}"
    return [row.split("|")[1].strip() for row in table[1].splitlines()]


def test_the_table_of_rooms_is_the_tree() -> None:
    package = Path(usbplugin.__file__).parent
    tree = {f"{path.name}/" for path in package.iterdir() if (path / "__init__.py").exists()}
    tree |= {path.name for path in package.glob("[!_]*.py")}
    cells = first_cells(ROOT / "docs/architecture.md", "## One-way flow")
    assert {name for cell in cells for name in re.findall("`([^`]+)`", cell)} == tree
    assert len([name for name in tree if name.endswith(".py")]) <= 3


def test_the_table_of_rooms_is_the_layers_of_the_contracts() -> None:
    contracts = configparser.ConfigParser()
    contracts.read(ROOT / ".importlinter")
    layers = re.findall(r"\w+", contracts["importlinter:contract:flow"]["layers"])
    cells = first_cells(ROOT / "docs/architecture.md", "## One-way flow")
    assert [name for cell in cells for name in re.findall(r"`(\w+)(?:/|\.py)`", cell)] == layers


@pytest.mark.parametrize(
    ("page", "heading", "unlisted"),
    [
        # Settling ports are no devices yet, and so have no health.
        ("architecture.md", "## Health", {"settling"}),
        ("operations.md", "## A device is Unhealthy", {"ready"}),
    ],
)
def test_tables_of_states_have_every_health(page: str, heading: str, unlisted: set[str]) -> None:
    listed = set(first_cells(ROOT / "docs" / page, heading))
    assert listed ^ {health.value for health in Health} == unlisted


REFUSALS = ("admission.py", "starting.py", "links.py", "state.py")
"""The modules of custody that say why a container must not start."""
OF_THE_KUBELET = {"endpoint ... has been stopped"}


def refusals(module: Path) -> set[str]:
    """The texts that functions return, with dots for what is filled in."""
    texts = {
        "".join(
            f"{{{ast.unparse(part.value)}}}"
            if isinstance(part, ast.FormattedValue)
            else str(getattr(part, "value", ""))
            for part in node.value.values
        )
        for node in ast.walk(ast.parse(module.read_text()))
        if isinstance(node, ast.Return) and isinstance(node.value, ast.JoinedStr)
    }
    held_back = [health.value for health in Health if not health.may_start]
    spelt_out = {
        text.replace("{device.health.value}", health) for text in texts for health in held_back
    }
    plain = {re.sub(r"\{[^}]*\}", "...", text) for text in spelt_out}
    return {text for text in plain if re.search("[a-z]", text)}


def test_the_table_of_refused_starts_has_them_all() -> None:
    heading = "## A container is not started: CreateContainerConfigError"
    cells = first_cells(ROOT / "docs/operations.md", heading)
    listed = {text for cell in cells for text in re.findall("`([^`]+)`", cell)} - OF_THE_KUBELET
    folder = Path(usbplugin.__file__).parent / "custody"
    said = {text for name in REFUSALS for text in refusals(folder / name)}
    told = {
        text: {one for one in said if re.search(".*".join(map(re.escape, text.split("..."))), one)}
        for text in listed
    }
    assert [text for text, ones in told.items() if not ones] == [], "nothing says that any more"
    assert said - set().union(*told.values()) == set(), "no row says what to do"


def test_every_make_target_shown_exists() -> None:
    known = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for name, text in blocks("sh"):
        for target in re.findall(r"^make ([a-z-]+)", text, re.MULTILINE):
            assert target in known, f"{name} shows make {target}"
