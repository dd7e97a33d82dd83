"""A tiny LLaVA with random weights, saved whole by transformers itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def save_llava(folder: Path) -> Any:
    """Write a seeded checkpoint in float16, and return the module in float32."""
    import torch
    from transformers import (
        CLIPImageProcessor,
        CLIPVisionConfig,
        LlamaConfig,
        LlavaConfig,
        LlavaForConditionalGeneration,
    )

    torch.manual_seed(0)
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2}
    vision = CLIPVisionConfig(**sizes, num_hidden_layers=3, image_size=32, patch_size=8)
    text = LlamaConfig(
        **{**sizes, "hidden_size": 48}, num_hidden_layers=1, vocab_size=64, pad_token_id=0
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=5)
    module: Any = LlavaForConditionalGeneration(config).eval().requires_grad_(False)
    for parameter in module.parameters():
        if parameter.ndim > 1:
            parameter.normal_(0.0, 0.08)
    module.half().save_pretrained(folder)
    size = {"height": 32, "width": 32}
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size).save_pretrained(folder)
    return module.float()
