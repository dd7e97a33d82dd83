"""Checkpoints: bit-identical after a load, and refused for whatever is missing or changed."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pytest_quantgate.encoders.encoder import Batch, Encoder
from pytest_quantgate.errors import ModelError
from pytest_quantgate.quantization.checkpoint import (
    build_plain,
    digest_amax,
    load_checkpoint,
    save_checkpoint,
    verify_checkpoint,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def quantized(make_quantized: Callable[..., Encoder]) -> Encoder:
    return make_quantized("fp8-attention", exclude=("*patch_embedding*",))


@pytest.fixture(scope="module")
def saved(quantized: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "checkpoint"
    size_bytes = save_checkpoint(quantized, folder)
    assert size_bytes == sum(path.stat().st_size for path in folder.iterdir())
    return folder


def test_what_was_restored_is_saved_in_the_same_bytes(
    saved: Path, tiny_fp16: Encoder, tmp_path: Path
) -> None:
    """The size of a checkpoint is a figure of a report: it must not tell how its model came."""
    save_checkpoint(load_checkpoint(saved, fp16=tiny_fp16), tmp_path / "again")

    sizes = [{p.name: p.stat().st_size for p in f.iterdir()} for f in (saved, tmp_path / "again")]
    assert sizes[0] == sizes[1]


@pytest.fixture
def copied(saved: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    shutil.copytree(saved, folder)
    return folder


def edit_manifest(folder: Path, **changes: Any) -> None:
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    for key, value in changes.items():
        if value is None:
            del manifest[key]
        else:
            manifest[key] = value
    (folder / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")


def reseal(folder: Path) -> None:
    """Write the digests of the files as they are now: damage that only the content shows."""
    files = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if path.name != "manifest.json"
    }
    edit_manifest(folder, files=files)


def edit_weights(folder: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors")


AMAX = "text_model.encoder.layers.0.mlp.fc1.input_quantizer._amax"


@pytest.mark.parametrize("recipe", ["fp8-attention", "int8-smoothquant", "huggingface/vit/ptq/fp8"])
def test_outputs_and_amax_are_identical(
    recipe: str,
    tmp_path: Path,
    tiny_fp16: Encoder,
    make_quantized: Callable[..., Encoder],
    make_pairs: Callable[..., list[Batch]],
) -> None:
    model = make_quantized(recipe)
    save_checkpoint(model, tmp_path / "checkpoint")
    restored = load_checkpoint(tmp_path / "checkpoint", fp16=tiny_fp16)
    batch = make_pairs(seed=3)[0]
    for encode, value in (
        (Encoder.encode_image, batch.pixel_values),
        (Encoder.encode_text, batch.tokens),
    ):
        assert torch.equal(encode(restored, value), encode(model, value))  # type: ignore[arg-type]
        assert not torch.equal(
            encode(restored, value),  # type: ignore[arg-type]
            encode(tiny_fp16, value),  # type: ignore[arg-type]
        )
    assert digest_amax(restored.module) == digest_amax(model.module)
    assert restored.module.state_dict().keys() == model.module.state_dict().keys()
    assert not restored.module.training
    assert not any(p.requires_grad for p in restored.module.parameters())


def test_fp16_is_not_touched_by_a_load(
    saved: Path, tiny_fp16: Encoder, make_pairs: Callable[..., list[Batch]]
) -> None:
    pixels = make_pairs()[0].pixel_values
    before = tiny_fp16.encode_image(pixels)
    load_checkpoint(saved, fp16=tiny_fp16)
    assert torch.equal(tiny_fp16.encode_image(pixels), before)


def test_manifest_tells_what_it_needs(saved: Path, tiny_fp16: Encoder) -> None:
    manifest = verify_checkpoint(saved)
    assert manifest["base_weights"] == tiny_fp16.weights_digest
    assert set(manifest["files"]) == {"modelopt_state.pth", "model.safetensors", "config.json"}
    assert set(manifest["versions"]) == {"torch", "transformers", "nvidia-modelopt"}
    assert AMAX.removesuffix("._amax") in manifest["amax"]


def test_amax_digest_sees_type_shape_and_bits(quantized: Encoder) -> None:
    import copy

    module = copy.deepcopy(quantized.module)
    same = digest_amax(module)
    assert same == digest_amax(quantized.module)
    name = AMAX.removesuffix("._amax")
    quantizer = module.get_submodule(name)
    quantizer._amax = torch.nextafter(quantizer._amax, torch.tensor(1e9))  # type: ignore[arg-type]
    assert {key for key in same if digest_amax(module)[key] != same[key]} == {name}
    module.half()
    assert all(digest_amax(module)[key] != same[key] for key in same)


def test_a_checkpoint_is_never_overwritten(quantized: Encoder, saved: Path) -> None:
    with pytest.raises(ModelError, match=r"exists already: a checkpoint is never overwritten"):
        save_checkpoint(quantized, saved)


def test_full_disk_leaves_nothing(
    quantized: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_args: object, **_options: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(ModelError) as caught:
        save_checkpoint(quantized, tmp_path / "checkpoint")
    assert str(caught.value).startswith(
        f"cannot write the checkpoint {tmp_path}/checkpoint: No space left on device (free "
    )
    assert list(tmp_path.iterdir()) == []


def test_interrupt_while_saving_leaves_nothing(
    quantized: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_args: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("safetensors.torch.save_file", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(quantized, tmp_path / "checkpoint")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["modelopt_state.pth", "model.safetensors", "config.json"])
def test_file_missing_or_changed(name: str, copied: Path, tiny_fp16: Encoder) -> None:
    path = copied / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(ModelError, match=rf"{name} was changed: sha256 .* saved as"):
        load_checkpoint(copied, fp16=tiny_fp16)
    path.unlink()
    with pytest.raises(ModelError, match=rf"{name} is missing: without it the model would load"):
        load_checkpoint(copied, fp16=tiny_fp16)


def test_link_in_the_place_of_a_file(copied: Path, saved: Path, tiny_fp16: Encoder) -> None:
    (copied / "model.safetensors").unlink()
    (copied / "model.safetensors").symlink_to(saved / "model.safetensors")
    with pytest.raises(ModelError, match=r"model\.safetensors is missing"):
        load_checkpoint(copied, fp16=tiny_fp16)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "is missing or unreadable"),
        ("{", "is missing or unreadable"),
        ("[]", r"checkpoint format \[\] is not 1"),
        ('{"format": 99}', "checkpoint format 99 is not 1"),
        ('{"format": 1}', "'base_weights' is missing or damaged"),
    ],
)
def test_manifest_that_cannot_be_trusted(text: str | None, message: str, copied: Path) -> None:
    if text is None:
        (copied / "manifest.json").unlink()
    else:
        (copied / "manifest.json").write_text(text, encoding="utf-8")
    with pytest.raises(ModelError, match=message):
        verify_checkpoint(copied)


def test_manifest_that_leaves_a_file_out(copied: Path) -> None:
    files = verify_checkpoint(copied)["files"]
    del files["modelopt_state.pth"]
    edit_manifest(copied, files=files)
    with pytest.raises(ModelError, match=r"a checkpoint has .*'modelopt_state\.pth'"):
        verify_checkpoint(copied)


def test_amax_missing_under_good_file_digests(copied: Path, tiny_fp16: Encoder) -> None:
    edit_weights(copied, lambda weights: weights.pop(AMAX))  # type: ignore[arg-type]
    reseal(copied)
    with pytest.raises(ModelError, match=rf"does not fit this model .*tensor {AMAX} is missing"):
        load_checkpoint(copied, fp16=tiny_fp16)


@pytest.mark.parametrize("factor", [10.0, 1 + 2**-23])
def test_amax_changed_under_good_file_digests(
    factor: float, copied: Path, tiny_fp16: Encoder
) -> None:
    edit_weights(copied, lambda weights: weights.update({AMAX: weights[AMAX] * factor}))
    reseal(copied)
    with pytest.raises(ModelError) as caught:
        load_checkpoint(copied, fp16=tiny_fp16)
    assert f"amax of {AMAX.removesuffix('._amax')} is changed" in str(caught.value)


def test_amax_that_the_manifest_does_not_know(copied: Path, tiny_fp16: Encoder) -> None:
    name = AMAX.removesuffix("._amax")
    amax = verify_checkpoint(copied)["amax"]
    del amax[name]
    edit_manifest(copied, amax=amax)
    with pytest.raises(ModelError, match=rf"{name} has an amax that was not saved"):
        load_checkpoint(copied, fp16=tiny_fp16)
    edit_manifest(copied, amax={**amax, name: "0", "text_model.nowhere": "0"})
    with pytest.raises(ModelError, match=r"amax of .* is (changed|missing)"):
        load_checkpoint(copied, fp16=tiny_fp16)


def test_weight_that_does_not_belong(copied: Path, tiny_fp16: Encoder) -> None:
    edit_weights(copied, lambda weights: weights.update({"extra": torch.zeros(1)}))
    reseal(copied)
    with pytest.raises(ModelError, match=r"tensor extra is not part of the model"):
        load_checkpoint(copied, fp16=tiny_fp16)


def test_tensor_of_another_shape_is_not_stretched(copied: Path, tiny_fp16: Encoder) -> None:
    name = "text_projection.weight"
    edit_weights(copied, lambda weights: weights.update({name: weights[name][:1].clone()}))
    reseal(copied)
    with pytest.raises(ModelError, match=rf"tensor {name} is \(1, 32\) float32, the model has"):
        load_checkpoint(copied, fp16=tiny_fp16)


def test_other_base_weights(saved: Path, tiny_fp16: Encoder) -> None:
    other = replace(tiny_fp16, weights_digest="0" * 64)
    with pytest.raises(ModelError, match=r"quantized from other weights .*sha256 000000000000\.\."):
        load_checkpoint(saved, fp16=other)


def test_other_arithmetic(saved: Path, tiny_fp16: Encoder) -> None:
    other = replace(tiny_fp16, compute_dtype="float16")
    with pytest.raises(ModelError, match=r"computed in float32, the FP16 model here in float16"):
        load_checkpoint(saved, fp16=other)


def test_base_of_another_size(saved: Path, tiny_fp16: Encoder) -> None:
    from transformers import CLIPConfig, CLIPModel

    config = CLIPConfig.from_dict(tiny_fp16.module.config.to_dict())  # type: ignore[operator, union-attr]
    config.vision_config.num_hidden_layers = 1
    other = replace(tiny_fp16, module=CLIPModel(config))
    with pytest.raises(ModelError, match=r"the checkpoint does not fit this model"):
        load_checkpoint(saved, fp16=other)


class _Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def test_pickle_that_would_run_code(
    copied: Path, tmp_path: Path, tiny_fp16: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    canary = tmp_path / "canary"
    torch.save({"modelopt_state": _Canary(canary)}, copied / "modelopt_state.pth")
    reseal(copied)
    with pytest.raises(ModelError, match=r"modelopt_state\.pth: holds more than plain data"):
        load_checkpoint(copied, fp16=tiny_fp16)
    assert not canary.exists()
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(ModelError, match=r"TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD is set.*unset it"):
        load_checkpoint(copied, fp16=tiny_fp16)
    assert not canary.exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"files": {"config.json": 5}}, "'files' is missing or damaged"),
        ({"amax": {"a": None}}, "'amax' is missing or damaged"),
        ({"dtypes": ["float32"]}, "'dtypes' is missing or damaged"),
        ({"base_weights": 7}, "'base_weights' is missing or damaged"),
        ({"compute_dtype": "hub"}, "compute_dtype is 'hub', none of float32, float16, bfloat16"),
        ({"attention": "evil/kernel"}, "attention is 'evil/kernel', none of automatic, diffusers"),
        ({"format": "9" * 500}, "checkpoint format '999"),
        ({"files": {"../config.json": "0" * 64}}, "lists ['../config.json'], a checkpoint has"),
    ],
)
def test_manifest_with_other_kinds_of_values(
    copied: Path, tiny_fp16: Encoder, changes: dict[str, Any], words: str
) -> None:
    edit_manifest(copied, **changes)

    with pytest.raises(ModelError) as caught:
        load_checkpoint(copied, fp16=tiny_fp16)

    assert words in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(copied))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"format": 1, "format": 1}', "\xff", ""])
def test_manifest_that_is_no_plain_json(copied: Path, text: str) -> None:
    (copied / "manifest.json").write_bytes(text.encode("latin-1"))

    with pytest.raises(ModelError, match="is missing or unreadable"):
        verify_checkpoint(copied)


@pytest.mark.parametrize("name", ["manifest.json", "model.safetensors"])
def test_pipe_or_link_in_the_place_of_a_file(copied: Path, tmp_path: Path, name: str) -> None:
    path = copied / name
    path.rename(tmp_path / "elsewhere")
    os.mkfifo(path)
    with pytest.raises(ModelError, match="is missing"):
        verify_checkpoint(copied)
    path.unlink()
    if name != "manifest.json":
        path.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(ModelError, match="is missing"):
            verify_checkpoint(copied)


@pytest.mark.parametrize("attention", ["evil/kernel", "evil/kernel@main:f", None, ["sdpa"], ""])
def test_kernel_of_the_hub_is_not_fetched(copied: Path, attention: Any) -> None:
    """transformers downloads and runs an attention implementation whose name has a slash."""
    path = copied / "config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**config, "_attn_implementation": attention}), encoding="utf-8")
    reseal(copied)

    with pytest.raises(ModelError, match=r"attention implementation .* is not taken"):
        build_plain(copied)


def test_pickles_beside_a_checkpoint_are_not_read(
    copied: Path, tmp_path: Path, tiny_fp16: Encoder
) -> None:
    canary = tmp_path / "canary"
    for name in ("pytorch_model.bin", "model.pt", "optimizer.pth", "quantizer_state.pt"):
        torch.save(_Canary(canary), copied / name)

    load_checkpoint(copied, fp16=tiny_fp16)

    assert not canary.exists()


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"modelopt_state_dict": [("quantize", {})]},
        {"modelopt_state_dict": [("no such mode", {"config": {}, "metadata": {}})]},
        {"modelopt_state_dict": 5, "modelopt_version": None},
        [],
        None,
    ],
)
def test_state_that_is_plain_and_nonsense(copied: Path, tiny_fp16: Encoder, state: Any) -> None:
    torch.save(state, copied / "modelopt_state.pth")
    reseal(copied)

    with pytest.raises(ModelError, match="quantize again"):
        load_checkpoint(copied, fp16=tiny_fp16)


def test_wider_weights_are_kept_whole(
    tmp_path: Path, make_quantized: Callable[..., Encoder], tiny_fp16: Encoder
) -> None:
    """SmoothQuant scales weights, so they no longer fit FP16: they are stored in full."""
    model = make_quantized("int8-smoothquant")
    save_checkpoint(model, tmp_path / "checkpoint")
    stored = load_file(tmp_path / "checkpoint" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16, torch.float32}
    restored = load_checkpoint(tmp_path / "checkpoint", fp16=tiny_fp16).module.state_dict()
    for name, tensor in model.module.state_dict().items():
        assert restored[name].dtype == tensor.dtype
        assert torch.equal(restored[name], tensor), name
