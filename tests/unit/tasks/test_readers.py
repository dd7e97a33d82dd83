"""The door for data sets: readers of this package, and of others by their entry points."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_quantgate.errors import DataError
from pytest_quantgate.run.case import Case
from pytest_quantgate.store.surroundings import Surroundings
from pytest_quantgate.suite.load import load_suite
from pytest_quantgate.tasks import clip_benchmark, imagefolder, webdataset
from pytest_quantgate.tasks.readers import find_package, find_reader, list_readers

READER = """\
from pytest_quantgate.tasks.reader import DatasetReader
from pytest_quantgate.tasks.samples import Samples

def load(source, draw):
    import numpy
    images = numpy.zeros((4, 8, 8, 3), dtype=numpy.uint8)
    return Samples(name="mine", ids=tuple("abcd"), images=images, hashes=tuple("abcd"))

READER = DatasetReader(load=load, digest=lambda source: "always the same")
NONE = 3
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Make a package known that brings readers; return its file."""

    def make(points: str = "mine = own_reader:READER") -> Path:
        site = tmp_path / "site"
        info = site / "own_reader-1.0.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-reader\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[pytest_quantgate.datasets]\n{points}\n")
        (site / "own_reader.py").write_text(READER)
        monkeypatch.delitem(sys.modules, "own_reader", raising=False)  # of another test
        monkeypatch.syspath_prepend(site)
        return site / "own_reader.py"

    return make


def test_names_lead_to_their_readers() -> None:
    assert find_reader("wds/photos") is find_reader("wds") is webdataset.READER
    assert find_reader("imagefolder") is imagefolder.READER
    assert find_reader("cifar100") is clip_benchmark.READER
    assert find_package("imagefolder") == find_package("cifar100") == ""
    assert {"wds", "imagefolder", "parquet", "datasets"} <= set(list_readers())


def test_another_package_brings_one(install: Callable[..., Path]) -> None:
    install()

    assert find_reader("mine").load is not None
    assert find_package("mine/photos") == "own_reader"
    assert "mine" in list_readers()


def test_none_takes_the_place_of_one_that_is_here(install: Callable[..., Path]) -> None:
    install("imagefolder = own_reader:READER")

    assert find_reader("imagefolder") is imagefolder.READER
    assert find_package("imagefolder") == ""
    assert list_readers().count("imagefolder") == 1


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ("own_reader:NONE", "own_reader:NONE is int, no DatasetReader"),
        ("own_reader:GONE", r"the data set mine \(own_reader:GONE\) cannot be imported: Attribute"),
        ("nowhere:READER", r"cannot be imported: ModuleNotFoundError"),
    ],
)
def test_an_odd_entry_point_is_refused(
    install: Callable[..., Path], point: str, message: str
) -> None:
    install(f"mine = {point}")

    with pytest.raises(DataError, match=message):
        find_reader("mine")


SUITE = """\
quantgate: 1
model: {source: reference}
datasets:
  photos: {dataset: mine, root: "."}
calibration: {data: photos/train, samples: 2, batch_size: 2, held_out_samples: 2}
quantize: {recipe: int8}
gates:
  accuracy: [{task: photos/neighbours, metric: top1, max_drop: 1pp}]
"""


def test_other_code_of_a_reader_replays_nothing(
    install: Callable[..., Path], tmp_path: Path, make_case: Callable[..., Case]
) -> None:
    """It may decode as it likes: its package is part of the keys of all that is read by it."""
    source = install()
    path = tmp_path / "photos.quantgate.yaml"
    path.write_text(SUITE)

    def keys() -> tuple[Any, ...]:
        case = make_case(load_suite(path))
        case.surroundings = Surroundings(environ={})
        return (
            case._data_key("photos/test", None, purpose="images"),
            case._with_reader("digest of samples", name="photos/test"),
        )

    before = keys()
    assert keys() == before
    source.write_text(READER + "\n# turned the other way round\n")
    after = keys()

    assert all(new != old for new, old in zip(after, before, strict=True))
    assert before[1] != "digest of samples"
