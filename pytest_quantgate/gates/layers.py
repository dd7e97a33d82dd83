"""The coverage gate's part on layers: each that the recipe means is on, as it says, and runs."""

from __future__ import annotations

import re
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

from pytest_quantgate.gates.deciding import fail
from pytest_quantgate.gates.scope import SLOT_NAMES
from pytest_quantgate.gates.towers import find_towers_off
from pytest_quantgate.text.words import count, list_groups, list_groups_of, listed, shorten

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from pytest_quantgate.evidence.audit import Audit, Declared, Quantizer, Tower
    from pytest_quantgate.evidence.verdict import Verdict
    from pytest_quantgate.gates.scope import Scope
    from pytest_quantgate.suite.where import Where

GATE = "coverage"
_fail = partial(fail, GATE)

#: The index of a block in a name: `layers.3.mlp`.
_INDEX = re.compile(r"\.\d+\.")


def judge_layers(audit: Audit, *, scope: Scope) -> Iterator[Verdict]:
    """Yield a FAIL for intended layer quantizers that are off, of another format, or never ran."""
    by_name = {q.name: q for q in audit.quantizers}
    off_by = dict(audit.disabled_by)
    whole_off = find_towers_off(audit)
    off: dict[str | None, list[str]] = {}
    wrong: list[Quantizer] = []
    rescaled: list[Quantizer] = []
    idle: list[Quantizer] = []
    intended = 0
    for name in audit.intended:
        quantizer = by_name.get(name)
        if quantizer is not None and (quantizer.slot in SLOT_NAMES or quantizer.tower in whole_off):
            continue
        intended += 1
        if quantizer is not None and quantizer.enabled:
            declared = audit.declared.get(name)
            meant = (declared.format,) if declared else audit.formats
            if meant and quantizer.format not in meant:
                wrong.append(quantizer)
            elif declared is not None and _scaling(quantizer) != _scaling(declared):
                rescaled.append(quantizer)
            elif quantizer.own_calls == 0:
                idle.append(quantizer)
        elif not scope.takes(name):
            off.setdefault(off_by.get(name), []).append(name)
    idle = [q for q in idle if not scope.takes(q.name)]
    wrong = [q for q in wrong if not scope.takes(q.name)]
    if off:
        yield _fail_off(off, intended=intended, scope=scope)
    if wrong:
        found = Counter(q.format for q in wrong)
        named = [audit.declared[q.name].format for q in wrong if q.name in audit.declared]
        meant_by = tuple(dict.fromkeys(named)) or audit.formats
        yield _fail(
            "other-format",
            f"{len(wrong)} quantizers have another format than the recipe's "
            f"{listed(meant_by)}: {', '.join(f'{n} {f}' for f, n in found.most_common())} "
            f"({scope.where})",
            evidence=shorten([f"{q.name}: {q.format}" for q in wrong]),
            cause="an entry of the recipe, or a change after it, gives them another one",
            next_step="let the recipe give them its format, and quantize again",
        )
    rescaled = [q for q in rescaled if not scope.takes(q.name)]
    if rescaled:
        first = rescaled[0]
        yield _fail(
            "other-scaling",
            f"{count(len(rescaled), 'quantizer')} take their ranges in another way than the "
            f"recipe says: {first.name} is {_scaling(first)}, and "
            f"{_scaling(audit.declared[first.name])} is declared ({scope.where})",
            evidence=list_groups(q.name for q in rescaled),
            cause="an axis, blocks or the type (static, dynamic) were changed after the "
            "quantization, or a checkpoint of another recipe was loaded",
            next_step="quantize again, or write what is meant into the recipe",
            figures={"other_scaling": len(rescaled)},
        )
    if idle:
        yield _fail(
            "never-ran",
            f"{len(idle)} enabled quantizers never ran in their tower's forward ({scope.where})",
            evidence=list_groups(q.name for q in idle),
            cause="the layer's weight is used by a functional call that goes around the module",
            next_step="exclude them, or change the module so that its quantized forward runs",
        )


def _scaling(quantizer: Quantizer | Declared) -> str:
    """Return in words where the ranges of a quantizer come from: `static per-channel`."""
    return f"{'dynamic' if quantizer.dynamic else 'static'} {quantizer.granularity}"


def _fail_off(off: Mapping[str | None, Sequence[str]], *, intended: int, scope: Scope) -> Verdict:
    """Return FAIL of quantizers that are off, by the pattern that did it, None for none."""
    missing = [name for names in off.values() for name in names]
    patterns = [f"switched off by {pattern!r}" for pattern in off if pattern]
    return _fail(
        "layers-off",
        f"{len(missing)} of {intended} intended layer quantizers are off"
        f"{': ' + listed(patterns) if patterns else ''} ({scope.where})",
        evidence=list_groups_of(
            {f"off by {by!r}" if by else "off": names for by, names in off.items()}
        ),
        cause=(
            "a pattern inside the recipe switches them off again"
            if patterns
            else "they were never switched on, or were disabled after the quantization"
        ),
        next_step="name them in exclude if that is meant, or waive them with a reason and a day",
    )


def judge_depth(audit: Audit, *, scope: Scope) -> Iterator[Verdict]:
    """Yield a FAIL where a recipe means less than half of the blocks of a tower: another depth's.

    One that leaves out a few on purpose, such as the first and the last, is a recipe.
    """
    intended = set(audit.intended)
    # A search leaves layers in full precision by their scores.
    searched = audit.search.layers if audit.search else {}
    alike: dict[tuple[Tower, str], list[Quantizer]] = {}
    for quantizer in audit.quantizers:
        if quantizer.slot == "weight" and quantizer.block is not None:
            if quantizer.module in searched:
                continue
            pattern = _INDEX.sub(".*.", quantizer.name, count=1)
            alike.setdefault((quantizer.tower, pattern), []).append(quantizer)
    left_out: list[Quantizer] = []
    of: dict[Tower, tuple[int, int]] = {}
    for (tower, _), found in alike.items():
        meant = sum(q.name in intended for q in found)
        if tower in scope.towers and 0 < 2 * meant < len(found):
            of.setdefault(tower, (meant, len(found)))
            left_out += [q for q in found if q.name not in intended and not q.enabled]
    left_out = [q for q in left_out if not scope.takes(q.name)]
    if not left_out:
        return
    towers = " and ".join(
        f"{meant} of {count(total, 'block')} of the {tower} tower"
        for tower, (meant, total) in of.items()
    )
    yield _fail(
        "blocks-left-out",
        f"recipe {audit.recipe_name!r} means only {towers}: {len(left_out)} weights are left out "
        f"({scope.where})",
        evidence=list_groups(q.name for q in left_out),
        cause="a pattern that names single blocks, or the block numbers of another model",
        next_step="let the pattern match every block of this model",
        figures={"weights_left_out": len(left_out)},
    )


def judge_bits(audit: Audit, *, where: Where) -> Iterator[Verdict]:
    """Yield a FAIL where searched formats take more bits than the recipe allows."""
    search = audit.search
    if search is None or search.bits is None or search.bits <= search.asked_bits * (1 + 1e-9):
        return
    yield _fail(
        "bits-over",
        f"an average weight takes {search.bits:.3f} bits, and recipe {audit.recipe_name!r} allows "
        f"{search.asked_bits:g} ({where})",
        evidence=list_groups(layer for layer, name in search.layers.items() if not name),
        cause="the search found no solution, or layers were switched off or changed after it",
        next_step="exclude fewer layers, name a narrower format in auto.formats, or allow more "
        "bits",
        figures={"weight_bits": search.bits, "weight_bits_asked": search.asked_bits},
    )


def judge_axis(audit: Audit, *, scope: Scope) -> Iterator[Verdict]:
    """Yield a FAIL for activations with a scale for each channel that a matmul sums over.

    No kernel has that.
    """
    found = [
        quantizer
        for quantizer in audit.quantizers
        if quantizer.enabled
        and quantizer.slot not in ("weight", "other")
        and quantizer.granularity == "per-channel"
        and not quantizer.dynamic
        and not scope.takes(quantizer.name)
    ]
    if not found:
        return
    yield _fail(
        "range-per-channel",
        f"{count(len(found), 'activation quantizer')} have a range per channel ({scope.where})",
        evidence=list_groups(q.name for q in found),
        cause="a wrong axis: a matmul sums over these channels, so their scales cannot be taken "
        "out of the sum, and a runtime falls back to full precision",
        next_step="write axis: null for activations (one range for the whole tensor)",
        figures={"per_channel_activations": len(found)},
    )
