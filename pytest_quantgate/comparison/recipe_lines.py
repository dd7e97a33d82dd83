"""Recipes as lines, one an entry, and what differs between two of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pytest_quantgate.comparison.changes import Change
from pytest_quantgate.models.recipes import format_of_bits

#: What ModelOpt writes into every entry of a recipe and means nothing there.
_DEFAULTS = {
    "calibrator": "max",
    "fake_quant": True,  # what is False is left out anyway
    "pass_through_bwd": True,
    "trt_high_precision_dtype": "Float",
    "type": "static",
}


#: ModelOpt's, where a recipe names none.
DEFAULT_ALGORITHM = "max"

_ALL_OFF = "*: off"


def describe_recipe(config: Any) -> tuple[str, ...]:
    """Return a recipe, in any form that a suite takes, as one line an entry and its algorithm.

    A dict form's `default` comes first, as its authors mean it (`models/recipes.py`).
    """
    lines: list[str] = []
    if isinstance(config, Mapping) and "quant_cfg" in config:
        algorithm = config.get("algorithm") or DEFAULT_ALGORITHM
        if algorithm != DEFAULT_ALGORITHM:
            lines.append(f"algorithm: {show_plain(algorithm)}")
        config = config["quant_cfg"]
    if isinstance(config, (list, tuple)):
        return (*lines, *(describe_entry(entry) for entry in config))
    if not isinstance(config, Mapping):  # a suite may hold it, building it is what refuses it
        return (*lines, f"no entries: {show_plain(config)}")
    first = {name: entry for name, entry in config.items() if name == "default"}
    for name, entry in {**first, **config}.items():
        if str(name).startswith("nn.") and isinstance(entry, Mapping):
            lines += [
                describe_entry({"quantizer_name": pattern, "parent_class": name, **_as_entry(cfg)})
                for pattern, cfg in entry.items()
            ]
        else:
            pattern = "*" if name == "default" else name
            lines.append(describe_entry({"quantizer_name": pattern, **_as_entry(entry)}))
    return tuple(lines)


def _as_entry(cfg: Any) -> dict[str, Any]:
    enable = bool(cfg.get("enable", True)) if isinstance(cfg, Mapping) else True
    return {"cfg": cfg, "enable": enable}


def describe_entry(entry: Any) -> str:
    """Return one recipe entry in words: `*weight_quantizer on nn.Linear: E4M3 per-tensor`."""
    entry = as_mapping(entry)
    pattern, parent = entry.get("quantizer_name", "?"), entry.get("parent_class")
    label = f"{pattern} on {parent}" if parent else str(pattern)
    if not entry.get("enable", True):
        return f"{label}: off"
    cfg = entry.get("cfg")
    parts = cfg if isinstance(cfg, (list, tuple)) else [cfg]
    return f"{label}: {', then '.join(_cfg_words(part) for part in parts)}"


def _cfg_words(cfg: Any) -> str:
    cfg = as_mapping(cfg)
    if not cfg:
        return "on"
    rest = {
        k: v
        for k, v in cfg.items()
        if k not in ("num_bits", "axis", "enable") and v and v != _DEFAULTS.get(k)
    }
    words = format_of_bits(as_bits(cfg.get("num_bits", 8)))
    axis = cfg.get("axis")
    words += " per-tensor" if axis is None else f" per-channel (axis {show_plain(axis)})"
    return f"{words} {show_plain(rest)}" if rest else words


def as_bits(value: Any) -> Any:
    """Return `num_bits` as ModelOpt takes it: a list of exponent and mantissa is a tuple."""
    return tuple(value) if isinstance(value, list) else value


def show_plain(value: Any) -> str:
    """Return plain data in words: `yes`, `type dynamic, 128 4`."""
    if isinstance(value, Mapping):
        return ", ".join(f"{k} {show_plain(v)}" for k, v in value.items())
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)


def as_mapping(value: Any) -> Mapping[str, Any]:
    """Return a mapping as it is, anything else as an empty one."""
    return value if isinstance(value, Mapping) else {}


def compare_recipes(before: Sequence[str], after: Sequence[str]) -> list[Change]:
    """Return what differs between two recipes, and whether they still switch anything on."""
    changes = compare_recipe_lines(before, after)
    on = [bool(_switches_on(side)) for side in (before, after)]
    if not before or not after or on[0] == on[1]:
        return changes
    text = "the recipe switches something on again"
    if on[0]:
        reason = "every entry is off"
        if any(not line.endswith(": off") for line in _entries(after)):
            reason = f"`{_ALL_OFF}` stands behind the entries that switch on, and takes them back"
        text = f"the recipe switches nothing on any more: {reason}"
    change = Change(
        area="recipe",
        kind="switches nothing on" if on[0] else "switches on again",
        subjects=("quant_cfg",),
        text=text,
        before="; ".join(before),
        after="; ".join(after),
    )
    return [change, *changes]


def compare_recipe_lines(before: Sequence[str], after: Sequence[str]) -> list[Change]:
    """Return which recipe entries came, went or moved; later entries win, so order counts."""
    had, has = Counter(before), Counter(after)
    changes = [
        Change(
            area="recipe",
            kind="removed",
            subjects=(line,),
            text=f"recipe entry removed: {line}",
            before=line,
        )
        for line in (had - has).elements()
    ]
    changes += [
        Change(
            area="recipe",
            kind="added",
            subjects=(line,),
            text=f"recipe entry added: {line}",
            after=line,
        )
        for line in (has - had).elements()
    ]
    common = had & has
    if _kept(before, common) != _kept(after, common):
        changes.append(
            Change(
                area="recipe",
                kind="reordered",
                subjects=("quant_cfg",),
                text="the recipe has the same entries in another order (later entries win)",
                before="; ".join(_kept(before, common)),
                after="; ".join(_kept(after, common)),
            )
        )
    return changes


def _entries(lines: Sequence[str]) -> list[str]:
    return [line for line in lines if not line.startswith("algorithm: ")]


def _switches_on(lines: Sequence[str]) -> list[str]:
    """Return the entries that switch on and are not taken back by a later `*: off`."""
    left: list[str] = []
    for line in _entries(lines):
        left = [] if line == _ALL_OFF else [*left, *([] if line.endswith(": off") else [line])]
    return left


def _kept(lines: Sequence[str], common: Counter[str]) -> list[str]:
    left = Counter(common)
    kept = []
    for line in lines:
        if left[line]:
            left[line] -= 1
            kept.append(line)
    return kept
