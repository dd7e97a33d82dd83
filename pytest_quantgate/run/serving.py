"""What is handed on, in front of a serving runtime's own loader."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pytest_quantgate import bounds
from pytest_quantgate.encoders.source import stays_inside
from pytest_quantgate.errors import GivenFileError, ModelError, NotMeasured
from pytest_quantgate.measure.serving import ask_runtime
from pytest_quantgate.run.handover import RECORD, hand_over
from pytest_quantgate.store.disk import temporary_folder
from pytest_quantgate.suite.where import expand_path
from pytest_quantgate.untrusted import hash_file, parse_json, read_regular

if TYPE_CHECKING:
    from pytest_quantgate.evidence.serving import Loaded
    from pytest_quantgate.gates.serves import ServesGate
    from pytest_quantgate.run.measured import Measured

FORMAT = "compressed-tensors"


def load_export(case: Measured, gate: ServesGate) -> Loaded:
    """Return what the runtime of a gate makes of the folder that it names, or of the export.

    Raises NotMeasured where there is no folder, no such runtime, or no export in this format,
    GivenFileError for a folder that is not what `quantgate export` wrote any more.
    """
    python = expand_path(gate.python, where=gate.where.of("python"), environ=case.environ)
    with temporary_folder() as temporary:
        if gate.folder is None:
            folder, name = temporary / "export", f"the {FORMAT} export"
            try:
                hand_over(case, format=FORMAT, folder=folder)
            except ModelError as error:
                raise NotMeasured(
                    f"{gate.where}: the variant cannot be handed on as {FORMAT}: {error}"
                ) from error
            origin = "the variant that this suite judges, as quantgate export writes it"
            is_tied = True
        else:
            where = gate.where.of("folder")
            folder = expand_path(gate.folder, where=where, environ=case.environ)
            if not folder.is_dir():
                raise NotMeasured(f"{where}: {folder} is no folder: name what is handed on")
            name = folder.name
            origin, is_tied = _find_origin(folder, suite=case.suite.name, where=where)
        with case.progress.stage(f"loading {name} with {gate.runtime}"):
            try:
                return ask_runtime(
                    gate.runtime,
                    python=python,
                    folder=folder,
                    dtype=case.suite.model.dtype,
                    name=name,
                    origin=origin,
                    is_tied=is_tied,
                    environ=case.environ,
                )
            except NotMeasured as error:
                raise NotMeasured(f"{gate.where.of('python')}: {error}") from error


def _find_origin(folder: Path, *, suite: str, where: str) -> tuple[str, bool]:
    """Return what the record in a folder says of it, and whether it is an export of this suite.

    Raises GivenFileError where a file is another one, or came later.
    """
    path = folder / RECORD
    if not path.exists():
        return "no export of this suite that is known: it holds no record of one", False
    try:
        record = parse_json(read_regular(path, max_bytes=bounds.JSON_BYTES))
        files = dict(record["files"])
        other = str(record["suite"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GivenFileError(f"{where}: {path} is damaged: export it again") from error
    for name, digest in files.items():
        file = folder / str(name)
        inside = stays_inside(file, directory=folder) and file.is_file()
        if not inside or hash_file(file) != digest:
            raise GivenFileError(
                f"{where}: {file} is not what quantgate export wrote: export it again"
            )
    there = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()}
    more = sorted(there - files.keys() - {RECORD})
    if more:
        raise GivenFileError(
            f"{where}: {folder / more[0]} is none of what quantgate export wrote, and a runtime "
            f"may read it: take it away, or export again"
        )
    if other != suite:
        return f"what quantgate export wrote of another suite, {other}", False
    return "what quantgate export wrote of this suite, unchanged", True
