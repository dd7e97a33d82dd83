"""`quantgate limits`: limits for a suite's gates, out of a measured pair, as YAML to paste."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pytest_quantgate.commands.case import add_places, open_case, show_progress
from pytest_quantgate.errors import DataError, SuiteError
from pytest_quantgate.text.printable import printable

if TYPE_CHECKING:
    from pytest_quantgate.commands.proposing import Measured, Proposal
    from pytest_quantgate.gates.sections import TaskGate
    from pytest_quantgate.run.case import Case
    from pytest_quantgate.suite.specs import Suite

#: The layout of `--json`, raised when a field changes its meaning.
FORMAT = 1

EXAMPLES = """\
examples:
  quantgate limits suites/clip.quantgate.yaml             # one calibration
  quantgate limits suites/clip.quantgate.yaml --seeds 3   # and two more, on other pairs

Measures what the accuracy and regression gates of a suite are on, and proposes the strictest limits
that these samples decide in 80 % of runs, at the rates of the worst calibration; the comments say
why, what a stricter limit takes, and what was accepted so far. The YAML on standard output is to be
pasted under `gates:`; --json prints the same as JSON. Nothing else is written. A limit is a
decision: say what you can ship. Status 1 where FP16 answers no better than chance, so that no limit
means anything.
"""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "limits",
        help="propose limits for a suite out of what is measured",
        description="Propose max_drop, max_flips, floor, slices and the limits against baselines, "
        "out of a measured pair.",
        epilog=EXAMPLES,
    )
    parser.add_argument("suite", type=Path, metavar="SUITE")
    parser.add_argument(
        "--seeds",
        type=_count,
        default=1,
        metavar="N",
        help="calibrate N times, each on pairs that no other one had; default: 1",
    )
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_places(parser)


def run(parsed: argparse.Namespace, *, environ: Mapping[str, str]) -> int:
    from pytest_quantgate.commands.suite_checks import check_suite
    from pytest_quantgate.suite.load import load_suite

    suite = load_suite(parsed.suite, relative_to=Path.cwd())
    errors = check_suite(suite, environ=environ).errors
    if errors:
        raise SuiteError(errors[0])
    cases = [open_case(parsed, environ=environ, suite=one) for one in vary(suite, parsed.seeds)]
    found = list(propose_all(cases))
    show_progress().finish()
    if parsed.json:
        print(json.dumps(_to_json(found, suite=str(parsed.suite), seeds=parsed.seeds), indent=2))
    else:
        for line in _write_yaml(found, suite=str(parsed.suite), seeds=parsed.seeds):
            print(printable(line))
    return 1 if any(isinstance(proposal, str) for _, proposal in found) else 0


def vary(suite: Suite, times: int) -> tuple[Suite, ...]:
    """Return a suite so many times, each calibrated on other pairs; raises SuiteError where a
    checkpoint is handed over, or nothing is to be proposed."""
    from pytest_quantgate.gates.sections import TaskGate

    if times > 1 and suite.quantize is None:
        raise SuiteError(
            f"{suite.variant.where.of('checkpoint')}: a checkpoint that is handed over was "
            f"calibrated once: leave out --seeds"
        )
    gates: tuple[TaskGate, ...] = suite.gates.all(TaskGate)
    if not gates:
        raise SuiteError(
            f"{suite.path}: no accuracy and no regression gate: write one with any limit, such as "
            f"accuracy: {{task: <data set>/classification, metric: acc1, max_drop: 1pp}}"
        )
    spec = suite.calibration
    return tuple(
        replace(suite, calibration=replace(spec, skip=number * spec.samples))
        for number in range(times)
    )


#: A gate, and what is proposed for it or why nothing is.
Found = tuple["TaskGate", "Proposal | str"]


def propose_all(cases: Sequence[Case]) -> Iterator[Found]:
    """Yield every gate of the suite that these cases are of, and limits for it."""
    from pytest_quantgate.commands.proposing import propose
    from pytest_quantgate.gates.sections import TaskGate

    gates: tuple[TaskGate, ...] = cases[0].suite.gates.all(TaskGate)
    for gate in gates:
        found = _measure(cases, gate)
        yield gate, found if isinstance(found, str) else propose(found)


def _write_yaml(found: Sequence[Found], *, suite: str, seeds: int) -> Iterator[str]:
    """Yield the lines to paste, with the reasons as comments."""
    times = f" --seeds {seeds}" if seeds > 1 else ""
    yield f"# quantgate limits {suite}{times}: paste what you can ship under gates:"
    for kind, several in groupby(found, key=lambda one: one[0].kind):
        yield f"{kind}:"
        for _, proposal in several:
            if isinstance(proposal, str):
                yield f"  # NO LIMITS: {proposal}"
                continue
            yield from (f"  # {reason}" for reason in proposal.reasons)
            yield f"  {proposal.write()}"


def _to_json(found: Sequence[Found], *, suite: str, seeds: int) -> dict[str, Any]:
    gates: list[dict[str, Any]] = []
    for gate, proposal in found:
        if isinstance(proposal, str):
            gates.append({"gate": gate.name, "refused": proposal})
            continue
        limits = {name: yaml.safe_load(text) for name, text in proposal.limits.items()}
        gates.append({"gate": gate.name, "limits": limits, "reasons": proposal.reasons})
    return {"format": FORMAT, "suite": suite, "seeds": seeds, "gates": gates}


def _measure(cases: Sequence[Case], gate: TaskGate) -> Measured | str:
    """Return what every calibration gave, or why it means nothing."""
    from pytest_quantgate.commands.planning import read_record
    from pytest_quantgate.commands.proposing import Measured
    from pytest_quantgate.gates.accuracy import check_outcomes
    from pytest_quantgate.gates.chance import judge_answers
    from pytest_quantgate.gates.run import measure_task
    from pytest_quantgate.gates.slices import read_columns, with_classes

    variants = []
    for number, case in enumerate(cases, start=1):
        with case.progress.stage(f"calibration {number} of {len(cases)}: {gate.title}"):
            try:
                fp16, quantized = measure_task(case, gate)
            except DataError as error:
                if number == 1:
                    raise
                raise SuiteError(
                    f"--seeds {len(cases)}: calibration {number}: {error}: take fewer seeds, or "
                    f"fewer samples to calibrate"
                ) from error
        variants.append(quantized)
    senseless = check_outcomes(fp16, *variants) or judge_answers(cases[0], gate, fp16=fp16)
    if senseless is not None:
        return senseless.headline
    return Measured(
        gate=gate,
        fp16=fp16,
        variants=tuple(variants),
        columns=with_classes(read_columns(cases[0], gate, fp16), fp16),
        record=read_record(cases[0].suite, gate, store=cases[0].store),
    )


def _count(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 20:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 to 20")
    return int(text)
