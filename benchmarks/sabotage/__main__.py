"""`python -m benchmarks.sabotage`: run the catalogue, print the result, write report.md.

With `--diff` it asks `quantgate diff` what was changed in every entry, and writes diff.md instead;
with `--handed` it spoils files of other tools, as handed.yaml says, and writes handed.md.
"""

from __future__ import annotations

import argparse
import re
import sys
import tempfile
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path

from benchmarks.sabotage.bench import Bench, Entry
from benchmarks.sabotage.catalogue import CATALOGUE
from benchmarks.sabotage.differences import Difference, compare_entries, describe_failure
from benchmarks.sabotage.differences import render_page as render_differences
from benchmarks.sabotage.families import FAMILIES
from benchmarks.sabotage.families_report import Runs, render_families
from benchmarks.sabotage.handed import HandedBench, read_table
from benchmarks.sabotage.handed import render_page as render_handed
from benchmarks.sabotage.releases import Releases
from benchmarks.sabotage.report import (
    describe,
    render_lines,
    render_page,
)
from benchmarks.sabotage.rivals import find_quant_regress
from benchmarks.sabotage.run import (
    Result,
    is_right,
    read_results,
    run_entries,
    run_without_rivals,
)

REPORT = Path(__file__).with_name("report.md")
OTHER_FAMILIES = Path(__file__).parents[1] / "families.md"
DIFFERENCES = Path(__file__).with_name("diff.md")
HANDED = Path(__file__).with_name("handed.md")
PACKAGES = ("torch", "transformers", "nvidia-modelopt", "onnxruntime-gpu", "tensorrt-rtx-cu12")


def main(arguments: Sequence[str] | None = None) -> int:
    """Return 0 where every sabotage is caught and named, or explained, and no control alarms.

    With `--diff`: where the true change of every entry is named, and nothing else of a control.
    """
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sabotage", description=__doc__)
    parser.add_argument("--only", metavar="REGEX", default="", help="entries whose name matches")
    parser.add_argument(
        "--folder", type=Path, help="keep what is built and found here, and go on where it ended"
    )
    parser.add_argument("--verbose", action="store_true", help="say what each gate says")
    parser.add_argument(
        "--diff", action="store_true", help="ask quantgate diff what was changed in each entry"
    )
    parser.add_argument(
        "--families", nargs="*", choices=FAMILIES, help="run the entries of these (none named: all)"
    )
    parser.add_argument(
        "--again",
        action="store_true",
        help="with --families: run what was not named, and false alarms, once more",
    )
    parser.add_argument(
        "--handed", action="store_true", help="spoil files that teams hand over, and check them"
    )
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="sabotage-") as temporary:
        folder = options.folder or Path(temporary)
        if options.handed:
            return _check_handed(folder, only=options.only)
        if options.diff:
            return _compare(folder, only=options.only, verbose=options.verbose)
        if options.families is not None:
            names = options.families or list(FAMILIES)
            return _run_families(
                folder, names, only=options.only, verbose=options.verbose, again=options.again
            )
        entries = [e for e in CATALOGUE if re.search(options.only, e.title)]
        results = _run(Bench(folder), entries, verbose=options.verbose)
    for line in render_lines(results):
        print(line)
    if find_quant_regress():
        print(f"quant-regress was not asked: {find_quant_regress()}")
    if not options.only:
        page = render_page(results, versions=_versions())
        REPORT.write_text("\n".join(page), encoding="utf-8")
        print(f"written: {REPORT}")
    return int(not all(map(is_as_it_should_be, results)))


def is_as_it_should_be(result: Result) -> bool:
    """Return whether a sabotage is named or explained, or a control green."""
    if result.entry.is_control:
        return is_right(result)
    return result.named or bool(result.entry.principle or result.entry.finding)


def _check_handed(folder: Path, *, only: str) -> int:
    """Check every file of the table, print what is not as it should be, and write the page."""
    bench = HandedBench(folder, table=read_table())
    outcomes = bench.run_all(only=only)
    for outcome in outcomes:
        mark = "ok " if outcome.is_right else "?? "
        print(f"{mark}{outcome.title}: {', '.join(outcome.found.said) or 'nothing'}", flush=True)
    wrong = [outcome for outcome in outcomes if not outcome.is_right]
    print(f"{len(outcomes) - len(wrong)} of {len(outcomes)} files are named as they should be")
    if not only:
        HANDED.write_text("\n".join([*render_handed(outcomes), ""]), encoding="utf-8")
        print(f"written: {HANDED}")
    return int(bool(wrong))


def _compare(folder: Path, *, only: str, verbose: bool) -> int:
    """Release every entry, ask the command about each, print and write what it says."""
    bench = Bench(folder)
    releases = Releases(bench)
    entries = [e for e in CATALOGUE if e.compared and re.search(only, e.title)]
    _run(bench, entries, verbose=False, releases=releases)
    found: list[Difference] = []
    for difference in compare_entries(releases, entries):
        found.append(difference)
        if not difference.is_named:
            print(f"?? {describe_failure(difference)}", flush=True)
        elif verbose:
            print(f"ok {difference.entry.title}", flush=True)
        if verbose:
            for said in difference.said:
                print("".join(f"        {line}\n" for line in said.text.splitlines()), end="")
    named = sum(difference.is_named for difference in found)
    print(f"quantgate diff names the true change of {named} of {len(found)} entries")
    if not only:
        text = "\n".join(render_differences(found))
        DIFFERENCES.write_text(text, encoding="utf-8")
        print(f"written: {DIFFERENCES}")
    return int(named < len(found))


def _run_families(
    folder: Path, names: Sequence[str], *, only: str, verbose: bool, again: bool
) -> int:
    """Run the entries that make sense for each family, and write the page of all that are kept."""
    found: dict[str, Runs] = {}
    for name, family in FAMILIES.items():
        bench = family.make_bench(folder / name)
        entries = {e.title: e for e in family.revise_entries() if re.search(only, e.title)}
        frozen = {e.title: e for e in family.list_entries() if e.title in entries}
        if name in names:
            results = run_without_rivals(bench, entries.values(), again=again)
            _show(results, count=len(entries), verbose=verbose)
        first = read_results(bench.root, frozen, first=True)
        found[name] = Runs(
            first={title: first[title] for title in entries if title in first},
            last=read_results(bench.root, entries),
            missing=tuple(title for title in entries if title not in first),
        )
    lines = list(render_families(found, versions=_versions()))
    print("\n".join(lines))
    if not only:
        OTHER_FAMILIES.write_text("\n".join(lines) + "\n", encoding="utf-8")
        print(f"written: {OTHER_FAMILIES}")
    return int(not all(is_right(r) for runs in found.values() for r in runs.last.values()))


def _run(
    bench: Bench, entries: Sequence[Entry], *, verbose: bool, releases: Releases | None = None
) -> list[Result]:
    found = run_entries(bench, entries, releases=releases)
    return _show(found, count=len(entries), verbose=verbose)


def _show(found: Iterable[Result], *, count: int, verbose: bool) -> list[Result]:
    """Print each result as it comes, and return them all."""
    results: list[Result] = []
    for number, result in enumerate(found, start=1):
        results.append(result)
        mark = "ok " if is_as_it_should_be(result) else "?? "
        said = result.crash or ", ".join(result.red) or "green"
        print(
            f"{mark}{number:3d}/{count} {result.entry.title}: {said} ({result.seconds:.1f} s)",
            flush=True,
        )
        if verbose or mark == "?? ":
            for name, verdict in result.verdicts.items():
                print(f"        {name}: {describe(verdict)}")
    minutes = sum(result.seconds for result in results) / 60
    print(f"{len(results)} entries in {minutes:.0f} min")
    return results


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    sys.exit(main())
