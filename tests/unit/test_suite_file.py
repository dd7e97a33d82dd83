"""Suite files: what is valid is read whole, what is not is refused with its line and the mend."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import date
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pytest_quantgate.errors import QuantGateError, SuiteError
from pytest_quantgate.suite import Suite
from pytest_quantgate.suite_file import load_suite
from pytest_quantgate.suite_file.nodes import MAX_BYTES

SHIPPED = sorted((Path(__file__).parents[2] / "suites").glob("*.quantgate.yaml"))
FILE = "suites/demo.quantgate.yaml"

# One key a line, so that a message with another line than its key's own is seen.
VALID = """\
quantgate: 1
model:
  source: transformers
  id: "${QUANTGATE_CLIP}"
  dtype: bfloat16
  attn_implementation: eager
datasets:
  photos:
    dataset: wds/photos
    root: "${DATA}/photos"
    language: de
calibration:
  data: photos/train
  samples: 512
  batch_size: 64
  held_out_samples: 32
quantize:
  recipe: fp8-attention
  exclude: "*patch_embedding*"
gates:
  coverage:
    attention: [q, k, v, output]
    towers: [vision]
    waive:
      - modules: "*visual_projection*"
        reason: the kernel comes in March
        until: 2027-03-01
      - modules: [a, b]
        reason: "why: this"
        until: "2027-04-01"
  calibration:
    max_clipped: 0.2%
  fidelity:
    data: photos/test
    samples: 256
    min_cosine: .99
    min_worst_cosine: 0
    min_sqnr: 15dB
    min_worst_sqnr: -3.5 dB
  accuracy:
    - task: photos/classification
      metric: acc1
      max_drop: 0.5pp
      confidence: 99%
      floor: 50%
      max_flips: 3%
      max_class_drop: 20pp
      samples: 1000
    - task: photos/retrieval
      metric: image_retrieval_recall@5
      max_drop: 3pp
  regression:
    - task: photos/classification
      metric: mean_per_class_recall
      max_fp16_drop: 0.25pp
      max_drop: 1pp
      max_drop_since_first: 1.5pp
  roundtrip: {}
"""

SMALL = """\
quantgate: 1
model: {source: reference}
calibration: {data: scenes/calibration, samples: 512, batch_size: 64}
quantize: {recipe: fp8}
gates: {roundtrip: {}}
"""

# One key a line here too.
EXPORTED = """\
quantgate: 1
model: {source: reference}
calibration: {data: scenes/calibration, samples: 512, batch_size: 64}
quantize: {recipe: fp8-attention}
gates:
  accuracy:
    - task: scenes/classification
      metric: acc1
      max_drop: 1pp
    - task: scenes/classification
      metric: acc1
      max_drop: 2pp
      stage: onnx
  export:
    allow: [softmax]
    max_size_ratio: 0.6x
  parity:
    samples: 32
    max_error: 0.2%
    max_sqnr_change: 1.5dB
  engine:
    - target: sm89
      library: tensorrt
      towers: [vision]
      batch: 8
      min_fp8_gemms: 25
      attention: fused-fp8
      max_plan_ratio: 0.7x
      max_weights_ratio: 0.65 x
      max_activation_ratio: 1X
      max_plan: 512MiB
      max_weights: 0.5 GiB
      max_activation: 100MB
    - target: sm120
      attention: fused
"""

Load = Callable[[str | bytes], Suite]
Refusal = Callable[[str | bytes], str]


def swap(old: str, new: str, *, text: str = VALID) -> str:
    assert text.count(old) == 1, f"{old!r} stands {text.count(old)} times"
    return text.replace(old, new)


def line_of(part: str, *, text: str = VALID) -> int:
    assert text.count(part) == 1, f"{part!r} stands {text.count(part)} times"
    return text[: text.index(part)].count("\n") + 1


@pytest.fixture
def load(tmp_path: Path) -> Load:
    """Load a text as `suites/demo.quantgate.yaml` of a project."""

    def load_text(text: str | bytes) -> Suite:
        path = tmp_path / FILE
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8"))
        return load_suite(path, relative_to=tmp_path)

    return load_text


@pytest.fixture
def refusal(load: Load) -> Refusal:
    """Return the message with which a text is refused."""

    def refuse(text: str | bytes) -> str:
        with pytest.raises(SuiteError) as caught:
            load(text)
        return str(caught.value)

    return refuse


# -- what is valid --------------------------------------------------------------------------------


def test_what_is_measured_arrives_as_written(load: Load, tmp_path: Path) -> None:
    suite = load(VALID)

    assert (suite.path, suite.name, suite.version) == (tmp_path / FILE, "demo", 1)
    assert (suite.model.source, suite.model.id) == ("transformers", "${QUANTGATE_CLIP}")
    assert (suite.model.dtype, suite.model.attn_implementation) == ("bfloat16", "eager")
    photos = suite.datasets["photos"]
    assert (photos.dataset, photos.root, photos.language) == ("wds/photos", "${DATA}/photos", "de")
    calibration = suite.calibration
    assert (calibration.data, calibration.samples) == ("photos/train", 512)
    assert (calibration.batch_size, calibration.held_out_samples) == (64, 32)
    assert suite.quantize.recipe == "fp8-attention"
    assert suite.quantize.exclude == ("*patch_embedding*",)


def test_limits_arrive_exact_and_with_their_units(load: Load) -> None:
    gates = load(VALID).gates

    assert gates.calibration is not None
    assert gates.calibration.max_clipped == Fraction(2, 1000)
    fidelity = gates.fidelity
    assert fidelity is not None
    assert (fidelity.data, fidelity.samples) == ("photos/test", 256)
    assert (fidelity.min_cosine, fidelity.min_worst_cosine) == (0.99, 0.0)
    assert (fidelity.min_sqnr_db, fidelity.min_worst_sqnr_db) == (15.0, -3.5)
    first, second = gates.accuracy
    assert first.key == "photos/classification-acc1"
    assert (first.max_drop, first.confidence) == (Fraction(1, 200), Fraction(99, 100))
    assert (first.floor, first.max_flips) == (Fraction(1, 2), Fraction(3, 100))
    assert (first.max_class_drop, first.samples) == (Fraction(1, 5), 1000)
    assert second.key == "photos/retrieval-image_retrieval_recall@5"
    (regression,) = gates.regression
    assert regression.key == "photos/classification-mean_per_class_recall"
    assert regression.max_fp16_drop == Fraction(1, 400)
    assert regression.max_drop == Fraction(1, 100)
    assert regression.max_drop_since_first == Fraction(3, 200)
    assert gates.roundtrip is not None


def test_waivers_arrive_with_their_day(load: Load) -> None:
    coverage = load(VALID).gates.coverage

    assert coverage is not None
    assert coverage.attention == ("q", "k", "v", "output")
    assert coverage.towers == ("vision",)
    first, second = coverage.waive
    assert first.modules == ("*visual_projection*",)
    assert (first.reason, first.until) == ("the kernel comes in March", date(2027, 3, 1))
    assert second.modules == ("a", "b")
    assert (second.reason, second.until) == ("why: this", date(2027, 4, 1))
    assert str(second.where) == f"{FILE}:{line_of('modules: [a, b]')}"


def test_every_limit_knows_its_line(load: Load) -> None:
    gates = load(VALID).gates

    assert gates.fidelity is not None
    assert str(gates.fidelity.where) == f"{FILE}:{line_of('data: photos/test')}"
    assert gates.fidelity.where.of("min_sqnr") == f"{FILE}:{line_of('min_sqnr')}"
    assert gates.accuracy[0].where.of("max_drop") == f"{FILE}:{line_of('max_drop: 0.5pp')}"
    assert str(gates.accuracy[1].where) == f"{FILE}:{line_of('task: photos/retrieval')}"
    assert gates.regression[0].where.of("max_drop") == f"{FILE}:{line_of('max_drop: 1pp')}"


def test_what_is_left_out_takes_the_default(load: Load) -> None:
    suite = load(
        swap("{roundtrip: {}}", "{coverage: , calibration: ~, roundtrip: null}", text=SMALL)
    )

    assert (suite.model.dtype, suite.model.attn_implementation) == ("float16", "sdpa")
    assert suite.calibration.held_out_samples == 128
    assert suite.datasets == {}
    assert suite.quantize.exclude == ()
    gates = suite.gates
    assert gates.coverage is not None
    assert gates.coverage.attention is None
    assert gates.coverage.towers == ("vision", "text")
    assert gates.coverage.waive == ()
    assert gates.calibration is not None
    assert gates.calibration.max_clipped == Fraction(1, 1000)
    assert (gates.fidelity, gates.accuracy, gates.regression) == (None, (), ())
    assert gates.roundtrip is not None


def test_one_task_alone_is_a_list_of_one(load: Load) -> None:
    gate = "{accuracy: {task: scenes/classification, metric: acc1, max_drop: 1pp}}"

    (accuracy,) = load(swap("{roundtrip: {}}", gate, text=SMALL)).gates.accuracy

    assert accuracy.task == "scenes/classification"


def test_fidelity_without_data_and_samples_leaves_them_to_the_run(load: Load) -> None:
    fidelity = load(swap("roundtrip: {}", "fidelity: {min_cosine: 1}", text=SMALL)).gates.fidelity

    assert fidelity is not None
    assert (fidelity.data, fidelity.samples) == (None, 512)
    assert fidelity.min_cosine == 1.0
    assert (fidelity.min_worst_cosine, fidelity.min_sqnr_db) == (None, None)


def test_attention_can_be_asked_for_none(load: Load) -> None:
    coverage = load(swap("[q, k, v, output]", "[]")).gates.coverage

    assert coverage is not None
    assert coverage.attention == ()


def test_hub_id_is_taken_with_its_commit(load: Load) -> None:
    model = "{source: transformers, id: laion/CLIP-ViT-L-14, revision: 1627abc}"

    suite = load(swap("{source: reference}", model, text=SMALL))

    assert (suite.model.id, suite.model.revision) == ("laion/CLIP-ViT-L-14", "1627abc")


@pytest.mark.parametrize(
    "name", ["/models/clip", "./clip", "../clip", "~/clip", "${HOME}/clip"], ids=str
)
def test_local_directory_needs_no_commit(load: Load, name: str) -> None:
    assert load(swap('"${QUANTGATE_CLIP}"', f'"{name}"')).model.id == name


def test_inline_quant_cfg_as_a_mapping_keeps_its_types(load: Load) -> None:
    recipe = """\
quantize:
  recipe:
    quant_cfg:
      "*weight_quantizer": {num_bits: [4, 3], axis: null, enable: yes}
      default: {enable: off, trt_high_precision_dtype: Half}
    algorithm: {method: smoothquant, alpha: 0.8, steps: -2, big: 4.48e+2}
"""

    suite = load(swap("quantize: {recipe: fp8}\n", recipe, text=SMALL))

    assert suite.quantize.recipe == {
        "quant_cfg": {
            "*weight_quantizer": {"num_bits": [4, 3], "axis": None, "enable": True},
            "default": {"enable": False, "trt_high_precision_dtype": "Half"},
        },
        "algorithm": {"method": "smoothquant", "alpha": 0.8, "steps": -2, "big": 448.0},
    }


def test_inline_quant_cfg_as_a_list_keeps_its_order(load: Load) -> None:
    recipe = """\
quantize:
  recipe:
    - {quantizer_path: "*", enable: false}
    - quantizer_path: "*weight_quantizer"
      cfg: {num_bits: [4, 3]}
"""

    suite = load(swap("quantize: {recipe: fp8}\n", recipe, text=SMALL))

    assert suite.quantize.recipe == (
        {"quantizer_path": "*", "enable": False},
        {"quantizer_path": "*weight_quantizer", "cfg": {"num_bits": [4, 3]}},
    )


def test_recipe_path_may_hold_a_variable(load: Load) -> None:
    suite = load(swap("{recipe: fp8}", '{recipe: "${RECIPES}/fp8.yaml"}', text=SMALL))

    assert suite.quantize.recipe == "${RECIPES}/fp8.yaml"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_suite_loads(path: Path) -> None:
    suite = load_suite(path)

    assert f"{suite.name}.quantgate.yaml" == path.name
    assert suite.gates.coverage is not None
    assert suite.gates.accuracy


def test_there_are_shipped_suites() -> None:
    assert "clip_reference.quantgate.yaml" in {path.name for path in SHIPPED}


def test_byte_order_mark_and_windows_lines_are_taken(load: Load) -> None:
    text = b"\xef\xbb\xbf" + VALID.replace("\n", "\r\n").encode()

    suite = load(text)

    assert suite.gates.regression[0].where.of("max_drop") == f"{FILE}:{line_of('max_drop: 1pp')}"


# -- names of the file in messages ----------------------------------------------------------------


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SuiteError) as caught:
        load_suite(tmp_path / "suites" / "no.quantgate.yaml", relative_to=tmp_path)

    assert str(caught.value) == (
        "suites/no.quantgate.yaml:1: cannot read the suite: No such file or directory"
    )


def test_directory_is_no_suite(tmp_path: Path) -> None:
    with pytest.raises(SuiteError, match=r":1: cannot read the suite: Is a directory$"):
        load_suite(tmp_path)


@pytest.mark.parametrize("elsewhere", [None, Path("/elsewhere")])
def test_name_is_not_shortened_without_a_common_root(
    tmp_path: Path, elsewhere: Path | None
) -> None:
    path = tmp_path / "no.quantgate.yaml"

    with pytest.raises(SuiteError) as caught:
        load_suite(path, relative_to=elsewhere)

    assert str(caught.value).startswith(f"{path.as_posix()}:1: ")


# -- what is refused: the exact words -------------------------------------------------------------


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
            "regression, roundtrip, export, parity, engine, memory, trace, latency",
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
        # environment variables
        (
            "${DATA}/photos",
            "$DATA/photos",
            "datasets.photos.root: '$DATA/photos': '$' must start ${NAME} (an environment "
            "variable)",
        ),
        (
            "${DATA}/photos",
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
            "accuracy.task: 'photos' is no task: write <data set>/classification or <data "
            "set>/retrieval",
        ),
        (
            "task: photos/retrieval",
            "task: /retrieval",
            "accuracy.task: '/retrieval' is no task: write <data set>/classification or "
            "<data set>/retrieval",
        ),
        (
            "max_drop: 3pp",
            "max_drop: 3pp\n      max_class_drop: 1pp",
            "accuracy.max_class_drop: retrieval has no classes",
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
            "accuracy, regression, roundtrip, export, parity, engine, memory, trace, latency",
        ),
        (
            "{roundtrip: {}}",
            "",
            "5: gates: has no gates: name at least one of coverage, calibration, fidelity, "
            "accuracy, regression, roundtrip, export, parity, engine, memory, trace, latency",
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
            "1: <<: unknown key; known: quantgate, model, datasets, calibration, quantize, family, "
            "gates",
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


# -- gates of what was exported -------------------------------------------------------------------


def test_limits_of_what_was_exported_arrive_exact(load: Load) -> None:
    gates = load(EXPORTED).gates

    assert gates.export is not None
    assert gates.export.allow == ("softmax",)
    assert gates.export.max_size_ratio == Fraction(3, 5)
    assert gates.export.where.of("max_size_ratio") == (
        f"{FILE}:{line_of('max_size_ratio', text=EXPORTED)}"
    )
    assert gates.parity is not None
    assert (gates.parity.samples, gates.parity.max_error) == (32, Fraction(1, 500))
    assert gates.parity.max_sqnr_change_db == 1.5
    assert gates.parity.where.of("max_sqnr_change") == (
        f"{FILE}:{line_of('max_sqnr_change', text=EXPORTED)}"
    )
    first, second = gates.engine
    assert (first.target, first.library, first.towers) == ("sm89", "tensorrt", ("vision",))
    assert (first.batch, first.min_fp8_gemms, first.attention) == (8, 25, "fused-fp8")
    assert first.max_plan_ratio == Fraction(7, 10)
    assert first.max_weights_ratio == Fraction(13, 20)
    assert first.max_activation_ratio == Fraction(1)
    assert first.max_plan_bytes == first.max_weights_bytes == 512 * 2**20
    assert first.max_activation_bytes == 100_000_000
    assert first.where.of("max_plan") == f"{FILE}:{line_of('max_plan: ', text=EXPORTED)}"
    assert str(second.where) == f"{FILE}:{line_of('target: sm120', text=EXPORTED)}"


def test_gates_of_what_was_exported_take_their_defaults(load: Load) -> None:
    written = "{export: , parity: {}, engine: {target: sm89, min_fp8_gemms: 1}}"

    gates = load(swap("{roundtrip: {}}", written, text=SMALL)).gates

    assert gates.export is not None
    assert (gates.export.allow, gates.export.max_size_ratio) == ((), None)
    assert gates.parity is not None
    assert (gates.parity.samples, gates.parity.max_error) == (64, Fraction(1, 1000))
    assert gates.parity.max_sqnr_change_db == 1.0
    (engine,) = gates.engine
    assert (engine.library, engine.towers, engine.batch) == (
        "tensorrt-rtx",
        ("vision", "text"),
        1,
    )
    assert (engine.attention, engine.max_plan_ratio, engine.max_plan_bytes) == (None, None, None)


def test_task_may_be_judged_in_pytorch_and_as_exported(load: Load) -> None:
    gates = load(EXPORTED).gates

    assert [gate.stage for gate in gates.accuracy] == ["torch", "onnx"]
    assert [gate.key for gate in gates.accuracy] == [
        "scenes/classification-acc1",
        "scenes/classification-acc1-onnx",
    ]


@pytest.mark.parametrize(
    ("written", "key"),
    [
        ("target: sm89", "sm89"),
        ("target: sm89, towers: [vision]", "sm89-vision"),
        ("target: sm89, towers: [text]", "sm89-text"),
        ("target: sm89, towers: [text, vision]", "sm89"),
        ("target: sm120, batch: 8", "sm120-batch8"),
        ("target: sm89, towers: [text], batch: 2", "sm89-text-batch2"),
        ("target: sm89, batch: 1, library: tensorrt", "sm89-tensorrt"),
    ],
)
def test_engine_is_named_by_what_makes_it_another(load: Load, written: str, key: str) -> None:
    text = f"{{engine: {{{written}, attention: fused}}}}"

    (engine,) = load(swap("{roundtrip: {}}", text, text=SMALL)).gates.engine

    assert engine.key == key


def test_memory_is_named_as_an_engine_is_and_needs_a_limit(load: Load) -> None:
    text = "{memory: [{target: sm89, towers: [text], batch: 2, max_plan: 64MiB}]}"

    (gate,) = load(swap("{roundtrip: {}}", text, text=SMALL)).gates.memory

    assert (gate.key, gate.max_plan_bytes) == ("sm89-text-batch2", 64 * 2**20)
    with pytest.raises(SuiteError, match="sets no limit, so it decides nothing: set a max_"):
        load(swap("{roundtrip: {}}", "{memory: {target: sm89}}", text=SMALL))


def test_a_trace_is_named_by_where_it_ends(load: Load) -> None:
    text = "{trace: [{}, {target: sm89, allow: ['*patch*']}, {target: sm120, towers: [text]}]}"

    found = load(swap("{roundtrip: {}}", text, text=SMALL)).gates.trace

    assert [gate.key for gate in found] == ["onnx", "sm89", "sm120-text"]
    assert found[1].allow == ("*patch*",)


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("{allow: ['*']}", "trace.allow: is about an engine: set target as well"),
        ("{batch: 8}", "trace.batch: is about an engine"),
        ("{towers: []}", "trace.towers: is empty"),
        ("{towers: [text, text]}", "trace.towers: names a tower twice"),
        ("[{target: sm89}, {target: sm89}]", "trace: sm89 stands twice"),
    ],
)
def test_a_trace_that_cannot_be_meant_is_refused(load: Load, written: str, words: str) -> None:
    with pytest.raises(SuiteError, match=re.escape(words)):
        load(swap("{roundtrip: {}}", f"{{trace: {written}}}", text=SMALL))


def test_latency_is_named_by_runtime_tower_and_batch(load: Load) -> None:
    text = "{latency: [{tower: vision, max_ratio: 0.9x}, {tower: text, batch: 8, max_ratio: 1x}]}"

    first, second = load(swap("{roundtrip: {}}", text, text=SMALL)).gates.latency

    assert (first.key, second.key) == ("onnxruntime-vision-batch1", "onnxruntime-text-batch8")
    assert (first.max_ratio, first.confidence) == (Fraction(9, 10), Fraction(19, 20))


def test_the_smallest_ratio_that_is_believed_can_be_set(load: Load) -> None:
    text = """{latency: [{tower: vision, max_ratio: 0.9x, min_ratio: 0.05x},
      {tower: text, max_ratio: 1x}]}"""

    first, second = load(swap("{roundtrip: {}}", text, text=SMALL)).gates.latency

    assert (first.min_ratio, second.min_ratio) == (Fraction(1, 20), None)


def test_a_list_of_batch_sizes_is_a_gate_for_each(load: Load) -> None:
    text = """{latency: [{tower: vision, batch: [1, 8], max_ratio: 0.9x, max_latency: 2.5ms},
      {tower: text, batch: [4], runtime: tensorrt-rtx, max_latency: 250us}]}"""

    gates = load(swap("{roundtrip: {}}", text, text=SMALL)).gates.latency

    assert [gate.key for gate in gates] == [
        "onnxruntime-vision-batch1",
        "onnxruntime-vision-batch8",
        "tensorrt-rtx-text-batch4",
    ]
    assert [gate.max_latency_ms for gate in gates] == [2.5, 2.5, 0.25]
    assert gates[2].max_ratio is None
    assert gates[0].where == gates[1].where


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ("tower: vision", "latency: sets no limit, so it decides nothing: set max_ratio, max_lat"),
        ("tower: vision, max_latency: 3", "latency.max_latency: 3 needs a unit: 3ms or 3s"),
        ("tower: vision, max_latency: 3h", "latency.max_latency: 3h has the unit 'h', wants one o"),
        ("tower: vision, max_latency: 0ms", "latency.max_latency: 0ms is out of range: above 0ms"),
        ("tower: text, max_ratio: 1x, batch: []", "latency.batch: is empty: name at least one"),
        ("tower: text, max_ratio: 1x, batch: [1, 0]", "latency.batch[1]: 0 is out of range: 1 to"),
        ("tower: text, max_ratio: 1x, batch: {a: 1}", "latency.batch: expected a list [a, b], fo"),
        (
            "tower: text, max_ratio: 1x, batch: [1, 8, 1]",
            "latency: onnxruntime-text-batch1 stands twice",
        ),
        (
            "tower: text, max_ratio: 1x, runtime: tensorrt, threads: 2",
            "latency.threads: tensorrt runs on the GPU: leave it out",
        ),
        ("tower: vision, max_ratio: 90%", "latency.max_ratio: 90% has the unit '%'; write it as"),
        (
            "tower: text, max_ratio: 0.5x, min_ratio: 0.5x",
            "latency.min_ratio: is not below max_ratio, so nothing could pass",
        ),
        ("tower: text, min_ratio: 0.1x", "latency: sets no limit, so it decides nothing"),
        ("tower: image, max_ratio: 1x", "latency.tower: 'image' is none of vision, text"),
        ("tower: text, max_ratio: 1x, runtime: cuda", "latency.runtime: 'cuda' is none of onnx"),
    ],
)
def test_latency_is_refused_with_its_key(load: Load, written: str, words: str) -> None:
    with pytest.raises(SuiteError, match=re.escape(words)):
        load(swap("{roundtrip: {}}", f"{{latency: {{{written}}}}}", text=SMALL))


@pytest.mark.parametrize(
    "limit",
    [
        "min_fp8_gemms: 1",
        "attention: fused",
        "max_plan_ratio: 1x",
        "max_weights_ratio: 1x",
        "max_activation_ratio: 1x",
        "max_plan: 1GB",
        "max_weights: 1GB",
        "max_activation: 1GB",
    ],
)
def test_each_limit_of_an_engine_is_enough_alone(load: Load, limit: str) -> None:
    text = f"{{engine: {{target: sm89, {limit}}}}}"

    assert load(swap("{roundtrip: {}}", text, text=SMALL)).gates.engine


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (
            "stage: onnx",
            "stage: plan",
            "accuracy.stage: 'plan' is none of torch, onnx, engine",
        ),
        (
            "stage: onnx",
            "stage: onxn",
            "accuracy.stage: 'onxn' is none of torch, onnx, engine; did you mean onnx?",
        ),
        ("stage: onnx", "stage:", "accuracy.stage: has no value"),
        # export
        (
            "allow: [softmax]",
            "allow: softmax",
            "export.allow: expected a list [a, b], found 'softmax'",
        ),
        (
            "allow: [softmax]",
            "allow: [softmax, layernorm]",
            "export.allow[1]: 'layernorm' is none of softmax",
        ),
        (
            "allow: [softmax]",
            "alow: [softmax]",
            "export.alow: unknown key; did you mean allow?",
        ),
        (
            "max_size_ratio: 0.6x",
            "max_size_ratio: 0.6",
            "export.max_size_ratio: 0.6 needs a unit: 0.6x (times FP16)",
        ),
        (
            "max_size_ratio: 0.6x",
            "max_size_ratio: 60%",
            "export.max_size_ratio: 60% has the unit '%'; write it as 0.6x",
        ),
        (
            "max_size_ratio: 0.6x",
            "max_size_ratio: 0x",
            "export.max_size_ratio: 0x is out of range: above 0x, at most 1000x",
        ),
        # parity
        ("samples: 32", "samples: 0", "parity.samples: 0 is out of range: 1 to 1000000000"),
        (
            "max_error: 0.2%",
            "max_error: 0.002",
            "parity.max_error: 0.002 needs a unit: 0.002% or 0.2% (the share 0.002)",
        ),
        (
            "max_error: 0.2%",
            "max_error: 101%",
            "parity.max_error: 101% is out of range: 0% to 100%",
        ),
        (
            "max_sqnr_change: 1.5dB",
            "max_sqnr_change: 1.5",
            "parity.max_sqnr_change: 1.5 needs a unit: 1.5dB",
        ),
        (
            "max_sqnr_change: 1.5dB",
            "max_sqnr_change: -1.5dB",
            "parity.max_sqnr_change: is negative: no change is less than 0dB",
        ),
        (
            "max_sqnr_change: 1.5dB",
            "max_sqnr_change_db: 1.5",
            "parity.max_sqnr_change_db: unknown key; did you mean max_sqnr_change?",
        ),
        # engine
        (
            "target: sm120",
            "target: 120",
            "engine.target: expected a text, found 120: put it in quotes",
        ),
        ("target: sm120", 'target: ""', "engine.target: is empty"),
        (
            "target: sm120",
            'target: "${TARGET}"',
            "engine.target: ${NAME} is expanded only in paths: model.id, root, recipe",
        ),
        (
            "library: tensorrt\n",
            "library: tensorrt_rtx\n",
            "engine.library: 'tensorrt_rtx' is none of tensorrt-rtx, tensorrt; did you mean "
            "tensorrt-rtx?",
        ),
        ("towers: [vision]", "towers: []", "engine.towers: is empty: name vision, text or both"),
        (
            "towers: [vision]",
            "towers: [vision, vision]",
            "engine.towers: names a tower twice, which would count it twice",
        ),
        (
            "towers: [vision]",
            "towers: vision",
            "engine.towers: expected a list [a, b], found 'vision'",
        ),
        (
            "towers: [vision]",
            "towers: [visoin]",
            "engine.towers[0]: 'visoin' is none of vision, text; did you mean vision?",
        ),
        ("batch: 8", "batch: 0", "engine.batch: 0 is out of range: 1 to 1000000000"),
        (
            "min_fp8_gemms: 25",
            "min_fp8_gemms: all",
            "engine.min_fp8_gemms: expected a whole number, found 'all'",
        ),
        (
            "attention: fused-fp8",
            "attention: fused-fp9",
            "engine.attention: 'fused-fp9' is none of fused-fp8, fused; did you mean fused-fp8?",
        ),
        (
            "max_plan_ratio: 0.7x",
            "max_plan_ratio: 0.7",
            "engine.max_plan_ratio: 0.7 needs a unit: 0.7x (times FP16)",
        ),
        (
            "max_weights_ratio: 0.65 x",
            "max_weights_ratio: 0.65 y",
            "engine.max_weights_ratio: 0.65 y has the unit 'y', wants x, such as 0.6x",
        ),
        (
            "max_activation_ratio: 1X",
            "max_activation_ratio: 1001x",
            "engine.max_activation_ratio: 1001x is out of range: above 0x, at most 1000x",
        ),
        (
            "max_plan: 512MiB",
            "max_plan: 512",
            "engine.max_plan: 512 needs a unit: 512MiB or 512MB",
        ),
        (
            "max_plan: 512MiB",
            "max_plan: 512 mb",
            "engine.max_plan: 512 mb has the unit 'mb', wants one of KiB, MiB, GiB, KB, MB, GB",
        ),
        (
            "max_weights: 0.5 GiB",
            "max_weights: 0GiB",
            "engine.max_weights: 0GiB is out of range: at least one byte",
        ),
        (
            "max_activation: 100MB",
            "max_activation: lots",
            "engine.max_activation: 'lots' is no quantity: write a number with MiB, such as 512MiB",
        ),
        (
            "max_plan: 512MiB",
            "max_plan_bytes: 512",
            "engine.max_plan_bytes: unknown key; did you mean max_plan?",
        ),
    ],
    ids=lambda value: value[:40],
)
def test_refused_in_what_was_exported(refusal: Refusal, old: str, new: str, words: str) -> None:
    line = line_of(old, text=EXPORTED)

    assert refusal(swap(old, new, text=EXPORTED)) == f"{FILE}:{line}: {words}"


@pytest.mark.parametrize(
    ("gates", "words"),
    [
        (
            "{engine: {target: sm89}}",
            "5: engine: sets no limit, so it decides nothing: set attention, min_fp8_gemms or a "
            "max_...",
        ),
        (
            "{engine: {target: sm89, library: tensorrt, towers: [text], batch: 8}}",
            "5: engine: sets no limit, so it decides nothing: set attention, min_fp8_gemms or a "
            "max_...",
        ),
        ("{engine: {attention: fused}}", "5: engine.target: is missing"),
        ("{engine: []}", "5: engine: is empty: leave it out or name at least one"),
        ("{engine: sm89}", "5: engine: expected a list of mappings, found 'sm89'"),
        ("{export: [softmax]}", "5: export: expected a mapping (key: value), found a list"),
        ("{parity: 1%}", "5: parity: expected a mapping (key: value), found '1%'"),
        (
            "\n  engine:"
            "\n    - {target: sm89, attention: fused}"
            "\n    - {target: sm120, attention: fused}"
            "\n    - {target: sm89, towers: [text, vision], min_fp8_gemms: 3}",
            "9: engine: sm89 stands twice",
        ),
        (
            "\n  engine:"
            "\n    - {target: sm89, towers: [text], batch: 2, attention: fused}"
            "\n    - {target: sm89, towers: [text], batch: 2, max_plan: 1GB}",
            "8: engine: sm89-text-batch2 stands twice",
        ),
        (
            "\n  accuracy:"
            "\n    - {task: a/classification, metric: acc1, max_drop: 1pp, stage: onnx}"
            "\n    - {task: a/classification, metric: acc1, max_drop: 1pp, stage: torch}"
            "\n    - {task: a/classification, metric: acc1, max_drop: 1pp}",
            "9: accuracy: a/classification acc1 stands twice",
        ),
        (
            "{regression: {task: a/classification, metric: acc1, max_fp16_drop: 1pp, "
            "max_drop: 1pp, max_drop_since_first: 1pp, stage: onnx}}",
            "5: regression.stage: unknown key; known: task, metric, confidence, samples, "
            "max_fp16_drop, max_drop, max_drop_since_first",
        ),
    ],
    ids=lambda value: value[:40],
)
def test_gates_of_what_was_exported_are_refused_as_a_whole(
    refusal: Refusal, gates: str, words: str
) -> None:
    assert refusal(swap("{roundtrip: {}}", gates, text=SMALL)) == f"{FILE}:{words}"


# -- what is no YAML, or more than a suite needs --------------------------------------------------


def test_empty_file_is_refused(refusal: Refusal) -> None:
    words = f"{FILE}:1: the suite is empty: it needs quantgate, model, gates, ..."

    assert refusal("") == words
    assert refusal("# a comment\n---\n") != words
    assert refusal("# a comment\n") == words


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[a, b]", "1: expected a mapping (key: value), found a list"),
        ("hello", "1: expected a mapping (key: value), found 'hello'"),
        ("quantgate: [1\nmodel: x\n", "2: not YAML: expected ',' or ']', but got ':'"),
        (
            "quantgate: 1\n\tmodel: x\n",
            "2: not YAML: found character '\\t' that cannot start any token",
        ),
        ('quantgate: "1\n', "2: not YAML: found unexpected end of stream"),
        (
            "%YAML 3.0\n---\na: 1\n",
            "1: not YAML: found incompatible YAML document (version 1.* is required)",
        ),
        (f"%YAML {'9' * 5000}.1\n---\na: 1\n", "1: not YAML: a number is out of range"),
        ('a: 1\nb: "\\UFFFFFFFF"\n', "2: not YAML: a number is out of range"),
        ('a: 1\nb: "\\U00110000"\n', "2: not YAML: a number is out of range"),
        ("a: 1\n---\nb: 1\n", "2: a second document starts: a suite is one"),
        ("a: 1\nb: &x 1\n", "2: anchors and aliases are not part of a suite: write the value out"),
        ("a: &x [1]\n", "1: anchors and aliases are not part of a suite: write the value out"),
        ("a: 1\nb: *x\n", "2: anchors and aliases are not part of a suite: write the value out"),
        ("a: 1\nb: !!bool maybe\n", "2: tags (!...) are not part of a suite"),
        ("a: !!python/object/apply:os.system [x]\n", "1: tags (!...) are not part of a suite"),
        ("a: !x {}\n", "1: tags (!...) are not part of a suite"),
        ("a: 1\nb: \x07\n", "2: the character U+0007 is not allowed in a suite"),
        ("a: 1\nb: \x00", "2: the character U+0000 is not allowed in a suite"),
        ('a: 1\nb: "x\\0"\n', "2: the character U+0000 is not allowed in a suite"),
        ('a: 1\n"\\e[31m": 1\n', "2: the character U+001B is not allowed in a suite"),
        ('a: 1\nb: "\\ud800"\n', "2: the character U+D800 is not allowed in a suite"),
        (b"a: 1\nb: \xff\n", "2: not UTF-8 (byte 8): save it as UTF-8"),
        ("a: ä".encode("utf-16"), "1: not UTF-8 (byte 0): save it as UTF-8"),
        ("[" * 100_000, "1: nested deeper than 20 levels"),
        ("{" * 100_000, "1: nested deeper than 20 levels"),
        ("- " * 10_000, "1: nested deeper than 20 levels"),
        ("".join(f"{' ' * i}a:\n" for i in range(500)), "21: nested deeper than 20 levels"),
        (
            "a0: &a0 x\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]\n" for i in range(1, 99)),
            "1: anchors and aliases are not part of a suite: write the value out",
        ),
    ],
    ids=lambda value: ascii(value[:30]),
)
def test_what_is_no_plain_yaml_is_refused(refusal: Refusal, text: str | bytes, words: str) -> None:
    assert refusal(text) == f"{FILE}:{words}"


def test_nesting_that_a_quant_cfg_may_need_is_taken(load: Load) -> None:
    recipe = "{a: " * 15 + "1" + "}" * 15

    assert load(swap("{recipe: fp8}", f"{{recipe: {recipe}}}", text=SMALL)).quantize.recipe


def test_depth_counts_what_is_open_and_not_what_was(load: Load) -> None:
    recipe = "[" + ", ".join(["[1]"] * 50) + "]"

    assert load(swap("{recipe: fp8}", f"{{recipe: {recipe}}}", text=SMALL)).quantize.recipe == (
        ([1],) * 50
    )


def test_file_of_a_gigabyte_is_not_parsed(refusal: Refusal) -> None:
    text = SMALL + "#" * (MAX_BYTES - len(SMALL) + 1)

    assert refusal(text) == (
        f"{FILE}:1: cannot read the suite: it is larger than {MAX_BYTES} bytes"
    )


# -- whatever stands in the file, the answer is a suite or one line -------------------------------

NASTY = [
    "", ":", ": ", "-", "- ", "?", "? ", "!", "!!int", "!!null ", "&a", "*a", "<<", "|", ">", "%",
    "@", "`", "#", "[", "]", "{", "}", ",", "'", '"', "\\", '"\\x00"', '"\\ud800"', '"\\UFFFFFFFF"',
    "\t", "\n", "\n\n", "\r", "  ", "---", "...", "%YAML 9.9", "~", "null", "true", "off", ".nan",
    ".inf", "-0", "0x1F", "0o7", "1_000", "1:30", "1e9999", "9" * 400, "0.0000000000000000000001",
    "٥pp", "½", "pp", "%", "dB", "${", "${A}", "$", "\u202e", "\u2028", "\x85", "\ufeff", "\x00",
    "\x1b[31m", "\U0001f600", "é", "e\u0301", "a" * 300, "[" * 25, "{a: " * 25, "2027-02-30",
]  # fmt: skip


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz") / "fuzz.quantgate.yaml"


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """Take a valid suite and cut, double or overwrite parts of it."""
    text = draw(st.sampled_from([VALID, SMALL, EXPORTED]))
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(text)))
        end = min(len(text), start + draw(st.sampled_from([0, 0, 1, 3, 12, 60])))
        part = draw(
            st.one_of(
                st.sampled_from(NASTY),
                st.text(max_size=6),
                st.just(text[start:end] * 2),
            )
        )
        text = text[:start] + part + text[end:]
    return text


@settings(max_examples=200, deadline=None, derandomize=True, database=None)
@given(text=mutated())
@example(text=VALID)
@example(text=EXPORTED)
@example(text=SMALL.replace("reference", '"\\UFFFFFFFF"'))
@example(text=f"%YAML {'9' * 5000}.1\n---\n{SMALL}")
def test_any_text_is_a_suite_or_one_readable_line(scratch: Path, text: str) -> None:
    scratch.write_bytes(text.encode("utf-8", "surrogatepass"))

    try:
        suite = load_suite(scratch, relative_to=scratch.parent)
    except QuantGateError as error:
        message = str(error)
        assert re.match(r"fuzz\.quantgate\.yaml:[1-9]\d*: ", message)
        message.encode("utf-8")  # a report can hold it
    else:
        assert suite.name == "fuzz"


@settings(max_examples=100, deadline=None, derandomize=True, database=None)
@given(data=st.binary(max_size=200))
def test_any_bytes_are_refused_in_one_line(scratch: Path, data: bytes) -> None:
    scratch.write_bytes(data)

    with pytest.raises(SuiteError, match=r"^fuzz\.quantgate\.yaml:[1-9]\d*: "):
        load_suite(scratch, relative_to=scratch.parent)


@pytest.mark.parametrize(
    "key",
    ["samples: 512", "max_drop: 0.5pp", "min_cosine: .99", "min_sqnr: 15dB", "floor: 50%",
     "recipe: fp8-attention", "towers: [vision]", "until: 2027-03-01", "dataset: wds/photos",
     "dtype: bfloat16", "metric: acc1", "task: photos/retrieval", "data: photos/train",
     "stage: onnx", "allow: [softmax]", "max_size_ratio: 0.6x", "max_error: 0.2%",
     "max_sqnr_change: 1.5dB", "target: sm120", "batch: 8", "attention: fused-fp8",
     "max_plan: 512MiB"],
)  # fmt: skip
def test_any_value_of_a_key_is_a_suite_or_one_line(load: Load, key: str) -> None:
    text = VALID if key in VALID else EXPORTED
    messages = []
    for value in NASTY:
        try:
            load(swap(key, f"{key.partition(':')[0]}: {value}", text=text))
        except SuiteError as error:
            messages.append(str(error))

    assert messages
    for message in messages:
        assert re.match(rf"{FILE}:[1-9]\d*: ", message)
