"""What is not valid is refused with its line and the mend: the exact words."""

from __future__ import annotations

import pytest

from pytest_quantgate.gates.sections import TaskGate
from tests.suite_texts import FILE, SMALL, VALID, Load, Refusal, swap


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        # keys
        (
            "max_drop: 0.5pp",
            "max_dorp: 0.5pp",
            "accuracy.max_dorp: unknown key; did you mean max_drop?",
        ),
        (
            "source: transf",
            "sauce: x\n  source: transf",
            "model.sauce: unknown key; did you mean source?",
        ),
        (
            "roundtrip: {}",
            "zzz: {}",
            "zzz: unknown key; known: coverage, calibration, fidelity, accuracy, "
            "regression, roundtrip, serves, export, parity, engine, memory, trace, latency, load",
        ),
        ("roundtrip: {}", "roundtrip: {tolerance: 1}", "roundtrip.tolerance: unknown key; known: "),
        (
            "language: de",
            "langauge: de",
            "datasets.photos.langauge: unknown key; did you mean language?",
        ),
        ("dataset: wds/photos\n    ", "", "datasets.photos.dataset: is missing"),
        # quantities: a bare number has two readings, and both are shown
        (
            "max_drop: 0.5pp",
            "max_drop: 0.5",
            "accuracy.max_drop: 0.5 needs a unit: 0.5pp (0.5 percentage points) "
            "or 50pp (the share 0.5 of all samples)",
        ),
        (
            "max_drop: 0.5pp",
            "max_drop: .5",
            "accuracy.max_drop: 0.5 needs a unit: 0.5pp (0.5 percentage points) "
            "or 50pp (the share 0.5 of all samples)",
        ),
        (
            "max_drop: 0.5pp",
            "max_drop: 2",
            "accuracy.max_drop: 2 needs a unit: 2pp (2 percentage points)",
        ),
        (
            "max_drop: 0.5pp",
            "max_drop: 0.5%",
            "accuracy.max_drop: 0.5% is relative; write percentage points of all samples: 0.5pp",
        ),
        (
            "max_drop: 0.5pp",
            "max_drop: 0.5dB",
            "accuracy.max_drop: 0.5dB has the unit 'dB', wants pp, such as 0.5pp",
        ),
        (
            "max_drop: 0.5pp",
            "max_drop: -1pp",
            "accuracy.max_drop: -1pp is out of range: 0pp to 100pp",
        ),
        (
            "floor: 50%",
            "floor: 0.5",
            "accuracy.floor: 0.5 needs a unit: 0.5% or 50% (the share 0.5)",
        ),
        (
            "floor: 50%",
            "floor: 50pp",
            "accuracy.floor: 50pp has the unit 'pp', wants %, such as 95%",
        ),
        (
            "confidence: 99%",
            "confidence: 50%",
            "accuracy.confidence: 50% is out of range: a confidence is above 50% and below 100%",
        ),
        (
            "max_clipped: 0.2%",
            "max_clipped: lots",
            "calibration.max_clipped: 'lots' is no quantity: write a number with %, such as 95%",
        ),
        ("min_sqnr: 15dB", "min_sqnr: 15", "fidelity.min_sqnr: 15 needs a unit: 15dB"),
        (
            "min_cosine: .99",
            "min_cosine: 99%",
            "fidelity.min_cosine: '99%' is no cosine: write a number from -1 to 1, such as 0.99",
        ),
        (
            "min_cosine: .99",
            "min_cosine: 99",
            "fidelity.min_cosine: 99 is out of range: a cosine is from -1 to 1",
        ),
        # numbers that no limit can be
        (
            "min_cosine: .99",
            "min_cosine: .nan",
            "fidelity.min_cosine: '.nan' is no number that makes sense here",
        ),
        (
            "min_cosine: .99",
            "min_cosine: -.inf",
            "fidelity.min_cosine: '-.inf' is no number that makes sense here",
        ),
        (
            "min_cosine: .99",
            "min_cosine: 1.0e+999",
            "fidelity.min_cosine: '1.0e+999' is no number that makes sense here",
        ),
        (
            "samples: 512",
            f"samples: {'9' * 5000}",
            f"calibration.samples: '{'9' * 40}' is no number that makes sense here",
        ),
        (
            "samples: 512",
            "samples: 0x200",
            "calibration.samples: '0x200' is no number that makes sense here",
        ),
        (
            "samples: 512",
            "samples: 1:30",
            "calibration.samples: '1:30' is no number that makes sense here",
        ),
        ("samples: 512", "samples: 0", "calibration.samples: 0 is out of range: 1 to 1000000000"),
        (
            "samples: 512",
            "samples: 1000000001",
            "calibration.samples: 1000000001 is out of range: 1 to 1000000000",
        ),
        ("samples: 512", "samples: 2.5", "calibration.samples: expected a whole number, found 2.5"),
        (
            "samples: 512",
            "samples: true",
            "calibration.samples: expected a whole number, found True",
        ),
        (
            "samples: 512",
            "samples: many",
            "calibration.samples: expected a whole number, found 'many'",
        ),
        # kinds
        (
            "samples: 512",
            "samples: [512]",
            "calibration.samples: expected a single value, found a list",
        ),
        (
            "samples: 512",
            "samples: {a: 1}",
            "calibration.samples: expected a single value, found a mapping",
        ),
        ("samples: 512", "samples:", "calibration.samples: has no value"),
        (
            "dtype: bfloat16",
            "dtype: float61",
            "model.dtype: 'float61' is none of float16, bfloat16, float32; did you mean float16?",
        ),
        (
            "dtype: bfloat16",
            "dtype: int8",
            "model.dtype: 'int8' is none of float16, bfloat16, float32",
        ),
        (
            "towers: [vision]",
            "towers: vision",
            "coverage.towers: expected a list [a, b], found 'vision'",
        ),
        ("towers: [vision]", "towers:", "coverage.towers: expected a list [a, b], found nothing"),
        (
            "towers: [vision]",
            "towers: {a: 1}",
            "coverage.towers: expected a list [a, b], found a mapping",
        ),
        (
            "towers: [vision]",
            "towers: [vision, txt]",
            "coverage.towers[1]: 'txt' is none of vision, text; did you mean text?",
        ),
        (
            "language: de",
            "language: 49",
            "datasets.photos.language: expected a text, found 49: put it in quotes",
        ),
        (  # a commit may have no letter in it
            "language: de",
            "language: 8235902348590238459023845902384590238459",
            "datasets.photos.language: expected a text, found "
            "8235902348590238459023845902384590238459: put it in quotes",
        ),
        (
            "language: de",
            "language: no",
            "datasets.photos.language: expected a text, found False: put it in quotes",
        ),
        ("language: de", 'language: " "', "datasets.photos.language: is empty"),
        ("recipe: fp8-attention", "recipe:", "quantize.recipe: has no value"),
        (
            "recipe: fp8-attention",
            "recipe: []",
            "quantize.recipe: is empty: a recipe that quantizes nothing",
        ),
        (
            "recipe: fp8-attention",
            "recipe: {}",
            "quantize.recipe: is empty: a recipe that quantizes nothing",
        ),
        (
            "recipe: fp8-attention",
            "recipe: {a: .inf}",
            "quantize.recipe.a: '.inf' is no number that makes sense here",
        ),
        (
            "recipe: fp8-attention",
            "recipe: [1, [.nan]]",
            "quantize.recipe[1][0]: '.nan' is no number that makes sense here",
        ),
        (
            "recipe: fp8-attention",
            "recipe: {a: 1, a: 2}",
            "quantize.recipe.a: stands twice, first on line 18",
        ),
        # days
        (
            "until: 2027-03-01",
            "until: 2027-02-30",
            "coverage.waive.until: '2027-02-30' is no day: write it as 2027-03-01",
        ),
        (
            "until: 2027-03-01",
            "until: someday",
            "coverage.waive.until: 'someday' is no day: write it as 2027-03-01",
        ),
        (
            "until: 2027-03-01",
            "until: [2027]",
            "coverage.waive.until: 'a list' is no day: write it as 2027-03-01",
        ),
        # waivers that name nothing, or everything
        (
            "modules: [a, b]",
            "modules: []",
            "coverage.waive.modules: is empty: name the layers that may wait",
        ),
        *(
            (
                "modules: [a, b]",
                f"modules: {written}",
                f"coverage.waive.modules: {pattern!r} names every module: name the layers that may "
                f"wait, such as '*visual_projection*'",
            )
            for written, pattern in [
                ('"*"', "*"),
                ('[a, "**"]', "**"),
                ('"?*"', "?*"),
                ('"*.*"', "*.*"),
                ('"[!_]*"', "[!_]*"),
            ]
        ),
        # environment variables
        (
            "${QUANTGATE_DATA}/photos",
            "$DATA/photos",
            "datasets.photos.root: '$DATA/photos': '$' must start ${NAME} (an environment "
            "variable)",
        ),
        (
            "${QUANTGATE_DATA}/photos",
            "${1}/photos",
            "datasets.photos.root: '${1}/photos': '$' must start ${NAME} (an environment variable)",
        ),
        (
            "dataset: wds/photos",
            'dataset: "${NAME}"',
            "datasets.photos.dataset: ${NAME} is expanded only in paths: model.id, root, recipe",
        ),
        # what concerns several keys
        (
            "data: photos/train",
            "data: photos",
            "calibration.data: 'photos' is no data: write <data set>/<split>, such as scenes/train",
        ),
        (
            "data: photos/train",
            "data: photos/",
            "calibration.data: 'photos/' is no data: write <data set>/<split>, such as "
            "scenes/train",
        ),
        (
            "data: photos/test",
            "data: /test",
            "fidelity.data: '/test' is no data: write <data set>/<split>, such as scenes/train",
        ),
        (
            "metric: acc1",
            "metric: acc-1",
            "accuracy.metric: 'acc-1' is no metric of classification: acc1, acc5, "
            "mean_per_class_recall; did you mean acc1?",
        ),
        (
            "metric: acc1",
            "metric: f",
            "accuracy.metric: 'f' is no metric of classification: acc1, acc5, "
            "mean_per_class_recall",
        ),
        (
            "metric: image_retrieval_recall@5",
            "metric: image_retrieval_recall@0",
            "accuracy.metric: 'image_retrieval_recall@0' is no metric of retrieval: "
            "image_retrieval_recall@K, text_retrieval_recall@K",
        ),
        (
            "task: photos/retrieval",
            "task: photos",
            "accuracy.task: 'photos' is no task: write <data set>/<kind>, of classification, "
            "retrieval, knn, neighbours, text_neighbours, linear_probe, catalogue, filter, "
            "duplicates, multilingual",
        ),
        (
            "task: photos/retrieval",
            "task: /retrieval",
            "accuracy.task: '/retrieval' is no task: write <data set>/<kind>, of classification, "
            "retrieval, knn, neighbours, text_neighbours, linear_probe, catalogue, filter, "
            "duplicates, multilingual",
        ),
        (
            "max_drop: 3pp",
            "max_drop: 3pp\n      bank: photos/train",
            "accuracy.bank: retrieval looks nothing up in a bank: leave it out",
        ),
        (
            "max_drop: 3pp",
            "max_drop: 3pp\n      positive: gore",
            "accuracy.positive: retrieval has no use for it: leave it out",
        ),
        (
            "task: photos/retrieval\n      metric: image_retrieval_recall@5",
            "task: photos/filter\n      metric: recall@fpr1%",
            "accuracy.task: filter needs positive: the classes that it is to find",
        ),
        (
            "max_drop: 3pp",
            "max_drop: 3pp\n      bank_samples: 100",
            "accuracy.bank_samples: is about bank: name it, such as bank: photos/train",
        ),
        (
            "max_drop: 3pp",
            "max_drop: 3pp\n      bank: photos",
            "accuracy.bank: 'photos' is no data: write <data set>/<split>, such as scenes/train",
        ),
        (
            "max_drop: 3pp",
            "max_drop: 3pp\n      max_class_drop: 1pp",
            "accuracy.max_class_drop: retrieval has no classes",
        ),
        (
            "max_drop: 3pp",
            "max_drop: 3pp\n      slices: {by: [], max_drop: 1pp}",
            "accuracy.slices.by: is empty: name class, or a column of the data",
        ),
        (
            "max_drop: 3pp",
            "max_drop: 3pp\n      slices: {by: [light, [class, class]], max_drop: 1pp}",
            "accuracy.slices.by: names a column twice",
        ),
        (
            "max_drop: 3pp",
            "max_drop: 3pp\n      slices: {by: light}",
            "accuracy.slices.max_drop: is missing",
        ),
        # limits that what has lost everything keeps
        (
            "max_clipped: 0.2%",
            "max_clipped: 100%",
            "calibration.max_clipped: 100% decides nothing: a range that cuts off half of the "
            "values is none; set it under 50%",
        ),
        (
            "min_cosine: .99",
            "min_cosine: -1",
            "fidelity.min_cosine: -1 decides nothing: embeddings that have nothing to do with "
            "FP16's keep it; set it over 0",
        ),
        (
            "floor: 50%",
            "floor: 0%",
            "accuracy.floor: 0% decides nothing: no share is less; set it over 0%",
        ),
        (
            "max_drop: 3pp",
            "max_drop: 100pp",
            "accuracy.max_drop: 100pp decides nothing: no more than everything can be lost; set "
            "it under 100pp, or floor, max_flips, max_class_drop or slices beside it",
        ),
        (
            "max_drop: 3pp",
            "max_drop: 3pp\n      tolerance: 60pp\n      published: 40%",
            "accuracy.tolerance: reaches from 0% to 100% around published 40.00 %: any score is "
            "in it; set it under 60.00 pp",
        ),
        (
            "max_drop: 3pp",
            "max_drop: 3pp\n      tolerance: 1pp",
            "accuracy.tolerance: is about published: say what FP16 is known to score",
        ),
        (
            "samples: 1000",
            "samples: 1000\n      first: 40",
            "accuracy.first: expected true or false, found 40",
        ),
        (
            "max_drop: 3pp",
            "max_drop: 3pp\n      first: true",
            "accuracy.first: is about samples: say how many, such as samples: 1000",
        ),
    ],
    ids=lambda value: value[:40],
)
def test_refused_with_file_line_key_and_mend(
    refusal: Refusal, old: str, new: str, words: str
) -> None:
    text = swap(old, new)
    changed = next(
        number
        for number, (before, after) in enumerate(
            zip(VALID.splitlines(), text.splitlines(), strict=False), start=1
        )
        if before != after
    )

    assert refusal(text) == f"{FILE}:{changed}: {words}"


@pytest.mark.parametrize(
    ("kind", "alone", "beside"),
    [
        ("filter", "recall@fpr1%", "specificity@fpr1%"),
        ("filter", "specificity@fpr0.5%", "recall@fpr0.5%"),
        ("duplicates", "recall@precision95%", "clean@precision95%"),
        ("duplicates", "clean@precision95%", "recall@precision95%"),
    ],
)
@pytest.mark.parametrize("gate", ["accuracy", "regression"])
def test_one_side_of_a_threshold_alone_is_refused(
    refusal: Refusal, load: Load, gate: str, kind: str, alone: str, beside: str
) -> None:
    """Who flags everything misses nothing: a model whose embeddings are all alike would pass."""

    def write(*metrics: str, more: str = "") -> str:
        limit = "max_drop: 1pp"
        if gate == "regression":
            limit = f"{limit}, max_fp16_drop: 1pp, max_drop_since_first: 1pp"
        positive = "positive: gore, " if kind == "filter" else ""
        listed = "".join(
            f"    - {{task: photos/{kind}, metric: {metric}, {positive}{limit}{more * place}}}\n"
            for place, metric in enumerate(metrics)
        )
        return SMALL.replace("gates: {roundtrip: {}}\n", f"gates:\n  {gate}:\n{listed}")

    said = (
        f"{gate}.metric: {alone} alone passes a model whose embeddings are all alike: add a gate "
        f"with metric: {beside} and the same task, samples, bank and positive"
    )
    assert refusal(write(alone)).endswith(said)
    assert refusal(write(alone, beside, more=", samples: 50")).endswith(said)
    assert len(load(write(alone, beside)).gates.all(TaskGate)) == 2


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("quantgate: 1\n", "", "1: quantgate: is missing"),
        ("model: {source: reference}\n", "", "1: model: is missing"),
        ("{source: reference}", "{dtype: float16}", "2: model.source: is missing"),
        ("{source: reference}", "", "2: model.source: is missing"),
        (
            "{source: reference}",
            "reference",
            "2: model: expected a mapping (key: value), found 'reference'",
        ),
        (
            "{source: reference}",
            "[reference]",
            "2: model: expected a mapping (key: value), found a list",
        ),
        (
            "{source: reference}",
            "{source: reference, id: x}",
            "2: model.id: the reference model ships with the package",
        ),
        (
            "{source: reference}",
            "\n  source: reference\n  revision: x",
            "4: model.revision: the reference model ships with the package",
        ),
        (
            "{source: reference}",
            "{source: transformers}",
            "2: model.id: is missing: a hub id or a local directory",
        ),
        (
            "{source: reference}",
            "\n  source: transformers\n  id: ./x\n  revision: y",
            "5: model.revision: a local directory has no revision",
        ),
        (
            "{source: reference}",
            "{source: transformers, id: laion/x}",
            "2: model.revision: is missing: pin the commit of the hub id, so that the model cannot "
            "change under the gate (a local directory starts with / ./ ~/ or ${NAME})",
        ),
        ("gates: {roundtrip: {}}\n", "", "1: gates: is missing"),
        (
            "{roundtrip: {}}",
            "{}",
            "5: gates: has no gates: name at least one of coverage, calibration, fidelity, "
            "accuracy, regression, roundtrip, serves, export, parity, engine, memory, trace, "
            "latency, load",
        ),
        (
            "{roundtrip: {}}",
            "",
            "5: gates: has no gates: name at least one of coverage, calibration, fidelity, "
            "accuracy, regression, roundtrip, serves, export, parity, engine, memory, trace, "
            "latency, load",
        ),
        (
            "{roundtrip: {}}",
            "{accuracy: []}",
            "5: accuracy: is empty: leave it out or name at least one",
        ),
        (
            "{roundtrip: {}}",
            "{accuracy: }",
            "5: accuracy: expected a list of mappings, found nothing",
        ),
        (
            "{roundtrip: {}}",
            "{coverage: {waive: {modules: a}}}",
            "5: coverage.waive: expected a list of mappings, found a mapping",
        ),
        (
            "{roundtrip: {}}",
            "{fidelity: {samples: 5}}",
            "5: fidelity: sets no limit: give at least one of min_cosine, "
            "min_worst_cosine, min_sqnr, min_worst_sqnr",
        ),
        (
            "{roundtrip: {}}",
            "{accuracy: {task: a/classification, metric: acc1}}",
            "5: accuracy.max_drop: is missing",
        ),
        (
            "{roundtrip: {}}",
            "\n  accuracy:"
            "\n    - {task: a/classification, metric: acc1, max_drop: 1pp}"
            "\n    - {task: a/classification, metric: acc5, max_drop: 1pp}"
            "\n    - {task: a/classification, metric: acc1, max_drop: 2pp}",
            "9: accuracy: a/classification acc1 stands twice",
        ),
        (
            "quantgate: 1\n",
            "quantgate: 1\nquantgate: 1\n",
            "2: quantgate: stands twice, first on line 1",
        ),
        ("quantgate: 1\n", "? [a]\n: 1\nquantgate: 1\n", "1: a key must be a plain word"),
        (
            "quantgate: 1\n",
            "<<: {a: 1}\nquantgate: 1\n",
            "1: <<: unknown key; known: quantgate, model, datasets, calibration, quantize, "
            "quantized, artifacts, family, allow_unmeasured, trust, gates",
        ),
        (
            "quantgate: 1\n",
            "quantgate: one\n",
            "1: quantgate: expected a whole number, found 'one'",
        ),
        (
            "gates: {",
            "datasets: [a]\ngates: {",
            "5: datasets: expected a mapping (key: value), found a list",
        ),
    ],
    ids=lambda value: value[:40],
)
def test_refused_as_a_whole(refusal: Refusal, old: str, new: str, words: str) -> None:
    assert refusal(swap(old, new, text=SMALL)) == f"{FILE}:{words}"


def test_other_version_is_refused_at_its_own_line(refusal: Refusal) -> None:
    text = swap("quantgate: 1\n", "", text=SMALL) + "quantgate: 2\n"

    assert refusal(text) == (
        f"{FILE}:5: quantgate: version 2 is not supported: this release reads 1"
    )
