"""The same photographs in every form are the same samples: ids, bytes, labels, draws, digests."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_quantgate.suite.specs import ColumnsSpec, DatasetSpec
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


def load(
    root: Path, dataset: str, *, samples: int | None = None, keep: tuple[str, ...] = ()
) -> Samples:
    where = Where(file="x.yaml", line=1)
    columns = ColumnsSpec(where=where, keep=keep) if keep else None
    spec = DatasetSpec(where=where, dataset=dataset, root=str(root), columns=columns)
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


def test_every_form_that_has_columns_keeps_the_same_ones(tmp_path: Path) -> None:
    """As do a table beside the archives, and one by the names of the samples."""
    classes = (HELD_OUT / "classnames.txt").read_text().split()
    photos = [
        replace(photo, light=("day", "night", "day")[number % 3])
        for number, photo in enumerate(
            read_shard(HELD_OUT / "test" / "0.tar", classes=classes, count=120)
        )
    ]
    found = {}
    for form, dataset in FORMS.items():
        if form == "folder":
            continue
        root = write_form(form, tmp_path / form, splits={"test": photos}, classes=classes)
        found[form] = load(root, dataset, samples=50, keep=("light",))
    lines = [f"{photo.name.removesuffix('.jpg')},{photo.light}\n" for photo in reversed(photos)]
    root = write_form("wds", tmp_path / "table", splits={"test": photos}, classes=classes)
    (root / "test" / "metadata.csv").write_text("id,light\n" + "".join(lines))
    found["table"] = load(root, "wds/photos", samples=50, keep=("light",))

    assert len({samples.digest for samples in found.values()}) == 1
    assert Counter(found["wds"].columns["light"])["night"] > 5
    assert found["wds"].digest != load(root, "wds/photos", samples=50).digest


def test_the_photographs_are_those_of_the_archive(tmp_path: Path) -> None:
    classes = (HELD_OUT / "classnames.txt").read_text().split()
    photos = read_shard(HELD_OUT / "test" / "0.tar", classes=classes)
    root = write_form("parquet", tmp_path / "p", splits={"test": photos}, classes=classes)
    for name in ("zeroshot_classification_templates.txt",):
        (root / name).write_bytes((HELD_OUT / name).read_bytes())

    assert load(root, "parquet").digest == load(HELD_OUT, "wds/photos").digest
