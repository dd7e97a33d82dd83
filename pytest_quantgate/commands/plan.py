"""`quantgate plan`: how many samples each limit needs, before anything runs."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_quantgate.errors import QuantGateError
from pytest_quantgate.gates.words import count

if TYPE_CHECKING:
    from pytest_quantgate.planning import Plan

EXAMPLES = """\
examples:
  quantgate plan suites/clip.quantgate.yaml                 # measured rates, else 5 % flips
  quantgate plan suites/ --flips 3% --drop 0.2pp            # at assumed rates

A limit is decided when the whole confidence interval lies on one side of it. "needed" samples do
that in 80 % of runs, if the rates are true. A drop of 0pp is the best case: what is too few for it
is too few for any. The status is 0 where no limit is known to be undecidable, else 1.
"""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "plan",
        help="say how many samples each limit needs, before anything runs",
        description="Say how many samples each accuracy and regression limit needs, and which "
        "limits the data of a suite cannot decide.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("suites", nargs="+", type=Path, metavar="SUITE", help="file or folder")
    parser.add_argument(
        "--flips",
        metavar="PERCENT",
        type=_percent,
        help="assumed share of samples whose outcome changes; default: as the baseline measured "
        "it, else 5%%",
    )
    parser.add_argument(
        "--drop",
        metavar="POINTS",
        type=_points,
        help="assumed true drop, with --flips; default: 0pp",
    )
    parser.add_argument(
        "--baselines", type=Path, default=Path("baselines"), metavar="DIR", help="measured rates"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(parsed: argparse.Namespace, *, environ: Mapping[str, str]) -> int:
    from pytest_quantgate.baselines import Store
    from pytest_quantgate.commands.validate import find_suites
    from pytest_quantgate.planning import ASSUMED, DEFAULT, Rates, plan_suite
    from pytest_quantgate.suite_file import load_suite

    flips = Fraction(5, 100) if parsed.flips is None else parsed.flips
    drop = Fraction(0) if parsed.drop is None else parsed.drop
    if drop > flips:
        raise QuantGateError(
            f"--drop {_show(drop, 'pp')} is more than --flips {_show(flips, '%')}: a drop is made "
            f"of flips"
        )
    is_named = parsed.flips is not None or parsed.drop is not None
    source = ASSUMED if is_named else DEFAULT
    assumed = Rates(flips=float(flips), drop=float(drop), source=source)
    store = None if is_named else Store(parsed.baselines, project=Path.cwd())
    found = []
    for path in find_suites(parsed.suites):
        suite = load_suite(path, relative_to=Path.cwd())
        plans = plan_suite(suite, assumed=assumed, store=store, environ=environ)
        found.append((path.as_posix(), plans))
    if parsed.json:
        print(json.dumps([_to_json(path, plans) for path, plans in found], indent=2))
    else:
        _print(found)
    undecidable = [
        p for _, plans in found for p in plans if p.decision in ("too few", "cannot pass")
    ]
    return 1 if undecidable else 0


def _print(found: Sequence[tuple[str, Sequence[Plan]]]) -> None:
    from pytest_quantgate.report.printable import printable

    for position, (path, plans) in enumerate(found):
        if position:
            print()
        print(printable(path))
        if not plans:
            print("  no accuracy and no regression limits: nothing that samples decide")
            continue
        for line in _table(plans):
            print(printable(line))
        for note in dict.fromkeys(note for plan in plans for note in plan.notes):
            print(printable(f"  note: {note}"))
        few = [plan for plan in plans if plan.decision in ("too few", "cannot pass")]
        unknown = [plan for plan in plans if plan.decision == "unknown"]
        print(f"  {_conclude(plans, few=len(few), unknown=len(unknown))}")


def _conclude(plans: Sequence[Plan], *, few: int, unknown: int) -> str:
    if few:
        sentence = f"{few} of {count(len(plans), 'limit')} cannot be decided in 80 % of runs"
    else:
        sentence = f"{len(plans) - unknown} of {count(len(plans), 'limit')} can be decided"
    return f"{sentence}, {unknown} unknown" if unknown else sentence


def _table(plans: Sequence[Plan]) -> list[str]:
    rows = [("gate", "limit", "flips", "drop", "rates", "samples", "needed", "")]
    for plan in plans:
        rows.append(
            (
                plan.gate,
                f"{plan.limit_name} {plan.limit * 100:g}{_unit(plan.limit_name)}",
                f"{plan.rates.flips * 100:.3g}%",
                f"{plan.rates.drop * 100:.3g}pp",
                plan.rates.source,
                "?" if plan.samples is None else str(plan.samples),
                "-" if plan.needed is None else str(plan.needed),
                _explain(plan),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]) - 1)]
    lines = []
    for row in rows:
        cells = [f"{row[0]:<{widths[0]}}", f"{row[1]:<{widths[1]}}"]
        cells += [f"{cell:>{width}}" for cell, width in zip(row[2:-1], widths[2:], strict=True)]
        lines.append(f"  {'  '.join([*cells, row[-1]])}".rstrip())
    return lines


def _unit(name: str) -> str:
    return "%" if name in ("floor", "max_flips") else "pp"


def _explain(plan: Plan) -> str:
    if plan.decision == "cannot pass":
        value = {
            "max_flips": f"a flip rate of {plan.rates.flips * 100:.3g}%",
            "floor": f"a value of {(plan.rates.accuracy or 0) * 100:.4g}%",
        }.get(plan.limit_name, f"a true drop of {plan.rates.drop * 100:.3g}pp")
        return f"CANNOT PASS: {value} does not keep it ({plan.where})"
    if plan.decision == "too few":
        assert plan.needed is not None
        assert plan.samples is not None
        return f"TOO FEW: {plan.needed - plan.samples} more ({plan.where})"
    return plan.decision


def _to_json(path: str, plans: Sequence[Plan]) -> dict[str, Any]:
    return {
        "suite": path,
        "limits": [
            {
                "gate": plan.gate,
                "limit": plan.limit_name,
                "value": plan.limit,
                "where": plan.where,
                "confidence": plan.confidence,
                "flips": plan.rates.flips,
                "drop": plan.rates.drop,
                "rates": plan.rates.source,
                "samples": plan.samples,
                "needed": plan.needed,
                "decision": plan.decision,
                "notes": list(plan.notes),
            }
            for plan in plans
        ],
    }


def _percent(text: str) -> Fraction:
    from pytest_quantgate.quantities import QuantityError, parse_percent

    try:
        return parse_percent(text)
    except QuantityError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _points(text: str) -> Fraction:
    from pytest_quantgate.quantities import QuantityError, parse_points

    try:
        return parse_points(text)
    except QuantityError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _show(share: Fraction, unit: str) -> str:
    return f"{float(share * 100):g}{unit}"
