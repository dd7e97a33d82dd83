"""The FP16 loader: what it gives, and every checkpoint that it must not take."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pytest_quantgate.encoders.encoder import Encoder
from pytest_quantgate.encoders.loading import load_fp16
from pytest_quantgate.errors import MissingPackage, ModelError, NotMeasured
from pytest_quantgate.suite.specs import ModelSpec
from tests.fork_server import ForkServer

MakeSpec = Callable[..., ModelSpec]


@pytest.fixture
def copied(tiny_clip: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "clip"
    shutil.copytree(tiny_clip, folder)
    return folder


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def edit_config(folder: Path, edit: Callable[[dict[str, Any]], None]) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    edit(config)
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def test_fp16_weights_are_computed_in_fp32_on_a_cpu(tiny_fp16: Encoder) -> None:
    assert (tiny_fp16.weight_dtype, tiny_fp16.compute_dtype) == ("float16", "float32")
    assert len(tiny_fp16.notes) == 1
    assert "computed in float32 from weights rounded to float16" in tiny_fp16.notes[0]
    for parameter in tiny_fp16.module.parameters():
        assert parameter.dtype == torch.float32
        assert not parameter.requires_grad
        assert torch.equal(parameter, parameter.half().float())
    assert not tiny_fp16.module.training


def test_fp32_checkpoint_is_rounded_to_fp16(copied: Path, model_spec: MakeSpec) -> None:
    third = torch.tensor(1 / 3)

    def widen(weights: dict[str, torch.Tensor]) -> None:
        for name in weights:
            weights[name] = weights[name].float()
        weights["logit_scale"] = third.clone()

    edit_weights(copied, widen)
    rounded = load_fp16(model_spec(copied), environ={})
    exact = load_fp16(model_spec(copied, dtype="float32"), environ={})
    assert rounded.module.logit_scale.item() == third.half().item() != third.item()  # type: ignore[operator]
    assert exact.module.logit_scale.item() == third.item()  # type: ignore[operator]
    assert exact.notes == ()


def test_attention_implementation_is_honoured(model_spec: MakeSpec) -> None:
    for name in ("sdpa", "eager"):
        model = load_fp16(model_spec(attn_implementation=name), environ={})
        assert model.module.vision_model.config._attn_implementation == name  # type: ignore[union-attr]
        assert model.module.text_model.config._attn_implementation == name  # type: ignore[union-attr]


def test_embeddings_are_the_models_own(tiny_fp16: Encoder) -> None:
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, (50, 60, 3), dtype=np.uint8) for _ in range(3)]
    pixels = tiny_fp16.preprocess(images)
    tokens = tiny_fp16.tokenize(["a red circle", "blue"])
    assert pixels.shape == (3, 3, 48, 48)
    assert pixels.dtype == torch.float32
    assert tokens["input_ids"].shape == tokens["attention_mask"].shape
    assert tokens["input_ids"].shape[1] == (
        tiny_fp16.module.config.text_config.max_position_embeddings  # type: ignore[union-attr]
    )
    with torch.inference_mode():
        image = tiny_fp16.module.get_image_features(pixel_values=pixels)  # type: ignore[operator]
        text = tiny_fp16.module.get_text_features(**tokens)  # type: ignore[operator]
    # transformers 5 returns an output object, 4.57 the tensor itself.
    image = getattr(image, "pooler_output", image)
    text = getattr(text, "pooler_output", text)
    assert torch.equal(tiny_fp16.encode_image(pixels), image)
    assert torch.equal(tiny_fp16.encode_text(tokens), text)


def test_other_texts_of_a_batch_change_nothing(tiny_fp16: Encoder) -> None:
    alone = tiny_fp16.tokenize(["red"])
    together = tiny_fp16.tokenize(["red", "a photo of a blue square"])
    assert torch.equal(alone["input_ids"][0], together["input_ids"][0])


def test_truncated_safetensors(copied: Path, model_spec: MakeSpec) -> None:
    path = copied / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelError) as caught:
        load_fp16(model_spec(copied), environ={})
    assert str(caught.value).startswith(f"suites/tiny.quantgate.yaml:7: {path} is damaged (")
    assert str(caught.value).endswith("download or save it again")


def test_another_architecture(copied: Path, model_spec: MakeSpec) -> None:
    edit_config(copied, lambda config: config.update(model_type="blip"))
    with pytest.raises(ModelError, match=r"model_type is 'blip', a suite needs '"):
        load_fp16(model_spec(copied), environ={})


@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_config_that_cannot_be_read(text: str | None, copied: Path, model_spec: MakeSpec) -> None:
    if text is None:
        (copied / "config.json").unlink()
    else:
        (copied / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(ModelError, match=r"config\.json is missing or unreadable"):
        load_fp16(model_spec(copied), environ={})


def test_missing_weight(copied: Path, model_spec: MakeSpec) -> None:
    edit_weights(copied, lambda weights: weights.pop("visual_projection.weight"))  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"1 weights are missing.*visual_projection\.weight"):
        load_fp16(model_spec(copied), environ={})


def test_weights_of_a_deeper_model(copied: Path, model_spec: MakeSpec) -> None:
    """A config with fewer layers would quietly give a shorter model."""
    edit_config(copied, lambda config: config["vision_config"].update(num_hidden_layers=1))
    with pytest.raises(ModelError, match=r"have no place.*vision_model\.encoder\.layers\.1\."):
        load_fp16(model_spec(copied), environ={})


def test_position_ids_of_older_checkpoints_are_no_weights(
    copied: Path, model_spec: MakeSpec, tiny_fp16: Encoder
) -> None:
    edit_weights(
        copied,
        lambda weights: weights.update(
            {"text_model.embeddings.position_ids": torch.arange(8).unsqueeze(0)}
        ),
    )
    model = load_fp16(model_spec(copied), environ={})
    assert torch.equal(model.module.logit_scale, tiny_fp16.module.logit_scale)  # type: ignore[arg-type]


def test_weight_of_another_shape(copied: Path, model_spec: MakeSpec) -> None:
    edit_weights(
        copied, lambda weights: weights.update({"visual_projection.weight": torch.zeros(3, 3)})
    )
    with pytest.raises(ModelError, match=r"suites/tiny\.quantgate\.yaml:7: clip: "):
        load_fp16(model_spec(copied), environ={})


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_weights_that_are_not_finite(value: float, copied: Path, model_spec: MakeSpec) -> None:
    """1e6 is finite in FP32 and infinite once rounded to FP16."""

    def poison(weights: dict[str, torch.Tensor]) -> None:
        weights["text_projection.weight"] = weights["text_projection.weight"].float()
        weights["text_projection.weight"][0, 0] = value

    edit_weights(copied, poison)
    with pytest.raises(ModelError, match=r"first text_projection\.weight \(1 values\)"):
        load_fp16(model_spec(copied), environ={})


def test_damaged_tokenizer(copied: Path, model_spec: MakeSpec) -> None:
    (copied / "tokenizer.json").write_text('{"version": "1.0", "model": 3}', encoding="utf-8")
    with pytest.raises(ModelError, match=r"suites/tiny\.quantgate\.yaml:7: clip: "):
        load_fp16(model_spec(copied), environ={})


def test_interrupt_is_not_swallowed(model_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_args: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("transformers.CLIPModel.from_pretrained", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load_fp16(model_spec(), environ={})


def test_no_cuda_device_is_not_measured(
    model_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(NotMeasured, match=r"finds no CUDA device; use --quantgate-device=cpu"):
        load_fp16(model_spec(), device="cuda", environ={})


def test_without_transformers(model_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingPackage, match=r"pip install 'pytest-quantgate\[clip\]'"):
        load_fp16(model_spec(), environ={})


PATCHED = """\
import sys
from pathlib import Path

import modelopt.torch.opt as mto
import torch

from pytest_quantgate.encoders.encoder import Encoder
from pytest_quantgate.encoders.loading import load_fp16
from pytest_quantgate.suite.specs import ModelSpec
from pytest_quantgate.suite.where import Where


def embed() -> tuple[Encoder, torch.Tensor]:
    spec = ModelSpec(where=Where(file="s", line=1), source="transformers", id=sys.argv[1])
    model = load_fp16(spec)
    return model, model.encode("vision", {"pixel_values": torch.ones(1, 3, 48, 48)})


_, before = embed()
mto.enable_huggingface_checkpointing()
model, after = embed()
assert torch.equal(before, after)
mto.plugins.huggingface.torch.load = None  # nothing is unpickled
from pytest_quantgate.encoders import clip

kind = clip.FAMILY.pretrained["clip"]
config = model.module.config
config._name_or_path = sys.argv[2]
assert (Path(sys.argv[2]) / "modelopt_state.pth").is_file()
assert kind.make_module(config, attention="sdpa") is not None
print("the same")
"""


def test_a_process_in_which_modelopt_patched_transformers_loads_the_same(
    tiny_clip: Path, tmp_path: Path, fork_server: ForkServer
) -> None:
    """A conftest may have called `mto.enable_huggingface_checkpointing()`: loading then failed."""
    (tmp_path / "patched.py").write_text(PATCHED, encoding="utf-8")
    (tmp_path / "modelopt_state.pth").write_bytes(b"no state")

    done = fork_server.run("patched", str(tiny_clip), str(tmp_path), cwd=tmp_path)

    assert done.stdout.endswith("the same\n"), done.stderr[-2000:]
