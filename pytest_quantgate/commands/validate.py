"""`quantgate validate`: check suite files without running anything."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_quantgate.errors import NotMeasured, QuantGateError, SuiteError
from pytest_quantgate.text.wrapping import say

if TYPE_CHECKING:
    from pytest_quantgate.commands.suite_checks import Findings
    from pytest_quantgate.evidence.verdict import Verdict
    from pytest_quantgate.suite.specs import Suite

EXAMPLES = """\
examples:
  quantgate validate suites/                        # every *.quantgate.yaml below
  quantgate validate suites/clip.quantgate.yaml
  quantgate validate release.quantgate.yaml         # what quantgate conclude is given
  quantgate validate --deep suites/                 # do the model, its files and the data fit?

Beyond the format, names are checked: recipes, data sets, patterns, variables. A note is no error.
With --deep the model's files are checked against one another, and class names and templates with
its tokenizer; then one calibration pair runs through FP16, which takes some seconds.
The status is 0 where every suite is valid, else 1.
"""


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "validate",
        help="check suite files without running anything",
        epilog=EXAMPLES,
    )
    parser.add_argument("suites", nargs="+", type=Path, metavar="SUITE", help="file or folder")
    parser.add_argument("--deep", action="store_true", help="check files, and run one pair in FP16")


def run(parsed: argparse.Namespace, *, environ: Mapping[str, str]) -> int:
    from pytest_quantgate.commands.suite_checks import check_suite
    from pytest_quantgate.release.spec import load_release
    from pytest_quantgate.suite.load import load_suite
    from pytest_quantgate.suite.names import is_release
    from pytest_quantgate.text.words import count

    invalid = 0
    for argument in parsed.suites:
        try:
            paths = find_suites([argument])
        except QuantGateError as error:
            say(str(error), error=True)
            invalid += 1
            continue
        for path in paths:
            try:
                if is_release(path):
                    release = load_release(path)
                    shown = count(len(release.suites), "suite")
                    say(f"{path}: valid (a release of {shown})")
                    continue
                suite = load_suite(path, relative_to=Path.cwd())
                found = check_suite(suite, environ=environ)
                if parsed.deep and not found.errors:
                    found = look_deeper(suite, found=found, environ=environ)
            except QuantGateError as error:
                code = f" [{error.code}]" if error.code else ""
                say(f"{error}{code}", error=True)
                invalid += 1
                continue
            for problem in found.errors:
                say(problem, error=True)
            if found.errors:
                invalid += 1
            else:
                say(f"{path}: valid ({suite.label})")
            for note in (*found.notes, *_note_old_baselines(suite)):
                say(f"  note: {note}")
    return 1 if invalid else 0


def look_deeper(suite: Suite, *, found: Findings, environ: Mapping[str, str]) -> Findings:
    """Return findings with what the files show, and where they show nothing, what one pair does."""
    from pytest_quantgate.commands.suite_checks import Findings, check_files
    from pytest_quantgate.evidence.verdict import Status

    verdicts = check_files(suite, environ=environ)
    notes = list(found.notes)
    if all(verdict.status is not Status.FAIL for verdict in verdicts):
        try:
            verdicts = (*verdicts, *_run_one_pair(suite, environ=environ))
        except NotMeasured as error:
            notes.append(f"no pair was run: {error}")
    errors: list[str] = []
    for verdict in verdicts:
        line = f"{verdict.headline.removeprefix('sanity: ')} [{verdict.code}]"
        lines = errors if verdict.status is Status.FAIL else notes
        lines.append(f"{line}; {verdict.next_step}" if verdict.next_step else line)
    return Findings(errors=tuple(errors), notes=tuple(dict.fromkeys(notes)))


def _run_one_pair(suite: Suite, *, environ: Mapping[str, str]) -> tuple[Verdict, ...]:
    """Return what is wrong with one calibration pair that is decoded, prepared, tokenized and
    encoded; raises ModelError or DataError where one of these cannot be done."""
    from pytest_quantgate.encoders.loading import load_fp16
    from pytest_quantgate.gates.sanity import list_faults
    from pytest_quantgate.measure.sanity import measure_sanity
    from pytest_quantgate.tasks.registry import load_samples

    spec = suite.calibration
    for source, what in (("onnx", "ONNX files"), ("factory", "code")):
        if suite.model.source == source:
            raise NotMeasured(f"{suite.model.where}: the model is {what}, which only a run opens")
    pair = load_samples(
        spec.data, datasets=suite.datasets, samples=1, environ=environ, purpose="pairs", first=True
    )
    fp16 = load_fp16(suite.model, environ=environ)
    sanity = measure_sanity(fp16, pairs=pair, tasks=(), is_settled=lambda _: True)
    return list_faults(sanity, model=fp16.description, places={})


def _note_old_baselines(suite: Suite) -> Iterator[str]:
    """Yield what version 0.1 left in `baselines/` for a suite, and the command that moves it."""
    from pytest_quantgate.store.baselines import Store
    from pytest_quantgate.store.owners import is_below_root, list_baselines, suite_file

    store = Store(Path("baselines"), project=Path.cwd())
    for kind, key in list_baselines(suite) if is_below_root(suite.name) else ():
        old = store.find_old(suite.name, key, kind=kind)
        if old is not None:
            file = suite_file(suite.name)
            yield f"{old.path} is as version 0.1 wrote it: quantgate migrate {file}"


def find_suites(arguments: Iterable[Path]) -> list[Path]:
    """Return the suite files that are named, and all below the folders that are; sorted there.

    Raises SuiteError for a folder without any.
    """
    from pytest_quantgate.suite.names import SUFFIX, list_suites

    found: list[Path] = []
    for path in arguments:
        if not path.is_dir():
            found.append(path)
            continue
        below = list_suites(path)
        if not below:
            raise SuiteError(f"{path.as_posix()}: no *{SUFFIX} below this folder")
        found += below
    return list(dict.fromkeys(found))
