"""What is valid is read whole, with its defaults and its lines."""

from __future__ import annotations

from datetime import date
from fractions import Fraction
from pathlib import Path

import pytest

from pytest_quantgate.errors import SuiteError
from pytest_quantgate.gates.accuracy import AccuracyGate
from pytest_quantgate.gates.calibration import CalibrationGate
from pytest_quantgate.gates.coverage import CoverageGate
from pytest_quantgate.gates.fidelity import FidelityGate
from pytest_quantgate.gates.regression import RegressionGate
from pytest_quantgate.gates.roundtrip import RoundtripGate
from pytest_quantgate.suite.load import load_suite
from tests.suite_texts import FILE, SMALL, VALID, Load, line_of, quantize_of, section_of, swap

SHIPPED = sorted((Path(__file__).parents[3] / "suites").glob("*.quantgate.yaml"))


def test_what_is_measured_arrives_as_written(load: Load, tmp_path: Path) -> None:
    suite = load(VALID)

    assert (suite.path, suite.name, suite.version) == (tmp_path / FILE, "suites/demo", 1)
    assert suite.label == "demo"
    assert (suite.model.source, suite.model.id) == ("transformers", "${QUANTGATE_CLIP}")
    assert (suite.model.dtype, suite.model.attn_implementation) == ("bfloat16", "eager")
    photos = suite.datasets["photos"]
    assert (photos.dataset, photos.language) == ("wds/photos", "de")
    assert photos.root == "${QUANTGATE_DATA}/photos"
    calibration = suite.calibration
    assert (calibration.data, calibration.samples) == ("photos/train", 512)
    assert (calibration.batch_size, calibration.held_out_samples) == (64, 32)
    assert quantize_of(suite).recipe == "fp8-attention"
    assert quantize_of(suite).exclude == ("*patch_embedding*",)


def test_limits_arrive_exact_and_with_their_units(load: Load) -> None:
    gates = load(VALID).gates

    assert gates.one(CalibrationGate) is not None
    assert section_of(gates, CalibrationGate).max_clipped == Fraction(2, 1000)
    fidelity = gates.one(FidelityGate)
    assert fidelity is not None
    assert (fidelity.data, fidelity.samples) == ("photos/test", 256)
    assert (fidelity.min_cosine, fidelity.min_worst_cosine) == (0.99, 0.1)
    assert (fidelity.min_sqnr_db, fidelity.min_worst_sqnr_db) == (15.0, 3.5)
    first, second = gates.all(AccuracyGate)
    assert first.key == "photos/classification-acc1"
    assert (first.max_drop, first.confidence) == (Fraction(1, 200), Fraction(99, 100))
    assert (first.floor, first.max_flips) == (Fraction(1, 2), Fraction(3, 100))
    assert (first.max_class_drop, first.samples) == (Fraction(1, 5), 1000)
    assert second.key == "photos/retrieval-image_retrieval_recall@5"
    (regression,) = gates.all(RegressionGate)
    assert regression.key == "photos/classification-mean_per_class_recall"
    assert regression.max_fp16_drop == Fraction(1, 400)
    assert regression.max_drop == Fraction(1, 100)
    assert regression.max_drop_since_first == Fraction(3, 200)
    assert gates.one(RoundtripGate) is not None


def test_the_first_samples_are_taken_only_where_the_suite_says_so(load: Load) -> None:
    def read(text: str) -> tuple[bool, ...]:
        suite = load(text)
        assert suite.gates.one(FidelityGate) is not None
        sections = (
            suite.calibration,
            suite.gates.one(FidelityGate),
            *suite.gates.all(AccuracyGate),
        )
        return tuple(section.first for section in sections)  # type: ignore[union-attr]

    text = VALID
    for key in ("held_out_samples: 32", "samples: 256", "samples: 1000"):
        indent = "  " if key.startswith("held") else "    " if "256" in key else "      "
        text = swap(key, f"{key}\n{indent}first: true", text=text)
    assert read(VALID) == (False,) * 4
    assert read(text) == (True, True, True, False)


def test_waivers_arrive_with_their_day(load: Load) -> None:
    coverage = load(VALID).gates.one(CoverageGate)

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

    assert gates.one(FidelityGate) is not None
    assert str(section_of(gates, FidelityGate).where) == f"{FILE}:{line_of('data: photos/test')}"
    assert section_of(gates, FidelityGate).where.of("min_sqnr") == f"{FILE}:{line_of('min_sqnr')}"
    assert gates.all(AccuracyGate)[0].where.of("max_drop") == f"{FILE}:{line_of('max_drop: 0.5pp')}"
    assert str(gates.all(AccuracyGate)[1].where) == f"{FILE}:{line_of('task: photos/retrieval')}"
    assert gates.all(RegressionGate)[0].where.of("max_drop") == f"{FILE}:{line_of('max_drop: 1pp')}"


def test_what_is_left_out_takes_the_default(load: Load) -> None:
    suite = load(
        swap("{roundtrip: {}}", "{coverage: , calibration: ~, roundtrip: null}", text=SMALL)
    )

    assert (suite.model.dtype, suite.model.attn_implementation) == ("float16", "sdpa")
    assert suite.calibration.held_out_samples == 128
    assert suite.datasets == {}
    assert quantize_of(suite).exclude == ()
    gates = suite.gates
    assert gates.one(CoverageGate) is not None
    assert section_of(gates, CoverageGate).attention is None
    assert section_of(gates, CoverageGate).towers == ("vision", "text")
    assert section_of(gates, CoverageGate).waive == ()
    assert gates.one(CalibrationGate) is not None
    assert section_of(gates, CalibrationGate).max_clipped == Fraction(1, 1000)
    assert (gates.one(FidelityGate), gates.all(AccuracyGate), gates.all(RegressionGate)) == (
        None,
        (),
        (),
    )
    assert gates.one(RoundtripGate) is not None


def test_one_task_alone_is_a_list_of_one(load: Load) -> None:
    gate = "{accuracy: {task: scenes/classification, metric: acc1, max_drop: 1pp}}"

    (accuracy,) = load(swap("{roundtrip: {}}", gate, text=SMALL)).gates.all(AccuracyGate)

    assert accuracy.task == "scenes/classification"


def test_fidelity_without_data_and_samples_leaves_them_to_the_run(load: Load) -> None:
    fidelity = load(swap("roundtrip: {}", "fidelity: {min_cosine: 1}", text=SMALL)).gates.one(
        FidelityGate
    )

    assert fidelity is not None
    assert (fidelity.data, fidelity.samples) == (None, 512)
    assert fidelity.min_cosine == 1.0
    assert (fidelity.min_worst_cosine, fidelity.min_sqnr_db) == (None, None)


def test_attention_can_be_asked_for_none(load: Load) -> None:
    coverage = load(swap("[q, k, v, output]", "[]")).gates.one(CoverageGate)

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

    assert quantize_of(suite).recipe == {
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

    assert quantize_of(suite).recipe == (
        {"quantizer_path": "*", "enable": False},
        {"quantizer_path": "*weight_quantizer", "cfg": {"num_bits": [4, 3]}},
    )


def test_recipe_path_may_hold_a_variable(load: Load) -> None:
    suite = load(swap("{recipe: fp8}", '{recipe: "${RECIPES}/fp8.yaml"}', text=SMALL))

    assert quantize_of(suite).recipe == "${RECIPES}/fp8.yaml"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_shipped_suite_loads(path: Path) -> None:
    suite = load_suite(path)

    assert f"{suite.name}.quantgate.yaml" == path.name
    assert suite.gates.one(CoverageGate) is not None
    assert suite.gates.all(AccuracyGate)


def test_there_are_shipped_suites() -> None:
    assert "clip_reference.quantgate.yaml" in {path.name for path in SHIPPED}


def test_byte_order_mark_and_windows_lines_are_taken(load: Load) -> None:
    text = b"\xef\xbb\xbf" + VALID.replace("\n", "\r\n").encode()

    suite = load(text)

    assert (
        suite.gates.all(RegressionGate)[0].where.of("max_drop")
        == f"{FILE}:{line_of('max_drop: 1pp')}"
    )


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
