"""What follows the PyTorch model: its ONNX files and its engines, built once and cached."""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Literal

from pytest_quantgate.errors import GivenFileError, NotMeasured
from pytest_quantgate.evidence.audit import TowerName
from pytest_quantgate.evidence.codec import from_json, to_json
from pytest_quantgate.evidence.onnx import EngineOutputs
from pytest_quantgate.gates.engine import EngineGate
from pytest_quantgate.run.exported import (
    EngineOrder,
    EngineTowers,
    ExportedTowers,
    RunnableEngine,
    Variant,
)
from pytest_quantgate.run.given_engines import GivenEngines
from pytest_quantgate.run.onnx_files import PARITY_BATCH_SIZE, name_variant
from pytest_quantgate.store.keys import EXECUTED, EXPORTED

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pytest_quantgate.encoders.encoder import Encoder
    from pytest_quantgate.gates.memory import MemoryGate
    from pytest_quantgate.gates.trace import TraceGate
    from pytest_quantgate.runtimes.engine import InputShapes
    from pytest_quantgate.runtimes.engine_layers import EngineReport
    from pytest_quantgate.runtimes.onnxruntime_session import OnnxRuntimeModel
    from pytest_quantgate.runtimes.tensorrt_library import Library, LibraryName
    from pytest_quantgate.suite.specs import Stage

#: The batch size of engines that run a task.
ENGINE_BATCH = 64


class Stages(GivenEngines):
    """The exported files and engines of one case. Everything is lazy and comes from the cache."""

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

        def build(folder: Path) -> None:
            label = f"building the {tower} engine for {target}, {name_variant(variant)}"
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
                what = f"the {tower} tower, {name_variant(variant)}"
                reason = str(error).removeprefix(f"{onnx_path}: ")
                raise EngineError(f"{order.source}: {what}: {reason}") from error
            write_json(folder / "report.json", to_json(report))
            known.add(report.plan_sha256)

        def read(folder: Path) -> tuple[EngineReport, Path]:
            if to_run:
                known.check(folder / "model.plan")
            report = from_json(EngineReport, read_json(folder / "report.json"))
            return report, folder / "model.plan"

        return self._keep(
            order,
            variant=variant,
            tower=tower,
            build=build,
            read=read,
            onnx=onnx_path.parent.name,
            batch=order.batch,
            library=[library.name, library.version],
            given=None,
        )

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
            given = self.case.given_digests()
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
                    engine=EngineTowers({tower: engine}, batch=gate.batch),
                    exported=None if session is None else ExportedTowers({tower: session}),
                    batches=batches,
                )
        return found


def _module_of(library: str) -> LibraryName:
    return "tensorrt_rtx" if library == "tensorrt-rtx" else "tensorrt"
