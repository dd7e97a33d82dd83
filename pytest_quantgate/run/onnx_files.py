"""The ONNX files of one case, exported or handed over: built once, cached, and run."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

from pytest_quantgate.errors import GivenFileError, ModelError
from pytest_quantgate.evidence.audit import TowerName
from pytest_quantgate.evidence.codec import from_json, to_json
from pytest_quantgate.evidence.onnx import OnnxAudit
from pytest_quantgate.evidence.parity import BlockParity, Parity, ShippedTower, TowerParity
from pytest_quantgate.gates.export import ExportGate
from pytest_quantgate.run.exported import VARIANTS, ExportedTowers, Precision, Variant
from pytest_quantgate.run.given_files import place_errors
from pytest_quantgate.store.disk import temporary_folder
from pytest_quantgate.store.keys import ONNX_AUDIT, ONNX_CHECK, ONNX_FILE, PARITY, SHIPPED

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    import torch

    from pytest_quantgate.artifacts.onnx_places import TowerModel
    from pytest_quantgate.encoders.encoder import Batch, Encoder
    from pytest_quantgate.inspection.findings import Inspection
    from pytest_quantgate.run.given_files import GivenOnnx
    from pytest_quantgate.run.variants import Variants
    from pytest_quantgate.runtimes.onnx_reference import ReferenceModel
    from pytest_quantgate.runtimes.onnxruntime_session import OnnxRuntimeModel

#: Pairs in a batch of the parity measurement.
PARITY_BATCH_SIZE = 16


class OnnxFiles:
    """The ONNX files of one case. Everything is lazy and comes from the cache."""

    def __init__(self, case: Variants) -> None:
        self.case = case
        self._open: dict[Any, Any] = {}
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
            with (
                self.case.progress.stage(f"comparing {given.path.name} with FP16"),
                place_errors(given.where),
            ):
                return to_json(inspect_file(given.path, base=read_base(path)))

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
            with case.progress.stage(
                f"exporting the {tower} tower, {name_variant(variant)}, {precision}"
            ):
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
            with place_errors(given.where):
                prepare_graph(
                    given.path,
                    path=path,
                    model=self._describe_tower(variant, tower),
                    prefix=given.prefix,
                )
                digests = hash_files(given.path.parent, names=given.digests)
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

            from pytest_quantgate.runtimes.onnxruntime_session import OnnxRuntimeModel

            path = self.onnx_path(variant=variant, tower=tower, precision="float32")
            self._open[key] = OnnxRuntimeModel(path, workers=torch.get_num_threads())
        found: OnnxRuntimeModel = self._open[key]
        return found

    def exported(self) -> ExportedTowers:
        """Return every quantized tower in ONNX Runtime."""
        return ExportedTowers({tower: self.session(tower) for tower in self.case.towers})

    # -- against PyTorch -------------------------------------------------------------------------

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
            given=self.case.given_digests(),
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
                        exported=exported,
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


def name_variant(variant: Variant) -> str:
    return "FP16" if variant == "fp16" else "quantized"
