"""What the gates of a suite measured over time: one line of JSON a run, in `history.jsonl`.

The file stands beside the baselines of its suite. Lines are only ever added, each says all of its
run, and their order does not matter: git joins two branches by taking the lines of both
(`merge=union`), and what is read is put in order by time.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pytest_quantgate import bounds
from pytest_quantgate.errors import BaselineError, StoredValueError
from pytest_quantgate.evidence.codec import from_json, shorten, to_json
from pytest_quantgate.store.baselines import Store, write_atomically
from pytest_quantgate.store.records import AnyRecord, TimedRecord
from pytest_quantgate.untrusted import parse_json, read_regular

FILE = "history.jsonl"
#: What tells git to keep the lines of both sides.
ATTRIBUTES = f"{FILE} merge=union\n"

#: What is kept of a gate's figures, by their names.
KEPT = re.compile(
    r"samples|(fp16|quantized)_value|drop_points|\w+_(sqnr_db|cosine)|"
    r"(checkpoint|onnx_file)_bytes|(\w+_)?quantized_\w+_bytes|((p50|p90|p99|offline)_)?latency_ratio"
)
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_COMMIT = re.compile(r"[0-9a-f]{0,64}")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One run: when (UTC), at which revision (empty: unknown), and figures by gate and name."""

    time: str
    commit: str
    figures: Mapping[str, Mapping[str, float]]

    def check(self) -> None:
        """Raise ValueError for what no run can have written."""
        if not _TIME.fullmatch(self.time):
            raise ValueError(f"time {shorten(self.time)} is none")
        if not _COMMIT.fullmatch(self.commit):
            raise ValueError(f"commit {shorten(self.commit)} is none")
        for gate, figures in self.figures.items():
            for name, value in figures.items():
                if not gate.isprintable() or not KEPT.fullmatch(name):
                    raise ValueError(f"{shorten(gate)} {shorten(name)} is no figure of a gate")
                if not math.isfinite(value):
                    raise ValueError(f"{gate} {name} is {value}")


def keep_figures(gates: Iterable[tuple[str, Mapping[str, object]]]) -> dict[str, dict[str, float]]:
    """Return what a history keeps of the figures of gates, by their names."""
    found: dict[str, dict[str, float]] = {}
    for gate, figures in gates:
        kept = {
            name: float(value)
            for name, value in figures.items()
            if KEPT.fullmatch(name)
            and isinstance(value, (int, float))
            and not isinstance(value, bool)
            and math.isfinite(value)
        }
        if kept.keys() - {"samples"}:
            found[gate] = found.get(gate, {}) | kept
    return found


def figures_of_record(record: AnyRecord) -> tuple[str, dict[str, float]]:
    """Return the gate that a baseline is of, and its figures."""
    gate = f"{record.kind}[{record.key}]"
    if isinstance(record, TimedRecord):
        name = "p99_latency_ratio" if record.kind == "load" else "latency_ratio"
        return gate, {name: record.quantized_ms / record.fp16_ms}
    fp16, quantized = record.fp16.value, record.accepted.value
    return gate, {
        "samples": record.accepted.samples,
        "fp16_value": fp16,
        "quantized_value": quantized,
        "drop_points": (fp16 - quantized) * 100,
    }


def history_path(store: Store, suite: str) -> Path:
    """Return where the history of a suite lives; raises BaselineError as `Store.path`."""
    return store.folder(suite) / FILE


def read_history(store: Store, suite: str) -> tuple[Entry, ...]:
    """Return the entries of a suite by time, the last one of each revision; none without a file.

    Raises BaselineError, naming the line and the mend, for a damaged one.
    """
    path = history_path(store, suite)
    if not _is_there(path, store=store):
        return ()
    found: dict[str, Entry] = {}
    for entry in sorted(_read_lines(path), key=lambda entry: (entry.time, to_line(entry))):
        name = entry.commit or entry.time
        found.pop(name, None)  # the later run of a revision takes the later place
        found[name] = entry
    return tuple(found.values())


def to_line(entry: Entry) -> str:
    """Return an entry as the line of a file, in its one form."""
    return json.dumps(to_json(entry), sort_keys=True, allow_nan=False)


def append_entry(store: Store, suite: str, entry: Entry) -> tuple[Path, ...]:
    """Add a run to the history of a suite and return the files written; none for one that it has.

    Raises BaselineError, what was there is unchanged then: for a damaged file, one that leads out
    of the store, or that cannot be written.
    """
    entry.check()
    path, line = history_path(store, suite), to_line(entry)
    there = _is_there(path, store=store)
    lines = [to_line(known) for known in _read_lines(path)] if there else []
    if line in lines:
        return ()
    written = []
    attributes = store.root / ".gitattributes"
    if not attributes.exists():
        write_atomically(attributes, ATTRIBUTES, root=store.root, project=store.project)
        written.append(attributes)
    text = "".join(f"{each}\n" for each in [*lines, line])
    write_atomically(path, text, root=store.root, project=store.project)
    return (path, *written)


def _is_there(path: Path, *, store: Store) -> bool:
    """Return whether there is a history; raises BaselineError where it leads out of the store."""
    if not path.resolve().is_relative_to(store.root.resolve()):
        raise BaselineError(
            f"{path}: leads out of {store.root}: replace the link by the file itself"
        )
    return path.exists()


def _read_lines(path: Path) -> list[Entry]:
    try:
        text = read_regular(path, max_bytes=bounds.BASELINE_BYTES).decode("utf-8")
    except (OSError, ValueError) as error:
        raise BaselineError(f"{path}: cannot be read: {error}") from error
    found = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry: Entry = from_json(Entry, parse_json(line))
            entry.check()
        except (ValueError, StoredValueError) as error:
            marks = line.startswith(("<<<<<<<", "=======", ">>>>>>>", "|||||||"))
            mend = (
                f"keep the lines of both sides, and put {ATTRIBUTES.strip()!r} into .gitattributes"
                if marks
                else "restore the line with git, or delete it"
            )
            raise BaselineError(f"{path}:{number}: damaged history: {error}: {mend}") from error
        found.append(entry)
    return found
