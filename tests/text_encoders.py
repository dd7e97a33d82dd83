"""Tiny text encoders of several classes, made by transformers itself and saved as checkpoints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

TOKENS = 16

SIZES: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}

#: By name: the class, its configuration, and what differs from `SIZES`.
KINDS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "clip": ("CLIPTextModel", "CLIPTextConfig", {"max_position_embeddings": TOKENS}),
    "projection": (
        "CLIPTextModelWithProjection",
        "CLIPTextConfig",
        {"max_position_embeddings": TOKENS, "projection_dim": 24},
    ),
    "bert": ("BertModel", "BertConfig", {"max_position_embeddings": TOKENS}),
    "cls": ("BertModel", "BertConfig", {"max_position_embeddings": TOKENS}),
    "roberta": (
        "RobertaModel",
        "RobertaConfig",
        {"max_position_embeddings": TOKENS + 2, "pad_token_id": 1, "type_vocab_size": 1},
    ),
    "mpnet": (
        "MPNetModel",
        "MPNetConfig",
        {"max_position_embeddings": TOKENS + 2, "pad_token_id": 1},
    ),
    "t5": ("T5EncoderModel", "T5Config", {"d_kv": 16, "d_ff": 64, "n_positions": TOKENS}),
}

#: Padding, unknown, begin and end; their ids are the first, and that of the end the last.
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
LIKE_ROBERTA = ("<s>", "<pad>", "<unk>", "</s>")


def save_text_encoder(kind: str, folder: Path) -> Any:
    """Write a seeded checkpoint of a kind in float16, and return the module in float32."""
    import torch
    import transformers

    model, config, changes = KINDS[kind]
    torch.manual_seed(0)
    special = SPECIAL if kind in ("bert", "cls") else LIKE_ROBERTA
    ids = {word: index for index, word in enumerate((*special[:3], *list_words(), special[3]))}
    settings = {**SIZES, "vocab_size": len(ids), **changes}
    if kind in ("clip", "projection"):
        settings |= {"bos_token_id": ids["<s>"], "eos_token_id": ids["</s>"]}
    made: Any = getattr(transformers, model)(getattr(transformers, config)(**settings))
    made = made.eval().requires_grad_(False)
    for parameter in made.parameters():
        if parameter.ndim > 1:
            parameter.normal_(0.0, 0.08)
    made.half().save_pretrained(folder)
    save_tokenizer(folder, ids=ids)
    if kind in ("bert", "cls"):
        save_pooling(folder, mode="mean" if kind == "bert" else "cls")
    return made.float()


def save_tokenizer(folder: Path, *, ids: dict[str, int]) -> None:
    """Write a tokenizer that knows whole words, with a begin and an end around each text."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.normalizers import Lowercase
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    begin, pad, unknown, end = LIKE_ROBERTA
    if SPECIAL[0] in ids:
        pad, unknown, begin, end = SPECIAL
    tokenizer = Tokenizer(WordLevel(ids, unk_token=unknown))
    tokenizer.normalizer = Lowercase()
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single=f"{begin} $A {end}", special_tokens=[(begin, ids[begin]), (end, ids[end])]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=begin,
        eos_token=end,
        pad_token=pad,
        unk_token=unknown,
        model_max_length=TOKENS,
    ).save_pretrained(folder)


def save_pooling(folder: Path, *, mode: str) -> None:
    """Write what sentence-transformers writes beside a model."""
    kinds = ("Transformer", "Pooling", "Normalize")
    steps = [
        {"idx": i, "name": str(i), "path": "" if i == 0 else f"{i}_{kind}", "type": f"a.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(steps), encoding="utf-8")
    (folder / "1_Pooling").mkdir(exist_ok=True)
    pooling = {
        "word_embedding_dimension": SIZES["hidden_size"],
        "pooling_mode_cls_token": mode == "cls",
        "pooling_mode_mean_tokens": mode == "mean",
        "pooling_mode_max_tokens": False,
    }
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling), encoding="utf-8")


def list_words() -> list[str]:
    """Return the words of the captions of `scenes`, and a few more."""
    from pytest_quantgate.reference.scenes import render_scenes

    captions = render_scenes(split="calibration", count=64, kind="mixed").captions
    return sorted({word for text in captions for word in text.lower().split()} | {"cat", "dog"})
