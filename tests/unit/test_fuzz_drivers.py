"""The fuzzing of benchmarks/: what it feeds is the same each time, and nothing gets lost in it."""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2]))

from benchmarks.fuzz import guided
from benchmarks.fuzz.spoiling import spoil, spoil_values
from benchmarks.fuzz.tally import Tally
from benchmarks.fuzz.targets import RECIPE, SMALL_SUITE, SUITE, Target  # type: ignore[attr-defined]
from pytest_quantgate.errors import SuiteError


def read(data: bytes) -> None:
    if data.startswith(b"refuse"):
        raise SuiteError("no")
    if data.startswith(b"break"):
        raise IndexError(data.decode())


def make_tally(keep: Path) -> Tally:
    target = Target(name="a reader", seeds=(b"a",), read=read, share=1, guided_share=1)
    return Tally(target=target, keep=keep)


def test_what_is_no_error_of_ours_is_a_finding_and_kept(tmp_path: Path) -> None:
    tally = make_tally(tmp_path / "kept")

    for data in (b"a", b"refuse", b"break 1", b"break 1", b"break 2"):
        tally.feed(data)

    assert tally.outcomes == {"taken": 1, "refused": 1, "BROKEN": 3}
    assert [(text.split(" at ")[0], count) for text, count in tally.findings.items()] == [
        ("IndexError", 2),
        ("IndexError", 1),
    ]
    kept = list((tmp_path / "kept").iterdir())
    assert sorted(path.read_bytes() for path in kept) == [b"break 1", b"break 2"]
    assert all(path.name.startswith("a-reader-") for path in kept)


@pytest.mark.parametrize(("seed", "form"), [(SUITE, "yaml"), (RECIPE, "yaml"), (b"[1, 2]", "json")])
def test_the_same_seed_spoils_in_the_same_way(seed: bytes, form: str) -> None:
    def cases() -> list[bytes]:
        chance = random.Random(0)
        spoiled = [spoil(seed, chance=chance, others=[SMALL_SUITE]) for _ in range(50)]
        return spoiled + [
            spoil_values(seed, form=form, chance=chance)  # type: ignore[arg-type]
            for _ in range(50)
        ]

    first = cases()
    assert first == cases()
    assert len(set(first)) > 40
    for text in first[50:]:
        json.loads(text)  # raises for what is no JSON


def test_every_word_of_the_dictionary_is_one_that_libfuzzer_takes() -> None:
    lines = guided.list_words()
    assert len(lines) == len(set(lines)) > 40
    assert '"\\x4e\\x61\\x4e"\n' in lines  # NaN


def test_a_missing_fuzzer_is_said_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "atheris", None)
    places = {"keep": tmp_path, "corpus": tmp_path, "scratch": tmp_path}

    with pytest.raises(SystemExit, match=r"pip install 'pytest-quantgate\[fuzz\]'"):
        guided.fuzz_guided(names=["suites"], cases=1, seed=0, **places)
