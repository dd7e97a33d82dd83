"""What the bench works with: one good release of the reference model, and copies to be spoiled."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from benchmarks.sabotage.names import rename
from pytest_quantgate.evidence.fingerprint import digest_of
from pytest_quantgate.evidence.verdict import Verdict
from pytest_quantgate.gates.regression import RegressionGate
from pytest_quantgate.run.case import Case
from pytest_quantgate.run.progress import silent
from pytest_quantgate.store.baseline_mode import BaselineMode
from pytest_quantgate.store.baselines import Store, next_record
from pytest_quantgate.store.cache import Cache
from pytest_quantgate.store.records import AnyRecord, Record
from pytest_quantgate.store.settings import Settings
from pytest_quantgate.suite.load import load_suite

#: The reference suite with fewer samples, and a latency limit that FP8 hardware would meet.
SUITE = """\
quantgate: 1
model: {source: reference}
calibration: {data: scenes/calibration, samples: 256, batch_size: 64, held_out_samples: 128}
quantize: {recipe: fp8-attention, exclude: ["*patch_embedding*"]}
gates:
  coverage: {attention: [q, k, v, output]}
  calibration: {max_clipped: 0.1%}
  fidelity: {data: scenes/test, samples: 128, min_cosine: 0.99, min_sqnr: 15dB}
  accuracy:
    - {task: scenes/classification, metric: acc1, samples: 1000, max_drop: 2pp, floor: 70%,
       max_flips: 10%, max_class_drop: 75pp}
    - {task: digits/classification, metric: acc1, max_drop: 3pp, floor: 80%, stage: onnx}
  regression:
    - {task: scenes/classification, metric: acc1, samples: 1000, max_fp16_drop: 0.5pp,
       max_drop: 2pp, max_drop_since_first: 2pp}
  roundtrip: {}
  export: {allow: [softmax], max_size_ratio: 0.65x}
  parity: {samples: 32}
  engine:
    - {target: sm89, towers: [vision], min_fp8_gemms: 25, attention: fused-fp8}
    - {target: sm89, towers: [text], min_fp8_gemms: 19}
  memory: {target: sm89, max_weights_ratio: 0.6x, max_activation_ratio: 1.1x}
  latency: {tower: vision, batch: 8, max_ratio: 0.9x}
"""

TASK, METRIC, SAMPLES = "scenes/classification", "acc1", 1000

#: The gates that look at the PyTorch model: what a team has before it exports anything.
MODEL_GATES = ("sanity", "coverage", "calibration", "fidelity", "accuracy", "regression")
#: The gates on what follows it, but for the latency, which the bench scripts.
STAGE_GATES = ("accuracy-onnx", "export", "parity", "engine", "memory")


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of the catalogue.

    `make` gives the spoiled case.
    `judged` are the kinds of gates that it is put before (`accuracy-onnx` is accuracy with
    `stage: onnx`), `gates` those of them that must turn red, at least one. One of these must have
    the `code` (`Verdict.code`), and its text match the regular expression `cause`: where, or the
    true cause, in a gate without codes. A control has no `gates`: all must pass.
    `principle` says why nothing can catch it, `finding` what is still open. `shipped` is the stage
    that tools which look at the answers alone are given: what ships.
    """

    name: str
    theme: str
    make: Callable[[Bench], Case]
    gates: tuple[str, ...] = ()
    code: str = ""
    cause: str = ""
    judged: tuple[str, ...] = MODEL_GATES
    principle: str = ""
    finding: str = ""
    shipped: str = "torch"
    compared: bool = True

    @property
    def title(self) -> str:
        return f"{self.theme}: {self.name}"

    @property
    def is_control(self) -> bool:
        return self.theme == "control"


class Bench:
    """A good release in a folder of its own, its baseline accepted, and ways to make others."""

    def __init__(
        self,
        root: Path,
        *,
        suite: str = SUITE,
        samples: int = SAMPLES,
        names: Mapping[str, str] | None = None,
    ) -> None:
        """Keep everything below `root`; `samples` is how many scenes the suite's tasks have.

        `names` are the words of another family for those of the reference, in edits too.
        """
        self.names = names or {}
        self.root = root
        self.suite = suite
        self.samples = samples
        root.mkdir(parents=True, exist_ok=True)

    def load(self, *, edits: Mapping[str, str] | None = None, store: Store | None = None) -> Case:
        """Return a new case of the suite, with its text edited: old -> new."""
        text = self.suite
        for old, new in (edits or {}).items():
            old, new = rename(old, self.names), rename(new, self.names)
            if old not in text:
                raise ValueError(f"{old!r} is not in the suite")
            text = text.replace(old, new)
        path = self.root / "suites" / digest_of(text)[:12] / "reference.quantgate.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        suite = replace(load_suite(path, relative_to=path.parent), path=path)
        return Case(
            suite=suite,
            settings=self.settings,
            store=store or self.store,
            cache=Cache(root=self.root / "cache", warn=print),
            progress=silent(),
            environ={},
        )

    @property
    def settings(self) -> Settings:
        return Settings(
            baselines=BaselineMode.CHECK,
            baselines_dir=self.root / "baselines",
            obtained_dir=self.root / "obtained",
            cache_dir=self.root / "cache",
            reason="",
            strict=True,
            device="cpu",
            suite="",
            root=self.root,
        )

    @cached_property
    def store(self) -> Store:
        return Store(self.root / "baselines")

    @cached_property
    def good(self) -> Case:
        """The good release, with its baseline in the store where the suite has one."""
        case = self.load()
        if case.suite.gates.all(RegressionGate):
            self.store.write(self.record(case))
        return case

    def record(self, case: Case) -> Record:
        """Return the baseline that accepting a case's results would make."""
        (gate,) = case.suite.gates.all(RegressionGate)
        fp16, quantized = case.outcomes(task=TASK, metric=METRIC, samples=self.samples)
        return next_record(
            None,
            suite=case.suite.name,
            key=gate.key,
            task=TASK,
            metric=METRIC,
            fp16=fp16,
            quantized=quantized,
            fingerprint=case.fingerprint(data=fp16.data_digest, data_parts=fp16.data_parts),
            versions=case.versions,
            today=case.today,
            reason="first baseline",
        )

    def store_of(self, name: str, record: AnyRecord) -> Store:
        """Return a store of its own that holds one record."""
        store = Store(self.root / f"baselines-{name}")
        store.write(record)
        return store


def judge_kinds(case: Case, kinds: Collection[str]) -> dict[str, Verdict]:
    """Return the verdicts of the gates of these kinds, as `Entry.judged` names them."""
    return {
        gate.name: case.judge(kind=gate.kind, key=gate.key).verdict
        for gate in case.suite.gates
        if judged_as(gate.name) in kinds
    }


def judged_as(gate_name: str) -> str:
    """Return the word for a gate in `Entry.judged`."""
    kind = gate_name.partition("[")[0]
    return f"{kind}-onnx" if gate_name.endswith("-onnx]") else kind
