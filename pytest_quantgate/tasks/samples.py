"""Samples of a data set: images decoded on access, with ids, content hashes, labels, captions."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Protocol

from pytest_quantgate import bounds
from pytest_quantgate.errors import DataError
from pytest_quantgate.tasks.pictures import Picture
from pytest_quantgate.tasks.spelling import find_twins


class Images(Protocol):
    """What images are read from: a list, an array [N, H, W, 3], or a reader that decodes."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Any: ...


@dataclass(frozen=True, kw_only=True)
class Samples:
    """Part of a data set in a fixed order.

    `images[i]` is a PIL image or a uint8 array [H, W, 3]; it may be decoded at each access.
    `hashes` are SHA-256 of the image content. `labels` index `class_names`; `captions` are the
    texts that describe each image. Either may be None, and both for pictures alone. `columns` are
    further values of each sample, by their names. `decoding` says how images are decoded otherwise
    than as they lie there, `notes` what was guessed about the data or passed over in it.
    """

    name: str
    ids: tuple[str, ...]
    images: Images
    hashes: tuple[str, ...]
    labels: tuple[int, ...] | None = None
    captions: tuple[tuple[str, ...], ...] | None = None
    class_names: tuple[str, ...] = ()
    templates: tuple[str, ...] = ()
    columns: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    decoding: str = ""
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.ids:
            raise DataError(f"{self.name}: the data set is empty: nothing can be measured on it")
        if len(set(self.ids)) < len(self.ids):
            doubled = [name for name, count in Counter(self.ids).items() if count > 1]
            raise DataError(
                f"{self.name}: {len(doubled)} sample ids are not unique, first {doubled[0]!r}"
            )
        check_prompts(self.class_names, self.templates, name=self.name)
        twins = find_twins(self.class_names)
        if twins is not None:
            raise DataError(
                f"{self.name}: the classes {twins[0]!a} and {twins[1]!a} differ only in spaces, or "
                f"in how accents are written (NFC, NFD): write one of them everywhere"
            )
        labels, classes = self.labels or (0,), len(self.class_names)
        if self.labels and not 0 <= min(labels) <= max(labels) < classes:
            index = next(i for i, label in enumerate(labels) if not 0 <= label < classes)
            raise DataError(
                f"{self.name}: sample {self.ids[index]!r} has label {labels[index]}, but there "
                f"are {classes} class names"
            )

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that decides a result: content, labels, captions, names, templates."""
        value = [
            self.ids,
            self.hashes,
            self.labels,
            self.captions,
            self.class_names,
            self.templates,
            # Only where there are any: data that has none is what it was.
            *([self.decoding, dict(self.columns)] if self.decoding or self.columns else []),
        ]
        return hashlib.sha256(json.dumps(value, ensure_ascii=False).encode()).hexdigest()

    def take(self, start: int, stop: int | None = None) -> Samples:
        """Return samples `start:stop`, or the first `start` where `stop` is not given."""
        part = slice(start, stop) if stop is not None else slice(0, start)
        return self.select(range(*part.indices(len(self))))

    def select(self, indices: Sequence[int]) -> Samples:
        """Return the samples at `indices`, in that order."""
        return replace(
            self,
            ids=tuple(self.ids[i] for i in indices),
            images=Selected(images=self.images, indices=tuple(indices)),
            hashes=tuple(self.hashes[i] for i in indices),
            labels=None if self.labels is None else tuple(self.labels[i] for i in indices),
            captions=None if self.captions is None else tuple(self.captions[i] for i in indices),
            columns={
                name: tuple(values[i] for i in indices) for name, values in self.columns.items()
            },
        )

    def look(self, index: int) -> Picture | None:
        """Return what the header of an encoded image says, None where that is not known."""
        return look_at(self.images, index)

    def list_changes(self, index: int) -> tuple[str, ...]:
        """Return what decoding does to an image beyond reading its pixels, where that is known."""
        shown = self.look(index)
        return shown.list_changes(rotated=bool(self.decoding)) if shown is not None else ()

    def text(self, index: int) -> str:
        """Return the text that goes with an image: its first caption, or a filled template.

        Raises DataError where there is none.

        Templates take turns, so that calibration sees all of them.
        """
        if self.captions is not None:
            return self.captions[index][0]
        if self.labels is None:
            raise DataError(
                f"{self.name} has neither labels nor captions: there is no text for a text tower"
            )
        template = self.templates[index % len(self.templates)] if self.templates else "{c}"
        return fill(template, self.class_names[self.labels[index]])


@dataclass(frozen=True, kw_only=True)
class Selected(Sequence[Any]):
    """Some of the images of another sequence, still decoded on access."""

    images: Images
    indices: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self.images[i] for i in self.indices[index]]
        return self.images[self.indices[index]]

    def look(self, index: int) -> Picture | None:
        return look_at(self.images, self.indices[index])


def look_at(images: Images, index: int) -> Picture | None:
    """Return what the header of an encoded image says, None where images come decoded."""
    look = getattr(images, "look", None)
    found: Picture | None = look(index) if look is not None else None
    return found


def check_prompts(class_names: Sequence[str], templates: Sequence[str], *, name: str) -> None:
    """Raise DataError where the class names in all templates would fill the memory."""
    names = sum(map(len, class_names))
    prompts = sum(len(t) * len(class_names) + t.count("{c}") * names for t in templates)
    if prompts > bounds.PROMPT_CHARACTERS:
        raise DataError(
            f"{name}: {len(class_names)} class names in {len(templates)} templates are {prompts} "
            f"characters, at most {bounds.PROMPT_CHARACTERS} are taken: shorten them"
        )


def fill(template: str, class_name: str) -> str:
    """Return a template with its `{c}` replaced, and nothing else evaluated."""
    return template.replace("{c}", class_name)
