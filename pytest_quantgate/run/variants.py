"""The quantized variant of a suite, built or read once: everything is lazy.

What is costly comes from the cache, and only what is not there is built. With a warm cache torch is
not even imported.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from pytest_quantgate.errors import GivenFileError, ModelError, NotMeasured
from pytest_quantgate.evidence.audit import Audit, CalibrationRun, FormatSearch, NearCopy
from pytest_quantgate.evidence.codec import from_json, to_json
from pytest_quantgate.evidence.fingerprint import Fingerprint, digest_of
from pytest_quantgate.run.inputs import Inputs, computed_once, say_changed
from pytest_quantgate.store.cache import read_json, write_json
from pytest_quantgate.store.keys import NEAR_COPIES, SEARCH, VARIANT

if TYPE_CHECKING:
    from collections.abc import Iterable

    from pytest_quantgate.encoders.encoder import Encoder
    from pytest_quantgate.quantization.quantize import Quantized
    from pytest_quantgate.quantization.recipes import Recipe
    from pytest_quantgate.run.given_variant import GivenCheckpoint
    from pytest_quantgate.tasks.contents import Contents
    from pytest_quantgate.tasks.samples import Samples

#: Fixed, so that results do not depend on how much memory a machine has.
BATCH_SIZE = 64


class Variants(Inputs):
    """Both variants of a suite, and the data that they are calibrated and judged on."""

    @computed_once
    def given(self) -> GivenCheckpoint | None:
        """The checkpoint that the suite was handed, None where it builds its own."""
        from pytest_quantgate.run.given_variant import open_given

        spec = self.suite.quantized
        return None if spec is None else open_given(spec, environ=self.environ)

    @computed_once
    def _given_plain(self) -> Any:
        if self.suite.is_onnx_alone:
            return {"onnx": self.given_digests()}
        spec = self.suite.quantized
        if spec is None or self.given is None:
            return None
        return {"checkpoint": self.given.digest, "trained": spec.trained}

    def given_digests(self) -> list[Any]:
        """Return the digests of the quantized ONNX files that were handed over, by tower.

        Raises GivenFileError where nothing but ONNX files is there, and one is missing.
        """
        found = {tower: self.given_onnx("quantized", tower) for tower in self.towers}
        missing = [tower for tower, given in found.items() if given is None]
        if missing and self.suite.is_onnx_alone:
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
    def _recipe_plain(self) -> Any:
        """The recipe as it was when the run began: what a file says later was not measured."""
        from pytest_quantgate.encoders.source import recipe_content

        quantize = self.suite.variant
        return {
            "recipe": recipe_content(quantize.recipe, where=quantize.where, environ=self.environ),
            "exclude": list(quantize.exclude),
        }

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
            raise say_changed(f"the recipe {spec.recipe}", where=spec.where.of("recipe"))
        return found

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
    def variant_key(self) -> str:
        """Digest of all that the quantized variant depends on; raises MissingPackage."""
        return self.key(
            VARIANT,
            fp16=self.fp16_key,
            recipe=self._built_by,
            calibration=self.calibration_plain,
            given=self._given_plain,
        )

    @property
    def image_key(self) -> str:
        """Digest of all that the image embeddings of the quantized variant depend on."""
        # Kept by the variant's key: a copy of a case that is given another one has others.
        same: dict[str, str] = self._values.get("image keys", {})
        key: str = self.variant_key
        return same.get(key, key)

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

    def _take_variant(self, given: GivenCheckpoint, folder: Path) -> None:
        """Restore the checkpoint that was handed over, and audit it as one that was built."""
        from pytest_quantgate.run.given_variant import describe_base, open_given, restore_given

        assert self.suite.quantized is not None  # it names the checkpoint
        with self.progress.stage(f"restoring {given.description}"):
            taken = restore_given(given, fp16=self.fp16, trained=self.suite.quantized.trained)
        if open_given(self.suite.quantized, environ=self.environ).digest != given.digest:
            raise say_changed(given.description, where=given.where)
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

    @computed_once
    def recipe_entries(self) -> tuple[str, ...]:
        """What the recipe was in the ModelOpt that built the variant, one line an entry."""
        return tuple(read_json(self.variant_folder / "recipe.json"))

    @property
    def notes(self) -> tuple[str, ...]:
        """What a reader must know of the variants, such as an FP32 upcast on a CPU."""
        return tuple(read_json(self.variant_folder / "notes.json"))


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
