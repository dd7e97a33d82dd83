"""Every cache key comes from a declaration, and whatever is declared is in the key."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest

import pytest_quantgate
from pytest_quantgate.store import keys
from pytest_quantgate.store.keys import MEASUREMENTS, Measurement, make_key
from pytest_quantgate.store.surroundings import Package, Surroundings

pytestmark = pytest.mark.slow

PACKAGE = Path(pytest_quantgate.__file__).parent

#: What `Surroundings` looks at, and another value of each.
PARTS = {
    "python": ("CPython", "3.99.0"),
    "processor": ("x86_64", "flags : sse2"),
    "threads": 1 << 20,
    "variables": {"NVIDIA_TF32_OVERRIDE": "1"},
    "switches": {"backends.cudnn.benchmark": True},
}


class Here(Surroundings):
    """Surroundings of which a test sets every part, at no cost."""

    python = ("CPython", "3.12.1")
    processor = ("x86_64", "flags : avx2")
    threads = 2
    variables: Mapping[str, str] = MappingProxyType({})  # type: ignore[assignment]
    switches: Mapping[str, object] = MappingProxyType({})  # type: ignore[assignment]
    gpus = ("NVIDIA L4, driver 550",)

    def __init__(self, **parts: Any) -> None:
        super().__init__(environ={})
        vars(self).update(parts)
        self._packages = {name: _package(name) for name in keys.ENGINES}
        self._code = {"measuring": "m", "whole": "w"}


def _package(name: str, digest: str = "0") -> Package:
    return Package(name=name, distribution=name, version="1.0", digest=digest)


def key_of(
    measurement: Measurement, here: Surroundings | None = None, *, device: str = "cpu", **other: Any
) -> str:
    inputs = {name: f"some {name}" for name in measurement.inputs} | other
    return make_key(measurement, surroundings=here or Here(), device=device, **inputs)


declared = pytest.mark.parametrize("measurement", MEASUREMENTS, ids=lambda found: found.kind)


@declared
def test_each_declared_input_is_in_the_key(measurement: Measurement) -> None:
    first = key_of(measurement)

    assert first == key_of(measurement)
    changed = [key_of(measurement, **{name: "other"}) for name in measurement.inputs]  # type: ignore[arg-type]
    assert len({first, *changed}) == 1 + len(measurement.inputs)


@declared
def test_each_declared_package_is_in_the_key(measurement: Measurement) -> None:
    first = key_of(measurement)

    for name in measurement.packages:
        for other in (_package(name, digest="1"), None):
            here = Here()
            here._packages[name] = other
            assert key_of(measurement, here) != first, name


@declared
def test_what_it_runs_in_is_in_the_key(
    measurement: Measurement, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {key_of(measurement), key_of(measurement, device="cuda")}
    found |= {key_of(measurement, Here(gpus=("other driver",)), device="cuda")}
    for name, value in PARTS.items():
        monkeypatch.setattr(Here, name, value)
        found |= {key_of(measurement)}
        monkeypatch.undo()
    here = Here()
    here._code[measurement.code] = "other"
    found |= {key_of(measurement, here)}
    monkeypatch.setattr("pytest_quantgate.store.surroundings.__version__", "99")
    found |= {key_of(measurement)}

    assert len(found) == 5 + len(PARTS)


def test_kinds_have_keys_of_their_own() -> None:
    assert len({measurement.kind for measurement in MEASUREMENTS}) == len(MEASUREMENTS)
    alike = [Measurement(kind=kind, inputs=("data",), packages=()) for kind in ("one", "two")]
    assert len({key_of(measurement) for measurement in alike}) == 2


def test_an_input_that_is_not_declared_is_refused() -> None:
    expected = "contents is declared with the inputs ['data', 'first', 'samples'], and was given"

    with pytest.raises(TypeError, match=re.escape(expected)):
        make_key(keys.CONTENTS, surroundings=Here(), device="cpu", data="d", samples=1)
    with pytest.raises(TypeError, match=r"and was given.*'seed'"):
        key_of(keys.CONTENTS, seed=1)


# -- no other door --------------------------------------------------------------------------------


def _calls() -> Iterator[tuple[str, ast.Call, str]]:
    """Yield (place, call, name of what is called) of the whole package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, (ast.Attribute, ast.Name)):
                name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
                yield f"{path.relative_to(PACKAGE)}:{node.lineno}", node, name


def test_every_declaration_is_listed() -> None:
    declarations = [place for place, _, name in _calls() if name == "Measurement"]

    assert all(place.startswith("store/keys.py") for place in declarations)
    assert len(declarations) == len(MEASUREMENTS)


def test_nothing_is_cached_but_by_a_declaration() -> None:
    doors = {"get_or_build", "get_or_measure", "get_and_read"}
    kinds = {
        place: {ast.unparse(word.value) for word in call.keywords if word.arg == "kind"}
        for place, call, name in _calls()
        if name in doors and not place.startswith("store/cache.py")
    }

    declared = {f"{n}.kind" for n, found in vars(keys).items() if isinstance(found, Measurement)}
    assert len(kinds) > 5
    # `Case.measured` takes the declaration itself.
    assert {p: k for p, k in kinds.items() if not k <= {*declared, "measurement.kind"}} == {}


def test_no_key_is_written_by_hand() -> None:
    """What digests plain data does so for fingerprints, machines, keys, seals and the data of a
    task, and nowhere else."""
    users = {place.partition(":")[0] for place, _, name in _calls() if name == "digest_of"}

    assert users <= {
        *("evidence/fingerprint.py", "evidence/latency.py", "report/json_report.py"),
        *("run/inputs.py", "run/variants.py", "store/keys.py", "tasks/scoring.py"),
    }
    inside = {
        function.name
        for name in ("inputs.py", "variants.py")
        for function in ast.walk(ast.parse((PACKAGE / "run" / name).read_text("utf-8")))
        if isinstance(function, ast.FunctionDef) and "digest_of(" in ast.unparse(function)
    }
    assert inside == {"fingerprint", "_with_reader"}
