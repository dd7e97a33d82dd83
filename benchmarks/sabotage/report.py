"""The results as a page and as a few lines for the terminal. Pure: results in, text out."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from benchmarks.sabotage.rivals import Rival, list_rivals
from benchmarks.sabotage.run import Result, kind_of
from pytest_quantgate.evidence.verdict import Verdict
from pytest_quantgate.selftest.sabotage import whole_text

#: What a cell says of one gate.
NAMED, RED, GREEN, NOT_ASKED, NOT_MEASURED = "**●**", "●", "·", "", "–"

#: Columns of gates, by what a gate's name starts with.
COLUMNS: Mapping[str, str] = {
    "sanity": "sanity",
    "coverage": "coverage",
    "calibration": "calibration",
    "fidelity": "fidelity",
    "accuracy": "accuracy",
    "regression": "regression",
    "roundtrip": "roundtrip",
    "export": "export",
    "parity": "parity",
    "engine": "engine",
    "memory": "memory",
    "latency": "latency",
}

MESSAGE_LENGTH = 180


def render_page(results: Sequence[Result], *, versions: Mapping[str, str]) -> Iterator[str]:
    """Yield the lines of report.md."""
    sabotages = [result for result in results if not result.entry.is_control]
    controls = [result for result in results if result.entry.is_control]
    yield "# The sabotage bench"
    yield ""
    yield (
        f"{len(sabotages)} ways in which a quantized CLIP release goes wrong and {len(controls)} "
        "good releases, put before the gates of pytest-quantgate and before what people use today, "
        "all on the reference model. Written by `python -m benchmarks.sabotage`"
        f" ({', '.join(f'{name} {version}' for name, version in versions.items())})."
    )
    yield ""
    yield "A gate catches a sabotage when it does not say PASS; it names it when its verdict has"
    yield "the code of the true cause, and its text says where (a regular expression; both stand in"
    yield "the catalogue and are checked by machine). Rivals see the same models and the same"
    yield "answers (of the exported model, where the export is damaged);"
    yield "each is implemented as its source has it, with the suite's limits where it needs one."
    yield "Where ModelOpt or ONNX Runtime stops by itself, that counts as caught for all of them."
    yield "Who compares with a stored value is given the good release's, whatever the data: most of"
    yield "their reds under sanity, and their alarm on pictures in two classes, come from that."
    yield ""
    yield from _summary(sabotages, controls)
    yield from _by_theme(sabotages)
    yield from _not_caught(sabotages)
    yield from _sabotages(sabotages)
    yield from _matrix(sabotages)
    yield from _controls(controls)
    yield from _sources()


def render_lines(results: Sequence[Result]) -> Iterator[str]:
    """Yield the summary for a terminal."""
    sabotages = [result for result in results if not result.entry.is_control]
    controls = [result for result in results if result.entry.is_control]
    width = max(len(name) for name, *_ in _scores(sabotages, controls))
    for name, caught, named, alarms in _scores(sabotages, controls):
        yield (
            f"{name:<{width}}  caught {_share(caught, len(sabotages))}"
            + (f", cause named {_share(named, len(sabotages))}" if named is not None else "")
            + f", false alarms {_share(alarms, len(controls))}"
        )
    for result in sabotages:
        if not result.named:
            entry = result.entry
            why = "by principle" if entry.principle else entry.finding or "cause not named"
            yield (
                f"  {'NOT CAUGHT' if not result.caught else 'NOT NAMED'} ({why}): "
                f"{result.entry.title}"
            )
    for result in controls:
        if result.red or result.unmeasured:
            names = ", ".join((*result.red, *result.unmeasured))
            yield f"  FALSE ALARM: {result.entry.name}: {names}"


def _scores(
    sabotages: Sequence[Result], controls: Sequence[Result]
) -> list[tuple[str, int, int | None, int]]:
    ours: tuple[str, int, int | None, int] = (
        "pytest-quantgate",
        sum(result.caught for result in sabotages),
        sum(result.named for result in sabotages),
        sum(bool(result.red or result.unmeasured) for result in controls),
    )
    theirs = [
        (
            rival.name,
            sum(result.answers[rival.name].red for result in sabotages),
            None,
            sum(result.answers[rival.name].red for result in controls),
        )
        for rival in list_rivals()
    ]
    return [ours, *theirs]


def _share(count: int, of: int) -> str:
    return f"{count} of {of} ({100 * count / of:.0f} %)" if of else "-"


def _summary(sabotages: Sequence[Result], controls: Sequence[Result]) -> Iterator[str]:
    yield "## Summary"
    yield ""
    yield "| | sabotages caught | cause named | false alarms on good releases |"
    yield "|---|---|---|---|"
    for name, caught, named, alarms in _scores(sabotages, controls):
        shown = _share(named, len(sabotages)) if named is not None else "names none"
        yield (
            f"| {name} | {_share(caught, len(sabotages))} | {shown} | "
            f"{_share(alarms, len(controls))} |"
        )
    yield ""


def _by_theme(sabotages: Sequence[Result]) -> Iterator[str]:
    yield "## Caught, by theme"
    yield ""
    rivals = list_rivals()
    yield "| theme | " + " | ".join(("pytest-quantgate", *(r.name for r in rivals))) + " |"
    yield "|---" * (2 + len(rivals)) + "|"
    for theme in dict.fromkeys(result.entry.theme for result in sabotages):
        rows = [result for result in sabotages if result.entry.theme == theme]
        cells = [sum(result.caught for result in rows)]
        cells += [sum(result.answers[rival.name].red for result in rows) for rival in rivals]
        yield f"| {theme} ({len(rows)}) | " + " | ".join(str(cell) for cell in cells) + " |"
    yield ""


def _not_caught(sabotages: Sequence[Result]) -> Iterator[str]:
    rows = [result for result in sabotages if not result.named or result.entry.principle]
    if not rows:
        return
    yield "## Not caught, or caught without the true cause"
    yield ""
    yield "| sabotage | what happens | why |"
    yield "|---|---|---|"
    for result in rows:
        red = ", ".join(result.red) or "every gate passes"
        why = result.entry.principle or result.entry.finding or "not known yet"
        yield f"| {result.entry.title} | {red} | {why} |"
    yield ""


def _sabotages(sabotages: Sequence[Result]) -> Iterator[str]:
    rivals = list_rivals()
    yield "## Every sabotage"
    yield ""
    yield (
        f"In the columns of the rivals {RED} is red, {GREEN} is green: "
        + ", ".join(f"{index} {rival.name}" for index, rival in enumerate(rivals, start=1))
        + "."
    )
    yield ""
    numbers = " | ".join(str(index) for index in range(1, len(rivals) + 1))
    yield f"| sabotage | named by | what it says | {numbers} |"
    yield "|---" * (3 + len(rivals)) + "|"
    for result in sabotages:
        names = dict.fromkeys(_short(name) for name in result.namers or result.red)
        by = ", ".join(names) or "nothing"
        answers = " | ".join(RED if result.answers[rival.name].red else GREEN for rival in rivals)
        yield (f"| {result.entry.title} | {by} | {escape(_message(result))} | {answers} |")
    yield ""


def _message(result: Result) -> str:
    """Return the words of the gate that names the cause: its first line, and the cause."""
    names = result.namers or result.red
    if not names:
        return ""
    verdict = result.verdicts[names[0]]
    text = re.sub(r"\s*\([^()]*reference\.quantgate\.yaml[^()]*\)", "", verdict.headline)
    text = re.sub(r"\S*reference\.quantgate\.yaml:\d+: ", "", text)
    text = re.sub(r"\S+/([\w.-]+\.(?:json|onnx|txt))\b", r"\1", text)  # no folder of this machine
    if not re.search(result.entry.cause, text) and verdict.cause:
        text = f"{text}; likely cause: {verdict.cause}"
    return text if len(text) <= MESSAGE_LENGTH else text[: MESSAGE_LENGTH - 3].rstrip() + "..."


def _matrix(sabotages: Sequence[Result]) -> Iterator[str]:
    yield "## Sabotage and gate"
    yield ""
    yield (
        f"{NAMED} red, and names the true cause; {RED} red; {GREEN} green; {NOT_MEASURED} not "
        "measured; empty: not asked."
    )
    yield ""
    yield "| sabotage | " + " | ".join(COLUMNS.values()) + " |"
    yield "|---" * (1 + len(COLUMNS)) + "|"
    for result in sabotages:
        cells = " | ".join(_cell(result, kind) for kind in COLUMNS)
        yield f"| {result.entry.title} | {cells} |"
    yield ""


def _cell(result: Result, kind: str) -> str:
    names = [name for name in result.verdicts if kind_of(name) == kind]
    if not names:
        return NOT_ASKED
    if any(name in result.namers for name in names):
        return NAMED
    if any(name in result.red for name in names):
        return RED
    return NOT_MEASURED if all(name in result.unmeasured for name in names) else GREEN


def _controls(controls: Sequence[Result]) -> Iterator[str]:
    rivals = list_rivals()
    yield "## Good releases"
    yield ""
    numbers = " | ".join(str(index) for index in range(1, len(rivals) + 1))
    yield f"| release | gates asked | alarms | {numbers} |"
    yield "|---" * (3 + len(rivals)) + "|"
    for result in controls:
        alarms = ", ".join((*result.red, *result.unmeasured)) or "none"
        answers = " | ".join(RED if result.answers[rival.name].red else GREEN for rival in rivals)
        yield f"| {result.entry.name} | {len(result.verdicts)} | {alarms} | {answers} |"
    yield ""


def _sources() -> Iterator[str]:
    yield "## The rivals"
    yield ""
    yield "| | rule | source |"
    yield "|---|---|---|"
    for rival in list_rivals():
        yield _source(rival)
    yield ""


def _source(rival: Rival) -> str:
    return f"| {rival.name} | {escape(rival.rule)} | {escape(rival.source)} |"


def _short(name: str) -> str:
    kind, _, key = name.partition("[")
    return f"{kind} (onnx)" if key.endswith("-onnx]") else kind


def escape(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def describe(verdict: Verdict) -> str:
    """Return a verdict in one line, for whoever watches."""
    return f"{verdict.status.value} {whole_text(verdict).splitlines()[0]}"
