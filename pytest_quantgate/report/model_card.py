"""A `Report` -> the verdict in a Hugging Face model card: a section of its text, and `model-index`.

The card is its author's. Ours are the lines between two comments, and the metrics whose names end
with the product's; everything else stays as it is, but for the layout of the metadata, which
huggingface_hub writes anew.
"""

from __future__ import annotations

import importlib.util
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from pytest_quantgate import bounds
from pytest_quantgate.errors import MissingPackage, ReportError
from pytest_quantgate.report.markdown import describe_origin, render_accuracy, render_gates
from pytest_quantgate.report.markdown_text import escape
from pytest_quantgate.report.model import Report, SuiteReport, TaskFacts
from pytest_quantgate.report.parts import STATUSES
from pytest_quantgate.store.disk import describe_write_error, write_whole
from pytest_quantgate.untrusted import check_yaml, read_regular

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

BEGIN = "<!-- pytest-quantgate: a run writes what stands up to the next such line -->"
END = "<!-- pytest-quantgate: end -->"

#: How the names of our metrics end: those of a run replace those of the run before.
OURS = "(pytest-quantgate)"

_HEAD = re.compile(r"\A\s*---\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)


def check_card(path: Path, *, option: str) -> None:
    """Raise ReportError for a card that could not be written, before a run takes its time."""
    if importlib.util.find_spec("huggingface_hub") is None:
        missing = MissingPackage("huggingface_hub", extra="clip", purpose=f"{option}: a model card")
        raise ReportError(str(missing))
    _read(path, option=option)


def update_card(path: Path, report: Report, *, option: str) -> None:
    """Write the verdict of a report into a card, which is made if it is not there.

    Raises ReportError, and leaves the card, where it is no text, its metadata cannot be read, or it
    cannot be written.
    """
    text = render_card(_read(path, option=option), report, name=str(path))
    try:
        write_whole(path, text.encode("utf-8", "backslashreplace"))
    except OSError as error:
        reason = describe_write_error(error, folder=path.parent)
        raise ReportError(f"{option}: cannot write {path}: {reason}") from error


def _read(path: Path, *, option: str) -> str:
    if not os.path.lexists(path):
        return ""
    try:
        if path.is_symlink():
            raise OSError(0, "it is a link")
        return read_regular(path, max_bytes=bounds.CARD_BYTES).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ReportError(f"{option}: {path} is not UTF-8: save it as UTF-8") from error
    except OSError as error:
        raise ReportError(f"{option}: {path}: {error.strerror or error}") from error


def render_card(text: str, report: Report, *, name: str) -> str:
    """Return the text of a card with the verdict in it; raises ReportError, beginning with `name`.

    The metadata is read and written by huggingface_hub's own `ModelCard`.
    """
    from huggingface_hub import ModelCard

    head = _HEAD.match(text)
    try:
        check_yaml(head[1] if head else "")
        known = (yaml.safe_load(head[1]) if head else None) or {}
        card = ModelCard(text if head else f"---\n{{}}\n---\n{text}")
    except (ValueError, TypeError, AttributeError, KeyError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ReportError(f"{name}: its metadata cannot be read: {reason}") from error
    if len(known.get("model-index") or ()) > 1:
        raise ReportError(
            f"{name}: its model-index is of several models, and a verdict is of one: keep a card "
            f"for each"
        )
    data: Any = card.data  # a ModelCardData, which its class does not say
    others = [r for r in data.eval_results or () if not (r.metric_name or "").endswith(OURS)]
    results = [*others, *(found for suite in report.suites for found in _list_results(suite))]
    data.eval_results = results or None
    if results and not data.model_name:
        data.model_name = _name_model(report)
    card.text = _place(card.text, render_section(report))
    return str(card) if data.to_dict() else card.text


def _name_model(report: Report) -> str:
    found = (suite.model.description for suite in report.suites if suite.model)
    return next(found, "a quantized model")


def _place(text: str, section: str) -> str:
    """Return a text with our section in the place of the one before, else at its end."""
    start, end = text.find(BEGIN), text.find(END)
    if 0 <= start < end:
        return f"{text[:start]}{section}{text[end + len(END) :]}"
    above = f"{text.rstrip()}\n\n" if text.strip() else ""
    return f"{above}{section}\n"


def render_section(report: Report) -> str:
    """Return the verdict as a section of Markdown, between its two comments."""
    conclusion = report.conclusion
    lines = [BEGIN, "## Verdict on the quantized model", ""]
    lines += [f"{STATUSES[conclusion.status][0]} **{escape(conclusion.sentence)}**"]
    for suite in report.suites:
        if suite.tasks:
            lines += render_accuracy(suite)
        lines += render_gates(suite)
    return "\n".join((*lines, "", f"<sub>{describe_origin(report)}</sub>", END))


def _list_results(suite: SuiteReport) -> Iterator[EvalResult]:
    """Yield what the quantized variant of a suite reaches, as the hub's leaderboards read it."""
    from huggingface_hub import EvalResult

    for task in suite.tasks:
        value = task.quantized.value
        if math.isfinite(value):
            dataset, _, purpose = task.task.rpartition("/")
            yield EvalResult(
                task_type=_name_task(task),
                task_name=f"{purpose} of {suite.name}",
                dataset_type=dataset,
                dataset_name=dataset,
                metric_type="accuracy" if task.metric == "acc1" else task.metric,
                metric_name=f"{task.metric}, {task.stage}, {task.samples} samples {OURS}",
                metric_value=round(value, 6),
            )


def _name_task(task: TaskFacts) -> str:
    return "zero-shot-image-classification" if task.classes else "image-feature-extraction"
