"""The guided driver: Atheris (libFuzzer) mutates what reaches new branches of the readers.

Each reader has a process of its own, in which our package and the YAML parser are instrumented
while they are imported; libFuzzer ends a process after its last case, and so it would at a hang
or a rise of memory. The seeded driver's seeds are its corpus, its hostile tokens the dictionary;
half of the mutations are libFuzzer's, the others those of the seeded driver.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import resource
import subprocess
import sys
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Any

from benchmarks.fuzz.spoiling import TOKENS, spoil, spoil_values

#: A case may take so long on a busy machine, in s; libFuzzer ends the process then.
LIMIT_S = 300
#: And so much more memory than the reader has after its seeds, in MiB.
LIMIT_MIB = 2048

INSTRUMENTED = ("pytest_quantgate", "yaml")

#: How libFuzzer says where it is: `#1000 DONE cov: 812 ft: 2301 corp: 120/48Kb ... rss: 9Mb`
_STATUS = re.compile(
    r"^#\d+\s+(\w+)\s+cov: (\d+) ft: \d+ corp: (\d+)/.* rss: (\d+)Mb", re.MULTILINE
)
_LONGEST_WORD = 64  # of libFuzzer's dictionary

MISSING = (
    "Atheris is not installed: pip install 'pytest-quantgate[fuzz]' (Linux on x86-64 and Python "
    "3.11 to 3.14 have wheels); without it the seeded cases run: leave out --guided"
)


@dataclass(frozen=True, kw_only=True)
class Guided:
    """What one reader's process came to; edges are those of the instrumented code."""

    name: str
    cases: int
    outcomes: dict[str, int]
    slowest_s: float
    findings: dict[str, int]
    seed_edges: int
    edges: int
    corpus: int
    rise_mb: int


def fuzz_guided(
    *, names: list[str], cases: int, seed: int, keep: Path, corpus: Path, scratch: Path
) -> list[Guided]:
    """Feed each of the readers its share of `cases`, print a line for each, return what came.

    Raises SystemExit, saying how to get it, where Atheris is not installed.
    """
    if util.find_spec("atheris") is None:
        raise SystemExit(MISSING)
    print(f"{'reader':<20}{'cases':>8}{'taken':>8}{'refused':>9}{'BROKEN':>8}{'slowest s':>11}"
          f"{'rise MB':>9}{'edges, seeds':>14}{'all':>7}{'corpus':>8}")  # fmt: skip
    results = []
    for name in names:
        result = _run(name, cases=cases, seed=seed, keep=keep, corpus=corpus, scratch=scratch)
        found = result.outcomes
        print(f"{name:<20}{result.cases:>8}{found.get('taken', 0):>8}{found.get('refused', 0):>9}"
              f"{found.get('BROKEN', 0):>8}{result.slowest_s:>11.2f}{result.rise_mb:>9}"
              f"{result.seed_edges:>14}{result.edges:>7}{result.corpus:>8}",
              flush=True)  # fmt: skip
        results.append(result)
    return results


def _run(name: str, *, cases: int, seed: int, keep: Path, corpus: Path, scratch: Path) -> Guided:
    """Run one reader's process and return what it and libFuzzer said."""
    tally_path = scratch / f"{name.replace(' ', '-')}.json"
    arguments = [
        "--reader", name, "--cases", str(cases), "--seed", str(seed), "--keep", str(keep),
        "--corpus", str(corpus), "--scratch", str(scratch), "--tally", str(tally_path),
    ]  # fmt: skip
    process = subprocess.run(
        [sys.executable, "-m", "benchmarks.fuzz.guided", *arguments],
        env={**os.environ, "PYTHONHASHSEED": "0"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    said = process.stdout
    states = [match.groups() for match in _STATUS.finditer(said)]
    if not states or not tally_path.exists():
        raise SystemExit(f"{name}: the fuzzer did not run:\n{said[-2000:]}")
    tally = json.loads(tally_path.read_text())
    findings = dict(tally["findings"])
    outcomes = dict(tally["outcomes"])
    if process.returncode != 0:
        # A hang or a rise of memory: libFuzzer has written the case and ended the process.
        died = re.search(r"^==\d+== ?(?:ERROR: libFuzzer: )?(.*)$", said, re.MULTILINE)
        findings[f"ended with status {process.returncode}: {died[1] if died else said[-300:]}"] = 1
        outcomes["BROKEN"] = outcomes.get("BROKEN", 0) + 1
    first = next((state for state in states if state[0] == "INITED"), states[0])
    return Guided(
        name=name,
        cases=sum(outcomes.values()),
        outcomes=outcomes,
        slowest_s=tally["slowest_s"],
        findings=findings,
        seed_edges=int(first[1]),
        edges=int(states[-1][1]),
        corpus=int(states[-1][2]),
        rise_mb=max(int(state[3]) for state in states) - int(first[3]),
    )


# -- in the process of one reader ------------------------------------------------------------------


def main() -> None:
    """Fuzz one reader; never returns, libFuzzer ends the process."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz.guided")
    for name, kind in (
        ("reader", str), ("cases", int), ("seed", int), ("keep", Path), ("corpus", Path),
        ("scratch", Path), ("tally", Path),
    ):  # fmt: skip
        parser.add_argument(f"--{name}", type=kind, required=True)
    chosen = parser.parse_args()
    import atheris

    with atheris.instrument_imports(include=list(INSTRUMENTED)):
        from benchmarks.fuzz.tally import Tally, limit_cpu_time
        from benchmarks.fuzz.targets import make_target

        target = make_target(chosen.reader, scratch=chosen.scratch)
    tally = Tally(target=target, keep=chosen.keep)
    share = round(chosen.cases * target.guided_share)
    started_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10

    def write_tally() -> None:
        found: dict[str, Any] = {
            "outcomes": tally.outcomes,
            "findings": tally.findings,
            "slowest_s": tally.slowest_s,
        }
        chosen.tally.write_text(json.dumps(found))

    def feed(data: bytes) -> None:
        broken = tally.outcomes["BROKEN"]
        tally.feed(data)
        # libFuzzer ends the process without a word to Python.
        if tally.outcomes.total() % 10 == 0 or tally.outcomes["BROKEN"] > broken:
            write_tally()

    def mutate(data: bytes, max_bytes: int, seed: int) -> bytes:
        chance = random.Random(seed)
        if chance.random() < 0.5:
            return bytes(atheris.Mutate(data, max_bytes))
        if target.form != "bytes" and chance.random() < 0.7:
            try:
                # A YAML bomb would go off here.
                good = bytes(data) if target.form == "json" else chance.choice(target.seeds)
                spoiled = spoil_values(good, form=target.form, chance=chance)
            except (ValueError, RecursionError):  # it is no JSON any more
                good = chance.choice(target.seeds)
                spoiled = spoil_values(good, form=target.form, chance=chance)
        else:
            spoiled = spoil(bytes(data), chance=chance, others=list(target.seeds))
        return spoiled[:max_bytes]

    folder = chosen.corpus / target.name.replace(" ", "-")
    folder.mkdir(parents=True, exist_ok=True)
    for index, data in enumerate(target.seeds):
        (folder / f"seed-{index}").write_bytes(data)
    words = chosen.scratch / "words.dict"
    words.write_text("".join(list_words()))
    chosen.keep.mkdir(parents=True, exist_ok=True)
    write_tally()
    limit_cpu_time()
    atheris.Setup(
        [
            sys.argv[0],
            f"-runs={share}",
            # 0 is libFuzzer's word for a seed of its own choice.
            f"-seed={chosen.seed + 1}",
            f"-max_len={max(4096, 2 * max(len(data) for data in target.seeds))}",
            f"-timeout={LIMIT_S}",
            f"-rss_limit_mb={started_mb + LIMIT_MIB}",
            f"-malloc_limit_mb={LIMIT_MIB}",
            f"-dict={words}",
            f"-artifact_prefix={chosen.keep}/{folder.name}-",
            "-len_control=0",
            "-mutate_depth=2",  # five changes at once leave little that is read to its end
            "-print_final_stats=1",
            str(folder),
        ],
        feed,
        custom_mutator=mutate,
    )
    atheris.Fuzz()


def list_words() -> list[str]:
    """Return the lines of a dictionary for libFuzzer, every byte written in hex."""
    words = sorted({token for token in TOKENS if 0 < len(token) <= _LONGEST_WORD})
    return ['"' + "".join(f"\\x{byte:02x}" for byte in word) + '"\n' for word in words]


if __name__ == "__main__":
    main()
