"""The walls of the house: what may import what, read from the files."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "pytest_quantgate"

#: Folders, and what no file of theirs imports: what decides runs without what measures.
CLOSED = {
    "evidence": {"torch", "pytest", "onnx", "numpy"},
    "statistics": {"torch", "pytest", "onnx", "numpy"},
    "text": {"torch", "pytest", "onnx", "numpy"},
    "formats": {"torch", "pytest", "onnx", "onnxruntime", "numpy", "transformers", "modelopt"},
    "gates": {"torch", "pytest", "onnx", "onnxruntime", "numpy", "transformers", "modelopt"},
    "suite": {"torch", "pytest", "onnx", "numpy"},
    "run": {"pytest"},
    "measure": {"pytest"},
    "encoders": {"pytest"},
    "quantization": {"pytest"},
    "runtimes": {"pytest"},
    "store": {"pytest"},
    "tasks": {"pytest"},
    "artifacts": {"torch", "pytest"},
    "inspection": {"torch", "pytest"},
    "release": {"torch", "pytest", "onnx", "numpy"},
}


#: The rooms, from the ground up: each imports those above it in this list, and no other. A file at
#: the package's root is a room of its own.
ROOMS = (
    *("formats", "errors", "bounds", "reference", "untrusted", "own_process", "evidence"),
    *("bounded_process", "linked_process", "threads", "text", "statistics", "suite", "store"),
    *("encoders", "quantization", "tasks", "runtimes"),
    *("artifacts", "measure", "inspection", "gates", "run", "report", "comparison", "release"),
    *("selftest", "plugin", "assertions", "commands", "__main__"),
)


def name_module(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_module(path): path for path in sorted(PACKAGE.rglob("*.py"))}


@cache
def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def list_imports(path: Path) -> Iterator[str]:
    """Yield every module that a file imports, at its top, in a function or for its types."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inner = f"{node.module}.{alias.name}"
                yield inner if inner in MODULES else node.module


def find_circle(imports: Mapping[str, set[str]]) -> list[str]:
    """Return the modules of a circle in their order, none where there is none."""
    done: set[str] = set()

    def follow(module: str, way: tuple[str, ...]) -> list[str]:
        if module in way:
            return [*way[way.index(module) :], module]
        if module in done:
            return []
        for other in sorted(imports[module]):
            circle = follow(other, (*way, module))
            if circle:
                return circle
        done.add(module)
        return []

    return next((circle for module in imports if (circle := follow(module, ()))), [])


def test_no_circle_ties_files_of_the_package() -> None:
    imports = {
        name: {other for other in list_imports(path) if other in MODULES and other != name}
        for name, path in MODULES.items()
    }

    assert " -> ".join(find_circle(imports)) == ""


def name_room(module: str) -> str:
    """Return the room of a module, empty for the package itself."""
    return ".".join(module.split(".")[1:2])


def test_every_room_has_its_place() -> None:
    assert {name_room(module) for module in MODULES} == {"", *ROOMS}


def test_rooms_are_imported_one_way() -> None:
    places = {"": -1, **{room: place for place, room in enumerate(ROOMS)}}
    upward = {
        f"{name} imports {other}: {name_room(other)}/ stands above {name_room(name)}/"
        for name, path in MODULES.items()
        for other in list_imports(path)
        if other in MODULES and places[name_room(other)] > places[name_room(name)]
    }

    assert upward == set(), f"from the ground up: {' < '.join(ROOMS)}"


def test_a_circle_is_found_with_its_way() -> None:
    imports = {"a": {"b"}, "b": {"c", "d"}, "c": set[str](), "d": {"b"}}

    assert find_circle(imports) == ["b", "d", "b"]


@pytest.mark.parametrize("folder", sorted(CLOSED))
def test_a_room_imports_nothing_that_is_closed_to_it(folder: str) -> None:
    found = {
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in (PACKAGE / folder).rglob("*.py")
        for name in list_imports(path)
        if name.partition(".")[0] in CLOSED[folder]
    }

    assert found == set()


def test_the_package_needs_nothing_that_it_does_not_ship() -> None:
    found = {
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path in MODULES.values()
        for name in list_imports(path)
        if name.partition(".")[0] in {"tools", "tests", "benchmarks"}
    }

    assert found == set()


def list_names(path: Path) -> set[str]:
    """Return the names that a file binds at its top: what others can import from it."""
    body = list(parse(path).body)
    for node in body:
        if isinstance(node, ast.If | ast.Try):
            body += [*node.body, *node.orelse]
    found = set()
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(alias.asname or alias.name).partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.FunctionDef | ast.ClassDef):
            found |= {node.name}
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            found |= {name.id for name in ast.walk(node) if isinstance(name, ast.Name)}
    return found


@pytest.mark.parametrize("folder", ["benchmarks", "docs", "examples", "tools"])
def test_what_is_imported_from_the_package_is_there(folder: str) -> None:
    """Nobody runs a benchmark at every change: what moved is seen here."""
    lost = set()
    for path in (PACKAGE.parent / folder).rglob("*.py"):
        for node in ast.walk(parse(path)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(PACKAGE.name):
                module = MODULES.get(node.module or "")
                names = list_names(module) if module else set()
                lost |= {
                    f"{path.relative_to(PACKAGE.parent)}:{node.lineno} {node.module}.{alias.name}"
                    for alias in node.names
                    if alias.name not in names and f"{node.module}.{alias.name}" not in MODULES
                }

    assert lost == set()


def test_no_two_test_files_have_one_name() -> None:
    """The folders of tests are no packages: pytest would import the first for both."""
    names = [path.name for path in sorted((PACKAGE.parent / "tests").rglob("test_*.py"))]

    assert sorted({name for name in names if names.count(name) > 1}) == []
