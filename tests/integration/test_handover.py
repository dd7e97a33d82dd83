"""`quantgate export`: what is handed on is what was judged, or nothing is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from pytest_quantgate.commands.cli import main
from pytest_quantgate.errors import ModelError
from pytest_quantgate.inspection.inspect import inspect_paths
from pytest_quantgate.quantization import compressed_tensors
from pytest_quantgate.run.given_variant import open_given
from pytest_quantgate.run.handover import RECORD, hand_over
from pytest_quantgate.suite.load import load_suite
from pytest_quantgate.suite.specs import QuantizedSpec
from pytest_quantgate.suite.where import Where

if TYPE_CHECKING:
    from pytest_quantgate.run.case import Case

SUITE = """\
quantgate: 1
model: {{source: transformers, id: "{model}"}}
calibration: {{data: scenes/calibration, samples: 32, batch_size: 16, held_out_samples: 16}}
quantize: {{recipe: {recipe}, exclude: ["*patch_embedding*"]}}
gates:
  coverage: {{}}
"""


@pytest.fixture
def write(tmp_path: Path, tiny_clip: Path) -> Callable[[str], Path]:
    def make(recipe: str) -> Path:
        path = tmp_path / f"{recipe}.quantgate.yaml"
        path.write_text(SUITE.format(model=tiny_clip, recipe=recipe), encoding="utf-8")
        return path

    return make


@pytest.fixture
def case(write: Callable[[str], Path], make_case: Callable[..., Case]) -> Callable[[str], Case]:
    return lambda recipe: make_case(load_suite(write(recipe)))


@pytest.mark.parametrize(("recipe", "kind"), [("fp8", "F8_E4M3"), ("int8", "I8")])
def test_codes_are_those_of_the_variant(
    case: Callable[[str], Case], tmp_path: Path, tiny_clip: Path, recipe: str, kind: str
) -> None:
    out = tmp_path / "out"
    made = case(recipe)

    done = hand_over(made, format="compressed-tensors", folder=out)

    report = inspect_paths([out], base=tiny_clip)
    (found,) = report.inspections
    assert found.findings == ()
    assert found.against is not None
    assert found.against.compared == found.against.same
    assert kind in found.bytes_by_type
    record = json.loads((out / RECORD).read_text("utf-8"))
    assert record["recipe"] == recipe
    assert record["model_digest"] == made.fp16.weights_digest
    for name, digest in done.files.items():
        assert hashlib.sha256((out / name).read_bytes()).hexdigest() == digest
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(done.files)
    config = json.loads((out / "config.json").read_text("utf-8"))["quantization_config"]
    (group,) = config["config_groups"].values()
    assert group["targets"] == ["Linear"]
    assert config["ignore"] == []


@pytest.mark.filterwarnings("ignore:You passed")
@pytest.mark.parametrize("recipe", ["fp8", "int8"])
def test_the_package_of_that_name_takes_it_whole(
    case: Callable[[str], Case], tmp_path: Path, recipe: str
) -> None:
    pytest.importorskip("compressed_tensors", reason="needs compressed-tensors")
    import transformers

    made = case(recipe)
    hand_over(made, format="compressed-tensors", folder=tmp_path / "out")
    config = transformers.CompressedTensorsConfig(run_compressed=False)

    served, info = transformers.CLIPModel.from_pretrained(
        tmp_path / "out",
        quantization_config=config,
        dtype=torch.float32,
        output_loading_info=True,
    )

    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    layer = "vision_model.encoder.layers.0.mlp.fc1"
    ours = made.quantized.module.get_submodule(layer)
    # INT8 values differ in their last bit: a product with a scale, or a quotient by its inverse.
    values = ours.weight_quantizer(ours.weight)
    assert torch.allclose(values, served.get_submodule(layer).weight, rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("recipe", "first"), [("fp8-attention", "bmm_quantizer"), ("int8-smoothquant", "quantizer")]
)
def test_a_variant_that_has_no_place_whole_is_refused_and_nothing_is_written(
    case: Callable[[str], Case], tmp_path: Path, recipe: str, first: str
) -> None:
    with pytest.raises(ModelError, match="have no place in compressed-tensors") as error:
        hand_over(case(recipe), format="compressed-tensors", folder=tmp_path / "out")

    assert first in str(error.value)
    assert "quantize.exclude" in str(error.value)
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == []
    assert not list(tmp_path.glob(".exporting-*"))


def test_codes_that_do_not_come_back_are_not_handed_on(
    case: Callable[[str], Case], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = compressed_tensors.compress

    def exchange(model: Any) -> compressed_tensors.Compressed:
        found = good(model)
        one, other = (f"vision_model.encoder.layers.{n}.mlp.fc1.weight_scale" for n in (0, 1))
        tensors = {**found.tensors, one: found.tensors[other], other: found.tensors[one]}
        return replace(found, tensors=tensors)

    monkeypatch.setattr(compressed_tensors, "compress", exchange)

    with pytest.raises(ModelError, match=r"mlp\.fc1 comes back .* with an error"):
        hand_over(case("fp8"), format="compressed-tensors", folder=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_what_is_there_is_never_touched(
    write: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "mine").write_text("x")

    status = main(["export", str(write("fp8")), str(out), "--to", "onnx"], environ={})

    assert status == 1
    assert "is there already and was not touched" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["mine"]


def test_the_files_that_were_judged_are_handed_on_as_they_are(
    case: Callable[[str], Case], tmp_path: Path
) -> None:
    made = case("fp8")

    graphs = hand_over(made, format="onnx", folder=tmp_path / "graphs")
    saved = hand_over(made, format="modelopt", folder=tmp_path / "saved")

    for tower in ("vision", "text"):
        path = made.stages.onnx_path(variant="quantized", tower=tower, precision="float16")
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert graphs.files[f"{tower}.onnx"] == digest
    assert {"modelopt_state.pth", "model.safetensors", "config.json"} <= set(saved.files)
    spec = QuantizedSpec(
        where=Where(file="x", line=1), checkpoint=str(tmp_path / "saved"), recipe=""
    )
    assert open_given(spec, environ={}).files.state is not None
