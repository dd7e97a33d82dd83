"""`quantgate sensitivity`: which layers cost what, and the smallest exclusion that passes."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_quantgate.run.case import Case
    from pytest_quantgate.run.progress import Progress
    from pytest_quantgate.suite.specs import Suite

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
        type=_count,
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
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--cache-dir", type=Path, metavar="DIR", help="as --quantgate-cache-dir")


def run(parsed: argparse.Namespace, *, environ: Mapping[str, str]) -> int:
    from pytest_quantgate.evidence.codec import to_json
    from pytest_quantgate.report.files import replace_file
    from pytest_quantgate.report.sensitivity import (
        render_exclusion,
        render_sensitivity,
        render_svg,
    )
    from pytest_quantgate.run.sensitivity import Study
    from pytest_quantgate.text.printable import printable
    from pytest_quantgate.text.wrapping import say, terminal_width

    case = open_case(parsed, environ=environ)
    study = Study(case)
    gate = study.gate_of(parsed.task) if parsed.task else study.weakest_gate()
    found = study.measure(gate=gate, samples=parsed.samples)
    if case.progress.mode == "log":
        print(file=sys.stderr)  # its stages end without a newline
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
            exclude=case.suite.variant.exclude,
        ):
            # A line to paste stays whole.
            print(printable(line)) if line.lstrip().startswith("- ") else say(line)
        result["exclusion"] = to_json(exclusion)
    if parsed.json is not None:
        text = json.dumps(result, indent=1) + "\n"
        replace_file(parsed.json, text, kind="sensitivity-json", option="--json")
    if parsed.svg is not None:
        text = render_svg(found, top=parsed.top)
        replace_file(parsed.svg, text, kind="sensitivity-svg", option="--svg")
    return 0


def open_case(
    parsed: argparse.Namespace, *, environ: Mapping[str, str], suite: Suite | None = None
) -> Case:
    """Return the case of a suite outside of pytest; nothing but the cache is written."""
    from pytest_quantgate.run.case import Case
    from pytest_quantgate.store.baseline_mode import BaselineMode
    from pytest_quantgate.store.baselines import Store
    from pytest_quantgate.store.cache import Cache
    from pytest_quantgate.store.settings import Settings, default_cache_root
    from pytest_quantgate.suite.load import load_suite
    from pytest_quantgate.text.wrapping import say

    root = Path.cwd()
    settings = Settings(
        baselines=BaselineMode.CHECK,
        baselines_dir=root / "baselines",
        obtained_dir=root / "obtained",
        cache_dir=parsed.cache_dir or default_cache_root(environ),
        reason="",
        strict=False,
        device=parsed.device,
        suite=str(parsed.suite),
        root=root,
    )

    def warn(message: str) -> None:
        say(f"warning: {message}", error=True)

    return Case(
        suite=suite or load_suite(parsed.suite, relative_to=root),
        settings=settings,
        store=Store(settings.baselines_dir, project=root),
        cache=Cache(root=settings.cache_dir, warn=warn),
        progress=show_progress(),
        environ=environ,
    )


def show_progress() -> Progress:
    """Return progress on stderr: one line that is redrawn on a terminal, else a line a stage."""
    import shutil

    from pytest_quantgate.run.progress import Progress

    stream = sys.stderr  # by now: libraries are silenced by redirecting the name

    def put(text: str) -> None:
        stream.write(text)
        stream.flush()

    live = stream.isatty()
    width = shutil.get_terminal_size().columns
    return Progress(mode="live" if live else "log", write=put, width=width)


def _count(text: str) -> int:
    count = _positive(text)
    if count < FEWEST_SAMPLES:
        raise argparse.ArgumentTypeError(f"{count} is too few: at least {FEWEST_SAMPLES}")
    return count


def _positive(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no positive number")
    return int(text)
