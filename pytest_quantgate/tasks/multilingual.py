"""Retrieval language by language: captions look among the pictures of their own language.

The column `language` says in which each row's captions are; a picture stands in one row for each
language. The metrics are those of `retrieval`, the value their mean over all queries; languages are
compared by `slices: {by: language}`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import chain
from typing import TypeVar

from pytest_quantgate.errors import DataError
from pytest_quantgate.evidence.outcomes import Outcomes, group_places
from pytest_quantgate.tasks import retrieval
from pytest_quantgate.tasks.retrieval import asks_with_texts, list_owners
from pytest_quantgate.tasks.samples import Samples
from pytest_quantgate.tasks.scoring import Scored, TaskInputs

COLUMN = "language"

Value = TypeVar("Value")


def score(inputs: TaskInputs) -> Scored:
    """Return the outcome of every query, in the order of the data.

    Raises DataError where a row has no language, and for a K larger than a language has candidates.
    """
    assert inputs.images is not None
    assert inputs.texts is not None
    captions = group_places(list_owners(inputs.samples))
    by_text = asks_with_texts(inputs.metric)
    places: list[int] = []
    found: list[Scored] = []
    for language, inside in sorted(group_places(list_languages(inputs.samples)).items()):
        texts = [place for image in inside for place in captions[image]]
        part = replace(
            inputs,
            samples=inputs.samples.select(inside),
            pixels=tuple(inputs.pixels[image] for image in inside),
            images=inputs.images[inside],
            texts=inputs.texts[texts],
            task=f"{inputs.task}: {COLUMN} {language}",
        )
        scored = retrieval.score(part)
        queries, candidates = (texts, inside) if by_text else (inside, texts)
        places += queries
        found.append(
            replace(
                scored,
                answers=[candidates[answer] for answer in scored.answers],
                ids=scored.ids or part.samples.ids,
                shared=scored.shared or (part.pixels,),
                labels=[len(found)] * len(queries),
            )
        )
    order = sorted(range(len(places)), key=places.__getitem__)

    def join(parts: Iterable[Sequence[Value]]) -> list[Value]:
        whole = [*chain.from_iterable(parts)]
        return [whole[index] for index in order]

    return Scored(
        correct=join(part.correct for part in found),
        answers=join(part.answers for part in found),
        margins=join(part.margins for part in found),
        ids=join(part.ids for part in found),
        labels=join(part.labels for part in found),
        shared=tuple(join(keys) for keys in zip(*(part.shared for part in found), strict=True)),
        copies=sum(part.copies or 0 for part in found) if by_text else None,
        nonfinite=sum(part.nonfinite for part in found),
    )


def list_languages(samples: Samples) -> tuple[str, ...]:
    """Return the language of each row; DataError where the data does not say it."""
    if COLUMN not in samples.columns:
        raise DataError(
            f"{samples.name} has no column {COLUMN!r}: name it under datasets: columns: "
            f"{{keep: [{COLUMN}]}}, or use <data set>/retrieval"
        )
    found = tuple(str(value or "") for value in samples.columns[COLUMN])
    if not all(found):
        name = samples.ids[found.index("")]
        raise DataError(f"{samples.name}: sample {name!r} has no {COLUMN}")
    return found


def count_chance(outcomes: Outcomes) -> float:
    """Return K of N, as for retrieval in each language, on average over the queries that count:
    the first of each cluster."""
    k = int(outcomes.metric.rpartition("@")[2])
    clusters = outcomes.clusters or tuple(range(len(outcomes.ids)))
    shares = {
        language: min(1.0, k / len({clusters[place] for place in inside}))
        for language, inside in group_places(outcomes.labels).items()
    }
    asked = [outcomes.labels[inside[0]] for inside in group_places(clusters).values()]
    return sum(shares[language] for language in asked) / len(asked)


KIND = replace(
    retrieval.KIND,
    name="multilingual",
    help="captions find their images among those of their language, images their captions",
    score=score,
    chance=count_chance,
    is_zero_shot=False,
)
