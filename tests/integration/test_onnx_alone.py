"""Suites whose quantized variant, or both variants, are there as ONNX files alone."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import numpy_helper

from pytest_quantgate.commands.cli import main
from pytest_quantgate.commands.suite_checks import check_suite
from pytest_quantgate.errors import NotMeasured, SuiteError
from pytest_quantgate.evidence.verdict import Status
from pytest_quantgate.run.case import Case
from pytest_quantgate.run.handover import hand_over
from pytest_quantgate.suite.load import load_suite

BUILT = """\
quantgate: 1
model: {{source: transformers, id: "{model}", dtype: float32}}
calibration: {{data: scenes/calibration, samples: 32, batch_size: 16, held_out_samples: 16}}
quantize: {{recipe: int8}}
gates:
  fidelity: {{data: scenes/test, samples: 16, min_cosine: 0.5, stage: onnx}}
"""

ALONE = """\
quantgate: 1
model: {{source: {source}, id: "{model}", dtype: float32}}
calibration: {{data: scenes/calibration, samples: 32, batch_size: 16, held_out_samples: 16}}
artifacts:
  onnx: {{vision: "{folder}/vision.onnx", text: "{folder}/text.onnx"}}
  fp16: {{onnx: {{vision: "{folder}/vision-fp16.onnx", text: "{folder}/text-fp16.onnx"}}}}
gates:
  export: {{max_size_ratio: 0.9x{ignore}}}
  fidelity: {{data: scenes/test, samples: 16, min_cosine: 0.5, stage: onnx}}
  accuracy: {{task: scenes/classification, metric: acc1, max_drop: 100pp, max_flips: 90%,
    samples: 32, stage: onnx}}
{more}"""

ENGINE = """\
  engine: {target: sm89, towers: [vision], min_gemms: {int8: 12}}
  memory: {target: sm89, max_weights_ratio: 0.9x, towers: [vision]}
  trace: {target: sm89, towers: [vision]}
"""

ACCURACY = "scenes/classification-acc1-onnx"

LOG = """\
[I] Input inference shape : pixel_values=4x3x32x32
[I] Duration: 3s (+ 200ms warm up)
[I] Selected Device: NVIDIA L4
[I] Application Compute Clock Rate: 2.04 GHz
"""

pytestmark = pytest.mark.slow


@pytest.fixture
def open_case(
    tmp_path: Path, tiny_clip: Path, make_case: Callable[..., Case], assume_sane: Any
) -> Callable[..., Case]:
    def make(text: str, *, source: str = "onnx", more: str = "", ignore: str = "") -> Case:
        path = tmp_path / "alone.quantgate.yaml"
        named = {"model": tiny_clip, "folder": tmp_path, "source": source}
        path.write_text(text.format(**named, more=more, ignore=ignore), encoding="utf-8")
        case: Case = assume_sane(make_case(load_suite(path)))
        return case

    return make


@pytest.fixture
def handed(open_case: Callable[..., Case], tmp_path: Path) -> Case:
    """What was exported here from PyTorch, handed over as files; the case that it is of."""
    case = open_case(BUILT)
    for variant, end in (("quantized", ""), ("fp16", "-fp16")):
        for tower in case.towers:
            path = case.stages.onnx_path(variant=variant, tower=tower, precision="float32")
            shutil.copyfile(path, tmp_path / f"{tower}{end}.onnx")
    return case


@pytest.mark.parametrize("source", ["onnx", "transformers"])
def test_files_alone_are_judged_as_the_model_that_they_were_exported_from(
    handed: Case, open_case: Callable[..., Case], source: str
) -> None:
    case = open_case(ALONE, source=source)

    of_torch = handed.judge(kind="fidelity").verdict
    of_files = case.judge(kind="fidelity").verdict

    assert of_files.status is of_torch.status is Status.PASS, (of_files, of_torch)
    for name, value in of_torch.figures.items():
        assert of_files.figures[name] == pytest.approx(value, rel=1e-3)
    assert case.judge(kind="accuracy", key=ACCURACY).verdict.status is Status.PASS
    export = case.judge(kind="export").verdict
    assert export.status is Status.PASS, export
    assert "vision: int8 ONNX file of pytest-quantgate: 13 of 13 Linear layers INT8" in (
        export.headline
    )
    lines = " | ".join(export.evidence)
    assert "vision: Linear weight: 13 of 13 INT8 per-channel, stored in INT8" in lines
    assert "layers are those of" in lines


@pytest.mark.usefixtures("handed")
def test_init_writes_a_suite_of_files_alone(
    tiny_clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "new.quantgate.yaml"
    files = {end: [str(tmp_path / f"{t}{end}.onnx") for t in ("vision", "text")]
             for end in ("", "-fp16")}  # fmt: skip
    arguments = ["init", "--model", str(tiny_clip), "--data", "scenes", "--output", str(output)]
    arguments += [part for path in files[""] for part in ("--onnx", path)]
    before = [part for path in files["-fp16"] for part in ("--fp16-onnx", path)]

    assert main([*arguments, *before[:2]], environ={}) == 1
    assert "--fp16-onnx names no file of the text tower" in capsys.readouterr().err
    assert main([*arguments, *before, "--recipe", "fp8"], environ={}) == 1
    assert "--recipe with --fp16-onnx" in capsys.readouterr().err
    assert main([*arguments, *before], environ={}) == 0

    suite = load_suite(output)
    assert (suite.model.source, suite.model.dtype) == ("onnx", "float32")
    assert {gate.kind for gate in suite.gates} == {"sanity", "export", "fidelity", "accuracy"}
    assert check_suite(suite, environ={}).errors == ()


def test_a_scale_that_was_changed_is_found_without_a_model(
    handed: Case, open_case: Callable[..., Case], tmp_path: Path
) -> None:
    path = tmp_path / "vision.onnx"
    model = onnx.load(path)
    node = next(n for n in model.graph.node if n.name.endswith("fc1/weight_quantizer/DQ"))
    tensor = next(t for t in model.graph.initializer if t.name == node.input[1])
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) * 2, tensor.name))
    onnx.save(model, path)

    verdict = open_case(ALONE).judge(kind="export").verdict

    assert (verdict.status, verdict.code) == (Status.FAIL, "check.sqnr-low")
    ignoring = open_case(ALONE, ignore=", ignore: [check.sqnr-low]").judge(kind="export").verdict
    assert ignoring.status is Status.PASS, ignoring
    assert "[check.sqnr-low]" in " ".join(ignoring.evidence)


def test_a_finding_that_is_ignored_and_is_not_there_is_red(
    handed: Case, open_case: Callable[..., Case]
) -> None:
    verdict = open_case(ALONE, ignore=", ignore: check.tower-off").judge(kind="export").verdict

    assert verdict.code == "export.ignores-nothing"


def test_engines_are_built_of_files_alone(handed: Case, open_case: Callable[..., Case]) -> None:
    pytest.importorskip("tensorrt_rtx")
    case = open_case(ALONE, more=ENGINE)

    for kind in ("engine", "memory", "trace"):
        verdict = case.judge(kind=kind, key="sm89-vision").verdict
        assert verdict.status is Status.PASS, verdict
    assert "28 of 28 quantizers followed from the ONNX files into tensorrt_rtx" in verdict.headline
    assert verdict.evidence[0].split() == ["quantizers", "declared", "onnx", "engine"]


def test_there_is_no_checkpoint_to_hand_on(
    handed: Case, open_case: Callable[..., Case], tmp_path: Path
) -> None:
    with pytest.raises(NotMeasured, match="needs its PyTorch model"):
        hand_over(open_case(ALONE), format="modelopt", folder=tmp_path / "out")


def write_report(folder: Path, *, end: str, compute_ms: float) -> str:
    """Write what trtexec and sha256sum would have of an engine; return its section of a suite."""
    queries = [
        {"startComputeMs": 500.0 + at, "computeMs": compute_ms + at % 7 / 1000, "latencyMs": 9.0}
        for at in range(100)
    ]
    files = {
        "layers": json.dumps({"Layers": ["fc1"]}),
        "engine": f"ftrt{end}",
        "times": json.dumps(queries),
        "log": LOG,
    }
    section = []
    named = [f"vision{end}.onnx"]
    for key, text in files.items():
        name = f"vision{end}.{key}"
        (folder / name).write_text(text)
        named.append(name)
        section.append(f'{key}: "{folder}/{name}"')
    lines = [f"{hashlib.sha256((folder / n).read_bytes()).hexdigest()}  {n}\n" for n in named]
    (folder / f"build{end}.sha256").write_text("".join(lines))
    return f'{{{", ".join(section)}, sums: "{folder}/build{end}.sha256"}}'


def test_times_of_handed_over_engines_are_judged(
    handed: Case, open_case: Callable[..., Case], tmp_path: Path
) -> None:
    reports = [
        write_report(tmp_path, end=end, compute_ms=ms).replace("{", "{{").replace("}", "}}")
        for end, ms in (("", 1.0), ("-fp16", 2.0))
    ]
    text = ALONE.replace(
        "  fp16: {{onnx:",
        f"  engine_report: {{{{vision: {reports[0]}}}}}\n"
        f"  fp16: {{{{engine_report: {{{{vision: {reports[1]}}}}}, onnx:",
    )
    more = "  latency: {tower: vision, runtime: tensorrt, batch: 4, max_ratio: 0.6x}\n"

    verdict = open_case(text, more=more).judge(kind="latency", key="tensorrt-vision-batch4").verdict

    assert verdict.status is Status.PASS, verdict
    assert "NVIDIA L4: ratio 0.501" in verdict.headline
    more = more.replace("max_ratio", "max_latency: 5ms, max_ratio")
    verdict = open_case(text, more=more).judge(kind="latency", key="tensorrt-vision-batch4").verdict
    assert verdict.status is Status.NOT_MEASURED
    assert "holds on the machine of a baseline" in verdict.headline
    (tmp_path / "vision.times").write_text("[]")
    verdict = open_case(text, more=more).judge(kind="latency", key="tensorrt-vision-batch4").verdict
    assert (verdict.status, verdict.code) == (Status.INCOMPARABLE, "latency.report-untied")


def test_a_tower_without_a_file_cannot_be_exported(
    handed: Case, open_case: Callable[..., Case]
) -> None:
    text = ALONE.replace(', text: "{folder}/text.onnx"', "")

    verdict = open_case(text, source="transformers").judge(kind="export").verdict

    assert verdict.status is Status.FAIL
    assert "there is no ONNX file of text" in verdict.headline


@pytest.mark.parametrize(
    ("gate", "mend"),
    [
        ("coverage: {}", "leave it out, or name the checkpoint"),
        ("parity: {}", "leave it out, or name the checkpoint"),
        ("trace: {}", "leave it out, or name the checkpoint"),
        ("roundtrip: {}", "leave it out, or name the checkpoint"),
        ("fidelity: {min_cosine: 0.9}", "write stage: onnx"),
    ],
)
def test_gates_of_pytorch_are_refused_by_name(
    open_case: Callable[..., Case], gate: str, mend: str
) -> None:
    head, _, _ = ALONE.partition("  export:")
    kind = gate.partition(":")[0]

    with pytest.raises(SuiteError, match=f"{kind}.* looks at the quantized model .*{mend}"):
        open_case(f"{head}  {gate.replace('{', '{{').replace('}', '}}')}\n")


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        (
            "artifacts:",
            "quantize: {{recipe: int8}}\nartifacts:",
            "no PyTorch model to quantize",
        ),
        (', text: "{folder}/text-fp16.onnx"', "", "fp16.onnx vision: model.source onnx takes"),
    ],
)
def test_a_model_of_onnx_files_needs_both_and_nothing_else(
    open_case: Callable[..., Case], old: str, new: str, said: str
) -> None:
    with pytest.raises(SuiteError, match=said):
        open_case(ALONE.replace(old, new))
