"""What gates ask for: measured once, from the cache where it is there, else on the variants."""

from __future__ import annotations

import functools
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

from pytest_quantgate.evidence.audit import CalibrationRun, LayerActivation, TowerName
from pytest_quantgate.evidence.codec import from_json, to_json
from pytest_quantgate.evidence.fidelity import Fidelity
from pytest_quantgate.evidence.outcomes import Outcomes
from pytest_quantgate.evidence.parity import Roundtrip
from pytest_quantgate.evidence.sanity import NO_TEXTS, Sanity
from pytest_quantgate.gates.fidelity import FidelityGate
from pytest_quantgate.run.exported import Variant
from pytest_quantgate.run.inputs import computed_once, describe_draw
from pytest_quantgate.run.stages import Stages
from pytest_quantgate.run.variants import BATCH_SIZE, Variants
from pytest_quantgate.run.workers import cut_ranges
from pytest_quantgate.store.cache import write_json
from pytest_quantgate.store.disk import temporary_folder
from pytest_quantgate.store.keys import (
    ACTIVATIONS,
    EMBEDDINGS,
    FIDELITY,
    OUTCOMES,
    ROUNDTRIP,
    SANITY,
)
from pytest_quantgate.store.rows import let_go, open_rows, write_rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    import torch

    from pytest_quantgate.encoders.encoder import Encoder
    from pytest_quantgate.evidence.latency import LatencyRun
    from pytest_quantgate.evidence.load import LoadRun
    from pytest_quantgate.gates.latency import LatencyGate
    from pytest_quantgate.gates.load import LoadGate
    from pytest_quantgate.measure.embeddings import Encodes
    from pytest_quantgate.run.progress import Advance
    from pytest_quantgate.store.rows import Rows
    from pytest_quantgate.suite.specs import Stage
    from pytest_quantgate.tasks.builtin import Purpose
    from pytest_quantgate.tasks.contents import Contents
    from pytest_quantgate.tasks.kind import TaskKind
    from pytest_quantgate.tasks.samples import Samples
    from pytest_quantgate.tasks.scoring import TaskInputs


#: How what did a task is told from the PyTorch model.
STAGE_WORDS: Mapping[Stage, str] = {"torch": "", "onnx": " in ONNX", "engine": " in an engine"}


#: How many held-out pairs a round trip compares, and a fidelity gate searches for the worst layer.
PROBE_SAMPLES = 16

#: Pairs that run through FP16 before anything else.
SANITY_PAIRS = 2

BOTH: tuple[Variant, Variant] = ("fp16", "quantized")


class Drawn(TypedDict):
    """Which samples of which data, as `Variants.samples` takes them."""

    name: str
    count: int | None
    purpose: Purpose
    first: bool


class Measured(Variants):
    """What gates ask for, each measured once, from the cache where it is there."""

    @computed_once
    def stages(self) -> Stages:
        """The exported files and engines of this case."""
        return Stages(self)

    def _load_fp16(self) -> Encoder:
        from pytest_quantgate.run.onnx_encoder import open_onnx_encoder

        if self.suite.model.source != "onnx":
            return super()._load_fp16()
        sessions = {tower: self.stages.session(tower, variant="fp16") for tower in self.towers}
        return open_onnx_encoder(self.unweighted, sessions=sessions)

    def _build_variant(self, folder: Path) -> None:
        """Build the quantized variant, or write what is known of one of ONNX files alone."""
        from pytest_quantgate.run.onnx_encoder import describe_graphs

        if not self.suite.is_onnx_alone:
            super()._build_variant(folder)
            return
        stages = self.stages
        audit = describe_graphs(
            [
                stages.onnx_audit(variant="quantized", tower=tower, precision=stages.shipped)
                for tower in self.towers
            ]
        )
        _, (_, unseen) = self._split_calibration()
        run = CalibrationRun(
            data=self.suite.calibration.data,
            samples=0,
            batches=0,
            tower_batches={},
            nonfinite=(),
            sample_hashes=(),
            held_out_samples=len(unseen.ids),
            held_out_hashes=tuple(zip(unseen.pixels, unseen.ids, strict=True)),
            given=True,
        )
        note = "the quantized variant is there as ONNX files alone: nothing of it ran in PyTorch"
        write_json(folder / "audit.json", to_json(audit))
        write_json(folder / "calibration.json", to_json(run))
        write_json(folder / "recipe.json", [])
        write_json(folder / "notes.json", [note])

    def latency(
        self, gate: LatencyGate, *, is_decided: Callable[[LatencyRun], bool] | None = None
    ) -> LatencyRun:
        """Return the times of FP16 and the quantized variant; never from a cache."""
        from pytest_quantgate.run.timed_runs import time_variants

        return time_variants(self.stages, gate, is_decided=is_decided)

    def load(self, gate: LoadGate) -> LoadRun:
        """Return what requests to both variants took under load; never from a cache."""
        from pytest_quantgate.run.timed_runs import load_variants

        return load_variants(self.stages, gate)

    @computed_once
    def sanity(self) -> Sanity:
        """What must be true of the model and its data before any limit means something."""
        spec = self.suite.calibration
        tasks = list(
            dict.fromkeys((gate.task, gate.samples, gate.first) for gate in self._task_gates)
        )
        data = [self._task_key(task, samples, first=first) for task, samples, first in tasks]
        pairs = self._data_key(spec.data, SANITY_PAIRS, purpose="pairs", first=spec.first)
        return self.measured(
            SANITY,
            self.key(SANITY, fp16=self.fp16_key, pairs=pairs, tasks=tasks, data=data),
            measure=lambda: to_json(self._measure_sanity(tasks)),
            read=functools.partial(from_json, Sanity),
        )

    def _task_key(self, task: str, samples: int | None, *, first: bool) -> str:
        from pytest_quantgate.tasks.registry import evaluation_data

        data, purpose = evaluation_data(task)
        return self._data_key(data, samples, purpose=purpose, first=first)

    def _measure_sanity(self, tasks: list[tuple[str, int | None, bool]]) -> Sanity:
        from pytest_quantgate.gates.chance import is_settled
        from pytest_quantgate.measure.model_checks import inspect_checkpoint
        from pytest_quantgate.measure.sanity import Task, measure_sanity
        from pytest_quantgate.tasks.registry import evaluation_data

        spec = self.suite.calibration
        # What lies beyond float16 is judged where float16 runs, on real inputs.
        found = () if self.source.code else inspect_checkpoint(self.source.directory)
        faults = tuple(fault for fault in found if fault.finding != "float16-overflow")
        if any(fault.certain for fault in faults):
            return Sanity(data=spec.data, pairs=0, reading=NO_TEXTS, faults=faults)
        loaded = []
        for task, count, first in tasks:
            data, purpose = evaluation_data(task)
            samples = self.samples(data, count, purpose=purpose, first=first)
            loaded.append(Task(name=task, count=count, first=first, samples=samples))
        pairs = self.samples(spec.data, SANITY_PAIRS, purpose="pairs", first=spec.first)
        fp16 = self.fp16
        with self.progress.stage("checking that the model and its data fit"):
            return measure_sanity(
                fp16, pairs=pairs, tasks=loaded, is_settled=is_settled, known=faults
            )

    def outcomes(
        self,
        *,
        task: str,
        metric: str,
        samples: int | None,
        stage: Stage = "torch",
        first: bool = False,
        bank: str | None = None,
        bank_samples: int | None = None,
        positive: tuple[str, ...] = (),
    ) -> tuple[Outcomes, Outcomes]:
        """Return the per-sample outcomes of the FP16 and the quantized variant on one task.

        On all samples, or on so many as an accuracy gate takes by `samples` and `first`; `bank` is
        the data that a task looks things up in, of which `bank_samples` are drawn, `positive` the
        classes that it is to find.

        With `stage="onnx"` the quantized side is the exported model in ONNX Runtime, with
        `stage="engine"` its engines on the GPU in this machine. Raises NotMeasured without one,
        ModelError where the model has not the towers that the task needs.
        """
        from pytest_quantgate.tasks.kind import find_package
        from pytest_quantgate.tasks.registry import evaluation_data

        data, purpose = evaluation_data(task)
        others = find_package(task)
        code = self.surroundings.package(others) if others is not None else None
        key = self.key(
            OUTCOMES,
            fp16=self.fp16_key,
            variant=self.variant_key,
            data=self._data_key(data, samples, purpose=purpose, first=first),
            bank=None if bank is None else self._data_key(bank, bank_samples, purpose=purpose),
            task=task,
            code=code and code.digest,
            metric=metric,
            positive=positive,
            samples=samples,
            first=first,
            stage=self.stages.stage_key(stage),
        )

        def measure() -> Any:
            found = self._measure_outcomes(
                task,
                metric,
                samples,
                stage,
                first=first,
                bank=bank,
                bank_samples=bank_samples,
                positive=positive,
            )
            return [to_json(outcome) for outcome in found]

        about = (task, metric, stage, describe_draw(samples, first=first))
        return self.measured(OUTCOMES, key, measure=measure, read=_read_outcomes, about=about)

    def _measure_outcomes(
        self,
        task: str,
        metric: str,
        count: int | None,
        stage: Stage,
        *,
        first: bool,
        bank: str | None,
        bank_samples: int | None,
        positive: tuple[str, ...],
    ) -> tuple[Outcomes, Outcomes]:
        from pytest_quantgate.tasks.kind import check_towers, find_task
        from pytest_quantgate.tasks.registry import evaluation_data
        from pytest_quantgate.tasks.scoring import build_outcomes

        kind = find_task(task)
        kind.check_metric(metric)
        check_towers(self.towers, task=task, model=self.source.description)
        name, _ = evaluation_data(task)
        names = ("FP16", f"{self.recipe.name}{STAGE_WORDS[stage]}")
        banks: tuple[TaskInputs, ...] | tuple[None, None] = (None, None)
        about: dict[str, Any] = {"kind": kind, "task": task, "metric": metric, "stage": stage}
        about["positive"] = positive
        if bank is not None:
            banks = self._embed_for(bank, bank_samples, first=False, **about)
        found = self._embed_for(name, count, first=first, **about)
        inputs = [replace(one, bank=of) for one, of in zip(found, banks, strict=True)]
        inputs[1] = replace(inputs[1], fp16=inputs[0])
        outcomes = []
        for one, variant in zip(inputs, names, strict=True):
            outcomes.append(build_outcomes(kind.score(one), inputs=one, variant=variant))
            self._let_go()
        return outcomes[0], outcomes[1]

    def _embed_for(
        self,
        data: str,
        count: int | None,
        *,
        first: bool,
        kind: TaskKind,
        task: str,
        metric: str,
        stage: Stage,
        positive: tuple[str, ...],
    ) -> tuple[TaskInputs, TaskInputs]:
        """Return what both variants make of data, in the towers that a task asks for."""
        from pytest_quantgate.tasks.scoring import TaskInputs

        drawn = Drawn(name=data, count=count, purpose=kind.purpose, first=first)
        samples = self.samples(**drawn)
        shown = self.contents(data, count, purpose=kind.purpose, first=first)
        images: list[torch.Tensor | None] = [None, None]
        texts: list[torch.Tensor | None] = [None, None]
        if "vision" in kind.towers:
            images = [*self._image_embeddings(drawn, stage)]
        if "text" in kind.towers:
            texts = [*self._text_embeddings(drawn, kind, task, stage)]
        fp16, quantized = (
            TaskInputs(
                samples=samples,
                pixels=shown.pixels,
                task=task,
                metric=metric,
                images=image,
                texts=text,
                positive=positive,
            )
            for image, text in zip(images, texts, strict=True)
        )
        return fp16, quantized

    def _text_embeddings(
        self, drawn: Drawn, kind: TaskKind, task: str, stage: Stage
    ) -> list[torch.Tensor]:
        """Return the text embeddings of both variants; those of the last texts are kept."""
        from pytest_quantgate.measure.embeddings import embed_texts, gather

        texts = kind.list_texts(self.samples(**drawn))
        asked = (tuple(texts), stage)
        if self._values.get("texts_key") != asked:

            def embed(
                models: Sequence[Encodes], part: range, advance: Advance
            ) -> list[torch.Tensor]:
                return embed_texts(
                    models,
                    texts[part.start : part.stop],
                    batch_size=BATCH_SIZE,
                    tokenize=self.fp16.tokenize,
                    progress=advance,
                )

            embedded = gather(
                self._embed(
                    BOTH,
                    embed,
                    drawn=drawn,
                    stage=stage,
                    task=task,
                    total=len(texts),
                    label=f"embedding the texts of {task}",
                ),
                count=len(texts),
            )
            self._values |= {"texts_key": asked, "texts": embedded}
        kept: list[torch.Tensor] = self._values["texts"]
        return kept

    def _embed_images(
        self, names: Sequence[Variant], *, drawn: Drawn, stage: Stage, label: str
    ) -> list[torch.Tensor]:
        """Return the image embeddings of variants, each image decoded once for all of them."""
        from pytest_quantgate.measure.embeddings import gather

        parts = self._embed_parts(names, drawn=drawn, stage=stage, label=label)
        return gather(parts, count=len(self.samples(**drawn)))

    def _embed_parts(
        self, names: Sequence[Variant], *, drawn: Drawn, stage: Stage, label: str
    ) -> Iterator[Sequence[torch.Tensor]]:
        """Yield the image embeddings of variants, a range of samples after the other."""
        from pytest_quantgate.measure.embeddings import embed_images

        samples = self.samples(**drawn)

        def embed(models: Sequence[Encodes], part: range, advance: Advance) -> list[torch.Tensor]:
            return embed_images(
                models,
                samples.take(part.start, part.stop),
                batch_size=BATCH_SIZE,
                preprocess=self.fp16.preprocess,
                progress=advance,
            )

        return self._embed(
            names, embed, drawn=drawn, stage=stage, task=None, total=len(samples), label=label
        )

    def _embed(
        self,
        names: Sequence[Variant],
        embed: Callable[[Sequence[Encodes], range, Advance], list[torch.Tensor]],
        *,
        drawn: Drawn,
        stage: Stage,
        task: str | None,
        total: int,
        label: str,
    ) -> Iterator[Sequence[torch.Tensor]]:
        """Yield the embeddings of images, or of the texts of a task, range by range in order: by
        workers, or here."""
        with self.progress.stage(label, total=total) as advance:
            ranges = cut_ranges(total, batch_size=BATCH_SIZE)
            if self.workers is None or len(ranges) < 2:
                with self.encoders(names, stage) as models:
                    for part in ranges:
                        yield embed(models, part, advance)
                return
            import torch

            if "quantized" in names and stage == "torch":
                _ = self.quantized  # built once, here: workers read it from the cache
            question = self.describe_question(names, drawn=drawn, stage=stage, task=task)
            for found in self.workers.embed(question, ranges, progress=advance):
                yield [torch.from_numpy(each) for each in found]

    def describe_question(
        self, names: Sequence[Variant], *, drawn: Drawn, stage: Stage, task: str | None
    ) -> dict[str, Any]:
        """Return what workers are asked (`run.worker.Embedder`), but for the range of samples."""
        return {
            "suite": {
                "path": str(self.settings.root / self.suite.path),
                "root": str(self.settings.root),
                "working_dir": str(Path.cwd()),
                "cache_dir": str(self.settings.cache_dir),
                "device": self.device,
                "env": list(self.settings.env),
            },
            "samples": drawn,
            "expected": self.describe_embedding(self.samples(**drawn), names=names, stage=stage),
            "variants": list(names),
            "stage": stage,
            "task": task,
        }

    def describe_embedding(
        self, samples: Samples, *, names: Sequence[Variant], stage: Stage
    ) -> dict[str, str]:
        """Return what decides embeddings, by what a message calls it."""
        found = {"FP16 model": self.fp16_key, "data set": samples.digest}
        if "quantized" in names:
            found["quantized variant"] = self.variant_key
            # Files that were handed over may be replaced while a run reads them.
            found["exported file or engine"] = self.stages.stage_key(stage)
        return found

    def _image_embeddings(self, drawn: Drawn, stage: Stage) -> list[torch.Tensor]:
        """Return the image embeddings of both variants, from memory, the cache, or a forward.

        Each is kept by itself, so that another variant of the same model finds FP16's; where both
        are missing every image is decoded once for both.
        """
        import torch

        samples = self.samples(**drawn)
        data = self._with_reader(samples.digest, name=samples.name)
        keys = {
            name: self.key(EMBEDDINGS, variant=variant, data=data, stage=at)
            for name, variant, at in (
                ("fp16", self.fp16_key, ""),
                ("quantized", self.image_key, self.stages.stage_key(stage)),
            )
        }
        opened: dict[tuple[str, ...], list[Rows]] = self._values.setdefault("embeddings", {})
        place = tuple(keys.values())

        def embed(folder: Path, names: tuple[Variant, ...]) -> None:
            which = "both variants" if len(names) > 1 else f"the {names[0]} variant"
            label = f"embedding {samples.name} with {which}{STAGE_WORDS[stage]}"
            parts = self._embed_parts(names, drawn=drawn, stage=stage, label=label)
            write_rows(
                [folder / f"{name}.npy" for name in names],
                ([each.numpy() for each in part] for part in parts),
                count=len(samples),
            )

        def build(folder: Path) -> None:
            if self.cache.load(kind=EMBEDDINGS.kind, key=keys["fp16"]) is not None:
                embed(folder, ("quantized",))
                return
            embed(folder, BOTH)
            own = folder / "fp16.npy"

            def move(other: Path) -> None:
                own.replace(other / own.name)

            self.cache.get_or_build(kind=EMBEDDINGS.kind, key=keys["fp16"], build=move)
            own.unlink(missing_ok=True)  # where another process was faster

        def load(name: str, build: Callable[[Path], None]) -> Rows:
            return self.cache.get_and_read(
                kind=EMBEDDINGS.kind,
                key=keys[name],
                build=build,
                read=lambda folder: open_rows(folder / f"{name}.npy", count=len(samples)),
            )

        if place not in opened:
            quantized = load("quantized", build)
            fp16 = load("fp16", lambda folder: embed(folder, ("fp16",)))
            if len(opened) > 1:  # those of a task and its bank
                del opened[next(iter(opened))]
            opened[place] = [fp16, quantized]
        return [torch.from_numpy(rows) for rows in opened[place]]

    def _let_go(self) -> None:
        """Give back the memory of image embeddings: the files are there."""
        opened: dict[tuple[str, ...], list[Rows]] = self._values.get("embeddings", {})
        for rows in chain(*opened.values()):
            let_go(rows)

    @contextmanager
    def encoders(self, names: Sequence[Variant], stage: Stage) -> Iterator[list[Encodes]]:
        """Open variants as what gives embeddings, the quantized one at a stage."""
        with ExitStack() as opened:
            yield [
                self.fp16 if name == "fp16" else opened.enter_context(self._quantized_at(stage))
                for name in names
            ]

    @contextmanager
    def _quantized_at(self, stage: Stage) -> Iterator[Encodes]:
        """Open the quantized variant at a stage, as what gives embeddings."""
        if stage == "torch":
            yield self.quantized
            return
        with self.stages.encoder(stage) as model:
            yield model

    def fidelity(self) -> Fidelity:
        """Return cosine and SQNR of every tower on the samples that the gate names."""
        gate = self.suite.gates.one(FidelityGate)
        assert gate is not None
        data = gate.data or self.default_data()
        key = self.key(
            FIDELITY,
            fp16=self.fp16_key,
            variant=self.variant_key,
            data=self._data_key(data, gate.samples, purpose="pairs", first=gate.first),
            samples=gate.samples,
            first=gate.first,
            stage=self.stages.stage_key(gate.stage),
        )
        return self.measured(
            FIDELITY,
            key,
            measure=lambda: to_json(self._measure_fidelity(data, gate)),
            read=functools.partial(from_json, Fidelity),
        )

    def _measure_fidelity(self, data: str, gate: FidelityGate) -> Fidelity:
        from pytest_quantgate.measure.embeddings import embed_texts, make_batches
        from pytest_quantgate.measure.fidelity import (
            compare_embeddings,
            compare_scales,
            rank_layers,
        )
        from pytest_quantgate.tasks.contents import count_copies

        drawn = Drawn(name=data, count=gate.samples, purpose="pairs", first=gate.first)
        samples = self.samples(**drawn)
        shown = self.contents(data, gate.samples, purpose="pairs", first=gate.first)
        embedded: dict[TowerName, list[torch.Tensor]] = {}
        layers: tuple[tuple[str, float], ...] = ()
        scales: tuple[tuple[str, float, float], ...] = ()
        if "vision" in self.towers:
            label = f"comparing embeddings on {data}"
            embedded["vision"] = self._embed_images(
                BOTH, drawn=drawn, stage=gate.stage, label=label
            )
        with (
            self.encoders(BOTH, gate.stage) as models,
            self.progress.stage("comparing texts and layers"),
        ):
            if "text" in self.towers:
                texts = [samples.text(index) for index in range(len(samples))]
                embedded["text"] = embed_texts(
                    models, texts, batch_size=BATCH_SIZE, tokenize=self.fp16.tokenize
                )
            if gate.stage == "torch":
                few = samples.take(PROBE_SAMPLES)
                probe = next(make_batches(self.fp16, few, batch_size=PROBE_SAMPLES))
                layers = rank_layers(fp16=self.fp16, quantized=self.quantized, batch=probe)
                scales = compare_scales(fp16=self.fp16, quantized=self.quantized)
        return Fidelity(
            data=data,
            towers=tuple(
                compare_embeddings(tower=tower, fp16=both[0], quantized=both[1], ids=samples.ids)
                for tower, both in embedded.items()
            ),
            worst_layers=layers,
            copies=count_copies(samples, pixels=shown.pixels),
            scales=scales,
        )

    def activations(self) -> tuple[LayerActivation, ...]:
        """Return the largest activations of FP16 on held-out pairs; none for a float32 model
        or one of ONNX files."""
        spec = self.suite.calibration
        dtype = self.suite.model.dtype
        if dtype == "float32" or self.suite.model.source == "onnx":
            return ()

        def measure() -> Any:
            from pytest_quantgate.measure.activations import highest_finite, measure_activations
            from pytest_quantgate.measure.embeddings import make_batches

            pairs = self.held_out(spec.held_out_samples)
            with self.progress.stage("looking for overflow"):
                return to_json(
                    measure_activations(
                        self.fp16,
                        batches=list(make_batches(self.fp16, pairs, batch_size=BATCH_SIZE)),
                        highest=highest_finite(dtype),
                    )
                )

        return self.measured(
            ACTIVATIONS,
            self.key(ACTIVATIONS, fp16=self.fp16_key, calibration=self.calibration_plain),
            measure=measure,
            read=functools.partial(from_json, tuple[LayerActivation, ...]),
        )

    def _evaluated(self) -> Iterator[Contents]:
        yield from super()._evaluated()
        gate = self.suite.gates.one(FidelityGate)
        if gate is not None and gate.data is not None:
            yield self.contents(gate.data, gate.samples, purpose="pairs", first=gate.first)

    def default_data(self) -> str:
        """Return what fidelity is measured on where a suite does not say: the first task's data."""
        from pytest_quantgate.tasks.registry import evaluation_data

        if self._task_gates:
            return evaluation_data(self._task_gates[0].task)[0]
        return self.suite.calibration.data

    def roundtrip(self) -> Roundtrip:
        """Return what a save and a restore in a new process gave."""
        from pytest_quantgate.measure.embeddings import make_batches
        from pytest_quantgate.measure.roundtrip import measure_roundtrip

        def measure() -> Any:
            pairs = self.held_out(PROBE_SAMPLES)
            batches = list(make_batches(self.fp16, pairs, batch_size=PROBE_SAMPLES))
            with (
                self.progress.stage("saving and restoring in a new process"),
                temporary_folder() as folder,
            ):
                return to_json(measure_roundtrip(self.quantized, batches=batches, directory=folder))

        return self.measured(
            ROUNDTRIP,
            self.key(ROUNDTRIP, variant=self.variant_key),
            measure=measure,
            read=functools.partial(from_json, Roundtrip),
        )


def _read_outcomes(stored: Any) -> tuple[Outcomes, Outcomes]:
    """Return both sides of a stored measurement; raises ValueError."""
    if not isinstance(stored, list) or len(stored) != 2:
        raise ValueError("expected the outcomes of two variants")
    fp16, quantized = (from_json(Outcomes, item) for item in stored)
    return fp16, quantized
