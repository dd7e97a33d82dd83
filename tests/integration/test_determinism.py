"""The same digits from cold caches, on one thread and on two."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks import determinism as bench

Run = Callable[..., pytest.RunResult]
WriteSuite = Callable[..., Path]


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def test_cold_runs_give_the_same_digits_on_one_and_two_threads(
    pytester: pytest.Pytester,
    write_suite: WriteSuite,
    run_gates: Run,
    set_threads: Callable[[int], None],
) -> None:
    pytest.importorskip("onnxruntime")
    write_suite(
        replace={
            "  roundtrip: {}\n": "",
            "max_drop: 100pp, max_flips: 90%, samples: 64}": (
                "max_drop: 100pp, max_flips: 90%, samples: 64}\n"
                "    - {task: scenes/classification, metric: acc1, max_drop: 100pp, max_flips: 90%,"
                " samples: 64, stage: onnx}"
            ),
        }
    )
    runs = []
    for threads in (1, 2):
        set_threads(threads)
        folder = pytester.path / f"cold-{threads}"
        folder.mkdir()
        result = run_gates(
            f"--quantgate-cache-dir={folder / 'cache'}",
            f"--quantgate-baselines-dir={folder / 'baselines'}",
            "--quantgate-baselines=create",
            f"--junitxml={folder / 'junit.xml'}",
            f"--quantgate-json={folder / 'report.json'}",
            f"--quantgate-obtained-dir={folder / 'obtained'}",
        )
        result.assert_outcomes(passed=7)
        runs.append(bench.Run(number=threads, threads=threads, values=bench.collect(folder)))

    assert bench.differences(runs) == []
    kinds = {name.partition(" ")[0] for name in runs[0].values}
    assert kinds == {"verdict", "report", "baselines", "cache"}
    assert any(name.endswith("quantizers.0.amax_max") for name in runs[0].values)
    assert any("quantgate.drop_high_points" in name for name in runs[0].values)
    assert any("accuracy[scenes/classification-acc1-onnx]" in name for name in runs[0].values)
    assert any(name.endswith(".npy") for name in runs[0].values)


def test_a_digit_that_moved_is_named() -> None:
    one = bench.Run(number=1, threads=1, values={"verdict a": "1.0", "cache b": "c" * 64})
    two = bench.Run(number=2, threads=2, values={"verdict a": "1.1", "cache b": "c" * 64})
    three = bench.Run(number=3, threads=2, values={"verdict a": "1.1"})

    assert bench.differences([one, two]) == [("verdict a", ["1.0", "1.1"])]
    assert [name for name, _ in bench.differences([two, three])] == ["cache b"]
    page = bench.render([one, two], suites=[Path("s.quantgate.yaml")], select="all")
    assert "| all runs | 2 | 1 | 0 | 0 | 1 | 1 |" in page
    assert "| verdict a | 1.0, 1.1 |" in page
