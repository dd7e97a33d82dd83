"""Families of encoders that other packages bring by their entry points."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest

from pytest_quantgate.encoders import clip, families
from pytest_quantgate.encoders.families import find_pretrained, list_packages, read_settings
from pytest_quantgate.encoders.loading import load_fp16
from pytest_quantgate.errors import ModelError, UnsupportedModel
from pytest_quantgate.run.case import Case
from pytest_quantgate.store.surroundings import Surroundings
from pytest_quantgate.suite.load import load_suite
from pytest_quantgate.suite.specs import ModelSpec

SUITE = """\
quantgate: 1
model: {source: reference}
calibration: {data: scenes/calibration, samples: 16, batch_size: 16}
quantize: {recipe: fp8}
gates:
  coverage: {}
"""

FAMILY = """\
from pytest_quantgate.encoders.family import EncoderFamily

FAMILY = EncoderFamily(name="own", pretrained={"own": "a kind"})
"""


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Put a package with a family, of this text, where Python finds it."""
    site = tmp_path / "site"
    info = site / "own_family-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: own-family\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[pytest_quantgate.encoders]\nown = quantgate_own_family:FAMILY\n"
    )
    monkeypatch.syspath_prepend(site)
    monkeypatch.delitem(sys.modules, "quantgate_own_family", raising=False)

    def write(text: str) -> Path:
        path = site / "quantgate_own_family.py"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize(
    ("model_type", "version", "taken"),
    [
        ("clip", "4.57.6", True),
        ("vit", "5.8.1", False),
        ("vit", "5.9.0", True),
        ("siglip", "4.57.6", False),
        ("siglip", "5.10.4", True),
        ("siglip", "6.0", True),
    ],
)
def test_an_older_transformers_is_refused_by_version(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    model_type: str,
    version: str,
    taken: bool,
) -> None:
    (tmp_path / "config.json").write_text(f'{{"model_type": "{model_type}"}}', encoding="utf-8")
    own = metadata.version
    monkeypatch.setattr(
        metadata, "version", lambda name: version if name == "transformers" else own(name)
    )

    if taken:
        assert read_settings(tmp_path)["model_type"] == model_type
        return
    with pytest.raises(UnsupportedModel, match=rf"5\.9 and newer .* {version} is installed: pip"):
        read_settings(tmp_path)


def test_a_family_of_another_package_is_found(install: Callable[[str], Path]) -> None:
    install(FAMILY)

    assert find_pretrained({"model_type": "own"}) == ("own", "a kind")  # type: ignore[comparison-overlap]
    assert list_packages() == ("quantgate_own_family",)


def test_an_entry_point_that_is_no_family_is_named(install: Callable[[str], Path]) -> None:
    install("FAMILY = 3\n")

    with pytest.raises(
        ModelError, match=r"entry point own of pytest_quantgate.encoders is int, no EncoderFamily"
    ):
        find_pretrained({"model_type": "own"})


def test_a_package_that_cannot_be_imported_is_named_where_it_could_matter(
    install: Callable[[str], Path],
) -> None:
    install("import nothing_of_this_name\n")

    assert (
        find_pretrained({"model_type": "clip"}) is not None
    )  # a broken neighbour breaks no suite of a CLIP
    with pytest.raises(
        ModelError, match=r"entry point own .* cannot be imported: ModuleNotFoundError: No module"
    ):
        find_pretrained({"model_type": "own"})


def test_a_family_that_hides_a_tower_is_refused(
    tiny_clip: Path, model_spec: Callable[..., ModelSpec], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is not among its towers would never be judged."""
    usual = clip.FAMILY.pretrained["clip"]
    half = replace(clip.FAMILY, pretrained={"clip": replace(usual, towers=("vision",))})
    monkeypatch.setattr(families, "_OWN", (half,))

    with pytest.raises(
        ModelError, match="says that clip has the towers vision, and describes vision"
    ):
        load_fp16(model_spec(tiny_clip), environ={})


def test_other_code_of_a_family_is_another_key(
    tmp_path: Path, install: Callable[[str], Path], make_case: Callable[..., Case]
) -> None:
    """Its package decides what is measured: nothing kept from before it changed is replayed."""
    path = tmp_path / "own.quantgate.yaml"
    path.write_text(SUITE)

    def read_key() -> str:
        case = make_case(load_suite(path))
        case.surroundings = Surroundings()  # as in a process that starts now
        found: str = case.fp16_key
        return found

    install(FAMILY)
    before, again = read_key(), read_key()
    install(FAMILY + "# another embedding\n")

    assert before == again
    assert read_key() != before


@pytest.mark.parametrize(
    ("model_type", "said"),
    [
        ("siglip2_vision_model", "name the folder of the whole model"),
        ("dinov3_convnext", "it has no transformer blocks: look at an ONNX file"),
        ("internvl_chat", "take the checkpoint in transformers' layout"),
        ("deberta-v2", "its attention adds a bias of its own to the scores"),
    ],
)
def test_a_model_that_is_not_taken_yet_is_named_with_what_to_do(
    tmp_path: Path, model_type: str, said: str
) -> None:
    (tmp_path / "config.json").write_text(f'{{"model_type": "{model_type}"}}', encoding="utf-8")

    with pytest.raises(UnsupportedModel, match=f"'{model_type}' is not taken yet: .*{said}"):
        read_settings(tmp_path)
