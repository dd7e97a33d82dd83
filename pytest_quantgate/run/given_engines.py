"""Engines and their reports that were handed over, beside the ONNX files that they are tied to."""

from __future__ import annotations

import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeVar

from pytest_quantgate.errors import GivenFileError
from pytest_quantgate.evidence.audit import TowerName
from pytest_quantgate.evidence.codec import from_json, to_json
from pytest_quantgate.run.exported import VARIANTS, EngineOrder, RunnableEngine, Variant
from pytest_quantgate.run.given_files import place_errors
from pytest_quantgate.run.onnx_files import OnnxFiles
from pytest_quantgate.store.keys import ENGINE
from pytest_quantgate.store.plans import KnownPlans, default_plans_root

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from pytest_quantgate.evidence.latency import GivenTimes
    from pytest_quantgate.gates.latency import LatencyGate
    from pytest_quantgate.run.given_files import GivenPlan, GivenReport
    from pytest_quantgate.run.variants import Variants
    from pytest_quantgate.runtimes.engine_layers import EngineReport

Value = TypeVar("Value")


class GivenEngines(OnnxFiles):
    """The ONNX files of one case, and the engines that it was handed in the place of built ones."""

    def __init__(self, case: Variants) -> None:
        super().__init__(case)
        self._engines: dict[tuple[Variant, TowerName], GivenReport | GivenPlan | None] = {}
        self.known_plans = KnownPlans(default_plans_root(case.environ))

    def given_report(self, variant: Variant, tower: TowerName) -> GivenReport | None:
        """Return the report that takes the place of an engine, as it was when the run began."""
        from pytest_quantgate.run.given_files import GivenReport

        found = self.given_engine(variant, tower)
        return found if isinstance(found, GivenReport) else None

    def given_engine(self, variant: Variant, tower: TowerName) -> GivenReport | GivenPlan | None:
        """Return what takes the place of an engine, and note that a gate reads it."""
        from pytest_quantgate.run.given_files import open_given_engine

        if self.case.suite.artifacts is None:
            return None
        key = (variant, tower)
        if key not in self._engines:
            self._refuse_towers()
            self._engines[key] = open_given_engine(
                self.case.suite.artifacts,
                variant=variant,
                tower=tower,
                environ=self.case.environ,
            )
        found = self._engines[key]
        if found is not None:
            name = found.kind if variant == "quantized" else f"FP16 {found.kind}"
            self.used_files[f"{tower} {name}"] = found.description
        return found

    @property
    def opened(self) -> Mapping[tuple[str, Variant, TowerName], Mapping[str, str]]:
        """The SHA-256 of files that were handed over and that this run has read, by their name.

        The key is `onnx` or `engine`, variant and tower.
        """
        return {
            (kind, variant, tower): found.digests
            for kind, opened in (("onnx", self.case.opened_onnx), ("engine", self._engines))
            for variant in VARIANTS
            for tower in self.case.towers
            if (found := opened.get((variant, tower))) is not None
        }

    def _take_plan(
        self, given: GivenPlan, *, variant: Variant, tower: TowerName, order: EngineOrder
    ) -> RunnableEngine:
        """Return a copy of a plan that was handed over: what runs is what was digested."""
        given.check_may_run(self.known_plans, library=order.library, target=order.target)

        def build(folder: Path) -> None:
            shutil.copyfile(given.path, folder / "model.plan")
            try:
                self.known_plans.check(folder / "model.plan")
            except ValueError as error:
                raise GivenFileError(
                    f"{given.where}: {given.path} was changed while the suite ran: run again"
                ) from error

        def read(folder: Path) -> Path:
            self.known_plans.check(folder / "model.plan")
            return folder / "model.plan"

        return RunnableEngine(
            path=self._keep(
                order,
                variant=variant,
                tower=tower,
                build=build,
                read=read,
                onnx=None,
                batch=None,
                library=[order.library],
                given=given.key,
            ),
            target=order.target,
            plan_sha256=given.digest,
            plan_bytes=given.plan.bytes,
            weights_bytes=None,
        )

    def _read_given_engine(
        self, given: GivenReport, *, variant: Variant, tower: TowerName, order: EngineOrder
    ) -> EngineReport:
        """Return what a report that was handed over says, tied to the approved ONNX file."""
        from pytest_quantgate.artifacts.given_engine import read_engine_report
        from pytest_quantgate.artifacts.given_onnx import read_names
        from pytest_quantgate.runtimes.engine_graph import read_onnx
        from pytest_quantgate.runtimes.engine_layers import EngineReport
        from pytest_quantgate.store.cache import read_json, write_json

        onnx = self.given(variant, tower)
        path = self.onnx_path(variant=variant, tower=tower, precision=self.shipped)

        def build(folder: Path) -> None:
            content, digest, graph = read_onnx(path)
            with place_errors(given.where):
                self._tie(given, variant=variant, tower=tower, built=digest)
                report = read_engine_report(
                    given.files,
                    graph=graph,
                    names=read_names(content, path=path) if onnx is not None else {},
                    onnx_digest=digest,
                    target=order.target,
                    library=order.library,
                )
            write_json(folder / "report.json", to_json(report))

        return self._keep(
            order,
            variant=variant,
            tower=tower,
            build=build,
            read=lambda folder: from_json(EngineReport, read_json(folder / "report.json")),
            onnx=path.parent.name,
            batch=order.batch,
            library=[order.library],
            given=given.key,
        )

    def _keep(
        self,
        order: EngineOrder,
        *,
        variant: Variant,
        tower: TowerName,
        build: Callable[[Path], None],
        read: Callable[[Path], Value],
        **inputs: Any,
    ) -> Value:
        """Return what `read` makes of an engine's folder, from the cache or built; `inputs` are the
        others of its key. The case is judged by it."""
        key = self.case.key(ENGINE, target=order.target, **inputs)
        found: Value = self.case.cache.get_and_read(
            kind=ENGINE.kind, key=key, build=build, read=read
        )
        about = (variant, tower, order.target, str(order.batch), order.library)
        self.case.used[ENGINE.kind, *about] = key
        return found

    def _tie(self, given: GivenReport, *, variant: Variant, tower: TowerName, built: str) -> None:
        """Raise Untied where a report is not proved to be of the approved ONNX file.

        `built` is the SHA-256 of what was exported here, where no file was handed over.
        """
        from pytest_quantgate.artifacts.given_engine import check_sums

        onnx = self.given(variant, tower)
        check_sums(
            given.files,
            onnx_name=onnx.path.name if onnx is not None else "model.onnx",
            onnx_digest=onnx.file_digest if onnx is not None else built,
        )

    def given_times(self, gate: LatencyGate) -> tuple[GivenTimes, GivenTimes | None] | None:
        """Return the times of the quantized and the FP16 engine that were handed over.

        None where those of the quantized one were not, or the gate is not about engines; the
        second is None without FP16's.
        """
        if gate.runtime not in ("tensorrt", "tensorrt-rtx"):
            return None
        quantized, fp16 = (self._read_times(v, gate=gate) for v in ("quantized", "fp16"))
        return None if quantized is None else (quantized, fp16)

    def _read_times(self, variant: Variant, *, gate: LatencyGate) -> GivenTimes | None:
        from pytest_quantgate.artifacts.engine_files import read_plan
        from pytest_quantgate.artifacts.engine_times import read_engine_times
        from pytest_quantgate.artifacts.given_engine import check_library
        from pytest_quantgate.runtimes.engine_graph import read_onnx

        given = self.given_report(variant, gate.tower)
        if given is None or "times" not in given.files.paths:
            return None
        paths, onnx = given.files.paths, self.given(variant, gate.tower)
        built = ""
        if onnx is None:
            path = self.onnx_path(variant=variant, tower=gate.tower, precision=self.shipped)
            _, built, _ = read_onnx(path)
        with place_errors(given.where):
            self._tie(given, variant=variant, tower=gate.tower, built=built)
            plan = read_plan(paths["engine"])
            check_library(plan, name=paths["engine"].name, library=gate.runtime)
            found = read_engine_times(
                paths["times"], log=paths["log"], profile=paths.get("profile")
            )
        if found.batch:
            return found
        audit = self.onnx_audit(variant=variant, tower=gate.tower, precision=self.shipped)
        return replace(found, batch=audit.given.batch if audit.given else 0)
