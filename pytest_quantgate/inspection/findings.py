"""What `quantgate check` says of one file or folder, as plain values that any renderer can show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pytest_quantgate.text.words import count, group, listed


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that is wrong, or looks so: the status is 1 then.

    `code` is stable (`check.tower-off`). `headline` is one sentence, `cause` what it probably
    comes from, `next_step` what to do; `subjects` are all names that it concerns.
    """

    code: str
    headline: str
    next_step: str
    cause: str = ""
    subjects: tuple[str, ...] = ()


def name_all(
    code: str, names: Sequence[str], noun: str, said: str, *, next_step: str, cause: str = ""
) -> Iterator[Finding]:
    """Yield the finding that counts some things, says the same of all, and lists them; or none."""
    if names:
        yield Finding(
            code=code,
            headline=f"{count(len(names), noun)} {said}: {listed(group(names))}",
            cause=cause,
            next_step=next_step,
            subjects=tuple(names),
        )


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table: operands of one tower and kind, how many are quantized, and how.

    `share` is that of the quantized weights among all weights of the tower that are multiplied or
    looked up, None for what is no weight.
    """

    tower: str
    what: str
    quantized: int
    total: int
    format: str
    scales: str
    stored: str = ""
    share: float | None = None


@dataclass(frozen=True, kw_only=True)
class OperandFacts:
    """One operand of one layer or attention product; `format` is empty where it is not quantized.

    `smallest` and `largest` are the extremes of its ranges (amax), None without any. `stored` is
    the type of a weight in the file, `is_packed` whether it lies there in the bits of its format.
    """

    layer: str
    tower: str
    kind: str
    slot: str
    format: str
    scales: str
    dynamic: bool
    symmetric: bool
    stored: str
    is_packed: bool
    smallest: float | None
    largest: float | None


@dataclass(frozen=True, kw_only=True)
class LayerError:
    """How far a dequantized weight is from the base's: SQNR in dB, `inf` where they are equal."""

    layer: str
    format: str
    sqnr_db: float
    relative_error: float


@dataclass(frozen=True, kw_only=True)
class Against:
    """A file against the model that it was made from; sizes in bytes of all tensors.

    `found` of `sought` layers of the file have a layer of the model as partner, `by_values` of
    them by their values, as it has other names. `unfound` are those of the file that have none,
    `unclaimed` what the model has, in the towers of the file, and the file has not.
    """

    base: str
    bytes: int
    base_bytes: int
    same: int
    compared: int
    layers: tuple[LayerError, ...]
    found: int
    sought: int
    by_values: int = 0
    unfound: tuple[str, ...] = ()
    unclaimed: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """All that is said of one file or folder.

    `what` is one of `checkpoint`, `onnx`, `layer-report`, `plan`. `notes` are no findings: what is
    usually meant, or could not be told.
    """

    path: str
    what: str
    tool: str
    headline: str
    rows: tuple[Row, ...] = ()
    operands: tuple[OperandFacts, ...] = ()
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()
    next_steps: tuple[str, ...] = ()
    facts: Mapping[str, str] = field(default_factory=dict)
    bytes_by_type: Mapping[str, int] = field(default_factory=dict)
    against: Against | None = None


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """A file that is not read, and why: the status is 2 then."""

    path: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Report:
    """What one call of the command found, file by file."""

    inspections: tuple[Inspection, ...]
    refusals: tuple[Refusal, ...] = ()
    ignored: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def findings(self) -> tuple[Finding, ...]:
        return tuple(f for found in self.inspections for f in found.findings)
