"""Files of others: whatever they are, the answer is their content or an error, at once."""

from __future__ import annotations

import contextlib
import os
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_quantgate import bounds
from pytest_quantgate.untrusted import (
    check_yaml,
    hash_file,
    parse_json,
    read_regular,
)

quick = settings(max_examples=200, deadline=None, derandomize=True, database=None)


def test_a_file_up_to_the_limit_is_read(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345")

    assert read_regular(path, max_bytes=5) == b"12345"
    with pytest.raises(OSError, match="it is larger than 4 bytes"):
        read_regular(path, max_bytes=4)


def test_a_limit_is_no_buffer(tmp_path: Path) -> None:
    """A file of a few bytes costs as much, however large a file might be."""
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    tracemalloc.start()
    try:
        assert read_regular(path, max_bytes=1 << 50) == b"0123456789"
        assert tracemalloc.get_traced_memory()[1] < 4 << 20
    finally:
        tracemalloc.stop()


def test_a_file_of_many_pieces_is_read_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    content = bytes(range(256)) * (3 << 12)  # three pieces
    path.write_bytes(content)
    assert read_regular(path, max_bytes=len(content)) == content
    with pytest.raises(OSError, match="larger than"):
        read_regular(path, max_bytes=len(content) - 1)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    with pytest.raises(OSError, match="it is no regular file"):
        read_regular(pipe, max_bytes=5)
    with pytest.raises(OSError, match="it is no regular file"):
        hash_file(pipe)


def test_a_device_and_a_folder_are_no_files(tmp_path: Path) -> None:
    for path in (Path("/dev/zero"), tmp_path):
        with pytest.raises(OSError, match=r"no regular file|Is a directory"):
            read_regular(path, max_bytes=5)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "Expecting value"),
        ("[" * 200_000, "nested too deeply"),
        ('{"a": 1, "a": 2}', "key 'a' stands twice"),
        ("NaN", "NaN is no number here"),
        ("[-Infinity]", "-Infinity is no number here"),
        ("1e999", "1e999 is out of range"),
        ("9" * 5000, "9{40} is out of range"),
        ('{"fp16_ms": 1' + "0" * 309 + "}", "1000+ is out of range"),
        ("-" + "9" * 309, "-9{39} is out of range"),
        (b"\xff\xfe\x00", "codec can't decode"),
        (b'"\xed\xa0\x80"', "codec can't decode"),
        ('{"a": ["\\ud800"]}', "surrogates not allowed"),
        ('{"\\uDFFF": 1}', "surrogates not allowed"),
        ('{"a": 1}'.encode("utf-16"), "codec can't decode"),
    ],
    ids=lambda value: ascii(value[:20]),
)
def test_what_is_no_plain_json_is_a_value_error(text: str | bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_json(text)


def test_plain_json_is_what_it_says() -> None:
    assert parse_json('{"a": [1, 0.5, null, true, "\\ud83d\\ude00"]}') == {
        "a": [1, 0.5, None, True, "😀"]
    }


@quick
@given(st.binary(max_size=60) | st.text(max_size=60))
def test_any_bytes_are_a_value_or_a_value_error(data: bytes | str) -> None:
    with contextlib.suppress(ValueError):
        parse_json(data)


BOMB = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n"
    for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, rf"line 5: more than {bounds.YAML_VALUES} values, aliases written out"),
        ("a: &a [*a]", r"line 1: alias \*a stands for what holds it"),
        ("a: &a {b: &b [*a]}", r"line 1: alias \*a stands for what holds it"),
        ("a: *gone", r"line 1: alias \*gone stands for what holds it"),
        ("<<: *a", r"line 1: alias \*a"),
        ("a:\n  !!python/object/apply:os.system [id]", r"line 2: tags \(!\.\.\.\) are not taken"),
        ("!!binary aGk=", r"line 1: tags"),
        ("[" * 100_000, rf"line 1: nested deeper than {bounds.YAML_DEPTH} levels"),
        ("- " * 500, rf"line 1: nested deeper than {bounds.YAML_DEPTH} levels"),
        ("a: [1", "line 1: not YAML"),
        ('"\\UFFFFFFFF"', "not YAML"),
        ("a: \x00", "not YAML"),
    ],
    ids=lambda value: ascii(value[:20]),
)
def test_yaml_that_unfolds_runs_or_nests_is_refused(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_yaml(text)


def test_a_few_aliases_are_no_bomb() -> None:
    check_yaml("cfg: &fp8 {num_bits: [4, 3]}\nlist: [*fp8, *fp8]\nmore: {<<: *fp8, axis: 0}\n")


def count_values(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + sum(count_values(key) + count_values(item) for key, item in value.items())
    if isinstance(value, list):
        return 1 + sum(count_values(item) for item in value)
    return 1


@pytest.mark.parametrize("extra", [0, 1])
def test_the_limit_counts_what_aliases_stand_for(extra: int) -> None:
    """Hundreds of one list of many: a value more than the limit, and it is refused."""
    rows = bounds.YAML_VALUES // 1000 - 1
    text = f"- &row [{', '.join(['x'] * 999)}]\n" + "- *row\n" * (rows - 1)
    rest = bounds.YAML_VALUES - (1 + rows * 1000) + extra
    text += "- x\n" * rest

    if extra:
        with pytest.raises(ValueError, match="aliases written out"):
            check_yaml(text)
    else:
        check_yaml(text)
