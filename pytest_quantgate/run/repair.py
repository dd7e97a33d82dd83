"""Looks for a mixed-precision recipe that meets all limits of a suite, and judges it on other data.

The search is that of `run/sensitivity.py`, on one half of the samples of each task: for the fewest
groups of layers to leave in full precision and, where the recipe's own format is narrower than
8 bits, for the fewest to put into FP8, of which more are needed that cost half as much. The smaller
of both is taken. The other half has the last word, on the variant that the recipe as it is written
builds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pytest_quantgate.errors import ModelError
from pytest_quantgate.evidence.sensitivity import GroupEffect, QuantizerGroup, Repair
from pytest_quantgate.formats.table import E4M3, find_format
from pytest_quantgate.run.sensitivity import SAMPLES, Study, check_gate, list_patterns, noise_left
from pytest_quantgate.store.keys import REPAIRED

if TYPE_CHECKING:
    from pytest_quantgate.encoders.encoder import Encoder
    from pytest_quantgate.run.measured import Measured

#: The parts of a task's samples: one that is searched, one that is judged.
SEARCHED, JUDGED = 0, 1

#: Variants that are calibrated to try groups in FP8.
MOST_VARIANTS = 5

#: Algorithms of which each quantizer's range comes from its own values alone: one more in E4M3
#: leaves the others as they are.
_INDEPENDENT = (None, "max")


def repair(case: Measured, *, samples: int = SAMPLES) -> Repair:
    """Return the smallest mixed recipe found for the suite of a case.

    Raises ModelError for a variant that was handed over: nothing here built it.
    """
    from pytest_quantgate.measure.exclusion import Search
    from pytest_quantgate.measure.sensitivity import variant_bytes

    spec = case.suite.quantize
    if spec is None:
        raise ModelError(
            f"{case.suite.path.name} hands over a checkpoint, which no recipe of this suite built: "
            f"repair it where it was made; quantgate sensitivity ranks its layers"
        )
    study = Study(case, part=SEARCHED)
    ranking = study.measure(gate=study.weakest_gate(), samples=samples)
    found = study.propose(ranking)
    before = variant_bytes(case.quantized)[0]
    if found.outcome != "found":
        return Repair(
            found=found, weights_bytes=(before, before), verifications=found.verifications
        )
    sizes: dict[tuple[QuantizerGroup, ...], int] = {}

    def meets(effects: tuple[GroupEffect | None, ...]) -> bool:
        groups = tuple(effect.group for effect in effects if effect is not None)
        mixed = with_recipe(case, mix(case, in_full=(), in_fp8=groups))
        sizes[groups] = variant_bytes(mixed.quantized)[0]
        return all(verdict.passed for verdict in study.verdicts(mixed, until_red=True).values())

    narrow = [e for e in ranking.effects if e.noise_only > 0 and _gains(case, e.group)]
    search = Search(meets=meets, budget=MOST_VARIANTS)
    # It never takes all that it is given: here all may go to FP8.
    chosen = search.run([*narrow, None], first=len(found.groups)) if narrow else None
    in_full, in_fp8 = found.groups, tuple(effect.group for effect in chosen or () if effect)
    if in_fp8 and sizes[in_fp8] < before + found.extra_bytes:
        in_full = ()
    else:
        in_fp8 = ()
    judge = Study(case, part=JUDGED)
    now = judge.verdicts(case)
    recipe = mix(case, in_full=in_full, in_fp8=in_fp8)
    mixed = with_recipe(case, recipe)
    after = judge.verdicts(mixed)
    gentler = (*in_full, *in_fp8)
    left = noise_left(ranking, [e for e in ranking.effects if e.group in gentler])
    return Repair(
        found=found,
        in_full=in_full,
        in_fp8=in_fp8,
        recipe=recipe,
        checks=tuple(
            check_gate(name, verdict, after=after[name], ratio=left)
            for name, verdict in now.items()
        ),
        weights_bytes=(before, variant_bytes(mixed.quantized)[0]),
        verifications=found.verifications + len(search.verified),
    )


def mix(
    case: Measured, *, in_full: Sequence[QuantizerGroup], in_fp8: Sequence[QuantizerGroup]
) -> dict[str, Any]:
    """Return ModelOpt's configuration of a suite's recipe with some groups left out or in E4M3.

    Those in E4M3 are named one by one: a pattern would switch on their neighbours as well.
    """
    off = list_patterns(in_full)
    fp8 = {"num_bits": list(E4M3.num_bits), "axis": None}  # type: ignore[arg-type]
    entries = [
        {key: value for key, value in entry.items() if value is not None}
        for entry in case.recipe.quant_cfg
    ]
    entries += [{"quantizer_name": pattern, "enable": False} for pattern in off]
    entries += [
        {"quantizer_name": name, "cfg": fp8, "enable": True}
        for group in in_fp8
        for name in group.quantizers
    ]
    return {"quant_cfg": _plain(entries), "algorithm": _plain(case.recipe.algorithm or "max")}


def with_recipe(case: Measured, config: Mapping[str, Any]) -> Measured:
    """Return the case of the same suite with the variant that a configuration builds."""
    from pytest_quantgate.quantization.recipes import build_recipe, describe_content

    recipe = build_recipe(config, name="repaired")
    key = case.key(REPAIRED, variant=case.variant_key, recipe=describe_content(recipe))
    model: Encoder = case.calibrate(recipe).model
    return case.with_variant(model, key=key)


def _gains(case: Measured, group: QuantizerGroup) -> bool:
    """Return whether E4M3 is a step between a group's format and full precision."""
    formats = {q.name: q.format for q in case.audit.quantizers}
    kinds = [find_format(formats.get(name, "")) for name in group.quantizers]
    return (
        case.recipe.algorithm in _INDEPENDENT
        and bool(group.extra_bytes)
        and all(kind is not None and kind.bits < E4M3.bits for kind in kinds)
    )


def _plain(value: Any) -> Any:
    """Return plain data as YAML has it: lists, and no tuples."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
