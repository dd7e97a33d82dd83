"""The variants of a suite and their data, built or read once: everything is lazy.

What is costly comes from the cache, and only what is not there is built. With a warm cache torch is
not even imported.
"""

from __future__ import annotations

import functools
from datetime import UTC, date, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from pytest_quantgate.errors import (
    GivenFileError,
    MissingPackage,
    ModelError,
    NotMeasured,
    QuantGateError,
)
from pytest_quantgate.evidence.audit import Audit, CalibrationRun, FormatSearch, NearCopy
from pytest_quantgate.evidence.codec import from_json, to_json
from pytest_quantgate.evidence.fingerprint import Fingerprint, digest_of
from pytest_quantgate.gates.sections import TaskGate
from pytest_quantgate.store.cache import Cache, read_json, write_json
from pytest_quantgate.store.keys import (
    CONTENTS,
    ENGINES,
    FP16,
    NEAR_COPIES,
    SEARCH,
    VARIANT,
    Measurement,
    make_key,
)
from pytest_quantgate.store.surroundings import Surroundings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from pytest_quantgate.encoders.encoder import Encoder
    from pytest_quantgate.encoders.source import CheckpointSource
    from pytest_quantgate.evidence.audit import TowerName
    from pytest_quantgate.evidence.latency import LatencyRun
    from pytest_quantgate.evidence.load import LoadRun
    from pytest_quantgate.quantization.quantize import Quantized
    from pytest_quantgate.quantization.recipes import Recipe
    from pytest_quantgate.run.exported import Variant
    from pytest_quantgate.run.given_files import GivenOnnx
    from pytest_quantgate.run.given_variant import GivenCheckpoint
    from pytest_quantgate.run.progress import Progress
    from pytest_quantgate.run.workers import Embeds
    from pytest_quantgate.store.baselines import Store
    from pytest_quantgate.store.looks import Ledger
    from pytest_quantgate.store.settings import Settings
    from pytest_quantgate.suite.specs import Suite
    from pytest_quantgate.tasks.builtin import Purpose
    from pytest_quantgate.tasks.contents import Contents
    from pytest_quantgate.tasks.samples import Samples

#: Packages without which no variant can be built, and what to install for them.
NEEDED = {
    "torch": "torch",
    "transformers": "transformers",
    "modelopt": "nvidia-modelopt",
    "diffusers": "diffusers",
    "clip_benchmark": "clip-benchmark",
    "numpy": "numpy",
}

#: Fixed, so that results do not depend on how much memory a machine has.
BATCH_SIZE = 64

#: How many held-out pairs a round trip compares, and a fidelity gate searches for the worst layer.
PROBE_SAMPLES = 16

#: Pairs that run through FP16 before anything else.
SANITY_PAIRS = 2


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


class Variants:
    """Both variants of a suite, and the data that they are calibrated and judged on."""

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
        surroundings: Surroundings | None = None,
        ledger: Ledger | None = None,
        workers: Embeds | None = None,
    ) -> None:
        self.suite = suite
        self.settings = settings
        self.store = store
        self.cache = cache
        self.progress = progress
        self.environ = environ
        self.today = today or datetime.now(UTC).date()
        #: What libraries see, whatever `environ` this case was given for its suite.
        self.surroundings = surroundings or Surroundings()
        #: What was timed, by the names of the gates; a load gate's are the 99th percentiles.
        self.latency_runs: dict[str, LatencyRun] = {}
        self.load_runs: dict[str, LoadRun] = {}
        #: Where looks at the data are remembered; None: this is no look (a sabotage, a study).
        self.ledger = ledger
        #: Who embeds many samples; None: this process alone.
        self.workers = workers
        #: The cache entries that this run used, by what they are: a report reads them again.
        self.used: dict[tuple[str, ...], str] = {}
        #: The ONNX files that were handed over and that this run has read; None: not handed over.
        self.opened_onnx: dict[tuple[Variant, TowerName], GivenOnnx | None] = {}
        self._values: dict[str, Any] = {}

    @property
    def _task_gates(self) -> tuple[TaskGate, ...]:
        return self.suite.gates.all(TaskGate)

    # -- what makes two measurements comparable ------------------------------------------------

    @computed_once
    def source(self) -> CheckpointSource:
        from pytest_quantgate.encoders.source import is_local, resolve_checkpoint

        model = self.suite.model
        resolve = functools.partial(resolve_checkpoint, model, environ=self.environ)
        if model.source == "onnx":
            given = {tower: self.given_onnx("fp16", tower) for tower in self.towers}
            resolve = functools.partial(
                resolve,
                weights={
                    f"{tower}/{name}": digest
                    for tower, found in given.items()
                    for name, digest in (found.digests if found else {}).items()
                },
            )
        if model.id is None or is_local(model.id):
            return resolve()
        with self.progress.stage(f"looking for {model.id} here and in the hub"):
            return resolve()

    def fingerprint(self, *, data: str, data_parts: Iterable[tuple[str, str]] = ()) -> Fingerprint:
        """Return what results on some data depend on; the quantized variant is built for it."""
        model, calibration = self.suite.model, self.suite.calibration
        quantize = self.suite.variant
        return Fingerprint(
            model=self.source.digest,
            data=data,
            calibration=digest_of(self.calibration_plain),
            recipe=digest_of(self._built_by),
            recipe_entries=self.recipe_entries,
            settings={
                "dtype": model.dtype,
                "attention": model.attn_implementation,
                "device": self.device,
                "calibration data": calibration.data,
                "calibration samples": str(calibration.samples),
                "calibration batch size": str(calibration.batch_size),
                "calibration held-out samples": str(calibration.held_out_samples),
                "recipe": quantize.recipe if isinstance(quantize.recipe, str) else "inline",
                "recipe exclude": ", ".join(quantize.exclude),
                "evaluation stage": "torch",
                "evaluation batch size": str(BATCH_SIZE),
            },
            data_parts=dict(data_parts),
        )

    @computed_once
    def _recipe_plain(self) -> Any:
        """The recipe as it was when the run began: what a file says later was not measured."""
        from pytest_quantgate.encoders.source import recipe_content

        quantize = self.suite.variant
        return {
            "recipe": recipe_content(quantize.recipe, where=quantize.where, environ=self.environ),
            "exclude": list(quantize.exclude),
        }

    @computed_once
    def calibration_plain(self) -> Any:
        spec = self.suite.calibration
        return {
            "data": self._data_key(
                spec.data,
                spec.skip + spec.samples + spec.held_out_samples,
                purpose="pairs",
                first=spec.first,
            ),
            "samples": spec.samples,
            "batch_size": spec.batch_size,
            "held_out_samples": spec.held_out_samples,
            **({"skip": spec.skip} if spec.skip else {}),
        }

    def key(self, measurement: Measurement, **inputs: Any) -> str:
        """Return the key under which a declared measurement of this case is kept.

        Raises TypeError where an input is missing or not declared.
        """
        return make_key(measurement, surroundings=self.surroundings, device=self.device, **inputs)

    def measured(
        self,
        measurement: Measurement,
        key: str,
        *,
        measure: Callable[[], Any],
        read: Callable[[Any], Value],
        about: tuple[str, ...] = (),
    ) -> Value:
        """Return what `read` makes of a measurement's JSON, from the cache or measured and kept.

        A report finds it again by its kind and `about`.
        """
        found: Value = self.cache.get_or_measure(
            kind=measurement.kind, key=key, measure=measure, read=read
        )
        self.used[measurement.kind, *about] = key
        return found

    @computed_once
    def variant_key(self) -> str:
        """Digest of all that the quantized variant depends on; raises MissingPackage."""
        return self.key(
            VARIANT,
            fp16=self.fp16_key,
            recipe=self._built_by,
            calibration=self.calibration_plain,
            given=self._given_plain,
        )

    @computed_once
    def given(self) -> GivenCheckpoint | None:
        """The checkpoint that the suite was handed, None where it builds its own."""
        from pytest_quantgate.run.given_variant import open_given

        spec = self.suite.quantized
        return None if spec is None else open_given(spec, environ=self.environ)

    def given_onnx(self, variant: Variant, tower: TowerName) -> GivenOnnx | None:
        """Return the file that takes the place of an export, as it was when the run began."""
        from pytest_quantgate.run.given_files import open_onnx

        kept = self.opened_onnx
        if (variant, tower) not in kept:
            kept[variant, tower] = open_onnx(
                self.suite.artifacts, variant=variant, tower=tower, environ=self.environ
            )
        return kept[variant, tower]

    def given_digests(self, variant: Variant) -> list[Any]:
        """Return the digests of a variant's ONNX files that were handed over, by tower.

        Raises GivenFileError where nothing but ONNX files is there, and one is missing.
        """
        found = {tower: self.given_onnx(variant, tower) for tower in self.towers}
        missing = [tower for tower, given in found.items() if given is None]
        if missing and variant == "quantized" and self.suite.is_onnx_alone:
            raise GivenFileError(
                f"{self.suite.variant.where.of('onnx')}: the model has the towers "
                f"{', '.join(found)}, and there is no ONNX file of {', '.join(missing)}, nor a "
                f"model to export one of: name it, or quantized: with the checkpoint"
            )
        return [[tower, given.key] for tower, given in found.items() if given is not None]

    def require_torch(self) -> None:
        """Raise NotMeasured where the quantized variant is ONNX files alone."""
        if self.suite.is_onnx_alone:
            raise NotMeasured(
                f"{self.suite.variant.where.of('onnx')}: the quantized variant is there as ONNX "
                f"files alone, and this needs its PyTorch model: name the checkpoint (quantized:)"
            )

    @computed_once
    def _given_plain(self) -> Any:
        if self.suite.is_onnx_alone:
            return {"onnx": self.given_digests("quantized")}
        spec = self.suite.quantized
        if spec is None or self.given is None:
            return None
        return {"checkpoint": self.given.digest, "trained": spec.trained}

    @computed_once
    def device(self) -> str:
        if self.settings.device != "auto":
            return self.settings.device
        # The driver's device node, not torch: asking torch would import it with a warm cache too.
        return "cuda" if Path("/dev/nvidiactl").exists() else "cpu"

    def _data_key(
        self, name: str, count: int | None, *, purpose: Purpose, first: bool = False
    ) -> str:
        from pytest_quantgate.tasks.registry import data_key

        kept: dict[Any, str] = self._values.setdefault("data_keys", {})
        asked = (name, count, purpose, first)
        if asked not in kept:
            key = data_key(
                name,
                datasets=self.suite.datasets,
                samples=count,
                environ=self.environ,
                purpose=purpose,
                first=first,
            )
            key = key or self.samples(name, count, purpose=purpose, first=first).digest
            kept[asked] = self._with_reader(key, name=name)
        return kept[asked]

    def _with_reader(self, digest: str, *, name: str) -> str:
        """Return the digest of data, and of the package that reads it where that is another one:
        it may decode as it likes."""
        from pytest_quantgate.tasks.readers import find_package

        spec = self.suite.datasets.get(name.rpartition("/")[0])
        brought = find_package(spec.dataset) if spec is not None else ""
        if not brought:
            return digest
        package = self.surroundings.package(brought)
        return digest_of([digest, brought, package and package.digest])

    @computed_once
    def fp16_key(self) -> str:
        """Digest of all that the FP16 variant depends on; raises MissingPackage."""
        from pytest_quantgate.encoders.families import list_packages

        model = self.suite.model
        brought = {name: self.surroundings.package(name) for name in list_packages()}
        _ = self.versions
        return self.key(
            FP16,
            model=self.source.digest,
            dtype=model.dtype,
            attn_implementation=model.attn_implementation,
            families={name: package and package.digest for name, package in brought.items()},
        )

    @property
    def versions(self) -> dict[str, str]:
        """The version of every package that can change a number, by distribution.

        Raises MissingPackage without one of those that a variant is built with.
        """
        for name, distribution in NEEDED.items():
            if self.surroundings.package(name) is None:
                raise MissingPackage(distribution, extra="clip", purpose="quantizing a model")
        return self.surroundings.versions(ENGINES)

    @property
    def model_name(self) -> str:
        """The FP16 model, as a message names it."""
        found: str = (
            self._folder[1] if self.suite.model.source == "onnx" else (self.source.description)
        )
        return found

    @computed_once
    def _folder(self) -> tuple[Path, str]:
        """Where the settings of a model of ONNX files are, and its name: `source` needs them."""
        from pytest_quantgate.encoders.source import find_directory

        return find_directory(self.suite.model, environ=self.environ)

    # -- data ------------------------------------------------------------------------------------

    def samples(
        self, name: str, count: int | None, *, purpose: Purpose, first: bool = False
    ) -> Samples:
        """Return the samples of `<data set>/<split>`, read once; see `load_samples`.

        What ships is small, and files are decoded on access: keeping them all costs little memory.
        """
        from pytest_quantgate.tasks.registry import load_samples

        kept: dict[Any, Samples] = self._values.setdefault("samples", {})
        key = (name, count, purpose, first)
        if key not in kept:
            with self.progress.stage(f"reading {name}"):
                kept[key] = load_samples(
                    name,
                    datasets=self.suite.datasets,
                    samples=count,
                    environ=self.environ,
                    purpose=purpose,
                    first=first,
                )
        return kept[key]

    def has_samples(
        self, name: str, count: int | None, *, purpose: Purpose, first: bool = False
    ) -> bool:
        """Return whether `samples` would answer from memory."""
        return (name, count, purpose, first) in self._values.get("samples", {})

    def contents(
        self, name: str, count: int | None, *, purpose: Purpose, first: bool = False
    ) -> Contents:
        """Return what the images of `samples` show, decoded once and kept in the cache."""
        from pytest_quantgate.tasks.contents import Contents, read_contents

        def measure() -> Any:
            samples = self.samples(name, count, purpose=purpose, first=first)
            with self.progress.stage(f"hashing {name}", total=len(samples)) as advance:
                return to_json(read_contents(samples, progress=advance))

        kept: dict[Any, Contents] = self._values.setdefault("contents", {})
        data = self._data_key(name, count, purpose=purpose, first=first)
        key = self.key(CONTENTS, data=data, samples=count, first=first)
        if key not in kept:
            kept[key] = self.measured(
                CONTENTS,
                key,
                measure=measure,
                read=functools.partial(from_json, Contents),
                about=(name, purpose, describe_draw(count, first=first)),
            )
        return kept[key]

    def _split_calibration(self) -> tuple[tuple[Samples, Contents], tuple[Samples, Contents]]:
        """Return the calibration pairs and the held-out pairs, and what they show."""
        from pytest_quantgate.tasks.registry import split_calibration

        spec = self.suite.calibration
        wanted = spec.skip + spec.samples + spec.held_out_samples
        found = self.samples(spec.data, wanted, purpose="pairs", first=spec.first)
        shown = self.contents(spec.data, wanted, purpose="pairs", first=spec.first)
        if spec.skip:
            found = found.take(spec.skip, wanted)
            shown = shown.select(range(spec.skip, wanted))
        used, fresh = split_calibration(spec, pixels=shown.pixels)
        return (found.select(used), shown.select(used)), (found.select(fresh), shown.select(fresh))

    def held_out(self, count: int) -> Samples:
        """Return `count` of the held-out pairs of the calibration set, or all if fewer."""
        _, (held_out, _) = self._split_calibration()
        return held_out.take(min(count, len(held_out)))

    def _evaluated(self) -> Iterator[Contents]:
        """Yield what the samples show that the tasks of this suite are judged on."""
        from pytest_quantgate.tasks.registry import evaluation_data

        wanted = {
            (*evaluation_data(gate.task), gate.samples, gate.first) for gate in self._task_gates
        }
        for name, purpose, count, first in sorted(wanted, key=str):
            yield self.contents(name, count, purpose=purpose, first=first)

    def evaluation_hashes(self) -> tuple[tuple[str, str], ...]:
        """Return (SHA-256 of the pixels, id) of every sample that a task is judged on."""
        found: dict[str, str] = {}
        for shown in self._evaluated():
            for pixels, sample_id in zip(shown.pixels, shown.ids, strict=True):
                found.setdefault(pixels, sample_id)
        return tuple(found.items())

    def near_copies(self) -> tuple[NearCopy, ...]:
        """Return the evaluated samples that look like one that was calibrated on."""
        from pytest_quantgate.tasks.contents import Contents, find_near_copies

        run = self.calibration_run
        pixels, ids = zip(*run.sample_hashes, strict=True) if run.sample_hashes else ((), ())
        looks = run.sample_looks or ("",) * len(ids)
        used = Contents(ids=ids, pixels=pixels, looks=looks)

        def search(shown: Contents) -> tuple[NearCopy, ...]:
            return self.measured(
                NEAR_COPIES,
                self.key(NEAR_COPIES, evaluated=shown, calibrated=used),
                measure=lambda: [to_json(copy) for copy in find_near_copies(shown, used)],
                read=lambda stored: tuple(from_json(NearCopy, item) for item in stored),
            )

        return tuple(dict.fromkeys(copy for shown in self._evaluated() for copy in search(shown)))

    # -- variants --------------------------------------------------------------------------------

    @computed_once
    def search(self) -> FormatSearch | None:
        """Which recipe each layer gets; None where the suite's recipe says it."""
        from pytest_quantgate.formats.recipes import read_auto

        spec = self.suite.variant
        auto = read_auto(spec.recipe)
        if auto is None:
            return None
        if self.given is not None:
            raise ModelError(
                f"{spec.where.of('expect')}: a search chooses formats for what is built here, and "
                f"says nothing of a checkpoint that is handed over: leave it out"
            )

        def measure() -> Any:
            from pytest_quantgate.measure.embeddings import Batches
            from pytest_quantgate.quantization.search import search_formats

            (pairs, _), _ = self._split_calibration()
            batches = Batches(
                model=self.fp16, samples=pairs, batch_size=self.suite.calibration.batch_size
            )
            total = len(pairs) * (len(auto.formats) + 1)
            with self.progress.stage("searching a format for each layer", total=total) as advance:
                return to_json(
                    search_formats(
                        self.fp16,
                        auto=auto,
                        exclude=spec.exclude,
                        batches=batches,
                        steps=len(batches),
                        progress=advance,
                    )
                )

        return self.measured(
            SEARCH,
            self.key(
                SEARCH,
                fp16=self.fp16_key,
                recipe=self._recipe_plain,
                calibration=self.calibration_plain,
            ),
            measure=measure,
            read=functools.partial(from_json, FormatSearch),
        )

    @computed_once
    def _built_by(self) -> Any:
        """The recipe as it was when the run began, with what was searched."""
        found = self.search
        return {**self._recipe_plain, **({"search": to_json(found)} if found else {})}

    @computed_once
    def recipe(self) -> Recipe:
        from pytest_quantgate.encoders.source import recipe_content
        from pytest_quantgate.formats.recipes import read_auto
        from pytest_quantgate.quantization.recipes import RECIPE_OF_FILES, resolve_recipe
        from pytest_quantgate.quantization.search import to_recipe

        spec = self.suite.variant
        if self.suite.is_onnx_alone:
            return RECIPE_OF_FILES
        if self.given is not None and not spec.recipe:
            declared: Recipe = self.given.declared_recipe
            return declared
        auto = read_auto(spec.recipe)
        if auto is not None:
            assert self.search is not None  # the recipe asks for one
            return to_recipe(self.search, auto=auto, where=spec.where.of("recipe"))
        known = self._recipe_plain["recipe"]
        found = resolve_recipe(spec, environ=self.environ)
        if recipe_content(spec.recipe, where=spec.where, environ=self.environ) != known:
            raise _changed(f"the recipe {spec.recipe}", where=spec.where.of("recipe"))
        return found

    @computed_once
    def towers(self) -> tuple[TowerName, ...]:
        """The towers of the model, from its configuration alone, or those that it has files of."""
        from pytest_quantgate.encoders.families import read_towers

        if self.suite.model.factory is not None:
            return self.suite.model.towers
        if self.suite.model.source != "onnx":
            return read_towers(self.source.directory)
        found = read_towers(self._folder[0])
        assert self.suite.artifacts is not None  # the suite's check wants them
        given = self.suite.artifacts.onnx
        return tuple(tower for tower in found if tower in given) or found

    @computed_once
    def fp16(self) -> Encoder:
        """The FP16 variant (on a CPU: the FP32 upcast of its weights)."""
        with self.progress.stage(f"loading {self.source.description}"):
            found = self._load_fp16()
        if found.weights_digest != self.source.digest:
            raise _changed(self.source.description, where=self.suite.model.where.of("id"))
        return found

    def _load_fp16(self) -> Encoder:
        from pytest_quantgate.encoders.loading import load_fp16

        return load_fp16(self.suite.model, device=self.device, environ=self.environ)

    @computed_once
    def unweighted(self) -> Encoder:
        """What feeds a model of ONNX files, and the shapes of its towers; it has no weights."""
        from pytest_quantgate.encoders.loading import load_unweighted

        return load_unweighted(self.suite.model, source=self.source, towers=self.towers)

    @computed_once
    def quantized(self) -> Encoder:
        """The quantized variant: calibrated once, then restored from its checkpoint."""
        from pytest_quantgate.quantization.checkpoint import load_checkpoint

        self.require_torch()
        folder = self.variant_folder
        built: Encoder | None = self._values.get("built")
        if built is not None:
            return built
        with self.progress.stage("restoring the quantized variant"):
            return load_checkpoint(folder / "checkpoint", fp16=self.fp16)

    @property
    def image_key(self) -> str:
        """Digest of all that the image embeddings of the quantized variant depend on."""
        # Kept by the variant's key: a copy of a case that is given another one has others.
        same: dict[str, str] = self._values.get("image keys", {})
        key: str = self.variant_key
        return same.get(key, key)

    def with_variant(self, quantized: Encoder, *, key: str, image_key: str = "") -> Self:
        """Return the case of the same suite, model and data with another quantized variant.

        `key` takes the place of the digest under which the cache keeps what is measured of it, and
        `image_key` of that for its image embeddings, where another variant has the same.
        """
        other = type(self)(
            suite=self.suite,
            settings=self.settings,
            store=self.store,
            cache=self.cache,
            progress=self.progress,
            environ=self.environ,
            today=self.today,
            surroundings=self.surroundings,
        )
        for name in ("source", "fp16", "recipe", "audit", "recipe_entries", "sanity"):
            vars(other)[name] = getattr(self, name)
        vars(other).update(quantized=quantized, variant_key=key)
        other._values["image keys"] = {key: image_key or key}
        for name in ("samples", "contents", "data_keys"):
            other._values[name] = self._values.setdefault(name, {})
        return other

    @computed_once
    def variant_folder(self) -> Path:
        folder = self.cache.get_and_read(
            kind=VARIANT.kind,
            key=self.variant_key,
            build=self._build_variant,
            read=_check_variant_folder,
        )
        self.used[VARIANT.kind,] = self.variant_key
        return folder

    def _take_variant(self, given: GivenCheckpoint, folder: Path) -> None:
        """Restore the checkpoint that was handed over, and audit it as one that was built."""
        from pytest_quantgate.run.given_variant import describe_base, open_given, restore_given

        assert self.suite.quantized is not None  # it names the checkpoint
        with self.progress.stage(f"restoring {given.description}"):
            taken = restore_given(given, fp16=self.fp16, trained=self.suite.quantized.trained)
        if open_given(self.suite.quantized, environ=self.environ).digest != given.digest:
            raise _changed(given.description, where=given.where)
        spec = self.suite.calibration
        whole = self.contents(spec.data, None, purpose="pairs", first=spec.first)
        _, (_, unseen) = self._split_calibration()
        # Which of them it was calibrated on is not in a checkpoint: all but the held-out ones.
        fresh = set(unseen.pixels)
        used = [i for i, pixels in enumerate(whole.pixels) if pixels not in fresh]
        shown = whole.select(used)
        run = CalibrationRun(
            data=spec.data,
            samples=len(used),
            batches=0,
            tower_batches={},
            nonfinite=(),
            sample_hashes=tuple(zip(shown.pixels, shown.ids, strict=True)),
            sample_looks=shown.looks,
            held_out_samples=len(unseen.ids),
            held_out_hashes=tuple(zip(unseen.pixels, unseen.ids, strict=True)),
            given=True,
        )
        notes = (*taken.model.notes, describe_base(taken, given=given, base=self.fp16))
        self._keep_variant(folder, taken.model, run=run, notes=notes)

    def _build_variant(self, folder: Path) -> None:
        if self.given is not None:
            self._take_variant(self.given, folder)
            return
        spec = self.suite.calibration
        (pairs, shown), (_, unseen) = self._split_calibration()
        result = self.calibrate(self.recipe)
        run = describe_calibration(
            result, data=spec.data, pairs=pairs, shown=shown, held_out=unseen
        )
        self._keep_variant(folder, result.model, run=run, notes=result.model.notes)

    def calibrate(self, recipe: Recipe) -> Quantized:
        """Return a variant of the suite's model and calibration data by a recipe; nothing is kept.

        Raises as `quantize` does.
        """
        from pytest_quantgate.measure.embeddings import Batches
        from pytest_quantgate.quantization.quantize import quantize

        spec, fp16 = self.suite.calibration, self.fp16
        (pairs, _), _ = self._split_calibration()
        with self.progress.stage(f"calibrating {recipe.name}", total=spec.samples) as advance:
            return quantize(
                fp16,
                recipe=recipe,
                exclude=self.suite.variant.exclude,
                batches=Batches(model=fp16, samples=pairs, batch_size=spec.batch_size),
                progress=advance,
            )

    def _keep_variant(
        self, folder: Path, model: Encoder, *, run: CalibrationRun, notes: Iterable[str]
    ) -> None:
        """Audit a variant on held-out pairs, and write it with all that is known of it."""
        from pytest_quantgate.measure.audit import audit_quantizers
        from pytest_quantgate.measure.embeddings import make_batches
        from pytest_quantgate.quantization.checkpoint import save_checkpoint
        from pytest_quantgate.quantization.recipes import describe_content

        _, (held_out, _) = self._split_calibration()
        batch_size = self.suite.calibration.batch_size
        with self.progress.stage("auditing the quantizers"):
            audit = audit_quantizers(
                model,
                recipe=self.recipe,
                exclude=self.suite.variant.exclude,
                held_out=list(make_batches(self.fp16, held_out, batch_size=batch_size)),
            )
        with self.progress.stage("saving the quantized variant"):
            save_checkpoint(model, folder / "checkpoint")
        write_json(folder / "audit.json", to_json(audit))
        write_json(folder / "calibration.json", to_json(run))
        write_json(folder / "recipe.json", list(describe_content(self.recipe)))
        write_json(folder / "notes.json", list(notes))
        self._values["built"] = model

    @computed_once
    def audit(self) -> Audit:
        return from_json(Audit, read_json(self.variant_folder / "audit.json"))

    @computed_once
    def calibration_run(self) -> CalibrationRun:
        return from_json(CalibrationRun, read_json(self.variant_folder / "calibration.json"))

    @computed_once
    def recipe_entries(self) -> tuple[str, ...]:
        """What the recipe was in the ModelOpt that built the variant, one line an entry."""
        return tuple(read_json(self.variant_folder / "recipe.json"))

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know of the variants, such as an FP32 upcast on a CPU."""
        return tuple(read_json(self.variant_folder / "notes.json"))


def _changed(what: str, *, where: str) -> ModelError:
    """Return the error for a file that is no more what the keys of this run were made of."""
    return ModelError(
        f"{where}: {what} was changed while the suite ran: what was measured before the change is "
        f"of other files; run again"
    )


def describe_calibration(
    quantized: Quantized, *, data: str, pairs: Samples, shown: Contents, held_out: Contents
) -> CalibrationRun:
    """Return how a variant was calibrated: on these pairs of `data`, which show `shown`."""
    from pytest_quantgate.tasks.contents import count_copies

    return CalibrationRun(
        data=data,
        samples=len(pairs),
        batches=quantized.batches,
        tower_batches=quantized.tower_batches,
        nonfinite=quantized.nonfinite,
        sample_hashes=tuple(zip(shown.pixels, shown.ids, strict=True)),
        sample_looks=shown.looks,
        copies=count_copies(pairs, pixels=shown.pixels),
        held_out_samples=len(held_out.ids),
        held_out_hashes=tuple(zip(held_out.pixels, held_out.ids, strict=True)),
    )


def _check_variant_folder(folder: Path) -> Path:
    """Return the folder of a variant whose measurements can be read; raises ValueError."""
    from_json(Audit, read_json(folder / "audit.json"))
    from_json(CalibrationRun, read_json(folder / "calibration.json"))
    for name in ("recipe.json", "notes.json"):
        lines = read_json(folder / name)
        if not isinstance(lines, list) or not all(isinstance(line, str) for line in lines):
            raise ValueError(f"{name}: expected a list of texts")
    return folder


def describe_draw(samples: int | None, *, first: bool) -> str:
    """Return which samples of a task an entry is of, in words that a report finds it by."""
    return f"first {samples}" if first else str(samples or "")
