"""The serves gate: a serving runtime's own loader takes what is handed on, whole and unchanged.

It says that a runtime loads, never that it serves: nothing is asked of the model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Literal

from pytest_quantgate.evidence.verdict import Verdict
from pytest_quantgate.gates.deciding import fail, let_pass, refuse
from pytest_quantgate.gates.run import GateRun, Judged
from pytest_quantgate.suite.gates import GateKind, GateSection
from pytest_quantgate.suite.keys import choice_key, text_key
from pytest_quantgate.text.words import count, group, listed

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pytest_quantgate.evidence.serving import Loaded

GATE = "serves"
_fail = partial(fail, GATE)
_pass = partial(let_pass, GATE)
_refuse = partial(refuse, GATE)

_PASSED_OVER = "its loader passes over names that it does not know, or reads codes as weights"
_OTHERWISE = "hand on another format, or report it to the runtime"


@dataclass(frozen=True, kw_only=True)
class ServesGate(GateSection):
    """Which runtime loads the export; nothing of it is installed here."""

    kind = GATE

    runtime: Literal["vllm"] = field(
        metadata=choice_key("vllm", help="whose loader reads the folder")
    )
    python: str = field(
        metadata=text_key(
            help="the interpreter that the runtime is installed for, as venv/bin/python; it is "
            "run, so the suite says trust: true",
            environment=True,
        )
    )
    folder: str | None = field(
        default=None,
        metadata=text_key(
            help="what is handed on; default: what quantgate export --to compressed-tensors "
            "writes of this suite",
            environment=True,
        ),
    )

    @property
    def runs_code_of(self) -> str:
        return self.python


def judge_loaded(loaded: Loaded, *, gate: ServesGate) -> Verdict:
    """Return whether a runtime's loader put every tensor of a folder in its place, as it is."""
    runtime = f"{loaded.runtime} {loaded.version}"
    figures = {
        "tensors": loaded.tensors,
        "codes": loaded.codes,
        "parameters": loaded.parameters,
    }
    evidence = (f"{loaded.folder} is {loaded.origin}",)
    if loaded.error:
        return _fail(
            "refused",
            f"{runtime} does not load {loaded.folder}: {loaded.error} ({gate.where})",
            brief=f"{runtime} does not load it",
            cause="its model has no place for a tensor, or it does not take the format"
            if loaded.refused_at == "load"
            else "it does not take the settings in config.json",
            next_step="leave out what the runtime has no place for (quantize.exclude), or hand on "
            "another format: quantgate export --to compressed-tensors",
            evidence=evidence,
            figures=figures,
        )
    start = f"{runtime} loads {loaded.folder} without an error, and"
    if loaded.changed:
        said = f"{_count(loaded.changed, 'tensor')} there with other values, or not as codes"
        names = _list(said, loaded.changed)
        return _fail(
            "codes-changed",
            f"{start} {names} ({gate.where})",
            cause=_PASSED_OVER,
            next_step=_OTHERWISE,
            evidence=evidence,
            figures=figures,
        )
    if loaded.lost:
        said = f"{_count(loaded.lost, 'tensor')} nowhere in the model that it made"
        return _fail(
            "tensors-lost",
            f"{start} {_list(said, loaded.lost)} ({gate.where})",
            cause=_PASSED_OVER,
            next_step=_OTHERWISE,
            evidence=evidence,
            figures=figures,
        )
    if loaded.unfilled:
        said = f"{_count(loaded.unfilled, 'parameter')} without a value from the folder"
        names = _list(said, loaded.unfilled)
        return _fail(
            "parameters-unfilled",
            f"{start} {names} ({gate.where})",
            cause=_PASSED_OVER,
            next_step=_OTHERWISE,
            evidence=evidence,
            figures=figures,
        )
    if not loaded.is_tied:
        return _refuse(
            "folder-untied",
            f"{start} {loaded.folder} is {loaded.origin} ({gate.where.of('folder')})",
            brief=f"{loaded.folder} is not tied to what this suite judges",
            cause="the folder was written by something else, or for another suite",
            next_step="write it by quantgate export of this suite, or leave folder out",
            figures=figures,
        )
    prepared = (
        f"its weights could not be made ready for its kernels here: {loaded.unprepared}"
        if loaded.unprepared
        else "its weights were made ready for its kernels"
    )
    unused = (
        (f"it takes no {listed(loaded.unused)}, which is in no embedding",) if loaded.unused else ()
    )
    placed = loaded.tensors - len(loaded.unused)
    return _pass(
        f"{runtime} loads {loaded.folder}: {count(placed, 'tensor')} in place, "
        f"{loaded.codes} of them codes, unchanged; it loads, nothing was served",
        brief=f"{runtime} loads {placed} tensors, {loaded.codes} of them codes",
        evidence=(
            *evidence,
            f"it reads it as {loaded.reads_as or 'not quantized'}",
            prepared,
            *unused,
        ),
        figures=figures,
    )


def _count(names: Sequence[str], noun: str) -> str:
    return f"{count(len(names), noun)} {'is' if len(names) == 1 else 'are'}"


def _list(said: str, names: Sequence[str]) -> str:
    return f"{said}: {listed(group(names))}"


def judge(run: GateRun, gate: ServesGate) -> Judged:
    """Return whether the runtime loads what is handed on."""
    return Judged(verdict=judge_loaded(run.loaded_by(gate), gate=gate))


KIND = GateKind(
    section=ServesGate,
    help="a serving runtime's own loader takes the export whole",
    judge=judge,
    needs_torch=lambda section: section.folder is None,
)
