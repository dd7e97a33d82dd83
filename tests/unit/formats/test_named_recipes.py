"""The product's own recipes as data: names, configurations that nobody shares, and their table."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from pytest_quantgate.formats.recipes import RECIPES, AutoRecipe, read_auto
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


@pytest.mark.parametrize(
    ("name", "bits"),
    [
        ("fp8", 8),
        ("int4", 4 + 16 / 128),
        ("nvfp4", 4.5),
        ("mxfp6", 6.25),
        ("fp8-blocks", 8 + 2**-10),
    ],
)
def test_bits_of_a_weight_count_the_scales_of_its_blocks(name: str, bits: float) -> None:
    assert RECIPES[name].weight_bits == bits


def test_a_search_is_read_and_everything_else_is_none() -> None:
    asked = read_auto({"auto": {"bits": 6, "formats": ["nvfp4", "fp8"]}})

    assert asked == AutoRecipe(bits=6.0, formats=("nvfp4", "fp8"))
    assert [row.name for row in asked.rows] == ["nvfp4", "fp8"]
    written: tuple[object, ...] = ("fp8", {"quant_cfg": []}, ({"quantizer_name": "*"},), "")
    for recipe in written:
        assert read_auto(recipe) is None


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({"bits": 6}, "auto takes bits and formats and nothing else"),
        (
            {"bits": 6, "formats": ["fp8"], "seed": 1},
            "auto takes bits and formats and nothing else",
        ),
        (6, "auto takes bits and formats and nothing else"),
        ({"bits": "six", "formats": ["fp8"]}, "auto.bits is 'six': expected a number between 0"),
        ({"bits": True, "formats": ["fp8"]}, "auto.bits is True"),
        ({"bits": 16, "formats": ["fp8"]}, "auto.bits is 16: expected a number between 0 and 16"),
        ({"bits": float("nan"), "formats": ["fp8"]}, "auto.bits is nan"),
        ({"bits": 9, "formats": []}, "auto.formats is []: expected a list of recipes"),
        ({"bits": 9, "formats": "fp8"}, "auto.formats is 'fp8': expected a list"),
        ({"bits": 9, "formats": ["fp9"]}, "'fp9' is unknown; one of fp8, fp8-per-channel"),
        ({"bits": 9, "formats": [["fp8"]]}, "is unknown"),
        ({"bits": 9, "formats": ["int4-awq"]}, "'int4-awq' is not chosen layer by layer"),
        ({"bits": 9, "formats": ["fp8-attention"]}, "is not chosen layer by layer"),
        ({"bits": 9, "formats": ["fp8", "fp8"]}, "names a recipe twice"),
        (
            {"bits": 4, "formats": ["fp8", "nvfp4"]},
            "nvfp4, the narrowest of its formats, takes 4.5",
        ),
    ],
)
def test_a_wrong_search_says_what_is_wrong(asked: object, error: str) -> None:
    with pytest.raises(ValueError, match=re.escape(error)):
        read_auto({"auto": asked})
