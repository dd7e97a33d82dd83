"""Suite files: the closed schema as frozen dataclasses. `suite_file/` reads YAML into them.

Fractions are exact (`fractions.Fraction`): `0.5pp` is 1/200, so that limits are compared with
counts and never with rounded percentages.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, timedelta
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from pytest_quantgate.errors import NotMeasured, SuiteError

#: What a latency gate can time in. `onnxruntime` is its CPU provider.
LatencyRuntime = Literal[
    "onnxruntime", "onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt-rtx", "tensorrt", "torch"
]

#: Which form of the quantized variant does a task.
Stage = Literal["torch", "onnx", "engine"]

#: The places around attention where a quantizer can be, as a suite names them.
AttentionSlot = Literal["q", "k", "v", "softmax", "output"]


#: What waits longer than a year does not wait: it is left out for good.
MAX_WAIVER_DAYS = 366


@dataclass(frozen=True, kw_only=True)
class Where:
    """The place of a mapping in its suite file; `str()` is `file:line`, `of(key)` a key's own.

    Line 0 means that there is no file: `file` then names what set the limit.
    """

    file: str
    line: int
    keys: Mapping[str, int] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.file}:{self.line}" if self.line else self.file

    def of(self, key: str) -> str:
        line = self.keys.get(key, self.line)
        return f"{self.file}:{line}" if line else self.file


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Which FP16 model: `reference`, or a transformers CLIP by hub id or local directory."""

    where: Where
    source: Literal["reference", "transformers"]
    id: str | None = None
    revision: str | None = None
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"
    attn_implementation: Literal["sdpa", "eager"] = "sdpa"


@dataclass(frozen=True, kw_only=True)
class DatasetSpec:
    """A named data set: a clip-benchmark name (`cifar100`, `wds/...`) and its local folder."""

    where: Where
    dataset: str
    root: str | None = None
    language: str = "en"


@dataclass(frozen=True, kw_only=True)
class CalibrationSpec:
    """Which pairs calibrate; `data` is `<data set>/<split>`.

    Both numbers are drawn by seed over the whole split, or with `first` its first ones are taken.
    """

    where: Where
    data: str
    samples: int
    batch_size: int
    held_out_samples: int = 128
    first: bool = False


@dataclass(frozen=True, kw_only=True)
class QuantizeSpec:
    """What is quantized: a recipe's name, ModelOpt id or YAML path, or an inline `quant_cfg`."""

    where: Where
    recipe: str | Mapping[str, Any] | tuple[Any, ...]
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Waiver:
    """Modules (patterns as in `exclude`) that may stay unquantized until a day, and why."""

    where: Where
    modules: tuple[str, ...]
    reason: str
    until: date

    def last_day(self, today: date) -> date:
        """Return the last day until which a waiver may hold, seen from `today`."""
        return today + timedelta(days=MAX_WAIVER_DAYS)

    def lasts_too_long(self, today: date) -> bool:
        return self.until > self.last_day(today)


@dataclass(frozen=True, kw_only=True)
class CoverageGate:
    """`attention` lists the slots that must be quantized in every block; empty: none needed.

    `attention=None` means: what the recipe by its own name promises.
    """

    where: Where
    attention: tuple[AttentionSlot, ...] | None = None
    towers: tuple[Literal["vision", "text"], ...] = ("vision", "text")
    waive: tuple[Waiver, ...] = ()


@dataclass(frozen=True, kw_only=True)
class CalibrationGate:
    """`max_clipped` is the largest share of held-out values that a quantizer may clip.

    `max_batch_change` is how far an embedding may move with the rest of its batch, as a share of
    its length; None: no quantizer may take its range from the batch.
    """

    where: Where
    max_clipped: Fraction = Fraction(1, 1000)
    max_batch_change: Fraction | None = None


@dataclass(frozen=True, kw_only=True)
class FidelityGate:
    """Limits on cosine (1) and SQNR (dB) of embeddings, mean and worst sample, per tower.

    `samples` and `first` as in an accuracy gate.
    """

    where: Where
    data: str | None = None
    samples: int = 512
    first: bool = False
    min_cosine: float | None = None
    min_worst_cosine: float | None = None
    min_sqnr_db: float | None = None
    min_worst_sqnr_db: float | None = None


@dataclass(frozen=True, kw_only=True)
class AccuracyGate:
    """Limits on one task and metric; `task` is `<data set>/classification` or `/retrieval`.

    `samples` (None: all) are drawn by seed over the whole, stratified by class; with `first` they
    are the first of the data. `min_classes` is how many classes must have a sample (None: all that
    a fair draw of so many would show).
    """

    where: Where
    task: str
    metric: str
    max_drop: Fraction
    confidence: Fraction = Fraction(95, 100)
    floor: Fraction | None = None
    max_flips: Fraction | None = None
    max_class_drop: Fraction | None = None
    samples: int | None = None
    first: bool = False
    min_classes: int | None = None
    stage: Stage = "torch"

    @property
    def key(self) -> str:
        """`<task>-<metric>`, the part of the node id in brackets and of the baseline's name.

        `-onnx` or `-engine` follows where that stage is judged, not the model in PyTorch.
        """
        stage = "" if self.stage == "torch" else f"-{self.stage}"
        return f"{self.task}-{self.metric}{stage}"


@dataclass(frozen=True, kw_only=True)
class RegressionGate:
    """Limits on drift: FP16 against stored FP16, quantized against accepted and first."""

    where: Where
    task: str
    metric: str
    max_fp16_drop: Fraction
    max_drop: Fraction
    max_drop_since_first: Fraction
    confidence: Fraction = Fraction(95, 100)
    samples: int | None = None
    first: bool = False
    min_classes: int | None = None

    @property
    def key(self) -> str:
        return f"{self.task}-{self.metric}"


@dataclass(frozen=True, kw_only=True)
class RoundtripGate:
    """Save, restore in a new process, compare bit for bit; no limits to set."""

    where: Where


@dataclass(frozen=True, kw_only=True)
class ExportGate:
    """What the ONNX files of both towers must hold.

    `allow` names what may be in the graph although the PyTorch model does not simulate it:
    `softmax` puts a pair behind Softmax in every attention block, which FP8 attention needs in
    TensorRT. `max_size_ratio` compares the files with FP16's, both towers together.
    """

    where: Where
    allow: tuple[Literal["softmax"], ...] = ()
    max_size_ratio: Fraction | None = None


@dataclass(frozen=True, kw_only=True)
class ParityGate:
    """The exported graph against the PyTorch model, on `samples` held-out pairs, in ONNX Runtime.

    `max_error` is the relative error up to which both count as the same; a model that moves
    further than that by itself is judged by how far it moves.
    """

    where: Where
    samples: int = 64
    max_error: Fraction = Fraction(1, 1000)
    max_sqnr_change_db: float = 1.0


@dataclass(frozen=True, kw_only=True)
class EngineGate:
    """What the engines of the towers must be, built ahead of time for a `target` (`sm89`).

    Ratios are against the engine of the FP16 model, each tower by itself, sizes in bytes.
    `attention` is `fused-fp8` (one FP8 kernel in every block) or `fused` (one kernel).
    """

    where: Where
    target: str
    library: Literal["tensorrt-rtx", "tensorrt"] = "tensorrt-rtx"
    towers: tuple[Literal["vision", "text"], ...] = ("vision", "text")
    batch: int = 1
    min_fp8_gemms: int | None = None
    attention: Literal["fused-fp8", "fused"] | None = None
    max_plan_ratio: Fraction | None = None
    max_weights_ratio: Fraction | None = None
    max_activation_ratio: Fraction | None = None
    max_plan_bytes: int | None = None
    max_weights_bytes: int | None = None
    max_activation_bytes: int | None = None

    @property
    def key(self) -> str:
        """`<target>`, and what is not the usual: one tower, a batch above 1, another library."""
        return _name_engine(self)


@dataclass(frozen=True, kw_only=True)
class MemoryGate:
    """How much room the engines of the towers take, each by itself, against FP16 and in bytes.

    The activation memory of an FP8 engine can be larger than FP16's: a limit on it is a real gate.
    """

    where: Where
    target: str
    library: Literal["tensorrt-rtx", "tensorrt"] = "tensorrt-rtx"
    towers: tuple[Literal["vision", "text"], ...] = ("vision", "text")
    batch: int = 1
    max_plan_ratio: Fraction | None = None
    max_weights_ratio: Fraction | None = None
    max_activation_ratio: Fraction | None = None
    max_plan_bytes: int | None = None
    max_weights_bytes: int | None = None
    max_activation_bytes: int | None = None

    @property
    def key(self) -> str:
        """As an engine gate's."""
        return _name_engine(self)


@dataclass(frozen=True, kw_only=True)
class TraceGate:
    """Every quantizer followed from the recipe into ONNX and, with a `target`, into the engine.

    `allow` are patterns of quantizers that may run wider in the engine, such as a convolution that
    a target has no FP8 kernel for.
    """

    where: Where
    target: str | None = None
    library: Literal["tensorrt-rtx", "tensorrt"] = "tensorrt-rtx"
    towers: tuple[Literal["vision", "text"], ...] = ("vision", "text")
    batch: int = 1
    allow: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """As an engine gate's; `onnx` without a target."""
        return _name_engine(self)


def _name_engine(gate: EngineGate | MemoryGate | TraceGate) -> str:
    towers = "" if len(set(gate.towers)) == 2 else f"-{gate.towers[0]}"
    batch = "" if gate.batch == 1 else f"-batch{gate.batch}"
    library = "" if gate.library == "tensorrt-rtx" else f"-{gate.library}"
    return f"{gate.target or 'onnx'}{towers}{batch}{library}"


@dataclass(frozen=True, kw_only=True)
class LatencyGate:
    """How fast one tower of the exported variant is against FP16, interleaved in one run.

    `max_ratio` is the largest median of quantized / FP16 time. `max_latency_ms` is the largest
    median of the quantized variant's time for one batch; it holds on the machine of the baseline
    alone. `min_ratio` is the smallest ratio that is believed; None: what 8-bit arithmetic can gain
    where it runs. `rounds` are timed rounds of each, `threads` those of a runtime on the CPU.
    """

    where: Where
    tower: Literal["vision", "text"]
    max_ratio: Fraction | None = None
    max_latency_ms: float | None = None
    min_ratio: Fraction | None = None
    batch: int = 1
    runtime: LatencyRuntime = "onnxruntime"
    threads: int = 1
    rounds: int = 30
    confidence: Fraction = Fraction(95, 100)

    @property
    def key(self) -> str:
        """`<runtime>-<tower>-batch<n>`."""
        return f"{self.runtime}-{self.tower}-batch{self.batch}"


@dataclass(frozen=True, kw_only=True)
class Gates:
    """The gates of a suite in the order they run; None or empty where the suite has none."""

    coverage: CoverageGate | None = None
    calibration: CalibrationGate | None = None
    fidelity: FidelityGate | None = None
    accuracy: tuple[AccuracyGate, ...] = ()
    regression: tuple[RegressionGate, ...] = ()
    roundtrip: RoundtripGate | None = None
    export: ExportGate | None = None
    parity: ParityGate | None = None
    engine: tuple[EngineGate, ...] = ()
    memory: tuple[MemoryGate, ...] = ()
    trace: tuple[TraceGate, ...] = ()
    latency: tuple[LatencyGate, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Suite:
    """One suite file, whole. `name` is its path below the root without `.quantgate.yaml`.

    `family` is how false alarms of its many limits are held down: by Holm's procedure, or not.
    `allow_unmeasured` are the kinds of its gates that may be missing in CI and in strict runs.
    """

    path: Path
    name: str
    version: int
    model: ModelSpec
    calibration: CalibrationSpec
    quantize: QuantizeSpec
    gates: Gates
    datasets: Mapping[str, DatasetSpec] = field(default_factory=dict)
    family: Literal["holm", "none"] = "holm"
    allow_unmeasured: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        """The file's own name, for where no other suite is meant."""
        return self.name.rpartition("/")[2]


def expand_path(text: str, *, where: str, environ: Mapping[str, str]) -> Path:
    """Return the path that a suite names, with `${NAME}` and `~` expanded.

    Raises as `expand_environment`, and SuiteError for what can be no path.
    """
    expanded = expand_environment(text, where=where, environ=environ)
    try:
        path = Path(expanded).expanduser()
        path.is_dir()  # a name that is too long, or holds a null byte, is no path of any file
    except (OSError, ValueError, RuntimeError) as error:  # RuntimeError: ~name of no user
        reason = " ".join(str(error).split())
        shown = expanded if len(expanded) <= 80 else f"{expanded[:77]}..."
        raise SuiteError(f"{where}: {shown!r} is no path: {reason[:200]}") from error
    return path


def expand_environment(text: str, *, where: str, environ: Mapping[str, str]) -> str:
    """Return `text` with every `${NAME}` replaced from `environ`.

    Raises NotMeasured, naming the variable, where one is unset or empty: without its weights or
    data a suite cannot be measured. Raises SuiteError for a `$` that starts no `${NAME}`.
    """

    def replace(match: re.Match[str]) -> str:
        name = match.group(1)
        value = environ.get(name, "")
        if not value:
            raise NotMeasured(
                f"{where}: environment variable {name} is not set: export {name}=PATH"
            )
        return value

    stray = re.search(r"\$(?!\{[A-Za-z_][A-Za-z0-9_]*\})", text)
    if stray:
        raise SuiteError(f"{where}: {text!r}: '$' must start ${{NAME}} (an environment variable)")
    return re.sub(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}", replace, text)
