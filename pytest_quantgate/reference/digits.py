"""Real handwritten digits: scikit-learn's copy of the UCI optical digits, on the scene canvas.

1,797 images of 8 x 8 pixels by 43 writers. The split is made here, per class and by a fixed
seed: two thirds train, one third test. Only the training part is ever trained on.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pytest_quantgate.reference.scenes import IMAGE_SIZE_PX

DigitSplit = Literal["train", "test"]

CLASS_NAMES: tuple[str, ...] = tuple(str(digit) for digit in range(10))
TEMPLATES: tuple[str, ...] = (
    "the digit {c}",
    "a handwritten {c}",
    "a photo of the number {c}",
    "an image of the digit {c}",
    "a picture of a handwritten {c}",
)

_SEED = 1797
_TEST_SHARE = 3  # one image in three
_MARGIN_PX = 4
_DARK, _BRIGHT_PER_STEP = 24, 13  # source values are 0..16, so white is 24 + 16 * 13 = 232


@dataclass(frozen=True, slots=True, kw_only=True)
class Digits:
    """Images uint8 [N, 48, 48, 3] RGB, labels int64 [N] in 0..9, ids ``digits/<index>``."""

    images: NDArray[np.uint8]
    labels: NDArray[np.int64]
    ids: tuple[str, ...]


def load_digit_images(*, split: DigitSplit) -> Digits:
    """Returns one split of the digits, in the order of the source.

    Raises ValueError for an unknown split and ImportError without scikit-learn.
    """
    if split not in ("train", "test"):
        raise ValueError(f"{split!r} is not a split of the digits; splits: train, test")
    from sklearn.datasets import load_digits

    source = load_digits()
    small = source.images.astype(np.int32)
    labels = source.target.astype(np.int64)
    indices = _split_indices(labels=labels, split=split)
    return Digits(
        images=_enlarge(small[indices]),
        labels=labels[indices],
        ids=tuple(f"digits/{index:04d}" for index in indices),
    )


def _split_indices(*, labels: NDArray[np.int64], split: str) -> NDArray[np.int64]:
    stream = np.random.RandomState(_SEED)
    test: list[int] = []
    for digit in range(10):
        members = stream.permutation(np.flatnonzero(labels == digit))
        test.extend(int(i) for i in members[: len(members) // _TEST_SHARE])
    is_test = np.zeros(len(labels), dtype=bool)
    is_test[test] = True
    return np.flatnonzero(is_test if split == "test" else ~is_test).astype(np.int64)


def _enlarge(small: NDArray[np.int32]) -> NDArray[np.uint8]:
    """Returns uint8 [N, 48, 48, 3] from [N, 8, 8] in 0..16: bilinear, in integers."""
    inner = IMAGE_SIZE_PX - 2 * _MARGIN_PX
    scale = inner // 8
    # Positions of the output pixels' centres among the source's, in 1/(2 * scale).
    place = np.clip(2 * np.arange(inner, dtype=np.int32) + 1 - scale, 0, 14 * scale)
    low = np.minimum(place // (2 * scale), 6)
    weight = place - low * 2 * scale
    rows = small[:, low] * (2 * scale - weight)[:, None] + small[:, low + 1] * weight[:, None]
    both = rows[:, :, low] * (2 * scale - weight) + rows[:, :, low + 1] * weight
    bright = _DARK + (both * _BRIGHT_PER_STEP) // (4 * scale * scale)
    canvas = np.full((len(small), IMAGE_SIZE_PX, IMAGE_SIZE_PX), _DARK, dtype=np.int32)
    canvas[:, _MARGIN_PX:-_MARGIN_PX, _MARGIN_PX:-_MARGIN_PX] = bright
    image: NDArray[np.uint8] = np.repeat(canvas[..., None], 3, axis=3).astype(np.uint8)
    return image
