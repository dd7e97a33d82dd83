"""`quantgate sensitivity` from a suite to a list to paste, and the suspects of a red gate."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from pytest_quantgate.gates.accuracy import AccuracyGate
from pytest_quantgate.gates.fidelity import FidelityGate
from pytest_quantgate.suite.gates import Gates
from tests.suite_texts import quantize_of

if TYPE_CHECKING:
    from pytest_quantgate.run.case import Case

SUITE = """\
quantgate: 1
model: {{source: transformers, id: "{model}", dtype: float32}}
calibration: {{data: scenes/calibration, samples: 32, batch_size: 16, held_out_samples: 16}}
quantize: {{recipe: fp8-attention, exclude: ["*patch_embedding*"]}}
gates:
  coverage: {{}}
  fidelity: {{data: scenes/test, samples: 32, min_sqnr: {min_sqnr}dB}}
  accuracy:
    - {{task: scenes/classification, metric: acc1, max_drop: 100pp, max_flips: 90%, samples: 32}}
"""

SPOILED = "vision_model.encoder.layers.1.self_attn.v_bmm_quantizer"
SPOILED_GROUP = "vision block 1 attention matmuls"


@pytest.fixture
def write(tmp_path: Path, tiny_clip: Path) -> Callable[..., Path]:
    def make(*, min_sqnr: int = 5, replaced: tuple[str, str] = ("", "")) -> Path:
        text = SUITE.format(model=tiny_clip, min_sqnr=min_sqnr).replace(*replaced)
        path = tmp_path / "tiny.quantgate.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return make


@pytest.fixture
def open_case(write: Callable[..., Path], make_case: Callable[..., Case]) -> Callable[..., Case]:
    from pytest_quantgate.suite.load import load_suite

    def make(**changes: Any) -> Case:
        return make_case(load_suite(write(**changes)))

    return make


@pytest.fixture
def spoil() -> Callable[..., Case]:
    """Give a case whose quantized variant has one range spoiled after calibration."""
    import copy

    def make(case: Case, *, name: str = SPOILED, factor: float = 0.005) -> Case:
        module = copy.deepcopy(case.quantized.module)
        quantizer: Any = module.get_submodule(name)
        quantizer._amax = quantizer._amax * factor
        spoiled = replace(case.quantized, module=module)
        return case.with_variant(spoiled, key=f"{case.variant_key}-{name}-{factor}")

    return make


def run(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    from pytest_quantgate.commands.cli import main

    status = main(["sensitivity", *map(str, arguments)], environ={})
    return status, *capsys.readouterr()


def test_the_command_ranks_and_finds_nothing_to_leave_out(
    write: Callable[..., Path],
    shared_cache: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    plot, figures = tmp_path / "out" / "plot.svg", tmp_path / "figures.json"
    status, out, err = run(
        capsys,
        write(),
        *("--samples", "16", "--top", "3", "--cache-dir", shared_cache),
        *("--svg", plot, "--json", figures),
    )

    assert status == 0, err
    lines = out.splitlines()
    assert lines[0] == "tiny"
    assert lines[1] == "18 groups of quantizers on 16 images and 100 texts of scenes/test"
    assert "  ... and 15 groups more (--top)" in lines
    assert "tiny: nothing needs excluding, 2 gates passed" in lines
    assert plot.read_text(encoding="utf-8").startswith("<svg")
    data = json.loads(figures.read_text(encoding="utf-8"))
    assert (data["format"], data["suite"]) == (1, "tiny")
    assert len(data["sensitivity"]["effects"]) == 18
    assert data["exclusion"]["outcome"] == "none needed"
    assert "quantgate: leaving out 18 groups" in err

    again = run(capsys, write(), "--samples", "16", "--top", "3", "--cache-dir", shared_cache)
    assert again[1] == out
    assert "leaving out" not in again[2]  # from the cache


def test_a_spoiled_range_is_found_and_its_exclusion_restores_the_limit(
    open_case: Callable[..., Case], spoil: Callable[..., Case]
) -> None:
    from pytest_quantgate.run.sensitivity import Study

    case = spoil(open_case(min_sqnr=15))
    study = Study(case)
    found = study.measure(gate=study.weakest_gate(), samples=16)
    exclusion = study.propose(found)

    assert found.effects[0].group.label == SPOILED_GROUP
    assert exclusion.outcome == "found"
    assert [group.label for group in exclusion.groups] == [SPOILED_GROUP]
    assert exclusion.groups[0].patterns == ("vision_model.encoder.layers.1.self_attn.*bmm*",)
    assert exclusion.extra_bytes == 0
    checks = {check.gate: (check.before, check.after) for check in exclusion.checks}
    assert checks["fidelity"] == ("FAIL", "PASS")


def test_what_was_verified_is_what_the_new_list_builds(
    open_case: Callable[..., Case], tmp_path: Path
) -> None:
    import torch

    from pytest_quantgate.report.sensitivity import render_yaml
    from pytest_quantgate.run.sensitivity import Study, without

    case = open_case()
    study = Study(case)
    found = study.measure(gate=None, samples=16)
    groups = [
        next(e.group for e in found.effects if e.group.tower == tower)
        for tower in ("vision", "text")
    ]
    pasted = yaml.safe_load(
        "\n".join(render_yaml(groups, section="quantize", exclude=quantize_of(case.suite).exclude))
    )
    exclude = pasted["quantize"]["exclude"]
    assert exclude[0] == "*patch_embedding*"

    rebuilt = open_case(replaced=('exclude: ["*patch_embedding*"]', f"exclude: {exclude}"))
    pixels = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    expected = rebuilt.quantized.encode_image(pixels)
    names = {name for group in groups for name in group.quantizers}
    with without(case, names) as other:
        assert torch.equal(other.quantized.encode_image(pixels), expected)
    assert not torch.equal(case.quantized.encode_image(pixels), expected)


def test_a_tower_that_an_exclusion_leaves_alone_is_not_embedded_again(
    open_case: Callable[..., Case],
) -> None:
    import torch

    from pytest_quantgate.run.sensitivity import without

    case = open_case()
    of = {
        tower: next(q.name for q in case.audit.quantizers if q.enabled and q.tower == tower)
        for tower in ("vision", "text")
    }
    pixels = torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    before = case.quantized.encode_image(pixels)

    with without(case, [of["text"]]) as other:
        assert other.variant_key != case.variant_key
        assert other.image_key == case.image_key == case.variant_key
        assert torch.equal(other.quantized.encode_image(pixels), before)
    with without(case, list(of.values())) as both, without(case, [of["vision"]]) as one:
        assert both.image_key == one.image_key
        assert both.image_key not in (case.image_key, both.variant_key)
        assert not torch.equal(both.quantized.encode_image(pixels), before)
        # A copy that is given another variant has no images of this one.
        vars(both)["variant_key"] = "another"
        assert both.image_key == "another"


def test_a_limit_that_fp16_misses_has_no_exclusion(
    open_case: Callable[..., Case],
) -> None:
    from pytest_quantgate.run.sensitivity import Study

    case = open_case(
        replaced=("max_drop: 100pp, max_flips: 90%", "max_drop: 100pp, max_flips: 90%, floor: 99%")
    )
    study = Study(case)
    exclusion = study.propose(study.measure(gate=None, samples=16))

    assert exclusion.outcome == "impossible"
    assert exclusion.reason.startswith("not even FP16 passes: accuracy: scenes/classification:")
    assert exclusion.verifications == 0


def test_a_limit_that_only_all_groups_would_meet_is_said_to_be_out_of_reach(
    open_case: Callable[..., Case],
) -> None:
    from pytest_quantgate.run.sensitivity import MOST_VERIFICATIONS, Study

    case = open_case(min_sqnr=120)
    study = Study(case)
    exclusion = study.propose(study.measure(gate=None, samples=16))

    assert exclusion.outcome == "not found"
    assert exclusion.groups == ()
    assert 1 <= exclusion.verifications <= MOST_VERIFICATIONS


def test_weights_changed_after_calibration_are_told_from_a_quantizer_s_fault(
    open_case: Callable[..., Case], spoil: Callable[..., Case]
) -> None:
    from pytest_quantgate.report.sensitivity import render_sensitivity
    from pytest_quantgate.run.sensitivity import Study

    case = spoil(open_case(), factor=1.0)
    layer: Any = case.quantized.module.get_submodule("vision_model.encoder.layers.0.mlp.fc2")
    layer.weight.data *= 8
    text = "\n".join(render_sensitivity(Study(case).measure(gate=None, samples=16), top=3))

    assert "with every quantizer off: the weights are not FP16's" in text


def test_red_gates_name_their_suspects(
    open_case: Callable[..., Case], spoil: Callable[..., Case]
) -> None:
    case = spoil(
        open_case(min_sqnr=15, replaced=("max_drop: 100pp, max_flips: 90%", "max_drop: 0pp"))
    )
    case.suite = replace(
        case.suite,
        gates=Gates(
            sections=tuple(
                replace(gate, floor=Fraction(0), max_flips=Fraction(0))
                if isinstance(gate, AccuracyGate)
                else gate
                for gate in case.suite.gates
            )
        ),
    )
    from pytest_quantgate.gates.fidelity import judge
    from pytest_quantgate.run.judging import Judging

    judging = Judging(case)
    gate, fidelity = case.suite.gates.all(AccuracyGate)[0], case.suite.gates.one(FidelityGate)
    assert fidelity is not None
    vision = judging.name_suspects(make_red("fidelity"), fidelity, tower="vision")
    text = judging.name_suspects(make_red("fidelity"), fidelity, tower="text")
    task = judging.name_suspects(make_red("accuracy"), gate)

    for verdict in (vision, task):
        assert f"the largest error enters at {SPOILED_GROUP} (SQNR" in verdict.cause
        assert "layers.1.self_attn.*bmm*" in verdict.next_step
    assert "enters at text" in text.cause
    assert judge(case, fidelity).verdict.cause == vision.cause.removeprefix("noise; ")


@pytest.mark.parametrize("recipe", ["int8", "fp8-attention"])
def test_red_gates_name_outlier_channels_where_they_are_why(
    open_case: Callable[..., Case], recipe: str
) -> None:
    import copy

    case = open_case(min_sqnr=119, replaced=("recipe: fp8-attention", f"recipe: {recipe}"))
    module = copy.deepcopy(case.quantized.module)
    block: Any = module.get_submodule("vision_model.encoder.layers.1")
    for part in (block.layer_norm2.weight, block.layer_norm2.bias):
        part.data[[3, 20]] *= 100
    block.mlp.fc1.weight.data[:, [3, 20]] /= 100
    block.mlp.fc1.input_quantizer._amax = block.mlp.fc1.input_quantizer._amax * 100
    planted = replace(case.quantized, module=module)
    verdict = case.with_variant(planted, key=f"outliers-{recipe}").judge(kind="fidelity").verdict

    text = "\n".join([verdict.cause, verdict.next_step, *verdict.evidence])
    assert verdict.status.value == "FAIL"
    if recipe == "int8":
        assert re.search(
            r"enters at vision block 1 mlp .* outlier channels explain it: 2 of 32 input channels "
            r"of mlp\.fc1 \((3, 20|20, 3)\) reach \d+ to \d+ times the median channel, which has "
            r"\d of the 127 levels of INT8",
            verdict.cause,
        )
        assert verdict.next_step.startswith("try recipe: int8-smoothquant, which moves the range")
        assert re.search(r"channels \d+, \d+ of mlp\.fc1 quantized apart", text)
    else:
        assert "enters at" in verdict.cause
        assert "outlier channels" not in text
        assert "quantized apart" not in text


def make_red(gate: str) -> Any:
    from pytest_quantgate.evidence.verdict import Status, Verdict

    return Verdict(gate=gate, status=Status.FAIL, headline=f"{gate}: red", cause="noise")


def test_suspects_that_cannot_be_measured_do_not_hide_the_verdict(
    open_case: Callable[..., Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from pytest_quantgate.run.sensitivity import Study

    def fail(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("out of memory:\n 3 GiB")

    monkeypatch.setattr(Study, "suspects", fail)
    verdict = open_case(min_sqnr=119).judge(kind="fidelity").verdict

    assert verdict.status.value == "FAIL"
    assert verdict.evidence[-1] == "which layer it is was not measured: out of memory: 3 GiB"
    assert verdict.cause


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--samples", "3"), "3 is too few: at least 8"),
        (("--samples", "x"), "'x' is no positive number"),
        (("--top", "0"), "'0' is no positive number"),
        (("--device", "tpu"), "invalid choice: 'tpu'"),
    ],
)
def test_wrong_usage_is_status_2(
    arguments: tuple[str, ...],
    message: str,
    write: Callable[..., Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as error:
        run(capsys, write(), *arguments)

    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_a_task_that_no_gate_has_is_refused(
    write: Callable[..., Path], shared_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, out, err = run(
        capsys, write(), "--task", "digits/classification", "--cache-dir", shared_cache
    )

    assert (status, out) == (1, "")
    assert err.strip().splitlines()[-1] == (
        "quantgate: tiny.quantgate.yaml has no accuracy gate of 'digits/classification'; it has: "
        "scenes/classification-acc1"
    )


def test_a_suite_that_is_not_there_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "missing.quantgate.yaml")[::2] == (
        1,
        "quantgate: missing.quantgate.yaml:1: cannot read the suite: No such file or directory\n",
    )
