"""The reference model's words: a closed vocabulary and its word-level tokenizer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pytest_quantgate.reference import digits, scenes

CONTEXT_LENGTH = 16
PAD_ID, BOS_ID, UNK_ID = 0, 1, 2
# Not 2: transformers pools a text tower whose eos_token_id is 2 at the largest id instead.
EOS_ID = 3
SPECIAL_TOKENS: tuple[str, ...] = ("<|pad|>", "<|startoftext|>", "<|unk|>", "<|endoftext|>")


def vocabulary() -> dict[str, int]:
    """Returns word -> id; the four special tokens first, the words in alphabetical order."""
    texts = (
        *scenes.SHAPES,
        *scenes.COLOURS,
        *scenes.SIZES,
        *scenes.TEXTURES,
        *scenes.POSITIONS,
        *scenes.RELATIONS,
        *digits.CLASS_NAMES,
        *(template.replace("{c}", "") for template in scenes.TEMPLATES + digits.TEMPLATES),
        "a an and handwritten is object of shape this there two with",
    )
    words = sorted({word for text in texts for word in text.split()})
    return {word: index for index, word in enumerate((*SPECIAL_TOKENS, *words))}


def encode(texts: Sequence[str], *, known: dict[str, int]) -> NDArray[np.int64]:
    """Returns ids int64 [N, 16]: start, words, end, padding; the same as the saved tokenizer's."""
    ids = np.full((len(texts), CONTEXT_LENGTH), PAD_ID, dtype=np.int64)
    for row, text in enumerate(texts):
        inner = [known.get(word, UNK_ID) for word in text.lower().split()][: CONTEXT_LENGTH - 2]
        ids[row, : len(inner) + 2] = [BOS_ID, *inner, EOS_ID]
    return ids


def save_tokenizer(directory: Path) -> None:
    """Writes tokenizer.json and tokenizer_config.json, loadable through AutoTokenizer."""
    from tokenizers import (
        Tokenizer,
        normalizers,
        pre_tokenizers,
        processors,
    )
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast

    pad, bos, unk, eos = SPECIAL_TOKENS
    tokenizer = Tokenizer(WordLevel(vocabulary(), unk_token=unk))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A {eos}",
        pair=f"{bos} $A $B {eos}",
        special_tokens=[(bos, BOS_ID), (eos, EOS_ID)],
    )
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        model_max_length=CONTEXT_LENGTH,
        pad_token=pad,
        bos_token=bos,
        unk_token=unk,
        eos_token=eos,
        padding_side="right",
        truncation_side="right",
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(directory)
    # transformers 5 writes a class name that 4.57 does not have; both know this one.
    path = directory / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config.pop("backend", None)
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
