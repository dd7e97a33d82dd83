"""Assertions for hand-written tests: the gates of a suite, on any model that the caller built.

They need no fixture and no suite file. Limits are written as in a suite (`"1pp"`, `"95%"`,
`"20dB"`). Each returns its verdict where it is PASS and raises AssertionError with the report of
the gate where it is anything else: INCONCLUSIVE is no pass.

    from pytest_quantgate.assertions import assert_calibrated, assert_quantizer_coverage

    def test_release(model, pixel_values, tokens):
        towers = {
            "run_vision": lambda: model.get_image_features(pixel_values=pixel_values),
            "run_text": lambda: model.get_text_features(**tokens),
        }
        assert_quantizer_coverage(model, **towers)
        assert_calibrated(model, **towers)
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, date, datetime
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec

from pytest_quantgate.errors import QuantGateError
from pytest_quantgate.evidence.audit import Audit, TowerName
from pytest_quantgate.evidence.outcomes import Outcomes, Score, round_score
from pytest_quantgate.evidence.verdict import Verdict
from pytest_quantgate.gates.accuracy import AccuracyGate, judge_accuracy
from pytest_quantgate.gates.calibration import CalibrationGate, judge_ranges
from pytest_quantgate.gates.coverage import CoverageGate, judge_coverage
from pytest_quantgate.gates.fidelity import FidelityGate, judge_tower
from pytest_quantgate.gates.roundtrip import RoundtripGate, judge_roundtrip
from pytest_quantgate.gates.scope import SLOTS, AttentionSlot, Waiver
from pytest_quantgate.plugin.own_tests import tell
from pytest_quantgate.report.terminal import render_failure
from pytest_quantgate.store.disk import temporary_folder
from pytest_quantgate.suite.gates import GateSection
from pytest_quantgate.suite.keys import keys_of
from pytest_quantgate.suite.quantities import QuantityError
from pytest_quantgate.suite.where import Where

if TYPE_CHECKING:
    import torch

    from pytest_quantgate.quantization.recipes import Recipe

Forward = Callable[[], object]
Given = ParamSpec("Given")


class _BadArgument(Exception):
    """What a caller gave is not what an assertion takes; the message is a whole sentence."""


def _assertion(judge: Callable[Given, Verdict]) -> Callable[Given, Verdict]:
    """Return a function that raises AssertionError where the verdict of `judge` is not PASS.

    A run of pytest hears of it: the test that it stands in has a say in whether a model may ship.
    What it raises for a bad argument points at the caller's line, too.
    """

    @wraps(judge)
    def check(*arguments: Given.args, **options: Given.kwargs) -> Verdict:
        __tracebackhide__ = True
        tell(None)
        refused: Exception | None = None
        try:
            verdict = judge(*arguments, **options)
        except _BadArgument as error:
            refused = ValueError(f"{judge.__name__}: {error}")
        except QuantGateError as error:
            refused = error.with_traceback(None)
        if refused is not None:
            raise refused
        tell(verdict)
        if not verdict.passed:
            raise AssertionError(render_failure(verdict))
        return verdict

    return check


@_assertion
def assert_quantizer_coverage(
    module: torch.nn.Module,
    *,
    run_vision: Forward | None,
    run_text: Forward | None,
    recipe: str | Mapping[str, Any] | None = None,
    exclude: Sequence[str] = (),
    attention: Sequence[AttentionSlot] | None = None,
    min_quantized: str = "50%",
    waive: Mapping[str, tuple[str, date]] | None = None,
) -> Verdict:
    """Assert that `module` is quantized as its recipe means it, and that the quantizers run.

    `run_vision` and `run_text` run one forward of a tower each; None for a tower that the model
    does not have. Without a `recipe` every Linear and Conv layer is expected to be quantized, but
    for the quantizers that `exclude` names. `attention` are the slots that each block must have
    (None: those that the recipe promises by its name; without a recipe: what any block has, each
    must have). `min_quantized` is how much of the meant weights `exclude` must leave. `waive` maps
    a module pattern to (reason, last day). Raises AssertionError with the findings, ModelError for
    a bad recipe, ValueError for an argument of another kind.
    """
    _check_names(exclude, "exclude", what="patterns of module names")
    _check_names(attention or (), "attention", what=f"names of {', '.join(SLOTS)}", known=SLOTS)
    waivers = _read_waivers(waive or {}, where=_here("assert_quantizer_coverage"))
    audit = _audit(module, run_vision, run_text, recipe=recipe, exclude=tuple(exclude))
    here = _here("assert_quantizer_coverage")
    if attention is None and recipe is None:
        enabled = {q.slot for q in audit.quantizers if q.enabled}
        attention = [name for name, slot in SLOTS.items() if slot in enabled]
    gate = CoverageGate(
        where=here,
        attention=None if attention is None else tuple(attention),
        towers=_towers(run_vision, run_text),
        min_quantized=_read(CoverageGate, "min_quantized", min_quantized),
        waive=waivers,
    )
    return judge_coverage(audit, gate=gate, today=datetime.now(UTC).date())


@_assertion
def assert_calibrated(
    module: torch.nn.Module,
    *,
    run_vision: Forward | None,
    run_text: Forward | None,
    max_clipped: str = "0.1%",
) -> Verdict:
    """Assert that every enabled static quantizer has a finite positive amax, is really called, and
    clips at most `max_clipped` of the values that it sees.

    `run_vision` and `run_text` should run data that the model was not calibrated on. Raises
    AssertionError with the findings, ValueError for an argument of another kind.
    """
    audit = _audit(module, run_vision, run_text, clip=True)
    gate = CalibrationGate(
        where=_here("assert_calibrated"),
        max_clipped=_read(CalibrationGate, "max_clipped", max_clipped),
    )
    return judge_ranges(audit, gate=gate)


@_assertion
def assert_fidelity(
    *,
    fp16: torch.Tensor,
    quantized: torch.Tensor,
    tower: TowerName = "vision",
    min_cosine: float | None = None,
    min_worst_cosine: float | None = None,
    min_sqnr: str | None = None,
    min_worst_sqnr: str | None = None,
) -> Verdict:
    """Assert that embeddings [N, D] of one tower are as close to FP16's as the limits say.

    Raises AssertionError with the figures, ValueError for other shapes.
    """
    from pytest_quantgate.measure.fidelity import compare_embeddings

    for name, given in (("fp16", fp16), ("quantized", quantized)):
        _check_tensor(given, name, axes="[N, D]")
    if fp16.shape != quantized.shape:
        raise _BadArgument(
            f"embeddings must be two [N, D], got {list(fp16.shape)} and {list(quantized.shape)}"
        )
    ids = [str(index) for index in range(len(fp16))]
    found = compare_embeddings(tower=tower, fp16=fp16, quantized=quantized, ids=ids)
    gate = FidelityGate(
        where=_here("assert_fidelity"),
        min_cosine=_read(FidelityGate, "min_cosine", min_cosine),
        min_worst_cosine=_read(FidelityGate, "min_worst_cosine", min_worst_cosine),
        min_sqnr_db=_read(FidelityGate, "min_sqnr", min_sqnr),
        min_worst_sqnr_db=_read(FidelityGate, "min_worst_sqnr", min_worst_sqnr),
    )
    return judge_tower(found, gate=gate)


@_assertion
def assert_accuracy_drop(
    *,
    fp16: Outcomes | Sequence[object],
    quantized: Outcomes | Sequence[object],
    max_drop: str,
    confidence: str = "95%",
    floor: str | None = None,
    max_flips: str | None = None,
    max_class_drop: str | None = None,
) -> Verdict:
    """Assert that a metric drops by no more than `max_drop`, sample by sample, with a confidence.

    `fp16` and `quantized` say for the same samples in the same order whether each was right (True,
    1; a list, array or tensor), or how right, in [0, 1] (nDCG, a reciprocal rank), or are
    `Outcomes`, which know answers and classes as well. Raises AssertionError with counts and
    interval, ValueError for sequences of different lengths or with something else in them.
    """
    before = _outcomes(fp16, name="FP16", argument="fp16")
    after = _outcomes(quantized, name="quantized", argument="quantized")
    if isinstance(fp16, Outcomes) is not isinstance(quantized, Outcomes):
        raise _BadArgument("fp16 and quantized must both be Outcomes, or both sequences")
    if not isinstance(fp16, Outcomes) and len(before.ids) != len(after.ids):
        raise _BadArgument(
            f"{len(before.ids)} FP16 and {len(after.ids)} quantized outcomes: the same samples "
            f"must be given for both"
        )
    gate = AccuracyGate(
        where=_here("assert_accuracy_drop"),
        task=after.task,
        metric=after.metric,
        max_drop=_read(AccuracyGate, "max_drop", max_drop),
        confidence=_read(AccuracyGate, "confidence", confidence),
        floor=_read(AccuracyGate, "floor", floor),
        max_flips=_read(AccuracyGate, "max_flips", max_flips),
        max_class_drop=_read(AccuracyGate, "max_class_drop", max_class_drop),
    )
    return judge_accuracy(fp16=before, quantized=after, gate=gate)


@_assertion
def assert_roundtrip(
    module: torch.nn.Module,
    *,
    pixel_values: torch.Tensor,
    tokens: Mapping[str, torch.Tensor],
) -> Verdict:
    """Assert that a quantized model, saved and restored in a new process, is bit-identical.

    `pixel_values` [N, 3, H, W] and `tokens` (`input_ids`, `attention_mask`, [N, T]) are what the
    outputs are compared on. Raises AssertionError with what differs, ModelError where the model
    cannot be saved or restored at all, ValueError for an argument of another kind.
    """
    _check_module(module)
    _check_tensor(pixel_values, "pixel_values", axes="[N, 3, H, W]")
    if not isinstance(tokens, Mapping) or "input_ids" not in tokens:
        raise _BadArgument(
            f"tokens must map input_ids, and attention_mask where there is one, to tensors [N, T]; "
            f"{_name(tokens)} was given"
        )
    from pytest_quantgate.encoders.encoder import Batch
    from pytest_quantgate.encoders.families import wrap_module
    from pytest_quantgate.measure.roundtrip import measure_roundtrip

    model = wrap_module(module, description="the caller's model")
    ids = tuple(str(index) for index in range(len(pixel_values)))
    batch = Batch.of_pairs(pixel_values=pixel_values, tokens=tokens, ids=ids)
    with temporary_folder() as folder:
        found = measure_roundtrip(model, batches=[batch], directory=folder)
    gate = RoundtripGate(where=_here("assert_roundtrip"))
    return judge_roundtrip(found, gate=gate, expected=model.tower_names)


def _audit(
    module: torch.nn.Module,
    run_vision: Forward | None,
    run_text: Forward | None,
    *,
    recipe: str | Mapping[str, Any] | None = None,
    exclude: tuple[str, ...] = (),
    clip: bool = False,
) -> Audit:
    import torch

    from pytest_quantgate.measure.audit import audit_module

    given: dict[TowerName, Forward | None] = {"vision": run_vision, "text": run_text}
    _check_module(module)
    for tower, forward in given.items():
        if forward is not None and not callable(forward):
            raise _BadArgument(
                f"run_{tower} must be a function that runs one forward of the {tower} tower, such "
                f"as lambda: model(...), or None; {_name(forward)} was given"
            )
    runs = {name: run for name, run in given.items() if run is not None}
    with torch.inference_mode():
        return audit_module(
            module,
            runs=runs,
            recipe=None if recipe is None else _resolve(recipe),
            exclude=exclude,
            held_out={name: [run] for name, run in runs.items()} if clip else None,
        )


def _resolve(recipe: str | Mapping[str, Any]) -> Recipe:
    from pytest_quantgate.quantization.recipes import resolve_recipe
    from pytest_quantgate.suite.specs import QuantizeSpec

    spec = QuantizeSpec(where=_here("assert_quantizer_coverage"), recipe=recipe)
    return resolve_recipe(spec)


def _towers(run_vision: Forward | None, run_text: Forward | None) -> tuple[TowerName, ...]:
    towers: tuple[TowerName, ...] = ()
    towers += ("vision",) if run_vision else ()
    towers += ("text",) if run_text else ()
    return towers


def _outcomes(given: Outcomes | Sequence[object], *, name: str, argument: str) -> Outcomes:
    if isinstance(given, Outcomes):
        return given
    needed = (
        f"{argument} must be one true or false, or a score in [0, 1], a sample (a list, array or "
        f"tensor), or Outcomes"
    )
    if isinstance(given, (str, bytes, Mapping)) or not hasattr(given, "__len__"):
        raise _BadArgument(f"{needed}; {_name(given)} was given")
    if getattr(given, "ndim", 1) != 1:
        raise _BadArgument(f"{needed}; one of shape {list(getattr(given, 'shape'))} was given")  # noqa: B009
    correct: list[Score] = []
    for index, value in enumerate(given):
        plain: Any = value.item() if hasattr(value, "item") else value
        try:
            correct.append(round_score(plain))
        except (TypeError, ValueError):
            raise _BadArgument(
                f"outcome {index} of {name} is {plain!r}: true, false or a score in [0, 1] is "
                f"needed"
            ) from None
    if not correct:
        raise _BadArgument(f"no outcomes of {name} are given")
    return Outcomes(
        task="outcomes",
        metric="accuracy",
        variant=name,
        ids=tuple(str(index) for index in range(len(correct))),
        correct=tuple(correct),
        answers=tuple(int(score == 1) for score in correct),
        labels=(-1,) * len(correct),
        class_names=(),
        value=sum(correct) / len(correct),
        data_digest="",
        nonfinite=0,
    )


def _read(section: type[GateSection], name: str, value: object) -> Any:
    """Return a limit that is written as in a suite; its error names the argument. None: none."""
    _, key = keys_of(section)[name]
    assert key.parse is not None  # a quantity
    try:
        return None if value is None else key.parse(value)
    except QuantityError as error:
        raise _BadArgument(f"{name}: {error}") from None


def _check_module(given: object) -> None:
    import torch

    if not isinstance(given, torch.nn.Module):
        raise _BadArgument(f"a torch.nn.Module comes first; {_name(given)} was given")


def _check_tensor(given: object, name: str, *, axes: str) -> None:
    import torch

    if not isinstance(given, torch.Tensor):
        raise _BadArgument(f"{name} must be a tensor {axes}; {_name(given)} was given")
    if given.ndim != axes.count(",") + 1:
        raise _BadArgument(f"{name} must be {axes}; one of shape {list(given.shape)} was given")


def _check_names(
    given: object, name: str, *, what: str, known: Collection[str] | None = None
) -> None:
    if isinstance(given, str) or not isinstance(given, Collection):
        raise _BadArgument(f"{name} must be a list of {what}; {_name(given)} was given")
    for each in given:
        if not isinstance(each, str) or (known is not None and each not in known):
            raise _BadArgument(f"{name} must be a list of {what}; it holds {each!r}")


def _read_waivers(given: object, *, where: Where) -> tuple[Waiver, ...]:
    needed = "waive must map a pattern of module names to (reason, last day as a datetime.date)"
    if not isinstance(given, Mapping):
        raise _BadArgument(f"{needed}; {_name(given)} was given")
    for pattern, terms in given.items():
        if not (isinstance(terms, tuple) and len(terms) == 2 and isinstance(terms[1], date)):
            raise _BadArgument(f"{needed}; {pattern!r} has {terms!r}")
    return tuple(
        Waiver(where=where, modules=(pattern,), reason=reason, until=until)
        for pattern, (reason, until) in given.items()
    )


def _name(given: object) -> str:
    """Return what a value is, for a sentence: `a float`, `an ndarray`, `None`."""
    if given is None:
        return "None"
    name = type(given).__name__
    return f"{'an' if name[0].lower() in 'aeiou' else 'a'} {name}"


def _here(function: str) -> Where:
    """Return the place that a report names: the assertion stands where a suite's line would."""
    return Where(file=function, line=0)
