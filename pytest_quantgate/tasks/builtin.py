"""The data sets that ship: rendered scenes and real handwritten digits."""

from __future__ import annotations

import hashlib
from typing import Literal, get_args

from pytest_quantgate.errors import DataError, MissingPackage
from pytest_quantgate.tasks.drawing import Draw
from pytest_quantgate.tasks.samples import Samples

#: What samples are for: labelled images, captions, pairs that calibrate, or pictures alone.
Purpose = Literal["classification", "retrieval", "pairs", "images"]

#: How many scenes a split has where a suite sets no `samples`.
SCENES = 5000
RETRIEVAL_SCENES = 1000


def load_scenes(*, split: str, draw: Draw, purpose: Purpose) -> Samples:
    """Return rendered scenes: labelled for classification, captioned for retrieval and pairs.

    They are random as they are rendered: the first so many are a draw already.
    """
    from pytest_quantgate.reference import scenes

    _check_split(split, known=get_args(scenes.Split), name="scenes")
    if purpose == "retrieval":
        drawn = scenes.render_retrieval(split=split, count=draw.count or RETRIEVAL_SCENES)  # type: ignore[arg-type]
    else:
        drawn = scenes.render_scenes(
            split=split,  # type: ignore[arg-type]
            count=draw.count or SCENES,
            kind="mixed" if purpose == "pairs" else "single",
        )
    labelled = purpose == "classification"
    return Samples(
        name=f"scenes/{split}",
        ids=drawn.ids,
        images=drawn.images,
        hashes=tuple(hashlib.sha256(image.tobytes()).hexdigest() for image in drawn.images),
        labels=tuple(int(label) for label in drawn.labels) if labelled else None,
        captions=None if labelled else tuple((caption,) for caption in drawn.captions),
        class_names=scenes.CLASS_NAMES if labelled else (),
        templates=scenes.TEMPLATES if labelled else (),
    )


def load_digits(*, split: str, draw: Draw, purpose: Purpose) -> Samples:
    """Return handwritten digits with their labels."""
    _check_split(split, known=("train", "test"), name="digits")
    if purpose == "retrieval":
        raise DataError("digits have labels and no captions: use digits/classification")
    try:
        from pytest_quantgate.reference import digits
    except ImportError as error:
        raise MissingPackage(
            error.name or "numpy", extra="clip", purpose="the data set digits"
        ) from error
    found = digits.load_digit_images(split=split)  # type: ignore[arg-type]
    labels = tuple(int(label) for label in found.labels)
    everything = Samples(
        name=f"digits/{split}",
        ids=found.ids,
        images=found.images,
        hashes=tuple(hashlib.sha256(image.tobytes()).hexdigest() for image in found.images),
        labels=labels,
        class_names=digits.CLASS_NAMES,
        templates=digits.TEMPLATES,
    )
    return everything.select(draw.choose(total=len(everything), labels=labels))


def _check_split(split: str, *, known: tuple[str, ...], name: str) -> None:
    if split not in known:
        raise DataError(f"{name} has no split {split!r}; splits: {', '.join(known)}")
