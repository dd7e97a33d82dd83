"""What a measurement runs in: packages, Python, processor, GPU, environment, and our own code.

A version can lie: a patched wheel, an edited file, another folder earlier on the path. So a
package counts by the contents of its files, without being imported. An installer leaves the SHA-256
of every file in the distribution's RECORD; that is taken for a file of the recorded size that is no
newer than RECORD itself, and every other file is read. Both ways give the same digest, on every
machine that has the same files.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import itertools
import operator
import os
import platform
import re
import subprocess
import sys
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pytest_quantgate import __version__
from pytest_quantgate.own_process import run_program
from pytest_quantgate.untrusted import hash_file

#: Environment variables that change what libraries compute, by how their names begin.
VARIABLES = (
    *("ATEN_", "CUBLAS", "CUDA_", "CUDNN_", "DIFFUSERS_ATTN", "DNNL_", "GOMP_", "KMP_"),
    *("LD_LIBRARY_PATH", "LD_PRELOAD", "MKL_", "MODELOPT_", "NPY_", "NVIDIA_TF32_OVERRIDE"),
    *("NVPL_", "OMP_", "ONEDNN_", "OPENBLAS_", "ORT_", "PYTORCH_", "TENSORRT_", "TORCH"),
    *("TRITON_", "TRT_", "USE_HUB_KERNELS", "XLA_"),
)

#: Those that change no number: libraries set some by themselves when they are imported, and a key
#: must be the same before and after that; others say how a thread waits.
INERT_VARIABLES = frozenset(
    (
        *("GOMP_SPINCOUNT", "KMP_DUPLICATE_LIB_OK", "KMP_INIT_AT_FORK", "OMP_WAIT_POLICY"),
        "TORCHINDUCTOR_CACHE_DIR",
    )
)

#: The number of threads, by the variables that set it; the first that is set counts.
THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")

#: PyTorch's switches that change a number, by where they are read, and how it starts.
SWITCHES: Mapping[str, object] = {
    "get_float32_matmul_precision()": "highest",
    "get_default_dtype()": "torch.float32",
    "are_deterministic_algorithms_enabled()": False,
    "backends.cudnn.allow_tf32": True,
    "backends.cudnn.benchmark": False,
    "backends.cudnn.deterministic": False,
    "backends.mkldnn.enabled": True,
}

#: Folders of a package that hold nothing a program runs.
INERT = frozenset(("__pycache__", "include", "test", "tests"))

#: Files of this package that come after a measurement: they judge, tell, compare or command. All
#: others are part of every key; `tests/unit/store` holds the two apart.
JUDGING = (
    *("__main__.py", "artifacts/recognise.py", "assertions.py", "commands/", "comparison/"),
    *("evidence/sweep.py", "evidence/verdict.py", "gates/", "inspection/", "plugin/", "release/"),
    *("report/", "run/case.py", "run/conclusion.py", "run/consequences.py", "run/handover.py"),
    *("run/judging.py", "run/progress.py", "run/serving.py", "run/sweep.py", "selftest/"),
    *("statistics/", "store/acceptance.py", "store/baseline_mode.py", "store/baselines.py"),
    *("store/history.py", "store/looks.py", "store/migration.py", "store/owners.py"),
    *("store/records.py", "store/settings.py", "suite/schema.py", "text/"),
)

#: Which of this package's files a measurement runs through: those that measure, or all.
Code = Literal["measuring", "whole"]


@dataclass(frozen=True, kw_only=True)
class Package:
    """An importable package as it would be loaded now.

    `distribution` is what installed it (`onnxruntime-gpu` brings `onnxruntime`), or the package's
    own name where nothing did. `version` is the distribution's, else what the package's
    `__init__.py` says, else `unknown`. `digest` is the SHA-256 over the contents of its files.
    """

    name: str
    distribution: str
    version: str
    digest: str


class Surroundings:
    """What the measurements of one run run in; each part is looked at once, when it is needed."""

    def __init__(self, *, environ: Mapping[str, str] = os.environ) -> None:
        self.environ = environ
        self._packages: dict[str, Package | None] = {}
        self._distributions: dict[Path, tuple[_Distribution, ...]] = {}
        self._code: dict[Code, str] = {}

    def describe(self, *, packages: Iterable[str], device: str, code: Code) -> dict[str, Any]:
        """Return all that a measurement depends on besides its own inputs, as plain data."""
        found = {name: self.package(name) for name in packages}
        return {
            "packages": {name: package and package.digest for name, package in found.items()},
            "code": self.code(code),
            "version": __version__,
            "python": self.python,
            "processor": self.processor,
            "threads": self.threads,
            "environment": self.variables,
            "switches": self.switches,
            "device": device,
            "gpus": self.gpus if device == "cuda" else (),
        }

    def package(self, name: str) -> Package | None:
        """Return a package as it would be imported, or None where it is not there."""
        if name not in self._packages:
            self._packages[name] = self._read_package(name)
        return self._packages[name]

    def versions(self, packages: Iterable[str]) -> dict[str, str]:
        """Return the version of each of these packages that is there, by its distribution."""
        found = (self.package(name) for name in packages)
        return {package.distribution: package.version for package in found if package}

    def code(self, kind: Code) -> str:
        """Return the SHA-256 of this package's files: those that measure, or all."""
        if kind not in self._code:
            self._code[kind] = digest_code(Path(__file__).parents[1], kind=kind)
        return self._code[kind]

    @cached_property
    def python(self) -> tuple[str, ...]:
        """The interpreter, and the C library under it."""
        return (
            platform.python_implementation(),
            platform.python_version(),
            *platform.libc_ver(),
        )

    @cached_property
    def processor(self) -> tuple[str, ...]:
        """What kernels are chosen by: the kind of machine, the CPU's model and instructions."""
        try:
            first = Path("/proc/cpuinfo").read_text("utf-8", "replace").partition("\n\n")[0]
        except OSError:
            return platform.machine(), platform.processor()
        named = r"vendor_id|cpu family|model|flags|Features|CPU (?:implementer|variant|part)"
        return (platform.machine(), *re.findall(rf"^(?:{named})\s*:.*$", first, re.MULTILINE))

    @cached_property
    def threads(self) -> int:
        """How many threads share a sum: its last digits can depend on it."""
        for name in THREADS:
            first = self.environ.get(name, "").partition(",")[0].strip()
            if first.isdecimal():
                return int(first)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        return cores or 1

    @property
    def variables(self) -> dict[str, str]:
        """The environment variables that can change a number."""
        return {
            name: value
            for name, value in sorted(self.environ.items())
            if name.startswith(VARIABLES) and name not in {*THREADS, *INERT_VARIABLES}
        }

    @property
    def switches(self) -> dict[str, object]:
        """PyTorch's switches that are not as it starts: somebody's conftest turned them.

        A process that has not imported it has turned none.
        """
        torch = sys.modules.get("torch")
        if torch is None:
            return {}
        found: dict[str, object] = {}
        for name, start in SWITCHES.items():
            value = operator.attrgetter(name.removesuffix("()"))(torch)
            value = value() if name.endswith("()") else value
            value = value if isinstance(value, bool) else str(value)
            if value != start:
                found[name] = value
        return found

    @cached_property
    def gpus(self) -> tuple[str, ...]:
        """The GPUs here, their parts, their driver, and the installed libraries of CUDA."""
        libraries = (p.name for site in sys.path for p in Path(site).glob("nvidia_*.dist-info"))
        return (*_list_gpus(), *sorted(libraries))

    def _read_package(self, name: str) -> Package | None:
        try:
            spec = importlib.util.find_spec(name)
        except ModuleNotFoundError:  # its parent is not there
            return None
        except ValueError:  # put into sys.modules by hand
            return _unlike_any(name)
        if spec is None:
            return None
        roots = [Path(root) for root in spec.submodule_search_locations or (spec.origin or "",)]
        contents = hashlib.sha256()
        owners = []
        for root in roots:
            site = root.parents[name.count(".")]
            if not root.exists():  # in a zip file on the path
                archive = next((path for path in root.parents if path.is_file()), None)
                if archive is None:
                    return _unlike_any(name)
                root, site = archive, archive.parent
            owner = self._find_owner(site, inside=root.relative_to(site).as_posix())
            owners += [owner] if owner else []
            for path, digest in sorted(_digest_files(root, site=site, owner=owner)):
                contents.update(f"{path}\0{digest}\n".encode("utf-8", "surrogateescape"))
        distribution, version = owners[0].label if owners else (name, _read_version(roots[0]))
        return Package(
            name=name, distribution=distribution, version=version, digest=contents.hexdigest()
        )

    def _find_owner(self, site: Path, *, inside: str) -> _Distribution | None:
        """Return the distribution that a package is of; of several the one installed last."""
        if site not in self._distributions:
            self._distributions[site] = tuple(_read_distributions(site))
        found = [d for d in self._distributions[site] if inside in d.packages]
        return max(found, key=lambda owner: owner.installed_ns, default=None)


def _unlike_any(name: str) -> Package:
    """Return a package of which no file tells what it is: never the same as another one."""
    return Package(name=name, distribution=name, version="unknown", digest=uuid.uuid4().hex)


@dataclass(frozen=True, kw_only=True)
class _Distribution:
    """A `*.dist-info` folder: its RECORD, when that was written, and the packages named in it."""

    folder: Path
    record: str
    installed_ns: int

    @cached_property
    def packages(self) -> frozenset[str]:
        """The folders with an `__init__.py`, below the folder that all is installed in."""
        ends = (found.start() for found in re.finditer(r"/__init__\.py,", self.record))
        return frozenset(self.record[self.record.rfind("\n", 0, end) + 1 : end] for end in ends)

    @cached_property
    def label(self) -> tuple[str, str]:
        """Its name, as PyPI normalises it, and version, from the head of METADATA: the parser of
        the standard library would read all of it."""
        head: dict[str, str] = {}
        with (
            suppress(OSError),
            (self.folder / "METADATA").open(encoding="utf-8", errors="replace") as stream,
        ):
            head = dict(line.rstrip().partition(": ")[::2] for line in itertools.islice(stream, 50))
        name = re.sub(r"[-_.]+", "-", head.get("Name", self.folder.stem)).lower()
        return name, head.get("Version", "unknown")

    def rows(self) -> Iterator[tuple[str, str, int]]:
        """Yield (path, SHA-256 as RECORD writes it, size) of each installed file that has both."""
        for line in self.record.split("\n"):
            path, *rest = line.rsplit(",", 2)
            if len(rest) == 2 and rest[0].startswith("sha256=") and rest[1].isdecimal():
                if path.startswith('"'):  # it holds a comma or a quote
                    path = path[1:-1].replace('""', '"')
                yield path, rest[0], int(rest[1])


def _read_distributions(site: Path) -> Iterator[_Distribution]:
    for path in sorted(site.glob("*.dist-info/RECORD")):
        try:
            yield _Distribution(
                folder=path.parent,
                record=path.read_text("utf-8", "surrogateescape"),
                installed_ns=path.stat().st_mtime_ns,
            )
        except OSError:
            continue  # being installed or removed: its files are read instead


def _digest_files(
    root: Path, *, site: Path, owner: _Distribution | None
) -> Iterator[tuple[str, str]]:
    """Yield the path below `site` and the SHA-256 of every file of a module, and of what else its
    distribution installed there, such as the libraries beside it."""
    rows = {path: (digest, size) for path, digest, size in owner.rows()} if owner else {}
    files = _list_files(root, site=site)
    inside = f"{root.relative_to(site).as_posix()}/"
    for path in rows.keys() - files.keys():
        if not path.startswith((inside, "..")) and ".dist-info/" not in path:
            try:
                files[path] = os.stat(f"{site}/{path}")  # noqa: PTH116 (thousands: a Path each would cost more)
            except OSError:
                yield path, "missing"
    for path, found in files.items():
        digest, size = rows.get(path, ("", -1))
        unchanged = found.st_size == size and owner and found.st_mtime_ns <= owner.installed_ns
        yield path, digest if unchanged else _digest_file(site / path)


def _list_files(root: Path, *, site: Path) -> dict[str, os.stat_result]:
    """Return every file of a module that a program could read, by its path below `site`."""
    if not root.is_dir():
        return {root.relative_to(site).as_posix(): root.stat()}
    found = {}
    folders = [root.relative_to(site).as_posix()]
    while folders:
        folder = folders.pop()
        # What cannot be read cannot be imported either.
        with suppress(PermissionError), os.scandir(site / folder) as entries:
            for entry in entries:
                path = f"{folder}/{entry.name}"
                if entry.is_dir(follow_symlinks=False):
                    folders += [path] if entry.name not in INERT else []
                elif entry.is_file():
                    found[path] = entry.stat()
    return found


def _digest_file(path: Path) -> str:
    """Return the SHA-256 of a file, written as in RECORD."""
    try:
        digest = bytes.fromhex(hash_file(path))
    except OSError as error:
        return f"unreadable: {error.errno}"
    return f"sha256={base64.urlsafe_b64encode(digest).decode().rstrip('=')}"


def _read_version(root: Path) -> str:
    """Return the `__version__` that a package without a distribution says of itself."""
    try:
        text = (root / "__init__.py" if root.is_dir() else root).read_text("utf-8", "replace")
    except OSError:
        return "unknown"
    found = re.search(r"""^__version__\s*(?::\s*\w+\s*)?=\s*["']([^"']+)["']""", text, re.MULTILINE)
    return found[1] if found else "unknown"


def _list_gpus() -> Iterator[str]:
    """Yield what the driver says of itself, its GPUs and the parts that they are cut into."""
    for arguments in (["--query-gpu=name,compute_cap,driver_version", "--format=csv"], ["-L"]):
        try:
            answer = run_program(
                ["nvidia-smi", *arguments], capture_output=True, text=True, timeout=20, check=True
            )
        except (OSError, subprocess.SubprocessError):
            yield from _ask_torch()
            return
        # A UUID tells one GPU from another of its kind, which computes the same.
        yield re.sub(r" \(UUID: [^)]*\)", "", answer.stdout)


def _ask_torch() -> Iterator[str]:
    """Yield the GPUs as torch names them, for a container without the driver's utilities."""
    import torch

    for index in range(torch.cuda.device_count()):
        yield str(torch.cuda.get_device_properties(index))
    try:
        yield Path("/proc/driver/nvidia/version").read_text("utf-8")
    except OSError:
        return


def digest_code(package: Path, *, kind: Code) -> str:
    """Return the SHA-256 of the files in a copy of this package that a measurement runs through.

    With them what they read: the reference model's weights and vocabulary.
    """
    digest = hashlib.sha256()
    for path, _ in sorted(_list_files(package, site=package.parent).items()):
        name = path.partition("/")[2]
        if kind == "whole" or not name.startswith(JUDGING):
            digest.update(f"{name}\0{_digest_file(package.parent / path)}\n".encode())
    return digest.hexdigest()
