"""Changes the code that decides, one expression at a time, and counts what the unit tests see.

    make mutants [ONLY='gates.family'] [SAMPLE=150]

mutmut makes the mutants. Each is put in place of its function's code in a fork of a process that
has collected the tests, and the tests that reach the changed statement run until one fails, the
quickest first. A module is judged by the tests that mirror it and those named in `TESTS`.

What was found is kept in mutants/: a mutant that was killed is not tried again until its function
changes, one that survived is tried at every run. Prints a table by module, then each survivor:

- wording, which is not tried: a text with a space in it is the only difference. What a verdict says
  is asserted where users act on it; that every word of every cause is, would pin the prose and no
  behaviour.
- equal: nothing can tell it from the original. `mutants.md` lists these, with the reason; one that
  is listed there is counted as equal and not printed. So is, by rule and untried, a `zip` that is
  not strict: strictness asserts what callers have made sure of.
- refused by mypy: an argument that is None or missing where a type says otherwise; the types are
  checked with the tests.
- alive: the rest. A test is missing, or the code is not needed.

What asks for measurements and hands them to what decides, a function of a GateRun, is left out:
runs of the product test it (tests/integration). A mutant that only a process of the product's own
would show is not seen: its code runs unchanged.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import fnmatch
import functools
import hashlib
import importlib
import inspect
import json
import math
import os
import pickle
import random
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
import types
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
FOUND = ROOT / "mutants"
RECORD = Path(__file__).with_suffix(".md")
PACKAGE = "pytest_quantgate"

MUTATED = (
    *("gates/*.py", "store/*.py", "statistics/*.py", "evidence/verdict.py"),
    "evidence/fingerprint.py",
    # What of tasks/ decides; the others read data.
    *(f"tasks/{name}.py" for name in ("catalogue", "classification", "duplicates", "filter")),
    *(f"tasks/{name}.py" for name in ("kind", "knn", "linear_probe", "multilingual")),
    *(f"tasks/{name}.py" for name in ("neighbours", "operating_point", "retrieval", "scoring")),
    "tasks/text_neighbours.py",
)

#: The coverage gate and its parts: each is tested through the whole.
OF_COVERAGE = (
    *("attention", "blocks", "coverage", "exclusions", "fused", "idle", "layers", "operations"),
    *("scope", "towers", "waivers"),
)

#: Tests of a module beside the ones that mirror it.
TESTS = {
    **{
        f"gates.{part}": (
            *(f"gates/test_gate_{name}.py" for name in OF_COVERAGE),
            *("gates/test_gate_calibration.py", "suite/test_suite_refusals.py"),
        )
        for part in OF_COVERAGE
    },
    **{
        f"gates.{part}": tuple(
            f"gates/test_gate_{name}.py" for name in ("calibration", "ranges", "clipping")
        )
        for part in ("calibration", "ranges", "clipping")
    },
    "evidence.verdict": ("test_verdict.py",),
    "evidence.fingerprint": ("test_fingerprint.py",),
    "gates.accuracy": ("statistics/test_family.py", "gates/test_gate_samples.py"),
    "gates.deciding": ("gates/test_gate_accuracy.py", "gates/test_gate_regression.py"),
    "gates.drops": ("gates/test_gate_accuracy.py", "gates/test_gate_regression.py"),
    "gates.looks": ("gates/test_gate_accuracy.py", "test_judging_looks.py"),
    "gates.memory": ("gates/test_gate_engine.py",),
    "gates.proposals": ("test_judging_baselines.py",),
    "gates.regression": ("statistics/test_family.py", "gates/test_gate_samples.py"),
    "gates.drift": ("gates/test_gate_regression.py", "statistics/test_family.py"),
    "gates.slice_search": ("gates/test_gate_slices.py",),
    "gates.slices": (
        *("gates/test_gate_accuracy.py", "statistics/test_family.py"),
        "suite/test_suite_refusals.py",
    ),
    "statistics.intervals": ("store/test_looks.py",),
    "statistics.sizes": ("statistics/test_intervals.py",),
    "statistics.rounds": ("gates/test_gate_latency.py",),
    "tasks.catalogue": ("tasks/test_catalogue_task.py",),
    "store.acceptance": ("store/test_baselines.py",),
    "store.migration": ("commands/test_command_migrate.py",),
    "store.owners": (
        "store/test_baselines.py",
        "store/test_latency_records.py",
        "commands/test_command_migrate.py",
    ),
    "store.records": (
        "store/test_baselines.py",
        "store/test_latency_records.py",
        "comparison/test_baseline_diff.py",
    ),
    "store.baselines": (
        "store/test_latency_records.py",
        "test_judging_baselines.py",
        "commands/test_command_migrate.py",
    ),
}

#: Tests of what a gate declares of its section in a suite, and of how it is asked.
OF_SECTIONS = (
    "suite/test_suite_gates.py",
    "suite/test_suite_exported.py",
    "suite/test_suite_refusals.py",
    "test_judging.py",
)

#: A mutant may take so many times as long as the original in a test, and so many seconds more.
TIMES, MORE_S = 3, 2

KILLED, TYPED, ALIVE, UNREACHED = "killed", "refused by mypy", "alive", "unreached"
EQUAL, WORDING = "equal", "wording"


def list_modules() -> list[str]:
    paths = (path for pattern in MUTATED for path in (ROOT / PACKAGE).glob(pattern))
    names = (path.relative_to(ROOT / PACKAGE).with_suffix("") for path in paths)
    return sorted(".".join(name.parts) for name in names if name.name != "__init__")


def find_source(module: str) -> Path:
    return ROOT / PACKAGE / f"{module.replace('.', '/')}.py"


def list_tests(module: str) -> list[str]:
    *folder, name = module.split(".")
    mirror = "/".join([*folder, f"test_{'gate_' if folder == ['gates'] else ''}{name}.py"])
    of_section = OF_SECTIONS if "GateKind" in find_source(module).read_text("utf-8") else ()
    paths = (f"tests/unit/{path}" for path in (mirror, *TESTS.get(module, ()), *of_section))
    return [path for path in dict.fromkeys(paths) if (ROOT / path).exists()]


# -- making mutants ------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One change to a function; `lines` are those of the changed statement in the module."""

    function: str
    changed: str
    diff: str
    lines: frozenset[int]
    first_line: int
    length: int
    is_wording: bool
    is_strictness: bool

    @property
    def key(self) -> str:
        text = f"{self.function}\n{self.changed}"
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def make_mutants(module: str) -> Iterator[Mutant]:
    import libcst
    from libcst.metadata import MetadataWrapper, PositionProvider
    from mutmut.mutation.file_mutation import create_mutations

    path = find_source(module)
    # mutmut leaves decorated functions alone, and the decorated ones decide as well: properties.
    source = re.sub(r"(?m)^( *)@(?!dataclass).*$", "", path.read_text(encoding="utf-8"))
    tree, mutations, _, _ = create_mutations(str(path), source)
    positions = MetadataWrapper(tree, unsafe_skip_copy=True).resolve(PositionProvider)
    owners = {
        id(member): f"{node.name.value}."
        for node in tree.body
        if isinstance(node, libcst.ClassDef)
        for member in node.body.body
    }
    for mutation in mutations:
        function = mutation.contained_by_top_level_function
        if not isinstance(function, libcst.FunctionDef):
            continue
        original = render(function)
        if re.match(r"def \w+\(\s*run: GateRun", original):
            continue
        changed = render(function.deep_replace(mutation.original_node, mutation.mutated_node))
        before, after = (text.splitlines() for text in (original, changed))
        first_line = positions[function].start.line
        text = mutation.original_node
        diff = [
            f"{line[0]} {line[1:].strip()}"
            for line in difflib.unified_diff(before, after, n=0, lineterm="")
            if line[0] in "+-" and line[:3] not in ("+++", "---")
        ]
        yield Mutant(
            function=owners.get(id(function), "") + function.name.value,
            changed=changed,
            diff="\n".join(diff),
            lines=find_statement(original, positions[text].start.line, first_line=first_line)
            if text in positions
            else frozenset(),
            first_line=first_line,
            length=len(before),
            is_wording=isinstance(text, libcst.SimpleString) and " " in text.value,
            is_strictness=drop_strict(original) == drop_strict(changed),
        )


def drop_strict(source: str) -> str:
    return re.sub(r",\s*(strict=\w+)?\s*\)", ")", source)


def render(function: Any) -> str:
    import libcst

    text = libcst.Module(body=[]).code_for_node(function.with_changes(leading_lines=()))
    return textwrap.dedent(text)


def find_statement(source: str, line: int, *, first_line: int) -> frozenset[int]:
    """Return the lines of the innermost statement at a line; of one with a body, its head's.

    Those of the whole function where the line is of its own head, which no test reaches.
    """
    (function,) = ast.parse(source).body
    found = frozenset(range(first_line, first_line + len(source.splitlines())))
    for node in ast.walk(function):
        if not isinstance(node, ast.stmt) or node is function:
            continue
        begin, end = node.lineno, node.end_lineno or node.lineno
        body = getattr(node, "body", None)
        if isinstance(body, list) and body:
            end = body[0].lineno - 1 if body[0].lineno > begin else begin
        begin, end = begin + first_line - 1, end + first_line - 1
        if begin <= line <= end:
            found = frozenset(range(begin, end + 1))  # ast.walk goes from the outside in
    return found


def put_in_place(module: str, mutant: Mutant) -> None:
    """Give a function the code and the defaults of its mutant, under all its decorators."""
    target: Any = importlib.import_module(f"{PACKAGE}.{module}")
    for name in mutant.function.split("."):
        target = inspect.getattr_static(target, name)
    target = getattr(target, "__func__", getattr(target, "fget", getattr(target, "func", target)))
    target = inspect.unwrap(target)
    code = compile(
        "\n" * (mutant.first_line - 1) + mutant.changed,
        str(find_source(module)),
        "exec",
        flags=annotations.compiler_flag,
        dont_inherit=True,
    )
    made: dict[str, Any] = dict(target.__globals__)
    exec(code, made)
    twin = made[mutant.function.rpartition(".")[2]]
    assert isinstance(target, types.FunctionType)
    target.__code__ = twin.__code__
    target.__defaults__, target.__kwdefaults__ = twin.__defaults__, twin.__kwdefaults__


# -- trying them ---------------------------------------------------------------------------------


class Trial:
    """A plugin that instead of running the collected tests runs them on each mutant."""

    def __init__(self, module: str, mutants: Sequence[Mutant]) -> None:
        self.module = module
        self.mutants = mutants
        self.failed = False
        self.seconds = 0.0

    def pytest_configure(self) -> None:
        from hypothesis import Phase, settings

        # A mutant that is seen is seen: no time is spent on a smaller example of it.
        phases = (Phase.explicit, Phase.generate)
        settings.register_profile("mutants", phases=phases, database=None)
        settings.load_profile("mutants")

    def pytest_runtestloop(self, session: Any) -> bool:
        items = session.items
        seconds, reached, imported = self._in_fork(functools.partial(self._measure, items))
        for name in imported:
            importlib.import_module(name)
        for mutant in self.mutants:
            if mutant.is_wording or mutant.is_strictness:
                self._report(mutant, WORDING if mutant.is_wording else EQUAL)
                continue
            chosen = sorted(
                (n for n, lines in reached.items() if lines & mutant.lines), key=seconds.__getitem__
            )
            if not chosen:
                self._report(mutant, UNREACHED)
                continue
            tests = [(items[n], seconds[n]) for n in chosen]
            alive = self._in_fork(functools.partial(self._try, mutant, tests))
            self._report(mutant, ALIVE if alive else KILLED)
        return True

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.failed = self.failed or report.failed
        self.seconds += report.duration

    def _report(self, mutant: Mutant, status: str) -> None:
        found = {
            "key": mutant.key,
            "function": mutant.function,
            "line": mutant.first_line,
            "length": mutant.length,
            "changed": mutant.changed,
            "diff": mutant.diff,
            "status": status,
        }
        with (FOUND / f"{self.module}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")

    def _run(self, item: Any, following: Any) -> None:
        self.failed, self.seconds = False, 0.0
        item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)

    def _measure(self, items: Sequence[Any]) -> Any:
        """Return each test's seconds and the lines that it reaches; none of a test that fails."""
        import coverage

        before = set(sys.modules)
        source = str(find_source(self.module))
        watch = coverage.Coverage(data_file=None, include=[source], config_file=False)
        seconds, failing = {}, set()
        watch.start()
        for number, item in enumerate(items):
            watch.switch_context(str(number))
            self._run(item, items[number + 1] if number + 1 < len(items) else None)
            seconds[number] = self.seconds
            if self.failed:
                failing.add(number)
                print(f"{item.nodeid} fails without a mutant", file=sys.__stderr__)
        watch.stop()
        reached: dict[int, set[int]] = {}
        for line, contexts in watch.get_data().contexts_by_lineno(source).items():
            for context in contexts:
                if context and int(context) not in failing:
                    reached.setdefault(int(context), set()).add(line)
        heavy = {"numpy", "torch", "onnx", "scipy.stats", "transformers", "yaml"}
        return seconds, reached, sorted(heavy & (set(sys.modules) - before))

    def _try(self, mutant: Mutant, tests: Sequence[tuple[Any, float]]) -> bool:
        """Return whether no test sees the mutant; ends the process where one takes too long."""
        put_in_place(self.module, mutant)
        for number, (item, seconds) in enumerate(tests):
            limit_s = math.ceil(time.process_time() + TIMES * seconds) + MORE_S
            resource.setrlimit(resource.RLIMIT_CPU, (limit_s, resource.RLIM_INFINITY))
            self._run(item, tests[number + 1][0] if number + 1 < len(tests) else None)
            if self.failed:
                return False
        return True

    @staticmethod
    def _in_fork(work: Any) -> Any:
        """Return what `work` returns in a fork, None where it ends in another way."""
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            try:
                with os.fdopen(writing, "wb") as file:
                    file.write(pickle.dumps(work()))
            finally:
                os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as file:
            told = file.read()
        os.waitpid(child, 0)
        return pickle.loads(told) if told else None


def try_module(module: str, *, share: float) -> None:
    """Try the mutants of a module that are not known to be killed; `share` of them, by a seed."""
    import pytest

    known = read_found(module)
    mutants = {mutant.key: mutant for mutant in make_mutants(module)}
    kept = [
        entry
        for key, entry in known.items()
        if key in mutants and entry["status"] in (KILLED, TYPED)
    ]
    write_found(module, kept)
    left = [mutant for key, mutant in mutants.items() if key not in {e["key"] for e in kept}]
    if share < 1:
        left = random.Random(0).sample(left, k=max(1, round(share * len(left))))
    with tempfile.TemporaryDirectory() as folder:
        options = ["-q", "--tb=no", "-p", "no:cacheprovider", "-p", "no:randomly"]
        pytest.main(
            [*options, f"--basetemp={folder}/tests", *list_tests(module)],
            plugins=[Trial(module, left)],
        )


# -- what types refuse ---------------------------------------------------------------------------


def check_types(modules: Sequence[str]) -> None:
    """Note which survivors `mypy` refuses: they do not reach the tests of a change."""
    with tempfile.TemporaryDirectory() as folder:
        package = Path(shutil.copytree(ROOT / PACKAGE, Path(folder, PACKAGE)))
        shutil.copy(ROOT / "pyproject.toml", folder)
        if (ROOT / ".mypy_cache").exists():
            shutil.copytree(ROOT / ".mypy_cache", Path(folder, ".mypy_cache"))
        written: dict[str, tuple[str, str]] = {}
        for module in modules:
            source = find_source(module)
            lines = source.read_text(encoding="utf-8").splitlines()
            for key, entry in read_found(module).items():
                if entry["status"] not in (ALIVE, UNREACHED):
                    continue
                begin = entry["line"] - 1
                margin = lines[begin][: len(lines[begin]) - len(lines[begin].lstrip())]
                text = [
                    *lines[:begin],
                    textwrap.indent(entry["changed"], margin).rstrip(),
                    *lines[begin + entry["length"] :],
                ]
                path = package / source.relative_to(ROOT / PACKAGE)
                path = path.with_name(f"{source.stem}_{key}.py")
                path.write_text("\n".join(text) + "\n", encoding="utf-8")
                written[str(path.relative_to(folder))] = module, key
        if not written:
            return
        told = subprocess.run(
            [sys.executable, "-m", "mypy", "--no-error-summary", *written],
            cwd=folder,
            capture_output=True,
            text=True,
            check=False,
        ).stdout
    refused = {line.partition(":")[0] for line in told.splitlines() if ": error:" in line}
    keys = {written[path] for path in refused & written.keys()}
    for module in modules:
        found = read_found(module)
        for key, entry in found.items():
            if (module, key) in keys:
                entry["status"] = TYPED
        write_found(module, found.values())


# -- what was found ------------------------------------------------------------------------------


def read_found(module: str) -> dict[str, dict[str, Any]]:
    path = FOUND / f"{module}.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return {entry["key"]: entry for entry in map(json.loads, lines)}


def write_found(module: str, entries: Iterable[Mapping[str, Any]]) -> None:
    text = "".join(json.dumps(entry) + "\n" for entry in entries)
    (FOUND / f"{module}.jsonl").write_text(text, encoding="utf-8")


def read_equal() -> set[str]:
    """Return the keys of the mutants that the record lists as equal."""
    return set(re.findall(r"`([0-9a-f]{16})`", RECORD.read_text(encoding="utf-8")))


def summarise(modules: Sequence[str]) -> Iterator[str]:
    """Yield the table by module, then the survivors."""
    equal = read_equal()
    rows: dict[str, Counter[str]] = {}
    alive: list[str] = []
    for module in modules:
        for key, entry in read_found(module).items():
            status = "unseen" if entry["status"] in (ALIVE, UNREACHED) else entry["status"]
            if status == "unseen" and key in equal:
                status = EQUAL
            rows.setdefault(module, Counter())[status] += 1
            rows.setdefault("all", Counter())[status] += 1
            if status == "unseen":
                where = f"{module}.{entry['function']} `{key}`"
                reached = "" if entry["status"] == ALIVE else " (no test reaches it)"
                alive.append(f"- {where}{reached}\n{textwrap.indent(entry['diff'], '    ')}")
    yield "| module | mutants | wording | equal | killed by tests | by mypy | alive | killed |"
    yield "|---|--:|--:|--:|--:|--:|--:|--:|"
    for module, row in rows.items():
        killed = row[KILLED] + row[TYPED]
        differ = killed + row["unseen"]
        share = f"{100 * killed / differ:.1f} %" if differ else "-"
        yield (
            f"| {module} | {row.total()} | {row[WORDING]} | {row[EQUAL]} | {row[KILLED]} | "
            f"{row[TYPED]} | {row['unseen']} | {share} |"
        )
    yield ""
    yield from alive


def run_modules(modules: Sequence[str], *, share: float, jobs: int) -> None:
    """Try modules in processes of their own, as many at once as `jobs`."""
    environ: Mapping[str, str] = {**os.environ, "OMP_NUM_THREADS": "1"}
    waiting, running = list(modules), dict[int, str]()
    while waiting or running:
        while waiting and len(running) < jobs:
            module = waiting.pop(0)
            command = [sys.executable, __file__, "--module", module, "--share", str(share)]
            started = subprocess.Popen(command, cwd=ROOT, env=environ, stdout=subprocess.DEVNULL)
            running[started.pid] = module
        done, _ = os.wait()
        print(f"{running.pop(done)} is done, {len(waiting)} wait", file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sample", type=int, help="try about so many mutants, drawn by a seed")
    parser.add_argument("--only", default="*", help="modules whose name matches, as gates.family")
    parser.add_argument("--report", action="store_true", help="try none, show what is known")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--module", help=argparse.SUPPRESS)
    parser.add_argument("--share", type=float, default=1.0, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    FOUND.mkdir(exist_ok=True)
    if chosen.module:
        try_module(chosen.module, share=chosen.share)
        return 0
    modules = [name for name in list_modules() if fnmatch.fnmatch(name, chosen.only)]
    if not chosen.report:
        share = 1.0
        if chosen.sample:
            total = sum(1 for module in modules for _ in make_mutants(module))
            share = min(1.0, chosen.sample / total)
        run_modules(modules, share=share, jobs=chosen.jobs)
        check_types(modules)
    print("\n".join(summarise(modules)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
