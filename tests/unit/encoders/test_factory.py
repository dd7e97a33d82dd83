"""Encoders that code of one's own makes: who runs it, what its key holds, what is refused."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from pytest_quantgate.commands.cli import main
from pytest_quantgate.encoders.encoder import Encoder
from pytest_quantgate.encoders.loading import load_fp16
from pytest_quantgate.encoders.source import pin_model, read_model, resolve_checkpoint
from pytest_quantgate.encoders.split_attention import split_attention
from pytest_quantgate.errors import ModelError, NotMeasured, SuiteError
from pytest_quantgate.measure.parity import list_blocks
from pytest_quantgate.reference import weights_dir
from pytest_quantgate.runtimes.onnx_export import export_tower
from pytest_quantgate.suite.load import load_suite
from pytest_quantgate.suite.specs import ModelSpec
from pytest_quantgate.suite.where import Where

#: One tower of two layers; `{change}` is done to it before it is returned.
MODULE = """\
import torch
from torch import nn
from pytest_quantgate.encoders.factory import PlainEncoder
{top}
class Tower(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.attend = nn.MultiheadAttention(8, 2, batch_first=True)
        self.out = nn.Linear(8, 4)

    def forward(self, pixels):
        x = pixels.flatten(2).transpose(1, 2).repeat(1, 1, 3)[..., :8]
        return self.out(self.attend(x, x, x)[0].mean(dim=1))

def build(*files):
    tower = Tower()
    {change}
    return PlainEncoder(vision=tower, preprocess=lambda image: torch.ones(3, 4, 4))
"""

SUITE = """\
quantgate: 1
{trust}model: {{source: factory, factory: "{name}:build", towers: [vision]}}
calibration: {{data: scenes/calibration, samples: 16, batch_size: 16}}
quantize: {{recipe: fp8}}
gates:
  coverage: {{}}
"""

Make = Callable[..., ModelSpec]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Return a function that writes a factory and returns the model of a suite that names it."""
    monkeypatch.syspath_prepend(tmp_path)
    names: list[str] = []

    def write(change: str = "pass", *, top: str = "", **more: Any) -> ModelSpec:
        names.append(name := f"own_{abs(hash(tmp_path.name)) % 10**8}_{len(names)}")
        (tmp_path / f"{name}.py").write_text(MODULE.format(top=top, change=change))
        given = {"towers": ("vision",), **more}
        where = Where(file="s.yaml", line=1)
        return ModelSpec(where=where, source="factory", factory=f"{name}:build", **given)

    yield write
    for name in names:
        sys.modules.pop(name, None)


def load(spec: ModelSpec) -> Encoder:
    return load_fp16(spec, environ={})


def test_the_example_is_the_reference_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[3] / "examples" / "factory")
    where = Where(file="s.yaml", line=1)
    own = load(
        ModelSpec(
            where=where,
            source="factory",
            factory="own_clip:build",
            files=(str(weights_dir()),),
            towers=("vision", "text"),
        )
    )
    reference = load(ModelSpec(where=where, source="reference"))
    pixels = torch.randn(3, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    texts = ["a red circle", "a small blue square above a star"]

    wanted = reference.encode_text(reference.tokenize(texts))

    torch.testing.assert_close(own.encode_text(own.tokenize(texts)), wanted, rtol=0, atol=1e-6)
    torch.testing.assert_close(
        own.encode_image(pixels), reference.encode_image(pixels), rtol=0, atol=1e-6
    )
    assert [tower.attention for tower in own.towers] == [("SplitAttention",)] * 2
    assert [tower.tokens for tower in own.towers] == [37, 16]


def test_code_runs_only_where_the_suite_trusts_it(tmp_path: Path) -> None:
    path = tmp_path / "own.quantgate.yaml"
    path.write_text(SUITE.format(trust="", name="own"))

    with pytest.raises(SuiteError, match=r":2: model: own:build is code.*write trust: true"):
        load_suite(path)


@pytest.mark.parametrize("command", [["validate"], ["validate", "--deep"], ["doctor"]])
def test_no_look_at_a_suite_imports_the_code(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: list[str]
) -> None:
    spec = make(top="raise SystemExit('imported')")
    path = tmp_path / "own.quantgate.yaml"
    path.write_text(SUITE.format(trust="trust: true\n", name=str(spec.factory).partition(":")[0]))

    status = main([*command, str(path)])

    assert "imported" not in capsys.readouterr().out
    assert status in (0, 1)


@pytest.mark.parametrize("changed", ["code", "file", "file below", "name"])
def test_what_makes_the_model_is_in_its_key(make: Make, tmp_path: Path, changed: str) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    for name in ("a.bin", "b.bin"):
        (folder / name).write_bytes(b"1")
    spec = make(files=(str(folder), str(folder / "a.bin")))
    before = resolve_checkpoint(spec, environ={}).digest

    if changed == "code":
        module = tmp_path / f"{str(spec.factory).partition(':')[0]}.py"
        module.write_text(module.read_text() + "\n#\n")
    elif changed == "name":
        spec = replace(spec, factory=f"{spec.factory}2")
    else:
        (folder / ("a.bin" if changed == "file" else "b.bin")).write_bytes(b"2")

    assert resolve_checkpoint(spec, environ={}).digest != before


def test_the_key_is_the_same_wherever_the_files_are(make: Make, tmp_path: Path) -> None:
    spec = make()
    digests = set()
    for name in ("one", "other"):
        (tmp_path / name / "weights").mkdir(parents=True)
        (tmp_path / name / "weights" / "a.bin").write_bytes(b"1")
        here = replace(spec, files=(str(tmp_path / name / "weights"),))
        digests.add(resolve_checkpoint(here, environ={}).digest)

    assert len(digests) == 1


READS = {
    "python": "open('{path}').close()",
    "torch": "torch.load('{path}')",
    "safetensors": "__import__('safetensors.torch').torch.load_file('{path}')",
}


@pytest.mark.parametrize("how", READS)
def test_it_reads_no_file_that_the_suite_does_not_name(
    make: Make, tmp_path: Path, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "prefix", str(tmp_path / "outside"))  # no place for weights either
    from safetensors.torch import save_file

    path = tmp_path / "outside" / "w"
    path.parent.mkdir()
    if how == "torch":
        torch.save({}, path)
    else:
        save_file({"a": torch.ones(3)}, path)
    change = READS[how].format(path=path)

    with pytest.raises(ModelError, match=r"reads .*outside/w, which is in no key .* model.files"):
        load(make(change))
    assert load(make(change, files=(str(path),))).tower_names == ("vision",)


def test_it_uses_no_module_that_was_imported_before_and_is_in_no_key(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A module that a conftest imported is not opened again, and neither is what it read."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "own_scale.py").write_text("SCALE = 2.0\n")
    (outside / "own_names.py").write_text(
        "import own_scale\ndef name():\n    return own_scale.SCALE\n"
    )
    monkeypatch.syspath_prepend(outside)
    for name in ("own_names", "own_scale"):
        monkeypatch.setitem(sys.modules, name, importlib.import_module(name))
    said = r"uses .*outside/own_\w+\.py, which was imported before, .* in no key"

    for top in ("import own_scale", "from own_names import name"):
        with pytest.raises(ModelError, match=said):
            load(make(top=top))
    both = tuple(str(outside / f"{name}.py") for name in ("own_names", "own_scale"))
    assert load(make(top="from own_names import name", files=both)).tower_names == ("vision",)


REFUSED = {
    "two answers to one input": "tower.attend.register_forward_hook("
    "lambda m, i, o: (nn.functional.dropout(o[0], 0.5), None))",
    r"1 layers run in no forward, first spare": "tower.spare = nn.Linear(8, 8)",
    r"attend\.out_proj\.weight and out\.weight|are one tensor": "tower.twin = tower.out",
    r"gives \(1, 2, 4\) for one sample": "tower.out = nn.Sequential(tower.out, "
    "type('Two', (nn.Module,), {'forward': lambda s, x: torch.stack((x, x), 1)})())",
    r"the call failed: ValueError: no weights": "raise ValueError('no weights')",
    r"returns dict, a PlainEncoder is needed": "return {}",
    r"returns a vision tower and no preprocess": "return PlainEncoder(vision=tower)",
    r"returns the towers none, and the suite says towers: \[vision\]": "return PlainEncoder()",
    r"has keys or values of another size": "tower.attend.add_zero_attn = True",
}


@pytest.mark.parametrize("message", REFUSED)
def test_a_module_that_would_be_judged_wrongly_is_refused(make: Make, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        load(make(REFUSED[message]))


def test_it_runs_without_dropout_though_nobody_called_eval(make: Make) -> None:
    encoder = load(make("tower.out = nn.Sequential(nn.Dropout(0.5), tower.out).train()"))

    pixels = torch.ones(2, 3, 4, 4)
    assert torch.equal(encoder.encode_image(pixels), encoder.encode_image(pixels))


BLOCK = """\
class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Linear(8, 8)
    def forward(self, x):
        return x + self.up(x)
"""


def test_blocks_in_a_sequential_are_blocks_here_and_in_the_graph(
    make: Make, tmp_path: Path
) -> None:
    onnx = pytest.importorskip("onnx")
    encoder = load(make("tower.out = nn.Sequential(Block(), Block())", top=BLOCK))

    exported = export_tower(encoder, tower="vision", path=tmp_path / "t.onnx")

    assert list_blocks(encoder, tower="vision") == ("vision.out.0", "vision.out.1")
    names = [node.name for node in onnx.load(exported.path).graph.node]
    assert {f"/vision/out.{index}/Add" for index in range(2)} <= set(names)


def test_texts_of_several_lengths_are_refused(make: Make) -> None:
    change = "return PlainEncoder(text=tower, tokenize=lambda texts: torch.ones(1, len(texts[0])))"

    with pytest.raises(ModelError, match=r"makes 1 tokens of one text and 36 of another"):
        load(make(change, towers=("text",)))


def test_another_process_makes_the_same_model(make: Make) -> None:
    spec = make()
    source = resolve_checkpoint(spec, environ={})

    again = read_model(pin_model(spec, source=source))

    assert resolve_checkpoint(again, environ={}).digest == source.digest
    assert (again.factory, again.towers, again.dtype) == (spec.factory, spec.towers, spec.dtype)


def test_what_is_not_here_is_not_measured(make: Make, tmp_path: Path) -> None:
    spec = make(files=(str(tmp_path / "none"),))

    with pytest.raises(NotMeasured, match="none is not there"):
        resolve_checkpoint(spec, environ={})
    with pytest.raises(NotMeasured, match=r"no package absent_package can be imported here"):
        resolve_checkpoint(replace(spec, factory="absent_package.m:f"), environ={})


MASKS: dict[str, Callable[[], dict[str, Any]]] = {
    "none": dict,
    "numbers": lambda: {"attn_mask": torch.randn(5, 5)},
    "booleans": lambda: {"attn_mask": torch.ones(5, 5).triu(1).bool()},
    "of each head": lambda: {"attn_mask": torch.randn(3 * 2, 5, 5)},
    "padding": lambda: {"key_padding_mask": torch.arange(5).repeat(3, 1) > 2},
    "both": lambda: {
        "attn_mask": torch.ones(5, 5).triu(1).bool(),
        "key_padding_mask": torch.arange(5).repeat(3, 1) > 2,
    },
}


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("mask", MASKS)
def test_split_attention_is_that_of_pytorch(mask: str, batch_first: bool) -> None:
    torch.manual_seed(0)
    holder = nn.ModuleDict({"a": nn.MultiheadAttention(8, 2, batch_first=batch_first).eval()})
    query, other = torch.randn(3, 5, 8), torch.randn(3, 5, 8)
    if not batch_first:
        query, other = query.transpose(0, 1), other.transpose(0, 1)
    given = MASKS[mask]()

    with torch.no_grad():
        wanted = holder["a"](query, other, other, **given)[0]
        assert split_attention(holder) == 1
        found = holder["a"](query, other, other, **given)[0]

    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_layers_of_pytorch_take_no_path_around_split_attention() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, batch_first=True)
    stack = nn.TransformerEncoder(layer, 2).eval()
    inputs, padding = torch.randn(3, 5, 8), torch.arange(5).repeat(3, 1) > 2
    calls = []

    with torch.no_grad():
        wanted = stack(inputs, src_key_padding_mask=padding)
        assert split_attention(stack) == 2
        for part in stack.modules():
            if type(part).__name__ == "SplitAttention":
                part.register_forward_hook(lambda *_: calls.append(1))
        found = stack(inputs, src_key_padding_mask=padding)

    assert len(calls) == 2
    torch.testing.assert_close(found[:, :3], wanted[:, :3], rtol=0, atol=1e-5)
