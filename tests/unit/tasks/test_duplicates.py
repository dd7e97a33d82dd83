"""Pairs of one thing at FP16's precision: values, the threshold's side, labels that name none."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from pytest_quantgate.errors import DataError
from pytest_quantgate.evidence.outcomes import Outcomes
from pytest_quantgate.statistics.pairing import pair_outcomes
from pytest_quantgate.tasks import neighbours
from pytest_quantgate.tasks.kind import Queries, find_task
from pytest_quantgate.tasks.samples import Samples
from pytest_quantgate.tasks.scoring import TaskInputs, build_outcomes


def make_inputs(*, things: int = 60, seed: int = 0, spread: float = 0.6, **of: Any) -> TaskInputs:
    """Return three pictures of each thing."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(things, 12, generator=generator)
    labels = [thing for thing in range(things) for _ in range(3)]
    images = centres[labels] + spread * torch.randn(3 * things, 12, generator=generator)
    ids = tuple(f"{seed}-{index:04d}" for index in range(3 * things))
    samples = Samples(
        name="shop/test",
        ids=ids,
        images=[None] * len(ids),
        hashes=ids,
        labels=tuple(labels),
        class_names=tuple(f"thing {thing}" for thing in range(things)),
    )
    values: dict[str, Any] = {
        "samples": samples,
        "pixels": ids,
        "metric": "recall@precision90%",
        "task": "shop/duplicates",
        "images": images,
        **of,
    }
    return TaskInputs(**values)


def answer(inputs: TaskInputs) -> Outcomes:
    return build_outcomes(find_task("shop/duplicates").score(inputs), inputs=inputs, variant="v")


def list_all(inputs: TaskInputs) -> tuple[list[bool], list[float]]:
    """Return of all pairs whether they show one thing, and their cosines, by a plain loop."""
    assert inputs.images is not None
    labels, unit = inputs.samples.labels or (), normalize(inputs.images, dim=1)
    cosines = unit @ unit.T
    pairs = list(combinations(range(len(labels)), 2))
    return [labels[a] == labels[b] for a, b in pairs], [cosines[a, b].item() for a, b in pairs]


def test_fp16_is_the_point_of_scikit_learns_curve(monkeypatch: pytest.MonkeyPatch) -> None:
    curve = pytest.importorskip("sklearn.metrics").precision_recall_curve
    monkeypatch.setattr(neighbours, "CHUNK_ROWS", 50)
    inputs = make_inputs()
    precision, recall, thresholds = curve(*list_all(inputs))
    best = max(recall[:-1][precision[:-1] >= 0.9])

    found = answer(inputs)
    clean = answer(replace(inputs, metric="clean@precision90%"))

    assert found.value == pytest.approx(best)
    assert 0.3 < found.value < 0.95
    assert len(found.ids) == 180
    assert found.ids[0] == "0-0000#0-0001"
    assert len(set(found.clusters)) == 60
    threshold = thresholds[recall[:-1] == best].max() - 1e-6
    wrong = {
        place
        for (pair, same, cosine) in zip(combinations(range(180), 2), *list_all(inputs), strict=True)
        for place in pair
        if not same and cosine >= threshold
    }
    assert clean.correct == tuple(place not in wrong for place in range(180))
    assert 0.5 < clean.value < 1
    assert clean.answers == tuple(int(not right) for right in clean.correct)


def test_the_threshold_is_fp16s_and_not_the_variants_own() -> None:
    """What all pictures of the variant share brings all cosines up: at FP16's threshold pictures
    that differ are together, at one of its own next to nothing changed."""
    fp16 = make_inputs(metric="clean@precision90%")
    assert fp16.images is not None
    moved = replace(fp16, images=fp16.images + 2.0, fp16=fp16)

    assert answer(moved).value < answer(fp16).value - 0.3
    assert answer(replace(moved, fp16=None)).value > answer(fp16).value - 0.3
    assert answer(replace(moved, metric="recall@precision90%")).value > 0.9


def test_noise_is_seen_pair_by_pair() -> None:
    fp16 = make_inputs()
    assert fp16.images is not None
    noise = torch.randn(fp16.images.shape, generator=torch.Generator().manual_seed(3))
    noisy = replace(fp16, images=fp16.images + 0.5 * noise, fp16=fp16)

    pairs = pair_outcomes(before=answer(fp16), after=answer(noisy))

    assert pairs.drop > 0.1
    assert pairs.worth is not None
    assert pairs.worth.clusters == 60


def test_a_bank_decides_the_threshold() -> None:
    bank = make_inputs(seed=9, spread=0.7)

    assert answer(make_inputs(bank=bank)).value < answer(make_inputs()).value


def test_files_of_the_same_pixels_are_no_pair() -> None:
    inputs = make_inputs()
    pixels = (inputs.pixels[1], *inputs.pixels[1:])

    found = answer(replace(inputs, pixels=pixels))

    assert len(found.ids) == 179
    assert "0-0000#0-0001" not in found.ids


def test_what_cannot_be_judged_is_named() -> None:
    inputs = make_inputs()
    samples, count = inputs.samples, len(inputs.samples)
    labels = samples.labels or ()
    for changed, message in (
        (tuple(range(count)), "shop/test has no two pictures of one label"),
        ((0,) * count, "shop/test has one label alone: nothing is to be found"),
    ):
        names = tuple(map(str, range(count)))
        with pytest.raises(DataError, match=message):
            answer(replace(inputs, samples=replace(samples, labels=changed, class_names=names)))
    for broken in (tuple(index % 60 for index in range(count)), (*labels[1:], labels[0])):
        with pytest.raises(
            DataError, match=r"FP16 finds \d of the 180 pairs of shop/test at a prec"
        ):
            answer(replace(inputs, samples=replace(samples, labels=broken)))


def test_classes_in_place_of_things_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pytest_quantgate.tasks.duplicates.MOST_PAIRS", 100)
    with pytest.raises(DataError, match="60 labels of shop/test make 180 pairs: a label names one"):
        answer(make_inputs())


def test_cosines_that_are_negated_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then what differs most would be together."""
    compare = neighbours.compare_rows

    def negate(*embedded: torch.Tensor, **of: Any) -> Any:
        for part, rows in compare(*embedded, **of):
            yield part, torch.where(rows.isinf(), rows, -rows)

    module = "pytest_quantgate.tasks.duplicates"
    monkeypatch.setattr(f"{module}.compare_rows", negate)
    monkeypatch.setattr(f"{module}._pair_cosines", lambda inputs, pairs: -pair(inputs, pairs))
    with pytest.raises(DataError, match=r"FP16 finds 0 of the 180 pairs of shop/test at a prec"):
        answer(make_inputs())


def pair(inputs: TaskInputs, pairs: list[tuple[int, int]]) -> torch.Tensor:
    assert inputs.images is not None
    firsts, seconds = torch.tensor(pairs).T
    unit = normalize(inputs.images, dim=1)
    return (unit[firsts] * unit[seconds]).sum(dim=1)


def test_nan_is_apart_from_all_and_counted() -> None:
    fp16 = make_inputs()
    assert fp16.images is not None
    images = fp16.images.clone()
    images[0] = torch.nan

    found = answer(replace(fp16, images=images, fp16=fp16))
    clean = answer(replace(fp16, images=images, fp16=fp16, metric="clean@precision90%"))

    assert (found.nonfinite, clean.nonfinite) == (1, 1)
    assert found.correct[:2] == (False, False)
    assert clean.correct[0] is False
    assert answer(replace(fp16, images=images)).nonfinite == 1


def test_how_many_pairs_there_are_is_not_known_before() -> None:
    kind = find_task("shop/duplicates")

    assert kind.count_queries("recall@precision90%", 100, 0) is None
    assert kind.count_queries("clean@precision90%", 100, 0) == Queries(count=100)
