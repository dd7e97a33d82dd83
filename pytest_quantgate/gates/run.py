"""What a gate may ask of the run in which it is judged, and what it answers.

`GateRun` is what a gate sees of a case: measurements that are made once and kept, the stored
baselines, and what other gates say. A gate depends on this, and never on how they are made.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from datetime import date

    from pytest_quantgate.evidence.audit import (
        Audit,
        CalibrationRun,
        LayerActivation,
        NearCopy,
        Tower,
        TowerName,
    )
    from pytest_quantgate.evidence.fidelity import Fidelity
    from pytest_quantgate.evidence.fingerprint import Fingerprint
    from pytest_quantgate.evidence.latency import GivenTimes, LatencyRun
    from pytest_quantgate.evidence.load import LoadRun
    from pytest_quantgate.evidence.onnx import EngineOutputs, OnnxAudit
    from pytest_quantgate.evidence.outcomes import Outcomes
    from pytest_quantgate.evidence.parity import Parity, Roundtrip, ShippedTower
    from pytest_quantgate.evidence.sanity import Sanity
    from pytest_quantgate.evidence.serving import Loaded
    from pytest_quantgate.evidence.verdict import Verdict
    from pytest_quantgate.gates.sections import TaskGate
    from pytest_quantgate.inspection.findings import Inspection
    from pytest_quantgate.runtimes.engine_layers import EngineReport
    from pytest_quantgate.statistics.family import Family
    from pytest_quantgate.store.baselines import Store
    from pytest_quantgate.store.looks import Ledger
    from pytest_quantgate.store.records import AnyRecord
    from pytest_quantgate.store.settings import Settings
    from pytest_quantgate.suite.gates import GateSection
    from pytest_quantgate.suite.specs import Stage, Suite
    from pytest_quantgate.tasks.builtin import Purpose
    from pytest_quantgate.tasks.contents import Contents


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A verdict, and the record that the session is to write for it.

    `proposal` is `baseline` (write it to baselines/), `obtained` (propose it) or empty.
    """

    verdict: Verdict
    proposal: str = ""
    record: AnyRecord | None = None
    notes: tuple[str, ...] = ()


class Exported(Protocol):
    """The ONNX files and engines of both variants, built once and cached."""

    @property
    def shipped(self) -> Any:
        """The number format that they are in: that of the suite."""

    def onnx_audit(self, *, variant: Any, tower: Any, precision: Any) -> OnnxAudit: ...

    def inspect_graph(self, tower: Any) -> Inspection:
        """Return what `quantgate check` says of a given file of the quantized tower."""

    def parity(self, *, samples: int) -> Parity: ...

    def shipped_towers(self, *, samples: int) -> tuple[ShippedTower, ...]: ...

    def engine(self, *, variant: Any, tower: Any, gate: Any) -> EngineReport: ...

    def base_engine(self, *, tower: Any, gate: Any) -> EngineReport | None:
        """Return FP16's engine; None where one was handed over without FP16's beside it."""

    def given_times(self, gate: Any) -> tuple[GivenTimes, GivenTimes | None] | None:
        """Return the times of handed-over engines, the quantized one's and FP16's."""

    def engine_outputs(self, gate: Any, *, samples: int) -> dict[str, EngineOutputs]: ...


class Verdicts(Protocol):
    """What the gates of a suite say, each judged once."""

    def judge(self, *, kind: str, key: str = "") -> Judged: ...

    def known(self, gate: GateSection) -> Verdict | None:
        """Return what a gate said if it was judged already."""

    @property
    def family(self) -> Family:
        """The limits that a false alarm may come from."""

    def name_suspects(self, verdict: Verdict, gate: Any, *, tower: Tower | None = None) -> Verdict:
        """Return a red verdict with the layers in which the error enters."""


class GateRun(Protocol):
    """One suite in one run."""

    suite: Suite
    settings: Settings
    store: Store
    today: date
    environ: Mapping[str, str]
    ledger: Ledger | None
    latency_runs: dict[str, LatencyRun]
    load_runs: dict[str, LoadRun]

    @property
    def towers(self) -> tuple[TowerName, ...]: ...

    @property
    def judging(self) -> Verdicts: ...

    @property
    def stages(self) -> Exported: ...

    @property
    def versions(self) -> dict[str, str]: ...

    def fingerprint(
        self, *, data: str, data_parts: Iterable[tuple[str, str]] = ()
    ) -> Fingerprint: ...

    @property
    def model_name(self) -> str:
        """The FP16 model, as a message names it."""

    @property
    def sanity(self) -> Sanity: ...

    @property
    def audit(self) -> Audit: ...

    @property
    def calibration_run(self) -> CalibrationRun: ...

    def evaluation_hashes(self) -> tuple[tuple[str, str], ...]: ...

    def near_copies(self) -> tuple[NearCopy, ...]: ...

    def activations(self) -> Sequence[LayerActivation]: ...

    def fidelity(self) -> Fidelity: ...

    def roundtrip(self) -> Roundtrip: ...

    def loaded_by(self, gate: Any) -> Loaded:
        """Return what a serving runtime's own loader makes of what is handed on."""

    def latency(self, gate: Any, *, is_decided: Callable[[LatencyRun], bool]) -> LatencyRun: ...

    def load(self, gate: Any) -> LoadRun: ...

    def contents(
        self, name: str, count: int | None, *, purpose: Purpose, first: bool = False
    ) -> Contents: ...

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
    ) -> tuple[Outcomes, Outcomes]: ...


VARIANTS = ("fp16", "quantized")


def measure_task(run: GateRun, gate: TaskGate) -> tuple[Outcomes, Outcomes]:
    """Return what FP16 and the quantized variant answer on the samples of a gate."""
    return run.outcomes(**gate.asks, stage=getattr(gate, "stage", "torch"))
