"""What needs a GPU, on a stand-in: the engines are really built, ONNX Runtime computes for them.

None of this has run on a device; what stands for it is in `Gpu`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from pytest_quantgate.errors import NotMeasured
from pytest_quantgate.evidence.verdict import Status
from pytest_quantgate.gates.latency import LatencyGate
from pytest_quantgate.suite.load import load_suite

if TYPE_CHECKING:
    from pytest_quantgate.run.case import Case
    from pytest_quantgate.runtimes.engine_layers import EngineReport

SUITE = """\
quantgate: 1
model: {{source: transformers, id: "{model}"}}
calibration: {{data: scenes/calibration, samples: 32, batch_size: 16, held_out_samples: 24}}
quantize: {{recipe: fp8-attention}}
gates:
  accuracy:
    - {{task: scenes/classification, metric: acc1, max_drop: 100pp, max_flips: 90%,
       samples: 70, stage: onnx}}
    - {{task: scenes/classification, metric: acc1, max_drop: 100pp, max_flips: 90%,
       samples: 70, stage: engine}}
    - {{task: scenes/retrieval, metric: image_retrieval_recall@5, max_drop: 100pp, max_flips: 90%,
       floor: 8%, samples: 70, stage: engine}}
  export: {{allow: [softmax]}}
  engine:
    - {{target: sm89, batch: 3, min_fp8_gemms: 1}}
    - {{target: sm120, towers: [text], min_fp8_gemms: 1}}
  latency:
    - {{runtime: tensorrt-rtx, tower: text, batch: [1, 4], max_ratio: 0.9x, rounds: 12}}
    - {{runtime: onnxruntime-cuda, tower: vision, batch: 2, max_ratio: 0.9x, rounds: 12}}
"""


@dataclass
class Gpu:
    """An sm89 whose engines compute what their ONNX files say, one batch size each, in no time."""

    case: Case
    target: str | None = "sm89"
    spoil: Callable[[Any], Any] = lambda outputs: outputs
    opened: list[Path] = field(default_factory=list)
    closed: list[Path] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    fixed_batch: int = 0
    given: dict[str, Any] = field(default_factory=dict)
    free_bytes: int = 10**9
    now_ms: float = 0.0

    @contextmanager
    def open_engine(
        self, *, library: Any, plan_path: Path, target: str, errors: list[str] | None = None
    ) -> Iterator[Any]:
        from pytest_quantgate.store.cache import read_json

        assert target == self.target
        digest = hashlib.sha256(plan_path.read_bytes()).hexdigest()
        report = self.given.get(digest) or read_json(plan_path.parent / "report.json")
        assert digest == report["plan_sha256"]
        self.opened.append(plan_path)
        self.free_bytes -= report["weights_bytes"]
        yield SimpleNamespace(
            output_names=("embeds",),
            run=lambda inputs: self.run(report, inputs),
            fit_batch=lambda wanted: self.fixed_batch or wanted,
            time_batch_ms=lambda *, runs: report["weights_bytes"] / 1e3,
            sizes=SimpleNamespace(device_memory_bytes=77),
        )
        self.closed.append(plan_path)

    def run(self, report: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Compute in ONNX Runtime, with the exported file of the engine's tower."""
        tower = next(
            tower
            for variant in ("fp16", "quantized")
            for tower in ("vision", "text")
            if self.digest_of(variant, tower) == report["onnx_sha256"]
        )
        session: Any = self.case.stages.session(tower)
        arrays = {name: value.numpy() for name, value in inputs.items()}
        self.batches.append(len(next(iter(arrays.values()))))
        found = session.embed(arrays)
        import torch

        return {"embeds": self.spoil(torch.from_numpy(found).half())}

    def digest_of(self, variant: Any, tower: Any) -> str:
        return self.case.stages.onnx_audit(variant=variant, tower=tower, precision="float16").digest  # type: ignore[no-any-return]


@pytest.fixture
def case(tiny_clip: Path, tmp_path: Path, make_case: Callable[..., Case]) -> Case:
    path = tmp_path / "tiny.quantgate.yaml"
    path.write_text(SUITE.format(model=tiny_clip), encoding="utf-8")
    return make_case(load_suite(path))


@pytest.fixture
def gpu(case: Case, monkeypatch: pytest.MonkeyPatch) -> Gpu:
    """Put a GPU into this machine, as far as this project asks for it."""
    pytest.importorskip("tensorrt_rtx")
    import torch

    from pytest_quantgate.run.stages import Stages
    from pytest_quantgate.runtimes import engine_run, tensorrt_library
    from pytest_quantgate.store.plans import KnownPlans

    gpu = Gpu(case=case)
    # Another test of this run may have built one, and not run it.
    monkeypatch.setattr(KnownPlans, "check", lambda *_: None)
    monkeypatch.setattr(Stages, "require_gpu", lambda *_: None)
    monkeypatch.setattr(tensorrt_library, "find_device_target", lambda: gpu.target)
    monkeypatch.setattr(engine_run, "open_engine", gpu.open_engine)
    monkeypatch.setattr(engine_run, "read_free_bytes", lambda _cuda: gpu.free_bytes)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "A GPU")
    stay_in_this_process(monkeypatch)
    return gpu


def stay_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Open runners here: another process would not know the stand-ins."""
    from pytest_quantgate.measure.runner import (
        Runner,
        open_runner,
        read_spec,
        write_spec,
    )
    from pytest_quantgate.run import timed_runs

    def start_here(spec: Any, *, folder: Path) -> Any:
        assert folder.is_dir()

        @contextmanager
        def start() -> Iterator[Callable[[], Runner]]:
            with ExitStack() as stack:
                told = json.loads(json.dumps(write_spec(spec)))
                yield lambda: stack.enter_context(open_runner(read_spec(told)))

        return start

    monkeypatch.setattr(timed_runs, "in_a_process", start_here)


# -- latency -------------------------------------------------------------------------------------


def test_engines_are_built_for_the_device_and_timed_by_themselves(case: Case, gpu: Gpu) -> None:
    judged = case.judge(kind="latency", key="tensorrt-rtx-text-batch4")

    run = case.latency_runs["latency[tensorrt-rtx-text-batch4]"]
    assert run.machine.device == "A GPU"
    assert [runner.samples for runner in run.runners] == [4, 4, 4]
    assert run.runtime_version == case.stages.find_engine_target("tensorrt-rtx")[0].version
    assert run.fp16_footprint.weights_bytes == run.fp16.median_ms * 1e3
    assert run.quantized_footprint.weights_bytes == run.quantized.median_ms * 1e3
    assert run.quantized_footprint.activation_bytes == 77
    assert run.quantized_footprint.device_bytes == run.quantized_footprint.weights_bytes
    assert run.quantized_footprint.file_bytes == gpu.opened[1].stat().st_size
    assert run.fp16_footprint.file_bytes == gpu.opened[0].stat().st_size
    assert (run.processes, run.planned, len(gpu.opened)) == (3, 5, 9)
    assert set(gpu.batches) == {4}
    assert sorted(gpu.closed) == sorted(gpu.opened)
    assert len(set(gpu.opened)) == 2
    assert judged.verdict.status is Status.PASS, "fewer weights are faster on this device"


def test_the_engine_of_a_batch_size_is_its_own(case: Case, gpu: Gpu) -> None:
    for batch in (1, 4):
        case.latency(case.suite.gates.get(LatencyGate, key=f"tensorrt-rtx-text-batch{batch}"))
    assert len(set(gpu.opened)) == 4


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (None, "runs engines on an NVIDIA GPU, and torch sees none here"),
        ("sm90", "the GPU here is sm90, and tensorrt_rtx .* builds for .*sm89"),
    ],
)
def test_a_device_that_cannot_run_engines_is_not_measured(
    case: Case, gpu: Gpu, target: str | None, reason: str
) -> None:
    gpu.target = target
    with pytest.raises(NotMeasured, match=reason):
        case.latency(case.suite.gates.get(LatencyGate, key="tensorrt-rtx-text-batch1"))
    with pytest.raises(NotMeasured, match=reason):
        case.outcomes(task="scenes/classification", metric="acc1", samples=70, stage="engine")
    assert gpu.opened == []


class Clock:
    """Stands for a stream and its events: what runs takes 3 ms on it."""

    def __init__(self) -> None:
        self.now_ms = 0.0
        self.streams: list[Any] = []

    def Stream(self) -> Any:
        self.streams.append(SimpleNamespace(cuda_stream=77 + len(self.streams)))
        return self.streams[-1]

    def Event(self, *, enable_timing: bool) -> Any:
        assert enable_timing
        event = SimpleNamespace(synchronize=lambda: None)

        def record(stream: Any) -> None:
            assert stream in self.streams
            event.at_ms = self.now_ms

        event.record = record
        event.elapsed_time = lambda end: end.at_ms - event.at_ms
        return event


def test_a_provider_on_the_gpu_runs_bound_tensors_on_a_stream_of_its_own(
    case: Case, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Really bound and really run, but on the CPU: the provider and the device are stand-ins."""
    import torch
    import torch.utils.cpp_extension  # looks at torch.cuda when it is first imported

    from pytest_quantgate.measure import runner
    from pytest_quantgate.run import timed_runs
    from pytest_quantgate.runtimes import onnxruntime_session

    clock = Clock()
    sessions: list[tuple[str, int]] = []
    init = onnxruntime_session.OnnxRuntimeModel.__init__
    bind = onnxruntime_session.OnnxRuntimeModel.bind
    filled: list[Any] = []

    def open_on_cpu(
        self: Any, path: Path, *, optimization: str, provider: str, stream: int
    ) -> None:
        sessions.append((provider, stream))
        init(self, path)

    def bind_and_note(self: Any, inputs: Any, *, device: str) -> Any:
        run, result = bind(self, inputs, device=device)
        filled.append(result)

        def take_time() -> None:
            clock.now_ms += 3.0 * len(filled)
            run()

        return take_time, result

    monkeypatch.setattr(onnxruntime_session, "require_provider", lambda _provider: "1.24")
    monkeypatch.setattr(onnxruntime_session.OnnxRuntimeModel, "__init__", open_on_cpu)
    monkeypatch.setattr(onnxruntime_session.OnnxRuntimeModel, "bind", bind_and_note)
    for module in (runner, timed_runs):
        monkeypatch.setattr(module, "GPU", "cpu")
    monkeypatch.setattr(torch, "cuda", clock)

    gate = case.suite.gates.get(LatencyGate, key="onnxruntime-cuda-vision-batch2")
    run = case.latency(gate)

    assert sessions == [("cuda", 77 + number) for number in range(15)]
    assert run.fp16.times_ms[0] == pytest.approx(9.0), "all three were bound by then"
    assert [runner.samples for runner in run.runners] == [2, 2, 2]
    assert (run.runtime, run.runtime_version) == ("onnxruntime-cuda", "1.24")
    assert run.fp16_footprint.weights_bytes > run.quantized_footprint.weights_bytes  # type: ignore[operator]
    batch = timed_runs.make_batch(case.stages, size=2)
    monkeypatch.undo()
    for model, result in zip((case.fp16, case.quantized), filled[:2], strict=True):
        wanted = model.encode_image(batch.pixel_values)
        assert (result - wanted).norm() / wanted.norm() < 0.2


# -- tasks on the engine -------------------------------------------------------------------------


def test_a_task_runs_on_the_engine_in_full_batches(case: Case, gpu: Gpu) -> None:
    engine = case.judge(kind="accuracy", key="scenes/classification-acc1-engine")
    assert set(gpu.batches) == {64}
    assert sorted(gpu.closed) == sorted(gpu.opened)
    onnx = case.judge(kind="accuracy", key="scenes/classification-acc1-onnx")
    assert engine.verdict.passed
    assert onnx.verdict.passed
    both = [
        case.outcomes(task="scenes/classification", metric="acc1", samples=70, stage=stage)
        for stage in ("onnx", "engine")
    ]
    assert both[0][1].answers == both[1][1].answers
    assert both[1][1].variant.endswith("in an engine")


def test_retrieval_on_the_engine_embeds_texts_and_images_there(case: Case, gpu: Gpu) -> None:
    key = "scenes/retrieval-image_retrieval_recall@5-engine"
    assert case.judge(kind="accuracy", key=key).verdict.passed
    towers = {path.parent.name for path in gpu.opened}
    assert len(towers) == 2


def test_answers_are_those_of_the_engine(case: Case, gpu: Gpu) -> None:
    gpu.spoil = lambda outputs: outputs.flip(1)

    # A number of samples of its own: what is spoilt goes into the cache of all tests.
    onnx, engine = (
        case.outcomes(task="scenes/classification", metric="acc1", samples=71, stage=stage)[1]
        for stage in ("onnx", "engine")
    )

    # Images and class names are turned alike, so all answers stay; only what is normalised first
    # and then averaged differs, and that is turned too.
    assert engine.answers == onnx.answers
    gpu.spoil = lambda outputs: outputs * (1 if len(gpu.batches) % 2 else -1)
    other = case.outcomes(task="scenes/classification", metric="acc1", samples=72, stage="engine")
    assert other[1].answers[:70] != onnx.answers[:70]


def test_an_engine_that_was_handed_over_runs_where_it_is_trusted(
    case: Case,
    gpu: Gpu,
    tmp_path: Path,
    make_case: Callable[..., Case],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What runs is a copy of the file, in its own batches; what is not known here does not run."""
    from pytest_quantgate.store.plans import KnownPlans

    key = "scenes/classification-acc1-engine"
    gpu.fixed_batch = 5
    _, plans = case.stages._build_for_device()
    lines = ["artifacts:", "  engine:"]
    for tower, built in plans.items():
        report = json.loads((built.path.parent / "report.json").read_text())
        gpu.given[built.plan_sha256] = report
        (tmp_path / f"{tower}.plan").write_bytes(built.path.read_bytes())
        lines.append(f"    {tower}: {tmp_path}/{tower}.plan")
    path = tmp_path / "given.quantgate.yaml"
    # A number of samples of its own: what is measured goes into the cache of all tests.
    text = SUITE.format(model=case.suite.model.id).replace("samples: 70", "samples: 74")
    path.write_text(text.replace("gates:", "\n".join([*lines, "gates:"])))
    given = make_case(load_suite(path))

    verdict = given.judge(kind="accuracy", key=key).verdict

    assert verdict.passed, verdict
    assert set(gpu.batches) == {5}
    assert not {path.parent for path in gpu.opened} & {
        built.path.parent for built in plans.values()
    }
    said = " ".join(verdict.evidence)
    assert "the vision engine was given: vision.plan (sha256 " in said
    assert "TensorRT for RTX 1." in said
    opened = given.stages.opened["engine", "quantized", "text"]
    assert opened == {"text.plan": plans["text"].plan_sha256}

    def check(_self: KnownPlans, plan: Path) -> None:
        raise ValueError(f"{plan} is not known")

    monkeypatch.setattr(KnownPlans, "check", check)
    before = len(gpu.opened)
    verdict = make_case(load_suite(path)).judge(kind="accuracy", key=key).verdict
    assert verdict.status is Status.NOT_MEASURED
    assert "who trusts it says so with install -d -m 700 " in verdict.headline
    assert len(gpu.opened) == before


def test_outcomes_of_an_engine_do_not_outlive_the_device(case: Case, gpu: Gpu) -> None:
    # A number of samples of its own: what is measured goes into the cache of all tests.
    request: dict[str, Any] = {"task": "scenes/classification", "metric": "acc1", "samples": 73}
    case.outcomes(**request, stage="engine")
    gpu.target = None

    with pytest.raises(NotMeasured, match="torch sees none here"):
        case.outcomes(**request, stage="engine")


# -- the engine gate -----------------------------------------------------------------------------


def test_engines_of_the_devices_target_are_executed(case: Case, gpu: Gpu) -> None:
    verdict = case.judge(kind="engine", key="sm89-batch3").verdict

    assert verdict.passed
    lines = [line for line in verdict.evidence if "SQNR against FP16" in line]
    assert [line.split()[1] for line in lines] == ["vision", "vision", "text", "text"]
    assert "in PyTorch on 24 samples, within 1 dB apart" in lines[0]
    assert "in ONNX Runtime on 24 samples" in lines[1]
    assert set(gpu.batches) == {3}
    assert "not executed" not in "\n".join(verdict.evidence)


def test_engines_for_another_target_say_that_they_were_not(case: Case, gpu: Gpu) -> None:
    verdict = case.judge(kind="engine", key="sm120-text").verdict

    assert verdict.passed
    assert verdict.evidence[-1] == (
        "outputs were not executed here: the engines are for sm120, the GPU here is sm89"
    )
    assert gpu.opened == []


def test_without_a_gpu_the_evidence_says_so(case: Case) -> None:
    pytest.importorskip("tensorrt_rtx")
    verdict = case.judge(kind="engine", key="sm120-text").verdict

    assert verdict.passed
    assert verdict.evidence[-1] == (
        "outputs were not executed here: running tensorrt-rtx engines needs an NVIDIA GPU: this "
        "machine has none"
    )


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda outputs: outputs * float("nan"), "vision engine gives NaN or Inf on 24 of 24"),
        (lambda outputs: outputs * 1.5, "vision SQNR against FP16 is"),
    ],
)
def test_an_engine_that_computes_something_else_is_red(
    case: Case, gpu: Gpu, spoil: Callable[[Any], Any], words: str
) -> None:
    gpu.spoil = spoil

    verdict = case.judge(kind="engine", key="sm89-batch3").verdict

    assert verdict.status is Status.FAIL
    assert words in verdict.headline


def test_an_engine_by_another_version_of_the_library_is_incomparable(
    case: Case, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pytest_quantgate.run.stages import Stages

    build = Stages.engine

    def build_with_older(self: Stages, *, variant: Any, **more: Any) -> EngineReport:
        report = build(self, variant=variant, **more)
        return replace(report, library_version="1.0") if variant == "fp16" else report

    monkeypatch.setattr(Stages, "engine", build_with_older)

    verdict = case.judge(kind="engine", key="sm120-text").verdict

    assert verdict.status is Status.INCOMPARABLE
    assert "tensorrt_rtx 1.0 for sm120" in verdict.headline
