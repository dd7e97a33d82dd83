"""A checkpoint that another process quantized and saved, through the gates of a suite."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_quantgate.commands.cli import main
from pytest_quantgate.comparison.suite_files import compare_suite
from pytest_quantgate.evidence.verdict import Status
from pytest_quantgate.quantization.recipes import named_recipes
from pytest_quantgate.run import given_variant
from pytest_quantgate.run.case import Case
from pytest_quantgate.suite.load import load_suite
from tests.fork_server import ForkServer

Run = Callable[..., pytest.RunResult]

#: What a team's own pipeline does: transformers and ModelOpt, nothing of this package.
PIPELINE = """
import json, sys
import torch
import modelopt.torch.opt as mto
import modelopt.torch.quantization as mtq
from transformers import CLIPModel

_, source, target, config, single = sys.argv
model = CLIPModel.from_pretrained(source, dtype=torch.float16).float().eval()
torch.manual_seed(0)

def calibrate(module):
    for _ in range(4):
        module(pixel_values=torch.randn(8, 3, 48, 48), input_ids=torch.randint(1, 40, (8, 16)))

mto.enable_huggingface_checkpointing()
mtq.quantize(model, json.loads(config), forward_loop=calibrate)
if single == "single":
    mto.save(model, target)
else:
    model.save_pretrained(target)
"""

SUITE = """\
quantgate: 1
model: {{source: transformers, id: {model}}}
calibration: {{data: scenes/calibration, samples: 32, batch_size: 16, held_out_samples: 32}}
quantized: {{checkpoint: {checkpoint}{more}}}
gates:
  coverage: {{}}
  calibration: {{max_clipped: 49%}}
  fidelity: {{min_sqnr: 0.1dB, samples: 32}}
  roundtrip: {{}}
"""


@pytest.fixture(scope="module")
def handed_over(
    tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory, fork_server: ForkServer
) -> Callable[..., Path]:
    """Quantize the tiny CLIP to INT8 in a process of its own, once for each form."""
    made: dict[str, Path] = {}

    def make(form: str = "folder") -> Path:
        if form not in made:
            folder = tmp_path_factory.mktemp("pipeline")
            (folder / "pipeline.py").write_text(PIPELINE, encoding="utf-8")
            path = folder / ("out" if form == "folder" else "out.pth")
            config = json.dumps(named_recipes()["int8"])
            done = fork_server.run("pipeline", str(tiny_clip), str(path), config, form, cwd=folder)
            assert done.returncode == 0, done.stderr
            made[form] = path
        return made[form]

    return make


@pytest.fixture
def write(pytester: pytest.Pytester, tiny_clip: Path) -> Callable[..., None]:
    def make(checkpoint: Path, more: str = "", **named: Any) -> None:
        text = SUITE.format(model=named.get("model", tiny_clip), checkpoint=checkpoint, more=more)
        path = pytester.path / "suites" / "given.quantgate.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")

    return make


@pytest.mark.parametrize("form", ["folder", "single"])
def test_a_checkpoint_of_another_process_is_judged_as_it_is(
    handed_over: Callable[..., Path], write: Callable[..., None], run_gates: Run, form: str
) -> None:
    write(handed_over(form))

    result = run_gates("-rP", "--quantgate-manifest=manifest.json")

    assert main(["verify", str(handed_over(form)), "--manifest=manifest.json"]) == 0

    result.assert_outcomes(passed=5)
    result.stdout.fnmatch_lines(
        [
            "*calibration: * handed over, calibrated on scenes/calibration as the suite says*",
            "*PASS  coverage*INT8 on * of matrix weights*",
            "*amax and both towers bit-identical*",
            "*note: * tensors of out* are those of *",
            "*given: may ship: 5 gates passed*",
        ]
    )


def test_a_checkpoint_is_held_against_what_it_should_be(
    handed_over: Callable[..., Path], write: Callable[..., None], run_gates: Run
) -> None:
    write(handed_over(), ", expect: fp8-attention")

    result = run_gates("-k", "coverage")

    result.assert_outcomes(failed=1, deselected=4)
    result.stdout.fnmatch_lines(["FAIL coverage: *"])


def test_a_checkpoint_of_another_model_is_incomparable(
    handed_over: Callable[..., Path],
    write: Callable[..., None],
    run_gates: Run,
    tiny_clip: Path,
    tmp_path: Path,
) -> None:
    from safetensors.torch import load_file, save_file

    other = tmp_path / "other"
    shutil.copytree(tiny_clip, other)
    weights = load_file(other / "model.safetensors")
    weights["visual_projection.weight"] *= 1.5
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    write(handed_over(), model=other)

    result = run_gates("-k", "coverage")

    result.stdout.fnmatch_lines(
        [
            "INCOMPARABLE suites/given.quantgate.yaml:4: 1 of * tensors of out are not those of "
            "other (visual_projection.weight)* [[]coverage.base-differs]",
        ]
    )


def test_a_suite_builds_its_variant_or_is_handed_one(
    handed_over: Callable[..., Path], write: Callable[..., None], run_gates: Run
) -> None:
    write(handed_over(), "}\nquantize: {recipe: int8")

    result = run_gates()

    result.stdout.fnmatch_lines(["*write one of quantize (a recipe * and quantized (a checkpoint*"])
    assert result.ret != 0


def test_a_checkpoint_that_changes_while_it_is_read_is_not_taken_for_it(
    handed_over: Callable[..., Path],
    tiny_clip: Path,
    tmp_path: Path,
    make_case: Callable[..., Case],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The key is of the files that were there before: what was swapped in must not stand for it."""
    checkpoint = tmp_path / "out"
    shutil.copytree(handed_over(), checkpoint)
    config = checkpoint / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "kept": "by no cache"}))
    suite = tmp_path / "given.quantgate.yaml"
    suite.write_text(SUITE.format(model=tiny_clip, checkpoint=checkpoint, more=""))
    restore = given_variant.restore_given

    def swap(*given: Any, **named: Any) -> Any:
        taken = restore(*given, **named)
        (checkpoint / "config.json").write_text("{}")
        return taken

    monkeypatch.setattr(given_variant, "restore_given", swap)
    case = make_case(load_suite(suite))

    verdict = case.judge(kind="coverage").verdict

    assert verdict.status is Status.FAIL
    assert "out was changed while the suite ran" in verdict.headline


def test_doctor_misses_a_checkpoint_that_is_not_there(
    write: Callable[..., None], pytester: pytest.Pytester, tmp_path: Path
) -> None:
    write(tmp_path / "gone")

    found = pytester.run(sys.executable, "-m", "pytest_quantgate", "doctor", "suites")

    assert f"suites/given.quantgate.yaml:4: {tmp_path / 'gone'} is not there" in found.stdout.str()
    assert found.ret != 0


def test_a_diff_says_that_a_variant_is_handed_over_now(tiny_clip: Path, tmp_path: Path) -> None:
    given = SUITE.format(model=tiny_clip, checkpoint="./out", more=", expect: int8")
    line = next(line for line in given.splitlines() if line.startswith("quantized:"))
    built = given.replace(line, "quantize: {recipe: int8}")
    suites = []
    for name, text in (("before", built), ("after", given)):
        path = tmp_path / name / "given.quantgate.yaml"
        path.parent.mkdir()
        path.write_text(text)
        suites.append(load_suite(path))

    there, back = (
        [change.text for change in compare_suite(*sides)] for sides in (suites, suites[::-1])
    )

    assert [text for text in there if "built here -> handed over" in text]
    assert [text for text in back if "handed over -> built here" in text]
    assert not [text for text in there + back if "recipe" in text]  # int8 on both sides


def test_validate_reads_the_checkpoint_too(
    write: Callable[..., None], pytester: pytest.Pytester, tmp_path: Path
) -> None:
    def validate() -> pytest.RunResult:
        return pytester.run(sys.executable, "-m", "pytest_quantgate", "validate", "suites")

    write(tmp_path / "gone")
    assert "is not there: set quantized.checkpoint" in validate().stdout.str()

    (tmp_path / "plain").mkdir()
    (tmp_path / "plain" / "config.json").write_text("{}", encoding="utf-8")
    write(tmp_path / "plain")
    found = validate()
    assert "holds no modelopt_state.pth" in found.stdout.str() + found.stderr.str()
    assert found.ret == 1


def test_init_writes_the_suite_of_a_checkpoint(
    handed_over: Callable[..., Path], tiny_clip: Path, tmp_path: Path
) -> None:
    output = tmp_path / "given.quantgate.yaml"
    arguments = ["init", "--model", str(tiny_clip), "--data", "scenes", "--output", str(output)]

    assert main([*arguments, "--checkpoint", str(handed_over())], environ={}) == 0

    suite = load_suite(output)
    assert suite.quantize is None
    assert suite.quantized is not None
    assert suite.quantized.checkpoint == str(handed_over())
    assert suite.quantized.recipe == ""  # what the checkpoint declares
    assert not any(gate.kind == "engine" for gate in suite.gates)  # INT8, as it looks

    output.unlink()
    more = ["--checkpoint", str(handed_over()), "--recipe", "fp8", "--exclude", "*patch*"]
    assert main([*arguments, *more], environ={}) == 0
    expected = load_suite(output).variant
    assert (expected.recipe, expected.exclude) == ("fp8", ("*patch*",))


def test_init_writes_nothing_for_what_a_suite_cannot_take(
    tiny_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "given.quantgate.yaml"
    arguments = ["init", "--model", str(tiny_clip), "--data", "scenes", "--output", str(output)]

    assert main([*arguments, "--checkpoint", str(tiny_clip)], environ={}) == 1

    assert "holds no modelopt_state.pth" in capsys.readouterr().err
    assert not output.exists()


def test_the_selftest_plants_nothing_in_a_calibration_that_nobody_saw(
    handed_over: Callable[..., Path],
    write: Callable[..., None],
    run_gates: Run,
) -> None:
    write(checkpoint=handed_over())

    result = run_gates("--quantgate-selftest", "-k", "calibration")

    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["*PROVEN        calibration: red on 3 of 3 sabotages*"])
