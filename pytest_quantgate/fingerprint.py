"""What makes two measurements comparable, and why two are not."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from fractions import Fraction
from pathlib import PurePath
from typing import Any

LABELS = {
    "model": "model weights or files",
    "data": "evaluation data",
    "calibration": "calibration data or settings",
    "recipe": "recipe or exclude list",
}


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """Digests (SHA-256, hex) of all that a stored result depends on.

    Library versions are not part of it: what they change is drift, and drift is to be measured.
    """

    model: str
    data: str
    calibration: str
    recipe: str


def differences(stored: Fingerprint, now: Fingerprint) -> tuple[str, ...]:
    """Return a sentence for each digest that differs; empty where results may be compared."""
    return tuple(
        f"{label} differ: baseline {getattr(stored, name)[:12]}, now {getattr(now, name)[:12]}"
        for name, label in LABELS.items()
        if getattr(stored, name) != getattr(now, name)
    )


def digest_of(value: Any) -> str:
    """Return the SHA-256 of plain data in canonical JSON.

    Takes mappings, sequences, scalars, Fractions, dates, paths and dataclasses; raises TypeError
    for anything else, whose text could change from run to run.
    """
    text = json.dumps(_plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def digest_parts(samples: Any) -> tuple[tuple[str, str], ...]:
    """Return the name and SHA-256 of each part of what was evaluated, as `Samples` has them."""
    parts = {
        "ids": samples.ids,
        "images": samples.hashes,
        "labels": samples.labels,
        "captions": samples.captions,
        "class names": samples.class_names,
        "templates": samples.templates,
    }
    return tuple((name, digest_of(value)) for name, value in parts.items() if value is not None)


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, Fraction):
        return f"{value.numerator}/{value.denominator}"
    if isinstance(value, (date, PurePath)):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: _plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    raise TypeError(f"cannot digest a {type(value).__name__}: {value!r}")
