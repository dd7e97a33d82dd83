"""What a reviewer has in hand of a release: its checkpoint, ONNX files, suite, baselines, report.

Everything is written as a run and its user write it, from what the gates have measured of the
case: nothing is built a second time.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Collection, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from benchmarks.sabotage.bench import MODEL_GATES, STAGE_GATES, Bench, judge_kinds, judged_as
from benchmarks.sabotage.speed import measure
from pytest_quantgate.errors import QuantGateError
from pytest_quantgate.evidence.codec import from_json, to_json
from pytest_quantgate.evidence.fingerprint import digest_of
from pytest_quantgate.evidence.verdict import Verdict
from pytest_quantgate.gates.accuracy import AccuracyGate
from pytest_quantgate.gates.regression import RegressionGate
from pytest_quantgate.quantization.checkpoint import save_checkpoint
from pytest_quantgate.report.collect_evidence import collect_report
from pytest_quantgate.report.evidence import describe_case, read_evidence
from pytest_quantgate.report.json_report import render_json
from pytest_quantgate.report.terminal import Summary
from pytest_quantgate.run.case import Case
from pytest_quantgate.run.conclusion import Results, Row, SuiteGates
from pytest_quantgate.selftest.sabotage import exchange
from pytest_quantgate.store.cache import Cache, write_json
from pytest_quantgate.suite.specs import Stage

#: Parts of a release, each a file or a folder of this name. A report is made of what a run left.
VARIANT, ONNX, TREE, RUN = "variant", "onnx", "tree", "run.json"

#: Written last: a release without it is half one, of a run that was killed.
DONE = "done"

GOOD = "good"

#: Kinds of gates that look at the exported files.
EXPORTED = ("export", "parity", "engine", "memory")
ALL_KINDS = (*MODEL_GATES, "roundtrip", *STAGE_GATES, "latency")


class Releases:
    """The releases of a bench, each in a folder of its own below the bench's.

    The good one is judged by all gates of `kinds`.
    """

    def __init__(self, bench: Bench, *, kinds: Collection[str] = ALL_KINDS) -> None:
        self.bench = bench
        self.kinds = kinds

    def folder(self, title: str) -> Path:
        return self.bench.root / "releases" / digest_of(title)[:16]

    def has(self, title: str) -> bool:
        return (self.folder(title) / DONE).exists()

    @cached_property
    def good(self) -> Case:
        """The good release, timed by a scripted clock as every other one, and published."""
        self.bench.good.quantized  # noqa: B018 (loaded once: copies of the case share it)
        case = exchange(self.bench.good, latency=lambda _gate, **_: measure())
        if not self.has(GOOD):
            self._write(GOOD, case=case, verdicts=judge_kinds(case, self.kinds))
        return case

    def publish(self, title: str, *, case: Case, verdicts: Mapping[str, Verdict]) -> None:
        """Write what a reviewer gets of a case that was judged, and of the good release once.

        A variant that could not be built leaves no checkpoint, a file that was not exported none;
        a checkpoint that is the good release's own is not written again.
        """
        assert self.good
        self._write(title, case=case, verdicts=verdicts, good=self.bench.good)

    def _write(
        self,
        title: str,
        *,
        case: Case,
        verdicts: Mapping[str, Verdict],
        good: Case | None = None,
    ) -> None:
        folder = self.folder(title)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        _write_tree(folder / TREE, case=case)
        _keep_variant(title, case=case, folder=folder / VARIANT, good=good)
        _keep_outcomes(title, case=case, verdicts=verdicts)
        if {name.partition("[")[0] for name in verdicts} & set(EXPORTED):
            _copy_onnx(folder / ONNX, case=case)
        write_json(folder / RUN, _carry_run(case, verdicts=verdicts))
        (folder / DONE).touch()

    def write_report(self, title: str, path: Path, *, kinds: Collection[str]) -> Path:
        """Write the JSON report of a release as a run of these kinds of gates gives it."""
        kept = json.loads((self.folder(title) / RUN).read_text(encoding="utf-8"))
        path.write_text(self._render(kept, kinds=kinds), encoding="utf-8")
        return path

    def _render(self, kept: Any, *, kinds: Collection[str]) -> str:
        verdicts = {
            row["gate"]: from_json(Verdict, row["verdict"])
            for row in kept
            if judged_as(row["gate"]) in kinds
        }
        evidence = read_evidence(kept[0]["evidence"])
        suite = evidence.suite
        collected = SuiteGates(suite=suite, file=evidence.file, gates=tuple(verdicts))
        rows = tuple(Row(suite=suite, gate=name, verdict=v) for name, v in verdicts.items())
        report = collect_report(
            Summary(results=Results(suites=(collected,), rows=rows)),
            evidence={suite: evidence},
            cache=Cache(root=self.bench.settings.cache_dir),
            root=self.bench.root,
            environ={"SOURCE_DATE_EPOCH": "0", "GITHUB_SHA": "0" * 40},
        )
        return render_json(report)


def _write_tree(folder: Path, *, case: Case) -> None:
    """Write the suite and the baselines, where a repository has them."""
    (folder / "suites").mkdir(parents=True)
    shutil.copy(case.suite.path, folder / "suites")
    if case.store.root.is_dir():
        shutil.copytree(case.store.root, folder / "baselines")


def _keep_variant(title: str, *, case: Case, folder: Path, good: Case | None) -> None:
    """Keep the variant as the cache does; its checkpoint too, where it is not the good one's."""

    def build(entry: Path) -> None:
        write_json(entry / "audit.json", audit)
        write_json(entry / "calibration.json", run)
        write_json(entry / "notes.json", [])
        if good is None or case.quantized is not good.quantized:
            save_checkpoint(case.quantized, entry / "checkpoint")

    try:
        audit, run = to_json(case.audit), to_json(case.calibration_run)
        key = digest_of(["release", title, case.variant_key, json.dumps([audit, run])])
        entry = case.cache.get_or_build(kind="variant", key=key, build=build)
    except QuantGateError:
        case.used.pop(("variant",), None)
        return
    case.used["variant",] = key
    if (entry / "checkpoint").is_dir():
        shutil.copytree(entry, folder)


def _keep_outcomes(title: str, *, case: Case, verdicts: Mapping[str, Verdict]) -> None:
    """Keep the outcomes that were judged: a spoiled evaluation has others than the cache."""
    gates = case.suite.gates
    for gate in (*gates.all(AccuracyGate), *gates.all(RegressionGate)):
        stage: Stage = getattr(gate, "stage", "torch")
        about = ("outcomes", gate.task, gate.metric, stage, str(gate.samples or ""))
        if not any(name.endswith(f"[{gate.key}]") for name in verdicts):
            continue
        try:
            found = case.outcomes(
                task=gate.task, metric=gate.metric, samples=gate.samples, stage=stage
            )
        except QuantGateError:
            continue
        plain = [to_json(outcomes) for outcomes in found]
        key = digest_of(["release", title, *about, json.dumps(plain)])
        case.cache.get_or_measure(kind="outcomes", key=key, measure=partial(list, plain))
        case.used[about] = key


def _copy_onnx(folder: Path, *, case: Case) -> None:
    for tower in case.towers:
        try:
            path = case.stages.onnx_path(variant="quantized", tower=tower, precision="float16")
        except QuantGateError:
            continue
        folder.mkdir(exist_ok=True)
        shutil.copy(path, folder / f"{tower}.onnx")


def _carry_run(case: Case, *, verdicts: Mapping[str, Verdict]) -> list[Any]:
    """Return what the tests of a run carry to the session that writes the report."""
    evidence = describe_case(case).to_json()
    return [
        {"gate": name, "verdict": to_json(verdict), "evidence": evidence}
        for name, verdict in verdicts.items()
    ]


# -- revisions ------------------------------------------------------------------------------------


def commit_trees(repository: Path, before: Path, after: Path) -> str:
    """Return the range of the two revisions of a new repository that hold two trees."""
    shutil.rmtree(repository, ignore_errors=True)
    repository.mkdir(parents=True)
    environ = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    environ |= {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}

    def run(*arguments: str) -> None:
        subprocess.run(
            ("git", "-c", "user.name=bench", "-c", "user.email=bench@localhost", *arguments),
            cwd=repository,
            env=environ,
            check=True,
            capture_output=True,
        )

    run("init", "--quiet")
    for revision, tree in (("good", before), ("other", after)):
        for part in ("suites", "baselines"):
            shutil.rmtree(repository / part, ignore_errors=True)
        shutil.copytree(tree, repository, dirs_exist_ok=True)
        run("add", "--all")
        run("commit", "--quiet", "--allow-empty", "--message", revision)
        run("tag", revision)
    return "good..other"
