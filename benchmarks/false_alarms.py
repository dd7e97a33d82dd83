"""How often are good variants red? Variants that compute the same function, before the gates.

    .venv/bin/python -m benchmarks.false_alarms [--variants 200] [--data FOLDER] [--folder FOLDER]

Each variant is quantized anew from weights that give the same embeddings as the original up to
rounding: heads or MLP channels permuted, queries scaled and keys divided; or from other calibration
pairs, another order or batch size of them. Every fourth is INT8 with SmoothQuant, the others FP8
with attention. Judged are coverage, calibration, fidelity, accuracy, export and parity. The
reference model is always there, `clip-cifar10-tiny` where FOLDER holds it (QUANTGATE_TEST_DATA).

What was judged is kept in `--folder`, one line of JSON a variant, and is not judged again. Writes
false_alarms.md beside it and ends with 1 where any variant is not green.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from benchmarks.sabotage.bench import Bench
from benchmarks.sabotage.pipeline import Pipeline, PipelineCase
from pytest_quantgate.encoders.encoder import Batch, Encoder
from pytest_quantgate.evidence.sanity import Sanity
from pytest_quantgate.run.case import Case
from pytest_quantgate.run.inputs import computed_once
from pytest_quantgate.store.cache import Cache
from pytest_quantgate.tasks.registry import load_samples
from pytest_quantgate.tasks.samples import Samples

PAGE = Path(__file__).with_suffix(".md")
DATA = Path(os.environ.get("QUANTGATE_TEST_DATA", "no data"))
PACKAGES = ("torch", "transformers", "nvidia-modelopt", "onnx", "onnxruntime-gpu")

GATES = """\
gates:
  coverage: {attention: %(attention)s}
  calibration: {max_clipped: %(clipped)s}
  fidelity: {data: %(test)s, samples: 128, min_cosine: 0.99}
  accuracy:
    - {task: %(task)s, metric: acc1, samples: 500, max_drop: 5pp, max_flips: 15%%}
  export: {max_size_ratio: 0.8x%(allow)s}
  parity: {samples: 32}
"""
MODELS = {
    "reference": """\
quantgate: 1
model: {source: reference}
calibration: {data: scenes/calibration, samples: %(pairs)d, batch_size: 64, held_out_samples: 256}
quantize: {recipe: %(recipe)s, exclude: ["*patch_embedding*"]}
""",
    "clip-cifar10-tiny": """\
quantgate: 1
model: {source: transformers, id: "%(data)s/clip-cifar10-tiny"}
datasets:
  photos: {dataset: wds/photos, root: "%(data)s/cifar10"}
calibration: {data: photos/train, samples: %(pairs)d, batch_size: 64, held_out_samples: 256}
quantize: {recipe: %(recipe)s, exclude: ["*patch_embedding*"]}
""",
}
WORDS = {
    "reference": {"test": "scenes/test", "task": "scenes/classification"},
    "clip-cifar10-tiny": {"test": "photos/test", "task": "photos/classification"},
}
RECIPES = ("fp8-attention", "fp8-attention", "fp8-attention", "int8-smoothquant")

#: SmoothQuant divides each channel by its own largest calibrated value, which a new sample is over
#: in one of n + 1 cases, n being the distinct samples that calibrated: 0.5 % of 192 pictures, and
#: some 3 % where captions repeat.
SMOOTH_CLIPPED = "5%"

#: Pairs to draw calibration samples from, and how many a variant takes.
POOL, TAKEN = 384, 192
BATCHES = (16, 32, 64, 192)

#: What the gates of interest compare with their limits, by the name of the figure.
FIGURES = (
    "worst_clipped_share",
    "worst_clipped_high",
    "vision_batch_change",
    "text_batch_change",
    "vision_parity_error",
    "text_parity_error",
    "vision_parity_floor",
    "text_parity_floor",
    "vision_worst_block_error",
    "text_worst_block_error",
    "largest_activation",
)


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What the gates said of one variant: those that were not green, with their headlines."""

    model: str
    number: int
    kind: str
    recipe: str
    red: Mapping[str, str]
    figures: Mapping[str, float]
    seconds: float


# -- the same function ----------------------------------------------------------------------------


def encoder_layers(module: Any) -> Iterator[Any]:
    for tower in (module.vision_model, module.text_model):
        yield from tower.encoder.layers


def permute_heads(module: Any, generator: torch.Generator) -> None:
    for layer in encoder_layers(module):
        attention = layer.self_attn
        heads, size = attention.num_heads, attention.head_dim
        order = torch.randperm(heads, generator=generator)
        rows = (order[:, None] * size + torch.arange(size)).flatten()
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj):
            projection.weight.copy_(projection.weight[rows].clone())
            projection.bias.copy_(projection.bias[rows].clone())
        attention.out_proj.weight.copy_(attention.out_proj.weight[:, rows].clone())


def permute_channels(module: Any, generator: torch.Generator) -> None:
    for layer in encoder_layers(module):
        first, second = layer.mlp.fc1, layer.mlp.fc2
        order = torch.randperm(len(first.bias), generator=generator)
        first.weight.copy_(first.weight[order].clone())
        first.bias.copy_(first.bias[order].clone())
        second.weight.copy_(second.weight[:, order].clone())


def scale_queries(module: Any, generator: torch.Generator) -> None:
    """By up to 4 or 1/4, a block at a time; half of the factors are powers of two."""
    for layer in encoder_layers(module):
        factor = 4.0 ** (2 * float(torch.rand(1, generator=generator)) - 1)
        if float(torch.rand(1, generator=generator)) < 0.5:
            factor = 4.0 if factor > 1 else 0.25
        for projection, by in (
            (layer.self_attn.q_proj, factor),
            (layer.self_attn.k_proj, 1 / factor),
        ):
            projection.weight.mul_(by)
            projection.bias.mul_(by)


def all_of_it(module: Any, generator: torch.Generator) -> None:
    for change in (permute_heads, permute_channels, scale_queries):
        change(module, generator)


#: What is done to the weights, and whether the calibration pairs are drawn, shuffled, or neither.
KINDS: Mapping[str, tuple[Callable[[Any, torch.Generator], None] | None, str]] = {
    "calibration pairs": (None, "drawn"),
    "calibration order and batch size": (None, "shuffled"),
    "heads permuted": (permute_heads, ""),
    "MLP channels permuted": (permute_channels, ""),
    "queries scaled, keys divided": (scale_queries, ""),
    "all of these": (all_of_it, "drawn"),
}


# -- variants -------------------------------------------------------------------------------------


class VariantCase(PipelineCase):
    """A variant whose FP16 model is another form of the same function.

    What was measured of that function is not measured again: FP16's image embeddings, and sanity.
    """

    def __init__(
        self, *, good: Case, name: str, pipeline: Pipeline, change: Any, seed: int, cache: Cache
    ) -> None:
        super().__init__(good=good, suite_case=good, name=name, pipeline=pipeline)
        self.change = change
        self.seed = seed
        self.cache = cache

    @computed_once
    def fp16(self) -> Encoder:
        if self.change is None:
            good: Encoder = self.good.fp16
            return good
        module = copy.deepcopy(self.good.fp16.module)
        with torch.no_grad():
            self.change(module, torch.Generator().manual_seed(self.seed))
        changed: Encoder = replace(self.good.fp16, module=module)
        return changed

    @computed_once
    def sanity(self) -> Sanity:
        found: Sanity = self.good.sanity
        return found


class Variants:
    """The variants of one model, numbered: each number is always the same variant."""

    def __init__(self, model: str, *, root: Path, data: Path) -> None:
        self.model = model
        self.root = root
        self.data = data

    def good(self, recipe: str) -> Case:
        """Return the case that the variants of a recipe are made from."""
        name = f"_{recipe}"
        if name not in vars(self):
            is_fp8 = recipe == "fp8-attention"
            words = {
                **WORDS[self.model],
                "data": self.data,
                "pairs": TAKEN,
                "recipe": recipe,
                "clipped": "0.1%" if is_fp8 else SMOOTH_CLIPPED,
                "attention": "[q, k, v, output]" if is_fp8 else "[]",
                "allow": ", allow: [softmax]" if is_fp8 else "",
            }
            bench = Bench(
                self.root / f"{self.model}-{recipe}",
                suite=MODELS[self.model] % words + GATES % words,
            )
            vars(self)[name] = bench.load()
        found: Case = vars(self)[name]
        return found

    @cached_property
    def pool(self) -> Samples:
        """All pairs that calibrate some variant; the held-out ones are others."""
        spec = self.good(RECIPES[0]).suite.calibration
        return load_samples(
            spec.data,
            datasets=self.good(RECIPES[0]).suite.datasets,
            samples=POOL + spec.held_out_samples,
            environ={},
            purpose="pairs",
        ).take(spec.held_out_samples, POOL + spec.held_out_samples)

    def make(self, number: int, *, cache: Cache) -> tuple[str, str, VariantCase]:
        """Return kind, recipe and case of one variant."""
        kind = list(KINDS)[number % len(KINDS)]
        recipe = RECIPES[number // len(KINDS) % len(RECIPES)]
        change, pairs = KINDS[kind]
        good = self.good(recipe)
        case = VariantCase(
            good=good,
            name=f"{self.model} {number}",
            pipeline=self._calibrate(pairs, seed=number),
            change=change,
            seed=number,
            cache=cache,
        )
        return kind, recipe, case

    def _calibrate(self, pairs: str, *, seed: int) -> Pipeline:
        generator = torch.Generator().manual_seed(seed)

        def draw(samples: Samples) -> Samples:
            if pairs == "drawn":
                held_out = set(self.good(RECIPES[0]).held_out(1 << 20).ids)
                fresh = [i for i, name in enumerate(self.pool.ids) if name not in held_out]
                chosen = torch.randperm(len(fresh), generator=generator)[:TAKEN].tolist()
                return self.pool.select([fresh[place] for place in chosen])
            return samples.select(torch.randperm(len(samples), generator=generator).tolist())

        def cut(batches: list[Batch]) -> list[Batch]:
            return list(rebatch(batches, size=BATCHES[seed // len(KINDS) % len(BATCHES)]))

        return Pipeline(source=draw, pairs=cut) if pairs else Pipeline()


def rebatch(batches: Sequence[Batch], *, size: int) -> Iterator[Batch]:
    whole = Batch.join(batches)
    for start in range(0, len(whole.ids), size):
        yield whole.take(slice(start, start + size))


# -- judging --------------------------------------------------------------------------------------


def judge_variants(variants: Variants, numbers: Sequence[int]) -> Iterator[Judgement]:
    """Yield what the gates say of each variant; what was judged before is read."""
    path = variants.root / f"{variants.model}.jsonl"
    kept = read_judgements(path)
    for number in numbers:
        if number not in kept:
            kept[number] = judge_variant(variants, number)
            with path.open("a", encoding="utf-8") as out:
                out.write(json.dumps(asdict(kept[number])) + "\n")
        yield kept[number]


def judge_variant(variants: Variants, number: int) -> Judgement:
    started = time.perf_counter()
    folder = Path(tempfile.mkdtemp(prefix="variant-", dir=variants.root))
    try:
        kind, recipe, case = variants.make(number, cache=Cache(root=folder, warn=print))
        verdicts = {
            gate.name: case.judge(kind=gate.kind, key=gate.key).verdict for gate in case.suite.gates
        }
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    figures = {
        name: value
        for verdict in verdicts.values()
        for name, value in verdict.figures.items()
        if name in FIGURES and isinstance(value, float)
    }
    return Judgement(
        model=variants.model,
        number=number,
        kind=kind,
        recipe=recipe,
        red={
            name: f"{verdict.status.value} {verdict.code}: {verdict.headline}"
            for name, verdict in verdicts.items()
            if not verdict.passed
        },
        figures=figures,
        seconds=time.perf_counter() - started,
    )


def read_judgements(path: Path) -> dict[int, Judgement]:
    if not path.exists():
        return {}
    lines = path.read_text(encoding="utf-8").splitlines()
    return {found.number: found for found in (Judgement(**json.loads(line)) for line in lines)}


# -- the page -------------------------------------------------------------------------------------


def render_page(judgements: Sequence[Judgement]) -> str:
    red = [found for found in judgements if found.red]
    models = list(dict.fromkeys(found.model for found in judgements))
    lines = [
        "# Good variants before the gates",
        "",
        f"{len(judgements)} variants that compute the same function as their original: "
        f"**{len(red)} red**. `python -m benchmarks.false_alarms` makes this page.",
        "",
        ", ".join(f"{name} {version}" for name, version in _versions().items()) + ".",
        "",
        "| variant | " + " | ".join(models) + " |",
        "|---|" + "---|" * len(models),
    ]
    for kind in KINDS:
        cells = []
        for model in models:
            mine = [f for f in judgements if (f.model, f.kind) == (model, kind)]
            cells.append(f"{sum(bool(f.red) for f in mine)} of {len(mine)} red")
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    recipes = Counter((found.model, found.recipe) for found in judgements)
    lines += [
        "",
        "Recipes: "
        + "; ".join(f"{model} {recipe} {number}" for (model, recipe), number in recipes.items())
        + ".",
        "",
        "The largest value of each figure over all of them:",
        "",
        "| figure | " + " | ".join(models) + " |",
        "|---|" + "---|" * len(models),
    ]
    for name in FIGURES:
        cells = []
        for model in models:
            values = [f.figures[name] for f in judgements if f.model == model and name in f.figures]
            cells.append(f"{max(values):.3g}" if values else "")
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    if red:
        lines += ["", "## Red", ""]
        lines += [
            f"- {found.model} {found.number}, {found.kind}, {found.recipe}: {said}"
            for found in red
            for said in found.red.values()
        ]
    seconds = sum(found.seconds for found in judgements)
    lines += ["", f"{seconds / 60:.0f} min on one thread.", ""]
    return "\n".join(lines)


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.false_alarms", description=__doc__)
    parser.add_argument("--variants", type=int, default=200, help="of each model")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--data", type=Path, default=DATA, help="where clip-cifar10-tiny/ is")
    parser.add_argument("--folder", type=Path, help="keep what was judged, and go on from there")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    judgements: list[Judgement] = []
    with tempfile.TemporaryDirectory(prefix="false-alarms-") as temporary:
        root = options.folder or Path(temporary)
        root.mkdir(parents=True, exist_ok=True)
        for model in options.models:
            if model != "reference" and not (options.data / model).is_dir():
                print(f"{model}: not in {options.data}")
                continue
            variants = Variants(model, root=root, data=options.data)
            for found in judge_variants(variants, range(options.variants)):
                judgements.append(found)
                said = "; ".join(found.red.values()) or "green"
                print(
                    f"{model} {found.number:3d} {found.kind}, {found.recipe}: {said} "
                    f"({found.seconds:.0f} s)",
                    flush=True,
                )
    PAGE.write_text(render_page(judgements), encoding="utf-8")
    return int(any(found.red for found in judgements))


if __name__ == "__main__":
    sys.exit(main())
