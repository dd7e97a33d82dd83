"""An engine that a pipeline built, through the gates of a suite: by its layer report."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_quantgate.evidence.verdict import Status
from pytest_quantgate.run.case import Case
from pytest_quantgate.runtimes.engine_layers import EngineLayer
from pytest_quantgate.suite.load import load_suite

SUITE = """\
quantgate: 1
model: {{source: transformers, id: "{model}"}}
calibration: {{data: scenes/calibration, samples: 32, batch_size: 16, held_out_samples: 16}}
quantize: {{recipe: fp8}}
{artifacts}
gates:
  engine: {{target: sm89, min_fp8_gemms: 13, towers: [vision]{limits}}}
  trace: {{target: sm89, towers: [vision]}}
  memory: {{target: sm89, max_weights_ratio: 5x, towers: [vision]}}
"""

KEY = "sm89-vision"

pytestmark = pytest.mark.slow


def write_row(layer: EngineLayer) -> dict[str, Any]:
    """Return a kernel as trtexec 10 writes it."""

    def tensors(types: tuple[str, ...]) -> list[dict[str, Any]]:
        return [{"Name": "t", "Location": "Device", "Format/Datatype": kind} for kind in types]

    return {
        "Name": layer.name,
        "LayerType": layer.type,
        "Inputs": tensors(layer.input_dtypes),
        "Constants": tensors(layer.constant_dtypes),
        "Outputs": tensors(layer.output_dtypes),
        "TacticName": layer.tactic,
        "Metadata": "\x1f".join(f"[ONNX Layer: {node}]" for node in layer.onnx_nodes),
    }


@pytest.fixture
def open_case(
    tmp_path: Path, tiny_clip: Path, make_case: Callable[..., Case], assume_sane: Any
) -> Callable[..., Case]:
    def make(artifacts: str = "", limits: str = "") -> Case:
        path = tmp_path / "given.quantgate.yaml"
        text = SUITE.format(model=tiny_clip, artifacts=artifacts, limits=limits)
        path.write_text(text.replace("DIR", str(tmp_path)), encoding="utf-8")
        case: Case = assume_sane(make_case(load_suite(path)))
        return case

    return make


@pytest.fixture
def hand_over(open_case: Callable[..., Case], tmp_path: Path) -> Callable[..., Path]:
    """Build both engines, and write what trtexec and sha256sum would have of them."""
    pytest.importorskip("tensorrt_rtx")

    def make() -> Path:
        case = open_case()
        gate = case.suite.gates.find(kind="engine", key=KEY)
        for variant, end in (("quantized", ""), ("fp16", "-fp16")):
            report = case.stages.engine(variant=variant, tower="vision", gate=gate)
            onnx = case.stages.onnx_path(variant=variant, tower="vision", precision="float16")
            key = case.used["engine", variant, "vision", "sm89", "1", "tensorrt-rtx"]
            plan = case.cache.path(kind="engine", key=key) / "model.plan"
            names = [f"vision{end}.{kind}" for kind in ("onnx", "plan", "json")]
            shutil.copyfile(onnx, tmp_path / names[0])
            shutil.copyfile(plan, tmp_path / names[1])
            rows = [write_row(layer) for layer in report.layers]
            (tmp_path / names[2]).write_text(json.dumps({"Layers": rows, "Bindings": []}))
            write_sums(tmp_path, names, end)
        return tmp_path

    return make


def write_sums(folder: Path, names: list[str], end: str = "") -> None:
    lines = [f"{hashlib.sha256((folder / n).read_bytes()).hexdigest()}  {n}" for n in names]
    (folder / f"build{end}.sha256").write_text("\n".join(lines) + "\n")


REPORT = (
    "engine_report: {vision: {layers: 'DIR/vision%s.json', engine: 'DIR/vision%s.plan', "
    "sums: 'DIR/build%s.sha256'}}"
)
ALONE = f"artifacts: {{onnx: {{vision: 'DIR/vision.onnx'}}, {REPORT % ('', '', '')}}}"
WITH_FP16 = (
    f"{ALONE[:-1]}, fp16: {{onnx: {{vision: 'DIR/vision-fp16.onnx'}}, "
    f"{REPORT % (('-fp16',) * 3)}}}}}"
)


def test_a_report_is_judged_like_the_engine_that_is_built_here(
    open_case: Callable[..., Case], hand_over: Callable[..., Path]
) -> None:
    hand_over()
    built = open_case()
    one = built.judge(kind="engine", key=KEY).verdict

    both = open_case(WITH_FP16)
    two = both.judge(kind="engine", key=KEY).verdict
    alone = open_case(ALONE).judge(kind="engine", key=KEY).verdict

    assert two.status is alone.status is Status.PASS, (two, alone)
    for name in ("vision_fp8_gemm_nodes", "vision_plan_bytes", "vision_plan_ratio"):
        assert two.figures[name] == one.figures[name]
    assert "vision plan 0." in two.headline or "vision plan 1." in two.headline
    assert "no FP16 engine beside it" in alone.headline
    assert "vision_plan_ratio" not in alone.figures
    said = " ".join(two.evidence)
    assert "the vision engine report was given: vision.json of vision.plan (sha256 " in said
    assert "the vision FP16 engine report was given: vision-fp16.json" in said
    trace = [case.judge(kind="trace", key=KEY).verdict for case in (built, both)]
    assert trace[0].figures == trace[1].figures
    # What a report does not tell is not measured, whatever the limit.
    memory = both.judge(kind="memory", key=KEY).verdict
    assert memory.status is Status.NOT_MEASURED


def test_a_ratio_needs_fp16_beside_the_report(
    open_case: Callable[..., Case], hand_over: Callable[..., Path]
) -> None:
    hand_over()

    verdict = open_case(ALONE, ", max_plan_ratio: 5x").judge(kind="engine", key=KEY).verdict

    assert verdict.status is Status.NOT_MEASURED, verdict


def test_a_report_of_another_file_is_incomparable(
    open_case: Callable[..., Case], hand_over: Callable[..., Path]
) -> None:
    folder = hand_over()
    names = ["vision.onnx", "vision.plan", "vision.json"]
    shutil.copyfile(folder / "vision.onnx", folder / "kept.onnx")
    (folder / "vision.onnx").write_bytes((folder / "vision-fp16.onnx").read_bytes())
    write_sums(folder, names)
    shutil.copyfile(folder / "kept.onnx", folder / "vision.onnx")

    verdict = open_case(ALONE).judge(kind="engine", key=KEY).verdict

    assert (verdict.status, verdict.code) == (Status.INCOMPARABLE, "engine.report-untied")
    assert "the ONNX file is " in verdict.headline
    assert verdict.brief == "the report is not proved to be of these files"


def test_a_report_of_names_is_refused_with_the_flag_to_set(
    open_case: Callable[..., Case], hand_over: Callable[..., Path]
) -> None:
    folder = hand_over()
    (folder / "vision.json").write_text('{"Layers": ["a", "b"]}')
    write_sums(folder, ["vision.onnx", "vision.plan", "vision.json"])

    verdict = open_case(ALONE).judge(kind="engine", key=KEY).verdict

    assert verdict.code == "engine.given-file-unusable"
    assert "--profilingVerbosity=detailed" in verdict.headline
    assert ":5: " in verdict.headline


def test_an_engine_alone_is_identified_and_proves_nothing(
    open_case: Callable[..., Case], hand_over: Callable[..., Path]
) -> None:
    folder = hand_over()
    plan = folder / "vision.plan"
    text = "artifacts: {engine: {vision: 'DIR/vision.plan'}}"

    verdicts = [
        open_case(text).judge(kind=kind, key=KEY).verdict for kind in ("engine", "memory", "trace")
    ]

    digest = hashlib.sha256(plan.read_bytes()).hexdigest()[:12]
    for verdict in verdicts:
        assert verdict.status is Status.NOT_MEASURED, verdict
        assert ":5: vision.plan (sha256 " + digest in verdict.headline
        assert "; TensorRT for RTX 1." in verdict.headline
        assert ", built for sm89) says nothing of what it computes" in verdict.headline
        assert "artifacts.engine_report.vision" in verdict.headline

    plan.write_bytes(b"\x7fELF" + bytes(100))
    verdict = open_case(text).judge(kind="engine", key=KEY).verdict
    assert verdict.code == "engine.given-file-unusable"
    assert "vision.plan is no engine plan of TensorRT" in verdict.headline
