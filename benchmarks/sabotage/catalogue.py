"""The whole catalogue."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.sabotage.bench import Entry
from benchmarks.sabotage.calibration import CALIBRATIONS, WEIGHTS
from benchmarks.sabotage.codes import CODES
from benchmarks.sabotage.controls import CONTROLS
from benchmarks.sabotage.data import DATA
from benchmarks.sabotage.evaluation import BASELINES, EVALUATIONS
from benchmarks.sabotage.export import ENGINES, EXPORTS
from benchmarks.sabotage.formats import FORMATS, GOOD_FORMATS
from benchmarks.sabotage.hidden import HIDDEN
from benchmarks.sabotage.overflow import OVERFLOWS
from benchmarks.sabotage.recipe import ATTENTIONS, RECIPES
from benchmarks.sabotage.sanity import SANITIES
from benchmarks.sabotage.speed import SPEEDS

_SABOTAGES: tuple[Entry, ...] = (
    *SANITIES,
    *DATA,
    *RECIPES,
    *ATTENTIONS,
    *CALIBRATIONS,
    *WEIGHTS,
    *OVERFLOWS,
    *HIDDEN,
    *EVALUATIONS,
    *BASELINES,
    *EXPORTS,
    *ENGINES,
    *FORMATS,
    *SPEEDS,
)
SABOTAGES = tuple(replace(e, code=e.code or CODES.get(e.title, "")) for e in _SABOTAGES)
CATALOGUE: tuple[Entry, ...] = (*SABOTAGES, *CONTROLS, *GOOD_FORMATS)
