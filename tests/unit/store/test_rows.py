"""Embeddings in files: the bytes of `numpy.save`, and no more of them held than is looked at."""

from __future__ import annotations

import re
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy
import pytest

from pytest_quantgate.store.rows import let_go, open_rows, write_rows

SMAPS = Path("/proc/self/smaps")

COUNT, PART, SIZE = 50_000, 256, 64


def make_part(start: int) -> list[numpy.ndarray]:
    numbers = numpy.arange(start * SIZE, min(start + PART, COUNT) * SIZE, dtype=numpy.float32)
    return [numbers.reshape(-1, SIZE), -numbers.reshape(-1, SIZE)]


def make_parts() -> Iterator[list[numpy.ndarray]]:
    return (make_part(start) for start in range(0, COUNT, PART))


def test_parts_become_the_file_of_the_whole_array(tmp_path: Path) -> None:
    paths = [tmp_path / "fp16.npy", tmp_path / "quantized.npy"]
    write_rows(paths, make_parts(), count=COUNT)

    for path, parts in zip(paths, zip(*make_parts(), strict=True), strict=True):
        whole = numpy.concatenate(parts)
        numpy.save(tmp_path / "whole.npy", whole)
        assert path.read_bytes() == (tmp_path / "whole.npy").read_bytes()
        assert numpy.array_equal(open_rows(path, count=COUNT), whole)


def test_only_a_part_is_held(tmp_path: Path) -> None:
    """What is held of 50,000 rows is a hundredth of them, written and read in parts."""
    paths = [tmp_path / "fp16.npy", tmp_path / "quantized.npy"]
    whole_bytes = 2 * COUNT * SIZE * 4
    tracemalloc.start()
    try:
        write_rows(paths, make_parts(), count=COUNT)
        opened = [open_rows(path, count=COUNT) for path in paths]
        sums = [float(rows[at : at + PART].sum()) for rows in opened for at in (0, COUNT - PART)]
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert sums[0] == -sums[2] != 0
    assert most < whole_bytes / 20


@pytest.mark.parametrize("count", [COUNT - 1, COUNT + PART])
def test_other_rows_than_were_said_are_refused(count: int, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"^50000 of {count} rows were embedded$"):
        write_rows([tmp_path / "a.npy", tmp_path / "b.npy"], make_parts(), count=count)


@pytest.mark.skipif(not SMAPS.exists(), reason="this system does not tell what a map holds")
def test_memory_that_was_given_back_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "rows.npy"
    write_rows([path], ([part[0]] for part in make_parts()), count=COUNT)
    rows = open_rows(path, count=COUNT)
    before = rows.sum()

    assert _count_resident_kib(path) > COUNT * SIZE * 4 / 1024 / 2
    let_go(rows)
    assert _count_resident_kib(path) == 0
    assert rows.sum() == before


def test_what_is_written_into_rows_does_not_reach_the_file(tmp_path: Path) -> None:
    path = tmp_path / "rows.npy"
    numpy.save(path, numpy.ones((3, 2), numpy.float32))

    open_rows(path, count=3)[:] = 7

    assert numpy.load(path).tolist() == [[1, 1]] * 3


def _count_resident_kib(path: Path) -> int:
    """Return how much of a mapped file this process holds."""
    maps = SMAPS.read_text(encoding="utf-8")
    (found,) = re.findall(rf"{re.escape(str(path))}\n(?:.*\n)*?Rss: +(\d+) kB", maps)
    return int(found)
