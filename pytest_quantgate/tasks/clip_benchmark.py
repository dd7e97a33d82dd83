"""clip-benchmark's own data sets (`cifar100`, `imagenet1k`, `mscoco_captions`, ...), where they are
on disk already: a gate downloads nothing.

Further columns that a suite keeps stand in ROOT/metadata.csv or .jsonl, whose column `id` is
<data set>/<split>/<number of six digits>.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pytest_quantgate.encoders.loading import quiet_libraries, refuse_forced_pickles
from pytest_quantgate.errors import DataError, MissingPackage, NotMeasured
from pytest_quantgate.tasks.drawing import Draw
from pytest_quantgate.tasks.enclosure import enclosed
from pytest_quantgate.tasks.metadata import ID, METADATA, find_metadata, read_columns_beside
from pytest_quantgate.tasks.reader import DatasetReader, Source
from pytest_quantgate.tasks.rows import check_captions
from pytest_quantgate.tasks.samples import Samples

#: Those whose samples carry captions.
CAPTIONED = ("mscoco_captions", "flickr8k", "flickr30k", "multilingual_mscoco_captions")


@dataclass(frozen=True, kw_only=True)
class DatasetImages(Sequence[Any]):
    """The images of a torchvision-style data set, decoded on access."""

    dataset: Any
    indices: Sequence[int]
    root: Path

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        with quiet_libraries():
            return read_sample(self.dataset, self.indices[index], root=self.root)[0]


def load_clip_benchmark(
    dataset: str, *, root: Path, split: str, language: str, draw: Draw, retrieval: bool
) -> Samples:
    """Return the drawn samples of a clip-benchmark data set; only these are decoded.

    Raises NotMeasured where its files are not under `root`, DataError where it is no data set of
    clip-benchmark, MissingPackage without the package.
    """
    try:
        from clip_benchmark.datasets import builder
    except ImportError as error:
        raise MissingPackage(
            error.name or "clip-benchmark", extra="clip", purpose=f"the data set {dataset}"
        ) from error
    task = "zeroshot_retrieval" if retrieval else "zeroshot_classification"
    mend = (
        f"put the data set there first, for example with: clip_benchmark eval --dataset {dataset} "
        f"--dataset_root {root}"
    )
    if not root.exists():
        raise NotMeasured(f"{dataset}: {root} does not exist: {mend}")
    for name in (split, language):  # both become part of file names
        if not re.fullmatch(r"\w[\w.-]*", name):
            raise DataError(f"{dataset}: {name!r} is no name of a split or a language")
    refuse_forced_pickles(where=dataset)
    with quiet_libraries(), _without_shell(builder), enclosed(root):
        try:
            found = builder.build_dataset(
                dataset_name=dataset,
                root=str(root),
                transform=None,
                split=split,
                download=False,
                language=language,
                task=task,
            )
        except (FileNotFoundError, RuntimeError, OSError) as error:
            raise NotMeasured(
                f"{dataset}: not found under {root} ({_line(error)}): {mend}"
            ) from error
        except DataError as error:
            raise DataError(f"{dataset}: {error}") from error
        except ImportError as error:
            package = error.name or "a package of its own"
            raise NotMeasured(f"{dataset}: needs {package}, which is not installed") from error
        except Exception as error:  # each set has a reader of its own
            raise DataError(f"{dataset}: clip-benchmark cannot build it: {_line(error)}") from error
    templates = () if retrieval else found.templates
    if isinstance(templates, dict):
        raise DataError(
            f"{dataset}: its templates differ by class, which is not supported: copy the data set "
            f"to a WebDataset folder with templates of one kind"
        )
    chosen = draw.choose(total=len(found), labels=None if retrieval else _list_labels(found))
    hashes, labels, captions = [], [], []
    for index in chosen:
        with quiet_libraries():
            try:
                image, target = read_sample(found, index, root=root)
            except DataError:
                raise
            except Exception as error:  # a damaged file ends in any of them
                raise DataError(
                    f"{dataset}: sample {index} cannot be read: {_line(error)}"
                ) from error
        head = f"{image.size}".encode()
        hashes.append(hashlib.sha256(head + image.tobytes()).hexdigest())
        if retrieval:
            captions.append(tuple([target] if isinstance(target, str) else target))
        else:
            labels.append(_read_label(target, where=f"{dataset}: sample {index}"))
    return Samples(
        name=f"{dataset}/{split}",
        ids=tuple(f"{dataset}/{split}/{index:06d}" for index in chosen),
        images=DatasetImages(dataset=found, indices=chosen, root=root),
        hashes=tuple(hashes),
        labels=None if retrieval else tuple(labels),
        captions=tuple(captions) if retrieval else None,
        class_names=() if retrieval else tuple(found.classes),
        templates=tuple(templates),
    )


def read_sample(dataset: Any, index: int, *, root: Path) -> tuple[Any, Any]:
    """Return the image (RGB) and the target of a sample; raises DataError for a file that is not
    below `root`.

    torchvision opens whatever Pillow knows; Pillow would hand a PostScript file to Ghostscript.
    """
    from PIL import EpsImagePlugin

    before = EpsImagePlugin.gs_binary
    EpsImagePlugin.gs_binary = False  # Pillow's own switch
    try:
        with enclosed(root):
            image, target = dataset[index]
            return image.convert("RGB"), target
    finally:
        EpsImagePlugin.gs_binary = before


@contextmanager
def _without_shell(builder: Any) -> Iterator[None]:
    """Keep the builder from downloading: it does, for some sets in spite of `download=False`,
    by shell commands into which it writes the folder's name."""

    def refuse(command: str, **_options: Any) -> None:
        raise FileNotFoundError(f"it is not complete, it would run: {command[:120]}")

    before = builder.call
    builder.call = refuse
    try:
        yield
    finally:
        builder.call = before


def _list_labels(dataset: Any) -> list[int] | None:
    """Return the labels of all samples where the data set keeps them; None: only by decoding."""
    for name in ("targets", "labels", "_labels"):  # torchvision's names for them
        try:
            labels = [int(label) for label in getattr(dataset, name, ())]
        except (TypeError, ValueError):
            continue
        if len(labels) == len(dataset):
            return labels
    return None


def _read_label(target: Any, *, where: str) -> int:
    try:
        return int(target)
    except (TypeError, ValueError, RuntimeError) as error:  # a tensor of several raises the last
        raise DataError(f"{where}: its target is no class index, but {target!r:.60}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _load(source: Source, draw: Draw) -> Samples:
    spec = source.spec
    if spec.exif_rotation:
        raise DataError(
            f"{spec.where.of('exif_rotation')}: clip-benchmark decodes {spec.dataset} itself, and "
            f"turns nothing: remove exif_rotation"
        )
    found = load_clip_benchmark(
        spec.dataset,
        root=source.root,
        split=source.split,
        language=spec.language,
        draw=draw,
        retrieval=spec.dataset in CAPTIONED,
    )
    for name, captions in zip(found.ids, found.captions or (), strict=False):
        check_captions(captions, spec=spec, where=name)
    if spec.columns is None or not spec.columns.keep:
        return found
    beside = find_metadata(source.root)
    if beside is None:
        raise DataError(
            f"{spec.columns.where.of('keep')}: {spec.dataset} has no columns of its own: write "
            f"{source.root / METADATA[0]} with the columns {', '.join((ID, *spec.columns.keep))}, "
            f"the first of which begins with {found.ids[0]}"
        )
    columns = read_columns_beside(beside, root=source.root, ids=found.ids, columns=spec.columns)
    return replace(found, columns=columns)


READER = DatasetReader(load=_load, keeps_columns=True)
