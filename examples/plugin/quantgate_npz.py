"""A kind of data set of your own: NumPy archives, ROOT/<split>.npz, with images and labels.

datasets:
  tiles: {dataset: npz, root: "${QUANTGATE_DATASET}"}

An archive holds `images` (uint8, [N, H, W, 3]) and `labels` (whole numbers, [N]); the names of the
classes stand in ROOT/classnames.txt, one a line.
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy

from pytest_quantgate.errors import DataError, NotMeasured
from pytest_quantgate.tasks.class_texts import CLASS_NAMES, read_lines, read_templates
from pytest_quantgate.tasks.drawing import Draw
from pytest_quantgate.tasks.enclosure import check_inside
from pytest_quantgate.tasks.reader import Counted, DatasetReader, Source
from pytest_quantgate.tasks.samples import Samples, Selected


def find_archive(source: Source) -> Path:
    if not re.fullmatch(r"\w[\w.-]*", source.split):  # it becomes part of a file's name
        raise DataError(f"{source.name}: {source.split!r} is no name of a split")
    path = source.root / f"{source.split}.npz"
    if not path.is_file():
        raise NotMeasured(f"{source.name}: {path} is not on this machine: put it there")
    return check_inside(path, root=source.root)


def read_arrays(source: Source) -> tuple[Any, Any]:
    """Return images [N, H, W, 3] and labels [N]; nothing is unpickled."""
    path = find_archive(source)
    try:
        with numpy.load(path, allow_pickle=False) as arrays:
            images, labels = arrays["images"], arrays["labels"]
    except (OSError, KeyError, ValueError) as error:
        raise DataError(f"{path} holds no images and labels: {error}") from error
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != numpy.uint8:
        raise DataError(f"{path}: images are {images.dtype} {images.shape}, not uint8 [N, H, W, 3]")
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iu":
        raise DataError(
            f"{path}: labels are {labels.dtype} {labels.shape}, one a picture is needed"
        )
    return images, labels


def load(source: Source, draw: Draw) -> Samples:
    """Return the drawn samples, in the order of the archive."""
    images, labels = read_arrays(source)
    classes = read_lines(source.root, CLASS_NAMES)
    drawn = draw.choose(total=len(images), labels=labels.tolist())
    return Samples(
        name=source.name,
        ids=tuple(f"{row:06d}" for row in drawn),
        images=Selected(images=images, indices=tuple(drawn)),
        hashes=tuple(hashlib.sha256(images[row].tobytes()).hexdigest() for row in drawn),
        labels=tuple(int(labels[row]) for row in drawn),
        class_names=tuple(classes),
        templates=tuple(read_templates(source.root)),
    )


def count(source: Source) -> Counted:
    """Return how much there is, for `quantgate plan`."""
    _, labels = read_arrays(source)
    return Counted(images=len(labels), classes=tuple(Counter(labels.tolist()).values()))


READER = DatasetReader(load=load, count=count)
