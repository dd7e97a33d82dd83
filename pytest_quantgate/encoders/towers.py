"""What the house knows of a tower: nothing else may assume how a model is built."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from pytest_quantgate.evidence.audit import TowerName

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, kw_only=True)
class TextSpec:
    """How a text tower reads ids: rows of its table, and the end token that its config names.

    `pools_end` is whether the embedding is that of the end token, `padding` the side on which short
    texts are filled up; `takes_short` whether the tower runs on rows that are not filled up.
    `pooling` says what is made of the last hidden states where nothing but that is done to them
    (empty: something else), `normalize` whether the result is brought to length 1.
    """

    vocabulary: int
    end_id: int | None
    begin_id: int | None
    pools_end: bool
    padding: Literal["right", "left"] = "right"
    takes_short: bool = False
    pooling: Literal["", "mean", "cls"] = ""
    normalize: bool = False


@dataclass(frozen=True, kw_only=True)
class TowerSpec:
    """One tower of a model.

    `parts` are the submodules that it consists of. `inputs` are the shapes of one sample by the
    names of the inputs. `embeddings` is the submodule in front of the blocks, `attention` the names
    of the classes whose forward calls `scaled_dot_product_attention`, `tokens` what that sees of
    one sample, `config` the settings of the tower (transformers' names of sizes). `linears` are the
    Linear layers that run beside the six of each block, `fused` the modules
    (`nn.MultiheadAttention`) that no quantizer gets into. `embed` runs the tower on a module that
    has the parts, [N, ...] to [N, D]. `freeze` makes a copy of the tower take inputs of this shape
    alone, so that nothing of it depends on sizes. `example` are the inputs of one sample to trace a
    forward with, where noise, or begin and end, are none.
    """

    name: TowerName
    parts: tuple[str, ...]
    inputs: Mapping[str, tuple[int, ...]]
    embeddings: str
    attention: tuple[str, ...]
    tokens: int
    config: Any
    embed: Callable[[Any, Mapping[str, torch.Tensor]], torch.Tensor]
    text: TextSpec | None = None
    freeze: Callable[[Any], None] = lambda tower: None
    linears: int = 0
    fused: tuple[str, ...] = ()
    example: Mapping[str, torch.Tensor] | None = None

    def make_example(self, batch: int) -> dict[str, torch.Tensor]:
        """Return inputs of `batch` samples to trace a forward with."""
        import torch

        if self.example is not None:
            return {name: value.repeat_interleave(batch, 0) for name, value in self.example.items()}
        if self.text is None:
            generator = torch.Generator().manual_seed(0)
            return {
                name: torch.randn((batch, *shape), generator=generator)
                for name, shape in self.inputs.items()
            }
        ids = torch.full((batch, self.tokens), self.text.end_id or 0)
        if self.text.begin_id is not None:
            ids[:, 0] = self.text.begin_id
        return {name: ids if name == "input_ids" else torch.ones_like(ids) for name in self.inputs}
