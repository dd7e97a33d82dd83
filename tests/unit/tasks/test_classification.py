"""Zero-shot outcomes equal what clip-benchmark's own functions compute on the same data."""

from __future__ import annotations

import pytest
import torch
from clip_benchmark.metrics import zeroshot_classification

from pytest_quantgate.encoders.encoder import Encoder
from pytest_quantgate.encoders.loading import load_fp16
from pytest_quantgate.errors import DataError
from pytest_quantgate.measure.embeddings import embed_texts
from pytest_quantgate.suite.specs import ModelSpec
from pytest_quantgate.suite.where import Where
from pytest_quantgate.tasks.classification import average_templates, list_prompts
from pytest_quantgate.tasks.registry import load_samples
from pytest_quantgate.tasks.samples import Samples
from tests.unit.tasks.task_builders import AsClipBenchmark, Loader, answer, ask

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model() -> Encoder:
    return load_fp16(ModelSpec(where=Where(file="s", line=1), source="reference"))


@pytest.fixture(scope="module")
def scenes() -> Samples:
    return load_samples("scenes/test", datasets={}, samples=300, environ={})


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
        found = ask(model, scenes, kind="classification", metric=metric)
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
    (texts,) = embed_texts([model], list_prompts(scenes), batch_size=64, tokenize=model.tokenize)
    found = average_templates(texts, classes=len(scenes.class_names))

    assert torch.allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("metric", ["acc1", "acc5"])
def test_a_margin_is_above_zero_where_an_answer_is_right(
    model: Encoder, scenes: Samples, metric: str
) -> None:
    found = ask(model, scenes, kind="classification", metric=metric)

    clear = [abs(margin) > 1e-5 for margin in found.margins]
    assert sum(clear) > 290
    for right, margin, is_clear in zip(found.correct, found.margins, clear, strict=True):
        assert right == (margin > 0) or not is_clear
    assert found.select([3, 1]).margins == (found.margins[3], found.margins[1])


def test_a_margin_is_the_cosine_of_the_right_class_less_the_best_wrong_one() -> None:
    samples = Samples(
        name="d/test",
        ids=("a", "b"),
        images=[None] * 2,
        hashes=("1", "2"),
        labels=(0, 1),
        class_names=("x", "y", "z"),
    )
    images = torch.tensor([[3.0, 0.0, 4.0], [torch.nan, 0.0, 1.0]])

    found = answer(samples, images=images, texts=torch.eye(3), kind="classification", metric="acc1")

    assert found.margins == (-0.2, 0.0)


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
    of = {"kind": "classification", "metric": "acc1"}
    found = answer(samples, images=images, texts=torch.eye(2), **of)

    assert found.correct == (True, True, False)
    assert found.answers == (0, 1, -1)
    assert found.nonfinite == 1
    texts = torch.tensor([[1.0, torch.inf], [0.0, 1.0]])
    spoiled = answer(samples, images=images[:2].repeat(2, 1)[:3], texts=texts, **of)
    assert spoiled.nonfinite == 3
    assert not any(spoiled.correct)


@pytest.mark.parametrize("classes", ["xy", "vwxyz"])
def test_five_answers_need_more_than_five_classes(classes: str) -> None:
    """Of five every answer were right."""
    samples = Samples(
        name="d", ids=("a",), images=[None], hashes=("1",), labels=(0,), class_names=(*classes,)
    )
    found = rf"acc5 of d/classification needs more than 5 classes, there are {len(classes)}"
    with pytest.raises(DataError, match=found):
        answer(
            samples,
            kind="classification",
            metric="acc5",
            images=torch.ones(1, len(classes)),
            texts=torch.eye(len(classes)),
        )
