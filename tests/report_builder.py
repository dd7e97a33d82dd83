"""Runs that a report can be made of, of any size, without a model: what workers leave behind.

The measurements are made up; the verdicts are the gates' own, and the cache is a real one.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date
from fractions import Fraction
from pathlib import Path
from typing import Any

from pytest_quantgate.evidence.audit import (
    Audit,
    CalibrationRun,
    Module,
    Operation,
    Quantizer,
    Tower,
)
from pytest_quantgate.evidence.codec import to_json
from pytest_quantgate.evidence.fidelity import Fidelity, TowerFidelity
from pytest_quantgate.evidence.outcomes import Outcomes
from pytest_quantgate.evidence.verdict import Status, Verdict
from pytest_quantgate.gates.accuracy import AccuracyGate, judge_accuracy
from pytest_quantgate.gates.coverage import CoverageGate, judge_coverage
from pytest_quantgate.report.collect_evidence import collect_report
from pytest_quantgate.report.evidence import Evidence, Use
from pytest_quantgate.report.model import LatencyFacts, ModelFacts, RecipeFacts, Report
from pytest_quantgate.report.terminal import Summary
from pytest_quantgate.run.conclusion import Results, Row, SuiteGates
from pytest_quantgate.store.cache import Cache
from pytest_quantgate.suite.where import Where

WHERE = Where(file="suites/made.quantgate.yaml", line=1)
TOWERS: tuple[Tower, ...] = ("vision", "text")
LINEAR = (
    "self_attn.q_proj",
    "self_attn.k_proj",
    "self_attn.v_proj",
    "self_attn.out_proj",
    "mlp.fc1",
    "mlp.fc2",
)
ATTENTION = {
    "q": "q_bmm_quantizer",
    "k": "k_bmm_quantizer",
    "v": "v_bmm_quantizer",
    "attention_output": "bmm2_output_quantizer",
}
#: The smallest picture there is.
PIXEL = "data:image/gif;base64,R0lGODlhAQABAIAAAP///wAAACH5BAEAAAAALAAAAAABAAEAAAICRAEAOw=="


def make_quantizer(
    name: str, *, slot: str, tower: Tower, block: int | None, **changes: object
) -> Quantizer:
    amax = 0.1 + len(name) % 7
    made = Quantizer(
        name=name,
        module=name.rpartition(".")[0],
        module_class="QuantLinear",
        slot=slot,  # type: ignore[arg-type]
        tower=tower,
        block=block,
        enabled=True,
        format="E4M3",
        granularity="per-tensor",
        dynamic=False,
        amax_min=amax,
        amax_max=amax,
        amax_finite=True,
        amax_count=1,
        tower_calls={} if tower == "other" else {tower: 1},
        changed=True,
        clipped=3,
        seen=100_000,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def make_audit(*, blocks: int = 2, prefix: str = "") -> Audit:
    """Return the audit of a fully quantized CLIP with `blocks` blocks a tower."""
    modules, quantizers, operations = [], [], []
    for tower in TOWERS:
        for block in range(blocks):
            stem = f"{prefix}{tower}_model.encoder.layers.{block}"
            for inner in LINEAR:
                name = f"{stem}.{inner}"
                modules.append(_module(name, "linear", tower, block))
                operations.append(_operation(name, "linear", tower, block))
                quantizers += [
                    make_quantizer(f"{name}.{slot}_quantizer", slot=slot, tower=tower, block=block)
                    for slot in ("input", "weight")
                ]
                quantizers.append(
                    make_quantizer(
                        f"{name}.output_quantizer",
                        slot="output",
                        tower=tower,
                        block=block,
                        enabled=False,
                        amax_min=None,
                        amax_max=None,
                        amax_count=0,
                    )
                )
            name = f"{stem}.self_attn"
            modules.append(_module(name, "attention", tower, block))
            operations.append(_operation(name, "attention", tower, block))
            quantizers += [
                make_quantizer(f"{name}.{end}", slot=slot, tower=tower, block=block)
                for slot, end in ATTENTION.items()
            ]
    return Audit(
        towers=TOWERS,
        modules=tuple(modules),
        quantizers=tuple(quantizers),
        operations=tuple(operations),
        excludes=(),
        intended=tuple(q.name for q in quantizers if q.enabled),
        disabled_by=(),
        recipe_name="fp8-attention",
        formats=("E4M3",),
    )


def _module(name: str, kind: str, tower: Tower, block: int) -> Module:
    return Module(
        name=name,
        class_name=kind,
        kind=kind,  # type: ignore[arg-type]
        tower=tower,
        block=block,
        weights_count=4096,
    )


def _operation(name: str, function: str, tower: Tower, block: int) -> Operation:
    operands = 3 if function == "attention" else 2
    return Operation(
        module=name,
        module_class="QuantLinear",
        function=function,
        tower=tower,
        block=block,
        operands=("E4M3",) * operands,
        operands_quantized=(True,) * operands,
        weights_count=4096 if function == "linear" else 0,
    )


def make_outcomes(
    *, samples: int, class_names: Sequence[str], lost: int, won: int, seed: int = 0
) -> tuple[Outcomes, Outcomes]:
    """Return FP16 and quantized outcomes with exactly so many flips."""
    draw = random.Random(seed)
    classes = len(class_names)
    labels = [draw.randrange(classes) for _ in range(samples)]
    places = draw.sample(range(samples), samples)
    wrong = set(places[: max(won, samples // 5)])
    fp16 = [i not in wrong for i in range(samples)]
    quantized = list(fp16)
    for i in [i for i in places if fp16[i]][:lost]:
        quantized[i] = False
    for i in [i for i in places if not fp16[i]][:won]:
        quantized[i] = True

    def outcomes(correct: Sequence[bool], variant: str) -> Outcomes:
        answers = [
            label if right else (label + 1) % classes
            for label, right in zip(labels, correct, strict=True)
        ]
        return Outcomes(
            task="made/classification",
            metric="acc1",
            variant=variant,
            ids=tuple(f"made/test/{i:06d}" for i in range(samples)),
            correct=tuple(correct),
            answers=tuple(answers),
            labels=tuple(labels),
            class_names=tuple(class_names),
            value=sum(correct) / samples,
            data_digest="d" * 64,
        )

    return outcomes(fp16, "FP16"), outcomes(quantized, "fp8-attention")


@dataclass(frozen=True, kw_only=True)
class Run:
    """What a session knows at its end."""

    summary: Summary
    evidence: Mapping[str, Evidence]
    cache: Cache

    def collect(self, **changes: Any) -> Report:
        """Return the report; `changes` are of the results."""
        results = replace(self.summary.results, **changes)
        return collect_report(
            replace(self.summary, results=results),
            evidence=self.evidence,
            cache=self.cache,
            root=self.cache.root,
            environ={"SOURCE_DATE_EPOCH": "1790000000", "GITHUB_SHA": "c0ffee" * 6},
        )


def make_run(
    root: Path,
    *,
    audit: Audit | None = None,
    outcomes: tuple[Outcomes, Outcomes] | None = None,
    suite: str = "made",
    extra: Sequence[Verdict] = (),
    not_run: Sequence[str] = (),
    pictures: int = 2,
    max_drop: Fraction = Fraction(3, 100),
) -> Run:
    """Return a run of one suite: coverage, accuracy, and the `extra` verdicts."""
    audit = audit or make_audit()
    fp16, quantized = outcomes or make_outcomes(
        samples=300, class_names=["cat", "dog", "owl"], lost=3, won=1
    )
    cache = Cache(root=root)
    layers = [module.name for module in audit.modules if module.kind == "linear"]
    towers = tuple(
        TowerFidelity(
            tower=tower,
            samples=64,
            cosine_mean=0.999,
            cosine_worst=0.99,
            cosine_worst_id="a",
            sqnr_mean_db=28.0,
            sqnr_worst_db=22.0,
            sqnr_worst_id="a",
            nonfinite=0,
        )
        for tower in TOWERS
    )
    fidelity = Fidelity(
        data="made/test",
        towers=towers,
        worst_layers=tuple((name, 20.0 + i % 17) for i, name in enumerate(layers)),
    )
    calibration = CalibrationRun(
        data="made/train",
        samples=64,
        batches=4,
        tower_batches={"vision": 4, "text": 4},
        nonfinite=(),
        sample_hashes=(),
        held_out_samples=16,
        held_out_hashes=(),
    )

    def build(folder: Path) -> None:
        (folder / "audit.json").write_text(json.dumps(to_json(audit)))
        (folder / "calibration.json").write_text(json.dumps(to_json(calibration)))

    lost = [
        i
        for i, (a, b) in enumerate(zip(fp16.correct, quantized.correct, strict=True))
        if a and not b
    ]
    previews = {fp16.ids[i]: {"image": PIXEL} for i in lost[:pictures]}
    of = (fp16.task, fp16.metric, "torch", "")
    cache.get_or_build(kind="variant", key="a" * 64, build=build)
    cache.get_or_measure(kind="fidelity", key="b" * 64, measure=lambda: to_json(fidelity))
    cache.get_or_measure(
        kind="outcomes", key="c" * 64, measure=lambda: [to_json(fp16), to_json(quantized)]
    )
    cache.get_or_measure(kind="previews", key="e" * 64, measure=lambda: previews)
    gate = AccuracyGate(
        where=WHERE, task=fp16.task, metric="acc1", max_drop=max_drop, floor=Fraction(1, 2)
    )
    verdicts = {
        "coverage": judge_coverage(audit, gate=CoverageGate(where=WHERE), today=date(2026, 1, 1)),
        f"accuracy[{gate.key}]": judge_accuracy(fp16=fp16, quantized=quantized, gate=gate),
        **{verdict.gate: verdict for verdict in extra},
    }
    gates = (*verdicts, *not_run)
    rows = tuple(Row(suite=suite, gate=name, verdict=verdict) for name, verdict in verdicts.items())
    collected = SuiteGates(suite=suite, file=f"suites/{suite}.quantgate.yaml", gates=gates)
    evidence = Evidence(
        suite=suite,
        file=f"suites/{suite}.quantgate.yaml",
        used=(
            Use(about=("variant",), key="a" * 64),
            Use(about=("fidelity",), key="b" * 64),
            Use(about=("outcomes", *of), key="c" * 64),
            Use(about=("previews", *of), key="e" * 64),
        ),
        device="cpu",
        versions={"torch": "2.15.0"},
        model=ModelFacts(
            source="transformers",
            description="a made model",
            revision="",
            dtype="float16",
            attn_implementation="sdpa",
            digest="1" * 64,
        ),
        recipe=RecipeFacts(
            name="", lines=("fp8-attention",), exclude=(), formats=(), digest="2" * 64
        ),
        calibration_digest="3" * 64,
        latency=(
            LatencyFacts(
                gate="latency[torch-vision-batch1]",
                runtime="torch",
                tower="vision",
                batch=1,
                system="Linux",
                processor="a processor",
                cores=2,
                threads=1,
                device="cpu",
                fp16_ms=(2.0, 2.1, 2.2),
                quantized_ms=(1.0, 1.1, 1.2),
                fp16_again_ms=(2.0, 2.0, 2.1),
            ),
        ),
    )
    results = Results(suites=(collected,), rows=rows)
    return Run(summary=Summary(results=results), evidence={suite: evidence}, cache=cache)


def verdict(gate: str, status: Status, *, headline: str = "", **more: object) -> Verdict:
    text = headline or f"{gate}: something was found"
    return Verdict(gate=gate, status=status, headline=text, **more)  # type: ignore[arg-type]
