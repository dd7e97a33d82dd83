"""A release pipeline as people write it, with a place for each thing that can go wrong."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pytest_quantgate.encoders.encoder import Batch, Encoder
from pytest_quantgate.encoders.loading import quiet_libraries
from pytest_quantgate.errors import ModelError
from pytest_quantgate.evidence.audit import Audit, CalibrationRun, TowerName
from pytest_quantgate.evidence.fingerprint import digest_of
from pytest_quantgate.measure.audit import audit_quantizers
from pytest_quantgate.measure.embeddings import make_batches
from pytest_quantgate.quantization.attention import attention_class
from pytest_quantgate.quantization.modelopt import import_modelopt
from pytest_quantgate.quantization.quantize import Quantized, quantize
from pytest_quantgate.quantization.recipes import to_modelopt
from pytest_quantgate.run.case import Case
from pytest_quantgate.run.exported import Variant
from pytest_quantgate.run.inputs import computed_once
from pytest_quantgate.run.measured import Drawn
from pytest_quantgate.run.variants import describe_calibration
from pytest_quantgate.tasks.contents import read_contents

if TYPE_CHECKING:
    import torch

    from pytest_quantgate.run.measured import Drawn
    from pytest_quantgate.suite.specs import Stage
    from pytest_quantgate.tasks.samples import Samples

Weights = Callable[[Encoder], Encoder]
Pairs = Callable[[list[Batch]], list[Batch]]
Calibrate = Callable[[Encoder, Sequence[Batch]], None]


@dataclass(frozen=True, kw_only=True)
class Pipeline:
    """The steps of a release; None: done right.

    `source` changes which calibration images are used, `pairs` what they are made into, `weights`
    the model that is quantized, `calibrate` replaces the loop that feeds it, and `finish` is what
    happens to the model afterwards.
    """

    source: Callable[[Samples], Samples] | None = None
    pairs: Pairs | None = None
    weights: Weights | None = None
    calibrate: Calibrate | None = None
    finish: Weights | None = None

    @property
    def is_good_until_finish(self) -> bool:
        before = (self.source, self.pairs, self.weights, self.calibrate)
        return self.finish is not None and before == (None,) * len(before)


@dataclass(frozen=True, kw_only=True)
class _Built:
    model: Encoder
    audit: Audit
    run: CalibrationRun


class PipelineCase(Case):
    """A case whose variant comes out of a pipeline; all that is measured is measured honestly.

    FP16 embeddings are the good case's: they are the same.
    """

    def __init__(self, *, good: Case, suite_case: Case, name: str, pipeline: Pipeline) -> None:
        super().__init__(
            suite=suite_case.suite,
            settings=good.settings,
            store=good.store,
            cache=good.cache,
            progress=good.progress,
            environ=good.environ,
        )
        self.good = good
        self.name = name
        self.pipeline = pipeline

    @computed_once
    def variant_key(self) -> str:
        return digest_of(["pipeline", self.name, Case.variant_key.func(self)])

    @computed_once
    def fp16(self) -> Encoder:
        fp16: Encoder = self.good.fp16
        return fp16

    @computed_once
    def quantized(self) -> Encoder:
        built: _Built = self._built
        return built.model

    @computed_once
    def audit(self) -> Audit:
        built: _Built = self._built
        return built.audit

    @computed_once
    def calibration_run(self) -> CalibrationRun:
        built: _Built = self._built
        return built.run

    @property
    def notes(self) -> tuple[str, ...]:
        return ()

    def _image_embeddings(self, drawn: Drawn, stage: Stage) -> list[torch.Tensor]:
        before = self.good._image_embeddings(drawn, stage)[0]
        names: tuple[Variant, ...] = ("quantized",)
        return [before, *self._embed_images(names, drawn=drawn, stage=stage, label=self.name)]

    @computed_once
    def _built(self) -> _Built:
        steps, spec = self.pipeline, self.suite.calibration
        if steps.is_good_until_finish and self._recipe_plain == self.good._recipe_plain:
            return self._finish_good()
        (pairs, _), (held_out, unseen) = self._split_calibration()
        if steps.source is not None:
            pairs = steps.source(pairs)
        shown = read_contents(pairs)
        batches = list(make_batches(self.fp16, pairs, batch_size=spec.batch_size))
        if steps.pairs is not None:
            batches = steps.pairs(batches)
        fp16 = steps.weights(self.fp16) if steps.weights is not None else self.fp16
        if steps.calibrate is None:
            result = quantize(
                fp16, recipe=self.recipe, exclude=self.suite.variant.exclude, batches=batches
            )
        else:
            result = self._quantize_by_hand(fp16, batches, calibrate=steps.calibrate)
        model = steps.finish(result.model) if steps.finish is not None else result.model
        audit = audit_quantizers(
            model,
            recipe=self.recipe,
            exclude=self.suite.variant.exclude,
            held_out=list(make_batches(self.fp16, held_out, batch_size=spec.batch_size)),
        )
        run = describe_calibration(
            result, data=spec.data, pairs=pairs, shown=shown, held_out=unseen
        )
        fed = sum(len(batch.ids) for batch in batches)
        return _Built(model=model, audit=audit, run=replace(run, samples=fed))

    def _finish_good(self) -> _Built:
        """The good release, whose model something happens to at the very end."""
        assert self.pipeline.finish is not None
        model = self.pipeline.finish(
            replace(self.good.quantized, module=copy.deepcopy(self.good.quantized.module))
        )
        spec = self.suite.calibration
        held_out = self.good.held_out(spec.held_out_samples)
        audit = audit_quantizers(
            model,
            recipe=self.recipe,
            exclude=self.suite.variant.exclude,
            held_out=list(make_batches(self.fp16, held_out, batch_size=spec.batch_size)),
        )
        return _Built(model=model, audit=audit, run=self.good.calibration_run)

    def _quantize_by_hand(
        self, fp16: Encoder, batches: list[Batch], *, calibrate: Calibrate
    ) -> Quantized:
        """Quantize with a loop of the pipeline's own, and count what went through the towers."""
        mtq = import_modelopt("modelopt.torch.quantization")
        model = replace(fp16, module=copy.deepcopy(fp16.module))
        seen: dict[TowerName, int] = dict.fromkeys(model.tower_names, 0)

        def count(name: TowerName) -> Any:
            def hook(*_arguments: Any) -> None:
                seen[name] += 1

            return hook

        towers: Any = model.module
        handles = [
            getattr(towers, tower.parts[0]).register_forward_hook(count(tower.name))
            for tower in model.towers
        ]
        with (
            quiet_libraries(),
            attention_class(model.module, towers=model.towers, kind=self.recipe.attention),
        ):
            try:
                mtq.quantize(
                    model.module,
                    to_modelopt(self.recipe),
                    forward_loop=lambda _module: calibrate(model, batches),
                )
            except (RuntimeError, ValueError, AssertionError) as error:
                raise ModelError(f"ModelOpt cannot calibrate: {error}") from error
            for pattern in self.suite.variant.exclude:
                mtq.disable_quantizer(model.module, pattern)
        for handle in handles:
            handle.remove()
        model.module.eval().requires_grad_(False)
        return Quantized(
            model=model,
            batches=max(seen.values()),
            tower_batches={str(name): batches for name, batches in seen.items()},
            nonfinite=(),
        )
