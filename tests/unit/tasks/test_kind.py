"""The door for tasks: names, metrics, towers, code of others and of one's own."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

from pytest_quantgate.errors import DataError, ModelError
from pytest_quantgate.tasks import kind as door
from pytest_quantgate.tasks.kind import (
    BUILTIN,
    GROUP,
    TaskKind,
    check_own,
    check_towers,
    find_package,
    find_task,
    list_names,
)


@pytest.mark.parametrize("name", BUILTIN)
def test_every_task_of_the_package_is_whole(name: str) -> None:
    kind = find_task(f"data/{name}")

    assert (kind.name, kind.help != "", kind.metrics != ()) == (name, True, True)
    for metric in kind.proposed:
        kind.check_metric(metric)
    assert kind.has_classes or kind.chance is not None  # each knows what guessing gives
    assert find_package(f"data/{name}") is None


@pytest.mark.parametrize(
    ("task", "metric", "message"),
    [
        ("d/classification", "acc2", "'acc2' is no metric of classification: acc1, acc5"),
        ("d/classification", "acc_1", "did you mean acc1?"),
        ("d/retrieval", "recall@5", "image_retrieval_recall@K, text_retrieval_recall@K"),
        ("d/retrieval", "image_retrieval_recall@0", "is no metric"),
        ("d/retrieval", "image_retrieval_recall@K", "is no metric"),
        ("d/knn", "acc1@", "is no metric of knn"),
        ("d/neighbours", "overlap", "is no metric of neighbours: top1, overlap@K"),
    ],
)
def test_a_metric_that_is_not_there_is_named(task: str, metric: str, message: str) -> None:
    with pytest.raises(DataError) as caught:
        find_task(task).check_metric(metric)

    assert message in str(caught.value)


def test_a_model_without_texts_is_told_what_it_can_do() -> None:
    check_towers(("vision",), task="photos/knn", model="vit")
    with pytest.raises(ModelError) as caught:
        check_towers(("vision",), task="photos/classification", model="vit")

    assert str(caught.value) == (
        "vit has no text tower, and photos/classification needs one (zero-shot: images against "
        "class names in templates): judge it by photos/knn (with labels) or photos/neighbours "
        "(without)"
    )


KIND = TaskKind(name="mine", help="of the tests", score=lambda inputs: inputs)  # type: ignore[arg-type,return-value]


def install(monkeypatch: pytest.MonkeyPatch, *points: tuple[str, str]) -> None:
    """Make entry points known, as packages that are installed would."""
    found = [EntryPoint(name=name, value=value, group=GROUP) for name, value in points]

    def entry_points(*, group: str, name: str | None = None) -> list[EntryPoint]:
        return [p for p in found if p.group == group and name in (None, p.name)]

    monkeypatch.setattr(door.importlib.metadata, "entry_points", entry_points)  # type: ignore[attr-defined]


def test_a_task_of_another_package_is_found_by_its_entry_point(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install(monkeypatch, ("mine", f"{__name__}:KIND"))

    assert find_task("shop/mine") is KIND
    assert list_names() == (*BUILTIN, "mine")
    assert find_package("shop/mine") == __name__.partition(".")[0]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (f"{__name__}:install", "the entry point mine of pytest_quantgate.tasks is not a TaskKind"),
        ("no_such_package:KIND", "the task mine (no_such_package:KIND) cannot be imported: Module"),
        (f"{__name__}:NOTHING", "cannot be imported: AttributeError"),
    ],
)
def test_an_entry_point_that_is_no_task_is_named(
    value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, ("mine", value))
    with pytest.raises(DataError) as caught:
        find_task("shop/mine")

    assert message in str(caught.value)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the name of a module with tasks of one's own."""
    (tmp_path / "own_tasks_of_tests.py").write_text(
        "from pytest_quantgate.tasks.kind import TaskKind\n"
        "LIMIT = 3\n"
        "def same(inputs):\n    return [True, 0, 1.0]\n"
        "def graded(inputs):\n    import torch\n    return torch.tensor([0.5, 1.0])\n"
        "def odd(inputs):\n    return [True, 'yes']\n"
        "def none(inputs):\n    return None\n"
        "KIND = TaskKind(name='whole', help='h', score=same)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_tasks_of_tests", raising=False)
    return "own_tasks_of_tests"


def test_a_function_of_ones_own_gives_one_outcome_a_sample(own: str) -> None:
    kind = find_task(f"shop/{own}:same")
    inputs: Any = None

    assert kind.score(inputs).correct == [True, 0, 1.0]
    assert find_task(f"shop/{own}:graded").score(inputs).correct == [0.5, 1.0]
    assert find_task(f"shop/{own}:KIND").name == "whole"
    assert find_package(f"shop/{own}:same") == own
    kind.check_metric("ndcg@10")
    with pytest.raises(DataError, match="is no name of a metric"):
        kind.check_metric("../up")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("odd", r"an outcome is true, false or a score in \[0, 1\], not 'yes'"),
        ("none", r"a task gives one outcome a sample, not NoneType"),
    ],
)
def test_what_is_no_outcome_is_named(own: str, name: str, message: str) -> None:
    inputs: Any = None
    with pytest.raises(DataError, match=message):
        find_task(f"shop/{own}:{name}").score(inputs)


def test_what_is_no_task_of_ones_own_is_named(own: str) -> None:
    with pytest.raises(DataError, match="is int, neither a TaskKind nor a function"):
        find_task(f"shop/{own}:LIMIT")
    with pytest.raises(DataError, match=f"the task {own}:nothing cannot be imported: Attribute"):
        find_task(f"shop/{own}:nothing")


@pytest.mark.parametrize("name", ["a b:c", "mod:", ":f", "mod:f()", "a..b:c", "1a:f"])
def test_code_of_ones_own_is_spelt_as_python_does(name: str) -> None:
    with pytest.raises(DataError, match="is no task"):
        check_own(f"shop/{name}")
