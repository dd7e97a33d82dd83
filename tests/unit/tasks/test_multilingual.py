"""Retrieval language by language is retrieval on each language's rows by themselves."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from pytest_quantgate.errors import DataError
from pytest_quantgate.evidence.outcomes import Outcomes
from pytest_quantgate.gates.slices import cut
from pytest_quantgate.statistics.pairing import pair_outcomes
from pytest_quantgate.tasks.kind import find_task
from pytest_quantgate.tasks.samples import Samples
from pytest_quantgate.tasks.scoring import TaskInputs, build_outcomes

LANGUAGES = ("de", "en", "sw")
#: How far captions are from their pictures, by language.
SPREADS = {"de": 1.0, "en": 0.4, "sw": 2.0}


def make_inputs(pictures: int = 40, *, metric: str, **of: Any) -> TaskInputs:
    """Return rows of each picture in three languages, two captions each, languages mixed."""
    generator = torch.Generator().manual_seed(5)
    shown = torch.randn(pictures, 10, generator=generator)
    rows = [(picture, language) for picture in range(pictures) for language in LANGUAGES]
    texts = [
        shown[picture] + SPREADS[language] * torch.randn(10, generator=generator)
        for picture, language in rows
        for _ in range(2)
    ]
    ids = tuple(f"{picture:02d}-{language}" for picture, language in rows)
    samples = Samples(
        name="photos/test",
        ids=ids,
        images=[None] * len(rows),
        hashes=ids,
        captions=tuple((f"{name} a", f"{name} b") for name in ids),
        columns={"language": tuple(language for _, language in rows)},
    )
    values: dict[str, Any] = {
        "samples": samples,
        "pixels": tuple(str(picture) for picture, _ in rows),
        "metric": metric,
        "task": "photos/multilingual",
        "images": shown[[picture for picture, _ in rows]],
        "texts": torch.stack(texts),
        **of,
    }
    return TaskInputs(**values)


def answer(inputs: TaskInputs) -> Outcomes:
    return build_outcomes(find_task(inputs.task).score(inputs), inputs=inputs, variant="v")


def pick(inputs: TaskInputs, language: str) -> TaskInputs:
    """Return the rows of a language, as a data set of their own."""
    assert inputs.images is not None
    assert inputs.texts is not None
    inside = [
        place for place, of in enumerate(inputs.samples.columns["language"]) if of == language
    ]
    return replace(
        inputs,
        task="photos/retrieval",
        samples=inputs.samples.select(inside),
        pixels=tuple(inputs.pixels[place] for place in inside),
        images=inputs.images[inside],
        texts=inputs.texts.view(-1, 2, 10)[inside].flatten(0, 1),
    )


@pytest.mark.parametrize("metric", ["image_retrieval_recall@1", "text_retrieval_recall@3"])
def test_each_language_has_the_value_that_it_has_alone(metric: str) -> None:
    inputs = make_inputs(metric=metric)
    found = answer(inputs)
    languages = [name.partition("#")[0][-2:] for name in found.ids]

    values = {}
    for language in LANGUAGES:
        alone = answer(pick(inputs, language))
        mine = {
            name: right
            for name, of, right in zip(found.ids, languages, found.correct, strict=True)
            if of == language
        }
        assert mine == dict(zip(alone.ids, alone.correct, strict=True))
        values[language] = alone.value

    assert values["en"] > values["de"] > values["sw"]
    assert found.value == pytest.approx(sum(values.values()) / 3)
    # Rows of one picture are not independent, in whatever language.
    assert len(set(found.clusters)) == 40
    # All languages in one gallery would be another task: a picture stands there three times.
    mixed = answer(replace(inputs, task="photos/retrieval"))
    assert mixed.value < found.value


def test_answers_are_places_among_all_rows() -> None:
    """In the order of the data, by which a report finds the text of a query."""
    inputs = make_inputs(metric="image_retrieval_recall@1")
    found = answer(inputs)

    texts = find_task("photos/multilingual").name_queries(inputs.samples, inputs.metric)
    assert [text.partition(" ")[0] for text in texts] == [
        name.partition("#")[0] for name in found.ids
    ]

    for name, place, right in zip(found.ids, found.answers, found.correct, strict=True):
        assert inputs.samples.ids[place][-2:] == name.partition("#")[0][-2:]
        assert (inputs.samples.ids[place] == name.partition("#")[0]) is right


def test_chance_is_that_of_each_language() -> None:
    kind = find_task("photos/multilingual")
    found = answer(make_inputs(metric="image_retrieval_recall@4"))

    assert kind.chance is not None
    assert kind.chance(found) == pytest.approx(4 / 40)


@pytest.mark.parametrize(
    ("metric", "share"),
    [("image_retrieval_recall@4", 4 / 5), ("text_retrieval_recall@7", 1.0)],
)
def test_chance_is_that_of_the_queries_that_count(metric: str, share: float) -> None:
    """One query of a picture counts: not the others, in a language with fewer to choose from."""
    k = int(metric[-1])
    inputs = make_inputs(metric=metric)
    rows = [*range(0, 15, 3), *range(1, 120, 3)]  # five pictures in de, all in en
    assert inputs.images is not None
    assert inputs.texts is not None
    few = replace(
        inputs,
        samples=inputs.samples.select(rows),
        pixels=tuple(inputs.pixels[row] for row in rows),
        images=inputs.images[rows],
        texts=inputs.texts.view(-1, 2, 10)[rows].flatten(0, 1),
    )
    found = answer(few)

    chance = find_task("photos/multilingual").chance
    assert chance is not None
    assert chance(found) == pytest.approx((5 * share + 35 * k / 40) / 40)
    apart = replace(found, clusters=())
    each = len(found.ids) // len(rows)
    five, forty = min(1.0, k / 5 / each), k / 40 / each
    assert chance(apart) == pytest.approx((5 * five + 40 * forty) / 45)


def test_copies_and_nan_are_counted_over_all_languages() -> None:
    inputs = make_inputs(metric="image_retrieval_recall@1")
    assert inputs.samples.captions is not None
    assert inputs.images is not None
    rows = inputs.samples.captions
    twice = replace(inputs.samples, captions=(*rows[:3], rows[0], *rows[4:]))
    pixels = (*inputs.pixels[:3], inputs.pixels[0], *inputs.pixels[4:])
    images = inputs.images.clone()
    images[5] = torch.nan
    found = answer(replace(inputs, samples=twice, pixels=pixels, images=images))

    assert found.copies == 2
    assert found.nonfinite == 1
    by_image = replace(inputs, metric="text_retrieval_recall@1")
    assert answer(by_image).copies == 0
    assert answer(replace(by_image, samples=twice, pixels=pixels)).copies == 1


def test_a_language_that_lost_is_found_by_slices() -> None:
    fp16 = make_inputs(metric="image_retrieval_recall@1")
    assert fp16.texts is not None
    lost = torch.tensor([of == "de" for of in fp16.samples.columns["language"] for _ in range(2)])
    noise = torch.randn(fp16.texts.shape, generator=torch.Generator().manual_seed(2))
    before = answer(fp16)
    after = answer(replace(fp16, texts=fp16.texts + 2.0 * lost[:, None] * noise, fp16=fp16))
    columns = {"language": [name.partition("#")[0][-2:] for name in before.ids]}

    slices = pair_outcomes(before=before, after=after, slices=cut(columns, ["language"])).slices

    drops = {name: counts.drop for name, counts in slices}
    assert drops["language=de"] > 0.3
    assert drops["language=en"] == drops["language=sw"] == 0


def test_rows_without_a_language_are_named() -> None:
    inputs = make_inputs(metric="image_retrieval_recall@1")
    without = replace(inputs.samples, columns={})
    with pytest.raises(DataError, match=r"has no column 'language': name it under datasets: col"):
        answer(replace(inputs, samples=without))
    some = (None, *inputs.samples.columns["language"][1:])
    with pytest.raises(DataError, match="photos/test: sample '00-de' has no language"):
        answer(replace(inputs, samples=replace(inputs.samples, columns={"language": some})))
    with pytest.raises(DataError, match="multilingual: language de: there are only 40 candidates"):
        answer(make_inputs(metric="image_retrieval_recall@40"))
