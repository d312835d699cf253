"""JSON with one hostile value in the place of a good one, and JSON that is none."""

from __future__ import annotations

import copy
import json
from typing import Any

from tests.attack.files.mutate import damaged
from tests.attack.operations.draw import Draw

_MARK = "@@hostile@@"
CONTROL = (
    "\x1b[2J\x1b]0;owned\x07",
    "\x9b2J",
    "a\rb",
    "line\nlibra: error: no",
    "\u202egnp.exe",
    "\x00",
    "\ud800",
    "\x7f\x08",
    "\u2028",
    "\ufeff",
    "\U0001f600",
    "%s%n{0}",
    "[bold red]x[/bold red]",
    "[/]",
    "a" * 1_000_000,
    "",
    " ",
    "../" * 9,
)
NUMBERS = (
    "1000000000",
    "1000000000000000000",
    "1" + "0" * 400,
    "1" + "0" * 5000,
    "-1",
    "-0",
    "-0.0",
    "NaN",
    "Infinity",
    "-Infinity",
    "1e400",
    "1e308",
    "-1e308",
    "5e-324",
    "0",
    "0.5",
    "1.5",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775809",
    "4294967296",
    "2147483648",
    "65536",
)
OTHERS = (
    "true",
    "false",
    "null",
    '"x"',
    "[]",
    "{}",
    "[[]]",
    '{"a": 1}',
    "[" + "0," * 99_999 + "0]",
    "[null]",
    '["x", "x"]',
    "[" * 100_000 + "]" * 100_000,
    '{"a":' * 100_000 + "1" + "}" * 100_000,
)


def hostile_value(draw: Draw) -> tuple[str, str]:
    """JSON text of a value, and a few words about it."""
    choices = draw.choice((NUMBERS, NUMBERS, OTHERS, CONTROL))
    chosen = draw.choice(choices)
    text = json.dumps(chosen) if choices is CONTROL else chosen
    return text, text if len(text) < 40 else f"{text[:20]}... of {len(text)} characters"


def hostile_json(draw: Draw, content: Any) -> tuple[bytes, str]:
    """The content as JSON with something hostile in it."""
    what = draw.choice(("value",) * 12 + ("key", "twice", "bytes", "bytes", "whole", "encoding", "deep end"))
    if what == "value":
        content, path = _with_mark(draw, content)
        text, words = hostile_value(draw)
        return json.dumps(content).replace(json.dumps(_MARK), text).encode(), f"{path} = {words}"
    text = json.dumps(content)
    if what == "key":
        key, words = json.dumps(draw.choice(CONTROL)), "a key"
        return (text[:-1] + f", {key}: 1}}" if text.endswith("}") else text).encode(), words
    if what == "twice":
        value, words = hostile_value(draw)
        first = next(iter(content)) if isinstance(content, dict) and content else "a"
        return (text[:-1] + f", {json.dumps(first)}: {value}}}").encode(), f"{first} twice, then {words}"
    if what == "bytes":
        return damaged(draw, text.encode())
    if what == "whole":
        value, words = hostile_value(draw)
        return value.encode("utf-8", "surrogatepass"), f"all of it {words}"
    if what == "encoding":
        encoding = draw.choice(("utf-16", "utf-32", "utf-8-sig", "utf-16-be"))
        return text.encode(encoding), encoding
    return text.encode() + b"[" * 100_000, "brackets at the end"


def _with_mark(draw: Draw, content: Any) -> tuple[Any, str]:
    """A copy with a mark in the place of one value, and the way there."""
    content = copy.deepcopy(content)
    node, path = content, ""
    if not isinstance(node, (dict, list)) or not node:
        return _MARK, "all"
    while True:
        keys = list(node) if isinstance(node, dict) else list(range(len(node)))
        key = draw.choice(keys)
        path += f".{key}" if isinstance(node, dict) else f"[{key}]"
        inner = node[key]
        if isinstance(inner, (dict, list)) and inner and draw.chance(0.85):
            node = inner
            continue
        node[key] = _MARK
        return content, path


def configuration_values() -> list[str]:
    """JSON texts that every field of a configuration is set to."""
    return [
        "1000000000",
        "1000000000000000000",
        "1" + "0" * 400,
        "-1",
        "0",
        "NaN",
        "Infinity",
        '"x"',
        "[]",
        "{}",
        "[" + "0," * 99_999 + "0]",
        "true",
        "null",
        "1e-320",
        "[1e400, 0, -1]",
        '"\\u001b[2J"',
        "0.5",
        "2147483648",
    ]


def with_field(draw: Draw, config: dict[str, Any]) -> tuple[str, str]:
    """A configuration with one field set to a hostile value."""
    part = draw.choice(("model", "data", "train"))
    name = draw.choice(list(config[part]))
    value = draw.choice(configuration_values())
    changed = {**config, part: {**config[part], name: _MARK}}
    words = value if len(value) < 30 else f"{value[:12]}... of {len(value)} characters"
    return json.dumps(changed).replace(json.dumps(_MARK), value), f"{part}.{name} = {words}"
