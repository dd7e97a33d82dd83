"""Encoded images become RGB on access, and what that changes is said."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from PIL import Image

from pytest_quantgate.errors import DataError
from pytest_quantgate.tasks.contents import read_contents
from pytest_quantgate.tasks.pictures import ORIENTATION, Pictures
from pytest_quantgate.tasks.samples import Samples


@dataclass(frozen=True)
class Held:
    contents: Sequence[bytes]

    def __len__(self) -> int:
        return len(self.contents)

    def read(self, index: int) -> bytes:
        return self.contents[index]

    def locate(self, index: int) -> str:
        return f"photos: row {index}"


def encode(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def halves() -> Image.Image:
    """Red on the left, blue on the right, wider than high."""
    image = Image.new("RGB", (8, 4), (255, 0, 0))
    image.paste((0, 0, 255), (4, 0, 8, 4))
    return image


def turned(orientation: Any) -> bytes:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return encode(halves(), exif=exif)


def test_exif_turns_an_image_only_where_the_suite_says_so() -> None:
    stored, rotated = (Pictures(encoded=Held([turned(6)]), rotate=r) for r in (False, True))

    assert stored[0].size == (8, 4)
    assert rotated[0].size == (4, 8)
    assert rotated[0].getpixel((0, 0)) == (255, 0, 0)
    assert rotated[0].getpixel((0, 7)) == (0, 0, 255)
    assert stored.look(0).list_changes(rotated=False) == ("not turned, though EXIF says so",)
    assert rotated.look(0).list_changes(rotated=True) == ("turned as EXIF says",)


MODES: dict[str, tuple[Callable[[], bytes], tuple[str, ...]]] = {
    "RGB": (lambda: encode(halves()), ()),
    "grey": (lambda: encode(halves().convert("L")), ()),
    "black and white": (lambda: encode(halves().convert("1")), ()),
    "palette": (lambda: encode(halves().convert("P")), ()),
    "upright": (lambda: turned(1), ()),
    "no orientation": (lambda: turned(77), ()),
    "alpha": (
        lambda: encode(halves().convert("RGBA")),
        ("RGBA made RGB: transparency dropped",),
    ),
    "one colour transparent": (
        lambda: encode(halves().convert("P"), transparency=0),
        ("P made RGB: transparency dropped",),
    ),
    "16 bits": (
        lambda: encode(Image.fromarray(np.full((4, 4), 900, dtype=np.uint16))),
        ("I;16 made RGB: values above 255 cut off",),
    ),
    "CMYK": (
        lambda: encode(halves().convert("CMYK"), "JPEG"),
        ("CMYK made RGB: colours converted",),
    ),
    "animated": (
        lambda: encode(
            halves(), "GIF", save_all=True, append_images=[halves().transpose(Image.Transpose(0))]
        ),
        ("first frame of several taken",),
    ),
}


@pytest.mark.parametrize("kind", MODES)
def test_what_decoding_changes_is_said(kind: str) -> None:
    make, changes = MODES[kind]
    pictures = Pictures(encoded=Held([make()]))

    assert pictures[0].mode == "RGB"
    assert pictures.look(0).list_changes(rotated=False) == changes
    if kind == "animated":
        assert pictures[0].getpixel((0, 0))[0] > 200


def test_changes_are_counted_over_samples_and_follow_a_selection() -> None:
    names = ("RGB", "alpha", "animated", "alpha")
    encoded = Held([*(MODES[name][0]() for name in names), turned(3)])
    samples = Samples(
        name="photos/test",
        ids=tuple("abcde"),
        images=Pictures(encoded=encoded),
        hashes=("0",) * 5,
        captions=(("x",),) * 5,
        notes=("column 'cls' is taken for the label",),
    )
    pytest.importorskip("imagehash")

    shown = read_contents(samples.select([4, 1, 0, 3, 2]))

    assert shown.describe("photos") == (
        "photos: column 'cls' is taken for the label",
        "photos: decoding changes 4 of 5 images: 2 RGBA made RGB: transparency dropped, "
        "1 first frame of several taken, 1 not turned, though EXIF says so",
    )
    assert shown.select([2]).describe("photos") == shown.describe("photos")[:1]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not an image",
        encode(halves(), "TIFF"),
        encode(halves(), "EPS"),
        encode(halves())[:-30],
        encode(Image.new("1", (20_000, 20_000))),
    ],
    ids=["empty", "text", "TIFF", "PostScript", "cut short", "bomb"],
)
def test_what_is_no_image_or_too_large_is_refused_with_its_place(content: bytes) -> None:
    pictures = Pictures(encoded=Held([content]))

    with pytest.raises(DataError, match=r"^photos: row 0 cannot be decoded: "):
        _ = pictures[0]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is empty"),
        (
            b"<html>404</html>",
            "it begins with b'<html>404</h', as none of JPEG, PNG, WEBP, GIF, BMP does",
        ),
    ],
)
def test_what_is_no_image_is_called_the_same_in_every_run(content: bytes, words: str) -> None:
    """Pillow's own message has an address in it."""
    with pytest.raises(DataError) as refused:
        Pictures(encoded=Held([content])).look(0)
    assert str(refused.value) == f"photos: row 0 cannot be decoded: {words}"


def test_a_slice_is_a_list_of_images() -> None:
    pictures = Pictures(encoded=Held([turned(1), encode(Image.new("L", (2, 3)))]))

    assert [image.size for image in pictures[:]] == [(8, 4), (2, 3)]
