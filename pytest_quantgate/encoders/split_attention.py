"""Rewrites of modules that quantizers cannot get into, each with the same result.

`nn.MultiheadAttention` as four Linear layers and `scaled_dot_product_attention`.

PyTorch's module computes its projections out of one packed weight in one function, and on a fast
path that is native code: no quantizer gets between them, and those of its `out_proj` are never
called, though they are enabled and calibrated. Split, each part is a layer of its own.
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from torch import nn
from torch.nn import functional


class SplitAttention(nn.Module):
    """Self-attention [N, T, D] with the weights of an `nn.MultiheadAttention`."""

    def __init__(self, whole: nn.MultiheadAttention) -> None:
        super().__init__()
        width = whole.embed_dim
        self.config = SimpleNamespace(_attn_implementation="sdpa")
        self.num_heads = whole.num_heads
        has_bias = whole.in_proj_bias is not None
        for index, name in enumerate(("q_proj", "k_proj", "v_proj")):
            part = slice(index * width, (index + 1) * width)
            layer = nn.Linear(width, width, bias=has_bias, device="meta")
            layer.weight = nn.Parameter(whole.in_proj_weight.detach()[part].clone())
            if has_bias:
                layer.bias = nn.Parameter(whole.in_proj_bias.detach()[part].clone())
            setattr(self, name, layer)
        self.out_proj = nn.Linear(width, width, bias=whole.out_proj.bias is not None, device="meta")
        self.out_proj.weight, self.out_proj.bias = whole.out_proj.weight, whole.out_proj.bias

    def forward(
        self, hidden_states: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, None]:
        shape = (*hidden_states.shape[:-1], self.num_heads, -1)
        query, key, value = (
            self.get_submodule(name)(hidden_states).view(shape).transpose(1, 2)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=attention_mask)
        mixed = mixed.transpose(1, 2).reshape(hidden_states.shape)
        return self.out_proj(mixed), None


class ParameterProjection(nn.Module):
    """A Parameter [D, E] that embeddings [N, D] are multiplied with, as a module with a name.

    It stays a Parameter: what computes it elsewhere quantizes no layer there either. It stands
    where the Parameter stood, on the right of `@`.
    """

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, value: torch.Tensor) -> torch.Tensor:
        return value @ self.weight

    def __rmatmul__(self, value: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self(value)
        return found


def name_projection(module: nn.Module, attribute: str) -> None:
    """Make a Parameter of a module a `ParameterProjection`, in place; nothing where it is none."""
    weight = getattr(module, attribute)
    if isinstance(weight, nn.Parameter):
        delattr(module, attribute)
        setattr(module, attribute, ParameterProjection(weight))


class JointAttention(nn.Module):
    """A `SplitAttention` where a block calls an `nn.MultiheadAttention` with one input."""

    def __init__(self, core: SplitAttention) -> None:
        super().__init__()
        self.core = core

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        *,
        need_weights: bool = False,
        attn_mask: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, None]:
        if need_weights or key is not query or value is not query:
            raise ValueError("attention over another input, or its weights, are not split")
        found: tuple[torch.Tensor, None] = self.core(query, attention_mask=attn_mask)
        return found


def split_attention(module: nn.Module) -> int:
    """Split every `nn.MultiheadAttention` in a model in place; return how many there were.

    Raises ValueError for one whose keys or values are of another size, or that is not batch first.
    """
    found = [
        (name, part) for name, part in module.named_modules() if type(part) is nn.MultiheadAttention
    ]
    for name, whole in found:
        same = whole.in_proj_weight is not None and whole.bias_k is None
        if not (same and whole.batch_first and not whole.add_zero_attn):
            raise ValueError(f"{name} is no plain self-attention")
        parent, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(parent), attribute, JointAttention(SplitAttention(whole)))
    return len(found)
