"""What every suite says besides its gates: the model, the data, how it is quantized."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from pytest_quantgate.errors import SuiteError
from pytest_quantgate.suite.artifacts import ArtifactsSpec
from pytest_quantgate.suite.gates import Gates, kind_of, list_names, read_gates
from pytest_quantgate.suite.keys import (
    BadKey,
    Declared,
    choice_key,
    count_key,
    declare,
    flag_key,
    list_key,
    named,
    read_section,
    recipe_key,
    section_key,
    text_key,
)
from pytest_quantgate.suite.nodes import Place, read_pairs
from pytest_quantgate.suite.where import Where, check_references

#: The version of the format of suite files.
VERSION = 1

#: The sections of which a suite has at most one: what builds the quantized variant, or names it.
VARIANTS = ("quantize", "quantized")

#: Which form of the quantized variant does a task.
Stage = Literal["torch", "onnx", "engine"]

STAGE = choice_key("torch", "onnx", "engine", help="which model is judged; default: torch")

FIRST = flag_key(help="take the first samples, as they stand; default: draw them by seed")


def check_data(data: str, *, key: str = "data") -> None:
    """Raise BadKey for what is not `<data set>/<split>`."""
    dataset, _, split = data.rpartition("/")
    if not dataset or not split:
        raise BadKey(key, f"{data!r} is no data: write <data set>/<split>, such as scenes/train")


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Which FP16 model: `reference`, a checkpoint of transformers by hub id or folder, `onnx`: the
    files that `artifacts.fp16` names, fed as the settings in a folder say, or `factory`: what a
    function returns that is given `files`."""

    where: Where
    source: Literal["reference", "transformers", "onnx", "factory"] = field(
        metadata=choice_key(
            "reference", "transformers", "onnx", "factory", help="where the FP16 model comes from"
        )
    )
    id: str | None = field(
        default=None,
        metadata=text_key(
            help="hub id, or local directory with ${NAME}; of onnx it holds config.json, tokenizer "
            "and image processor",
            environment=True,
        ),
    )
    revision: str | None = field(default=None, metadata=text_key(help="commit of the hub id"))
    dtype: Literal["float16", "bfloat16", "float32"] = field(
        default="float16",
        metadata=choice_key(
            "float16", "bfloat16", "float32", help="what the weights are rounded to"
        ),
    )
    attn_implementation: Literal["sdpa", "eager"] = field(
        default="sdpa", metadata=choice_key("sdpa", "eager", help="as in transformers")
    )
    factory: str | None = field(
        default=None,
        metadata=text_key(
            help="package.module:function, which makes the model; needs trust: true of the suite"
        ),
    )
    files: tuple[str, ...] = field(
        default=(),
        metadata=list_key(
            text_key(help="file or folder, with ${NAME}", environment=True),
            help="what the factory reads: it is given these paths",
            single=True,
        ),
    )
    towers: tuple[Literal["vision", "text"], ...] = field(
        default=(),
        metadata=list_key(
            choice_key("vision", "text", help="tower"), help="what the factory returns"
        ),
    )

    def check(self) -> None:
        made = ("factory", "files", "towers")
        for key in ("id", "revision", "attn_implementation") if self.source == "factory" else made:
            if key in self.where.keys:
                what = "source: factory" if key in made else "a model of files, not to a factory"
                raise BadKey(key, f"belongs to {what}: leave it out")
        if self.source == "factory":
            if not re.fullmatch(r"\w+(\.\w+)*:\w+", self.factory or ""):
                raise BadKey("factory", "is no function: write package.module:function")
            if self.towers not in (("vision",), ("text",), ("vision", "text")):
                raise BadKey("towers", "says what the factory returns: [vision], [text], or both")
            return
        if self.source == "reference":
            for key in ("id", "revision"):
                if key in self.where.keys:
                    raise BadKey(key, "the reference model ships with the package")
            return
        if self.id is None:
            raise BadKey("id", "is missing: a hub id or a local directory")
        is_local = self.id.startswith(("/", ".", "~", "$"))
        if not is_local and "${" in self.id:
            raise BadKey(
                "id", "a hub id holds no ${NAME}: write it out, or begin a path with ${NAME}"
            )
        if is_local and self.revision is not None:
            raise BadKey("revision", "a local directory has no revision")
        if not is_local and self.revision is None:
            raise BadKey(
                "revision",
                "is missing: pin the commit of the hub id, so that the model cannot change under "
                "the gate (a local directory starts with / ./ ~/ or ${NAME})",
            )


@dataclass(frozen=True, kw_only=True)
class ColumnsSpec:
    """How the columns of a table of images are called; what is not said is guessed by its name."""

    where: Where
    image: str | None = field(
        default=None, metadata=text_key(help="the encoded image, or the name of its file")
    )
    label: str | None = field(
        default=None, metadata=text_key(help="the class, by its name or its number from 0")
    )
    captions: tuple[str, ...] = field(
        default=(),
        metadata=list_key(
            text_key(help="column"),
            help="the texts that describe the image: one column of texts or lists, or several",
            single=True,
        ),
    )
    id: str | None = field(
        default=None, metadata=text_key(help="what a sample is called in baselines; unique")
    )
    keep: tuple[str, ...] = field(
        default=(),
        metadata=list_key(
            text_key(help="column"), help="further columns that are kept, for slices", single=True
        ),
    )


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """A named data set: what kind of files it is in, and their local folder."""

    where: Where
    dataset: str = field(
        metadata=text_key(
            help="imagefolder, parquet, datasets (saved to disk), wds/NAME for WebDataset, or a "
            "name of clip-benchmark"
        )
    )
    root: str | None = field(
        default=None,
        metadata=text_key(help="the folder it is in; ${NAME} is expanded", environment=True),
    )
    language: str = field(default="en", metadata=text_key(help="of class names and templates"))
    test_split: str = field(
        default="test",
        metadata=text_key(help="what its files call the split that tasks are judged on"),
    )
    columns: ColumnsSpec | None = field(
        default=None,
        metadata=section_key(
            ColumnsSpec, help="of imagefolder, parquet and datasets; keep and id of all others"
        ),
    )
    captions_per_image: int | None = field(
        default=None, metadata=count_key(help="how many every image must have; default: any")
    )
    exif_rotation: bool = field(
        default=False,
        metadata=flag_key(help="turn images as their EXIF data says; default: false"),
    )


@dataclass(frozen=True, kw_only=True)
class CalibrationSpec:
    """Which pairs calibrate; `data` is `<data set>/<split>`.

    Both numbers are drawn by seed over the whole split, or with `first` its first ones are taken.
    `skip` pairs of these are passed over, which no suite says: other pairs, for a study.
    """

    where: Where
    data: str = field(metadata=text_key(help="<data set>/<split>"))
    samples: int = field(metadata=count_key(help="pairs that calibrate"))
    batch_size: int = field(metadata=count_key(help="pairs in a batch"))
    held_out_samples: int = field(
        default=128, metadata=count_key(help="pairs besides, on which clipping is counted")
    )
    first: bool = field(default=False, metadata=FIRST)
    skip: int = 0

    def check(self) -> None:
        check_data(self.data)


@dataclass(frozen=True, kw_only=True)
class QuantizeSpec:
    """What is quantized: a recipe's name, ModelOpt id or YAML path, or an inline `quant_cfg`."""

    where: Where
    recipe: str | Mapping[str, Any] | tuple[Any, ...] = field(metadata=recipe_key())
    exclude: tuple[str, ...] = field(
        default=(),
        metadata=list_key(
            text_key(help="pattern"), help="patterns as in mtq.disable_quantizer", single=True
        ),
    )


@dataclass(frozen=True, kw_only=True)
class QuantizedSpec(QuantizeSpec):
    """A quantized checkpoint that is handed over, instead of a recipe to build one.

    `recipe` is what it is expected to be; empty: what the checkpoint's own state declares.
    """

    recipe: str | Mapping[str, Any] | tuple[Any, ...] = field(
        default="", metadata=named("expect", recipe_key())
    )
    checkpoint: str = field(
        metadata=text_key(help="folder or file that ModelOpt saved; ${NAME}", environment=True)
    )
    trained: bool = field(
        default=False, metadata=flag_key(help="its weights were trained on (QAT); default: false")
    )


def _datasets_key() -> Declared:
    def read(place: Place, node: yaml.Node) -> dict[str, DatasetSpec]:
        return {
            name: read_section(DatasetSpec, place.child(name), value)
            for name, (_, value) in read_pairs(place, node).items()
        }

    return declare(read, schema={"mapping": DatasetSpec}, help="data sets by a name of your own")


def kinds_key(*, help: str) -> Declared:
    """Kinds of gates, of other packages too: they are looked up when a suite is read."""

    def read(place: Place, node: yaml.Node) -> str:
        known = choice_key(*list_names(), help="kind of gate")["key"]
        value: str = known.read(place, node)
        return value

    one = declare(read, schema={"kinds": True}, help="kind of gate")
    return list_key(one, help=help, single=True)


@dataclass(frozen=True, kw_only=True)
class Suite:
    """One suite file, whole. `name` is its path below the root without `.quantgate.yaml`, `digest`
    the SHA-256 of the file.

    `family` is how false alarms of its many limits are held down: by Holm's procedure, or not.
    `allow_unmeasured` are the kinds of its gates that may be missing in CI and in strict runs.
    `trust` lets it name code that runs.
    """

    path: Path
    name: str
    digest: str = field(default="", compare=False)
    where: Where = field(default=Where(file="", line=0), compare=False)
    version: int = field(
        metadata=named(
            "quantgate",
            declare(
                count_key(help="")["key"].read,
                schema={"const": VERSION},
                help="version of this format",
            ),
        )
    )
    model: ModelSpec = field(metadata=section_key(ModelSpec, help="the FP16 model"))
    datasets: Mapping[str, DatasetSpec] = field(default_factory=dict, metadata=_datasets_key())
    calibration: CalibrationSpec = field(
        metadata=section_key(CalibrationSpec, help="what calibrates")
    )
    quantize: QuantizeSpec | None = field(
        default=None, metadata=section_key(QuantizeSpec, help="how it is quantized here, or")
    )
    quantized: QuantizedSpec | None = field(
        default=None, metadata=section_key(QuantizedSpec, help="the checkpoint that is handed over")
    )
    artifacts: ArtifactsSpec | None = field(
        default=None,
        metadata=section_key(
            ArtifactsSpec, help="ONNX files and engine reports that are handed over"
        ),
    )
    family: Literal["holm", "none"] = field(
        default="holm",
        metadata=choice_key(
            "holm", "none", help="control of false FAILs over all limits; default: holm"
        ),
    )
    allow_unmeasured: tuple[str, ...] = field(
        default=(),
        metadata=kinds_key(
            help="kinds of gates that may be missing in CI and in strict runs; default: none"
        ),
    )
    trust: bool = field(
        default=False,
        metadata=flag_key(help="run code that the suite names, such as a task; default: false"),
    )
    gates: Gates = field(metadata=declare(read_gates, schema={"gates": True}, help="what decides"))

    def check(self) -> None:
        if self.version != VERSION:
            raise BadKey(
                "quantgate",
                f"version {self.version} is not supported: this release reads {VERSION}",
            )
        has_onnx = self.artifacts is not None and bool(self.artifacts.onnx)
        if (self.quantize and self.quantized) or (self.is_onnx_alone and not has_onnx):
            raise BadKey(
                "" if self.quantize is None else "quantized",
                "write one of quantize (a recipe to build the variant by) and quantized (a "
                "checkpoint that is handed over), or artifacts.onnx alone",
            )
        self._check_onnx_model()
        for gate in self.gates:
            if self.is_onnx_alone and kind_of(gate).needs_torch(gate):
                staged = hasattr(gate, "stage")
                raise SuiteError(
                    f"{gate.where}: {gate.name} looks at the quantized model in PyTorch, and this "
                    f"suite has its ONNX files alone: "
                    + ("write stage: onnx" if staged else "leave it out, or name the checkpoint")
                )
        named = [(f"{gate.where}: {gate.kind}", gate.runs_code_of) for gate in self.gates]
        named.insert(0, (f"{self.model.where.of('factory')}: model", self.model.factory or ""))
        for place, code in named:
            if code and not self.trust:
                raise SuiteError(
                    f"{place}: {code} is code, which this suite would run: read it, then write "
                    f"trust: true at the top of the suite"
                )

    def _check_onnx_model(self) -> None:
        """Raise BadKey for `source: onnx` beside anything but ONNX files of both variants."""
        if self.model.source != "onnx":
            return
        if not self.is_onnx_alone:
            raise BadKey(
                "model", "source: onnx is no PyTorch model to quantize: give artifacts.onnx alone"
            )
        assert self.artifacts is not None  # is_onnx_alone
        base = self.artifacts.fp16.onnx if self.artifacts.fp16 else {}
        if base.keys() != self.artifacts.onnx.keys():
            raise BadKey(
                "artifacts",
                f"onnx names {', '.join(self.artifacts.onnx)}, fp16.onnx "
                f"{', '.join(base) or 'nothing'}: model.source onnx takes both of every tower",
            )

    @property
    def is_onnx_alone(self) -> bool:
        """Whether the quantized variant is there as ONNX files alone, with no PyTorch model."""
        return self.quantize is None and self.quantized is None

    @property
    def variant(self) -> QuantizeSpec:
        """What the quantized variant is meant to be, built here or handed over."""
        found = self.quantize or self.quantized
        if found is None:  # nothing says what its ONNX files should be
            assert self.artifacts is not None  # check() wants them
            return QuantizeSpec(where=self.artifacts.where, recipe="")
        return found

    @property
    def given_paths(self) -> tuple[tuple[str, str], ...]:
        """Every file that is handed over as it is written, and its place in the suite."""
        paths: list[tuple[str, str]] = []
        if self.quantized is not None:
            paths.append((self.quantized.checkpoint, self.quantized.where.of("checkpoint")))
        for files in (self.artifacts, self.artifacts and self.artifacts.fp16):
            paths += files.paths if files is not None else ()
        return tuple(paths)

    @property
    def label(self) -> str:
        """The file's own name, for where no other suite is meant."""
        return self.name.rpartition("/")[2]

    def check_variables(self, *, environ: Mapping[str, str]) -> None:
        """Raise SuiteError for a variable in a path that the run does not let a suite use."""
        recipe, of = self.variant.recipe, self.variant.where.of("recipe")
        paths = [(self.model.id, self.model.where.of("id"))]
        paths += [(recipe if isinstance(recipe, str) else None, of)]
        paths += self.given_paths
        paths += [(spec.root, spec.where.of("root")) for spec in self.datasets.values()]
        for text, where in paths:
            if text is not None:
                check_references(text, where=where, environ=environ)
