"""Changes the code that decides, one expression at a time, and counts what the unit tests see.

    make mutants [SAMPLE=150] [ONLY='*gates.family*']

mutmut makes the mutants (`[tool.mutmut]` in pyproject.toml says of which modules, and by which
tests) and keeps what it found in mutants/: a run that was stopped goes on where it ended, and only
functions that were changed since are tried again. A whole run takes hours; SAMPLE draws so many
mutants, the same ones for the same code. Prints each survivor with its line, by kind:

- wording: a text with a space in it is the only difference. What a verdict says is asserted where
  users act on it; that every word of every cause is, would pin the prose and no behaviour.
- behaviour: everything else. Equal mutants are among these: nothing can tell them.
"""

from __future__ import annotations

import argparse
import ast
import functools
import json
import random
import subprocess
import sys
import textwrap
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
MUTANTS = ROOT / "mutants"
#: mutmut makes all mutants before it runs any: the first run is of this one.
FIRST = "pytest_quantgate.verdict.x_combine__mutmut_1"

#: Exit statuses of the tests, as mutmut keeps them; None was not tried.
KILLED = {1, 3, -24, 24, 36, 152}
UNTESTED = {5, 33}


def run_mutmut(names: Sequence[str]) -> None:
    subprocess.run(
        [sys.executable, "-m", "mutmut", "run", "--max-children", "2", *names],
        cwd=ROOT,
        check=False,
        stdout=subprocess.DEVNULL,
    )


def read_results() -> dict[str, int | None]:
    """Return the exit status of each mutant by its name."""
    found: dict[str, int | None] = {}
    for path in sorted(MUTANTS.rglob("*.py.meta")):
        found.update(json.loads(path.read_text(encoding="utf-8"))["exit_code_by_key"])
    return found


@functools.lru_cache(maxsize=1)
def read_lines(module: str) -> list[str]:
    path = MUTANTS / f"{module.replace('.', '/')}.py"
    return path.read_text(encoding="utf-8").splitlines()


def read_function(name: str) -> ast.FunctionDef:
    """Return one function of a module that holds thousands of them, too many to parse at once."""
    module, _, function = name.rpartition(".")
    lines = read_lines(module)
    begin = next(n for n, line in enumerate(lines) if line.lstrip().startswith(f"def {function}("))
    margin = len(lines[begin]) - len(lines[begin].lstrip())
    end = begin + 1
    while end < len(lines) and (
        not lines[end].strip()
        or len(lines[end]) - len(lines[end].lstrip()) > margin
        or lines[end].lstrip().startswith(")")  # of a signature over several lines
    ):
        end += 1
    (found,) = ast.parse(textwrap.dedent("\n".join(lines[begin:end]))).body
    assert isinstance(found, ast.FunctionDef)
    return found


def list_differences(name: str) -> Iterator[tuple[ast.AST | None, ast.AST | None]]:
    """Yield where a mutant and the function that it was made of differ."""
    original = f"{name.rpartition('__mutmut_')[0]}__mutmut_orig"
    yield from _compare(read_function(original).body, read_function(name).body)


def _compare(
    left: Sequence[ast.AST], right: Sequence[ast.AST]
) -> Iterator[tuple[ast.AST | None, ast.AST | None]]:
    if len(left) != len(right):
        yield (left[0] if left else None, right[0] if right else None)
        return
    for one, other in zip(left, right, strict=True):
        if ast.dump(one) == ast.dump(other):
            continue
        children = [list(ast.iter_child_nodes(node)) for node in (one, other)]
        if type(one) is not type(other) or not all(children):
            yield one, other
        else:
            yield from _compare(*children)


def is_wording(name: str) -> bool:
    """Return whether a text for people is all that a mutant changes."""
    found = list(list_differences(name))
    return bool(found) and all(
        isinstance(one, ast.Constant) and isinstance(one.value, str) and " " in one.value
        for one, _ in found
    )


def describe(name: str) -> str:
    one, other = next(list_differences(name), (None, None))
    before, after = (ast.unparse(node) if node else "nothing" for node in (one, other))
    return f"{name}: {before[:70]} -> {after[:70]}"


def summarise(results: Mapping[str, int | None]) -> Iterator[str]:
    """Yield the table by module, then the survivors."""
    tried = {name: status for name, status in results.items() if status is not None}
    alive = {name for name, status in tried.items() if status not in KILLED}
    wording = {name for name in alive if is_wording(name)}
    counts: dict[str, Counter[str]] = {}
    for name in tried:
        module = ".".join(name.split(".")[1:-1])
        kind = "wording" if name in wording else "behaviour" if name in alive else "killed"
        counts.setdefault(module, Counter())[kind] += 1
        counts.setdefault("all", Counter())[kind] += 1
    yield "| module | mutants | killed | alive: behaviour | alive: wording | killed of behaviour |"
    yield "|---|--:|--:|--:|--:|--:|"
    for module, count in sorted(counts.items()):
        judged = count["killed"] + count["behaviour"]
        share = f"{100 * count['killed'] / judged:.1f} %" if judged else "-"
        yield (
            f"| {module} | {count.total()} | {count['killed']} | {count['behaviour']} | "
            f"{count['wording']} | {share} |"
        )
    yield ""
    yield from (f"- {describe(name)}" for name in sorted(alive - wording))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sample", type=int, help="try so many mutants, drawn by a seed")
    parser.add_argument("--only", default="*", help="mutants whose name matches")
    parser.add_argument("--report", action="store_true", help="try none, show what is known")
    chosen = parser.parse_args()
    if not chosen.report:
        run_mutmut([FIRST])
        names = sorted(name for name in read_results() if Path(name).match(chosen.only))
        if chosen.sample:
            names = random.Random(0).sample(names, k=min(chosen.sample, len(names)))
        run_mutmut(names)
        print("\n".join(summarise({name: read_results()[name] for name in names})))
    else:
        print("\n".join(summarise(read_results())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
