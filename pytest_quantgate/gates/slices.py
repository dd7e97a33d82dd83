"""Parts of the samples, each judged by itself: classes, columns of the data, and both together.

An average hides what one camera, one language or one class lost. The slices of a limit must all be
within it; nothing is corrected for that (an intersection-union test, Berger, Technometrics 24
(1982) 295-300). FAIL is corrected for looking at all of them (Bonferroni).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction
from types import MappingProxyType
from typing import TYPE_CHECKING, TypeAlias

from pytest_quantgate.evidence.outcomes import group_places
from pytest_quantgate.evidence.verdict import Figure, Status, Verdict
from pytest_quantgate.gates.deciding import advise_next, confirm, decide
from pytest_quantgate.gates.sections import ALL_LOST
from pytest_quantgate.statistics.family import SILENT, Alarm, Family
from pytest_quantgate.statistics.intervals import (
    MOST_SAMPLES,
    ClassCounts,
    chance_above,
    drop_limits,
)
from pytest_quantgate.statistics.sizes import samples_without_loss
from pytest_quantgate.suite.keys import BadKey, count_key, list_key, points_key, text_key
from pytest_quantgate.suite.where import Where
from pytest_quantgate.tasks.contents import CLASS
from pytest_quantgate.text.words import closest, code_of, count, listed, points

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pytest_quantgate.evidence.outcomes import Outcomes
    from pytest_quantgate.gates.run import GateRun
    from pytest_quantgate.gates.sections import TaskGate
    from pytest_quantgate.tasks.contents import Contents


#: A value of each outcome, by what it is called.
Columns: TypeAlias = "Mapping[str, Sequence[str]]"
NO_COLUMNS: Columns = MappingProxyType({})

#: Of so many slices each value stands in the evidence.
MOST_LISTED = 12

#: A column of more values is no list of slices.
MOST_VALUES = 1000


@dataclass(frozen=True, kw_only=True)
class SlicesSpec:
    """What the samples are cut by, and what each slice may lose.

    Each of `by` is a column, or several together: a slice for each of their values that occur
    together. Slices of fewer than `min_samples` are named and not judged.
    """

    where: Where
    by: tuple[tuple[str, ...], ...] = field(
        metadata=list_key(
            list_key(text_key(help="column"), help="a column, or several together", single=True),
            help="class, or what columns.keep of the data set names; [a, b] for both together",
            single=True,
        )
    )
    max_drop: Fraction = field(metadata=points_key(help="loss of the worst slice", reach=ALL_LOST))
    min_samples: int | None = field(
        default=None, metadata=count_key(help="smaller slices are named, not judged; default: all")
    )

    def check(self) -> None:
        if not self.by or not all(self.by):
            raise BadKey("by", "is empty: name class, or a column of the data")
        if any(len(set(names)) < len(names) for names in (self.by, *self.by)):
            raise BadKey("by", "names a column twice")


@dataclass(frozen=True, kw_only=True)
class Cut:
    """The slices that one limit is on, and how a suite and a verdict call them.

    `against` says what they are compared with where that is not FP16.
    """

    parts: tuple[tuple[str, ClassCounts], ...]
    limit: Fraction
    key: str
    where: str
    noun: str
    plural: str
    against: str = ""

    def alarm(self, confidence: Fraction) -> Alarm:
        """Return the alarm of the worst, corrected for all; silent without any."""
        chances = [chance_above(counts.flips, float(self.limit)) for _, counts in self.parts]
        return Alarm(
            chance=len(chances) * min(chances) if chances else SILENT, confidence=confidence
        )


def read_columns(run: GateRun, gate: TaskGate, outcomes: Outcomes) -> dict[str, tuple[str, ...]]:
    """Return what the data says of each outcome; nothing where outcomes are not those of samples.

    Several outcomes of one sample are called `<id>#<number>`.
    """
    from pytest_quantgate.tasks.registry import evaluation_data

    name, purpose = evaluation_data(gate.task)
    shown = run.contents(name, gate.samples, purpose=purpose, first=gate.first)
    return align_columns(shown, outcomes.ids)


def align_columns(shown: Contents, ids: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """Return the columns of the samples that outcomes are of; nothing where one is of none."""
    places = {sample: place for place, sample in enumerate(shown.ids)}
    found = [places.get(each, places.get(each.rpartition("#")[0])) for each in ids]
    if None in found:
        return {}
    return {
        column: tuple(values[place] for place in found if place is not None)
        for column, values in shown.columns.items()
    }


def with_classes(columns: Columns, outcomes: Outcomes) -> dict[str, Sequence[str]]:
    """Return columns with the class of each outcome, where the task has classes."""
    names = outcomes.class_names
    if not names:
        return dict(columns)
    known = range(len(names))
    labels = tuple(names[n] if n in known else str(n) for n in outcomes.labels)
    return {CLASS: labels, **{name: of for name, of in columns.items() if name != CLASS}}


def cut(columns: Columns, by: Sequence[str]) -> dict[str, list[int]]:
    """Return the places of the samples of each slice, by its name: `camera=left, light=night`.

    Values that give one name are one slice: no sample is lost.
    """
    places = group_places(zip(*(columns[name] for name in by), strict=True))
    found: dict[str, list[int]] = {}
    for values, inside in sorted(places.items()):
        called = ", ".join(f"{name}={value}" for name, value in zip(by, values, strict=True))
        found.setdefault(called, []).extend(inside)
    return found


@dataclass(frozen=True, kw_only=True)
class Slices:
    """What a suite asks for, as the data has it: the slices that are judged, those that are too
    small to be, and what is wrong with what it asks for."""

    judged: Mapping[str, Sequence[int]]
    left_out: tuple[str, ...] = ()
    problems: tuple[Verdict, ...] = ()


def find_slices(gate: TaskGate, *, columns: Columns, outcomes: Outcomes) -> Slices:
    """Return the slices that a gate asks for, with their places in the outcomes that `columns` are
    of."""
    spec = slices_of(gate)
    if spec is None:
        return Slices(judged={})
    return cut_slices(spec, columns=with_classes(columns, outcomes), gate=gate)


def slices_of(gate: TaskGate) -> SlicesSpec | None:
    """Return what a gate says of slices."""
    spec: SlicesSpec | None = getattr(gate, "slices", None)
    return spec


def cut_slices(spec: SlicesSpec, *, columns: Columns, gate: TaskGate) -> Slices:
    """Return the slices that a suite asks for, each with its places in the outcomes."""
    judged: dict[str, Sequence[int]] = {}
    left_out: list[str] = []
    problems: list[Verdict] = []
    for by in spec.by:
        unknown = next((name for name in by if name not in columns), None)
        if unknown is not None:
            problems.append(_refuse_column(unknown, columns=columns, spec=spec, gate=gate))
            continue
        found = cut(columns, by)
        problem = _refuse_cut(by, found, spec=spec, gate=gate)
        if problem is not None:
            problems.append(problem)
            continue
        for name, inside in found.items():
            if name in judged:  # a value that is spelt as two of another cut are
                name = f"{name} (by {', '.join(by)})"
            if spec.min_samples is not None and len(inside) < spec.min_samples:
                left_out.append(f"{name} ({len(inside)})")
            else:
                judged[name] = inside
    return Slices(judged=judged, left_out=tuple(left_out), problems=tuple(problems))


def _refuse_column(name: str, *, columns: Columns, spec: SlicesSpec, gate: TaskGate) -> Verdict:
    close = closest(name, columns)
    known = ", ".join(map(repr, columns)) or "none"
    hint = f"; did you mean {close!r}?" if close else ""
    return Verdict(
        gate=gate.kind,
        status=Status.FAIL,
        headline=f"{gate.kind}: {gate.task}: slices by {name!r}, which no sample has{hint} "
        f"({spec.where.of('by')})",
        brief=f"no sample has the column {name!r}",
        evidence=(f"columns of these samples: {known}",),
        cause="the column is called otherwise, or the data set does not keep it",
        next_step=f"name it under datasets: columns: {{keep: [{name}]}}, and look at what is there "
        f"with quantgate data show {spec.where.file}",
        code=f"{gate.kind}.slices-unknown-column",
    )


def _refuse_cut(
    by: Sequence[str], found: Mapping[str, Sequence[int]], *, spec: SlicesSpec, gate: TaskGate
) -> Verdict | None:
    """Return INCONCLUSIVE where a cut gives one slice, or more than so many samples can judge."""
    called = " and ".join(map(repr, by))
    samples = sum(map(len, found.values()))
    if len(found) == 1:
        return Verdict(
            gate=gate.kind,
            status=Status.INCONCLUSIVE,
            headline=f"{gate.kind}: {gate.task}: all {count(samples, 'sample')} have "
            f"{next(iter(found))!r}: there is nothing to cut by {called} ({spec.where.of('by')})",
            brief=f"all samples have one value of {called}"[:70],
            cause="the data, or the part of it that is evaluated, has one value in this column",
            next_step="evaluate on samples that differ in it, or leave it out of slices",
            code=f"{gate.kind}.slices-of-one-value",
        )
    if spec.min_samples is not None:
        if max(map(len, found.values()), default=0) >= spec.min_samples:
            return None
        needed, why = spec.min_samples, f"none has the {spec.min_samples} of min_samples"
    else:
        needed = count_needed(spec.max_drop, confidence=gate.confidence)
        if len(found) * needed <= samples:
            return None
        if len(found) <= MOST_VALUES and max(map(len, found.values())) >= needed:
            return None  # some can be judged: the others are named
        why = f"{needed} in each are the fewest that can show {points(spec.max_drop)}"
    return Verdict(
        gate=gate.kind,
        status=Status.INCONCLUSIVE,
        headline=f"{gate.kind}: {gate.task}: {called} cuts {count(samples, 'sample')} into "
        f"{len(found)} slices: {why} ({spec.where.of('by')})",
        brief=f"{len(found)} slices by {called} are more than {samples} samples allow"[:70],
        cause="a column with a value for nearly every sample, or too few samples",
        next_step=f"write its values in few groups, evaluate on more samples, or leave it out: "
        f"{needed} samples are needed in a slice",
        code=f"{gate.kind}.slices-too-many",
    )


def count_needed(limit: Fraction, *, confidence: Fraction) -> int:
    """Return the fewest samples of a slice that show a limit, if none of them is lost."""
    found = samples_without_loss(confidence=float(confidence), limit=float(limit))
    return MOST_SAMPLES if found is None else found


def judge_worst(cut: Cut, *, gate: TaskGate, family: Family) -> Verdict:
    """Return PASS where every slice is within by itself, FAIL where one is over among all.

    The worst lost most; where one is over, it is the one that is least likely to be within.
    """
    confidence, limit = float(gate.confidence), float(cut.limit)
    left = []
    for name, counts in cut.parts:
        interval = drop_limits(counts.flips, confidence=confidence)
        if decide(interval, limit=limit) is not Status.PASS:
            left.append((interval.high, name, counts))
    left.sort(key=lambda item: (-item[2].drop, -item[0], item[1]))
    over = sum(c.right_to_wrong - c.wrong_to_right > cut.limit * c.samples for _, _, c in left)
    alarm = cut.alarm(gate.confidence)
    status = Status.FAIL if alarm.strength < 1 else Status.INCONCLUSIVE if left else Status.PASS
    status, doubts = confirm(status, alarm=alarm, family=family)
    name, worst = max(cut.parts, key=lambda item: item[1].drop)
    if alarm.strength < 1:
        name, worst = find_worst(cut.parts, limit=limit)
    found = f"{over} of {len(cut.parts)} {cut.plural} over {cut.key} {points(cut.limit)}"
    if len(left) > over:
        found += f", {len(left) - over} not decided"
    needed = count_needed(cut.limit, confidence=gate.confidence)
    small = [f"{name} ({c.samples})" for name, c in cut.parts if c.independent < needed]
    few = (
        f"{count(len(small), cut.noun, cut.plural)} with fewer than {needed} samples cannot show "
        f"{points(cut.limit)}, even without a loss"
    )
    if cut.noun == "slice":
        few += (
            f": {listed(small)}; slices: min_samples: {needed} names them and does not judge them"
        )
    figures: dict[str, Figure] = {
        f"worst_{cut.noun}": name,
        f"worst_{cut.noun}_drop_points": worst.drop * 100,
        f"{cut.plural}_over": over,
        f"{cut.plural}_not_decided": len(left) - over,
    }
    return Verdict(
        gate=gate.kind,
        status=status,
        headline=f"{gate.kind}: {gate.task}: worst {cut.noun} {name!r} drops "
        f"{points(worst.drop)} on {count(worst.samples, 'sample')}{cut.against}, {found} "
        f"({cut.where})",
        brief=found,
        evidence=(
            *doubts,
            *(
                f"{cut.noun} {name!r}: drop {points(counts.drop)}, upper limit {points(high)} "
                f"({describe_counts(counts)})"
                for high, name, counts in left[:4]
            ),
            *((few,) if small else ()),
            *_list_values(cut),
        ),
        cause=_find_cause(status, cut=cut, over=over),
        next_step=advise_next(status, limit=cut.key),
        figures=figures,
        code=code_of(gate.kind, "class-drop" if cut.noun == "class" else "slice-drop", status),
    )


def _list_values(cut: Cut) -> tuple[str, ...]:
    """Return what each slice has with FP16 and with the variant; nothing of classes, of which the
    report has a table, and of more slices than a line holds."""
    if cut.noun == "class" or len(cut.parts) > MOST_LISTED:
        return ()
    values = ((name, counts.right / counts.samples, counts.drop) for name, counts in cut.parts)
    return (
        ", ".join(
            f"{name} {(after + drop) * 100:.2f} -> {after * 100:.2f} %"
            for name, after, drop in values
        ),
    )


def describe_counts(counts: ClassCounts) -> str:
    """Return `3 lost, 1 won of 50`, of graded ones `50 graded samples`."""
    if isinstance(counts.right_to_wrong, float):
        return count(counts.samples, "graded sample")
    return f"{counts.right_to_wrong} lost, {counts.wrong_to_right} won of {counts.samples}"


def find_worst(
    parts: Sequence[tuple[str, ClassCounts]], *, limit: float
) -> tuple[str, ClassCounts]:
    """Return the part that is least likely to be within a limit: few samples are no proof."""
    return min(parts, key=lambda item: (chance_above(item[1].flips, limit), -item[1].drop))


def _find_cause(status: Status, *, cut: Cut, over: int) -> str:
    if status is Status.PASS:
        return ""
    if over:
        return f"an average over all {cut.plural} hides the loss of some"
    return f"too few samples in some {cut.plural} for this limit and this rate of flips"


def name_left_out(left_out: Sequence[str], *, spec: SlicesSpec) -> tuple[str, ...]:
    """Return which slices are not judged, and why; empty where all are."""
    if not left_out:
        return ()
    return (
        f"not judged: {count(len(left_out), 'slice')} of fewer than {spec.min_samples} samples "
        f"({spec.where.of('min_samples')}): {listed(left_out)}",
    )
