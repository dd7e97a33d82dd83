"""SECURITY.md: who can write what and what they can reach, each cell with a test that exists."""

from __future__ import annotations

import ast
import os
import re
import stat
from pathlib import Path

import pytest

from pytest_quantgate.store.disk import temporary_folder

REPOSITORY = Path(__file__).parents[2]
PACKAGE = REPOSITORY / "pytest_quantgate"


def read_table() -> list[list[str]]:
    text = (REPOSITORY / "SECURITY.md").read_text(encoding="utf-8")
    section = text.partition("## Who can write what")[2].partition("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row] for row in rows]


def test_every_cell_says_what_holds_and_names_a_test_that_exists() -> None:
    head, _, *rows = read_table()
    known = {
        node.name
        for path in (REPOSITORY / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.FunctionDef)
    }

    assert len(rows) == 6
    for row in rows:
        assert len(row) == len(head) == 6, row[0]
        for what, cell in zip(head[1:], row[1:], strict=True):
            named = re.findall(r"`(test_\w+)`", cell)
            assert set(named) <= known, set(named) - known
            said = cell.startswith(
                ("no, as files", "no: nothing of the environment", "not defended")
            )
            assert named or said, f"{row[0]}: {what}: {cell}"


def test_temporary_folders_are_one_users_alone() -> None:
    before = os.umask(0)
    try:
        with temporary_folder() as folder:
            assert stat.S_IMODE(folder.stat().st_mode) == 0o700
            assert folder.stat().st_uid == os.getuid()
    finally:
        os.umask(before)


@pytest.mark.parametrize("path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: path.name)
def test_no_temporary_name_is_made_up(path: Path) -> None:
    """The standard library chooses each name, makes it at once, and for its user alone."""
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "tempfile":
            assert node.attr in (
                "mkstemp", "mkdtemp", "TemporaryDirectory", "TemporaryFile", "NamedTemporaryFile",
                "gettempdir",
            ), node.lineno  # fmt: skip
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert not node.value.startswith(("/tmp", "/var/tmp", "/dev/shm")), node.lineno
