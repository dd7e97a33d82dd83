"""Models and data that mean nothing: what no limit can see, because FP16 is as wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from benchmarks.sabotage.bench import Bench, Entry
from benchmarks.sabotage.folders import (
    CONFIG,
    PROCESSOR,
    TOKENIZER,
    TOKENIZER_CONFIG,
    WEIGHTS,
    Edit,
    of_files,
    relabelled,
)
from pytest_quantgate.run.case import Case

CLASSES = 100
#: The end token of the reference model, and how many words its tokenizer knows.
END, WORDS = "<|endoftext|>", 70
TABLE = "text_model.embeddings.token_embedding.weight"


def entry(
    name: str, code: str, make: Callable[[Bench], Case], *, gates: tuple[str, ...] = ("sanity",)
) -> Entry:
    return Entry(
        name=name,
        theme="sanity",
        make=make,
        gates=gates,
        code=code,
        judged=("sanity", "coverage", "accuracy"),
        compared=False,
    )


def model(name: str, code: str, edits: Mapping[str, Edit | None], **more: Any) -> Entry:
    """Return the entry of a folder of the model in which something is wrong."""
    return entry(name, f"sanity.{code}", of_files(name, model=edits, **more))


def data(name: str, code: str, *, gates: tuple[str, ...] = ("sanity",), **files: Any) -> Entry:
    """Return the entry of a folder of photographs in which something is wrong."""
    return entry(name, f"sanity.{code}", of_files(name, **files), gates=gates)


def text_config(**values: int) -> Edit:
    return lambda config: config["text_config"].update(values)


def append_nothing(tokenizer: dict[str, Any]) -> None:
    del tokenizer["post_processor"]["single"][-1]


def forget_words(tokenizer: dict[str, Any]) -> None:
    """What a tokenizer that was trained on nothing knows."""
    words = tokenizer["model"]["vocab"]
    special = [token["content"] for token in tokenizer["added_tokens"]]
    tokenizer["model"]["vocab"] = {token: words[token] for token in special} | {"a": 4, "photo": 5}


def add_word(tokenizer: dict[str, Any]) -> None:
    tokenizer["model"]["vocab"]["lorry"] = WORDS


def add_domain(tokenizer: dict[str, Any]) -> None:
    """A word of a domain, added behind all others."""
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized", "special"), False)
    tokenizer["model"]["vocab"]["<domain>"] = WORDS
    tokenizer["added_tokens"].append({"id": WORDS, "content": "<domain>", **plain})


def grow_table(tensors: dict[str, torch.Tensor]) -> None:
    """Give the added word a row of its own, near that of another."""
    tensors[TABLE] = torch.cat([tensors[TABLE], tensors[TABLE][20:21] * 1.05])


def take_224_pixels(processor: dict[str, Any]) -> None:
    processor.update(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224})


def zero(*names: str) -> Edit:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        for name in names:
            tensors[name].zero_()

    return edit


def randomize(tensors: dict[str, torch.Tensor]) -> None:
    """The weights as the constructor left them: the checkpoint was never loaded."""
    generator = torch.Generator().manual_seed(5)
    for name, values in tensors.items():
        if values.dim() > 1:
            tensors[name] = torch.randn(values.shape, generator=generator) * 0.02


def repeat_last(names: Sequence[str]) -> Sequence[str]:
    return (*names[:-1], names[-2])


def with_header(names: Sequence[str]) -> Sequence[str]:
    return ("name", *names)


def numbered(names: Sequence[str]) -> Sequence[str]:
    return tuple(f"class{index}" for index in range(len(names)))


def exchanged(label: int) -> int:
    return {0: 1, 1: 0}.get(label, label)


SANITIES = (
    model("a tokenizer without end token", "end-token-absent", {TOKENIZER: append_nothing}),
    model(
        "an old config pools the largest id, and a word was added",
        "pooled-token",
        {
            CONFIG: text_config(eos_token_id=2, vocab_size=WORDS + 1),
            TOKENIZER: add_domain,
            WEIGHTS: grow_table,
        },
        templates=("a <domain> photo of the {c}",),
    ),
    model("the end token of another model in config.json", "pooled-token",
          {CONFIG: text_config(eos_token_id=48)}),
    model("what save_pretrained of the model alone leaves", "no-tokenizer",
          {TOKENIZER: None, TOKENIZER_CONFIG: None}),
    model("a tokenizer that knows two words", "tokenizer-empty", {TOKENIZER: forget_words}),
    model("a word behind the embedding table", "token-beyond-table", {TOKENIZER: add_word}),
    model("a tokenizer without padding token", "no-padding-token",
          {TOKENIZER_CONFIG: lambda config: config.pop("pad_token")}),
    model("the image processor of another model", "image-size", {PROCESSOR: take_224_pixels}),
    model("pixels that are never divided by 255", "pixel-range",
          {PROCESSOR: lambda config: config.update(do_rescale=False)}),
    model("a vision tower without its last weights", "images-alike",
          {WEIGHTS: zero("vision_model.post_layernorm.weight")}),
    model("a text tower without its last weights", "class-embeddings-equal",
          {WEIGHTS: zero("text_model.final_layer_norm.weight")}),
    model("weights that were never loaded", "fp16-at-chance", {WEIGHTS: randomize}),
    data("templates with {} in place of {c}", "template-without-class",
         templates=("a photo of a {}", "a picture of the {}")),
    data("an empty file of templates", "templates-empty", templates=("",)),
    data("a class name twice", "class-name-twice", names=repeat_last),
    data("class names that no tokenizer knows", "prompts-equal", names=numbered),
    data("labels shifted by one", "fp16-at-chance",
         test=relabelled(lambda label: (label + 1) % CLASSES)),
    data("two classes exchanged", "classes-exchanged", gates=("sanity", "accuracy"),
         source="digits/test", test=relabelled(lambda label: {0: 1, 1: 0}.get(label, label))),
    data("a header above the class names", "fp16-at-chance", names=with_header),
)  # fmt: skip
