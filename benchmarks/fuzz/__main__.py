"""Feeds damaged and hostile input to every reader of a file: 100,000 cases.

    python -m benchmarks.fuzz [--guided] [--cases N] [--seed N] [--only READER] [--keep DIR]

The answer to whatever stands in a file must be a value or one of our own errors: never another
exception, never many seconds, never much memory. The cases are good files spoiled by cuts,
doublings, foreign bytes, hostile tokens and, in JSON, values of other kinds at any place; with
--guided Atheris looks for what reaches new code. Prints a table; what breaks a reader is written to
DIR.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from pathlib import Path


def main() -> int:
    """Return 0 where no case broke a reader."""
    from benchmarks.fuzz.guided import fuzz_guided
    from benchmarks.fuzz.seeded import fuzz_seeded
    from benchmarks.fuzz.targets import TARGETS

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.fuzz",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--guided", action="store_true", help="by coverage, with Atheris")
    parser.add_argument("--cases", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=TARGETS, help="one reader", metavar="READER")
    parser.add_argument("--keep", type=Path, help="where cases that break a reader are written")
    parser.add_argument("--corpus", type=Path, help="with --guided: go on from what is here")
    chosen = parser.parse_args()
    names = [chosen.only] if chosen.only else list(TARGETS)
    keep = chosen.keep.resolve() if chosen.keep else None
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        if chosen.guided:
            findings = [
                result.findings
                for result in fuzz_guided(
                    names=names,
                    cases=chosen.cases,
                    seed=chosen.seed,
                    keep=keep or Path.cwd() / "fuzz-findings",
                    corpus=(chosen.corpus or scratch / "corpus").resolve(),
                    scratch=scratch,
                )
            ]
        else:
            findings = [
                dict(tally.findings)
                for tally in fuzz_seeded(
                    names=names, cases=chosen.cases, seed=chosen.seed, keep=keep, scratch=scratch
                )
            ]
    broken = sum((Counter(found) for found in findings), Counter[str]())
    for text, count in broken.most_common(50):
        print(f"{count:>6}  {text}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
