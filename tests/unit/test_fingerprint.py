"""Fingerprints: the same things have the same digest, and what differs is named."""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from datetime import date
from fractions import Fraction
from pathlib import Path, PurePosixPath
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_quantgate.evidence.fingerprint import (
    ENTRIES_SHOWN,
    LABELS,
    Fingerprint,
    differences,
    digest_of,
    digest_parts,
    list_unknown,
)

STORED = Fingerprint(model="a" * 64, data="b" * 64, calibration="c" * 64, recipe="d" * 64)
repeatable = settings(max_examples=100, deadline=None, derandomize=True, database=None)

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=8,
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    samples: int
    share: Fraction


def test_equal_fingerprints_have_no_differences() -> None:
    assert differences(STORED, replace(STORED)) == ()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model", "model weights or files differ: baseline aaaaaaaaaaaa, now ffffffffffff"),
        ("data", "evaluation data differ: baseline bbbbbbbbbbbb, now ffffffffffff"),
        (
            "calibration",
            "calibration data or settings differ: baseline cccccccccccc, now ffffffffffff",
        ),
        ("recipe", "recipe or exclude list differ: baseline dddddddddddd, now ffffffffffff"),
    ],
)
def test_digest_that_differs_is_named(name: str, words: str) -> None:
    assert differences(STORED, replace(STORED, **{name: "f" * 64})) == (words,)  # type: ignore[arg-type]


def test_all_that_differ_are_named() -> None:
    now = replace(STORED, model="e" * 64, recipe="f" * 64)

    assert [text.partition(" differ")[0] for text in differences(STORED, now)] == [
        "model weights or files",
        "recipe or exclude list",
    ]


def test_difference_after_the_shown_part_is_seen() -> None:
    assert len(differences(STORED, replace(STORED, data="b" * 63 + "0"))) == 1


def test_no_digest_is_forgotten_in_the_comparison() -> None:
    in_words = {"recipe_entries", "settings", "data_parts"}
    assert set(LABELS) == {field.name for field in fields(Fingerprint)} - in_words


WORDS = {
    "dtype": "float16",
    "attention": "sdpa",
    "device": "cpu",
    "calibration samples": "256",
    "recipe": "fp8-attention",
    "recipe exclude": "",
}
SAID = replace(
    STORED,
    settings=WORDS,
    recipe_entries=("*: off", "*q_bmm_quantizer: E4M3", "algorithm: max"),
    data_parts={"images": "1" * 64, "labels": "2" * 64},
)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("dtype", "bfloat16", "dtype float16 -> bfloat16"),
        ("attention", "eager", "attention sdpa -> eager"),
        ("device", "cuda", "device cpu -> cuda"),
        ("recipe exclude", "text*", "recipe exclude none -> text*"),
    ],
)
def test_setting_that_differs_is_named_in_words(name: str, value: str, words: str) -> None:
    assert differences(SAID, replace(SAID, settings={**WORDS, name: value})) == (words,)


def test_words_take_the_place_of_the_digest_of_the_same_part() -> None:
    now = replace(SAID, calibration="f" * 64, settings={**WORDS, "calibration samples": "128"})
    same_words = replace(SAID, calibration="f" * 64)

    assert differences(SAID, now) == ("calibration samples 256 -> 128",)
    assert differences(SAID, same_words) == (
        "calibration data or settings differ: baseline cccccccccccc, now ffffffffffff",
    )


def test_recipe_is_compared_by_what_it_does() -> None:
    written_otherwise = replace(SAID, recipe="f" * 64)
    other_content = replace(
        SAID, recipe_entries=("*: off", "*q_bmm_quantizer: INT8", "algorithm: max")
    )
    turned = replace(SAID, recipe_entries=SAID.recipe_entries[::-1])

    assert differences(SAID, written_otherwise) == ()
    assert differences(SAID, other_content) == (
        "recipe content differs: now without *q_bmm_quantizer: E4M3, with *q_bmm_quantizer: INT8",
    )
    assert differences(SAID, turned) == ("recipe content differs: now in another order",)


def test_recipe_of_another_name_is_another_only_where_it_does_something_else() -> None:
    renamed = replace(SAID, settings={**WORDS, "recipe": "ours"})
    entries = ("*: off", "algorithm: max")

    assert differences(SAID, renamed) == ()
    assert differences(SAID, replace(renamed, recipe_entries=entries)) == (
        "recipe fp8-attention -> ours: now without *q_bmm_quantizer: E4M3",
    )


@pytest.mark.parametrize(("more", "told"), [(0, ""), (1, " and 1 more"), (5, " and 5 more")])
def test_as_many_entries_are_told_as_can_be_read(more: int, told: str) -> None:
    lines = [f"layer {n}: off" for n in range(ENTRIES_SHOWN + more)]

    (words,) = differences(SAID, replace(SAID, recipe_entries=(*SAID.recipe_entries, *lines)))

    shown = "; ".join(lines[:ENTRIES_SHOWN])
    assert words == f"recipe content differs: now with {shown}{told}"


def test_setting_that_is_empty_now_is_none() -> None:
    before = replace(SAID, settings={**WORDS, "recipe exclude": "text*"})

    assert differences(before, SAID) == ("recipe exclude text* -> none",)


def test_each_part_of_the_data_has_its_digest() -> None:
    samples = SimpleNamespace(
        ids=("a",),
        hashes=None,
        labels=(1,),
        captions=("x",),
        class_names=(),
        templates=("{c}",),
        columns={},
        decoding="",
    )

    assert digest_parts(samples) == (
        ("ids", digest_of(["a"])),
        ("labels", digest_of([1])),
        ("captions", digest_of(["x"])),
        ("class names", digest_of([])),
        ("templates", digest_of(["{c}"])),
    )
    assert digest_parts(SimpleNamespace(**{**vars(samples), "hashes": ("h",)}))[1] == (
        "images",
        digest_of(["h"]),
    )
    kept = {"lux": (math.nan,), "light": ("day",)}
    more = digest_parts(SimpleNamespace(**{**vars(samples), "columns": kept, "decoding": "exif"}))
    assert more[5:] == (
        ("column lux", digest_of(["nan"])),
        ("column light", digest_of(["'day'"])),
        ("decoding", digest_of("exif")),
    )


def test_a_variant_is_known_by_what_it_is_made_of() -> None:
    """Whatever it is judged on: looks and records count variants by it."""
    assert replace(STORED, data="f" * 64).variant == STORED.variant
    for name in ("model", "calibration", "recipe"):
        assert replace(STORED, **{name: "f" * 64}).variant != STORED.variant  # type: ignore[arg-type]


def test_part_of_the_data_that_differs_is_named() -> None:
    now = replace(SAID, data="f" * 64, data_parts={**SAID.data_parts, "labels": "9" * 64})

    assert differences(SAID, now) == (
        "evaluation data differ in labels: baseline bbbbbbbbbbbb, now ffffffffffff",
    )


def test_a_column_that_a_baseline_does_not_know_is_named_where_nothing_else_differs() -> None:
    """Slices by it cannot be compared: what was kept of the samples is part of the data."""
    kept = {**SAID.data_parts, "column light": "9" * 64}
    now = replace(SAID, data="f" * 64, data_parts=kept)

    assert "evaluation data differ in column light: " in differences(SAID, now)[0]
    assert "evaluation data differ in column light: " in differences(now, SAID)[0]
    both = replace(now, data_parts={**kept, "labels": "9" * 64})
    assert "evaluation data differ in labels: " in differences(SAID, both)[0]
    assert differences(STORED, now)[0].startswith("evaluation data differ: ")


def test_what_an_old_baseline_does_not_say_is_unknown_and_not_compared() -> None:
    assert differences(STORED, SAID) == ()
    assert list_unknown(STORED, SAID) == (*WORDS, "recipe content")
    assert list_unknown(SAID, SAID) == ()
    assert differences(STORED, replace(SAID, recipe="f" * 64)) == (
        "recipe or exclude list differ: baseline dddddddddddd, now ffffffffffff",
    )


@repeatable
@given(
    before=st.dictionaries(st.sampled_from(list(WORDS)), st.sampled_from("ab")),
    after=st.dictionaries(st.sampled_from(list(WORDS)), st.sampled_from("ab")),
)
def test_settings_are_equal_different_or_unknown(
    before: dict[str, str], after: dict[str, str]
) -> None:
    stored, now = replace(STORED, settings=before), replace(STORED, settings=after)

    unknown, different = list_unknown(stored, now), differences(stored, now)
    equal = [name for name in after if before.get(name) == after[name]]
    assert len(unknown) + len(different) + len(equal) == len(after)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "null"),
        ({}, "{}"),
        ({"b": [1.5, True], "a": "é"}, '{"a":"\\u00e9","b":[1.5,true]}'),
    ],
)
def test_digest_is_that_of_the_canonical_json(value: Any, text: str) -> None:
    assert digest_of(value) == hashlib.sha256(text.encode()).hexdigest()


@pytest.mark.parametrize(
    ("value", "same"),
    [
        ({"b": 1, "a": 2}, {"a": 2, "b": 1}),
        ((1, 2), [1, 2]),
        (MappingProxyType({"a": 1}), {"a": 1}),
        (Fraction(1, 200), "1/200"),
        (Fraction(5, 1000), Fraction(1, 200)),
        (date(2027, 3, 1), "2027-03-01"),
        (PurePosixPath("a/b"), "a/b"),
        (Path("a"), "a"),
        (Settings(1, Fraction(1, 2)), {"samples": 1, "share": "1/2"}),
        ({1: "a"}, {"1": "a"}),
    ],
    ids=repr,
)
def test_same_content_in_another_form_has_the_same_digest(value: Any, same: Any) -> None:
    assert digest_of(value) == digest_of(same)


@pytest.mark.parametrize(
    ("value", "other"),
    [
        ([1, 2], [2, 1]),
        ("1", 1),
        (1, True),
        (1, 1.0),
        (None, "null"),
        (None, {}),
        ({"a": {"b": 1}}, {"a": {"b": 2}}),
        ({"a": None}, {}),
        (["ab"], ["a", "b"]),
        ("ä", "a\u0308"),
        (Fraction(1, 2), Fraction(1, 3)),
        (Settings(1, Fraction(1, 2)), Settings(2, Fraction(1, 2))),
    ],
    ids=repr,
)
def test_other_content_has_another_digest(value: Any, other: Any) -> None:
    assert digest_of(value) != digest_of(other)


@repeatable
@given(value=plain)
def test_order_of_keys_never_matters(value: Any) -> None:
    def turned(part: Any) -> Any:
        if isinstance(part, Mapping):
            return {key: turned(part[key]) for key in reversed(part)}
        return [turned(item) for item in part] if isinstance(part, list) else part

    digest = digest_of(value)

    assert digest == digest_of(turned(value))
    assert len(digest) == 64
    assert set(digest) <= set("0123456789abcdef")


def test_digest_is_the_same_in_another_process() -> None:
    code = (
        "from pytest_quantgate.evidence.fingerprint import digest_of\n"
        "print(digest_of({'b': [1.5], 'a': '\\u00e9'}))"
    )
    # Another hash seed: an order that depends on it would show here.
    other = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONHASHSEED": "7"}, capture_output=True, check=True
    )

    assert other.stdout.decode().strip() == digest_of({"a": "é", "b": [1.5]})


@pytest.mark.parametrize(
    "value", [{1, 2}, object(), b"x", 1j, Settings, len], ids=lambda value: type(value).__name__
)
def test_what_has_no_stable_text_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="cannot digest a"):
        digest_of({"a": [value]})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_number_that_is_none_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        digest_of([value])
