"""The exported tower computes what the model computes, and holds what it quantizes alone."""

from __future__ import annotations

import copy
import hashlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import pytest
import torch

from pytest_quantgate.encoders.encoder import Batch, Encoder
from pytest_quantgate.errors import MissingPackage, ModelError
from pytest_quantgate.quantization.quantize import quantize
from pytest_quantgate.quantization.quantizers import find_quantizers
from pytest_quantgate.quantization.recipes import Recipe
from pytest_quantgate.runtimes import onnx_surgery
from pytest_quantgate.runtimes.onnx_export import ExportedOnnx, export_tower, simulate_softmax
from pytest_quantgate.runtimes.onnx_graph import read_graph
from pytest_quantgate.runtimes.onnxruntime_session import OnnxRuntimeModel

pytestmark = pytest.mark.slow

MakePairs = Callable[..., list[Batch]]
Tower = Literal["vision", "text"]

PATCH = ("*patch_embedding*",)
TOWERS: tuple[Tower, ...] = ("vision", "text")
RECIPES = ("fp16", "fp8", "fp8-attention", "int8", "int8-smoothquant")
E4M3 = {"num_bits": [4, 3], "axis": None}
OFF = {"quantizer_name": "*", "enable": False}


@pytest.fixture(scope="module")
def variant(tiny_fp16: Encoder, make_quantized: Callable[..., Encoder]) -> Any:
    """Give a variant by its recipe's name, without patch_embedding, each built once."""
    built: dict[str, Encoder] = {"fp16": tiny_fp16}

    def give(recipe: str) -> Encoder:
        if recipe not in built:
            built[recipe] = make_quantized(recipe, exclude=PATCH)
        return built[recipe]

    return give


def run_torch(model: Encoder, tower: Tower, batch: Batch) -> np.ndarray[Any, Any]:
    return model.encode(tower, batch.inputs[tower]).numpy()


def run_onnx(exported: ExportedOnnx, batch: Batch) -> np.ndarray[Any, Any]:
    session = OnnxRuntimeModel(exported.path)
    return session.embed(
        {name: value.numpy() for name, value in batch.inputs[exported.tower].items()}
    )


def distance(found: np.ndarray[Any, Any], wanted: np.ndarray[Any, Any]) -> float:
    """Return the relative error."""
    assert found.shape == wanted.shape
    assert found.dtype == wanted.dtype == np.float32
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def executed(model: Encoder, tower: Tower) -> set[str]:
    """Return the names of a tower's enabled quantizers."""
    parts = ("vision_model.", "visual_") if tower == "vision" else ("text_model.", "text_")
    found = find_quantizers(model.module)
    return {n for n, q in found.items() if q.is_enabled and n.startswith(parts)}


# -- what it computes ------------------------------


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_agrees_with_pytorch(
    recipe: str, tower: Tower, variant: Any, make_pairs: MakePairs, tmp_path: Path
) -> None:
    model = variant(recipe)
    exported = export_tower(model, tower=tower, path=tmp_path / "tower.onnx")
    fp16 = run_torch(variant("fp16"), tower, make_pairs(batches=1, size=3, seed=5)[0])
    for size in (1, 3):
        batch = make_pairs(batches=1, size=size, seed=5)[0]
        wanted = run_torch(model, tower, batch)
        found = run_onnx(exported, batch)
        errors = [distance(found[i : i + 1], wanted[i : i + 1]) for i in range(size)]
        # Where a value lies on the edge between two steps, two runtimes may round it apart.
        assert np.median(errors) < 1e-5
        assert max(errors) < 0.05
        if recipe != "fp16" and size == 3:
            assert distance(wanted, fp16) > 1e-3  # else the agreement would prove nothing


@pytest.mark.parametrize("tower", TOWERS)
def test_static_batch_is_fixed(
    tower: Tower, variant: Any, make_pairs: MakePairs, tmp_path: Path
) -> None:
    model = variant("fp8-attention")
    exported = export_tower(
        model, tower=tower, path=tmp_path / "tower.onnx", dynamic_batch=False, batch=2
    )
    batch = make_pairs(batches=1, size=2)[0]
    assert distance(run_onnx(exported, batch), run_torch(model, tower, batch)) < 1e-5
    assert not read_graph(exported.path).dynamic_batch
    three = make_pairs(batches=1, size=3)[0]  # in two runs of the file's own size
    assert distance(run_onnx(exported, three), run_torch(model, tower, three)) < 1e-5


@pytest.mark.parametrize(
    "entries",
    [
        pytest.param(
            [
                {"quantizer_name": "*weight_quantizer", "cfg": E4M3},
                {"quantizer_name": "*input_quantizer", "cfg": E4M3},
            ],
            id="norms-and-embeddings-too",
        ),
        pytest.param(
            [
                {
                    "quantizer_name": "*weight_quantizer",
                    "parent_class": "nn.Linear",
                    "cfg": {"num_bits": [4, 3], "axis": 0},
                }
            ],
            id="weights-per-channel",
        ),
        pytest.param([{"quantizer_name": "*output_quantizer", "cfg": E4M3}], id="outputs"),
        pytest.param(
            [{"quantizer_name": "*[qkv]_bmm_quantizer", "cfg": E4M3}], id="automatic-attention"
        ),
    ],
)
@pytest.mark.parametrize("tower", TOWERS)
def test_other_recipes_agree_too(
    tower: Tower,
    entries: list[dict[str, Any]],
    make_quantized: Callable[..., Encoder],
    make_pairs: MakePairs,
    tmp_path: Path,
) -> None:
    model = make_quantized({"quant_cfg": [OFF, *entries], "algorithm": "max"})
    exported = export_tower(model, tower=tower, path=tmp_path / "tower.onnx")
    batch = make_pairs(batches=1, size=3, seed=5)[0]
    assert distance(run_onnx(exported, batch), run_torch(model, tower, batch)) < 1e-5
    assert set(exported.quantizers) == executed(model, tower)
    audit = read_graph(exported.path)
    assert (audit.lost, audit.undeclared, audit.problems) == ((), (), ())


@pytest.mark.parametrize("opset", [19, 20])
@pytest.mark.parametrize("recipe", ["fp16", "fp8-attention"])
@pytest.mark.parametrize("tower", TOWERS)
def test_other_kinds_of_clip(
    tower: Tower,
    recipe: str,
    opset: int,
    tiny_fp16: Encoder,
    make_recipe: Callable[[Any], Recipe],
    make_pairs: MakePairs,
    tmp_path: Path,
) -> None:
    """Exact GELU (OpenCLIP's checkpoints), and OpenAI's old text pooling (eos_token_id 2)."""
    from transformers import CLIPModel

    old: Any = tiny_fp16.module
    config = copy.deepcopy(old.config)
    config.vision_config.hidden_act = config.text_config.hidden_act = "gelu"
    config.text_config.eos_token_id = 2
    torch.manual_seed(1)
    module = CLIPModel(config).half().float().eval().requires_grad_(False)
    model = replace(tiny_fp16, module=module)
    if recipe != "fp16":
        model = quantize(model, recipe=make_recipe(recipe), batches=make_pairs()).model
    exported = export_tower(model, tower=tower, path=tmp_path / "tower.onnx", opset=opset)
    assert read_graph(exported.path).opset == opset
    batch = make_pairs(batches=1, size=3, seed=5)[0]
    assert distance(run_onnx(exported, batch), run_torch(model, tower, batch)) < 1e-5


# -- what it holds ------------------------------


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_quantizer_is_a_pair_with_its_own_range(
    recipe: str, tower: Tower, variant: Any, tmp_path: Path
) -> None:
    model = variant(recipe)
    exported = export_tower(model, tower=tower, path=tmp_path / "tower.onnx")
    audit = read_graph(exported.path)
    names = executed(model, tower)
    assert set(exported.quantizers) == names
    assert {pair.quantizer for pair in audit.pairs} == names
    assert len(audit.pairs) == len(names)
    assert exported.not_executed == exported.declared_extra == ()
    quantizers = find_quantizers(model.module)
    for pair in audit.pairs:
        assert pair.quantizer is not None
        quantizer = quantizers[pair.quantizer]
        assert pair.complete
        assert pair.feeds_owner
        assert pair.symmetric
        assert pair.format == ("E4M3" if recipe.startswith("fp8") else "INT8")
        assert pair.source == ("weight, 8 bit" if pair.slot == "weight" else "activation")
        assert pair.scale_count == quantizer.amax.numel()
        assert pair.amax_min == pytest.approx(float(quantizer.amax.min()), rel=1e-6)
        assert pair.amax_max == pytest.approx(float(quantizer.amax.max()), rel=1e-6)


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("tower", TOWERS)
def test_is_valid_standard_onnx(tower: Tower, precision: Any, variant: Any, tmp_path: Path) -> None:
    exported = export_tower(
        variant("fp8-attention"),
        tower=tower,
        path=tmp_path / "tower.onnx",
        softmax=True,
        precision=precision,
    )
    model = onnx.load(exported.path)
    onnx.checker.check_model(model, full_check=True)
    assert {entry.domain for entry in model.opset_import} == {""}
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.graph.value_info
    assert [value.name for value in model.graph.input] == list(exported.inputs)
    assert [value.name for value in model.graph.output] == [exported.output]
    assert exported.file_bytes == exported.path.stat().st_size


def test_excluded_layer_stays_as_it_is(
    variant: Any, make_quantized: Callable[..., Encoder], tmp_path: Path
) -> None:
    def patch_embedding(model: Encoder) -> Any:
        exported = export_tower(model, tower="vision", path=tmp_path / "tower.onnx")
        audit = read_graph(exported.path)
        return next(o for o in audit.operations if o.module.endswith("patch_embedding"))

    for recipe in ("fp8-attention", "int8"):
        found = patch_embedding(variant(recipe))
        assert found.operator == "Conv"
        assert found.operands_quantized == (False, False)
        assert found.weight_type == "float32"
    included = patch_embedding(make_quantized("fp8-attention"))
    assert included.operands_quantized == (True, True)
    assert included.weight_type == "E4M3"


@pytest.mark.parametrize("recipe", ["fp8-attention", "int8"])
def test_weights_are_stored_once_in_8_bits(recipe: str, variant: Any, tmp_path: Path) -> None:
    audit = read_graph(
        export_tower(variant(recipe), tower="text", path=tmp_path / "tower.onnx").path
    )
    stored = {o.module: o for o in audit.operations if o.weights_count}
    assert {o.weight_type for o in stored.values()} == {"E4M3" if "fp8" in recipe else "INT8"}
    weights = sum(o.weights_count for o in stored.values())
    zero_points = sum(pair.scale_count for pair in audit.pairs)
    assert dict(audit.weights_bytes)[stored["text_projection"].weight_type or ""] == (
        weights + zero_points
    )


def test_tower_shrinks_with_its_weights(variant: Any, tmp_path: Path) -> None:
    sizes = {}
    for recipe in ("fp16", "fp8-attention"):
        for precision in ("float32", "float16"):
            exported = export_tower(
                variant(recipe), tower="text", path=tmp_path / "t.onnx", precision=precision
            )
            sizes[recipe, precision] = sum(n for _, n in read_graph(exported.path).weights_bytes)
    assert sizes["fp8-attention", "float16"] < 0.6 * sizes["fp16", "float16"]
    assert sizes["fp8-attention", "float32"] < 0.4 * sizes["fp16", "float32"]


# -- softmax pairs ------------------------------


@pytest.mark.parametrize("tower", TOWERS)
def test_softmax_pairs_only_when_asked_for(
    tower: Tower, variant: Any, make_pairs: MakePairs, tmp_path: Path
) -> None:
    model = variant("fp8-attention")
    plain = export_tower(model, tower=tower, path=tmp_path / "plain.onnx")
    assert not [p for p in read_graph(plain.path).pairs if p.slot == "softmax"]
    asked = export_tower(model, tower=tower, path=tmp_path / "asked.onnx", softmax=True)
    audit = read_graph(asked.path)
    found = [p for p in audit.pairs if p.slot == "softmax"]
    part = "vision_model" if tower == "vision" else "text_model"
    names = tuple(f"{part}.encoder.layers.{n}.self_attn.softmax_quantizer" for n in (0, 1))
    assert tuple(pair.quantizer for pair in found) == asked.declared_extra == audit.extra == names
    for pair in found:
        assert pair.amax_max == pytest.approx(1.0, rel=1e-6)
        assert pair.complete
        assert pair.feeds_owner
    matmuls = [o for o in audit.operations if o.module.endswith("self_attn")]
    assert [o.operands_quantized for o in matmuls] == [(True, True)] * 4
    batch = make_pairs(batches=1, size=3, seed=5)[0]
    simulated = run_torch(simulate_softmax(model), tower, batch)
    assert distance(run_onnx(asked, batch), simulated) < 1e-5
    assert distance(simulated, run_torch(model, tower, batch)) > 1e-3


def test_simulated_softmax_exports_by_itself(variant: Any, tmp_path: Path) -> None:
    model = simulate_softmax(variant("fp8-attention"))
    exported = export_tower(model, tower="text", path=tmp_path / "tower.onnx")
    assert exported.declared_extra == ()
    assert sum(name.endswith("softmax_quantizer") for name in exported.quantizers) == 2


@pytest.mark.parametrize("recipe", ["fp16", "fp8", "int8"])
def test_softmax_pairs_need_quantized_attention(recipe: str, variant: Any, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"self_attn is not quantized to E4M3"):
        export_tower(variant(recipe), tower="text", path=tmp_path / "t.onnx", softmax=True)
    with pytest.raises(ModelError, match=r"self_attn is not quantized to E4M3"):
        simulate_softmax(variant(recipe))


# -- half precision, for TensorRT ------------------------------


@pytest.mark.parametrize("recipe", ["fp8-attention", "int8"])
@pytest.mark.parametrize("tower", TOWERS)
def test_half_graph_is_half_but_for_its_pairs(
    tower: Tower, recipe: str, variant: Any, tmp_path: Path
) -> None:
    exported = export_tower(
        variant(recipe),
        tower=tower,
        path=tmp_path / "tower.onnx",
        softmax=recipe == "fp8-attention",
        precision="float16",
    )
    audit = read_graph(exported.path)
    assert (audit.precision, audit.problems, audit.lost, audit.undeclared) == (
        "float16",
        (),
        (),
        (),
    )
    assert set(exported.quantizers) == {pair.quantizer for pair in audit.pairs}
    quantizers = find_quantizers(variant(recipe).module)
    scales = 0
    for pair in audit.pairs:
        scales += pair.scale_count
        assert pair.scale_type == "float32"
        if pair.slot != "softmax":
            assert pair.quantizer is not None
            amax = float(quantizers[pair.quantizer].amax.max())
            assert pair.amax_max == pytest.approx(amax, rel=1e-6)
    assert dict(audit.weights_bytes)["float32"] == 4 * scales
    model = onnx.load(exported.path)
    kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    kinds |= {value.name: value.type.tensor_type.elem_type for value in model.graph.output}
    half, full = onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT
    wanted = {"pixel_values": half} if tower == "vision" else {}
    assert {n: k for n, k in kinds.items() if k in (half, full)} == {**wanted, "embeddings": full}


@pytest.mark.parametrize("recipe", ["fp16", "fp8-attention", "int8"])
@pytest.mark.parametrize("tower", TOWERS)
def test_half_graph_is_the_same_graph(
    tower: Tower, recipe: str, variant: Any, make_pairs: MakePairs, tmp_path: Path
) -> None:
    """But for casts, half and float graphs have the same nodes: parity of one speaks for both."""

    def nodes(exported: ExportedOnnx) -> list[tuple[str, str]]:
        graph = onnx.load(exported.path).graph
        return [(n.op_type, n.name) for n in graph.node if n.op_type != "Cast"]

    model = variant(recipe)
    full = export_tower(model, tower=tower, path=tmp_path / "full.onnx")
    half = export_tower(model, tower=tower, path=tmp_path / "half.onnx", precision="float16")
    assert nodes(half) == nodes(full)
    batch = make_pairs(batches=1, size=3, seed=5)[0]
    wanted = run_torch(model, tower, batch)
    limit = 0.1  # a value near a tie goes to the other side: as much as quantization itself
    if recipe == "fp16":
        narrow = replace(model, module=copy.deepcopy(model.module).half(), compute_dtype="float16")
        limit = 2 * distance(run_torch(narrow, tower, batch).astype(np.float32), wanted)
    assert distance(run_onnx(half, batch), wanted) < limit


def test_both_precisions_store_the_same_bytes(variant: Any, tmp_path: Path) -> None:
    def weights(precision: Any) -> dict[str, bytes]:
        exported = export_tower(
            variant("fp8-attention"), tower="text", path=tmp_path / "t.onnx", precision=precision
        )
        return {
            tensor.name: tensor.raw_data
            for tensor in onnx.load(exported.path).graph.initializer
            if tensor.data_type == onnx.TensorProto.FLOAT8E4M3FN
        }

    assert weights("float16") == weights("float32")


@pytest.mark.parametrize("recipe", ["fp16", "fp8-attention"])
@pytest.mark.parametrize("tower", TOWERS)
def test_tensorrt_parses_the_half_graph(
    recipe: str, tower: Tower, variant: Any, tmp_path: Path
) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    exported = export_tower(
        variant(recipe),
        tower=tower,
        path=tmp_path / "tower.onnx",
        precision="float16",
        softmax=recipe != "fp16",
    )
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    parsed = parser.parse(exported.path.read_bytes())
    assert parsed, [parser.get_error(i).desc() for i in range(parser.num_errors)]


# -- what it leaves alone ------------------------------


def snapshot(model: Encoder) -> str:
    """Return a digest of a model: tensors bit for bit, modules and their attributes."""
    digest = hashlib.sha256()
    for name, tensor in model.module.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.numpy().tobytes())
    for name, child in model.module.named_modules():
        digest.update(f"{name} {type(child)} {sorted(vars(child))} {child.training}".encode())
    digest.update(str(model.module.config).encode())
    digest.update(model.module.config._attn_implementation.encode())  # type: ignore[operator, union-attr]
    return digest.hexdigest()


@pytest.mark.parametrize("precision", ["float32", "float16"])
@pytest.mark.parametrize("recipe", ["fp16", "fp8-attention", "int8-smoothquant"])
def test_callers_model_is_untouched(
    recipe: str, precision: Any, variant: Any, make_pairs: MakePairs, tmp_path: Path
) -> None:
    from torch.nn import functional
    from torch.nn.modules import module as modules

    model = variant(recipe)
    batch = make_pairs(batches=1)[0]

    def world() -> tuple[Any, ...]:
        return (
            snapshot(model),
            *(run_torch(model, tower, batch).tobytes() for tower in TOWERS),
            functional.scaled_dot_product_attention,
            torch.onnx.is_in_onnx_export(),
            torch.is_grad_enabled(),
            dict(modules._global_forward_hooks),
        )

    before = world()
    for tower in TOWERS:
        export_tower(
            model,
            tower=tower,
            path=tmp_path / "tower.onnx",
            precision=precision,
            softmax=recipe == "fp8-attention",
        )
    if recipe == "fp8-attention":
        simulate_softmax(model)
    assert world() == before


def test_half_model_is_exported_in_full_precision(
    variant: Any, make_pairs: MakePairs, tmp_path: Path
) -> None:
    """A model held in half, as on a GPU, stays in half, and its graph computes in float32."""
    module = copy.deepcopy(variant("fp16").module).half()
    model = replace(variant("fp16"), module=module, compute_dtype="float16")
    exported = export_tower(model, tower="vision", path=tmp_path / "tower.onnx")
    assert {p.dtype for p in module.parameters()} == {torch.float16}
    batch = make_pairs(batches=1, size=3)[0]
    wanted = run_torch(variant("fp16"), "vision", batch)
    assert distance(run_onnx(exported, batch), wanted) < 1e-5


def test_same_model_gives_the_same_bytes(variant: Any, tmp_path: Path) -> None:
    model = variant("fp8-attention")
    files = [
        export_tower(model, tower="text", path=tmp_path / name).path.read_bytes()
        for name in ("a.onnx", "b.onnx")
    ]
    assert files[0] == files[1]


# -- what it cannot do ------------------------------


def test_quantizers_that_never_run_are_named_and_left_out(
    make_quantized: Callable[..., Encoder], make_pairs: MakePairs, tmp_path: Path
) -> None:
    """The diffusers class quantizes nothing under eager attention: the graph must not either."""
    model = make_quantized("fp8-attention")
    model.module.set_attn_implementation("eager")  # type: ignore[operator]
    exported = export_tower(model, tower="vision", path=tmp_path / "tower.onnx")
    slots = ("q_bmm", "k_bmm", "v_bmm", "bmm2_output")
    assert set(exported.not_executed) == {
        f"vision_model.encoder.layers.{block}.self_attn.{slot}_quantizer"
        for block in (0, 1)
        for slot in slots
    }
    batch = make_pairs(batches=1)[0]
    assert distance(run_onnx(exported, batch), run_torch(model, "vision", batch)) < 1e-5
    with pytest.raises(ModelError, match="is not quantized to E4M3"):
        export_tower(model, tower="vision", path=tmp_path / "tower.onnx", softmax=True)


def sabotage_amax(quantizer: Any) -> None:
    del quantizer._amax


def sabotage_nan(quantizer: Any) -> None:
    quantizer._amax.fill_(float("nan"))


def sabotage_dynamic(quantizer: Any) -> None:
    quantizer._dynamic = True


def sabotage_bits(quantizer: Any) -> None:
    quantizer.num_bits = 4
    quantizer._amax.fill_(1.0)


@pytest.mark.parametrize(
    ("sabotage", "reason"),
    [
        (sabotage_amax, "has no amax"),
        (sabotage_nan, "negative, NaN or Inf"),
        (sabotage_dynamic, "taken from each batch"),
        (sabotage_bits, "its format is INT4"),
    ],
)
def test_refuses_what_onnx_cannot_hold(
    sabotage: Callable[[Any], None],
    reason: str,
    make_quantized: Callable[..., Encoder],
    tmp_path: Path,
) -> None:
    model = make_quantized("fp8")
    name = "text_model.encoder.layers.1.mlp.fc2.input_quantizer"
    sabotage(model.module.get_submodule(name))
    with pytest.raises(ModelError, match=rf"{name} cannot become a Q/DQ pair.*{reason}"):
        export_tower(model, tower="text", path=tmp_path / "tower.onnx")
    assert not (tmp_path / "tower.onnx").exists()


def test_refuses_other_models_and_opsets(variant: Any, tmp_path: Path) -> None:
    model = variant("fp16")
    with pytest.raises(ModelError, match="opset 17: this exporter writes opset 19 to 20"):
        export_tower(model, tower="text", path=tmp_path / "tower.onnx", opset=17)
    vision_alone = replace(model, module=model.module.vision_model)
    with pytest.raises(ModelError, match="CLIPVisionModel has no 'text_model'"):
        export_tower(vision_alone, tower="text", path=tmp_path / "tower.onnx")


def test_refuses_what_one_file_cannot_hold(
    variant: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_surgery, "LARGEST_FILE_BYTES", 1000)
    with pytest.raises(ModelError, match=r"tower.onnx: .* export with precision float16"):
        export_tower(variant("fp16"), tower="text", path=tmp_path / "tower.onnx")


def test_says_what_to_install(
    variant: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingPackage, match=r"pip install 'pytest-quantgate\[clip\]'"):
        export_tower(variant("fp16"), tower="text", path=tmp_path / "tower.onnx")


def test_import_is_light() -> None:
    code = (
        "import sys\n"
        "import pytest_quantgate.runtimes.onnx_export\n"
        "import pytest_quantgate.runtimes.onnx_graph\n"
        "import pytest_quantgate.runtimes.onnxruntime_session\n"
        "heavy = {'torch', 'onnx', 'onnxruntime', 'numpy', 'modelopt', 'pytest'}\n"
        "sys.exit(str(sorted(heavy & set(sys.modules))) if heavy & set(sys.modules) else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
