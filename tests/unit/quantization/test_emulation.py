"""NVFP4 and Microscaling on a CPU: bit for bit what ModelOpt's own code gives, and only there."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pytest_quantgate.encoders.encoder import Batch, Encoder
from pytest_quantgate.encoders.loading import quiet_libraries
from pytest_quantgate.errors import NotMeasured
from pytest_quantgate.formats.number_format import NumberFormat
from pytest_quantgate.formats.table import MXFP8, TABLE, find_format
from pytest_quantgate.quantization.arithmetic import ARITHMETIC, Arithmetic, read_arithmetic
from pytest_quantgate.quantization.checkpoint import load_checkpoint, save_checkpoint
from pytest_quantgate.quantization.emulation import (
    emulated_kernels,
    fake_quantize_mx,
    fake_quantize_nvfp4,
    fake_quantize_static_nvfp4,
    kernels_for,
    with_emulation,
)
from pytest_quantgate.quantization.modelopt import import_modelopt
from pytest_quantgate.quantization.quantizers import find_quantizers, require_kernels
from pytest_quantgate.store.surroundings import JUDGING

MakeQuantized = Callable[..., Encoder]
MakePairs = Callable[..., list[Batch]]

#: What ModelOpt's own kernels gave without a GPU: see tests/record_kernels.py.
RECORDED = Path(__file__).parent / "data" / "kernels.npz"

SETS = ("plain", "heavy tails", "wide", "subnormal", "huge", "bits", "ties")
NVFP4 = {"NVFP4 0.47": (0, 47), "NVFP4 0.48": (0, 48)}
MX = tuple(row for row in TABLE if row.amax == "none")

#: As the ModelOpt that is installed computes it.
quantize_nvfp4 = partial(fake_quantize_nvfp4, arithmetic=read_arithmetic())

tensor_quant = import_modelopt("modelopt.torch.quantization.tensor_quant")
qtensor = import_modelopt("modelopt.torch.quantization.qtensor")


@pytest.fixture(scope="module")
def recorded() -> dict[str, torch.Tensor]:
    with np.load(RECORDED) as stored:
        return {name: torch.from_numpy(stored[name]) for name in stored.files}


def emulate(name: str, row: torch.Tensor) -> torch.Tensor:
    """Return what the emulation gives for values in a row, called as the recording called them."""
    if name in NVFP4:
        arithmetic = ARITHMETIC[NVFP4[name]]
        found = fake_quantize_nvfp4(row.reshape(-1, 64), row.abs().amax(), arithmetic=arithmetic)
        return found.reshape(-1)
    if name == "NVFP4 static":
        ranges = row.reshape(-1, 16).abs().amax(dim=1)
        found, later = (
            fake_quantize_static_nvfp4(row, ranges, arithmetic=a) for a in ARITHMETIC.values()
        )
        assert torch.equal(found, later)
        return found
    kind = find_format(name)
    assert kind is not None
    return fake_quantize_mx(row, element=kind)


@pytest.mark.parametrize("name", [*(row.name for row in MX), *NVFP4, "NVFP4 static"])
@pytest.mark.parametrize("index", range(len(SETS)), ids=SETS)
def test_every_bit_is_that_of_modelopts_kernels(
    name: str, index: int, recorded: dict[str, torch.Tensor]
) -> None:
    found = emulate(name, recorded["inputs"][index])

    assert torch.equal(found, recorded[name][index])
    assert found.abs().sum() > 0 or SETS[index] == "subnormal"


@pytest.mark.parametrize("arithmetic", ARITHMETIC.values(), ids=["0.47", "0.48"])
@pytest.mark.parametrize("amax", [0.0, -1.0, torch.inf, torch.nan])
def test_blocks_are_scaled_by_1_under_no_range(amax: float, arithmetic: Arithmetic) -> None:
    """As the kernels of both releases do, each in its own way."""
    values = torch.tensor([[0.2, 0.6, -1.6, 9.0] + [0.0] * 12])

    found = fake_quantize_nvfp4(values, torch.tensor(amax), arithmetic=arithmetic)

    assert found[0, :4].tolist() == [0.0, 0.5, -1.5, 6.0]


def test_a_block_that_is_next_to_nothing_counts_since_048() -> None:
    small = torch.full((1, 16), 6e-6)
    tiny = torch.tensor([[1.7] + [0.0] * 15])  # its scale is 0 under a range of a million
    before, since = ARITHMETIC.values()

    def run(values: torch.Tensor, amax: float, arithmetic: Arithmetic) -> float:
        found = fake_quantize_nvfp4(values, torch.tensor(amax), arithmetic=arithmetic)
        return float(found[0, 0])

    assert run(small, 6e-6, before) == 0
    assert run(small, 6e-6, since) == pytest.approx(6e-6, rel=1e-6)
    assert (run(tiny, 1e6, before), run(tiny, 1e6, since)) == (1.5, 0)


# -- ModelOpt's tensors of packed codes, which run on a CPU ------------------------------


def make_values(kind: str) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    plain = torch.randn(32, 256, generator=generator)
    codes = torch.randint(-96, 97, (32, 256), generator=generator) / 16
    found = {
        "plain": plain,
        "heavy tails": plain**7,
        "small": plain * 1e-2,
        "zero blocks": torch.where(torch.arange(256) % 64 < 32, 0.0, plain),
        "ties": codes * torch.exp2(torch.randint(-6, 6, (32, 1), generator=generator).float()),
        "subnormal": plain * 1e-39,
        "wide": plain * torch.exp2(torch.randint(-90, 90, (32, 256), generator=generator).float()),
    }
    return found[kind]


def pack_nvfp4(values: torch.Tensor) -> torch.Tensor:
    packed, scales, tensor_scale = qtensor.NVFP4QTensor.quantize(values.clone(), 16)
    found: torch.Tensor = packed.dequantize(
        dtype=torch.float32, scale=scales, double_scale=tensor_scale, block_sizes={-1: 16}
    )
    return found


def pack_mxfp8(values: torch.Tensor) -> torch.Tensor:
    packed, scales = qtensor.MXFP8QTensor.quantize(values.clone())
    found: torch.Tensor = packed.dequantize(dtype=torch.float32, scale=scales)
    return found


@pytest.mark.parametrize("kind", ["plain", "heavy tails", "small", "zero blocks", "ties"])
def test_nvfp4_is_what_the_packed_codes_mean(kind: str) -> None:
    values = make_values(kind)

    assert torch.equal(quantize_nvfp4(values, values.abs().amax()), pack_nvfp4(values))


@pytest.mark.parametrize("kind", ["plain", "zero blocks", "ties", "subnormal", "wide"])
def test_mxfp8_is_what_the_packed_codes_mean(kind: str) -> None:
    values = make_values(kind)

    assert torch.equal(fake_quantize_mx(values, element=MXFP8), pack_mxfp8(values))


def test_where_modelopt_itself_is_not_one_the_kernel_counts() -> None:
    """Its packed tensors give NaN for zeros, keep what the kernel drops, and break ties down."""
    zeros = torch.zeros(2, 32)
    assert bool(pack_nvfp4(zeros).isnan().all())
    assert torch.equal(quantize_nvfp4(zeros, zeros.amax()), zeros)

    small = torch.full((1, 16), 1e-6)
    assert bool((pack_nvfp4(small) > 0).all())
    before = ARITHMETIC[0, 47]
    assert not fake_quantize_nvfp4(small, small.amax(), arithmetic=before).any()

    tie = torch.tensor([[6.0, 1.75, 0.75] + [0.0] * 29])
    mxfp4 = find_format("MXFP4")
    assert mxfp4 is not None
    assert fake_quantize_mx(tie, element=mxfp4)[0, 1:3].tolist() == [2.0, 1.0]


# -- what must hold for any values ------------------------------


@given(
    st.sampled_from(MX),
    st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=70),
)
def test_microscaling_rounds_to_within_half_a_step(kind: NumberFormat, values: list[float]) -> None:
    x = torch.tensor([values])
    y = fake_quantize_mx(x, element=kind)

    assert torch.equal(fake_quantize_mx(y, element=kind), y)
    assert torch.equal(fake_quantize_mx(-x, element=kind), -y)
    assert y.shape == x.shape
    for start in range(0, len(values), 32):
        block, found = x[0, start : start + 32], y[0, start : start + 32]
        # The scale leaves the largest magnitude above half of the largest value, so the coarsest
        # step is at most 4 half steps of it.
        worst = 4 * min(kind.half_step, 1.0) * float(block.abs().max())
        assert float((block - found).abs().max()) <= worst + 1e-37


@given(st.lists(st.floats(-(2.0**14), 2.0**14, width=32), min_size=1, max_size=50))
def test_nvfp4_stays_within_its_range(values: list[float]) -> None:
    x = torch.tensor([values])
    amax = x.abs().amax()
    y = quantize_nvfp4(x, amax)

    assert bool((y.abs() <= amax * 1.07).all())  # the scale of a block is rounded up by 1 in 16
    assert bool((y * x >= 0).all())
    padded = quantize_nvfp4(torch.nn.functional.pad(x, (0, 32)), amax)
    assert torch.equal(padded[:, : len(values)], y)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_type_and_shape_stay(dtype: torch.dtype) -> None:
    x = torch.randn(2, 3, 40, generator=torch.Generator().manual_seed(0)).to(dtype)

    for y in (quantize_nvfp4(x, x.abs().amax()), fake_quantize_mx(x, element=MXFP8)):
        assert (y.dtype, y.shape) == (dtype, x.shape)
        assert 0 < float((x - y).abs().max()) < 0.6


def test_nan_is_never_made_a_number() -> None:
    x = torch.ones(1, 32)
    x[0, 5] = torch.nan
    for row in MX:
        y = fake_quantize_mx(x, element=row)
        assert bool(y.isnan()[0, 5])
        assert int(y.isnan().sum()) == 1
    assert bool(quantize_nvfp4(x, torch.tensor(1.0)).isnan()[0, 5])


# -- in ModelOpt's place ------------------------------


def make_quantizer(**settings: Any) -> Any:
    attributes = import_modelopt("modelopt.torch.quantization.config").QuantizerAttributeConfig
    return import_modelopt("modelopt.torch.quantization.nn").TensorQuantizer(attributes(**settings))


def test_modelopt_is_left_as_it_was() -> None:
    before = dict(vars(tensor_quant))

    def fail() -> None:
        with emulated_kernels():
            with emulated_kernels():
                assert tensor_quant.triton_kernel.IS_AVAILABLE
            assert tensor_quant.triton_kernel.__name__ == before["triton_kernel"].__name__
            raise KeyError("stop")

    with pytest.raises(KeyError, match="stop"):
        fail()
    assert dict(vars(tensor_quant)) == before


@pytest.mark.parametrize("row", MX, ids=lambda row: row.name)
def test_a_quantizer_of_modelopts_computes_it(row: NumberFormat) -> None:
    blocks = {-1: 32, "type": "dynamic", "scale_bits": (8, 0)}
    quantizer = make_quantizer(num_bits=row.num_bits, block_sizes=blocks)
    value = make_values("plain")

    with quiet_libraries(), pytest.raises(RuntimeError, match="modelopt_cuda_ext_mx"):
        quantizer(value)
    with emulated_kernels():
        assert torch.equal(quantizer(value), fake_quantize_mx(value, element=row))


def test_a_quantizer_of_modelopts_keeps_its_range_of_the_tensor() -> None:
    blocks = {-1: 16, "type": "dynamic", "scale_bits": (4, 3)}
    quantizer = make_quantizer(num_bits=(2, 1), block_sizes=blocks)
    quantizer.amax = torch.tensor(2.0)
    value = make_values("plain")

    with emulated_kernels():
        assert torch.equal(quantizer(value), quantize_nvfp4(value, torch.tensor(2.0)))
        with pytest.raises(NotImplementedError, match=r"scale_bits \(5, 2\) .* not emulated"):
            tensor_quant.dynamic_block_quantize_op(value, 16, torch.tensor(2.0), 4, 2, 8, 5)


def test_a_variant_says_that_it_was_emulated_and_restores_with_it(
    make_quantized: MakeQuantized, tiny_fp16: Encoder, make_pairs: MakePairs, tmp_path: Path
) -> None:
    model = make_quantized("nvfp4")
    inputs = make_pairs(seed=4)[0].inputs

    assert model.notes[:-1] == tiny_fp16.notes
    assert model.notes[-1] == (
        "NVFP4 was computed on this CPU by pytest-quantgate's own arithmetic, which equals that of "
        "ModelOpt's kernels: those need an NVIDIA GPU"
    )
    save_checkpoint(model, tmp_path / "saved")
    restored = load_checkpoint(tmp_path / "saved", fp16=tiny_fp16)
    assert restored.notes == model.notes
    for tower in model.tower_names:
        found = model.encode(tower, inputs[tower])
        assert torch.equal(restored.encode(tower, inputs[tower]), found)
        assert not torch.equal(tiny_fp16.encode(tower, inputs[tower]), found)


def test_what_modelopt_computes_on_a_cpu_is_computed_faster_to_the_same_bits(
    make_quantized: MakeQuantized, tiny_fp16: Encoder, make_pairs: MakePairs
) -> None:
    model = make_quantized("fp8-attention")
    inputs = make_pairs(seed=4)[0].inputs

    assert model.notes == tiny_fp16.notes
    assert model.forward_context is emulated_kernels
    for tower in model.tower_names:
        own = replace(model, forward_context=nullcontext).encode(tower, inputs[tower])
        assert torch.equal(model.encode(tower, inputs[tower]), own)


def call_operator(*arguments: Any, **named: Any) -> torch.Tensor:
    value = make_values("plain")
    with emulated_kernels():
        found: torch.Tensor = tensor_quant.dynamic_block_quantize_op(value, 16, *arguments, **named)
    return found


@pytest.mark.parametrize(
    ("version", "later"),
    [
        ("0.47.0", ()),
        ("0.48.0rc1", ("Half", "dynamic")),
        ("0.48.0rc1", (None, None)),
    ],
)
def test_the_operator_is_called_as_each_release_calls_it(
    version: str, later: tuple[str | None, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """0.48 adds two arguments, which are for the graph that is exported."""
    monkeypatch.setattr("importlib.metadata.version", lambda _name: version)
    amax, bits = torch.tensor(2.0), (4, 2, 8, 4)
    arithmetic = ARITHMETIC[0, int(version[2:4])]
    expected = fake_quantize_nvfp4(make_values("plain"), amax, arithmetic=arithmetic)

    assert torch.equal(call_operator(amax, *bits, *later), expected)
    names = dict(zip(("trt_high_precision_dtype", "onnx_quantizer_type"), later, strict=False))
    assert torch.equal(call_operator(amax, *bits, **names), expected)


def test_an_argument_that_no_known_release_has_is_not_passed_over() -> None:
    with pytest.raises(TypeError, match="rounding"):
        call_operator(torch.tensor(2.0), 4, 2, 8, 4, rounding="stochastic")


@pytest.mark.parametrize(
    ("version", "least_range", "least_block_scale"),
    [
        ("0.47.0", 2.0**-24, 1e-5),
        ("0.47.3", 2.0**-24, 1e-5),
        ("0.48.0rc1", 448 / torch.finfo(torch.float32).max, 0.0),
        ("0.48.1", 448 / torch.finfo(torch.float32).max, 0.0),
    ],
)
def test_the_arithmetic_is_that_of_the_release(
    version: str, least_range: float, least_block_scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda _name: version)

    assert read_arithmetic() == Arithmetic(
        least_range=least_range, least_block_scale=least_block_scale
    )


def test_a_release_that_takes_other_ranges_for_none_computes_itself(
    make_quantized: MakeQuantized, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The version says which ranges count; where ModelOpt's own code says another, it is asked."""
    plain = replace(make_quantized("fp8"), forward_context=nullcontext)
    assert with_emulation(plain) is not plain
    other = "0.48.0" if read_arithmetic() == ARITHMETIC[0, 47] else "0.47.0"
    monkeypatch.setattr("importlib.metadata.version", lambda _name: other)

    assert with_emulation(plain) is plain


def test_a_modelopt_that_rounds_otherwise_computes_itself(
    make_quantized: MakeQuantized, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = make_quantized("fp8")
    own = tensor_quant.fp8_eager
    monkeypatch.setattr(tensor_quant, "fp8_eager", lambda x, amax: own(x, amax).nextafter(x))
    plain = replace(model, forward_context=nullcontext)

    assert with_emulation(plain) is plain


def test_quantizers_that_are_off_need_no_emulation(make_quantized: MakeQuantized) -> None:
    model = make_quantized("mxfp8")
    for quantizer in find_quantizers(model.module).values():
        quantizer.disable()

    assert with_emulation(model) is model


@pytest.mark.parametrize(("device", "emulated"), [("cpu", True), ("meta", False)])
def test_only_on_a_cpu(device: str, emulated: bool) -> None:
    module = torch.nn.Linear(4, 4, device=device)
    before = tensor_quant.triton_kernel

    with kernels_for(["NVFP4", "E4M3"], module=module):
        assert (tensor_quant.triton_kernel is not before) == emulated
    if emulated:
        require_kernels(["NVFP4", "MXFP8"], module=module)
        return
    with pytest.raises(
        NotMeasured,
        match=r"^ModelOpt computes NVFP4 and MXFP8 on an NVIDIA GPU alone, and this model is on "
        r"the meta: run on a machine with such a GPU$",
    ):
        require_kernels(["NVFP4", "E4M3", "MXFP8"], module=module)


def test_the_emulation_is_part_of_every_key() -> None:
    """Its file counts as code that measures, and the device tells a GPU's numbers from these."""
    assert not "quantization/emulation.py".startswith(JUDGING)
