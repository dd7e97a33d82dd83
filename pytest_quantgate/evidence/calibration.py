"""How a variant got its ranges: which images, in which order, through which towers."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True, kw_only=True)
class CalibrationImages:
    """Which images calibrated a variant.

    `sources` counts them by where their ids say they are from, `contents` is the SHA-256 of their
    sorted content hashes, `order` of the same as they came. `held_out` counts those that are also
    held-out images. `hashes` are there where the whole list is.
    """

    sources: Mapping[str, int]
    contents: str
    order: str
    held_out: int
    hashes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Calibrated:
    """What is known of one side's calibration: `facts` by name, and the images."""

    facts: Mapping[str, str] = field(default_factory=dict)
    images: CalibrationImages | None = None


def describe_images(
    samples: Sequence[Sequence[str]], *, held_out: Sequence[Sequence[str]]
) -> CalibrationImages:
    """Return what two lists of (content hash, sample id) say."""
    hashes = tuple(str(item[0]) for item in samples)
    kept_back = {str(item[0]) for item in held_out}
    return CalibrationImages(
        sources=dict(sorted(Counter(_source(str(item[1])) for item in samples).items())),
        contents=_digest(sorted(hashes)),
        order=_digest(hashes),
        held_out=sum(content in kept_back for content in hashes),
        hashes=hashes,
    )


def _source(sample_id: str) -> str:
    return sample_id.rpartition("/")[0] or "no folder"


def _digest(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
