"""Questions that more than one renderer asks of a report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from pytest_quantgate.report.model import (
    ClassFacts,
    GateResult,
    JoinedResult,
    StageName,
    SuiteReport,
    TaskFacts,
)
from pytest_quantgate.suite.gates import list_sections

STAGES: Mapping[StageName, str] = {"torch": "", "onnx": " in ONNX", "engine": " in an engine"}

DROP_FIGURES = (
    "fp16_value",
    "quantized_value",
    "drop_points",
    "drop_low_points",
    "drop_high_points",
    "max_drop_points",
)


def absent_kinds(suite: SuiteReport) -> list[str]:
    """Return the kinds of gates that a suite does not have: what nobody asked for."""
    names = [*(gate.name for gate in suite.gates), *suite.not_run]
    there = {name.partition("[")[0] for name in names}
    return [kind for kind in list_sections() if kind not in there]


def list_followers(gate: GateResult, suite: SuiteReport) -> list[GateResult]:
    """Return the gates that are explained by the finding of this one."""
    return [other for other in suite.gates if other.follows == gate.name]


def list_missing(suite: SuiteReport) -> dict[str, list[str]]:
    """Return the gates without a measurement by the reason, and whether they may be missing."""
    reasons: dict[str, list[str]] = {}
    told = {g.name: g.headline for g in suite.gates if g.status == "NOT_MEASURED"}
    told |= {
        name: f"did not run: {suite.not_run_because.get(name) or 'no reason is known'}"
        for name in suite.not_run
    }
    for name, reason in told.items():
        may = " (allowed to be missing)" if name in suite.allowed_unmeasured else ""
        reasons.setdefault(f"{reason}{may}", []).append(name)
    return reasons


def describe_machine(result: JoinedResult) -> str:
    """Return where a result was measured: `cuda; NVIDIA H200; Linux x86_64, some processor`."""
    devices = ", ".join(dict.fromkeys(device for device in result.devices.values() if device))
    about = result.environment
    gpus = ", ".join(dict.fromkeys(about.gpus))
    machine = f"{about.system}, {about.processor}" if about.processor else about.system
    return "; ".join(filter(None, (devices, gpus, machine)))


def has_drop(gate: GateResult) -> bool:
    """Return whether a gate has a drop with its interval and its limit, all of them finite."""
    return all(math.isfinite(figure(gate, name)) for name in DROP_FIGURES)


def figure(gate: GateResult, name: str) -> float:
    """Return a figure of a gate as a number; NaN where it has none."""
    value = gate.figures.get(name)
    return float(value) if isinstance(value, (int, float)) else math.nan


def gate_of(task: TaskFacts, suite: SuiteReport) -> GateResult | None:
    """Return the gate that judged the drop of a task."""
    return next((gate for gate in suite.gates if gate.name in task.gates and has_drop(gate)), None)


def task_name(task: TaskFacts) -> str:
    """Return a task as a reader names it: `digits/classification acc1 in ONNX`."""
    return f"{task.task} {task.metric}{STAGES[task.stage]}"


def worst_parts(parts: Iterable[ClassFacts]) -> list[ClassFacts]:
    """Return the classes, or slices, that lost samples on balance, the largest share first."""

    def loss(facts: ClassFacts) -> float:
        return (facts.right_to_wrong - facts.wrong_to_right) / max(1, facts.samples)

    return sorted((c for c in parts if loss(c) > 0), key=loss, reverse=True)
