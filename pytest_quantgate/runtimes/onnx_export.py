"""Exports one tower to standard ONNX: every quantizer that runs becomes a Q/DQ pair, none is added.

ModelOpt's own exporter is not used, for what it does to a CLIP (0.47): it re-quantizes
convolution weights that the user excluded, puts pairs behind Softmax that PyTorch did not
simulate, leaves operators of the domain `trt`, rewrites the weights several times (24 to 56 s for
a tower of ViT-B/32), and fails on transformers 5 in `export_fp8_mha`, because attention passes
`scale` as a Python float. Here PyTorch traces the tower without its weights; each quantizer
leaves one mark with its own name in the trace, and the marks are replaced by standard operators.
"""

from __future__ import annotations

import copy
import functools
import io
import json
import re
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pytest_quantgate.encoders.encoder import Encoder
from pytest_quantgate.encoders.loading import quiet_libraries
from pytest_quantgate.encoders.towers import TowerSpec
from pytest_quantgate.errors import MissingPackage, ModelError
from pytest_quantgate.evidence.audit import TowerName
from pytest_quantgate.formats.table import E4M3, INT4, NVFP4, TABLE, name_format, read_blocks
from pytest_quantgate.quantization.emulation import (
    kernels_for,
    scale_blocks,
    scale_nvfp4_tensor,
)
from pytest_quantgate.quantization.modelopt import import_modelopt
from pytest_quantgate.quantization.quantizers import (
    amax_of,
    find_quantizers,
    format_of,
    is_dynamic,
    plain_class,
    plain_class_name,
    slot_of,
    whole_name,
)
from pytest_quantgate.runtimes.onnx_surgery import (
    MARK,
    MARK_DOMAIN,
    StoredQuantizer,
    find_marks,
    finish_graph,
)

if TYPE_CHECKING:
    import torch

Precision = Literal["float32", "float16", "bfloat16"]

#: FP8 in QuantizeLinear came with opset 19; PyTorch's tracing exporter writes up to 20.
OPSETS = (19, 20)

#: What a quantizer may round to and become a Q/DQ pair; weights may be in blocks of INT4 too.
WRITTEN = tuple(row for row in TABLE if row.torch_dtype or (row.scale_bits and row.onnx_type))
WEIGHTS_ALONE = (INT4,)
_WRITTEN_WORDS = ", ".join(row.name for row in WRITTEN)

_IN_SEQUENTIAL = re.compile(r"/([^/]+)/\1\.(\d+)(?=/)")

#: A probability is at most 1, so that is the range of a quantizer behind Softmax.
SOFTMAX_AMAX = 1.0


@dataclass(frozen=True, kw_only=True)
class ExportedOnnx:
    """One tower in one file.

    `quantizers` are those that became Q/DQ, by their name in the model; `declared_extra` those of
    them that PyTorch does not simulate (softmax pairs, when asked for); `not_executed` those that
    are enabled and never ran in a forward of this tower, and so are not in the graph either.
    `inputs` and `output` are the graph's names; `seconds` is what the export took.
    """

    path: Path
    tower: TowerName
    precision: Precision
    opset: int
    dynamic_batch: bool
    inputs: tuple[str, ...]
    output: str
    quantizers: tuple[str, ...]
    declared_extra: tuple[str, ...]
    not_executed: tuple[str, ...]
    file_bytes: int
    seconds: float


def export_tower(
    model: Encoder,
    *,
    tower: TowerName,
    path: Path,
    dynamic_batch: bool = True,
    batch: int = 1,
    opset: int = 20,
    softmax: bool = False,
    precision: Precision = "float32",
) -> ExportedOnnx:
    """Write one tower of `model` (FP16 or quantized) to `path` and return what is in it.

    Inputs are `pixel_values` [N, 3, H, W] (of `precision`), or `input_ids` and `attention_mask`
    [N, T] (int64, T as `Encoder.tokenize` pads); the output `embeddings` [N, D] is float32, not
    normalised, as `encode_image` and `encode_text` give it. N is free with `dynamic_batch`, else
    `batch`. `softmax` puts a pair with the range [0, 1] behind Softmax in every attention block:
    TensorRT fuses FP8 attention only then; `simulate_softmax` gives the PyTorch model of it.
    `float32` runs in ONNX Runtime; `float16` and `bfloat16` are strongly typed graphs for TensorRT,
    the latter of opset 22, in which convolutions take bfloat16.
    The model stays as it is. Raises ModelError for a quantizer that standard ONNX cannot hold
    (dynamic, without amax, of another format), MissingPackage without onnx.
    """
    _require_onnx()
    if opset not in OPSETS:
        raise ModelError(f"opset {opset}: this exporter writes opset {OPSETS[0]} to {OPSETS[1]}")
    started = time.perf_counter()
    spec = model.tower(tower)
    module = _copy_tower(model.module, tower=spec)
    spec.freeze(module)
    sample = spec.make_example(1 if dynamic_batch else batch)
    extra = _open_attention(module, tower=spec, softmax=softmax)
    quantizers = find_quantizers(module)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, quantizer in quantizers.items():
        label = name if quantizer.is_enabled else None
        quantizer.forward = _marker(label, quantizer, shapes=shapes)
    anything = any(quantizer.is_enabled for quantizer in quantizers.values())
    trace = _trace(module, sample, opset=opset, dynamic_batch=dynamic_batch, has_marks=anything)
    marked = set(find_marks(trace))
    stored = {
        name: _describe(name, q, shape=shapes[name])
        for name, q in quantizers.items()
        if name in marked
    }
    inputs = tuple(sample)
    with kernels_for({q.format.name for q in stored.values()}, module=module):
        opset = finish_graph(
            trace,
            tensors={**dict(module.named_parameters()), **dict(module.named_buffers())},
            stored=stored,
            inputs=inputs,
            precision=precision,
            metadata={
                "quantgate.tower": tower,
                "quantgate.precision": precision,
                "quantgate.weights": model.weights_digest,
                "quantgate.quantizers": json.dumps(list(stored)),
                "quantgate.extra": json.dumps(list(extra)),
            },
            path=path,
        )
    return ExportedOnnx(
        path=path,
        tower=tower,
        precision=precision,
        opset=opset,
        dynamic_batch=dynamic_batch,
        inputs=inputs,
        output="embeddings",
        quantizers=tuple(stored),
        declared_extra=extra,
        not_executed=tuple(
            name for name, q in quantizers.items() if q.is_enabled and name not in marked
        ),
        file_bytes=path.stat().st_size,
        seconds=time.perf_counter() - started,
    )


def simulate_softmax(model: Encoder) -> Encoder:
    """Return a copy of a quantized model that also rounds what comes out of Softmax to E4M3.

    That is what an export with `softmax=True` computes: judge its accuracy by this model. The
    pairs are quantizers of the copy (`....self_attn.softmax_quantizer`, amax 1).
    Raises ModelError where attention is not quantized.
    """
    module = copy.deepcopy(model.module)
    for tower in model.towers:
        _open_attention(_hold(module, tower=tower), tower=tower, softmax=True)
    return replace(model, module=module)


def _copy_tower(module: torch.nn.Module, *, tower: TowerSpec) -> Any:
    """Return a float32 copy of one tower on the CPU.

    Tensors that are float32 on the CPU already are shared, not copied: nothing here writes them.
    """
    import torch

    held = _hold(module, tower=tower)
    tensors = [*held.parameters(), *held.buffers()]
    kinds = {(t.device.type, t.dtype) for t in tensors if t.is_floating_point()}
    if kinds == {("cpu", torch.float32)}:
        return copy.deepcopy(held, {id(tensor): tensor for tensor in tensors})
    return copy.deepcopy(held).to("cpu", torch.float32)


def _hold(module: torch.nn.Module, *, tower: TowerSpec) -> Any:
    """Return a module that is one tower alone, whose parts have the names they have in the model.

    Raises ModelError for a model without such parts.
    """
    from torch import nn

    missing = [part for part in tower.parts if not hasattr(module, part)]
    if missing:
        raise ModelError(
            f"{type(module).__name__} has no {missing[0]!r}: it is not the model that its family "
            f"describes"
        )

    class Tower(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = module.config
            for part in tower.parts:
                self.add_module(part, getattr(module, part))

        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            return tower.embed(self, dict(zip(tower.inputs, inputs, strict=True))).float()

    return Tower().eval()


def _find_executed(module: Any, *, tower: TowerSpec) -> frozenset[str]:
    """Return the enabled quantizers that a forward of one tower calls, by their names.

    Being enabled proves nothing: which of them run depends on ModelOpt's attention class and on
    the attention implementation.
    """
    import torch

    quantizers = find_quantizers(module)
    executed: set[str] = set()

    def record(name: str) -> Callable[[torch.Tensor], torch.Tensor]:
        def forward(value: torch.Tensor) -> torch.Tensor:
            executed.add(name)
            return value

        return forward

    for name, quantizer in quantizers.items():
        quantizer.forward = record(name)
    like = next(module.parameters())
    kinds = {True: like.dtype, False: None}
    example = [
        value.to(device=like.device, dtype=kinds[value.is_floating_point()])
        for value in tower.make_example(1).values()
    ]
    try:
        with torch.inference_mode(), quiet_libraries():
            module(*example)
    finally:
        for quantizer in quantizers.values():
            del quantizer.forward
    return frozenset(name for name in executed if quantizers[name].is_enabled)


def _open_attention(module: Any, *, tower: TowerSpec, softmax: bool) -> tuple[str, ...]:
    """Make every fused attention of a tower its parts, in place; return the softmax pairs added.

    Quantizers inside a fused attention have no place in an ONNX graph that a runtime reads: q, k
    and v must be quantized between the projections and the matmuls. Only those are called that
    the model itself calls.
    """
    found = [
        (name, child)
        for name, child in module.named_modules()
        if plain_class_name(child) in tower.attention
    ]
    if tower.attention and not found:
        names = " or ".join(tower.attention)
        raise ModelError(f"no {names} found in the {tower.name} tower")
    executed = _find_executed(module, tower=tower)
    added = []
    for name, attention in found:
        active = {part for part, _ in attention.named_children() if f"{name}.{part}" in executed}
        if softmax and not {"softmax_quantizer", "p_bmm_quantizer"} & active:
            if not {"q_bmm_quantizer", "k_bmm_quantizer", "v_bmm_quantizer"} <= active or not all(
                format_of(attention.get_submodule(part)) == E4M3 for part in active
            ):
                raise ModelError(
                    f"softmax pairs were asked for, and attention {name} is not quantized to E4M3 "
                    f"(quantizers that ran: {', '.join(sorted(active)) or 'none'}): use a recipe "
                    f"with attention, such as fp8-attention, or drop softmax",
                    code="export.softmax-impossible",
                )
            added.append(f"{name}.softmax_quantizer")
            attention.softmax_quantizer = _make_softmax_quantizer(like=attention.q_bmm_quantizer)
            active.add("softmax_quantizer")
        attention.forward = functools.partial(
            _attend_in_parts, attention, plain_class(attention), frozenset(active)
        )
    # Attention in parts takes its mask as numbers to add; only this copy's config changes.
    for name in tower.parts:
        for part in module.get_submodule(name).modules():
            if hasattr(part, "config"):
                part.config._attn_implementation = "eager"
    return tuple(added)


def _attend_in_parts(
    attention: Any, plain: Any, active: frozenset[str], *inputs: Any, **options: Any
) -> Any:
    """Return what the plain class of an attention module gives, its product in parts, of which
    the `active` ones of the module's quantizers are called."""
    from torch.nn import functional

    fused = functional.scaled_dot_product_attention
    config = getattr(attention, "config", None)
    masks = getattr(config, "_attn_implementation", None)
    functional.scaled_dot_product_attention = functools.partial(_attend, attention, active)
    try:
        if config is not None:
            config._attn_implementation = "sdpa"
        return plain.forward(attention, *inputs, **options)
    finally:
        functional.scaled_dot_product_attention = fused
        if config is not None:
            config._attn_implementation = masks


def _attend(
    attention: Any,
    active: frozenset[str],
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attn_mask: torch.Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> torch.Tensor:
    """`scaled_dot_product_attention` [N, H, T, D] as two products and a softmax."""
    import torch

    def quantize(slot: str, found: torch.Tensor) -> torch.Tensor:
        name = f"{slot}_quantizer"
        return attention.get_submodule(name)(found) if name in active else found

    if dropout_p or enable_gqa:
        raise ModelError("attention with dropout, or of fewer keys than queries, is not exported")
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    query, key = quantize("q_bmm", query), quantize("k_bmm", key)
    weights = torch.matmul(query, key.transpose(-2, -1)) * scale
    if is_causal:
        attn_mask = torch.ones(weights.shape[-2:], dtype=torch.bool).tril()
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        nothing = torch.zeros_like(attn_mask, dtype=weights.dtype)
        attn_mask = nothing.masked_fill(~attn_mask, torch.finfo(weights.dtype).min)
    if attn_mask is not None:
        weights = weights + attn_mask
    weights = torch.softmax(weights, dim=-1)
    weights = quantize("softmax", quantize("p_bmm", weights))
    return quantize("bmm2_output", torch.matmul(weights, quantize("v_bmm", value)))


def _make_softmax_quantizer(*, like: Any) -> Any:
    """Return an E4M3 quantizer with the range of a probability, on the device of `like`."""
    import torch

    modelopt = import_modelopt("modelopt.torch.quantization.nn")
    settings = import_modelopt("modelopt.torch.quantization.config").QuantizerAttributeConfig
    quantizer = modelopt.TensorQuantizer(settings(num_bits=E4M3.num_bits, axis=None))
    quantizer.amax = torch.tensor(SOFTMAX_AMAX)
    return quantizer.to(like.amax.device).eval()


def _describe(name: str, quantizer: Any, *, shape: tuple[int, ...]) -> StoredQuantizer:
    """Return what the graph needs of a quantizer that is given values of a shape.

    Raises ModelError where ONNX cannot hold it.
    """
    import torch

    kind = format_of(quantizer)
    amax = amax_of(quantizer)
    blocks = read_blocks(quantizer.block_sizes)
    is_weight = slot_of(name) == "weight"
    per_token = _is_per_token(quantizer, rank=len(shape))
    has_scales = kind is not None and kind.scale_bits is not None
    needs_amax = not per_token and not (kind is not None and kind.amax == "none")
    reason = ""
    if whole_name(name) != name:
        reason = "it is one of several formats that are rounded to one after another"
    elif kind not in WRITTEN and not (kind in WEIGHTS_ALONE and is_weight):
        found = name_format(quantizer.num_bits, block_sizes=quantizer.block_sizes)
        reason = f"its format is {found}, this export writes {_WRITTEN_WORDS}, and weights in INT4"
    elif is_dynamic(quantizer) and not per_token and not has_scales:
        reason = "its range is taken from each batch"
    elif blocks and not is_weight and not (has_scales and is_dynamic(quantizer)):
        reason = "its range is taken from each block"
    elif blocks and set(blocks) != {-1}:
        reason = f"its blocks are along {len(blocks)} axes, those of ONNX along one"
    elif blocks and not is_weight and shape[-1] % blocks[-1]:
        reason = f"its rows of {shape[-1]} values are no whole blocks of {blocks[-1]}"
    elif needs_amax and amax is None:
        reason = "it has no amax: calibrate it, or leave it out"
    elif amax is not None and (not bool(torch.isfinite(amax).all()) or bool((amax < 0).any())):
        reason = "its amax is negative, NaN or Inf"
    elif getattr(quantizer, "_unsigned", False):
        reason = "it is unsigned"
    elif amax is not None and not blocks and _count_axes(amax) > 1:
        reason = f"its amax has the shape {list(amax.shape)}, ONNX takes one axis"
    elif getattr(quantizer, "rotate_is_enabled", False) or quantizer.bias is not None:
        reason = "it rotates its input or shifts it by a bias"
    elif quantizer.backend is not None:
        reason = f"it has a backend of its own ({quantizer.backend})"
    elif not quantizer.fake_quant or not getattr(quantizer, "_if_quant", True):
        reason = "it does not fake-quantize (calibrating, or weights already compressed)"
    if reason:
        raise ModelError(f"{name} cannot become a Q/DQ pair: {reason}")
    assert kind is not None
    axis = None
    if per_token:
        amax = torch.tensor(1.0)
    elif amax is None:
        amax = torch.tensor(kind.largest)  # blocks come to the pair divided by their own scales
    elif not blocks:
        axis = next((i for i, size in enumerate(amax.shape) if size > 1), None)
    is_whole = axis is None and (not blocks or amax.numel() == 1)
    has_computed = has_scales and not is_weight
    return StoredQuantizer(
        name=name,
        format=kind,
        slot=slot_of(name),
        amax=amax.detach().float().cpu().reshape(() if is_whole else -1).numpy(),
        axis=axis,
        block_size=blocks.get(-1),
        per_token=per_token,
        shape=shape,
        tensor_scale=float(scale_nvfp4_tensor(amax)) if has_computed and kind == NVFP4 else None,
        find_scales=functools.partial(scale_blocks, quantizer)
        if is_weight and has_scales
        else None,
        fake_quantize=functools.partial(type(quantizer).forward, quantizer),
    )


def _is_per_token(quantizer: Any, *, rank: int) -> bool:
    """Return whether an FP8 range is taken for each row of the last of so many axes."""
    return (
        format_of(quantizer) == E4M3
        and is_dynamic(quantizer)
        and not quantizer.block_sizes
        and quantizer.axis == tuple(range(rank - 1))
    )


def _count_axes(amax: torch.Tensor) -> int:
    """Return along how many axes a range varies."""
    return sum(size > 1 for size in amax.shape)


def _marker(
    name: str | None, quantizer: Any, *, shapes: dict[str, tuple[int, ...]]
) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a forward that leaves one node with the quantizer's name in the trace.

    The shape of the value is put into `shapes`.

    Without a name the value passes. SmoothQuant's factor is applied as the quantizer itself does,
    also where it is off.
    """
    import torch

    class Mark(torch.autograd.Function):
        @staticmethod
        def symbolic(graph: Any, value: Any, label: str) -> Any:
            return graph.op(f"{MARK_DOMAIN}::{MARK}", value, name_s=label).setType(value.type())

        @staticmethod
        def forward(_ctx: Any, value: torch.Tensor, _label: str) -> torch.Tensor:
            return value.clone()

    def forward(value: torch.Tensor) -> torch.Tensor:
        scale = getattr(quantizer, "_pre_quant_scale", None)
        if scale is not None and quantizer.pre_quant_scale is not None:
            value = value * scale
        if name is None:
            return value
        shapes[name] = tuple(value.shape)
        marked: torch.Tensor = Mark.apply(value, name)
        return marked

    return forward


def _trace(
    module: Any,
    sample: Mapping[str, torch.Tensor],
    *,
    opset: int,
    dynamic_batch: bool,
    has_marks: bool,
) -> Any:
    """Return PyTorch's ONNX graph of the marked tower, without its weights."""
    import onnx
    import torch

    stream: Any = io.BytesIO()  # taken by this exporter, though its annotation says a path
    free = {name: {0: "batch"} for name in (*sample, "embeddings")} if dynamic_batch else None
    with quiet_libraries(), torch.no_grad(), warnings.catch_warnings(record=True) as said:
        tracing: Any = torch.jit
        warnings.simplefilter("always", tracing.TracerWarning)
        try:
            torch.onnx.export(
                module,
                tuple(sample.values()),
                stream,
                dynamo=False,  # the other exporter fails on quantized attention and is no faster
                opset_version=opset,
                export_params=False,
                do_constant_folding=False,  # it would give the transposed weights nameless copies
                input_names=list(sample),
                output_names=["embeddings"],
                dynamic_axes=free,
                custom_opsets={MARK_DOMAIN: 1} if has_marks else None,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            reason = " ".join(str(error).split())[:200]
            raise ModelError(f"PyTorch cannot export this tower to ONNX: {reason}") from error
    fixed = next((found for found in said if "Using len" in str(found.message)), None)
    if fixed is not None and dynamic_batch:
        place = f"{Path(fixed.filename).name}:{fixed.lineno}"
        raise ModelError(
            f"{place} uses len() of a tensor, which the export writes down as the number of "
            f"samples that it is traced with: use .shape[0]"
        )
    found = onnx.load_from_string(stream.getvalue())
    for node in found.graph.node:
        # A part of a Sequential: /blocks/blocks.0/attn, where a list has /blocks.0/attn.
        node.name = _IN_SEQUENTIAL.sub(r"/\1.\2", node.name)
    return found


def _require_onnx() -> None:
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        raise MissingPackage("onnx", extra="clip", purpose="exporting to ONNX") from error
