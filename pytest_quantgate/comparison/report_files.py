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
    Change,
    Comparison,
    DiffError,
    compare_texts,
)
from pytest_quantgate.comparison.quantizers import (
    compare_quantizers,
    describe_places,
)
from pytest_quantgate.comparison.recipe_lines import (
    compare_recipe_lines,
    compare_recipes,
)
from pytest_quantgate.comparison.report_engines import compare_engines, compare_onnx_facts
from pytest_quantgate.comparison.report_measurements import (
    compare_fidelity,
    compare_latency,
    compare_parity,
    compare_roundtrip,
)
from pytest_quantgate.comparison.report_tasks import compare_tasks
from pytest_quantgate.evidence.calibration import Calibrated, CalibrationImages
from pytest_quantgate.evidence.outcomes import unpack_scores
from pytest_quantgate.evidence.verdict import Status
from pytest_quantgate.report import FORMAT
from pytest_quantgate.report.json_report import read_report as parse_report
from pytest_quantgate.report.model import (
    AuditFacts,
    GateResult,
    QuantizerFacts,
    RecipeFacts,
    Report,
    SuiteReport,
)
from pytest_quantgate.text.words import count, group, listed
from pytest_quantgate.untrusted import parse_json, read_regular

#: Of a gate that turned red, so many lines of its evidence are repeated.
EVIDENCE_LINES = 2


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
            {"recipe": old.name}, {"recipe": new.name}, area="recipe", within=name
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
    changes += compare_tasks(before.tasks, after.tasks, suite=name)
    changes += compare_fidelity(before.fidelity, after.fidelity, suite=name)
    changes += compare_roundtrip(before.roundtrip, after.roundtrip, suite=name)
    changes += compare_onnx_facts(before.onnx, after.onnx, suite=name)
    changes += compare_parity(before.parity, after.parity, suite=name)
    changes += compare_engines(before, after)
    if before.model is not None and after.model is not None:
        changes += compare_texts(_facts(before), _facts(after), area="model", within=name)
        changes += compare_texts(before.versions, after.versions, area="versions", within=name)
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


def _facts(suite: SuiteReport) -> dict[str, str]:
    facts = suite.model
    found = {"device": suite.device} if suite.device else {}
    if facts is not None:
        found |= {
            "model": facts.description,
            "model revision": facts.revision or "none",
            "model digest": facts.digest[:12],
            "model dtype": facts.dtype,
            "attn_implementation": facts.attn_implementation,
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
