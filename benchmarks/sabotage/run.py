"""Puts every entry of the catalogue before the gates and the rivals."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.sabotage.bench import Bench, Entry, judge_kinds
from benchmarks.sabotage.releases import Releases
from benchmarks.sabotage.rivals import Answer, ask_all
from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.run.case import Case
from pytest_quantgate.selftest.sabotage import whole_text


@dataclass(frozen=True, kw_only=True)
class Result:
    """One line of the table: what each gate said (by its name), and each rival.

    `crash` is the error that ended the entry before a verdict: nothing was caught then.
    """

    entry: Entry
    verdicts: Mapping[str, Verdict]
    answers: Mapping[str, Answer]
    seconds: float
    crash: str = ""

    @property
    def red(self) -> tuple[str, ...]:
        """The gates that said no; what was not measured is no answer."""
        return tuple(
            name
            for name, verdict in self.verdicts.items()
            if verdict.status not in (Status.PASS, Status.NOT_MEASURED)
        )

    @property
    def unmeasured(self) -> tuple[str, ...]:
        return tuple(
            name for name, verdict in self.verdicts.items() if verdict.status is Status.NOT_MEASURED
        )

    @property
    def namers(self) -> tuple[str, ...]:
        """The gates that are red, should be, and say the true cause."""
        code, cause = self.entry.code, self.entry.cause
        return tuple(
            name
            for name in self.red
            if kind_of(name) in self.entry.gates
            and code in (self.verdicts[name].code, "")
            and re.search(cause, whole_text(self.verdicts[name]))
        )

    @property
    def caught(self) -> bool:
        return bool(self.red)

    @property
    def named(self) -> bool:
        return bool(self.namers)


def is_right(result: Result) -> bool:
    """Return whether a sabotage is named, or a control measured by all gates and green."""
    if result.entry.is_control:
        return not (result.red or result.unmeasured or result.crash)
    return result.named


def kind_of(gate_name: str) -> str:
    return gate_name.partition("[")[0]


def run_entries(
    bench: Bench,
    entries: Iterable[Entry],
    *,
    releases: Releases | None = None,
) -> Iterator[Result]:
    """Yield the result of each entry; one that is kept in the bench's folder is not run again.

    With `releases`, what a reviewer gets of each is kept there too.
    """
    kept = {entry.title: entry for entry in entries}
    found = read_results(bench.root, kept)
    for entry in kept.values():
        if entry.title in found and (releases is None or releases.has(entry.title)):
            yield found[entry.title]
            continue
        started = time.perf_counter()
        if releases is not None:
            releases.good  # noqa: B018 (before the copies of it that an entry makes)
        made = entry.make(bench)
        verdicts = judge(made, entry=entry)
        answers = ask_all(made, good=bench.good, stage=entry.shipped)
        if releases is not None:
            releases.publish(entry.title, case=made, verdicts=verdicts)
        result = Result(
            entry=entry,
            verdicts=verdicts,
            answers=answers,
            seconds=time.perf_counter() - started,
        )
        keep_result(bench.root, result)
        yield result


def run_without_rivals(
    bench: Bench, entries: Iterable[Entry], *, again: bool = False
) -> Iterator[Result]:
    """Yield the result of each entry, of the gates alone: other tools are asked where the suite has
    a task.

    An error that ends an entry is its result, and the others follow. What is kept in the bench's
    folder is not run again; with `again`, what was not right is.
    """
    kept = {entry.title: entry for entry in entries}
    found = read_results(bench.root, kept)
    for entry in kept.values():
        if entry.title in found and not (again and not is_right(found[entry.title])):
            yield found[entry.title]
            continue
        started = time.perf_counter()
        verdicts, crash = {}, ""
        try:
            verdicts = judge(entry.make(bench), entry=entry)
        except Exception as error:  # noqa: BLE001 (whatever it is, it is this entry's result)
            crash = f"{type(error).__name__}: {error}"
        seconds = time.perf_counter() - started
        result = Result(entry=entry, verdicts=verdicts, answers={}, seconds=seconds, crash=crash)
        keep_result(bench.root, result)
        yield result


RESULTS = "results.jsonl"


def keep_result(root: Path, result: Result) -> None:
    """Add a result to those that are kept in a folder, one line of JSON each."""
    line = {
        "entry": result.entry.title,
        "seconds": result.seconds,
        "crash": result.crash,
        "verdicts": {
            name: {**vars(verdict), "status": verdict.status.value, "figures": {}}
            for name, verdict in result.verdicts.items()
        },
        "answers": {name: vars(answer) for name, answer in result.answers.items()},
    }
    with (root / RESULTS).open("a", encoding="utf-8") as out:
        out.write(json.dumps(line) + "\n")


def read_results(
    root: Path, entries: Mapping[str, Entry], *, first: bool = False
) -> dict[str, Result]:
    """Return the kept results of these entries by their titles; the last one of each counts, or
    the first one."""
    path = root / RESULTS
    if not path.exists():
        return {}
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        data = json.loads(line)
        if data["entry"] not in entries or (first and data["entry"] in found):
            continue
        verdicts = {
            name: Verdict(
                **{
                    **plain,
                    "status": Status(plain["status"]),
                    "evidence": tuple(plain["evidence"]),
                    "other_codes": tuple(plain.get("other_codes", ())),
                }
            )
            for name, plain in data["verdicts"].items()
        }
        found[data["entry"]] = Result(
            entry=entries[data["entry"]],
            verdicts=verdicts,
            answers={name: Answer(**plain) for name, plain in data["answers"].items()},
            seconds=data["seconds"],
            crash=data.get("crash", ""),
        )
    return found


def judge(case: Case, *, entry: Entry) -> dict[str, Verdict]:
    """Return the verdicts of the gates that an entry is put before."""
    return judge_kinds(case, entry.judged)
