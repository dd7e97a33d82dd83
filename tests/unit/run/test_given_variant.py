"""A checkpoint that ModelOpt saved elsewhere is the variant that was saved, or is refused."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pytest_quantgate.encoders.encoder import Batch, Encoder
from pytest_quantgate.errors import Incomparable, MissingPackage, ModelError, NotMeasured
from pytest_quantgate.measure.audit import audit_quantizers
from pytest_quantgate.quantization.modelopt import import_modelopt
from pytest_quantgate.quantization.recipes import Recipe
from pytest_quantgate.run import given_variant
from pytest_quantgate.run.given_variant import (
    describe_base,
    open_given,
    restore_given,
)
from pytest_quantgate.suite.specs import QuantizedSpec
from pytest_quantgate.suite.where import Where

pytestmark = pytest.mark.slow

WHERE = Where(file="s.yaml", line=3)
FC1 = "vision_model.encoder.layers.1.mlp.fc1"


def given(path: Path, **changes: Any) -> QuantizedSpec:
    return QuantizedSpec(where=WHERE, checkpoint=str(path), **changes)


@pytest.fixture(scope="module", params=["fp8-attention", "int8-smoothquant"])
def built(request: pytest.FixtureRequest, make_quantized: Callable[..., Encoder]) -> Encoder:
    return make_quantized(request.param)


@pytest.fixture
def saved(built: Encoder, tmp_path: Path) -> Path:
    """What `save_pretrained` writes once ModelOpt is told to keep its state."""
    folder = tmp_path / "saved"
    module: Any = built.module
    module.save_pretrained(folder)
    mto = import_modelopt("modelopt.torch.opt")
    torch.save(mto.modelopt_state(module), folder / "modelopt_state.pth")
    return folder


def restore(path: Path, fp16: Encoder, *, trained: bool = False) -> Encoder:
    return restore_given(open_given(given(path), environ={}), fp16=fp16, trained=trained).model


@pytest.mark.parametrize("form", ["folder", "file"])
def test_what_is_restored_is_what_was_saved(
    built: Encoder,
    saved: Path,
    tmp_path: Path,
    tiny_fp16: Encoder,
    make_pairs: Callable[..., list[Batch]],
    make_recipe: Callable[[Any], Recipe],
    form: str,
) -> None:
    path = saved
    if form == "file":
        path = tmp_path / "saved.pth"
        import_modelopt("modelopt.torch.opt").save(built.module, path)
    checkpoint = open_given(given(path), environ={})

    taken = restore_given(checkpoint, fp16=tiny_fp16, trained=False)

    state = taken.model.module.state_dict()
    wanted = built.module.state_dict()
    assert state.keys() == wanted.keys()
    assert all(torch.equal(state[name], value) for name, value in wanted.items())
    batches = make_pairs(seed=5)
    for tower in ("vision", "text"):
        inputs = batches[0].inputs[tower]
        assert torch.equal(taken.model.encode(tower, inputs), built.encode(tower, inputs))
    recipe = make_recipe("fp8-attention")
    mine, theirs = (
        audit_quantizers(model, recipe=recipe, held_out=batches) for model in (built, taken.model)
    )
    assert mine == theirs
    assert taken.changed == ()
    assert taken.same + taken.rescaled == len(tiny_fp16.module.state_dict())
    assert "are those of" in describe_base(taken, given=checkpoint, base=tiny_fp16)


def test_without_an_expectation_the_checkpoint_declares_what_it_is(
    saved: Path, built: Encoder, make_recipe: Callable[[Any], Recipe]
) -> None:
    declared = open_given(given(saved), environ={}).declared_recipe

    assert declared.name == "as the checkpoint declares"
    assert set(declared.formats) <= {"E4M3", "INT8"}
    assert declared.algorithm in ("max", "smoothquant")
    enabled = [entry["quantizer_name"] for entry in declared.quant_cfg if entry["enable"]]
    assert any("weight_quantizer" in name for name in enabled)


def test_a_digest_is_that_of_the_files(saved: Path) -> None:
    before = open_given(given(saved), environ={}).digest
    weights = load_file(saved / "model.safetensors")
    name = next(name for name in sorted(weights) if name.endswith("_amax"))
    weights[name] = weights[name] * 2
    save_file(weights, saved / "model.safetensors", metadata={"format": "pt"})

    assert open_given(given(saved), environ={}).digest != before


def edit(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_checkpoint_of_another_model_is_not_compared(saved: Path, tiny_fp16: Encoder) -> None:
    name = "vision_model.pre_layrnorm.weight"
    edit(saved, lambda weights: weights.update({name: weights[name] + 0.5}))

    with pytest.raises(
        Incomparable, match=r"s\.yaml:3: 1 of \d+ tensors of saved are not those of"
    ):
        restore(saved, tiny_fp16)
    checkpoint = open_given(given(saved), environ={})
    taken = restore_given(checkpoint, fp16=tiny_fp16, trained=True)
    assert taken.changed == (name,)
    assert describe_base(taken, given=checkpoint, base=tiny_fp16).endswith("1 were trained")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda w: w.pop(f"{FC1}.input_quantizer._amax"),
            f"{FC1}.input_quantizer._amax is missing",
        ),
        (lambda w: w.pop(f"{FC1}.weight"), f"{FC1}.weight is missing"),
        (lambda w: w.update(more=torch.ones(1)), "tensor more is not part of the model"),
        (lambda w: w.update({f"{FC1}.bias": torch.ones(3)}), f"{FC1}.bias is \\(3,\\), not"),
    ],
    ids=["range", "weight", "more", "shape"],
)
def test_what_does_not_fit_is_refused(
    saved: Path, tiny_fp16: Encoder, change: Callable[[Any], object], words: str
) -> None:
    edit(saved, change)

    with pytest.raises(ModelError, match=f"does not fit.*{words}"):
        restore(saved, tiny_fp16)


def test_without_its_state_it_would_load_unquantized(saved: Path) -> None:
    (saved / "modelopt_state.pth").unlink()

    with pytest.raises(ModelError, match=r"holds no modelopt_state\.pth, without which it would"):
        open_given(given(saved), environ={})


def test_an_export_with_packed_weights_is_named(saved: Path) -> None:
    config = saved / "config.json"
    text = config.read_text("utf-8").rstrip().removesuffix("}")
    config.write_text(f'{text}, "quantization_config": {{"quant_method": "modelopt"}}}}', "utf-8")

    with pytest.raises(ModelError, match=r"an export of 'modelopt'.*quantgate check saved"):
        open_given(given(saved), environ={})


class Canary:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_state_that_would_run_code_is_never_loaded(
    saved: Path, tmp_path: Path, tiny_fp16: Encoder
) -> None:
    canary = tmp_path / "canary"
    state = torch.load(saved / "modelopt_state.pth", weights_only=False)
    torch.save({**state, "more": Canary(canary)}, saved / "modelopt_state.pth")

    with pytest.raises(ModelError, match="nothing of it was loaded"):
        restore(saved, tiny_fp16)
    assert not canary.exists()
    pickle.loads(pickle.dumps(Canary(canary)))  # it does sing
    assert canary.exists()


def test_what_is_not_there_is_not_measured(tmp_path: Path) -> None:
    with pytest.raises(NotMeasured, match=r"s\.yaml:3: .*gone is not there"):
        open_given(given(tmp_path / "gone"), environ={})


def test_a_stale_range_is_restored_as_it_is(saved: Path, tiny_fp16: Encoder) -> None:
    """The calibration gate must see it: nothing is mended on the way."""
    name = f"{FC1}.input_quantizer._amax"
    edit(saved, lambda weights: weights.update({name: weights[name] * 10}))
    wanted = load_file(saved / "model.safetensors")[name]

    assert torch.equal(restore(saved, tiny_fp16).module.state_dict()[name], wanted)


def test_a_package_that_is_missing_is_no_fault_of_the_checkpoint(
    saved: Path, tiny_fp16: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_given: Any, **_named: Any) -> Any:
        raise MissingPackage("diffusers", extra="clip", purpose="attention quantizers")

    monkeypatch.setattr(given_variant, "attention_class", missing)

    with pytest.raises(MissingPackage):
        restore(saved, tiny_fp16)
