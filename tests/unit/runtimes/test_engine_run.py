"""Running engines: the reasons for not running, and the binding and timing on a fake device.

What stands for the device here is a fake: none of this has run on a GPU.
"""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from types import SimpleNamespace, TracebackType
from typing import Any

import pytest

from pytest_quantgate.errors import NotMeasured
from pytest_quantgate.runtimes import engine_run
from pytest_quantgate.runtimes.engine_layers import EngineError
from pytest_quantgate.runtimes.engine_run import (
    EngineRun,
    explain_no_device,
    inspect_engine,
    is_stable,
    open_engine,
    read_free_bytes,
    run_in_batches,
)
from pytest_quantgate.runtimes.tensorrt_library import Library

torch = pytest.importorskip("torch")


class Mode(Enum):
    INPUT = 1
    OUTPUT = 2


class Type(Enum):
    HALF = 1
    FLOAT = 2
    FP4 = 3


class FakeContext:
    """Doubles its input into the output, by the addresses that it was given."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.missing: list[str] = []
        self.runs = 0
        self.works = True
        self.takes_addresses = True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes = {"x": shape, "y": shape}
        return len(shape) == 2

    def infer_shapes(self) -> list[str]:
        return self.missing

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self.addresses[name] = address
        return self.takes_addresses

    def execute_async_v3(self, stream: int) -> bool:
        assert stream == 77
        self.runs += 1
        self.engine.clock.ms += self.engine.run_ms
        return self.works


class FakeEngine:
    num_io_tensors = 2
    device_memory_size = 1234
    run_ms = 6.0

    def __init__(self, clock: Any) -> None:
        self.clock = clock
        self.context: FakeContext | None = FakeContext(self)
        self.output_type = Type.FLOAT
        self.batches = (1, 64)

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (self.batches[0] if len(set(self.batches)) == 1 else -1, 2)

    def get_tensor_profile_shape(self, name: str, profile: int) -> list[tuple[int, ...]]:
        assert (name, profile) == ("x", 0)
        return [(self.batches[0], 2), (self.batches[0], 2), (self.batches[1], 2)]

    def get_tensor_name(self, index: int) -> str:
        return "xy"[index]

    def get_tensor_mode(self, name: str) -> Mode:
        return Mode.INPUT if name == "x" else Mode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Type:
        return Type.HALF if name == "x" else self.output_type

    def create_execution_context(self) -> FakeContext | None:
        return self.context

    def create_engine_inspector(self) -> Any:
        return SimpleNamespace(get_engine_information=lambda form: f"Layers:\n{form}")


class FakeStream:
    cuda_stream = 77

    def synchronize(self) -> None:
        pass

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        pass


class Device:
    """A fake of torch.cuda and of the library, around one engine and one clock."""

    def __init__(self) -> None:
        self.clock = SimpleNamespace(ms=0.0)
        self.engine: FakeEngine | None = FakeEngine(self.clock)
        device = self

        class Event:
            def __init__(self, *, enable_timing: bool) -> None:
                assert enable_timing

            def record(self, _stream: FakeStream) -> None:
                self.ms = device.clock.ms

            def synchronize(self) -> None:
                pass

            def elapsed_time(self, end: Event) -> float:
                return float(end.ms - self.ms)

        class Runtime:
            def __init__(self, logger: Any) -> None:
                logger.log("Severity.INFO", "hello")
                logger.log("Severity.ERROR", "the library's reason")

            def deserialize_cuda_engine(self, _plan: bytes) -> FakeEngine | None:
                return device.engine

        self.cuda: Any = SimpleNamespace(
            Stream=FakeStream, Event=Event, stream=lambda stream: stream
        )
        self.module: Any = SimpleNamespace(
            ILogger=type("ILogger", (), {}),
            Runtime=Runtime,
            TensorIOMode=Mode,
            LayerInformationFormat=SimpleNamespace(ONELINE="oneline"),
        )

    @property
    def library(self) -> Library:
        return Library(module=self.module, name="tensorrt", version="10.16")

    def open(self) -> EngineRun:
        return EngineRun(
            library=self.library, plan=b"plan", device="cpu", cuda=self.cuda, errors=[]
        )

    @property
    def context(self) -> FakeContext:
        assert self.engine is not None
        assert self.engine.context is not None
        return self.engine.context


@pytest.fixture
def device() -> Device:
    return Device()


def test_sizes_are_told(device: Device) -> None:
    with device.open() as run:
        assert (run.input_names, run.output_names) == (("x",), ("y",))
        assert run.sizes.plan_bytes == 4
        assert run.sizes.weights_bytes is None
        assert run.sizes.device_memory_bytes == 1234


def test_tensors_are_allocated_once_for_a_shape(device: Device) -> None:
    with device.open() as run:
        outputs = run.run({"x": torch.ones(2, 3)})
        assert outputs["y"].shape == (2, 3)
        assert outputs["y"].dtype == torch.float32
        first = dict(device.context.addresses)
        run.run({"x": torch.zeros(2, 3)})
        assert device.context.addresses == first
        run.run({"x": torch.zeros(4, 3)})
        assert device.context.shapes["x"] == (4, 3)
        assert device.context.runs == 3


def test_inputs_are_cast_to_the_type_of_the_engine(device: Device) -> None:
    with device.open() as run:
        run.bind({"x": torch.full((1, 2), 0.5)})
        assert run._tensors["x"].dtype == torch.float16
        assert run._tensors["x"].tolist() == [[0.5, 0.5]]


def test_wrong_inputs_are_refused(device: Device) -> None:
    with device.open() as run:
        with pytest.raises(EngineError, match=r"takes the inputs \['x'\], not \['z'\]"):
            run.run({"z": torch.ones(1, 1)})
        with pytest.raises(EngineError, match=r"'x' of shape \(1,\): the library's reason"):
            run.run({"x": torch.ones(1)})
        device.context.missing = ["w"]
        with pytest.raises(EngineError, match=r"needs shapes for \['w'\]"):
            run.run({"x": torch.ones(1, 1)})


def test_a_type_that_torch_has_not_is_refused(device: Device) -> None:
    assert device.engine is not None
    device.engine.output_type = Type.FP4
    with device.open() as run, pytest.raises(EngineError, match="'y' is of type FP4"):
        run.run({"x": torch.ones(1, 1)})


def test_failures_of_the_library_are_errors(device: Device) -> None:
    with device.open() as run:
        device.context.takes_addresses = False
        with pytest.raises(EngineError, match="'x' was not accepted: the library's reason"):
            run.run({"x": torch.ones(1, 1)})
        device.context.takes_addresses = True
        device.context.works = False
        with pytest.raises(EngineError, match="did not run: the library's reason"):
            run.run({"x": torch.ones(1, 1)})
        run._errors.clear()
        with pytest.raises(EngineError, match="did not run: the library gave no reason"):
            run.run({"x": torch.ones(1, 1)})


def test_a_plan_that_cannot_be_loaded_is_an_error(device: Device) -> None:
    assert device.engine is not None
    device.engine.context = None
    with pytest.raises(EngineError, match="no execution context"):
        device.open()
    device.engine = None
    with pytest.raises(EngineError, match="the plan cannot be read on this GPU"):
        device.open()


def test_a_plan_for_another_gpu_is_not_measured(
    device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_run, "find_invalidity", lambda *_: "UNSUPPORTED_CC")
    with pytest.raises(NotMeasured, match="cannot run on this GPU: UNSUPPORTED_CC"):
        device.open()


def test_times_are_those_of_the_device_for_one_run(device: Device) -> None:
    with device.open() as run:
        run.bind({"x": torch.ones(1, 1)})
        assert run.time_batch_ms(runs=5) == pytest.approx(6.0)
        assert device.context.runs == 5


def test_a_task_of_any_size_runs_in_batches_of_one(device: Device) -> None:
    inputs = {"x": torch.arange(14.0).reshape(7, 2)}
    with device.open() as run:
        bound: list[list[float]] = []
        forward = run.run

        def note(inputs: dict[str, Any]) -> dict[str, Any]:
            bound.append(inputs["x"][:, 0].tolist())
            return {"y": forward(inputs)["y"].zero_() + inputs["x"]}

        run.run = note  # type: ignore[method-assign, assignment]
        found = run_in_batches(run, inputs, batch=3)
    assert bound == [[0.0, 2.0, 4.0], [6.0, 8.0, 10.0], [12.0, 12.0, 12.0]]
    assert found.equal(inputs["x"])
    assert found.dtype == torch.float32
    assert device.context.shapes["x"] == (3, 2)


@pytest.mark.parametrize(
    ("batches", "fitting"), [((1, 64), 16), ((8, 8), 8), ((1, 4), 4), ((32, 64), 32)]
)
def test_an_engine_says_which_batch_it_takes(
    device: Device, batches: tuple[int, int], fitting: int
) -> None:
    assert device.engine is not None
    device.engine.batches = batches
    with device.open() as run:
        assert run.fit_batch(16) == fitting


@pytest.mark.parametrize(
    ("outputs", "words"),
    [
        ({"y": torch.ones(2, 3), "z": torch.ones(2, 3)}, r"outputs \['y', 'z'\], not one"),
        ({"y": torch.ones(1, 3)}, r"'y' of the engine is \[1, 3\], not 2 rows"),
        ({"y": torch.ones(2)}, r"is \[2\], not 2 rows"),
    ],
)
def test_an_output_that_is_no_row_a_sample_is_refused(outputs: dict[str, Any], words: str) -> None:
    engine: Any = SimpleNamespace(output_names=tuple(outputs), run=lambda _inputs: outputs)
    with pytest.raises(EngineError, match=words):
        run_in_batches(engine, {"x": torch.ones(2, 3)}, batch=2)


def test_free_memory_is_read_when_the_device_is_done() -> None:
    log: list[str] = []
    cuda = SimpleNamespace(
        synchronize=lambda: log.append("wait"), mem_get_info=lambda index: (5 + index, 9)
    )
    assert read_free_bytes(cuda) == 5
    assert log == ["wait"]


@pytest.mark.parametrize(
    ("times", "stable"),
    [
        ([], False),
        ([1.0] * 9, False),
        ([1.0] * 10, True),
        ([1.0] * 5 + [1.03] * 5, False),
        ([1.0] * 5 + [1.01] * 5, True),
        ([9.0] * 5 + [1.0] * 10, True),
        ([1.0] * 8 + [50.0, 1.0], True),
    ],
)
def test_stability_is_that_of_two_medians(times: list[float], stable: bool) -> None:
    assert is_stable(times) is stable


def test_why_an_engine_cannot_run_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_run, "find_device_target", lambda: None)
    assert "torch sees none here" in str(explain_no_device(target="sm89"))
    monkeypatch.setattr(engine_run, "find_device_target", lambda: "sm90")
    assert "built for sm89, and the GPU here is sm90" in str(explain_no_device(target="sm89"))
    assert explain_no_device(target="sm90") is None


def test_opening_an_engine(device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_run, "find_device_target", lambda: None)
    path = tmp_path / "model.plan"
    with pytest.raises(NotMeasured, match="needs such a GPU"):
        open_engine(library=device.library, plan_path=path, target="sm89")
    monkeypatch.setattr(engine_run, "find_device_target", lambda: "sm89")
    with pytest.raises(EngineError, match=r"model\.plan: No such file.*build it again"):
        open_engine(library=device.library, plan_path=path, target="sm89")
    path.write_bytes(b"plan")
    monkeypatch.setattr(torch, "cuda", device.cuda)
    with open_engine(library=device.library, plan_path=path, target="sm89") as run:
        assert run.sizes.plan_bytes == 4
    shared: list[str] = []
    with open_engine(library=device.library, plan_path=path, target="sm89", errors=shared) as run:
        assert shared == ["the library's reason"], "engines that are open at once share errors"


def test_inspecting_needs_a_gpu(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_run, "find_device_target", lambda: None)
    assert inspect_engine(library=device.library, plan=b"plan") == ""
    monkeypatch.setattr(engine_run, "find_device_target", lambda: "sm89")
    assert inspect_engine(library=device.library, plan=b"plan") == "Layers:\noneline"
    device.engine = None
    assert inspect_engine(library=device.library, plan=b"plan") == ""


@pytest.mark.skipif(
    not torch.cuda.is_available(), reason="running an engine needs a GPU, and torch sees none here"
)
def test_an_engine_runs_on_the_gpu_in_the_machine(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")
    test_engine = pytest.importorskip("test_engine")
    from pytest_quantgate.runtimes.tensorrt_library import find_device_target, load_library

    library = load_library(name="tensorrt_rtx")
    target = find_device_target()
    assert target is not None
    try:
        test_engine.build(
            test_engine.make_linear(inputs=False, weights=False), tmp_path, library, target=target
        )
    except EngineError as error:
        pytest.skip(str(error))
    with open_engine(library=library, plan_path=tmp_path / "model.plan", target=target) as run:
        outputs = run.run({"x": torch.ones(8, 64)})
        assert all(torch.isfinite(value).all() for value in outputs.values())
        run.bind({"x": torch.ones(8, 64)})
        assert run.time_batch_ms(runs=5) > 0
