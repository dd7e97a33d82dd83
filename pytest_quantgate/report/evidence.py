"""What a worker tells the controller of a case, beside its verdicts: where the evidence lies.

The evidence itself stays in the cache; only its keys travel, and what is in no cache.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast, get_args

from pytest_quantgate.evidence.codec import from_json, to_json
from pytest_quantgate.gates.coverage import CoverageGate
from pytest_quantgate.report.model import JudgedFile, LatencyFacts, ModelFacts, RecipeFacts
from pytest_quantgate.store.baseline_mode import BaselineMode
from pytest_quantgate.store.records import Kind

if TYPE_CHECKING:
    from pytest_quantgate.run.case import Case


@dataclass(frozen=True, kw_only=True)
class Use:
    """A cache entry that a case used: its kind and what it is of, and its key."""

    about: tuple[str, ...]
    key: str


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What one process used of one suite; `file` is its name as it is shown.

    `coverage` is the gate that was judged by: the file may say something else by the end of a run.
    """

    suite: str
    file: str
    used: tuple[Use, ...] = ()
    device: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    model: ModelFacts | None = None
    recipe: RecipeFacts | None = None
    calibration_digest: str = ""
    calibration_batch_size: int = 0
    coverage: CoverageGate | None = None
    latency: tuple[LatencyFacts, ...] = ()
    files: tuple[JudgedFile, ...] = ()

    def to_json(self) -> dict[str, Any]:
        found: dict[str, Any] = to_json(self)
        return found

    def joined(self, later: Evidence) -> Evidence:
        """Return what both processes used; the later one's word counts."""
        used = {use.about: use for use in (*self.used, *later.used)}
        latency = {facts.gate: facts for facts in (*self.latency, *later.latency)}
        files = {(file.artifact, file.name): file for file in (*self.files, *later.files)}
        known = later if later.model else self
        return replace(
            known,
            used=tuple(used.values()),
            latency=tuple(latency.values()),
            files=tuple(files.values()),
        )


def read_evidence(data: Any) -> Evidence:
    """Return the evidence in a test report; raises ValueError where it is none."""
    return from_json(Evidence, data)


def describe_case(case: Case) -> Evidence:
    """Return what a case has used so far. Costs nothing that the case has not paid already."""
    suite = case.suite
    evidence = Evidence(
        suite=suite.name,
        file=suite.model.where.file,
        used=tuple(Use(about=about, key=key) for about, key in case.used.items()),
        calibration_batch_size=suite.calibration.batch_size,
        coverage=suite.gates.one(CoverageGate),
        latency=tuple(
            LatencyFacts(
                gate=name,
                runtime=run.runtime,
                tower=run.tower,
                batch=run.batch_size,
                system=run.machine.system,
                processor=run.machine.processor,
                cores=run.machine.cores,
                threads=run.machine.threads,
                device=run.machine.device,
                fp16_ms=run.fp16.times_ms,
                quantized_ms=run.quantized.times_ms,
                fp16_again_ms=run.fp16_again.times_ms,
                cold=tuple(c.name for c in run.runners if not c.warm),
                processes=run.processes,
                pause_rounds=run.pause_rounds,
                timing="p99" if name in case.load_runs else "",
            )
            for name, run in case.latency_runs.items()
        ),
    )
    if ("variant",) not in case.used:
        return evidence  # nothing was built: model and recipe may not even be readable
    print_of = case.fingerprint(data="")
    return replace(
        evidence,
        device=case.device,
        versions=case.versions,
        model=ModelFacts(
            source=suite.model.source,
            description=case.source.description,
            revision=suite.model.revision or "",
            dtype=suite.model.dtype,
            attn_implementation=suite.model.attn_implementation,
            digest=print_of.model,
        ),
        recipe=RecipeFacts(
            name="",  # the audit's, which the controller reads
            lines=recipe_lines(_read_recipe(case)),
            exclude=suite.variant.exclude,
            formats=(),
            digest=print_of.recipe,
        ),
        calibration_digest=print_of.calibration,
        files=tuple(_list_files(case)),
    )


def _list_files(case: Case) -> Iterator[JudgedFile]:
    """Yield what a case was given and has read; what it has built itself is found in the cache."""
    for name, digest in case.source.files.items():
        yield JudgedFile(artifact="model", name=name, sha256=digest)
    for name, digest in (case.given.digests if case.given else {}).items():
        yield JudgedFile(artifact="checkpoint", name=name, sha256=digest)
    for of, digests in case.stages.opened.items():
        for name, digest in digests.items():
            yield JudgedFile(artifact="-".join(of), name=name, sha256=digest)
    if case.settings.baselines is not BaselineMode.CHECK:
        return  # nothing is judged by what this run writes
    for gate in case.suite.gates:
        if gate.kind not in get_args(Kind) or case.judging.known(gate) is None:
            continue
        kind = cast(Kind, gate.kind)
        found = case.store.find_old(case.suite.name, gate.key, kind=kind)
        found = found or case.store.find(case.suite.name, gate.key, kind=kind)
        if found is not None:
            digest = hashlib.sha256(found.path.read_bytes()).hexdigest()
            name = os.path.relpath(found.path, case.settings.root)
            yield JudgedFile(artifact="baselines", name=name, sha256=digest)


def _read_recipe(case: Case) -> Any:
    from pytest_quantgate.encoders.source import recipe_content

    quantize = case.suite.variant
    return recipe_content(quantize.recipe, where=quantize.where, environ=case.environ)


def recipe_lines(content: Any) -> tuple[str, ...]:
    """Return a recipe as lines: its name, the lines of its file, or one line an entry."""
    if isinstance(content, str):
        return tuple(content.splitlines())
    if isinstance(content, Mapping):
        entries = content.get("quant_cfg")
        head = {key: value for key, value in content.items() if key != "quant_cfg"}
        if isinstance(entries, Mapping):
            return (*_lines_of(head), *_lines_of(entries))
        if isinstance(entries, (list, tuple)):
            return (*_lines_of(head), *(_dump(entry) for entry in entries))
        return _lines_of(content)
    return tuple(_dump(entry) for entry in content)


def _lines_of(mapping: Mapping[str, Any]) -> tuple[str, ...]:
    # The patterns of a class (`nn.Linear: {...}`) are entries of their own: later ones win.
    return tuple(
        f"{key}: {_dump(value, in_order=key.startswith('nn.'))}" for key, value in mapping.items()
    )


def _dump(value: Any, *, in_order: bool = False) -> str:
    return json.dumps(value, sort_keys=not in_order, ensure_ascii=False, default=_plain)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    return str(value)
