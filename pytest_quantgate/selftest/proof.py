"""Runs the sabotages of one gate and judges the gate by what it said."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_quantgate.errors import NotMeasured, QuantGateError
from pytest_quantgate.evidence.outcomes import Outcomes
from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.gates.accuracy import AccuracyGate
from pytest_quantgate.gates.run import Judged
from pytest_quantgate.selftest.exported import list_exported_sabotages
from pytest_quantgate.selftest.measurements import list_measurement_sabotages
from pytest_quantgate.selftest.model import audit_again, list_model_sabotages
from pytest_quantgate.selftest.outcomes import exchange_outcomes, list_outcome_sabotages
from pytest_quantgate.selftest.sabotage import Sabotage, exchange, whole_text
from pytest_quantgate.selftest.timings import list_timing_sabotages

if TYPE_CHECKING:
    from pytest_quantgate.run.case import Case


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One sabotage and what the gate said to it."""

    sabotage: Sabotage
    verdict: Verdict

    @property
    def caught(self) -> bool:
        """Whether the gate turned red: what was not measured is no proof."""
        return self.verdict.status not in (Status.PASS, Status.NOT_MEASURED)

    @property
    def named(self) -> bool:
        """Whether it also says why."""
        return self.caught and self.sabotage.is_named_by(self.verdict)


def list_sabotages() -> tuple[Sabotage, ...]:
    """Return every sabotage that works on any suite."""
    return (
        *(*list_model_sabotages(), *list_measurement_sabotages(), *list_outcome_sabotages()),
        *(*list_exported_sabotages(), *list_timing_sabotages()),
    )


def prove_gate(case: Case, *, kind: str, key: str = "") -> Judged:
    """Return whether a gate turns red on everything that is planted, and stays green otherwise.

    PASS: the gate is green, green again on the same variant, and red for the right reason on every
    sabotage that its suite's limits and its model allow. FAIL names what it let through.
    INCONCLUSIVE where the gate is red already: then its red proves nothing.
    """
    good = case.judge(kind=kind, key=key)
    if good.verdict.status is Status.NOT_MEASURED:
        return good
    if not good.verdict.passed:
        return _judged(
            kind,
            Status.INCONCLUSIVE,
            f"selftest: {kind} is {good.verdict.status.value} without any sabotage, so its red "
            f"proves nothing",
            evidence=(good.verdict.headline,),
            next_step="mend the gate first (run without --quantgate-selftest), then prove it",
        )
    try:
        again = judge_again(case, kind=kind, key=key)
        trials = run_trials(case, kind=kind, key=key)
    except NotMeasured as error:
        return _judged(kind, Status.NOT_MEASURED, str(error))
    except QuantGateError as error:
        return _judged(kind, Status.FAIL, f"selftest: {kind} cannot be proven: {error}")
    return conclude(kind=kind, again=again, trials=trials)


def run_trials(case: Case, *, kind: str, key: str) -> tuple[Trial, ...]:
    """Return every sabotage of a gate that the case has something for, with the verdict on it."""
    trials = []
    for sabotage in list_sabotages():
        if sabotage.gate != kind:
            continue
        with case.progress.stage(f"planting in {kind}: {sabotage.name}"):
            spoiled = sabotage.spoil(case, key)
            if spoiled is not None:
                verdict = spoiled.judge(kind=kind, key=key).verdict
                trials.append(Trial(sabotage=sabotage, verdict=verdict))
    return tuple(trials)


#: Samples of a task that are measured a second time.
AGAIN_SAMPLES = 256


def judge_again(case: Case, *, kind: str, key: str) -> Verdict | None:
    """Return the verdict on the same variant measured once more; None where that proves nothing.

    Coverage and calibration: the restored variant is audited again. Accuracy: some samples
    are evaluated again, and must give the same answers.
    """
    again: dict[str, Callable[[], Case | None]] = {
        "coverage": lambda: exchange(case, audit=audit_again(case)),
        "calibration": lambda: exchange(case, audit=audit_again(case)),
        "accuracy": lambda: _evaluate_again(case, key=key),
    }
    if kind not in again:
        return None
    with case.progress.stage(f"measuring {kind} again"):
        repeated = again[kind]()
        return repeated.judge(kind=kind, key=key).verdict if repeated is not None else None


def _evaluate_again(case: Case, *, key: str) -> Case | None:
    gate = case.suite.gates.get(AccuracyGate, key=key)
    if not gate.task.endswith("/classification"):
        return None  # what is found depends on how many there are to find among

    def measure(samples: int | None) -> tuple[Outcomes, Outcomes]:
        found: tuple[Outcomes, Outcomes] = case.outcomes(
            task=gate.task,
            metric=gate.metric,
            samples=samples,
            stage=gate.stage,
            first=gate.first,
        )
        return found

    fp16, _ = measure(gate.samples)
    some = measure(min(AGAIN_SAMPLES, len(fp16.ids)))

    def put(again: Outcomes) -> Callable[[Outcomes], Outcomes]:
        answers = dict(zip(again.ids, zip(again.correct, again.answers, strict=True), strict=True))

        def change(outcomes: Outcomes) -> Outcomes:
            before = zip(outcomes.ids, outcomes.correct, outcomes.answers, strict=True)
            both = [answers.get(name, (right, answer)) for name, right, answer in before]
            # Its value stays: answers that differ then contradict it, and the gate says so.
            return dataclasses.replace(
                outcomes,
                correct=tuple(right for right, _ in both),
                answers=tuple(answer for _, answer in both),
            )

        return change

    return exchange_outcomes(case, fp16=put(some[0]), quantized=put(some[1]))


def conclude(*, kind: str, again: Verdict | None, trials: tuple[Trial, ...]) -> Judged:
    """Return the judgement on a gate: one line of evidence for each sabotage."""
    missed = [trial for trial in trials if not trial.caught]
    misnamed = [trial for trial in trials if trial.caught and not trial.named]
    lines = tuple(_line(trial) for trial in (*missed, *misnamed, *_good(trials)))
    figures = {
        "sabotages": len(trials),
        "sabotages_caught": len(trials) - len(missed),
        "sabotages_named": len(trials) - len(missed) - len(misnamed),
    }
    twice = "the same variant again: green" if again is not None and again.passed else ""
    if again is not None and not again.passed:
        return _judged(
            kind,
            Status.FAIL,
            f"selftest: {kind} is {again.status.value} on the same variant measured again",
            evidence=(again.headline, *lines),
            figures=figures,
            cause="the measurement is not repeatable, or what was approved is not what is restored",
        )
    if not trials:
        return _judged(
            kind,
            Status.NOT_MEASURED,
            f"selftest: there is no sabotage for a {kind} gate like this one",
        )
    if missed:
        return _judged(
            kind,
            Status.FAIL,
            f"selftest: {kind} stays green on {len(missed)} of {len(trials)} sabotages, first: "
            f"{missed[0].sabotage.name}",
            brief=f"stays green: {missed[0].sabotage.name}",
            evidence=lines,
            figures=figures,
            cause="a limit that nothing can exceed, or a part of the model that the gate does not "
            "see",
            next_step="tighten the gate's limits in the suite",
        )
    if misnamed:
        return _judged(
            kind,
            Status.FAIL,
            f"selftest: {kind} turns red on {misnamed[0].sabotage.name!r} and names another cause",
            brief=f"another cause named: {misnamed[0].sabotage.name}",
            evidence=lines,
            figures=figures,
        )
    return _judged(
        kind,
        Status.PASS,
        f"selftest: {kind} turns red on {len(trials)} of {len(trials)} sabotages and names each"
        f"{'; ' + twice if twice else ''}",
        brief=f"red on {len(trials)} of {len(trials)} sabotages"
        f"{', green on the same variant again' if twice else ''}",
        evidence=lines,
        figures=figures,
    )


def _good(trials: tuple[Trial, ...]) -> list[Trial]:
    return [trial for trial in trials if trial.named]


def _line(trial: Trial) -> str:
    verdict = trial.verdict
    if not trial.caught:
        return f"green  {trial.sabotage.name}: {verdict.status.value} {verdict.headline}"
    text = whole_text(verdict).splitlines()[0].removeprefix(f"{trial.sabotage.gate}: ")
    return f"{'red  ' if trial.named else 'wrong'}  {trial.sabotage.name}: {text}"


def _judged(
    kind: str,
    status: Status,
    headline: str,
    *,
    brief: str = "",
    evidence: tuple[str, ...] = (),
    cause: str = "",
    next_step: str = "",
    figures: dict[str, int] | None = None,
) -> Judged:
    return Judged(
        verdict=Verdict(
            gate=kind,
            status=status,
            headline=headline,
            brief=brief,
            evidence=evidence,
            cause=cause,
            next_step=next_step,
            figures=dict(figures or {}),
        )
    )
