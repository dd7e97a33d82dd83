"""Random CLIPs in the sizes of real ones, and pairs for them: nothing is downloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

SIZES: dict[str, dict[str, dict[str, int]]] = {
    "B/32": {
        "text": {
            "hidden_size": 512,
            "intermediate_size": 2048,
            "num_hidden_layers": 12,
            "num_attention_heads": 8,
        },
        "vision": {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "patch_size": 32,
        },
    },
    "L/14": {
        "text": {
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
        },
        "vision": {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "patch_size": 14,
        },
    },
}
WORDS = (
    "a",
    "photo",
    "of",
    "red",
    "green",
    "blue",
    "small",
    "large",
    "dog",
    "cat",
    "house",
    "tree",
)


def make_checkpoint(folder: Path, *, size: str) -> None:
    """Save a random CLIP in FP16, with a tokenizer and an image processor."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, PreTrainedTokenizerFast

    config = CLIPConfig(
        text_config={**SIZES[size]["text"], "hidden_act": "gelu"},
        vision_config={**SIZES[size]["vision"], "image_size": 224, "hidden_act": "gelu"},
        projection_dim=SIZES[size]["text"]["hidden_size"],
    )
    torch.manual_seed(0)
    CLIPModel(config).half().save_pretrained(folder)
    start, end = "<|startoftext|>", "<|endoftext|>"
    names = [*WORDS, *(f"<unused {i}>" for i in range(len(WORDS), 49406)), start, end]
    vocabulary = {name: index for index, name in enumerate(names)}
    assert (vocabulary[start], vocabulary[end]) == (
        config.text_config.bos_token_id,
        config.text_config.eos_token_id,
    )
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=end))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}",
        special_tokens=[(start, vocabulary[start]), (end, vocabulary[end])],
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=start,
        eos_token=end,
        pad_token=end,
        unk_token=end,
        model_max_length=77,
    ).save_pretrained(folder)
    CLIPImageProcessor().save_pretrained(folder)


def make_pairs(fp16: Any, *, count: int, batch_size: int) -> list[Any]:
    """Return seeded batches: images with structure at several scales, and captions of words."""
    import numpy as np

    from pytest_quantgate.encoders.encoder import Batch

    generator = np.random.default_rng(0)
    batches = []
    for start in range(0, count, batch_size):
        images = []
        for _ in range(batch_size):
            layers = [
                np.kron(
                    generator.integers(0, 256, (224 // cell, 224 // cell, 3)),
                    np.ones((cell, cell, 1)),
                )
                for cell in (4, 16, 56)
            ]
            images.append(np.mean(layers, axis=0).astype(np.uint8))
        texts = [" ".join(generator.choice(WORDS, size=7)) for _ in range(batch_size)]
        batches.append(
            Batch.of_pairs(
                pixel_values=fp16.preprocess(images),
                tokens=fp16.tokenize(texts),
                ids=tuple(f"pair {start + offset}" for offset in range(batch_size)),
            )
        )
    return batches
