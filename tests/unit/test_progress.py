"""Progress: silent, one line a stage in a log, one redrawn line on a terminal."""

from __future__ import annotations

import pytest

from pytest_quantgate.run.progress import Progress, silent


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_silent_writes_nothing() -> None:
    with silent().stage("calibrating", total=3) as advance:
        advance(3)


def test_log_writes_one_line_a_stage() -> None:
    written: list[str] = []
    with Progress(mode="log", write=written.append).stage("calibrating", total=512) as advance:
        advance(64)
        advance(64)

    assert written == ["\nquantgate: calibrating (512) "]


def test_terminal_redraws_not_too_often_and_cleans_up() -> None:
    written: list[str] = []
    clock = Clock()
    progress = Progress(mode="live", write=written.append, clock=clock)
    with progress.stage("calibrating", total=512) as advance:
        advance(64)  # too soon after the first drawing
        clock.now = 3.2
        advance(64)

    assert [text.rpartition("\033[K")[2] for text in written] == [
        "\033D\033[A\0337",
        "quantgate: calibrating 0/512, 0 s",
        "quantgate: calibrating 128/512, 3 s",
        "\0338",
    ]


def test_long_work_gets_a_bar_and_an_estimate() -> None:
    written: list[str] = []
    clock = Clock()
    progress = Progress(mode="live", write=written.append, clock=clock)
    with progress.stage("leaving out", total=40) as advance:
        clock.now = 6.0
        advance(10)
        clock.now = 12.0
        advance(30)

    assert [text.rpartition("\033[K")[2] for text in written[2:4]] == [
        "quantgate: [#####---------------] about 18 s left, leaving out 10/40",
        "quantgate: [####################] about 0 s left, leaving out 40/40",
    ]


def test_terminal_is_cleaned_when_the_work_fails() -> None:
    written: list[str] = []
    with (
        pytest.raises(KeyboardInterrupt),
        Progress(mode="live", write=written.append).stage("calibrating"),
    ):
        raise KeyboardInterrupt

    assert written[-1].endswith("\0338")


def test_line_never_wraps() -> None:
    written: list[str] = []
    with Progress(mode="live", write=written.append, width=20).stage("a" * 100):
        pass

    assert len(written[1].rpartition("\033[K")[2]) == 19


def test_a_stage_within_a_stage_keeps_the_place_of_the_dots() -> None:
    written: list[str] = []
    progress = Progress(mode="live", write=written.append, clock=Clock())
    with progress.stage("embedding"), progress.stage("loading"):
        pass
    below = "\0338\033D\r\033[K"
    assert written == [
        "\033D\033[A\0337",  # the only place that is saved
        f"{below}quantgate: embedding, 0 s",
        f"{below}quantgate: loading, 0 s",
        below,
        f"{below}\0338",
    ]
