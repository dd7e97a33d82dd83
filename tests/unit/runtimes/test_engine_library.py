"""The adapter over the three libraries: fakes stand for `tensorrt` 10 and 11."""

from __future__ import annotations

import sys
from enum import IntEnum
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_quantgate.errors import MissingPackage, NotMeasured
from pytest_quantgate.runtimes import tensorrt_library
from pytest_quantgate.runtimes.engine_layers import EngineError
from pytest_quantgate.runtimes.tensorrt_library import (
    Library,
    create_context,
    create_network,
    find_device_target,
    find_invalidity,
    list_targets,
    load_library,
    make_logger,
    normalize_target,
    read_capability,
    read_device_memory_bytes,
    read_weights_bytes,
    require_device_target,
    set_target,
)


class Flag(IntEnum):
    STRONGLY_TYPED = 1


class Stat(IntEnum):
    TOTAL_WEIGHTS_SIZE = 0


class Validity(IntEnum):
    VALID = 0
    SUBOPTIMAL = 1
    INVALID = 2


class Diagnostics(IntEnum):
    VERSION_MISMATCH = 1
    UNSUPPORTED_CC = 2


class Capability(IntEnum):
    NONE = 0
    CURRENT = 1
    SM120 = 120
    SM89 = 89


class Strategy(IntEnum):
    LAZY = 0
    EAGER = 1


class Config:
    """IBuilderConfig of `tensorrt`: builds for the GPU that is there."""


class TargetConfig(Config):
    """IBuilderConfig of `tensorrt_rtx`."""

    accepts = True
    num_compute_capabilities = 0

    def set_compute_capability(self, capability: Capability, index: int) -> bool:
        self.capability = (capability, index)
        return self.accepts


def make_library(kind: str) -> Library:
    module: Any = SimpleNamespace(Builder=object, EngineStat=Stat, IBuilderConfig=Config)
    if kind != "tensorrt 11":
        module.NetworkDefinitionCreationFlag = Flag
    if kind == "tensorrt_rtx":
        module.IBuilderConfig = TargetConfig
        module.ComputeCapability = Capability
        module.EngineValidity = Validity
        module.EngineInvalidityDiagnostics = Diagnostics
        module.DynamicShapesKernelSpecializationStrategy = Strategy
    name: Any = kind.split()[0]
    return Library(module=module, name=name, version="10.16" if "10" in kind else "11.4")


ALL = ("tensorrt 10", "tensorrt 11", "tensorrt_rtx")


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt_rtx"])
def test_an_absent_library_gives_its_install_line(
    name: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    extra = "rtx" if name == "tensorrt_rtx" else "tensorrt"
    with pytest.raises(MissingPackage, match=rf"pip install 'pytest-quantgate\[{extra}\]'"):
        load_library(name=name)


def test_half_an_installation_counts_as_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace())
    with pytest.raises(MissingPackage):
        load_library(name="tensorrt")

    def fail(_name: str) -> Any:
        raise OSError("libnvinfer.so.10: cannot open shared object file")

    monkeypatch.setattr(tensorrt_library.importlib, "import_module", fail)  # type: ignore[attr-defined]
    with pytest.raises(MissingPackage):
        load_library(name="tensorrt")


def test_a_library_is_loaded_with_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace(Builder=object, __version__="11.4.0")
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    assert load_library(name="tensorrt") == Library(
        module=module, name="tensorrt", version="11.4.0"
    )


def test_an_unknown_library_is_refused() -> None:
    name: Any = "openvino"
    with pytest.raises(EngineError, match="choose one of tensorrt_rtx, tensorrt"):
        load_library(name=name)


def test_targets_are_listed_in_order_where_they_can_be_chosen() -> None:
    assert list_targets(make_library("tensorrt_rtx")) == ("sm89", "sm120")
    assert list_targets(make_library("tensorrt 10")) == ()
    assert list_targets(make_library("tensorrt 11")) == ()


@pytest.mark.parametrize("written", ["sm89", "SM89", " sm_89 "])
def test_a_known_target_is_normalized(written: str) -> None:
    assert normalize_target(make_library("tensorrt_rtx"), written) == "sm89"


@pytest.mark.parametrize("written", ["sm86", "89", "ada", "sm8", "", "sm89; rm"])
def test_an_unknown_target_names_the_known_ones(written: str) -> None:
    with pytest.raises(EngineError, match="builds for sm89, sm120"):
        normalize_target(make_library("tensorrt_rtx"), written)


def test_a_library_without_targets_needs_the_gpu_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    library = make_library("tensorrt 10")
    monkeypatch.setattr(tensorrt_library, "find_device_target", lambda: None)
    with pytest.raises(NotMeasured, match=r"there is none.*pytest-quantgate\[rtx\]"):
        normalize_target(library, "sm89")
    monkeypatch.setattr(tensorrt_library, "find_device_target", lambda: "sm90")
    with pytest.raises(NotMeasured, match="which is sm90: it cannot build for sm89"):
        normalize_target(library, "sm89")
    assert normalize_target(library, "SM90") == "sm90"
    with pytest.raises(EngineError, match="write the compute capability as in 'sm89'"):
        normalize_target(library, "hopper")


def test_the_gpu_in_the_machine_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = SimpleNamespace(is_available=lambda: True, get_device_capability=lambda _index: (12, 0))
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert find_device_target() == "sm120"
    cuda.is_available = lambda: False
    assert find_device_target() is None
    monkeypatch.setitem(sys.modules, "torch", None)
    assert find_device_target() is None


def test_capabilities_are_numbers() -> None:
    assert read_capability("sm89") < read_capability("sm120")


@pytest.mark.parametrize(("kind", "flags"), [("tensorrt 10", 2), ("tensorrt 11", 0)])
def test_networks_are_strongly_typed(kind: str, flags: int) -> None:
    builder = SimpleNamespace(create_network=lambda value: value)
    assert create_network(make_library(kind), builder) == flags


def test_exactly_one_target_is_set() -> None:
    config = TargetConfig()
    assert set_target(make_library("tensorrt_rtx"), config, "sm89") == ""
    assert config.num_compute_capabilities == 1
    assert config.capability == (Capability.SM89, 0)
    config.accepts = False
    assert "did not accept the target sm89" in set_target(
        make_library("tensorrt_rtx"), config, "sm89"
    )
    assert set_target(make_library("tensorrt 10"), Config(), "sm89") == ""


def test_memory_is_read_under_either_name() -> None:
    assert read_device_memory_bytes(SimpleNamespace(device_memory_size=5)) == 5
    both = SimpleNamespace(device_memory_size=5, device_memory_size_v2=6)
    assert read_device_memory_bytes(both) == 6
    library = make_library("tensorrt 10")
    assert read_weights_bytes(library, SimpleNamespace()) is None
    assert read_weights_bytes(library, SimpleNamespace(get_engine_stat=lambda _stat: 7)) == 7


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ((Validity.VALID, 0), None),
        ((Validity.SUBOPTIMAL, 0), None),
        ((Validity.INVALID, 3), "VERSION_MISMATCH, UNSUPPORTED_CC"),
        ((Validity.INVALID, 0), str(Validity.INVALID)),
    ],
)
def test_why_a_plan_cannot_run(answer: tuple[Validity, int], reason: str | None) -> None:
    runtime = SimpleNamespace(get_engine_validity=lambda _plan: answer)
    assert find_invalidity(make_library("tensorrt_rtx"), runtime, b"plan") == reason


def test_libraries_that_cannot_tell_before_say_nothing() -> None:
    assert find_invalidity(make_library("tensorrt 10"), SimpleNamespace(), b"plan") is None


@pytest.mark.parametrize("kind", ALL)
def test_contexts_specialize_eagerly_where_that_can_be_chosen(kind: str) -> None:
    config = SimpleNamespace()
    engine = SimpleNamespace(
        create_runtime_config=lambda: config, create_execution_context=lambda *given: given
    )
    given = create_context(make_library(kind), engine)
    if kind == "tensorrt_rtx":
        assert given == (config,)
        assert config.dynamic_shapes_kernel_specialization_strategy is Strategy.EAGER
    else:
        assert given == ()


def test_a_logger_hands_over_messages_and_lets_nothing_through() -> None:
    class Base:
        pass

    library = make_library("tensorrt 10")
    library.module.ILogger = Base
    taken: list[tuple[str, str]] = []
    make_logger(library, take=lambda *said: taken.append(said)).log("Severity.INFO", "hello")
    assert taken == [("INFO", "hello")]

    def interrupt(_severity: str, _text: str) -> None:
        raise KeyboardInterrupt

    stopped: list[BaseException] = []
    make_logger(library, take=interrupt, stop=stopped.append).log("Severity.INFO", "hello")
    assert isinstance(stopped[0], KeyboardInterrupt)
    make_logger(library, take=interrupt).log("Severity.INFO", "hello")


@pytest.mark.parametrize(
    ("owner", "names"),
    [
        ("Builder", "create_network create_builder_config create_optimization_profile "
                    "build_serialized_network error_recorder"),
        ("IBuilderConfig", "set_compute_capability num_compute_capabilities progress_monitor "
                           "profiling_verbosity add_optimization_profile"),
        ("OnnxParser", "parse num_errors get_error"),
        ("ParserError", "node_name node_operator desc"),
        ("Runtime", "deserialize_cuda_engine get_engine_validity"),
        ("ICudaEngine", "device_memory_size_v2 get_engine_stat create_runtime_config "
                        "create_execution_context num_io_tensors get_tensor_name get_tensor_mode "
                        "get_tensor_dtype create_engine_inspector"),
        ("IExecutionContext", "set_input_shape infer_shapes get_tensor_shape set_tensor_address "
                              "execute_async_v3"),
        ("IRuntimeConfig", "dynamic_shapes_kernel_specialization_strategy"),
        ("EngineInspector", "get_engine_information"),
        ("LayerInformationFormat", "ONELINE"),
        ("TensorIOMode", "INPUT OUTPUT"),
        ("EngineValidity", "VALID INVALID"),
    ],
)  # fmt: skip
def test_the_real_bindings_have_what_is_used(owner: str, names: str) -> None:
    trt = pytest.importorskip("tensorrt_rtx")
    assert [name for name in names.split() if not hasattr(getattr(trt, owner), name)] == []


def test_a_device_must_be_there_and_known_to_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    rtx, full = make_library("tensorrt_rtx"), make_library("tensorrt 10")
    monkeypatch.setattr(tensorrt_library, "find_device_target", lambda: None)
    with pytest.raises(NotMeasured, match="tensorrt_rtx runs engines on an NVIDIA GPU, and torch"):
        require_device_target(rtx)
    monkeypatch.setattr(tensorrt_library, "find_device_target", lambda: "sm90")
    with pytest.raises(NotMeasured, match=r"GPU here is sm90, and .* builds for sm89, sm120: use"):
        require_device_target(rtx)
    assert require_device_target(full) == "sm90"
    monkeypatch.setattr(tensorrt_library, "find_device_target", lambda: "sm89")
    assert require_device_target(rtx) == "sm89"
