"""Holds `quantgate repair` against an exhaustive search, on five planted problems.

    python -m benchmarks.repair [--problems NAME,…]       # writes benchmarks/repair.md

Each problem is a suite of the reference CLIP whose INT8 recipe breaks a limit of its fidelity gate
in one place, or in two at once. The exhaustive search has whole transformer blocks, the patch
embedding and the projections for places: each stays as it is, goes to FP8 where it is narrower, or
to full precision, and all such mixes are tried from the smallest on, until one meets the limit.
Repair must find a recipe of at most 1.05 times its bytes, in ten minutes.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.plantings import replace_progress, save_model, scale_norm_channels

MOST_RATIO, MOST_SECONDS = 1.05, 600

SUITE = """\
quantgate: 1
model: {{source: transformers, id: "{model}", dtype: float32}}
calibration: {{data: scenes/calibration, samples: 64, batch_size: 32, held_out_samples: 64}}
quantize:
  recipe:
    algorithm: max
    quant_cfg:
      - {{quantizer_name: "*", enable: false}}
      - {{quantizer_name: "*weight_quantizer", parent_class: nn.Linear,
         cfg: {{num_bits: 8, axis: 0}}}}
      - {{quantizer_name: "*weight_quantizer", parent_class: nn.Conv2d,
         cfg: {{num_bits: 8, axis: 0}}}}
{more}
gates:
  fidelity: {{data: scenes/test, samples: 64, min_sqnr: {limit:g}dB}}
"""

INPUTS = """\
      - {quantizer_name: "*input_quantizer", parent_class: nn.Linear,
         cfg: {num_bits: 8, axis: null}}"""
COARSE = (
    '      - {{quantizer_name: "*{layer}weight_quantizer", cfg: {{num_bits: {bits}, axis: 0}}}}'
)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What is planted: layers of few bits, or a damage to the model before it is calibrated.

    `limit_db` lies below the SQNR of the recipe without it. Each of `together` is harmless alone.
    """

    name: str
    limit_db: float
    coarse: Mapping[str, int] = field(default_factory=dict)
    before: Callable[[Any], None] | None = None
    together: tuple[str, ...] = ()

    def to_suite(self, model: Path) -> str:
        lines = [COARSE.format(layer=layer, bits=bits) for layer, bits in self.coarse.items()]
        # The reference has outlier channels of its own, which 8 bits of inputs are too few for.
        more = "\n".join(lines) or INPUTS
        return SUITE.format(model=model, more=more, limit=self.limit_db)


_VISION = "vision_model.encoder.layers"

PROBLEMS = (
    Problem(
        name="outlier channels",
        limit_db=10,
        before=scale_norm_channels(f"{_VISION}.0", place=2, factor=256),
    ),
    Problem(name="one bad block", limit_db=20, coarse={f"{_VISION}.2.*": 3}),
    Problem(name="patch embedding", limit_db=20, coarse={"patch_embedding.": 2}),
    Problem(name="text projection", limit_db=20, coarse={"text_projection.": 2}),
    Problem(
        name="two layers together",
        limit_db=22.5,
        coarse={f"{_VISION}.1.mlp.*": 4, f"{_VISION}.2.mlp.*": 4},
        together=(f"{_VISION}.1.mlp.", f"{_VISION}.2.mlp."),
    ),
)


@dataclass(frozen=True, kw_only=True)
class Place:
    """Groups that the exhaustive search moves together; `narrow` are those of less than 8 bits."""

    groups: tuple[Any, ...]
    narrow: tuple[Any, ...]
    fp8_bytes: int

    @property
    def full_bytes(self) -> int:
        return sum(group.extra_bytes for group in self.groups)


@dataclass(frozen=True, kw_only=True)
class Row:
    """What both searches found, in bytes of all weights, and what they took."""

    problem: Problem
    bytes_before: int
    repaired_bytes: int
    exhaustive_bytes: int
    holds: bool
    changed: tuple[str, ...]
    verifications: int
    tried: int
    seconds: float
    exhaustive_seconds: float

    @property
    def ratio(self) -> float:
        return self.repaired_bytes / self.exhaustive_bytes

    @property
    def is_right(self) -> bool:
        return self.holds and self.ratio <= MOST_RATIO and self.seconds <= MOST_SECONDS

    def markdown(self) -> str:
        cells = (
            *(self.problem.name, f"{self.problem.limit_db:g} dB", ", ".join(self.changed)),
            *(f"{self.bytes_before:,}", f"{self.repaired_bytes:,}", f"{self.exhaustive_bytes:,}"),
            *(f"{self.ratio:.3f}", f"{self.seconds:.0f} s, {self.verifications}"),
            *(f"{self.exhaustive_seconds:.0f} s, {self.tried}", "yes" if self.is_right else "no"),
        )
        return f"| {' | '.join(cells)} |"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = [problem.name for problem in PROBLEMS]
    parser.add_argument("--problems", default=",".join(names))
    parser.add_argument("--report", type=Path, default=Path(__file__).with_suffix(".md"))
    arguments = parser.parse_args()
    wanted = arguments.problems.split(",")
    if unknown := set(wanted).difference(names):
        parser.error(f"no problem {', '.join(sorted(unknown))}; there are: {', '.join(names)}")
    lines = read_lines(arguments.report)
    for problem in PROBLEMS:
        if problem.name not in wanted:
            continue
        with tempfile.TemporaryDirectory(prefix="quantgate-repair-") as folder:
            row = try_problem(problem, folder=Path(folder))
        lines[problem.name] = row.markdown()
        print(row.markdown(), flush=True)
    arguments.report.write_text(write_page(lines), encoding="utf-8")
    return 0 if all(is_right(lines[name]) for name in wanted) else 1


def read_lines(report: Path) -> dict[str, str]:
    """Return the lines of a page by their problem: what is not run again stays."""
    text = report.read_text(encoding="utf-8") if report.exists() else ""
    names = {problem.name for problem in PROBLEMS}
    found = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("|")}
    return {name: line for name, line in found.items() if name in names}


def is_right(line: str) -> bool:
    return line.endswith("| yes |")


def try_problem(problem: Problem, *, folder: Path) -> Row:
    """Repair a problem, then search all mixes of places; raise SystemExit where none is planted."""
    from pytest_quantgate.measure.sensitivity import variant_bytes
    from pytest_quantgate.run.repair import mix, repair, with_recipe
    from pytest_quantgate.run.sensitivity import Study, without

    model = save_model(folder / "model", before=problem.before)
    case = open_case(folder, text=problem.to_suite(model))
    started = time.perf_counter()
    found = repair(case)
    seconds = time.perf_counter() - started
    study = Study(case)
    for layer in problem.together:
        quantizers = [q.name for q in case.audit.quantizers if layer in q.name and q.enabled]
        with without(case, frozenset(quantizers)) as other:
            if not all(verdict.passed for verdict in study.verdicts(other).values()):
                raise SystemExit(f"{problem.name}: what is left without {layer} hurts alone")
    before, repaired = found.weights_bytes
    started, tried = time.perf_counter(), 0
    groups = [effect.group for effect in study.measure(gate=None).effects]
    for extra, in_full, in_fp8 in list_mixes(find_places(case, groups)):
        tried += 1
        if not extra:
            if found.found.outcome == "none needed":
                raise SystemExit(f"{problem.name}: the limit holds, nothing is planted")
            continue
        mixed = with_recipe(case, mix(case, in_full=in_full, in_fp8=in_fp8))
        print(f"  {extra:,} bytes: {tried}", file=sys.stderr, flush=True)
        if all(verdict.passed for verdict in study.verdicts(mixed, until_red=True).values()):
            break
    return Row(
        problem=problem,
        bytes_before=before,
        repaired_bytes=repaired,
        exhaustive_bytes=variant_bytes(mixed.quantized)[0],
        holds=found.holds,
        changed=(
            *(f"{group.label} in full precision" for group in found.in_full),
            *(f"{group.label} in FP8" for group in found.in_fp8),
        ),
        verifications=found.verifications,
        tried=tried,
        seconds=seconds,
        exhaustive_seconds=time.perf_counter() - started,
    )


def find_places(case: Any, groups: list[Any]) -> list[Place]:
    """Return the blocks of each tower, and each group outside of them, with what moving costs."""
    from pytest_quantgate.formats.table import find_format
    from pytest_quantgate.measure.sensitivity import full_bytes_of

    known = {q.name: find_format(q.format) for q in case.audit.quantizers}
    formats = {name: kind for name, kind in known.items() if kind is not None}
    full_bits = 8 * full_bytes_of(case.quantized)

    def fp8_bytes(group: Any) -> float | None:
        """Return what FP8 costs a group that is narrower, None for any other."""
        bits = {formats[name].bits for name in group.quantizers if slot_is_weight(name)}
        if len(bits) != 1 or (narrow := bits.pop()) >= 8:
            return None
        return float(group.extra_bytes * (8 - narrow) / (full_bits - narrow))

    found: dict[object, list[Any]] = {}
    for group in groups:
        key = group.label if group.block is None else (group.tower, group.block)
        found.setdefault(key, []).append(group)
    places = []
    for together in found.values():
        costs = {group.label: fp8_bytes(group) for group in together}
        narrow = tuple(group for group in together if costs[group.label] is not None)
        total = round(sum(cost for cost in costs.values() if cost is not None))
        places.append(Place(groups=tuple(together), narrow=narrow, fp8_bytes=total))
    return places


def slot_is_weight(name: str) -> bool:
    return name.endswith("weight_quantizer")


def list_mixes(
    places: list[Place],
) -> Iterator[tuple[int, tuple[Any, ...], tuple[Any, ...]]]:
    """Yield (extra bytes, groups in full precision, groups in FP8) of all mixes, smallest first."""
    options = [
        [(0, "own"), (place.full_bytes, "full")]
        + ([(place.fp8_bytes, "fp8")] if place.narrow else [])
        for place in places
    ]
    for chosen in sorted(
        itertools.product(*options), key=lambda chosen: sum(cost for cost, _ in chosen)
    ):
        where = [(place, name) for place, (_, name) in zip(places, chosen, strict=True)]
        in_full = tuple(g for place, name in where if name == "full" for g in place.groups)
        in_fp8 = tuple(g for place, name in where if name == "fp8" for g in place.narrow)
        yield sum(cost for cost, _ in chosen), in_full, in_fp8


def open_case(folder: Path, *, text: str) -> Any:
    from pytest_quantgate.commands.case import open_case as open_suite

    suite = folder / "planted.quantgate.yaml"
    suite.write_text(text, encoding="utf-8")
    given = argparse.Namespace(suite=suite, cache_dir=folder / "cache", device="cpu")
    return replace_progress(open_suite(given, environ=os.environ))


#: What the table does not show.
LEAVES_OPEN = (
    "What this leaves open: each limit was set after the damaged and the undamaged variant were "
    "measured, between the two, so the problems have clear room and none lies at a limit. The one "
    "gate is fidelity on 64 pairs, which the search and the judgement share: no accuracy limit was "
    "tried. Mixes are ordered by predicted bytes, and the search ends at the first that meets the "
    "limit. Each problem ran once."
)


def write_page(lines: Mapping[str, str]) -> str:
    left = [problem.name for problem in PROBLEMS if problem.name not in lines]
    heads = (
        *("planted", "limit (SQNR)", "what repair changes", "bytes before", "repaired"),
        *("exhaustive", "ratio", "repair: time, variants", "exhaustive: time, mixes", "right"),
    )
    page = [
        "# Repair against an exhaustive search",
        "",
        "Made by `python -m benchmarks.repair`, in one run or several, last on "
        f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, seconds by the clock: five "
        "problems planted into the reference CLIP under an INT8 recipe. The exhaustive search "
        "tries all mixes of whole blocks, patch embedding and projections, the smallest first; "
        "repair moves parts of blocks, too, so its ratio can be below 1. Right: all limits hold "
        f"with the recipe as it is written, at most {MOST_RATIO:g} times the bytes, at most "
        f"{MOST_SECONDS} s.",
        "",
        f"**{sum(map(is_right, lines.values()))} of {len(lines)} right.**"
        + (f" Not run: {', '.join(left)}." if left else ""),
        "",
        f"| {' | '.join(heads)} |",
        f"|{'---|' * len(heads)}",
        *(lines[problem.name] for problem in PROBLEMS if problem.name in lines),
        "",
        LEAVES_OPEN,
        "",
    ]
    return "\n".join(page)


if __name__ == "__main__":
    sys.exit(main())
