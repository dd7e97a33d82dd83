"""Stored results: one small canonical JSON file a regression gate, reviewed like code.

A record holds the outcome of every sample as one bit, so that tomorrow's run is compared with
yesterday's sample by sample. Files are replaced whole or not at all.
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
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from datetime import date
from pathlib import Path
from typing import Any

from pytest_quantgate.errors import BaselineError
from pytest_quantgate.fingerprint import Fingerprint
from pytest_quantgate.measurement import Outcomes, StoredOutcomes
from pytest_quantgate.suite import Suite
from pytest_quantgate.verdict import Status, Verdict

SCHEMA = 1
MAX_BYTES = 16 << 20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True)
class Record:
    """One stored baseline.

    `first` is the first variant that was ever accepted on this data; `accepted` the last.
    `created`, `updated`, `first_accepted` are ISO days; `first_reason` is why the first was taken.
    """

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
                f"schema {data.get('schema')!r} is not supported: this release reads {SCHEMA}"
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


def canonical_text(record: Record) -> str:
    """Return the text of a record's file: sorted keys, two spaces, a newline at the end."""
    return json.dumps(record.to_json(), sort_keys=True, indent=2, allow_nan=False) + "\n"


def parse_record(text: str) -> Record:
    """Return the record in a file's text; raises BaselineError saying what is wrong with it."""
    try:
        data = json.loads(text, object_pairs_hook=_no_doubles, parse_constant=_no_constants)
    except (ValueError, RecursionError) as error:
        raise BaselineError(f"not JSON: {error}") from error
    return Record.from_json(data)


@dataclass(frozen=True)
class Store:
    """The baselines under one folder: `<root>/<suite>/regression-<key>.json`."""

    root: Path

    def path(self, suite: str, key: str) -> Path:
        """Return where a record lives; raises BaselineError for a name that is no plain name."""
        if not _NAME.fullmatch(suite):
            raise BaselineError(
                f"suite name {suite!r} cannot be a folder name: use letters, digits, . _ -"
            )
        return self.root / suite / f"regression-{slug(key)}.json"

    def read(self, suite: str, key: str) -> Record | None:
        """Return a record, or None where there is none.

        Raises BaselineError, naming the file and the mend, for one that is damaged, of another
        format, of another suite or key, or that leads out of the store.
        """
        path = self.path(suite, key)
        record = read_record(path, root=self.root)
        if record is not None and (record.suite, record.key) != (suite, key):
            raise BaselineError(
                f"{path}: holds {record.suite} {record.key}, expected {suite} {key}: "
                f"restore the file with git checkout -- {path}"
            )
        return record

    def write(self, record: Record) -> Path:
        """Write a record atomically, return its path; raises BaselineError, the old one whole."""
        path = self.path(record.suite, record.key)
        write_atomically(path, canonical_text(record), root=self.root)
        return path

    def orphans(self, suites: Iterable[Suite]) -> tuple[Path, ...]:
        """Return the files that no regression gate of `suites` names, from the suites alone."""
        named = {
            self.path(suite.name, gate.key) for suite in suites for gate in suite.gates.regression
        }
        return tuple(path for path in sorted(self.root.rglob("*.json")) if path not in named)

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
    if exact and "--" not in key:
        return plain
    return f"{plain[:80]}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"


def read_record(path: Path, *, root: Path) -> Record | None:
    """Return the record in a file below `root`, None where there is none; raises BaselineError."""
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
        text = path.read_bytes().decode("utf-8")
    except UnicodeDecodeError as error:
        raise BaselineError(f"{path}: damaged baseline: not UTF-8: {mend}") from error
    except OSError as error:
        raise BaselineError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        return parse_record(text)
    except BaselineError as error:
        raise BaselineError(f"{path}: damaged baseline: {error}: {mend}") from error


def write_atomically(path: Path, text: str, *, root: Path) -> None:
    """Replace a file by `text` as a whole; raises BaselineError and leaves what was there."""
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.parent.resolve().is_relative_to(root.resolve()) or path.is_symlink():
            raise BaselineError(f"{path}: leads out of {root}: replace the link by the file itself")
        descriptor, temporary = tempfile.mkstemp(prefix=".writing-", dir=path.parent)
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
        if verdict.gate == "coverage" and verdict.status is not Status.PASS:
            raise BaselineError(
                f"{record.key}: not accepted as a baseline, the coverage gate is "
                f"{verdict.status.value}: {verdict.headline}"
            )
        if floor is not None and floor != Status.PASS.value:
            raise BaselineError(
                f"{record.key}: not accepted as a baseline, its result is not over the floor: "
                f"{verdict.headline}"
            )


def write_obtained(directory: Path, record: Record) -> Path:
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
        record = read_record(path, root=directory)
        assert record is not None
        if path.resolve() != Store(directory).path(record.suite, record.key).resolve():
            raise BaselineError(
                f"{path}: holds {record.suite} {record.key}, which belongs elsewhere: "
                f"run the gate again to obtain it anew"
            )
        refuse_unfit(record, verdicts=())
        store.path(record.suite, record.key)
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
    bits = tuple(bool(packed[i // 8] & (0x80 >> (i % 8))) for i in range(len(packed) * 8))
    if any(bits[count:]):
        raise ValueError(f"there are more than {count} outcomes")
    return bits[:count]


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
    if type(samples) is not int or not 0 < samples <= 10**8:
        raise BaselineError(f"{name}.samples: {samples!r} is no number of samples")
    if type(value) not in (int, float) or not 0 <= value <= 1:
        raise BaselineError(f"{name}.value: {value!r} is not in [0, 1]")
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


def _check_keys(found: set[str], known: set[str], name: str) -> None:
    for key in sorted(known - found):
        raise BaselineError(f"{name}: {key!r} is missing")
    for key in sorted(found - known):
        raise BaselineError(f"{name}: {key!r} is unknown")


def _texts(value: Any, *, name: str) -> dict[str, str]:
    if not isinstance(value, dict):
        raise BaselineError(f"{name}: expected a mapping")
    return {key: _text(item, name=f"{name}.{key}") for key, item in value.items()}


def _text(value: Any, *, name: str) -> str:
    if not isinstance(value, str):
        raise BaselineError(f"{name}: expected a text, found {type(value).__name__}")
    return value


def _digest(value: Any, *, name: str) -> str:
    if not isinstance(value, str) or not _DIGEST.fullmatch(value):
        raise BaselineError(f"{name}: not a SHA-256")
    return value


def _no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"key {key!r} stands twice")
        found[key] = value
    return found


def _no_constants(text: str) -> Any:
    raise ValueError(f"{text} is no value of a baseline")
