"""Which of ModelOpt's two quantized attention classes a model gets.

Attention calls `scaled_dot_product_attention`, a function that a walker over modules never sees:
its operands are quantized only where the attention class itself is replaced. ModelOpt has two
replacements for `CLIPAttention`: the Hugging Face one, which registers itself ("for KV cache
quantization"; q, k, v, p_bmm), and the diffusers one, which NVIDIA's published CLIP recipe
registers by hand (q, k, v, softmax, bmm2_output).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from pytest_quantgate.encoders.families import find_pretrained_of
from pytest_quantgate.quantization.modelopt import import_modelopt

if TYPE_CHECKING:
    import torch


#: Where attention classes are from that these can replace.
_HOMES = ("transformers.", "pytest_quantgate.encoders.")


@contextmanager
def attention_class(
    module: torch.nn.Module, *, kind: Literal["automatic", "diffusers"]
) -> Iterator[None]:
    """Make ModelOpt use one class for the attention of `module` while the block runs.

    ModelOpt's registry belongs to the process and refuses a second registration of a class, so
    what was there is taken out first and put back afterwards: recipes of both kinds can be built
    in one process in any order.
    """
    registry = import_modelopt("modelopt.torch.quantization.nn").QuantModuleRegistry
    classes = _attention_classes(module)
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


def _attention_classes(module: torch.nn.Module) -> list[type[torch.nn.Module]]:
    """Return the plain attention classes of a model, also where they are quantized already."""
    DynamicModule = import_modelopt("modelopt.torch.opt.dynamic").DynamicModule
    config: Any = getattr(module, "config", None)
    kind = find_pretrained_of(config)
    named = {t.attention.class_name for t in kind.describe_towers(config)} if kind else set()
    classes: dict[type[torch.nn.Module], None] = {}
    for child in module.modules():
        cls = child.original_cls if isinstance(child, DynamicModule) else type(child)
        computes = cls.__name__ in named if named else cls.__name__.endswith("Attention")
        if computes and cls.__module__.startswith(_HOMES):
            classes[cls] = None
    return list(classes)


def _diffusers_attention() -> type[torch.nn.Module]:
    plugin = import_modelopt(
        "modelopt.torch.quantization.plugins.diffusion.diffusers",
        purpose="a recipe with attention output quantizers (ModelOpt's diffusers plugin)",
    )
    quantized: type[torch.nn.Module] = plugin._QuantAttention
    return quantized
