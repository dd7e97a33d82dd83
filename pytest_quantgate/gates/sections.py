"""What the sections of several gates have in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any, Literal

from pytest_quantgate.errors import DataError
from pytest_quantgate.suite.gates import GateSection
from pytest_quantgate.suite.keys import (
    BadKey,
    Declared,
    Reach,
    bytes_key,
    choice_key,
    count_key,
    list_key,
    named,
    percent_key,
    ratio_key,
    text_key,
)
from pytest_quantgate.suite.quantities import parse_confidence
from pytest_quantgate.suite.specs import FIRST, check_data
from pytest_quantgate.tasks.kind import BUILTIN, describe_task, is_own, split_task

#: Limits on what can be lost of all that there is.
ALL_LOST = Reach(under="100pp", why="no more than everything can be lost")

CONFIDENCE = percent_key(help="one-sided; default 95%", parse=parse_confidence)
TOWERS = list_key(choice_key("vision", "text", help="tower"), help="default: both")


@dataclass(frozen=True, kw_only=True)
class TaskGate(GateSection):
    """A gate on one task and metric; `task` is `<data set>/<kind of task>`.

    `samples` (None: all) are drawn by seed over the whole, stratified by class; with `first` they
    are the first of the data. `bank` is `<data set>/<split>`, what a task such as k-NN looks things
    up in, of which `bank_samples` are drawn (None: all). `positive` are the classes that a task
    such as filter is to find. `min_classes` is how many classes must
    have a sample (None: all that a fair draw of so many would show).
    """

    task: str = field(
        metadata=text_key(help=f"<data set>/<kind>: {', '.join(BUILTIN)}, or <module>:<name>")
    )
    metric: str = field(metadata=text_key(help="acc1, image_retrieval_recall@5, ..., as the task"))
    confidence: Fraction = field(default=Fraction(95, 100), metadata=CONFIDENCE)
    samples: int | None = field(
        default=None,
        metadata=count_key(help="drawn over the whole by seed, stratified; default: all"),
    )
    first: bool = field(default=False, metadata=FIRST)
    bank: str | None = field(
        default=None,
        metadata=text_key(help="<data set>/<split> to look things up in; default: the samples"),
    )
    bank_samples: int | None = field(
        default=None, metadata=count_key(help="drawn of the bank by seed; default: all")
    )
    positive: tuple[str, ...] = field(
        default=(),
        metadata=list_key(
            text_key(help="class"), help="classes that a filter is to catch", single=True
        ),
    )
    min_classes: int | None = field(
        default=None, metadata=count_key(help="classes that must have a sample; default: all")
    )

    @property
    def asks(self) -> dict[str, Any]:
        """What the outcomes are measured of: arguments of `GateRun.outcomes`, but for the stage."""
        names = ("task", "metric", "samples", "first", "bank", "bank_samples", "positive")
        return {name: getattr(self, name) for name in names}

    @property
    def key(self) -> str:
        """`<task>-<metric>`, the part of the node id in brackets and of the baseline's name."""
        return f"{self.task}-{self.metric}"

    @property
    def title(self) -> str:
        return f"{self.task} {self.metric}"

    @property
    def runs_code_of(self) -> str:
        return split_task(self.task)[1] if is_own(self.task) else ""

    def check(self) -> None:
        if self.first and self.samples is None:
            raise BadKey("first", "is about samples: say how many, such as samples: 1000")
        if self.bank is not None:
            check_data(self.bank, key="bank")
        if self.bank is None and self.bank_samples is not None:
            raise BadKey("bank_samples", "is about bank: name it, such as bank: photos/train")
        try:
            kind = describe_task(self.task)
        except DataError as error:
            raise BadKey("task", str(error)) from None
        try:
            kind.check_metric(self.metric)
        except DataError as error:
            raise BadKey("metric", str(error)) from None
        if is_own(self.task):
            return  # what else fits is known when it runs: reading a suite runs no code of it
        for key in ("max_class_drop", "min_classes"):
            if not kind.has_classes and key in self.where.keys:
                raise BadKey(key, f"{kind.name} has no classes")
        if kind.names_positive and not self.positive:
            raise BadKey("task", f"{kind.name} needs positive: the classes that it is to find")
        if self.positive and not kind.names_positive:
            raise BadKey("positive", f"{kind.name} has no use for it: leave it out")
        if self.bank is None and kind.bank == "must":
            raise BadKey("task", f"{kind.name} needs a bank, such as bank: <data set>/train")
        if self.bank is not None and kind.bank == "never":
            raise BadKey("bank", f"{kind.name} looks nothing up in a bank: leave it out")

    def check_beside(self, others: Sequence[GateSection]) -> None:
        other = describe_task(self.task).name_other_side(self.metric)
        if other and not any(self._has_side(gate, metric=other) for gate in others):
            raise BadKey(
                "metric",
                f"{self.metric} alone passes a model whose embeddings are all alike: add a gate "
                f"with metric: {other} and the same task, samples, bank and positive",
            )

    def _has_side(self, gate: GateSection, *, metric: str) -> bool:
        """Return whether a gate judges another metric of what this one judges."""
        stages = [getattr(one, "stage", None) for one in (self, gate)]
        return (
            isinstance(gate, TaskGate)
            and gate.asks == {**self.asks, "metric": metric}
            and stages[0] == stages[1]
        )


def target_key(*, without: str = "") -> Declared:
    return text_key(help=f"compute capability, such as sm89{without}")


@dataclass(frozen=True, kw_only=True)
class EngineTarget(GateSection):
    """A gate on engines that are built ahead of time for a `target` (`sm89`)."""

    target: str | None = field(metadata=target_key())
    library: Literal["tensorrt-rtx", "tensorrt"] = field(
        default="tensorrt-rtx",
        metadata=choice_key("tensorrt-rtx", "tensorrt", help="default: tensorrt-rtx"),
    )
    towers: tuple[Literal["vision", "text"], ...] = field(
        default=("vision", "text"), metadata=TOWERS
    )
    batch: int = field(default=1, metadata=count_key(help="images or texts in a batch; default: 1"))

    @property
    def key(self) -> str:
        """`<target>`, and what is not the usual: one tower, a batch above 1, another library."""
        towers = "" if len(set(self.towers)) == 2 else f"-{self.towers[0]}"
        batch = "" if self.batch == 1 else f"-batch{self.batch}"
        library = "" if self.library == "tensorrt-rtx" else f"-{self.library}"
        return f"{self.target or 'onnx'}{towers}{batch}{library}"

    def check(self) -> None:
        if not self.towers:
            raise BadKey("towers", "is empty: name vision, text or both")
        if len(set(self.towers)) < len(self.towers):
            raise BadKey("towers", "names a tower twice, which would count it twice")


@dataclass(frozen=True, kw_only=True)
class EngineSizes(EngineTarget):
    """Limits on the sizes of engines; ratios are against FP16's, each tower by itself."""

    target: str = field(metadata=target_key())
    max_plan_ratio: Fraction | None = field(
        default=None, metadata=ratio_key(help="plan against FP16's")
    )
    max_weights_ratio: Fraction | None = field(
        default=None, metadata=ratio_key(help="weights memory against FP16's")
    )
    max_activation_ratio: Fraction | None = field(
        default=None, metadata=ratio_key(help="activation memory against FP16's")
    )
    max_plan_bytes: int | None = field(
        default=None, metadata=named("max_plan", bytes_key(help="plan of one tower"))
    )
    max_weights_bytes: int | None = field(
        default=None, metadata=named("max_weights", bytes_key(help="weights memory of one tower"))
    )
    max_activation_bytes: int | None = field(
        default=None,
        metadata=named("max_activation", bytes_key(help="activation memory of one tower")),
    )

    def refuse_no_limit(self, words: str) -> None:
        """Raise BadKey where nothing is set that decides anything."""
        given = self.where.keys.keys() - {"target", "library", "towers", "batch"}
        if not given:
            raise BadKey("", f"sets no limit, so it decides nothing: set {words}")
