"""Two baselines, or two folders of them: results, digests, versions and reasons."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from pytest_quantgate.comparison.changes import (
    Area,
    Change,
    Comparison,
    DiffError,
    compare_texts,
)
from pytest_quantgate.comparison.outcomes import Sampled, compare_results
from pytest_quantgate.evidence.fingerprint import LABELS, Fingerprint
from pytest_quantgate.evidence.outcomes import StoredOutcomes
from pytest_quantgate.gates.timed import LABELS as LABELS_OF_MACHINE
from pytest_quantgate.store.baselines import read_any_record
from pytest_quantgate.store.records import AnyRecord, Record, TimedRecord
from pytest_quantgate.text.words import count

#: Slots that differed in fewer samples may come to agree by chance.
LEAST_APART = 10

RESULTS = {
    "fp16": "FP16",
    "accepted": "quantized",
    "first": "first accepted",
    "first_fp16": "FP16 of the first accepted",
}
#: What a slot holds that says the same: no second line about it.
LIKE = {"first": "accepted", "first_fp16": "fp16"}


def read_records(path: Path) -> dict[str, AnyRecord]:
    """Return the records of a file or of a folder by `<suite> <key>` (`<suite> latency <key>`).

    Raises BaselineError for a damaged one, DiffError for two of one name.
    """
    records: dict[str, AnyRecord] = {}
    root = path if path.is_dir() else path.parent
    for file in sorted(path.rglob("*.json")) if path.is_dir() else [path]:
        record = read_any_record(file, root=root)
        if record is None:
            raise DiffError(f"{file} does not exist")
        kind = f"{record.kind} " if isinstance(record, TimedRecord) else ""
        name = f"{record.suite} {kind}{record.key}"
        if name in records:
            raise DiffError(f"{file}: a second baseline of {name} in {path}")
        records[name] = record
    return records


def compare_records(
    before: Mapping[str, AnyRecord],
    after: Mapping[str, AnyRecord],
    *,
    labels: tuple[str, str],
    by_name: bool = True,
) -> Comparison:
    """Return what differs between two sets of baselines, or between the only one of each."""
    changes: list[Change] = []
    same = []
    if not by_name and before.keys() != after.keys():
        old_name, new_name = next(iter(before)), next(iter(after))
        changes += compare_texts({"baseline of": old_name}, {"baseline of": new_name}, area="gates")
        pairs = [(f"{old_name} -> {new_name}", before[old_name], after[new_name])]
    else:
        pairs = [(name, before[name], after[name]) for name in before if name in after]
        for kind, names, here in (
            ("removed", [name for name in before if name not in after], before),
            ("added", [name for name in after if name not in before], after),
        ):
            changes += [
                Change(
                    area="gates",
                    kind=kind,
                    subjects=(name,),
                    text=f"baseline {kind}: {name}: {here[name].describe()}",
                    before=here[name].describe() if kind == "removed" else "",
                    after=here[name].describe() if kind == "added" else "",
                )
                for name in names
            ]
    for name, old, new in pairs:
        found = _compare_any(old, new, name=name)
        changes += found
        if not found:
            same.append(f"{name}: {new.describe()}")
    if len(same) > 3:
        same = [f"{count(len(same), 'baseline')} the same"]
    return Comparison(
        kind="baseline",
        before=labels[0],
        after=labels[1],
        changes=tuple(changes),
        same=tuple(same),
    )


def _compare_any(before: AnyRecord, after: AnyRecord, *, name: str) -> list[Change]:
    if isinstance(before, TimedRecord) and type(before) is type(after):
        return compare_timed_record(before, after, name=name)
    if isinstance(before, Record) and isinstance(after, Record):
        return compare_record(before, after, name=name)
    raise DiffError(
        f"{name}: a baseline of {before.kind} and one of {after.kind}: compare two of a kind"
    )


def compare_timed_record(before: TimedRecord, after: TimedRecord, *, name: str) -> list[Change]:
    """Return what differs between two records of a machine; clock times alone are no change."""
    machines = [
        {f"{name}: {LABELS_OF_MACHINE[key]}": str(value) for key, value in vars(side).items()}
        for side in (before.machine, after.machine)
    ]
    changes = compare_texts(machines[0], machines[1], area="engine", noun="another machine:")
    changes += compare_texts(
        {"runtime": before.runtime}, {"runtime": after.runtime}, area="engine", within=name
    )
    changes += compare_texts(before.versions, after.versions, area="versions", within=name)
    fields = ("reason", "created", "updated")
    said = [{key: getattr(side, key) for key in fields} for side in (before, after)]
    changes += compare_texts(said[0], said[1], area="other", within=name)
    return changes


def compare_record(before: Record, after: Record, *, name: str) -> list[Change]:
    """Return what differs between two records: each result paired with its own."""
    changes: list[Change] = []
    for field, word in RESULTS.items():
        old, new = getattr(before, field), getattr(after, field)
        like = LIKE.get(field, field)
        if like != field and (old, new) == (getattr(before, like), getattr(after, like)):
            continue
        changes += compare_results(
            _sampled(old),
            _sampled(new),
            subject=f"{name} {field}",
            what=f"{name}: {word}",
            metric=after.metric,
        )
    changes += _compare_slots(before, after, name=name)
    changes += _compare_words(before.fingerprint, after.fingerprint, name=name)
    for area, describe in _DESCRIBED.items():
        changes += compare_texts(describe(before), describe(after), area=area, within=name)
    return changes


def _list_chains(record: Record) -> dict[str, str]:
    return {
        f"accepted before, {number}": chain.describe()
        for number, chain in enumerate(record.chains, start=1)
    }


def _compare_words(before: Fingerprint, after: Fingerprint, *, name: str) -> list[Change]:
    """Return the settings and the entries of the recipe that differ."""
    sides = [
        {key: value or "none" for key, value in side.settings.items()} for side in (before, after)
    ]
    if not all(sides):  # version 0.1 recorded none
        sides = [{"settings": "recorded" if side else "unknown"} for side in sides]
    changes = compare_texts(sides[0], sides[1], area="model", within=name)
    gone = [line for line in before.recipe_entries if line not in after.recipe_entries]
    come = [line for line in after.recipe_entries if line not in before.recipe_entries]
    changes += [
        Change(
            area="recipe",
            kind=kind,
            subjects=(name,),
            text=f"{name}: recipe entry {kind}: {line}",
            before=line if kind == "removed" else "",
            after=line if kind == "added" else "",
        )
        for kind, lines in (("removed", gone), ("added", come))
        for line in lines
    ]
    if not gone and not come and before.recipe_entries != after.recipe_entries:
        text = f"{name}: the entries of the recipe are in another order"
        changes.append(Change(area="recipe", kind="reordered", subjects=(name,), text=text))
    return changes


def _compare_slots(before: Record, after: Record, *, name: str) -> list[Change]:
    """Return whether the slots of FP16 and of the variant have come to hold one model's outcomes.

    Two models that answer alike in every sample are rare, one in the place of the other is not.
    """
    apart = [
        sum(a != b for a, b in zip(side.fp16.correct, side.accepted.correct, strict=False))
        for side in (before, after)
    ]
    if before.fp16.ids_digest != after.fp16.ids_digest:
        return []
    if min(apart) > 0 or max(apart) < LEAST_APART:
        return []
    moved = "FP16" if before.fp16.correct != after.fp16.correct else RESULTS["accepted"]
    other = RESULTS["accepted"] if moved == "FP16" else "FP16"
    return [
        Change(
            area="accuracy",
            kind="slots alike" if apart[1] == 0 else "slots apart",
            subjects=(name,),
            text=f"{name}: the {moved} slot "
            + (
                f"now holds what the {other} slot holds, sample by sample"
                if apart[1] == 0
                else f"held what the {other} slot holds, and no longer does"
            ),
        )
    ]


def _say(record: Record) -> dict[str, str]:
    fields = ("metric", "task", "reason", "created", "updated", "first_accepted", "first_reason")
    return {field.replace("_", " "): getattr(record, field) for field in fields}


#: What two records say by name beside their results, in the order of the changes.
_DESCRIBED: Mapping[Area, Callable[[Record], Mapping[str, str]]] = {
    "accuracy": _list_chains,
    "gates": lambda record: {f"{gate} of its run": s for gate, s in record.verdicts.items()},
    "data": lambda record: {
        label: getattr(record.fingerprint, key)[:12] for key, label in LABELS.items()
    },
    "versions": lambda record: record.versions,
    "other": _say,
}


def _sampled(outcomes: StoredOutcomes) -> Sampled:
    return Sampled(
        value=outcomes.value,
        correct=outcomes.correct,
        ids_digest=outcomes.ids_digest,
        data_digest=outcomes.data_digest,
    )
