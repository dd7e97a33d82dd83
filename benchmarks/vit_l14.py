"""Shows that a ViT-L/14 CLIP goes through every stage on a two-core machine without a GPU.

    python -m benchmarks.vit_l14            # about five minutes; writes benchmarks/vit_l14.md

The weights are random (seeded), in the sizes of laion/CLIP-ViT-L-14-laion2B-s32B-b82K, so nothing
is downloaded. FP16 and FP8 with attention are built from the saved checkpoint, calibrated on 32
pairs, audited, saved, and restored in a new process, where outputs and every amax must be
identical. Fails above 10 minutes or 8 GiB (this process and its children together).
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path

from benchmarks.random_clip import make_checkpoint, make_pairs

MAX_SECONDS = 600
MAX_BYTES = 8 * 2**30
PAIRS = 32
HELD_OUT_PAIRS = 8
BATCH_SIZE = 8
RECIPE = "fp8-attention"
EXCLUDE = ("*patch_embedding*",)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--make-checkpoint", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--report", type=Path, default=Path(__file__).with_suffix(".md"))
    arguments = parser.parse_args()
    if arguments.make_checkpoint:
        make_checkpoint(arguments.make_checkpoint, size="L/14")
        return 0
    with tempfile.TemporaryDirectory(prefix="quantgate-vit-l14-") as folder:
        return run(Path(folder), threads=arguments.threads, report=arguments.report)


@dataclass(kw_only=True)
class Stages:
    """Seconds and the highest memory of each stage, sampled over this process and its children."""

    rows: list[tuple[str, float, int]] = field(default_factory=list)
    peak_bytes: int = 0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        done = threading.Event()
        highest = [0]

        def sample() -> None:
            while not done.wait(0.05):
                highest[0] = max(highest[0], resident_bytes(os.getpid()))

        sampler = threading.Thread(target=sample, daemon=True)
        sampler.start()
        begin = time.perf_counter()
        try:
            yield
        finally:
            seconds = time.perf_counter() - begin
            done.set()
            sampler.join()
            self.rows.append((name, seconds, highest[0]))
            self.peak_bytes = max(self.peak_bytes, highest[0])
            print(f"{name:<44} {seconds:7.1f} s   {highest[0] / 2**30:5.2f} GiB", flush=True)


def resident_bytes(pid: int) -> int:
    """Return the resident memory of a process and of all its children, in bytes (Linux)."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
        children = [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text(encoding="ascii").split()
        ]
    except (FileNotFoundError, ProcessLookupError):
        return 0  # it has ended meanwhile
    return pages * os.sysconf("SC_PAGE_SIZE") + sum(resident_bytes(child) for child in children)


def run(folder: Path, *, threads: int, report: Path) -> int:
    stages = Stages()
    checkpoint = folder / "fp16"
    begin = time.perf_counter()
    with stages.stage("make the random checkpoint (not counted)"):
        subprocess.run([sys.executable, __file__, "--make-checkpoint", str(checkpoint)], check=True)
    begin = time.perf_counter()
    stages.peak_bytes = 0
    with stages.stage("import"):
        import torch

        from pytest_quantgate.encoders.loading import load_fp16
        from pytest_quantgate.measure.audit import audit_quantizers
        from pytest_quantgate.measure.roundtrip import measure_roundtrip
        from pytest_quantgate.quantization.quantize import quantize
        from pytest_quantgate.quantization.recipes import resolve_recipe
        from pytest_quantgate.suite.specs import ModelSpec, QuantizeSpec
        from pytest_quantgate.suite.where import Where

        torch.set_num_threads(threads)
    where = Where(file="benchmarks/vit_l14.py", line=1)
    with stages.stage("load FP16"):
        fp16 = load_fp16(ModelSpec(where=where, source="transformers", id=str(checkpoint)))
        recipe = resolve_recipe(QuantizeSpec(where=where, recipe=RECIPE, exclude=EXCLUDE))
    with stages.stage(f"preprocess {PAIRS + HELD_OUT_PAIRS} pairs"):
        batches = make_pairs(fp16, count=PAIRS + HELD_OUT_PAIRS, batch_size=BATCH_SIZE)
    calibration, held_out = batches[: PAIRS // BATCH_SIZE], batches[PAIRS // BATCH_SIZE :]
    with stages.stage(f"quantize ({RECIPE}) and calibrate on {PAIRS} pairs"):
        quantized = quantize(fp16, recipe=recipe, exclude=EXCLUDE, batches=calibration)
    with stages.stage(f"audit, clipping on {HELD_OUT_PAIRS} held-out pairs"):
        audit = audit_quantizers(quantized.model, recipe=recipe, exclude=EXCLUDE, held_out=held_out)
    with stages.stage("save, restore in a new process, compare"):
        roundtrip = measure_roundtrip(
            quantized.model, batches=held_out, directory=folder / "roundtrip"
        )
    seconds = time.perf_counter() - begin
    called = sum(q.enabled and q.calls > 0 for q in audit.quantizers)
    enabled = sum(q.enabled for q in audit.quantizers)
    same = all(roundtrip.equal.values()) and not roundtrip.amax_different
    problems = [
        text
        for wrong, text in (
            (seconds > MAX_SECONDS, f"{seconds:.0f} s is over {MAX_SECONDS} s"),
            (stages.peak_bytes > MAX_BYTES, f"{stages.peak_bytes} bytes is over {MAX_BYTES}"),
            (not same, "the restored model is not identical"),
            (called < enabled, f"{enabled - called} enabled quantizers were never called"),
            (bool(roundtrip.accepted), f"accepted damage: {roundtrip.accepted}"),
        )
        if wrong
    ]
    facts = [
        f"{enabled} quantizers enabled, {called} of them called in their tower's forward; "
        f"{len(audit.operations)} matrix operations recorded",
        f"{roundtrip.amax_count} amax and both outputs identical after the restore: "
        f"{'yes' if same else 'NO'}; refused: {', '.join(roundtrip.refused)}",
        f"checkpoint {roundtrip.saved_bytes / 1e6:.0f} MB",
        f"total {seconds:.0f} s (limit {MAX_SECONDS} s), peak {stages.peak_bytes / 2**30:.2f} GiB "
        f"(limit {MAX_BYTES / 2**30:.0f} GiB): {'; '.join(problems) or 'within both'}",
    ]
    print(*facts, sep="\n")
    write_report(report, stages=stages, facts=facts, threads=threads)
    return 1 if problems else 0


def write_report(path: Path, *, stages: Stages, facts: list[str], threads: int) -> None:
    packages = ("torch", "transformers", "nvidia-modelopt")
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in packages)
    lines = [
        "# ViT-L/14 on a CPU",
        "",
        "Made by `python -m benchmarks.vit_l14`; the memory is the highest sum over the process",
        "and its children. Random weights in the sizes of laion/CLIP-ViT-L-14-laion2B-s32B-b82K.",
        "",
        f"{threads} threads on {os.cpu_count()} cores ({platform.machine()}), "
        f"Python {platform.python_version()}, {versions}.",
        "",
        "| stage | seconds | GiB |",
        "|---|---|---|",
        *(
            f"| {name} | {seconds:.1f} | {peak / 2**30:.2f} |"
            for name, seconds, peak in stages.rows
        ),
        "",
        *(f"- {fact}" for fact in facts),
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
