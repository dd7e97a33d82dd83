"""A tiny SigLIP with random weights, made by transformers itself and saved as a checkpoint."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

WORDS = ("a", "photo", "of", "cat", "dog", "car", "red", "blue")
SPECIAL = ("<pad>", "<begin>", "<unk>", "<end>")
TOKENS = 12

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


def save_siglip(folder: Path) -> Any:
    """Write a seeded checkpoint in float16, and return the module in float32."""
    import torch
    from transformers import SiglipConfig, SiglipImageProcessor, SiglipModel

    torch.manual_seed(0)
    config = SiglipConfig(
        text_config={
            **SIZES,
            "vocab_size": len(SPECIAL) + len(WORDS),
            "max_position_embeddings": TOKENS,
            **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0),
        },
        vision_config={**SIZES, "image_size": 32, "patch_size": 8},
    )
    module: Any = SiglipModel(config).eval().requires_grad_(False)
    for parameter in module.parameters():
        if parameter.ndim > 1:
            parameter.normal_(0.0, 0.08)
    module.half().save_pretrained(folder)
    SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    _save_tokenizer(folder)
    return module.float()


def save_siglip_tower(folder: Path, *, tower: str) -> Any:
    """Write one tower of such a model alone (`vision` or `text`), and return it in float32."""
    import torch
    from transformers import SiglipTextModel, SiglipVisionModel

    save_siglip(folder)

    kind: Any = {"vision": SiglipVisionModel, "text": SiglipTextModel}[tower]
    module = kind.from_pretrained(folder, dtype=torch.float32).eval()
    (folder / "model.safetensors").unlink()
    module.half().save_pretrained(folder)
    return module.float()


def save_naflex(folder: Path, *, patches: int = 16, trained: int = 16) -> None:
    """Write a seeded SigLIP 2 NaFlex in float16, with a tokenizer like Gemma's."""
    import torch
    from transformers import Siglip2Config, Siglip2ImageProcessor, Siglip2Model

    torch.manual_seed(0)
    words = save_gemma_tokenizer(folder)
    config = Siglip2Config(
        text_config={
            **SIZES,
            "vocab_size": words,
            "max_position_embeddings": TOKENS,
            **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 0),
        },
        vision_config={**SIZES, "num_patches": trained, "patch_size": 8},
    )
    module: Any = Siglip2Model(config).eval().requires_grad_(False)
    for parameter in module.parameters():
        if parameter.ndim > 1:
            parameter.normal_(0.0, 0.08)
    module.half().save_pretrained(folder)
    Siglip2ImageProcessor(patch_size=8, max_num_patches=patches).save_pretrained(folder)


def save_gemma_tokenizer(
    folder: Path, *, padding_side: str = "right", kind: str = "Siglip2Tokenizer"
) -> int:
    """Write a tokenizer as SigLIP 2 has it, of pairs of bytes; return how many tokens it knows."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    pieces = ["▁", *map(chr, range(ord("a"), ord("z") + 1))]
    merges = [("c", "a"), ("ca", "t"), ("d", "o"), ("do", "g"), ("▁", "a"), ("r", "e"), ("re", "d")]
    words = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{n:02X}>" for n in range(256)), *pieces]
    words += ["".join(pair) for pair in merges]
    vocabulary = {word: number for number, word in enumerate(words)}
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    )
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace(" ", "▁")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", special_tokens=[("<eos>", 1)]
    )
    tokenizer.add_special_tokens(words[:4])
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": kind,
        "add_bos_token": False,
        "add_eos_token": True,
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "padding_side": padding_side,
        "model_max_length": TOKENS,
        "model_input_names": ["input_ids"],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return len(words)


def _save_tokenizer(folder: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {token: number for number, token in enumerate((*SPECIAL, *WORDS))}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<begin> $A <end>", special_tokens=[("<begin>", 1), ("<end>", 3)]
    )
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<begin>",
        "eos_token": "<end>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "model_max_length": TOKENS,
        "model_input_names": ["input_ids"],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
