"""Records the matrix operations of a forward and which operands came out of a quantizer.

A walker over modules misses whatever is called as a function: attention, `torch.matmul` with a
parameter, `nn.MultiheadAttention`. This looks at the calls themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pytest_quantgate.evidence.audit import Operation, Slot, Tower
from pytest_quantgate.measure.side_paths import find_branch_storages
from pytest_quantgate.quantization.quantizers import (
    block_of,
    plain_class_name,
    slot_of,
    tower_of,
    whole_name,
)

if TYPE_CHECKING:
    import torch

#: PyTorch function name -> (our name, operand names by position).
FUNCTIONS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "linear": ("linear", ("input", "weight")),
    "conv1d": ("conv", ("input", "weight")),
    "conv2d": ("conv", ("input", "weight")),
    "conv3d": ("conv", ("input", "weight")),
    "matmul": ("matmul", ("left", "right")),
    "__matmul__": ("matmul", ("left", "right")),
    "__rmatmul__": ("matmul", ("left", "right")),
    "bmm": ("matmul", ("left", "right")),
    "mm": ("matmul", ("left", "right")),
    "addmm": ("matmul", ("bias", "left", "right")),
    "baddbmm": ("matmul", ("bias", "left", "right")),
    "einsum": ("matmul", ("equation", "left", "right")),
    "mv": ("matmul", ("left", "right")),
    "inner": ("matmul", ("left", "right")),
    "tensordot": ("matmul", ("left", "right")),
    "bilinear": ("matmul", ("left", "right", "weight")),
    "conv_transpose2d": ("conv", ("input", "weight")),
    "scaled_dot_product_attention": ("attention", ("q", "k", "v")),
    "multi_head_attention_forward": ("mha", ("q", "k", "v")),
    "_native_multi_head_attention": ("mha", ("q", "k", "v")),
}

#: Functions that move values without computing: their result is as quantized as their input.
MOVES = frozenset(
    (
        *("contiguous", "reshape", "view", "flatten", "unflatten", "squeeze", "unsqueeze"),
        *("transpose", "permute", "movedim", "swapaxes", "T", "mT"),
        *("expand", "repeat", "repeat_interleave", "chunk", "split", "unbind", "narrow"),
        *("select", "index_select", "__getitem__", "clone", "detach"),
        *("to", "type", "float", "double", "half", "bfloat16"),
    )
)

#: Functions that join values without computing: quantized where every part is.
JOINS = frozenset({"cat", "concat", "concatenate", "stack", "hstack", "vstack"})

_IN_PLACE_OPERATORS = frozenset({"__iadd__", "__isub__", "__imul__", "__itruediv__", "__setitem__"})

#: Functions that end in `_` and change no value.
_METADATA_ONLY = frozenset(
    ("requires_grad_", "detach_", "squeeze_", "unsqueeze_", "transpose_", "t_", "swapaxes_")
)


@dataclass(kw_only=True)
class Recorder:
    """Operations seen so far, one entry a module, function and tower."""

    operations: dict[tuple[str, str, str, int], Operation] = field(default_factory=dict)
    ran: dict[str, set[Tower]] = field(default_factory=dict)

    @contextmanager
    def record(
        self, module: torch.nn.Module, *, quantizers: Mapping[str, Any], tower: Tower
    ) -> Iterator[None]:
        """Record what runs in the block as belonging to `tower`'s forward."""
        import torch
        from torch.overrides import TorchFunctionMode

        stack: list[tuple[str, torch.nn.Module]] = [("", module)]
        # Storages that hold quantized values, with a tensor that keeps each alive: a freed
        # address would be used again and taken for quantized.
        quantized: dict[int, torch.Tensor] = {}
        counts: dict[tuple[str, str], int] = {}
        recorder = self

        def mark(value: Any) -> None:
            for tensor in tensors_in(value):
                quantized[address(tensor)] = tensor

        def unmark(value: Any) -> None:
            if isinstance(value, torch.Tensor):
                quantized.pop(address(value), None)

        def is_quantized(value: Any) -> bool:
            return isinstance(value, torch.Tensor) and address(value) in quantized

        # A quantized weight is used up when its layer has run; kept longer, the weights of the
        # whole model would be in memory once more.
        weights_of: list[list[int]] = [[]]
        parameters = {address(p) for p in module.parameters()}
        branches = find_branch_storages(quantizers)

        class Mode(TorchFunctionMode):
            def __torch_function__(
                self, func: Any, types: Any, args: Any = (), kwargs: Any = None
            ) -> Any:
                kwargs = kwargs or {}
                name = getattr(func, "__name__", "")
                known = FUNCTIONS.get(name)
                if known is not None:
                    note(known[0], known[1], args, kwargs)
                result = func(*args, **kwargs)
                if _is_in_place(name) and args:
                    unmark(args[0])
                unmark(kwargs.get("out"))
                parts = tensors_in(args[0]) if args else []
                if (name in MOVES and any(is_quantized(part) for part in parts)) or (
                    name in JOINS and parts and all(is_quantized(part) for part in parts)
                ):
                    mark(result)
                return result

        def note(function: str, operands: tuple[str, ...], args: Any, kwargs: Any) -> None:
            name, owner = stack[-1]
            given = dict(zip(operands, args, strict=False))
            given |= {key: kwargs[key] for key in operands if key in kwargs}
            given |= {
                short: kwargs[long]
                for short, long in (("q", "query"), ("k", "key"), ("v", "value"))
                if short in operands and long in kwargs
            }
            tensors = {
                key: value
                for key, value in given.items()
                if key != "bias" and isinstance(value, torch.Tensor)
            }
            if tensors.keys() >= {"weight"} and address(tensors["weight"]) in branches:
                function = "low-rank"
            weights = sum(
                value.numel()
                for key, value in tensors.items()
                if key == "weight" or address(value) in parameters
            )
            if function == "low-rank":
                weights = 0  # the model has no such weights
            if function == "mha":
                weights = sum(p.numel() for n, p in owner.named_parameters() if "weight" in n)
            index = counts.get((name, function), 0)
            counts[name, function] = index + 1
            recorder.operations.setdefault(
                (name, function, tower, index),
                Operation(
                    module=name,
                    module_class=plain_class_name(owner),
                    function=function,
                    tower=tower_of(name, ran_in=frozenset({tower})),
                    block=block_of(name),
                    operands=tuple(tensors),
                    operands_quantized=tuple(is_quantized(value) for value in tensors.values()),
                    weights_count=weights,
                ),
            )

        handles = []

        def enter(name: str) -> Callable[..., None]:
            def hook(owner: torch.nn.Module, _args: Any) -> None:
                stack.append((name, owner))
                weights_of.append([])
                recorder.ran.setdefault(name, set()).add(tower)

            return hook

        def leave(_owner: torch.nn.Module, _args: Any, _output: Any) -> None:
            stack.pop()
            for address in weights_of.pop():
                quantized.pop(address, None)

        inside = {id(m) for q in quantizers.values() for m in q.modules()}
        sequences = {whole_name(name) for name in quantizers}
        for name, child in module.named_modules():
            if id(child) in inside or name in sequences:
                continue
            handles.append(child.register_forward_pre_hook(enter(name)))
            handles.append(child.register_forward_hook(leave, always_call=True))

        def ran(slot: Slot) -> Callable[..., None]:
            def hook(quantizer: Any, inputs: Any, output: Any) -> None:
                if quantizer.is_enabled and output is not inputs[0]:
                    mark(output)
                    if slot == "weight":
                        weights_of[-1].append(address(output))

            return hook

        handles += [q.register_forward_hook(ran(slot_of(n))) for n, q in quantizers.items()]
        try:
            with Mode():
                yield
        finally:
            for handle in handles:
                handle.remove()


def address(tensor: torch.Tensor) -> int:
    """Return where a tensor's storage begins: the same for all views of it."""
    return tensor.untyped_storage().data_ptr()


def tensors_in(value: Any) -> list[torch.Tensor]:
    """Return the tensors that a value is or holds in a tuple or list."""
    import torch

    if isinstance(value, torch.Tensor):
        return [value]
    if isinstance(value, (tuple, list)):
        return [item for item in value if isinstance(item, torch.Tensor)]
    return []


def _is_in_place(name: str) -> bool:
    """Return whether a function writes into its first argument: `add_`, `__iadd__`, ..."""
    if name in _METADATA_ONLY:
        return False
    return name in _IN_PLACE_OPERATORS or (name.endswith("_") and not name.endswith("__"))
