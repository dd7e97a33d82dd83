"""Files that were handed over: what spoils one is named, and what others write differently is not.

Each is made of a sound export by one change, and judged by the export gate.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from pytest_quantgate.artifacts.given_audit import audit_given
from pytest_quantgate.artifacts.given_onnx import digest_files, prepare_graph
from pytest_quantgate.artifacts.given_weights import compare_values
from pytest_quantgate.encoders.encoder import Batch, Encoder
from pytest_quantgate.encoders.loading import quiet_libraries
from pytest_quantgate.errors import ArtifactError
from pytest_quantgate.evidence.audit import Audit
from pytest_quantgate.evidence.codec import from_json, to_json
from pytest_quantgate.evidence.onnx import OnnxAudit
from pytest_quantgate.evidence.verdict import Verdict
from pytest_quantgate.gates.export import ExportGate, judge_export
from pytest_quantgate.measure.audit import audit_quantizers
from pytest_quantgate.run.given_files import describe_tower
from pytest_quantgate.runtimes.onnx_export import export_tower
from pytest_quantgate.runtimes.onnx_nodes import module_of_node
from pytest_quantgate.suite.where import Where

BLOCK = "vision_model.encoder.layers.1"
FC1, FC2 = f"{BLOCK}.mlp.fc1", f"{BLOCK}.mlp.fc2"
OTHER_FC1 = "vision_model.encoder.layers.0.mlp.fc1"
NORM = f"{BLOCK}.layer_norm1"
GATE = ExportGate(where=Where(file="suites/tiny.quantgate.yaml", line=7))

Change = Callable[[Any], None]


class HandOver:
    """A sound export of one tower of a variant, and the model that it is of."""

    def __init__(self, model: Encoder, *, audit: Audit, tower: Any, folder: Path) -> None:
        self.audit = replace(audit, towers=(tower,))
        self.model = describe_tower(model, tower=tower)
        self.folder = folder
        self.path = folder / "sound.onnx"
        export_tower(model, tower=tower, path=self.path)

    def read(self, path: Path, *, prefix: str | None = None) -> OnnxAudit:
        prepared = self.folder / "prepared.onnx"
        prepare_graph(path, path=prepared, model=self.model, prefix=prefix)
        found = audit_given(prepared, model=self.model, name=path.name, digest="0" * 64)
        assert to_json(from_json(OnnxAudit, to_json(found))) == to_json(found)
        return found

    def judge(
        self, change: Change | Path, *, prefix: str | None = None, gate: ExportGate = GATE
    ) -> Verdict:
        """Return the verdict on a file, or on the sound one after a change of its model."""
        path = change if isinstance(change, Path) else self.folder / "changed.onnx"
        if not isinstance(change, Path):
            model = onnx.load(self.path)
            change(model)
            onnx.save(model, path)
        return judge_export(
            self.audit,
            quantized=[self.read(path, prefix=prefix)],
            fp16_file_bytes=200_000,
            dtype="float32",
            has_parity=True,
            gate=gate,
        )


@pytest.fixture(scope="module")
def hand_over(
    make_quantized: Callable[..., Encoder],
    make_pairs: Callable[..., list[Batch]],
    make_recipe: Callable[[Any], Any],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., HandOver]:
    made: dict[Any, HandOver] = {}

    def make(recipe: str = "int8", tower: str = "vision") -> HandOver:
        if (recipe, tower) not in made:
            model = make_quantized(recipe)
            audit = audit_quantizers(
                model, recipe=make_recipe(recipe), exclude=(), held_out=make_pairs(seed=1)
            )
            made[recipe, tower] = HandOver(
                model, audit=audit, tower=tower, folder=tmp_path_factory.mktemp("given")
            )
        return made[recipe, tower]

    return make


@pytest.fixture
def sound(hand_over: Callable[..., HandOver]) -> HandOver:
    return hand_over()


# -- helpers on graphs -----------------------------------------------------------------------------


def tensor_of(model: Any, name: str) -> Any:
    return next(t for t in model.graph.initializer if t.name == name)


def node_of(model: Any, module: str, operator: str) -> Any:
    return next(
        n for n in model.graph.node if module_of_node(n.name) == module and n.op_type == operator
    )


def change_values(model: Any, name: str, change: Callable[[Any], Any]) -> None:
    tensor = tensor_of(model, name)
    values = numpy_helper.to_array(tensor)
    tensor.CopyFrom(numpy_helper.from_array(change(values.copy()).astype(values.dtype), name))


def swap(model: Any, one: str, two: str) -> None:
    """Exchange the values of two tensors."""
    first, second = tensor_of(model, one), tensor_of(model, two)
    first.raw_data, second.raw_data = second.raw_data, first.raw_data


def weights_of(model: Any, module: str) -> str:
    """Return the tensor that holds the codes of a layer's weight."""
    return str(node_of(model, f"{module}.weight_quantizer", "DequantizeLinear").input[0])


def scale_of(model: Any, quantizer: str) -> str:
    return str(node_of(model, quantizer, "DequantizeLinear").input[1])


def nothing(_model: Any) -> None:
    """The good file."""


# -- sabotages -------------------------------------------------------------------------------------


def norm_of_another_revision(model: Any) -> None:
    change_values(model, f"{NORM}.weight", lambda v: v * 1.25)


def one_bias_changed(model: Any) -> None:
    change_values(model, f"{FC1}.bias", lambda v: v + np.eye(1, v.size, 3)[0])


def biases_swapped(model: Any) -> None:
    swap(model, f"{FC1}.bias", f"{OTHER_FC1}.bias")


def codes_swapped(model: Any) -> None:
    swap(model, weights_of(model, FC1), weights_of(model, OTHER_FC1))


def one_code_flipped(model: Any) -> None:
    def flip(values: Any) -> Any:
        values.flat[7] = -values.flat[7] - 5
        return values

    change_values(model, weights_of(model, FC1), flip)


def weight_turned(model: Any) -> None:
    """A square weight that lies the wrong way round."""
    change_values(model, weights_of(model, f"{BLOCK}.self_attn.q_proj"), lambda v: v.T)


def base_of_another_revision(model: Any) -> None:
    generator = np.random.default_rng(0)
    for tensor in model.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and "scale" not in tensor.name:
            change_values(model, tensor.name, lambda v: v + generator.normal(size=v.shape))
        elif tensor.data_type == TensorProto.INT8 and len(tensor.dims) > 1:
            change_values(
                model, tensor.name, lambda v: generator.permutation(v.ravel()).reshape(v.shape)
            )


def one_weight_scale_changed(model: Any) -> None:
    change_values(
        model,
        scale_of(model, f"{FC1}.weight_quantizer"),
        lambda v: v * np.eye(1, v.size)[0] * 0.1 + v,
    )


def one_input_scale_changed(model: Any) -> None:
    change_values(model, scale_of(model, f"{FC2}.input_quantizer"), lambda v: v * 2)


def asymmetric(model: Any) -> None:
    zero = node_of(model, f"{FC2}.input_quantizer", "DequantizeLinear").input[2]
    change_values(model, zero, lambda v: v + 3)


def one_operand_in_full(model: Any) -> None:
    """Take the pair of one input out."""
    first = node_of(model, f"{FC2}.input_quantizer", "QuantizeLinear")
    last = node_of(model, f"{FC2}.input_quantizer", "DequantizeLinear")
    for node in model.graph.node:
        for place, name in enumerate(node.input):
            if name == last.output[0]:
                node.input[place] = first.input[0]
    model.graph.node.remove(first)
    model.graph.node.remove(last)


def names_swapped(model: Any) -> None:
    """Two inputs' pairs under each other's names: each range is that of the other layer."""
    one, two = (
        f"/{m.replace('.layers.', '.layers#').replace('.', '/').replace('#', '.')}/input_quantizer/"
        for m in (FC1, FC2)
    )
    for node in model.graph.node:
        if node.name.startswith(one):
            node.name = node.name.replace(one, two)
        elif node.name.startswith(two):
            node.name = node.name.replace(two, one)


def weights_in_full(model: Any) -> None:
    """Put a full-precision weight and QuantizeLinear in place of stored codes."""
    undo = node_of(model, f"{FC1}.weight_quantizer", "DequantizeLinear")
    codes = tensor_of(model, undo.input[0])
    axis = next((a.i for a in undo.attribute if a.name == "axis"), 0)
    values = numpy_helper.to_array(codes).astype("f4")
    scale = numpy_helper.to_array(tensor_of(model, undo.input[1]))
    shape = [1, 1]
    shape[axis] = -1
    model.graph.initializer.append(
        numpy_helper.from_array(values * scale.reshape(shape), f"{FC1}.wide")
    )
    place = list(model.graph.node).index(undo)
    made = helper.make_node(
        "QuantizeLinear", [f"{FC1}.wide", *undo.input[1:]], ["wide_codes"], axis=axis
    )
    undo.input[0] = "wide_codes"
    model.graph.node.insert(place, made)


def half_a_pair(model: Any) -> None:
    first = node_of(model, f"{FC2}.input_quantizer", "QuantizeLinear")
    name = f"{first.input[1]}.other"
    scale = numpy_helper.to_array(tensor_of(model, first.input[1]))
    model.graph.initializer.append(numpy_helper.from_array(scale * np.float32(2), name))
    first.input[1] = name


SABOTAGES: dict[Change, tuple[str, str]] = {
    norm_of_another_revision: ("weights-differ", f"{NORM}.weight: "),
    one_bias_changed: ("weights-differ", f"{FC1}.bias: 1 of 64 values are others"),
    biases_swapped: ("weights-differ", "it lies at "),
    codes_swapped: ("weights-differ", f"it is the weight of {FC1}"),
    one_code_flipped: ("weights-differ", f"{FC1}.weight: 1 of 2048 codes are others"),
    weight_turned: ("weights-differ", f"{BLOCK}.self_attn.q_proj.weight: "),
    base_of_another_revision: ("weights-differ", "exported from another model"),
    one_weight_scale_changed: ("values-differ", f"{FC1}.weight_quantizer: "),
    one_input_scale_changed: ("values-differ", f"{FC2}.input_quantizer: "),
    asymmetric: ("values-differ", "a zero point that is not 0"),
    one_operand_in_full: ("quantizers-lost", "1 of 28 quantizers"),
    names_swapped: ("quantizers-lost", "2 of 28 quantizers"),
    weights_in_full: ("weights-in-full", "1 quantized weight"),
    half_a_pair: ("quantizers-lost", "1 of 28 quantizers"),
}


@pytest.mark.parametrize("spoil", SABOTAGES, ids=lambda change: change.__name__)
def test_a_spoiled_file_is_red_with_its_cause(sound: HandOver, spoil: Change) -> None:
    finding, words = SABOTAGES[spoil]

    verdict = sound.judge(spoil)

    said = " | ".join((verdict.headline, verdict.cause, *verdict.evidence))
    assert (verdict.code, words in said) == (f"export.{finding}", True), said


# -- what others write differently -----------------------------------------------------------------


def unsorted(model: Any) -> None:
    nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in model.graph.node][::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def prefixed(model: Any) -> None:
    for node in model.graph.node:
        node.name = f"/wrapped/model{node.name}"


def shortened(model: Any) -> None:
    """Exported from a part of the model: names lack what is in front of it."""
    for node in model.graph.node:
        node.name = node.name.replace("/vision_model/", "/")


def nameless(model: Any) -> None:
    del model.metadata_props[:]
    for number, node in enumerate(model.graph.node):
        node.name = f"node_{number}"


def of_another_interface(model: Any) -> None:
    for node in model.graph.node:
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                names[place] = {"pixel_values": "images", "embeddings": "image_embeds"}.get(
                    name, name
                )
    model.graph.input[0].name = "images"
    model.graph.output[0].name = "image_embeds"


def one_pair_for_three(model: Any) -> None:
    """q, k and v read one pair, as most tools write it."""
    projections = [f"{BLOCK}.self_attn.{name}_proj" for name in "qkv"]
    one = node_of(model, f"{projections[0]}.input_quantizer", "DequantizeLinear")
    for projection in projections[1:]:
        pair = [
            node_of(model, f"{projection}.input_quantizer", operator)
            for operator in ("QuantizeLinear", "DequantizeLinear")
        ]
        for node in model.graph.node:
            for place, name in enumerate(node.input):
                if name == pair[1].output[0]:
                    node.input[place] = one.output[0]
        for node in pair:
            model.graph.node.remove(node)
    for number, node in enumerate(model.graph.node):
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            node.name = f"x_{node.op_type}_{number}"


def with_a_function(model: Any) -> None:
    """Put the nodes of a block into a function of the file, as PyTorch 2.1's exporter did."""
    inside = [n for n in model.graph.node if (module_of_node(n.name) or "").startswith(BLOCK)]
    assert len(inside) > 10
    outside = [node for node in model.graph.node if node not in inside]
    made = dict.fromkeys(name for node in inside for name in node.output)
    read = dict.fromkeys(name for node in inside for name in node.input if name)
    wanted = {name for node in outside for name in node.input}
    inputs, outputs = [n for n in read if n not in made], [n for n in made if n in wanted]
    imports = list(model.opset_import)
    model.functions.append(helper.make_function("team", "Block", inputs, outputs, inside, imports))
    model.opset_import.append(helper.make_opsetid("team", 1))
    call = helper.make_node("Block", inputs, outputs, domain="team", name="block")
    model.graph.node.insert(list(model.graph.node).index(inside[0]), call)
    for node in inside:
        model.graph.node.remove(node)


GOOD = (
    nothing,
    with_a_function,
    unsorted,
    prefixed,
    shortened,
    nameless,
    of_another_interface,
    one_pair_for_three,
)


@pytest.mark.parametrize("change", GOOD, ids=lambda change: change.__name__)
@pytest.mark.parametrize("recipe", ["int8", "fp8-attention"])
def test_a_good_file_is_green_however_it_is_written(
    hand_over: Callable[..., HandOver], change: Change, recipe: str
) -> None:
    verdict = hand_over(recipe).judge(change)

    assert verdict.passed, (verdict.headline, verdict.evidence)
    assert any("40 of 40 tensors" in line for line in verdict.evidence)


@pytest.mark.parametrize("spoil", SABOTAGES, ids=lambda change: change.__name__)
def test_what_is_spoiled_in_a_function_is_seen(sound: HandOver, spoil: Change) -> None:
    def change(model: Any) -> None:
        spoil(model)
        with_a_function(model)

    assert sound.judge(change).code == f"export.{SABOTAGES[spoil][0]}"


# -- files of other tools --------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("opset", "folds"), [(17, True), (20, False)])
def test_what_pytorch_exports_of_the_model_is_green_once_its_weights_are_allowed(
    hand_over: Callable[..., HandOver],
    make_quantized: Callable[..., Encoder],
    tmp_path: Path,
    opset: int,
    folds: bool,
) -> None:
    """A team's own script: torch.onnx.export of the model that ModelOpt quantized."""
    module = copy.deepcopy(make_quantized("int8").module)

    class Vision(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.clip = module

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            pooled = self.clip.vision_model(images).pooler_output  # type: ignore[operator]
            return self.clip.visual_projection(pooled)  # type: ignore[no-any-return, operator]

    path = tmp_path / "theirs.onnx"
    with quiet_libraries():
        torch.onnx.export(
            Vision().eval(),
            (torch.randn(2, 3, 48, 48),),
            str(path),
            dynamo=False,
            opset_version=opset,
            do_constant_folding=folds,
            input_names=["images"],
            dynamic_axes={"images": {0: "batch"}},
        )

    plain = hand_over().judge(path)
    allowed = hand_over().judge(path, gate=replace(GATE, allow=("float-weights",)))

    assert plain.code == "export.weights-in-full"
    assert "export: {allow: [float-weights]}" in plain.next_step
    assert allowed.passed, (allowed.headline, allowed.evidence)
    assert "28 quantizers are 28 Q/DQ pairs" in allowed.headline
    assert "14 weights in full precision as allowed" in allowed.headline


class Pictures:
    """What ONNX Runtime's quantizer calibrates on."""

    def __init__(self) -> None:
        draws = np.random.default_rng(0).normal(size=(4, 2, 3, 48, 48)).astype("f4")
        self.left = [{"pixel_values": draw} for draw in draws]

    def get_next(self) -> dict[str, Any] | None:
        return self.left.pop() if self.left else None


@pytest.fixture
def requantize(tiny_fp16: Encoder, tmp_path: Path) -> Callable[..., Path]:
    """Quantize the FP16 tower's file with ONNX Runtime."""
    quantization = pytest.importorskip("onnxruntime.quantization")

    def make(style: str, *, leave: tuple[str, ...] = ()) -> Path:
        source, path = tmp_path / "fp16.onnx", tmp_path / f"{style}.onnx"
        export_tower(tiny_fp16, tower="vision", path=source)
        if style == "dynamic":
            quantization.quantize_dynamic(source, path)
            return path
        quantization.quantize_static(
            source,
            path,
            Pictures(),
            quant_format=getattr(quantization.QuantFormat, style),
            per_channel=True,
            op_types_to_quantize=["MatMul", "Conv"],
            nodes_to_exclude=list(leave),
            extra_options={"ActivationSymmetric": style == "QDQ", "WeightSymmetric": True},
        )
        return path

    return make


@pytest.mark.slow
def test_a_file_that_another_tool_quantized_is_red_and_says_whose_it_is(
    sound: HandOver, requantize: Callable[..., Path]
) -> None:
    path = requantize("QDQ")

    verdict = sound.judge(path)

    found = sound.read(path).given
    assert found is not None
    assert (found.same, found.unmapped, found.refused) == (40, (), "")
    assert found.tool.startswith("onnx.quantize")
    assert verdict.code == "export.pairs-added"
    assert verdict.cause == f"{found.tool} quantizes more than the recipe does"
    said = " ".join(verdict.evidence)
    assert "smallest amax" in said  # its ranges are its own
    assert "self_attn/Softmax_output_0" in said  # and so are its operands


@pytest.mark.slow
def test_an_operand_in_full_is_seen_among_operators_that_hold_their_scales(
    sound: HandOver, requantize: Callable[..., Path]
) -> None:
    fc2 = "/vision_model/encoder/layers.1/mlp/fc2/MatMul"
    whole, path = sound.read(requantize("QOperator")), requantize("QOperator", leave=(fc2,))

    verdict = sound.judge(path)

    assert whole.given is not None
    assert "it computes with QOperator, TensorRT reads" in whole.given.refused
    held = {pair.quantizer for pair in whole.pairs if pair.complete}
    assert {f"{FC2}.input_quantizer", f"{FC2}.weight_quantizer"} <= held
    assert verdict.code == "export.quantizers-lost"
    assert "2 of 28 quantizers" in verdict.headline
    assert f"{FC2}.input_quantizer" in " ".join(verdict.evidence)


@pytest.mark.slow
def test_ranges_of_each_run_are_no_calibrated_ones(
    sound: HandOver, requantize: Callable[..., Path]
) -> None:
    path = requantize("dynamic")

    found = sound.read(path)
    verdict = sound.judge(path)

    assert found.given is not None
    assert (found.given.same, found.given.differing) == (40, ())  # the table of positions too
    assert not verdict.passed
    assert "its scale is computed in every run" in " ".join((verdict.headline, *verdict.evidence))


def test_an_asymmetric_file_is_refused_before_an_engine_is_built(sound: HandOver) -> None:
    path = sound.folder / "asymmetric.onnx"
    model = onnx.load(sound.path)
    asymmetric(model)
    onnx.save(model, path)

    found = sound.read(path).given

    assert found is not None
    assert "2 of its Q/DQ nodes have a zero point that is not 0" in found.refused


# -- files that cannot be this tower ---------------------------------------------------------------


def with_external_data(model: Any, *, folder: Path, place: str = "weights.data") -> Path:
    path = folder / "external.onnx"
    onnx.save(model, path, save_as_external_data=True, location="weights.data", size_threshold=64)
    if place != "weights.data":
        model = onnx.load(path, load_external_data=False)
        for tensor in model.graph.initializer:
            for entry in tensor.external_data:
                if entry.key == "location":
                    entry.value = place
        onnx.save(model, path)
    return path


def test_weights_in_another_file_are_part_of_it(sound: HandOver, tmp_path: Path) -> None:
    path = with_external_data(onnx.load(sound.path), folder=tmp_path)
    before = digest_files(path)
    assert sound.judge(path).passed

    data = tmp_path / "weights.data"
    content = bytearray(data.read_bytes())
    content[-40] ^= 0x41
    data.write_bytes(content)

    after = digest_files(path)
    assert after.keys() == before.keys() == {"external.onnx", "weights.data"}
    assert after["external.onnx"] == before["external.onnx"]
    assert after["weights.data"] != before["weights.data"]
    assert not sound.judge(path).passed


def of_opset(model: Any, version: int) -> None:
    model.opset_import[0].version = version


def with_another_input(model: Any) -> None:
    model.graph.input.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, [1]))


def with_another_output(model: Any) -> None:
    name = next(n.output[0] for n in model.graph.node if n.op_type == "Conv")
    model.graph.output[0].name, model.graph.node[-1].output[0] = "pooled", "pooled"
    model.graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, None))


def with_a_branch(model: Any) -> None:
    made = helper.make_tensor_value_info("in_branch", TensorProto.FLOAT, None)
    branch = helper.make_graph(
        [helper.make_node("Identity", ["pixel_values"], ["in_branch"])], "b", [], [made]
    )
    model.graph.initializer.append(numpy_helper.from_array(np.array(True), "which"))
    model.graph.node.append(
        helper.make_node("If", ["which"], ["chosen"], then_branch=branch, else_branch=branch)
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: of_opset(m, 10), "is of opset 10: opsets 11 to 24 are read"),
        (lambda m: of_opset(m, 25), "is of opset 25: opsets 11 to 24 are read"),
        (with_another_input, "takes pixel_values, mask, the vision tower pixel_values"),
        (with_another_output, "has 2 outputs (pooled, "),
        (with_a_branch, "computes 2 nodes in branches or loops"),
    ],
)
def test_what_cannot_be_this_tower_is_refused(sound: HandOver, change: Change, words: str) -> None:
    with pytest.raises(ArtifactError) as caught:
        sound.judge(change)

    assert words in str(caught.value)


def test_the_other_tower_is_refused(sound: HandOver, hand_over: Callable[..., HandOver]) -> None:
    with pytest.raises(ArtifactError, match="takes input_ids, attention_mask, the vision tower"):
        sound.judge(hand_over(tower="text").path)


def test_a_text_tower_is_judged_like_a_vision_tower(hand_over: Callable[..., HandOver]) -> None:
    text = hand_over(tower="text")

    assert text.judge(unsorted).passed
    assert text.judge(nameless).passed


@pytest.mark.parametrize("place", ["../weights.data", "/etc/hostname", "gone.data"])
def test_weights_from_elsewhere_are_not_read(sound: HandOver, tmp_path: Path, place: str) -> None:
    path = with_external_data(onnx.load(sound.path), folder=tmp_path, place=place)

    with pytest.raises(ArtifactError, match=r"outside of the folder|is missing"):
        digest_files(path)
    with pytest.raises(ArtifactError):
        sound.judge(path)


@pytest.mark.parametrize("keep", [0, 40, 50_000])
def test_a_truncated_file_is_refused(sound: HandOver, tmp_path: Path, keep: int) -> None:
    path = tmp_path / "short.onnx"
    path.write_bytes(sound.path.read_bytes()[:keep])

    with pytest.raises(ArtifactError):
        digest_files(path)


def test_a_prefix_of_the_suite_is_taken_for_the_one(sound: HandOver, tmp_path: Path) -> None:
    path = tmp_path / "prefixed.onnx"
    model = onnx.load(sound.path)
    prefixed(model)
    onnx.save(model, path)

    assert sound.judge(path, prefix="/wrapped/model").passed
    # By another one no name is known: the layers are found by their values, the rest is red.
    assert sound.judge(path, prefix="elsewhere").code.startswith("export.")


def test_a_file_for_one_size_of_a_batch_runs_on_any(sound: HandOver, tmp_path: Path) -> None:
    session = pytest.importorskip("pytest_quantgate.runtimes.onnxruntime_session")
    pytest.importorskip("onnxruntime")
    model, path = onnx.load(sound.path), tmp_path / "fixed.onnx"
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 3
    del model.graph.value_info[:]
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 3
    onnx.save(model, path)
    pictures = np.random.default_rng(0).normal(size=(7, 3, 48, 48)).astype("f4")

    fixed, free = (
        session.OnnxRuntimeModel(file, workers=2).embed({"pixel_values": pictures})
        for file in (path, sound.path)
    )

    assert fixed.shape == free.shape
    assert np.allclose(fixed, free, atol=1e-5)
    found = sound.read(path).given
    assert found is not None
    assert found.batch == 3


@pytest.mark.parametrize(("value", "kept"), [(1e-7, True), (1e-3, False)])
def test_the_smallest_halves_are_what_a_converter_likes(value: float, kept: bool) -> None:
    found = np.array([[1.0, value]], "f2").astype("f4")
    tensor = np.array([[1.0, 2e-8]], "f4")

    problem = compare_values(found, tensor, stored="float16", dtype="float16")

    assert (problem == "") is kept


def test_a_file_is_parsed_once_for_its_audit(
    sound: HandOver, monkeypatch: pytest.MonkeyPatch
) -> None:
    parse, parsed = onnx.load_from_string, []

    def note(content: bytes, *about: Any) -> Any:
        parsed.append(len(content))
        return parse(content, *about)

    monkeypatch.setattr(onnx, "load_from_string", note)

    audit_given(sound.path, model=sound.model, name="sound.onnx", digest="0" * 64)

    assert parsed == [sound.path.stat().st_size]


@pytest.mark.parametrize("recipe", ["int4", "nvfp4-weight-only"])
def test_weights_in_blocks_are_proved_code_by_code(
    hand_over: Callable[..., HandOver], tmp_path: Path, recipe: str
) -> None:
    given = hand_over(recipe)
    model = onnx.load(given.path)
    change_values(model, f"{FC1}.weight", np.flip)
    onnx.save(model, tmp_path / "spoiled.onnx")

    sound, spoiled = (given.read(p).given for p in (given.path, tmp_path / "spoiled.onnx"))

    assert sound is not None
    assert (sound.same, sound.differing, sound.unproven) == (sound.tensors, (), ())
    assert spoiled is not None
    assert [text.partition(":")[0] for text in spoiled.differing] == [f"{FC1}.weight"]
