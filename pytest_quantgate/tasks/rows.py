"""Tables of images -> samples: which column is what, labels by name or number, captions, ids."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from pytest_quantgate.errors import DataError
from pytest_quantgate.suite.specs import ColumnsSpec, DatasetSpec
from pytest_quantgate.tasks.class_texts import CLASS_NAMES, read_classes, read_templates
from pytest_quantgate.tasks.contents import CLASS, as_texts
from pytest_quantgate.tasks.drawing import Draw
from pytest_quantgate.tasks.pictures import Encoded, Pictures
from pytest_quantgate.tasks.reader import Counted, Source
from pytest_quantgate.tasks.samples import Samples, Selected
from pytest_quantgate.tasks.spelling import spell_plain

#: What columns are usually called, by what they hold.
USUAL = {
    "image": ("image", "img", "images", "photo", "picture", "image_bytes", "file_name", "jpg"),
    "label": ("label", "labels", "class", "category", "cls", "target", "fine_label"),
    "captions": ("captions", "caption", "text", "texts", "sentences"),
    "id": ("id", "key", "__key__"),
}


class Table(Protocol):
    """Rows in the order of the data; values are plain Python ones, None where there is none."""

    @property
    def name(self) -> str:
        """What it is called in messages."""

    @property
    def columns(self) -> Sequence[str]: ...

    def __len__(self) -> int: ...

    def read(self, column: str) -> Sequence[Any]:
        """Return the values of a column; raises DataError where they are no texts or numbers."""

    def locate(self, row: int) -> str:
        """Return the place of a row: its file, and its line or number."""


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """Which columns hold what; `notes` are those that were guessed, in words."""

    image: str
    label: str
    captions: tuple[str, ...]
    id: str
    keep: tuple[str, ...]
    notes: tuple[str, ...]


def choose_columns(table: Table, *, spec: DatasetSpec, image: str = "") -> Chosen:
    """Return which columns hold what: as the suite says, else by their usual names.

    Raises DataError for a column that is not there, for none that could be the image, and where
    several could be the same. `image` is what it is always called in this kind
    of table.
    """
    said = spec.columns or ColumnsSpec(where=spec.where)
    named = {
        "image": (said.image,) if said.image else (image,) if image else (),
        "label": (said.label,) if said.label else (),
        "captions": said.captions,
        "id": (said.id,) if said.id else (),
    }
    for role, names in (*named.items(), ("keep", said.keep)):
        for name in names:
            if name not in table.columns:
                close = difflib.get_close_matches(name, table.columns, n=1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                place = said.where.of(role) if spec.columns else table.name
                raise DataError(
                    f"{place}: {table.name} has no column {name!r}{hint}; its columns: "
                    f"{', '.join(map(repr, table.columns)) or 'none'}"
                )
    taken = {name for names in named.values() for name in names} | {*said.keep}
    notes = []
    for role, usual in USUAL.items():
        if named[role]:
            continue
        found = [name for name in table.columns if name.lower() in usual and name not in taken]
        if len(found) > 1 and role != "id":
            raise DataError(
                f"{spec.where}: {table.name}: each of the columns {', '.join(map(repr, found))} "
                f"could be the {role}: write columns: {{{role}: {found[0]}}} for the right one"
            )
        if found:
            named[role] = (found[0],)
            taken.add(found[0])
            if found[0] != role and role != "id":  # that is said where it is used
                notes.append(f"column {found[0]!r} is taken for the {role}")
    others = f"its columns: {', '.join(map(repr, table.columns)) or 'none'}"
    if not named["image"]:
        raise DataError(
            f"{spec.where}: {table.name} has no column that is called as images are; {others}: "
            f"write columns: {{image: NAME}}"
        )
    if not named["label"] and not named["captions"]:
        notes.append(f"no column is called as labels or captions are; {others}")
    first = {role: (*names, "")[0] for role, names in named.items()}
    return Chosen(
        image=first["image"],
        label=first["label"],
        captions=tuple(named["captions"]),
        id=first["id"],
        keep=said.keep,
        notes=tuple(notes),
    )


def build_samples(
    source: Source,
    table: Table,
    *,
    chosen: Chosen,
    images: Encoded,
    paths: Sequence[str | None],
    draw: Draw,
    known_classes: Sequence[str] = (),
) -> Samples:
    """Return the drawn samples of a table; only their images are read, and none is decoded.

    `paths` are the names of the image files, by which samples are called where no column does so.
    `known_classes` are the names that the table itself keeps for the numbers in its labels.
    """
    if not len(table):
        raise DataError(f"{table.name} has no rows: nothing can be measured on it")
    labels: tuple[int, ...] | None = None
    class_names: tuple[str, ...] = ()
    if chosen.label:
        labels, class_names = _read_labels(
            source, table, values=table.read(chosen.label), known=known_classes
        )
    captions = _read_captions(source, table, chosen=chosen) if chosen.captions else None
    ids, notes = _name_samples(source, table, chosen=chosen, paths=paths)
    drawn = draw.choose(total=len(table), labels=labels)
    rotate = source.spec.exif_rotation
    pictures = Pictures(encoded=images, rotate=rotate)
    whole = drawn == range(len(table))

    def pick(values: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(values) if whole else tuple(values[row] for row in drawn)

    return Samples(
        name=source.name,
        ids=pick(ids),
        images=pictures if whole else Selected(images=pictures, indices=tuple(drawn)),
        hashes=tuple(hashlib.sha256(images.read(row)).hexdigest() for row in drawn),
        labels=pick(labels) if labels is not None else None,
        captions=pick(captions) if captions is not None else None,
        class_names=class_names,
        templates=tuple(read_templates(source.root)) if class_names else (),
        columns={name: pick(table.read(name)) for name in chosen.keep},
        decoding="exif" if rotate else "",
        notes=(*chosen.notes, *notes),
    )


def count_rows(
    source: Source, table: Table, *, chosen: Chosen, known_classes: Sequence[str] = ()
) -> Counted:
    """Return how much a table holds; no image is read."""
    sizes: tuple[int, ...] = ()
    columns: dict[str, Sequence[str]] = {}
    if chosen.label and len(table):
        labels, names = _read_labels(
            source, table, values=table.read(chosen.label), known=known_classes
        )
        sizes = tuple(Counter(labels).values())
        columns[CLASS] = [names[label] for label in labels]
    for name in chosen.keep:
        columns.setdefault(name, as_texts(table.read(name)))
    captions = _read_captions(source, table, chosen=chosen) if chosen.captions else ()
    return Counted(
        images=len(table), captions=sum(map(len, captions)), classes=sizes, columns=columns
    )


# -- labels ---------------------------------------------------------------------------------------


def _read_labels(
    source: Source, table: Table, *, values: Sequence[Any], known: Sequence[str]
) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """Return the class of every row as an index, and the names of the classes.

    Names stand in classnames.txt, or in the table itself, or are the labels themselves, sorted.
    """
    kinds = {type(value) for value in values}
    if kinds not in ({int}, {str}):
        _refuse_kinds(table, values=values)
    keys, names = read_classes(source.root)
    place = source.root / CLASS_NAMES
    if known and keys:
        _compare_classes(keys, known, place=str(place), table=table)
    distinct = set(values)
    if kinds == {str} and not {*keys, *known} >= distinct and all(map(_is_number, distinct)):
        values = [int(value) for value in values]  # numbers in a file of text
        kinds = {int}
    if kinds == {int}:
        called = names or list(known)
        if not called:
            raise DataError(
                f"{table.name}: labels are numbers, and no names are known for them: write "
                f"{place} with one class name a line, that of number 0 first"
            )
        _check_numbers(table, values=values, classes=len(called), place=str(place))
        return tuple(values), tuple(called)
    if not keys:
        found = sorted(set(values))
        if any(map(_is_number, found)):
            odd = next(row for row, value in enumerate(values) if _is_number(value))
            raise DataError(
                f"{table.locate(odd)}: label {values[odd]!r} is a number, others are names: write "
                f"one kind, or {place} with all class names"
            )
        keys = names = list(known) if set(known) >= set(found) else found
    index = {key: number for number, key in enumerate(keys)}
    absent = next((row for row, value in enumerate(values) if value not in index), None)
    if absent is None:
        return tuple(index[value] for value in values), tuple(names)
    strange = sorted(set(values) - index.keys())
    if len(strange) == len(set(values)):
        raise DataError(
            f"{place} is the class list of another set: none of the {len(strange)} labels of "
            f"{table.name} is among its {len(keys)} names, {strange[0]!r} is not"
        )
    close = difflib.get_close_matches(strange[0], keys, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else ""
    if close and spell_plain(close[0]) == spell_plain(strange[0]):
        hint = (
            f": it is {strange[0]!a} in the data and {close[0]!a} there, which differ only in "
            f"spaces, or in how accents are written (NFC, NFD)"
        )
    raise DataError(
        f"{table.locate(absent)}: unknown label {values[absent]!r}: {place} has {len(keys)} "
        f"classes{hint}"
    )


def _is_number(text: str) -> bool:
    return re.fullmatch(r"\d{1,9}", text, re.ASCII) is not None


def _refuse_kinds(table: Table, *, values: Sequence[Any]) -> None:
    """Raise DataError for labels of which one is missing, or that are not all of one kind."""
    for row, value in enumerate(values):
        if value is None or value == "":
            raise DataError(f"{table.locate(row)} has no label")
        if type(value) not in (int, str):
            raise DataError(
                f"{table.locate(row)}: label {value!r:.40} is {type(value).__name__}, neither the "
                f"name nor the number of a class"
            )
    first = type(values[0])
    other = next(row for row, value in enumerate(values) if type(value) is not first)
    raise DataError(
        f"{table.locate(other)}: label {values[other]!r:.40} is {type(values[other]).__name__}, "
        f"those before are {first.__name__}: write all as names, or all as numbers"
    )


def _check_numbers(table: Table, *, values: Sequence[int], classes: int, place: str) -> None:
    if min(values) >= 0 and max(values) < classes:
        return
    row = next(row for row, value in enumerate(values) if not 0 <= value < classes)
    if values[row] == -1:
        raise DataError(f"{table.locate(row)} has the label -1, which stands for none")
    raise DataError(
        f"{table.locate(row)}: label {values[row]}, but there are {classes} class names ({place}), "
        f"numbered from 0"
    )


def _compare_classes(
    keys: Sequence[str], known: Sequence[str], *, place: str, table: Table
) -> None:
    """Raise DataError for a list of class names that cannot be of this table.

    It may name classes otherwise, but not more or fewer, nor those of the table in another order.
    """
    if len(keys) != len(known):
        raise DataError(
            f"{place} is the class list of another set: it has {len(keys)} names, {table.name} "
            f"itself names {len(known)} classes, first {known[0]!r}"
        )
    plain = [re.sub(r"[\W_]+", " ", name).strip().casefold() for name in known]
    for number, key in enumerate(keys):
        said = re.sub(r"[\W_]+", " ", key).strip().casefold()
        if said != plain[number] and said in plain:
            raise DataError(
                f"{place} has another order: {key!r} is class {number} there, and class "
                f"{plain.index(said)} in {table.name} ({known[number]!r} is {number})"
            )


# -- captions -------------------------------------------------------------------------------------


def check_captions(captions: Sequence[str], *, spec: DatasetSpec, where: str) -> None:
    """Raise DataError where a suite says another number of captions an image."""
    wanted = spec.captions_per_image
    if wanted is not None and len(captions) != wanted:
        raise DataError(
            f"{where} has {len(captions)} captions, {wanted} are said "
            f"({spec.where.of('captions_per_image')})"
        )


def _read_captions(source: Source, table: Table, *, chosen: Chosen) -> tuple[tuple[str, ...], ...]:
    columns = [table.read(name) for name in chosen.captions]
    wanted = source.spec.captions_per_image
    if len(columns) == 1 and wanted in (None, 1) and set(map(type, columns[0])) == {str}:
        plain = tuple((text,) for text in columns[0] if text.strip())
        if len(plain) == len(table):  # a million rows, in a moment
            return plain
    found = []
    for row in range(len(table)):
        texts: list[Any] = []
        for values in columns:
            value = values[row]
            texts.extend(value if isinstance(value, (list, tuple)) else [value])
        odd = next((text for text in texts if text is not None and type(text) is not str), None)
        if odd is not None:
            raise DataError(
                f"{table.locate(row)}: caption {odd!r:.40} is {type(odd).__name__}, no text"
            )
        row_captions = tuple(text for text in texts if text and text.strip())
        if not row_captions:
            raise DataError(f"{table.locate(row)} has no caption")
        check_captions(row_captions, spec=source.spec, where=table.locate(row))
        found.append(row_captions)
    return tuple(found)


# -- ids ------------------------------------------------------------------------------------------


def _name_samples(
    source: Source, table: Table, *, chosen: Chosen, paths: Sequence[str | None]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return what each sample is called, and a note where that is a guess.

    By the column that the suite names, by one that is called as ids are, by the image's file
    without its suffix, or by the number of the row; by a guess only where it tells all apart.
    """
    said = source.spec.columns is not None and source.spec.columns.id is not None
    values = table.read(chosen.id) if chosen.id else ()
    odd = next((row for row, value in enumerate(values) if not _is_name(value)), None)
    unique = len(set(values)) == len(values) if odd is None else False
    if said and odd is not None:
        raise DataError(
            f"{table.locate(odd)}: {values[odd]!r:.60} in column {chosen.id!r} is no id: write a "
            f"whole number, or a text of visible characters"
        )
    if said and not unique:
        often = Counter(values)
        row = next(row for row, value in enumerate(values) if often[value] > 1)
        raise DataError(f"{table.locate(row)}: id {values[row]!r:.60} stands twice")
    if values and unique:
        guessed = (f"column {chosen.id!r} is taken for the id",) * (not said and chosen.id != "id")
        return tuple(map(str, values)), guessed
    names = [_name_file(path) if path else "" for path in paths]
    if all(names) and len(set(names)) == len(names):
        return tuple(names), ()
    return tuple(f"{row:06d}" for row in range(len(table))), (
        "samples are called by the number of their row: write columns: {id: NAME} to keep "
        "baselines when rows come or go",
    )


def _is_name(value: Any) -> bool:
    return type(value) is int or (type(value) is str and bool(value) and value.isprintable())


def _name_file(path: str) -> str:
    """Return a file's name without its suffix; of a whole path, which is of one machine, the last
    part."""
    folder, slash, last = path.rpartition("/")
    stem = last.rpartition(".")[0] or last
    name = stem if path.startswith("/") else f"{folder}{slash}{stem}"
    return name if name.isprintable() else ""
