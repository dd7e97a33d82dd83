"""clip-benchmark's own data sets (`cifar100`, `imagenet1k`, `mscoco_captions`, ...), where they are
on disk already: a gate downloads nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_quantgate.errors import DataError, MissingPackage, NotMeasured
from pytest_quantgate.models.loading import quiet_libraries
from pytest_quantgate.tasks.samples import Samples


@dataclass(frozen=True, kw_only=True)
class DatasetImages(Sequence[Any]):
    """The images of a torchvision-style data set, decoded on access."""

    dataset: Any
    taken: int

    def __len__(self) -> int:
        return self.taken

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.taken))]
        if not 0 <= index < self.taken:
            raise IndexError(index)
        return self.dataset[index][0].convert("RGB")


def load_clip_benchmark(
    dataset: str, *, root: Path, split: str, language: str, count: int | None, retrieval: bool
) -> Samples:
    """Return samples of a clip-benchmark data set in its own order.

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
    with quiet_libraries():
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
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{dataset}: clip-benchmark cannot build it: {_line(error)}") from error
    templates = () if retrieval else found.templates
    if isinstance(templates, dict):
        raise DataError(
            f"{dataset}: its templates differ by class, which is not supported: copy the data set "
            f"to a WebDataset folder with templates of one kind"
        )
    total = len(found)
    taken = total if count is None else min(count, total)
    images = DatasetImages(dataset=found, taken=taken)
    hashes, labels, captions = [], [], []
    for index in range(taken):
        image, target = found[index]
        image = image.convert("RGB")
        head = f"{image.size}".encode()
        hashes.append(hashlib.sha256(head + image.tobytes()).hexdigest())
        if retrieval:
            captions.append(tuple([target] if isinstance(target, str) else target))
        else:
            labels.append(int(target))
    return Samples(
        name=f"{dataset}/{split}",
        ids=tuple(f"{dataset}/{split}/{index:06d}" for index in range(taken)),
        images=images,
        hashes=tuple(hashes),
        labels=None if retrieval else tuple(labels),
        captions=tuple(captions) if retrieval else None,
        class_names=() if retrieval else tuple(found.classes),
        templates=tuple(templates),
    )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
