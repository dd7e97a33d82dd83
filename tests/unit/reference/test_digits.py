"""The digits: a fixed split, nothing on both sides, whole images on the canvas."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from pytest_quantgate.reference.digits import DigitSplit, load_digit_images

# Digest of the image bytes of each split. It changes only together with the weights.
DIGESTS: dict[DigitSplit, str] = {
    "train": "b1aa126cfc222cfd56dbb48a0dcd7cd427f628d16b3b662457a8b2670e6f8c47",
    "test": "8fd7c9cbb8657d0b466c8885f0e20d4a74eb03390fe047040a7c560382342163",
}


@pytest.mark.parametrize("split", DIGESTS)
def test_the_images_are_pinned(split: DigitSplit) -> None:
    images = load_digit_images(split=split).images
    assert hashlib.sha256(images.tobytes()).hexdigest() == DIGESTS[split]


def test_the_splits_share_no_id_and_no_image() -> None:
    train, test = load_digit_images(split="train"), load_digit_images(split="test")
    assert (len(train.ids), len(test.ids)) == (1201, 596)
    assert not set(train.ids) & set(test.ids)
    digests = [
        {hashlib.sha256(image.tobytes()).hexdigest() for image in part.images}
        for part in (train, test)
    ]
    assert not digests[0] & digests[1]


def test_the_split_is_stratified() -> None:
    train, test = load_digit_images(split="train"), load_digit_images(split="test")
    in_test = np.bincount(test.labels)
    whole = in_test + np.bincount(train.labels)
    assert np.array_equal(in_test, whole // 3)


def test_shapes_types_and_margins() -> None:
    digits = load_digit_images(split="test")
    assert digits.images.shape == (596, 48, 48, 3)
    assert digits.images.dtype == np.uint8
    assert digits.labels.dtype == np.int64
    assert (digits.images[:, :4] == 24).all()
    assert int(digits.images.max()) == 24 + 16 * 13
    assert (digits.images[..., 0] == digits.images[..., 2]).all()


def test_an_unknown_split_is_named() -> None:
    with pytest.raises(ValueError, match="'validation' is not a split of the digits"):
        load_digit_images(split="validation")  # type: ignore[arg-type]
