"""What a suite says of files that are handed over: ONNX files, engines and their reports."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

from pytest_quantgate.evidence.audit import TOWERS
from pytest_quantgate.suite.keys import (
    BadKey,
    Declared,
    declare,
    read_section,
    section_key,
    text_key,
    unknown_key,
)
from pytest_quantgate.suite.nodes import Place, read_pairs
from pytest_quantgate.suite.where import Where

_NAMES = {name: f"of the {name} tower" for name in TOWERS}


def _by_tower(
    read_one: Callable[[Place, yaml.Node], Any], *, schema: Mapping[str, Any], help: str
) -> Declared:
    """A mapping of values by the names of towers."""

    def read(place: Place, node: yaml.Node) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, (key_node, value) in read_pairs(place, node).items():
            if name not in TOWERS:
                raise place.child(name).error(key_node, unknown_key(name, known=TOWERS))
            found[name] = read_one(place.child(name), value)
        return found

    return declare(read, schema=schema, help=help)


def _files_key(*, help: str) -> Declared:
    one = text_key(help="", environment=True)["key"]
    schema = {
        "type": "object",
        "properties": {name: {"description": text, **one.schema} for name, text in _NAMES.items()},
        "additionalProperties": False,
    }
    return _by_tower(one.read, schema=schema, help=help)


@dataclass(frozen=True, kw_only=True)
class EngineReportSpec:
    """What `trtexec` wrote of one engine, and the checksums that tie it to the files it is of."""

    where: Where
    layers: str = field(
        metadata=text_key(
            help="the JSON of --exportLayerInfo with --profilingVerbosity=detailed",
            environment=True,
        )
    )
    engine: str = field(metadata=text_key(help="the plan that it is of", environment=True))
    sums: str | None = field(
        default=None,
        metadata=text_key(
            help="what sha256sum printed of the ONNX file, the plan and the report right after "
            "the build; without it nothing proves that they belong together",
            environment=True,
        ),
    )
    log: str | None = field(
        default=None,
        metadata=text_key(
            help="the log of trtexec, for its version and the memory of the engine",
            environment=True,
        ),
    )

    times: str | None = field(
        default=None,
        metadata=text_key(
            help="the JSON of --exportTimes, which a latency gate judges; it needs the log",
            environment=True,
        ),
    )
    profile: str | None = field(
        default=None,
        metadata=text_key(help="the JSON of --exportProfile beside times", environment=True),
    )

    def check(self) -> None:
        if self.times is not None and self.log is None:
            raise BadKey("times", "names no device: give the log of the same run (log: FILE) too")
        if self.profile is not None and self.times is None:
            raise BadKey("profile", "is shown beside times: give them too")

    @property
    def files(self) -> dict[str, str]:
        """The paths that are set, as they are written, by their key."""
        keys = ("layers", "engine", "sums", "log", "times", "profile")
        found = {key: getattr(self, key) for key in keys}
        return {key: path for key, path in found.items() if path is not None}


def _reports_key() -> Declared:
    return _by_tower(
        lambda place, node: read_section(EngineReportSpec, place, node),
        schema={"mapping": EngineReportSpec, "names": _NAMES},
        help="reports of engines that are handed over, by tower",
    )


@dataclass(frozen=True, kw_only=True)
class FilesSpec:
    """Files of one variant that are handed over, each in the place of what would be built."""

    where: Where
    onnx: Mapping[str, str] = field(
        default_factory=dict,
        metadata=_files_key(help="ONNX files by tower: `{vision: PATH, text: PATH}`"),
    )
    engine: Mapping[str, str] = field(
        default_factory=dict,
        metadata=_files_key(
            help="engine plans by tower, which run on a GPU that they were built for; what an "
            "engine computes is in its engine_report, which names the plan itself"
        ),
    )
    engine_report: Mapping[str, EngineReportSpec] = field(
        default_factory=dict, metadata=_reports_key()
    )

    def check(self) -> None:
        twice = sorted(set(self.engine) & set(self.engine_report))
        if twice:
            raise BadKey(
                "engine", f"names {twice[0]}, and its engine_report names a plan: leave out one"
            )

    @property
    def paths(self) -> tuple[tuple[str, str], ...]:
        """Every path as it is written, and its place in the suite."""
        reports = [
            (path, spec.where.of(key))
            for spec in self.engine_report.values()
            for key, path in spec.files.items()
        ]
        named = [
            (path, self.where.of(key))
            for key in ("onnx", "engine")
            for path in getattr(self, key).values()
        ]
        return (*named, *reports)


@dataclass(frozen=True, kw_only=True)
class ArtifactsSpec(FilesSpec):
    """What the team's pipeline made of the quantized variant, and of FP16 beside it."""

    prefix: str | None = field(
        default=None,
        metadata=text_key(
            help="what names of nodes have in front of the model's modules; default: it is found"
        ),
    )
    fp16: FilesSpec | None = field(
        default=None, metadata=section_key(FilesSpec, help="the same of the FP16 model")
    )

    def check(self) -> None:
        super().check()
        if not self.paths and not (self.fp16 and self.fp16.paths):
            raise BadKey("", "names no file: set onnx, engine or engine_report, or leave it out")
