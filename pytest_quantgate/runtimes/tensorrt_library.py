"""One small interface over `tensorrt` 10, `tensorrt` 11 and `tensorrt_rtx`.

The three differ in a few names only, so each difference is asked for by `hasattr`, never by the
version. Nothing is imported before `load_library` is called.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from pytest_quantgate.errors import MissingPackage, NotMeasured
from pytest_quantgate.runtimes.engine_layers import EngineError

LibraryName = Literal["tensorrt_rtx", "tensorrt"]

#: The extra of this project that installs each library.
EXTRAS: dict[str, str] = {"tensorrt_rtx": "rtx", "tensorrt": "tensorrt"}

_TARGET = re.compile(r"sm_?(\d{2,3})")


@dataclass(frozen=True, kw_only=True)
class Library:
    """One of the three libraries: its Python module, the name it is imported by, its version."""

    module: Any
    name: LibraryName
    version: str

    @property
    def builds_for_targets(self) -> bool:
        """Whether it builds for a named compute capability, without that GPU being there."""
        return hasattr(self.module.IBuilderConfig, "set_compute_capability") and hasattr(
            self.module, "ComputeCapability"
        )

    @property
    def has_runtime_specialization(self) -> bool:
        """Whether kernels are specialized at run time, by a strategy that can be chosen."""
        return hasattr(self.module, "DynamicShapesKernelSpecializationStrategy")


def load_library(*, name: LibraryName) -> Library:
    """Import `tensorrt_rtx` or `tensorrt`.

    Raises MissingPackage, with the install line, where it is absent or its libraries do not load.
    """
    purpose = f"building engines with {name}"
    if name not in EXTRAS:
        raise EngineError(f"unknown engine library {name!r}: choose one of {', '.join(EXTRAS)}")
    try:
        module = importlib.import_module(name)
    except (ImportError, OSError) as error:  # OSError: the bindings are there, a library is not
        raise MissingPackage(name, extra=EXTRAS[name], purpose=purpose) from error
    if not hasattr(module, "Builder"):  # a namespace folder left over, or half an installation
        raise MissingPackage(name, extra=EXTRAS[name], purpose=purpose)
    return Library(module=module, name=name, version=str(getattr(module, "__version__", "unknown")))


def list_targets(library: Library) -> tuple[str, ...]:
    """Return the targets that `library` builds for by name (`sm75`, ...), in ascending order.

    Empty where it builds only for the GPU in the machine.
    """
    if not library.builds_for_targets:
        return ()
    members = library.module.ComputeCapability.__members__
    names = [name.lower() for name in members if _TARGET.fullmatch(name.lower())]
    return tuple(sorted(names, key=read_capability))


def read_capability(target: str) -> int:
    """Return the compute capability of a target as one number: 89 for `sm89`.

    Raises EngineError where the target is not written as `sm` and two or three digits.
    """
    match = _TARGET.fullmatch(target)
    if match is None:
        raise EngineError(
            f"unknown target {target!r}: write the compute capability as in 'sm89' or 'sm120'"
        )
    return int(match[1])


def normalize_target(library: Library, target: str) -> str:
    """Return `target` as `list_targets` writes it, if `library` can build for it.

    Raises EngineError for an unknown target (the message names the known ones), NotMeasured
    where the library builds only for the GPU in the machine and that is absent or another one.
    """
    known = list_targets(library)
    written = target.strip().lower()
    if known:
        match = _TARGET.fullmatch(written)
        name = f"sm{match[1]}" if match else written
        if name not in known:
            raise EngineError(
                f"unknown target {target!r}: {library.name} {library.version} builds for "
                f"{', '.join(known)}; set `target:` to one of these"
            )
        return name
    name = f"sm{read_capability(written)}"
    here = find_device_target()
    if here is None:
        raise NotMeasured(
            f"{library.name} {library.version} builds only for the GPU in the machine, and there "
            f"is none: run on a machine with one, or build for {name} without a GPU with "
            f"pip install 'pytest-quantgate[rtx]'"
        )
    if here != name:
        raise NotMeasured(
            f"{library.name} {library.version} builds only for the GPU in the machine, which is "
            f"{here}: it cannot build for {name}; set `target: {here}`, or run on that GPU"
        )
    return name


def find_device_target() -> str | None:
    """Return the target of the first GPU in the machine (`sm89`), or None if there is none."""
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    major, minor = torch.cuda.get_device_capability(0)
    return f"sm{major}{minor}"


def require_device_target(library: Library) -> str:
    """Return the target of the GPU in the machine, which `library` builds for.

    Raises NotMeasured where there is no GPU, or one that the library does not know.
    """
    here = find_device_target()
    if here is None:
        raise NotMeasured(f"{library.name} runs engines on an NVIDIA GPU, and torch sees none here")
    known = list_targets(library)
    if known and here not in known:
        raise NotMeasured(
            f"the GPU here is {here}, and {library.name} {library.version} builds for "
            f"{', '.join(known)}: use a GPU of these, or the other library"
        )
    return here


def make_logger(
    library: Library,
    *,
    take: Callable[[str, str], None],
    stop: Callable[[BaseException], None] = lambda _error: None,
) -> Any:
    """Return a logger that hands every message to `take(severity, text)`.

    The severity is `VERBOSE`, `INFO`, `WARNING`, `ERROR` or `INTERNAL_ERROR`. What is raised
    meanwhile (Ctrl-C too) goes to `stop`: nothing may pass through the library's C++ code.
    The caller keeps the logger for as long as a builder or a runtime that uses it.
    """

    trt = library.module

    class Logger(trt.ILogger):  # type: ignore[misc,name-defined]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            try:
                take(str(severity).rpartition(".")[2], message)
            except BaseException as error:  # noqa: BLE001
                stop(error)

    return Logger()


def create_network(library: Library, builder: Any) -> Any:
    """Return an empty, strongly typed network.

    `tensorrt` 10 must be told; in the others it is always so (and 11 may lack the flag).
    """
    flags = getattr(library.module, "NetworkDefinitionCreationFlag", None)
    strongly_typed = getattr(flags, "STRONGLY_TYPED", None)
    return builder.create_network(0 if strongly_typed is None else 1 << int(strongly_typed))


def set_target(library: Library, config: Any, target: str) -> str:
    """Set exactly one explicit target and return what went wrong, or nothing.

    Does nothing where the library builds for the GPU in the machine.
    """
    if library.builds_for_targets:
        config.num_compute_capabilities = 1
        capability = library.module.ComputeCapability.__members__[target.upper()]
        if not config.set_compute_capability(capability, 0):
            return f"{library.name} {library.version} did not accept the target {target}"
    return ""


def read_device_memory_bytes(engine: Any) -> int:
    """Return the device memory in bytes that one context of a deserialized engine needs."""
    if hasattr(engine, "device_memory_size_v2"):
        return int(engine.device_memory_size_v2)
    return int(engine.device_memory_size)


def read_weights_bytes(library: Library, engine: Any) -> int | None:
    """Return the size in bytes of a deserialized engine's weights, None where it is not told."""
    if not hasattr(engine, "get_engine_stat"):
        return None
    return int(engine.get_engine_stat(library.module.EngineStat.TOTAL_WEIGHTS_SIZE))


def find_invalidity(library: Library, runtime: Any, plan: Any) -> str | None:
    """Return why `plan` cannot run on the GPU in the machine, or None.

    Libraries that cannot tell before deserializing answer None.
    """
    if not hasattr(runtime, "get_engine_validity"):
        return None
    validity, diagnostics = runtime.get_engine_validity(plan)
    if validity != library.module.EngineValidity.INVALID:
        return None  # valid, or valid and not the fastest
    named = [
        name
        for name, flag in library.module.EngineInvalidityDiagnostics.__members__.items()
        if int(flag) & int(diagnostics)
    ]
    return ", ".join(named) or str(validity)


def create_context(library: Library, engine: Any) -> Any:
    """Return an execution context; kernels are specialized eagerly where that can be chosen.

    With EAGER the specialization happens in the first run, not behind the back of later ones.
    """
    if not library.has_runtime_specialization:
        return engine.create_execution_context()
    config = engine.create_runtime_config()
    strategy = library.module.DynamicShapesKernelSpecializationStrategy
    config.dynamic_shapes_kernel_specialization_strategy = strategy.EAGER
    return engine.create_execution_context(config)
