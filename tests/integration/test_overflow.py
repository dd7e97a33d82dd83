"""A model that overflows in the format it ships in is red in every suite, on a CPU too."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from pytest_quantgate.evidence.verdict import Verdict
from pytest_quantgate.run.case import Case
from pytest_quantgate.suite.load import load_suite

SUITE = """\
quantgate: 1
model: {{source: transformers, id: "{model}", dtype: {dtype}}}
calibration: {{data: scenes/calibration, samples: 16, batch_size: 16, held_out_samples: 16}}
quantize: {{recipe: fp8, exclude: ["*patch_embedding*"]}}
gates:
{gates}
"""
GATES = {
    "coverage": "coverage: {}",
    "calibration": "calibration: {max_clipped: 49%}",
    "fidelity": "fidelity: {data: scenes/test, samples: 16, min_cosine: 0.5}",
    "accuracy": "accuracy: {task: scenes/classification, metric: acc1, samples: 64,"
    " max_drop: 90pp}",
    "roundtrip": "roundtrip: {}",
}


@pytest.fixture(scope="session")
def scale_clip(tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write the tiny CLIP with embeddings so many times as large; a LayerNorm divides it out."""

    def write(factor: float) -> Path:
        folder = tmp_path_factory.mktemp("scaled")
        shutil.copytree(tiny_clip, folder, dirs_exist_ok=True)
        path = folder / "model.safetensors"
        tensors = {name: value.float() for name, value in load_file(path).items()}
        for name in ("patch_embedding.weight", "class_embedding", "position_embedding.weight"):
            tensors[f"vision_model.embeddings.{name}"] *= factor
        save_file(tensors, path, metadata={"format": "pt"})
        return folder

    return write


@pytest.fixture(scope="session")
def loud(scale_clip: Callable[..., Path]) -> Path:
    return scale_clip(1e4)


@pytest.fixture
def judge(tmp_path: Path, make_case: Callable[..., Case]) -> Callable[..., dict[str, Verdict]]:
    def run(model: Path, *gates: str, dtype: str = "float16") -> dict[str, Verdict]:
        lines = "\n".join(f"  {GATES[name]}" for name in gates)
        path = tmp_path / "loud.quantgate.yaml"
        path.write_text(SUITE.format(model=model, dtype=dtype, gates=lines), encoding="utf-8")
        case = make_case(load_suite(path, relative_to=tmp_path))
        return {
            gate.kind: case.judge(kind=gate.kind, key=gate.key).verdict
            for gate in case.suite.gates
            if gate.kind in gates
        }

    return run


@pytest.mark.parametrize(
    ("gates", "answers"),
    [
        (("coverage", "calibration", "fidelity"), "fidelity"),
        (("coverage", "calibration"), "calibration"),
        (("coverage", "accuracy"), "accuracy"),
        (("coverage",), "coverage"),
        (("roundtrip",), "roundtrip"),
    ],
)
def test_one_gate_of_every_suite_answers(
    judge: Callable[..., dict[str, Verdict]], loud: Path, gates: tuple[str, ...], answers: str
) -> None:
    verdicts = judge(loud, *gates)

    assert {kind for kind, verdict in verdicts.items() if not verdict.passed} == {answers}
    assert verdicts[answers].code == f"{answers}.overflow"
    assert "first in vision_model.embeddings.patch_embedding (FP16)" in verdicts[answers].headline


def test_bfloat16_holds_the_same_values(
    judge: Callable[..., dict[str, Verdict]], loud: Path
) -> None:
    verdicts = judge(loud, "coverage", "fidelity", dtype="bfloat16")

    assert all(verdict.passed for verdict in verdicts.values())


def test_activations_near_half_of_the_range_are_fine(
    judge: Callable[..., dict[str, Verdict]], scale_clip: Callable[..., Path]
) -> None:
    verdict = judge(scale_clip(2e3), "fidelity")["fidelity"]

    assert verdict.passed
    largest = verdict.figures["largest_activation"]
    assert isinstance(largest, float)
    assert 20_000 < largest < 45_000
