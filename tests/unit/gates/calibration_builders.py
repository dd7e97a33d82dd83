"""What the tests of the calibration gate's parts judge, and how."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from pytest_quantgate.evidence.audit import Audit, BatchInvariance, CalibrationRun, NearCopy
from pytest_quantgate.evidence.verdict import Verdict
from pytest_quantgate.gates.calibration import judge_calibration
from tests.unit.gates.gate_builders import (
    calibration_gate,
    make_audit,
    make_run,
)

AUDIT = make_audit()

FC1 = "vision_model.layers.0.mlp.fc1.input_quantizer"

WEIGHT = "vision_model.layers.0.mlp.fc1.weight_quantizer"


def judge(
    audit: Audit = AUDIT,
    run: CalibrationRun | None = None,
    *,
    evaluated: tuple[tuple[str, str], ...] = (("ff", "scene-9"),),
    near: tuple[NearCopy, ...] = (),
    **limits: Any,
) -> Verdict:
    return judge_calibration(
        audit,
        run if run is not None else make_run(),
        evaluation_hashes=evaluated,
        near_copies=near,
        gate=calibration_gate(**limits),
    )


def with_batch(audit: Audit, *, change: float, floor: float = 1e-7, samples: int = 4) -> Audit:
    """Return an audit whose text embeddings move by so much with their batch."""
    found = [("vision", 1e-7, 1e-7), ("text", change, floor)]
    return replace(
        audit,
        invariance=tuple(
            BatchInvariance(tower=tower, samples=samples, change=moved, floor=own)  # type: ignore[arg-type]
            for tower, moved, own in found
        ),
    )
