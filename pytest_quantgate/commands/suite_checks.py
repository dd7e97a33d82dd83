"""Checks of a valid suite against the rest of the world, without running or importing anything big.

`suite/` checks the file against its schema; here names are looked up: recipes, data sets,
variables, patterns. What may be mended outside the file is a note, not an error.
"""

from __future__ import annotations

import difflib
import importlib.util
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_quantgate.errors import (
    ModelError,
    NotMeasured,
    QuantGateError,
    UnsupportedModel,
)
from pytest_quantgate.gates.coverage import CoverageGate
from pytest_quantgate.gates.export import ExportGate
from pytest_quantgate.gates.fidelity import FidelityGate
from pytest_quantgate.gates.parity import ParityGate
from pytest_quantgate.gates.scope import MAX_WAIVER_DAYS
from pytest_quantgate.gates.sections import EngineTarget, TaskGate
from pytest_quantgate.gates.slices import slices_of
from pytest_quantgate.gates.timed import TimedGate
from pytest_quantgate.suite.gates import GateSection
from pytest_quantgate.suite.specs import DatasetSpec, Suite
from pytest_quantgate.suite.where import expand_path

if TYPE_CHECKING:
    from pytest_quantgate.evidence.sanity import Fault, TaskSanity, TextPlaces
    from pytest_quantgate.evidence.verdict import Verdict

#: What a module pattern of ours or of ModelOpt's can be made of.
_PATTERN = re.compile(r"[\w.*?\[\]!-]+")


@dataclass(frozen=True, kw_only=True)
class Findings:
    """`errors` make a suite unusable anywhere; `notes` say what is missing on this machine."""

    errors: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass
class _Found:
    """What was found so far."""

    errors: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Note what the block says is not on this machine, and take what it refuses as an error."""
        try:
            yield
        except NotMeasured as error:
            self.notes.append(str(error))
        except QuantGateError as error:
            self.errors.append(str(error))


def check_suite(suite: Suite, *, environ: Mapping[str, str], today: date | None = None) -> Findings:
    """Return what is wrong with the names in a suite, each with its `file:line`."""
    found = _Found()
    for check in (_check_recipe, _check_datasets, _check_model, _check_given):
        check(suite, found=found, environ=environ)
    found.errors += _check_towers(suite, environ=environ)
    _check_artifacts(suite, found=found, environ=environ)
    found.errors += _check_patterns(suite)
    _check_waivers(suite, found=found, today=today or datetime.now(UTC).date())
    return Findings(errors=tuple(found.errors), notes=tuple(dict.fromkeys(found.notes)))


def _check_given(suite: Suite, *, found: _Found, environ: Mapping[str, str]) -> None:
    from pytest_quantgate.run.given_variant import open_given

    if suite.quantized is not None:
        with found.noting():
            open_given(suite.quantized, environ=environ)


def _check_artifacts(suite: Suite, *, found: _Found, environ: Mapping[str, str]) -> None:
    """Open the files that are handed over, and look whether a gate reads them."""
    from pytest_quantgate.evidence.audit import TOWERS
    from pytest_quantgate.run.exported import VARIANTS
    from pytest_quantgate.run.given_files import open_given_engine, open_onnx

    if suite.artifacts is None:
        return
    if not any(reads_exports(gate) for gate in suite.gates):
        found.errors.append(
            f"{suite.artifacts.where}: no gate reads the artifacts: add export: {{}} and "
            f"parity: {{}}, or leave them out"
        )
    for variant, tower, look in product(VARIANTS, TOWERS, (open_onnx, open_given_engine)):
        with found.noting():
            look(suite.artifacts, variant=variant, tower=tower, environ=environ)


def reads_exports(gate: GateSection) -> bool:
    """Return whether a gate reads ONNX files or what is built of them."""
    if isinstance(gate, TimedGate):
        return gate.runtime != "torch"
    return (
        isinstance(gate, (ExportGate, ParityGate, EngineTarget))
        or getattr(gate, "stage", "torch") != "torch"
    )


def _check_recipe(suite: Suite, *, found: _Found, environ: Mapping[str, str]) -> None:
    from pytest_quantgate.encoders.source import find_recipe_file
    from pytest_quantgate.formats.recipes import read_auto
    from pytest_quantgate.quantization.recipes import named_recipes

    where = suite.variant.where.of("recipe")
    name = suite.variant.recipe
    if name == "":  # what a checkpoint that is handed over declares
        return
    if read_auto(name) is not None:
        return
    if not isinstance(name, str):
        found.errors += [f"{where}: {problem}" for problem in _check_inline(name)]
        return
    with found.noting():
        path = find_recipe_file(name, where=where, environ=environ)
        if name in named_recipes():
            return
        if path is not None:
            if not path.is_file():
                found.errors.append(f"{where}: recipe file {name} does not exist")
        elif "/" in name:
            if not _modelopt_has_recipe(name):
                found.notes.append(
                    f"{where}: recipe id {name!r} is not among those of the ModelOpt that is "
                    f"installed, or none is"
                )
        else:
            found.errors += _check_recipe_name(name, where=where)


def _check_recipe_name(name: str, *, where: str) -> Iterator[str]:
    """Yield that a name is no recipe of this package and no preset of ModelOpt."""
    from pytest_quantgate.quantization.recipes import named_recipes

    presets = _modelopt_presets()
    if name.endswith("_CFG"):
        if presets is not None and name not in presets:
            yield f"{where}: ModelOpt has no preset {name!r}{_suggest(name, presets)}"
        return
    hint = _suggest(name, [*named_recipes(), *(presets or ())], cutoff=0.5)
    hint = hint or f"; known: {', '.join(named_recipes())}"
    yield f"{where}: unknown recipe {name!r}{hint} (or a ModelOpt preset, recipe id or YAML path)"


def _suggest(name: str, known: Iterable[str], *, cutoff: float = 0.6) -> str:
    """Return what was probably meant, to stand behind a message; empty for nothing near."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=cutoff)
    return f"; did you mean {close[0]!r}?" if close else ""


def _check_inline(recipe: Any) -> Iterator[str]:
    """Yield what can never work in an inline `quant_cfg`; its details are ModelOpt's to judge."""
    entries = recipe
    if isinstance(recipe, Mapping) and "quant_cfg" in recipe:
        entries = recipe["quant_cfg"]
        unknown = sorted(set(recipe) - {"quant_cfg", "algorithm", "effective_bits"})
        if unknown:
            yield f"an inline recipe has quant_cfg and algorithm, not {', '.join(unknown)}"
    if isinstance(entries, Mapping):
        if not entries:
            yield "quant_cfg is empty: a recipe that quantizes nothing"
        return
    if not isinstance(entries, (list, tuple)):
        yield f"quant_cfg is a list of entries or a mapping of patterns, not {entries!r}"
        return
    for position, entry in enumerate(entries):
        if not isinstance(entry, Mapping):
            yield f"quant_cfg[{position}] is no mapping with quantizer_name and cfg"
    if entries and all(
        isinstance(entry, Mapping) and entry.get("enable") is False for entry in entries
    ):
        yield "every entry of quant_cfg switches off: it quantizes nothing"


def _modelopt_folder(package: str) -> Path | None:
    """Return where a package lies, found without importing it (its import takes seconds)."""
    from importlib.util import find_spec

    try:
        spec = find_spec(package)
    except (ImportError, ValueError):
        return None
    folders = list(spec.submodule_search_locations or ()) if spec is not None else []
    return Path(folders[0]) if folders else None


def _modelopt_presets() -> frozenset[str] | None:
    """Return the names of ModelOpt's presets, read from its source; None where it is not here."""
    folder = _modelopt_folder("modelopt")
    source = folder / "torch" / "quantization" / "config.py" if folder is not None else None
    if source is None or not source.is_file():
        return None
    text = source.read_text(encoding="utf-8", errors="replace")
    return frozenset(re.findall(r"^([A-Z][A-Z0-9_]*_CFG)\b", text, flags=re.MULTILINE)) or None


def _modelopt_has_recipe(name: str) -> bool:
    folder = _modelopt_folder("modelopt_recipes")
    if folder is None:
        return False
    there = folder / name
    return there.is_dir() or any(
        there.with_name(f"{there.name}{s}").is_file() for s in (".yaml", ".yml")
    )


def _check_datasets(suite: Suite, *, found: _Found, environ: Mapping[str, str]) -> None:
    from pytest_quantgate.tasks.registry import BUILTIN

    used: dict[str, str] = {}
    fidelity = suite.gates.one(FidelityGate)
    if fidelity is not None and fidelity.data:
        used[fidelity.data.rpartition("/")[0]] = fidelity.where.of("data")
    gates: tuple[TaskGate, ...]
    gates = suite.gates.all(TaskGate)
    for gate in gates:
        used.setdefault(gate.task.rpartition("/")[0], gate.where.of("task"))
        if gate.bank is not None:
            used.setdefault(gate.bank.rpartition("/")[0], gate.where.of("bank"))
    used.setdefault(suite.calibration.data.rpartition("/")[0], suite.calibration.where.of("data"))
    known = [*BUILTIN, *suite.datasets]
    for name, where in used.items():
        if name not in known:
            hint = _suggest(name, known) or f"; known here: {', '.join(known)}"
            found.errors.append(
                f"{where}: unknown data set {name!r}{hint}; name others under `datasets:` with "
                f"their root"
            )
    found.errors += _check_slices(suite)
    for name, spec in suite.datasets.items():
        if name not in used:
            found.notes.append(f"{spec.where}: data set {name!r} is declared and never used")
        _check_reader(spec, found=found)
        if spec.root is None:
            found.errors.append(
                f"{spec.where}: data set {name!r} needs a root: the folder it is in"
            )
            continue
        with found.noting():
            root = expand_path(spec.root, where=spec.where.of("root"), environ=environ)
            if not root.is_dir():
                found.notes.append(
                    f"{spec.where.of('root')}: {root} is no directory on this machine"
                )


def _check_slices(suite: Suite) -> Iterator[str]:
    """Yield columns that slices are cut by, and that no sample will have."""
    from pytest_quantgate.tasks.contents import CLASS
    from pytest_quantgate.tasks.readers import find_package, find_reader

    gates: tuple[TaskGate, ...] = suite.gates.all(TaskGate)
    for gate in gates:
        slices = slices_of(gate)
        asked = [] if slices is None else [name for by in slices.by for name in by]
        name = gate.task.rpartition("/")[0]
        spec = suite.datasets.get(name)
        kept = spec.columns.keep if spec is not None and spec.columns is not None else ()
        unknown = [column for column in dict.fromkeys(asked) if column not in (CLASS, *kept)]
        if slices is None or not unknown or (spec and find_package(spec.dataset)):
            continue  # a reader of another package has what it has
        try:
            reader = find_reader(spec.dataset) if spec is not None else None
        except QuantGateError:  # said of the data set itself
            continue
        if spec is not None and reader and (reader.takes_columns or reader.keeps_columns):
            keep = ", ".join((*kept, *unknown))
            fix = f"add columns: {{keep: [{keep}]}} to {name} ({spec.where})"
        else:
            fix = f"{name} has no columns besides {CLASS}"
        yield f"{slices.where.of('by')}: slices by {', '.join(map(repr, unknown))}: {fix}"


def _check_reader(spec: DatasetSpec, *, found: _Found) -> None:
    """Check what a data set says of how it is read, without its files."""
    from pytest_quantgate.tasks.readers import find_reader, list_readers
    from pytest_quantgate.tasks.registry import check_spec

    try:
        reader = find_reader(spec.dataset)
        check_spec(spec, reader=reader)
    except QuantGateError as error:
        found.errors.append(str(error))
        return
    where = spec.where.of("dataset")
    if reader.package and not _is_here(reader.package):
        found.notes.append(
            f"{where}: {spec.dataset} needs the package {reader.package!r}, which is not installed "
            f"here: pip install 'pytest-quantgate[{reader.extra}]'"
        )
    kind = re.sub(r"[^a-z]", "", spec.dataset.partition("/")[0].lower())
    close = difflib.get_close_matches(kind, list_readers(), n=1, cutoff=0.8)
    if close and not spec.dataset.startswith(tuple(list_readers())):
        found.notes.append(
            f"{where}: {spec.dataset} is looked for among clip-benchmark's sets; did you mean "
            f"{close[0]}?"
        )


def _is_here(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # taken out of sys.modules by hand
        return False


def _check_model(suite: Suite, *, found: _Found, environ: Mapping[str, str]) -> None:
    from pytest_quantgate.encoders.families import describe_settings, read_settings
    from pytest_quantgate.encoders.source import find_code, is_local, refuse_pipeline

    model, where = suite.model, suite.model.where.of("id")
    with found.noting():
        if model.factory is not None:
            find_code(model, environ=environ)
    if model.id is None or not is_local(model.id):
        return
    with found.noting():
        folder = expand_path(model.id, where=where, environ=environ)
        if not folder.is_dir():
            found.notes.append(f"{where}: {folder} is no directory on this machine")
            return
        try:
            refuse_pipeline(folder, where=where)
            describe_settings(read_settings(folder))
        except UnsupportedModel as error:
            said = str(error)
            found.errors.append(said if said.startswith(where) else f"{where}: {said}")
        except ModelError:
            pass  # a damaged folder is said by --deep, doctor and the run


def _check_towers(suite: Suite, *, environ: Mapping[str, str]) -> Iterator[str]:
    """Yield the tasks that need a tower which the model, where it is here, does not have."""
    from pytest_quantgate.encoders.families import read_towers
    from pytest_quantgate.tasks.kind import check_towers, is_own

    directory, name = _find_model(suite, environ=environ)
    try:
        towers = read_towers(directory) if directory is not None else suite.model.towers or None
    except QuantGateError:  # who loads the model says why
        return
    gates: tuple[TaskGate, ...]
    gates = suite.gates.all(TaskGate)
    for gate in gates:
        if towers is None or is_own(gate.task):
            continue
        try:
            check_towers(towers, task=gate.task, model=name or "the model")
        except QuantGateError as error:
            yield f"{gate.where.of('task')}: {error}"


def _check_patterns(suite: Suite) -> Iterator[str]:
    """Yield patterns that can match no module: another alphabet, or an empty alternative."""
    listed = [(pattern, suite.variant.where.of("exclude")) for pattern in suite.variant.exclude]
    coverage = suite.gates.one(CoverageGate)
    for waiver in coverage.waive if coverage is not None else ():
        listed += [(pattern, waiver.where.of("modules")) for pattern in waiver.modules]
    for pattern, where in listed:
        if not _PATTERN.fullmatch(pattern):
            yield (
                f"{where}: {pattern!r} can match no module: patterns are names with * and ?, "
                f"such as '*patch_embedding*'"
            )


def _check_waivers(suite: Suite, *, found: _Found, today: date) -> None:
    coverage = suite.gates.one(CoverageGate)
    for waiver in coverage.waive if coverage is not None else ():
        where = waiver.where.of("until")
        if waiver.until < today:
            found.notes.append(f"{where}: the waiver ran out on {waiver.until.isoformat()}")
        if waiver.lasts_too_long(today):
            found.errors.append(
                f"{where}: the waiver holds until {waiver.until}, more than {MAX_WAIVER_DAYS} days "
                f"from today: write {waiver.last_day(today)} or earlier"
            )


def check_files(suite: Suite, *, environ: Mapping[str, str]) -> tuple[Verdict, ...]:
    """Return what the sanity gate would say of the files alone: the model's, and the texts of data.

    Nothing of what is not on this machine. Takes a second: no library that computes is imported.
    """
    from pytest_quantgate.encoders import faults
    from pytest_quantgate.evidence.sanity import NO_TEXTS, Sanity
    from pytest_quantgate.gates.sanity import list_faults

    directory, name = _find_model(suite, environ=environ)
    tasks = _read_tasks(suite, directory=directory, environ=environ)
    code = suite.model.factory
    sanity = Sanity(
        data=suite.calibration.data,
        pairs=0,
        reading=NO_TEXTS,
        faults=(faults.made_by(code),) if code else _look_at(directory, dtype=suite.model.dtype),
        tasks=tuple(task for task, _ in tasks),
    )
    return list_faults(
        sanity, model=name, places={task.data: found for task, found in tasks}, doubts=True
    )


def check_model_folder(directory: Path) -> tuple[Verdict, ...]:
    """Return what the sanity gate would say of the files of a checkpoint."""
    from pytest_quantgate.evidence.sanity import NO_TEXTS, Sanity
    from pytest_quantgate.gates.sanity import list_faults

    sanity = Sanity(data="", pairs=0, reading=NO_TEXTS, faults=_look_at(directory))
    return list_faults(sanity, model=directory.name, places={}, doubts=True)


def _look_at(directory: Path | None, *, dtype: str = "float16") -> tuple[Fault, ...]:
    """Return what is wrong with a checkpoint's files, or why they were not looked at."""
    from pytest_quantgate.encoders import faults
    from pytest_quantgate.measure.model_checks import find_unknown, inspect_checkpoint

    if directory is None:
        return (faults.absent(),)
    unknown = find_unknown(directory)
    return (unknown,) if unknown else inspect_checkpoint(directory, dtype=dtype)


def _find_model(suite: Suite, *, environ: Mapping[str, str]) -> tuple[Path | None, str]:
    """Return the folder of a suite's model (None where it is not here) and its name."""
    from pytest_quantgate.commands.needs import hub_snapshot
    from pytest_quantgate.encoders.source import find_directory, is_local

    model = suite.model
    if model.factory is not None:
        return None, model.factory
    if model.id is not None and not is_local(model.id):
        folder = hub_snapshot(model.id, revision=model.revision or "", environ=environ)
        return folder if folder.is_dir() else None, model.id
    try:
        return find_directory(model, environ=environ)
    except QuantGateError:
        return None, model.id or ""


def _read_tasks(
    suite: Suite, *, directory: Path | None, environ: Mapping[str, str]
) -> list[tuple[TaskSanity, TextPlaces]]:
    """Return what is true of the texts of every classification task whose folder is here."""
    from pytest_quantgate.measure.model_checks import read_texts_of_files
    from pytest_quantgate.measure.texts import examine_prompts
    from pytest_quantgate.tasks.kind import find_task, is_own
    from pytest_quantgate.tasks.registry import evaluation_data, locate_texts, read_class_texts

    reader = read_texts_of_files(directory) if directory is not None else None
    found = []
    gates: tuple[TaskGate, ...]
    gates = suite.gates.all(TaskGate)
    for task in dict.fromkeys(gate.task for gate in gates):
        try:
            if is_own(task) or not find_task(task).is_zero_shot:
                continue
            data, purpose = evaluation_data(task)
            names, templates = read_class_texts(data, datasets=suite.datasets, environ=environ)
            places = locate_texts(data, datasets=suite.datasets, environ=environ)
        except QuantGateError:
            continue  # who loads it says why
        if purpose == "classification" and names:
            task_texts = examine_prompts(
                task, data=data, class_names=names, templates=templates, reader=reader
            )
            found.append((task_texts, places))
    return found
