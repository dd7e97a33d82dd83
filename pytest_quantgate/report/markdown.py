"""A `Report` -> Markdown of at most 60 lines, for a step summary or a comment. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from pytest_quantgate.report.facts import (
    absent_kinds,
    describe_machine,
    figure,
    gate_of,
    list_followers,
    list_missing,
    task_name,
    worst_parts,
)
from pytest_quantgate.report.markdown_text import escape
from pytest_quantgate.report.model import (
    GateResult,
    OwnTestResult,
    Report,
    StatusName,
    SuiteReport,
)
from pytest_quantgate.report.numbers import show_bytes, show_percent, show_points, show_ratio
from pytest_quantgate.report.parts import GREEN_OR_UNKNOWN, STATUSES
from pytest_quantgate.text.words import tally

MAX_LINES = 60

#: A cell of a table is no longer than this: the whole stands in the HTML report.
MAX_CELL = 300


def render_markdown(report: Report) -> str:
    """Return the report in at most `MAX_LINES` lines, what matters most first."""
    lines = list(_render_top(report))
    sections = [list(section) for section in _sections(report)]
    foot = ["", f"<sub>{describe_origin(report)}</sub>"]
    room = MAX_LINES - len(foot)
    for section in sections:
        if len(lines) + len(section) <= room:
            lines.extend(section)
        elif section[0] == "" and len(lines) + 6 <= room:
            fitting = section[: room - len(lines) - 1]
            lines.extend((*fitting, _more(section, kept=len(fitting))))
    return "\n".join((*lines[:room], *foot)) + "\n"


def _more(section: Sequence[str], *, kept: int) -> str:
    number = len(section) - kept
    text = f"... and {number} more: see the HTML report"
    return f"| {text} |" if section[kept].startswith("|") else f"- {text}"


def _sign(status: StatusName) -> str:
    return STATUSES[status][0]


def _render_top(report: Report) -> Iterator[str]:
    conclusion = report.conclusion
    yield f"<!-- pytest-quantgate report version {report.version} -->"
    yield f"## {_sign(conclusion.status)} {escape(_cut(conclusion.sentence))}"
    yield ""
    parts = []
    for suite in report.suites:
        of = f"{suite.name}: " if len(report.suites) > 1 else ""
        for reason, names in list_missing(suite).items():
            parts.append(f"{of}{_few(names)} ({_cut(reason, 80)})")
        absent = absent_kinds(suite)
        if absent:
            parts.append(f"{of}no gate asks for {', '.join(absent)}")
    yield f"**Not measured:** {escape(_cut('; '.join(parts) or 'nothing is missing'))}"
    if report.stopped:
        yield f"- stopped early: {escape(_cut(report.stopped))}"
    for line in (*report.errors[:3], *report.incomparable[:3], *report.unanswered[:3]):
        yield f"- {escape(_cut(line))}"


def _sections(report: Report) -> Iterator[list[str]]:
    """Yield blocks of lines, the most important first; each is kept, cut or left out as a whole."""
    red = [
        (suite, gate)
        for suite in report.suites
        for gate in suite.gates
        if gate.status not in GREEN_OR_UNKNOWN
    ]
    for suite, gate in red:
        if not gate.follows:
            yield list(_render_failure(gate, suite=suite))
    for test in report.own_tests:
        if test.status != "PASS":
            yield list(_render_own_test(test))
    if report.results:
        yield list(_render_results(report))
    for suite in report.suites:
        yield list(render_gates(suite))
    for suite in report.suites:
        if suite.tasks:
            yield list(render_accuracy(suite))
    for suite in report.suites:
        yield list(_render_cost(suite))


def _render_failure(gate: GateResult, *, suite: SuiteReport) -> Iterator[str]:
    yield ""
    code = f" ({escape(gate.code)})" if gate.code else ""
    yield f"**{_sign(gate.status)} {escape(gate.name)}**: {escape(_cut(gate.headline, 600))}{code}"
    if gate.cause:
        yield f"- likely cause: {escape(_cut(gate.cause))}"
    if gate.next_step:
        yield f"- next step: {escape(_cut(gate.next_step))}"
    for line in gate.evidence[:3]:
        yield f"- {escape(_cut(line))}"
    followers = [other.name for other in list_followers(gate, suite)]
    if followers:
        yield f"- follow from it: {escape(_cut(', '.join(followers)))}"


def _render_results(report: Report) -> Iterator[str]:
    yield ""
    yield f"| {len(report.results)} results | where | gates | when |"
    yield "|---|---|--:|---|"
    for result in report.results:
        gates = sum(len(gates) for gates in result.answered.values())
        sign, machine = _sign(result.conclusion.status), describe_machine(result)
        yield (
            f"| {sign} {escape(_cut(result.name))} | {escape(_cut(machine))} | {gates} | "
            f"{escape(result.created[:16])} |"
        )


def _render_own_test(test: OwnTestResult) -> Iterator[str]:
    yield ""
    code = f" ({escape(test.code)})" if test.code else ""
    yield f"**{_sign(test.status)} {escape(test.test)}**: {escape(_cut(test.headline, 600))}{code}"
    for number, attempt in enumerate(test.attempts, start=1):
        yield f"- attempt {number}: {attempt.status} {escape(_cut(attempt.headline))}"


def render_gates(suite: SuiteReport) -> Iterator[str]:
    """Yield a table of the gates of a suite, red ones first."""
    yield ""
    yield f"| {_sign(suite.conclusion.status)} | {escape(suite.name)} | result |"
    yield "|---|---|---|"
    order = sorted(suite.gates, key=lambda gate: gate.status == "PASS")  # stable: red first
    for gate in order:
        said = f"follows from {gate.follows}" if gate.follows else gate.brief
        yield f"| {_sign(gate.status)} | {escape(gate.name)} | {escape(_cut(said))} |"
    for name in suite.not_run:
        reason = escape(_cut(suite.not_run_because.get(name, "")))
        yield f"| {_sign('NOT_MEASURED')} | {escape(name)} | did not run: {reason} |"


def render_accuracy(suite: SuiteReport) -> Iterator[str]:
    """Yield a table of the tasks of a suite: both variants, the drop, and its limit."""
    yield ""
    yield f"| {escape(suite.name)}: task | FP16 | quantized | drop, pp | limit | lost / won |"
    yield "|---|--:|--:|--:|--:|--:|"
    for task in suite.tasks:
        gate = gate_of(task, suite)
        drop = show_points((task.fp16.value - task.quantized.value) * 100)
        limit = "-"
        if gate is not None:
            low, high, most = (
                show_points(figure(gate, name))
                for name in ("drop_low_points", "drop_high_points", "max_drop_points")
            )
            drop, limit = f"{drop} [{low}, {high}]".replace("[", r"\[").replace("]", r"\]"), most
        yield (
            f"| {escape(task_name(task))} | {show_percent(task.fp16.value)} | "
            f"{show_percent(task.quantized.value)} | {drop} | {limit} | "
            f"{task.right_to_wrong} / {task.wrong_to_right} |"
        )
    for task in suite.tasks:
        worst = worst_parts(task.classes)[:3]
        if worst:
            named = ", ".join(
                f"{facts.name} {tally(facts.right_to_wrong)} lost, "
                f"{tally(facts.wrong_to_right)} won of "
                f"{facts.samples}"
                for facts in worst
            )
            yield ""
            yield f"Worst classes of {escape(task_name(task))}: {escape(_cut(named))}"
            return  # of the first task that has some: a summary is short


def _render_cost(suite: SuiteReport) -> Iterator[str]:
    parts = []
    sizes: dict[str, dict[str, int]] = {}
    for facts in suite.onnx:
        sizes.setdefault(facts.tower, {})[facts.variant] = facts.file_bytes
    both = {tower: found for tower, found in sizes.items() if len(found) == 2}
    if both:
        quantized = sum(found["quantized"] for found in both.values())
        ratio = show_ratio(quantized, sum(found["fp16"] for found in both.values()))
        parts.append(f"ONNX ({', '.join(both)}) {show_bytes(quantized)} ({ratio} of FP16)")
    parts.extend(
        f"engine {engine.target} {engine.tower} {engine.fp8_gemm_nodes} of {engine.gemm_nodes} "
        f"linear in FP8"
        for engine in suite.engines
        if engine.variant == "quantized"
    )
    for gate in suite.gates:
        if math.isfinite(figure(gate, "latency_ratio")):
            parts.append(f"{gate.name} {figure(gate, 'latency_ratio'):.2f}x of FP16's time")
    yield ""
    if parts:
        yield f"**{escape(suite.name)}:** {escape(_cut('; '.join(parts), 600))}"
    if suite.audit:
        counts: dict[str, int] = {}
        for quantizer in suite.audit.quantizers:
            counts[quantizer.state] = counts.get(quantizer.state, 0) + 1
        counts.pop("off", None)
        shown = ", ".join(f"{number} {state}" for state, number in counts.items())
        yield f"**Quantizers:** {shown or 'none'}"
    for note in suite.notes:
        yield f"- note: {escape(_cut(note))}"


def describe_origin(report: Report) -> str:
    """Return what was judged, when, and with which versions, in a line."""
    parts = [f"pytest-quantgate {report.product_version}", report.created]
    if report.environment.commit:
        parts.append(f"revision {report.environment.commit[:12]}")
    for suite in report.suites:
        if suite.model and suite.recipe:
            parts.append(
                f"{suite.name}: model {suite.model.digest[:12]}, recipe {suite.recipe.name}, "
                f"{suite.device}"
            )
    names = ("torch", "nvidia-modelopt", "transformers")
    packages = report.environment.packages
    parts.extend(f"{name} {packages[name]}" for name in names if name in packages)
    return escape(_cut("; ".join(parts), 600))


def _few(names: Sequence[str], most: int = 4) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + rest


def _cut(text: str, most: int = MAX_CELL) -> str:
    return text if len(text) <= most else f"{text[: most - 3].rstrip()}..."
