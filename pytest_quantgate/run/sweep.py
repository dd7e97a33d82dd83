"""Runs one suite with several recipes: each is a variant of its own, in the same cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from pytest_quantgate.errors import QuantGateError, SuiteError
from pytest_quantgate.evidence.sweep import Candidate, Loss, Sweep
from pytest_quantgate.run.conclusion import Results, Row, SuiteGates, conclude
from pytest_quantgate.suite.gates import GateSection, kind_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pytest_quantgate.evidence.verdict import Figure, Verdict
    from pytest_quantgate.run.case import Case
    from pytest_quantgate.suite.specs import Suite


def vary_recipe(suite: Suite, *, recipes: Sequence[str]) -> tuple[Suite, ...]:
    """Return a suite with each recipe; raises SuiteError where its checkpoint is handed over."""
    if suite.quantize is None:
        raise SuiteError(
            f"{suite.variant.where}: what is handed over is of one recipe: name a suite with "
            f"quantize"
        )
    quantize = suite.quantize
    return tuple(replace(suite, quantize=replace(quantize, recipe=name)) for name in recipes)


def sweep(suites: Sequence[Suite], *, open_case: Callable[[Suite], Case]) -> Sweep:
    """Return what the gates say of each of some suites that differ in their recipe alone.

    Gates against a baseline judge none: it is that of another recipe. Gates that are timed need
    pytest.
    """
    candidates, sizes = [], []
    for suite in suites:
        found, fp16_bytes = _judge(open_case(suite), recipe=str(suite.variant.recipe))
        candidates.append(found)
        sizes.append(fp16_bytes)
    return Sweep(
        suite=suites[0].label,
        candidates=tuple(candidates),
        fp16_bytes=next((size for size in sizes if size is not None), None),
        left_out=tuple(g.name for g in suites[0].gates if not _judges_candidates(g)),
    )


def _judges_candidates(gate: GateSection) -> bool:
    kind = kind_of(gate)
    return not kind.timed and not kind.keeps_baseline(gate)


def _judge(case: Case, *, recipe: str) -> tuple[Candidate, int | None]:
    """Return one candidate, and the bytes of the same weights in FP16."""
    gates = [gate for gate in case.suite.gates if _judges_candidates(gate)]
    rows = []
    for gate in gates:
        with case.progress.stage(f"{recipe}: {gate.name}"):
            verdict = case.judge(kind=gate.kind, key=gate.key).verdict
        rows.append(Row(suite=case.suite.name, gate=gate.name, verdict=verdict))
    suite = SuiteGates(
        suite=case.suite.name,
        file=case.suite.path.as_posix(),
        gates=tuple(gate.name for gate in gates),
        allow_unmeasured=case.suite.allow_unmeasured,
    )
    concluded = conclude(Results(suites=(suite,), rows=tuple(rows))).suites[0]
    weights_bytes, fp16_bytes = _measure_size(case)
    candidate = Candidate(
        recipe=recipe,
        status=concluded.status,
        sentence=concluded.sentence,
        red=tuple(
            (row.gate, row.verdict.brief or _drop_kind(row.verdict))
            for row in rows
            if not row.verdict.passed
        ),
        losses=tuple(
            loss for row in rows if (loss := _read_loss(row.gate, row.verdict.figures)) is not None
        ),
        weights_bytes=weights_bytes,
    )
    return candidate, fp16_bytes


def _drop_kind(verdict: Verdict) -> str:
    return verdict.headline.removeprefix(f"{verdict.gate}: ")


def _read_loss(gate: str, figures: Mapping[str, Figure]) -> Loss | None:
    drop, low, high = (
        figures.get(name) for name in ("drop_points", "drop_low_points", "drop_high_points")
    )
    if not all(isinstance(value, float) for value in (drop, low, high)):
        return None
    return Loss(gate=gate, drop_points=drop, low_points=low, high_points=high)  # type: ignore[arg-type]


def _measure_size(case: Case) -> tuple[int | None, int | None]:
    """Return the bytes of the variant's weights and of FP16's; None where none could be built."""
    from pytest_quantgate.measure.sensitivity import variant_bytes

    try:
        return variant_bytes(case.quantized)
    except QuantGateError:  # the gates say why
        return None, None
