"""The door for a task: what one is (`TaskKind`), and which there are.

A task of this package is a module of `tasks/` with a `KIND`, and its name in `BUILTIN`. One of
another package is an entry point of the group `pytest_quantgate.tasks` that names its `TaskKind`.
One of your own is `<data set>/<module>:<name>` in a suite with `trust: true`: a `TaskKind`, or a
function from `TaskInputs` to one outcome a sample, true, false or a score between. Modules are
imported when a suite names their task.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast

from pytest_quantgate.errors import DataError, ModelError
from pytest_quantgate.tasks.builtin import Purpose

if TYPE_CHECKING:
    from pytest_quantgate.evidence.audit import TowerName
    from pytest_quantgate.evidence.outcomes import Outcomes, Score
    from pytest_quantgate.tasks.samples import Samples
    from pytest_quantgate.tasks.scoring import Scored, TaskInputs

#: The tasks of this package, in the order in which they are named.
BUILTIN = (
    *("classification", "retrieval", "knn", "neighbours", "text_neighbours"),
    *("linear_probe", "catalogue", "filter", "duplicates", "multilingual"),
)

#: The group of entry points of other packages' tasks.
GROUP = "pytest_quantgate.tasks"

#: A task of one's own, as a suite names it behind the data set.
_OWN = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")

#: What a metric may be called where a task does not say which it has.
_ANY_METRIC = re.compile(r"[A-Za-z_][\w.-]{0,60}(@[1-9]\d{0,5})?")


@dataclass(frozen=True, kw_only=True)
class Queries:
    """How many outcomes a task gives, and in how many groups that are won or lost together (None:
    each stands for itself)."""

    count: int
    groups: int | None = None


@dataclass(frozen=True, kw_only=True)
class TaskKind:
    """A kind of task, as `task: <data set>/<name>` names it.

    `help` says in a phrase what it measures. `purpose` is what its samples are for: labelled
    images (`classification`), captions (`retrieval`), or pictures, whatever belongs to them
    (`images`). `towers` are those that a model must have, whose embeddings `score` gets: it gives
    one outcome a sample or a query (`Scored`) for one variant.

    `metrics` are as a suite writes them, with `K` for a number and `P%` for a percentage (empty:
    any name), `proposed` those that `quantgate init` writes. `list_texts(samples)` are the texts
    that are embedded. Of a task with `has_classes`, answers are classes. `bank` says whether a
    suite may name further data that the task looks things up in, or must; with `names_positive` it
    must name classes that are to be found. `chance(outcomes)` is the share that is right without
    looking, of the answers of FP16 (None with classes: counted from the answers; without, and where
    it gives None: nothing is said about chance).

    `is_zero_shot` tasks answer with texts, which the sanity gate reads. `needs_fp16` says that
    right is what FP16 answers, or is decided by what it makes of the samples. `simplify(samples)`
    makes a part of the samples cheaper for a study of layers. `name_answers(samples, metric)` are
    what the answers of a task without classes stand for; `name_queries` the texts that are asked
    with, one an outcome, empty for pictures. `count_queries(metric, images, captions)` says how
    many outcomes there are (None: only known after they were measured).
    `name_other_side(metric)` is the metric without which one is no limit: who flags everything
    misses nothing.
    """

    name: str
    help: str
    score: Callable[[TaskInputs], Scored]
    purpose: Purpose = "images"
    towers: tuple[TowerName, ...] = ("vision",)
    metrics: tuple[str, ...] = ()
    proposed: tuple[str, ...] = ()
    list_texts: Callable[[Samples], Sequence[str]] = lambda _samples: ()
    has_classes: bool = False
    bank: Literal["never", "may", "must"] = "never"
    names_positive: bool = False
    chance: Callable[[Outcomes], float | None] | None = None
    is_zero_shot: bool = False
    needs_fp16: bool = False
    simplify: Callable[[Samples], Samples] = lambda samples: samples
    name_answers: Callable[[Samples, str], Sequence[str]] = lambda samples, _metric: samples.ids
    name_queries: Callable[[Samples, str], Sequence[str]] = lambda _samples, _metric: ()
    count_queries: Callable[[str, int, int], Queries | None] = lambda _metric, images, _captions: (
        Queries(count=images)
    )
    name_other_side: Callable[[str], str | None] = lambda _metric: None

    def check_metric(self, metric: str) -> None:
        """Raise DataError for a metric that the task does not have."""
        if not self.metrics:
            if _ANY_METRIC.fullmatch(metric):
                return
            raise DataError(f"{metric!r} is no name of a metric, such as ndcg or ndcg@10")
        if any(re.fullmatch(_spell(known), metric) for known in self.metrics):
            return
        plain = [known for known in self.metrics if "@" not in known]
        close = difflib.get_close_matches(metric, plain, n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise DataError(f"{metric!r} is no metric of {self.name}: {', '.join(self.metrics)}{hint}")


def _spell(metric: str) -> str:
    number, percentage = r"[1-9]\d{0,5}", r"\d{1,2}(\.\d{1,4})?%"
    return re.escape(metric).replace("@K", f"@{number}").replace("P%", percentage)


def split_task(task: str) -> tuple[str, str]:
    """Return data set and kind of `<data set>/<kind>`; raises DataError where one is missing."""
    dataset, _, name = task.rpartition("/")
    if not dataset or not name:
        known = ", ".join(BUILTIN)
        raise DataError(f"{task!r} is no task: write <data set>/<kind>, of {known}")
    return dataset, name


def is_own(task: str) -> bool:
    """Return whether a task names code of one's own, `<data set>/<module>:<name>`."""
    return ":" in task.rpartition("/")[2]


def list_names() -> tuple[str, ...]:
    """Return the names of all tasks, those of other packages last; none is imported."""
    others = {point.name for point in importlib.metadata.entry_points(group=GROUP)}
    return (*BUILTIN, *sorted(others - set(BUILTIN)))


def find_task(task: str) -> TaskKind:
    """Return the kind of `<data set>/<kind>`.

    Raises DataError, with what it may have meant, for a kind that there is not, and for code of
    another package that cannot be imported or is no task.
    """
    _, name = split_task(task)
    if name in BUILTIN:
        module = importlib.import_module(f"pytest_quantgate.tasks.{name}")
        return cast("TaskKind", module.KIND)
    if is_own(task):
        return _load_own(name, task=task)
    for point in importlib.metadata.entry_points(group=GROUP, name=name):
        return _check_kind(_import(point.load, what=f"the task {name} ({point.value})"), name=name)
    known = list_names()
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean {split_task(task)[0]}/{close[0]}?" if close else ""
    raise DataError(f"unknown task {task!r}: tasks are {', '.join(known)}{hint}")


def describe_task(task: str) -> TaskKind:
    """Return the kind of a task as far as it is known without running code that a suite names."""
    if not is_own(task):
        return find_task(task)
    check_own(task)
    return TaskKind(name=split_task(task)[1], help="code of your own", score=_refuse)


def _refuse(inputs: TaskInputs) -> Scored:
    raise DataError(f"{inputs.task} is only described here")


def find_package(task: str) -> str | None:
    """Return the package that a task of others is in, by its import name; it is not imported."""
    _, name = split_task(task)
    if is_own(task):
        return name.partition(":")[0].partition(".")[0]
    if name not in BUILTIN:
        for point in importlib.metadata.entry_points(group=GROUP, name=name):
            return point.module.partition(".")[0]
    return None


def check_towers(towers: Sequence[TowerName], *, task: str, model: str) -> None:
    """Raise ModelError where a model has not the towers that a task needs."""
    kind = find_task(task)
    missing = [tower for tower in kind.towers if tower not in towers]
    if not missing:
        return
    why, dataset = kind.help, split_task(task)[0]
    alone = f"{dataset}/knn (with labels) or {dataset}/neighbours (without)"
    raise ModelError(
        f"{model} has no {' and no '.join(missing)} tower, and {task} needs one ({why})"
        + (f": judge it by {alone}" if missing == ["text"] else "")
    )


def check_own(task: str) -> None:
    """Raise DataError for a task of one's own that is not spelt `<data set>/<module>:<name>`."""
    _, name = split_task(task)
    if not _OWN.fullmatch(name):
        raise DataError(
            f"{task!r} is no task: code of your own is <data set>/<module>:<function>, such as "
            f"shop/our_tasks.search:rank"
        )


def _load_own(name: str, *, task: str) -> TaskKind:
    check_own(task)
    module, _, attribute = name.partition(":")
    found = _import(
        lambda: getattr(importlib.import_module(module), attribute), what=f"the task {name}"
    )
    if isinstance(found, TaskKind):
        return found
    if not callable(found):
        raise DataError(f"{name} is {type(found).__name__}, neither a TaskKind nor a function")
    return TaskKind(name=name, help="a function of your own", score=_as_scored(found))


def _as_scored(function: Callable[[Any], Any]) -> Callable[[TaskInputs], Scored]:
    """Return a function that may give plain scores as one that gives `Scored`."""

    def score(inputs: TaskInputs) -> Scored:
        from pytest_quantgate.tasks.scoring import Scored

        found = function(inputs)
        return found if isinstance(found, Scored) else Scored(correct=_list_scores(found))

    return score


def _list_scores(found: Any) -> list[Score]:
    if hasattr(found, "tolist"):  # an array or a tensor
        found = found.tolist()
    if not isinstance(found, Sequence) or isinstance(found, str):
        raise DataError(f"a task gives one outcome a sample, not {type(found).__name__}")
    plain = [value.item() if hasattr(value, "item") else value for value in found]
    odd = next((value for value in plain if not isinstance(value, (bool, int, float))), None)
    if odd is not None or None in plain:
        raise DataError(f"an outcome is true, false or a score in [0, 1], not {odd!r:.60}")
    return plain


def _check_kind(found: Any, *, name: str) -> TaskKind:
    if not isinstance(found, TaskKind) or found.name != name:
        raise DataError(f"the entry point {name} of {GROUP} is not a TaskKind of that name")
    return found


def _import(load: Callable[[], Any], *, what: str) -> Any:
    try:
        return load()
    except Exception as error:  # whatever code of others raises
        raise DataError(f"{what} cannot be imported: {type(error).__name__}: {error}") from error
