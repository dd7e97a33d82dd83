"""What two paths or revisions hold, and their comparison."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar, get_args

from pytest_quantgate import bounds
from pytest_quantgate.artifacts.checkpoints import is_checkpoint, read_checkpoint
from pytest_quantgate.comparison.baseline_files import compare_records, read_records
from pytest_quantgate.comparison.changes import Comparison, DiffError, combine
from pytest_quantgate.comparison.checkpoints import compare_checkpoints
from pytest_quantgate.comparison.report_files import compare_reports, is_report, read_report
from pytest_quantgate.comparison.revisions import (
    Range,
    extract,
    prefix,
    resolve_range,
    split_range,
)
from pytest_quantgate.comparison.suite_files import compare_suites, read_suites
from pytest_quantgate.errors import QuantGateError
from pytest_quantgate.store.records import Kind as BaselineKind
from pytest_quantgate.store.records import find_timed
from pytest_quantgate.suite.names import SUFFIX
from pytest_quantgate.untrusted import parse_json, read_regular

Kind = Literal["checkpoint", "baseline", "suite", "report", "onnx"]

Found = TypeVar("Found")

_WORDS: dict[Kind, str] = {
    "checkpoint": "a checkpoint",
    "baseline": "baselines",
    "suite": "suites",
    "report": "a JSON report",
    "onnx": "exported ONNX files",
}


def kind_of(path: Path) -> Kind:
    """Return what a path holds; raises DiffError for nothing that can be compared."""
    if not path.exists():
        raise DiffError(f"{path} does not exist")
    if path.is_file():
        return _kind_of_file(path)
    if not path.is_dir():
        raise DiffError(f"{path} is neither a file nor a folder")
    if is_checkpoint(path):
        return "checkpoint"
    if (path / "report.json").is_file():
        return "report"
    if any(path.rglob(f"*{SUFFIX}")):
        return "suite"
    if any(any(path.rglob(f"{kind}-*.json")) for kind in get_args(BaselineKind)):
        return "baseline"
    if any(path.rglob("*.onnx")):
        return "onnx"
    raise DiffError(
        f"{path} holds no checkpoint (*.safetensors), no baselines (*/regression-*.json), no "
        f"suites (*{SUFFIX}), no report.json and no *.onnx"
    )


def _kind_of_file(path: Path) -> Kind:
    if path.name.endswith(SUFFIX):
        return "suite"
    if path.suffix == ".onnx":
        return "onnx"
    if path.suffix == ".safetensors":
        raise DiffError(f"{path}: name the folder of the checkpoint, {path.parent}")
    if path.suffix != ".json":
        raise DiffError(f"{path} is no suite (*{SUFFIX}), no baseline and no report (*.json)")
    try:
        data = parse_json(read_regular(path, max_bytes=bounds.JSON_BYTES))
    except OSError as error:
        raise DiffError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise DiffError(f"{path} is damaged: not JSON: {error}") from error
    if is_report(data):
        return "report"
    if isinstance(data, dict) and ("accepted" in data or find_timed(data)):
        return "baseline"
    raise DiffError(f"{path} is neither a baseline nor a report of pytest-quantgate")


def compare_paths(
    before: Path, after: Path, *, match: Sequence[tuple[str, str]] = ()
) -> Comparison:
    """Return what differs between two paths of one kind; raises QuantGateError.

    `match` are suites of two reports to compare with each other, though their names differ.
    """
    kind, other = kind_of(before), kind_of(after)
    if kind != other:
        raise DiffError(
            f"{before} is {_WORDS[kind]}, {after} is {_WORDS[other]}: compare two of a kind"
        )
    if match and kind != "report":
        raise DiffError(f"--match pairs the suites of two JSON reports; {before} is {_WORDS[kind]}")
    labels = (before.as_posix(), after.as_posix())
    if kind == "checkpoint":
        return compare_checkpoints(read_checkpoint(before), read_checkpoint(after))
    by_name = before.is_dir() or after.is_dir()
    if kind == "baseline":
        return compare_records(
            read_records(before), read_records(after), labels=labels, by_name=by_name
        )
    if kind == "suite":
        return compare_suites(
            read_suites(before), read_suites(after), labels=labels, by_name=by_name
        )
    if kind == "onnx":
        from pytest_quantgate.comparison.onnx_files import compare_onnx, read_onnx

        return compare_onnx(read_onnx(before), read_onnx(after), labels=labels)
    reports = [
        read_report(path / "report.json" if path.is_dir() else path) for path in (before, after)
    ]
    return compare_reports(reports[0], reports[1], labels=labels, match=match)


def compare_trees(text: str, *, baselines: str, suites: str, here: Path, room: Path) -> Comparison:
    """Return what two git revisions (`A..B`, `A...B`, or `A` and the work tree) differ in.

    `baselines` and `suites` are folders relative to `here`; `room` is an empty folder to unpack
    into. Raises QuantGateError.
    """
    work_tree = split_range(text) is None
    if work_tree and Path(text).exists():
        raise DiffError(f"{text} is compared with what? quantgate diff {text} OTHER")
    found = resolve_range(f"{text}.." if work_tree else text, folder=here)
    top = prefix(here)
    sides = [room / "before", room / "after"]
    for commit, side in zip((found.before_commit, found.after_commit), sides, strict=True):
        extract(commit, paths=(baselines, suites), folder=here, into=side)
    roots = [side / top for side in sides]
    if work_tree:
        roots[1] = here
        found = Range(
            before=found.before,
            after="work tree",
            before_commit=found.before_commit,
            after_commit="",
        )
    labels = (found.before, found.after)
    parts = []
    if any((root / baselines).is_dir() for root in roots):
        records = [
            _read_side(read_records, root / baselines, root=root, label=label)
            for root, label in zip(roots, labels, strict=True)
        ]
        parts.append(compare_records(records[0], records[1], labels=labels))
    if any((root / suites).is_dir() for root in roots):
        found_suites = [
            _read_side(
                partial(read_suites, relative_to=root), root / suites, root=root, label=label
            )
            for root, label in zip(roots, labels, strict=True)
        ]
        parts.append(compare_suites(found_suites[0], found_suites[1], labels=labels))
    if not parts:
        raise DiffError(
            f"neither {labels[0]} nor {labels[1]} has {baselines}/ or {suites}/ here: name them "
            f"with --baselines DIR and --suites DIR"
        )
    return combine(parts, kind="revisions", before=labels[0], after=labels[1])


def _read_side(
    read: Callable[[Path], dict[str, Found]], path: Path, *, root: Path, label: str
) -> dict[str, Found]:
    """Return what a side has at `path`, nothing where it has none; errors name the side."""
    if not path.is_dir():
        return {}
    try:
        return read(path)
    except QuantGateError as error:
        raise DiffError(f"{label}: {str(error).replace(f'{root}/', '')}") from error
