"""`quantgate sensitivity`: which layers cost what, and the smallest exclusion that passes."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pytest_quantgate.commands.case import add_places, open_case

#: Fewer samples say nothing, and recall@5 needs more than five.
FEWEST_SAMPLES = 8

#: The layout of `--json`, raised when a field changes its meaning.
FORMAT = 1


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "sensitivity",
        help="say which layers cost what, and the smallest exclude list that meets the limits",
    )
    parser.add_argument("suite", type=Path, metavar="SUITE")
    parser.add_argument(
        "--samples",
        type=read_samples,
        default=256,
        metavar="N",
        help="images to measure each group on (default 256)",
    )
    parser.add_argument(
        "--task",
        metavar="TASK",
        help="the accuracy gate to measure in, such as scenes/classification "
        "(default: the one nearest to its limit)",
    )
    parser.add_argument("--top", type=_positive, default=20, metavar="N", help="rows (default 20)")
    parser.add_argument(
        "--no-exclusion", action="store_true", help="rank only: look for no exclude list"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures here too")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="write the plot here too")
    add_places(parser)


def run(parsed: argparse.Namespace, *, environ: Mapping[str, str]) -> int:
    from pytest_quantgate.evidence.codec import to_json
    from pytest_quantgate.report.files import replace_file
    from pytest_quantgate.report.sensitivity import (
        draw_noise,
        render_exclusion,
        render_sensitivity,
    )
    from pytest_quantgate.report.svg import draw_alone
    from pytest_quantgate.run.sensitivity import Study
    from pytest_quantgate.text.printable import printable
    from pytest_quantgate.text.wrapping import say, terminal_width

    case = open_case(parsed, environ=environ)
    study = Study(case)
    gate = study.gate_of(parsed.task) if parsed.task else study.weakest_gate()
    found = study.measure(gate=gate, samples=parsed.samples)
    case.progress.finish()
    say(case.suite.label)
    for line in render_sensitivity(found, top=parsed.top, width=terminal_width()):
        say(line)
    result = {"format": FORMAT, "suite": case.suite.label, "sensitivity": to_json(found)}
    if not parsed.no_exclusion:
        exclusion = study.propose(found)
        print()
        for line in render_exclusion(
            exclusion,
            suite=case.suite.label,
            weights_bytes=found.weights_bytes,
            section="quantize" if case.suite.quantize else "quantized",
            exclude=case.suite.variant.exclude,
        ):
            # A line to paste stays whole.
            print(printable(line)) if line.lstrip().startswith("- ") else say(line)
        result["exclusion"] = to_json(exclusion)
    if parsed.json is not None:
        text = json.dumps(result, indent=1) + "\n"
        replace_file(parsed.json, text, kind="sensitivity-json", option="--json")
    if parsed.svg is not None:
        text = draw_alone(draw_noise(found, top=parsed.top))
        replace_file(parsed.svg, text, kind="sensitivity-svg", option="--svg")
    return 0


def read_samples(text: str) -> int:
    """Return a number of samples that says something; raises argparse's error for fewer."""
    count = _positive(text)
    if count < FEWEST_SAMPLES:
        raise argparse.ArgumentTypeError(f"{count} is too few: at least {FEWEST_SAMPLES}")
    return count


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number")
    return int(text)
