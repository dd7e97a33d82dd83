"""How far an exported tower is from the PyTorch model, and how far that moves by itself."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_quantgate.encoders.encoder import Batch, Encoder
from pytest_quantgate.encoders.loading import quiet_libraries
from pytest_quantgate.evidence.audit import TowerName
from pytest_quantgate.evidence.onnx import EngineOutputs
from pytest_quantgate.evidence.parity import BlockParity, TowerParity
from pytest_quantgate.measure.fidelity import sum_of_squares, to_db
from pytest_quantgate.quantization.arithmetic import read_arithmetic
from pytest_quantgate.quantization.quantizers import (
    find_quantizers,
    format_of,
    is_dynamic,
    plain_class_name,
)

if TYPE_CHECKING:
    import torch

    from pytest_quantgate.measure.embeddings import Encodes

#: Relative size of a nudge: what rounding adds up to on the way through a few layers in float32.
NUDGE = 1e-6

#: How often the model is nudged: each draw gives as many answers as there are samples.
DRAWS = 2

#: How near to the edge between two steps a value may be rounded either way, relative to itself and
#: to the root mean square of its tensor: ten nudges in float32, or so many roundings of the type
#: that PyTorch computes in.
EDGE, EDGE_ROUNDINGS = 1e-5, 8

#: Shares of the samples whose error is held to a share of the nudged ones: 50 % to 75 %, and 90 %
#: to all. Rounding that falls on the other side of a tie throws a few samples far off and leaves
#: the others alone, here as under a nudge, so neither a mean nor a largest error says anything; a
#: graph that computes something else is off in most of them.
QUANTILES = ((0.5, 0.75), (0.9, 1.0))


def measure_tower_parity(
    *,
    tower: TowerName,
    fp16: Encoder,
    quantized: Encoder,
    exported: Encodes,
    batches: Sequence[Batch],
    optimization: str,
    compared: tuple[BlockParity, ...] = (),
) -> TowerParity:
    """Return the errors of one exported tower on `batches`; `exported` holds it.

    Errors are relative, ||a - b|| / ||b|| over all samples. `compared` are its blocks by
    themselves. Raises ValueError for no batches.
    """
    import torch

    if not batches:
        raise ValueError("parity needs at least one batch of pairs")

    def run(model: Encoder) -> torch.Tensor:
        with quiet_libraries():
            parts = [model.encode(tower, batch.inputs[tower]) for batch in batches]
        return torch.cat(parts).cpu().double()

    reference, approved = run(fp16), run(quantized)
    found = torch.cat([_embed(exported, tower=tower, batch=batch) for batch in batches]).double()
    moved = []
    for seed in range(DRAWS):
        with nudged(quantized, blocks=list_blocks(quantized, tower=tower), seed=seed):
            moved += relative_errors(run(quantized), approved)
    quantiles = compare_errors(relative_errors(found, approved), moved)
    return TowerParity(
        tower=tower,
        samples=len(found),
        quantization_error=relative_error(approved, reference),
        sqnr_torch_db=_sqnr_db(reference, approved),
        sqnr_onnx_db=_sqnr_db(reference, found),
        nonfinite=int((~torch.isfinite(found).all(dim=1)).sum()),
        optimization=optimization,
        blocks=compared,
        **quantiles,
    )


def compare_errors(found: Sequence[float], moved: Sequence[float]) -> dict[str, float]:
    """Return the quantiles of errors of samples and of nudged ones: see `QUANTILES`.

    Each is the error that so many samples have at most; +inf counts, NaN makes all of it NaN.
    """
    (half, most), (high, highest) = QUANTILES
    return {
        "error": _quantile(found, half),
        "floor": _quantile(moved, most),
        "high_error": _quantile(found, high),
        "high_floor": _quantile(moved, highest),
    }


def _quantile(values: Sequence[float], share: float) -> float:
    if any(math.isnan(value) for value in values):
        return math.nan
    return sorted(values)[math.ceil(share * len(values)) - 1]


@dataclass(frozen=True, kw_only=True)
class BlockRun:
    """One call of a block in a forward: what it was called with, and the hidden state it gave."""

    arguments: tuple[Any, ...]
    options: Mapping[str, Any]
    given: torch.Tensor
    result: torch.Tensor


def list_blocks(model: Encoder, *, tower: TowerName) -> tuple[str, ...]:
    """Return the names of a tower's transformer blocks: the members of its outermost ModuleList, or
    of a Sequential of modules of one class that hold Linear layers.

    Where lists hold the tower's attention, one without any holds no blocks.
    """
    from torch import nn

    attention = model.tower(tower).attention

    def attends(part: nn.Module) -> bool:
        return any(plain_class_name(inner) in attention for inner in part.modules())

    def is_list(part: nn.Module) -> bool:
        if isinstance(part, nn.ModuleList):
            return any(True for _ in part.parameters())  # ModelOpt keeps lists of its own
        members = list(part) if isinstance(part, nn.Sequential) else []
        alike = len(members) > 1 and len({type(member) for member in members}) == 1
        return alike and any(isinstance(m, nn.Linear) for m in list(members[0].modules())[1:])

    found: list[str] = []
    own = tuple(f"{part}." for part in model.tower(tower).parts)
    named = [(n, m) for n, m in model.module.named_modules() if f"{n}.".startswith(own)]
    lists = [(name, part) for name, part in named if is_list(part)]
    attending = [(name, part) for name, part in lists if attends(part)]
    for name, part in attending or lists:
        inside = any(name.startswith(f"{block}.") for block in found)
        found += [] if inside else [f"{name}.{index}" for index, _ in part.named_children()]
    return tuple(found)


@dataclass(frozen=True, kw_only=True)
class ExportedPart:
    """What a block of the graph gives: its `result`, and what quantizers in it gave, by name."""

    result: torch.Tensor
    rounded: Mapping[str, torch.Tensor]


def measure_block_parity(
    *,
    tower: TowerName,
    quantized: Encoder,
    blocks: Sequence[str],
    exported: Callable[[str, Batch, Mapping[str, torch.Tensor]], ExportedPart],
    batches: Sequence[Batch],
) -> tuple[BlockParity, ...]:
    """Return the error of each block, given PyTorch's own hidden state before it.

    `exported(block, batch, hidden)` gives the hidden state behind a block where those of others
    are `hidden`, and for no block ("") the embeddings [N, D]. The first block answers for what is
    in front of it as well; what is behind the last one comes last, as `behind ...`.

    PyTorch's block takes the values that the graph's quantizers gave in the place of its own: a
    value on the edge of a step, which a last bit moves by a whole one, then is the same in both.
    What a quantizer of the graph gives is compared with what PyTorch's gives of values as near as
    rounding is (`EDGE`). The worst of them and of the block's result is the error of a sample.
    """
    import torch

    names = {block: block for block in blocks} | {"": f"behind {blocks[-1]}"}
    errors: dict[str, list[float]] = {name: [] for name in names}
    moved: dict[str, list[float]] = {name: [] for name in names}
    for batch in batches:
        runs, embeddings = _record_blocks(quantized, tower=tower, blocks=blocks, batch=batch)
        hidden = {block: run.result for block, run in runs.items()}
        for block in names:
            found = exported(block, batch, hidden)
            if block:
                added = runs[block].result.double() - runs[block].given.double()
                again = functools.partial(_rerun, quantized, block, runs[block])
            else:
                added = embeddings
                again = functools.partial(_rerun_head, quantized, blocks[-1], tower, batch)
            with (
                torch.inference_mode(),
                quiet_libraries(),
                _rounded_alike(quantized, found.rounded, samples=len(added)) as apart,
            ):
                result = again(seed=None)
                worst = [relative_errors(found.result, result, added), *apart.values()]
                for seed in range(DRAWS):
                    moved[block] += relative_errors(again(seed=seed), result, added)
            errors[block] += map(_largest, zip(*worst, strict=True))
    return tuple(
        BlockParity(module=name, **compare_errors(errors[block], moved[block]))
        for block, name in names.items()
    )


def _largest(values: Sequence[float]) -> float:
    return math.nan if any(map(math.isnan, values)) else max(values)


@contextmanager
def _rounded_alike(
    model: Encoder, rounded: Mapping[str, torch.Tensor], *, samples: int
) -> Iterator[dict[str, list[float]]]:
    """Let quantizers give what those of a graph gave for as many samples, while the block runs.

    Yields by quantizer, once it has run, how far the graph's values are from those that PyTorch's
    could give: ||graph - nearest|| / ||graph|| of each sample.
    """
    import torch

    apart: dict[str, list[float]] = {}

    def give(name: str, value: torch.Tensor) -> Callable[..., torch.Tensor]:
        def hook(quantizer: Any, inputs: Any, output: torch.Tensor) -> torch.Tensor:
            given = inputs[0]
            found = value.to(output).reshape(output.shape)
            if is_dynamic(quantizer):  # its pair has the range 1, the scale comes back behind it
                found = found * _token_ranges(given)
            if name not in apart:
                roundings = EDGE_ROUNDINGS * torch.finfo(given.dtype).eps
                size = given.abs() + given.double().square().mean().sqrt().to(given)
                edge = max(EDGE, roundings) * size
                ends = quantizer.forward(given - edge), quantizer.forward(given + edge)
                nearest = found.clamp(min=ends[0], max=ends[1])
                rows = [part.reshape(samples, -1) for part in (found, nearest)]
                apart[name] = relative_errors(*rows)
            return found

        return hook

    quantizers = find_quantizers(model.module)
    handles = [
        quantizers[name].register_forward_hook(give(name, value))
        for name, value in rounded.items()
        if name in quantizers and not _has_block_scales(quantizers[name])
    ]
    try:
        yield apart
    finally:
        for handle in handles:
            handle.remove()


def _has_block_scales(quantizer: Any) -> bool:
    """Return whether a last bit may move the scale of a block, and with it all values of that."""
    kind = format_of(quantizer)
    return kind is not None and kind.scale_bits is not None


def _token_ranges(value: torch.Tensor) -> torch.Tensor:
    """Return the largest magnitude of each row of the last axis, 1 for one without values."""
    import torch

    ranges, least = value.abs().amax(dim=-1, keepdim=True), read_arithmetic().least_range
    return torch.where(ranges <= least, torch.ones_like(ranges), ranges)


def _record_blocks(
    model: Encoder, *, tower: TowerName, blocks: Sequence[str], batch: Batch
) -> tuple[dict[str, BlockRun], torch.Tensor]:
    runs: dict[str, BlockRun] = {}

    def record(name: str) -> Callable[..., None]:
        def hook(_module: Any, arguments: Any, options: Any, output: Any) -> None:
            given = arguments[0] if arguments else options["hidden_states"]
            runs[name] = BlockRun(
                arguments=arguments, options=options, given=given, result=_hidden(output)
            )

        return hook

    handles = [
        model.module.get_submodule(name).register_forward_hook(record(name), with_kwargs=True)
        for name in blocks
    ]
    try:
        embeddings = _embed(model, tower=tower, batch=batch)
    finally:
        for handle in handles:
            handle.remove()
    return {name: runs[name] for name in blocks}, embeddings


def _embed(model: Encodes, *, tower: TowerName, batch: Batch) -> torch.Tensor:
    with quiet_libraries():
        return model.encode(tower, batch.inputs[tower])


def _rerun_head(
    model: Encoder, block: str, tower: TowerName, batch: Batch, *, seed: int | None
) -> torch.Tensor:
    """Return the embeddings, with the hidden state behind `block` nudged where a seed is given."""
    module = model.module.get_submodule(block)

    def change(_module: Any, _inputs: Any, output: Any) -> Any:
        if seed is None:
            return output
        changed = _nudge(_hidden(output), seed=seed)
        return (changed, *output[1:]) if isinstance(output, tuple) else changed

    handle = module.register_forward_hook(change)
    try:
        return _embed(model, tower=tower, batch=batch)
    finally:
        handle.remove()


def _rerun(model: Encoder, block: str, run: BlockRun, *, seed: int | None) -> torch.Tensor:
    """Return what a block gives for its hidden state, nudged where a seed is given."""
    given = run.given if seed is None else _nudge(run.given, seed=seed)
    module = model.module.get_submodule(block)
    with model.forward_context():
        if run.arguments:
            return _hidden(module(given, *run.arguments[1:], **run.options))
        return _hidden(module(**{**run.options, "hidden_states": given}))


def _hidden(output: Any) -> torch.Tensor:
    hidden: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


def _distance(value: torch.Tensor, reference: torch.Tensor) -> float:
    return sum_of_squares(value.cpu().double() - reference.cpu().double())


def _share(distance: float, added: float) -> float:
    """Return the root of a quotient of squares; a block that adds nothing may differ by nothing."""
    if added == 0.0:
        return 0.0 if distance == 0.0 else math.inf
    return math.sqrt(distance / added)


def measure_engine_outputs(
    *,
    tower: TowerName,
    fp16: Encoder,
    quantized: Encoder,
    engine: Encodes,
    exported: Encodes | None,
    batches: Sequence[Batch],
) -> EngineOutputs:
    """Return the noise of one tower's engine, of its ONNX file and of PyTorch against FP16.

    `engine` and `exported` hold that tower. Raises ValueError for no batches.
    """
    import torch

    if not batches:
        raise ValueError("an engine needs at least one batch of pairs")

    def embed(model: Encodes) -> torch.Tensor:
        found = [_embed(model, tower=tower, batch=batch) for batch in batches]
        return torch.cat(found).cpu().double()

    reference, found = embed(fp16), embed(engine)
    return EngineOutputs(
        tower=tower,
        samples=len(found),
        nonfinite=int((~torch.isfinite(found).all(dim=1)).sum()),
        sqnr_engine_db=_sqnr_db(reference, found),
        sqnr_torch_db=_sqnr_db(reference, embed(quantized)),
        sqnr_onnx_db=None if exported is None else _sqnr_db(reference, embed(exported)),
    )


def relative_errors(
    value: torch.Tensor, reference: torch.Tensor, scale: torch.Tensor | None = None
) -> list[float]:
    """Return ||value - reference|| / ||scale|| of each row of [N, ...]; `scale` None: reference."""

    def sizes(rows: torch.Tensor) -> list[float]:
        return [sum_of_squares(row) for row in rows]

    apart = value.cpu().double() - reference.cpu().double()
    return list(map(_share, sizes(apart), sizes(reference if scale is None else scale)))


def relative_error(value: torch.Tensor, reference: torch.Tensor) -> float:
    """Return ||value - reference|| / ||reference||, both [N, D]; +inf where all should be 0."""
    return _share(_distance(value, reference), sum_of_squares(reference))


@contextmanager
def nudged(model: Encoder, *, blocks: Sequence[str], seed: int) -> Iterator[None]:
    """Change each value that blocks are given by a random 1e-6 of itself while the block runs.

    Each by its own: a common factor would be undone by the LayerNorm that follows.
    """

    def change(_module: Any, arguments: Any, options: Any) -> Any:
        if arguments:
            return (_nudge(arguments[0], seed=seed), *arguments[1:]), options
        return (), {**options, "hidden_states": _nudge(options["hidden_states"], seed=seed)}

    handles = [
        model.module.get_submodule(block).register_forward_pre_hook(change, with_kwargs=True)
        for block in blocks
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _nudge(value: torch.Tensor, *, seed: int) -> torch.Tensor:
    """Change each value by a random 1e-6 of itself, by the same in every sample [N, ...].

    Tokens that all samples begin or end with (the class token, padding) round alike in all of them.
    """
    import torch

    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(value.shape[1:], generator=generator).to(value)
    return value * (1 + NUDGE * noise)


def _sqnr_db(reference: torch.Tensor, value: torch.Tensor) -> float:
    return to_db(sum_of_squares(reference), sum_of_squares(reference - value))
