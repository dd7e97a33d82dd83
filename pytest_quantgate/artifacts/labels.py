"""What the configuration beside a checkpoint says of it, and where its tensors say otherwise."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pytest_quantgate.artifacts.checkpoints import CheckpointFiles
from pytest_quantgate.artifacts.operands import Operand
from pytest_quantgate.artifacts.recipe_lines import as_mapping
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


def read_excluded(files: CheckpointFiles) -> tuple[str, ...]:
    """Return the patterns of modules that the configuration, or ModelOpt's recipe, leaves out."""
    settings = as_mapping(files.config.get("quantization_config"))
    exported = as_mapping(files.export.get("quantization"))
    found: dict[str, None] = {}
    for value in (
        settings.get("ignore"),
        exported.get("exclude_modules"),
        settings.get("modules_to_not_convert"),
    ):
        found |= dict.fromkeys(map(str, value if isinstance(value, list) else ()))
    for entry in map(as_mapping, files.state.quant_cfg if files.state is not None else ()):
        pattern = str(entry.get("quantizer_name", "*"))
        if entry.get("enable") is False and pattern.strip("*"):
            found[pattern] = None
    return tuple(found)


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
    return re.fullmatch(plain, layer) is not None if plain.count(".*") <= 4 else False


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
        for group_name, scheme in as_mapping(settings.get("config_groups")).items():
            if settings.get("quant_method") == "compressed-tensors":
                yield from _compare_scheme(str(group_name), as_mapping(scheme), files, weights)
        yield from _compare_excluded(files, operands)
    yield from _compare_cache(settings, exported, operands)
    if settings and not weights and files.state is None:
        method = settings.get("quant_method", "?")
        yield f"config.json says quant_method {str(method)[:40]}, and no weight has a scale"
    if files.state is not None:
        yield from _compare_state(files)


def _compare_algorithm(name: str, weights: Sequence[Operand]) -> Iterator[str]:
    promised = _ALGORITHMS.get(name)
    if promised is None:
        return
    wanted, scaled = promised
    others = [o for o in weights if o.format != wanted]
    if others:
        found = ", ".join(sorted({o.format for o in others}))
        yield f"labelled {name}, which is {wanted}; {len(others)} weights are {found}"
    coarse = [o for o in weights if o.format == wanted and not o.granularity.startswith(scaled)]
    if coarse:
        found = ", ".join(sorted({o.granularity for o in coarse}))
        yield (
            f"labelled {name}, which has {scaled} scales; {len(coarse)} weights have {found} scales"
        )


def _compare_scheme(
    name: str, scheme: Mapping[str, Any], files: CheckpointFiles, weights: Sequence[Operand]
) -> Iterator[str]:
    said = as_mapping(scheme.get("weights"))
    bits, kind, strategy = said.get("num_bits"), said.get("type"), said.get("strategy")
    wanted = {("float", 8): "E4M3", ("int", 8): "INT8", ("int", 4): "INT4", ("float", 4): "NVFP4"}
    format = wanted.get((str(kind), bits if isinstance(bits, int) else 0))
    others = [o for o in weights if format and o.format != format]
    if others:
        found = ", ".join(sorted({o.format for o in others}))
        yield f"{name[:60]} says {bits} bit {kind} weights ({format}); {len(others)} are {found}"
    scaled = {"tensor": "per-tensor", "channel": "per-channel", "group": "block"}.get(str(strategy))
    coarse = [o for o in weights if scaled and not o.granularity.startswith(scaled)]
    if coarse:
        found = ", ".join(sorted({o.granularity or "no" for o in coarse}))
        yield f"{name[:60]} says strategy {strategy}; {len(coarse)} weights have {found} scales"


def _compare_excluded(files: CheckpointFiles, operands: Sequence[Operand]) -> Iterator[str]:
    excluded = read_excluded(files)
    layers = [o for o in operands if o.slot == "weight" and o.kind in ("linear", "conv")]
    kept = [o.layer for o in layers if o.is_quantized and is_excluded(o.layer, excluded=excluded)]
    if kept:
        yield f"said to be left out, and quantized: {listed(group(kept))}"
    if excluded and any(o.is_quantized for o in layers):
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
