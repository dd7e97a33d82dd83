"""One suite in one run: builds the variants, measures, and asks the gates.

Everything is lazy and computed once: a gate asks for what it needs, what is costly comes from
the cache, and only what is not there is built. With a warm cache torch is not even imported.
"""

from __future__ import annotations

import functools
import hashlib
import json
import tempfile
from collections.abc import Mapping
from datetime import UTC, date, datetime
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pytest_quantgate.baselines import Store
from pytest_quantgate.cache import Cache
from pytest_quantgate.errors import MissingPackage, QuantGateError
from pytest_quantgate.fingerprint import Fingerprint, digest_of
from pytest_quantgate.judging import Judged, Judging
from pytest_quantgate.measurement import (
    Audit,
    CalibrationRun,
    Fidelity,
    Outcomes,
    Roundtrip,
    Tower,
    from_json,
    to_json,
)
from pytest_quantgate.options import Settings
from pytest_quantgate.progress import Progress
from pytest_quantgate.stages import Stages
from pytest_quantgate.suite import (
    AccuracyGate,
    RegressionGate,
    Suite,
)

if TYPE_CHECKING:
    import torch

    from pytest_quantgate.measure.latency import LatencyRun
    from pytest_quantgate.models.clip import ClipModel
    from pytest_quantgate.models.recipes import Recipe
    from pytest_quantgate.models.source import CheckpointSource
    from pytest_quantgate.stages import ExportedClip
    from pytest_quantgate.tasks.builtin import Purpose
    from pytest_quantgate.tasks.samples import Samples

#: Packages whose version can change a variant or a number; part of every cache key.
PACKAGES = ("torch", "transformers", "nvidia-modelopt", "diffusers", "clip-benchmark", "numpy")

#: Fixed, so that results do not depend on how much memory a machine has.
BATCH_SIZE = 64

#: How many held-out pairs a round trip compares, and a fidelity gate searches for the worst layer.
PROBE_SAMPLES = 16

#: How many layers a fidelity measurement names.
WORST_LAYERS = 8


Value = TypeVar("Value")


class computed_once(cached_property[Value]):
    """A cached property that also keeps the error it ended with: what failed once after minutes
    of calibration is not tried again for the next gate."""

    def __get__(self, instance: object, owner: type[Any] | None = None) -> Any:
        if instance is None:
            return self
        name = f"{self.attrname} failed"
        if name in vars(instance):
            raise vars(instance)[name]
        try:
            return super().__get__(instance, owner)
        except QuantGateError as error:
            vars(instance)[name] = error
            raise


class Case:
    """A suite with what was measured of it so far."""

    def __init__(
        self,
        *,
        suite: Suite,
        settings: Settings,
        store: Store,
        cache: Cache,
        progress: Progress,
        environ: Mapping[str, str],
        today: date | None = None,
    ) -> None:
        self.suite = suite
        self.settings = settings
        self.store = store
        self.cache = cache
        self.progress = progress
        self.environ = environ
        self.today = today or datetime.now(UTC).date()
        self.latency_runs: dict[str, LatencyRun] = {}
        self._values: dict[str, Any] = {}

    # -- verdicts ---------------------------------------------------------------------------

    def judge(self, *, kind: str, key: str = "") -> Judged:
        """Return the verdict of one gate, judged once; see `Judging.judge`."""
        judged: Judged = self.judging.judge(kind=kind, key=key)
        return judged

    @computed_once
    def judging(self) -> Judging:
        """The verdicts of this case."""
        return Judging(self)

    @property
    def _task_gates(self) -> tuple[AccuracyGate | RegressionGate, ...]:
        return (*self.suite.gates.accuracy, *self.suite.gates.regression)

    # -- what makes two measurements comparable ------------------------------------------------

    @computed_once
    def source(self) -> CheckpointSource:
        from pytest_quantgate.models.source import is_local, resolve_checkpoint

        model = self.suite.model
        if model.id is None or is_local(model.id):
            return resolve_checkpoint(model, environ=self.environ)
        with self.progress.stage(f"looking for {model.id} here and in the hub"):
            return resolve_checkpoint(model, environ=self.environ)

    def fingerprint(self, *, data: str) -> Fingerprint:
        return Fingerprint(
            model=self.source.digest,
            data=data,
            calibration=digest_of(self._calibration_plain()),
            recipe=digest_of(self._recipe_plain()),
        )

    def _recipe_plain(self) -> Any:
        from pytest_quantgate.models.source import recipe_content

        quantize = self.suite.quantize
        return {
            "recipe": recipe_content(quantize.recipe, where=quantize.where, environ=self.environ),
            "exclude": list(quantize.exclude),
        }

    def _calibration_plain(self) -> Any:
        spec = self.suite.calibration
        return {
            "data": self._data_key(
                spec.data, spec.samples + spec.held_out_samples, purpose="pairs"
            ),
            "samples": spec.samples,
            "batch_size": spec.batch_size,
            "held_out_samples": spec.held_out_samples,
        }

    @computed_once
    def variant_key(self) -> str:
        """Digest of all that the quantized variant depends on."""
        model = self.suite.model
        return digest_of(
            {
                "model": self.source.digest,
                "dtype": model.dtype,
                "attn_implementation": model.attn_implementation,
                "recipe": self._recipe_plain(),
                "calibration": self._calibration_plain(),
                "versions": installed_versions(),
                "code": code_digest(),
                "device": self.device,
            }
        )

    @computed_once
    def device(self) -> str:
        if self.settings.device != "auto":
            return self.settings.device
        # The driver's device node, not torch: asking torch would import it with a warm cache too.
        return "cuda" if Path("/dev/nvidiactl").exists() else "cpu"

    def _data_key(self, name: str, count: int | None, *, purpose: Purpose) -> str:
        from pytest_quantgate.tasks.registry import data_key

        key = data_key(
            name,
            datasets=self.suite.datasets,
            samples=count,
            environ=self.environ,
            purpose=purpose,
        )
        return key if key is not None else self.samples(name, count, purpose=purpose).digest

    @computed_once
    def fp16_key(self) -> str:
        """Digest of all that the FP16 variant depends on."""
        model = self.suite.model
        return digest_of(
            {
                "model": self.source.digest,
                "dtype": model.dtype,
                "attn_implementation": model.attn_implementation,
                "versions": installed_versions(),
                "code": code_digest(),
                "device": self.device,
            }
        )

    @property
    def versions(self) -> dict[str, str]:
        """The version of every package that can change a number."""
        return installed_versions()

    @property
    def code(self) -> str:
        """Digest of the measuring code, which a cached measurement depends on."""
        return code_digest()

    @computed_once
    def stages(self) -> Stages:
        """The exported files and engines of this case."""
        return Stages(self)

    # -- data ------------------------------------------------------------------------------------

    def samples(self, name: str, count: int | None, *, purpose: Purpose) -> Samples:
        """Return the samples of `<data set>/<split>`, read once.

        What ships is small, and files are decoded on access: keeping them all costs little memory.
        """
        from pytest_quantgate.tasks.registry import load_samples

        kept: dict[Any, Samples] = self._values.setdefault("samples", {})
        key = (name, count, purpose)
        if key not in kept:
            with self.progress.stage(f"reading {name}"):
                kept[key] = load_samples(
                    name,
                    datasets=self.suite.datasets,
                    samples=count,
                    environ=self.environ,
                    purpose=purpose,
                )
        return kept[key]

    def held_out(self, count: int) -> Samples:
        """Return the first `count` held-out pairs of the calibration set, or all if fewer."""
        from pytest_quantgate.tasks.registry import load_calibration

        _, held_out = load_calibration(
            self.suite.calibration, datasets=self.suite.datasets, environ=self.environ
        )
        return held_out.take(min(count, len(held_out)))

    def evaluation_hashes(self) -> tuple[tuple[str, str], ...]:
        """Return (content hash, id) of every sample that a task of this suite is judged on."""
        from pytest_quantgate.tasks.registry import evaluation_data

        wanted = {(*evaluation_data(gate.task), gate.samples) for gate in self._task_gates}
        found: dict[str, str] = {}
        for name, purpose, count in sorted(wanted, key=str):

            def read(
                name: str = name, purpose: Purpose = purpose, count: int | None = count
            ) -> Any:
                samples = self.samples(name, count, purpose=purpose)
                return [list(samples.hashes), list(samples.ids)]

            data = self._data_key(name, count, purpose=purpose)
            key = digest_of({"data": data, "samples": count, "code": code_digest()})
            hashes, ids = self.cache.get_or_measure(kind="hashes", key=key, measure=read)
            for content, sample_id in zip(hashes, ids, strict=True):
                found.setdefault(content, sample_id)
        return tuple(found.items())

    # -- variants --------------------------------------------------------------------------------

    @computed_once
    def recipe(self) -> Recipe:
        from pytest_quantgate.models.recipes import resolve_recipe

        return resolve_recipe(self.suite.quantize, environ=self.environ)

    @computed_once
    def fp16(self) -> ClipModel:
        """The FP16 variant (on a CPU: the FP32 upcast of its weights)."""
        from pytest_quantgate.models.loading import load_fp16

        with self.progress.stage(f"loading {self.source.description}"):
            return load_fp16(self.suite.model, device=self.device, environ=self.environ)

    @computed_once
    def quantized(self) -> ClipModel:
        """The quantized variant: calibrated once, then restored from its checkpoint."""
        from pytest_quantgate.models.checkpoint import load_checkpoint

        folder = self._variant_folder
        built: ClipModel | None = self._values.get("built")
        if built is not None:
            return built
        with self.progress.stage("restoring the quantized variant"):
            return load_checkpoint(folder / "checkpoint", fp16=self.fp16)

    @computed_once
    def _variant_folder(self) -> Path:
        return self.cache.get_or_build(
            kind="variant", key=self.variant_key, build=self._build_variant
        )

    def _build_variant(self, folder: Path) -> None:
        from pytest_quantgate.measure.audit import audit_quantizers
        from pytest_quantgate.measure.embeddings import make_batches
        from pytest_quantgate.models.checkpoint import save_checkpoint
        from pytest_quantgate.models.quantize import quantize
        from pytest_quantgate.tasks.registry import load_calibration

        spec = self.suite.calibration
        exclude = self.suite.quantize.exclude
        pairs, held_out = load_calibration(spec, datasets=self.suite.datasets, environ=self.environ)
        recipe, fp16 = self.recipe, self.fp16
        with self.progress.stage(f"calibrating {recipe.name}", total=spec.samples) as advance:
            result = quantize(
                fp16,
                recipe=recipe,
                exclude=exclude,
                batches=make_batches(fp16, pairs, batch_size=spec.batch_size),
                progress=advance,
            )
        with self.progress.stage("auditing the quantizers"):
            audit = audit_quantizers(
                result.model,
                recipe=recipe,
                exclude=exclude,
                held_out=list(make_batches(self.fp16, held_out, batch_size=spec.batch_size)),
            )
        run = CalibrationRun(
            data=spec.data,
            samples=len(pairs),
            batches=result.batches,
            vision_batches=result.vision_batches,
            text_batches=result.text_batches,
            nonfinite=result.nonfinite,
            sample_hashes=tuple(zip(pairs.hashes, pairs.ids, strict=True)),
            held_out_samples=len(held_out),
            held_out_hashes=tuple(zip(held_out.hashes, held_out.ids, strict=True)),
        )
        with self.progress.stage("saving the quantized variant"):
            save_checkpoint(result.model, folder / "checkpoint")
        write_json(folder / "audit.json", to_json(audit))
        write_json(folder / "calibration.json", to_json(run))
        write_json(folder / "notes.json", list(self.fp16.notes))
        self._values["built"] = result.model

    @computed_once
    def audit(self) -> Audit:
        return from_json(Audit, read_json(self._variant_folder / "audit.json"))

    @computed_once
    def calibration_run(self) -> CalibrationRun:
        return from_json(CalibrationRun, read_json(self._variant_folder / "calibration.json"))

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know of the variants, such as an FP32 upcast on a CPU."""
        return tuple(read_json(self._variant_folder / "notes.json"))

    # -- measurements ----------------------------------------------------------------------------

    def outcomes(
        self,
        *,
        task: str,
        metric: str,
        samples: int | None,
        stage: Literal["torch", "onnx"] = "torch",
    ) -> tuple[Outcomes, Outcomes]:
        """Return the per-sample outcomes of the FP16 and the quantized variant on one task.

        With `stage="onnx"` the quantized side is the exported model in ONNX Runtime.
        """
        from pytest_quantgate.tasks.registry import evaluation_data

        data, purpose = evaluation_data(task)
        key = digest_of(
            {
                "variant": self.variant_key,
                "data": self._data_key(data, samples, purpose=purpose),
                "task": task,
                "metric": metric,
                "samples": samples,
                "stage": [stage, self.stages.softmax] if stage != "torch" else [],
            }
        )

        def measure() -> Any:
            found = self._measure_outcomes(task, metric, samples, stage)
            return [to_json(outcome) for outcome in found]

        stored = self.cache.get_or_measure(kind="outcomes", key=key, measure=measure)
        fp16, quantized = (from_json(Outcomes, item) for item in stored)
        return fp16, quantized

    def _measure_outcomes(
        self, task: str, metric: str, count: int | None, stage: Literal["torch", "onnx"]
    ) -> tuple[Outcomes, Outcomes]:
        from pytest_quantgate.measure.accuracy import (
            classification_outcomes,
            list_captions,
            retrieval_outcomes,
        )
        from pytest_quantgate.measure.embeddings import build_classifiers, embed_texts
        from pytest_quantgate.tasks.registry import evaluation_data

        name, purpose = evaluation_data(task)
        samples = self.samples(name, count, purpose=purpose)
        images = self._image_embeddings(samples)
        models: tuple[ClipModel, ClipModel | ExportedClip] = (self.fp16, self.quantized)
        names = ("FP16", self.recipe.name)
        if stage == "onnx":
            images = [images[0], self._onnx_embeddings(samples)]
            models, names = (self.fp16, self.stages.exported()), ("FP16", f"{names[1]} in ONNX")
        if purpose == "classification":
            classifiers = build_classifiers(
                models, samples, batch_size=BATCH_SIZE, tokenize=self.fp16.tokenize
            )
            fp16, quantized = (
                classification_outcomes(
                    images=image,
                    classifier=classifier,
                    samples=samples,
                    task=task,
                    metric=metric,
                    variant=variant,
                )
                for image, classifier, variant in zip(images, classifiers, names, strict=True)
            )
            return fp16, quantized
        captions, owners = list_captions(samples)
        if self._values.get("captions_key") != (samples.digest, stage):
            with self.progress.stage(f"embedding {len(captions)} captions"):
                embedded = embed_texts(
                    models, captions, batch_size=BATCH_SIZE, tokenize=self.fp16.tokenize
                )
            self._values |= {"captions_key": (samples.digest, stage), "captions": embedded}
        texts: list[torch.Tensor] = self._values["captions"]
        fp16, quantized = (
            retrieval_outcomes(
                images=image,
                texts=text,
                image_of_text=owners,
                samples=samples,
                task=task,
                metric=metric,
                variant=variant,
            )
            for image, text, variant in zip(images, texts, names, strict=True)
        )
        return fp16, quantized

    def _image_embeddings(self, samples: Samples) -> list[torch.Tensor]:
        """Return the image embeddings of both variants, from memory, the cache, or a forward."""
        import torch

        from pytest_quantgate.measure.embeddings import embed_images

        key = digest_of({"variant": self.variant_key, "data": samples.digest})
        if self._values.get("embeddings_key") == key:
            kept: list[torch.Tensor] = self._values["embeddings"]
            return kept

        def build(folder: Path) -> None:
            import numpy

            label = f"embedding {samples.name} with both variants"
            with self.progress.stage(label, total=len(samples)) as advance:
                both = embed_images(
                    (self.fp16, self.quantized),
                    samples,
                    batch_size=BATCH_SIZE,
                    preprocess=self.fp16.preprocess,
                    progress=advance,
                )
            for variant, embedded in zip(("fp16", "quantized"), both, strict=True):
                numpy.save(folder / f"{variant}.npy", embedded.numpy(), allow_pickle=False)

        import numpy

        folder = self.cache.get_or_build(kind="embeddings", key=key, build=build)
        found = [
            torch.from_numpy(numpy.load(folder / f"{variant}.npy", allow_pickle=False))
            for variant in ("fp16", "quantized")
        ]
        self._values |= {"embeddings_key": key, "embeddings": found}
        return found

    def _onnx_embeddings(self, samples: Samples) -> torch.Tensor:
        """Return the image embeddings of the exported model, from the cache or ONNX Runtime."""
        import numpy
        import torch

        from pytest_quantgate.measure.embeddings import embed_images

        def build(folder: Path) -> None:
            label = f"embedding {samples.name} with the exported model"
            with self.progress.stage(label, total=len(samples)) as advance:
                (found,) = embed_images(
                    (self.stages.exported(),),
                    samples,
                    batch_size=BATCH_SIZE,
                    preprocess=self.fp16.preprocess,
                    progress=advance,
                )
            numpy.save(folder / "onnx.npy", found.numpy(), allow_pickle=False)

        key = digest_of(
            {
                "variant": self.variant_key,
                "data": samples.digest,
                "onnx": True,
                "softmax": self.stages.softmax,
            }
        )
        folder = self.cache.get_or_build(kind="embeddings", key=key, build=build)
        return torch.from_numpy(numpy.load(folder / "onnx.npy", allow_pickle=False))

    def fidelity(self) -> Fidelity:
        """Return cosine and SQNR of both towers on the samples that the gate names."""
        gate = self.suite.gates.fidelity
        assert gate is not None
        data = gate.data or self._default_data()
        key = digest_of(
            {
                "variant": self.variant_key,
                "data": self._data_key(data, gate.samples, purpose="pairs"),
                "samples": gate.samples,
            }
        )
        stored = self.cache.get_or_measure(
            kind="fidelity",
            key=key,
            measure=lambda: to_json(self._measure_fidelity(data, gate.samples)),
        )
        return from_json(Fidelity, stored)

    def _measure_fidelity(self, data: str, count: int) -> Fidelity:
        from pytest_quantgate.measure.embeddings import embed_images, embed_texts, make_batches
        from pytest_quantgate.measure.fidelity import compare_embeddings, rank_layers

        samples = self.samples(data, count, purpose="pairs")
        models = (self.fp16, self.quantized)
        texts = [samples.text(index) for index in range(len(samples))]
        with self.progress.stage(f"comparing embeddings on {data}", total=len(samples)) as advance:
            images = embed_images(
                models,
                samples,
                batch_size=BATCH_SIZE,
                preprocess=self.fp16.preprocess,
                progress=advance,
            )
            captions = embed_texts(
                models, texts, batch_size=BATCH_SIZE, tokenize=self.fp16.tokenize
            )
            probe = next(
                make_batches(self.fp16, samples.take(PROBE_SAMPLES), batch_size=PROBE_SAMPLES)
            )
            layers = rank_layers(fp16=self.fp16, quantized=self.quantized, batch=probe)
        pairs: tuple[tuple[Tower, list[torch.Tensor]], ...]
        pairs = (("vision", images), ("text", captions))
        return Fidelity(
            data=data,
            towers=tuple(
                compare_embeddings(tower=tower, fp16=both[0], quantized=both[1], ids=samples.ids)
                for tower, both in pairs
            ),
            worst_layers=layers[:WORST_LAYERS],
        )

    def _default_data(self) -> str:
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
                tempfile.TemporaryDirectory(prefix="quantgate-") as folder,
            ):
                return to_json(
                    measure_roundtrip(self.quantized, batches=batches, directory=Path(folder))
                )

        stored = self.cache.get_or_measure(kind="roundtrip", key=self.variant_key, measure=measure)
        return from_json(Roundtrip, stored)


def installed_versions() -> dict[str, str]:
    """Return the version of every package that can change a number; raises MissingPackage."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            raise MissingPackage(package, extra="clip", purpose="quantizing a model") from None
    return versions


@functools.cache
def code_digest() -> str:
    """Return the SHA-256 of the package's measuring code: a cache outlives an upgrade of it."""
    root = Path(__file__).parent
    digest = hashlib.sha256()
    for room in ("models", "measure", "tasks", "reference", "runtimes"):
        for path in sorted((root / room).rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, sort_keys=True, separators=(",", ":")), encoding="utf-8")
