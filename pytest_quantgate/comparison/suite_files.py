"""Two suites: gates that came or went, limits that were loosened or tightened, the recipe."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

from pytest_quantgate.artifacts.recipe_lines import describe_recipe
from pytest_quantgate.comparison.changes import Area, Change, Comparison, compare_texts
from pytest_quantgate.comparison.recipe_lines import compare_recipes
from pytest_quantgate.gates.slices import SlicesSpec
from pytest_quantgate.suite.gates import IMPLICIT, GateSection
from pytest_quantgate.suite.load import load_suite
from pytest_quantgate.suite.names import list_suites, name_suite
from pytest_quantgate.suite.specs import ColumnsSpec, QuantizeSpec, Suite
from pytest_quantgate.suite.where import Where

_POINTS = {"max_drop", "max_class_drop", "max_fp16_drop", "max_drop_since_first", "tolerance"}
_SUFFIXES = {"_db": "dB", "_bytes": " bytes", "_ms": " ms"}

#: Where more of it (a larger number, a longer list) lets more through.
_LOOSER_UP = ("max_", "waive", "allow", "tolerance", "min_samples")
#: Where less of it lets more through.
_LOOSER_DOWN = (
    "min_",
    "floor",
    "confidence",
    "attention",
    "towers",
    "samples",
    "held_out_samples",
    "rounds",
    "slices",
    "by",
    "published",
)


def read_suites(path: Path, *, relative_to: Path | None = None) -> dict[str, Suite]:
    """Return the suites of a file or of a folder by their path below it; raises SuiteError.

    Places in them are named relative to `relative_to`.
    """
    root = path if path.is_dir() else path.parent
    files = list_suites(path) if path.is_dir() else [path]
    suites = [
        dataclasses.replace(
            load_suite(file, relative_to=relative_to),
            name=name_suite(file.absolute(), relative_to=root.absolute()),
        )
        for file in files
    ]
    return {suite.name: suite for suite in suites}


def compare_suites(
    before: Mapping[str, Suite],
    after: Mapping[str, Suite],
    *,
    labels: tuple[str, str],
    by_name: bool = True,
) -> Comparison:
    """Return what differs between two sets of suites, or between the only one of each."""
    if not by_name:
        pairs = [(next(iter(before.values())), next(iter(after.values())))]
        gone: list[str] = []
        new: list[str] = []
    else:
        pairs = [(before[name], after[name]) for name in before if name in after]
        gone = [name for name in before if name not in after]
        new = [name for name in after if name not in before]
    changes = [
        Change(
            area="gates",
            kind=kind,
            subjects=(name,),
            text=f"suite {kind}: {name} ({', '.join(_list_gates(here[name])) or 'no gates'})",
        )
        for kind, names, here in (("removed", gone, before), ("added", new, after))
        for name in names
    ]
    same = []
    for old, now in pairs:
        found = compare_suite(old, now)
        changes += found
        if not found:
            same.append(f"{now.name}: the same gates, limits, recipe and data")
    return Comparison(
        kind="suite",
        before=labels[0],
        after=labels[1],
        changes=tuple(changes),
        same=tuple(same),
    )


def compare_suite(before: Suite, after: Suite) -> list[Change]:
    """Return what differs between two suites in meaning: order and comments do not count."""
    changes: list[Change] = []
    name = after.name
    olds, news = gates_by_name(before), gates_by_name(after)
    for gate in olds:
        if gate not in news:
            changes.append(
                Change(
                    area="gates",
                    kind="removed",
                    subjects=(f"{name} {gate}",),
                    text=f"{name}: gate {gate} is gone: nothing decides on it any more "
                    f"(was {olds[gate].where})",
                    before=_summarize(olds[gate]),
                )
            )
    for gate in news:
        if gate not in olds:
            changes.append(
                Change(
                    area="gates",
                    kind="added",
                    subjects=(f"{name} {gate}",),
                    text=f"{name}: gate {gate} added: {_summarize(news[gate])} "
                    f"({news[gate].where})",
                    after=_summarize(news[gate]),
                )
            )
    for gate in (gate for gate in olds if gate in news):
        changes += _compare_section(olds[gate], news[gate], path=f"{name} {gate}", area="limits")
    changes += _compare_recipes(before, after)
    changes += _compare_variants(before, after)
    changes += _compare_artifacts(before, after)
    changes += compare_texts(
        {f"{name} gates.family": before.family},
        {f"{name} gates.family": after.family},
        area="limits",
    )
    changes += _compare_section(before.model, after.model, path=f"{name} model", area="model")
    changes += _compare_section(
        before.calibration, after.calibration, path=f"{name} calibration", area="data"
    )
    for key in [*before.datasets, *(k for k in after.datasets if k not in before.datasets)]:
        old, new = before.datasets.get(key), after.datasets.get(key)
        path = f"{name} datasets.{key}"
        if old is None or new is None:
            kind = "added" if old is None else "removed"
            changes.append(
                Change(
                    area="data",
                    kind=kind,
                    subjects=(path,),
                    text=f"{path}: {kind}: {_summarize(old or new)}",
                )
            )
        else:
            changes += _compare_section(old, new, path=path, area="data")
    return changes


def gates_by_name(suite: Suite) -> dict[str, GateSection]:
    """Return the gates of a suite by `<kind>` or `<kind>[<key>]`, as pytest names them."""
    return {gate.name: gate for gate in suite.gates if gate.kind not in IMPLICIT}


def _list_gates(suite: Suite) -> list[str]:
    return list(gates_by_name(suite))


def _compare_recipes(before: Suite, after: Suite) -> list[Change]:
    old, new = before.variant.recipe, after.variant.recipe
    if old == new:
        return []
    path = f"{after.name} quantize.recipe"
    old_name, new_name = _recipe_name(old), _recipe_name(new)
    changes = []
    if old_name != new_name:
        changes.append(
            Change(
                area="recipe",
                kind="changed",
                subjects=(path,),
                text=f"{path}: {old_name} -> {new_name} ({after.variant.where.of('recipe')})",
                before=old_name,
                after=new_name,
            )
        )
    old_lines, new_lines = _recipe_lines(before.variant), _recipe_lines(after.variant)
    if old_lines is not None and new_lines is not None:
        changes += compare_recipes(old_lines, new_lines)
    if not changes:
        changes.append(
            Change(
                area="recipe",
                kind="changed",
                subjects=(path,),
                text=f"{path}: the inline quant_cfg is written otherwise, entry for entry the same",
            )
        )
    return changes


def _compare_variants(before: Suite, after: Suite) -> list[Change]:
    """Return what differs of where the quantized variant comes from, the recipe aside."""
    words = ["handed over" if suite.quantized else "built here" for suite in (before, after)]
    path = f"{after.name} {'quantized' if after.quantized else 'quantize'}"
    changes = compare_texts({path: words[0]}, {path: words[1]}, area="recipe")
    # One that is built here knows nothing of a checkpoint.
    leave = ("recipe", "checkpoint", "trained") if changes else ("recipe",)
    return changes + _compare_section(
        before.variant, after.variant, path=path, area="recipe", leave=leave
    )


def _compare_artifacts(before: Suite, after: Suite) -> list[Change]:
    """Return what differs of the files that take the place of exports and engines."""
    sides = [_list_artifacts(suite) for suite in (before, after)]
    names = dict.fromkeys([*sides[0], *sides[1]])
    olds, news = (
        {f"{after.name} artifacts.{name}": side.get(name, "built here") for name in names}
        for side in sides
    )
    return compare_texts(olds, news, area="model")


def _list_artifacts(suite: Suite) -> dict[str, str]:
    """Return each file that is handed over by its key, and the prefix."""
    found: dict[str, str] = {}
    if suite.artifacts is None:
        return found
    if suite.artifacts.prefix is not None:
        found["prefix"] = suite.artifacts.prefix
    for side, files in (("", suite.artifacts), ("fp16.", suite.artifacts.fp16)):
        if files is not None:
            for key, paths in (("onnx", files.onnx), ("engine", files.engine)):
                found |= {f"{side}{key}.{tower}": path for tower, path in paths.items()}
            found |= {
                f"{side}engine_report.{tower}": _summarize(spec)
                for tower, spec in files.engine_report.items()
            }
    return found


def _recipe_name(recipe: Any) -> str:
    if recipe == "":
        return "as the checkpoint declares"
    return recipe if isinstance(recipe, str) else "inline quant_cfg"


def _recipe_lines(spec: QuantizeSpec) -> tuple[str, ...] | None:
    """Return the entries of an inline or named recipe; None for one that only ModelOpt knows."""
    from pytest_quantgate.quantization.recipes import named_recipes

    recipe = spec.recipe
    if isinstance(recipe, str):
        config = named_recipes().get(recipe)
        return None if config is None else describe_recipe(config)
    return describe_recipe(recipe)


def _compare_section(
    before: Any, after: Any, *, path: str, area: Area, leave: Sequence[str] = ()
) -> list[Change]:
    """Return a change for every field that differs, with what a limit's change means."""
    changes = []
    for item in dataclasses.fields(before):
        if item.name in ("where", *leave):
            continue
        old, new = getattr(before, item.name), getattr(after, item.name)
        key = _written(item.name)
        section = old or new
        if isinstance(section, ColumnsSpec):  # without one, all of its keys are left out
            bare = ColumnsSpec(where=section.where)
            below = f"{path}.{key}"
            changes += _compare_section(old or bare, new or bare, path=below, area=area)
            continue
        if isinstance(old, SlicesSpec) and isinstance(new, SlicesSpec):
            changes += _compare_section(old, new, path=f"{path}.{key}", area=area)
            continue
        if _plain(old) == _plain(new):
            continue
        kind = _direction(item.name, old, new) if area in ("limits", "data") else "changed"
        where: Where = after.where
        place = where.of(key) if new is not None else before.where.of(key)
        word = f", {kind}" if kind != "changed" else ""
        shown = (show_value(item.name, old), show_value(item.name, new))
        changes.append(
            Change(
                area=area,
                kind=kind,
                subjects=(f"{path}.{key}",),
                text=f"{path}.{key}: {shown[0]} -> {shown[1]}{word} ({place})",
                before=shown[0],
                after=shown[1],
            )
        )
    return changes


def _direction(name: str, old: Any, new: Any) -> str:
    """Return whether a limit was `loosened` or `tightened`; `changed` where it is neither."""
    up = name.startswith(_LOOSER_UP)
    if not up and not name.startswith(_LOOSER_DOWN):
        return "changed"
    if isinstance(old, str) or isinstance(new, str):
        # `attention` of an engine: fused-fp8 is the stricter one.
        rank = {None: 0, "fused": 1, "fused-fp8": 2}
        if old in rank and new in rank:
            return "loosened" if rank[new] < rank[old] else "tightened"
        return "changed"
    if name == "attention" and (old is None or new is None):
        return "changed"  # None is what the recipe promises
    if isinstance(old, tuple) or isinstance(new, tuple):
        had, has = {str(_plain(v)) for v in old or ()}, {str(_plain(v)) for v in new or ()}
        if had < has:
            return "loosened" if up else "tightened"
        if has < had:
            return "tightened" if up else "loosened"
        return "changed"
    if name == "samples" and (old is None or new is None):
        return "loosened" if old is None else "tightened"  # None is all of them
    if name == "min_samples":
        old, new = old or 0, new or 0  # None leaves out none
    if name == "published" and None not in (old, new):
        return "changed"
    if old is None or new is None:
        return "tightened" if old is None else "loosened"
    return "loosened" if (new > old) == up else "tightened"


def _written(name: str) -> str:
    """Return a field's key in the file: `min_sqnr_db` is written `min_sqnr: 20dB`."""
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    return name


def show_value(name: str, value: Any) -> str:
    """Return a suite's value as it would be written there; `none` where it is not set."""
    if value is None:
        return "none"
    for suffix, unit in _SUFFIXES.items():
        if name.endswith(suffix):
            return f"{value:g}{unit}" if isinstance(value, float) else f"{value}{unit}"
    if isinstance(value, Fraction):
        if name in _POINTS:
            return f"{float(value * 100):.12g}pp"
        if name.endswith("_ratio"):
            return f"{float(value):.12g}x"
        return f"{float(value * 100):.12g}%"
    if isinstance(value, tuple):
        return f"[{', '.join(show_value(name, v) for v in value)}]"
    return _summarize(value)


def _summarize(value: Any) -> str:
    """Return the fields of a section that are set, as in a flow mapping."""
    if not dataclasses.is_dataclass(value):
        return str(value)
    parts = []
    for item in dataclasses.fields(value):
        found = getattr(value, item.name)
        if item.name == "where" or found is None or found == item.default:
            continue
        parts.append(f"{_written(item.name)}: {show_value(item.name, found)}")
    return "{" + ", ".join(parts) + "}"


def _plain(value: Any) -> Any:
    """Return a value without its place in the file."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            item.name: _plain(getattr(value, item.name))
            for item in dataclasses.fields(value)
            if item.name != "where"
        }
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    return value
