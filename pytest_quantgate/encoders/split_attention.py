"""Rewrites of modules that quantizers cannot get into, each with the same result.

`nn.MultiheadAttention` as four Linear layers and `scaled_dot_product_attention`.

PyTorch's module computes its projections out of one packed weight in one function, and on a fast
path that is native code: no quantizer gets between them, and those of its `out_proj` are never
called, though they are enabled and calibrated. Split, each part is a layer of its own.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.nn import functional


class SplitAttention(nn.Module):
    """Attention [N, T, D] with the weights of an `nn.MultiheadAttention`."""

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
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        named = {"q_proj": query, "k_proj": key, "v_proj": value}
        query_heads, key_heads, value_heads = (
            self.get_submodule(name)(part)
            .view(*part.shape[:-1], self.num_heads, -1)
            .transpose(1, 2)
            for name, part in named.items()
        )
        mixed = functional.scaled_dot_product_attention(
            query_heads, key_heads, value_heads, attn_mask=attention_mask
        )
        found: torch.Tensor = self.out_proj(mixed.transpose(1, 2).reshape(query.shape))
        return found


class BiasedAttention(nn.Module):
    """Attention of MPNet or T5 [N, T, D]: a bias of positions is added to the scores.

    Theirs writes its two products out, where no quantizer gets between them. The parts have the
    names they had. T5's scores are not scaled.
    """

    def __init__(self, whole: Any) -> None:
        super().__init__()
        is_t5 = hasattr(whole, "key_value_proj_dim")
        self.head_dim = whole.key_value_proj_dim if is_t5 else whole.attention_head_size
        self.num_heads = whole.q.out_features // self.head_dim
        self.scale = 1.0 if is_t5 else self.head_dim**-0.5
        for name, child in whole.named_children():
            self.add_module(name, child)

    def forward(
        self,
        hidden_states: torch.Tensor,
        mask: torch.Tensor | None = None,
        position_bias: torch.Tensor | None = None,
        **_: Any,
    ) -> tuple[torch.Tensor, None]:
        shape = (*hidden_states.shape[:-1], self.num_heads, self.head_dim)
        query, key, value = (
            self.get_submodule(name)(hidden_states).view(shape).transpose(1, 2) for name in "qkv"
        )
        if position_bias is None or mask is not None:
            raise ValueError("the mask is a part of the bias of positions, which must be given")
        mixed = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=position_bias, scale=self.scale
        )
        mixed = mixed.transpose(1, 2).reshape(*hidden_states.shape[:-1], -1)
        return self.get_submodule("o")(mixed), None


class WindowAttention(nn.Module):
    """Attention of a vision tower of Qwen [N, T, D], of all tokens or inside equal windows.

    Theirs takes all samples of a batch in one row and loops over the windows of it. The parts have
    the names they had.
    """

    def __init__(self, whole: Any) -> None:
        super().__init__()
        self.config = SimpleNamespace(_attn_implementation="sdpa")
        self.num_heads = whole.num_heads
        self.qkv, self.proj = whole.qkv, whole.proj

    def forward(
        self,
        hidden_states: torch.Tensor,
        cu_seqlens: None = None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        windows: int = 1,
    ) -> torch.Tensor:
        if cu_seqlens is not None or position_embeddings is None:
            raise ValueError("windows are counted, and positions must be given")
        tokens, width = hidden_states.shape[1:]
        cosine, sine = position_embeddings  # [T, 1, D]
        query, key, value = (
            self.qkv(hidden_states).view(-1, tokens, 3, self.num_heads, width // self.num_heads)
        ).unbind(2)
        query, key = (part * cosine + _turn_half(part) * sine for part in (query, key))
        inside = (-1, tokens // windows, self.num_heads, width // self.num_heads)
        query, key, value = (part.reshape(inside).transpose(1, 2) for part in (query, key, value))
        mixed = functional.scaled_dot_product_attention(query, key, value)
        found: torch.Tensor = self.proj(mixed.transpose(1, 2).reshape(-1, tokens, width))
        return found


def _turn_half(heads: torch.Tensor) -> torch.Tensor:
    """Return heads [..., D] with the second half, negated, in front of the first."""
    first, second = heads.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def join_bias(module: nn.Module) -> None:
    """Give the packed projection of every attention of EVA its bias, in place.

    timm keeps it in pieces, and multiplies with the layer's weight by itself.
    """
    part: Any
    for part in module.modules():
        if type(part).__name__ == "EvaAttention" and part.q_bias is not None:
            pieces = (part.q_bias.detach(), part.k_bias, part.v_bias.detach())
            part.qkv.bias = nn.Parameter(torch.cat(pieces))
            part.q_bias = part.k_bias = part.v_bias = None


def fuse_biased_attention(module: nn.Module) -> None:
    """Make the attention of every block of MPNet or T5 a `BiasedAttention`, in place."""
    for name, part in list(module.named_modules()):
        if type(part).__name__ in ("MPNetSelfAttention", "T5Attention"):
            parent, _, attribute = name.rpartition(".")
            setattr(module.get_submodule(parent), attribute, BiasedAttention(part))


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
    """A `SplitAttention` where a model calls an `nn.MultiheadAttention`; it gives no weights."""

    #: What layers of PyTorch look at: without them none takes a fast path around this module.
    in_proj_weight = in_proj_bias = None

    def __init__(self, whole: nn.MultiheadAttention) -> None:
        super().__init__()
        self.core = SplitAttention(whole)
        self.batch_first, self.num_heads = whole.batch_first, whole.num_heads
        self.embed_dim, self.head_dim = whole.embed_dim, whole.head_dim

    def forward(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        key_padding_mask: torch.Tensor | None = None,
        need_weights: bool = True,
        attn_mask: torch.Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[torch.Tensor, None]:
        del need_weights, average_attn_weights, is_causal  # a hint: the mask is given too
        parts = [query, key, value]
        if query.ndim != 3:
            raise ValueError("attention of one sample without a batch is not split")
        if not self.batch_first:
            parts = [part.transpose(0, 1) for part in parts]
        mask = attn_mask if attn_mask is None else _as_numbers(attn_mask, like=query)
        if mask is not None and mask.ndim == 3:
            mask = mask.view(-1, self.num_heads, *mask.shape[1:])
        if key_padding_mask is not None:
            padding = _as_numbers(key_padding_mask, like=query)[:, None, None]
            mask = padding if mask is None else mask + padding
        found = self.core(*parts, attention_mask=mask)
        return (found if self.batch_first else found.transpose(0, 1)), None


def _as_numbers(mask: torch.Tensor, *, like: torch.Tensor) -> torch.Tensor:
    """Return a mask of `nn.MultiheadAttention`, in which true is masked, as numbers to add."""
    if mask.dtype != torch.bool:
        return mask.to(like.dtype)
    return torch.zeros_like(mask, dtype=like.dtype).masked_fill(mask, -torch.inf)


def split_attention(module: nn.Module) -> int:
    """Split every `nn.MultiheadAttention` in a model in place; return how many there were.

    Raises ValueError for one whose keys or values are of another size, or that adds some.
    """
    found = [
        (name, part) for name, part in module.named_modules() if type(part) is nn.MultiheadAttention
    ]
    for name, whole in found:
        if whole.in_proj_weight is None or whole.bias_k is not None or whole.add_zero_attn:
            raise ValueError(f"{name} has keys or values of another size, or adds some")
        parent, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(parent), attribute, JointAttention(whole))
    for part in module.modules():
        if isinstance(part, nn.TransformerEncoder):
            part.use_nested_tensor = False  # it would read the packed weights
    return len(found)
