"""Text encoders alone: what transformers and sentence-transformers compute, and what is refused."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from pytest_quantgate.commands.cli import main
from pytest_quantgate.encoders.encoder import Encoder
from pytest_quantgate.encoders.families import describe_settings, read_settings, read_towers
from pytest_quantgate.encoders.loading import load_fp16
from pytest_quantgate.errors import ModelError
from pytest_quantgate.measure.model_checks import find_unknown, inspect_checkpoint
from pytest_quantgate.suite.specs import ModelSpec
from tests.text_encoders import KINDS, TOKENS, save_text_encoder

TEXTS = ["a red circle", "a dog", "a small blue square above a cat"]

MakeSpec = Callable[..., ModelSpec]


@pytest.fixture
def save(tmp_path: Path, model_spec: MakeSpec) -> Callable[..., Encoder]:
    """Save a text encoder of a kind, edit its JSON files by their names, and load it."""

    def make(kind: str, **edits: Callable[[Any], Any]) -> Encoder:
        folder = tmp_path / kind
        if not folder.exists():
            save_text_encoder(kind, folder)
        for name, edit in edits.items():
            path = folder / f"{name.replace('__', '/')}.json"
            found = json.loads(path.read_text("utf-8"))
            edit(found)
            path.write_text(json.dumps(found), encoding="utf-8")
        return load_fp16(model_spec(folder), environ={})

    return make


def embed_plainly(kind: str, module: Any, tokens: dict[str, torch.Tensor]) -> torch.Tensor:
    """Return the embedding by transformers alone; the mean as sentence-transformers takes it."""
    found = module(**tokens)
    if kind == "clip":
        return torch.as_tensor(found.last_hidden_state).flatten(start_dim=1)
    if kind == "projection":
        return torch.as_tensor(found.text_embeds)
    hidden = found.last_hidden_state
    if kind == "cls":
        return normalize(hidden[:, 0], dim=-1)
    mask = tokens["attention_mask"].unsqueeze(-1).float()
    mean = (hidden * mask).sum(1) / mask.sum(1)
    return normalize(mean, dim=-1) if kind == "bert" else mean


@pytest.mark.parametrize("kind", KINDS)
def test_the_embedding_is_that_of_its_library(
    tmp_path: Path, model_spec: MakeSpec, kind: str
) -> None:
    module = save_text_encoder(kind, tmp_path)
    encoder = load_fp16(model_spec(tmp_path), environ={})
    tokens = encoder.tokenize(TEXTS)

    found = encoder.encode_text(tokens)

    torch.testing.assert_close(found, embed_plainly(kind, module, tokens), rtol=1e-5, atol=1e-6)
    assert read_towers(tmp_path) == encoder.tower_names == ("text",)
    assert encoder.tower("text").tokens == TOKENS == tokens["input_ids"].shape[1]
    assert inspect_checkpoint(tmp_path) == ()
    assert find_unknown(tmp_path) is None


@pytest.mark.parametrize("kind", ["bert", "mpnet", "t5"])
def test_other_padding_changes_nothing_that_is_masked(
    save: Callable[..., Encoder], kind: str
) -> None:
    """Left out of the mask, padding would change a mean by a third."""
    encoder = save(kind)
    tokens = encoder.tokenize(TEXTS)
    other = {**tokens, "input_ids": tokens["input_ids"].clone()}
    other["input_ids"][tokens["attention_mask"] == 0] = 7
    unmasked = {**tokens, "attention_mask": torch.ones_like(tokens["attention_mask"])}

    masked = encoder.encode_text(tokens)

    torch.testing.assert_close(encoder.encode_text(other), masked, rtol=1e-5, atol=1e-6)
    assert float((encoder.encode_text(unmasked) - masked).norm(dim=1).min()) > 0.05


def test_a_diffusion_model_reads_padding_too(save: Callable[..., Encoder]) -> None:
    encoder = save("clip")

    assert tuple(encoder.tower("text").inputs) == ("input_ids",)
    assert encoder.encode_text(encoder.tokenize(TEXTS)).shape == (3, TOKENS * 32)


def test_the_tokenizer_beside_it_in_a_pipeline_is_taken(
    tmp_path: Path, model_spec: MakeSpec, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "sd" / "text_encoder"
    save_text_encoder("clip", folder)
    wanted = load_fp16(model_spec(folder), environ={})
    (tmp_path / "sd" / "tokenizer").mkdir()
    for path in folder.glob("*token*.json"):
        path.rename(tmp_path / "sd" / "tokenizer" / path.name)
    (tmp_path / "sd" / "model_index.json").write_text("{}")

    found = load_fp16(model_spec(folder), environ={})

    assert torch.equal(found.tokenize(TEXTS)["input_ids"], wanted.tokenize(TEXTS)["input_ids"])
    assert inspect_checkpoint(folder) == ()
    with pytest.raises(ModelError, match=r"is a pipeline of diffusers: name .*/sd/text_encoder"):
        load_fp16(model_spec(tmp_path / "sd"), environ={})
    arguments = ["init", "--data", "scenes", "--output", "-", "--model"]
    assert main([*arguments, str(tmp_path / "sd")], environ={}) != 0
    assert "name the folder of one encoder" in capsys.readouterr().err
    assert main(["doctor", str(tmp_path / "sd")], environ={}) == 1
    assert "name the folder of one encoder" in capsys.readouterr().out


def test_another_tokenizer_beside_it_is_another_digest(
    tmp_path: Path, model_spec: MakeSpec
) -> None:
    folder = tmp_path / "sd" / "text_encoder"
    save_text_encoder("clip", folder)
    beside = tmp_path / "sd" / "tokenizer"
    beside.mkdir()
    for path in folder.glob("*token*.json"):
        path.rename(beside / path.name)
    before = load_fp16(model_spec(folder), environ={}).weights_digest

    config = json.loads((beside / "tokenizer_config.json").read_text("utf-8"))
    (beside / "tokenizer_config.json").write_text(json.dumps({**config, "padding_side": "left"}))

    assert load_fp16(model_spec(folder), environ={}).weights_digest != before


@pytest.mark.parametrize("kind", ["clip", "bert"])
def test_names_of_older_files_and_of_larger_models_are_taken(
    tmp_path: Path, model_spec: MakeSpec, kind: str
) -> None:
    from safetensors.torch import load_file, save_file

    module = save_text_encoder(kind, tmp_path)
    path = tmp_path / "model.safetensors"
    inside = {"clip": "text_model", "bert": "bert"}[kind]
    older = {f"{inside}.{name}": tensor for name, tensor in load_file(path).items()}
    save_file(older, path, metadata={"format": "pt"})
    encoder = load_fp16(model_spec(tmp_path), environ={})
    tokens = encoder.tokenize(TEXTS)

    torch.testing.assert_close(encoder.encode_text(tokens), embed_plainly(kind, module, tokens))


def test_a_folder_without_modules_is_pooled_by_the_mean_and_says_so(
    save: Callable[..., Encoder],
) -> None:
    """As sentence-transformers does."""
    encoder = save("roberta")
    tower = encoder.tower("text")

    said: Any = tower.text
    assert (said.pooling, said.normalize) == ("mean", False)
    assert encoder.notes[0].startswith(
        "the folder has no modules.json: texts are pooled by the mean over their tokens"
    )
    assert not any("modules.json" in note for note in save("cls").notes)


def test_the_longest_text_is_as_sentence_transformers_says(tmp_path: Path) -> None:
    save_text_encoder("bert", tmp_path)
    (tmp_path / "sentence_bert_config.json").write_text('{"max_seq_length": 8}')

    (tower,) = describe_settings(read_settings(tmp_path))

    assert tower.tokens == 8


# -- what is refused, by name and before a run ----------------------------------------------------


def _pool_by_max(pooling: dict[str, Any]) -> None:
    pooling.update(pooling_mode_mean_tokens=False, pooling_mode_max_tokens=True)


REFUSED: list[tuple[str, Callable[[Any], Any], str]] = [
    ("1_Pooling__config", _pool_by_max, "pools by pooling_mode_max_tokens: one of"),
    (
        "1_Pooling__config",
        lambda pooling: pooling.update(pooling_mode_cls_token=True),
        "pools by pooling_mode_cls_token, pooling_mode_mean_tokens",
    ),
    (
        "modules",
        lambda steps: steps.insert(2, {"type": "sentence_transformers.models.Dense"}),
        "names the steps Transformer, Pooling, Dense, Normalize",
    ),
    ("config", lambda config: config.update(model_type="umt5"), "'umt5' is not taken yet: its"),
    (
        "config",
        lambda config: config.update(max_position_embeddings=-1),
        "max_position_embeddings is -1",
    ),
]


@pytest.mark.parametrize(("name", "edit", "said"), REFUSED, ids=[row[2][:30] for row in REFUSED])
def test_what_is_not_done_here_is_said_by_validate_and_doctor(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    save: Callable[..., Encoder],
    name: str,
    edit: Callable[[Any], Any],
    said: str,
) -> None:
    arguments = ["--deep"] if "-1" in said else []  # sizes are no matter of a family
    with pytest.raises(ModelError, match=re.escape(said)):
        save("bert", **{name: edit})
    suite = tmp_path / "s.quantgate.yaml"
    suite.write_text(
        f"quantgate: 1\nmodel: {{source: transformers, id: {tmp_path / 'bert'}}}\n"
        "calibration: {data: scenes/calibration, samples: 16, batch_size: 16}\n"
        "quantize: {recipe: fp8}\ngates: {coverage: {}}\n"
    )

    assert main(["doctor", str(tmp_path / "bert")], environ={}) == 1
    assert said in capsys.readouterr().out
    assert main(["validate", *arguments, str(suite)], environ={}) == 1
    assert said in "".join(capsys.readouterr())


def test_a_step_that_is_a_link_is_not_followed(tmp_path: Path, model_spec: MakeSpec) -> None:
    save_text_encoder("bert", tmp_path / "bert")
    shutil.move(tmp_path / "bert" / "modules.json", tmp_path / "modules.json")
    (tmp_path / "bert" / "modules.json").symlink_to(tmp_path / "modules.json")

    with pytest.raises(ModelError, match=r"modules\.json is a link that leads out of its folder"):
        load_fp16(model_spec(tmp_path / "bert"), environ={})
