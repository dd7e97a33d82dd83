"""Recipes: names, ModelOpt's presets and ids, files, inline forms; and what is no recipe."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pytest_quantgate.errors import MissingPackage, ModelError
from pytest_quantgate.formats.recipes import RECIPES
from pytest_quantgate.formats.table import name_format
from pytest_quantgate.quantization.modelopt import import_modelopt
from pytest_quantgate.quantization.recipes import (
    Recipe,
    check_modelopt_version,
    describe_content,
    is_own_recipe,
    named_recipes,
    resolve_recipe,
    to_modelopt,
)
from pytest_quantgate.suite.specs import QuantizeSpec
from pytest_quantgate.suite.where import Where

MakeRecipe = Callable[[Any], Recipe]

E4M3 = {"num_bits": [4, 3], "axis": None}

#: NVIDIA's CLIP recipe in the form in which it was published: `default` stands last.
PUBLISHED = {
    "*weight_quantizer": E4M3,
    "*input_quantizer": E4M3,
    "*output_quantizer": {"enable": False},
    "*[qkv]_bmm_quantizer": E4M3,
    "*bmm2_output_quantizer": E4M3,
    "default": {"enable": False},
}


@pytest.mark.parametrize(
    ("name", "formats", "attention"),
    [
        ("fp8", ("E4M3",), "automatic"),
        ("fp8-attention", ("E4M3",), "diffusers"),
        ("int8", ("INT8",), "automatic"),
        ("int8-smoothquant", ("INT8",), "automatic"),
        ("FP8_DEFAULT_CFG", ("E4M3",), "automatic"),
        ("huggingface/vit/ptq/fp8", ("E4M3",), "automatic"),
        ({"quant_cfg": PUBLISHED, "algorithm": "max"}, ("E4M3",), "diffusers"),
        ({"*weight_quantizer": {"num_bits": 4, "axis": 0}}, ("INT4",), "automatic"),
    ],
)
def test_formats_and_attention_class(
    name: Any, formats: tuple[str, ...], attention: str, make_recipe: MakeRecipe
) -> None:
    recipe = make_recipe(name)
    assert recipe.formats == formats
    assert recipe.attention == attention


def test_own_recipes_leave_norms_and_embeddings_alone(make_recipe: MakeRecipe) -> None:
    for name in named_recipes():
        entries = make_recipe(name).quant_cfg
        assert entries[0]["quantizer_name"] == "*"
        assert not entries[0]["enable"]
        for entry in entries[1:]:
            bmm = "bmm" in entry["quantizer_name"]
            assert bmm or entry["parent_class"] in ("nn.Linear", "nn.Conv2d"), entry


#: The product's recipes that are one of ModelOpt's presets on all towers, and on layers alone.
PRESETS = {
    "fp8": "FP8_DEFAULT_CFG",
    "fp8-per-token": "FP8_PER_CHANNEL_PER_TOKEN_CFG",
    "fp8-blocks": "FP8_2D_BLOCKWISE_WEIGHT_ONLY_CFG",
    "int8": "INT8_DEFAULT_CFG",
    "int8-smoothquant": "INT8_SMOOTHQUANT_CFG",
    "int8-weight-only": "INT8_WEIGHT_ONLY_CFG",
    "int4": "INT4_BLOCKWISE_WEIGHT_ONLY_CFG",
    "int4-awq": "INT4_AWQ_CFG",
    "w4a8-awq": "W4A8_AWQ_BETA_CFG",
    "nvfp4": "NVFP4_DEFAULT_CFG",
    "nvfp4-weight-only": "W4A16_NVFP4_CFG",
    "nvfp4-mse": "NVFP4_W4A4_WEIGHT_MSE_FP8_SWEEP_CFG",
    "nvfp4-awq": "NVFP4_AWQ_LITE_CFG",
    "nvfp4-svdquant": "NVFP4_SVDQUANT_DEFAULT_CFG",
    "mxfp8": "MXFP8_DEFAULT_CFG",
    "mxfp6": "MXFP6_DEFAULT_CFG",
    "mxfp4": "MXFP4_DEFAULT_CFG",
    "mxint8": "MXINT8_DEFAULT_CFG",
}


@pytest.mark.parametrize(("name", "preset"), PRESETS.items())
def test_own_recipe_quantizes_as_modelopts_preset_does(
    name: str, preset: str, make_recipe: MakeRecipe
) -> None:
    own, theirs = make_recipe(name), make_recipe(preset)

    def settings(recipe: Recipe) -> dict[str, Any]:
        parts = {
            entry["quantizer_name"]: entry["cfg"]
            for entry in recipe.quant_cfg
            if entry["enable"] and entry["parent_class"] in (None, "nn.Linear")
        }
        for cfg in parts.values():
            if isinstance(cfg, dict):
                cfg.pop("effective_bits", None)  # for AutoQuantize's search
                cfg.setdefault("axis", None)
        return parts

    assert settings(own) == settings(theirs)
    assert (own.algorithm, own.formats) == (theirs.algorithm, theirs.formats)


def test_every_own_recipe_is_in_the_guide() -> None:
    guide = (Path(__file__).parents[3] / "docs/guides/own-model.md").read_text(encoding="utf-8")
    rows = [f"| `{row.name}` | {row.says} |" for row in RECIPES.values()]

    assert "\n".join(rows) in guide


def test_default_of_the_dict_form_comes_first(make_recipe: MakeRecipe) -> None:
    entries = make_recipe({"quant_cfg": PUBLISHED, "algorithm": "max"}).quant_cfg
    assert (entries[0]["quantizer_name"], entries[0]["enable"]) == ("*", False)
    assert [entry["quantizer_name"] for entry in entries[1:]] == [
        name for name in PUBLISHED if name != "default"
    ]


def test_preset_is_used_exactly_as_it_is(make_recipe: MakeRecipe) -> None:
    import modelopt.torch.quantization as mtq

    entries = make_recipe("FP8_DEFAULT_CFG").quant_cfg
    assert len(entries) == len(mtq.FP8_DEFAULT_CFG["quant_cfg"])
    assert {"*vision_model*", "*visual*"} <= {
        entry["quantizer_name"] for entry in entries if not entry["enable"]
    }


def test_other_content_under_the_same_name_is_described_by_other_lines(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where a new release of ModelOpt changes a preset."""
    mtq = import_modelopt("modelopt.torch.quantization")
    before = describe_content(make_recipe("FP8_DEFAULT_CFG"))
    again = describe_content(make_recipe("FP8_DEFAULT_CFG"))
    entries = [
        {**entry, "cfg": {"num_bits": 8, "axis": None}}
        if entry["quantizer_name"] == "*input_quantizer"
        else entry
        for entry in mtq.FP8_DEFAULT_CFG["quant_cfg"]
    ]
    monkeypatch.setattr(mtq, "FP8_DEFAULT_CFG", {**mtq.FP8_DEFAULT_CFG, "quant_cfg": entries})
    after = describe_content(make_recipe("FP8_DEFAULT_CFG"))

    assert before == again
    assert [line for line in after if line not in before] == [
        '*input_quantizer: {"axis": null, "num_bits": 8}'
    ]
    assert before[-2:] == ('algorithm: "max"', "attention class: automatic")
    assert len(before) == len(after)


def test_blocks_written_in_a_suite_are_axes(make_recipe: MakeRecipe) -> None:
    """A suite's keys are texts."""
    blocks = {"-1": 16, "type": "dynamic", "scale_bits": [4, 3]}
    cfg = {"num_bits": [2, 1], "block_sizes": blocks}
    entry = {"quantizer_name": "*weight_quantizer", "cfg": cfg}

    recipe = make_recipe([entry])

    assert recipe.formats == ("NVFP4",)
    (made,) = to_modelopt(recipe)["quant_cfg"]
    assert made["cfg"]["block_sizes"] == {-1: 16, "type": "dynamic", "scale_bits": (4, 3)}


@pytest.mark.parametrize("name", RECIPES)
def test_every_own_recipe_is_described_in_lines(name: str, make_recipe: MakeRecipe) -> None:
    """Blocks have axes and words as their keys, which do not sort."""
    lines = describe_content(make_recipe(name))

    assert lines[-2].startswith("algorithm: ")
    assert any("num_bits" in line for line in lines)


def test_order_of_entries_is_content(make_recipe: MakeRecipe) -> None:
    off, fp8 = {"quantizer_name": "*", "enable": False}, {"quantizer_name": "*q_bmm_quantizer"}
    cfg = {"cfg": {"num_bits": (4, 3)}}

    first = describe_content(make_recipe([off, {**fp8, **cfg}]))
    last = describe_content(make_recipe([{**fp8, **cfg}, off]))

    assert sorted(first) == sorted(last)
    assert first != last
    assert first[0] == "*: off"


def test_bare_list_and_whole_configuration_are_the_same(make_recipe: MakeRecipe) -> None:
    entries = [
        {"quantizer_name": "*", "enable": False},
        {"quantizer_name": "*weight_quantizer", "cfg": {"num_bits": 3, "axis": 0}},
    ]
    bare = make_recipe(tuple(entries))
    whole = make_recipe({"quant_cfg": entries, "algorithm": {"method": "max"}})
    assert bare.quant_cfg == whole.quant_cfg
    assert bare.algorithm == "max"
    assert whole.algorithm == {"method": "max"}
    assert bare.formats == ("INT3",)


def test_yaml_file_with_a_bare_configuration(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump({"quant_cfg": PUBLISHED, "algorithm": "max"}, sort_keys=False))
    assert make_recipe(str(path)).quant_cfg == make_recipe(PUBLISHED).quant_cfg
    spec = QuantizeSpec(where=Where(file="s.yaml", line=1), recipe="${QUANTGATE_DIR}/recipe.yaml")
    found = resolve_recipe(spec, environ={"QUANTGATE_DIR": str(tmp_path)})
    assert found.quant_cfg == make_recipe(PUBLISHED).quant_cfg


def test_yaml_file_in_modelopts_own_form(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(
        """\
metadata:
  recipe_type: ptq
quantize:
  algorithm: max
  quant_cfg:
    - {quantizer_name: "*", enable: false}
    - {quantizer_name: "*weight_quantizer", cfg: {num_bits: e4m3}}
""",
        encoding="utf-8",
    )
    recipe = make_recipe(str(path))
    assert recipe.formats == ("E4M3",)
    assert recipe.quant_cfg[1]["quantizer_name"] == "*weight_quantizer"


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        ("fp8-atention", r"unknown recipe 'fp8-atention'; did you mean 'fp8-attention'\?"),
        ("zzz", r"unknown recipe 'zzz'; known: fp8, fp8-attention, .*nvfp4, .*mxfp8, "),
        ("nowhere/recipe.yaml", r"recipe file nowhere/recipe\.yaml does not exist"),
        ("huggingface/none/such", r"ModelOpt has no recipe 'huggingface/none/such'"),
        ({"default": {"enable": False}}, r"quantizes nothing: every entry switches off \('\*'\)"),
        ([{"quantizer_name": "*"}], r"ModelOpt does not take this quant_cfg"),
        ({"*weight_quantizer": {"num_bitz": 4}}, r"ModelOpt does not take this quant_cfg"),
        ({"*weight_quantizer": 4}, r"ModelOpt does not take this quant_cfg"),
    ],
)
def test_what_is_no_recipe(recipe: Any, message: str, make_recipe: MakeRecipe) -> None:
    with pytest.raises(ModelError, match=r"^suites/tiny\.quantgate\.yaml:7: .*" + message):
        make_recipe(recipe)


@pytest.fixture
def library_of_048(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder that stands for ModelOpt's library, with folders named as 0.48 names them."""
    library, elsewhere = tmp_path / "library", tmp_path / "elsewhere"
    for name in ("model_type/vit/ptq/fp8.yaml", "models/maker/model/ptq/fp8.yaml"):
        (library / name).parent.mkdir(parents=True)
        (library / name).write_text("quantize: {}\n", encoding="utf-8")
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    loader = import_modelopt("modelopt.recipe.loader")
    monkeypatch.setattr(loader, "BUILTIN_RECIPES_LIB", library)
    return elsewhere


@pytest.mark.parametrize(
    ("name", "is_own"),
    [
        ("huggingface/vit/ptq/fp8", True),
        ("model_type/vit/ptq/fp8", True),
        ("huggingface/models/maker/model/ptq/fp8", True),
        ("model_type/models/maker/model/ptq/fp8.yaml", True),
        ("models/maker/model/ptq/fp8", True),
        ("huggingface/vit/ptq/int8", False),
        ("vit/ptq/fp8", False),
    ],
)
@pytest.mark.usefixtures("library_of_048")
def test_old_names_of_recipes_are_known_where_their_folder_moved(name: str, is_own: bool) -> None:
    assert is_own_recipe(name) == is_own


@pytest.mark.parametrize(
    "file", ["huggingface/vit/ptq/fp8.yaml", "model_type/vit/ptq/fp8.yml", "model_type/vit/ptq/fp8"]
)
def test_a_file_of_this_folder_is_not_modelopts_own_by_either_name(
    file: str, library_of_048: Path
) -> None:
    """Since 0.48 ModelOpt itself prefers such a file to its own recipe of that name."""
    path = library_of_048 / file
    path.parent.mkdir(parents=True)
    path.write_text("quantize: {}\n", encoding="utf-8")

    assert not is_own_recipe("huggingface/vit/ptq/fp8")


def test_yaml_file_that_is_no_recipe(tmp_path: Path, make_recipe: MakeRecipe) -> None:
    path = tmp_path / "recipe.yaml"
    for text in ("just: words\n", "1\n---\n2\n---\n3\n"):
        path.write_text(text, encoding="utf-8")
        with pytest.raises(ModelError, match=r"ModelOpt cannot load the recipe"):
            make_recipe(str(path))


def test_plain_data_survives_the_way_to_modelopt(make_recipe: MakeRecipe) -> None:
    for name in (*named_recipes(), "FP8_DEFAULT_CFG", "INT4_AWQ_CFG", "W4A8_AWQ_BETA_CFG"):
        recipe = make_recipe(name)
        again = make_recipe(
            {"quant_cfg": to_modelopt(recipe)["quant_cfg"], "algorithm": recipe.algorithm}
        )
        assert again.quant_cfg == recipe.quant_cfg, name
        assert again.formats == recipe.formats, name


@pytest.mark.parametrize(
    ("bits", "name"),
    [
        (8, "INT8"),
        ((4, 3), "E4M3"),
        ([2, 1], "E2M1"),
        (True, "unknown(True)"),
        ("x", "unknown('x')"),
    ],
)
def test_format_names(bits: Any, name: str) -> None:
    assert name_format(bits) == name


DICT_FORM = (
    "its quant_cfg is a dict, where the order of entries means something else (since 0.44 it is "
    "a list)"
)


@pytest.mark.parametrize(
    "version", ["0.47.0", "0.47.1", "0.47rc1", "0.47.0+local", "0.48.0rc1", "0.48.1"]
)
def test_supported_modelopt(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda _name: version)
    check_modelopt_version()


@pytest.mark.parametrize(
    ("version", "reason"),
    [
        ("0.37.0", DICT_FORM),
        ("0.43.0", DICT_FORM),
        ("0.44.0", "this release of pytest-quantgate was not tested with it"),
        ("0.46.1", "this release of pytest-quantgate was not tested with it"),
        ("0.49.0", "this release of pytest-quantgate was not tested with it"),
        ("1.0", "this release of pytest-quantgate was not tested with it"),
    ],
)
def test_modelopt_that_is_refused(
    version: str, reason: str, monkeypatch: pytest.MonkeyPatch, make_recipe: MakeRecipe
) -> None:
    monkeypatch.setattr("importlib.metadata.version", lambda _name: version)
    with pytest.raises(ModelError) as caught:
        make_recipe("fp8")
    assert str(caught.value) == (
        f"nvidia-modelopt {version} is not supported: {reason}; "
        f"pip install 'nvidia-modelopt>=0.47,<0.49'"
    )


def test_without_modelopt(monkeypatch: pytest.MonkeyPatch, make_recipe: MakeRecipe) -> None:
    from importlib import metadata

    def absent(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    with monkeypatch.context() as patch:
        patch.setattr("importlib.metadata.version", absent)
        with pytest.raises(MissingPackage, match=r"'nvidia-modelopt'.*pytest-quantgate\[clip\]"):
            make_recipe("fp8")
    for recipe, module in (
        ("huggingface/vit/ptq/fp8", "modelopt.recipe"),
        (PUBLISHED, "modelopt.torch.quantization.config"),
    ):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            with pytest.raises(MissingPackage, match=r"pytest-quantgate\[clip\]"):
                make_recipe(recipe)
