"""The FP16 model of a suite and its data: what variants are made of, calibrated and judged on.

Everything is lazy, and what is costly comes from the cache: with a warm one torch is not imported.
"""

from __future__ import annotations

import functools
from datetime import UTC, date, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pytest_quantgate.errors import MissingPackage, ModelError, QuantGateError
from pytest_quantgate.evidence.codec import from_json, to_json
from pytest_quantgate.evidence.fingerprint import digest_of
from pytest_quantgate.gates.sections import TaskGate
from pytest_quantgate.store.cache import Cache
from pytest_quantgate.store.keys import CONTENTS, ENGINES, FP16, Measurement, make_key
from pytest_quantgate.store.surroundings import Surroundings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from pytest_quantgate.encoders.encoder import Encoder
    from pytest_quantgate.encoders.source import CheckpointSource
    from pytest_quantgate.evidence.audit import TowerName
    from pytest_quantgate.evidence.latency import LatencyRun
    from pytest_quantgate.evidence.load import LoadRun
    from pytest_quantgate.run.exported import Variant
    from pytest_quantgate.run.given_files import GivenOnnx
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


class Inputs:
    """The FP16 model of a suite, and the data that its variants are calibrated and judged on."""

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
    def device(self) -> str:
        if self.settings.device != "auto":
            return self.settings.device
        # The driver's device node, not torch: asking torch would import it with a warm cache too.
        return "cuda" if Path("/dev/nvidiactl").exists() else "cpu"

    @property
    def versions(self) -> dict[str, str]:
        """The version of every package that can change a number, by distribution.

        Raises MissingPackage without one of those that a variant is built with.
        """
        for name, distribution in NEEDED.items():
            if self.surroundings.package(name) is None:
                raise MissingPackage(distribution, extra="clip", purpose="quantizing a model")
        return self.surroundings.versions(ENGINES)

    # -- the model ---------------------------------------------------------------------------------

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

    @computed_once
    def _folder(self) -> tuple[Path, str]:
        """Where the settings of a model of ONNX files are, and its name: `source` needs them."""
        from pytest_quantgate.encoders.source import find_directory

        return find_directory(self.suite.model, environ=self.environ)

    @property
    def model_name(self) -> str:
        """The FP16 model, as a message names it."""
        found: str = (
            self._folder[1] if self.suite.model.source == "onnx" else (self.source.description)
        )
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

    @computed_once
    def fp16(self) -> Encoder:
        """The FP16 variant (on a CPU: the FP32 upcast of its weights)."""
        with self.progress.stage(f"loading {self.source.description}"):
            found = self._load_fp16()
        if found.weights_digest != self.source.digest:
            raise say_changed(self.source.description, where=self.suite.model.where.of("id"))
        return found

    def _load_fp16(self) -> Encoder:
        from pytest_quantgate.encoders.loading import load_fp16

        return load_fp16(self.suite.model, device=self.device, environ=self.environ)

    @computed_once
    def unweighted(self) -> Encoder:
        """What feeds a model of ONNX files, and the shapes of its towers; it has no weights."""
        from pytest_quantgate.encoders.loading import load_unweighted

        return load_unweighted(self.suite.model, source=self.source, towers=self.towers)

    def given_onnx(self, variant: Variant, tower: TowerName) -> GivenOnnx | None:
        """Return the file that takes the place of an export, as it was when the run began."""
        from pytest_quantgate.run.given_files import open_onnx

        kept = self.opened_onnx
        if (variant, tower) not in kept:
            kept[variant, tower] = open_onnx(
                self.suite.artifacts, variant=variant, tower=tower, environ=self.environ
            )
        return kept[variant, tower]

    # -- data --------------------------------------------------------------------------------------

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


def say_changed(what: str, *, where: str) -> ModelError:
    """Return the error for a file that is no more what the keys of this run were made of."""
    return ModelError(
        f"{where}: {what} was changed while the suite ran: what was measured before the change is "
        f"of other files; run again"
    )


def describe_draw(samples: int | None, *, first: bool) -> str:
    """Return which samples of a task an entry is of, in words that a report finds it by."""
    return f"first {samples}" if first else str(samples or "")
