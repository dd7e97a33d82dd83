"""Measures what `quantgate sensitivity` costs, in time and in units of one plain evaluation.

    python -m benchmarks.sensitivity          # about ten minutes; writes benchmarks/sensitivity.md

On the reference suite whole (ranking on 256 images, and the search for an exclusion with its
verifying evaluations, for a recipe that fails), and at ViT-B/32 size (random weights, seeded) on
64 images. A plain evaluation runs FP16 and the quantized variant once over the same samples.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import tempfile
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.random_clip import make_checkpoint
from pytest_quantgate.gates.fidelity import FidelityGate

MAX_SECONDS = {"reference": 180, "ViT-B/32": 900}

REFERENCE = Path(__file__).parents[1] / "suites" / "clip_reference.quantgate.yaml"

FAILING = """\
quantgate: 1
model: {source: reference}
calibration: {data: scenes/calibration, samples: 512, batch_size: 64}
quantize: {recipe: int8}
gates:
  accuracy:
    - {task: scenes/classification, metric: acc1, max_drop: 4pp, floor: 70%}
    - {task: digits/classification, metric: acc1, max_drop: 3pp, floor: 80%}
"""

LARGE = """\
quantgate: 1
model: {{source: transformers, id: "{model}"}}
calibration: {{data: scenes/calibration, samples: 32, batch_size: 16, held_out_samples: 16}}
quantize: {{recipe: fp8-attention, exclude: ["*patch_embedding*"]}}
gates:
  accuracy:
    - {{task: scenes/classification, metric: acc1, max_drop: 50pp, samples: 64}}
"""


@dataclass(frozen=True, kw_only=True)
class Row:
    name: str
    groups: int
    samples: int
    texts: int
    evaluation_s: float
    ranking_s: float
    evaluations: float
    exclusion: str
    search_s: float
    verifications: int
    cpu_s: float

    @property
    def total_s(self) -> float:
        return self.ranking_s + self.search_s

    def markdown(self) -> str:
        return (
            f"| {self.name} | {self.groups} | {self.samples} / {self.texts} | "
            f"{self.evaluation_s:.1f} | {self.ranking_s:.1f} | {self.evaluations:.1f} | "
            f"{self.ranking_s / self.evaluation_s:.1f} | {self.exclusion} | {self.verifications} | "
            f"{self.search_s:.1f} | {self.cpu_s:.0f} |"
        )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", choices=("reference", "large"))
    parser.add_argument("--report", type=Path, default=Path(__file__).with_suffix(".md"))
    arguments = parser.parse_args()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="quantgate-sensitivity-") as name:
        folder = Path(name)
        if arguments.only != "large":
            failing = folder / "failing.quantgate.yaml"
            failing.write_text(FAILING, encoding="utf-8")
            for label, suite in (("reference suite", REFERENCE), ("reference, int8", failing)):
                rows.append(measure(label, suite, folder=folder, samples=256))
                print(rows[-1].markdown(), flush=True)
        if arguments.only != "reference":
            make_checkpoint(folder / "model", size="B/32")
            large = folder / "large.quantgate.yaml"
            large.write_text(LARGE.format(model=folder / "model"), encoding="utf-8")
            rows.append(measure("ViT-B/32, random", large, folder=folder, samples=64))
            print(rows[-1].markdown(), flush=True)
    arguments.report.write_text(describe(rows), encoding="utf-8")
    limits = [MAX_SECONDS["ViT-B/32" if "ViT" in row.name else "reference"] for row in rows]
    return 0 if all(row.total_s <= limit for row, limit in zip(rows, limits, strict=True)) else 1


def measure(name: str, suite: Path, *, folder: Path, samples: int) -> Row:
    """Measure one suite with an empty cache; the gates' own evaluation is not counted."""
    from pytest_quantgate.commands.case import open_case
    from pytest_quantgate.run.progress import silent
    from pytest_quantgate.run.sensitivity import Study

    given = argparse.Namespace(suite=suite, cache_dir=folder / "cache", device="cpu")
    case = open_case(given, environ=os.environ)
    case.progress = silent()
    study = Study(case)
    gate = study.weakest_gate()  # evaluates every gate: what a run of pytest does before
    if case.suite.gates.one(FidelityGate):
        case.fidelity()
    evaluation_s = time_evaluation(study, gate, samples=samples)
    cpu_started, started = time.process_time(), time.perf_counter()
    found = study.measure(gate=gate, samples=samples)
    ranking_s = time.perf_counter() - started
    started = time.perf_counter()
    exclusion = study.propose(found)
    return Row(
        name=name,
        groups=len(found.effects),
        samples=found.samples,
        texts=found.texts,
        evaluation_s=evaluation_s,
        ranking_s=ranking_s,
        evaluations=found.evaluations,
        exclusion=f"{exclusion.outcome}, {len(exclusion.groups)} groups",
        search_s=time.perf_counter() - started,
        verifications=exclusion.verifications,
        cpu_s=time.process_time() - cpu_started,
    )


def time_evaluation(study: Any, gate: Any, *, samples: int) -> float:
    """Return the seconds of one forward of both variants over the samples of a study."""
    towers = study.towers(study.probe(gate, samples))
    started = time.perf_counter()
    for tower in towers:
        for batch in tower.batches:
            tower.fp16(batch)
            tower.quantized(batch)
    return time.perf_counter() - started


def describe(rows: list[Row]) -> str:
    import torch

    versions = ", ".join(
        f"{name} {metadata.version(name)}" for name in ("torch", "nvidia-modelopt", "transformers")
    )
    return "\n".join(
        [
            "# What `quantgate sensitivity` costs",
            "",
            f"`python -m benchmarks.sensitivity` on {os.cpu_count()} cores ({platform.machine()}), "
            f"{versions}, {torch.get_num_threads()} threads; load of the machine "
            f"{os.getloadavg()[0]:.1f} at the end (above the number of cores, seconds by the clock "
            f"say little: the CPU seconds of ranking and search together do).",
            "",
            "Seconds. *One evaluation* is FP16 and the quantized variant once over the same images "
            "and texts; *ranking* measures every group alone and left out; its cost is given in "
            "forwards, as planned, and in time. *Search* is the smallest exclusion with its "
            "verifying evaluations, on all samples of the suite's gates.",
            "",
            "| model | groups | images / texts | one evaluation | ranking | in evaluations | "
            "in its time | exclusion | verified | search | CPU seconds |",
            "|---|---|---|---|---|---|---|---|---|---|---|",
            *(row.markdown() for row in rows),
            "",
        ]
    )


if __name__ == "__main__":
    sys.exit(main())
