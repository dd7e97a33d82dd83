"""Faults of number formats, one a row: what is done to a variant, and the code of the true cause.

The rows are data: the bench puts them before the gates on the reference model, a test on a small
one (`tests/sabotage/test_format_faults.py`). Names of layers are those of both.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from benchmarks.sabotage.bench import Bench, Entry
from benchmarks.sabotage.export import with_files
from benchmarks.sabotage.pipeline import Pipeline, PipelineCase
from pytest_quantgate.encoders.encoder import Encoder
from pytest_quantgate.formats.recipes import RECIPES
from pytest_quantgate.run.case import Case

#: A suite of formats has this line, and the bench writes another recipe into it.
RECIPE_LINE = "quantize: {recipe: fp8}"

SUITE = f"""\
quantgate: 1
model: {{source: reference}}
calibration: {{data: scenes/calibration, samples: 128, batch_size: 64, held_out_samples: 64}}
{RECIPE_LINE}
gates:
  coverage: {{}}
  calibration: {{max_clipped: 20%}}
  # For the other tools, which read a cosine and a drop.
  fidelity: {{min_cosine: 0.01, samples: 64}}
  accuracy: {{task: scenes/classification, metric: acc1, max_drop: 100pp, max_flips: 90%,
    samples: 200}}
  export: {{}}
  parity: {{samples: 16}}
"""

#: Blocks of two axes that a small layer has several of.
SMALL_BLOCKS = (
    "{quant_cfg: [{quantizer_name: '*', enable: false}, {quantizer_name: '*weight_quantizer', "
    "parent_class: nn.Linear, cfg: {num_bits: [4, 3], block_sizes: {-1: 16, -2: 16}}}]}"
)

LAYER = "vision_model.encoder.layers.0.mlp.fc1"
OTHER = "vision_model.encoder.layers.1.mlp.fc2"

Module = Any
Graph = Any


@dataclass(frozen=True, kw_only=True)
class FormatFault:
    """One row: `to_model` changes the quantized module in place, `to_graph` the file of a tower.

    `recipe` is what the variant was made by, as a suite has it, and `code` what must be said of it.
    The tower is vision.
    """

    name: str
    recipe: str
    code: str
    to_model: Callable[[Module], None] | None = None
    to_graph: Callable[[Graph], None] | None = None

    @property
    def gate(self) -> str:
        return self.code.partition(".")[0]

    def make(self, bench: Bench) -> Case:
        """Return the case of the recipe's good variant with this done to it."""
        good = good_case(bench, self.recipe)
        if self.to_model is not None:
            return PipelineCase(
                good=good,
                suite_case=good,
                name=f"format: {self.name}",
                pipeline=Pipeline(finish=self._spoil),
            )
        # The copy takes what is there, and would build anew what is not.
        assert good.audit is not None
        assert good.quantized is not None
        folder = bench.root / "formats" / self.name.replace(" ", "-").replace("/", "-")
        return with_files(good, self.name, functools.partial(self._write, folder=folder))

    def _spoil(self, model: Encoder) -> Encoder:
        assert self.to_model is not None
        module = copy.deepcopy(model.module)
        self.to_model(module)
        return replace(model, module=module)

    def _write(self, case: Case, tower: Any, precision: str, *, folder: Path) -> Path:
        source = Path(case.stages._onnx_folder("quantized", tower, precision))
        if tower != "vision":
            return source
        # What is read of a file is kept under the name of its folder.
        place = folder.with_name(f"{folder.name}-{precision}")
        if not place.exists():
            assert self.to_graph is not None
            model = onnx.load(source / "model.onnx")
            before = model.SerializeToString()
            self.to_graph(model.graph)
            if model.SerializeToString() == before:
                raise ValueError(f"{self.name}: nothing was changed")
            place.mkdir(parents=True)
            onnx.save(model, place / "model.onnx")
        return place


@functools.cache
def good_case(bench: Bench, recipe: str) -> Case:
    """Return the case of a recipe, on the bench's model."""
    suite = bench.suite if RECIPE_LINE in bench.suite else SUITE
    formats = Bench(bench.root, suite=suite)
    return formats.load(edits={RECIPE_LINE: f"quantize: {{recipe: {recipe}}}"})


# -- what is done to a model ----------------------------------------------------------------------


def quantizer(module: Module, slot: str, layer: str = LAYER) -> Any:
    return module.get_submodule(f"{layer}.{slot}_quantizer")


def set_on(slot: str, **values: Any) -> Callable[[Module], None]:
    """Return what sets attributes of one quantizer."""

    def plant(module: Module) -> None:
        for name, value in values.items():
            setattr(quantizer(module, slot), name, value)

    return plant


def scale_buffer(slot: str, name: str, factor: float) -> Callable[[Module], None]:
    def plant(module: Module) -> None:
        getattr(quantizer(module, slot), name).mul_(factor)

    return plant


def drop(slot: str, *names: str) -> Callable[[Module], None]:
    def plant(module: Module) -> None:
        for name in names:
            delattr(quantizer(module, slot), name)

    return plant


def switch(slot: str, *, on: bool) -> Callable[[Module], None]:
    def plant(module: Module) -> None:
        found = quantizer(module, slot)
        (found.enable if on else found.disable)()

    return plant


def poison(value: float) -> Callable[[Module], None]:
    def plant(module: Module) -> None:
        quantizer(module, "input")._pre_quant_scale[3] = value

    return plant


def zero_branch(module: Module) -> None:
    quantizer(module, "weight")._svdquant_lora_b.zero_()


def go_around(module: Module) -> None:
    """A layer that multiplies with its quantized weight and never asks its input quantizer."""
    from torch.nn import functional

    layer: Any = module.get_submodule(LAYER)
    layer.forward = lambda value: functional.linear(
        value, layer.weight_quantizer(layer.weight), layer.bias
    )


def take_amax_of_another(module: Module) -> None:
    """The range of a tensor is that of another layer, whose weights are smaller."""
    own, other = quantizer(module, "weight"), quantizer(module, "weight", OTHER)
    ratio = other._amax.max() / own._amax.max()
    own._amax.copy_(own._amax * (ratio if abs(float(ratio) - 1) > 0.05 else 0.5))


def train_further(module: Module) -> None:
    """Weights go on, their static ranges stay (QAT)."""
    import torch

    with torch.no_grad():
        module.get_submodule(LAYER).weight.mul_(1.5)


def reverse_block_ranges(module: Module) -> None:
    amax = quantizer(module, "weight")._amax
    amax.copy_(amax.flip(0).clone())


def build_fp8(module: Module) -> None:
    """FP4 is declared for a layer, and FP8 is built."""
    import torch

    for slot in ("weight", "input"):
        found = quantizer(module, slot)
        found.num_bits, found.block_sizes = (4, 3), None
        found.amax = torch.tensor(float(found._amax.max()) if hasattr(found, "_amax") else 4.0)


def blocks(size: int, *, type_: str = "dynamic", scale_bits: Any = (4, 3)) -> dict[Any, Any]:
    return {-1: size, "type": type_, **({"scale_bits": scale_bits} if scale_bits else {})}


def per_tensor(module: Module) -> None:
    """One range for a weight that is declared to have one for each channel."""
    found = quantizer(module, "weight")
    amax = found._amax.max().clone()
    del found._amax
    found.axis = None
    found.amax = amax


def double_step(module: Module) -> None:
    found = module.get_submodule(f"{LAYER}.weight_quantizer")
    found[1].disable()


# -- what is done to a file -----------------------------------------------------------------------


def edit(name: str, change: Callable[[Any], Any]) -> Callable[[Graph], None]:
    def plant(graph: Graph) -> None:
        (tensor,) = (t for t in graph.initializer if t.name == f"{LAYER}.{name}")
        values = np.ascontiguousarray(change(numpy_helper.to_array(tensor)))
        tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))

    return plant


def scaled(name: str, factor: float) -> Callable[[Graph], None]:
    return edit(name, lambda values: values * values.dtype.type(factor))


def reverse(values: Any) -> Any:
    return values[::-1]


def all_of(*plants: Callable[[Graph], None]) -> Callable[[Graph], None]:
    def plant(graph: Graph) -> None:
        for one in plants:
            one(graph)

    return plant


def widen_blocks(graph: Graph) -> None:
    """Blocks of twice the size, under every other scale."""
    name = f"{LAYER}.weight_quantizer.scale"
    readers = (n for n in graph.node if f"{LAYER}.weight" in n.input or name in n.input)
    (node,) = (n for n in readers if any(a.name == "block_size" for a in n.attribute))
    layout = next(a for a in node.attribute if a.name == "block_size")
    axis = next(a.i for a in node.attribute if a.name == "axis")
    layout.i *= 2
    edit("weight_quantizer.scale", lambda v: v[::2] if axis in (0, -2) else v[:, ::2])(graph)


def swap_nibbles(graph: Graph) -> None:
    (weight,) = (t for t in graph.initializer if t.name == f"{LAYER}.weight")
    weight.raw_data = bytes((code << 4 | code >> 4) & 255 for code in weight.raw_data)


def drop_branch(graph: Graph) -> None:
    for tensor in graph.initializer:
        if tensor.name.startswith(LAYER) and tensor.name.endswith("_svdquant_lora_b"):
            tensor.raw_data = bytes(len(tensor.raw_data))


def shift_zero_point(graph: Graph) -> None:
    """An asymmetric zero point: the codes mean other values."""
    for node in graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        if node.input[1] == f"{LAYER}.input_quantizer.scale":
            name = f"{LAYER}.zero"
            if not any(t.name == name for t in graph.initializer):
                (old,) = (t for t in graph.initializer if t.name == node.input[2])
                moved = numpy_helper.to_array(old) + 7
                graph.initializer.append(numpy_helper.from_array(moved.astype(np.int8), name))
            node.input[2] = name


FAULTS: tuple[FormatFault, ...] = (
    # SVDQuant
    FormatFault(
        name="low-rank branch zero", recipe="nvfp4-svdquant", code="coverage.branch-idle",
        to_model=zero_branch,
    ),
    FormatFault(
        name="low-rank branch lost", recipe="nvfp4-svdquant", code="coverage.branch-missing",
        to_model=drop("weight", "_svdquant_lora_a", "_svdquant_lora_b"),
    ),
    FormatFault(
        name="low-rank branch dropped on export", recipe="nvfp4-svdquant",
        code="parity.block-differs", to_graph=drop_branch,
    ),
    # AWQ and SmoothQuant
    FormatFault(
        name="pre-quant scale NaN", recipe="int4-awq", code="calibration.scale-broken",
        to_model=poison(float("nan")),
    ),
    FormatFault(
        name="pre-quant scale zero", recipe="int8-smoothquant", code="calibration.scale-broken",
        to_model=poison(0.0),
    ),
    FormatFault(
        name="pre-quant scale missing", recipe="nvfp4-awq", code="calibration.scale-missing",
        to_model=drop("input", "_pre_quant_scale"),
    ),
    FormatFault(
        name="pre-quant scale never applied", recipe="int4-awq", code="calibration.scale-idle",
        to_model=go_around,
    ),
    FormatFault(
        name="pre-quant scale forgotten on export", recipe="int4-awq", code="parity.block-differs",
        to_graph=edit("input_quantizer._pre_quant_scale", np.ones_like),
    ),
    FormatFault(
        name="pre-quant scale applied twice on export", recipe="int4-awq",
        code="parity.block-differs",
        to_graph=edit("input_quantizer._pre_quant_scale", np.square),
    ),
    FormatFault(
        name="pre-quant scale in another order", recipe="nvfp4-awq", code="parity.block-differs",
        to_graph=edit("input_quantizer._pre_quant_scale", reverse),
    ),
    # NVFP4
    FormatFault(
        name="block size 32 for 16", recipe="nvfp4", code="coverage.other-format",
        to_model=set_on("weight", block_sizes=blocks(32)),
    ),
    FormatFault(
        name="FP4 declared, FP8 built", recipe="nvfp4", code="coverage.other-format",
        to_model=build_fp8,
    ),
    FormatFault(
        name="FP4 under scales of MX", recipe="nvfp4", code="coverage.other-format",
        to_model=set_on("weight", block_sizes=blocks(32, scale_bits=(8, 0))),
    ),
    FormatFault(
        name="FP4 range of another layer", recipe="nvfp4", code="calibration.weights-changed",
        to_model=take_amax_of_another,
    ),
    FormatFault(
        name="FP4 range missing", recipe="nvfp4", code="calibration.amax-missing",
        to_model=drop("weight", "_amax"),
    ),
    FormatFault(
        name="FP4 range stale after training", recipe="nvfp4", code="calibration.weights-changed",
        to_model=train_further,
    ),
    FormatFault(
        name="FP4 weight in full precision", recipe="nvfp4", code="coverage.layers-off",
        to_model=switch("weight", on=False),
    ),
    FormatFault(
        name="FP4 dynamic blocks where static ones were declared", recipe="nvfp4-mse",
        code="coverage.other-scaling", to_model=set_on("weight", block_sizes=blocks(16)),
    ),
    FormatFault(
        name="FP4 scales of blocks in another order", recipe="nvfp4", code="export.values-differ",
        to_graph=edit("weight_quantizer.scale", reverse),
    ),
    FormatFault(
        name="FP4 scale of the tensor off", recipe="nvfp4", code="export.values-differ",
        to_graph=scaled("weight_quantizer.tensor_scale", 1.5),
    ),
    FormatFault(
        name="FP4 file in blocks of 32", recipe="nvfp4", code="export.values-differ",
        to_graph=widen_blocks,
    ),
    FormatFault(
        name="FP4 range of inputs halved in the file", recipe="nvfp4", code="export.values-differ",
        to_graph=all_of(
            scaled("input_quantizer.scale", 0.5), scaled("input_quantizer.largest", 0.5)
        ),
    ),
    FormatFault(
        name="FP4 scales of inputs by 4 and not by 6", recipe="nvfp4",
        code="export.quantizers-lost", to_graph=scaled("input_quantizer.largest", 4 / 6),
    ),
    FormatFault(
        name="FP4 nibbles swapped", recipe="nvfp4", code="parity.block-differs",
        to_graph=swap_nibbles,
    ),
    # Microscaling
    FormatFault(
        name="MXFP8 built as MXFP6", recipe="mxfp8", code="coverage.other-format",
        to_model=set_on("weight", num_bits=(3, 2)),
    ),
    FormatFault(
        name="MXFP8 in blocks of 16", recipe="mxfp8", code="coverage.other-format",
        to_model=set_on("input", block_sizes=blocks(16, scale_bits=(8, 0))),
    ),
    FormatFault(
        name="MXFP8 powers doubled in the file", recipe="mxfp8", code="export.values-differ",
        to_graph=scaled("weight_quantizer.scale", 2.0),
    ),
    FormatFault(
        name="MXFP8 range of inputs halved in the file", recipe="mxfp8",
        code="export.values-differ", to_graph=scaled("input_quantizer.scale", 0.5),
    ),
    # INT4
    FormatFault(
        name="INT4 ranges of blocks in another order", recipe="int4",
        code="calibration.weights-changed", to_model=reverse_block_ranges,
    ),
    FormatFault(
        name="INT4 built as INT8", recipe="int4", code="coverage.other-format",
        to_model=set_on("weight", num_bits=8),
    ),
    FormatFault(
        name="INT4 scale_bits that do nothing", recipe="int4", code="coverage.scales-ignored",
        to_model=set_on("weight", block_sizes=blocks(128, type_="static")),
    ),
    FormatFault(
        name="INT4 nibbles swapped", recipe="int4", code="parity.block-differs",
        to_graph=swap_nibbles,
    ),
    FormatFault(
        name="INT4 scales in another order", recipe="int4", code="export.values-differ",
        to_graph=edit("weight_quantizer.scale", lambda v: np.flip(v, -1)),
    ),
    FormatFault(
        name="W4A8 without its second step", recipe="w4a8-awq", code="coverage.layers-off",
        to_model=double_step,
    ),
    FormatFault(
        name="W4A8 inputs without a range", recipe="w4a8-awq", code="calibration.amax-missing",
        to_model=drop("input", "_amax"),
    ),
    # INT8
    FormatFault(
        name="INT8 zero point asymmetric in the file", recipe="int8", code="export.values-differ",
        to_graph=shift_zero_point,
    ),
    FormatFault(
        name="INT8 one range for a weight with one for each channel", recipe="int8",
        code="coverage.other-scaling", to_model=per_tensor,
    ),
    FormatFault(
        name="INT8 inputs quantized that were to stay", recipe="int8-weight-only",
        code="coverage.unasked", to_model=switch("input", on=True),
    ),
    # FP8
    FormatFault(
        name="FP8 dynamic where static was declared", recipe="fp8", code="coverage.other-scaling",
        to_model=set_on("input", _dynamic=True),
    ),
    FormatFault(
        name="FP8 per-tensor for per-channel", recipe="fp8-per-channel",
        code="coverage.other-scaling", to_model=per_tensor,
    ),
    FormatFault(
        name="FP8 built as INT8", recipe="fp8", code="coverage.other-format",
        to_model=set_on("weight", num_bits=8),
    ),
    FormatFault(
        name="FP8 range of a token doubled in the file", recipe="fp8-per-token",
        code="export.values-differ", to_graph=scaled("input_quantizer.scale", 2.0),
    ),
    FormatFault(
        name="FP8 blocks in another order", recipe=SMALL_BLOCKS,
        code="calibration.weights-changed", to_model=reverse_block_ranges,
    ),
)  # fmt: skip

#: Recipes that are good as they are: nothing may be red.
GOOD = (*RECIPES, SMALL_BLOCKS)

FORMATS: tuple[Entry, ...] = tuple(
    Entry(
        name=fault.name,
        theme="formats",
        make=fault.make,
        gates=(fault.gate,),
        code=fault.code,
        judged=("coverage", "calibration", "export", "parity"),
        compared=False,
    )
    for fault in FAULTS
)

GOOD_FORMATS: tuple[Entry, ...] = tuple(
    Entry(
        name=f"formats of {recipe if recipe in RECIPES else 'E4M3 in blocks of 16 x 16'}",
        theme="control",
        make=functools.partial(good_case, recipe=recipe),
        judged=("coverage", "calibration"),
        compared=False,
    )
    for recipe in GOOD
)
