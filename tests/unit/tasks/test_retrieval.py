"""Retrieval equals what clip-benchmark's own functions compute on the same data."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from clip_benchmark.metrics import zeroshot_retrieval

from pytest_quantgate.encoders.encoder import Encoder
from pytest_quantgate.encoders.loading import load_fp16
from pytest_quantgate.errors import DataError
from pytest_quantgate.suite.specs import ModelSpec
from pytest_quantgate.suite.where import Where
from pytest_quantgate.tasks.registry import load_samples
from pytest_quantgate.tasks.retrieval import list_captions, list_owners
from pytest_quantgate.tasks.samples import Samples
from tests.unit.tasks.task_builders import AsClipBenchmark, Loader, answer, ask

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def model() -> Encoder:
    return load_fp16(ModelSpec(where=Where(file="s", line=1), source="reference"))


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


@pytest.mark.filterwarnings("ignore")
def test_retrieval_equals_clip_benchmark(model: Encoder, captioned: Samples) -> None:
    plain = AsClipBenchmark(model)
    expected = zeroshot_retrieval.evaluate(
        plain, Loader(model, captioned), plain.tokenize, "cpu", amp=False, recall_k_list=[1, 5, 10]
    )

    assert len(expected) == 6
    for metric, value in expected.items():
        found = ask(model, captioned, kind="retrieval", metric=metric)
        assert found.value == pytest.approx(value, abs=1e-6), metric
    assert 0.2 < expected["image_retrieval_recall@1"] < expected["image_retrieval_recall@10"]


def test_outcomes_name_every_query_once(model: Encoder, captioned: Samples) -> None:
    texts = list_captions(captioned)
    by_text = ask(model, captioned, kind="retrieval", metric="image_retrieval_recall@5")
    by_image = ask(model, captioned, kind="retrieval", metric="text_retrieval_recall@5")

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
    whole = ask(model, captioned, kind="retrieval", metric="text_retrieval_recall@5")
    monkeypatch.setattr("pytest_quantgate.tasks.retrieval.CHUNK_ROWS", 7)

    found = ask(model, captioned, kind="retrieval", metric="text_retrieval_recall@5")

    assert replace(found, margins=()) == replace(whole, margins=())
    assert found.margins == pytest.approx(whole.margins, abs=2e-5)


@pytest.mark.parametrize("metric", ["image_retrieval_recall@1", "text_retrieval_recall@1"])
def test_a_margin_is_above_zero_where_a_query_finds_what_it_asks_for(
    model: Encoder, captioned: Samples, metric: str
) -> None:
    found = ask(model, captioned, kind="retrieval", metric=metric)

    clear = [abs(margin) > 1e-5 for margin in found.margins]
    assert sum(clear) > 0.9 * len(clear)
    for right, margin, is_clear in zip(found.correct, found.margins, clear, strict=True):
        assert right == (margin > 0) or not is_clear
    assert 0 < sum(found.correct) < len(clear)


def test_nan_in_a_text_or_image_is_counted(captioned: Samples) -> None:
    few = captioned.take(3)
    owners = list_owners(few)
    unit = torch.eye(len(owners))
    spoiled = unit[list(dict.fromkeys(owners)), :].clone()
    spoiled[1] = torch.nan
    found = answer(
        few, kind="retrieval", metric="text_retrieval_recall@1", images=spoiled, texts=unit
    )

    assert found.nonfinite == 1
    assert not found.correct[1]


@pytest.mark.parametrize("k", [3, 9])
def test_a_k_that_leaves_nothing_out_is_named(captioned: Samples, k: int) -> None:
    """With all of them every query were answered."""
    few = captioned.take(3)
    texts = torch.ones(len(list_captions(few)), 3)
    with pytest.raises(DataError, match="there are only 3 candidates"):
        answer(
            few,
            kind="retrieval",
            metric=f"image_retrieval_recall@{k}",
            images=torch.eye(3),
            texts=texts,
        )


def test_a_k_with_which_a_caption_is_always_found_is_named(captioned: Samples) -> None:
    """The last of three images has three of the six captions: among four is one of its own."""
    few = captioned.take(3)
    texts = torch.ones(len(list_captions(few)), 3)

    def ask_for(k: int) -> None:
        metric = f"text_retrieval_recall@{k}"
        answer(few, kind="retrieval", metric=metric, images=torch.eye(3), texts=texts)

    ask_for(3)
    with pytest.raises(
        DataError,
        match=r"recall@4 of d/retrieval: 1 of 3 queries, first '.*', have fewer than 4 wrong "
        r"answers, so any model finds a right one: take a K of at most 3, or more samples",
    ):
        ask_for(4)


def cluster(
    metric: str, pixels: str, *, captions: tuple[tuple[str, ...], ...]
) -> tuple[tuple[int, ...], int]:
    """Return clusters and copies of samples, whose pictures are letters."""
    samples = Samples(
        name="d",
        ids=tuple(map(str, range(len(pixels)))),
        images=[None] * len(pixels),
        hashes=tuple(pixels),
        captions=captions,
    )
    found = answer(
        samples,
        kind="retrieval",
        metric=metric,
        images=torch.ones(len(pixels), 2),
        texts=torch.ones(sum(map(len, captions)), 2),
    )
    return found.clusters, found.copies


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
