"""Local data sets in clip-benchmark's WebDataset layout.

    ROOT/classnames.txt
    ROOT/zeroshot_classification_templates.txt
    ROOT/dataset_type.txt          classification (default) or retrieval
    ROOT/<split>/nshards.txt
    ROOT/<split>/0.tar ...         <key>.jpg|png|webp with <key>.cls, or <key>.txt

Read with the standard library: the order is the file's own, decoding is on access, and nothing in
an archive is ever unpickled or written to disk, which the webdataset package does not promise.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_quantgate.errors import DataError, NotMeasured
from pytest_quantgate.tasks.samples import Samples

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")


@dataclass(frozen=True, kw_only=True)
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
class TarImages(Sequence[Any]):
    """Images in tar shards, decoded to RGB on access."""

    places: tuple[TarImage, ...]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        from PIL import Image, UnidentifiedImageError

        place = self.places[index]
        try:
            return Image.open(io.BytesIO(place.read())).convert("RGB")
        except (UnidentifiedImageError, OSError) as error:
            raise DataError(
                f"{place.shard}: image {self.names[index]!r} cannot be decoded: {error}"
            ) from error


def list_shards(root: Path, *, split: str) -> list[Path]:
    """Return the tar files of a split in order; raises NotMeasured or DataError with the mend."""
    if not root.is_dir():
        raise NotMeasured(f"{root} is no directory: set it to a WebDataset folder")
    counted = root / split / "nshards.txt"
    try:
        count = int(counted.read_text(encoding="utf-8"))
    except FileNotFoundError:
        splits = sorted(path.parent.name for path in root.glob("*/nshards.txt"))
        raise DataError(
            f"{counted} is missing: {root} has the splits {', '.join(splits) or 'none'}"
        ) from None
    except (ValueError, OSError) as error:
        raise DataError(f"{counted}: expected the number of shards: {error}") from error
    shards = [root / split / f"{index}.tar" for index in range(count)]
    for shard in shards:
        if not shard.is_file():
            raise DataError(f"{shard} is missing: {counted} says {count} shards")
    return shards


def digest_root(root: Path, *, split: str) -> str:
    """Return the SHA-256 of a split's bytes, names and templates, without decoding an image."""
    digest = hashlib.sha256()
    texts = ("classnames.txt", "zeroshot_classification_templates.txt", "dataset_type.txt")
    for path in [*(root / name for name in texts), *list_shards(root, split=split)]:
        if path.is_file():
            with path.open("rb") as stream:
                part = hashlib.file_digest(stream, "sha256").digest()
            digest.update(path.name.encode() + b"\0" + part)
    return digest.hexdigest()


def load_webdataset(root: Path, *, split: str, name: str, count: int | None) -> Samples:
    """Return the first `count` samples of a split (all where None).

    Raises NotMeasured where the folder is not there, DataError for a damaged one, with the file.
    """
    shards = list_shards(root, split=split)
    captioned = (_read_lines(root / "dataset_type.txt") or ["classification"])[0] == "retrieval"
    class_names = () if captioned else tuple(_read_lines(root / "classnames.txt"))
    if not captioned and not class_names:
        raise DataError(f"{root / 'classnames.txt'} is missing or empty: one class name a line")
    templates = tuple(_read_lines(root / "zeroshot_classification_templates.txt"))
    ids: list[str] = []
    hashes: list[str] = []
    labels: list[int] = []
    captions: list[tuple[str, ...]] = []
    places: list[TarImage] = []
    for number, shard in enumerate(shards):
        for key, place, text in _read_shard(shard, text_suffix="txt" if captioned else "cls"):
            if count is not None and len(ids) == count:
                break
            ids.append(f"{number}/{key}")
            hashes.append(hashlib.sha256(place.read()).hexdigest())
            places.append(place)
            if captioned:
                captions.append(tuple(line for line in text.splitlines() if line.strip()))
                if not captions[-1]:
                    raise DataError(f"{shard}: sample {key!r} has no caption")
            else:
                labels.append(_read_label(text, shard=shard, key=key))
    return Samples(
        name=name,
        ids=tuple(ids),
        images=TarImages(places=tuple(places), names=tuple(ids)),
        hashes=tuple(hashes),
        labels=None if captioned else tuple(labels),
        captions=tuple(captions) if captioned else None,
        class_names=class_names,
        templates=templates or ("a photo of a {c}",),
    )


def _read_shard(shard: Path, *, text_suffix: str) -> list[tuple[str, TarImage, str]]:
    images: dict[str, TarImage] = {}
    texts: dict[str, str] = {}
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                if not member.isfile():
                    continue
                key, _, suffix = member.name.partition(".")
                if suffix in IMAGE_SUFFIXES:
                    images[key] = TarImage(shard=shard, offset=member.offset_data, size=member.size)
                elif suffix == text_suffix:
                    stream = archive.extractfile(member)
                    assert stream is not None
                    texts[key] = stream.read().decode("utf-8")
    except (tarfile.TarError, OSError, UnicodeDecodeError) as error:
        raise DataError(f"{shard} is damaged: {error}: copy or build it again") from error
    unpaired = sorted(images.keys() ^ texts.keys())
    if unpaired:
        raise DataError(
            f"{shard}: {len(unpaired)} samples lack an image or a .{text_suffix}, "
            f"first {unpaired[0]!r}"
        )
    size = shard.stat().st_size
    cut = [key for key, place in images.items() if place.offset + place.size > size]
    if cut:
        raise DataError(f"{shard} is cut short: image {cut[0]!r} lies beyond its end")
    return [(key, images[key], texts[key]) for key in images]


def _read_label(text: str, *, shard: Path, key: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise DataError(f"{shard}: sample {key!r}: label {text[:20]!r} is no class index") from None


def _read_lines(path: Path) -> list[str]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    return [line.strip() for line in text.splitlines() if line.strip()]
