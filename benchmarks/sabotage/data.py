"""Data that is not what it seems, and looks at it until it says yes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from dataclasses import replace

from PIL import Image

from benchmarks.sabotage.bench import Bench, Entry
from benchmarks.sabotage.folders import Photo, as_they_are, of_files
from pytest_quantgate.gates.accuracy import AccuracyGate, judge_accuracy
from pytest_quantgate.run.case import Case
from pytest_quantgate.selftest.sabotage import exchange
from pytest_quantgate.statistics.looks import Step, confidences_of_looks, spend_share
from pytest_quantgate.store.looks import Ledger
from pytest_quantgate.tasks.samples import Samples

COPIES = 25


def entry(
    name: str,
    gate: str,
    code: str,
    make: Callable[[Bench], Case],
    *,
    cause: str = "",
    principle: str = "",
    compared: bool = False,
) -> Entry:
    return Entry(
        name=name,
        theme="data",
        make=make,
        gates=(gate,),
        code=f"{gate}.{code}",
        cause=cause,
        judged=("sanity", "calibration", "accuracy"),
        principle=principle,
        compared=compared,
    )


def exported_again(samples: Samples) -> Iterable[Photo]:
    """An export that ran many times: each picture under many names."""
    photos = list(as_they_are(samples))[::COPIES]
    return [photo for _ in range(COPIES) for photo in photos]


def resized(samples: Samples) -> Iterable[Photo]:
    return (
        (Image.fromarray(image).resize((96, 96), Image.Resampling.BICUBIC), label)
        for image, label in as_they_are(samples)
    )


def sorted_by_class(samples: Samples) -> Iterable[Photo]:
    return sorted(as_they_are(samples), key=lambda photo: photo[1])


def look_until_green(bench: Bench) -> Case:
    """A limit that holds with the confidence of a first look, and not with what a fourth has."""
    (gate, *_) = bench.good.suite.gates.all(AccuracyGate)
    fp16, quantized = bench.good.outcomes(task=gate.task, metric=gate.metric, samples=gate.samples)
    steps, spent = [], 0.0
    for share in (4, 3, 2, 1):
        spent = spend_share(1.0, spent=spent, confidence=gate.confidence)
        steps.append(Step(samples=bench.samples / share, spent=spent))
    levels = confidences_of_looks(gate.confidence, steps)
    first, fourth = (
        judge_accuracy(fp16=fp16, quantized=quantized, gate=replace(gate, confidence=confidence))
        for confidence in (levels[0], levels[-1])
    )
    highest = [float(verdict.figures["drop_high_points"]) for verdict in (first, fourth)]
    limit = f"max_drop: {sum(highest) / 2:.3f}pp, floor"
    ledger = Ledger(bench.root / "ledger")
    shutil.rmtree(ledger.root, ignore_errors=True)

    def look(samples: int) -> Case:
        edits = {f"samples: {bench.samples}, max_drop: 2pp, floor": f"samples: {samples}, {limit}"}
        return exchange(bench.load(edits=edits), ledger=ledger)

    for share in (4, 3, 2):
        look(bench.samples // share).judge(kind="accuracy", key=gate.key)
    return look(bench.samples)


DATA = (
    entry(
        "an export that ran 25 times",
        "accuracy",
        "copies",
        of_files("copies", test=exported_again),
        cause="960 of 1000 samples are copies of others, 40 are distinct",
    ),
    entry(
        "the test images calibrated on, in files of another format",
        "calibration",
        "overlap",
        of_files("overlap", train=as_they_are),
    ),
    entry(
        "the test images calibrated on, resized",
        "calibration",
        "near-copies",
        of_files("near copies", train=resized),
        principle="whether two pictures that look alike are one is for a person to say: it is a "
        "note with the pairs, and turns no gate red",
    ),
    entry(
        "the first 40 samples of an archive that is sorted by class",
        "accuracy",
        "classes-unseen",
        of_files(
            "sorted",
            source="digits/test",
            test=sorted_by_class,
            edits={"samples: 1000, max_drop: 2pp,": "samples: 40, first: true, max_drop: 2pp,"},
        ),
        cause="40 samples of 1 of 10 classes",
    ),
    entry(
        "samples raised until the gate is green",
        "accuracy",
        "drop-open",
        look_until_green,
        cause="look 4 at samples of the same data",
        compared=True,
    ),
)
