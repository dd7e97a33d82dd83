"""What makes two measurements comparable, and why two are not."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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

#: No more entries of a recipe are named on either side.
ENTRIES_SHOWN = 3


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """What a stored result depends on: digests (SHA-256, hex), and in words what can be said so.

    `recipe` is the digest of the recipe as the suite writes it, and of the exclude list.
    `recipe_entries` is what the installed ModelOpt makes of it, one line an entry of its
    `quant_cfg` in order, and the algorithm. `settings` are the suite's and the run's by the name
    that a reader knows (`dtype`, `calibration samples`). `data_parts` are the digests of the parts
    of the data (see `digest_parts`). The last three are empty in what version 0.1 wrote.

    Library versions are not part of it: what they change is drift, and drift is to be measured.
    """

    model: str
    data: str
    calibration: str
    recipe: str
    recipe_entries: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    data_parts: Mapping[str, str] = field(default_factory=dict)

    @property
    def variant(self) -> str:
        """Digest of what the quantized variant is made of, whatever it is judged on."""
        return digest_of((self.model, self.calibration, self.recipe))


def differences(stored: Fingerprint, now: Fingerprint) -> tuple[str, ...]:
    """Return a sentence for each thing that differs; empty where results may be compared.

    What the stored side does not say is not compared: `list_unknown` names it.
    """
    named = {
        name: f"{name} {stored.settings[name] or 'none'} -> {now.settings[name] or 'none'}"
        for name in now.settings
        if name in stored.settings and stored.settings[name] != now.settings[name]
    }
    # A recipe whose content is known is what it does, however it is called.
    renamed = named.pop("recipe", "recipe content differs") if stored.recipe_entries else ""
    found = list(named.values())
    if stored.recipe_entries and stored.recipe_entries != now.recipe_entries:
        changed = _describe_entries(stored.recipe_entries, now.recipe_entries)
        found.append(f"{renamed}: now {changed}")
    for name, label in LABELS.items():
        before, after = getattr(stored, name), getattr(now, name)
        known = name == "recipe" and stored.recipe_entries
        if before == after or known or any(key.startswith(f"{name} ") for key in named):
            continue
        parts = list_changed_parts(stored.data_parts, now.data_parts)
        which = f" in {', '.join(parts)}" if name == "data" and parts else ""
        found.append(f"{label} differ{which}: baseline {before[:12]}, now {after[:12]}")
    return tuple(found)


def list_unknown(stored: Fingerprint, now: Fingerprint) -> tuple[str, ...]:
    """Return what a stored side does not say, so that it could not be compared."""
    unknown = [name for name in now.settings if name not in stored.settings]
    if now.recipe_entries and not stored.recipe_entries:
        unknown.append("recipe content")
    return tuple(unknown)


def list_changed_parts(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Return the parts of the data that differ, or else those that one side alone has; none where
    a side says nothing of its parts."""
    changed = [part for part in after if part in before and before[part] != after[part]]
    if changed or not before or not after:
        return changed
    return sorted(before.keys() ^ after.keys())


def _describe_entries(before: Sequence[str], after: Sequence[str]) -> str:
    gone = [line for line in before if line not in after]
    come = [line for line in after if line not in before]
    parts = [
        f"{word} {'; '.join(lines[:ENTRIES_SHOWN])}"
        + (f" and {len(lines) - ENTRIES_SHOWN} more" if len(lines) > ENTRIES_SHOWN else "")
        for word, lines in (("without", gone), ("with", come))
        if lines
    ]
    return ", ".join(parts) or "in another order"


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
        # As texts: a value may be NaN, which canonical JSON has no word for.
        **{f"column {name}": list(map(repr, of)) for name, of in samples.columns.items()},
        **({"decoding": samples.decoding} if samples.decoding else {}),
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
