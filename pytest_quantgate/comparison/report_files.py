"""Two JSON reports: verdicts, recipe, quantizers, accuracy, exported files, engines, sizes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_quantgate import bounds
from pytest_quantgate.artifacts.recipe_lines import describe_recipe
from pytest_quantgate.artifacts.stored_quantizer import StoredQuantizer
from pytest_quantgate.comparison.calibration import compare_calibration
from pytest_quantgate.comparison.changes import (
    Area,
    Change,
    Comparison,
    DiffError,
    compare_texts,
)
from pytest_quantgate.comparison.outcomes import Sampled, compare_results
from pytest_quantgate.comparison.quantizers import (
    compare_quantizers,
    describe_places,
)
from pytest_quantgate.comparison.recipe_lines import (
    compare_recipe_lines,
    compare_recipes,
)
from pytest_quantgate.comparison.report_measurements import (
    compare_fidelity,
    compare_latency,
    compare_parity,
    compare_roundtrip,
)
from pytest_quantgate.evidence.calibration import Calibrated, CalibrationImages
from pytest_quantgate.evidence.outcomes import averages_classes, unpack_scores
from pytest_quantgate.evidence.verdict import Status
from pytest_quantgate.report import FORMAT
from pytest_quantgate.report.json_report import read_report as parse_report
from pytest_quantgate.report.model import (
    AuditFacts,
    ClassFacts,
    EngineFacts,
    GateResult,
    OnnxFacts,
    OutcomeFacts,
    QuantizerFacts,
    RecipeFacts,
    Report,
    SuiteReport,
    TaskFacts,
)
from pytest_quantgate.text.words import count, group, listed, percent, tally
from pytest_quantgate.untrusted import parse_json, read_regular

#: Of a gate that turned red, so many lines of its evidence are repeated.
EVIDENCE_LINES = 2

#: Fewer samples of a class are no sign that it was lost.
LEAST_OF_A_CLASS = 3


def is_report(data: object) -> bool:
    """Return whether a JSON value says of itself that it is a report."""
    return isinstance(data, Mapping) and data.get("format") == FORMAT


def read_report(path: Path) -> Report:
    """Return the report in a file; raises ReportError or DiffError for what is none."""
    try:
        report = parse_report(read_regular(path, max_bytes=bounds.JSON_BYTES), name=path.as_posix())
    except OSError as error:
        raise DiffError(f"{path} cannot be read: {error.strerror or error}") from error
    try:
        for suite in report.suites:
            for task in suite.tasks:
                for facts in (task.fp16, task.quantized):
                    unpack_scores(facts.correct_bits, count=task.samples)
    except ValueError as error:
        raise DiffError(f"{path} is damaged: {error}: make the report again") from error
    return report


def compare_reports(
    before: Report,
    after: Report,
    *,
    labels: tuple[str, str],
    match: Sequence[tuple[str, str]] = (),
) -> Comparison:
    """Return what differs between two runs, suite by suite.

    `match` are suites of the first and of the second run that are compared with each other, by name
    or file, and then no others are. Raises DiffError for a suite that its run has not.
    """
    changes: list[Change] = []
    same: list[str] = []
    notes: list[str] = []
    olds = {suite.file or suite.name: suite for suite in before.suites}
    news = {suite.file or suite.name: suite for suite in after.suites}
    if match:
        pairs = [
            (_find_suite(before, old, label=labels[0]), _find_suite(after, new, label=labels[1]))
            for old, new in match
        ]
        notes += [f"{old.name} of {labels[0]} is compared with {new.name} of {labels[1]}"
                  for old, new in pairs]  # fmt: skip
    elif len(olds) == len(news) == 1:
        pairs = [(next(iter(olds.values())), next(iter(news.values())))]
    else:
        pairs = [(olds[name], news[name]) for name in olds if name in news]
        for kind, suites in (
            ("removed", [suite for file, suite in olds.items() if file not in news]),
            ("added", [suite for file, suite in news.items() if file not in olds]),
        ):
            changes += [
                Change(
                    area="gates",
                    kind=kind,
                    subjects=(suite.name,),
                    text=f"suite {kind}: {suite.name}: {suite.conclusion.sentence}",
                )
                for suite in suites
            ]
    for old, new in pairs:
        timed, as_before = compare_latency(old.latency, new.latency, suite=new.name)
        found = [*compare_suite_reports(old, new), *timed]
        changes += found
        if not found:
            same.append(f"{new.name}: {new.conclusion.sentence}")
        same += as_before
        notes += _list_unmeasured(old, new)
    changes += compare_texts(
        dict(before.environment.packages), dict(after.environment.packages), area="versions"
    )
    changes += compare_texts(
        {"python": before.environment.python, "pytest-quantgate": before.product_version},
        {"python": after.environment.python, "pytest-quantgate": after.product_version},
        area="versions",
    )
    changes += compare_texts(
        {"system": before.environment.system, "processor": before.environment.processor},
        {"system": after.environment.system, "processor": after.environment.processor},
        area="other",
    )
    for kind, here, there in (("removed", before, after), ("added", after, before)):
        changes += [
            Change(
                area="gates", kind=kind, subjects=(error[:80],), text=f"error {kind}: {error[:300]}"
            )
            for error in here.errors
            if error not in there.errors
        ]
    return Comparison(
        kind="report",
        before=labels[0],
        after=labels[1],
        changes=tuple(changes),
        same=tuple(same),
        notes=tuple(notes),
    )


def _find_suite(report: Report, name: str, *, label: str) -> SuiteReport:
    """Return the suite of a report by its name or file; raises DiffError with those there are."""
    found = [
        suite
        for suite in report.suites
        if name in (suite.name, suite.file, suite.file.rpartition("/")[2].partition(".")[0])
    ]
    if len(found) == 1:
        return found[0]
    known = ", ".join(suite.file or suite.name for suite in report.suites) or "none"
    what = "has no suite" if not found else "has several suites"
    raise DiffError(f"--match: {label} {what} {name!r} (it has: {known})")


def compare_suite_reports(before: SuiteReport, after: SuiteReport) -> list[Change]:
    """Return what differs between two runs of a suite; clock times and file places do not count."""
    name = after.name
    changes = _compare_gates(before, after)
    if before.recipe is not None and after.recipe is not None:
        old, new = before.recipe, after.recipe
        changes += compare_texts(
            {f"{name}: recipe": old.name}, {f"{name}: recipe": new.name}, area="recipe"
        )
        words = [_recipe_words(facts, other=other) for facts, other in ((old, new), (new, old))]
        changes += compare_recipes(words[0], words[1])
        both = before.audit is not None and after.audit is not None
        changes += compare_recipe_lines(
            _exclude_words(old, before.audit if both else None),
            _exclude_words(new, after.audit if both else None),
        )
    if before.audit is not None and after.audit is not None:
        changes += compare_quantizers(
            _stored(before.audit.quantizers), _stored(after.audit.quantizers)
        )
        changes += _compare_states(before.audit.quantizers, after.audit.quantizers)
    changes += _compare_tasks(before.tasks, after.tasks, suite=name)
    changes += compare_fidelity(before.fidelity, after.fidelity, suite=name)
    changes += compare_roundtrip(before.roundtrip, after.roundtrip, suite=name)
    changes += _compare_onnx(before.onnx, after.onnx, suite=name)
    changes += compare_parity(before.parity, after.parity, suite=name)
    changes += _compare_engines(before, after)
    if before.model is not None and after.model is not None:
        changes += compare_texts(_facts(before, name=name), _facts(after, name=name), area="model")
        changes += compare_texts(
            {f"{name}: {key}": value for key, value in before.versions.items()},
            {f"{name}: {key}": value for key, value in after.versions.items()},
            area="versions",
        )
    changes += compare_calibration(_calibrated(before), _calibrated(after), suite=f"{name}:")
    return changes


def _recipe_words(facts: RecipeFacts, *, other: RecipeFacts) -> tuple[str, ...]:
    """Return a recipe as lines in words; one that is its name is opened where the other differs."""
    lines = facts.lines
    if lines == other.lines:
        return lines
    if len(lines) == 1:
        from pytest_quantgate.quantization.recipes import named_recipes

        known = named_recipes().get(lines[0])
        if known is not None:
            return describe_recipe(known)
    return describe_recipe(_read_lines(lines)) if _is_inline(lines) else lines


def _is_inline(lines: Sequence[str]) -> bool:
    """Return whether lines are those of an inline recipe: one JSON value an entry."""
    try:
        return bool(_read_lines(lines))
    except (ValueError, TypeError):
        return False


def _read_lines(lines: Sequence[str]) -> Any:
    """Return the recipe that `report.evidence.recipe_lines` wrote; raises ValueError."""
    entries, named = [], {}
    for line in lines:
        if line.startswith("{"):
            entries.append(parse_json(line))
        else:
            key, _, value = line.partition(": ")
            named[key] = parse_json(value)
    if not named:
        return entries
    head = {key: named.pop(key) for key in ("algorithm",) if key in named}
    return {**head, "quant_cfg": entries or named}


def _exclude_words(facts: RecipeFacts, audit: AuditFacts | None) -> list[str]:
    words = []
    for pattern in facts.exclude:
        matched = audit.excludes.get(pattern) if audit is not None else None
        said = "" if matched is None else f" ({count(matched, 'quantizer')})"
        words.append(f"exclude {pattern}{' (it matches none)' if matched == 0 else said}")
    return words


def _list_unmeasured(before: SuiteReport, after: SuiteReport) -> list[str]:
    notes = []
    for field, word in (
        ("model", "the model"),
        ("recipe", "the recipe"),
        ("calibration", "the calibration"),
        ("audit", "the quantizers"),
        ("fidelity", "fidelity"),
        ("tasks", "tasks"),
        ("roundtrip", "the round trip"),
        ("onnx", "exported files"),
        ("parity", "parity"),
        ("engines", "engines"),
        ("latency", "times"),
    ):
        there = [bool(getattr(side, field)) for side in (before, after)]
        if there[0] != there[1]:
            side = "after" if there[0] else "before"
            notes.append(f"{after.name}: {word} not compared: not measured {side}")
    return notes


def _compare_gates(before: SuiteReport, after: SuiteReport) -> list[Change]:
    changes: list[Change] = []
    olds = {gate.name: gate for gate in before.gates}
    news = {gate.name: gate for gate in after.gates}
    verdicts: dict[tuple[str, str, tuple[str, ...]], list[str]] = {}
    for name in [*olds, *(name for name in news if name not in olds)]:
        old, new = olds.get(name), news.get(name)
        if old is None or new is None:
            kind = "added" if old is None else "removed"
            here = old or new
            assert here is not None
            changes.append(
                Change(
                    area="gates",
                    kind=kind,
                    subjects=(f"{after.name} {name}",),
                    text=f"{after.name}: gate {name} {kind}: {here.status} {here.brief}".rstrip(),
                    lines=_explain(here) if here.status != "PASS" else (),
                )
            )
        elif old.status != new.status:
            now_red = Status[new.status].severity > Status[old.status].severity
            key = (old.status, new.status, _explain(new if now_red else old))
            verdicts.setdefault(key, []).append(name)
        elif new.status != "PASS" and _explain(old)[0] != _explain(new)[0]:
            verdicts.setdefault((old.status, new.status, _explain(new)), []).append(name)
    changes = [*_describe_verdicts(verdicts, suite=after.name), *changes]
    if before.conclusion.status != after.conclusion.status:
        changes.insert(
            0,
            Change(
                area="gates",
                kind="changed",
                subjects=(after.name,),
                text=f"{after.name}: {before.conclusion.sentence} -> {after.conclusion.sentence}",
                before=before.conclusion.status,
                after=after.conclusion.status,
            ),
        )
    return changes


def _describe_verdicts(
    verdicts: Mapping[tuple[str, str, tuple[str, ...]], list[str]], *, suite: str
) -> list[Change]:
    """Return a change for each verdict; gates that say the same stand together."""
    return [
        Change(
            area="gates",
            kind="changed",
            subjects=tuple(f"{suite} {name}" for name in names),
            text=f"{suite}: {', '.join(names)}: "
            + (f"{old} -> {new}" if old != new else f"still {new}, for another reason"),
            before=old,
            after=new,
            lines=lines,
        )
        for (old, new, lines), names in verdicts.items()
    ]


def _explain(gate: GateResult) -> tuple[str, ...]:
    """Return what a red gate says: its headline, the first evidence and the likely cause."""
    cause = f"likely cause: {gate.cause}" if gate.cause else ""
    lines = [gate.headline, *gate.evidence[:EVIDENCE_LINES], cause]
    return tuple(line for line in lines if line)


def _stored(quantizers: Iterable[QuantizerFacts]) -> dict[str, StoredQuantizer]:
    found = {}
    for facts in quantizers:
        if not facts.format:
            continue  # meant, and not in the model at all
        amax: tuple[float, ...] | None = None
        if facts.amax_min is not None and facts.amax_max is not None:
            amax = (facts.amax_max,)
            if facts.amax_count > 1 and facts.amax_min != facts.amax_max:
                amax = (facts.amax_min, facts.amax_max)
        found[facts.name] = StoredQuantizer(
            name=facts.name,
            enabled=facts.enabled,
            format=facts.format,
            granularity=facts.granularity,
            dynamic=facts.dynamic,
            amax=amax,
            calls=facts.calls,
        )
    return found


def _compare_states(
    before: Iterable[QuantizerFacts], after: Iterable[QuantizerFacts]
) -> list[Change]:
    """Return the quantizers that get less far, or farther, on the way to the engine."""
    olds = {facts.name: facts for facts in before}
    moved: dict[tuple[str, str], list[str]] = {}
    both = [facts for facts in after if facts.format and olds.get(facts.name, facts).format]
    for facts in both:
        old = olds.get(facts.name)
        if old is not None and old.enabled and facts.enabled and old.lost_at != facts.lost_at:
            moved.setdefault((old.lost_at, facts.lost_at), []).append(facts.name)
    return [
        Change(
            area="quantizers",
            kind="lost elsewhere",
            subjects=tuple(names),
            text=f"{count(len(names), 'quantizer')} {_lost(old)} before, {_lost(new)} now: "
            f"{describe_places(names, all_of=[facts.name for facts in both])}",
            lines=group(names),
            before=old or "nowhere",
            after=new or "nowhere",
            figures={"quantizers": len(names)},
        )
        for (old, new), names in moved.items()
    ]


def _lost(stage: str) -> str:
    return f"lost at stage {stage}" if stage else "lost nowhere"


def _compare_tasks(
    before: Iterable[TaskFacts], after: Iterable[TaskFacts], *, suite: str
) -> list[Change]:
    changes: list[Change] = []
    olds = {_task_name(task): task for task in before}
    for task in after:
        old = olds.get(_task_name(task))
        if old is None:
            continue
        for field, word in (("fp16", "FP16"), ("quantized", "quantized")):
            changes += compare_results(
                _sampled(getattr(old, field), old),
                _sampled(getattr(task, field), task),
                subject=f"{suite} {_task_name(task)} {field}",
                what=f"{suite}: {_task_name(task)}: {word}",
                metric=task.metric,
            )
        changes += _compare_data(old, task, suite=suite)
        changes += _compare_soundness(old, task, suite=suite)
        changes += _compare_classes(old, task, suite=suite)
        flips = (old.answers_changed, task.answers_changed)
        if flips[0] != flips[1]:
            changes.append(
                Change(
                    area="accuracy",
                    kind="flips",
                    subjects=(f"{suite} {_task_name(task)}",),
                    text=f"{suite}: {_task_name(task)}: answers that differ from FP16's "
                    f"{flips[0]} -> {flips[1]} of {task.samples}",
                    before=str(flips[0]),
                    after=str(flips[1]),
                    figures={"before": flips[0], "after": flips[1]},
                )
            )
    return changes


def _compare_data(before: TaskFacts, after: TaskFacts, *, suite: str) -> list[Change]:
    """Return which part of the evaluation data is another one."""
    if before.data_digest == after.data_digest:
        return []
    old, new = before.data_parts, after.data_parts
    shared = [part for part in old if part in new]
    others = [part for part in shared if old[part] != new[part]]
    if not others:
        return []  # a report of an older release does not say
    kept = [part for part in shared if part not in others]
    return [
        Change(
            area="data",
            kind="other data",
            subjects=(f"{suite} {_task_name(after)}",),
            text=f"{suite}: {_task_name(after)}: other {' and '.join(others)}"
            + (f"; {', '.join(kept)} are the same" if kept else ""),
            before=before.data_digest[:12],
            after=after.data_digest[:12],
        )
    ]


def _compare_soundness(before: TaskFacts, after: TaskFacts, *, suite: str) -> list[Change]:
    """Return samples with NaN or Inf, and values that are not what their samples say."""
    sides = []
    for task in (before, after):
        found = {}
        for word, facts in (("FP16", task.fp16), ("quantized", task.quantized)):
            name = f"{suite}: {_task_name(task)}: {word}"
            found[f"{name}: samples with NaN or Inf"] = str(facts.nonfinite)
            counted = facts.right / task.samples if task.samples else 0.0
            agrees = averages_classes(task.metric) or abs(facts.value - counted) <= 1e-9
            found[f"{name}: the value reported"] = (
                "what its samples say"
                if agrees
                else f"{percent(facts.value)}, but {tally(facts.right)} of {task.samples} samples "
                f"are right, {percent(counted)}"
            )
        sides.append(found)
    return compare_texts(sides[0], sides[1], area="accuracy")


def _compare_classes(before: TaskFacts, after: TaskFacts, *, suite: str) -> list[Change]:
    """Return the classes of which the quantized variant lost, or won, most of the samples."""
    olds = {facts.name: facts for facts in before.classes}
    moved: dict[str, list[tuple[ClassFacts, ClassFacts]]] = {"class lost": [], "class won": []}
    for new in after.classes:
        old = olds.get(new.name)
        if old is None or old.samples != new.samples or before.data_digest != after.data_digest:
            continue
        change = new.quantized_right - old.quantized_right
        if abs(change) >= max(LEAST_OF_A_CLASS, new.samples / 2):
            moved["class won" if change > 0 else "class lost"].append((old, new))
    return [
        Change(
            area="accuracy",
            kind=kind,
            subjects=tuple(new.name for _, new in pairs),
            text=f"{suite}: {_task_name(after)}: {_count_classes(len(pairs))} "
            f"{'lost' if kind == 'class lost' else 'won'} at least half of the samples: "
            + listed(
                [
                    f"{new.name!r} {tally(old.quantized_right)} -> {tally(new.quantized_right)} "
                    f"right of {new.samples}"
                    for old, new in pairs
                ]
            ),
        )
        for kind, pairs in moved.items()
        if pairs
    ]


def _count_classes(number: int) -> str:
    return "1 class" if number == 1 else f"{number} classes"


def _task_name(task: TaskFacts) -> str:
    stage = "" if task.stage == "torch" else f" in {task.stage}"
    return f"{task.task} {task.metric}{stage}"


def _sampled(facts: OutcomeFacts, task: TaskFacts) -> Sampled:
    return Sampled(
        value=facts.value,
        correct=unpack_scores(facts.correct_bits, count=task.samples),
        ids_digest=task.ids_digest,
        data_digest=task.data_digest,
    )


def _compare_onnx(
    before: Iterable[OnnxFacts], after: Iterable[OnnxFacts], *, suite: str
) -> list[Change]:
    changes: list[Change] = []
    olds = {(facts.variant, facts.tower): facts for facts in before}
    for facts in after:
        old = olds.get((facts.variant, facts.tower))
        if old is None:
            continue
        name = f"{suite}: ONNX {facts.variant} {facts.tower}"
        lost, found = set(facts.lost) - set(old.lost), set(old.lost) - set(facts.lost)
        for kind, names in (("removed", lost), ("added", found)):
            if names:
                word = "lost in the export now" if kind == "removed" else "in the export again"
                changes.append(
                    Change(
                        area="quantizers",
                        kind=kind,
                        subjects=tuple(sorted(names)),
                        text=f"{name}: {count(len(names), 'quantizer')} {word}: "
                        f"{listed(sorted(names))}",
                    )
                )
        changes += _compare_counts(
            {
                f"{name}: Q/DQ pairs": old.pairs,
                f"{name}: undeclared pairs": old.undeclared,
                f"{name}: opset": old.opset,
            },
            {
                f"{name}: Q/DQ pairs": facts.pairs,
                f"{name}: undeclared pairs": facts.undeclared,
                f"{name}: opset": facts.opset,
            },
            area="engine",
        )
        changes += _compare_counts(
            {f"{name}: file bytes": old.file_bytes, **_by_type(old, name)},
            {f"{name}: file bytes": facts.file_bytes, **_by_type(facts, name)},
            area="sizes",
        )
        changes += compare_texts(
            {f"{name}: file": old.digest[:12]}, {f"{name}: file": facts.digest[:12]}, area="engine"
        )
    return changes


def _by_type(facts: OnnxFacts, name: str) -> dict[str, int]:
    return {f"{name}: {kind} weight bytes": size for kind, size in facts.weights_bytes.items()}


def _compare_engines(before: SuiteReport, after: SuiteReport) -> list[Change]:
    suite = after.name
    changes: list[Change] = []

    def key(facts: EngineFacts) -> tuple[str, str, str, int, str]:
        return (facts.variant, facts.tower, facts.target, facts.batch, facts.library)

    olds = {key(facts): facts for facts in before.engines}
    for facts in after.engines:
        old = olds.get(key(facts))
        if old is None:
            continue
        name = f"{suite}: engine {facts.target} {facts.variant} {facts.tower} batch {facts.batch}"
        changes += compare_texts(
            {f"{name}: built from": _origin(old, before.onnx)},
            {f"{name}: built from": _origin(facts, after.onnx)},
            area="engine",
        )
        changes += _compare_counts(_precisions(old, name), _precisions(facts, name), area="engine")
        moved: dict[tuple[str, str], list[str]] = {}
        for layer in [*old.layers, *(n for n in facts.layers if n not in old.layers)]:
            pair = (old.layers.get(layer, "absent"), facts.layers.get(layer, "absent"))
            if pair[0] != pair[1]:
                moved.setdefault(pair, []).append(layer)
        changes += [
            Change(
                area="engine",
                kind="precision changed",
                subjects=tuple(layers),
                text=f"{name}: {count(len(layers), 'layer')} {was} -> {now}: {listed(layers)}",
                before=was,
                after=now,
                figures={"layers": len(layers)},
            )
            for (was, now), layers in moved.items()
        ]
        changes += _compare_counts(_sizes(old, name), _sizes(facts, name), area="sizes")
        changes += compare_texts(
            {f"{name}: {old.library}": old.library_version},
            {f"{name}: {facts.library}": facts.library_version},
            area="versions",
        )
    return changes


def _origin(engine: EngineFacts, files: Iterable[OnnxFacts]) -> str:
    """Return whether an engine is of the ONNX file that was exported."""
    for file in files:
        if (file.variant, file.tower) == (engine.variant, engine.tower):
            if file.digest != engine.onnx_digest:
                return "another ONNX file than the one exported"
            break
    return "the exported ONNX file"


def _precisions(facts: EngineFacts, name: str) -> dict[str, int]:
    return {
        f"{name}: linear in FP8": facts.fp8_gemm_nodes,
        f"{name}: linear": facts.gemm_nodes,
        f"{name}: attention fused in FP8": facts.attentions_fused_fp8,
        f"{name}: attention": facts.attentions,
        **{f"{name}: nodes in {kind}": number for kind, number in facts.precisions.items()},
    }


def _sizes(facts: EngineFacts, name: str) -> dict[str, int]:
    return {
        f"{name}: plan bytes": facts.plan_bytes,
        f"{name}: weights bytes": facts.weights_bytes,
        f"{name}: activation bytes": facts.activation_bytes,
    }


def _compare_counts(
    before: Mapping[str, int], after: Mapping[str, int], *, area: Area
) -> list[Change]:
    changes = []
    for name in [*before, *(name for name in after if name not in before)]:
        old, new = before.get(name, 0), after.get(name, 0)
        if old != new:
            ratio = f" ({new / old:.3f}x)" if old and area == "sizes" else ""
            changes.append(
                Change(
                    area=area,
                    kind="changed",
                    subjects=(name,),
                    text=f"{name}: {old} -> {new}{ratio}",
                    before=str(old),
                    after=str(new),
                    figures={"before": old, "after": new},
                )
            )
    return changes


def _facts(suite: SuiteReport, *, name: str) -> dict[str, str]:
    facts = suite.model
    found = {f"{name}: device": suite.device} if suite.device else {}
    if facts is not None:
        found |= {
            f"{name}: model": facts.description,
            f"{name}: model revision": facts.revision or "none",
            f"{name}: model digest": facts.digest[:12],
            f"{name}: model dtype": facts.dtype,
            f"{name}: attn_implementation": facts.attn_implementation,
        }
    return found


def _calibrated(suite: SuiteReport) -> Calibrated:
    facts = suite.calibration
    if facts is None:
        return Calibrated()
    found = {
        "calibration data": facts.data,
        "calibration samples": str(facts.samples),
        "calibration batch size": str(facts.batch_size),
        "calibration batches": str(facts.batches),
        "calibration held out": str(facts.held_out_samples),
        "calibration digest": facts.digest[:12],
        "not finite in calibration": listed(facts.nonfinite) or "none",
    }
    for tower, batches in facts.tower_batches.items():
        found[f"calibration batches through the {tower} tower"] = str(batches)
    images = None
    if facts.contents_digest:
        images = CalibrationImages(
            sources=facts.sources,
            contents=facts.contents_digest,
            order=facts.order_digest,
            held_out=facts.held_out_overlap,
        )
    return Calibrated(facts=found, images=images)
