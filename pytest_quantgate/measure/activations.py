"""The largest values inside a model: what the number format that it ships in must hold.

On a CPU the FP16 model is computed in FP32, where nothing overflows: the values say where it would.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pytest_quantgate.encoders.encoder import Batch, Encoder
from pytest_quantgate.encoders.loading import quiet_libraries
from pytest_quantgate.evidence.audit import LayerActivation, Tower
from pytest_quantgate.measure.operations import tensors_in

if TYPE_CHECKING:
    import torch

#: Functions whose result no module returns, and whose size is not that of their inputs.
_MATMULS = frozenset(("matmul", "__matmul__", "bmm", "baddbmm"))

#: A mask holds the lowest float of its type; no activation comes near half of it.
_MASK = 1e38


@dataclass(kw_only=True)
class _Layer:
    tower: Tower
    largest: float = 0.0
    over: set[int] = field(default_factory=set)


@dataclass(kw_only=True)
class ActivationRecorder:
    """The largest magnitude that each module took or gave, in the order in which they ran; one that
    overflows stands where it first did, a layer in front of the block that hands its values on.

    `highest` is the largest magnitude that the format which ships does not round to Inf.
    """

    highest: float
    layers: dict[str, _Layer] = field(default_factory=dict)
    seen: int = 0

    def describe(self) -> tuple[LayerActivation, ...]:
        """Return what was recorded so far."""
        return tuple(
            LayerActivation(
                module=name,
                tower=layer.tower,
                largest=layer.largest,
                overflowing=len(layer.over),
            )
            for name, layer in self.layers.items()
        )

    @contextmanager
    def record(
        self,
        module: torch.nn.Module,
        *,
        tower: Tower,
        ignore: Mapping[str, Any] = {},
        products: bool = True,
    ) -> Iterator[None]:
        """Record one forward of a tower in the block; modules in those of `ignore` are passed over.

        A sample is a row of the first dimension. Global hooks, not one on each module: see
        `quantizers.watch`. `products` are those of attention, which no module returns; to see them
        changes the path that some modules take.
        """
        from torch.nn.modules.module import (
            register_module_forward_hook,
            register_module_forward_pre_hook,
        )
        from torch.overrides import TorchFunctionMode

        hidden = {id(part) for other in ignore.values() for part in other.modules()}
        names = {id(m): name for name, m in module.named_modules() if id(m) not in hidden}
        stack: list[str] = []
        rows = 0

        def note(value: Any) -> None:
            nonlocal rows
            for tensor in tensors_in(value):
                if tensor.is_floating_point() and tensor.dim() > 1 and tensor.numel():
                    rows = max(rows, len(tensor))
                    self._note(stack[-1], tensor, tower=tower)

        def enter(owner: torch.nn.Module, inputs: Any) -> None:
            if id(owner) in names:
                stack.append(names[id(owner)])
                note(inputs)

        def leave(owner: torch.nn.Module, _inputs: Any, output: Any) -> None:
            if id(owner) in names:
                note(output)
                stack.pop()

        class Mode(TorchFunctionMode):
            def __torch_function__(
                self, func: Any, types: Any, args: Any = (), kwargs: Any = None
            ) -> Any:
                kwargs = kwargs or {}
                result = func(*args, **kwargs)
                name = getattr(func, "__name__", "")
                if stack and name in _MATMULS:
                    note(result)
                elif stack and name == "scaled_dot_product_attention":
                    note(_scores(*args, **kwargs))
                return result

        handles = [register_module_forward_pre_hook(enter), register_module_forward_hook(leave)]
        try:
            with Mode() if products else nullcontext():
                yield
        finally:
            for handle in handles:
                handle.remove()
            self.seen += rows

    def _note(self, name: str, value: torch.Tensor, *, tower: Tower) -> None:
        import torch

        layer = self.layers.setdefault(name, _Layer(tower=tower))
        low, high = torch.aminmax(value.detach())
        largest = float(torch.maximum(-low, high))
        if largest <= self.highest:  # NaN is not
            layer.largest = max(layer.largest, largest)
            return
        zero = value == 0
        if bool(zero.any()) and bool((zero | value.isneginf()).all()):
            return  # a mask that is handed from layer to layer
        sizes = (
            value.detach().abs().nan_to_num(nan=torch.inf, posinf=torch.inf).flatten(start_dim=1)
        )
        if value.dtype != torch.float16:
            sizes = sizes.where(~((sizes > _MASK) & (sizes < torch.inf)), 0.0)
        layer.largest = max(layer.largest, float(sizes.amax()))
        over = (sizes > self.highest).any(dim=1).nonzero().flatten().tolist()
        if over and not layer.over:
            self.layers[name] = self.layers.pop(name)
        layer.over |= {self.seen + row for row in over}


def measure_activations(
    model: Encoder, *, batches: Sequence[Batch], highest: float
) -> tuple[LayerActivation, ...]:
    """Return the largest activation of every layer of every tower on these samples."""
    found: list[LayerActivation] = []
    for tower in model.tower_names:
        recorder = ActivationRecorder(highest=highest)
        for batch in batches:
            with quiet_libraries(), recorder.record(model.module, tower=tower):
                model.encode(tower, batch.inputs[tower])
        found += recorder.describe()
    return tuple(found)


def highest_finite(dtype: str) -> float:
    """Return the largest float32 that a format does not round to Inf: the one below 65520 for
    float16, whose largest value is 65504; inf for float32, which computes all of this."""
    import numpy as np
    import torch

    if dtype == "float32":
        return float("inf")
    info = torch.finfo(getattr(torch, dtype))
    # Half a step beyond the largest value is a tie, and rounds to the even neighbour: Inf.
    top = float(info.max)
    step = top * float(info.eps) / (2 - float(info.eps))
    return float(np.nextafter(np.float32(top + step / 2), np.float32(0)))


def _scores(
    query: torch.Tensor, key: torch.Tensor, *_more: Any, scale: float | None = None, **_other: Any
) -> torch.Tensor:
    """Return what a fused attention hands to its softmax, without the mask."""
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    if key.dim() > 2 and key.shape[1] != query.shape[1]:  # grouped queries
        key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
    return (query * factor) @ key.transpose(-2, -1)
