"""Good releases that differ from one another as good releases do. Every gate must let them pass."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from datetime import date
from typing import Any

import torch

from benchmarks.sabotage.bench import MODEL_GATES, STAGE_GATES, Bench, Entry
from benchmarks.sabotage.evaluation import OtherPixels
from benchmarks.sabotage.folders import (
    CONFIG,
    TOKENIZER,
    TOKENIZER_CONFIG,
    WEIGHTS,
    Photo,
    as_they_are,
    of_files,
)
from benchmarks.sabotage.overflow import NEAR_30_000, PAST_FLOAT16, scaled
from benchmarks.sabotage.pipeline import Pipeline
from benchmarks.sabotage.quantizers import released
from benchmarks.sabotage.recipe import ATTENTION, E4M3, inline, layers, named, waiver
from benchmarks.sabotage.sanity import WORDS, add_domain, grow_table, text_config
from benchmarks.sabotage.speed import judged as timed
from benchmarks.sabotage.speed import measure
from pytest_quantgate.encoders.encoder import Batch, Encoder
from pytest_quantgate.evidence.audit import TowerName
from pytest_quantgate.evidence.outcomes import Outcomes
from pytest_quantgate.run.case import Case
from pytest_quantgate.selftest.outcomes import exchange_outcomes
from pytest_quantgate.tasks.registry import load_samples
from pytest_quantgate.tasks.samples import Samples

ALL = (*MODEL_GATES, "roundtrip", *STAGE_GATES)
#: A baseline is of one recipe and one calibration set: with others it is incomparable by design.
OTHER = tuple(kind for kind in MODEL_GATES if kind != "regression")
NO_ATTENTION = {"attention: [q, k, v, output]": "attention: []"}
HALF = {
    **NO_ATTENTION,
    "export: {allow: [softmax], max_size_ratio": "export: {max_size_ratio",
}


def control(
    name: str,
    make: Callable[[Bench], Case],
    *,
    judged: tuple[str, ...] = MODEL_GATES,
    shipped: str = "torch",
    compared: bool = True,
) -> Entry:
    return Entry(
        name=name, theme="control", make=make, judged=judged, shipped=shipped, compared=compared
    )


def shuffled(seed: int) -> Callable[[Bench], Case]:
    """The same calibration pairs in another order."""

    def source(samples: Samples) -> Samples:
        generator = torch.Generator().manual_seed(seed)
        return samples.select(torch.randperm(len(samples), generator=generator).tolist())

    return lambda bench: released(bench, f"order {seed}", Pipeline(source=source))


def drawn(seed: int) -> Callable[[Bench], Case]:
    """Other 256 pairs of the calibration split: another seed of the sampler."""

    def source(samples: Samples) -> Samples:
        start = 512 + 256 * seed
        more = load_samples(
            "scenes/calibration", datasets={}, samples=start + 256, environ={}, purpose="pairs"
        )
        return more.take(start, start + 256)

    return lambda bench: released(bench, f"seed {seed}", Pipeline(source=source))


def in_batches(size: int) -> Callable[[Bench], Case]:
    def pairs(batches: list[Batch]) -> list[Batch]:
        whole = Batch.join(batches)
        return [whole.take(slice(i, i + size)) for i in range(0, len(whole.ids), size)]

    return lambda bench: released(bench, f"batches of {size}", Pipeline(pairs=pairs))


def nudged(seed: int) -> Callable[[Bench], Case]:
    """The weights as another library version reads them: each differs in its last bit."""

    def weights(fp16: Encoder) -> Encoder:
        module = copy.deepcopy(fp16.module)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in module.parameters():
                sign = torch.randint(-1, 2, parameter.shape, generator=generator)
                parameter.mul_(1 + sign * 2.0**-23)
        return replace(fp16, module=module)

    return lambda bench: released(bench, f"last bit {seed}", Pipeline(weights=weights))


def nudged_pixels(bench: Bench) -> Case:
    """The images as another decoder gives them: the last bit of a pixel differs."""

    class Nudged(OtherPixels):
        def reload(self, pixel_values: torch.Tensor) -> torch.Tensor:
            generator = torch.Generator().manual_seed(0)
            noise = torch.randn(pixel_values.shape, generator=generator)
            return pixel_values * (1 + 2.0**-23 * noise)

    return released(bench, "nudged pixels", Pipeline(finish=lambda model: Nudged(**vars(model))))


def with_threads(count: int) -> Callable[[Bench], Case]:
    def finish(model: Encoder) -> Encoder:
        class Threaded(Encoder):
            def encode(self, name: TowerName, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
                before = torch.get_num_threads()
                torch.set_num_threads(count)
                try:
                    return super().encode(name, inputs)
                finally:
                    torch.set_num_threads(before)

        return Threaded(**vars(model))

    return lambda bench: released(bench, f"{count} threads", Pipeline(finish=finish))


def evaluated_in(size: int) -> Callable[[Bench], Case]:
    """Evaluated in batches of another size."""

    def finish(model: Encoder) -> Encoder:
        class Batched(Encoder):
            def encode(self, name: TowerName, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
                encode, count = super().encode, len(next(iter(inputs.values())))
                parts = [
                    encode(
                        name, {key: value[start : start + size] for key, value in inputs.items()}
                    )
                    for start in range(0, count, size)
                ]
                return torch.cat(parts)

        return Batched(**vars(model))

    return lambda bench: released(bench, f"evaluated in {size}", Pipeline(finish=finish))


def suite(edits: dict[str, str]) -> Callable[[Bench], Case]:
    return lambda bench: bench.load(edits=edits)


def in_two_classes(samples: Samples) -> Iterable[Photo]:
    """A multi-label set as a table of single labels: a picture of two things is there twice."""
    for index, (image, label) in enumerate(as_they_are(samples)):
        yield image, label
        if index % 3 == 0:
            yield image, (label + 10) % len(samples.class_names)


def reordered(bench: Bench) -> Case:
    """The evaluation of the variant gave its samples in another order."""

    def reverse(outcomes: Outcomes) -> Outcomes:
        return replace(
            outcomes,
            ids=outcomes.ids[::-1],
            correct=outcomes.correct[::-1],
            answers=outcomes.answers[::-1],
            labels=outcomes.labels[::-1],
        )

    return exchange_outcomes(bench.good, quantized=reverse)


def of_fp16(bench: Bench) -> Case:
    """A variant that answers exactly as FP16 does: nothing was lost."""

    def outcomes(**request: Any) -> tuple[Outcomes, Outcomes]:
        fp16, quantized = bench.good.outcomes(**request)
        return fp16, replace(fp16, variant=quantized.variant)

    from pytest_quantgate.selftest.sabotage import exchange

    return exchange(bench.good, outcomes=outcomes)


def accepted_again(bench: Bench) -> Case:
    """The baseline is written, read back and accepted once more."""
    from pytest_quantgate.selftest.sabotage import exchange

    record = bench.record(bench.good)
    again = replace(record, updated=date(2031, 1, 1).isoformat(), reason="again")
    return exchange(bench.good, store=bench.store_of("again", again))


def waived(bench: Bench) -> Case:
    return bench.load(
        edits=waiver("*visual_projection*", days=30)
        | {
            'quantize: {recipe: fp8-attention, exclude: ["*patch_embedding*"]}': "quantize: "
            "{recipe: ["
            + ", ".join(
                [
                    '{quantizer_name: "*", enable: false}',
                    *layers(),
                    *ATTENTION,
                    '{quantizer_name: "*visual_projection*", enable: false}',
                ]
            )
            + '], exclude: ["*patch_embedding*"]}'
        }
    )


#: The reference suite as a developer keeps it, whose answer nobody ships by.
ADVISORY = {
    "samples: 1000, max_drop: 2pp, floor: 70%": "samples: 60, max_drop: 15pp, floor: 40%",
    "max_flips: 10%, max_class_drop: 75pp": "max_flips: 30%",
}

CONTROLS = (
    control("the good release itself", lambda bench: bench.good, judged=ALL),
    *(control(f"calibration order {seed}", shuffled(seed)) for seed in range(4)),
    *(control(f"calibration sample {seed}", drawn(seed)) for seed in range(6)),
    *(control(f"calibration in batches of {size}", in_batches(size)) for size in (8, 32, 256)),
    *(control(f"weights that differ in the last bit, {seed}", nudged(seed)) for seed in range(3)),
    control("pixels that differ in the last bit", nudged_pixels),
    *(control(f"evaluated with {n} threads", with_threads(n)) for n in (1, 2)),
    *(control(f"evaluated in batches of {size}", evaluated_in(size)) for size in (1, 48)),
    control(
        "built twice from one suite",
        lambda bench: released(bench, "again", Pipeline()),
        judged=ALL,
        shipped="onnx",
    ),
    control("recipe fp8", suite({**named("fp8"), **NO_ATTENTION}), judged=OTHER),
    control(
        "recipe int8-smoothquant",
        # What init writes for 256 pairs: 2.5 times what the largest of so many leaves out.
        suite(
            {**named("int8-smoothquant"), **NO_ATTENTION, "max_clipped: 0.1%": "max_clipped: 1%"}
        ),
        judged=OTHER,
    ),
    control(
        "the same recipe written out",
        suite(inline('{quantizer_name: "*", enable: false}', *layers(), *ATTENTION)),
        judged=OTHER,
    ),
    control(
        "the published dict form, whose default stands last",
        suite(
            {
                'quantize: {recipe: fp8-attention, exclude: ["*patch_embedding*"]}': "quantize: "
                '{recipe: {nn.Linear: {"*weight_quantizer": '
                + E4M3
                + ', "*input_quantizer": '
                + E4M3
                + "}, default: {enable: false}}, exclude: []}",
                **NO_ATTENTION,
            }
        ),
        judged=OTHER,
    ),
    control(
        "patch_embedding quantized too",
        suite(named("fp8-attention", exclude="[]")),
        judged=OTHER,
    ),
    control(
        "the projections excluded",
        suite(named("fp8-attention", exclude='["*patch_embedding*", "*visual_projection*"]')),
        judged=OTHER,
    ),
    control("one layer waived until a day", waived, judged=OTHER),
    control(
        "calibrated on 512 pairs",
        suite({"samples: 256, batch_size": "samples: 512, batch_size"}),
        judged=OTHER,
    ),
    control(
        "pictures that stand in two classes",
        of_files(
            "two classes",
            test=in_two_classes,
            edits={"samples: 1000, max_drop: 2pp, floor: 70%": "max_drop: 2pp, floor: 50%"},
        ),
        judged=OTHER,
        compared=False,
    ),
    control(
        "a word of a domain in the vocabulary",
        of_files(
            "domain",
            model={
                CONFIG: text_config(vocab_size=WORDS + 1),
                TOKENIZER: add_domain,
                WEIGHTS: grow_table,
            },
            templates=("a photo of the <domain> {c}", "a photo of the {c}"),
        ),
        judged=OTHER,
        compared=False,
    ),
    control(
        "a tokenizer that gives no attention mask",
        of_files(
            "no mask",
            model={TOKENIZER_CONFIG: lambda config: config.update(model_input_names=["input_ids"])},
        ),
        judged=OTHER,
        compared=False,
    ),
    control(
        "class names in other letters",
        of_files("letters", names=lambda names: [name.title() for name in names]),
        judged=OTHER,
        compared=False,
    ),
    control(
        "activations near 30,000 in FP16",
        of_files("near 30,000", model={WEIGHTS: scaled(NEAR_30_000)}),
        judged=(*OTHER, "export", "parity"),
        compared=False,
    ),
    control(
        "activations past float16, shipped in bfloat16",
        of_files("bfloat16", model={WEIGHTS: scaled(PAST_FLOAT16)}, dtype="bfloat16"),
        judged=(*OTHER, "export", "parity"),
        compared=False,
    ),
    control("a small advisory suite", suite(ADVISORY), judged=OTHER),
    control("samples in another order", reordered, judged=("accuracy", "regression")),
    control("a variant that answers as FP16", of_fp16, judged=("accuracy",)),
    control("a baseline that was accepted again", accepted_again, judged=("regression",)),
    *(
        control(
            f"latency on a machine with 1 % noise, {seed}",
            timed(measure(seed=seed)),
            judged=("latency",),
        )
        for seed in range(1, 4)
    ),
)
