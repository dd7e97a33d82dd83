"""Two processes that embed, one of which is killed, give the bytes that one process gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from benchmarks import determinism as bench
from pytest_quantgate.run.workers import ProcessWorker

if TYPE_CHECKING:
    from pytest_quantgate.run.workers import Embedded

pytestmark = pytest.mark.slow

LIMIT = "metric: acc1, max_drop: 100pp, max_flips: 90%"


def test_workers_give_the_bytes_of_one_process(
    pytester: pytest.Pytester,
    write_suite: Callable[..., Path],
    run_gates: Callable[..., pytest.RunResult],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("onnxruntime")
    stages = "".join(
        f"\n    - {{task: scenes/{task}, metric: {metric}, max_drop: 100pp, max_flips: 90%,"
        f" samples: 300{stage}}}"
        for task, metric, stage in (
            ("classification", "acc1", ""),
            ("classification", "acc1", ", stage: onnx"),
            ("retrieval", "image_retrieval_recall@5", ", floor: 2%"),
        )
    )
    write_suite(
        replace={
            "  roundtrip: {}\n": "",
            f"\n    - {{task: scenes/classification, {LIMIT}, samples: 64}}": stages,
        }
    )
    asked: list[range] = []
    embed = ProcessWorker.embed

    def embed_or_die(self: ProcessWorker, question: Mapping[str, Any], part: range) -> Embedded:
        asked.append(part)
        if len(asked) == 1:
            self.kill()
        return embed(self, question, part)

    monkeypatch.setattr(ProcessWorker, "embed", embed_or_die)
    runs = []
    for workers in (1, 2):
        folder = pytester.path / f"by-{workers}"
        folder.mkdir()
        result = run_gates(
            f"--quantgate-workers={workers}",
            f"--quantgate-cache-dir={folder / 'cache'}",
            f"--quantgate-baselines-dir={folder / 'baselines'}",
            "--quantgate-baselines=create",
            f"--junitxml={folder / 'junit.xml'}",
            f"--quantgate-json={folder / 'report.json'}",
            f"--quantgate-obtained-dir={folder / 'obtained'}",
        )
        assert result.ret == 0, result.stdout.str()
        runs.append(bench.Run(number=workers, threads=workers, values=bench.collect(folder)))
        if workers == 1:
            assert asked == []

    assert bench.differences(runs) == []
    # Images and texts, in PyTorch and in ONNX Runtime; the range that was lost is asked for again.
    assert asked[0] in asked[1:]
    assert len(asked) % 2 == 1
    assert any(name.endswith(".npy") for name in runs[0].values)


def test_a_suite_that_changed_is_measured_by_nobody(
    pytester: pytest.Pytester,
    write_suite: Callable[..., Path],
    run_gates: Callable[..., pytest.RunResult],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    suite = write_suite(
        replace={
            "  roundtrip: {}\n": "",
            "max_flips: 90%, samples: 64}": "max_flips: 90%, samples: 300}",
        }
    )
    embed = ProcessWorker.embed

    def edit_first(self: ProcessWorker, question: Mapping[str, Any], part: range) -> Embedded:
        text = suite.read_text(encoding="utf-8")
        suite.write_text(text.replace("recipe: fp8-attention", "recipe: fp8"), encoding="utf-8")
        return embed(self, question, part)

    monkeypatch.setattr(ProcessWorker, "embed", edit_first)

    result = run_gates("--quantgate-workers=2")

    assert result.ret == 1
    result.stdout.fnmatch_lines_random(["*a worker has another quantized variant than the*"])


def test_workers_beside_xdist_are_refused(
    write_suite: Callable[..., Path], run_gates: Callable[..., pytest.RunResult]
) -> None:
    pytest.importorskip("xdist")
    write_suite()

    result = run_gates("--quantgate-workers=2", "-n2")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--quantgate-workers and -n would start processes*"])


@pytest.mark.parametrize("text", ["0", "-1", "many", "257", "1.5", ""])
def test_a_number_that_is_none_is_refused(
    text: str, write_suite: Callable[..., Path], run_gates: Callable[..., pytest.RunResult]
) -> None:
    write_suite()

    result = run_gates(f"--quantgate-workers={text}")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*--quantgate-workers={text}: expected a number from 1 to 256*"])
