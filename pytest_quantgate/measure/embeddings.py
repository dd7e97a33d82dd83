"""Embeds samples with both variants: every image is decoded and preprocessed once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from pytest_quantgate.encoders.encoder import Batch, Encoder
from pytest_quantgate.encoders.loading import quiet_libraries
from pytest_quantgate.evidence.audit import TowerName
from pytest_quantgate.tasks.samples import Samples

if TYPE_CHECKING:
    import torch


class Encodes(Protocol):
    """What gives embeddings: an Encoder, or the exported towers in a runtime."""

    def encode(self, name: TowerName, inputs: Mapping[str, torch.Tensor], /) -> torch.Tensor: ...


def embed_images(
    models: Sequence[Encodes],
    samples: Samples,
    *,
    batch_size: int,
    preprocess: Callable[[Iterable[Any]], torch.Tensor],
    progress: Callable[[int], None] | None = None,
) -> list[torch.Tensor]:
    """Return one float32 [N, D] per model, not normalised, on the CPU.

    All models must take the same pixels, which `preprocess` makes of a list of images.
    """
    import torch

    parts: list[list[torch.Tensor]] = [[] for _ in models]
    with quiet_libraries():
        for start in range(0, len(samples), batch_size):
            stop = min(start + batch_size, len(samples))
            pixels = preprocess(samples.images[index] for index in range(start, stop))
            for model, done in zip(models, parts, strict=True):
                done.append(model.encode("vision", {"pixel_values": pixels}).cpu())
            if progress is not None:
                progress(stop - start)
    return [torch.cat(done) for done in parts]


def embed_texts(
    models: Sequence[Encodes],
    texts: Sequence[str],
    *,
    batch_size: int,
    tokenize: Callable[[list[str]], Mapping[str, torch.Tensor]],
    progress: Callable[[int], None] | None = None,
) -> list[torch.Tensor]:
    """Return one float32 [N, D] per model, not normalised, on the CPU."""
    import torch

    parts: list[list[torch.Tensor]] = [[] for _ in models]
    with quiet_libraries():
        for start in range(0, len(texts), batch_size):
            tokens = tokenize(list(texts[start : start + batch_size]))
            for model, done in zip(models, parts, strict=True):
                done.append(model.encode("text", tokens).cpu())
            if progress is not None:
                progress(min(batch_size, len(texts) - start))
    return [torch.cat(done) for done in parts]


@dataclass(frozen=True, kw_only=True)
class Batches:
    """The batches of `make_batches`, made anew each time: AWQ and SVDQuant read them twice."""

    model: Encoder
    samples: Samples
    batch_size: int

    def __len__(self) -> int:
        return -(-len(self.samples) // self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        return make_batches(self.model, self.samples, batch_size=self.batch_size)


def make_batches(model: Encoder, samples: Samples, *, batch_size: int) -> Iterator[Batch]:
    """Yield the samples for every tower of the model, preprocessed as its own files say."""
    for start in range(0, len(samples), batch_size):
        stop = min(start + batch_size, len(samples))
        with quiet_libraries():
            inputs: dict[TowerName, Mapping[str, torch.Tensor]] = {}
            if "vision" in model.tower_names:
                images = (samples.images[index] for index in range(start, stop))
                inputs["vision"] = {"pixel_values": model.preprocess(images)}
            if "text" in model.tower_names:
                texts = [samples.text(index) for index in range(start, stop)]
                inputs["text"] = model.tokenize(texts)
        yield Batch(ids=samples.ids[start:stop], inputs=inputs)
