"""What a report says, as plain frozen values. This is the JSON report: one field, one key.

`report/collect_evidence.py` fills it from a run, `report/html.py`, `markdown.py` and `json.py`
render it, and nothing in here needs torch or pytest. The JSON Schema of the file is made from
these classes (`quantgate schema report`), and their docstrings are its descriptions.

A field that is None or empty was not measured in that run. Floats may be `nan`, `inf` and
`-inf`, which stand in the JSON as those strings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from pytest_quantgate.evidence.audit import Slot, Tower
from pytest_quantgate.evidence.fidelity import Fidelity
from pytest_quantgate.evidence.parity import Parity, Roundtrip
from pytest_quantgate.evidence.verdict import Figure
from pytest_quantgate.report import FORMAT, VERSION

StatusName = Literal["PASS", "FAIL", "INCONCLUSIVE", "INCOMPARABLE", "NOT_MEASURED"]

#: Of a quantizer: `on` (enabled, ran, as meant); `excluded` (off by the suite's own word: an
#: exclude pattern or a waiver); `missing` (meant, but off, of another format, or never run);
#: `unexpected` (on, and nobody asked for it); `uncalibrated` (on, static, without a usable amax);
#: `off` (off, and nobody asked for it).
QuantizerState = Literal["on", "excluded", "missing", "unexpected", "uncalibrated", "off"]

VariantName = Literal["fp16", "quantized"]

#: The first stage that a quantizer did not reach, empty where it reached all that were measured.
LostAt = Literal["", "model", "forward", "onnx", "engine"]

#: What was judged: the model in PyTorch, its ONNX files, its engines.
StageName = Literal["torch", "onnx", "engine"]


@dataclass(frozen=True, kw_only=True)
class Conclusion:
    """The verdict in one sentence, of a run or of one suite; only PASS may ship."""

    status: StatusName
    sentence: str


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One of several tries at a gate or a test, and what it found."""

    status: StatusName
    headline: str


@dataclass(frozen=True, kw_only=True)
class GateResult:
    """One gate that ran: `name` is `<kind>` or `<kind>[<key>]`; the rest as in its verdict.

    `figures` are the raw numbers by name, units in the names. `attempts` are all tries where there
    were several; different answers are FAIL. `where` is the line of the suite that names the gate.
    `follows` is the gate that explains this one, empty where this one has a finding of its own.
    `answered_by` names the results that it is from, where several were joined.
    """

    name: str
    kind: str
    key: str
    status: StatusName
    headline: str
    brief: str
    evidence: tuple[str, ...]
    cause: str
    next_step: str
    figures: Mapping[str, Figure]
    code: str = ""
    attempts: tuple[Attempt, ...] = ()
    where: str = ""
    follows: str = ""
    answered_by: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class OwnTestResult:
    """A hand-written test, by its node id, that used an assertion or a fixture of the plugin.

    `status` is the verdict that it failed with where it was the plugin's, else PASS or FAIL. A test
    that was expected to fail (`xfail`) is FAIL.
    """

    test: str
    status: StatusName
    headline: str
    code: str = ""
    attempts: tuple[Attempt, ...] = ()


@dataclass(frozen=True, kw_only=True)
class ModelFacts:
    """The FP16 model: `digest` is the SHA-256 over its checkpoint files."""

    source: str
    description: str
    revision: str
    dtype: str
    attn_implementation: str
    digest: str


@dataclass(frozen=True, kw_only=True)
class RecipeFacts:
    """What was to be quantized. `lines` is the recipe as text for a line-by-line comparison: its
    name, the lines of its file, or one line an entry of an inline `quant_cfg`."""

    name: str
    lines: tuple[str, ...]
    exclude: tuple[str, ...]
    formats: tuple[str, ...]
    digest: str


@dataclass(frozen=True, kw_only=True)
class CalibrationFacts:
    """What calibrated the quantizers; `digest` covers data and settings.

    `tower_batches` went through each tower. `sources` counts the images by the
    folder in their ids, `contents_digest` is the SHA-256 of their sorted content hashes,
    `order_digest` of the same in the order of calibration; `held_out_overlap` counts those that
    are also held-out images.
    """

    data: str
    samples: int
    batch_size: int
    batches: int
    held_out_samples: int
    nonfinite: tuple[str, ...]
    digest: str
    tower_batches: Mapping[str, int] = field(default_factory=dict)
    sources: Mapping[str, int] = field(default_factory=dict)
    contents_digest: str = ""
    order_digest: str = ""
    held_out_overlap: int = 0


@dataclass(frozen=True, kw_only=True)
class QuantizerFacts:
    """One quantizer of the audited PyTorch model, in the model's own order.

    `module` owns it and `kind` is that module's (`linear`, `attention`, ...); `block` is the
    transformer block, None outside. `reason` says why the state is not `on`. `amax_min` and
    `amax_max` are equal per-tensor, None without an amax. `calls` are runs in one forward of each
    tower; `clipped` of `seen` held-out values lie above amax. `lost_at` is the first stage that it
    did not reach (`model`, `forward`, `onnx`, `engine`), empty where it reached every stage that
    was measured or was not meant to.
    """

    name: str
    module: str
    kind: str
    slot: Slot
    tower: Tower
    block: int | None
    state: QuantizerState
    reason: str
    enabled: bool
    format: str
    granularity: str
    dynamic: bool
    amax_min: float | None
    amax_max: float | None
    amax_count: int
    calls: int
    clipped: int
    seen: int
    lost_at: LostAt = ""
    lost_because: str = ""


@dataclass(frozen=True, kw_only=True)
class StageFacts:
    """How many quantizers of one kind came how far, from the recipe to the engines.

    `declared` are meant and not excluded; of these `model` are switched on, `forward` run, `onnx`
    are a Q/DQ pair at their place (None: not exported), and `engines` gives by target those whose
    kernel computes in their precision.
    """

    tower: str
    slot: str
    declared: int
    model: int
    forward: int
    onnx: int | None
    engines: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class AuditFacts:
    """What was found in the quantized PyTorch model.

    `excludes` gives the number of quantizers that each exclude pattern matched.
    """

    towers: tuple[Tower, ...]
    quantizers: tuple[QuantizerFacts, ...]
    excludes: Mapping[str, int]
    stages: tuple[StageFacts, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class ClassFacts:
    """One class of a classification task: counts of its samples, of graded ones sums of scores."""

    name: str
    samples: int
    fp16_right: int | float
    quantized_right: int | float
    right_to_wrong: int | float
    wrong_to_right: int | float


@dataclass(frozen=True, kw_only=True)
class Flip:
    """One sample that FP16 and the quantized variant judge differently.

    `right_to_wrong` is False for a wrong answer that became right. The answers are class names
    (of a retrieval query: what came first), the scores how right each is, where that is graded:
    then `right_to_wrong` says that the quantized one is less. `image` is a small data URI, empty
    where images were not asked for or cannot be read cheaply; `text` is the caption of a text
    query. The margins are by how much the right answer was above the best wrong one, in cosine
    similarity (below: negative), where the task says so.
    """

    id: str
    right_to_wrong: bool
    label: str
    fp16_answer: str
    quantized_answer: str
    image: str = ""
    text: str = ""
    fp16_score: float | None = None
    quantized_score: float | None = None
    fp16_margin: float | None = None
    quantized_margin: float | None = None


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """An answer that took the place of another: in how many `samples`, of them `lost` and `won`."""

    fp16_answer: str
    quantized_answer: str
    samples: int
    lost: int
    won: int


@dataclass(frozen=True, kw_only=True)
class OutcomeFacts:
    """Per-sample results of one variant on a task.

    `correct_bits` holds one bit a sample in the order of the sorted ids, first sample in the
    highest bit of the first byte, in base64, as in a baseline; where samples are graded, behind
    `float32:` a big-endian 32-bit float each (`evidence.outcomes.unpack_scores`). `right` is their
    sum. `answers_digest` is the SHA-256 of the answers in that order, one decimal number a line.
    """

    variant: str
    value: float
    right: int | float
    correct_bits: str
    answers_digest: str
    nonfinite: int


@dataclass(frozen=True, kw_only=True)
class TaskFacts:
    """One task and metric at one stage: what both variants answered, sample by sample.

    `gates` names the gates of the suite that were judged on it. `ids_digest` is the SHA-256 of the
    sorted sample ids, one a line; two tasks of two reports are paired sample by sample where
    `ids_digest` and `data_digest` are the same. `answers_changed` counts all samples with another
    answer, `right_to_wrong` and `wrong_to_right` among them (of a retrieval those two alone);
    `flips` are some of those two, losses first, of graded samples those that changed most.
    `confusions` are the answers that changed most often, of a task with classes. `classes` are
    those with samples, in the data set's order, empty for retrieval, `slices` the samples of each
    value of each column of the data; `data_parts` gives the SHA-256 of what `data_digest` covers
    part by part (`images`, `labels`, `templates`, ...).
    """

    task: str
    metric: str
    stage: StageName
    gates: tuple[str, ...]
    samples: int
    ids_digest: str
    data_digest: str
    fp16: OutcomeFacts
    quantized: OutcomeFacts
    right_to_wrong: int
    wrong_to_right: int
    answers_changed: int
    classes: tuple[ClassFacts, ...]
    flips: tuple[Flip, ...]
    data_parts: Mapping[str, str] = field(default_factory=dict)
    slices: tuple[ClassFacts, ...] = ()
    confusions: tuple[Confusion, ...] = ()


@dataclass(frozen=True, kw_only=True)
class OnnxFacts:
    """One exported tower, read back from its file.

    `pairs` counts complete Q/DQ pairs, `lost` names declared quantizers without one at their place,
    `weights_bytes` are the bytes of initializers by type.
    """

    variant: VariantName
    tower: str
    precision: str
    opset: int
    file_bytes: int
    digest: str
    pairs: int
    lost: tuple[str, ...]
    undeclared: int
    weights_bytes: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class EngineFacts:
    """One built engine. `precisions` counts the linear and conv nodes of the graph by the precision
    they run in (`merged`: in no kernel of their own); `layers` gives it per node's module."""

    variant: VariantName
    tower: str
    target: str
    batch: int
    library: str
    library_version: str
    plan_digest: str
    onnx_digest: str
    plan_bytes: int
    weights_bytes: int
    activation_bytes: int
    gemm_nodes: int
    fp8_gemm_nodes: int
    attentions: int
    attentions_fused_fp8: int
    precisions: Mapping[str, int]
    layers: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class LatencyFacts:
    """One interleaved timing; round i is at place i of all three lists, in ms.

    `fp16_again` is FP16 a second time: the machine's own noise. `cold` names the variants whose
    times had not settled when they were taken. `processes` and `pause_rounds` are as in
    `LatencyRun`. `timing` is the percentile of a load gate's requests; empty: of one batch.
    """

    gate: str
    runtime: str
    tower: str
    batch: int
    system: str
    processor: str
    cores: int
    threads: int
    device: str
    fp16_ms: tuple[float, ...]
    quantized_ms: tuple[float, ...]
    fp16_again_ms: tuple[float, ...]
    cold: tuple[str, ...] = ()
    processes: int = 1
    pause_rounds: float = 0.0
    timing: str = ""


@dataclass(frozen=True, kw_only=True)
class HistoryPoint:
    """A figure in one run: when (UTC, ISO 8601), at which revision (empty: unknown)."""

    time: str
    commit: str
    value: float


@dataclass(frozen=True, kw_only=True)
class HistoryFacts:
    """A figure of a gate over runs, the oldest first; `drift` says how it drifts, or is empty.

    `unit` is `%` (of a share), `pp`, `dB`, `bytes`, `x` (against FP16) or empty.
    """

    gate: str
    figure: str
    unit: str
    points: tuple[HistoryPoint, ...]
    drift: str = ""


@dataclass(frozen=True, kw_only=True)
class JudgedFile:
    """A file that verdicts rest on: which artifact it is a part of, its name there, its SHA-256.

    The artifacts are `suite`, `model` (FP16), `checkpoint` (quantized), `baselines`, and of each
    tower `onnx-...` and `engine-...`, as far as they were judged. `built` says that the run made
    it: another run makes another one of the same inputs.
    """

    artifact: str
    name: str
    sha256: str
    built: bool = False


@dataclass(frozen=True, kw_only=True)
class SuiteReport:
    """One suite in this run.

    `suite` is what it is called by its path below the root, `digest` the SHA-256 of its file,
    `all_gates` are the gates that it has in their order, `allow_unmeasured` the kinds that it lets
    be missing. `files` are those that its verdicts rest on. An `advisory` suite decides nothing.
    `not_run` names its gates without a verdict, `not_run_because` says why: `deselected`, `not
    reached`, or the reason of a mark. `allowed_unmeasured` are the gates that were not measured, or
    did not run, and that may be missing by the word of the suite or of an option.
    `fidelity.worst_layers` are (module, dB) of the noise that each layer adds, worst first.
    `notes` are what a reader must know of all its numbers.
    """

    name: str
    file: str
    conclusion: Conclusion
    gates: tuple[GateResult, ...]
    not_run: tuple[str, ...]
    notes: tuple[str, ...]
    device: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    model: ModelFacts | None = None
    recipe: RecipeFacts | None = None
    calibration: CalibrationFacts | None = None
    audit: AuditFacts | None = None
    fidelity: Fidelity | None = None
    tasks: tuple[TaskFacts, ...] = ()
    roundtrip: Roundtrip | None = None
    onnx: tuple[OnnxFacts, ...] = ()
    parity: Parity | None = None
    engines: tuple[EngineFacts, ...] = ()
    latency: tuple[LatencyFacts, ...] = ()
    history: tuple[HistoryFacts, ...] = ()
    not_run_because: Mapping[str, str] = field(default_factory=dict)
    allowed_unmeasured: tuple[str, ...] = ()
    suite: str = ""
    digest: str = ""
    all_gates: tuple[str, ...] = ()
    allow_unmeasured: tuple[str, ...] = ()
    files: tuple[JudgedFile, ...] = ()
    advisory: bool = False


@dataclass(frozen=True, kw_only=True)
class Environment:
    """Where the run took place. `commit` is the revision under test, empty where unknown; `gpus`
    are the names of the GPUs there."""

    python: str
    system: str
    processor: str
    cores: int
    packages: Mapping[str, str]
    commit: str
    gpus: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class JoinedResult:
    """One of the results that a report was joined from: a JSON report, by its name and SHA-256.

    `answered` gives by suite the gates that have an answer in it, `devices` what they ran on.
    """

    name: str
    sha256: str
    created: str
    conclusion: Conclusion
    environment: Environment
    devices: Mapping[str, str]
    answered: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True, kw_only=True)
class Report:
    """One run of pytest-quantgate, or what several runs conclude to.

    `created` is UTC, ISO 8601. `errors` are of no gate (a suite that cannot be read, a crash of
    pytest): with any, nothing may ship. `own_tests` are the project's own that count, `stopped` is
    why the run ended early, empty where it did not; `orphans_count` whether the orphans are part of
    the verdict, as in a strict run. `results` are those that were joined, where some were,
    `incomparable` what they do not have in common, `unanswered` what stands in none of them.
    `seal` is the SHA-256 of all other fields in canonical JSON (sorted keys, no spaces): a file
    with another one was edited.
    """

    format: str = FORMAT
    version: int = VERSION
    product_version: str
    created: str
    conclusion: Conclusion
    suites: tuple[SuiteReport, ...]
    environment: Environment
    errors: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    written: tuple[str, ...] = ()
    obtained: tuple[str, ...] = ()
    orphans: tuple[str, ...] = ()
    own_tests: tuple[OwnTestResult, ...] = ()
    stopped: str = ""
    orphans_count: bool = False
    results: tuple[JoinedResult, ...] = ()
    incomparable: tuple[str, ...] = ()
    unanswered: tuple[str, ...] = ()
    seal: str = ""
