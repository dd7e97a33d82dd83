"""The sections of one suite in the HTML report, in the order in which a reader asks."""

from __future__ import annotations

import math
import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence

from pytest_quantgate.report import charts
from pytest_quantgate.report.coverage_map import describe_cell, render_map
from pytest_quantgate.report.facts import (
    figure,
    gate_of,
    has_drop,
    list_followers,
    task_name,
    worst_parts,
)
from pytest_quantgate.report.flips import render_flips
from pytest_quantgate.report.history import show_figure
from pytest_quantgate.report.markup import Child, Html, join, tag
from pytest_quantgate.report.model import (
    AuditFacts,
    ClassFacts,
    EngineFacts,
    GateResult,
    LatencyFacts,
    OnnxFacts,
    QuantizerFacts,
    StageFacts,
    SuiteReport,
    TaskFacts,
)
from pytest_quantgate.report.numbers import (
    show_bytes,
    show_percent,
    show_points,
    show_ratio,
    show_value,
)
from pytest_quantgate.report.parts import (
    GREEN_OR_UNKNOWN,
    WORST,
    Charts,
    badge,
    bullets,
    card,
    class_of,
    definitions,
    mark_commands,
    name_place,
    row,
    table,
)
from pytest_quantgate.text.words import count, tally


def render_suite(suite: SuiteReport, *, alone: bool, drawn: Charts) -> Html:
    """Return the sections of a suite; `alone` is whether it is the only one of its report."""
    renderers: dict[str, Callable[[], Html]] = {
        "failures": lambda: _render_failures(suite),
        "gates": lambda: _render_gates(suite),
        "accuracy": lambda: _render_accuracy(suite, drawn=drawn),
        "flips": lambda: join(render_flips(task) for task in suite.tasks if task.flips),
        "coverage": lambda: _render_coverage(suite.audit),
        "layers": lambda: _render_layers(suite, drawn=drawn),
        "stages": lambda: _render_stages(suite),
        "cost": lambda: _render_cost(suite, drawn=drawn),
        "history": lambda: _render_history(suite, drawn=drawn),
        "origin": lambda: _render_origin(suite),
    }
    return join(
        tag(
            "h2",
            badge(suite.conclusion.status),
            f" {suite.name} ",
            tag("small", "advisory: decides nothing ") if suite.advisory else None,
            None if alone else tag("small", suite.conclusion.sentence),
            id=name_place(suite),
            class_="suite-name",
        ),
        (
            card(
                tag("h3", title, id=name_place(suite, anchor)),
                renderers[anchor](),
                decides=anchor in DECIDING,
            )
            for anchor, title in list_sections(suite)
        ),
    )


#: The sections that one decides by: they are never folded.
DECIDING = frozenset(("failures", "gates", "accuracy"))


def list_sections(suite: SuiteReport) -> list[tuple[str, str]]:
    """Return (anchor, title) of the sections that a suite has something to show in."""
    has_cost = suite.onnx or suite.engines or suite.latency or suite.roundtrip
    found: tuple[tuple[str, str, object], ...] = (
        ("failures", "Failures", any(g.status not in GREEN_OR_UNKNOWN for g in suite.gates)),
        ("gates", "Gates", True),
        ("accuracy", "Accuracy", suite.tasks),
        ("flips", "Samples that flipped", any(task.flips for task in suite.tasks)),
        ("coverage", "Coverage", suite.audit),
        ("layers", "Layers", suite.audit),
        ("stages", "Stages", suite.audit and suite.audit.stages),
        ("cost", "Size and speed", has_cost),
        ("history", "History", suite.history),
        ("origin", "Origin", suite.model),
    )
    return [(anchor, title) for anchor, title, there in found if there]


# -- gates --------------------------------------------------------------------------------


def _render_gates(suite: SuiteReport) -> Html:
    """Return a table of the gates; beside others, those that passed are folded."""
    passed = [gate for gate in suite.gates if gate.status == "PASS"]
    others = [gate for gate in suite.gates if gate.status != "PASS"]
    rows = [_gate_row(gate, suite=suite) for gate in others] + [
        tag(
            "tr",
            tag("td", badge("NOT_MEASURED", text="did not run")),
            tag("th", name, scope="row"),
            tag("td", f"no verdict in this run: {suite.not_run_because.get(name, '')}"),
        )
        for name in suite.not_run
    ]
    green = [_gate_row(gate, suite=suite) for gate in passed]
    if not rows:
        return _gates_table(green, caption="Gates")
    fold = tag(
        "details",
        tag("summary", f"{count(len(passed), 'gate')} passed"),
        _gates_table(green, caption="Gates that passed"),
    )
    return join(_gates_table(rows, caption="Gates"), fold if green else None)


def _gate_row(gate: GateResult, *, suite: SuiteReport) -> Html:
    return tag(
        "tr",
        tag("td", badge(gate.status)),
        tag("th", _link_gate(gate, suite=suite), scope="row"),
        tag(
            "td",
            f"follows from {gate.follows}" if gate.follows else gate.brief,
            tag("small", f" (from {', '.join(gate.answered_by)})") if gate.answered_by else None,
        ),
    )


def _gates_table(rows: Sequence[Html], *, caption: str) -> Html:
    return table(["verdict", "gate", "result"], rows, caption=caption, quiet=True, class_="gates")


def _link_gate(gate: GateResult, *, suite: SuiteReport) -> Child:
    """Return a gate's name, linked to its failure or to that of the gate it follows from."""
    if gate.status in GREEN_OR_UNKNOWN:
        return gate.name
    place = name_place(suite, "failures", gate.follows or gate.name)
    return tag("a", gate.name, href=f"#{place}")


def _render_failures(suite: SuiteReport) -> Html:
    """Return what is red, one article a cause: what to do first, evidence folded."""
    return join(
        _render_failure(gate, suite=suite)
        for gate in suite.gates
        if gate.status not in GREEN_OR_UNKNOWN and not gate.follows
    )


def _render_failure(gate: GateResult, *, suite: SuiteReport) -> Html:
    place = [tag("code", each) for each in (gate.where, gate.code) if each]
    again = f"pytest {shlex.quote(f'{suite.file}::{gate.name}')}"
    followers = list_followers(gate, suite)
    names = ", ".join(other.name for other in followers)
    return tag(
        "article",
        tag(
            "h4",
            badge(gate.status),
            " ",
            gate.name,
            id=name_place(suite, "failures", gate.name),
        ),
        tag("p", gate.headline, class_="headline"),
        tag("p", tag("b", "Likely cause: "), mark_commands(gate.cause)) if gate.cause else None,
        tag("p", tag("b", "Next step: "), mark_commands(gate.next_step))
        if gate.next_step
        else None,
        tag("p", f"{len(gate.attempts)} attempts.") if gate.attempts else None,
        _fold(f"Evidence: {count(len(gate.evidence), 'line')}", gate.evidence),
        _fold(
            f"{count(len(followers), 'gate follows', 'gates follow')} from it: {names}",
            [join(tag("b", each.name), f": {each.headline} ", tag("code", each.code))
             for each in followers],
        ),
        tag("p", join(*(join(each, " ") for each in place)), class_="note") if place else None,
        tag("p", "Run it again: ", tag("code", again, class_="command"), class_="note"),
        class_=f"failure f-{class_of(gate.status)}",
    )  # fmt: skip


def _fold(summary: str, lines: Sequence[Child]) -> Html | None:
    """Return lines that open below their summary; nothing for no lines."""
    return tag("details", tag("summary", summary), bullets(lines)) if lines else None


# -- accuracy -----------------------------------------------------------------------------


def _render_accuracy(suite: SuiteReport, *, drawn: Charts) -> Html:
    gates = [gate for gate in suite.gates if gate.kind == "accuracy" and has_drop(gate)]
    heads = ["task", "samples", "FP16", "quantized", "floor", "drop, pp", "interval", "limit, pp",
             "lost", "won", "changed"]  # fmt: skip
    return join(
        tag(
            "div",
            drawn.place(charts.draw_values(gates), caption=_caption_values(gates)),
            drawn.place(
                charts.draw_drops(gates), caption="Drop with its interval; the red bar is its limit"
            ),
            class_="pair",
        )
        if gates
        else None,
        table(
            heads,
            [_accuracy_row(task, gate=gate_of(task, suite)) for task in suite.tasks],
            caption="Accuracy by task",
            numeric=True,
            quiet=True,
        ),
        tag(
            "p",
            "An interval has one-sided limits at the confidence of its gate: a drop is within its "
            "limit where the upper end is. Lost are samples that FP16 has right and the quantized "
            "variant wrong, won the other way round; of graded ones those that score less or more. "
            "Changed are all samples with another answer, "
            "lost and won among them; a task without classes counts those two alone.",
            class_="note",
        ),
        tag(
            "div",
            (
                _render_parts(parts, task=task, noun=noun, plural=plural)
                for task in suite.tasks
                for parts, noun, plural in (
                    (task.classes, "class", "classes"),
                    (task.slices, "slice", "slices"),
                )
                if parts
            ),
            class_="pair",
        ),
    )


def _caption_values(gates: Sequence[GateResult]) -> str:
    floors = [gate for gate in gates if math.isfinite(figure(gate, "floor"))]
    near = len(charts.near_floors(gates))
    caption = "FP16, quantized and the floor" if near else "FP16 and quantized"
    if near < len(floors):
        caption += f"; {count(len(floors) - near, 'floor')} far below in the table alone"
    return caption


def _accuracy_row(task: TaskFacts, *, gate: GateResult | None) -> Html:
    drop, interval, limit, floor = (task.fp16.value - task.quantized.value) * 100, "-", "-", "-"
    if gate is not None:
        drop = figure(gate, "drop_points")
        low, high = figure(gate, "drop_low_points"), figure(gate, "drop_high_points")
        interval = f"[{show_points(low)}, {show_points(high)}]"
        limit = show_points(figure(gate, "max_drop_points"))
        if math.isfinite(figure(gate, "floor")):
            floor = show_percent(figure(gate, "floor"))
    return row(
        join(task_name(task), " ", badge(gate.status) if gate else None),
        task.samples,
        show_percent(task.fp16.value),
        show_percent(task.quantized.value),
        floor,
        show_points(drop),
        interval,
        limit,
        task.right_to_wrong,
        task.wrong_to_right,
        task.answers_changed,
    )


def _render_parts(parts: Sequence[ClassFacts], *, task: TaskFacts, noun: str, plural: str) -> Html:
    heads = [noun, "samples", "FP16", "quantized", "change, pp", "lost", "won"]
    worst = worst_parts(parts)
    title = f"Worst {plural} of {task_name(task)}"
    everything = f"All {len(parts)} {plural} with samples of {task_name(task)}"
    return tag(
        "div",
        tag("h4", title),
        table(
            heads,
            [_class_row(facts) for facts in worst[:WORST]],
            caption=title,
            numeric=True,
            quiet=True,
        )
        if worst
        else tag("p", f"No {noun} lost samples on balance."),
        tag(
            "details",
            tag("summary", everything),
            table(
                heads,
                [_class_row(facts) for facts in parts],
                caption=everything,
                numeric=True,
                quiet=True,
            ),
        ),
    )


def _class_row(facts: ClassFacts) -> Html:
    samples = max(1, facts.samples)
    return row(
        facts.name,
        facts.samples,
        show_percent(facts.fp16_right / samples, 1),
        show_percent(facts.quantized_right / samples, 1),
        show_points((facts.quantized_right - facts.fp16_right) / samples * 100),
        tally(facts.right_to_wrong),
        tally(facts.wrong_to_right),
    )


# -- the model ----------------------------------------------------------------------------


def _render_coverage(audit: AuditFacts | None) -> Html:
    assert audit is not None
    patterns = [f"{pattern} ({count(n, 'quantizer')})" for pattern, n in audit.excludes.items()]
    return join(
        tag("p", "Excluded: ", tag("code", ", ".join(patterns))) if patterns else None,
        render_map(audit),
        tag(
            "p",
            "Columns: in, w, out are the input, weight and output of a layer; q, k, v the operands "
            "of attention, p its probabilities, o its output. Hover or focus a cell for its "
            "numbers; arrow keys walk a map.",
            class_="note",
        ),
    )


def _render_layers(suite: SuiteReport, *, drawn: Charts) -> Html:
    audit, fidelity = suite.audit, suite.fidelity
    assert audit is not None
    sqnr = dict(fidelity.worst_layers) if fidelity else {}
    figures: list[Html] = []
    if any(math.isfinite(db) for db in sqnr.values()):
        modules = dict.fromkeys(facts.module for facts in audit.quantizers)
        chart = charts.draw_layers(
            [(name, sqnr[name]) for name in modules if name in sqnr],
            towers={facts.module: facts.tower for facts in audit.quantizers},
        )
        caption = "Noise that each layer adds by itself"
        hidden = sum(not math.isfinite(db) for db in sqnr.values())
        if hidden:
            caption += f"; {count(hidden, 'layer')} with none, or not finite, not drawn"
        figures.append(drawn.place(chart, caption=caption))
    chart = charts.draw_amax(audit.quantizers)
    if chart.marks:
        there, on = len(chart.marks), sum(facts.enabled for facts in audit.quantizers)
        caption = f"Calibrated range (amax) of {there} of {count(on, 'quantizer')} that are on"
        if there < on:
            caption += "; the others are dynamic, or have no amax above 0 that is finite"
        figures.append(drawn.place(chart, caption=caption))
    shown = [facts for facts in audit.quantizers if facts.state != "off"]
    return join(
        tag("div", figures, class_="pair") if figures else None,
        tag("div", _render_fidelity(suite), _render_worst_layers(sqnr), class_="pair"),
        tag(
            "details",
            tag(
                "summary",
                f"All {len(shown)} quantizers that are on, or were meant to be, with amax and SQNR",
            ),
            table(
                ["quantizer", "state", "format", "amax", "clipped", "SQNR of its layer"],
                [_quantizer_row(facts, sqnr=sqnr) for facts in shown],
                caption="Quantizers in the model's own order",
            ),
        ),
    )


def _render_fidelity(suite: SuiteReport) -> Html | None:
    fidelity = suite.fidelity
    if fidelity is None:
        return None
    return table(
        ["tower", "samples", "cosine", "worst", "SQNR", "worst"],
        [
            row(
                tower.tower,
                tower.samples,
                f"{tower.cosine_mean:.5f}",
                f"{tower.cosine_worst:.5f}",
                f"{tower.sqnr_mean_db:.1f} dB",
                f"{tower.sqnr_worst_db:.1f} dB",
            )
            for tower in fidelity.towers
        ],
        caption=f"Embeddings against FP16, on {fidelity.data}",
        numeric=True,
    )


def _render_worst_layers(sqnr: Mapping[str, float]) -> Html | None:
    finite = sorted((db, name) for name, db in sqnr.items() if math.isfinite(db))
    if not finite:
        return None
    return table(
        ["layer", "SQNR"],
        [row(name, f"{db:.1f} dB") for db, name in finite[:WORST]],
        caption="Layers that add the most noise",
        numeric=True,
    )


def _quantizer_row(facts: QuantizerFacts, *, sqnr: Mapping[str, float]) -> Html:
    return row(
        facts.name,
        f"{facts.state}: {facts.reason}" if facts.reason else facts.state,
        facts.format if facts.enabled else "-",
        show_value(facts.amax_max) if facts.amax_max is not None else "-",
        show_percent(facts.clipped / facts.seen, 3) if facts.seen else "-",
        f"{sqnr[facts.module]:.1f} dB" if facts.module in sqnr else "-",
    )


# -- stages -------------------------------------------------------------------------------


def _render_stages(suite: SuiteReport) -> Html:
    audit = suite.audit
    assert audit is not None
    targets = list(dict.fromkeys(t for facts in audit.stages for t in facts.engines))
    heads = ["quantizers", "declared", "switched on", "ran in PyTorch", "in ONNX"]
    lost = [facts for facts in audit.quantizers if facts.lost_at]
    return join(
        table(
            [*heads, *(f"engine {target}" for target in targets)],
            [_stage_row(facts, targets=targets) for facts in audit.stages],
            caption="How far the quantizers came, stage by stage",
            numeric=True,
        ),
        tag(
            "details",
            tag("summary", f"{count(len(lost), 'quantizer')} did not reach every stage"),
            bullets(describe_cell(facts) for facts in lost),
        )
        if lost
        else None,
        _render_parity(suite),
    )


def _stage_row(facts: StageFacts, *, targets: Sequence[str]) -> Html:
    steps = [facts.declared, facts.model, facts.forward, facts.onnx]
    cells = [_stage_cell(now, before) for before, now in zip([None, *steps], steps, strict=False)]
    cells += [_stage_cell(facts.engines.get(target), facts.onnx) for target in targets]
    return row(f"{facts.tower} {facts.slot.replace('_', ' ')}", *cells)


def _stage_cell(now: int | None, before: int | None) -> Html:
    if now is None:
        return join("-")
    gone = before - now if before is not None else 0
    return join(now, tag("span", f" {gone} lost", class_="gone") if gone > 0 else None)


def _render_parity(suite: SuiteReport) -> Html | None:
    parity = suite.parity
    if parity is None:
        return None
    return table(
        ["tower", "samples", "error", "own instability", "SQNR in PyTorch", "SQNR in ONNX"],
        [
            row(
                tower.tower,
                tower.samples,
                f"{tower.error:.2e}",
                f"{tower.floor:.2e}",
                f"{tower.sqnr_torch_db:.1f} dB",
                f"{tower.sqnr_onnx_db:.1f} dB",
            )
            for tower in parity.towers
        ],
        caption=f"Exported model against PyTorch, in {parity.runtime}",
        numeric=True,
    )


# -- size and speed -----------------------------------------------------------------------


def _render_cost(suite: SuiteReport, *, drawn: Charts) -> Html:
    sizes = [*_onnx_sizes(suite.onnx), *_engine_sizes(suite.engines)]
    engines = [engine for engine in suite.engines if engine.variant == "quantized"]
    return join(
        tag(
            "p",
            f"The saved checkpoint of the quantized variant takes "
            f"{show_bytes(suite.roundtrip.saved_bytes)}.",
        )
        if suite.roundtrip
        else None,
        tag(
            "div",
            table(["what", "FP16", "quantized", "ratio"], sizes, caption="Sizes", numeric=True)
            if sizes
            else None,
            table(
                ["engine", "library", "linear in FP8", "attention in FP8", "linear and conv"],
                [_engine_row(engine) for engine in engines],
                caption="What the engines compute in",
            )
            if engines
            else None,
            class_="pair",
        ),
        (_render_latency(facts, suite=suite, drawn=drawn) for facts in suite.latency),
        None if suite.latency else tag("p", "Nothing was timed in this run.", class_="note"),
    )


def _onnx_sizes(files: Iterable[OnnxFacts]) -> list[Html]:
    sizes: dict[str, dict[str, int]] = {}
    for facts in files:
        sizes.setdefault(f"ONNX file, {facts.tower}", {})[facts.variant] = facts.file_bytes
    return [_size_row(name, found) for name, found in sizes.items()]


def _engine_sizes(engines: Iterable[EngineFacts]) -> list[Html]:
    sizes: dict[str, dict[str, int]] = {}
    for engine in engines:
        for what, size in (
            ("plan", engine.plan_bytes),
            ("weights", engine.weights_bytes),
            ("activations", engine.activation_bytes),
        ):
            sizes.setdefault(f"{_engine_name(engine)}: {what}", {})[engine.variant] = size
    return [_size_row(name, found) for name, found in sizes.items()]


def _engine_name(engine: EngineFacts) -> str:
    batch = f", batch {engine.batch}" if engine.batch != 1 else ""
    return f"{engine.target} {engine.tower}{batch}"


def _size_row(name: str, sizes: Mapping[str, int]) -> Html:
    before, after = sizes.get("fp16"), sizes.get("quantized")
    return row(
        name,
        show_bytes(before) if before is not None else "-",
        show_bytes(after) if after is not None else "-",
        show_ratio(after, before) if before and after is not None else "-",
    )


def _engine_row(engine: EngineFacts) -> Html:
    return row(
        _engine_name(engine),
        f"{engine.library} {engine.library_version}",
        f"{engine.fp8_gemm_nodes} of {engine.gemm_nodes}",
        f"{engine.attentions_fused_fp8} of {engine.attentions} fused",
        ", ".join(f"{number} {name}" for name, number in sorted(engine.precisions.items())),
    )


def _render_latency(facts: LatencyFacts, *, suite: SuiteReport, drawn: Charts) -> Html:
    gate = next((gate for gate in suite.gates if gate.name == facts.gate), None)
    return join(
        tag("h4", f"{facts.tower} tower, batch {facts.batch}, in {facts.runtime}"),
        tag("p", badge(gate.status), " ", gate.headline) if gate else None,
        drawn.place(
            charts.draw_latency(facts),
            caption=f"{facts.timing or 'Time'} of every round; the upright bar is the median",
        ),
        tag(
            "p",
            f"On {facts.processor}, {count(facts.threads, 'thread')} on "
            f"{count(facts.cores, 'core')}, {facts.device}.",
            class_="note",
        ),
    )


# -- history ------------------------------------------------------------------------------


def _render_history(suite: SuiteReport, *, drawn: Charts) -> Html:
    """Return each figure over the runs: drawn where there are enough, and what drifts."""
    drifts = [facts.drift for facts in suite.history if facts.drift]
    rows = [
        row(
            f"{facts.gate} {facts.figure}",
            len(facts.points),
            *(show_figure(facts.points[at].value, facts.unit) for at in (0, -1)),
            "drifts" if facts.drift else "",
        )
        for facts in suite.history
    ]
    return join(
        bullets(drifts) if drifts else None,
        (
            drawn.place(charts.draw_history(facts), caption=f"{facts.gate} {facts.figure} by run")
            for facts in suite.history
            if len(facts.points) > 2
        ),
        table(
            ["figure", "runs", "first", "this run", ""], rows, caption="Over the runs", numeric=True
        ),
    )


# -- origin -------------------------------------------------------------------------------


def _render_origin(suite: SuiteReport) -> Html:
    model, recipe, calibration = suite.model, suite.recipe, suite.calibration
    rows: list[tuple[str, Child]] = [("suite file", suite.file)]
    if model:
        revision = f" at {model.revision}" if model.revision else ""
        rows.append(
            (
                "model",
                f"{model.description}{revision}, {model.dtype}, {model.attn_implementation} "
                f"attention",
            )
        )
    if recipe:
        rows.append(("recipe", f"{recipe.name}: {', '.join(recipe.formats)}"))
        if recipe.exclude:
            rows.append(("exclude", tag("code", ", ".join(recipe.exclude))))
    if calibration:
        rows.append(
            (
                "calibration",
                f"{calibration.samples} pairs of {calibration.data} in "
                f"{count(calibration.batches, 'batch', 'batches')}, "
                f"{calibration.held_out_samples} held out",
            )
        )
    rows.append(("device", suite.device))
    return join(
        definitions(rows),
        tag(
            "details",
            tag("summary", "The recipe, line by line"),
            tag("pre", Html("\n".join(join(line) for line in recipe.lines)), tabindex=0),
        )
        if recipe and len(recipe.lines) > 1
        else None,
        tag(
            "details",
            tag("summary", "Digests (SHA-256)"),
            definitions((name, tag("code", digest)) for name, digest in _list_digests(suite)),
        ),
    )


def _list_digests(suite: SuiteReport) -> list[tuple[str, str]]:
    found: dict[str, str] = {}
    for name, facts in (
        ("model files", suite.model),
        ("recipe and excludes", suite.recipe),
        ("calibration", suite.calibration),
    ):
        if facts is not None:
            found[name] = facts.digest
    for task in suite.tasks:
        found.setdefault(f"data of {task.task}", task.data_digest)
    for onnx in suite.onnx:
        found[f"ONNX file, {onnx.variant} {onnx.tower}"] = onnx.digest
    for engine in suite.engines:
        found[f"plan, {engine.variant} {_engine_name(engine)}"] = engine.plan_digest
    return list(found.items())
