"""`quantgate plan`: how many samples each limit needs, before anything runs."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_quantgate.errors import QuantGateError
from pytest_quantgate.suite.quantities import QuantityError, parse_percent, parse_points
from pytest_quantgate.text.tables import align
from pytest_quantgate.text.words import count

if TYPE_CHECKING:
    from pytest_quantgate.commands.planning import Plan

EXAMPLES = """\
examples:
  quantgate plan suites/clip.quantgate.yaml                 # measured rates, else 5 % flips
  quantgate plan suites/ --flips 3% --drop 0.2pp            # at assumed rates

A limit is decided when the whole confidence interval lies on one side of it. "needed" samples do
that in 80 % of runs, if the rates are true; with "for all" samples of each, all limits of the suite
are green together in 80 % of runs. With planned_samples both are of the last look, and it is said
what the next one takes. A drop of 0pp is the best case: what is too few for it is too few for any.
The status is 0 where no limit is known to be undecidable, else 1.
"""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "plan",
        help="say how many samples each limit needs, before anything runs",
        description="Say how many samples each accuracy and regression limit needs, and which "
        "limits the data of a suite cannot decide.",
        epilog=EXAMPLES,
    )
    parser.add_argument("suites", nargs="+", type=Path, metavar="SUITE", help="file or folder")
    parser.add_argument(
        "--flips",
        metavar="PERCENT",
        type=_read_quantity(parse_percent),
        help="assumed share of samples whose outcome changes; default: as the baseline measured "
        "it, else 5%%",
    )
    parser.add_argument(
        "--changed",
        metavar="PERCENT",
        type=_read_quantity(parse_percent),
        help="assumed share of answers that change, right or wrong, for max_flips, with --flips; "
        "default: as many as flips",
    )
    parser.add_argument(
        "--drop",
        metavar="POINTS",
        type=_read_quantity(parse_points),
        help="assumed true drop, with --flips; default: 0pp",
    )
    parser.add_argument(
        "--baselines", type=Path, default=Path("baselines"), metavar="DIR", help="measured rates"
    )
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(parsed: argparse.Namespace, *, environ: Mapping[str, str]) -> int:
    from pytest_quantgate.commands.planning import ASSUMED, DEFAULT, Rates, plan_suite
    from pytest_quantgate.commands.validate import find_suites
    from pytest_quantgate.store.baselines import Store
    from pytest_quantgate.suite.load import load_suite

    flips = Fraction(5, 100) if parsed.flips is None else parsed.flips
    drop = Fraction(0) if parsed.drop is None else parsed.drop
    if drop > flips:
        raise QuantGateError(
            f"--drop {_show(drop, 'pp')} is more than --flips {_show(flips, '%')}: a drop is made "
            f"of flips"
        )
    changed = flips if parsed.changed is None else parsed.changed
    if changed < flips:
        raise QuantGateError(
            f"--changed {_show(changed, '%')} is less than --flips {_show(flips, '%')}: a flip is "
            f"an answer that changed"
        )
    is_named = any(given is not None for given in (parsed.flips, parsed.drop, parsed.changed))
    assumed = Rates(
        flips=float(flips),
        drop=float(drop),
        source=ASSUMED if is_named else DEFAULT,
        changed=float(changed) if is_named else None,
    )
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
    from pytest_quantgate.text.wrapping import say, terminal_width

    for position, (path, plans) in enumerate(found):
        if position:
            print()
        say(path)
        if not plans:
            print("  no accuracy and no regression limits: nothing that samples decide")
            continue
        for line in _table(plans, width=terminal_width()):
            say(line)
        for note in dict.fromkeys(note for plan in plans for note in plan.notes):
            say(f"  note: {note}")
        for line in _conclude(plans):
            say(f"  {line}")


def _conclude(plans: Sequence[Plan]) -> list[str]:
    found = Counter(plan.decision for plan in plans)
    few = found["too few"] + found["cannot pass"]
    total = count(len(plans), "limit")
    if few:
        each = f"{few} of {total} cannot be decided in 80 % of runs"
    else:
        each = f"{found['enough']} of {total} can be decided"
    unknown = f", {found['unknown']} unknown" if found["unknown"] else ""
    if len(plans) == 1 or found["cannot pass"]:
        return [each + unknown]
    scarce = [plan for plan in plans if plan.decision_for_all == "too few"]
    together = f'all {total} together: green in 80 % of runs with the samples under "for all"'
    if scarce:
        together += f"; {len(scarce)} of them {'have' if len(scarce) > 1 else 'has'} fewer"
    return [each + unknown, together]


def _table(plans: Sequence[Plan], *, width: int | None) -> list[str]:
    """Return a line a limit, or where that is too wide three: gate, numbers, and what they say."""
    rows = [("gate", "limit", "flips", "drop", "rates", "samples", "needed", "for all", "")]
    for plan in plans:
        rows.append(
            (
                plan.gate,
                f"{plan.limit_name} {plan.limit * 100:g}{_unit(plan.limit_name)}",
                f"{_flips(plan) * 100:.3g}%",
                f"{plan.rates.drop * 100:.3g}pp",
                plan.rates.source,
                "?" if plan.samples is None else str(plan.samples),
                "-" if plan.needed is None else str(plan.needed),
                "-" if plan.needed_for_all is None else str(plan.needed_for_all),
                _explain(plan),
            )
        )
    wide = [f"  {line}" for line in align(rows, right=range(2, 8))]
    if width is None or max(map(len, wide)) <= width:
        return wide
    heads, *cells = align([row[1:-1] for row in rows], right=range(1, 7))
    lines, gate = [f"    {heads}"], ""
    for row, shown in zip(rows[1:], cells, strict=True):
        lines += [f"  {row[0]}"] if row[0] != gate else []
        lines += [f"    {shown}", f"      {row[-1]}"]
        gate = row[0]
    return lines


def _flips(plan: Plan) -> float:
    """Return the rate that a limit stands under: max_flips counts answers, right or wrong."""
    changed = plan.rates.changed
    return changed if plan.limit_name == "max_flips" and changed else plan.rates.flips


def _unit(name: str) -> str:
    return "%" if name in ("floor", "max_flips") else "pp"


def _explain(plan: Plan) -> str:
    if plan.decision == "cannot pass":
        value = {
            "max_flips": f"{_flips(plan) * 100:.3g}% of answers changed",
            "floor": f"a value of {(plan.rates.accuracy or 0) * 100:.4g}%",
        }.get(plan.limit_name, f"a true drop of {plan.rates.drop * 100:.3g}pp")
        return f"CANNOT PASS: {value} does not keep it ({plan.where})"
    if plan.decision == "too few":
        assert plan.needed is not None
        assert plan.samples is not None
        more = f"TOO FEW: {plan.needed - plan.samples} more ({plan.where})"
        return f"{more}: {plan.advice}" if plan.advice else more
    return f"{plan.decision}: {plan.advice}" if plan.advice else plan.decision


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
                "needed_for_all": plan.needed_for_all,
                "answers_changed": plan.rates.changed,
                "worth": plan.rates.worth,
                "advice": plan.advice,
                "decision": plan.decision,
                "looks": [asdict(look) for look in plan.looks],
                "notes": list(plan.notes),
            }
            for plan in plans
        ],
    }


def _read_quantity(parse: Callable[[str], Fraction]) -> Callable[[str], Fraction]:
    """Return a reader of an option's quantity, whose error is the command line's."""

    def read(text: str) -> Fraction:
        try:
            return parse(text)
        except QuantityError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return read


def _show(share: Fraction, unit: str) -> str:
    return f"{float(share * 100):g}{unit}"
