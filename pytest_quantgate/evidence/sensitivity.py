"""What each group of quantizers costs, and what leaving it out gains."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from pytest_quantgate.evidence.audit import Tower


@dataclass(frozen=True, kw_only=True)
class QuantizerGroup:
    """Enabled quantizers that are left out together: one transformer block and kind.

    `label` is its name for people (`vision block 3 mlp`). `patterns` are the exclude patterns that
    match exactly these of all enabled quantizers; `extra_bytes` is what leaving the group out adds
    to the weights.
    """

    label: str
    tower: Tower
    block: int | None
    kind: str
    quantizers: tuple[str, ...]
    patterns: tuple[str, ...]
    extra_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class OutlierChannels:
    """A few channels so large that the range of one quantizer is theirs, and not the others'.

    `place` is where in its block the quantizer sits (`mlp.fc1`). `channels` are their indices, the
    largest first, of `channels_count`; they reach `largest_ratio` to `smallest_ratio` times the
    largest value of the median channel, which has `levels` of the `levels_count` levels above 0 of
    the `format` (None: of a format whose levels are not counted). `range_ratio` is the range that
    the other channels need by themselves, as a share of the one there is. `smoothable` says
    whether SmoothQuant would take the difference away.
    """

    quantizer: str
    place: str
    format: str
    channels: tuple[int, ...]
    channels_count: int
    largest_ratio: float
    smallest_ratio: float
    range_ratio: float
    levels: int | None
    levels_count: int | None
    smoothable: bool


@dataclass(frozen=True, kw_only=True)
class Changed:
    """Paired outcomes of a task in two states: samples that only the first, or the second, has
    right, of `samples`."""

    lost: int
    won: int
    samples: int


@dataclass(frozen=True, kw_only=True)
class GroupEffect:
    """What one group does to the embeddings and to a task.

    Noise is a ratio of powers, sum (x - y)^2 / sum x^2 over all samples (SQNR is -10 log10 of it):
    0 where nothing changes, +inf for NaN or Inf. `noise_only` has this group alone quantized,
    `noise_without` all but it (NaN where that was not measured); `metric_*` are the task's metric
    in [0, 1] in the same states. `changed_*` count the samples behind its change, from all off or
    from all on; None where the metric is no share of samples.
    A group that runs in both towers has the larger noise of the two.
    `towers` are those in which it ran, empty where it never did. `outliers` are the quantizers of
    the group with outlier channels, `noise_apart` is `noise_only` with these channels and all
    others rounded apart from each other (None: no outliers).
    """

    group: QuantizerGroup
    towers: tuple[Tower, ...]
    noise_only: float
    noise_without: float
    metric_only: float | None = None
    metric_without: float | None = None
    outliers: tuple[OutlierChannels, ...] = ()
    noise_apart: float | None = None
    changed_only: Changed | None = None
    changed_without: Changed | None = None


@dataclass(frozen=True, kw_only=True)
class TowerNoise:
    """The noise (see `GroupEffect`) of one tower with every quantizer on, and with every one off.

    `noise_off` is against FP16; the others are against the model with every quantizer off.
    """

    tower: Tower
    samples: int
    noise_all: float
    noise_off: float


@dataclass(frozen=True, kw_only=True)
class Sensitivity:
    """Which groups of quantizers cost what on `samples` images and `texts` texts of `data`.

    `effects` are ranked, the largest noise of one group alone first. `task` and `metric` are empty
    where no metric was measured; `metric_off` is that with every quantizer off. `evaluations` is
    the cost in plain evaluations: forwards of both variants over the same samples.
    """

    data: str
    samples: int
    texts: int
    task: str
    metric: str
    towers: tuple[TowerNoise, ...]
    metric_off: float | None
    metric_all: float | None
    effects: tuple[GroupEffect, ...]
    weights_bytes: int
    evaluations: float


@dataclass(frozen=True, kw_only=True)
class GateCheck:
    """One gate of a suite before and after an exclusion; values in [0, 1], None where it has none.

    `before` and `after` are statuses, the briefs their figures; `after` is empty where nothing was
    verified. `predicted` is the value expected from the noise that the exclusion takes away.
    """

    gate: str
    before: str
    brief_before: str
    fp16_value: float | None = None
    value_before: float | None = None
    predicted: float | None = None
    after: str = ""
    brief_after: str = ""
    value_after: float | None = None


@dataclass(frozen=True, kw_only=True)
class Exclusion:
    """The smallest list of groups found whose exclusion makes every gate pass.

    `outcome` is `none needed`, `found`, `not found` (within the verifications that are spent on
    it; `groups` is then empty), or `impossible` (`reason` says why not even FP16 passes).
    `coverage` is what the coverage gate then says, empty where it passes or there is none.
    """

    outcome: Literal["none needed", "found", "not found", "impossible"]
    groups: tuple[QuantizerGroup, ...]
    checks: tuple[GateCheck, ...]
    verifications: int
    extra_bytes: int = 0
    reason: str = ""
    coverage: str = ""


@dataclass(frozen=True, kw_only=True)
class Repair:
    """A mixed-precision recipe, searched on one half of the samples and judged on the other.

    `found` is the search for groups to leave in full precision; `in_full` are those that the recipe
    leaves there, `in_fp8` those that it puts into E4M3 instead. `recipe` is ModelOpt's
    configuration as plain data, empty where nothing was found; `checks` are the gates on the other
    half. `weights_bytes` are those of the variant before and after, `verifications` the evaluations
    of both searches.
    """

    found: Exclusion
    in_full: tuple[QuantizerGroup, ...] = ()
    in_fp8: tuple[QuantizerGroup, ...] = ()
    recipe: Mapping[str, Any] = field(default_factory=dict)
    checks: tuple[GateCheck, ...] = ()
    weights_bytes: tuple[int, int] = (0, 0)
    verifications: int = 0

    @property
    def holds(self) -> bool:
        """Whether every limit is met on the half that was not searched."""
        return bool(self.checks) and all(check.after == "PASS" for check in self.checks)


@dataclass(frozen=True, kw_only=True)
class Suspect:
    """A group of quantizers that a red gate names: its label, SQNR alone in dB, and patterns.

    `outliers` and `sqnr_apart_db` are as in `GroupEffect`, the noise as SQNR.
    """

    label: str
    towers: tuple[Tower, ...]
    sqnr_db: float
    patterns: tuple[str, ...]
    outliers: tuple[OutlierChannels, ...] = ()
    sqnr_apart_db: float | None = None
