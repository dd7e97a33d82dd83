"""SigLIP: what transformers computes, quantized, restored and exported; its files; its suite."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from datetime import date
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch

from pytest_quantgate.commands.suite_text import read_shape
from pytest_quantgate.encoders.encoder import Batch, Encoder
from pytest_quantgate.encoders.loading import load_fp16
from pytest_quantgate.errors import ModelError, NotMeasured
from pytest_quantgate.evidence.audit import Audit
from pytest_quantgate.evidence.onnx import OnnxAudit
from pytest_quantgate.gates.calibration import CalibrationGate, judge_ranges
from pytest_quantgate.gates.coverage import CoverageGate, judge_coverage
from pytest_quantgate.gates.scope import Waiver
from pytest_quantgate.gates.trace import follow_quantizers
from pytest_quantgate.measure.audit import audit_quantizers
from pytest_quantgate.measure.model_checks import inspect_checkpoint, read_texts_of_files
from pytest_quantgate.measure.parity import list_blocks
from pytest_quantgate.measure.roundtrip import measure_roundtrip
from pytest_quantgate.measure.sanity import read_texts_of
from pytest_quantgate.quantization.checkpoint import save_checkpoint
from pytest_quantgate.quantization.quantize import quantize
from pytest_quantgate.quantization.quantizers import find_quantizers
from pytest_quantgate.quantization.recipes import Recipe
from pytest_quantgate.runtimes.onnx_export import export_tower
from pytest_quantgate.runtimes.onnxruntime_session import OnnxRuntimeModel
from pytest_quantgate.suite.specs import ModelSpec
from pytest_quantgate.suite.where import Where
from tests.siglip_models import TOKENS, save_siglip, save_siglip_tower
from tests.unit.inspection.quantized_files import inspect

pytestmark = pytest.mark.slow

TODAY = date(2026, 11, 1)
WHERE = Where(file="s.yaml", line=1)
HEAD = "vision_model.head.attention"
PATTERN = "*head.attention*"
TEXTS = ["a photo of a cat", "a red car", "a photo of a blue dog", "dog"]

#: FP8 as most recipes write it, without `parent_class`: it names the head's `out_proj` too.
E4M3 = {"num_bits": [4, 3], "axis": None}
EVERY_LAYER = [
    {"quantizer_name": "*", "enable": False},
    *(
        {"quantizer_name": f"*{part}.{slot}_quantizer", "cfg": E4M3}
        for part in ("_proj", "mlp.fc?")
        for slot in ("weight", "input")
    ),
]

Build = Callable[..., tuple[Encoder, Audit]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("siglip")


@pytest.fixture(scope="module")
def plain(folder: Path) -> Any:
    """transformers' own module."""
    return save_siglip(folder)


@pytest.fixture(scope="module")
def fp16(folder: Path, plain: Any, model_spec: Callable[..., ModelSpec]) -> Encoder:
    del plain  # it wrote the folder
    return load_fp16(model_spec(folder), environ={})


@pytest.fixture(scope="module")
def batches(fp16: Encoder) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    return [
        Batch.of_pairs(
            pixel_values=torch.randn(4, 3, 32, 32, generator=generator),
            tokens=fp16.tokenize(TEXTS),
            ids=tuple(f"{index}.{place}" for place in range(4)),
        )
        for index in range(2)
    ]


@pytest.fixture(scope="module")
def build(fp16: Encoder, batches: list[Batch], make_recipe: Callable[[Any], Recipe]) -> Build:
    """Quantize and audit."""

    def make(recipe: Any = "fp8-attention", exclude: tuple[str, ...] = ()) -> tuple[Encoder, Audit]:
        found = make_recipe(recipe)
        model = quantize(fp16, recipe=found, exclude=exclude, batches=batches).model
        return model, audit_quantizers(model, recipe=found, exclude=exclude, held_out=batches)

    return make


@pytest.fixture(scope="module")
def shippable(build: Build) -> tuple[Encoder, Audit]:
    return build(exclude=(PATTERN,))


@pytest.fixture
def copy(folder: Path, plain: Any, tmp_path: Path) -> Callable[..., Path]:
    """Copy the checkpoint, with `<file>=edit` done to its JSON files."""
    del plain

    def make(**edits: Callable[[dict[str, Any]], Any]) -> Path:
        copied = tmp_path / "siglip"
        shutil.copytree(folder, copied)
        for name, edit in edits.items():
            path = copied / f"{name}.json"
            data = json.loads(path.read_text("utf-8"))
            edit(data)
            path.write_text(json.dumps(data), encoding="utf-8")
        return copied

    return make


def judge(audit: Audit, **changes: Any) -> Any:
    gate = CoverageGate(where=WHERE, **changes)
    return judge_coverage(audit, gate=gate, today=TODAY)


# -- embeddings ---------------------------------------------------------------------------------


def test_embeddings_are_those_of_transformers(
    plain: Any, fp16: Encoder, batches: list[Batch]
) -> None:
    batch = batches[0]

    images = plain.get_image_features(pixel_values=batch.pixel_values).pooler_output
    texts = plain.get_text_features(input_ids=batch.tokens["input_ids"]).pooler_output

    assert fp16.tower_names == ("vision", "text")
    torch.testing.assert_close(fp16.encode_image(batch.pixel_values), images, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fp16.encode_text(batch.tokens), texts, rtol=1e-4, atol=1e-5)


def test_attention_sees_as_many_tokens_as_the_tower_says(
    fp16: Encoder, batches: list[Batch]
) -> None:
    for name, tokens in (("vision", 16), ("text", TOKENS)):
        tower = fp16.tower(name)  # type: ignore[arg-type]
        seen: list[int] = []
        first = fp16.module.get_submodule(f"{name}_model.encoder.layers.0.self_attn.q_proj")
        handle = first.register_forward_hook(
            lambda _module, inputs, _output, seen=seen: seen.append(inputs[0].shape[1])
        )
        fp16.encode(tower.name, batches[0].inputs[tower.name])
        handle.remove()
        assert seen == [tower.tokens] == [tokens]
        assert len(list_blocks(fp16, tower=tower.name)) == 2


@pytest.mark.parametrize("padding", [None, "BatchLongest", {"Fixed": 5}])
def test_a_text_is_filled_up_whatever_the_tokenizer_pads_to(
    fp16: Encoder,
    copy: Callable[..., Path],
    model_spec: Callable[..., ModelSpec],
    padding: Any,
) -> None:
    """The last position is pooled: a text that is padded to another length is another text."""

    def pad(data: dict[str, Any]) -> None:
        rest = {"direction": "Right", "pad_id": 0, "pad_type_id": 0, "pad_token": "<pad>"}
        data["padding"] = padding and {
            "strategy": padding,
            "pad_to_multiple_of": None,
            **rest,
        }

    changed = load_fp16(model_spec(copy(tokenizer=pad)), environ={})
    tokens = changed.tokenize(TEXTS)

    assert list(tokens) == ["input_ids"]  # no mask: it would change the embedding
    assert tokens["input_ids"].shape == (len(TEXTS), TOKENS)
    assert torch.equal(tokens["input_ids"], fp16.tokenize(TEXTS)["input_ids"])
    short = {"input_ids": tokens["input_ids"][:, :8]}
    assert not torch.allclose(fp16.encode_text(short), fp16.encode_text(tokens), atol=1e-2)


def test_a_text_is_read_whole(fp16: Encoder) -> None:
    reader = read_texts_of(fp16)
    found = reader.read(TEXTS)

    assert not found.pools_end
    assert (found.without_end, found.pooled_elsewhere, found.distinct) == (0, 0, len(TEXTS))
    assert {len(ids) for ids in reader.as_heard(TEXTS)} == {TOKENS}


@pytest.mark.parametrize("name", ["vision", "text"])
def test_a_tower_alone_is_what_it_is_in_the_model(
    tmp_path: Path,
    model_spec: Callable[..., ModelSpec],
    make_recipe: Callable[[Any], Recipe],
    fp16: Encoder,
    name: Any,
) -> None:
    """Embedded, quantized, covered and exported as in the whole model, of which it is a part."""
    save_siglip_tower(tmp_path, tower=name)
    alone = load_fp16(model_spec(tmp_path), environ={})
    pixels = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    inputs = {"pixel_values": pixels} if name == "vision" else fp16.tokenize(TEXTS)
    batch = Batch(ids=tuple("abcd"), inputs={name: inputs})
    recipe, exclude = make_recipe("fp8-attention"), (PATTERN,) if name == "vision" else ()
    model = quantize(alone, recipe=recipe, exclude=exclude, batches=[batch]).model
    audit = audit_quantizers(model, recipe=recipe, exclude=exclude, held_out=[batch])
    gate = CoverageGate(where=WHERE, towers=(name,))
    exported = export_tower(model, tower=name, path=tmp_path / "tower.onnx")
    found = OnnxRuntimeModel(exported.path).embed({k: v.numpy() for k, v in inputs.items()})
    wanted = model.encode(name, inputs)

    assert torch.equal(alone.encode(name, inputs), fp16.encode(name, inputs))
    assert alone.tower_names == (name,)
    assert inspect_checkpoint(tmp_path) == ()
    verdict = judge_coverage(audit, gate=gate, today=TODAY)
    assert verdict.passed, verdict.headline
    errors = (torch.from_numpy(found) - wanted).norm(dim=1) / wanted.norm(dim=1)
    assert float(errors.median()) < 1e-4


def test_a_head_that_is_left_out_is_no_encoder(
    copy: Callable[..., Path], model_spec: Callable[..., ModelSpec]
) -> None:
    changed = copy(config=lambda config: config["vision_config"].update(vision_use_head=False))

    with pytest.raises(ModelError, match="vision_use_head is false"):
        load_fp16(model_spec(changed), environ={})


# -- the pooling head ---------------------------------------------------------------------------


def test_the_head_escapes_until_the_suite_leaves_it_out(
    build: Build, shippable: tuple[Encoder, Audit]
) -> None:
    _, audit = build()
    verdict = judge(audit)

    assert verdict.code == "coverage.attention-missing"
    assert f"q has no quantizer: {HEAD}" in verdict.evidence
    assert "ModelOpt has no quantized class of nn.MultiheadAttention" in verdict.cause
    assert f'add exclude: ["{PATTERN}"]' in verdict.next_step
    assert any("of the weights escaped" in line for line in verdict.evidence)

    green = judge(shippable[1])
    assert green.passed, green.headline
    assert f"excluded, nn.MultiheadAttention: {HEAD}" in green.evidence
    # 4 x 32 x 32 of the head, of all weights that are multiplied in both towers.
    assert 0.9 < float(green.figures["weights_covered_share"]) < 1.0
    assert "attention q k v output in 2+2 blocks" in green.brief


def test_a_recipe_without_attention_has_the_weights_of_the_head_to_answer_for(
    build: Build,
) -> None:
    verdict = judge(build("int8")[1])

    assert verdict.code == "coverage.weights-escaped"
    assert f"fused calls of nn.MultiheadAttention: {HEAD}" in verdict.evidence
    assert f'add exclude: ["{PATTERN}"]' in verdict.next_step
    assert judge(build("int8", (PATTERN,))[1]).passed


def test_quantizers_of_the_heads_projection_are_on_and_never_run(build: Build) -> None:
    _, audit = build(EVERY_LAYER)
    verdict = judge(audit, attention=())

    by_name = {q.name: q for q in audit.quantizers}
    weight = by_name[f"{HEAD}.out_proj.weight_quantizer"]
    assert weight.enabled
    assert weight.amax_count
    assert weight.own_calls == 0
    assert verdict.code == "coverage.never-ran"
    assert any(f"{HEAD}.out_proj" in line for line in verdict.evidence)


def test_a_waiver_takes_the_head_out_too(build: Build) -> None:
    waiver = Waiver(where=WHERE, modules=(PATTERN,), reason="fused", until=date(2027, 1, 1))

    verdict = judge(build()[1], waive=(waiver,))

    assert verdict.passed, verdict.headline


def test_an_exclude_pattern_that_names_no_fused_module_excludes_nothing(build: Build) -> None:
    verdict = judge(build("fp8", ("*head.attention*", "*mlp.fc1.output_quantizer"))[1])

    assert verdict.code == "coverage.exclude-without-effect"
    assert "'*mlp.fc1.output_quantizer'" in verdict.headline


def test_the_trace_follows_all_but_the_head(build: Build, shippable: tuple[Encoder, Audit]) -> None:
    graph = OnnxAudit(
        tower="vision",
        precision="float32",
        opset=20,
        domains=("",),
        file_bytes=0,
        digest="",
        dynamic_batch=True,
        weights_bytes=(),
        **dict.fromkeys(("declared", "extra", "pairs", "operations", "problems"), ()),  # type: ignore[arg-type]
    )
    lost, kept = (
        {
            row.name: row.reason
            for row in follow_quantizers(
                audit, onnx={"vision": graph}, engines=None, towers=("vision",)
            )
            if row.lost_at == "model"
        }
        for audit in (build()[1], shippable[1])
    )

    assert len(lost) == 4
    assert all(name.startswith(HEAD) for name in lost)
    assert all("no quantized class of nn.MultiheadAttention" in why for why in lost.values())
    assert kept == {}


# -- stages -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_forked_restores")
def test_a_restored_variant_is_bit_identical(
    shippable: tuple[Encoder, Audit], batches: list[Batch], tmp_path: Path
) -> None:
    found = measure_roundtrip(shippable[0], batches=batches, directory=tmp_path)

    assert found.equal == {"vision": True, "text": True}
    assert (found.amax_different, found.accepted) == ((), ())


@pytest.mark.parametrize(("tower", "extra"), [("vision", 1 + 2), ("text", 1)])
def test_the_exported_tower_computes_the_same(
    shippable: tuple[Encoder, Audit],
    batches: list[Batch],
    tmp_path: Path,
    tower: Any,
    extra: int,
) -> None:
    """`extra` are the layers beside the six of each block: patches and head, or the head."""
    model, _ = shippable
    exported = export_tower(model, tower=tower, path=tmp_path / "tower.onnx")
    inputs = batches[0].inputs[tower]

    found = OnnxRuntimeModel(exported.path).embed({k: v.numpy() for k, v in inputs.items()})
    wanted = model.encode(tower, inputs)

    # Of most samples: a value on the edge between two steps may be rounded apart.
    errors = (torch.from_numpy(found) - wanted).norm(dim=1) / wanted.norm(dim=1)
    assert float(errors.median()) < 1e-4
    assert exported.inputs == tuple(model.tower(tower).inputs)
    assert exported.not_executed == ()
    assert len(exported.quantizers) == 2 * (2 * 6 + 4) + 2 * extra


# -- files --------------------------------------------------------------------------------------


def test_a_good_folder_has_no_fault(copy: Callable[..., Path]) -> None:
    folder = copy()

    assert inspect_checkpoint(folder) == ()
    reader = read_texts_of_files(folder)
    assert reader is not None
    assert reader.read(TEXTS).distinct == len(TEXTS)
    assert not reader.read(TEXTS).pools_end


CASES: dict[str, tuple[dict[str, Any], str, str]] = {
    "the processor of a larger model": (
        {
            "preprocessor_config": lambda config: config.update(size={"height": 64, "width": 64}),
        },
        "image-size",
        "makes images of 3 x 64 x 64 (channels, height, width), the vision tower takes 3 x 32 x 32",
    ),
    "the size of the processor left out": (
        {"preprocessor_config": lambda config: config.pop("size")},
        "image-size",
        "makes images of 3 x 224 x 224",
    ),
    "padding on the left": (
        {"tokenizer_config": lambda config: config.update(padding_side="left")},
        "padding-side",
        "fills short texts up on the left, the text tower was trained with padding on the right",
    ),
    "a table that is too short": (
        {"config": lambda config: config["text_config"].update(vocab_size=10)},
        "token-beyond-table",
        "lies behind the embedding table of 10 rows",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_each_fault_is_named_alone(copy: Callable[..., Path], name: str) -> None:
    edits, finding, text = CASES[name]

    (fault,) = inspect_checkpoint(copy(**edits))

    assert fault.finding == finding
    assert fault.certain
    assert text in fault.text


def test_other_means_are_a_doubt(copy: Callable[..., Path]) -> None:
    folder = copy(preprocessor_config=lambda config: config.update(image_mean=[0.48, 0.46, 0.41]))

    (fault,) = inspect_checkpoint(folder)

    assert not fault.certain
    assert "not the usual ones of siglip (0.5, 0.5, 0.5 and 0.5, 0.5, 0.5)" in fault.text


def test_a_tokenizer_that_works_outside_its_file_is_not_guessed(
    copy: Callable[..., Path], model_spec: Callable[..., ModelSpec]
) -> None:
    """transformers' SiglipTokenizer lowers case and takes out punctuation in Python."""
    folder = copy(tokenizer_config=lambda config: config.update(tokenizer_class="SiglipTokenizer"))

    assert read_texts_of_files(folder) is None
    try:
        import sentencepiece  # type: ignore[import-not-found, unused-ignore]  # noqa: F401
    except ImportError:
        with pytest.raises(NotMeasured, match=r"SiglipTokenizer.* SentencePiece"):
            load_fp16(model_spec(folder), environ={})


def test_a_first_suite_leaves_the_head_out(copy: Callable[..., Path]) -> None:
    shape = read_shape(str(copy()), environ={})

    assert shape is not None
    vision, text = shape.towers
    assert (vision.tokens, vision.linears, vision.fused) == (16, 2 * 6 + 2, (HEAD,))
    assert (text.tokens, text.linears, text.fused) == (TOKENS, 2 * 6 + 1, ())


def test_ranges_of_other_images_are_stale(
    build: Build, batches: list[Batch], make_recipe: Callable[[Any], Recipe]
) -> None:
    """Ranges that a tenth of the values fit in, as of images that were never scaled alike."""
    model, _ = build(exclude=(PATTERN,))
    for name, quantizer in find_quantizers(model.module).items():
        if name.startswith("vision_model.head.mlp") and name.endswith("input_quantizer"):
            quantizer.amax = quantizer.amax / 10
    audit = audit_quantizers(
        model, recipe=make_recipe("fp8-attention"), exclude=(PATTERN,), held_out=batches
    )

    verdict = judge_ranges(audit, gate=CalibrationGate(where=WHERE, max_clipped=Fraction(1, 100)))

    assert verdict.code == "calibration.clipped"
    assert any("vision_model.head.mlp" in line for line in verdict.evidence)


def test_a_saved_variant_is_checked_without_a_false_alarm(
    shippable: tuple[Encoder, Audit], fp16: Encoder, tmp_path: Path
) -> None:
    save_checkpoint(shippable[0], tmp_path / "saved")
    fp16.module.save_pretrained(tmp_path / "base")  # type: ignore[operator]

    found = inspect(tmp_path / "saved", base=tmp_path / "base")

    assert found.findings == ()
    assert any(f"{HEAD}, an nn.MultiheadAttention" in note for note in found.notes)
