"""What follows the PyTorch model: its ONNX files and its engines, built once and cached."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pytest_quantgate.fingerprint import digest_of
from pytest_quantgate.measurement import (
    OnnxAudit,
    Parity,
    TowerParity,
    from_json,
    to_json,
)
from pytest_quantgate.suite import EngineGate, LatencyGate, MemoryGate

if TYPE_CHECKING:
    import torch

    from pytest_quantgate.case import Case
    from pytest_quantgate.measure.latency import LatencyRun, TimeRuns
    from pytest_quantgate.models.clip import ClipModel, PairBatch
    from pytest_quantgate.runtimes.engine import InputShapes
    from pytest_quantgate.runtimes.engine_layers import EngineReport
    from pytest_quantgate.runtimes.onnxruntime_session import OnnxRuntimeModel

TowerName = Literal["vision", "text"]
Variant = Literal["fp16", "quantized"]
Precision = Literal["float32", "float16"]

TOWERS: tuple[TowerName, ...] = ("vision", "text")
VARIANTS: tuple[Variant, ...] = ("fp16", "quantized")

#: A round lasts at least this long, so that the clock and the scheduler do not count.
MIN_ROUND_MS = 20.0
WARM_UP_S = 5.0

#: Pairs in a batch of the parity measurement.
PARITY_BATCH_SIZE = 16


class ExportedClip:
    """The exported towers of a variant in ONNX Runtime, with the interface of a ClipModel."""

    def __init__(self, *, vision: OnnxRuntimeModel, text: OnnxRuntimeModel) -> None:
        self.vision = vision
        self.text = text

    def encode_image(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Return float32 [N, D], not normalised, for pixel values [N, 3, H, W]."""
        import torch

        return torch.from_numpy(self.vision.run_image(pixel_values.cpu().numpy()))

    def encode_text(self, tokens: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Return float32 [N, D], not normalised, for token ids and attention mask [N, T]."""
        import torch

        ids, mask = (tokens[name].cpu().numpy() for name in ("input_ids", "attention_mask"))
        return torch.from_numpy(self.text.run_text(ids, mask))


class Stages:
    """The exported files and engines of one case. Everything is lazy and comes from the cache."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self._open: dict[Any, Any] = {}

    @property
    def softmax(self) -> bool:
        """Whether the suite declares softmax pairs, which then are in every exported file."""
        gate = self.case.suite.gates.export
        return gate is not None and "softmax" in gate.allow

    def onnx_path(self, *, variant: Variant, tower: TowerName, precision: Precision) -> Path:
        """Return the ONNX file of a tower, with a free batch: one file for every later stage."""
        return self._onnx_folder(variant, tower, precision) / "model.onnx"

    def onnx_audit(self, *, variant: Variant, tower: TowerName, precision: Precision) -> OnnxAudit:
        """Return what the ONNX file of a tower holds, read back from the file."""
        from pytest_quantgate.runtimes.onnx_graph import read_graph

        folder = self._onnx_folder(variant, tower, precision)
        stored = self.case.cache.get_or_measure(
            kind="onnx_audit",
            key=digest_of({"folder": folder.name, "code": self.case.code}),
            measure=lambda: to_json(read_graph(folder / "model.onnx")),
        )
        return from_json(OnnxAudit, stored)

    def _onnx_folder(self, variant: Variant, tower: TowerName, precision: Precision) -> Path:
        case = self.case
        softmax = self.softmax and variant == "quantized"
        key = digest_of(
            {
                "variant": case.variant_key if variant == "quantized" else case.fp16_key,
                "tower": tower,
                "precision": precision,
                "softmax": softmax,
            }
        )

        def build(folder: Path) -> None:
            from pytest_quantgate.runtimes.onnx_export import export_tower

            model = case.quantized if variant == "quantized" else case.fp16
            with case.progress.stage(f"exporting the {tower} tower, {_name(variant)}, {precision}"):
                export_tower(
                    model,
                    tower=tower,
                    path=folder / "model.onnx",
                    softmax=softmax,
                    precision=precision,
                )

        return case.cache.get_or_build(kind="onnx", key=key, build=build)

    def session(self, tower: TowerName) -> OnnxRuntimeModel:
        """Return the quantized tower in ONNX Runtime, in float32, ready to run."""
        if tower not in self._open:
            import torch

            threads = torch.get_num_threads()
            self._open[tower] = self._new_session("quantized", tower, threads=threads)
        found: OnnxRuntimeModel = self._open[tower]
        return found

    def _new_session(self, variant: Variant, tower: TowerName, *, threads: int) -> OnnxRuntimeModel:
        from pytest_quantgate.runtimes.onnxruntime_session import OnnxRuntimeModel

        path = self.onnx_path(variant=variant, tower=tower, precision="float32")
        return OnnxRuntimeModel(path, threads=threads)

    def latency(self, gate: LatencyGate) -> LatencyRun:
        """Return the times of FP16 and the quantized variant; never from a cache."""
        from pytest_quantgate.measure.embeddings import make_batches
        from pytest_quantgate.measure.latency import (
            measure_latency,
            read_machine,
            time_onnx_tower,
            time_torch_tower,
        )

        case = self.case
        pairs = case.held_out(gate.batch)
        if len(pairs) < gate.batch:
            pairs = pairs.select([i % len(pairs) for i in range(gate.batch)])
        (batch,) = make_batches(case.fp16, pairs, batch_size=gate.batch)
        contestants: dict[str, TimeRuns]
        if gate.runtime == "onnxruntime":
            contestants = {
                variant: time_onnx_tower(
                    self._new_session(variant, gate.tower, threads=gate.threads),
                    tower=gate.tower,
                    batch=batch,
                )
                for variant in VARIANTS
            }
            device = "cpu"
        else:
            models = {"fp16": case.fp16, "quantized": case.quantized}
            contestants = {
                variant: time_torch_tower(models[variant], tower=gate.tower, batch=batch)
                for variant in VARIANTS
            }
            device = "cuda:0" if case.device == "cuda" else "cpu"
        label = f"timing the {gate.tower} tower in {gate.runtime}"
        with case.progress.stage(label, total=gate.rounds) as advance:
            return measure_latency(
                contestants=contestants,
                rounds=gate.rounds,
                min_round_ms=MIN_ROUND_MS,
                warm_up_s=WARM_UP_S,
                runtime=gate.runtime,
                machine=read_machine(threads=gate.threads, device=device),
                tower=gate.tower,
                batch_size=gate.batch,
                advance=advance,
            )

    def exported(self) -> ExportedClip:
        """Return both quantized towers in ONNX Runtime."""
        return ExportedClip(vision=self.session("vision"), text=self.session("text"))

    def parity(self, *, samples: int) -> Parity:
        """Return how far the exported towers are from the PyTorch model on held-out pairs."""
        stored = self.case.cache.get_or_measure(
            kind="parity",
            key=digest_of(
                {"variant": self.case.variant_key, "softmax": self.softmax, "samples": samples}
            ),
            measure=lambda: to_json(self._measure_parity(samples)),
        )
        return from_json(Parity, stored)

    def _measure_parity(self, samples: int) -> Parity:
        import onnxruntime

        from pytest_quantgate.measure.embeddings import make_batches
        from pytest_quantgate.measure.parity import measure_tower_parity
        from pytest_quantgate.runtimes.onnx_export import simulate_softmax

        case = self.case
        pairs = case.held_out(samples)
        batches = list(make_batches(case.fp16, pairs, batch_size=PARITY_BATCH_SIZE))
        approved: ClipModel = simulate_softmax(case.quantized) if self.softmax else case.quantized
        exported = self.exported()
        found: list[TowerParity] = []
        for tower in TOWERS:

            def run(batch: PairBatch, tower: TowerName = tower) -> torch.Tensor:
                if tower == "vision":
                    return exported.encode_image(batch.pixel_values)
                return exported.encode_text(batch.tokens)

            with case.progress.stage(f"comparing the {tower} tower in ONNX Runtime and PyTorch"):
                found.append(
                    measure_tower_parity(
                        tower=tower,
                        fp16=case.fp16,
                        quantized=approved,
                        exported=run,
                        batches=batches,
                        optimization=self.session(tower).optimization,
                    )
                )
        return Parity(towers=tuple(found), runtime=f"ONNX Runtime {onnxruntime.__version__}")

    def engine(
        self, *, variant: Variant, tower: TowerName, gate: EngineGate | MemoryGate
    ) -> EngineReport:
        """Return the report of a tower's engine; the plan stays in the cache beside it."""
        from pytest_quantgate.case import read_json, write_json
        from pytest_quantgate.runtimes.engine import build_engine
        from pytest_quantgate.runtimes.engine_layers import EngineError, EngineReport
        from pytest_quantgate.runtimes.tensorrt_library import load_library

        library = load_library(
            name="tensorrt_rtx" if gate.library == "tensorrt-rtx" else "tensorrt"
        )
        onnx_path = self.onnx_path(variant=variant, tower=tower, precision="float16")
        key = digest_of(
            {
                "onnx": onnx_path.parent.name,
                "target": gate.target,
                "batch": gate.batch,
                "library": [library.name, library.version],
                "code": self.case.code,
            }
        )

        def build(folder: Path) -> None:
            label = f"building the {tower} engine for {gate.target}, {_name(variant)}"
            try:
                with self.case.progress.stage(label):
                    report = build_engine(
                        onnx_path=onnx_path,
                        plan_path=folder / "model.plan",
                        library=library,
                        target=gate.target,
                        shapes=self._fixed_shapes(tower, batch=gate.batch),
                    )
            except EngineError as error:
                what = f"the {tower} tower, {_name(variant)}"
                reason = str(error).removeprefix(f"{onnx_path}: ")
                raise EngineError(f"{gate.where.of('target')}: {what}: {reason}") from error
            write_json(folder / "report.json", to_json(report))

        folder = self.case.cache.get_or_build(kind="engine", key=key, build=build)
        return from_json(EngineReport, read_json(folder / "report.json"))

    def _fixed_shapes(self, tower: TowerName, *, batch: int) -> tuple[InputShapes, ...]:
        """Return the shapes of a tower's inputs with one batch and no other."""
        from pytest_quantgate.runtimes.engine import InputShapes

        config: Any = self.case.fp16.module.config
        shapes: dict[str, tuple[int, ...]]
        if tower == "vision":
            vision = config.vision_config
            sides = (vision.num_channels, vision.image_size, vision.image_size)
            shapes = {"pixel_values": (batch, *sides)}
        else:
            tokens = (batch, config.text_config.max_position_embeddings)
            shapes = {"input_ids": tokens, "attention_mask": tokens}
        return tuple(
            InputShapes(name=name, smallest=shape, usual=shape, largest=shape)
            for name, shape in shapes.items()
        )


def _name(variant: Variant) -> str:
    return "FP16" if variant == "fp16" else "quantized"
