"""Names of data sets and tasks -> samples. `<data set>/<split>` for data, `<data set>/<task>`."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pytest_quantgate.errors import DataError
from pytest_quantgate.evidence.sanity import TextPlaces
from pytest_quantgate.suite.keys import keys_of
from pytest_quantgate.suite.specs import CalibrationSpec, DatasetSpec
from pytest_quantgate.suite.where import expand_path
from pytest_quantgate.tasks.builtin import Purpose, load_digits, load_scenes
from pytest_quantgate.tasks.drawing import SEED, Draw
from pytest_quantgate.tasks.kind import find_task, split_task
from pytest_quantgate.tasks.reader import DatasetReader, Source
from pytest_quantgate.tasks.readers import find_reader
from pytest_quantgate.tasks.samples import Samples

#: The keys of a data set that only say which files it is in: their digest says what these hold.
PLACES = ("dataset", "root", "test_split", "columns")

#: The split that tasks are evaluated on.
TEST = "test"

BUILTIN = {"scenes": load_scenes, "digits": load_digits}


def split_name(name: str) -> tuple[str, str]:
    """Return data set and split of `<data set>/<split>`; the split is what follows the last /."""
    dataset, _, split = name.rpartition("/")
    if not dataset or not split:
        raise DataError(f"{name!r} is no data: write <data set>/<split>, such as scenes/test")
    return dataset, split


def evaluation_data(task: str) -> tuple[str, Purpose]:
    """Return the data (`<data set>/test`) and the purpose of a task `<data set>/<task>`."""
    return f"{split_task(task)[0]}/{TEST}", find_task(task).purpose


def load_samples(
    name: str,
    *,
    datasets: Mapping[str, DatasetSpec],
    samples: int | None,
    environ: Mapping[str, str],
    purpose: Purpose = "classification",
    first: bool = False,
) -> Samples:
    """Return `samples` of `<data set>/<split>` (None: all), drawn by seed or the `first`.

    Those of a task are in the order of the data; pairs are in the order in which they were drawn,
    so that each beginning of them is a draw too.

    Raises NotMeasured where the data is not on this machine, DataError where it is empty, damaged,
    unknown or smaller than asked for.
    """
    dataset, split = split_name(name)
    draw = Draw(count=samples, first=first, in_order=purpose != "pairs")
    if dataset in BUILTIN and dataset not in datasets:
        found = BUILTIN[dataset](split=split, draw=draw, purpose=purpose)
    else:
        reader, source = find_source(name, datasets=datasets, environ=environ)
        found = reader.load(source, draw)
        found = found if found.name == name else replace(found, name=name)
    _check_purpose(found, purpose=purpose)
    if samples is not None and len(found) < samples:
        raise DataError(f"{name} has {len(found)} samples, {samples} are asked for")
    return found


def split_calibration(
    spec: CalibrationSpec, *, pixels: Sequence[str]
) -> tuple[Sequence[int], Sequence[int]]:
    """Return which pairs calibrate and which are held out, of all that were taken, in that order.

    No image is in both, by its pixels: what a quantizer clips is only known on what it has not
    seen.
    """
    used = range(spec.samples)
    seen = {pixels[i] for i in used}
    fresh = [i for i in range(spec.samples, len(pixels)) if pixels[i] not in seen]
    if not fresh:
        raise DataError(
            f"{spec.where}: {spec.data}: all {spec.held_out_samples} held-out samples are copies "
            f"of calibration samples: clipping cannot be measured"
        )
    return used, fresh


def data_key(
    name: str,
    *,
    datasets: Mapping[str, DatasetSpec],
    samples: int | None,
    environ: Mapping[str, str],
    purpose: Purpose = "classification",
    first: bool = False,
) -> str | None:
    """Return a digest of what `load_samples` would give, without decoding; None where that takes
    loading it."""
    dataset, _ = split_name(name)
    drawn = [SEED, purpose] if Draw(count=samples, first=first).is_drawn else []
    if dataset in BUILTIN and dataset not in datasets:
        drawn = [] if dataset == "scenes" else drawn
        folder = Path(__file__).parents[1] / "reference"
        code = "".join(
            (folder / file).read_text(encoding="utf-8") for file in ("scenes.py", "digits.py")
        )
        return _digest(["builtin", code, name, samples, purpose, *drawn])
    reader, source = find_source(name, datasets=datasets, environ=environ)
    if reader.digest is None:
        return None
    kind = source.spec.dataset.partition("/")[0]
    said = _list_settings(source.spec)
    return _digest([kind, reader.digest(source), name, samples, *drawn, *([said] if said else [])])


def _list_settings(spec: DatasetSpec) -> dict[str, Any]:
    """Return what a suite says of how a data set is read, where that is not the default."""
    found: dict[str, Any] = {}
    for section in filter(None, (spec, spec.columns)):
        for name, (field, _) in keys_of(type(section)).items():
            value = getattr(section, field.name)
            if name not in PLACES and value != field.default:
                found[name] = value
    return found


def read_class_texts(
    name: str, *, datasets: Mapping[str, DatasetSpec], environ: Mapping[str, str]
) -> tuple[list[str], list[str]]:
    """Return class names and templates of a data set whose files a user writes; else none."""
    dataset, _ = split_name(name)
    if dataset in BUILTIN and dataset not in datasets:
        return [], []
    reader, source = find_source(name, datasets=datasets, environ=environ)
    return reader.read_texts(source)


def locate_texts(
    name: str, *, datasets: Mapping[str, DatasetSpec], environ: Mapping[str, str]
) -> TextPlaces:
    """Return where class names and templates of `<data set>/<split>` stand; nowhere for what
    comes with a package."""
    dataset, _ = split_name(name)
    if dataset in BUILTIN and dataset not in datasets:
        return TextPlaces()
    reader, source = find_source(name, datasets=datasets, environ=environ)
    return reader.locate_texts(source)


def find_source(
    name: str, *, datasets: Mapping[str, DatasetSpec], environ: Mapping[str, str]
) -> tuple[DatasetReader, Source]:
    """Return what reads `<data set>/<split>` of a suite, and from where.

    Raises DataError for a data set that the suite does not declare, or declares without a root,
    NotMeasured where that is not on this machine.
    """
    dataset, split = split_name(name)
    spec = datasets.get(dataset)
    if spec is None:
        known = [*BUILTIN, *datasets]
        close = difflib.get_close_matches(dataset, known, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else f"; known here: {', '.join(known)}"
        raise DataError(
            f"unknown data set {dataset!r}{hint}; name others under `datasets:` with their root"
        )
    if spec.root is None:
        raise DataError(f"{spec.where}: data set {dataset!r} needs a root: the folder it is in")
    root = expand_path(spec.root, where=spec.where.of("root"), environ=environ)
    reader = find_reader(spec.dataset)
    check_spec(spec, reader=reader)
    called = spec.test_split if split == "test" else split
    return reader, Source(name=name, spec=spec, root=root, split=called)


def check_spec(spec: DatasetSpec, *, reader: DatasetReader) -> None:
    """Raise DataError for keys of a data set that its reader has no use for."""
    if reader.takes_columns:
        return
    if reader.keeps_columns:
        for key in ("image", "label", "captions"):
            if spec.columns is not None and getattr(spec.columns, key):
                raise DataError(
                    f"{spec.columns.where.of(key)}: {spec.dataset} has images, labels and captions "
                    f"of its own: remove {key}, and name further columns under keep"
                )
        return
    for key in ("columns", "captions_per_image"):
        if getattr(spec, key) is not None:
            raise DataError(
                f"{spec.where.of(key)}: {spec.dataset} has no columns: remove {key}, or use "
                f"imagefolder, parquet or datasets"
            )


def _check_purpose(samples: Samples, *, purpose: Purpose) -> None:
    if purpose in ("pairs", "images"):
        return
    if samples.labels is None and samples.captions is None:
        raise DataError(
            f"{samples.name} has neither labels nor captions: use <data set>/neighbours"
            + "".join(f" ({note})" for note in samples.notes)
        )
    if purpose == "classification" and samples.labels is None:
        raise DataError(
            f"{samples.name} has captions and no labels: use <data set>/retrieval "
            f"or <data set>/neighbours"
        )
    if purpose == "retrieval" and samples.captions is None:
        raise DataError(f"{samples.name} has labels and no captions: use <data set>/classification")


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()
