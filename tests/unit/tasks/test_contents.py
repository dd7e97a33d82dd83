"""What pictures show: equal pixels in any file, and pictures that look alike."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pytest_quantgate.errors import MissingPackage
from pytest_quantgate.tasks import contents
from pytest_quantgate.tasks.contents import (
    NEAR_BITS,
    Contents,
    find_near_copies,
    hash_look,
    hash_pixels,
    read_contents,
)
from pytest_quantgate.tasks.samples import Samples

pytestmark = pytest.mark.slow


def picture(seed: int, *, side: int = 48) -> Image.Image:
    """Return grey noise with about the spectrum of photographs, in one tint."""
    noise = np.random.default_rng(seed)
    layers = [
        Image.fromarray(noise.integers(0, 256, (rough, rough), dtype=np.uint8)).resize(
            (side, side), Image.Resampling.BICUBIC
        )
        for rough in (3, 6, 12, side // 2)
    ]
    mixed = np.average([np.asarray(layer) for layer in layers], axis=0, weights=[8, 4, 2, 1])
    tint = noise.uniform(0.7, 1, 3)
    return Image.fromarray((mixed[:, :, None] * tint).astype(np.uint8))


def encode(image: Image.Image, kind: str, **options: Any) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return Image.open(stream)


def differ(first: Any, second: Any) -> int:
    return (int(hash_look(first), 16) ^ int(hash_look(second), 16)).bit_count()


@pytest.mark.parametrize(
    "again",
    [
        lambda image: encode(image, "PNG"),
        lambda image: encode(image, "WEBP", lossless=True),
        lambda image: encode(image.convert("RGBA"), "PNG"),
        np.asarray,
    ],
    ids=["png", "webp", "rgba", "array"],
)
def test_the_same_pixels_in_another_file_are_the_same(
    again: Callable[[Image.Image], Any],
) -> None:
    image = picture(1)

    assert hash_pixels(again(image)) == hash_pixels(image)
    assert hash_look(again(image)) == hash_look(image)


def test_other_pixels_are_others() -> None:
    image = picture(1)
    one = np.array(image)
    one[3, 4, 1] ^= 1

    assert len({hash_pixels(i) for i in (image, one, image.rotate(90), picture(2))}) == 4
    # Bytes in a row say nothing without the size.
    flat = np.zeros((2, 8, 3), dtype=np.uint8)
    assert hash_pixels(flat) != hash_pixels(flat.reshape(8, 2, 3))


@pytest.mark.parametrize(
    "change",
    [
        lambda image: encode(image, "JPEG", quality=90),
        lambda image: image.resize((224, 224), Image.Resampling.BICUBIC),
        lambda image: image.resize((24, 24), Image.Resampling.LANCZOS),
        lambda image: encode(image.resize((96, 96)), "JPEG", quality=75),
        lambda image: image.convert("L"),
    ],
    ids=["jpeg", "larger", "smaller", "larger-jpeg", "grey"],
)
def test_a_picture_that_was_resized_or_compressed_looks_the_same(
    change: Callable[[Image.Image], Image.Image],
) -> None:
    for seed in range(20):
        image = picture(seed)
        assert hash_pixels(change(image)) != hash_pixels(image)
        assert differ(change(image), image) <= NEAR_BITS
        assert differ(picture(seed + 1), image) > 4 * NEAR_BITS


def test_a_flat_picture_looks_like_nothing() -> None:
    assert hash_look(np.full((9, 9, 3), 200, dtype=np.uint8)) == ""
    assert hash_look(np.full((9, 9, 3), 7, dtype=np.uint8)) == ""
    assert read(Image.new("RGB", (4, 4)), prefix="a").looks == ("",)
    assert not find_near_copies(
        read(Image.new("RGB", (4, 4)), prefix="a"),
        read(Image.new("RGB", (4, 4), (9, 9, 9)), prefix="b"),
    )


def read(*images: Any, prefix: str) -> Contents:
    samples = Samples(
        name="photos",
        ids=tuple(f"{prefix}{i}" for i in range(len(images))),
        images=images,
        hashes=("0",) * len(images),
        captions=(("x",),) * len(images),
    )
    return read_contents(samples)


def test_near_copies_are_found_with_their_originals() -> None:
    used = read(*(picture(i) for i in range(8)), prefix="train/")
    evaluated = read(
        picture(40),
        encode(picture(3), "JPEG", quality=90),
        picture(5),
        picture(6).resize((96, 96)),
        prefix="test/",
    )
    found = find_near_copies(evaluated, used)

    assert {(copy.sample, copy.like) for copy in found} == {
        ("test/1", "train/3"),
        ("test/3", "train/6"),
    }
    assert [copy.bits for copy in found] == sorted(copy.bits for copy in found)
    assert all(0 <= copy.bits <= NEAR_BITS for copy in found)


LOOKS = st.lists(st.binary(min_size=32, max_size=32), min_size=0, max_size=12)


@settings(deadline=None)
@given(LOOKS, LOOKS, st.data())
def test_the_search_finds_what_comparing_all_pairs_finds(
    first: list[bytes], second: list[bytes], data: st.DataObject
) -> None:
    """With hashes planted at any distance up to 20 bits, also where a picture is there twice."""
    for _ in range(data.draw(st.integers(0, 4))):
        if second:
            value = int.from_bytes(data.draw(st.sampled_from(second)))
            for bit in data.draw(st.sets(st.integers(0, 255), max_size=20)):
                value ^= 1 << bit
            first.append(value.to_bytes(32))

    def make(looks: list[bytes], prefix: str) -> Contents:
        names = tuple(f"{prefix}{i}" for i in range(len(looks)))
        return Contents(ids=names, pixels=names, looks=tuple(look.hex() for look in looks))

    evaluated, used = make(first, "a"), make(second, "b")
    closest = {
        name: min(
            ((int(a, 16) ^ int(b, 16)).bit_count() for b in used.looks), default=NEAR_BITS + 1
        )
        for name, a in zip(evaluated.ids, evaluated.looks, strict=True)
    }
    found = {copy.sample: copy.bits for copy in find_near_copies(evaluated, used)}
    assert found == {name: bits for name, bits in closest.items() if bits <= NEAR_BITS}


def test_many_pairs_are_compared_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    names = tuple(f"{i:064x}" for i in range(300))
    many = Contents(ids=names, pixels=names, looks=names)
    others = Contents(ids=names, pixels=names[::-1], looks=names)
    whole = find_near_copies(many, others)

    monkeypatch.setattr(contents, "PAIRS_AT_ONCE", 7)
    assert find_near_copies(many, others) == whole
    assert not whole  # every picture of the one is in the other
    other = Contents(ids=names, pixels=tuple(f"x{name}" for name in names), looks=names)
    assert len(find_near_copies(many, other)) == 300


def test_without_imagehash_the_install_line_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "imagehash", None)
    with pytest.raises(MissingPackage, match=r"pip install 'pytest-quantgate\[clip\]'"):
        hash_look(picture(1))


def test_contents_are_of_every_sample() -> None:
    with pytest.raises(ValueError, match="1 contents of 2 samples"):
        Contents(ids=("a", "b"), pixels=("1",), looks=("", ""))
    both = Contents(ids=("a", "b"), pixels=("1", "2"), looks=("", "3"))
    assert both.select([1]) == Contents(ids=("b",), pixels=("2",), looks=("3",))


def test_columns_are_the_class_and_what_the_data_keeps_as_texts() -> None:
    blank = np.zeros((2, 2, 3), np.uint8)
    samples = Samples(
        name="x",
        ids=("a", "b"),
        images=[blank, blank],
        hashes=("", ""),
        labels=(1, 0),
        class_names=("cat", "dog"),
        columns={"lux": (3, None), "class": ("x", "y")},
    )

    shown = read_contents(samples)

    assert shown.columns == {"class": ("dog", "cat"), "lux": ("3", "")}
    assert shown.select([1]).columns == {"class": ("cat",), "lux": ("",)}
