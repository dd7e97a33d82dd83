"""Encoded images, decoded on access as the encoder is given them: RGB, the first frame."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

from pytest_quantgate.errors import DataError

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp", "gif", "bmp")

#: Nothing else is decoded, whatever a file is called: Pillow hands PostScript to Ghostscript.
IMAGE_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")

ORIENTATION = 0x0112

#: What is lost where an image of another mode becomes RGB. The others become it without loss.
LOSSES = {
    **dict.fromkeys(("RGBA", "LA", "PA", "RGBa", "La"), "transparency dropped"),
    **dict.fromkeys(("I", "I;16", "I;16B", "I;16L", "F"), "values above 255 cut off"),
    **dict.fromkeys(("CMYK", "YCbCr", "LAB", "HSV"), "colours converted"),
}


class Encoded(Protocol):
    """Where the bytes of images are, in the order of the samples."""

    def __len__(self) -> int: ...

    def read(self, index: int) -> bytes:
        """Return the encoded image; raises DataError where it cannot be read."""

    def locate(self, index: int) -> str:
        """Return where it stands, for a message."""


@dataclass(frozen=True, kw_only=True)
class Picture:
    """What the header of an encoded image says; `size` is (width, height) as stored."""

    format: str
    size: tuple[int, int]
    mode: str
    orientation: int
    animated: bool
    transparent: bool

    def list_changes(self, *, rotated: bool) -> tuple[str, ...]:
        """Return what decoding to RGB does to it beyond reading its pixels."""
        changes = []
        if self.orientation != 1:
            done = "turned as EXIF says" if rotated else "not turned, though EXIF says so"
            changes.append(done)
        if self.mode in LOSSES:
            changes.append(f"{self.mode} made RGB: {LOSSES[self.mode]}")
        elif self.transparent:
            changes.append(f"{self.mode} made RGB: transparency dropped")
        if self.animated:
            changes.append("first frame of several taken")
        return tuple(changes)


@dataclass(frozen=True, kw_only=True)
class Pictures(Sequence[Any]):
    """Images decoded to RGB on access; `rotate` turns them as their EXIF orientation says."""

    encoded: Encoded
    rotate: bool = False

    def __len__(self) -> int:
        return len(self.encoded)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        from PIL import ImageOps

        with _decoding(self.encoded, index) as found:
            if self.rotate:
                found = ImageOps.exif_transpose(found)
            return found.convert("RGB")

    def look(self, index: int) -> Picture:
        """Return what the header of an image says, without decoding it; raises DataError."""
        with _decoding(self.encoded, index) as found:
            return Picture(
                format=found.format or "",
                size=found.size,
                mode=found.mode,
                orientation=_read_orientation(found),
                animated=bool(getattr(found, "is_animated", False)),
                transparent="transparency" in found.info,
            )


def _read_orientation(found: Any) -> int:
    """Return the EXIF orientation, 1 to 8; 1 too where there is none, or none that can be read."""
    try:
        value = found.getexif().get(ORIENTATION, 1)
    except (SyntaxError, ValueError, TypeError, LookupError, OSError, struct.error):
        return 1  # nor would anything be turned by it
    return value if value in range(1, 9) else 1


@contextmanager
def _decoding(encoded: Encoded, index: int) -> Iterator[Any]:
    """Open an encoded image within the block; what goes wrong there is a DataError with its place.

    Pillow warns of an image that unfolds to gigabytes, and refuses one twice as big.
    """
    from PIL import Image, UnidentifiedImageError

    content = encoded.read(index)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            yield Image.open(io.BytesIO(content), formats=IMAGE_FORMATS)
    except UnidentifiedImageError as error:  # its text has an address, another one in each run
        begins = f"begins with {content[:12]!r}, as none of {', '.join(IMAGE_FORMATS)} does"
        raise DataError(
            f"{encoded.locate(index)} cannot be decoded: it {begins if content else 'is empty'}"
        ) from error
    except Exception as error:  # a damaged image ends in any of them
        raise DataError(f"{encoded.locate(index)} cannot be decoded: {error}") from error
