"""A variant and its batches in the form that clip-benchmark's functions take."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch

from pytest_quantgate.encoders.encoder import Encoder
from pytest_quantgate.evidence.outcomes import Outcomes
from pytest_quantgate.measure.embeddings import embed_images, embed_texts
from pytest_quantgate.tasks.kind import find_task
from pytest_quantgate.tasks.samples import Samples
from pytest_quantgate.tasks.scoring import TaskInputs, build_outcomes

BATCH = 50


class AsClipBenchmark:
    """A variant in the form that clip-benchmark's functions take."""

    def __init__(self, model: Encoder) -> None:
        self.model = model
        self.encode_image = model.encode_image

    def tokenize(self, texts: list[str]) -> torch.Tensor:
        tokens = self.model.tokenize(texts)
        return torch.stack([tokens["input_ids"], tokens["attention_mask"]])

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.model.encode_text({"input_ids": tokens[0], "attention_mask": tokens[1]})


class Loader:
    """Batches as a DataLoader gives them."""

    def __init__(self, model: Encoder, samples: Samples) -> None:
        self.model, self.samples = model, samples
        self.dataset = SimpleNamespace(classes=samples.class_names)

    def __len__(self) -> int:
        return -(-len(self.samples) // BATCH)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, Any]]:
        for start in range(0, len(self.samples), BATCH):
            part = self.samples.take(start, min(start + BATCH, len(self.samples)))
            pixels = self.model.preprocess(list(part.images[:]))
            yield pixels, torch.tensor(part.labels) if part.labels else part.captions


def answer(
    samples: Samples,
    *,
    kind: str,
    metric: str,
    images: torch.Tensor | None = None,
    texts: torch.Tensor | None = None,
    **more: Any,
) -> Outcomes:
    """Return the outcomes of embeddings on a task."""
    inputs = TaskInputs(
        samples=samples,
        pixels=samples.hashes,
        task=f"d/{kind}",
        metric=metric,
        images=images,
        texts=texts,
        **more,
    )
    return build_outcomes(find_task(inputs.task).score(inputs), inputs=inputs, variant="v")


def ask(model: Encoder, samples: Samples, *, kind: str, metric: str) -> Outcomes:
    """Return the outcomes of a model on a task."""
    (images,) = embed_images([model], samples, batch_size=BATCH, preprocess=model.preprocess)
    texts = find_task(f"d/{kind}").list_texts(samples)
    (embedded,) = embed_texts([model], texts, batch_size=64, tokenize=model.tokenize)
    return answer(samples, kind=kind, metric=metric, images=images, texts=embedded)


def make_clusters(
    count: int, *, seed: int, classes: int = 4, spread: float = 0.7, prefix: str = ""
) -> tuple[Samples, torch.Tensor]:
    """Return samples and embeddings [N, 8] around a centre for each class, which overlap."""
    centres = torch.randn(classes, 8, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, classes, (count,), generator=generator)
    images = centres[labels] + spread * torch.randn(count, 8, generator=generator)
    names = tuple(f"{prefix}{index:04d}" for index in range(count))
    return Samples(
        name=f"{prefix or 'd'}/test",
        ids=names,
        images=[None] * count,
        hashes=names,
        labels=tuple(labels.tolist()),
        class_names=tuple(f"class {index}" for index in range(classes)),
    ), images
