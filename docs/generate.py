"""Write what can be derived from the configuration's types.

Usage: ``python docs/generate.py [ROOT]``. Writes ``deploy/config.schema.json``, what the Helm
chart's schema says of ``config``, and the reference part of ``docs/configuration.md`` below ROOT
(default: this checkout). A test compares.
"""

from __future__ import annotations

import ast
import inspect
import json
import sys
import textwrap
from enum import Enum
from pathlib import Path

import msgspec

from usbplugin.config import Config, Flapping, ResourceConfig
from usbplugin.inventory import Selector

Part = dict[str, object]
"""A part of a JSON Schema."""

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- generated: make docs -->", "<!-- end of what is generated -->"
SCHEMA = "deploy/config.schema.json"
CHART_SCHEMA = "deploy/helm/usbplugin/values.schema.json"
PAGE = "docs/configuration.md"

SECTIONS = (
    ("The file", Config),
    ("`resources[]`", ResourceConfig),
    ("`resources[].selectors[]`", Selector),
    ("`flapping`", Flapping),
)
_DIGIT = r"([0-9A-Fa-f?]|\[!?[0-9A-Fa-f-]+\])"
_CLOSED = r"^([^\[]|\[!?\]?[^\]]*\])*$"
_ID: Part = {
    "allOf": [{"pattern": rf"^\**({_DIGIT}\**){{0,4}}$"}, {"pattern": rf"\*|^{_DIGIT}{{4}}$"}]
}
RULES: dict[type[msgspec.Struct], dict[str, Part]] = {
    Config: {
        "nodes": {"items": {"type": "string", "pattern": r"^/dev/([^/\[]|\[!?\]?[^/\]]*\])+$"}},
        "resources": {"minItems": 1},
    },
    ResourceConfig: {
        "name": {
            "pattern": r"^[a-z0-9]([a-z0-9.-]{0,242}[a-z0-9])?/"
            r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?$",
            "not": {"pattern": r"^requests\.|kubernetes\.io/|\.\.[^/]*/|-\.[^/]*/|\.-[^/]*/"},
        },
        "selectors": {"minItems": 1},
        "containerPath": {
            "pattern": r"^/([^,{}\x00-\x1f\x7f]|\{\{|\}\}|\{(name|device|port)\})*$",
            "not": {"pattern": r"(^|/)\.\.(/|$)|/$"},
        },
    },
    Selector: {
        "vendor": _ID,
        "product": _ID,
        "driver": {"pattern": _CLOSED},
        "interface": {"minimum": 0, "maximum": 255},
        "location": {"pattern": _CLOSED},
        "node": {
            "allOf": [{"pattern": r"^[/*?\[]"}, {"pattern": _CLOSED}],
            "not": {"pattern": r"^/dev/serial/by-(id|path)(/|$)"},
        },
    },
    Flapping: {},
}
"""What the plugin refuses beyond types, in the regular expressions that JavaScript and Go share."""
CDI: Part = {
    "name": {"pattern": r"^[A-Za-z][^/]+/[A-Za-z][^/]+$"},
    "byIdLinks": {"const": False},
    "containerPath": {"not": {"pattern": r"\{device\}"}},
}
"""What a resource with CDI must be like."""
EXAMPLES = {
    "nodes": '["/dev/ttyUSB*", "/dev/ttyXR*"]',
    "resources": "see below",
    "retention": "30m",
    "flapping": "{times: 10}",
    "registration": "watcher",
    "cdi": "true",
    "front": "dra",
    "evictAfter": "0s",
    "nodeFeatures": "true",
    "name": "usbplugin/zigbee",
    "selectors": '[{vendor: "10c4", product: "ea60"}]',
    "unit": "usb-device",
    "identity": "location",
    "permissions": "r",
    "containerPath": "/dev/zigbee",
    "byIdLinks": "true",
    "preStart": "false",
    "shares": "3",
    "settle": "10s",
    "times": "10",
    "window": "2m",
    "quiet": "1m",
}


def attribute_docs(struct: type[msgspec.Struct]) -> dict[str, str]:
    """The string after each attribute of a class, by the attribute's name."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(struct))).body
    assert isinstance(body, ast.ClassDef)
    docs = {}
    for attribute, text in zip(body.body, body.body[1:], strict=False):
        if (
            isinstance(attribute, ast.AnnAssign)
            and isinstance(attribute.target, ast.Name)
            and isinstance(text, ast.Expr)
            and isinstance(text.value, ast.Constant)
        ):
            docs[attribute.target.id] = " ".join(str(text.value.value).split())
    return docs


def schema() -> str:
    """The JSON Schema that editors can check a configuration with."""
    document = msgspec.json.schema(Config)
    document["$schema"] = "https://json-schema.org/draft/2020-12/schema"
    document["title"] = "usbplugin configuration"
    for _, struct in SECTIONS:
        properties = document["$defs"][struct.__name__]["properties"]
        for field in msgspec.structs.fields(struct):
            properties[field.encode_name]["description"] = _plain(
                attribute_docs(struct)[field.name]
            )
            properties[field.encode_name] |= RULES[struct].get(field.encode_name, {})
    definitions = document["$defs"]
    definitions["Selector"]["minProperties"] = 1
    # It stands for every port, which nobody can write as an empty list.
    del definitions["ResourceConfig"]["properties"]["selectors"]["default"]
    definitions["ResourceConfig"]["allOf"] = [
        _if({"unit": {"const": "usb-device"}}, {"containerPath": {"pattern": r"\{(name|port)\}"}}),
        _if({"cdi": {"const": True}}, CDI),
    ]
    unless_off = _if({"cdi": {"not": {"const": False}}}, CDI, anyway=True)
    definitions["Config"]["allOf"] = [
        _if({"cdi": {"const": True}}, {"resources": {"items": unless_off}})
    ]
    return json.dumps(_without_null(document), indent=2) + "\n"


def _if(condition: Part, rules: Part, *, anyway: bool = False) -> Part:
    """Rules for some properties if others are as in ``condition``; ``anyway``: or not there."""
    required = {} if anyway else {"required": list(condition)}
    return {"if": {"properties": condition} | required, "then": {"properties": rules}}


def chart_schema() -> str:
    """The schema of the chart's values, with the configuration's in it: Helm follows no links."""
    document = json.loads((ROOT / CHART_SCHEMA).read_text())
    document["$defs"] = json.loads(schema())["$defs"]
    document["properties"]["config"] = {
        "description": "The configuration; usbplugin check looks at more than types.",
        "allOf": [{"$ref": "#/$defs/Config"}],
    }
    return json.dumps(document, indent=2) + "\n"


def _without_null(part: object) -> object:
    """A part of a schema, with null neither as a value nor as a default: a file may have none."""
    if isinstance(part, list):
        return [_without_null(item) for item in part]
    if not isinstance(part, dict):
        return part
    part = {key: _without_null(value) for key, value in part.items() if value is not None}
    options = [option for option in part.pop("anyOf", []) if option != {"type": "null"}]
    match options:
        case []:
            return part
        case [only]:
            return only | part
        case _:
            return part | {"anyOf": options}


def reference() -> str:
    """A table for each kind of mapping in the file."""
    lines = []
    for title, struct in SECTIONS:
        docs = attribute_docs(struct)
        lines += [
            "",
            f"### {title}",
            "",
            "| key | type | default | example | |",
            "|---|---|---|---|---|",
        ]
        for field in msgspec.structs.fields(struct):
            cells = (
                f"`{field.encode_name}`",
                _type(struct, field.encode_name),
                _default(field.default),
                f"`{_example(struct, field.encode_name)}`",
                docs[field.name].replace("``", "`"),
            )
            lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines) + "\n"


def _example(struct: type[msgspec.Struct], key: str) -> str:
    found = msgspec.json.schema(struct)["$defs"][struct.__name__]["properties"][key]
    for option in found.get("anyOf", (found,)):
        if examples := option.get("examples"):
            return json.dumps(examples[0])
    return EXAMPLES[key]


def _plain(text: str) -> str:
    return text.replace("``", "")


def _type(struct: type[msgspec.Struct], key: str) -> str:
    found = msgspec.json.schema(struct)["$defs"][struct.__name__]["properties"][key]
    return _type_of(found, msgspec.json.schema(struct)["$defs"])


def _type_of(found: dict[str, object], definitions: dict[str, dict[str, object]]) -> str:
    match found:
        case {"anyOf": list(options)}:
            return " or ".join(_type_of(o, definitions) for o in options if o != {"type": "null"})
        case {"$ref": str(reference)}:
            target = definitions[reference.rpartition("/")[2]]
            if isinstance(values := target.get("enum"), list):
                return ", ".join(f"`{value}`" for value in sorted(values))
            return "mapping"
        case {"type": "array", "items": dict(items)}:
            return f"list of {_type_of(items, definitions)}s"
        case {"type": "string", "pattern": str(pattern)} if "ms" in pattern:
            return "duration"
        case {"type": "string", "pattern": str(pattern)}:
            return f"`{pattern.strip('^$()')}`"
        case {"type": "integer", "minimum": least, "maximum": most}:
            return f"{least} to {most}"
        case {"type": kind}:
            return str(kind)
    raise AssertionError(found)


def _default(value: object) -> str:
    if value is msgspec.NODEFAULT:
        return "required"
    if value is None or value == ():
        return ""
    if isinstance(value, Enum):
        return f"`{value.value}`"
    if isinstance(value, bool):
        return f"`{str(value).lower()}`"
    if isinstance(value, msgspec.Struct):
        return ""
    if isinstance(value, tuple):
        if isinstance(value[0], msgspec.Struct):
            return "`[{name: usbplugin/serial}]`"
        return f"`{json.dumps(value)}`"
    return f"`{value}`"


def generate(root: Path, page: str) -> dict[Path, str]:
    """What is to be written, by path, given the present text of the page."""
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    return {
        root / SCHEMA: schema(),
        root / CHART_SCHEMA: chart_schema(),
        root / PAGE: f"{before}{BEGIN}\n{reference()}\n{END}{after}",
    }


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT
    for path, text in generate(target, (ROOT / PAGE).read_text()).items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
