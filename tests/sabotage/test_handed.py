"""Every row of the table of handed-over files: a spoiled one is named, a good one is let be.

The files are real ones of other tools (QUANTGATE_TEST_DATA), or are written by the installed ones.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
sys.path.insert(0, str(REPOSITORY))

from benchmarks.sabotage.handed import HandedBench, Spoiled, read_table, render_page  # noqa: E402
from benchmarks.sabotage.handed_edits import FILES, NODES, TENSORS  # noqa: E402
from benchmarks.sabotage.handed_files import DATA  # noqa: E402

TABLE = read_table()

needs_data = pytest.mark.skipif(
    not (DATA / "handed-over").is_dir(),
    reason=f"no files of other tools in {DATA}: set QUANTGATE_TEST_DATA",
)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> HandedBench:
    return HandedBench(tmp_path_factory.mktemp("handed"), table=TABLE)


def ready(bench: HandedBench, name: str) -> None:
    """Skip a file whose tool is not whole here."""
    maker = TABLE.files[name].row.get("made")
    if maker == "nbits":
        pytest.importorskip("onnx_ir", reason="ONNX Runtime's MatMulNBitsQuantizer needs onnx_ir")
    if maker == "engine":
        pytest.importorskip("tensorrt_rtx")


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize("name", TABLE.files)
def test_a_good_file_has_no_finding_that_is_not_true(bench: HandedBench, name: str) -> None:
    ready(bench, name)

    outcome = bench.run(good=name)

    assert outcome.is_right, outcome.found.said


@needs_data
@pytest.mark.slow
@pytest.mark.parametrize("row", TABLE.spoiled, ids=lambda row: row.name)
def test_a_spoiled_file_is_named_by_its_code(bench: HandedBench, row: Spoiled) -> None:
    ready(bench, row.file)

    outcome = bench.run(row)

    assert not outcome.found.canary
    assert outcome.is_right != bool(row.finding), outcome.found.said


def test_the_table_is_as_large_as_it_says() -> None:
    """40 spoiled files, and 20 good ones of five tools; no row twice."""
    assert len(TABLE.spoiled) >= 40
    assert len(TABLE.files) >= 20
    assert len({handed.tool for handed in TABLE.files.values()}) >= 5
    assert max(Counter(row.name for row in TABLE.spoiled).values()) == 1
    assert all(bool(handed.known) == bool(handed.because) for handed in TABLE.files.values())


def test_every_verb_is_used() -> None:
    used = {verb for row in TABLE.spoiled for step in (*row.edits, *row.base) for verb in step}

    assert used == {*TENSORS, *NODES, *FILES}


@needs_data
def test_the_page_counts_what_is_named(bench: HandedBench) -> None:
    spoiled = next(row for row in TABLE.spoiled if row.name == "one norm scaled")
    missed = Spoiled(name="nothing is done", file=spoiled.file, code="check.x", at="")
    outcomes = [bench.run(good=spoiled.file), bench.run(spoiled), bench.run(missed)]

    page = "\n".join(render_page(outcomes))

    assert [outcome.is_right for outcome in outcomes] == [True, True, False]
    assert "**1 of 2 spoiled files are named by the right code" in page
    assert "1 of 1 good ones, of 1 tools, have no finding" in page
    assert "| one norm scaled | modelopt mto.save | `check.base-changed` |" in page
    assert "| nothing is done | modelopt mto.save | **not named** (check.x) |" in page
