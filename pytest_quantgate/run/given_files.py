"""ONNX files and engines that a suite was handed, opened and tied to what they are of."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pytest_quantgate.artifacts.engine_files import Plan, read_plan
from pytest_quantgate.artifacts.given_engine import LIBRARIES, ReportFiles
from pytest_quantgate.artifacts.given_onnx import digest_files
from pytest_quantgate.artifacts.onnx_places import TowerModel
from pytest_quantgate.errors import ArtifactError, GivenFileError, NotMeasured, Untied
from pytest_quantgate.evidence.audit import TowerName
from pytest_quantgate.run.exported import Variant
from pytest_quantgate.suite.artifacts import ArtifactsSpec, FilesSpec
from pytest_quantgate.suite.where import expand_path

if TYPE_CHECKING:
    from pytest_quantgate.encoders.encoder import Encoder
    from pytest_quantgate.encoders.towers import TowerSpec
    from pytest_quantgate.store.plans import KnownPlans


@dataclass(frozen=True, kw_only=True)
class GivenOnnx:
    """An ONNX file that was handed over, the SHA-256 of it and of files that its weights are in.

    `key` is what everything that is made of it depends on.
    """

    path: Path
    digests: Mapping[str, str]
    where: str
    prefix: str | None

    @property
    def file_digest(self) -> str:
        return self.digests[self.path.name]

    @property
    def key(self) -> list[object]:
        return [dict(self.digests), self.prefix]

    @property
    def description(self) -> str:
        return f"{self.path.name} (sha256 {self.file_digest[:12]})"


@contextmanager
def place_errors(where: str) -> Iterator[None]:
    """Say in what is raised of files that were handed over which line of the suite names them.

    ArtifactError becomes GivenFileError.
    """
    try:
        yield
    except ArtifactError as error:
        raise GivenFileError(f"{where}: {error}") from error
    except Untied as error:
        raise Untied(f"{where}: {error}") from error


def files_of(artifacts: ArtifactsSpec | None, *, variant: Variant) -> FilesSpec | None:
    """Return the files of one variant that a suite names."""
    if artifacts is None:
        return None
    return artifacts if variant == "quantized" else artifacts.fp16


def open_onnx(
    artifacts: ArtifactsSpec | None,
    *,
    variant: Variant,
    tower: TowerName,
    environ: Mapping[str, str] = os.environ,
) -> GivenOnnx | None:
    """Return the ONNX file of a tower that a suite was handed, None where it is to be built.

    Raises NotMeasured where nothing is there, GivenFileError for what is no sound ONNX file.
    """
    files = files_of(artifacts, variant=variant)
    if artifacts is None or files is None or tower not in files.onnx:
        return None
    where = files.where.of("onnx")
    path = expand_path(files.onnx[tower], where=where, environ=environ)
    if not path.exists():
        key = f"artifacts.{'' if variant == 'quantized' else 'fp16.'}onnx.{tower}"
        raise NotMeasured(f"{where}: {path} is not there: set {key} to a file")
    with place_errors(where):
        digests = digest_files(path)
    return GivenOnnx(path=path, digests=digests, where=where, prefix=artifacts.prefix)


@dataclass(frozen=True, kw_only=True)
class GivenReport:
    """The report of an engine that was handed over, with the plan and the checksums beside it."""

    files: ReportFiles
    where: str

    kind: ClassVar[str] = "engine report"

    @property
    def key(self) -> dict[str, str]:
        return dict(self.files.digests)

    @property
    def digests(self) -> dict[str, str]:
        """The SHA-256 (hex) of each file by its name, below the folder that they share."""
        paths = {key: path.absolute() for key, path in self.files.paths.items()}
        shared = os.path.commonpath([path.parent for path in paths.values()])
        return {
            path.relative_to(shared).as_posix(): self.files.digests[key]
            for key, path in paths.items()
        }

    def as_plan(self) -> GivenPlan:
        """Return the plan that the report is of."""
        return _read_plan(self.files, where=self.where)

    @property
    def description(self) -> str:
        layers, engine = (self.files.paths[key].name for key in ("layers", "engine"))
        return f"{layers} of {engine} (sha256 {self.files.digests['engine'][:12]})"


@dataclass(frozen=True, kw_only=True)
class GivenPlan:
    """An engine that was handed over without a report: what its first bytes tell, and its SHA-256.

    It proves nothing by itself; it is code for a device.
    """

    path: Path
    digest: str
    plan: Plan
    where: str

    kind: ClassVar[str] = "engine"

    @property
    def key(self) -> dict[str, str]:
        return self.digests

    @property
    def digests(self) -> dict[str, str]:
        return {self.path.name: self.digest}

    @property
    def description(self) -> str:
        return f"{self.path.name} (sha256 {self.digest[:12]}; {self.plan.description})"

    def as_plan(self) -> GivenPlan:
        return self

    def check_may_run(self, known: KnownPlans, *, library: str, target: str) -> None:
        """Raise NotMeasured unless the plan is of this library and GPU, and among the known ones.

        `library` is the word of a suite. A plan without a target is tried: its library says more.
        """
        theirs = LIBRARIES[library]
        if self.plan.library != theirs:
            other = next(key for key, name in LIBRARIES.items() if name == self.plan.library)
            raise NotMeasured(
                f"{self.where}: {self.description} is not of {theirs}, which the gate runs: name "
                f"{other} there"
            )
        if self.plan.target not in ("", target):
            raise NotMeasured(
                f"{self.where}: {self.description}, is not run on another GPU: {target}"
            )
        try:
            known.check(self.path)
        except ValueError as error:
            raise NotMeasured(
                f"{self.where}: {self.description} was not built here, and a plan is code for the "
                f"device: who trusts it says so with install -d -m 700 {known.root} && touch "
                f"{known.root / self.digest}"
            ) from error


def open_given_engine(
    artifacts: ArtifactsSpec | None,
    *,
    variant: Variant,
    tower: TowerName,
    environ: Mapping[str, str] = os.environ,
) -> GivenReport | GivenPlan | None:
    """Return a tower's engine that a suite was handed, by its report or alone; None without one.

    Raises NotMeasured where a file of it is not there, GivenFileError for one that cannot be read.
    """
    files = files_of(artifacts, variant=variant)
    if files is None or not (tower in files.engine_report or tower in files.engine):
        return None
    spec = files.engine_report.get(tower)
    named = {"engine": files.engine[tower]} if spec is None else spec.files
    place = files.where.of("engine") if spec is None else str(spec.where)
    paths = {}
    for key, text in named.items():
        where = place if spec is None else spec.where.of(key)
        paths[key] = expand_path(text, where=where, environ=environ)
        if not paths[key].is_file():
            raise NotMeasured(f"{where}: {paths[key]} is not there: set {key} to a file")
    with place_errors(place):
        read = ReportFiles.read(paths)
    return _read_plan(read, where=place) if spec is None else GivenReport(files=read, where=place)


def _read_plan(files: ReportFiles, *, where: str) -> GivenPlan:
    """Return what the plan among some files tells; raises GivenFileError where it is none."""
    path = files.paths["engine"]
    with place_errors(where):
        plan = read_plan(path)
    return GivenPlan(path=path, digest=files.digests["engine"], plan=plan, where=where)


def describe_tower(model: Encoder, *, tower: TowerName) -> TowerModel:
    """Return one tower of a variant as plain arrays, which share the memory of the model's."""
    from pytest_quantgate.measure.quantizers import list_amax
    from pytest_quantgate.quantization.quantizers import find_quantizers

    spec = model.tower(tower)

    def belongs(name: str) -> bool:
        return any(name == part or name.startswith(f"{part}.") for part in spec.parts)

    quantizers = tuple(
        name for name, q in find_quantizers(model.module).items() if belongs(name) and q.is_enabled
    )
    inside = set(find_quantizers(model.module))
    return TowerModel(
        tower=tower,
        inputs=tuple(spec.inputs),
        modules=frozenset(
            name for name, _ in model.module.named_modules() if belongs(name) and name not in inside
        ),
        quantizers=quantizers,
        amax={name: value for name, value in list_amax(model.module).items() if belongs(name)},
        tensors={
            name: value.detach().cpu().float().numpy()
            for name, value in model.module.state_dict().items()
            if belongs(name)
            and value.is_floating_point()
            and not any(name.startswith(f"{quantizer}.") for quantizer in inside)
        },
        dtype=model.weight_dtype,
        **_list_pooling(spec),
    )


def describe_graph_alone(model: Encoder, *, tower: TowerName) -> TowerModel:
    """Return what is known of a tower of which there is no PyTorch model: what feeds it."""
    spec = model.tower(tower)
    return TowerModel(
        tower=tower,
        inputs=tuple(spec.inputs),
        modules=frozenset(),
        quantizers=(),
        amax={},
        tensors={},
        dtype=model.weight_dtype,
        no_module=True,
        **_list_pooling(spec),
    )


def _list_pooling(spec: TowerSpec) -> dict[str, Any]:
    text = spec.text
    return {} if text is None else {"pooling": text.pooling, "normalize": text.normalize}
