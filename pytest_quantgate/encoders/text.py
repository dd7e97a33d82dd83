"""Text encoders alone: BERT, RoBERTa, XLM-RoBERTa, MPNet and T5, pooled as sentence-transformers
writes it.

MiniLM, BGE, E5 and GTE are of the first three. What is done behind the last hidden state stands in
`modules.json` and `1_Pooling/config.json`: the mean over the tokens that are no padding, or the
first token, and whether the result is brought to length one. A folder without `modules.json` is
pooled by the mean, as sentence-transformers does, and a note says so.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from pytest_quantgate import bounds
from pytest_quantgate.encoders.family import EncoderFamily, Loaded, Pretrained, TokenizerClass
from pytest_quantgate.encoders.source import (
    CONFIG,
    MODULES,
    PROMPTS,
    SENTENCE_SETTINGS,
    stays_inside,
)
from pytest_quantgate.encoders.towers import TextSpec, TowerSpec
from pytest_quantgate.errors import ModelError, UnsupportedModel
from pytest_quantgate.untrusted import parse_json, read_regular

if TYPE_CHECKING:
    import torch

#: Where settings keep what is done behind the last hidden state.
POOLING = "sentence_pooling"

#: Ways of pooling by the keys of 1_Pooling/config.json, and by the name that newer files give.
MODES = {"pooling_mode_mean_tokens": "mean", "pooling_mode_cls_token": "cls"}

#: A tokenizer's length that means that it has none.
NO_LENGTH = 10**9


@dataclass(frozen=True, kw_only=True)
class SentenceEncoder(Pretrained):
    """A BERT-like encoder, whose attention is of the class `attention`.

    `starts_behind_padding` is whether its positions begin behind the padding token's id, as those
    of RoBERTa. `longest` is the setting that says how many tokens a text may have.
    """

    starts_behind_padding: bool = False
    longest: str = "max_position_embeddings"

    def read_settings(self, settings: Mapping[str, Any], *, directory: Path) -> Mapping[str, Any]:
        usual = self.settings[""]
        positions = settings.get(self.longest, usual[self.longest])
        if self.starts_behind_padding and isinstance(positions, int):
            positions -= settings.get("pad_token_id", usual["pad_token_id"]) + 1
        return {**settings, POOLING: _read_pooling(directory, positions=positions)}

    def list_notes(self, settings: Mapping[str, Any]) -> tuple[str, ...]:
        if not settings[POOLING].get("assumed"):
            return ()
        return (
            f"the folder has no {MODULES}: texts are pooled by the mean over their tokens, as "
            f"sentence-transformers does; a model that was trained to pool otherwise (BGE: the "
            f"first token) needs its {MODULES} and 1_Pooling/{CONFIG} beside it",
        )


@dataclass(frozen=True, kw_only=True)
class BiasedEncoder(SentenceEncoder):
    """MPNet or T5, whose attention is rewritten; `finish` gives the part that encodes."""

    finish: Callable[[Any], Any]

    def make_module(self, config: Any, *, attention: str) -> torch.nn.Module:
        del attention  # they have one of their own
        return self.rewrite(Pretrained.make_module(self, config, attention="eager"))

    def load(
        self, config: Any, *, state: dict[str, torch.Tensor], dtype: torch.dtype, attention: str
    ) -> Loaded:
        del attention
        loaded = Pretrained.load(self, config, state=state, dtype=dtype, attention="eager")
        # transformers keeps some layers of T5 in float32.
        return replace(loaded, module=self.rewrite(loaded.module).to(dtype))

    def place(self, name: str, *, settings: Mapping[str, Any]) -> str | None:
        if name.startswith(("decoder.", "lm_head.")):
            return None
        return Pretrained.place(self, name, settings=settings)

    def rewrite(self, module: Any) -> torch.nn.Module:
        from pytest_quantgate.encoders.split_attention import fuse_biased_attention

        found: torch.nn.Module = self.finish(module)
        fuse_biased_attention(found)
        return found


def describe_mpnet(config: Any) -> tuple[TowerSpec, ...]:
    """Return the one tower of an MPNet."""
    (tower,) = describe_towers(config, attention="BiasedAttention", read=read_mpnet)
    return (replace(tower, parts=("embeddings", "layer", "relative_attention_bias")),)


def describe_t5(config: Any) -> tuple[TowerSpec, ...]:
    """Return the one tower of a T5 encoder."""
    sizes = SimpleNamespace(
        max_position_embeddings=config.n_positions,
        vocab_size=config.vocab_size,
        hidden_size=config.d_model,
        intermediate_size=config.d_ff,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        **{POOLING: getattr(config, POOLING, None)},
    )
    (tower,) = describe_towers(sizes, attention="BiasedAttention", read=read_t5)
    gated = str(getattr(config, "feed_forward_proj", "relu")).startswith("gated")
    tower = replace(
        tower,
        parts=("embed_tokens", "block", "final_layer_norm"),
        embeddings="embed_tokens",
        linears=config.num_layers if gated else 0,
    )
    return (tower,)


def describe_towers(
    config: Any, *, attention: str, read: Callable[..., torch.Tensor] | None = None
) -> tuple[TowerSpec, ...]:
    """Return the one tower of a sentence encoder, whose attention is of the class `attention`."""
    pooling = getattr(config, POOLING, None) or {"mode": "mean", "normalize": False}
    tokens = pooling.get("tokens", config.max_position_embeddings)
    if not tokens > 0:
        raise ValueError(f"a text of {tokens} tokens is none: max_position_embeddings is too small")
    tower = TowerSpec(
        name="text",
        parts=("embeddings", "encoder"),
        inputs={"input_ids": (tokens,), "attention_mask": (tokens,)},
        embeddings="embeddings",
        attention=(attention,),
        tokens=tokens,
        config=config,
        embed=partial(
            embed_texts,
            mode=pooling["mode"],
            normalize=pooling["normalize"],
            read=read or read_bert,
        ),
        text=TextSpec(
            vocabulary=config.vocab_size,
            end_id=None,
            begin_id=None,
            pools_end=False,
            pooling=pooling["mode"],
            normalize=pooling["normalize"],
        ),
    )
    return (tower,)


def embed_texts(
    module: Any,
    inputs: Mapping[str, torch.Tensor],
    *,
    mode: str,
    normalize: bool,
    read: Callable[..., torch.Tensor],
) -> torch.Tensor:
    """Return the pooled hidden states [N, D]; padding is masked, and no part of the mean."""
    import torch

    mask = inputs["attention_mask"]
    hidden = read(module, inputs["input_ids"], mask)
    if mode == "cls":
        found: torch.Tensor = hidden[:, 0]
    else:
        weights = mask.unsqueeze(-1).to(hidden.dtype)
        found = (hidden * weights).sum(dim=1) / weights.sum(dim=1).clamp(min=1e-9)
    return torch.nn.functional.normalize(found, dim=-1) if normalize else found


def read_bert(module: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the hidden states [N, T, D] of a BERT or what is built as it is."""
    hidden = module.embeddings(input_ids=ids)
    found: torch.Tensor = module.encoder(
        hidden, attention_mask=_mask(module, hidden, mask), return_dict=True
    ).last_hidden_state
    return found


def read_mpnet(module: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the hidden states [N, T, D] of an MPNet that `flatten_mpnet` made."""
    from transformers.models.mpnet.modeling_mpnet import MPNetEncoder

    hidden: torch.Tensor = module.embeddings(input_ids=ids)
    bias = _make_bias(
        module.relative_attention_bias, find_buckets=MPNetEncoder.relative_position_bucket, ids=ids
    )
    bias = _add_mask(bias, _mask(module, hidden, mask))
    for layer in module.layer:
        hidden = layer(hidden, position_bias=bias)[0]
    return hidden


def flatten_mpnet(module: Any) -> Any:
    """Put the blocks of an MPNet and their bias where the model's own forward reaches them."""
    module.layer = module.encoder.layer
    module.relative_attention_bias = module.encoder.relative_attention_bias
    del module.encoder
    return module


def read_t5(module: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Return the hidden states [N, T, D] of a T5's encoder."""
    from transformers.models.t5.modeling_t5 import T5Attention

    hidden = module.embed_tokens(ids)
    find_buckets = partial(
        T5Attention._relative_position_bucket,
        num_buckets=module.config.relative_attention_num_buckets,
        max_distance=module.config.relative_attention_max_distance,
    )
    first = module.block[0].layer[0].SelfAttention
    bias = _make_bias(first.relative_attention_bias, find_buckets=find_buckets, ids=ids)
    bias = _add_mask(bias, _mask(module, hidden, mask))
    for block in module.block:
        hidden = block(hidden, position_bias=bias)[0]
    found: torch.Tensor = module.final_layer_norm(hidden)
    return found


def _make_bias(table: Any, *, find_buckets: Callable[[Any], Any], ids: torch.Tensor) -> Any:
    """Return what the distance of two tokens adds to their scores, [1, H, T, T]."""
    import torch

    positions = torch.arange(ids.shape[1], device=ids.device)
    buckets = find_buckets(positions[None] - positions[:, None])
    return torch.nn.functional.embedding(buckets, table.weight).permute(2, 0, 1)[None]


def _add_mask(bias: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Return both as one: what a block makes and others use would tie blocks to one another."""
    return bias if mask is None else bias + mask


def _mask(module: Any, hidden: torch.Tensor, mask: torch.Tensor) -> Any:
    from transformers.masking_utils import create_bidirectional_mask

    return create_bidirectional_mask(
        config=module.config, inputs_embeds=hidden, attention_mask=mask
    )


def _read_pooling(directory: Path, *, positions: Any) -> dict[str, Any]:
    """Return what is done behind the last hidden state, and how many tokens a text may have.

    Raises UnsupportedModel, with what to do, for what is not done here.
    """
    found: dict[str, Any] = {"mode": "mean", "normalize": False, "tokens": positions}
    settings = _read(directory, SENTENCE_SETTINGS)
    if settings.get("do_lower_case"):
        raise UnsupportedModel(
            f"{directory / SENTENCE_SETTINGS}: do_lower_case is not done here: let the tokenizer "
            f"do it (do_lower_case in tokenizer_config.json), and set it to false"
        )
    longest = [
        settings.get("max_seq_length"),
        _read(directory, "tokenizer_config.json").get("model_max_length"),
    ]
    chosen = next((n for n in longest if isinstance(n, int) and 0 < n < NO_LENGTH), positions)
    if isinstance(chosen, int) and isinstance(positions, int):
        found["tokens"] = min(chosen, positions)
    prompt = _read(directory, PROMPTS).get("default_prompt_name")
    if prompt:
        raise UnsupportedModel(
            f"{directory / PROMPTS}: default_prompt_name is {str(prompt)[:80]!r}: prompts are not "
            f"put in front of texts here: set it to null, and write the prompt into the data"
        )
    steps = _read(directory, MODULES, many=True)
    kinds = [str(step.get("type", "")).rpartition(".")[2] for step in steps]
    if not kinds:
        return {**found, "assumed": True}
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise UnsupportedModel(
            f"{directory / MODULES} names the steps {', '.join(kinds)[:200]}: Transformer, Pooling "
            f"and Normalize are done here: gate the steps in front of the others, by removing them "
            f"from a copy of the file"
        )
    found["normalize"] = "Normalize" in kinds
    name = f"{str(steps[1].get('path', ''))[:100]}/{CONFIG}"
    if name != f"1_Pooling/{CONFIG}":
        raise UnsupportedModel(
            f"{directory / MODULES}: pooling is read from 1_Pooling, not {name!r}"
        )
    pooling = _read(directory, name)
    modes = [key for key, value in pooling.items() if key.startswith("pooling_mode_") and value]
    if "pooling_mode" in pooling:
        modes = [str(pooling["pooling_mode"])]
    known = {**MODES, **{mode: mode for mode in MODES.values()}}
    if len(modes) != 1 or modes[0] not in known:
        raise UnsupportedModel(
            f"{directory / name}: pools by {', '.join(modes)[:200] or 'nothing'}: one of "
            f"{' and '.join(MODES)} is done here"
        )
    found["mode"] = known[modes[0]]
    return found


def _read(directory: Path, name: str, *, many: bool = False) -> Any:
    """Return a JSON file of the folder, empty where it is not there; raises ModelError."""
    path = directory / name
    if not path.exists():
        return [] if many else {}
    if not stays_inside(path, directory=path.parent):
        raise ModelError(f"{path} is a link that leads out of its folder, which is not followed")
    try:
        found = parse_json(read_regular(path, max_bytes=bounds.JSON_BYTES))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} is unreadable: {error}") from error
    if many and isinstance(found, list) and all(isinstance(step, dict) for step in found):
        return found
    if many or not isinstance(found, dict):
        raise ModelError(f"{path} is unreadable: expected a {'list' if many else 'mapping'}")
    return found


SIZES = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
}


def _make_roberta(name: str, *, vocabulary: int) -> SentenceEncoder:
    return SentenceEncoder(
        towers=("text",),
        describe_towers=partial(describe_towers, attention=f"{name}SelfAttention"),
        config=f"{name}Config",
        model=f"{name}Model",
        options={"add_pooling_layer": False},
        unused=("pooler.", "lm_head."),
        inside="roberta",
        settings={
            "": {
                **SIZES,
                "vocab_size": vocabulary,
                "max_position_embeddings": 514,
                "pad_token_id": 1,
            }
        },
        tokenizer=TokenizerClass(
            names=(f"{name}Tokenizer", f"{name}TokenizerFast"),
            special={"pad_token": "<pad>", "unk_token": "<unk>"},
        ),
        starts_behind_padding=True,
    )


FAMILY = EncoderFamily(
    name="text",
    pretrained={
        "bert": SentenceEncoder(
            towers=("text",),
            describe_towers=partial(describe_towers, attention="BertSelfAttention"),
            config="BertConfig",
            model="BertModel",
            options={"add_pooling_layer": False},
            unused=("pooler.", "cls."),
            inside="bert",
            settings={
                "": {
                    **SIZES,
                    "vocab_size": 30522,
                    "max_position_embeddings": 512,
                    "pad_token_id": 0,
                }
            },
            tokenizer=TokenizerClass(
                names=("BertTokenizer", "BertTokenizerFast"),
                special={"pad_token": "[PAD]", "unk_token": "[UNK]"},
            ),
        ),
        "roberta": _make_roberta("Roberta", vocabulary=50265),
        "xlm-roberta": _make_roberta("XLMRoberta", vocabulary=250002),
        "mpnet": BiasedEncoder(
            towers=("text",),
            describe_towers=describe_mpnet,
            config="MPNetConfig",
            model="MPNetModel",
            options={"add_pooling_layer": False},
            unused=("pooler.",),
            inside="mpnet",
            settings={
                "": {
                    **SIZES,
                    "vocab_size": 30527,
                    "max_position_embeddings": 512,
                    "pad_token_id": 1,
                }
            },
            tokenizer=TokenizerClass(
                names=("MPNetTokenizer", "MPNetTokenizerFast"),
                special={"pad_token": "<pad>", "unk_token": "[UNK]"},
            ),
            starts_behind_padding=True,
            finish=flatten_mpnet,
        ),
        "t5": BiasedEncoder(
            towers=("text",),
            describe_towers=describe_t5,
            config="T5Config",
            model="T5EncoderModel",
            settings={
                "": {
                    "vocab_size": 32128,
                    "n_positions": 512,
                    "d_model": 512,
                    "d_ff": 2048,
                    "num_layers": 6,
                    "num_heads": 8,
                }
            },
            tokenizer=TokenizerClass(
                names=("T5Tokenizer", "T5TokenizerFast"),
                special={"pad_token": "<pad>", "unk_token": "<unk>", "eos_token": "</s>"},
            ),
            longest="n_positions",
            finish=lambda module: module.encoder,
        ),
    },
    refused=dict.fromkeys(
        ("deberta-v2", "mt5", "umt5"),
        "its attention adds a bias of its own to the scores, in a way that is not known here: make "
        "it by a function of your own (model: {source: factory})",
    ),
)
