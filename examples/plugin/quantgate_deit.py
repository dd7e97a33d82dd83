"""A family of encoders of your own: DeiT, a ViT with a second token that learned from a teacher.

model: {source: transformers, id: facebook/deit-small-distilled-patch16-224}
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pytest_quantgate.encoders.family import EncoderFamily, Pretrained
from pytest_quantgate.encoders.towers import TowerSpec

if TYPE_CHECKING:
    import torch


def describe_towers(config: Any) -> tuple[TowerSpec, ...]:
    """Return the one tower; `config` is the DeiTConfig that transformers makes of config.json."""
    side = config.image_size // config.patch_size
    tower = TowerSpec(
        name="vision",
        parts=("embeddings", "layers", "layernorm"),
        inputs={"pixel_values": (config.num_channels, config.image_size, config.image_size)},
        embeddings="embeddings",
        attention=("DeiTAttention",),
        tokens=side * side + 2,
        config=config,
        embed=embed,
    )
    return (tower,)


def embed(module: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """Return the mean of the class token and the distillation token behind the last norm."""
    hidden = module.embeddings(inputs["pixel_values"])
    for layer in module.layers:
        hidden = layer(hidden)
    found: torch.Tensor = module.layernorm(hidden)[:, :2].mean(dim=1)
    return found


FAMILY = EncoderFamily(
    name="deit",
    pretrained={
        "deit": Pretrained(
            towers=("vision",),
            describe_towers=describe_towers,
            config="DeiTConfig",
            model="DeiTModel",
            image_processor="DeiTImageProcessor",
            options={"add_pooling_layer": False},
            unused=("pooler.", "cls_classifier.", "distillation_classifier."),
        )
    },
)
