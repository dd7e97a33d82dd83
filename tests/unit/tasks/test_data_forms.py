"""The same photographs in every form are the same samples: ids, bytes, labels, draws, digests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pytest_quantgate.suite.specs import DatasetSpec
from pytest_quantgate.suite.where import Where
from pytest_quantgate.tasks.registry import load_samples
from pytest_quantgate.tasks.samples import Samples
from tests.data_forms import FORMS, by_class, read_shard, write_form

pytest.importorskip("pyarrow", reason="Parquet and saved data sets are read with pyarrow")

REPOSITORY = Path(__file__).parents[3]
DATA = Path(os.environ.get("QUANTGATE_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
HELD_OUT = DATA / "cifar10-heldout"

pytestmark = pytest.mark.skipif(
    not HELD_OUT.is_dir(),
    reason=f"no photographs in {DATA}: set QUANTGATE_TEST_DATA to the folder with cifar10-heldout/",
)


def load(root: Path, dataset: str, *, samples: int | None = None) -> Samples:
    spec = DatasetSpec(where=Where(file="x.yaml", line=1), dataset=dataset, root=str(root))
    datasets = {"photos": spec}
    return load_samples("photos/test", datasets=datasets, samples=samples, environ={})


@pytest.mark.parametrize("samples", [None, 50])
def test_every_form_gives_the_same_samples(tmp_path: Path, samples: int | None) -> None:
    classes = (HELD_OUT / "classnames.txt").read_text().split()
    photos = read_shard(HELD_OUT / "test" / "0.tar", classes=classes, count=120)
    found = {}
    for order, given in (("tar", photos), ("class", by_class(photos, classes=classes))):
        for form, dataset in FORMS.items():
            if form == "folder" and order == "tar":
                continue  # a folder of images without classes says no label
            root = write_form(
                form, tmp_path / order / form, splits={"test": given}, classes=classes
            )
            found[order, form] = load(root, dataset, samples=samples)

    for order in ("tar", "class"):
        same = [samples for (of, _), samples in found.items() if of == order]
        assert len({samples.digest for samples in same}) == 1
        assert len({samples.ids for samples in same}) == 1
        for index in (0, 17, 49):
            assert len({samples.images[index].tobytes() for samples in same}) == 1
        assert all(not samples.notes for samples in same)
    assert len(found["tar", "csv"]) == (samples or 120)
    # What the order of the tar is worth: the same photographs, drawn and called otherwise.
    assert found["tar", "csv"].digest != found["class", "csv"].digest


def test_the_photographs_are_those_of_the_archive(tmp_path: Path) -> None:
    classes = (HELD_OUT / "classnames.txt").read_text().split()
    photos = read_shard(HELD_OUT / "test" / "0.tar", classes=classes)
    root = write_form("parquet", tmp_path / "p", splits={"test": photos}, classes=classes)
    for name in ("zeroshot_classification_templates.txt",):
        (root / name).write_bytes((HELD_OUT / name).read_bytes())

    assert load(root, "parquet").digest == load(HELD_OUT, "wds/photos").digest
