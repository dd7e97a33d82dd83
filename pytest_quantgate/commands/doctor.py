"""`quantgate doctor`: what this machine can measure, and what to install for the rest."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_quantgate.evidence.verdict import Status, Verdict

if TYPE_CHECKING:
    from pytest_quantgate.commands.machine import Check
    from pytest_quantgate.commands.needs import Need

EXAMPLES = """\
examples:
  quantgate doctor                                 # what can be measured here
  quantgate doctor suites/                         # is all there that these suites need?
  quantgate doctor models/clip/                    # does this checkpoint's folder fit together?
  quantgate doctor --deep                          # also import the libraries and ask the GPU

With suites the status is 0 where everything that they need is there and fits together, else 1.
Without, it is 1 where a package is broken or out of its supported range.
"""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "doctor",
        help="say what this machine can measure",
        description="Say what this machine can measure, and what to install for the rest.",
        epilog=EXAMPLES,
    )
    parser.add_argument(
        "suites", nargs="*", type=Path, metavar="SUITE", help="suite, folder of suites or model"
    )
    parser.add_argument("--deep", action="store_true", help="import libraries, ask GPU and hub")
    parser.add_argument("--cache-dir", type=Path, metavar="DIR", help="as --quantgate-cache-dir")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(parsed: argparse.Namespace, *, environ: Mapping[str, str]) -> int:
    from pytest_quantgate.commands.machine import look, look_deeper
    from pytest_quantgate.commands.needs import list_kinds, list_needs
    from pytest_quantgate.commands.suite_checks import check_files, check_model_folder
    from pytest_quantgate.commands.validate import find_suites
    from pytest_quantgate.encoders.families import find_config
    from pytest_quantgate.encoders.source import PIPELINE
    from pytest_quantgate.store.settings import default_cache_root
    from pytest_quantgate.suite.load import load_suite

    models = [
        path for path in parsed.suites if find_config(path).is_file() or (path / PIPELINE).is_file()
    ]
    paths = find_suites(path for path in parsed.suites if path not in models)
    suites = [(path, load_suite(path, relative_to=Path.cwd())) for path in paths]
    files = [
        *((path.as_posix(), check_model_folder(path)) for path in models),
        *((path.as_posix(), check_files(suite, environ=environ)) for path, suite in suites),
    ]
    machine = look(environ=environ, cache_dir=parsed.cache_dir or default_cache_root(environ))
    deeper = tuple(look_deeper(machine, environ=environ)) if parsed.deep else ()
    checks = (*machine.checks, *deeper)
    kinds = list_kinds(machine)
    needs = [
        (path.as_posix(), list_needs(suite, machine=machine, environ=environ))
        for path, suite in suites
    ]
    if parsed.json:
        print(json.dumps(_to_json(checks, kinds=kinds, needs=needs, files=files), indent=2))
    else:
        _print(checks, kinds=kinds, needs=needs, files=files)
    if any(verdict.status is Status.FAIL for _, found in files for verdict in found):
        return 1
    if suites:
        return 0 if all(need.is_there for _, found in needs for need in found) else 1
    bad = ("TOO OLD", "TOO NEW", "BROKEN")
    return 1 if any(check.state in bad for check in checks) else 0


def _print(
    checks: Iterable[Check],
    *,
    kinds: Sequence[Need],
    needs: Sequence[tuple[str, Sequence[Need]]],
    files: Sequence[tuple[str, Sequence[Verdict]]],
) -> None:
    from pytest_quantgate.text.wrapping import say

    lines = _check_lines(list(checks))
    if needs:
        for path, found in needs:
            lines += ["", f"gates of {path}", *_need_lines(found)]
    elif not files:
        lines += ["", "gates that can be measured here", *_need_lines(kinds)]
    for path, verdicts in files:
        lines += ["", f"model and texts of {path}", *_verdict_lines(verdicts)]
    for line in lines:
        say(line)


def _check_lines(checks: Sequence[Check]) -> list[str]:
    width = max(len(check.name) for check in checks)
    return [
        f"  {check.state:<8} {check.name:<{width}}  {check.detail}{_add_fix(check.fix)}"
        for check in checks
    ]


def _verdict_lines(verdicts: Sequence[Verdict]) -> list[str]:
    if not verdicts:
        return ["  OK       config.json and the files beside it fit together"]
    return [
        f"  {'BROKEN' if verdict.status is Status.FAIL else 'NOTE':<8} "
        f"{verdict.headline.removeprefix('sanity: ')} [{verdict.code}]{_add_fix(verdict.next_step)}"
        for verdict in verdicts
    ]


def _need_lines(needs: Sequence[Need]) -> list[str]:
    """Return a line a gate, and below what is missing, each thing once with its number."""
    missing = list(dict.fromkeys(part for need in needs for part in need.missing))
    width = max((len(need.gate) for need in needs), default=0)
    lines = []
    for need in needs:
        numbers = " ".join(f"[{missing.index(part) + 1}]" for part in need.missing)
        state = "OK" if need.is_there else "MISSING"
        lines.append(f"  {state:<8} {need.gate:<{width}}  {numbers}".rstrip())
    return [
        *lines,
        *(
            f"  [{number}] {part.what}{_add_fix(part.fix)}"
            for number, part in enumerate(missing, start=1)
        ),
    ]


def _add_fix(command: str) -> str:
    return f"; {command}" if command else ""


def _to_json(
    checks: Iterable[Check],
    *,
    kinds: Sequence[Need],
    needs: Sequence[tuple[str, Sequence[Need]]],
    files: Sequence[tuple[str, Sequence[Verdict]]],
) -> dict[str, Any]:
    return {
        "checks": [dataclasses.asdict(check) for check in checks],
        "kinds": [_need_to_json(need) for need in kinds],
        "suites": [
            {"suite": path, "gates": [_need_to_json(need) for need in found]}
            for path, found in needs
        ],
        "files": [
            {
                "path": path,
                "findings": [
                    {
                        "code": verdict.code,
                        "broken": verdict.status is Status.FAIL,
                        "what": verdict.headline,
                        "fix": verdict.next_step,
                    }
                    for verdict in found
                ],
            }
            for path, found in files
        ],
    }


def _need_to_json(need: Need) -> dict[str, Any]:
    return {**dataclasses.asdict(need), "measurable": need.is_there}
