"""4-bit codes in each tool's layout: every one is read back as the tool that packed it means it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pytest_quantgate.artifacts.packed_codes import PackedCodes, find_packed
from pytest_quantgate.artifacts.safetensors_file import read_header
from pytest_quantgate.quantization.modelopt import import_modelopt

pack_int4 = import_modelopt("modelopt.torch.export.quant_utils").pack_int4_in_uint8
NVFP4QTensor = import_modelopt("modelopt.torch.quantization.qtensor").NVFP4QTensor

NAME = "layer.weight"
WEIGHT = torch.randn(8, 64, generator=torch.Generator().manual_seed(3))


def read(path: Path, **tensors: torch.Tensor) -> PackedCodes | None:
    save_file({f"layer.{name}": t.contiguous() for name, t in tensors.items()}, path / "m.st")
    return find_packed(read_header(path / "m.st"), name=NAME, module="layer")


@pytest.mark.parametrize("inverse", [False, True], ids=["modelopt", "compressed-tensors"])
def test_nvfp4_is_dequantized_as_modelopt_does(tmp_path: Path, inverse: bool) -> None:
    packed, scale, whole = NVFP4QTensor.quantize(WEIGHT, 16)
    wanted = packed.dequantize(
        dtype=torch.float32, scale=scale, double_scale=whole, block_sizes={-1: 16}
    )

    factor = {"weight_global_scale": 1 / whole} if inverse else {"weight_scale_2": whole}
    found = read(tmp_path, weight=packed._quantized_data, weight_scale=scale, **factor)

    assert found is not None
    assert (found.format, found.shape, found.block, found.fits) == ("NVFP4", (8, 64), 16, True)
    weight = found.dequantize()
    assert weight is not None
    np.testing.assert_allclose(weight, wanted.numpy(), rtol=1e-6)


def test_int4_of_modelopt_packs_two_rows_in_a_byte(tmp_path: Path) -> None:
    scale = WEIGHT.reshape(8, 2, 32).abs().amax(-1) / 7
    codes = (WEIGHT.reshape(8, 2, 32) / scale[..., None]).round()

    found = read(tmp_path, weight=pack_int4(WEIGHT, scale, 32), weight_scale=scale)

    assert found is not None
    assert (found.format, found.shape, found.block, found.fits) == ("INT4", (8, 64), 32, True)
    np.testing.assert_array_equal(found.read_codes(), codes.reshape(8, 64).numpy())


@pytest.mark.parametrize("columns", [64, 60])
def test_int4_of_compressed_tensors_is_eight_codes_a_number(tmp_path: Path, columns: int) -> None:
    codes = torch.randint(-8, 8, (8, columns), generator=torch.Generator().manual_seed(5))
    padded = torch.nn.functional.pad(codes + 8, (0, 64 - columns))
    numbers = sum(padded[:, place::8] << (4 * place) for place in range(8))
    packed = torch.from_numpy(np.asarray(numbers).astype("u4").view("i4"))

    found = read(
        tmp_path,
        weight=packed,
        weight_scale=torch.ones(8, columns // 4),
        weight_shape=torch.tensor([8, columns]),
    )

    assert found is not None
    assert (found.shape, found.block) == ((8, columns), 4)
    np.testing.assert_array_equal(found.read_codes(), codes.numpy())


def test_mxfp4_has_powers_of_two_as_scales(tmp_path: Path) -> None:
    packed = torch.full((2, 16), 0x72, dtype=torch.uint8)  # 1 in the low half, 6 in the high one
    scale = torch.tensor([[127], [130]], dtype=torch.uint8)

    found = read(tmp_path, weight=packed, weight_scale=scale)

    assert found is not None
    assert (found.format, found.block, found.fits) == ("MXFP4", 32, True)
    weight = found.dequantize()
    assert weight is not None
    assert weight[:, :2].tolist() == [[1, 6], [8, 48]]


@pytest.mark.parametrize("rows", [4, 16])
def test_scales_that_are_of_another_weight_fit_none(tmp_path: Path, rows: int) -> None:
    codes = torch.zeros(8, 32, dtype=torch.uint8)
    scale = torch.ones(rows, 4).to(torch.float8_e4m3fn)

    found = read(tmp_path, weight=codes, weight_scale=scale, weight_scale_2=torch.tensor(1.0))

    assert found is not None
    assert (found.block, found.fits, found.dequantize()) == (0, False, None)


def test_one_scale_for_all_is_none_of_blocks(tmp_path: Path) -> None:
    codes = torch.ones(2, 8, dtype=torch.uint8)

    alone = read(tmp_path, weight=codes, weight_scale=torch.tensor(1.0).to(torch.float8_e4m3fn))
    assert alone is not None
    assert (alone.block, alone.summarize().largest) == (0, (0.5,))

    nothing = torch.ones(0, 1).to(torch.float8_e4m3fn)
    assert read(tmp_path, weight=codes[:0], weight_scale=nothing) is None
