"""What follows the PyTorch model: its ONNX files and its engines, built once and cached."""

from __future__ import annotations

import functools
import shutil
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from pytest_quantgate.errors import (
    ArtifactError,
    GivenFileError,
    ModelError,
    NotMeasured,
    Untied,
)
from pytest_quantgate.evidence.audit import TowerName
from pytest_quantgate.evidence.codec import from_json, to_json
from pytest_quantgate.evidence.onnx import EngineOutputs, OnnxAudit
from pytest_quantgate.evidence.parity import BlockParity, Parity, ShippedTower, TowerParity
from pytest_quantgate.gates.engine import EngineGate
from pytest_quantgate.gates.export import ExportGate
from pytest_quantgate.run.exported import (
    VARIANTS,
    EngineOrder,
    EngineTowers,
    ExportedTowers,
    Precision,
    RunnableEngine,
    Variant,
)
from pytest_quantgate.store.disk import temporary_folder
from pytest_quantgate.store.keys import (
    ENGINE,
    EXECUTED,
    EXPORTED,
    ONNX_AUDIT,
    ONNX_CHECK,
    ONNX_FILE,
    PARITY,
    SHIPPED,
)
from pytest_quantgate.store.plans import KnownPlans, default_plans_root

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    import torch

    from pytest_quantgate.artifacts.onnx_places import TowerModel
    from pytest_quantgate.encoders.encoder import Batch, Encoder
    from pytest_quantgate.evidence.latency import GivenTimes
    from pytest_quantgate.gates.latency import LatencyGate
    from pytest_quantgate.gates.memory import MemoryGate
    from pytest_quantgate.gates.trace import TraceGate
    from pytest_quantgate.inspection.findings import Inspection
    from pytest_quantgate.run.given_files import GivenOnnx, GivenPlan, GivenReport
    from pytest_quantgate.run.variants import Variants
    from pytest_quantgate.runtimes.engine import InputShapes
    from pytest_quantgate.runtimes.engine_layers import EngineReport
    from pytest_quantgate.runtimes.onnx_reference import ReferenceModel
    from pytest_quantgate.runtimes.onnxruntime_session import OnnxRuntimeModel
    from pytest_quantgate.runtimes.tensorrt_library import Library, LibraryName
    from pytest_quantgate.suite.specs import Stage

#: The batch size of engines that run a task.
ENGINE_BATCH = 64

#: Pairs in a batch of the parity measurement.
PARITY_BATCH_SIZE = 16


class Stages:
    """The exported files and engines of one case. Everything is lazy and comes from the cache."""

    def __init__(self, case: Variants) -> None:
        self.case = case
        self._open: dict[Any, Any] = {}
        self._engines: dict[tuple[Variant, TowerName], GivenReport | GivenPlan | None] = {}
        self.known_plans = KnownPlans(default_plans_root(case.environ))
        #: The files that were handed over and read since a gate began, by what they are.
        self.used_files: dict[str, str] = {}

    @property
    def softmax(self) -> bool:
        """Whether the suite declares softmax pairs, which then are in every exported file."""
        gate = self.case.suite.gates.one(ExportGate)
        return gate is not None and "softmax" in gate.allow

    @property
    def shipped(self) -> Precision:
        """The number format that the exported files and engines are in: that of the suite."""
        return self.case.suite.model.dtype

    def onnx_path(self, *, variant: Variant, tower: TowerName, precision: Precision) -> Path:
        """Return the ONNX file of a tower, with a free batch: one file for every later stage."""
        return self._onnx_folder(variant, tower, precision) / "model.onnx"

    def onnx_audit(self, *, variant: Variant, tower: TowerName, precision: Precision) -> OnnxAudit:
        """Return what the ONNX file of a tower holds, read back from the file."""
        from pytest_quantgate.artifacts.given_audit import audit_given
        from pytest_quantgate.measure.quantizers import list_amax
        from pytest_quantgate.runtimes.onnx_graph import read_graph

        def read() -> Any:
            path = folder / "model.onnx"
            if given is not None:
                model = self._describe_tower(variant, tower)
                found = audit_given(
                    path, model=model, name=given.path.name, digest=given.file_digest
                )
                return to_json(found)
            amax = list_amax(self.case.quantized.module) if variant == "quantized" else None
            return to_json(read_graph(path, amax=amax))

        given = self.given(variant, tower)

        folder = self._onnx_folder(variant, tower, precision)
        return self.case.measured(
            ONNX_AUDIT,
            self.case.key(ONNX_AUDIT, onnx=folder.name),
            measure=read,
            read=functools.partial(from_json, OnnxAudit),
            about=(variant, tower, precision),
        )

    def inspect_graph(self, tower: TowerName) -> Inspection:
        """Return what `quantgate check` says of a tower's given file against FP16.

        FP16 is its own given file, or the checkpoint.
        """
        from pytest_quantgate.inspection.findings import Inspection
        from pytest_quantgate.inspection.inspect import inspect_file, read_base

        given, base = self.given("quantized", tower), self.given("fp16", tower)
        assert given is not None  # a suite of ONNX files alone has one for each tower

        def measure() -> Any:
            path = self.case.source.directory if base is None else base.path
            with self.case.progress.stage(f"comparing {given.path.name} with FP16"):
                try:
                    return to_json(inspect_file(given.path, base=read_base(path)))
                except ArtifactError as error:
                    raise GivenFileError(f"{given.where}: {error}") from error

        return self.case.measured(
            ONNX_CHECK,
            self.case.key(
                ONNX_CHECK,
                given=given.key,
                base=self.case.source.digest if base is None else base.key,
            ),
            measure=measure,
            read=functools.partial(from_json, Inspection),
            about=(tower,),
        )

    def _onnx_key(self, variant: Variant, tower: TowerName, precision: Precision) -> str:
        """Return the key of an ONNX file, and note that this case is judged by it."""
        case = self.case
        given = self.given(variant, tower)
        key = case.key(
            ONNX_FILE,
            variant=case.variant_key if variant == "quantized" else case.fp16_key,
            tower=tower,
            precision=precision,
            softmax=self.softmax and variant == "quantized",
            given=given and given.key,
        )
        case.used[ONNX_FILE.kind, variant, tower, precision] = key
        return key

    def _note_exported(self) -> None:
        """Note the files of `exported`, which a cached measurement does not open."""
        for tower in self.case.towers:
            self._onnx_key("quantized", tower, "float32")

    def _onnx_folder(self, variant: Variant, tower: TowerName, precision: Precision) -> Path:
        case = self.case

        def build(folder: Path) -> None:
            from pytest_quantgate.runtimes.onnx_export import export_tower

            if given is not None:
                self._take(given, variant, tower, precision=precision, path=folder / "model.onnx")
                return

            model = case.quantized if variant == "quantized" else case.fp16
            with case.progress.stage(f"exporting the {tower} tower, {_name(variant)}, {precision}"):
                export_tower(
                    model,
                    tower=tower,
                    path=folder / "model.onnx",
                    softmax=self.softmax and variant == "quantized",
                    precision=precision,
                )

        given = self.given(variant, tower)
        key = self._onnx_key(variant, tower, precision)
        return case.cache.get_or_build(kind=ONNX_FILE.kind, key=key, build=build)

    def given(self, variant: Variant, tower: TowerName) -> GivenOnnx | None:
        """Return the file that takes the place of an export, and note that a gate reads it."""
        if self.case.suite.artifacts is None:
            return None
        self._refuse_towers()
        found = self.case.given_onnx(variant, tower)
        if found is not None:
            name = "ONNX" if variant == "quantized" else "FP16 ONNX"
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

    def _refuse_towers(self) -> None:
        """Raise GivenFileError for files of a tower that the model does not have."""
        from pytest_quantgate.run.given_files import files_of

        for variant in VARIANTS:
            files = files_of(self.case.suite.artifacts, variant=variant)
            if files is None:
                continue
            for tower in (*files.onnx, *files.engine, *files.engine_report):
                if tower not in self.case.towers:
                    raise GivenFileError(
                        f"{files.where}: {self.case.model_name} has no {tower} tower: it has "
                        f"{', '.join(self.case.towers)}"
                    )

    def _take(
        self,
        given: GivenOnnx,
        variant: Variant,
        tower: TowerName,
        *,
        precision: Precision,
        path: Path,
    ) -> None:
        """Write the file that was handed over as later stages read it; values stay as they are."""
        from pytest_quantgate.artifacts.given_onnx import hash_files, prepare_graph
        from pytest_quantgate.runtimes.onnx_rounding import widen_graph

        with self.case.progress.stage(f"reading {given.path.name}"):
            try:
                prepare_graph(
                    given.path,
                    path=path,
                    model=self._describe_tower(variant, tower),
                    prefix=given.prefix,
                )
                digests = hash_files(given.path.parent, names=given.digests)
            except ArtifactError as error:
                raise GivenFileError(f"{given.where}: {error}") from error
            if digests != given.digests:
                raise GivenFileError(
                    f"{given.where}: {given.path} was changed while the suite ran: run again"
                )
            if precision == "float32" != self.shipped:
                widen_graph(path, path=path)

    def _describe_tower(self, variant: Variant, tower: TowerName) -> TowerModel:
        from pytest_quantgate.run.given_files import describe_graph_alone, describe_tower

        key = ("tower", variant, tower)
        if key not in self._open:
            case = self.case
            if case.suite.model.source == "onnx":
                self._open[key] = describe_graph_alone(case.unweighted, tower=tower)
            elif variant == "quantized" and case.suite.is_onnx_alone:
                self._open[key] = describe_graph_alone(case.fp16, tower=tower)
            else:
                model = case.quantized if variant == "quantized" else case.fp16
                self._open[key] = describe_tower(model, tower=tower)
        found: TowerModel = self._open[key]
        return found

    def session(self, tower: TowerName, *, variant: Variant = "quantized") -> OnnxRuntimeModel:
        """Return a tower in ONNX Runtime, in float32, ready to run."""
        key = ("session", variant, tower)
        if key not in self._open:
            import torch

            workers = torch.get_num_threads()
            self._open[key] = self._new_session(variant, tower, workers=workers)
        found: OnnxRuntimeModel = self._open[key]
        return found

    def _new_session(self, variant: Variant, tower: TowerName, *, workers: int) -> OnnxRuntimeModel:
        from pytest_quantgate.runtimes.onnxruntime_session import OnnxRuntimeModel

        path = self.onnx_path(variant=variant, tower=tower, precision="float32")
        return OnnxRuntimeModel(path, workers=workers)

    def exported(self) -> ExportedTowers:
        """Return every quantized tower in ONNX Runtime."""
        return ExportedTowers({tower: self.session(tower) for tower in self.case.towers})

    def parity(self, *, samples: int) -> Parity:
        """Return how far the exported towers are from the PyTorch model on held-out pairs."""
        case = self.case
        self._note_exported()
        key = case.key(
            PARITY,
            fp16=case.fp16_key,
            variant=case.variant_key,
            softmax=self.softmax,
            samples=samples,
            given=self.case.given_digests("quantized"),
        )
        return case.measured(
            PARITY,
            key,
            measure=lambda: to_json(self._measure_parity(samples)),
            read=functools.partial(from_json, Parity),
        )

    def shipped_towers(self, *, samples: int) -> tuple[ShippedTower, ...]:
        """Return what the exported towers give in the number format that ships, on held-out pairs.

        None for a float32 model: parity looks at its files as they are.
        """
        case, dtype = self.case, self.shipped
        if dtype == "float32":
            return ()
        paths = {
            tower: self.onnx_path(variant="quantized", tower=tower, precision=dtype)
            for tower in case.towers
        }

        def measure() -> Any:
            import torch

            from pytest_quantgate.measure.embeddings import make_batches
            from pytest_quantgate.measure.shipped import measure_shipped

            pairs = case.held_out(samples)
            batches = list(make_batches(case.fp16, pairs, batch_size=PARITY_BATCH_SIZE))
            with case.progress.stage(f"running the exported towers in {dtype}"):
                return to_json(
                    [
                        measure_shipped(
                            paths[tower],
                            tower=tower,
                            fp16=case.fp16,
                            batches=batches,
                            dtype=dtype,
                            workers=torch.get_num_threads(),
                        )
                        for tower in case.towers
                    ]
                )

        return case.measured(
            SHIPPED,
            case.key(
                SHIPPED,
                fp16=case.fp16_key,
                onnx=[path.parent.name for path in paths.values()],
                samples=samples,
            ),
            measure=measure,
            read=functools.partial(from_json, tuple[ShippedTower, ...]),
        )

    def _measure_parity(self, samples: int) -> Parity:
        from pytest_quantgate.measure.embeddings import make_batches
        from pytest_quantgate.measure.parity import measure_tower_parity
        from pytest_quantgate.runtimes.onnx_export import simulate_softmax
        from pytest_quantgate.runtimes.onnx_reference import ReferenceModel

        case = self.case
        pairs = case.held_out(samples)
        batches = list(make_batches(case.fp16, pairs, batch_size=PARITY_BATCH_SIZE))
        approved: Encoder = simulate_softmax(case.quantized) if self.softmax else case.quantized
        sessions = {tower: self._open_graph(tower) for tower in case.towers}
        exported = ExportedTowers(sessions)
        found: list[TowerParity] = []
        for tower in case.towers:
            with case.progress.stage(f"comparing the {tower} tower in ONNX Runtime and PyTorch"):
                found.append(
                    measure_tower_parity(
                        tower=tower,
                        fp16=case.fp16,
                        quantized=approved,
                        exported=_encode_with(exported, tower=tower),
                        batches=batches,
                        optimization=sessions[tower].optimization,
                        compared=self._compare_blocks(approved, tower=tower, batches=batches),
                    )
                )
        runtime = case.surroundings.package("onnxruntime")
        assert runtime is not None  # it has just run, or said that it cannot
        by_reference = [s for s in sessions.values() if isinstance(s, ReferenceModel)]
        return Parity(
            towers=tuple(found),
            runtime=by_reference[0].name if by_reference else f"ONNX Runtime {runtime.version}",
            by_reference=by_reference[0].why if by_reference else "",
        )

    def _open_graph(self, tower: TowerName) -> OnnxRuntimeModel | ReferenceModel:
        """Return the quantized tower ready to run, by reference where ONNX Runtime cannot."""
        from pytest_quantgate.runtimes.onnx_reference import ReferenceModel
        from pytest_quantgate.runtimes.onnxruntime_session import NoKernel

        try:
            return self.session(tower)
        except NoKernel as error:
            path = self.onnx_path(variant="quantized", tower=tower, precision="float32")
            return ReferenceModel(path, why=str(error))

    def _compare_blocks(
        self, approved: Encoder, *, tower: TowerName, batches: Sequence[Batch]
    ) -> tuple[BlockParity, ...]:
        import torch

        from pytest_quantgate.measure.parity import (
            ExportedPart,
            list_blocks,
            measure_block_parity,
        )
        from pytest_quantgate.runtimes.onnx_blocks import cut_blocks
        from pytest_quantgate.runtimes.onnx_reference import open_graph

        blocks = list_blocks(approved, tower=tower)
        source = self.onnx_path(variant="quantized", tower=tower, precision="float32")
        with temporary_folder() as folder:
            try:
                parts = cut_blocks(source, blocks=blocks, folder=folder)
            except ModelError:
                if self.given("quantized", tower) is None:
                    raise
                return ()  # another exporter's graph that has no seams there
            workers = torch.get_num_threads()
            sessions = {
                block: open_graph(part.path, workers=workers, optimization="none")
                for block, part in parts.items()
            }

        def run(block: str, batch: Batch, hidden: Mapping[str, torch.Tensor]) -> ExportedPart:
            part = parts[block]
            feeds = {name: batch.inputs[tower][name] for name in part.inputs}
            feeds |= {name: hidden[other] for other, name in part.given.items()}
            results = sessions[block].run({n: value.cpu().numpy() for n, value in feeds.items()})
            found = {name: torch.from_numpy(value) for name, value in results.items()}
            return ExportedPart(
                result=found[part.output],
                rounded={name: found[value] for name, value in part.pairs.items()},
            )

        return measure_block_parity(
            tower=tower, quantized=approved, blocks=blocks, exported=run, batches=batches
        )

    def engine(
        self, *, variant: Variant, tower: TowerName, gate: EngineGate | MemoryGate | TraceGate
    ) -> EngineReport:
        """Return the report of a tower's engine; the plan stays in the cache beside it."""
        assert gate.target is not None
        order = EngineOrder(
            target=gate.target,
            library=gate.library,
            batch=gate.batch,
            source=gate.where.of("target"),
        )
        from pytest_quantgate.run.given_files import GivenPlan

        given = self.given_engine(variant, tower)
        if isinstance(given, GivenPlan):
            side = "" if variant == "quantized" else "fp16."
            raise NotMeasured(
                f"{given.where}: {given.description} says nothing of what it computes: give its "
                f"layers as artifacts.{side}engine_report.{tower} (layers, engine, sums), which "
                f"ties them to the plan by SHA-256; on its own it runs on a GPU of its target "
                f"(latency, load, accuracy with stage: engine)"
            )
        if given is not None:
            return self._read_given_engine(given, variant=variant, tower=tower, order=order)
        report, _ = self.build_engine(variant=variant, tower=tower, order=order)
        return report

    def base_engine(
        self, *, tower: TowerName, gate: EngineGate | MemoryGate
    ) -> EngineReport | None:
        """Return FP16's engine; None where one was handed over without FP16's beside it.

        One of another library and another machine would be no base.
        """
        quantized, fp16 = (self.given_report(v, tower) for v in ("quantized", "fp16"))
        if quantized is not None and fp16 is None:
            return None
        return self.engine(variant="fp16", tower=tower, gate=gate)

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

    def runnable_engine(
        self, *, variant: Variant, tower: TowerName, order: EngineOrder
    ) -> RunnableEngine:
        """Return a plan that may run on the GPU here: the one that was handed over, or built.

        Raises NotMeasured for a handed-over one that may not, with what would make it run.
        """
        given = self.given_engine(variant, tower)
        if given is not None:
            return self._take_plan(given.as_plan(), variant=variant, tower=tower, order=order)
        report, path = self.build_engine(variant=variant, tower=tower, order=order, to_run=True)
        return RunnableEngine(
            path=path,
            target=report.target,
            plan_sha256=report.plan_sha256,
            plan_bytes=report.plan_bytes,
            weights_bytes=report.weights_bytes,
        )

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

        key = self.case.key(
            ENGINE,
            onnx=None,
            target=order.target,
            batch=None,
            library=[order.library],
            given=given.key,
        )

        def read(folder: Path) -> Path:
            self.known_plans.check(folder / "model.plan")
            return folder / "model.plan"

        path: Path = self.case.cache.get_and_read(kind=ENGINE.kind, key=key, build=build, read=read)
        about = (variant, tower, order.target, str(order.batch), order.library)
        self.case.used[ENGINE.kind, *about] = key
        return RunnableEngine(
            path=path,
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
            try:
                self._tie(given, variant=variant, tower=tower, built=digest)
                report = read_engine_report(
                    given.files,
                    graph=graph,
                    names=read_names(content, path=path) if onnx is not None else {},
                    onnx_digest=digest,
                    target=order.target,
                    library=order.library,
                )
            except ArtifactError as error:
                raise GivenFileError(f"{given.where}: {error}") from error
            except Untied as error:
                raise Untied(f"{given.where}: {error}") from error
            write_json(folder / "report.json", to_json(report))

        key = self.case.key(
            ENGINE,
            onnx=path.parent.name,
            target=order.target,
            batch=order.batch,
            library=[order.library],
            given=given.key,
        )
        found: EngineReport = self.case.cache.get_and_read(
            kind=ENGINE.kind,
            key=key,
            build=build,
            read=lambda folder: from_json(EngineReport, read_json(folder / "report.json")),
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
        try:
            self._tie(given, variant=variant, tower=gate.tower, built=built)
            plan = read_plan(paths["engine"])
            check_library(plan, name=paths["engine"].name, library=gate.runtime)
            found = read_engine_times(
                paths["times"], log=paths["log"], profile=paths.get("profile")
            )
        except ArtifactError as error:
            raise GivenFileError(f"{given.where}: {error}") from error
        except Untied as error:
            raise Untied(f"{given.where}: {error}") from error
        if found.batch:
            return found
        audit = self.onnx_audit(variant=variant, tower=gate.tower, precision=self.shipped)
        return replace(found, batch=audit.given.batch if audit.given else 0)

    def build_engine(
        self, *, variant: Variant, tower: TowerName, order: EngineOrder, to_run: bool = False
    ) -> tuple[EngineReport, Path]:
        """Return the report and the plan of a tower's engine, from the cache or built.

        A plan `to_run` is one that was built here, or it is built again: it is code.
        """
        from pytest_quantgate.runtimes.engine import build_engine
        from pytest_quantgate.runtimes.engine_layers import EngineError, EngineReport
        from pytest_quantgate.runtimes.tensorrt_library import load_library
        from pytest_quantgate.store.cache import read_json, write_json

        target = order.target
        self._refuse_unbuildable(variant, tower, order=order)
        library = load_library(name=_module_of(order.library))
        known = self.known_plans
        onnx_path = self.onnx_path(variant=variant, tower=tower, precision=self.shipped)
        key = self.case.key(
            ENGINE,
            onnx=onnx_path.parent.name,
            target=target,
            batch=order.batch,
            library=[library.name, library.version],
            given=None,
        )

        def build(folder: Path) -> None:
            label = f"building the {tower} engine for {target}, {_name(variant)}"
            try:
                with self.case.progress.stage(label):
                    report = build_engine(
                        onnx_path=onnx_path,
                        plan_path=folder / "model.plan",
                        library=library,
                        target=target,
                        shapes=self._fixed_shapes(tower, batch=order.batch),
                    )
            except EngineError as error:
                what = f"the {tower} tower, {_name(variant)}"
                reason = str(error).removeprefix(f"{onnx_path}: ")
                raise EngineError(f"{order.source}: {what}: {reason}") from error
            write_json(folder / "report.json", to_json(report))
            known.add(report.plan_sha256)

        def read(folder: Path) -> tuple[EngineReport, Path]:
            if to_run:
                known.check(folder / "model.plan")
            report = from_json(EngineReport, read_json(folder / "report.json"))
            return report, folder / "model.plan"

        found: tuple[EngineReport, Path] = self.case.cache.get_and_read(
            kind=ENGINE.kind, key=key, build=build, read=read
        )
        about = (variant, tower, target, str(order.batch), order.library)
        self.case.used[ENGINE.kind, *about] = key
        return found

    def _refuse_unbuildable(
        self, variant: Variant, tower: TowerName, *, order: EngineOrder
    ) -> None:
        """Raise GivenFileError for a file that is known not to become an engine."""
        if self.given(variant, tower) is None:
            return
        audit = self.onnx_audit(variant=variant, tower=tower, precision=self.shipped)
        if audit.given is None:
            return
        if audit.given.batch not in (0, order.batch):
            raise GivenFileError(
                f"{order.source}: {audit.given.name} of the {tower} tower takes batches of "
                f"{audit.given.batch} alone, the engine is wanted for {order.batch}: set batch: "
                f"{audit.given.batch}, or export it with a free batch"
            )
        if audit.given.refused:
            raise GivenFileError(
                f"{order.source}: no engine can be built from {audit.given.name} of the {tower} "
                f"tower: {audit.given.refused}"
            )

    # -- on a device -----------------------------------------------------------------------------

    def require_gpu(self, what: str) -> None:
        """Raise NotMeasured where this run has no GPU; imports nothing where it has none."""
        if self.case.device != "cuda":
            why = (
                "--quantgate-device=cpu"
                if self.case.settings.device == "cpu"
                else "this machine has none"
            )
            raise NotMeasured(f"{what} needs an NVIDIA GPU: {why}")

    def find_engine_target(self, name: str) -> tuple[Library, str]:
        """Return the library of a suite's `name` and the target of the GPU in this machine.

        Raises NotMeasured where there is no GPU or one that the library does not build for, and
        MissingPackage without the library.
        """
        from pytest_quantgate.runtimes.tensorrt_library import load_library, require_device_target

        self.require_gpu(f"running {name} engines")
        library = load_library(name=_module_of(name))
        return library, require_device_target(library)

    def stage_key(self, stage: Stage) -> str:
        """Return what the outcomes of a stage depend on besides the variant; empty for PyTorch.

        Raises as `find_engine_target`: outcomes of an engine mean nothing where it cannot run.
        """
        if stage == "torch":
            return ""
        if stage == "onnx":
            self._note_exported()
            given = self.case.given_digests("quantized")
            return self.case.key(EXPORTED, softmax=self.softmax, given=given)
        _, plans = self._build_for_device()
        digests = [engine.plan_sha256 for engine in plans.values()]
        return self.case.key(EXECUTED, plans=digests)

    @contextmanager
    def encoder(self, stage: Literal["onnx", "engine"]) -> Iterator[ExportedTowers | EngineTowers]:
        """Open the quantized towers of a stage behind one interface."""
        if stage == "onnx":
            yield self.exported()
            return
        from pytest_quantgate.runtimes.engine_run import open_engine

        library, plans = self._build_for_device()
        errors: list[str] = []
        with ExitStack() as stack:
            engines = {
                tower: stack.enter_context(
                    open_engine(
                        library=library, plan_path=found.path, target=found.target, errors=errors
                    )
                )
                for tower, found in plans.items()
            }
            yield EngineTowers(engines, batch=ENGINE_BATCH)

    def _build_for_device(self) -> tuple[Library, dict[TowerName, RunnableEngine]]:
        """Return the quantized engines for the GPU in this machine.

        The library is that of the suite's first engine gate, TensorRT for RTX without one.
        """
        for tower in self.case.towers:
            self.given_engine("quantized", tower)  # named, also where it cannot run
        gate = self.case.suite.gates.one(EngineGate)
        name = gate.library if gate else "tensorrt-rtx"
        library, target = self.find_engine_target(name)
        order = EngineOrder(
            target=target, library=name, batch=ENGINE_BATCH, source=str(self.case.suite.path.name)
        )
        return library, {
            tower: self.runnable_engine(variant="quantized", tower=tower, order=order)
            for tower in self.case.towers
        }

    def engine_outputs(self, gate: EngineGate, *, samples: int) -> dict[str, EngineOutputs]:
        """Return what the quantized engines of a gate give on held-out pairs, never from a cache.

        Raises NotMeasured where the machine has no GPU of the gate's target, or a part is missing.
        """
        from pytest_quantgate.measure.embeddings import make_batches
        from pytest_quantgate.measure.parity import measure_engine_outputs
        from pytest_quantgate.runtimes.engine_run import open_engine
        from pytest_quantgate.runtimes.onnx_export import simulate_softmax

        library, here = self.find_engine_target(gate.library)
        case = self.case
        pairs = case.held_out(samples)
        batches = list(make_batches(case.fp16, pairs, batch_size=PARITY_BATCH_SIZE))
        approved: Encoder = simulate_softmax(case.quantized) if self.softmax else case.quantized
        order = EngineOrder(
            target=gate.target,
            library=gate.library,
            batch=gate.batch,
            source=gate.where.of("target"),
        )
        found = {}
        for tower in gate.towers:
            plan = self.runnable_engine(variant="quantized", tower=tower, order=order)
            if plan.target != here:
                raise NotMeasured(f"the engines are for {plan.target}, the GPU here is {here}")
            try:
                session: OnnxRuntimeModel | None = self.session(tower)
            except NotMeasured:
                session = None
            with (
                case.progress.stage(f"running the {tower} engine on held-out pairs"),
                open_engine(library=library, plan_path=plan.path, target=here) as engine,
            ):
                found[str(tower)] = measure_engine_outputs(
                    tower=tower,
                    fp16=case.fp16,
                    quantized=approved,
                    engine=_encode_with(
                        EngineTowers({tower: engine}, batch=gate.batch), tower=tower
                    ),
                    exported=None
                    if session is None
                    else _encode_with(ExportedTowers({tower: session}), tower=tower),
                    batches=batches,
                )
        return found

    def _fixed_shapes(self, tower: TowerName, *, batch: int) -> tuple[InputShapes, ...]:
        """Return the shapes of a tower's inputs with one batch and no other."""
        from pytest_quantgate.runtimes.engine import InputShapes

        shapes = self.case.fp16.tower(tower).inputs
        return tuple(
            InputShapes(
                name=name, smallest=(batch, *rest), usual=(batch, *rest), largest=(batch, *rest)
            )
            for name, rest in shapes.items()
        )


def _encode_with(
    model: ExportedTowers | EngineTowers, *, tower: TowerName
) -> Callable[[Batch], torch.Tensor]:
    """Return what embeds a batch of pairs with one tower of a model."""
    return lambda batch: model.encode(tower, batch.inputs[tower])


def _module_of(library: str) -> LibraryName:
    return "tensorrt_rtx" if library == "tensorrt-rtx" else "tensorrt"


def _name(variant: Variant) -> str:
    return "FP16" if variant == "fp16" else "quantized"
