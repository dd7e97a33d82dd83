"""Reads files that somebody else may have written: regular, of limited size, plain JSON or YAML.

A pipe in the place of a file would be waited for without end, a huge file would fill the memory,
a few nested YAML aliases unfold to gigabytes, and JSON has forms in which two readers see two
things.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

from pytest_quantgate import bounds

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")

_PIECE_BYTES = 1 << 20


@contextmanager
def open_regular(path: Path) -> Iterator[BufferedReader]:
    """Open a regular file (links are followed); raises OSError for one that cannot, or is none."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a pipe without a writer opens too
    with os.fdopen(descriptor, "rb") as stream:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "it is no regular file", str(path))
        yield stream


def hash_file(path: Path) -> str:
    """Return the SHA-256 (hex) of a file of any size; raises OSError as `open_regular`."""
    with open_regular(path) as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_regular(path: Path, *, max_bytes: int) -> bytes:
    """Return the bytes of a regular file of at most `max_bytes`.

    Raises OSError as `open_regular`, and for a file that is larger.
    """
    with open_regular(path) as stream:
        # In pieces: a buffer for the largest file that is taken may be more than there is.
        pieces, left = [], max_bytes + 1
        while left and (piece := stream.read(min(left, _PIECE_BYTES))):
            pieces.append(piece)
            left -= len(piece)
    content = b"".join(pieces)
    if len(content) > max_bytes:
        raise OSError(errno.EFBIG, f"it is larger than {max_bytes} bytes", str(path))
    return content


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text.

    Raises ValueError for what is not JSON in UTF-8, a key that stands twice, NaN and Infinity, a
    number that no float can hold, half a character, nesting that is too deep to read, and more
    values than `bounds.JSON_VALUES`.
    """
    content = text if isinstance(text, bytes) else text.encode("utf-8", "replace")
    refuse_many_values(content)
    if isinstance(text, bytes):
        text = text.decode("utf-8")  # json would take UTF-16, UTF-32 and halves of characters too
    try:
        value = json.loads(
            text,
            object_pairs_hook=_without_doubles,
            parse_constant=_refuse_constant,
            parse_float=_finite,
            parse_int=_within_floats,
        )
        if _SURROGATE.search(text):
            _refuse_surrogates(value)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return value


def refuse_many_values(content: bytes) -> None:
    """Raise ValueError for a JSON text of which the values would fill the memory.

    What stands inside of its texts counts too.
    """
    found = sum(content.count(mark) for mark in (b",", b"[", b"{"))
    if found > bounds.JSON_VALUES:
        raise ValueError(f"it holds up to {found} values, at most {bounds.JSON_VALUES} are read")


def check_yaml(text: str) -> None:
    """Raise ValueError, with the line, for a YAML text that is no plain data of modest size.

    That is one with tags, nested deeper than `bounds.YAML_DEPTH`, or that holds more than
    `bounds.YAML_VALUES` values once its aliases are written out.
    """
    import yaml

    sizes: dict[str, int] = {}
    # Anchor and size so far of every open collection, the outermost first.
    open_nodes: list[tuple[str | None, int]] = [(None, 0)]
    for event in _parse_events(text):
        line = (event.start_mark.line if event.start_mark else 0) + 1
        anchor = getattr(event, "anchor", None)
        if getattr(event, "tag", None):
            raise ValueError(f"line {line}: tags (!...) are not taken")
        if isinstance(event, yaml.AliasEvent):
            if anchor not in sizes:
                raise ValueError(f"line {line}: alias *{anchor} stands for what holds it")
            _grow(open_nodes, sizes[anchor], line=line)
        elif isinstance(event, yaml.ScalarEvent):
            if anchor:
                sizes[anchor] = 1
            _grow(open_nodes, 1, line=line)
        elif isinstance(event, yaml.CollectionStartEvent):
            open_nodes.append((anchor, 1))
            if anchor:
                sizes.pop(anchor, None)
            if len(open_nodes) > bounds.YAML_DEPTH:
                raise ValueError(f"line {line}: nested deeper than {bounds.YAML_DEPTH} levels")
        elif isinstance(event, yaml.CollectionEndEvent):
            name, size = open_nodes.pop()
            if name:
                sizes[name] = size
            _grow(open_nodes, size, line=line)


def _parse_events(text: str) -> Iterator[Any]:
    """Yield the events of a YAML text; raises ValueError, with the line, for what is no YAML."""
    import yaml

    try:
        yield from yaml.parse(text, Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise ValueError(
            f"line {mark.line + 1 if mark else 1}: not YAML: {error.problem}"
        ) from error
    except yaml.YAMLError as error:
        raise ValueError(f"not YAML: {' '.join(str(error).split())[:200]}") from error
    except (ValueError, OverflowError) as error:
        # PyYAML does not check the number of "\UFFFFFFFF"; what chr() raises depends on Python.
        raise ValueError("not YAML: a number is out of range") from error


def _grow(open_nodes: list[tuple[str | None, int]], size: int, *, line: int) -> None:
    anchor, so_far = open_nodes[-1]
    if so_far + size > bounds.YAML_VALUES:
        raise ValueError(f"line {line}: more than {bounds.YAML_VALUES} values, aliases written out")
    open_nodes[-1] = (anchor, so_far + size)


def _refuse_surrogates(value: Any) -> None:
    """Raise ValueError for a text that UTF-8 cannot hold: a report would stumble over it later."""
    if isinstance(value, str):
        value.encode("utf-8")
    elif isinstance(value, dict):
        for key, item in value.items():
            _refuse_surrogates(key)
            _refuse_surrogates(item)
    elif isinstance(value, list):
        for item in value:
            _refuse_surrogates(item)


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {key!r} stands twice")
        found[key] = value
    return found


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is no number here")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is out of range")
    return value


def _within_floats(text: str) -> int:
    """Return a whole number: sooner or later it becomes a float, and that must not be the crash."""
    if len(text) > sys.float_info.max_10_exp:
        _finite(text)
    return int(text)
