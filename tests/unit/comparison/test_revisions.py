"""Revisions of git: what `main...HEAD` reads, and what is said where it cannot be read."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_quantgate.comparison.changes import Comparison, DiffError
from pytest_quantgate.comparison.paths import compare_trees
from pytest_quantgate.comparison.revisions import extract, resolve_range, split_range

SUITE = """\
quantgate: 1
model: {source: reference}
calibration: {data: scenes/calibration, samples: 512, batch_size: 64}
quantize: {recipe: fp8}
gates:
  accuracy:
    - {task: scenes/classification, metric: acc1, max_drop: 1pp}
"""

Git = Callable[..., str]


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Git]:
    """A repository whose main has one suite, and whose branch loosens its limit."""
    for name in [name for name in os.environ if name.startswith("GIT_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")
    folder = tmp_path / "repository"
    folder.mkdir()

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-c", "user.name=x", "-c", "user.email=x@x", *arguments],
            cwd=folder,
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()

    def commit(text: str, message: str) -> None:
        (folder / "suites").mkdir(exist_ok=True)
        (folder / "suites" / "clip.quantgate.yaml").write_text(text, encoding="utf-8")
        git("add", "-A")
        git("commit", "-q", "-m", message)

    git("init", "-q", "-b", "main")
    commit(SUITE, "one")
    git("switch", "-q", "-c", "branch")
    commit(SUITE.replace("1pp", "2pp"), "two")
    git("switch", "-q", "main")
    commit(SUITE.replace("fp8}", "int8}"), "three")
    git("switch", "-q", "branch")
    return folder, git


@pytest.fixture
def compare(repository: tuple[Path, Git], tmp_path: Path) -> Callable[..., Comparison]:
    def run(text: str, *, below: str = ".") -> Comparison:
        room = tmp_path / "room"
        shutil.rmtree(room, ignore_errors=True)
        room.mkdir()
        return compare_trees(
            text, baselines="baselines", suites="suites", here=repository[0] / below, room=room
        )

    return run


LOOSENED = "clip accuracy[scenes/classification-acc1].max_drop"


def subjects(found: Comparison) -> set[str]:
    return {subject for change in found.changes for subject in change.subjects}


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("main...HEAD", ("main", "...", "HEAD")),
        ("main..HEAD", ("main", "..", "HEAD")),
        ("main...", ("main", "...", "HEAD")),
        ("..topic", ("HEAD", "..", "topic")),
        ("v1.2..v1.3", ("v1.2", "..", "v1.3")),
        ("main", None),
        ("../other", None),
        ("a/../b", None),
        ("..", None),
    ],
)
def test_ranges_are_told_from_paths(text: str, parts: tuple[str, str, str] | None) -> None:
    assert split_range(text) == parts


def test_three_dots_take_the_merge_base(compare: Callable[..., Comparison]) -> None:
    found = compare("main...HEAD")

    assert subjects(found) == {LOOSENED}
    assert found.after == "HEAD"
    assert found.before.startswith("main at ")


def test_two_dots_take_both_ends(compare: Callable[..., Comparison]) -> None:
    found = compare("main..HEAD")

    assert LOOSENED in subjects(found)
    assert "clip quantize.recipe" in subjects(found)


def test_one_revision_is_compared_with_the_work_tree(
    compare: Callable[..., Comparison], repository: tuple[Path, Git]
) -> None:
    assert not compare("HEAD").is_different
    (repository[0] / "suites" / "clip.quantgate.yaml").write_text(SUITE, encoding="utf-8")

    found = compare("HEAD")

    assert [(c.kind, c.before, c.after) for c in found.changes] == [("tightened", "2pp", "1pp")]
    assert found.after == "work tree"


def test_places_are_those_of_the_repository(compare: Callable[..., Comparison]) -> None:
    texts = [change.text for change in compare("main..branch").changes]

    assert texts
    assert all("(suites/clip.quantgate.yaml:" in text or "recipe entry" in text for text in texts)


def test_same_revision_is_the_same(compare: Callable[..., Comparison]) -> None:
    assert not compare("HEAD...HEAD").is_different


def test_nothing_of_the_repository_is_touched(
    compare: Callable[..., Comparison], repository: tuple[Path, Git]
) -> None:
    folder, git = repository
    (folder / "suites" / "clip.quantgate.yaml").write_text("# edited\n" + SUITE, encoding="utf-8")
    index = (folder / ".git" / "index").read_bytes()
    status = git("--no-optional-locks", "status", "--porcelain")

    compare("main...HEAD")

    assert (folder / ".git" / "index").read_bytes() == index
    assert git("--no-optional-locks", "status", "--porcelain") == status
    assert git("stash", "list") == ""


def test_folders_are_those_below_where_it_is_run(
    compare: Callable[..., Comparison], repository: tuple[Path, Git]
) -> None:
    folder, git = repository
    (folder / "sub").mkdir()
    git("mv", "suites", "sub/suites")
    git("commit", "-q", "-m", "move")

    found = compare("HEAD~1..HEAD", below="sub")

    assert [(c.kind, c.subjects) for c in found.changes] == [("added", ("clip",))]


def test_names_of_any_kind_and_links_are_read(repository: tuple[Path, Git], tmp_path: Path) -> None:
    folder, git = repository
    (folder / "suites" / "a b\n\u00fc.txt").write_text("x\n\n", encoding="utf-8")
    (folder / "suites" / "link").symlink_to("/etc/hostname")
    git("add", "-A")
    git("commit", "-q", "-m", "odd names")

    found = extract(git("rev-parse", "HEAD"), paths=["suites"], folder=folder, into=tmp_path / "x")

    assert found == ["suites/a b\n\u00fc.txt", "suites/clip.quantgate.yaml"]
    assert (tmp_path / "x" / found[0]).read_text(encoding="utf-8") == "x\n\n"


def test_invalid_suite_names_its_side(
    compare: Callable[..., Comparison], repository: tuple[Path, Git]
) -> None:
    folder, git = repository
    (folder / "suites" / "clip.quantgate.yaml").write_text("quantgate: 9\n", encoding="utf-8")
    git("commit", "-q", "-am", "broken")

    with pytest.raises(DiffError, match=r"^HEAD: suites/clip\.quantgate\.yaml:1: "):
        compare("main..HEAD")


def test_revisions_without_the_folders_are_trouble(
    repository: tuple[Path, Git], tmp_path: Path
) -> None:
    with pytest.raises(DiffError, match="neither main nor HEAD has nothing/ or none/ here"):
        compare_trees(
            "main..HEAD",
            baselines="nothing",
            suites="none",
            here=repository[0],
            room=tmp_path / "room",
        )


def test_outside_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))

    with pytest.raises(DiffError) as caught:
        resolve_range("main...HEAD", folder=tmp_path)

    assert str(caught.value) == f"{tmp_path} is in no git repository: revisions need one"


@pytest.mark.parametrize("name", ["nope", "-x", "a b", "HEAD:suites", "@{", "\\"])
def test_unknown_revision_is_named(repository: tuple[Path, Git], name: str) -> None:
    with pytest.raises(DiffError) as caught:
        resolve_range(f"{name}..HEAD", folder=repository[0])

    assert repr(name) in str(caught.value)


def test_shallow_clone_says_how_to_deepen_it(repository: tuple[Path, Git], tmp_path: Path) -> None:
    clone = tmp_path / "clone"
    subprocess.run(
        ["git", "clone", "-q", "--depth=1", "--no-single-branch", f"file://{repository[0]}", clone],
        check=True,
        capture_output=True,
    )

    with pytest.raises(DiffError, match="have no common ancestor here: this is a shallow clone"):
        resolve_range("origin/main...HEAD", folder=clone)
    with pytest.raises(DiffError, match=r"'HEAD~1' is no commit .* git fetch --unshallow"):
        resolve_range("HEAD~1..HEAD", folder=clone)


def test_unrelated_histories_are_named(repository: tuple[Path, Git]) -> None:
    folder, git = repository
    git("switch", "-q", "--orphan", "other")
    git("commit", "-q", "--allow-empty", "-m", "alone")

    with pytest.raises(DiffError, match=r"no common ancestor: compare them directly with main\.\."):
        resolve_range("main...other", folder=folder)


def test_git_that_is_not_there(
    repository: tuple[Path, Git], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")

    with pytest.raises(DiffError, match="git is not installed"):
        resolve_range("main...HEAD", folder=repository[0])
