"""Embedding many samples: each row once, in order, and no batch held after its rows were taken."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy
import pytest
import torch

from pytest_quantgate.errors import ModelError
from pytest_quantgate.evidence.audit import TowerName
from pytest_quantgate.measure.embeddings import embed_images, embed_texts
from pytest_quantgate.tasks.samples import Samples

SAMPLES, BATCH, TOKENS = 230, 8, 1000


class ClassToken:
    """A tower that answers with the first of many tokens: a view of all of them."""

    def __init__(self) -> None:
        self.hidden: list[weakref.ref[Any]] = []
        self.most_held = 0

    def encode(self, name: TowerName, inputs: Mapping[str, torch.Tensor], /) -> torch.Tensor:
        held = [hidden() for hidden in self.hidden if hidden() is not None]
        self.most_held = max(self.most_held, len(held))
        (given,) = inputs.values()
        hidden = given[:, None, :].repeat(1, TOKENS, 1)
        self.hidden.append(weakref.ref(hidden.untyped_storage()))
        return hidden[:, 0]


def preprocess(images: Iterable[Any]) -> torch.Tensor:
    return torch.tensor([[float(image[0, 0, 0]), 1.0] for image in images])


def tokenize(texts: list[str]) -> dict[str, torch.Tensor]:
    return {"input_ids": torch.tensor([[float(text), 1.0] for text in texts])}


@pytest.fixture
def samples() -> Samples:
    names = tuple(map(str, range(SAMPLES)))
    images = numpy.arange(SAMPLES, dtype=numpy.uint8)[:, None, None, None].repeat(3, axis=3)
    return Samples(name="numbers", ids=names, images=images, hashes=names)


def test_no_batch_is_held(samples: Samples) -> None:
    """Two batches of memory at most, however many there are: the one at work and the one before."""
    vision, text = ClassToken(), ClassToken()

    (images,) = embed_images((vision,), samples, batch_size=BATCH, preprocess=preprocess)
    (texts,) = embed_texts((text,), samples.ids, batch_size=BATCH, tokenize=tokenize)

    rows = torch.tensor([[float(number), 1.0] for number in range(SAMPLES)])
    assert torch.equal(images, rows)
    assert torch.equal(texts, rows)
    assert len(vision.hidden) == len(text.hidden) == -(-SAMPLES // BATCH)
    assert max(vision.most_held, text.most_held) <= 1
    assert images.untyped_storage().nbytes() == rows.untyped_storage().nbytes()


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (lambda x: x[:1], r"^a model answered 230 samples with 29 embeddings$"),
        (lambda x: x.repeat(2, 1), r"^a model answered 230 samples with embeddings \(16, 2\), exp"),
        (lambda x: x[:, : 1 + (x[0, 0] == 0)], r"embeddings \(8, 1\), expected \(8, 2\)$"),
    ],
    ids=["too few", "too many", "of another size"],
)
def test_a_row_for_each_sample_or_none(
    answer: Callable[[torch.Tensor], torch.Tensor], words: str, samples: Samples
) -> None:
    class Odd:
        def encode(self, name: TowerName, inputs: Mapping[str, torch.Tensor], /) -> torch.Tensor:
            return answer(inputs["pixel_values"])

    with pytest.raises(ModelError, match=words):
        embed_images((Odd(),), samples, batch_size=BATCH, preprocess=preprocess)
