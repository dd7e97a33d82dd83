"""What pictures show: digests of decoded pixels, perceptual hashes, and pictures that look alike.

Two files of one picture in two formats have the same pixels. One that was resized or compressed
again has others, but looks the same to a perceptual hash.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pytest_quantgate.errors import MissingPackage
from pytest_quantgate.evidence.audit import NearCopy
from pytest_quantgate.tasks.samples import Samples

#: What the class of a sample is called among its columns.
CLASS = "class"

#: Bits of a perceptual hash, and in how many of them near copies differ at most. Measured on pairs
#: of different pictures: no pair so close in 10,000 x 2,048 photographs of CIFAR-10, 5,000 x 640
#: scenes, 85 x 85 of MS-COCO; one of 596 x 1,201 handwritten digits. A picture scaled by 3/4 to 7,
#: or compressed again in JPEG of quality 75, is closer than this to its original.
HASH_SIDE = 16
NEAR_BITS = 15

#: A picture whose grey levels are all within so many of each other is flat: it looks like nothing.
FLAT_LEVELS = 8

#: About so many pairs of hashes are compared at once.
PAIRS_AT_ONCE = 1 << 18


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What the images of samples show, one entry a sample.

    `pixels` are SHA-256 of size and decoded RGB pixels; `looks` perceptual hashes in hex, empty for
    a flat picture. `changes` are what decoding did to each beyond reading its pixels, empty where
    that is nothing, or where nobody says; `notes` are those of the samples. `columns` are the class
    and the further values of each sample, as texts, by what they are called.
    """

    ids: tuple[str, ...]
    pixels: tuple[str, ...]
    looks: tuple[str, ...]
    changes: tuple[tuple[str, ...], ...] = ()
    notes: tuple[str, ...] = ()
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not len(self.ids) == len(self.pixels) == len(self.looks):
            raise ValueError(f"{len(self.pixels)} contents of {len(self.ids)} samples")
        if self.changes and len(self.changes) != len(self.ids):
            raise ValueError(f"{len(self.changes)} changes of {len(self.ids)} samples")

    def select(self, indices: Iterable[int]) -> Contents:
        """Return those at `indices`, in that order."""
        chosen = tuple(indices)
        ids, pixels, looks = (
            tuple(values[i] for i in chosen) for values in (self.ids, self.pixels, self.looks)
        )
        changes = tuple(self.changes[i] for i in chosen) if self.changes else ()
        columns = {name: tuple(of[i] for i in chosen) for name, of in self.columns.items()}
        return Contents(
            ids=ids,
            pixels=pixels,
            looks=looks,
            changes=changes,
            notes=self.notes,
            columns=columns,
        )

    def describe(self, name: str) -> tuple[str, ...]:
        """Return what was guessed about the data, and how many images decoding changed, in lines.

        A file says nothing of what serves the model: whoever reads it compares.
        """
        found = Counter(change for changes in self.changes for change in changes)
        lines = [f"{name}: {note}" for note in self.notes]
        if found:
            said = ", ".join(f"{number} {change}" for change, number in sorted(found.items()))
            changed = sum(map(bool, self.changes))
            lines.append(f"{name}: decoding changes {changed} of {len(self.ids)} images: {said}")
        return tuple(lines)


def read_contents(samples: Samples, *, progress: Callable[[int], None] | None = None) -> Contents:
    """Return what every image shows: each is decoded. Raises MissingPackage without ImageHash."""
    pixels, looks, changes = [], [], []
    for index in range(len(samples)):
        image = samples.images[index]
        pixels.append(hash_pixels(image))
        looks.append(hash_look(image))
        changes.append(samples.list_changes(index))
        if progress is not None:
            progress(1)
    return Contents(
        ids=samples.ids,
        pixels=tuple(pixels),
        looks=tuple(looks),
        changes=tuple(changes) if any(changes) else (),
        notes=samples.notes,
        columns=list_columns(samples),
    )


def list_columns(samples: Samples) -> dict[str, tuple[str, ...]]:
    """Return the class of each sample as `class`, and its further values, as texts."""
    found: dict[str, tuple[str, ...]] = {}
    if samples.labels is not None:
        found[CLASS] = tuple(samples.class_names[label] for label in samples.labels)
    for name, values in samples.columns.items():
        found.setdefault(name, as_texts(values))
    return found


def as_texts(values: Iterable[Any]) -> tuple[str, ...]:
    """Return the values of a column as slices are named by them; none is an empty text."""
    return tuple("" if value is None else str(value) for value in values)


def count_copies(samples: Samples, *, pixels: Sequence[str], labels: Sequence[int] = ()) -> int:
    """Return how many samples repeat the picture and the label (or the captions) of another.

    `labels` are those that a task goes by: then captions that differ make no other sample.
    """
    said: Sequence[object] | None = samples.labels if samples.captions is None else samples.captions
    if len(labels) == len(samples):
        said = labels
    said = ("",) * len(samples) if said is None else said
    return len(samples) - len(set(zip(pixels, said, strict=True)))


def hash_pixels(image: Any) -> str:
    """Return the SHA-256 of a PIL image or a uint8 array [H, W, 3]: its size and RGB pixels."""
    picture = _as_picture(image)
    return hashlib.sha256(f"{picture.size}".encode() + picture.tobytes()).hexdigest()


def hash_look(image: Any) -> str:
    """Return the perceptual hash of a picture in hex, empty where it is flat.

    pHash: of the picture in grey, scaled to 64 x 64, the 16 x 16 lowest frequencies of the discrete
    cosine transform, each above or below their median (as the ImageHash library computes it).
    """
    try:
        import imagehash
    except ImportError as error:
        raise MissingPackage("ImageHash", extra="clip", purpose="finding near copies") from error
    import numpy

    grey = _as_picture(image).convert("L")
    low, high = grey.getextrema()
    if high - low < FLAT_LEVELS:
        return ""
    bits = imagehash.phash(grey, hash_size=HASH_SIDE).hash
    return numpy.packbits(bits).tobytes().hex()


def _as_picture(image: Any) -> Any:
    from PIL import Image

    return (image if isinstance(image, Image.Image) else Image.fromarray(image)).convert("RGB")


def find_near_copies(evaluated: Contents, used: Contents) -> tuple[NearCopy, ...]:
    """Return for each evaluated picture the closest used one that it looks like, nearest first.

    Where the pixels are equal it is no near copy, but the picture itself.
    """
    # A hash that many pictures share is compared once.
    looks, others = (
        dict(zip(reversed(found.looks), reversed(found.ids), strict=True))
        for found in (evaluated, used)
    )
    nearest: dict[str, tuple[int, str]] = {}
    for look, other, bits in _pair_looks(list(filter(None, looks)), list(filter(None, others))):
        nearest[look] = min((bits, others[other]), nearest.get(look, (bits, others[other])))
    known = set(used.pixels)
    near = [
        NearCopy(sample=name, like=nearest[look][1], bits=nearest[look][0])
        for name, pixels, look in zip(evaluated.ids, evaluated.pixels, evaluated.looks, strict=True)
        if look in nearest and pixels not in known
    ]
    return tuple(sorted(near, key=lambda copy: copy.bits))


def _pair_looks(first: Sequence[str], second: Sequence[str]) -> Iterator[tuple[str, str, int]]:
    """Yield two hashes and in how many bits they differ, where these are at most NEAR_BITS.

    15 bits leave at least one of 16 words equal, so only pairs that agree in a word are compared:
    1,000,000 x 8,192 take seconds. A pair comes once for each such word.
    """
    import numpy

    if not first or not second:
        return
    left, right = (
        numpy.frombuffer(bytes.fromhex("".join(looks)), numpy.uint16).reshape(len(looks), -1)
        for looks in (first, second)
    )
    every_word = numpy.arange(1 << 16, dtype=numpy.uint16).view(numpy.uint8).reshape(-1, 2)
    bits_of = numpy.unpackbits(every_word, axis=1).sum(axis=1, dtype=numpy.uint8)
    for mine, theirs in zip(left.T, right.T, strict=True):
        order = numpy.argsort(theirs, kind="stable")
        start = numpy.searchsorted(theirs, mine, "left", sorter=order)
        stop = numpy.searchsorted(theirs, mine, "right", sorter=order)
        ends = numpy.cumsum(stop - start)
        cuts = numpy.searchsorted(ends, numpy.arange(PAIRS_AT_ONCE, ends[-1], PAIRS_AT_ONCE))
        for rows in numpy.split(numpy.arange(len(left)), cuts):
            counts = (stop - start)[rows]
            a = numpy.repeat(rows, counts)
            within = numpy.arange(len(a)) - numpy.repeat(numpy.cumsum(counts) - counts, counts)
            b = order[numpy.repeat(start[rows], counts) + within]
            bits = bits_of[left[a] ^ right[b]].sum(axis=1)
            for index in numpy.flatnonzero(bits <= NEAR_BITS):
                yield first[a[index]], second[b[index]], int(bits[index])
