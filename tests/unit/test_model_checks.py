"""A checkpoint's files against one another: each fault has its finding, a good folder none."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pytest_quantgate.commands.cli import main
from pytest_quantgate.encoders import families, vit
from pytest_quantgate.evidence.sanity import Fault
from pytest_quantgate.measure.model_checks import (
    find_unknown,
    inspect_checkpoint,
    read_texts_of_files,
)
from tests.vision_encoders import KINDS, save_vision_encoder

pytestmark = pytest.mark.slow

Edit = Callable[[dict[str, Any]], Any]


@pytest.fixture
def copy_clip(tiny_clip: Path, tmp_path: Path) -> Callable[..., Path]:
    """Copy the tiny CLIP, with `<file>=edit` done to its JSON files."""

    def copy(**edits: Edit) -> Path:
        folder = tmp_path / "clip"
        shutil.copytree(tiny_clip, folder)
        for name, edit in edits.items():
            path = folder / f"{name}.json"
            data = json.loads(path.read_text("utf-8"))
            edit(data)
            path.write_text(json.dumps(data), encoding="utf-8")
        return folder

    return copy


def certain(folder: Path, **options: Any) -> list[Fault]:
    return [fault for fault in inspect_checkpoint(folder, **options) if fault.certain]


def doubts(folder: Path) -> set[str]:
    return {fault.finding for fault in inspect_checkpoint(folder) if not fault.certain}


def test_a_good_folder_has_no_fault(tiny_clip: Path) -> None:
    assert certain(tiny_clip) == []
    assert doubts(tiny_clip) == {"normalization"}  # the reference has its own mean and std


def text_config(**values: Any) -> Edit:
    return lambda config: config["text_config"].update(values)


def add_word(number: int) -> Edit:
    def edit(tokenizer: dict[str, Any]) -> None:
        tokenizer["model"]["vocab"]["<domain>"] = number
        tokenizer["added_tokens"].append(
            {
                **tokenizer["added_tokens"][0],
                "id": number,
                "content": "<domain>",
                "special": False,
            }
        )

    return edit


CASES: dict[str, tuple[dict[str, Edit], str, str]] = {
    "the processor of a larger model": (
        {
            "preprocessor_config": lambda config: config.update(
                size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224}
            )
        },
        "image-size",
        "its image processor makes images of 3 x 224 x 224 (channels, height, width), the vision "
        "tower takes 3 x 48 x 48",
    ),
    "a crop that is a number": (
        {"preprocessor_config": lambda config: config.update(crop_size=32)},
        "image-size",
        "3 x 32 x 32 (channels, height, width), the vision tower takes 3 x 48 x 48",
    ),
    "no crop, another size": (
        {
            "preprocessor_config": lambda config: config.update(
                do_center_crop=False, size={"height": 64, "width": 48}
            )
        },
        "image-size",
        "3 x 64 x 48 (channels, height, width)",
    ),
    "pixels that stay between 0 and 255": (
        {"preprocessor_config": lambda config: config.update(do_rescale=False)},
        "pixel-range",
        "do_rescale is false in preprocessor_config.json",
    ),
    "a deviation of 0": (
        {"preprocessor_config": lambda config: config.update(image_std=[0.2, 0, 0.2])},
        "pixel-range",
        "image_std [0.2, 0, 0.2]",
    ),
    "no padding token": (
        {"tokenizer_config": lambda config: config.pop("pad_token")},
        "no-padding-token",
        "its tokenizer has no padding token",
    ),
    "no end token appended": (
        {"tokenizer": lambda data: data["post_processor"]["single"].pop()},
        "end-token-absent",
        "its tokenizer appends no end token '<|endoftext|>' to a text, and the text tower pools it",
    ),
    "an end token that is not in the vocabulary": (
        {"tokenizer_config": lambda config: config.update(eos_token="</s>")},
        "end-token-absent",
        "its tokenizer has no token '</s>', which its tokenizer_config.json names",
    ),
    "another end token in the config": (
        {"config": text_config(eos_token_id=5)},
        "pooled-token",
        "the text tower pools token 5 (text_config.eos_token_id in config.json), the tokenizer "
        "ends texts with 3 ('<|endoftext|>')",
    ),
    "an old config, whose largest id is a word's": (
        {"config": text_config(eos_token_id=2)},
        "pooled-token",
        "text_config.eos_token_id is 2, for which the text tower pools the largest id of a text: ",
    ),
    "a word behind the table": (
        {"tokenizer": lambda data: data["model"]["vocab"].update(lorry=70)},
        "token-beyond-table",
        "token 70 ('lorry') lies behind the embedding table of 70 rows (text_config.vocab_size in "
        "config.json)",
    ),
    "the tokenizer of a larger model": (
        {"config": text_config(vocab_size=20)},
        "token-beyond-table",
        "token 20 (",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_each_fault_is_named_alone(copy_clip: Callable[..., Path], name: str) -> None:
    edits, finding, words = CASES[name]
    (fault,) = certain(copy_clip(**edits))

    assert fault.finding == finding
    assert words in fault.text
    assert fault.fix


def test_a_tokenizer_that_is_longer_than_the_positions_is_a_doubt(
    copy_clip: Callable[..., Path],
) -> None:
    folder = copy_clip(tokenizer_config=lambda config: config.update(model_max_length=128))

    assert certain(folder) == []
    assert doubts(folder) == {"max-length", "normalization"}


@pytest.mark.parametrize(
    ("edits", "shown"),
    [
        # A word of a domain behind the end token, and a config that names the end token.
        (
            {"tokenizer": add_word(70), "config": text_config(vocab_size=71)},
            {"normalization"},
        ),
        ({"tokenizer_config": lambda c: c.update(model_max_length=10**30)}, {"normalization"}),
        ({"tokenizer_config": lambda c: c.update(model_input_names=["input_ids"])},
         {"normalization"}),
        ({"config": text_config(vocab_size=128)}, {"normalization"}),  # a padded table
        (
            {
                "preprocessor_config": lambda c: c.update(
                    image_mean=[0.48145466, 0.4578275, 0.40821073],
                    image_std=[0.26862954, 0.26130258, 0.27577711],
                )
            },
            set(),
        ),
        ({"preprocessor_config": lambda c: (c.pop("crop_size"), c.update(do_center_crop=False))},
         {"normalization"}),  # one edge alone is said: what comes out depends on the image
    ],
)  # fmt: skip
def test_what_is_unusual_and_right_is_no_fault(
    copy_clip: Callable[..., Path], edits: dict[str, Edit], shown: set[str]
) -> None:
    folder = copy_clip(**edits)

    assert certain(folder) == []
    assert doubts(folder) == shown


def test_a_folder_without_tokenizer(copy_clip: Callable[..., Path]) -> None:
    folder = copy_clip()
    for path in folder.glob("*token*"):
        path.unlink()

    (fault,) = certain(folder)
    assert fault.finding == "no-tokenizer"
    assert fault.fix == "save the tokenizer too: tokenizer.save_pretrained(FOLDER)"


@pytest.mark.parametrize(("words", "empty"), [((), True), (("red", "blue"), True), (None, False)])
def test_a_tokenizer_of_two_words(
    copy_clip: Callable[..., Path], words: tuple[str, ...] | None, empty: bool
) -> None:
    def shrink(data: dict[str, Any]) -> None:
        kept = {token["content"] for token in data["added_tokens"]} | set(words or ())
        vocabulary = data["model"]["vocab"]
        if words is not None:
            data["model"]["vocab"] = {word: n for word, n in vocabulary.items() if word in kept}

    faults = certain(copy_clip(tokenizer=shrink))

    assert [fault.finding for fault in faults] == (["tokenizer-empty"] if empty else [])
    if empty:
        assert f"its tokenizer knows {len(words or ())} tokens beside" in faults[0].text


@pytest.mark.parametrize(
    ("name", "factor", "certain_one"),
    [
        ("vision_model.embeddings.patch_embedding.weight", 1e5, True),
        ("text_model.embeddings.token_embedding.weight", 1e6, True),
        ("text_model.embeddings.position_embedding.weight", 1e6, True),
        ("vision_model.embeddings.patch_embedding.weight", 100.0, None),
    ],
)
def test_embeddings_beyond_float16(
    copy_clip: Callable[..., Path], name: str, factor: float, certain_one: bool | None
) -> None:
    from safetensors.torch import load_file, save_file

    folder = copy_clip()
    tensors = {key: value.float() for key, value in load_file(folder / "model.safetensors").items()}
    tensors[name] *= factor
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    found = [f.certain for f in inspect_checkpoint(folder) if f.finding == "float16-overflow"]

    assert found == ([] if certain_one is None else [certain_one])
    assert not [
        f for f in inspect_checkpoint(folder, dtype="bfloat16") if f.finding == "float16-overflow"
    ]


def test_the_largest_value_of_a_patch_is_what_the_convolution_gives(tiny_clip: Path) -> None:
    """Between the plain patch and the worst one lies whatever a photograph can give."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = tiny_clip.parent / "loud-clip"
    shutil.copytree(tiny_clip, folder, dirs_exist_ok=True)
    tensors = {key: value.float() for key, value in load_file(folder / "model.safetensors").items()}
    name = "vision_model.embeddings.patch_embedding.weight"
    tensors[name] *= 1e5
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    (fault,) = [f for f in inspect_checkpoint(folder) if f.finding == "float16-overflow"]
    weight = tensors[name].double()
    half = torch.zeros(3, 16, 16, dtype=torch.double)
    half[:, :8] = 1
    patches = [half, 1 - half, half.transpose(1, 2), 1 - half.transpose(1, 2)]
    values = [(weight * (patch - 0.45) / 0.25).sum((1, 2, 3)).abs().max() for patch in patches]

    assert f"gives up to {float(max(values)):.3g} for a patch that is half" in fault.text


def test_texts_are_read_as_by_the_model(tiny_clip: Path, copy_clip: Callable[..., Path]) -> None:
    reader = read_texts_of_files(tiny_clip)
    assert reader is not None
    sound = reader.read(["the red circle", "a photo of the blue square"])
    assert (sound.distinct, sound.without_end, sound.pooled_elsewhere) == (2, 0, 0)

    broken = read_texts_of_files(
        copy_clip(tokenizer=lambda data: data["post_processor"]["single"].pop())
    )
    assert broken is not None
    cut = broken.read(["the red circle", "a photo of the blue square"])
    assert (cut.distinct, cut.without_end, cut.pooled) == (1, 2, "<|startoftext|>")


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (None, "config.json is missing or unreadable"),
        ("{", "config.json is missing or unreadable"),
        ("[]", "config.json is missing or unreadable: expected a mapping"),
        ('{"model_type": "blip"}', "model_type is 'blip', a suite needs"),
        ('{"model_type": "vit", "patch_size": 0}', "patch_size is 0, expected 1 to"),
    ],
)
def test_a_folder_that_nobody_looks_at_is_not_called_good(
    tmp_path: Path, config: str | None, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    if config is not None:
        (tmp_path / "config.json").write_text(config, encoding="utf-8")

    found = find_unknown(tmp_path)

    assert inspect_checkpoint(tmp_path) == ()
    assert found is not None
    assert found.certain
    assert reason in found.text
    assert main(["doctor", str(tmp_path)], environ={}) == 1
    shown = capsys.readouterr()
    assert ("[sanity.config]" if config else "no *.quantgate.yaml") in shown.out + shown.err


def test_a_family_that_says_nothing_is_not_called_good(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As one of another package may be that leaves out what is not needed to load a model."""
    save_vision_encoder("vit", tmp_path)
    silent = {
        kind: replace(usual, settings={}, processing={})
        for kind, usual in vit.FAMILY.pretrained.items()
    }
    monkeypatch.setattr(families, "_OWN", (replace(vit.FAMILY, pretrained=silent),))

    assert main(["doctor", str(tmp_path)], environ={}) == 0
    shown = capsys.readouterr().out
    assert "NOTE" in shown
    assert "not held against one another" in shown
    assert "fit together" not in shown


@pytest.mark.parametrize("kind", KINDS)
def test_the_files_of_a_vision_encoder_are_looked_at(kind: str, tmp_path: Path) -> None:
    save_vision_encoder(kind, tmp_path)
    path = tmp_path / "preprocessor_config.json"
    good = json.loads(path.read_text("utf-8"))

    def found(**changes: Any) -> list[str]:
        path.write_text(json.dumps({**good, **changes}), encoding="utf-8")
        return [fault.finding for fault in certain(tmp_path)]

    assert found() == []
    assert found(image_std=[0, 0, 0]) == ["pixel-range"]
    larger = {"height": 40, "width": 40}
    any_size = kind not in ("vit", "clip", "projection")
    assert found(size=larger, crop_size=larger) == ([] if any_size else ["image-size"])
    path.unlink()
    assert [fault.finding for fault in certain(tmp_path)] == ["preprocessing"]


@pytest.mark.parametrize("kind", KINDS)
def test_the_usual_sizes_are_those_of_transformers(kind: str) -> None:
    import transformers

    model, config, _, _ = KINDS[kind]
    made = getattr(transformers, config)()
    known = families.find_pretrained({"architectures": [model], "model_type": made.model_type})
    assert known is not None
    for key, value in known[1].settings[""].items():
        assert getattr(made, key) == value, key


def test_an_image_processor_inside_the_processor_counts(copy_clip: Callable[..., Path]) -> None:
    """As transformers reads it: the file of its own is not asked then."""
    folder = copy_clip()
    path = folder / "preprocessor_config.json"
    inner = {**json.loads(path.read_text("utf-8")), "do_rescale": False}
    nested = json.dumps({"image_processor": inner})
    (folder / "processor_config.json").write_text(nested, encoding="utf-8")

    assert [fault.finding for fault in certain(folder)] == ["pixel-range"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 10**6) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=4,
)


@settings(
    deadline=None,
    derandomize=True,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    file=st.sampled_from(["config", "preprocessor_config", "tokenizer_config", "tokenizer"]),
    key=st.integers(0, 40),
    value=JSON,
)
def test_whatever_stands_in_a_file_is_a_fault_or_none(
    tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory, file: str, key: int, value: Any
) -> None:
    """No value in the place of another makes it end in an error."""
    folder = tmp_path_factory.mktemp("fuzzed")
    for path in tiny_clip.glob("*.json"):
        shutil.copyfile(path, folder / path.name)
    data = json.loads((folder / f"{file}.json").read_text("utf-8"))
    part = data["text_config"] if file == "config" and key % 2 else data
    names = sorted(part)
    part[names[key % len(names)]] = value
    (folder / f"{file}.json").write_text(json.dumps(data), encoding="utf-8")

    for fault in inspect_checkpoint(folder):
        assert fault.text
        assert fault.fix


def test_it_takes_no_library_that_computes(tiny_clip: Path) -> None:
    program = (
        "import sys, pathlib; "
        "from pytest_quantgate.measure.model_checks import inspect_checkpoint; "
        f"inspect_checkpoint(pathlib.Path({str(tiny_clip)!r})); "
        "print(sorted({'torch', 'transformers', 'modelopt', 'onnx'} & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert done.stdout == "[]\n"
