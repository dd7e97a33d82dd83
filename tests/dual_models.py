"""Tiny models that are built as CLIP is, with random weights, saved as checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.text_encoders import LIKE_ROBERTA, SIZES, SPECIAL, list_words, save_tokenizer

TOKENS = 16

#: By `model_type`: the name in transformers, and what its text tower has beside the sizes.
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "chinese_clip": ("ChineseCLIP", {"max_position_embeddings": TOKENS}),
    "altclip": (
        "AltCLIP",
        {"max_position_embeddings": TOKENS + 2, "project_dim": 24, "pad_token_id": 1},
    ),
    "owlvit": ("OwlViT", {"max_position_embeddings": TOKENS}),
    "owlv2": ("Owlv2", {"max_position_embeddings": TOKENS}),
}


def save_dual(kind: str, folder: Path) -> Any:
    """Write a seeded checkpoint of a kind in float16, and return the module in float32."""
    import torch
    import transformers

    torch.manual_seed(1)  # with 0 a value of the begin token lies on an edge in INT8
    name, changes = KINDS[kind]
    words = SPECIAL if kind == "chinese_clip" else LIKE_ROBERTA
    ids = {word: index for index, word in enumerate((*words[:3], *list_words(), words[3]))}
    library: Any = transformers
    config = getattr(library, f"{name}Config")(
        text_config={**SIZES, "vocab_size": len(ids), **changes},
        vision_config={**SIZES, "image_size": 32, "patch_size": 8},
        projection_dim=16,
    )
    module = getattr(library, f"{name}Model")(config).eval().requires_grad_(False)
    for path, parameter in module.named_parameters():
        if parameter.ndim > 1:
            # A BERT pools its first token, which is the same in all texts: attention alone brings
            # the others in, and with weights as small as elsewhere they would all be embedded alike
            # (cosines of 0.999), whatever is masked.
            pooled = path.startswith("text_model.") and "attention" in path
            parameter.normal_(0.0, 0.24 if pooled else 0.08)
    module.half().save_pretrained(folder)
    save_tokenizer(folder, ids=ids)
    size = {"height": 32, "width": 32}
    processor = "CLIP" if kind == "altclip" else name
    getattr(library, f"{processor}ImageProcessor")(size=size, crop_size=size).save_pretrained(
        folder
    )
    return module.float()
