"""What is loaded of a checkpoint is what was digested, and nothing that a file of it names."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pytest_quantgate.encoders.loading import load_fp16
from pytest_quantgate.encoders.source import FILES, LOADED_FILES, resolve_checkpoint
from pytest_quantgate.errors import ModelError
from pytest_quantgate.suite.specs import ModelSpec
from pytest_quantgate.suite.where import Where
from tests.hostile import Bomb, update

WHERE = Where(file="suites/x.quantgate.yaml", line=3)
Plant = Callable[[Path], Any]


@pytest.fixture
def clip(tiny_clip: Path, tmp_path: Path, canary: Path) -> Path:
    """A checkpoint amid files that nobody may open: other weights, inside and outside, pickles."""
    folder = tmp_path / "clip"
    shutil.copytree(tiny_clip, folder)
    state = load_file(folder / "model.safetensors")
    other = {name: tensor + 1 for name, tensor in state.items()}
    (folder / "sub").mkdir()
    for path in (tmp_path / "outside.safetensors", folder / "sub" / "w.safetensors"):
        save_file(other, path, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(state, "../outside.safetensors")}
    (folder / "other.safetensors.index.json").write_text(json.dumps(index))
    index = {"metadata": {}, "weight_map": dict.fromkeys(state, "evil.bin")}
    (folder / "evil.safetensors.index.json").write_text(json.dumps(index))
    torch.save({**state, "evil": Bomb(canary)}, folder / "evil.bin")
    shutil.copy(folder / "evil.bin", folder / "pytorch_model.bin")
    shutil.copy(folder / "tokenizer.json", tmp_path / "tokenizer.json")
    (folder / "chat_template.jinja").write_text("{{ 1 }}")
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "x.jinja").write_text("{{ 1 }}")
    return folder


def spec(folder: Path) -> ModelSpec:
    return ModelSpec(where=WHERE, source="transformers", id=str(folder))


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("config.json", "transformers_weights", "sub/w.safetensors"),
        ("config.json", "transformers_weights", "other.safetensors.index.json"),
        ("config.json", "transformers_weights", "evil.safetensors.index.json"),
        ("config.json", "transformers_weights", "model.safetensors"),
        ("config.json", "auto_map", {"AutoModel": "evil.Evil"}),
        ("tokenizer_config.json", "auto_map", {"AutoTokenizer": ["evil.Evil", None]}),
        # transformers 4 opens the first; what stands in the map takes the place of files in 5 too.
        ("tokenizer_config.json", "tokenizer_file", "../tokenizer.json"),
        ("tokenizer_config.json", "vocab_file", "/etc/passwd"),
        ("tokenizer_config.json", "fast_tokenizer_files", ["sub/tokenizer.4.0.0.json"]),
        ("tokenizer_config.json", "init_inputs", ["../vocab.json"]),
        ("tokenizer_config.json", "vocab", "../vocab.json"),
        ("special_tokens_map.json", "tokenizer_file", "../tokenizer.json"),
        ("special_tokens_map.json", "merges", "../merges.txt"),
        ("preprocessor_config.json", "auto_map", {"AutoImageProcessor": "evil.Evil"}),
        ("processor_config.json", "auto_map", {"AutoProcessor": "evil.Evil"}),
    ],
)
def test_a_key_that_names_another_file_or_code_is_refused(
    clip: Path, canary: Path, file: str, key: str, value: Any
) -> None:
    update(clip / file, **{key: value})

    with pytest.raises(ModelError) as caught:
        load_fp16(spec(clip), environ={})

    assert str(caught.value).startswith(f"suites/x.quantgate.yaml:3: {clip / file}: {key} is ")
    assert "a checkpoint may not name other files or code" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert not canary.exists()


#: Opens a model in a process whose opened files are noted, by Python and by safetensors.
RECORD = """
import json, os, sys
import safetensors, safetensors.torch, tokenizers, torch, transformers
from pathlib import Path
from pytest_quantgate.encoders.loading import load_fp16
from pytest_quantgate.suite.specs import ModelSpec
from pytest_quantgate.suite.where import Where

opened = set()

def note(path):
    if isinstance(path, (str, bytes, os.PathLike)):
        opened.add(os.path.realpath(os.fsdecode(path)))

sys.addaudithook(lambda event, arguments: note(arguments[0]) if event == "open" else None)
true_open, true_from_file = safetensors.safe_open, tokenizers.Tokenizer.from_file

def safe_open(path, **options):
    note(path)
    return true_open(path, **options)

safetensors.safe_open = safetensors.torch.safe_open = safe_open
where = Where(file="x", line=1)
load_fp16(ModelSpec(where=where, source="transformers", id=sys.argv[1]), environ={})
print("OPENED", json.dumps(sorted(opened)))
"""


def test_what_is_opened_is_what_was_digested(clip: Path, canary: Path) -> None:
    """Beside what the libraries read of their own, and copies in a temporary folder."""
    update(clip / "tokenizer_config.json", special_tokens_map_file="../tokenizer.json")
    found = subprocess.run(
        [sys.executable, "-c", RECORD, str(clip)], capture_output=True, text=True, check=True
    )
    opened = {Path(path) for path in json.loads(found.stdout.split("OPENED")[1])}

    tree = os.path.realpath(clip.parent)
    here = {path for path in opened if path.is_relative_to(tree)}
    assert here == {path for pattern in FILES for path in clip.glob(pattern)}
    assert not canary.exists()


@pytest.mark.parametrize("shards", [1, 2])
def test_whatever_changes_the_model_changes_its_digest(clip: Path, shards: int) -> None:
    """Each file of the folder and about it is spoiled in turn: same digest, same model."""
    (clip / "model.safetensors.index.json").unlink(missing_ok=True)
    if shards == 2:
        split_weights(clip)
    digest = resolve_checkpoint(spec(clip), environ={}).digest
    files = [path for path in sorted(clip.parent.rglob("*")) if path.is_file()]
    unseen = []
    for path in files:
        before = path.read_bytes()
        path.write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
        if resolve_checkpoint(spec(clip), environ={}).digest == digest:
            unseen.append(path)
        path.write_bytes(before)
    assert {path.name for path in unseen} == {
        *("chat_template.jinja", "x.jinja", "outside.safetensors", "w.safetensors"),
        *("evil.bin", "pytorch_model.bin"),
        *(["tokenizer.json"] if clip.parent / "tokenizer.json" in unseen else []),
    }
    expected = load_fp16(spec(clip), environ={}).module.state_dict()

    for path in unseen:
        path.write_bytes(b"spoiled")
    found = load_fp16(spec(clip), environ={}).module.state_dict()

    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def split_weights(folder: Path) -> None:
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(state)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for shard, held in shards.items():
        save_file({name: state[name] for name in held}, folder / shard, metadata={"format": "pt"})
    index = {name: shard for shard, held in shards.items() for name in held}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))


def test_shards_are_the_model_that_they_were_split_from(clip: Path) -> None:
    expected = load_fp16(spec(clip), environ={}).module.state_dict()
    split_weights(clip)
    found = load_fp16(spec(clip), environ={}).module.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def repeat_in_shards(folder: Path) -> None:
    split_weights(folder)
    shutil.copy(folder / "a.safetensors", folder / "c.safetensors")
    path = folder / "model.safetensors.index.json"
    found = json.loads(path.read_text())
    path.write_text(json.dumps({"weight_map": {**found["weight_map"], "x": "c.safetensors"}}))


def relabel(folder: Path) -> None:
    path = folder / "model.safetensors"
    save_file(load_file(path), path, metadata={"format": "mlx"})


def link(path: Path, target: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(target)


@pytest.mark.parametrize(
    ("plant", "words"),
    [
        (repeat_in_shards, "stands in another shard too"),
        (relabel, "model.safetensors holds the tensors of 'mlx': save them with PyTorch"),
        (
            lambda f: (f / "model.safetensors").rename(f / "weights.safetensors"),
            "holds neither model.safetensors nor model.safetensors.index.json",
        ),
        *(
            (plant, f"{name} is a link that leads out of its folder, which is not followed")
            for name, plant in [
                (
                    "model.safetensors",
                    lambda f: link(f / "model.safetensors", f.parent / "outside.safetensors"),
                ),
                ("vocab.json", lambda f: link(f / "vocab.json", Path("/etc/passwd"))),
                ("config.json", lambda f: link(f / "config.json", f.parent / "gone.json")),
                ("more.json", lambda f: link(f / "more.json", Path("../outside.safetensors"))),
            ]
        ),
        (lambda f: link(f / "more.json", f / "more.json"), "more.json is no regular file"),
        (
            lambda f: update(f / "config.json", vision_config_dict={"image_size": 60_000}),
            "config.json: vision_config_dict.image_size is 60000: expected 1 to 1024",
        ),
        (
            lambda f: update(f / "preprocessor_config.json", crop_size=60_000),
            "preprocessor_config.json: crop_size is 60000: expected 1 to 1024",
        ),
        (
            lambda f: update(
                f / "processor_config.json", image_processor={"size": {"height": 60_000}}
            ),
            "processor_config.json: size.height is 60000: expected 1 to 1024",
        ),
        (
            lambda f: update(
                f / "config.json",
                text_config={
                    "hidden_size": 65_536,
                    "num_attention_heads": 8,
                    "num_hidden_layers": 100,
                },
            ),
            "config.json describes a model of ",
        ),
    ],
)
def test_weights_are_of_this_folder_and_of_this_config(
    clip: Path, canary: Path, plant: Plant, words: str
) -> None:
    plant(clip)

    with pytest.raises(ModelError) as caught:
        load_fp16(spec(clip), environ={})

    assert words in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    assert not canary.exists()


def test_the_links_of_the_hubs_cache_are_followed(tiny_clip: Path, tmp_path: Path) -> None:
    model = tmp_path / "hub" / "models--a--b"
    snapshot, blobs = model / "snapshots" / ("0" * 40), model / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(sorted(tiny_clip.iterdir())):
        shutil.copy(path, blobs / str(number))
        (snapshot / path.name).symlink_to(Path("../../blobs") / str(number))
    (tmp_path / "linked").symlink_to(snapshot)

    plain = load_fp16(spec(tiny_clip), environ={})
    for folder in (snapshot, tmp_path / "linked"):
        assert load_fp16(spec(folder), environ={}).weights_digest == plain.weights_digest

    link(snapshot / "config.json", tmp_path / "elsewhere.json")
    shutil.copy(tiny_clip / "config.json", tmp_path / "elsewhere.json")
    with pytest.raises(ModelError, match=r"config\.json is a link that leads out of its folder"):
        load_fp16(spec(snapshot), environ={})


def test_the_files_that_are_loaded_are_among_those_that_are_digested() -> None:
    assert all(any(Path(name).match(pattern) for pattern in FILES) for name in LOADED_FILES)


def test_the_bomb_of_these_tests_goes_off(canary: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(canary)))
    assert canary.exists()
