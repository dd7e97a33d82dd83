"""What the configuration beside a checkpoint says of it, and where its tensors say otherwise."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pytest_quantgate.artifacts.checkpoints import CheckpointFiles
from pytest_quantgate.artifacts.operands import Operand
from pytest_quantgate.artifacts.recipe_lines import as_mapping
from pytest_quantgate.formats.table import E4M3, NVFP4
from pytest_quantgate.text.words import group, listed

#: What ModelOpt's names of algorithms promise: formats of the weight, and how it is scaled.
_ALGORITHMS: Mapping[str, tuple[str, str]] = {
    "FP8": ("E4M3", "per-tensor"),
    "FP8_PER_CHANNEL_PER_TOKEN": ("E4M3", "per-channel"),
    "W8A8_SQ_PER_CHANNEL": ("INT8", "per-channel"),
    "W8A16": ("INT8", "per-channel"),
    "W4A16_AWQ": ("INT4", "block"),
    "W4A8_AWQ": ("INT4", "block"),
    "NVFP4": ("NVFP4", "block"),
}

#: How compressed-tensors names what a scale is for; a group is a part of a row.
_STRATEGIES: Mapping[str, str] = {
    "tensor": "per-tensor",
    "channel": "per-channel",
    "group": "block",
    "tensor_group": "block",
}

#: Classes of PyTorch that are named as targets, and what their layers are called here.
_CLASSES: Mapping[str, str] = {"Linear": "linear", "Conv2d": "conv", "Embedding": "embedding"}


def read_excluded(files: CheckpointFiles) -> tuple[str, ...]:
    """Return the patterns of modules that the configuration, or ModelOpt's recipe, leaves out."""
    found = {str(name): None for names in _list_excluded(files) for name in names}
    for entry in map(as_mapping, files.state.quant_cfg if files.state is not None else ()):
        pattern = str(entry.get("quantizer_name", "*"))
        if entry.get("enable") is False and pattern.strip("*"):
            found[pattern] = None
    return tuple(found)


def _list_excluded(files: CheckpointFiles) -> list[list[Any]]:
    """Return the lists of what is left out that a configuration has, empty ones too."""
    settings = as_mapping(files.config.get("quantization_config"))
    exported = as_mapping(files.export.get("quantization"))
    values = (
        settings.get("ignore"),
        exported.get("exclude_modules"),
        settings.get("modules_to_not_convert"),
    )
    return [value for value in values if isinstance(value, list)]


def is_excluded(layer: str, *, excluded: Sequence[str]) -> bool:
    """Return whether a pattern leaves a module out: a name, with `*`, or `re:...`.

    ModelOpt's are patterns of quantizers.
    """
    names = (layer, f"{layer}.weight_quantizer")
    return any(_matches(name, pattern) for pattern in excluded for name in names)


def _matches(layer: str, pattern: str) -> bool:
    if not pattern.startswith("re:"):
        return fnmatch.fnmatch(layer, pattern)
    # A pattern of others could take for ever: only what stands for any text is taken.
    plain = re.escape(pattern.removeprefix("re:")).replace(r"\.\*", ".*").replace(r"\.", ".")
    return re.match(plain, layer) is not None if plain.count(".*") <= 4 else False


def find_disagreements(files: CheckpointFiles, *, operands: Sequence[Operand]) -> Iterator[str]:
    """Yield, in words, each label that the tensors contradict."""
    settings = as_mapping(files.config.get("quantization_config"))
    exported = as_mapping(files.export.get("quantization"))
    weights = [o for o in operands if o.slot == "weight" and o.is_quantized]
    names = {str(x["quant_algo"])[:60] for x in (settings, exported) if x.get("quant_algo")}
    if len(names) > 1:
        both = " and ".join(sorted(names))
        yield f"config.json and hf_quant_config.json name two algorithms: {both}"
    if files.state is None:
        for name in sorted(names):
            yield from _compare_algorithm(name, weights)
        size = exported.get("group_size")
        if type(size) is int and size > 0:
            blocked = [o for o in weights if o.granularity.startswith("block")]
            said = f"hf_quant_config.json says group_size {size}"
            yield from _compare_scales(said, f"block {size}", blocked)
        if settings.get("quant_method") == "compressed-tensors":
            yield from _compare_groups(files, weights)
        yield from _compare_excluded(files, operands)
    yield from _compare_cache(settings, exported, operands)
    if settings and not weights and files.state is None:
        method = settings.get("quant_method", "?")
        yield f"config.json says quant_method {str(method)[:40]}, and no weight has a scale"
    if files.state is not None:
        yield from _compare_state(files)


def _compare_algorithm(name: str, weights: Sequence[Operand]) -> Iterator[str]:
    promised = _ALGORITHMS.get(name)
    if promised is not None:
        format, scales = promised
        said = f"labelled {name}, which is {format}"
        yield from _compare_formats(said, format, weights)
        found = [o for o in weights if o.format == format]
        yield from _compare_scales(f"labelled {name}, which has {scales} scales", scales, found)


def _compare_formats(said: str, format: str, weights: Sequence[Operand]) -> Iterator[str]:
    """Yield what is said, where weights have another format than that; empty is any."""
    others = [o for o in weights if format and o.format != format]
    if others:
        yield f"{said}; {len(others)} weights are {', '.join(sorted({o.format for o in others}))}"


def _compare_scales(said: str, scales: str, weights: Sequence[Operand]) -> Iterator[str]:
    """Yield what is said, where the scales of weights are for something else."""
    coarse = [o for o in weights if not o.granularity.startswith(scales)]
    if coarse:
        found = ", ".join(sorted({o.granularity or "no" for o in coarse}))
        yield f"{said}; {len(coarse)} weights have {found} scales"


def find_scheme(files: CheckpointFiles, *, layer: str, kind: str) -> tuple[str, Mapping[str, Any]]:
    """Return name and entry of the group of a configuration that a layer is in, empty for none.

    Targets are names of layers, with `*`, `re:...`, or classes of PyTorch; what another class
    means is not known, and may be any.
    """
    settings = as_mapping(files.config.get("quantization_config"))
    groups = {
        str(name)[:60]: as_mapping(group)
        for name, group in as_mapping(settings.get("config_groups")).items()
    }
    by_class: tuple[str, Mapping[str, Any]] = ("", {})
    for name, entry in groups.items():
        targets = entry.get("targets")
        for target in map(str, targets if isinstance(targets, list) else ("Module",)):
            if _matches(layer, target):
                return name, entry
            is_class = target.isidentifier() and target[:1].isupper()
            if is_class and _CLASSES.get(target, kind) == kind and not by_class[0]:
                by_class = name, entry
    return by_class


def name_scheme(scheme: Mapping[str, Any]) -> str:
    """Return the format that one entry of a group declares, empty for one that is not known."""
    bits, kind = scheme.get("num_bits"), scheme.get("type")
    if kind == "float":
        return {8: E4M3.name, 4: NVFP4.name}.get(bits, "") if isinstance(bits, int) else ""
    return f"INT{bits}" if kind == "int" and isinstance(bits, int) else ""


def _compare_groups(files: CheckpointFiles, weights: Sequence[Operand]) -> Iterator[str]:
    """Yield where a group of compressed-tensors says something else than its layers are."""
    groups: dict[str, list[Operand]] = {}
    schemes: dict[str, Mapping[str, Any]] = {}
    for o in weights:
        name, scheme = find_scheme(files, layer=o.layer, kind=o.kind)
        groups.setdefault(name, []).append(o)
        schemes[name] = scheme
    for name, found in groups.items():
        if not name:
            yield f"quantized, and in no group: {listed(group(o.layer for o in found))}"
            continue
        said = as_mapping(schemes[name].get("weights"))
        inputs = as_mapping(schemes[name].get("input_activations"))
        bits, kind = said.get("num_bits"), said.get("type")
        format, size = name_scheme(said), said.get("group_size")
        words = f"strategy {said.get('strategy')}"
        scales = _STRATEGIES.get(str(said.get("strategy")), "")
        if scales == "block" and type(size) is int and size > 0:
            scales, words = f"block {size}", f"{words} and group_size {size}"
        yield from _compare_formats(
            f"{name} says {bits} bit {kind} weights ({format})", format, found
        )
        yield from _compare_scales(f"{name} says {words}", scales, found)
        if format and name_scheme(inputs) == format.replace("E4M3", "INT8") != format:
            yield f"{name} says {format} weights and INT8 inputs, which nothing multiplies"
        points = (f"{o.layer}.weight_zero_point" in files.tensors for o in found)
        if said.get("symmetric") is False and not any(points):
            yield f"{name} says asymmetric weights, and no zero point is there"


def _compare_excluded(files: CheckpointFiles, operands: Sequence[Operand]) -> Iterator[str]:
    excluded = read_excluded(files)
    layers = [o for o in operands if o.slot == "weight" and o.kind in ("linear", "conv")]
    kept = [o.layer for o in layers if o.is_quantized and is_excluded(o.layer, excluded=excluded)]
    if kept:
        yield f"said to be left out, and quantized: {listed(group(kept))}"
    if _list_excluded(files) and any(o.is_quantized for o in layers):
        bare = [
            o.layer
            for o in layers
            if o.kind == "linear"
            and not o.is_quantized
            and not is_excluded(o.layer, excluded=excluded)
        ]
        if bare:
            yield f"not said to be left out, and not quantized: {listed(group(bare))}"


def _compare_cache(
    settings: Mapping[str, Any], exported: Mapping[str, Any], operands: Sequence[Operand]
) -> Iterator[str]:
    said = bool(settings.get("kv_cache_scheme") or exported.get("kv_cache_quant_algo"))
    there = any(o.slot in ("k", "v") and o.is_quantized for o in operands)
    if said and not there:
        yield "a quantized k and v is announced (kv_cache), and no k_scale or v_scale is there"
    if there and exported and not said:
        yield "k_scale and v_scale are there, and no quantized k and v is announced (kv_cache)"


def is_renamed(files: CheckpointFiles) -> bool:
    """Return whether the tensors have other names than the quantizers of the state.

    transformers renames the layers of some models (ViT) when it saves them, and back when it loads.
    """
    ranges = [name for name in files.tensors if name.endswith("._amax")]
    return 2 * len(_list_unknown(files)) > len(ranges)


def _list_unknown(files: CheckpointFiles) -> list[str]:
    known = files.state.quantizers if files.state is not None else {}
    owners = (name.removesuffix("._amax") for name in files.tensors if name.endswith("._amax"))
    return [owner for owner in owners if owner not in known]


def _compare_state(files: CheckpointFiles) -> Iterator[str]:
    lost = _list_unknown(files)
    if lost and not is_renamed(files):
        yield f"modelopt_state.pth knows no quantizer of these amax: {listed(group(lost))}"
