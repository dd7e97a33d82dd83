"""Local data sets in clip-benchmark's WebDataset layout.

    ROOT/classnames.txt
    ROOT/zeroshot_classification_templates.txt
    ROOT/dataset_type.txt          classification (default) or retrieval
    ROOT/<split>/nshards.txt
    ROOT/<split>/0.tar ...         <key>.jpg|png|webp with <key>.cls, or <key>.txt

Further columns that a suite keeps stand in <key>.json, an object, or in a table beside the shards:
ROOT/<split>/metadata.csv or .jsonl, whose column `id` is <shard>/<key>.

Read with the standard library: the order is the file's own, decoding is on access, and nothing in
an archive is ever unpickled or written to disk, which the webdataset package does not promise.
Members of other kinds are passed over.
"""

from __future__ import annotations

import filecmp
import hashlib
import io
import re
import tarfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pytest_quantgate import bounds
from pytest_quantgate.errors import DataError, NotMeasured
from pytest_quantgate.tasks.class_texts import (
    CLASS_NAMES,
    TEMPLATES,
    USUAL_TEMPLATES,
    locate_texts,
    read_lines,
    read_texts,
)
from pytest_quantgate.tasks.contents import CLASS, as_texts
from pytest_quantgate.tasks.drawing import Draw
from pytest_quantgate.tasks.enclosure import check_inside
from pytest_quantgate.tasks.metadata import find_metadata, read_columns_beside, read_members
from pytest_quantgate.tasks.pictures import IMAGE_SUFFIXES, Pictures
from pytest_quantgate.tasks.reader import Counted, DatasetReader, Source
from pytest_quantgate.tasks.rows import check_captions
from pytest_quantgate.tasks.samples import Samples
from pytest_quantgate.untrusted import hash_file, read_regular


class BoundedFile(io.FileIO):
    """A file of which no part is read that is larger than any label: tarfile trusts its headers."""

    def read(self, size: int | None = -1) -> bytes:
        if size is None or not 0 <= size <= bounds.TEXT_BYTES:
            raise OSError(f"a header or text of {size} bytes, at most {bounds.TEXT_BYTES} are read")
        return super().read(size) or b""


@dataclass(frozen=True, kw_only=True, slots=True)
class TarImage:
    """Where the bytes of one image are."""

    shard: Path
    offset: int
    size: int

    def read(self) -> bytes:
        with self.shard.open("rb") as stream:
            stream.seek(self.offset)
            return stream.read(self.size)


@dataclass(frozen=True, kw_only=True)
class TarImages:
    """The encoded images of samples, in tar shards."""

    places: tuple[TarImage, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.places)

    def read(self, index: int) -> bytes:
        return self.places[index].read()

    def locate(self, index: int) -> str:
        return f"{self.places[index].shard}: image {self.names[index]!r}"


def list_shards(root: Path, *, split: str) -> list[Path]:
    """Return the tar files of a split in order; raises NotMeasured or DataError with the mend."""
    if not root.is_dir():
        raise NotMeasured(f"{root} is no directory: set it to a WebDataset folder")
    if not re.fullmatch(r"\w[\w.-]*", split):
        raise DataError(f"split {split!r} is no name of a folder in {root}")
    counted = root / split / "nshards.txt"
    try:
        count = int(read_regular(check_inside(counted, root=root), max_bytes=100))
    except FileNotFoundError:
        splits = sorted(path.parent.name for path in root.glob("*/nshards.txt"))
        raise DataError(
            f"{counted} is missing: {root} has the splits {', '.join(splits) or 'none'}"
        ) from None
    except (ValueError, OSError) as error:
        raise DataError(f"{counted}: expected the number of shards: {error}") from error
    if not 0 <= count <= bounds.SHARDS:
        raise DataError(f"{counted}: {count} is no number of shards: expected 0 to {bounds.SHARDS}")
    shards = []
    for index in range(count):
        shard = root / split / f"{index}.tar"
        if not shard.is_file():
            raise DataError(f"{shard} is missing: {counted} says {count} shards")
        shards.append(check_inside(shard, root=root))
    more = root / split / f"{count}.tar"
    if more.exists():
        raise DataError(
            f"{more} is not read: {counted} says {count} shards, numbered from 0: "
            f"write how many there are, or move it away"
        )
    return shards


def digest_root(root: Path, *, split: str, beside: Path | None = None) -> str:
    """Return the SHA-256 of a split's bytes, names and templates, without decoding an image; of the
    table `beside` it, too."""
    digest = hashlib.sha256()
    texts = (CLASS_NAMES, TEMPLATES, "dataset_type.txt")
    files = [*(root / name for name in texts), *list_shards(root, split=split)]
    for path in [*files, *([beside] if beside is not None else [])]:
        if path.is_file():
            part = bytes.fromhex(hash_file(check_inside(path, root=root)))
            digest.update(path.name.encode() + b"\0" + part)
    return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class Split:
    """A split of which headers and texts were read, and no image; one of `labels` and `captions`
    is empty."""

    ids: list[str] = field(default_factory=list)
    places: list[TarImage] = field(default_factory=list)
    labels: list[int] = field(default_factory=list)
    captions: list[tuple[str, ...]] = field(default_factory=list)
    class_names: tuple[str, ...] = ()
    columns: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    @property
    def is_captioned(self) -> bool:
        return not self.class_names


def read_split(source: Source) -> Split:
    """Return what the archives of a split say of their samples.

    Raises NotMeasured where the folder is not there, DataError for a damaged or an oversized one,
    with the file.
    """
    root, split, spec = source.root, source.split, source.spec
    shards = list_shards(root, split=split)
    kind = (read_lines(root, "dataset_type.txt") or ["classification"])[0]
    if kind not in ("classification", "retrieval"):
        raise DataError(
            f"{root / 'dataset_type.txt'}: {kind!r:.40} is neither classification nor retrieval"
        )
    captioned = kind == "retrieval"
    class_names = () if captioned else tuple(read_lines(root, CLASS_NAMES))
    if not captioned and not class_names:
        raise DataError(f"{root / CLASS_NAMES} is missing or empty: one class name a line")
    found = Split(class_names=class_names)
    keep = spec.columns if spec.columns is not None and spec.columns.keep else None
    beside = _find_table(source)
    extras: dict[str, str] = {}
    shapes: dict[tuple[Any, ...], Path] = {}
    suffixes = ("txt" if captioned else "cls", *(("json",) if keep and not beside else ()))
    for number, shard in enumerate(shards):
        members = _read_shard(shard, suffixes=suffixes)
        shape = tuple((key, place.size, *texts) for key, place, texts in members)
        other = shapes.setdefault(shape, shard)
        if members and other != shard and filecmp.cmp(other, shard, shallow=False):
            raise DataError(
                f"{shard} is a copy of {other}: an export that ran twice? Keep one of them, and "
                f"write the number of shards into {shard.parent / 'nshards.txt'}"
            )
        for key, place, texts in members:
            if len(found.ids) == bounds.SAMPLES:
                raise DataError(f"{shard}: more than {bounds.SAMPLES} samples in {shard.parent}")
            found.ids.append(f"{number}/{key}")
            found.places.append(place)
            if len(texts) > 1:
                extras[found.ids[-1]] = texts[1]
            if captioned:
                lines = tuple(line for line in texts[0].splitlines() if line.strip())
                if not lines:
                    raise DataError(f"{shard}: sample {key!r} has no caption")
                check_captions(lines, spec=spec, where=f"{shard}: sample {key!r}")
                found.captions.append(lines)
            else:
                label = _read_label(texts[0], shard=shard, key=key, classes=len(class_names))
                found.labels.append(label)
    if keep is None:
        return found
    columns = (
        read_columns_beside(beside, root=root, ids=found.ids, columns=keep)
        if beside is not None
        else read_members(extras, columns=keep, name=str(root / split))
    )
    return replace(found, columns=columns)


def _find_table(source: Source) -> Path | None:
    columns = source.spec.columns
    if columns is None or not columns.keep:
        return None
    return find_metadata(source.root / source.split)


def load_webdataset(source: Source, draw: Draw) -> Samples:
    """Return the drawn samples of a split; of the others only headers and texts are read. Raises as
    `read_split`."""
    split, rotate = read_split(source), source.spec.exif_rotation
    captioned = split.is_captioned
    chosen = draw.choose(total=len(split.ids), labels=None if captioned else split.labels)
    names = tuple(split.ids[i] for i in chosen)
    taken = tuple(split.places[i] for i in chosen)
    return Samples(
        name=source.name,
        ids=names,
        images=Pictures(encoded=TarImages(places=taken, names=names), rotate=rotate),
        hashes=tuple(hashlib.sha256(place.read()).hexdigest() for place in taken),
        labels=None if captioned else tuple(split.labels[i] for i in chosen),
        captions=tuple(split.captions[i] for i in chosen) if captioned else None,
        class_names=split.class_names,
        templates=tuple(read_lines(source.root, TEMPLATES)) or USUAL_TEMPLATES,
        columns={name: tuple(of[i] for i in chosen) for name, of in split.columns.items()},
        decoding="exif" if rotate else "",
    )


def count_webdataset(source: Source) -> Counted:
    """Return what a local split holds: headers of its archives and their texts are enough.

    What does not fit together is said where it is loaded, or where columns are kept.
    """
    columns: dict[str, Sequence[str]] = {}
    if source.spec.columns is not None and source.spec.columns.keep:
        split = read_split(source)
        columns = {name: as_texts(values) for name, values in split.columns.items()}
        if not split.is_captioned:
            columns = {CLASS: [split.class_names[n] for n in split.labels], **columns}
    images = captions = 0
    classes = Counter[bytes]()
    for shard in list_shards(source.root, split=source.split):
        try:
            with tarfile.open(shard, "r:") as archive:
                for member in archive:
                    suffix = member.name.rpartition("/")[2].partition(".")[2]
                    if not member.isreg():
                        continue
                    images += suffix in IMAGE_SUFFIXES
                    if suffix not in ("txt", "cls") or member.size > bounds.TEXT_BYTES:
                        continue
                    stream = archive.extractfile(member)
                    assert stream is not None
                    text = stream.read()
                    if suffix == "cls":
                        classes[text.strip()] += 1
                    else:
                        captions += sum(bool(line.strip()) for line in text.splitlines())
        except (tarfile.TarError, OSError) as error:
            raise DataError(f"{shard} is damaged: {error}: copy or build it again") from error
    sizes = tuple(classes.values())
    return Counted(images=images, captions=captions, classes=sizes, columns=columns)


def _read_shard(
    shard: Path, *, suffixes: Sequence[str]
) -> list[tuple[str, TarImage, tuple[str, ...]]]:
    """Return the key of each sample, where its image is, and its texts, one of each suffix."""
    images: dict[str, TarImage] = {}
    texts: dict[str, dict[str, str]] = {suffix: {} for suffix in suffixes}
    total = 0
    try:
        with (
            BoundedFile(shard) as stream,
            tarfile.open(fileobj=stream, mode="r:", name=str(shard)) as archive,
        ):
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # it would keep all of them
                key, suffix = _split_member(member.name, shard=shard)
                if not member.isreg() or suffix not in (*IMAGE_SUFFIXES, *suffixes):
                    continue
                found: dict[str, Any] = texts.get(suffix, images)
                most = bounds.TEXT_BYTES if suffix in texts else bounds.IMAGE_BYTES
                if member.size > most or member.issparse():
                    raise DataError(
                        f"{shard}: {member.name!r} is sparse or larger than {most} bytes"
                    )
                if key in found:
                    raise DataError(f"{shard}: sample {key!r} stands twice")
                if suffix in texts:
                    content = archive.extractfile(member)
                    assert content is not None
                    found[key] = content.read().decode("utf-8")
                    total += member.size
                    if total > bounds.TEXTS_BYTES:
                        raise DataError(f"{shard}: more than {bounds.TEXTS_BYTES} bytes of text")
                else:
                    images[key] = TarImage(shard=shard, offset=member.offset_data, size=member.size)
    except (tarfile.TarError, OSError, ValueError, OverflowError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{shard} is damaged: {reason}: copy or build it again") from error
    for suffix, found in texts.items():
        unpaired = sorted(images.keys() ^ found.keys())
        if unpaired:
            raise DataError(
                f"{shard}: {len(unpaired)} samples lack an image or a .{suffix}, "
                f"first {unpaired[0]!r}"
            )
    size = shard.stat().st_size
    cut = [key for key, place in images.items() if place.offset + place.size > size]
    if cut:
        raise DataError(f"{shard} is cut short: image {cut[0]!r} lies beyond its end")
    return [(key, images[key], tuple(found[key] for found in texts.values())) for key in images]


def _split_member(name: str, *, shard: Path) -> tuple[str, str]:
    """Return key and suffix of a member: the key ends at the first dot of the last part.

    Nothing is written under these names, but they become sample ids: one that leads out of its
    folder, or that no text can hold, is refused.
    """
    folder, _, last = name.removeprefix("./").rpartition("/")
    key, _, suffix = last.partition(".")
    parts = [*folder.split("/"), key] if folder else [key]
    if name.startswith("/") or ".." in folder.split("/") or "\\" in name:
        raise DataError(f"{shard}: member {name!r} leads out of its folder")
    if not name.isprintable():
        raise DataError(f"{shard}: member {name!r} holds characters that no name should")
    return "/".join(parts), suffix.lower()


def _read_label(text: str, *, shard: Path, key: str, classes: int) -> int:
    if not re.fullmatch(r"\s*\d{1,9}\s*", text, re.ASCII):
        raise DataError(f"{shard}: sample {key!r}: label {text[:20]!r} is no class index")
    if int(text) >= classes:
        raise DataError(
            f"{shard}: sample {key!r} has label {int(text)}, but there are {classes} class names"
        )
    return int(text)


READER = DatasetReader(
    load=load_webdataset,
    digest=lambda source: digest_root(source.root, split=source.split, beside=_find_table(source)),
    read_texts=lambda source: read_texts(source.root),
    locate_texts=lambda source: locate_texts(source.root),
    count=count_webdataset,
    keeps_columns=True,
)
