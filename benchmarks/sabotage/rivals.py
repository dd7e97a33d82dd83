"""What people use today to decide whether a quantized model may ship, each as its source has it.

Every rival gets the same models and the same answers as the gates: for damage to what is exported,
the answers of the exported model. Where a rule needs a limit of its own that its source leaves to
the user, it is the suite's.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

from pytest_quantgate.encoders.loading import quiet_libraries
from pytest_quantgate.errors import QuantGateError
from pytest_quantgate.evidence.outcomes import Outcomes
from pytest_quantgate.gates.accuracy import AccuracyGate
from pytest_quantgate.quantization.modelopt import import_modelopt
from pytest_quantgate.run.case import Case

if TYPE_CHECKING:
    from collections.abc import Sequence

MAX_DROP = 0.02
MIN_COSINE = 0.99


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a rival says: `red`, and the figure that it goes by."""

    red: bool
    words: str


@dataclass(frozen=True, kw_only=True)
class Rival:
    """A rule, and where it comes from; `ask` gets the case and what the last release measured."""

    name: str
    source: str
    rule: str
    ask: Callable[[Seen], Answer]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What rivals look at.

    `fp16` and `quantized` are today's answers, `reference` those of the release accepted last,
    `cosines` the mean cosine of each tower; `case` holds the quantized model itself.
    """

    case: Case
    fp16: Outcomes
    quantized: Outcomes
    reference: Outcomes
    cosines: tuple[float, ...]


def look(case: Case, *, good: Case, stage: str) -> Seen:
    """Return what the rivals are given; raises QuantGateError where the pipeline itself stops."""
    fp16, quantized = _answer(case, stage=stage)
    _, reference = _answer(good, stage=stage)
    return Seen(
        case=case,
        fp16=fp16,
        quantized=quantized,
        reference=reference,
        cosines=tuple(tower.cosine_mean for tower in case.fidelity().towers),
    )


def _answer(case: Case, *, stage: str) -> tuple[Outcomes, Outcomes]:
    """Return the answers to the first task of a suite that has this stage."""
    gate = next(gate for gate in case.suite.gates.all(AccuracyGate) if gate.stage == stage)
    return case.outcomes(
        task=gate.task,
        metric=gate.metric,
        samples=gate.samples,
        stage=gate.stage,
        first=gate.first,
    )


def ask_all(case: Case, *, good: Case, stage: str) -> Mapping[str, Answer]:
    """Return every rival's answer; a pipeline that stops by itself is red for all of them."""
    try:
        seen = look(case, good=good, stage=stage)
    except QuantGateError as error:
        stopped = Answer(red=True, words=f"the pipeline stops: {error}")
        return {rival.name: stopped for rival in list_rivals()}
    return {rival.name: rival.ask(seen) for rival in list_rivals()}


def list_rivals() -> tuple[Rival, ...]:
    """Return the rivals; quant-regress only where it is installed, for it is asked itself."""
    always = (AGGREGATE, COSINE, SUMMARY, VLLM, LLM_COMPRESSOR, TENSORRT_LLM, NEMO)
    return always if find_quant_regress() else (*always, QUANT_REGRESS)


# -- the rules -----------------------------------------------------------------------------------


def _aggregate(seen: Seen) -> Answer:
    drop = seen.fp16.value - seen.quantized.value
    return Answer(red=not drop <= MAX_DROP, words=f"drop {drop * 100:.2f} pp")


def _cosine(seen: Seen) -> Answer:
    lowest = min(seen.cosines)
    shown = ", ".join(f"{cosine:.4f}" for cosine in seen.cosines)
    return Answer(red=not lowest >= MIN_COSINE, words=f"mean cosine {shown}")


def _summary(seen: Seen) -> Answer:
    """Count the enabled input and weight quantizers in the printed summary."""
    from torch import nn

    mtq = import_modelopt("modelopt.torch.quantization")
    module = seen.case.quantized.module
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        mtq.print_quant_summary(module)
    lines = [line for line in out.getvalue().splitlines() if "TensorQuantizer(" in line]
    linear = {name for name, child in module.named_modules() if isinstance(child, nn.Linear)}
    found = {}
    for slot in ("input_quantizer", "weight_quantizer"):
        excluded = {name for _, names in seen.case.audit.excludes for name in names}
        wanted = sum(f"{name}.{slot}" not in excluded for name in linear)
        enabled = sum(slot in line and "disabled" not in line for line in lines)
        found[slot] = (enabled, wanted)
    shown = ", ".join(f"{have} of {want} {slot}s" for slot, (have, want) in found.items())
    return Answer(red=any(have < want for have, want in found.values()), words=f"{shown} enabled")


def _vllm(seen: Seen) -> Answer:
    lowest = seen.reference.value * (1 - 0.08)
    return Answer(
        red=not seen.quantized.value >= lowest,
        words=f"{seen.quantized.value:.4f}, at least {lowest:.4f}",
    )


def _llm_compressor(seen: Seen) -> Answer:
    recovery = round(seen.quantized.value / seen.fp16.value, 2) if seen.fp16.value else math.nan
    return Answer(red=not recovery >= 0.95, words=f"recovery {recovery:.2f}")


def _tensorrt_llm(seen: Seen) -> Answer:
    alpha, sigma, count = 0.05, 50.0, len(seen.quantized.ids)
    scale = (2 * sigma**2 / count) ** 0.5
    threshold = seen.reference.value * 100 + NormalDist().inv_cdf(alpha) * scale
    value = seen.quantized.value * 100
    return Answer(red=not value >= threshold, words=f"{value:.2f}, threshold {threshold:.2f}")


def _nemo(seen: Seen) -> Answer:
    """Student's t on the differences of the samples that both have; red unless PASS."""
    from scipy.stats import t  # type: ignore[import-untyped]

    before = dict(zip(seen.fp16.ids, seen.fp16.correct, strict=True))
    after = dict(zip(seen.quantized.ids, seen.quantized.correct, strict=True))
    paired = sorted(before.keys() & after.keys())
    if len(paired) < 10:
        return Answer(red=True, words=f"INSUFFICIENT_EVIDENCE: {len(paired)} pairs")
    deltas = [float(after[name]) - float(before[name]) for name in paired]
    mean = sum(deltas) / len(deltas)
    spread = sum((delta - mean) ** 2 for delta in deltas) / (len(deltas) - 1)
    width = float(t.ppf(0.975, df=len(deltas) - 1)) * math.sqrt(spread / len(deltas))
    low, high = round(-(mean + width), 6), round(-(mean - width), 6)
    status = "BREACH" if low > MAX_DROP else "PASS" if high <= MAX_DROP else "INSUFFICIENT_EVIDENCE"
    return Answer(red=status != "PASS", words=f"{status}: damage [{low:.4f}, {high:.4f}]")


def _quant_regress(seen: Seen) -> Answer:
    """Run the package's own harness on models that answer what was measured."""
    with quiet_libraries():
        from quant_regress.evalset import Case as Question  # type: ignore[import-not-found]
        from quant_regress.evalset import EvalSet
        from quant_regress.harness import (  # type: ignore[import-not-found]
            QuantHarness,
            Verdict,
        )

    def answers(outcomes: Outcomes) -> dict[str, str]:
        return {
            name: outcomes.class_names[answer] if 0 <= answer < len(outcomes.class_names) else "?"
            for name, answer in zip(outcomes.ids, outcomes.answers, strict=True)
        }

    class Model:
        def __init__(self, known: Mapping[str, str]) -> None:
            self.known = known

        def answer(self, prompt: str) -> str:
            return self.known.get(prompt, "?")

    models = {"fp32": answers(seen.fp16), "int8": answers(seen.quantized)}
    names = seen.fp16.class_names
    questions: Sequence[Question] = [
        Question(id=name, prompt=name, expected=" ".join(names[label].lower().split()))
        for name, label in zip(seen.fp16.ids, seen.fp16.labels, strict=True)
    ]
    harness = QuantHarness(model_factory=lambda precision: Model(models[precision]))
    found = harness.compare(EvalSet(questions), max_drop_points=MAX_DROP * 100, min_accuracy=0.7)
    return Answer(
        red=found.verdict is Verdict.FAIL, words=f"drop {found.worst_drop_points:.2f} points"
    )


def find_quant_regress() -> str:
    """Return why quant-regress cannot be asked; empty where it can."""
    try:
        import quant_regress  # type: ignore[import-not-found]  # noqa: F401
    except ImportError as error:
        return f"{error}: pip install --no-deps quant-regress"
    return ""


AGGREGATE = Rival(
    name="aggregate accuracy",
    source="the usual assert in a release script; ModelOpt's gate_compare.py decides so",
    rule=f"FP16 minus quantized at most {MAX_DROP * 100:.0f} pp",
    ask=_aggregate,
)
COSINE = Rival(
    name="mean cosine",
    source="the usual comparison of embeddings",
    rule=f"mean cosine of each tower at least {MIN_COSINE}",
    ask=_cosine,
)
SUMMARY = Rival(
    name="print_quant_summary",
    source="https://github.com/NVIDIA/Model-Optimizer, mtq.print_quant_summary, read by a script",
    rule="as many enabled input and weight quantizers as Linear layers, less the excluded ones",
    ask=_summary,
)
VLLM = Rival(
    name="vLLM",
    source="https://github.com/vllm-project/vllm/blob/main/.buildkite/lm-eval-harness/"
    "test_lm_eval_correctness.py",
    rule="at least (1 - 0.08) of the stored value",
    ask=_vllm,
)
LLM_COMPRESSOR = Rival(
    name="llm-compressor",
    source="https://github.com/vllm-project/llm-compressor/blob/main/tests/lmeval/test_lmeval.py",
    rule="round(quantized / base, 2) at least 0.95",
    ask=_llm_compressor,
)
TENSORRT_LLM = Rival(
    name="TensorRT-LLM",
    source="https://github.com/NVIDIA/TensorRT-LLM/blob/main/tests/integration/defs/accuracy/"
    "accuracy_core.py",
    rule="at least reference + z(0.05) sqrt(2 * 50^2 / n), in points; reference: the variant "
    "accepted last",
    ask=_tensorrt_llm,
)
NEMO = Rival(
    name="NeMo Evaluator",
    source="https://github.com/NVIDIA-NeMo/Evaluator/blob/main/src/nemo_evaluator/engine/gate.py",
    rule=f"95 % interval of the paired differences within {MAX_DROP}, pairs by intersection of "
    "ids; INSUFFICIENT_EVIDENCE counts as red",
    ask=_nemo,
)
QUANT_REGRESS = Rival(
    name="quant-regress",
    source="https://github.com/DawnofGenX/quant-regress (1.1.0, its own harness, "
    "fed with the measured answers)",
    rule=f"drop at most {MAX_DROP * 100:.0f} points, baseline at least 70 %",
    ask=_quant_regress,
)
