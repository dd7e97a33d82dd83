"""Where reports may go: nobody else's file, and no place that cannot be written."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pytest_quantgate.errors import ReportError
from pytest_quantgate.report.files import MARKS, append_to, check_targets, replace_file
from pytest_quantgate.store.settings import Targets


def refuse(targets: Targets) -> str:
    with pytest.raises(ReportError) as caught:
        check_targets(targets)
    return str(caught.value)


def test_new_places_are_fine_and_nothing_is_made_yet(tmp_path: Path) -> None:
    check_targets(
        Targets(directory=tmp_path / "a/b", markdown=tmp_path / "c/d.md", json=tmp_path / "e.json")
    )

    assert list(tmp_path.iterdir()) == []


def test_folder_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")

    assert refuse(Targets(directory=tmp_path / "out")) == (
        f"--quantgate-report={tmp_path}/out: this is a file: name a folder, which will hold "
        f"index.html and report.json"
    )


@pytest.mark.parametrize("name", ["index.html", "report.json"])
def test_foreign_file_in_the_folder_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("<html>my own page</html>")

    assert refuse(Targets(directory=tmp_path)) == (
        f"--quantgate-report: {tmp_path}/{name} was not written by pytest-quantgate and is left "
        f"as it is: choose another place, or move it away"
    )
    assert (tmp_path / name).read_text() == "<html>my own page</html>"


def test_file_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    assert refuse(Targets(markdown=tmp_path / "file/a/b.md")) == (
        f"--quantgate-markdown: {tmp_path}/file/a/b.md cannot be written: {tmp_path}/file is no "
        f"folder"
    )


def test_folder_for_a_file_is_refused(tmp_path: Path) -> None:
    assert refuse(Targets(json=tmp_path)) == (
        f"--quantgate-json: {tmp_path} is a folder: name a file"
    )


def test_link_and_pipe_are_refused(tmp_path: Path) -> None:
    (tmp_path / "own.json").write_text("")  # ours to replace, were it not for the link
    (tmp_path / "link").symlink_to(tmp_path / "own.json")
    os.mkfifo(tmp_path / "pipe")

    for name in ("link", "pipe"):
        assert "is no regular file" in refuse(Targets(json=tmp_path / name))


def test_one_place_for_two_kinds_is_refused(tmp_path: Path) -> None:
    same = tmp_path / "out"

    assert refuse(Targets(markdown=same, json=same)) == (
        f"{same}: --quantgate-markdown and --quantgate-json name the same file"
    )
    check_targets(Targets(directory=tmp_path, json=tmp_path / "report.json"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_folder_without_the_right_to_write_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)

    assert "no right to write in" in refuse(Targets(json=tmp_path / "r.json"))


def test_own_file_and_empty_file_are_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "new/report.md"

    for text in (f"{MARKS['markdown']} 1 -->\nlong text", f"{MARKS['markdown']} 1 -->\n"):
        replace_file(path, text, kind="markdown", option="--quantgate-markdown")
        assert path.read_text() == text
    path.write_text("")
    replace_file(path, "x", kind="markdown", option="--quantgate-markdown")

    assert [p.name for p in path.parent.iterdir()] == ["report.md"]
    assert path.stat().st_mode & 0o777 == 0o644


def test_file_that_became_foreign_meanwhile_is_left(tmp_path: Path) -> None:
    path = tmp_path / "r.md"
    path.write_text("notes of somebody")

    with pytest.raises(ReportError, match="was not written by pytest-quantgate"):
        replace_file(path, "x", kind="markdown", option="--quantgate-markdown")

    assert path.read_text() == "notes of somebody"


def test_text_that_is_no_unicode_is_written_as_escapes(tmp_path: Path) -> None:
    replace_file(tmp_path / "r.md", "a\udc80b", kind="markdown", option="x")

    assert (tmp_path / "r.md").read_bytes() == rb"a\udc80b"


def test_step_summary_is_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "summary"
    path.write_text("before\n")
    append_to(path, "after\n")

    assert path.read_text() == "before\n\nafter\n"
    with pytest.raises(ReportError, match="cannot write the step summary"):
        append_to(tmp_path / "no/summary", "x")
