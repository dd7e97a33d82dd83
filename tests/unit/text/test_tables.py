"""Cells below each other: as wide as the widest, numbers at the right."""

from __future__ import annotations

import pytest

from pytest_quantgate.text.tables import align

ROWS = [("gate", "flips", ""), ("accuracy", "3%", "why"), ("x", "12.5%", "")]


def test_columns_are_as_wide_as_their_widest_cell_and_lines_end_with_text() -> None:
    assert align(ROWS) == ["gate      flips", "accuracy  3%     why", "x         12.5%"]
    assert align(ROWS, right=(1,)) == ["gate      flips", "accuracy     3%  why", "x         12.5%"]


def test_rows_of_another_number_of_cells_are_refused() -> None:
    with pytest.raises(ValueError, match="zip"):
        align([("a", "b"), ("c",)])
