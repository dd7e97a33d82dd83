"""What a measurement runs in: packages by content, our own code, threads, devices."""

from __future__ import annotations

import ast
import base64
import hashlib
import importlib
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pytest_quantgate
from pytest_quantgate.store import surroundings
from pytest_quantgate.store.surroundings import JUDGING, Package, Surroundings, digest_code

pytestmark = pytest.mark.slow

PACKAGE = Path(pytest_quantgate.__file__).parent

#: The module that all these tests install; nothing of that name is anywhere else.
NAME = "quantgate_reversing_runtime"

FILES = {
    f"{NAME}/__init__.py": b'__version__ = "1.24.4"\nfrom ._core import run\n',
    f"{NAME}/_core.py": b"def run(x):\n    return x\n",
    f"{NAME}/capi/kernel.so": b"\x7fELF kernels",
    f"{NAME}.libs/libsum.so": b"\x7fELF sums",
}


def install(
    site: Path,
    files: Mapping[str, bytes] = FILES,
    *,
    distribution: str = f"{NAME}-gpu",
    version: str = "1.24.4",
) -> Path:
    """Install files as pip does: RECORD last, with the SHA-256 and the size of each."""
    rows = []
    for name, content in files.items():
        path = site / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
        quoted = f'"{name}"' if "," in name else name
        rows.append(f"{quoted},sha256={digest},{len(content)}")
    info = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.4\nName: {distribution}\nVersion: {version}\n\n"
    )
    rows += [f"../../bin/{NAME},sha256=x,3", f"{NAME}/__pycache__/_core.pyc,,"]
    (info / "RECORD").write_text("\n".join([*rows, f"{info.name}/RECORD,,", ""]))
    return site


@pytest.fixture
def look(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path], Package]]:
    """Look at the module as a new run would, with a folder first on the path."""

    def find(site: Path) -> Package:
        with monkeypatch.context() as patch:
            patch.syspath_prepend(site)
            found = Surroundings().package(NAME)
        assert found is not None
        return found

    yield find
    assert NAME not in sys.modules  # it was never imported


@pytest.fixture
def site(tmp_path: Path) -> Path:
    return install(tmp_path / "site")


Look = Callable[[Path], Package]


def test_package_is_that_of_its_distribution(site: Path, look: Look) -> None:
    found = look(site)

    assert (found.distribution, found.version) == (f"{NAME}-gpu".replace("_", "-"), "1.24.4")
    assert found == look(site)


def test_same_wheel_has_the_same_digest_everywhere(site: Path, look: Look, tmp_path: Path) -> None:
    again = install(tmp_path / "elsewhere")
    (again / NAME / "__pycache__").mkdir()
    (again / NAME / "__pycache__" / "_core.pyc").write_bytes(b"compiled")

    assert look(again).digest == look(site).digest


def reversed_core(site: Path) -> None:
    """Edit a file in place; no version changes."""
    path = site / NAME / "_core.py"
    path.write_bytes(path.read_bytes().replace(b"return x", b"return x[::-1]"))


def reversed_in_the_same_size(site: Path) -> None:
    path = site / NAME / "_core.py"
    path.write_bytes(path.read_bytes().replace(b"return x", b"return y"))
    later = path.stat().st_mtime + 60
    os.utime(path, (later, later))


def swapped_from_an_older_file(site: Path) -> None:
    """Put a file of another size there that is older than RECORD, as `cp -p` does."""
    path = site / NAME / "_core.py"
    path.write_bytes(b"from other import run\n")
    os.utime(path, (1, 1))


def added_file(site: Path) -> None:
    (site / NAME / "_core.cpython-311-x86_64-linux-gnu.so").write_bytes(b"comes before _core.py")


def removed_file(site: Path) -> None:
    (site / NAME / "capi" / "kernel.so").unlink()


def other_library_beside_it(site: Path) -> None:
    (site / f"{NAME}.libs" / "libsum.so").write_bytes(b"\x7fELF other sums")


def missing_library_beside_it(site: Path) -> None:
    (site / f"{NAME}.libs" / "libsum.so").unlink()


def other_wheel(site: Path) -> None:
    shutil.rmtree(site)
    install(site, {**FILES, f"{NAME}/_core.py": b"def run(x):\n    return x[::-1]\n"})


@pytest.mark.parametrize(
    "replace",
    [
        reversed_core,
        reversed_in_the_same_size,
        swapped_from_an_older_file,
        added_file,
        removed_file,
        other_library_beside_it,
        missing_library_beside_it,
        other_wheel,
    ],
)
def test_replaced_package_is_another_though_its_version_is_the_same(
    site: Path, look: Look, replace: Callable[[Path], None]
) -> None:
    before = look(site)

    replace(site)

    after = look(site)
    assert after.version == before.version
    assert after.digest != before.digest


def test_package_earlier_on_the_path_is_the_one_that_counts(
    site: Path, look: Look, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = look(site)
    shadow = tmp_path / "shadow"
    (shadow / NAME).mkdir(parents=True)
    (shadow / NAME / "__init__.py").write_text('import sys\n__version__: str = "9.9"\n')
    monkeypatch.syspath_prepend(site)

    after = look(shadow)

    # What the metadata of the folder behind it says is not what would be imported.
    assert (after.distribution, after.version) == (NAME, "9.9")
    assert after.digest != before.digest


def test_package_without_a_version_is_told_by_its_files(look: Look, tmp_path: Path) -> None:
    (tmp_path / NAME).mkdir()
    (tmp_path / NAME / "__init__.py").write_text("")

    assert (look(tmp_path).distribution, look(tmp_path).version) == (NAME, "unknown")


def test_of_two_distributions_with_one_module_the_last_installed_counts(
    site: Path, look: Look
) -> None:
    """`onnxruntime` and `onnxruntime-gpu` overwrite one another's files."""
    before = look(site)
    (record,) = site.glob("*.dist-info/RECORD")
    os.utime(record, (1, 1))
    core = {f"{NAME}/_core.py": b"def run(x):\n    return -x\n"}

    install(site, {**FILES, **core}, distribution=NAME, version="1.25.0")

    after = look(site)
    assert (after.distribution, after.version) == (NAME.replace("_", "-"), "1.25.0")
    assert after.digest != before.digest


def test_module_of_a_single_file_counts(look: Look, tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.py").write_text('__version__ = "3"\n')
    before = look(tmp_path)
    assert before.version == "3"

    (tmp_path / f"{NAME}.py").write_text('__version__ = "3"\n\n')

    assert look(tmp_path).digest != before.digest


def test_package_in_a_zip_file_counts(look: Look, tmp_path: Path) -> None:
    """Where a zip file comes first on the path, that is what is imported."""

    def pack(content: str) -> Package:
        path = tmp_path / "packages.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr(zipfile.ZipInfo(f"lib/{NAME}/__init__.py"), content)
        importlib.invalidate_caches()
        return look(path / "lib")

    one, again, other = (pack(content) for content in ("a = 1", "a = 1", "a = 2"))

    assert one.version == "unknown"
    assert one.digest == again.digest != other.digest


def test_damaged_installations_are_read_as_far_as_they_go(site: Path, look: Look) -> None:
    before = look(site)
    (metadata,) = site.glob("*.dist-info/METADATA")
    metadata.unlink()
    assert look(site).digest == before.digest
    assert look(site).version == "unknown"
    (record,) = site.glob("*.dist-info/RECORD")
    record.write_bytes(b"\xff\xfe, no csv \x00\n" + record.read_bytes())
    assert look(site).digest == before.digest
    record.unlink()
    record.mkdir()
    # Without its rows the library beside it is not known to belong to it.
    assert look(site).digest != before.digest


def test_absent_package_is_none_and_a_made_up_module_is_never_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert Surroundings().package(NAME) is None
    assert Surroundings().package(f"{NAME}.part") is None
    monkeypatch.setitem(sys.modules, NAME, type(sys)(NAME))

    one, two = (Surroundings().package(NAME) for _ in range(2))

    assert one
    assert two
    assert one.digest != two.digest


def test_links_in_a_package_are_followed_to_files_and_not_to_folders(
    site: Path, look: Look, tmp_path: Path
) -> None:
    kept = tmp_path / "store.so"
    shutil.move(site / NAME / "capi" / "kernel.so", kept)
    (site / NAME / "capi" / "kernel.so").symlink_to(kept)
    (site / NAME / "self").symlink_to(site / NAME)
    before = look(site)

    kept.write_bytes(b"other kernels")

    assert look(site).digest != before.digest


@given(
    files=st.dictionaries(
        st.sampled_from([f"{NAME}/{part}" for part in ("a.py", "b/c.py", "b/d,e.py", "f.so")]),
        st.binary(max_size=8),
    ),
    edit=st.sampled_from([f"{NAME}/{part}" for part in ("a.py", "b/c.py", "b/d,e.py", "f.so")]),
    content=st.binary(max_size=8),
)
@settings(max_examples=40, deadline=None)
def test_digest_is_that_of_the_contents_with_a_record_or_without(
    tmp_path_factory: pytest.TempPathFactory,
    files: dict[str, bytes],
    edit: str,
    content: bytes,
) -> None:
    def digest(folder: Path) -> str:
        with pytest.MonkeyPatch.context() as patch:
            patch.syspath_prepend(folder)
            found = Surroundings().package(NAME)
        assert found is not None
        return found.digest

    files = {f"{NAME}/__init__.py": b"", **files}
    folder = install(tmp_path_factory.mktemp("site"), files)
    first = digest(folder)
    (record,) = folder.glob("*.dist-info/RECORD")
    record.unlink()
    assert digest(folder) == first

    edited = install(tmp_path_factory.mktemp("site"), {**files, edit: content})
    assert (digest(edited) == first) == (files.get(edit) == content)


# -- the rest of the surroundings -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("environ", "threads"),
    [
        ({"OMP_NUM_THREADS": "3", "MKL_NUM_THREADS": "5"}, 3),
        ({"OMP_NUM_THREADS": "4,2"}, 4),
        ({"OMP_NUM_THREADS": "many", "MKL_NUM_THREADS": "5"}, 5),
        ({}, len(os.sched_getaffinity(0))),
    ],
)
def test_threads_are_what_the_libraries_take(environ: dict[str, str], threads: int) -> None:
    assert Surroundings(environ=environ).threads == threads


def test_environment_is_what_changes_a_number_and_nothing_else() -> None:
    counts = {
        "ATEN_CPU_CAPABILITY": "avx2",
        "CUDA_VISIBLE_DEVICES": "1",
        "LD_PRELOAD": "libmkl.so",
        "NVIDIA_TF32_OVERRIDE": "0",
        "PYTORCH_CUDA_ALLOC_CONF": "x",
    }
    other = {"HOME": "/root", "OMP_NUM_THREADS": "2", "PATH": "/bin", "MY_TORCH_": "1"}

    assert Surroundings(environ={**counts, **other}).variables == counts


@pytest.mark.slow
def test_importing_what_measures_changes_nothing_that_counts() -> None:
    """Else the second run would not find what the first one kept: it imports later, or nothing."""
    code = """
from pytest_quantgate.store.keys import ENGINES
from pytest_quantgate.store.surroundings import Surroundings
import importlib
before = Surroundings().variables, Surroundings().threads
for name in (*ENGINES, "sklearn", "modelopt.torch.quantization", "torch._inductor"):
    try:
        importlib.import_module(name)
    except ImportError:
        pass
after = Surroundings().variables, Surroundings().threads
assert after == before, (before, after)
assert Surroundings().switches == {}, Surroundings().switches
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)

    assert done.returncode == 0, done.stderr


def test_switches_of_torch_count_where_somebody_turned_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert Surroundings().switches == {}
    cudnn = SimpleNamespace(allow_tf32=True, benchmark=False, deterministic=False)
    torch = SimpleNamespace(
        get_float32_matmul_precision=lambda: "highest",
        get_default_dtype=lambda: "torch.float32",
        are_deterministic_algorithms_enabled=lambda: False,
        backends=SimpleNamespace(cudnn=cudnn, mkldnn=SimpleNamespace(enabled=True)),
    )
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert Surroundings().switches == {}

    torch.get_float32_matmul_precision = lambda: "high"
    cudnn.benchmark = True

    assert Surroundings().switches == {
        "get_float32_matmul_precision()": "high",
        "backends.cudnn.benchmark": True,
    }


def test_torch_starts_as_it_is_expected_to() -> None:
    """Otherwise what a cold run keeps is not found by a warm one, which does not import it."""
    code = "import torch; from pytest_quantgate.store.surroundings import Surroundings as S; "
    done = subprocess.run(
        [sys.executable, "-c", f"{code} print(S().switches)"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "{}", done.stderr


def test_processor_is_known_by_its_instructions() -> None:
    found = Surroundings().processor

    assert found[0] == os.uname().machine
    if Path("/proc/cpuinfo").exists():
        assert any(line.startswith(("flags", "Features")) for line in found)
        assert not any("MHz" in line for line in found)  # it changes from one look to the next


def test_gpus_are_known_by_driver_and_part_and_not_by_their_serial_numbers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = {
        "--query-gpu=name,compute_cap,driver_version": "NVIDIA H200, 9.0, 550.54",
        "-L": "GPU 0: NVIDIA H200 (UUID: GPU-1)\n  MIG 1g.18gb Device 0: (UUID: MIG-2)",
    }

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        assert command[0] == "nvidia-smi"
        return subprocess.CompletedProcess(command, 0, stdout=answers[command[1]])

    monkeypatch.setattr(surroundings, "run_program", run)
    first = Surroundings().gpus
    assert "550.54" in "".join(first)
    assert "MIG 1g.18gb" in "".join(first)
    assert "UUID" not in "".join(first)

    answers["-L"] = answers["-L"].replace("1g.18gb", "2g.35gb")
    assert Surroundings().gpus != first


def test_gpus_are_asked_of_torch_where_the_driver_has_no_utilities(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def run(*_: object, **__: object) -> subprocess.CompletedProcess[str]:
        raise FileNotFoundError

    monkeypatch.setattr(surroundings, "run_program", run)
    monkeypatch.setattr(surroundings, "_ask_torch", lambda: iter(["NVIDIA L4"]))

    assert Surroundings().gpus[0] == "NVIDIA L4"


# -- our own code ---------------------------------------------------------------------------------


def list_code() -> list[str]:
    return sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def test_judging_rooms_are_there() -> None:
    for name in JUDGING:
        assert (PACKAGE / name).exists(), name


def test_a_change_in_any_file_that_measures_changes_every_key(tmp_path: Path) -> None:
    """Also in what they read, and in a file that comes or goes; judging moves nothing."""
    copy = tmp_path / "pytest_quantgate"
    shutil.copytree(PACKAGE, copy, ignore=shutil.ignore_patterns("__pycache__"))
    before = {kind: digest_code(copy, kind=kind) for kind in ("measuring", "whole")}
    assert before["measuring"] == digest_code(PACKAGE, kind="measuring")
    files = [
        *list_code(),
        "reference/weights/model.safetensors",
        "reference/weights/tokenizer.json",
    ]

    for name in files:
        path = copy / name
        good = path.read_bytes()
        path.write_bytes(good + b"\n")
        changed = {kind: digest_code(copy, kind=kind) for kind in before}  # type: ignore[arg-type]
        path.write_bytes(good)
        assert changed["whole"] != before["whole"], name
        assert (changed["measuring"] == before["measuring"]) == name.startswith(JUDGING), name
    (copy / "measure" / "new.py").write_text("")
    assert digest_code(copy, kind="measuring") != before["measuring"]
    (copy / "measure" / "new.py").unlink()

    assert {kind: digest_code(copy, kind=kind) for kind in before} == before  # type: ignore[arg-type]


#: What measuring modules import of the judging ones: what a case asks for verdicts, sections of a
#: suite (their numbers are inputs of a key), and what only measurements run through whose keys hold
#: all code (sanity, and the exclusions of a study).
AFTER = {
    "artifacts/checkpoints.py": {"text.words"},  # for messages alone
    "artifacts/given_onnx.py": {"text.words"},
    "artifacts/labels.py": {"text.words"},
    "run/measured.py": {"gates.chance", "gates.fidelity"},
    "run/sensitivity.py": {
        "gates.accuracy",
        "gates.coverage",
        "gates.fidelity",
        "evidence.verdict",
    },
    "run/onnx_files.py": {"gates.export", "inspection.findings", "inspection.inspect"},
    "run/stages.py": {"gates.engine"},
    "run/inputs.py": {"gates.sections"},
    # Where things lie, and the recipe; what it embeds with is compared by the keys of who asks.
    "run/worker.py": {
        "run.progress",
        "run.sweep",
        "store.baseline_mode",
        "store.baselines",
        "store.settings",
    },
}


def imports_of(name: str) -> set[str]:
    """Return the modules of this package that a file imports when it runs, wherever it does so."""
    found = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pytest_quantgate"):
            module = (node.module or "").removeprefix("pytest_quantgate").lstrip(".")
            names = {".".join(filter(None, (module, alias.name))) for alias in node.names}
            found.update(names if not module else {module, *names})
        if isinstance(node, ast.Import):
            found.update(
                alias.name.removeprefix("pytest_quantgate.")
                for alias in node.names
                if alias.name.startswith("pytest_quantgate.")
            )
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse((PACKAGE / name).read_text("utf-8")))
    return {module for module in found if find_file(module)}


def find_file(module: str) -> str:
    """Return the file of a module, empty where the name is none (a function, a class)."""
    path = module.replace(".", "/")
    for name in (f"{path}.py", f"{path}/__init__.py"):
        if (PACKAGE / name).is_file():
            return name
    return ""


def test_what_measures_runs_through_no_file_that_judges() -> None:
    """A module that judges and is new is among those that measure until `JUDGING` names it."""
    measuring = [name for name in list_code() if not name.startswith(JUDGING)]
    known = {"run/measured.py", "run/stages.py", "run/sensitivity.py", "measure/fidelity.py"}
    assert known <= set(measuring)

    outside = {
        name: found
        for name in measuring
        if (
            found := sorted(
                module
                for module in imports_of(name) - AFTER.get(name, set())
                if find_file(module).startswith(JUDGING)
            )
        )
    }

    advice = "name it in JUDGING (store/surroundings.py) if it judges, else import it later"
    assert outside == {}, advice


def test_versions_are_those_of_what_is_there(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(site)
    found = Surroundings()

    assert found.versions((NAME, f"{NAME}_absent")) == {f"{NAME}-gpu".replace("_", "-"): "1.24.4"}
    assert found.package(NAME) is found.package(NAME)
    (site / f"{NAME}_beside.py").write_text("")  # in the same folder, of no distribution
    assert found.versions([f"{NAME}_beside"]) == {f"{NAME}_beside": "unknown"}
    assert found.code("whole") == found.code("whole") == digest_code(PACKAGE, kind="whole")
    assert found.python[1] == ".".join(map(str, sys.version_info[:3]))


def test_a_package_that_is_nowhere_is_like_no_other(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(site)
    lost = SimpleNamespace(origin=str(site / NAME / "__init__.py"))
    lost.submodule_search_locations = [str(site / "gone")]
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: lost)

    one, two = (Surroundings().package(NAME) for _ in range(2))

    assert one != two


def test_what_cannot_be_read_counts_as_that(
    site: Path, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = look(site)
    path = site / NAME / "_core.py"
    later = path.stat().st_mtime + 60
    os.utime(path, (later, later))  # it is looked at, as RECORD is older

    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(hashlib, "file_digest", refuse)
    assert look(site).digest != before.digest


def test_a_processor_that_tells_nothing_of_itself_is_named_by_python(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: object) -> None:
        raise OSError

    monkeypatch.setattr(Path, "read_text", refuse)

    assert Surroundings().processor == (platform.machine(), platform.processor())


@pytest.mark.parametrize("driver", ["550.54", ""])
def test_torch_names_gpus_and_the_kernel_their_driver(
    driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(path: Path, *_: object) -> str:
        if not driver:
            raise FileNotFoundError
        return driver

    cuda = SimpleNamespace(device_count=lambda: 2, get_device_properties="GPU {}".format)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    monkeypatch.setattr(Path, "read_text", read)

    assert list(surroundings._ask_torch()) == ["GPU 0", "GPU 1", *filter(None, [driver])]
