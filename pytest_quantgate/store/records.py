"""The records of baselines: what they hold, and their one form as canonical JSON.

Schema 2. A record of schema 1, which version 0.1 wrote, is read as well: what it does not say
stays unknown (no settings, no verdicts of its run), and FP16 of its last update stands for that of
the first variant.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Any, ClassVar, Literal, TypeVar

from pytest_quantgate.errors import BaselineError, StoredValueError
from pytest_quantgate.evidence.codec import from_json, shorten, to_json
from pytest_quantgate.evidence.fingerprint import Fingerprint
from pytest_quantgate.evidence.latency import Machine
from pytest_quantgate.evidence.outcomes import StoredOutcomes, averages_classes
from pytest_quantgate.statistics.looks import PLANNED_SHARE
from pytest_quantgate.untrusted import parse_json

SCHEMA = 2
#: What version 0.1 wrote.
OLD_SCHEMA = 1
MAX_SAMPLES = 10**7
MAX_COUNT = 10**9
MAX_TEXT = 10_000
#: Control characters but tab and newline, and halves of characters that UTF-8 cannot hold.
_NO_TEXT = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")
_DIGEST = re.compile(r"[0-9a-f]{64}")

#: The gates that have baselines; a file's name starts with one.
Kind = Literal["regression", "latency", "load"]

#: What a gate of the suite said in the run that a record is of.
GateStatus = Literal["PASS", "FAIL", "INCONCLUSIVE", "INCOMPARABLE", "NOT_MEASURED", "DID_NOT_RUN"]


@dataclass(frozen=True, kw_only=True)
class Look:
    """One time that the data was looked at: how many samples of which data, on which ISO day.

    `variant` is the digest of the model, its recipe and calibration, `number` the how many-th look
    of it this was; `sketch` are a few digests of samples, by which data is known again. `spent` is
    the share of the error chance that was spent up to its end; what was kept without it had no
    plan. Raises StoredValueError for a share that is none.
    """

    samples: int
    data_digest: str
    day: str
    variant: str = ""
    number: int = 1
    sketch: str = ""
    spent: float = PLANNED_SHARE

    def __post_init__(self) -> None:
        if not 0 <= self.spent <= 1:
            raise StoredValueError(f"spent: {self.spent!r} is not in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class Chain:
    """Accepted variants on earlier data, from the first to the last, which other data ended.

    The values are the metric in [0, 1]; days are ISO days; `reason` is why the data changed.
    """

    first_accepted: str
    first_reason: str
    ended: str
    reason: str
    samples: int
    data_digest: str
    first_fp16_value: float
    first_value: float
    last_fp16_value: float
    last_value: float

    @property
    def drop(self) -> float:
        """What the variant lost from the first accepted one to the last."""
        return self.first_value - self.last_value

    def describe(self) -> str:
        return (
            f"{self.first_accepted} to {self.ended}, {self.samples} samples "
            f"(data {self.data_digest[:12]}): quantized {self.first_value:.2%} -> "
            f"{self.last_value:.2%}, drop {self.drop * 100:.2f} pp"
        )


@dataclass(frozen=True, kw_only=True)
class Record:
    """One stored baseline of a task and metric.

    `suite` is the suite's path below the root without its ending. `first` is the first variant
    that was ever accepted on this data and `first_fp16` what FP16 gave then; `accepted` and `fp16`
    are of the last update. `created`, `updated`, `first_accepted` are ISO days; `first_reason` is
    why the first was taken. `chains` are those that ended with earlier data. `verdicts` are those
    of the suite's other gates in the run that measured `accepted`, by the name of the gate;
    `looks` is how often which data was looked at.
    `class_sizes` says how many classes have so many samples, for `plan`.
    """

    kind: ClassVar[Kind] = "regression"

    suite: str
    key: str
    task: str
    metric: str
    fp16: StoredOutcomes
    accepted: StoredOutcomes
    first: StoredOutcomes
    first_fp16: StoredOutcomes
    fingerprint: Fingerprint
    versions: Mapping[str, str]
    created: str
    updated: str
    reason: str
    first_accepted: str
    first_reason: str
    chains: tuple[Chain, ...] = ()
    verdicts: Mapping[str, GateStatus] = field(default_factory=dict)
    looks: tuple[Look, ...] = ()
    class_sizes: Mapping[str, int] = field(default_factory=dict)

    def list_class_sizes(self) -> tuple[int, ...]:
        """Return how many samples each class has, the smallest first; empty: not recorded."""
        return tuple(
            size
            for size, times in sorted((int(s), n) for s, n in self.class_sizes.items())
            for _ in range(times)
        )

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

    def check(self) -> None:
        """Raise BaselineError for values that no run can have written."""
        for name in _OUTCOMES:
            _check_outcomes(getattr(self, name), at=name)
        if not averages_classes(self.metric):  # the others are shares of right samples
            for name in _OUTCOMES:
                _check_value(getattr(self, name), at=name)
        if self.first.data_digest != self.first_fp16.data_digest:
            raise BaselineError("first and first_fp16 are of different data")
        for name in ("model", "data", "calibration", "recipe"):
            _check_digest(getattr(self.fingerprint, name), at=f"fingerprint.{name}")
        for name in ("created", "updated", "first_accepted"):
            _check_day(getattr(self, name), at=name)
        for chain in self.chains:
            _check_day(chain.first_accepted, at="chains.first_accepted")
            _check_day(chain.ended, at="chains.ended")
            _check_digest(chain.data_digest, at="chains.data_digest")
            _check_count(chain.samples, at="chains.samples", most=MAX_SAMPLES)
            for name in ("first_fp16_value", "first_value", "last_fp16_value", "last_value"):
                _check_share(getattr(chain, name), at=f"chains.{name}")
        for size, times in self.class_sizes.items():
            if not re.fullmatch(r"[1-9][0-9]{0,9}", size):
                raise BaselineError(f"class_sizes: {shorten(size)} is no number of samples")
            _check_count(times, at=f"class_sizes.{size}", most=self.accepted.samples)
        total = sum(int(size) * times for size, times in self.class_sizes.items())
        if self.class_sizes and total != self.accepted.samples:
            raise BaselineError(
                f"class_sizes add up to {total}, but there are {self.accepted.samples} samples"
            )
        for look in self.looks:
            _check_day(look.day, at="looks.day")
            _check_digest(look.data_digest, at="looks.data_digest")
            _check_count(look.samples, at="looks.samples", most=MAX_SAMPLES)


@dataclass(frozen=True, kw_only=True)
class TimedRecord:
    """The machine on which a timed gate's limit in ms holds, and what was measured there.

    `fp16_ms` and `quantized_ms` are the medians over `rounds` of what the limit is on, for the
    review: they are no limits. `created` and `updated` are ISO days; `suite` and `verdicts` are as
    in `Record`.
    """

    kind: ClassVar[Kind]

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
    verdicts: Mapping[str, GateStatus] = field(default_factory=dict)

    def same_result(self, other: TimedRecord) -> bool:
        """Return whether both name the same machine: its times differ from run to run."""
        return self.machine == other.machine

    def describe(self) -> str:
        """Return the machine and the times in a few words."""
        machine = self.machine
        where = machine.processor if machine.device == "cpu" else machine.device
        return f"FP16 {self.fp16_ms:.3g} ms, quantized {self.quantized_ms:.3g} ms on {where}"

    def check(self) -> None:
        """Raise BaselineError for values that no run can have written."""
        _check_count(self.rounds, at="rounds")
        for name in ("cores", "threads"):
            _check_count(getattr(self.machine, name), at=f"machine.{name}")
        for name in ("fp16_ms", "quantized_ms"):
            if not 0 < getattr(self, name) < math.inf:
                raise BaselineError(f"{name}: {getattr(self, name)!r} is no time in ms")
        for name in ("created", "updated"):
            _check_day(getattr(self, name), at=name)


@dataclass(frozen=True, kw_only=True)
class LatencyRecord(TimedRecord):
    """That of a latency gate: one batch."""

    kind: ClassVar[Kind] = "latency"


@dataclass(frozen=True, kw_only=True)
class LoadRecord(TimedRecord):
    """That of a load gate: the 99th percentile of requests."""

    kind: ClassVar[Kind] = "load"


#: What a Store keeps.
AnyRecord = Record | TimedRecord
#: The records of timed gates by their kind.
TIMED: Mapping[Any, type[TimedRecord]] = {
    record.kind: record for record in (LatencyRecord, LoadRecord)
}
AnyKind = TypeVar("AnyKind", bound=AnyRecord)

_OUTCOMES = ("fp16", "accepted", "first", "first_fp16")


def record_to_json(record: AnyRecord) -> dict[str, Any]:
    """Return a record as plain data, in the form of its file, with the digest of all the rest."""
    plain = {**to_json(record), "schema": SCHEMA, "kind": record.kind}
    return {**plain, "digest": digest_of_record(plain)}


def canonical_text(record: AnyRecord) -> str:
    """Return the text of a record's file: sorted keys, two spaces, a newline at the end.

    Raises ValueError for a number that JSON cannot hold.
    """
    plain = record_to_json(record)
    return json.dumps(plain, sort_keys=True, indent=2, allow_nan=False) + "\n"


def record_from_json(data: Any) -> AnyRecord:
    """Return the record in plain data, of the kind that it names; raises BaselineError."""
    return read_as(find_timed(data) or Record, data)


def find_timed(data: Any) -> type[TimedRecord] | None:
    """Return what plain data says it is a record of, None where that is no timed gate."""
    kind = data.get("kind") if isinstance(data, dict) else None
    return TIMED.get(kind) if isinstance(kind, str) else None


def read_as(record: type[AnyKind], data: Any) -> AnyKind:
    """Return the record of one kind in plain data; raises BaselineError saying what is wrong."""
    if not isinstance(data, dict):
        raise BaselineError("expected a mapping")
    schema = data.get("schema")
    if type(schema) is not int or schema not in (OLD_SCHEMA, SCHEMA):
        raise BaselineError(
            f"schema {shorten(schema)} is not supported: this release reads {OLD_SCHEMA} and "
            f"{SCHEMA}"
        )
    if schema == OLD_SCHEMA:
        data = _translate(data)
    if data.get("kind") != record.kind:
        raise BaselineError(f"kind is {shorten(data.get('kind'))}, expected {record.kind!r}")
    _check_texts(data, at="")
    body = {name: data[name] for name in data if name not in ("schema", "kind", "digest")}
    try:
        found = from_json(record, body)
    except StoredValueError as error:
        raise BaselineError(str(error)) from error
    found.check()
    if schema == SCHEMA and data.get("digest") != digest_of_record(data):
        raise BaselineError("it was changed by hand: its digest is not that of its content")
    return found


def parse_record(text: str) -> Record:
    """Return the record in a file's text; raises BaselineError saying what is wrong with it."""
    return read_as(Record, parse_text(text))


def parse_any_record(text: str) -> AnyRecord:
    """As `parse_record`, of the kind that the text names."""
    return record_from_json(parse_text(text))


def parse_text(text: str) -> Any:
    """Return the plain data in a file's text; raises BaselineError where it is not JSON."""
    try:
        return parse_json(text)
    except ValueError as error:
        raise BaselineError(f"not JSON: {error}") from error


def digest_of_record(plain: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a record's plain data but for the digest that it holds."""
    rest = {name: plain[name] for name in plain if name != "digest"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _translate(data: Mapping[str, Any]) -> dict[str, Any]:
    """Return what version 0.1 wrote in the form of today, as yet unchecked."""
    if find_timed(data):
        return dict(data)
    return {"kind": Record.kind, **data, "first_fp16": data.get("fp16")}


# -- what a hand may have changed ------------------------------------------------------------------


def _check_texts(value: Any, *, at: str) -> None:
    """Raise BaselineError for a text that is too long, or would steer a terminal."""
    if isinstance(value, dict):
        for key, item in value.items():
            _check_texts(key, at=at or "record")
            _check_texts(item, at=f"{at}.{key}" if at else key)
    elif isinstance(value, list):
        for item in value:
            _check_texts(item, at=at)
    elif isinstance(value, str) and not at.endswith("correct_bits"):
        if len(value) > MAX_TEXT:
            raise BaselineError(f"{at}: {len(value)} characters, at most {MAX_TEXT} are taken")
        odd = _NO_TEXT.search(value)
        if odd:
            raise BaselineError(f"{at}: the character U+{ord(odd.group()):04X} is not allowed")


def _check_outcomes(outcomes: StoredOutcomes, *, at: str) -> None:
    _check_count(outcomes.samples, at=f"{at}.samples", most=MAX_SAMPLES)
    _check_share(outcomes.value, at=f"{at}.value")
    _check_digest(outcomes.ids_digest, at=f"{at}.ids_digest")
    _check_digest(outcomes.data_digest, at=f"{at}.data_digest")
    try:
        outcomes.correct  # noqa: B018 (it raises where the bits are damaged)
    except ValueError as error:
        raise BaselineError(f"{at}.correct_bits: {error}") from error
    changed = outcomes.answers_changed
    if changed is not None and not 0 <= changed <= outcomes.samples:
        raise BaselineError(f"{at}.answers_changed: {changed!r} is no number of answers")
    effective = outcomes.effective_samples
    if effective is not None and not 0 < effective <= MAX_SAMPLES:
        raise BaselineError(f"{at}.effective_samples: {effective!r} is no number of samples")


def _check_value(outcomes: StoredOutcomes, *, at: str) -> None:
    """An edit of the value, or of the bits, shows in the other."""
    right = math.fsum(outcomes.correct)
    if abs(outcomes.value - right / outcomes.samples) > 1e-9:
        raise BaselineError(
            f"{at}.value is {outcomes.value!r}, but {right:g} of {outcomes.samples} outcomes are "
            f"right: it was changed by hand"
        )


def _check_share(value: float, *, at: str) -> None:
    if not 0 <= value <= 1:
        raise BaselineError(f"{at}: {value!r} is not in [0, 1]")


def _check_count(value: int, *, at: str, most: int = MAX_COUNT) -> None:
    if not 0 < value <= most:
        raise BaselineError(f"{at}: {shorten(value)} is no count from 1 to {most}")


def _check_day(value: str, *, at: str) -> None:
    try:
        is_day = date.fromisoformat(value).isoformat() == value  # it takes other forms too
    except ValueError:
        is_day = False
    if not is_day:
        raise BaselineError(f"{at}: {value[:40]!r} is no day")


def _check_digest(value: str, *, at: str) -> None:
    if not _DIGEST.fullmatch(value):
        raise BaselineError(f"{at}: not a SHA-256")
