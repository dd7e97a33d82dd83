"""Embeds samples with both variants: every image is decoded and preprocessed once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from pytest_quantgate.encoders.encoder import Batch, Encoder
from pytest_quantgate.encoders.loading import quiet_libraries
from pytest_quantgate.errors import ModelError
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
    found = [Rows(len(samples)) for _ in models]
    with quiet_libraries():
        for start in range(0, len(samples), batch_size):
            stop = min(start + batch_size, len(samples))
            pixels = preprocess(samples.images[index] for index in range(start, stop))
            for model, rows in zip(models, found, strict=True):
                rows.put(model.encode("vision", {"pixel_values": pixels}))
            if progress is not None:
                progress(stop - start)
    return [rows.take() for rows in found]


def embed_texts(
    models: Sequence[Encodes],
    texts: Sequence[str],
    *,
    batch_size: int,
    tokenize: Callable[[list[str]], Mapping[str, torch.Tensor]],
    progress: Callable[[int], None] | None = None,
) -> list[torch.Tensor]:
    """Return one float32 [N, D] per model, not normalised, on the CPU."""
    found = [Rows(len(texts)) for _ in models]
    with quiet_libraries():
        for start in range(0, len(texts), batch_size):
            tokens = tokenize(list(texts[start : start + batch_size]))
            for model, rows in zip(models, found, strict=True):
                rows.put(model.encode("text", tokens))
            if progress is not None:
                progress(min(batch_size, len(texts) - start))
    return [rows.take() for rows in found]


def gather(parts: Iterable[Sequence[torch.Tensor]], *, count: int) -> list[torch.Tensor]:
    """Return the float32 [count, D] of each model, of parts [n, D] of each in order."""
    found: list[Rows] = []
    for part in parts:
        found = found or [Rows(count) for _ in part]
        for rows, batch in zip(found, part, strict=True):
            rows.put(batch)
    return [rows.take() for rows in found]


class Rows:
    """The float32 [N, D] that batches fill, on the CPU.

    A batch is copied, not kept: among what forwards free, it would keep the memory around it from
    being used again, and the view of a class token keeps all tokens.
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._values: torch.Tensor | None = None
        self._filled = 0

    def put(self, batch: torch.Tensor) -> None:
        """Take the next rows [B, D]; raises ModelError for more than there are, or of another D."""
        import torch

        if self._values is None:
            self._values = torch.empty(self._count, *batch.shape[1:], dtype=torch.float32)
        place = self._values[self._filled : self._filled + len(batch)]
        if place.shape != batch.shape:  # which copying would repeat
            raise self._refuse(f"embeddings {tuple(batch.shape)}, expected {tuple(place.shape)}")
        place.copy_(batch)
        self._filled += len(batch)

    def take(self) -> torch.Tensor:
        """Return all rows; raises ModelError where some are missing."""
        if self._values is None or self._filled < self._count:
            raise self._refuse(f"{self._filled} embeddings")
        return self._values

    def _refuse(self, given: str) -> ModelError:
        return ModelError(f"a model answered {self._count} samples with {given}")


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
