"""ONNX files and engine reports that a suite was handed, opened and tied to what they are of."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_quantgate.artifacts.given_engine import ReportFiles
from pytest_quantgate.artifacts.given_onnx import digest_files
from pytest_quantgate.artifacts.onnx_places import TowerModel
from pytest_quantgate.errors import ArtifactError, GivenFileError, NotMeasured
from pytest_quantgate.evidence.audit import TowerName
from pytest_quantgate.run.exported import Variant
from pytest_quantgate.suite.artifacts import ArtifactsSpec, FilesSpec
from pytest_quantgate.suite.where import expand_path

if TYPE_CHECKING:
    from pytest_quantgate.encoders.encoder import Encoder
    from pytest_quantgate.encoders.towers import TowerSpec


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
    try:
        digests = digest_files(path)
    except ArtifactError as error:
        raise GivenFileError(f"{where}: {error}") from error
    return GivenOnnx(path=path, digests=digests, where=where, prefix=artifacts.prefix)


@dataclass(frozen=True, kw_only=True)
class GivenReport:
    """The report of an engine that was handed over, with the plan and the checksums beside it."""

    files: ReportFiles
    where: str

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

    @property
    def description(self) -> str:
        layers, engine = (self.files.paths[key].name for key in ("layers", "engine"))
        return f"{layers} of {engine} (sha256 {self.files.digests['engine'][:12]})"


def open_report(
    artifacts: ArtifactsSpec | None,
    *,
    variant: Variant,
    tower: TowerName,
    environ: Mapping[str, str] = os.environ,
) -> GivenReport | None:
    """Return the report of a tower's engine that a suite was handed, None where it has none.

    Raises NotMeasured where a file of it is not there, GivenFileError for one that cannot be read.
    """
    files = files_of(artifacts, variant=variant)
    if files is None or tower not in files.engine_report:
        return None
    spec = files.engine_report[tower]
    paths = {}
    for key, text in spec.files.items():
        where = spec.where.of(key)
        paths[key] = expand_path(text, where=where, environ=environ)
        if not paths[key].is_file():
            raise NotMeasured(f"{where}: {paths[key]} is not there: set {key} to a file")
    try:
        return GivenReport(files=ReportFiles.read(paths), where=str(spec.where))
    except ArtifactError as error:
        raise GivenFileError(f"{spec.where}: {error}") from error


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
