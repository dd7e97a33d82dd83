"""Recipes as lines, one an entry."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pytest_quantgate.formats.table import name_format

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


def describe_recipe(config: Any) -> tuple[str, ...]:
    """Return a recipe, in any form that a suite takes, as one line an entry and its algorithm.

    A dict form's `default` comes first, as its authors mean it (`quantization/recipes.py`).
    """
    lines: list[str] = []
    if isinstance(config, Mapping) and "quant_cfg" in config:
        algorithm = config.get("algorithm") or DEFAULT_ALGORITHM
        if algorithm != DEFAULT_ALGORITHM:
            lines.append(f"algorithm: {show_plain(algorithm)}")
        config = config["quant_cfg"]
    if isinstance(config, Mapping) and isinstance(config.get("auto"), Mapping):
        return (f"auto: {show_plain(config['auto'])}",)
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
    words = name_format(cfg.get("num_bits", 8), block_sizes=cfg.get("block_sizes"))
    axis = cfg.get("axis")
    words += " per-tensor" if axis is None else f" per-channel (axis {show_plain(axis)})"
    return f"{words} {show_plain(rest)}" if rest else words


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
