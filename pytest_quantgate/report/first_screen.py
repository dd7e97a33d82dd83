"""What a reader decides by, before any detail: what ships, what it costs, what nobody measured."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

from pytest_quantgate.report.facts import absent_kinds, figure, gate_of, list_missing, task_name
from pytest_quantgate.report.markup import Child, Html, join, tag
from pytest_quantgate.report.model import GateResult, Report, SuiteReport, TaskFacts
from pytest_quantgate.report.numbers import show_bytes, show_percent, show_points, show_ratio
from pytest_quantgate.report.parts import badge, bullets, definitions, name_place, table
from pytest_quantgate.text.words import count, listed, waivers_words

#: What can ship, and the gates that judge it as such; any other gate judges the PyTorch model.
FORMS: Mapping[str, tuple[str, ...]] = {
    "ONNX": ("export", "parity"),
    "engine": ("engine", "memory"),
    "speed": ("latency", "load"),
}

#: Of a suite's accuracy so many lines stand on the first screen.
TASKS = 6

DIGEST = 12


def describe_scope(suite: SuiteReport) -> str:
    """Return what a verdict is of: `Judged as PyTorch and ONNX; not judged: engine, speed.`"""
    judged = [gate for gate in suite.gates if gate.status != "NOT_MEASURED"]
    if not judged:
        return "Nothing was judged."
    forms = {
        form: any(gate.kind in kinds or _is_of(gate, form) for gate in judged)
        for form, kinds in FORMS.items()
    }
    there = ["PyTorch", *(form for form in ("ONNX", "engine") if forms[form])]
    absent = [form for form in ("ONNX", "engine", "speed") if not forms[form]]
    tail = f"; not judged: {', '.join(absent)}" if absent else ""
    return f"Judged as {' and '.join(there)}{', and its speed' if forms['speed'] else ''}{tail}."


def render_first_screen(report: Report) -> Html:
    """Return a list of what counts for one suite, a table for several."""
    if len(report.suites) == 1:
        return definitions(list(_list_facts(report.suites[0], report=report)))
    if not report.suites:
        return Html("")
    rows = [
        tag(
            "tr",
            tag("td", badge(suite.conclusion.status)),
            tag("th", tag("a", suite.name, href=f"#{name_place(suite)}"), scope="row"),
            tag("td", _describe_shipped(suite)),
            tag("td", _worst_change(suite)),
            tag("td", "; ".join(_list_costs(suite)) or "size and speed not measured"),
        )
        for suite in report.suites
    ]
    return table(
        ["verdict", "suite", "what ships", "largest drop", "size and speed"],
        rows,
        caption="The suites of this run",
        quiet=True,
        class_="gates",
    )


def render_unmeasured(report: Report) -> Html:
    """Say what was not measured, always: a reader must not take silence for completeness."""
    items: list[Html] = []
    for suite in report.suites:
        of = f"{suite.name}: " if len(report.suites) > 1 else ""
        for reason, names in list_missing(suite).items():
            items.append(join(of, tag("b", ", ".join(names)), f": {reason}"))
        absent = absent_kinds(suite)
        if absent:
            items.append(join(of, f"no gate asks for {', '.join(absent)}"))
        items.extend(join(of, note) for note in suite.notes)
    if not items:
        return tag("p", tag("b", "Not measured: "), "nothing that a suite asks for is missing.")
    return join(tag("h2", "What was not measured", class_="small"), bullets(items))


def _list_facts(suite: SuiteReport, *, report: Report) -> Iterator[tuple[str, Child]]:
    if suite.model is not None:
        yield "What ships", _describe_shipped(suite, commit=report.environment.commit)
    changes = [_describe_change(task, suite=suite) for task in suite.tasks]
    if changes:
        more = len(changes) - TASKS
        tail = [f"and {count(more, 'task')} more below"] if more > 0 else []
        yield "Accuracy against FP16", bullets([*changes[:TASKS], *tail])
    accepted = [gate for gate in suite.gates if gate.kind == "regression"]
    if accepted:
        yield (
            "Against what was accepted",
            bullets(join(badge(gate.status), f" {gate.key}: {gate.brief}") for gate in accepted),
        )
    yield "Size and speed", bullets(_list_costs(suite)) if _list_costs(suite) else "not measured"
    yield "Waivers", waivers_words(gate.figures for gate in suite.gates) or "none"


def _describe_shipped(suite: SuiteReport, *, commit: str = "") -> Html:
    model, recipe = suite.model, suite.recipe
    if model is None:
        return join("not known: nothing was built")
    parts: list[Child] = [model.description, ", ", tag("code", model.digest[:DIGEST])]
    if recipe is not None:
        parts += [" quantized by ", tag("code", recipe.name)]
        if recipe.exclude:
            parts += [" without ", tag("code", listed(recipe.exclude, most=3))]
    if commit:
        parts += [", revision ", tag("code", commit[:DIGEST])]
    return join(*parts, f", on {suite.device}" if suite.device else "")


def _describe_change(task: TaskFacts, *, suite: SuiteReport) -> Html:
    gate = gate_of(task, suite)
    before, after = show_percent(task.fp16.value), show_percent(task.quantized.value)
    drop = show_points((task.fp16.value - task.quantized.value) * 100)
    if gate is None:
        return join(f"{task_name(task)}: {before} to {after}, drop {drop} points")
    low, high, most = (
        show_points(figure(gate, name))
        for name in ("drop_low_points", "drop_high_points", "max_drop_points")
    )
    return join(
        badge(gate.status),
        f" {task_name(task)}: {before} to {after}, drop ",
        tag("b", drop),
        f" [{low}, {high}] of at most {most} points",
        "" if gate.status == "PASS" or f"[{low}, {high}]" in gate.brief else f"; {gate.brief}",
    )


def _worst_change(suite: SuiteReport) -> Html:
    """Return the task that lost most, as a cell."""
    if not suite.tasks:
        return join("accuracy not measured")
    worst = max(suite.tasks, key=lambda task: task.fp16.value - task.quantized.value)
    return _describe_change(worst, suite=suite)


def _list_costs(suite: SuiteReport) -> list[str]:
    """Return sizes and times against FP16, where they were measured."""
    costs: list[str] = []
    sizes: dict[str, int] = {}
    towers: dict[str, set[str]] = {"fp16": set(), "quantized": set()}
    for facts in suite.onnx:
        sizes[facts.variant] = sizes.get(facts.variant, 0) + facts.file_bytes
        towers[facts.variant].add(facts.tower)
    if "quantized" in sizes:
        ratio = ""
        if sizes.get("fp16") and towers["fp16"] == towers["quantized"]:
            ratio = f", {show_ratio(sizes['quantized'], sizes['fp16'])} of FP16's"
        costs.append(f"ONNX files {show_bytes(sizes['quantized'])}{ratio}")
    costs += [f"{gate.name}: {gate.brief}" for gate in suite.gates if _is_cost(gate)]
    return costs


def _is_cost(gate: GateResult) -> bool:
    ratio = math.isfinite(figure(gate, "latency_ratio"))
    return (gate.kind in ("memory", "load") and gate.status != "NOT_MEASURED") or ratio


def _is_of(gate: GateResult, form: str) -> bool:
    """Return whether an accuracy gate judged this form of the model: its key ends with it."""
    return gate.kind == "accuracy" and gate.key.endswith(f"-{form.lower()}")
