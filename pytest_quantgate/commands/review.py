"""`quantgate review`: accept obtained results one by one, each beside what it replaces."""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from pytest_quantgate.commands.accept import add_conditions, keep_history, open_store
from pytest_quantgate.errors import BaselineError
from pytest_quantgate.store.baselines import (
    Store,
    list_obtained,
    prepare_obtained,
    read_any_record,
    read_obtained,
)
from pytest_quantgate.store.records import AnyRecord
from pytest_quantgate.text.words import count
from pytest_quantgate.text.wrapping import say

#: What may be answered, and what it leaves behind.
ANSWERS = {"a": "accepted", "r": "rejected", "s": "skipped", "q": "left"}

#: A rejected result stays beside where it was, under a name that no command proposes again.
REJECTED = ".rejected"


def add(commands: Any) -> None:
    parser = commands.add_parser(
        "review",
        help="accept obtained results one by one, beside what they replace",
        description="Show each obtained result beside the baseline that it would replace, and ask: "
        "accept (a), reject (r), skip (s) or quit (q). What may not become a baseline is said and "
        "cannot be accepted. Answers are read from a pipe too, a line each. The status is 0 where "
        "every result was accepted or rejected, else 1.",
    )
    parser.add_argument(
        "obtained",
        type=Path,
        metavar="OBTAINED",
        help="folder of obtained results, such as obtained, or an artifact of CI",
    )
    parser.add_argument("--reason", help="of every result that is accepted; asked for without it")
    add_conditions(parser)


def run(parsed: argparse.Namespace, *, environ: Mapping[str, str]) -> int:
    store = open_store(parsed, environ=environ)
    paths = list_obtained(parsed.obtained)
    done: Counter[str] = Counter()
    for number, path in enumerate(paths, start=1):
        if not done["left"]:
            say(f"{number} of {len(paths)}: {path}")
        answer = "q" if done["left"] else _review(path, parsed, store=store, environ=environ)
        done[ANSWERS[answer]] += 1
    found = [f"{done[what]} {what}" for what in ANSWERS.values() if done[what]]
    say(f"{count(len(paths), 'result')}: {', '.join(found)}")
    return 1 if done["skipped"] or done["left"] else 0


def _review(
    path: Path,
    parsed: argparse.Namespace,
    *,
    store: Store,
    environ: Mapping[str, str],
) -> str:
    """Show one result and do what is answered; return the answer, `q` at the end of the input."""
    try:
        obtained = read_obtained(path, directory=parsed.obtained)
        _show(obtained, before=_find_baseline(obtained, store=store))
        # The reason is asked for where it is accepted: whether it may be does not hang on it.
        prepare_obtained(obtained, path=path, store=store, reason="?", new_data=parsed.new_data)
    except BaselineError as error:
        say(f"may not be accepted: {error}")
        answer = _ask("reject (r), skip (s) or quit (q)? ", "rsq")
    else:
        answer = _ask("accept (a), reject (r), skip (s) or quit (q)? ", "arsq")
    if answer == "r":
        _reject(path)
    if answer == "a":
        reason = parsed.reason or _read("reason, kept in the baseline: ")
        if not reason:
            say("no reason: skipped")
            return "s"
        _accept(obtained, path, parsed, store=store, reason=reason, environ=environ)
    return answer


def _find_baseline(record: AnyRecord, *, store: Store) -> AnyRecord | None:
    return read_any_record(store.path_of(record), root=store.root)


def _show(obtained: AnyRecord, *, before: AnyRecord | None) -> None:
    from pytest_quantgate.comparison.baseline_files import compare_records
    from pytest_quantgate.comparison.render import render_text

    name = f"{obtained.suite} {obtained.key}"
    records: list[Mapping[str, AnyRecord]] = [{}, {name: obtained}]
    if before is not None:
        # Its reason is still to be given.
        records = [{name: before}, {name: replace(obtained, reason=before.reason)}]
    for line in render_text(
        compare_records(*records, labels=("baseline", "obtained"))
    ).splitlines():
        say(line)


def _accept(
    obtained: AnyRecord,
    path: Path,
    parsed: argparse.Namespace,
    *,
    store: Store,
    reason: str,
    environ: Mapping[str, str],
) -> None:
    record = prepare_obtained(
        obtained, path=path, store=store, reason=reason, new_data=parsed.new_data
    )
    say(f"baseline written: {store.write(record)}")
    keep_history(record.suite, [record], store=store, environ=environ)


def _reject(path: Path) -> None:
    names = (f"{path.name}{REJECTED}{number or ''}" for number in itertools.count())
    target = next(place for name in names if not os.path.lexists(place := path.with_name(name)))
    path.rename(target)
    say(f"kept as {target}")


def _ask(question: str, answers: str) -> str:
    """Return one of some letters; `q` where the input ends."""
    while True:
        answer = _read(question)
        if answer is None:
            return "q"
        if answer[:1].lower() in answers and answer:
            return answer[0].lower()
        say(f"{answer!r} is none of {', '.join(answers)}")


def _read(question: str) -> str | None:
    """Return a line of the input without its ends, None where there is no more."""
    sys.stdout.write(question)
    sys.stdout.flush()
    line = sys.stdin.readline()
    if not sys.stdin.isatty():
        sys.stdout.write("\n")  # nobody's Enter ended the line of the question
    return line.strip() if line else None
