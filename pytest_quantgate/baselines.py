"""Stored results: one small canonical JSON file a gate, reviewed like code.

The record of a regression gate holds the outcome of every sample as one bit, so that tomorrow's
run is compared with yesterday's sample by sample; that of a latency gate with a limit in ms holds
the machine on which the limit is meant. Files are replaced whole or not at all.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import json
import math
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from datetime import date
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar, get_args

from pytest_quantgate.errors import BaselineError
from pytest_quantgate.fingerprint import Fingerprint
from pytest_quantgate.measure.latency import LatencyRun, Machine
from pytest_quantgate.measurement import Outcomes, StoredOutcomes
from pytest_quantgate.suite import Suite
from pytest_quantgate.untrusted import parse_json, read_regular
from pytest_quantgate.verdict import Status, Verdict

SCHEMA = 1
#: A record of a million samples has half a megabyte.
MAX_BYTES = 8 << 20
MAX_SAMPLES = 10**7
MAX_TEXT = 10_000
MAX_SLUG = 200  # file systems end at 255
#: A temporary file that is older than this belongs to a run that was killed.
LEFTOVER_SECONDS = 3600
_WRITING = ".writing-"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")
#: Control characters but tab and newline, and halves of characters that UTF-8 cannot hold.
_NO_TEXT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_DAYS = ("created", "updated", "first_accepted")
_DIGEST = re.compile(r"[0-9a-f]{64}")

#: The gates that have baselines; a file's name starts with one.
Kind = Literal["regression", "latency"]

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True)
class Record:
    """One stored baseline.

    `first` is the first variant that was ever accepted on this data; `accepted` the last.
    `created`, `updated`, `first_accepted` are ISO days; `first_reason` is why the first was taken.
    """

    kind: ClassVar[Kind] = "regression"

    suite: str
    key: str
    task: str
    metric: str
    fp16: StoredOutcomes
    accepted: StoredOutcomes
    first: StoredOutcomes
    fingerprint: Fingerprint
    versions: Mapping[str, str]
    created: str
    updated: str
    reason: str
    first_accepted: str
    first_reason: str

    def same_result(self, other: Record) -> bool:
        """Return whether two records hold the same outcomes of the same things."""
        mine, theirs = (
            (r.fp16, r.accepted, r.fingerprint, r.task, r.metric) for r in (self, other)
        )
        return mine == theirs

    def describe(self) -> str:
        """Return the values in a few words."""
        drop = (self.fp16.value - self.accepted.value) * 100
        return (
            f"FP16 {self.fp16.value:.2%}, quantized {self.accepted.value:.2%} on "
            f"{self.accepted.samples} samples (drop {drop:.2f} pp)"
        )

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain data, in the form of its file."""
        plain: dict[str, Any] = {"schema": SCHEMA}
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, StoredOutcomes):
                value = _outcomes_to_json(value)
            elif isinstance(value, Fingerprint):
                value = {f.name: getattr(value, f.name) for f in fields(value)}
            elif isinstance(value, Mapping):
                value = dict(value)
            plain[item.name] = value
        return plain

    @classmethod
    def from_json(cls, data: Any) -> Record:
        """Return the record in plain data; raises BaselineError saying what is wrong with it."""
        if not isinstance(data, dict):
            raise BaselineError("expected a mapping")
        if data.get("schema") != SCHEMA:
            raise BaselineError(
                f"schema {_short(data.get('schema'))} is not supported: this release reads {SCHEMA}"
            )
        names = {item.name for item in fields(cls)}
        _check_keys(set(data) - {"schema"}, names, "record")
        values: dict[str, Any] = {}
        for name in sorted(names):
            value = data[name]
            if name in ("fp16", "accepted", "first"):
                values[name] = _outcomes_from_json(value, name=name)
            elif name == "fingerprint":
                values[name] = _fingerprint_from_json(value)
            elif name == "versions":
                values[name] = _texts(value, name=name)
            elif name in _DAYS:
                values[name] = _day(value, name=name)
            else:
                values[name] = _text(value, name=name)
        record = cls(**values)
        if record.metric != "mean_per_class_recall":  # the others are shares of right samples
            for name in ("fp16", "accepted", "first"):
                _check_value(values[name], name=name)
        return record


def _check_value(outcomes: StoredOutcomes, *, name: str) -> None:
    """An edit of the value, or of the bits, shows in the other."""
    counted = sum(outcomes.correct) / outcomes.samples
    if abs(outcomes.value - counted) > 1e-9:
        raise BaselineError(
            f"{name}.value is {outcomes.value!r}, but {sum(outcomes.correct)} of "
            f"{outcomes.samples} outcomes are right: it was changed by hand"
        )


@dataclass(frozen=True, kw_only=True)
class LatencyRecord:
    """The machine on which a latency gate's limit in ms holds, and what was measured there.

    `fp16_ms` and `quantized_ms` are the medians over `rounds` of one batch, for the review:
    they are no limits. `created` and `updated` are ISO days.
    """

    kind: ClassVar[Kind] = "latency"

    suite: str
    key: str
    runtime: str
    machine: Machine
    rounds: int
    fp16_ms: float
    quantized_ms: float
    versions: Mapping[str, str]
    created: str
    updated: str
    reason: str

    def same_result(self, other: LatencyRecord) -> bool:
        """Return whether both name the same machine: its times differ from run to run."""
        return self.machine == other.machine

    def describe(self) -> str:
        """Return the machine and the times in a few words."""
        machine = self.machine
        where = machine.processor if machine.device == "cpu" else machine.device
        return f"FP16 {self.fp16_ms:.3g} ms, quantized {self.quantized_ms:.3g} ms on {where}"

    def to_json(self) -> dict[str, Any]:
        """Return the record as plain data, in the form of its file."""
        plain = {item.name: getattr(self, item.name) for item in fields(self)}
        machine = {item.name: getattr(self.machine, item.name) for item in fields(Machine)}
        versions = dict(self.versions)
        return {
            **plain,
            "schema": SCHEMA,
            "kind": self.kind,
            "machine": machine,
            "versions": versions,
        }

    @classmethod
    def from_json(cls, data: Any) -> LatencyRecord:
        """Return the record in plain data; raises BaselineError saying what is wrong with it."""
        if not isinstance(data, dict):
            raise BaselineError("expected a mapping")
        if data.get("schema") != SCHEMA:
            raise BaselineError(
                f"schema {_short(data.get('schema'))} is not supported: this release reads {SCHEMA}"
            )
        if data.get("kind") != cls.kind:
            raise BaselineError(f"kind is {_short(data.get('kind'))}, expected {cls.kind!r}")
        names = {item.name for item in fields(cls)}
        _check_keys(set(data) - {"schema", "kind"}, names, "record")
        values: dict[str, Any] = {}
        for name in sorted(names):
            value = data[name]
            if name == "machine":
                values[name] = _machine_from_json(value)
            elif name == "versions":
                values[name] = _texts(value, name=name)
            elif name == "rounds":
                values[name] = _count(value, name=name)
            elif name in ("fp16_ms", "quantized_ms"):
                values[name] = _duration(value, name=name)
            elif name in _DAYS:
                values[name] = _day(value, name=name)
            else:
                values[name] = _text(value, name=name)
        return cls(**values)


#: What a Store keeps.
AnyRecord = Record | LatencyRecord


def record_from_json(data: Any) -> AnyRecord:
    """Return the record in plain data, of the kind that it names; raises BaselineError."""
    if isinstance(data, dict) and data.get("kind") == LatencyRecord.kind:
        return LatencyRecord.from_json(data)
    return Record.from_json(data)


def canonical_text(record: AnyRecord) -> str:
    """Return the text of a record's file: sorted keys, two spaces, a newline at the end."""
    return json.dumps(record.to_json(), sort_keys=True, indent=2, allow_nan=False) + "\n"


def parse_record(text: str) -> Record:
    """Return the record in a file's text; raises BaselineError saying what is wrong with it."""
    return Record.from_json(_parse_data(text))


def _parse_data(text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError as error:
        raise BaselineError(f"not JSON: {error}") from error


def _parse_latency_record(text: str) -> LatencyRecord:
    return LatencyRecord.from_json(_parse_data(text))


def _parse_any_record(text: str) -> AnyRecord:
    return record_from_json(_parse_data(text))


@dataclass(frozen=True)
class Store:
    """The baselines under one folder: `<root>/<suite>/<kind>-<key>.json`.

    `read`, `regression` files alone, is what compares results; `read_latency` reads the others.
    """

    root: Path

    def path(self, suite: str, key: str, *, kind: Kind = "regression") -> Path:
        """Return where a record lives; raises BaselineError for a name that is no plain name."""
        if not _NAME.fullmatch(suite):
            raise BaselineError(
                f"suite name {suite!r} cannot be a folder name: use letters, digits, . _ -"
            )
        if kind == "latency" and not _NAME.fullmatch(key):  # a gate's key is a plain name
            raise BaselineError(f"key {_short(key)} is of no latency gate: no plain name")
        return self.root / suite / f"{kind}-{slug(key) if kind == 'regression' else key}.json"

    def path_of(self, record: AnyRecord) -> Path:
        """Return where a record belongs; raises as `path`."""
        return self.path(record.suite, record.key, kind=record.kind)

    def read(self, suite: str, key: str) -> Record | None:
        """Return a record, or None where there is none.

        Raises BaselineError, naming the file and the mend, for one that is damaged, of another
        format, of another suite or key, or that leads out of the store.
        """
        path = self.path(suite, key)
        record = read_record(path, root=self.root)
        _check_place(record, path=path, suite=suite, key=key)
        return record

    def read_latency(self, suite: str, key: str) -> LatencyRecord | None:
        """Return the record of a latency gate, or None where there is none; raises as `read`."""
        path = self.path(suite, key, kind="latency")
        record = _read_file(path, root=self.root, parse=_parse_latency_record)
        _check_place(record, path=path, suite=suite, key=key)
        return record

    def write(self, record: AnyRecord) -> Path:
        """Write a record atomically, return its path; raises BaselineError, the old one whole.

        What could not be read back, such as a reason with an escape sequence, is not written.
        """
        path = self.path_of(record)
        text = canonical_text(record)
        try:
            _parse_any_record(text)
        except BaselineError as error:
            raise BaselineError(f"cannot write {path}: {error}") from error
        write_atomically(path, text, root=self.root)
        return path

    def orphans(self, suites: Iterable[Suite]) -> tuple[Path, ...]:
        """Return the baselines that no gate of `suites` names, from the suites alone.

        Only files at the place and of the name of a baseline: a root that is set to a folder with
        other JSON files in it loses none of them.
        """
        named = set[Path]()
        for suite in suites:
            named |= {self.path(suite.name, gate.key) for gate in suite.gates.regression}
            named |= {
                self.path(suite.name, gate.key, kind="latency")
                for gate in suite.gates.latency
                if gate.max_latency_ms is not None
            }
        there = sorted(
            path for kind in get_args(Kind) for path in self.root.glob(f"*/{kind}-*.json")
        )
        return tuple(path for path in there if path not in named and not path.is_dir())

    def prune(self, suites: Iterable[Suite]) -> tuple[Path, ...]:
        """Delete the orphans and return what was deleted."""
        orphans = self.orphans(suites)
        for path in orphans:
            try:
                path.unlink()
                if not any(path.parent.iterdir()):
                    path.parent.rmdir()
            except OSError as error:
                raise BaselineError(f"cannot delete {path}: {error.strerror or error}") from error
        return orphans


def slug(key: str) -> str:
    """Return a key as part of a file name: readable, and no two keys share one.

    Letters, digits, `.`, `_`, `-` stay; `/` becomes `--`; other keys get a digest at the end.
    """
    plain = re.sub(r"[^A-Za-z0-9._@-]", "-", key.replace("/", "--")).replace("@", "-at-")
    exact = re.fullmatch(r"[A-Za-z0-9._]+(?:/[A-Za-z0-9._]+)+-[A-Za-z0-9_]+", key)
    if exact and "--" not in key and len(plain) <= MAX_SLUG:
        return plain
    digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{plain[:80]}-{digest[:8]}"


def _check_place(record: AnyRecord | None, *, path: Path, suite: str, key: str) -> None:
    if record is not None and (record.suite, record.key) != (suite, key):
        raise BaselineError(
            f"{path}: holds {record.suite} {record.key}, expected {suite} {key}: "
            f"restore the file with git checkout -- {path}"
        )


def read_record(path: Path, *, root: Path) -> Record | None:
    """Return the record in a file below `root`, None where there is none; raises BaselineError."""
    return _read_file(path, root=root, parse=parse_record)


def read_any_record(path: Path, *, root: Path) -> AnyRecord | None:
    """Return the record in a file below `root`, of whatever kind; as `read_record` otherwise."""
    return _read_file(path, root=root, parse=_parse_any_record)


def _read_file(path: Path, *, root: Path, parse: Callable[[str], Value]) -> Value | None:
    mend = (
        f"restore it with git checkout -- {path}, or make it anew with --quantgate-baselines=update"
    )
    try:
        if path.is_symlink() or (
            path.exists() and not path.resolve().is_relative_to(root.resolve())
        ):
            raise BaselineError(f"{path}: leads out of {root}: replace the link by the file itself")
        if not path.exists():
            return None
        if path.stat().st_size > MAX_BYTES:
            raise BaselineError(f"{path}: larger than {MAX_BYTES} bytes, no baseline is: {mend}")
        text = read_regular(path, max_bytes=MAX_BYTES).decode("utf-8")
    except UnicodeDecodeError as error:
        raise BaselineError(f"{path}: damaged baseline: not UTF-8: {mend}") from error
    except OSError as error:
        raise BaselineError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        return parse(text)
    except BaselineError as error:
        raise BaselineError(f"{path}: damaged baseline: {error}: {mend}") from error


def write_atomically(path: Path, text: str, *, root: Path) -> None:
    """Replace a file by `text` as a whole; raises BaselineError and leaves what was there."""
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.parent.resolve().is_relative_to(root.resolve()) or path.is_symlink():
            raise BaselineError(f"{path}: leads out of {root}: replace the link by the file itself")
        _sweep(path.parent)
        descriptor, temporary = tempfile.mkstemp(prefix=_WRITING, dir=path.parent)
        with os.fdopen(descriptor, "w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        # mkstemp makes it private; baselines are files of the repository like others.
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
        temporary = None
    except OSError as error:
        raise BaselineError(
            f"cannot write {path}: {error.strerror or error}; what was there is unchanged"
        ) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
    # The file is in its place already: where a folder cannot be synced, nothing has failed.
    with contextlib.suppress(OSError):
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _sweep(folder: Path) -> None:
    """Delete what killed runs left in a folder of baselines; a run that still writes is younger."""
    for path in folder.glob(f"{_WRITING}*"):
        with contextlib.suppress(OSError):  # gone meanwhile, or another user's
            if time.time() - path.stat().st_mtime > LEFTOVER_SECONDS:
                path.unlink()


def store_outcomes(outcomes: Outcomes) -> StoredOutcomes:
    """Return outcomes in the form that a baseline keeps: sorted by sample id."""
    order = sorted(range(len(outcomes.ids)), key=outcomes.ids.__getitem__)
    ids = "\n".join(outcomes.ids[i] for i in order)
    return StoredOutcomes(
        samples=len(order),
        ids_digest=hashlib.sha256(ids.encode()).hexdigest(),
        correct=tuple(outcomes.correct[i] for i in order),
        value=outcomes.value,
        data_digest=outcomes.data_digest,
    )


def next_record(
    record: Record | None,
    *,
    suite: str,
    key: str,
    task: str,
    metric: str,
    fp16: Outcomes,
    quantized: Outcomes,
    fingerprint: Fingerprint,
    versions: Mapping[str, str],
    today: date,
    reason: str,
) -> Record:
    """Return the record that accepting these outcomes would make.

    `first` stays what it was as long as the data is the same; on other data a comparison with it
    means nothing, and the first accepted one starts anew.
    """
    day = today.isoformat()
    accepted = store_outcomes(quantized)
    keeps = record is not None and record.first.data_digest == accepted.data_digest
    return Record(
        suite=suite,
        key=key,
        task=task,
        metric=metric,
        fp16=store_outcomes(fp16),
        accepted=accepted,
        first=record.first if record is not None and keeps else accepted,
        fingerprint=fingerprint,
        versions=dict(versions),
        created=record.created if record is not None else day,
        updated=day,
        reason=reason,
        first_accepted=record.first_accepted if record is not None and keeps else day,
        first_reason=record.first_reason if record is not None and keeps else reason,
    )


def next_latency_record(
    record: LatencyRecord | None,
    *,
    suite: str,
    key: str,
    run: LatencyRun,
    versions: Mapping[str, str],
    today: date,
    reason: str,
) -> LatencyRecord:
    """Return the record that accepting this run and its machine would make."""
    day = today.isoformat()
    return LatencyRecord(
        suite=suite,
        key=key,
        runtime=f"{run.runtime} {run.runtime_version}".strip(),
        machine=run.machine,
        rounds=run.rounds,
        fp16_ms=run.fp16.median_ms,
        quantized_ms=run.quantized.median_ms,
        versions=dict(versions),
        created=record.created if record is not None else day,
        updated=day,
        reason=reason,
    )


def refuse_unfit(record: Record, *, verdicts: tuple[Verdict, ...]) -> None:
    """Raise BaselineError for a result that must never become a baseline.

    That is a non-finite value, no samples, a coverage gate that is not green, or a result that a
    floor refuses (`verdicts` are those of the suite's coverage gate and of the same task's
    accuracy gate).
    """
    for name, outcomes in (("FP16", record.fp16), ("quantized", record.accepted)):
        if outcomes.samples == 0:
            raise BaselineError(f"{record.key}: {name} has no samples: not accepted as a baseline")
        if not math.isfinite(outcomes.value):
            raise BaselineError(f"{record.key}: {name} value is {outcomes.value}: not accepted")
    for verdict in verdicts:
        floor = verdict.figures.get("floor_status")
        if verdict.gate == "coverage":
            refuse_uncovered(record.key, verdict=verdict)
        if floor is not None and floor != Status.PASS.value:
            raise BaselineError(
                f"{record.key}: not accepted as a baseline, its result is not over the floor: "
                f"{verdict.headline}"
            )


def refuse_uncovered(key: str, *, verdict: Verdict) -> None:
    """Raise BaselineError for a coverage gate that is not green: nothing of it is kept."""
    if verdict.status is not Status.PASS:
        raise BaselineError(
            f"{key}: not accepted as a baseline, the coverage gate is "
            f"{verdict.status.value}: {verdict.headline}"
        )


def write_obtained(directory: Path, record: AnyRecord) -> Path:
    """Write a proposed record below `directory` and return its path; `accept_obtained` takes it."""
    return Store(directory).write(record)


def accept_obtained(directory: Path, *, store: Store, reason: str) -> tuple[Path, ...]:
    """Make every record below `directory` a baseline and return the files written.

    All are read and checked before the first is written: one that is damaged leaves everything as
    it was. Raises BaselineError.
    """
    if not reason.strip():
        raise BaselineError("accepting needs a reason: it is kept in the baseline")
    if not directory.is_dir():
        raise BaselineError(f"{directory} is no directory: nothing to accept")
    paths = sorted(directory.rglob("*.json"))
    if not paths:
        raise BaselineError(f"{directory} holds no obtained results: nothing to accept")
    records = []
    for path in paths:
        record = read_any_record(path, root=directory)
        assert record is not None
        if path.resolve() != Store(directory).path_of(record).resolve():
            raise BaselineError(
                f"{path}: holds {record.suite} {record.key}, which belongs elsewhere: "
                f"run the gate again to obtain it anew"
            )
        if isinstance(record, Record):
            refuse_unfit(record, verdicts=())
        store.path_of(record)
        records.append(replace(record, reason=reason.strip()))
    return tuple(store.write(record) for record in records)


def pack_bits(bits: tuple[bool, ...]) -> str:
    """Return one bit a sample, first sample in the highest bit of the first byte, in base64."""
    packed = bytearray((len(bits) + 7) // 8)
    for index, bit in enumerate(bits):
        if bit:
            packed[index // 8] |= 0x80 >> (index % 8)
    return base64.b64encode(bytes(packed)).decode("ascii")


def unpack_bits(text: str, *, count: int) -> tuple[bool, ...]:
    """Return `count` bits out of `pack_bits`; raises ValueError where there are more or fewer."""
    packed = base64.b64decode(text, validate=True)
    if len(packed) != (count + 7) // 8:
        raise ValueError(f"{len(packed)} bytes cannot hold {count} outcomes")
    if count % 8 and packed[-1] & (0xFF >> (count % 8)):
        raise ValueError(f"there are more than {count} outcomes")
    return tuple(bool(packed[i // 8] & (0x80 >> (i % 8))) for i in range(count))


def _outcomes_to_json(outcomes: StoredOutcomes) -> dict[str, Any]:
    return {
        "samples": outcomes.samples,
        "ids_digest": outcomes.ids_digest,
        "correct_bits": pack_bits(outcomes.correct),
        "value": outcomes.value,
        "data_digest": outcomes.data_digest,
    }


def _outcomes_from_json(data: Any, *, name: str) -> StoredOutcomes:
    if not isinstance(data, dict):
        raise BaselineError(f"{name}: expected a mapping")
    _check_keys(set(data), {"samples", "ids_digest", "correct_bits", "value", "data_digest"}, name)
    samples, value = data["samples"], data["value"]
    if type(samples) is not int or not 0 < samples <= MAX_SAMPLES:
        raise BaselineError(f"{name}.samples: {_short(samples)} is no number of samples")
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise BaselineError(f"{name}.value: {_short(value)} is not in [0, 1]")
    try:
        correct = unpack_bits(
            _text(data["correct_bits"], name=f"{name}.correct_bits"), count=samples
        )
    except (ValueError, binascii.Error) as error:
        raise BaselineError(f"{name}.correct_bits: {error}") from error
    return StoredOutcomes(
        samples=samples,
        ids_digest=_digest(data["ids_digest"], name=f"{name}.ids_digest"),
        correct=correct,
        value=float(value),
        data_digest=_digest(data["data_digest"], name=f"{name}.data_digest"),
    )


def _fingerprint_from_json(data: Any) -> Fingerprint:
    values = _texts(data, name="fingerprint")
    _check_keys(set(values), {f.name for f in fields(Fingerprint)}, "fingerprint")
    return Fingerprint(**{k: _digest(v, name=f"fingerprint.{k}") for k, v in values.items()})


def _machine_from_json(data: Any) -> Machine:
    if not isinstance(data, dict):
        raise BaselineError("machine: expected a mapping")
    _check_keys(set(data), {item.name for item in fields(Machine)}, "machine")
    return Machine(
        cores=_count(data["cores"], name="machine.cores"),
        threads=_count(data["threads"], name="machine.threads"),
        **{
            name: _text(data[name], name=f"machine.{name}")
            for name in ("system", "processor", "device")
        },
    )


def _count(value: Any, *, name: str) -> int:
    if type(value) is not int or not 0 < value <= 10**9:
        raise BaselineError(f"{name}: {_short(value)} is no count")
    return value


def _duration(value: Any, *, name: str) -> float:
    if type(value) not in (int, float) or not 0 < value < math.inf:
        raise BaselineError(f"{name}: {_short(value)} is no time in ms")
    return float(value)


def _short(value: Any) -> str:
    """Return a value for a message: ten thousand digits help nobody."""
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


def _check_keys(found: set[str], known: set[str], name: str) -> None:
    for key in sorted(known - found):
        raise BaselineError(f"{name}: {key!r} is missing")
    for key in sorted(found - known):
        raise BaselineError(f"{name}: {_short(key)} is unknown")


def _texts(value: Any, *, name: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise BaselineError(f"{name}: expected a mapping")
    return {_text(key, name=name): _text(item, name=f"{name}.{key}") for key, item in value.items()}


def _text(value: Any, *, name: str) -> str:
    if not isinstance(value, str):
        raise BaselineError(f"{name}: expected a text, found {type(value).__name__}")
    if name.endswith("correct_bits"):
        return value
    if len(value) > MAX_TEXT:
        raise BaselineError(f"{name}: {len(value)} characters, at most {MAX_TEXT} are taken")
    odd = _NO_TEXT.search(value)
    if odd:
        raise BaselineError(f"{name}: the character U+{ord(odd.group()):04X} is not allowed")
    return value


def _day(value: Any, *, name: str) -> str:
    text = _text(value, name=name)
    try:
        date.fromisoformat(text)
    except ValueError:
        raise BaselineError(f"{name}: {text[:40]!r} is no day") from None
    return text


def _digest(value: Any, *, name: str) -> str:
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise BaselineError(f"{name}: not a SHA-256")
    return value
