"""Outcomes equal what clip-benchmark's own functions compute on the same data."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from clip_benchmark.metrics import zeroshot_classification, zeroshot_retrieval
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_quantgate.encoders.encoder import Encoder
from pytest_quantgate.encoders.loading import load_fp16
from pytest_quantgate.errors import DataError
from pytest_quantgate.evidence.outcomes import Outcomes
from pytest_quantgate.measure.accuracy import (
    classification_outcomes,
    cluster_samples,
    list_captions,
    number_clusters,
    retrieval_outcomes,
)
from pytest_quantgate.measure.embeddings import build_classifiers, embed_images, embed_texts
from pytest_quantgate.suite.specs import ModelSpec
from pytest_quantgate.suite.where import Where
from pytest_quantgate.tasks.registry import load_samples
from pytest_quantgate.tasks.samples import Samples

pytestmark = pytest.mark.slow

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


@pytest.fixture(scope="module")
def model() -> Encoder:
    return load_fp16(ModelSpec(where=Where(file="s", line=1), source="reference"))


@pytest.fixture(scope="module")
def scenes() -> Samples:
    return load_samples("scenes/test", datasets={}, samples=300, environ={})


@pytest.fixture(scope="module")
def captioned() -> Samples:
    """Images with one to three captions each."""
    found = load_samples("scenes/test", datasets={}, samples=120, environ={}, purpose="retrieval")
    assert found.captions is not None
    texts = [caption for (caption,) in found.captions]
    several = [
        (texts[i], *(f"a photo of {texts[i]}", f"a drawing of {texts[i]}")[: i % 3])
        for i in range(len(texts))
    ]
    return Samples(
        name="scenes/test",
        ids=found.ids,
        images=found.images,
        hashes=found.hashes,
        captions=tuple(several),
    )


def classify(model: Encoder, samples: Samples, *, metric: str) -> Outcomes:
    (images,) = embed_images([model], samples, batch_size=BATCH, preprocess=model.preprocess)
    (classifier,) = build_classifiers([model], samples, batch_size=64, tokenize=model.tokenize)
    return classification_outcomes(
        images=images,
        classifier=classifier,
        samples=samples,
        task="scenes/classification",
        metric=metric,
        variant="FP16",
    )


def retrieve(model: Encoder, samples: Samples, *, metric: str) -> Outcomes:
    texts, owners = list_captions(samples)
    (images,) = embed_images([model], samples, batch_size=BATCH, preprocess=model.preprocess)
    (embedded,) = embed_texts([model], texts, batch_size=64, tokenize=model.tokenize)
    return retrieval_outcomes(
        images=images,
        texts=embedded,
        image_of_text=owners,
        samples=samples,
        task="scenes/retrieval",
        metric=metric,
        variant="FP16",
    )


# clip-benchmark's functions show progress and read scikit-learn's warnings.
@pytest.mark.filterwarnings("ignore")
def test_classification_equals_clip_benchmark(
    model: Encoder, scenes: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    # clip-benchmark calls float() on an array of one element, which NumPy 2.5 refuses.
    monkeypatch.setattr(zeroshot_classification, "float", lambda array: array.item(), raising=False)
    plain = AsClipBenchmark(model)
    expected = zeroshot_classification.evaluate(
        plain,
        Loader(model, scenes),
        plain.tokenize,
        list(scenes.class_names),
        list(scenes.templates),
        "cpu",
        amp=False,
    )

    for metric in ("acc1", "acc5", "mean_per_class_recall"):
        found = classify(model, scenes, metric=metric)
        assert found.value == pytest.approx(expected[metric], abs=1e-9), metric
    assert 0.5 < expected["acc1"] < expected["acc5"]


@pytest.mark.filterwarnings("ignore")
def test_the_classifier_equals_clip_benchmark(model: Encoder, scenes: Samples) -> None:
    plain = AsClipBenchmark(model)
    expected = zeroshot_classification.zero_shot_classifier(
        plain,
        plain.tokenize,
        list(scenes.class_names),
        list(scenes.templates),
        "cpu",
        amp=False,
    )
    (found,) = build_classifiers([model], scenes, batch_size=64, tokenize=model.tokenize)

    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
def test_retrieval_equals_clip_benchmark(model: Encoder, captioned: Samples) -> None:
    plain = AsClipBenchmark(model)
    expected = zeroshot_retrieval.evaluate(
        plain, Loader(model, captioned), plain.tokenize, "cpu", amp=False, recall_k_list=[1, 5, 10]
    )

    assert len(expected) == 6
    for metric, value in expected.items():
        found = retrieve(model, captioned, metric=metric)
        assert found.value == pytest.approx(value, abs=1e-6), metric
    assert 0.2 < expected["image_retrieval_recall@1"] < expected["image_retrieval_recall@10"]


def test_outcomes_name_every_query_once(model: Encoder, captioned: Samples) -> None:
    texts, _ = list_captions(captioned)
    by_text = retrieve(model, captioned, metric="image_retrieval_recall@5")
    by_image = retrieve(model, captioned, metric="text_retrieval_recall@5")

    assert len(set(by_text.ids)) == len(by_text.ids) == len(texts)
    assert by_text.ids[:3] == (
        f"{captioned.ids[0]}#0",
        f"{captioned.ids[1]}#0",
        f"{captioned.ids[1]}#1",
    )
    assert by_image.ids == captioned.ids


def test_scores_are_the_same_in_chunks(
    model: Encoder, captioned: Samples, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = retrieve(model, captioned, metric="text_retrieval_recall@5")
    monkeypatch.setattr("pytest_quantgate.measure.accuracy.CHUNK_ROWS", 7)

    assert retrieve(model, captioned, metric="text_retrieval_recall@5") == whole


def test_nan_is_wrong_and_counted() -> None:
    samples = Samples(
        name="d/test",
        ids=("a", "b", "c"),
        images=[None] * 3,
        hashes=("1", "2", "3"),
        labels=(0, 1, 0),
        class_names=("x", "y"),
    )
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0], [torch.nan, 0.0]])
    found = classification_outcomes(
        images=images,
        classifier=torch.eye(2),
        samples=samples,
        task="d/classification",
        metric="acc1",
        variant="FP8",
    )

    assert found.correct == (True, True, False)
    assert found.answers == (0, 1, -1)
    assert found.nonfinite == 1
    spoiled = classification_outcomes(
        images=images[:2].repeat(2, 1)[:3],
        classifier=torch.tensor([[1.0, torch.inf], [0.0, 1.0]]),
        samples=samples,
        task="d/classification",
        metric="acc1",
        variant="FP8",
    )
    assert spoiled.nonfinite == 3
    assert not any(spoiled.correct)


def cluster(
    metric: str,
    pixels: str,
    *,
    captions: tuple[tuple[str, ...], ...] | None = None,
    labels: tuple[int, ...] | None = None,
) -> tuple[tuple[int, ...], int]:
    """Return clusters and copies of samples, whose pictures are letters."""
    samples = Samples(
        name="d",
        ids=tuple(map(str, range(len(pixels)))),
        images=[None] * len(pixels),
        hashes=tuple(pixels),
        captions=captions,
        labels=labels,
        class_names=("cat", "dog") if labels else (),
    )
    count = sum(map(len, captions or ())) if metric.startswith("image") else len(pixels)
    outcomes = Outcomes(
        task="t",
        metric=metric,
        variant="v",
        ids=tuple(map(str, range(count))),
        correct=(True,) * count,
        answers=(0,) * count,
        labels=labels or (-1,) * count,
        class_names=samples.class_names,
        value=1.0,
        data_digest="d",
    )
    found = cluster_samples(outcomes, samples=samples, pixels=tuple(pixels))
    return found.clusters, found.copies


def test_samples_of_one_picture_are_a_cluster() -> None:
    assert cluster("acc1", "abcd", labels=(0, 1, 0, 1)) == ((), 0)
    # b and B are one picture under two ids; with two labels it is in two classes, and no copy.
    assert cluster("acc1", "abcb", labels=(0, 1, 0, 1)) == ((0, 1, 2, 1), 1)
    assert cluster("acc1", "abcb", labels=(0, 1, 0, 0)) == ((0, 1, 2, 1), 0)
    assert cluster("acc1", "aaaa", labels=(0, 0, 0, 0)) == ((0, 0, 0, 0), 3)


def test_captions_of_one_picture_or_one_text_are_a_cluster() -> None:
    find, found = "image_retrieval_recall@1", "text_retrieval_recall@1"
    two = (("one", "another"), ("a third",))

    assert cluster(find, "ab", captions=two) == ((0, 0, 1), 0)
    assert cluster(found, "ab", captions=two) == ((), 0)
    # The same photograph under two ids, each with a caption of its own: no copy, one cluster.
    assert cluster(find, "aa", captions=two) == ((0, 0, 0), 0)
    assert cluster(found, "aa", captions=two) == ((0, 0), 0)
    assert cluster(find, "aab", captions=(("x",), ("x",), ("y",))) == ((0, 0, 1), 1)
    assert cluster(found, "aab", captions=(("x",), ("x",), ("y",))) == ((0, 0, 1), 1)
    # All captions alike: one query, however many pictures.
    assert cluster(find, "abc", captions=(("x",),) * 3) == ((0, 0, 0), 0)
    # Over a third one: a and b share x, b and c share y.
    chain = (("x",), ("x", "y"), ("y",), ("z",))
    assert cluster(find, "abcd", captions=chain) == ((0, 0, 0, 0, 1), 0)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=1, max_size=12))
def test_clusters_are_what_is_connected(items: list[tuple[int, int]]) -> None:
    numbers = number_clusters([a for a, _ in items], [b for _, b in items])
    pairs = list(itertools.combinations(range(len(items)), 2))
    least = list(range(len(items)))
    for _ in items:
        for i, j in pairs:
            if items[i][0] == items[j][0] or items[i][1] == items[j][1]:
                least[i] = least[j] = min(least[i], least[j])

    assert list(dict.fromkeys(numbers)) == list(range(max(numbers) + 1))
    assert all((numbers[i] == numbers[j]) == (least[i] == least[j]) for i, j in pairs)


def test_nan_in_a_text_or_image_is_counted_in_retrieval(captioned: Samples) -> None:
    few = captioned.take(3)
    texts, owners = list_captions(few)
    unit = torch.eye(len(texts))
    spoiled = unit[list(dict.fromkeys(owners)), :].clone()
    spoiled[1] = torch.nan
    common: dict[str, Any] = {"image_of_text": owners, "samples": few, "task": "t", "variant": "v"}
    found = retrieval_outcomes(
        images=spoiled, texts=unit, metric="text_retrieval_recall@1", **common
    )

    assert found.nonfinite == 1
    assert not found.correct[1]


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("acc2", r"'acc2' is no metric of scenes/classification: acc1, acc5"),
        ("acc5", r"acc5 of scenes/classification needs 5 classes, there are 2"),
    ],
)
def test_a_metric_that_does_not_fit_is_named(metric: str, message: str) -> None:
    samples = Samples(
        name="d", ids=("a",), images=[None], hashes=("1",), labels=(0,), class_names=("x", "y")
    )
    with pytest.raises(DataError, match=message):
        classification_outcomes(
            images=torch.ones(1, 2),
            classifier=torch.eye(2),
            samples=samples,
            task="scenes/classification",
            metric=metric,
            variant="v",
        )


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("recall@5", "image_retrieval_recall@K, text_retrieval_recall@K"),
        ("image_retrieval_recall@0", "'image_retrieval_recall@0' is no metric"),
        ("image_retrieval_recall@9", "there are only 3 candidates"),
    ],
)
def test_a_recall_that_does_not_fit_is_named(metric: str, message: str, captioned: Samples) -> None:
    few = captioned.take(3)
    texts, owners = list_captions(few)
    with pytest.raises(DataError, match=message):
        retrieval_outcomes(
            images=torch.eye(3),
            texts=torch.ones(len(texts), 3),
            image_of_text=owners,
            samples=few,
            task="t",
            metric=metric,
            variant="v",
        )
