"""Files that teams hand over, good ones and spoiled ones, before `quantgate check`.

Which files, what is done to each and which code must name it stands in `handed.yaml`; what the
verbs there do in `handed_edits.py`. An engine with its report is put before what ties it to its
files.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from benchmarks.sabotage.handed_edits import Step, apply
from benchmarks.sabotage.handed_files import Library
from pytest_quantgate.artifacts.given_engine import ReportFiles, check_sums, read_engine_report
from pytest_quantgate.errors import ArtifactError, GivenFileError, Untied
from pytest_quantgate.inspection.inspect import inspect_paths
from pytest_quantgate.runtimes.engine_graph import read_onnx

TABLE = Path(__file__).with_name("handed.yaml")

#: What stands for a file that is not read at all, in the place of a finding's code.
REFUSED = "refused"


@dataclass(frozen=True, kw_only=True)
class Handed:
    """One good hand-over: `tool` wrote it, and `known` are the codes of what is true of it."""

    name: str
    tool: str
    row: Mapping[str, Any]
    known: tuple[str, ...] = ()
    because: str = ""


@dataclass(frozen=True, kw_only=True)
class Spoiled:
    """One spoiled hand-over: `code` must be among its findings, and `at` match the text of it.

    `base` are edits of the FP16 model that it is compared with. `finding` says what is not seen.
    """

    name: str
    file: str
    edits: tuple[Step, ...] = ()
    code: str
    at: str
    base: tuple[Step, ...] = ()
    finding: str = ""


@dataclass(frozen=True, kw_only=True)
class Found:
    """What is said of one file: texts by code."""

    said: Mapping[str, Sequence[str]]
    canary: bool = False


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A row of the page."""

    handed: Handed
    spoiled: Spoiled | None
    found: Found
    seconds: float

    @property
    def title(self) -> str:
        return self.spoiled.name if self.spoiled is not None else f"good: {self.handed.name}"

    @property
    def new(self) -> tuple[str, ...]:
        """The codes that the good hand-over does not have."""
        return tuple(code for code in self.found.said if code not in self.handed.known)

    @property
    def is_right(self) -> bool:
        """Whether a spoiled one is named by code and place, and a good one has no other code."""
        if self.found.canary:
            return False
        if self.spoiled is None:
            return set(self.found.said) == set(self.handed.known)
        texts = self.found.said.get(self.spoiled.code, ())
        known = self.spoiled.code in self.handed.known
        return not known and any(re.search(self.spoiled.at, text) for text in texts)


@dataclass(frozen=True, kw_only=True)
class Table:
    """What `handed.yaml` says."""

    files: Mapping[str, Handed]
    spoiled: tuple[Spoiled, ...] = field(default=())


def read_table(path: Path = TABLE) -> Table:
    """Return the table; raises ValueError for a row that names no file."""
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    files = {}
    for row in data["files"]:
        files[row["name"]] = Handed(
            name=row["name"],
            tool=row["tool"],
            row=row,
            known=tuple(row.get("known", ())),
            because=row.get("because", ""),
        )
    spoiled = tuple(_read_row(row) for row in data["spoiled"])
    unknown = [row.name for row in spoiled if row.file not in files]
    if unknown:
        raise ValueError(f"{path.name}: {unknown[0]} is of no file that is listed")
    return Table(files=files, spoiled=spoiled)


def _read_row(row: Mapping[str, Any]) -> Spoiled:
    fields: dict[str, Any] = {**row, **{k: tuple(row.get(k, ())) for k in ("edits", "base")}}
    return Spoiled(**fields)


class HandedBench:
    """Copies of good hand-overs below a folder, spoiled and read."""

    def __init__(self, folder: Path, *, table: Table, library: Library | None = None) -> None:
        self.folder = folder
        self.table = table
        self.library = library or Library(folder)

    def find(self, name: str) -> Path:
        """Return a good hand-over by its name in the table."""
        return self.library.find(self.table.files[name].row)

    def run(self, spoiled: Spoiled | None = None, *, good: str = "") -> Outcome:
        """Return what is said of a good hand-over, or of a spoiled copy of one."""
        handed = self.table.files[spoiled.file if spoiled else good]
        started = time.perf_counter()
        path, base = self.find(handed.name), self.library.base
        if spoiled is not None:
            place = self.folder / "spoiled" / re.sub(r"\W+", "-", spoiled.name)
            shutil.rmtree(place, ignore_errors=True)
            path = _copy(path, place / "file")
            apply(spoiled.edits, path=path, find=self.find)
            if spoiled.base:
                base = _copy(base, place / "base")
                apply(spoiled.base, path=base, find=self.find)
        found = _judge_engine(path) if (path / "layers.json").exists() else _check(path, base=base)
        canary = spoiled is not None and any((self.folder / "spoiled").rglob("CANARY"))
        return Outcome(
            handed=handed,
            spoiled=spoiled,
            found=Found(said=found, canary=canary),
            seconds=time.perf_counter() - started,
        )

    def run_all(self, *, only: str = "") -> list[Outcome]:
        """Return the outcomes of all rows whose name matches, good ones first."""
        good = [self.run(good=name) for name in self.table.files if re.search(only, name)]
        return [*good, *(self.run(row) for row in self.table.spoiled if re.search(only, row.name))]


def _copy(source: Path, folder: Path) -> Path:
    """Copy a folder, or a file with what lies beside it under its name."""
    if source.is_dir():
        shutil.copytree(source, folder, copy_function=shutil.copyfile)
        folder.chmod(0o755)
        return folder
    folder.mkdir(parents=True)
    for path in {source, *source.parent.glob(f"{source.stem}.data")}:
        shutil.copyfile(path, folder / path.name)
    return folder / source.name


def _check(path: Path, *, base: Path) -> dict[str, list[str]]:
    report = inspect_paths([path], base=base)
    said: dict[str, list[str]] = {}
    for finding in report.findings:
        text = " ".join((finding.headline, finding.cause, *finding.subjects))
        said.setdefault(finding.code, []).append(text)
    for refusal in report.refusals:
        said.setdefault(REFUSED, []).append(refusal.reason)
    return said


def _judge_engine(folder: Path) -> dict[str, list[str]]:
    """Return how a gate names what is wrong with an engine and its report, as `Stages` does it."""
    names = {"layers": "layers.json", "engine": "model.plan", "sums": "build.sha256"}
    try:
        files = ReportFiles.read({key: folder / name for key, name in names.items()})
        _, digest, graph = read_onnx(folder / "model.onnx")
        check_sums(files, onnx_name="model.onnx", onnx_digest=digest)
        read_engine_report(
            files, graph=graph, names={}, onnx_digest=digest, target="sm89", library="tensorrt-rtx"
        )
    except Untied as error:
        return {error.finding: [str(error)]}
    except ArtifactError as error:
        return {GivenFileError.finding: [str(error)]}
    return {}


# -- the page --------------------------------------------------------------------------------------


def render_page(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """Yield the lines of handed.md."""
    good = [o for o in outcomes if o.spoiled is None]
    spoiled = [o for o in outcomes if o.spoiled is not None]
    named = sum(o.is_right for o in spoiled)
    clean = sum(not o.found.said for o in good)
    yield "# Files that are handed over"
    yield ""
    yield (
        f"Written by `python -m benchmarks.sabotage --handed`. **{named} of {len(spoiled)} spoiled "
        f"files are named by the right code, at the right place**, and {sum(map(_right, good))} of "
        f"{len(good)} good ones, of {len({o.handed.tool for o in good})} tools, have no finding "
        f"that is not true of them: {clean} have none at all. What is done to each stands in "
        f"`handed.yaml`."
    )
    yield ""
    yield "## Good ones"
    yield ""
    yield "| file | written by | said | why it is true |"
    yield "|---|---|---|---|"
    for outcome in good:
        codes = ", ".join(f"`{code}`" for code in outcome.found.said) or "nothing"
        mark = "" if outcome.is_right else "**wrong:** "
        yield (
            f"| {outcome.handed.name} | {outcome.handed.tool} | {mark}{codes} | "
            f"{outcome.handed.because} |"
        )
    yield ""
    yield "## Spoiled ones"
    yield ""
    yield "| what was done | to | code | also said |"
    yield "|---|---|---|---|"
    for outcome in spoiled:
        row = outcome.spoiled
        assert row is not None
        also = ", ".join(f"`{code}`" for code in outcome.new if code != row.code)
        code = f"`{row.code}`" if outcome.is_right else f"**not named** ({row.finding or row.code})"
        yield f"| {row.name} | {row.file} | {code} | {also} |"


def _right(outcome: Outcome) -> bool:
    return outcome.is_right
