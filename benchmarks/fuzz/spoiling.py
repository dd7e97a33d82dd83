"""What good files are spoiled with: hostile tokens, and values of other kinds at any place."""

from __future__ import annotations

import json
import random
from typing import Any, Literal

#: What stands in a file, so that its values can be spoiled one by one.
Form = Literal["bytes", "json", "yaml"]

TOKENS = [
    b"", b":", b": ", b"- ", b"? ", b"!", b"!!python/object/apply:os.system [true]", b"!!binary ",
    b"&a ", b"*a", b"<<: *a", b"|", b">", b"%YAML 9.9\n", b"@", b"`", b"#", b"[", b"]", b"{", b"}",
    b",", b"'", b'"', b"\\", b'"\\x00"', b'"\\ud800"', b'"\\UFFFFFFFF"', b"\t", b"\n", b"\r\n",
    b"---\n", b"...\n", b"~", b"null", b"true", b"NaN", b"-Infinity", b"Infinity", b".nan", b".inf",
    b"-0", b"0x1F", b"1_000", b"1:30:59", b"1e9999", b"1e999999999pp", b"9" * 5000, b"-1",
    b"1e-400", "٥pp".encode(), b"pp", b"%", b"dB", b"${", b"${HOME}", b"$(id)", "\u202e".encode(),
    "\u2028".encode(), b"\xef\xbb\xbf", b"\x00", b"\x1b[31m", b"\xff\xfe", b"\xed\xa0\x80",
    b"::error::x", b"##[error]x", b"../../../etc/passwd", b"/dev/zero", b"C:\\x", b"a" * 3000,
    b"[" * 3000, b"{a: " * 60, b'{"a":' * 3000, b"\x80\x04\x95", b"2027-02-30", b"~nobody9/x",
]  # fmt: skip

VALUES: list[Any] = [
    None, True, False, 0, -1, 1, 2**63, 10**400, 0.5, -0.0, 1e308, 5e-324, "", "a", "0.5", "nan",
    "\x1b[2J", "a\n::error::b", "\ud800", "../x", "/etc/passwd", "x" * 20_000, [], {}, [[]], [None],
    {"": None}, [1, "a"], {"a": {"b": []}}, "AAAA", "=" * 8, "2026-13-45", "f" * 64, "F" * 64,
]  # fmt: skip


def spoil(data: bytes, *, chance: random.Random, others: list[bytes]) -> bytes:
    """Return `data` with one to five cuts, doublings, swaps or foreign parts."""
    for _ in range(chance.choice([1, 1, 1, 2, 5])):
        start = chance.randint(0, len(data))
        end = min(len(data), start + chance.choice([0, 0, 1, 2, 8, 40, 200]))
        kind = chance.randrange(7)
        if kind == 0:
            part = chance.choice(TOKENS)
        elif kind == 1:
            part = data[start:end] * chance.choice([0, 2, 3, 50])
        elif kind == 2:
            part = bytes(chance.randrange(256) for _ in range(chance.randint(1, 8)))
        elif kind == 3 and start < len(data):
            part, end = bytes([data[start] ^ (1 << chance.randrange(8))]), start + 1
        elif kind == 4:
            other = chance.choice(others)
            cut = chance.randint(0, len(other))
            part = other[cut : cut + chance.randint(0, 200)]
        elif kind == 5:
            lines = data.splitlines(keepends=True) or [b""]
            line = chance.randrange(len(lines))
            mended = [*lines[:line], chance.choice(lines), *lines[line:]]
            data, start, end, part = b"".join(mended), 0, 0, b""
        else:
            part = chance.choice(TOKENS) + data[start:end]
        data = data[:start] + part + data[end:]
        if chance.random() < 0.02:
            data = data[: chance.randint(0, len(data))]
    return data


def spoil_values(data: bytes, *, form: Form, chance: random.Random) -> bytes:
    """Return a text with values of another kind, keys lost, renamed or moved, lists grown.

    It is JSON, which is YAML too. Raises ValueError or RecursionError for what is no JSON.
    """
    import yaml  # not above: the guided driver instruments it when it is first imported

    value = json.loads(data) if form == "json" else yaml.safe_load(data)
    for _ in range(chance.randint(1, 3)):
        value = _spoil_value(value, chance=chance)
    return json.dumps(value, default=str, skipkeys=True).encode()


def _spoil_value(value: Any, *, chance: random.Random) -> Any:
    if isinstance(value, dict) and value and chance.random() < 0.9:
        key = chance.choice(sorted(value, key=str))
        changed = dict(value)
        kind = chance.randrange(8)
        if kind == 0:
            del changed[key]
        elif kind == 1:
            changed[chance.choice(["", "x", f"{key} ", "\ud800", "__class__"])] = changed.pop(key)
        elif kind == 2:
            changed[key] = value[chance.choice(sorted(value, key=str))]
        else:
            changed[key] = _spoil_value(value[key], chance=chance)
        return changed
    if isinstance(value, list) and value and chance.random() < 0.8:
        index = chance.randrange(len(value))
        kind = chance.randrange(6)
        if kind == 0:
            return value[:index] + value[index + 1 :]
        if kind == 1:
            return value[:index] + [value[index]] * chance.choice([2, 100]) + value[index + 1 :]
        return [*value[:index], _spoil_value(value[index], chance=chance), *value[index + 1 :]]
    return chance.choice(VALUES)
