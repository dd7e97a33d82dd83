"""The product's own recipes as data: names, configurations that nobody shares, and their table."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pytest_quantgate.formats.recipes import RECIPES
from pytest_quantgate.formats.table import TABLE

PAGE = Path(__file__).parents[3] / "docs" / "formats.md"


def test_names_are_what_a_suite_can_write() -> None:
    for name, row in RECIPES.items():
        assert row.name == name
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name)
        assert row.says


@pytest.mark.parametrize("name", RECIPES)
def test_a_configuration_is_a_copy(name: str) -> None:
    config = RECIPES[name].to_config()
    for entry in config["quant_cfg"]:
        if isinstance(entry.get("cfg"), dict):
            entry["cfg"]["num_bits"] = 2

    assert RECIPES[name].to_config() != config


def test_every_kind_of_blocks_has_a_recipe() -> None:
    """But for the two Microscaling elements that no preset of ModelOpt's uses."""
    without = {row.name for row in TABLE if row.scale_bits and not _is_used(row.num_bits, row)}

    assert without == {"MXFP8 E5M2", "MXFP6 E2M3"}


def _is_used(num_bits: object, row: object) -> bool:
    scale = getattr(row, "scale_bits", None)
    return any(
        settings["num_bits"] == num_bits
        and settings.get("block_sizes", {}).get("scale_bits") == scale
        for recipe in RECIPES.values()
        for settings in recipe.weight
    )


def test_the_page_of_formats_has_a_row_for_every_recipe() -> None:
    """A new recipe is measured: python benchmarks/formats.py."""
    rows = re.findall(r"^\| `([\w-]+)` \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)

    assert rows == list(RECIPES)
