"""A checkpoint of ModelOpt, compressed-tensors, torchao or of nobody, operand by operand."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pytest_quantgate.artifacts.checkpoints import (
    CheckpointFiles,
    count_bytes,
    read_quantizers,
)
from pytest_quantgate.artifacts.labels import (
    find_disagreements,
    find_scheme,
    is_renamed,
    name_scheme,
    read_excluded,
)
from pytest_quantgate.artifacts.layers import Layer, find_attentions, find_layers, lies_flat
from pytest_quantgate.artifacts.operands import Artifact, Operand, Slot, largest_of
from pytest_quantgate.artifacts.packed_codes import PackedCodes, read_input_range
from pytest_quantgate.artifacts.recipe_lines import as_mapping
from pytest_quantgate.artifacts.safetensors_file import Tensor, import_numpy
from pytest_quantgate.artifacts.stored_quantizer import StoredQuantizer
from pytest_quantgate.artifacts.weight_summary import summarize_tensor
from pytest_quantgate.formats.table import BY_SAFETENSORS, E4M3, NVFP4, keeps_amax
from pytest_quantgate.quantization.quantizers import owner_of, slot_of, tower_of, whole_name

#: More scales than this are kept as the smallest and the largest alone.
_MOST_RANGES = 1 << 17

_ATTENTION_SLOTS: tuple[Slot, ...] = ("q", "k", "v", "softmax")
_SCALES: Mapping[str, Slot] = {"q_scale": "q", "k_scale": "k", "v_scale": "v"}

_FORMATS = {
    **{dtype: kind.name for dtype, kind in BY_SAFETENSORS.items()},
    "U8": "INT4",
    "I32": "INT4",
}


@dataclass(frozen=True, kw_only=True)
class _Numbers:
    """How one operand is quantized, before its weight was looked at."""

    format: str = ""
    granularity: str = ""
    dynamic: bool = False
    symmetric: bool = True
    ranges: tuple[float, ...] | None = None
    needs_range: bool = True
    fits: bool = True


def describe_checkpoint(files: CheckpointFiles) -> Artifact:
    """Return what a checkpoint holds; raises ArtifactError where a tensor cannot be read."""
    layers = find_layers(files.tensors)
    tool, what = _name_tool(files)
    if files.state is not None:
        quantizers = read_quantizers(files)
        read = _read_renamed if is_renamed(files) else _read_modelopt
        found = dict(read(quantizers, files.tensors))
    elif _method(files) == "torchao" or any(n.endswith("._weight_qdata") for n in files.tensors):
        found = dict(_read_torchao(files, layers))
    else:
        found = dict(_read_scales(files, layers))
    attentions = find_attentions(layer.name for layer in layers)
    operands = tuple(_list_operands(layers, attentions=attentions, found=found))
    return Artifact(
        what=what,
        tool=tool,
        operands=operands,
        bytes_by_type=count_bytes(files.tensors),
        facts=_list_facts(files),
        disagreements=tuple(find_disagreements(files, operands=operands)),
        excluded=read_excluded(files),
        by_max=files.state is not None and files.state.algorithm == "max",
        is_restorable=files.state is not None and not _method(files),
        pre_scaled=any(name.endswith("pre_quant_scale") for name in files.tensors),
    )


def _method(files: CheckpointFiles) -> str:
    return str(as_mapping(files.config.get("quantization_config")).get("quant_method", ""))


def _name_tool(files: CheckpointFiles) -> tuple[str, str]:
    """Return what wrote a checkpoint, and what sort of checkpoint it is."""
    settings = as_mapping(files.config.get("quantization_config"))
    method = _method(files)
    if files.manifest and files.state is not None:
        versions = as_mapping(files.manifest.get("versions"))
        version = str(versions.get("nvidia-modelopt", files.state.version))
        return f"pytest-quantgate with ModelOpt {version}".rstrip(), "checkpoint"
    if files.state is not None:
        way = "mto.save" if files.path.is_file() and files.path.suffix != ".safetensors" else ""
        return f"ModelOpt {files.state.version} ({way or 'save_pretrained'})", "checkpoint"
    if method == "modelopt" or files.export:
        producer = as_mapping(settings.get("producer")) or as_mapping(files.export.get("producer"))
        return f"ModelOpt {_shorten(producer.get('version', ''))} (unified export)", "checkpoint"
    if method == "compressed-tensors":
        return f"compressed-tensors {_shorten(settings.get('version', ''))}".rstrip(), "checkpoint"
    if method == "torchao":
        return "torchao", "checkpoint"
    return _shorten(method), "checkpoint"


def _shorten(value: Any) -> str:
    """Return a label of others, as long as a label is."""
    return str(value)[:60]


def _list_facts(files: CheckpointFiles) -> dict[str, str]:
    facts = {}
    if files.state is not None:
        facts["calibration"] = files.state.algorithm or "none"
        facts["modes"] = ", ".join(files.state.modes)
    algorithm = as_mapping(files.config.get("quantization_config")).get("quant_algo")
    algorithm = algorithm or as_mapping(files.export.get("quantization")).get("quant_algo")
    if algorithm:
        facts["labelled"] = _shorten(algorithm)
    architectures = files.config.get("architectures")
    if isinstance(architectures, list):
        facts["architecture"] = _shorten(", ".join(map(str, architectures[:4])))
    return facts


# -- each tool's own words -------------------------------------------------------------------------

_Found = Iterator[tuple[tuple[str, Slot], _Numbers]]


def _read_renamed(
    quantizers: Mapping[str, StoredQuantizer], tensors: Mapping[str, Tensor]
) -> _Found:
    """Yield the operands that have an amax, each in the format that all of its slot have.

    The quantizers themselves bear other names than the tensors.
    """
    formats: dict[Slot, set[str]] = {}
    for name, quantizer in quantizers.items():
        if quantizer.enabled:
            formats.setdefault(slot_of(name), set()).add(quantizer.format)
    for name, tensor in tensors.items():
        quantizer_name = name.removesuffix("._amax")
        slot = slot_of(quantizer_name)
        if name.endswith("._amax") and len(formats.get(slot, ())) == 1:
            yield (
                (owner_of(quantizer_name), slot),
                _Numbers(
                    format=next(iter(formats[slot])),
                    granularity="per-tensor" if tensor.count == 1 else "per-channel",
                    ranges=_read_ranges(tensor, factor=1.0),
                ),
            )


def _read_modelopt(
    quantizers: Mapping[str, StoredQuantizer], _tensors: Mapping[str, Tensor]
) -> _Found:
    """Yield what ModelOpt's enabled quantizers make of each operand."""
    seen: set[str] = set()
    for name, quantizer in quantizers.items():
        whole = whole_name(name)
        if not quantizer.enabled or whole in seen:  # of two steps the first is what is stored
            continue
        seen.add(whole)
        yield (
            (owner_of(name), slot_of(name)),
            _Numbers(
                format=quantizer.format,
                granularity=_shorten_granularity(quantizer),
                dynamic=quantizer.dynamic,
                ranges=_limit(quantizer.amax),
                needs_range=keeps_amax(quantizer.format, dynamic=quantizer.dynamic),
            ),
        )


def _shorten_granularity(quantizer: StoredQuantizer) -> str:
    """Return `per-tensor`, `per-channel`, `per-token`, `block 128`, or `blocks` of several rows."""
    said = quantizer.granularity.partition(" (")[0]
    if quantizer.dynamic and said == "per-channel" and slot_of(quantizer.name) == "input":
        return "per-token"
    if not said.startswith("block"):
        return said
    sizes = re.findall(r"(-\d+) (\d+)", said)
    return f"block {sizes[0][1]}" if len(sizes) == 1 and sizes[0][0] == "-1" else "blocks"


def _read_scales(files: CheckpointFiles, layers: list[Layer]) -> _Found:
    """Yield what `weight_scale`, `input_scale`, `k_scale` and `v_scale` say of each operand."""
    for layer in layers:
        scale = files.tensors.get(f"{layer.name}.weight_scale")
        if scale is None:
            scale = files.tensors.get(f"{layer.name}.weight_scale_inv")
        kind = _FORMATS.get(layer.tensor.dtype, "")
        if scale is None and not kind:
            continue
        packed = layer.packed
        if packed is not None:
            kind = packed.format
        _, scheme = find_scheme(files, layer=layer.name, kind=layer.kind)
        declared = name_scheme(as_mapping(scheme.get("weights")))
        if (kind, declared) == ("INT8", "INT4"):
            kind = declared  # one code a byte: whether each fits is seen when they are read
        zero = files.tensors.get(f"{layer.name}.weight_zero_point")
        yield (
            (layer.name, "weight"),
            _Numbers(
                format=kind or "unknown",
                granularity=(packed and packed.granularity) or _name_granularity(scale, layer),
                fits=packed.fits if packed is not None else _can_scale(scale, layer),
                symmetric=_is_zero(zero),
                ranges=_read_packed_ranges(packed)
                if packed is not None
                else _read_ranges(scale, factor=largest_of(kind)),
            ),
        )
        declared_input = as_mapping(scheme.get("input_activations"))
        numbers = _read_input(files, layer, declared=declared_input, weight_format=kind)
        if numbers is not None:
            yield (layer.name, "input"), numbers
    for name, tensor in files.tensors.items():
        module, _, last = name.rpartition(".")
        slot = _SCALES.get(last)
        if slot is not None:
            owner = module.rpartition(".")[0] if module.endswith(f"{slot}_proj") else module
            numbers = _Numbers(
                format=E4M3.name,
                granularity="per-tensor",
                ranges=_read_ranges(tensor, factor=E4M3.largest),
            )
            yield (owner, slot), numbers


def _read_input(
    files: CheckpointFiles, layer: Layer, *, declared: Mapping[str, Any], weight_format: str
) -> _Numbers | None:
    """Return how the input of a layer whose weight is quantized is quantized, None if it is not."""
    scale = files.tensors.get(f"{layer.name}.input_scale")
    if scale is None and not declared:
        return None
    format = name_scheme(declared) or weight_format
    # NVFP4's blocks are dynamic, under one static range.
    dynamic = format != NVFP4.name and bool(declared.get("dynamic")) and scale is None
    strategy = str(declared.get("strategy", "tensor"))
    return _Numbers(
        format=format,
        granularity=f"per-{strategy}",
        dynamic=dynamic,
        symmetric=declared.get("symmetric", True) is not False,
        ranges=read_input_range(files.tensors, module=layer.name)
        if format == NVFP4.name
        else _read_ranges(scale, factor=largest_of(format)),
    )


def _read_torchao(files: CheckpointFiles, layers: list[Layer]) -> _Found:
    """Yield what torchao's `_weight_qdata`, `_weight_scale` and metadata say of each operand."""
    for layer in layers:
        if not layer.tensor_name.endswith("._weight_qdata"):
            continue
        scale = files.tensors.get(f"{layer.name}._weight_scale")
        kind = _FORMATS.get(layer.tensor.dtype, "unknown")
        yield (
            (layer.name, "weight"),
            _Numbers(
                format=kind,
                granularity=_name_granularity(scale, layer),
                fits=_can_scale(scale, layer),
                symmetric=_is_zero(files.tensors.get(f"{layer.name}._weight_zero_point")),
                ranges=_read_ranges(scale, factor=largest_of(kind)),
            ),
        )
        said = files.metadata.get(f"{layer.name}.weight", "")
        if '"act_quant_kwargs": {' in said:
            numbers = _Numbers(format=kind, granularity="per-token", dynamic=True)
            yield (layer.name, "input"), numbers


# -- operands --------------------------------------------------------------------------------------


def _list_operands(
    layers: list[Layer],
    *,
    attentions: list[str],
    found: Mapping[tuple[str, Slot], _Numbers],
) -> Iterator[Operand]:
    """Yield every operand, quantized or not, then quantized ones that are of no known layer."""
    seen: set[tuple[str, Slot]] = set()
    for layer in layers:
        base = Operand(layer=layer.name, tower=layer.tower, kind=layer.kind, slot="weight")
        for slot in ("weight", "input", "output"):
            key: tuple[str, Slot] = (layer.name, slot)
            numbers = found.get(key)
            seen.add(key)
            if numbers is None and (layer.kind == "norm" or slot == "output"):
                continue
            if slot == "input" and layer.kind == "embedding" and numbers is None:
                continue
            operand = _apply(replace(base, slot=slot), numbers or _Numbers())
            yield _with_weight(operand, layer) if slot == "weight" else operand
    places = dict.fromkeys(
        (
            *attentions,
            *(owner for owner, slot in found if slot in (*_ATTENTION_SLOTS, "attention_output")),
        )
    )
    for name in places:
        slots: tuple[Slot, ...] = (*_ATTENTION_SLOTS, "attention_output")
        for slot in slots:
            key = (name, slot)
            seen.add(key)
            if key in found or slot != "attention_output":
                base = Operand(layer=name, tower=tower_of(name), kind="attention", slot=slot)
                yield _apply(base, found.get(key, _Numbers()))
    for (name, slot), numbers in found.items():
        if (name, slot) not in seen:
            base = Operand(layer=name, tower=tower_of(name), kind="other", slot=slot)
            yield _apply(base, numbers)


def _apply(operand: Operand, numbers: _Numbers) -> Operand:
    return replace(
        operand,
        format=numbers.format,
        granularity=numbers.granularity,
        dynamic=numbers.dynamic,
        symmetric=numbers.symmetric,
        ranges=numbers.ranges,
        needs_range=numbers.needs_range and not numbers.dynamic,
        fits=numbers.fits,
    )


def _with_weight(operand: Operand, layer: Layer) -> Operand:
    """Return a weight's operand with what lies in the file; quantized ones are read through."""
    operand = replace(operand, stored=layer.tensor.dtype, values=layer.values)
    if operand.is_quantized and layer.packed is not None and layer.packed.shape[1]:
        return replace(operand, summary=layer.packed.summarize())
    if not operand.is_quantized or layer.is_packed:
        return operand
    number = len(operand.ranges or ())
    is_flat = number <= 1 or lies_flat(operand.granularity, layer.tensor.shape, scales=number)
    ranges = operand.ranges if is_flat else None  # codes are read through all the same
    summary = summarize_tensor(layer.tensor, format=operand.format, ranges=ranges)
    return replace(operand, summary=summary)


def _name_granularity(scale: Tensor | None, layer: Layer) -> str:
    if scale is None:
        return ""
    if scale.count == 1:
        return "per-tensor"
    rows = layer.tensor.shape[0] if layer.tensor.shape else 0
    if scale.count == rows:
        return "per-channel"
    if len(scale.shape) > 1 and scale.shape[0] not in (rows, 1):
        return "blocks"  # of several rows
    return f"block {layer.values // scale.count}" if scale.count else ""


def _can_scale(scale: Tensor | None, layer: Layer) -> bool:
    """Return whether scales are one, one a row, or those of blocks: rows of scales as a matrix."""
    if scale is None or scale.count <= 1:
        return True
    if len(scale.shape) > 1 and 1 not in scale.shape:
        return True  # of blocks, where the last of a row may be a part of one
    return bool(layer.tensor.shape) and scale.count == layer.tensor.shape[0]


def _is_zero(tensor: Tensor | None) -> bool:
    return tensor is None or not tensor.values().any()


def _read_ranges(scale: Tensor | None, *, factor: float) -> tuple[float, ...] | None:
    if scale is None:
        return None
    with import_numpy().errstate(all="ignore"):
        return _limit(tuple((scale.values() * factor).tolist()))


def _read_packed_ranges(packed: PackedCodes) -> tuple[float, ...] | None:
    scales = packed.read_scales()
    if scales is None:
        return None
    with import_numpy().errstate(all="ignore"):
        return _limit(tuple((scales.astype("f8") * largest_of(packed.format)).tolist()))


def _limit(ranges: tuple[float, ...] | None) -> tuple[float, ...] | None:
    """Return ranges, or their extremes (NaN first) where they are very many."""
    if ranges is None or len(ranges) <= _MOST_RANGES:
        return ranges
    odd = tuple(value for value in ranges if value != value)[:1]
    rest = [value for value in ranges if value == value] or [0.0]
    return (*odd, min(rest), max(rest))
