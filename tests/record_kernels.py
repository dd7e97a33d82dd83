"""Records what ModelOpt's own kernels give, without a GPU: `python tests/record_kernels.py`.

`tests/unit/quantization/data/kernels.npz` was written by it with ModelOpt 0.47.0, and then with
0.48.0rc1, which computes all but NVFP4 in dynamic blocks as before. It needs g++ and Triton. Both
kernels are ModelOpt's own text:

- Microscaling: the functions of `tensor_quant_mx.cu` that are for the host too, compiled by g++
  for IEEE arithmetic (the kernel on a GPU is built with `--use_fast_math`).
- NVFP4: the kernels of `fp4_kernel_hopper.py` and `fp4_kernel.py` in Triton's interpreter. Block
  pointers, which Triton 3.9 has no more, are written as plain ones, and casts to E4M3 are those of
  ml_dtypes: the interpreter's own neither carry into the exponent nor round subnormal numbers.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import subprocess
import tempfile
import types
from importlib import metadata
from pathlib import Path
from typing import Any

os.environ["TRITON_INTERPRET"] = "1"

FILE = Path(__file__).parent / "unit" / "quantization" / "data" / "kernels.npz"

MX = {"MXFP8": 0, "MXFP8 E5M2": 1, "MXINT8": 2, "MXFP4": 6, "MXFP6": 7, "MXFP6 E2M3": 8}
SCALE = 9  # Types::E8M0

HOST_HEAD = """
#include <algorithm>
#include <bit>
#include <cfloat>
#include <climits>
#include <cmath>
#include <cstdint>
#include <stdexcept>
#include <tuple>
#include <cuda_fp16.h>
namespace cuda { namespace std {
using ::std::bit_width; using ::std::make_tuple; using ::std::tie; using ::std::tuple;
} }
using std::isinf; using std::isnan;
#include "tensor_quant_mx.h"
"""

HOST_TAIL = """
extern "C" void fake_quantize(const float *x, float *y, long n, int block, int type, int scale_type)
{
  for (long start = 0; start < n; start += block) {
    float amax = 0.f;
    for (long i = start; i < start + block; i++)
      amax = fmaxf(amax, fminf(fabsf(x[i]), FLT_MAX));
    auto [scale, unscale] = compute_scale(amax, (Types)type, (Types)scale_type);
    for (long i = start; i < start + block; i++)
      y[i] = quantize(x[i], scale, unscale, (Types)type);
  }
}
"""

TRITON_HEAD = """
import triton
import triton.language as tl
from modelopt.torch.kernels.quantization.common.nvfp4_quant import (
    fp4_round_magnitude, fp8_quantize_scale, nvfp4_scalar_quant
)

@triton.jit
def dynamic(x_ptr, y_ptr, global_scale_ptr, TILE_M: tl.constexpr, TILE_N: tl.constexpr,
            BLOCK_SIZE: tl.constexpr, NUM_FP4_BLOCKS: tl.constexpr):
    offsets = tl.arange(0, TILE_M)[:, None] * TILE_N + tl.arange(0, TILE_N)[None, :]
"""


def make_inputs() -> Any:
    """Return float32 [sets, values]: normal, heavy tails, wide ranges, subnormal, huge, bits, ties.

    Rows of 64: blocks of zeros and of one value are among them.
    """
    import numpy as np

    random = np.random.default_rng(7)
    size = 1024
    plain = random.standard_normal((5, size)).astype(np.float32)
    powers = np.exp2(random.integers(-100, 100, size)).astype(np.float32)
    bits = random.integers(0, 2**32, size, dtype=np.uint32).view(np.float32)
    codes = random.integers(-256, 257, size).astype(np.float32) / 8
    sets = [
        plain[0],
        plain[1] ** 7,
        plain[2] * powers,
        (plain[3] * np.float32(1e-39)).astype(np.float32),
        np.clip(plain[4], -3, 3) * np.float32(1e38),
        np.where(np.isfinite(bits), bits, np.float32(0)),
        codes * np.repeat(np.exp2(random.integers(-8, 8, size // 64)), 64).astype(np.float32),
    ]
    found = np.stack(sets).astype(np.float32)
    found[:, 64:96] = 0
    found[:, 128:159] = 0  # one value of a block, all others 0
    return found


def run_host(x: Any) -> dict[str, Any]:
    """Return what ModelOpt's Microscaling code gives, by the name of the format."""
    import numpy as np

    package = importlib.util.find_spec("modelopt")
    assert package is not None
    assert package.submodule_search_locations
    folder = Path(package.submodule_search_locations[0]) / "torch/kernels/quantization/gemm"
    text = (folder / "tensor_quant_mx.cu").read_text()
    body = text[text.index("namespace {") : text.index("template <int THREAD_X")]
    body = body[: body.rindex("namespace {")]
    with tempfile.TemporaryDirectory() as name:
        source, library = Path(name, "host.cpp"), Path(name, "host.so")
        source.write_text(HOST_HEAD + body + HOST_TAIL)
        triton = importlib.util.find_spec("triton")
        assert triton is not None
        assert triton.submodule_search_locations
        site = Path(triton.submodule_search_locations[0]).parent
        folders = [
            folder,
            site / "triton/backends/nvidia/include",
            *site.glob("nvidia/cu*/include/cccl"),
        ]
        flags = ["-std=c++20", "-O1", "-ffp-contract=off", "-shared", "-fPIC", "-w"]
        includes = [f"-I{path}" for path in folders]
        subprocess.run(["g++", *flags, *includes, str(source), "-o", str(library)], check=True)
        host = ctypes.CDLL(str(library))
    found = {}
    for kind, number in MX.items():
        y = np.empty_like(x)
        host.fake_quantize(
            x.ctypes.data_as(ctypes.c_void_p),
            y.ctypes.data_as(ctypes.c_void_p),
            ctypes.c_long(x.size),
            32,
            number,
            SCALE,
        )
        found[kind] = y
    return found


def run_triton(x: Any) -> dict[str, Any]:
    """Return what ModelOpt's NVFP4 kernels give: dynamic blocks, and static ones."""
    import ml_dtypes
    import numpy as np
    import torch
    import triton.language as tl
    from modelopt.torch.kernels.quantization.common import nvfp4_quant
    from modelopt.torch.kernels.quantization.gemm import fp4_kernel, fp4_kernel_hopper
    from triton.runtime import interpreter

    convert = interpreter._convert_float

    def convert_rightly(data: Any, source: Any, target: Any, mode: Any) -> Any:
        if (source, target) == (tl.float32, tl.float8e4nv):
            return data.astype(ml_dtypes.float8_e4m3fn).view(np.uint8)
        if (source, target) == (tl.float8e4nv, tl.float32):
            return data.view(ml_dtypes.float8_e4m3fn).astype(np.float32).view(np.uint32)
        return convert(data, source, target, mode)

    interpreter._convert_float = convert_rightly
    nvfp4_quant.libdevice = types.SimpleNamespace(isnan=lambda value: value != value)
    text = Path(str(fp4_kernel_hopper.__file__)).read_text()
    start = text.index("    global_scale = tl.load(global_scale_ptr)")
    end = text.index("    tl.store(y_block_ptr")
    body = text[start:end]
    load = 'tl.load(x_block_ptr, boundary_check=(0, 1), padding_option="zero")'
    assert load in body
    body = body.replace(load, "tl.load(x_ptr + offsets)")
    with tempfile.TemporaryDirectory() as name:
        source = Path(name, "recorded_kernel.py")
        source.write_text(f"{TRITON_HEAD}{body}    tl.store(y_ptr + offsets, tile_quant)\n")
        spec = importlib.util.spec_from_file_location("recorded_kernel", source)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        dynamic, static = [], []
        for row in torch.from_numpy(x):
            tile = row.reshape(-1, 64).contiguous()
            y = torch.empty_like(tile)
            scale = (tile.abs().amax().float() / (6.0 * 448.0)).reshape(1)
            module.dynamic[(1,)](
                tile, y, scale, TILE_M=len(tile), TILE_N=64, BLOCK_SIZE=16, NUM_FP4_BLOCKS=4
            )
            dynamic.append(y.reshape(-1).numpy().copy())
            # As `static_blockwise_fp4_fake_quant` calls it, but for its CUDA device.
            ranges = row.reshape(-1, 16).abs().amax(dim=1)
            scales = fp4_kernel.compute_fp4_scales(ranges, None, True)
            y = torch.empty_like(row)
            fp4_kernel.static_blockwise_fp4_fake_quant_kernel[(len(ranges),)](
                row.contiguous(), y, scales, len(ranges), 16, OUT_DTYPE=fp4_kernel.tl.float32
            )
            static.append(y.numpy().copy())
    return {"NVFP4": np.stack(dynamic), "NVFP4 static": np.stack(static)}


def main() -> None:
    """Add what this release gives to the file, where the same names hold the same values."""
    import numpy as np

    release = ".".join(metadata.version("nvidia-modelopt").split(".")[:2])
    x = make_inputs()
    found = {"inputs": x, **run_host(x), **run_triton(x)}
    found[f"NVFP4 {release}"] = found.pop("NVFP4")
    with np.load(FILE) as stored:
        before = {name: stored[name] for name in stored.files}
    for name in found.keys() & before.keys():
        if not np.array_equal(found[name].view(np.uint32), before[name].view(np.uint32)):
            raise SystemExit(f"{name} is not what the file has: keep both, by release")
    np.savez_compressed(FILE, **{**before, **found})
    print(f"{FILE}: {FILE.stat().st_size} bytes")


if __name__ == "__main__":
    main()
