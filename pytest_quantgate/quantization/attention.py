"""Which of ModelOpt's two quantized attention classes a model gets.

Attention calls `scaled_dot_product_attention`, a function that a walker over modules never sees:
its operands are quantized only where the attention class itself is replaced. ModelOpt has two
replacements for `CLIPAttention`: the Hugging Face one, which registers itself ("for KV cache
quantization"; q, k, v, p_bmm), and the diffusers one, which NVIDIA's published CLIP recipe
registers by hand (q, k, v, softmax, bmm2_output).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

from pytest_quantgate.encoders.towers import TowerSpec
from pytest_quantgate.quantization.modelopt import import_modelopt
from pytest_quantgate.quantization.quantizers import plain_class, plain_class_name

if TYPE_CHECKING:
    import torch


@contextmanager
def attention_class(
    module: torch.nn.Module, *, towers: Iterable[TowerSpec], kind: Literal["automatic", "diffusers"]
) -> Iterator[None]:
    """Make ModelOpt use one class for the attention of the towers in `module` while the block runs.

    ModelOpt's registry belongs to the process and refuses a second registration of a class, so
    what was there is taken out first and put back afterwards: recipes of both kinds can be built
    in one process in any order.
    """
    registry = import_modelopt("modelopt.torch.quantization.nn").QuantModuleRegistry
    names = {name for tower in towers for name in tower.attention}
    classes = dict.fromkeys(
        plain_class(child) for child in module.modules() if plain_class_name(child) in names
    )
    previous = {}
    for cls in classes:
        found = registry.get(cls)
        if found is not None:
            previous[cls] = found.__mro__[1]  # the class that was registered, not the mix with cls
            registry.unregister(cls)
    try:
        if kind == "diffusers":
            quantized = _diffusers_attention()
            for cls in classes:
                registry.register({cls: cls.__name__})(quantized)
        yield
    finally:
        for cls in classes:
            if registry.get(cls) is not None:
                registry.unregister(cls)
        for cls, quantized in previous.items():
            registry.register({cls: cls.__name__})(quantized)


def _diffusers_attention() -> type[torch.nn.Module]:
    plugin = import_modelopt(
        "modelopt.torch.quantization.plugins.diffusion.diffusers",
        purpose="a recipe with attention output quantizers (ModelOpt's diffusers plugin)",
    )
    quantized: type[torch.nn.Module] = plugin._QuantAttention
    return quantized
