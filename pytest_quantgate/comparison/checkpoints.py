"""Two quantized checkpoints: which quantizers, ranges, weights and settings differ."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from pytest_quantgate.artifacts.checkpoints import ALGORITHM, CONFIG, Checkpoint
from pytest_quantgate.artifacts.safetensors_file import Tensor
from pytest_quantgate.artifacts.stored_quantizer import StoredQuantizer
from pytest_quantgate.comparison.calibration import compare_calibration
from pytest_quantgate.comparison.changes import Area, Change, Comparison, compare_texts
from pytest_quantgate.comparison.quantizers import compare_quantizers, describe_places
from pytest_quantgate.comparison.recipe_lines import compare_recipes
from pytest_quantgate.comparison.weights import compare_weights, largest_magnitude
from pytest_quantgate.quantization.quantizers import owner_of
from pytest_quantgate.text.words import count, group


def compare_checkpoints(before: Checkpoint, after: Checkpoint) -> Comparison:
    """Return all that differs between two checkpoints."""
    weights = compare_weights(before.weights, after.weights)
    changes = [
        *_compare_damage(before, after),
        *compare_recipes(before.recipe, after.recipe),
        *_compare_said(before.settings, after.settings, area="recipe"),
        *compare_quantizers(before.quantizers, after.quantizers),
        *weights,
        *_relate_ranges_and_weights(before, after, changed=_name_changed(weights)),
        *compare_texts(before.config, after.config, area="model", noun=CONFIG),
        *_compare_said(
            {name: value[:12] for name, value in before.digests.items()},
            {name: value[:12] for name, value in after.digests.items()},
            area="model",
        ),
        *compare_calibration(before.calibration, after.calibration),
        *_compare_said(before.versions, after.versions, area="versions"),
    ]
    changes += _compare_sizes(before.sizes, after.sizes)
    return Comparison(
        kind="checkpoint",
        before=before.label,
        after=after.label,
        changes=tuple(changes),
        same=_what_is_same(before, after, changes=changes),
    )


def _relate_ranges_and_weights(
    before: Checkpoint, after: Checkpoint, *, changed: Collection[str]
) -> list[Change]:
    """Return which weights have a range that is not theirs, where before or after it was.

    A weight that is calibrated gets the range of its largest value. Where only one of the two
    moved and they no longer fit, either the weight was changed afterwards, or the range is another
    weight's. `changed` are the names of the weights that moved. Another algorithm of calibration
    gives other ranges, and nothing is said then.
    """
    if before.settings.get(ALGORITHM) != after.settings.get(ALGORITHM):
        return []
    why = {  # by whether the weight moved, and whether its range did
        (True, False): "the weights moved and their ranges did not: changed after the calibration",
        (False, True): "the ranges moved and the weights did not: "
        "ranges of another checkpoint, or edited",
        (True, True): "both moved: ranges of other weights than these",
    }
    misfits: dict[tuple[str, str], list[str]] = {}
    for name, old in before.quantizers.items():
        new, weight = after.quantizers.get(name), f"{owner_of(name)}.weight"
        if new is None or not name.endswith(".weight_quantizer") or not old.enabled:
            continue
        if not new.enabled or weight not in before.weights or weight not in after.weights:
            continue
        moved = (weight in changed, old.amax != new.amax)
        if moved not in why:
            continue
        fits = [_fits(old, before.weights[weight]), _fits(new, after.weights[weight])]
        if fits[0] != fits[1]:
            kind = "ranges no longer fit" if fits[0] else "ranges fit again"
            misfits.setdefault((kind, why[moved]), []).append(name)
    return [
        Change(
            area="ranges",
            kind=kind,
            subjects=tuple(names),
            text=f"{count(len(names), 'weight')} {_fit_words(kind)}: {reason}: "
            f"{describe_places(names, all_of=before.quantizers)}",
            lines=group(names),
            figures={"quantizers": len(names)},
        )
        for (kind, reason), names in misfits.items()
    ]


def _fit_words(kind: str) -> str:
    return "with a range that is not theirs" if kind == "ranges no longer fit" else "fit again"


def _fits(quantizer: StoredQuantizer, weight: Tensor) -> bool:
    """Return whether the widest range is that of the largest weight, up to 1 %."""
    largest = largest_magnitude(weight)
    widest = max(quantizer.amax or (0.0,))
    return abs(widest - largest) <= 0.01 * largest


def _name_changed(weights: Sequence[Change]) -> frozenset[str]:
    """Return the weights whose values changed."""
    found = (change.subjects for change in weights if change.kind == "weights changed")
    return frozenset(name for subjects in found for name in subjects)


def _compare_said(
    before: Mapping[str, str], after: Mapping[str, str], *, area: Area
) -> list[Change]:
    """Return a change for what both sides say: a checkpoint of another tool has no manifest."""
    shared = [name for name in before if name in after]
    return compare_texts(
        {name: before[name] for name in shared}, {name: after[name] for name in shared}, area=area
    )


def _compare_damage(before: Checkpoint, after: Checkpoint) -> list[Change]:
    changes = []
    for kind, here, there in (("repaired", before, after), ("damaged", after, before)):
        for text in here.damage:
            if text not in there.damage:
                where = "before" if kind == "repaired" else "after"
                changes.append(
                    Change(
                        area="damage",
                        kind=kind,
                        subjects=(text.partition(" ")[0],),
                        text=f"{where}, {here.label}: {text}",
                        before=text if kind == "repaired" else "",
                        after=text if kind == "damaged" else "",
                    )
                )
    return changes


def _compare_sizes(before: Mapping[str, int], after: Mapping[str, int]) -> list[Change]:
    old, new = sum(before.values()), sum(after.values())
    if before == after:
        return []
    ratio = f" ({new / old:.3f}x)" if old else ""
    lines = [
        f"in {name}: {before.get(name, 0)} -> {after.get(name, 0)} bytes"
        for name in [*before, *(name for name in after if name not in before)]
        if before.get(name) != after.get(name)
    ]
    return [
        Change(
            area="sizes",
            kind="size changed",
            subjects=("tensors",),
            text=f"all tensors: {old} -> {new} bytes{ratio}",
            before=str(old),
            after=str(new),
            lines=tuple(lines),
            figures={"before_bytes": old, "after_bytes": new},
        )
    ]


def _what_is_same(
    before: Checkpoint, after: Checkpoint, *, changes: Sequence[Change]
) -> tuple[str, ...]:
    concerned = {
        name
        for change in changes
        if change.area in ("quantizers", "ranges")
        for name in change.subjects
    }
    on = [n for n, q in after.quantizers.items() if q.enabled and n not in concerned]
    lines = []
    if on:
        lines.append(f"{count(len(on), 'quantizer')} on both sides, bit for bit the same")
    if before.weights and not any(change.area == "weights" for change in changes):
        lines.append(f"{count(len(before.weights), 'weight tensor')} equal")
    if before.recipe and not any(change.area == "recipe" for change in changes):
        lines.append("the same recipe")
    if not before.quantizers and not after.quantizers:
        lines.append("neither side is quantized")
    return tuple(lines)
