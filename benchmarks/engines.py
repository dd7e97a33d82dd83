"""What TensorRT for RTX makes of CLIPs at real size, FP8 against FP16, without a GPU.

    python -m benchmarks.engines [--size B/32 ...] [--target sm89 ...]    # writes engines.md

Random weights (seeded), `fp8-attention` with nothing excluded and softmax pairs declared. Exits
with 1 where a ratio is over its limit or attention is not fused in FP8 in every
block. For B/32 the export is timed against ModelOpt's own exporter in the same run.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.random_clip import make_checkpoint, make_pairs

#: Limits of plan and weights against FP16. The token embedding of the text tower stays FP16.
LIMITS = {
    ("B/32", "vision"): (0.58, 0.51),
    ("B/32", "text"): (0.78, 0.71),
    ("L/14", "vision"): (0.55, 0.51),
    ("L/14", "text"): (0.70, 0.66),
}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", nargs="+", default=["B/32", "L/14"])
    parser.add_argument("--target", nargs="+", default=["sm89", "sm120"])
    parser.add_argument("--report", type=Path, default=Path(__file__).with_suffix(".md"))
    arguments = parser.parse_args()
    rows: list[str] = []
    notes: list[str] = []
    problems: list[str] = []
    for size in arguments.size:
        with tempfile.TemporaryDirectory(prefix="quantgate-engines-") as folder:
            measure(size, Path(folder), arguments.target, rows, notes, problems)
    write_report(arguments.report, rows=rows, notes=notes, problems=problems)
    return 1 if problems else 0


def measure(
    size: str,
    folder: Path,
    targets: list[str],
    rows: list[str],
    notes: list[str],
    problems: list[str],
) -> None:
    from pytest_quantgate.encoders.loading import load_fp16
    from pytest_quantgate.quantization.quantize import quantize
    from pytest_quantgate.quantization.recipes import resolve_recipe
    from pytest_quantgate.runtimes.engine import build_engine
    from pytest_quantgate.runtimes.onnx_export import export_tower
    from pytest_quantgate.runtimes.tensorrt_library import load_library
    from pytest_quantgate.suite.specs import ModelSpec, QuantizeSpec
    from pytest_quantgate.suite.where import Where

    make_checkpoint(folder / "fp16", size=size)
    where = Where(file="benchmarks/engines.py", line=0)
    fp16 = load_fp16(ModelSpec(where=where, source="transformers", id=str(folder / "fp16")))
    recipe = resolve_recipe(QuantizeSpec(where=where, recipe="fp8-attention"))
    pairs = make_pairs(fp16, count=8, batch_size=4)
    quantized = quantize(fp16, recipe=recipe, batches=pairs).model
    library = load_library(name="tensorrt_rtx")
    for tower in ("vision", "text"):
        paths = {}
        for name, model in (("FP16", fp16), ("FP8", quantized)):
            paths[name] = folder / f"{tower}-{name}.onnx"
            found = export_tower(
                model,
                tower=tower,
                path=paths[name],
                dynamic_batch=False,
                precision="float16",
                softmax=name == "FP8",
            )
            notes.append(
                f"{size} {tower} {name}: exported in {found.seconds:.1f} s, "
                f"{found.file_bytes / 1e6:.1f} MB"
            )
            print(notes[-1], flush=True)
        for target in targets:
            reports = {
                name: build_engine(
                    onnx_path=path,
                    plan_path=folder / "plan",
                    library=library,
                    target=target,
                )
                for name, path in paths.items()
            }
            rows.append(show(size, tower, target, reports, problems))
            print(rows[-1], flush=True)
    if size == "B/32":
        notes.append(compare_exporters(fp16, quantized, folder))
        print(notes[-1], flush=True)


def show(size: str, tower: str, target: str, reports: dict[str, Any], problems: list[str]) -> str:
    before, after = reports["FP16"], reports["FP8"]
    plan, weights, activation = (
        getattr(after, f"{name}_bytes") / getattr(before, f"{name}_bytes")
        for name in ("plan", "weights", "activation")
    )
    fused = sum(found.state == "fused-fp8" for found in after.attentions)
    label = f"{size} {tower} {target}"
    max_plan, max_weights = LIMITS[size, tower]
    if plan > max_plan or weights > max_weights:
        problems.append(f"{label}: plan {plan:.3f}x, weights {weights:.3f}x over the limits")
    if fused != len(after.attentions) or not fused:
        problems.append(f"{label}: {fused} of {len(after.attentions)} attention blocks fused")
    sizes = " / ".join(
        f"{report.plan_bytes / 1e6:.1f}, {report.weights_bytes / 1e6:.1f}, "
        f"{report.activation_bytes / 1e6:.1f}"
        for report in (before, after)
    )
    return (
        f"| {size} {tower} | {target} | {sizes} | {plan:.3f}x | {weights:.3f}x | {activation:.2f}x "
        f"| {after.fp8_gemm_nodes} of {after.gemm_nodes} | {fused} of {len(after.attentions)} "
        f"| {before.build_s:.1f}, {after.build_s:.1f} |"
    )


def compare_exporters(fp16: Any, quantized: Any, folder: Path) -> str:
    """Return how long one tower takes here and with ModelOpt's exporter (recipe fp8: its export
    of attention quantizers fails on transformers 5)."""
    import torch
    from modelopt.torch._deploy.utils import get_onnx_bytes_and_metadata

    from pytest_quantgate.encoders.loading import quiet_libraries
    from pytest_quantgate.quantization.quantize import quantize
    from pytest_quantgate.quantization.recipes import resolve_recipe
    from pytest_quantgate.runtimes.onnx_export import export_tower
    from pytest_quantgate.suite.specs import QuantizeSpec
    from pytest_quantgate.suite.where import Where

    where = Where(file="benchmarks/engines.py", line=0)
    recipe = resolve_recipe(QuantizeSpec(where=where, recipe="fp8"))
    pairs = make_pairs(fp16, count=4, batch_size=4)
    plain = quantize(fp16, recipe=recipe, batches=pairs).model

    class Vision(torch.nn.Module):
        def __init__(self, module: Any) -> None:
            super().__init__()
            self.vision_model, self.visual_projection = (
                module.vision_model,
                module.visual_projection,
            )

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            pooled = self.vision_model(pixel_values=pixel_values).pooler_output
            return self.visual_projection(pooled)  # type: ignore[no-any-return]

    ours = export_tower(plain, tower="vision", path=folder / "ours.onnx", dynamic_batch=False)
    module = Vision(replace(plain).module).eval()
    started = time.perf_counter()
    with quiet_libraries():
        get_onnx_bytes_and_metadata(
            module,
            (pairs[0].pixel_values[:1],),
            weights_dtype="fp32",
            model_name="v",
            onnx_opset=20,
        )
    theirs_s = time.perf_counter() - started
    return (
        f"B/32 vision, recipe fp8, float32: exported here in {ours.seconds:.1f} s, by ModelOpt "
        f"{metadata.version('nvidia-modelopt')} in {theirs_s:.1f} s "
        f"({ours.seconds / theirs_s:.2f}x)"
    )


def write_report(path: Path, *, rows: list[str], notes: list[str], problems: list[str]) -> None:
    packages = ("torch", "transformers", "nvidia-modelopt", "onnx", "tensorrt-rtx-cu12")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in packages)
    lines = [
        "# Engines at real size",
        "",
        "Made by `python -m benchmarks.engines`: FP8 with attention (nothing excluded, softmax",
        "pairs declared) against FP16, batch 1, random weights. MB = 10^6 bytes: plan, weights,",
        "activations. Linear layers and attention blocks are those of the FP8 engine.",
        "",
        f"{os.cpu_count()} cores ({platform.machine()}), no GPU, Python "
        f"{platform.python_version()}, {versions}.",
        "",
        "| tower | target | FP16 / FP8, MB | plan | weights | activations | linear in FP8 "
        "| attention fused in FP8 | build s |",
        "|---|---|---|---|---|---|---|---|---|",
        *rows,
        "",
        *(f"- {note}" for note in notes),
        "",
        "All within the limits." if not problems else "Over the limits:",
        *(f"- {problem}" for problem in problems),
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
