"""The family of open_clip: its CLIPs with its own transformers, or with a trunk of timm (ViT, EVA,
MobileCLIP's) in the vision tower.

A checkpoint is a folder with `open_clip_config.json` and `open_clip_model.safetensors`. The model,
the tokenizer and the preprocessing are open_clip's own code, made from that file; nothing is
fetched. Both towers become submodules, and `nn.MultiheadAttention` is split into layers that can
be quantized. The projections are plain Parameters of open_clip, which no quantizer reaches: they
stay in FP16. The branches that MobileCLIP is trained with are put together into the convolutions
that it ships with.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from pytest_quantgate import bounds
from pytest_quantgate.encoders.clip import LARGEST
from pytest_quantgate.encoders.encoder import ImageTransform
from pytest_quantgate.encoders.family import (
    EncoderFamily,
    Loaded,
    Pretrained,
    TokenizerClass,
    load_strictly,
)
from pytest_quantgate.encoders.source import OPEN_CLIP_CONFIG
from pytest_quantgate.encoders.towers import TextSpec, TowerSpec
from pytest_quantgate.encoders.vit import as_pair
from pytest_quantgate.errors import MissingPackage, ModelError, UnsupportedModel

if TYPE_CHECKING:
    import torch

ATTENTION = ("SplitAttention",)

#: The parts of a text tower that lie in the model itself where its class is `CLIP`.
OF_TEXT = ("text_projection", "positional_embedding", "token_embedding", "transformer", "ln_final")

#: What open_clip takes where its file says nothing.
VISION = {"layers": 12, "width": 768, "head_width": 64, "mlp_ratio": 4.0, "patch_size": 16}
VISION_SIZE = 224
TEXT = {
    "context_length": 77,
    "vocab_size": 49408,
    "width": 512,
    "heads": 8,
    "layers": 12,
    "mlp_ratio": 4.0,
    "eos_id": 2,
}

#: Keys of a section that are refused where they are set, and what they are.
_REFUSED = {
    "hf_model_name": "a text tower of transformers inside open_clip",
    "hf_tokenizer_name": "a tokenizer of the hub",
    "tokenizer_mode": "a tokenizer of the hub",
    "attentional_pool": "an attention that pools",
    "embed_cls": "a class token behind the text (CoCa)",
    "output_tokens": "tokens beside the embedding (CoCa)",
    "qk_norm": "a custom block",
    "scaled_cosine_attn": "a custom block",
    "scale_heads": "a custom block",
    "scale_attn_inner": "a custom block",
    "scale_attn": "a custom block",
    "scale_fc": "a custom block",
}

#: What open_clip's own tokenizer is told by a file.
_TOKENIZER_KEYS = ("clean", "reduction_mask")

_INSTEAD = "make it by a function of your own (model: {source: factory})"

#: Beginnings of names of timm's models that are a VisionTransformer, an Eva or a FastViT.
_TRUNKS = ("vit_", "deit", "eva", "fastvit_", "test_vit")
_OTHER_TRUNKS = ("vit_relpos", "test_vit_relpos")


class OpenClipConfig(SimpleNamespace):
    """What open_clip_config.json says, as a configuration object."""

    def to_dict(self) -> dict[str, Any]:
        return dict(vars(self))


@dataclass(frozen=True, kw_only=True)
class OpenClip(Pretrained):
    """A CLIP of open_clip."""

    def read_settings(self, settings: Mapping[str, Any], *, directory: Path) -> Mapping[str, Any]:
        path = directory / OPEN_CLIP_CONFIG
        model = settings.get("model_cfg")
        if not isinstance(model, Mapping):
            raise ModelError(f"{path}: model_cfg is missing: save the model again")
        if "multimodal_cfg" in model:
            raise UnsupportedModel(f"{path}: multimodal_cfg is a CoCa: {_INSTEAD}")
        for name in ("vision_cfg", "text_cfg"):
            section = model.get(name)
            if not isinstance(section, Mapping):
                raise ModelError(f"{path}: model_cfg.{name} is missing: save the model again")
            for key, what in _REFUSED.items():
                if section.get(key):
                    raise UnsupportedModel(
                        f"{path}: {name}.{key} is {section[key]!r:.80}, {what}, which is not taken "
                        f"yet: {_INSTEAD}"
                    )
            if section.get("block_type") not in (None, "default"):
                raise UnsupportedModel(
                    f"{path}: {name}.block_type is {section['block_type']!r:.40}, which is not "
                    f"taken yet: {_INSTEAD}"
                )
            _check_sizes(section, where=f"{path}: {name}")
        _check_trunk(model["vision_cfg"].get("timm_model_name"), where=f"{path}: vision_cfg")
        vision, text = model["vision_cfg"], model["text_cfg"]
        if isinstance(vision.get("layers"), Sequence):
            raise UnsupportedModel(f"{path}: vision_cfg is a ResNet, with no blocks: {_INSTEAD}")
        if vision.get("pool_type", "tok") not in ("tok", "avg"):
            raise UnsupportedModel(f"{path}: vision_cfg.pool_type gives no embedding: {_INSTEAD}")
        if text.get("pool_type", "argmax") not in ("argmax", "eos", "first", "last"):
            raise UnsupportedModel(f"{path}: text_cfg.pool_type gives no embedding: {_INSTEAD}")
        unknown = set(text.get("tokenizer_kwargs") or {}) - set(_TOKENIZER_KEYS)
        if unknown:
            raise UnsupportedModel(
                f"{path}: text_cfg.tokenizer_kwargs has {', '.join(sorted(unknown))[:80]}, only "
                f"{' and '.join(_TOKENIZER_KEYS)} are taken: {_INSTEAD}"
            )
        return settings

    def place(self, name: str, *, settings: Mapping[str, Any]) -> str | None:
        del settings
        return f"text.{name}" if name.startswith(OF_TEXT) else name

    def make_config(self, settings: Mapping[str, Any]) -> Any:
        return OpenClipConfig(**settings)

    def make_module(self, config: Any, *, attention: str) -> torch.nn.Module:
        del attention
        return rewrite(make_whole(config))

    def load(
        self, config: Any, *, state: dict[str, torch.Tensor], dtype: torch.dtype, attention: str
    ) -> Loaded:
        del attention
        loaded = load_strictly(make_whole(config).to(dtype), state=state)
        # Branches are put together in float32; what ships is rounded.
        return replace(loaded, module=rewrite(loaded.module.float()).to(dtype))

    def read_tokenizer(self, folder: Path, *, config: Any) -> Any:
        del folder
        section = config.model_cfg["text_cfg"]
        told = section.get("tokenizer_kwargs") or {}
        return OpenClipTokenizer(
            context_length=int(section.get("context_length", TEXT["context_length"])), **told
        )

    def read_processor(self, folder: Path, *, config: Any) -> Any:
        del folder
        size = config.model_cfg["vision_cfg"].get("image_size", VISION_SIZE)
        return OpenClipProcessor(size, settings=getattr(config, "preprocess_cfg", None) or {})


def make_whole(config: Any) -> torch.nn.Module:
    """Return a model as open_clip makes it, both towers as submodules, without weights."""
    try:
        from open_clip.model import CustomTextCLIP
    except ImportError as error:
        raise MissingPackage("open_clip_torch", extra="clip", purpose="open_clip") from error

    settings = {key: value for key, value in config.model_cfg.items() if key != "custom_text"}
    module: Any = CustomTextCLIP(**{**settings, "vision_cfg": _without_weights(settings)})
    module.config = config
    found: torch.nn.Module = module
    return found


def rewrite(module: Any) -> torch.nn.Module:
    """Return a model whose attention and projections quantizers, or people, can name: the same one,
    in place."""
    from pytest_quantgate.encoders.split_attention import (
        join_bias,
        name_projection,
        split_attention,
    )

    split_attention(module)
    if hasattr(module.visual, "trunk"):
        merge_branches(module.visual)
        join_bias(module.visual)
    else:
        name_projection(module.visual, "proj")
    name_projection(module.text, "text_projection")
    found: torch.nn.Module = module
    return found


def merge_branches(visual: Any) -> None:
    """Put parallel branches of convolutions, which FastViT is trained with, together, in place."""
    from timm.utils.model import reparameterize_model

    reparameterize_model(visual.eval(), inplace=True)


def describe_towers(config: Any) -> tuple[TowerSpec, ...]:
    """Return both towers of an open_clip model."""
    text = {**TEXT, **config.model_cfg["text_cfg"]}
    positions = text["context_length"]
    pooling = text.get("pool_type", "argmax")
    projects = text.get("proj_type", "linear") != "none"
    return (
        describe_vision(config.model_cfg),
        TowerSpec(
            name="text",
            parts=("text",),
            inputs={"input_ids": (positions,)},
            embeddings="text",
            attention=ATTENTION,
            tokens=positions,
            config=_name_sizes(text, heads=text["heads"]),
            embed=embed_texts,
            linears=1 if projects and text.get("proj_bias") else 0,
            fused=("text.text_projection",) if projects and not text.get("proj_bias") else (),
            text=TextSpec(
                vocabulary=text["vocab_size"],
                end_id={"argmax": LARGEST, "eos": text["eos_id"]}.get(pooling),
                begin_id=None,
                pools_end=pooling in ("argmax", "eos"),
            ),
        ),
    )


def describe_vision(model: Mapping[str, Any]) -> TowerSpec:
    """Return the vision tower of an open_clip model, by its model_cfg."""
    vision = {**VISION, **model["vision_cfg"]}
    height, width = as_pair(vision.get("image_size", VISION_SIZE))
    rows, columns = as_pair(vision["patch_size"])
    spec = TowerSpec(
        name="vision",
        parts=("visual",),
        inputs={"pixel_values": (3, height, width)},
        embeddings="visual",
        attention=ATTENTION,
        tokens=(height // rows) * (width // columns) + 1,  # and the class token
        config=_name_sizes(vision, heads=vision["width"] // vision["head_width"]),
        embed=embed_images,
        fused=("visual.proj",),
    )
    if not vision.get("timm_model_name"):
        return spec
    trunk = measure_trunk(model)
    return replace(
        spec,
        attention=trunk.attention,
        tokens=trunk.tokens,
        config=trunk.sizes,
        fused=trunk.constant,
        linears=trunk.linears - 6 * trunk.sizes.num_hidden_layers,
    )


@dataclass(frozen=True, kw_only=True)
class Trunk:
    """What a vision tower of timm is made of: names of the classes of its attention, `tokens` that
    one sees at most, `linears` in all; `constant` are layers whose input is no image's."""

    attention: tuple[str, ...]
    tokens: int
    sizes: SimpleNamespace
    linears: int
    constant: tuple[str, ...]


def measure_trunk(model: Mapping[str, Any]) -> Trunk:
    """Return what timm makes of a model_cfg, without weights.

    Raises MissingPackage without open_clip, UnsupportedModel for a name that timm does not know,
    for images of another size than its, and for a trunk without attention.
    """
    import torch
    from torch import nn

    with torch.device("meta"):
        visual: Any = make_visual(model)
    sites = [part for part in visual.trunk.modules() if hasattr(part, "fused_attn")]
    pools = [name for name, part in visual.named_modules() if type(part).__name__ == _POOL]
    inner = [part for part in sites if type(part).__name__ != _POOL]
    if not inner:
        kind = type(visual.trunk).__name__
        raise UnsupportedModel(f"the trunk {kind} of timm has no attention: {_INSTEAD}")
    width = max(part.proj.in_features for part in inner)
    sizes = SimpleNamespace(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=len(inner),
        num_attention_heads=inner[-1].num_heads,
    )
    size = as_pair(model["vision_cfg"].get("image_size", VISION_SIZE))
    patches = getattr(visual.trunk, "patch_embed", None)
    taken = getattr(patches, "img_size", None)
    if taken is not None and tuple(taken) != size:
        raise UnsupportedModel(
            f"vision_cfg.image_size is {size}, its trunk of timm takes {tuple(taken)}: {_INSTEAD}"
        )
    grid = getattr(patches, "num_patches", None)
    if grid is None:  # convolutions in front: what the last stage sees
        grid = (size[0] // _STRIDE) * (size[1] // _STRIDE)
    return Trunk(
        attention=tuple(sorted({type(part).__name__ for part in sites})),
        tokens=grid + getattr(visual.trunk, "num_prefix_tokens", 0),
        sizes=sizes,
        linears=sum(isinstance(part, nn.Linear) for part in visual.modules()),
        constant=tuple(f"visual.{name}.q" for name in pools),
    )


#: The attention of timm that pools: its query is a trained probe.
_POOL = "AttentionPoolLatent"

#: Pixels that a token of FastViT's last stage stands for.
_STRIDE = 32


def make_visual(model: Mapping[str, Any]) -> torch.nn.Module:
    """Return the vision tower that open_clip makes of a model_cfg."""
    try:
        from open_clip.model import CLIPVisionCfg, _build_vision_tower
    except ImportError as error:
        raise MissingPackage("open_clip_torch", extra="clip", purpose="open_clip") from error
    settings = CLIPVisionCfg(**_without_weights(model))
    found: torch.nn.Module = _build_vision_tower(
        model["embed_dim"], settings, model.get("quick_gelu", False)
    )
    return found


def _without_weights(model: Mapping[str, Any]) -> dict[str, Any]:
    """Return the vision_cfg of a model_cfg, by which timm fetches no weights of its own.

    Raises UnsupportedModel for a trunk that timm does not know.
    """
    name = model["vision_cfg"].get("timm_model_name")
    if name:
        import timm

        if not timm.is_model(name):
            raise UnsupportedModel(
                f"vision_cfg.timm_model_name is {name!r:.80}, which timm {timm.__version__} does "
                f"not know: {_INSTEAD}"
            )
    return {**model["vision_cfg"], "timm_model_pretrained": False}


def embed_images(module: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    found: torch.Tensor = module.visual(inputs["pixel_values"])
    return found


def embed_texts(module: Any, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    found: torch.Tensor = module.text(inputs["input_ids"])
    return found


class OpenClipTokenizer:
    """open_clip's own tokenizer with the names that one of transformers has.

    Short texts are filled up with 0, which is the id of a token too: nothing is masked.
    """

    padding_side = "right"
    pad_token, pad_token_id = "!", 0
    unk_token, unk_token_id = None, None

    def __init__(self, *, context_length: int, **told: Any) -> None:
        from open_clip.tokenizer import SimpleTokenizer

        self.read = SimpleTokenizer(context_length=context_length, **told)
        self.all_special_ids = [self.pad_token_id, *self.read.all_special_ids]
        self.eos_token_id = int(self.read.eot_token_id)
        self.eos_token = self.convert_ids_to_tokens(self.eos_token_id)

    def __call__(self, texts: list[str], *, max_length: int, **_: Any) -> dict[str, torch.Tensor]:
        return {"input_ids": self.read(texts, context_length=max_length)}

    def convert_ids_to_tokens(self, number: int) -> str:
        return str(self.read.decoder.get(number, number))


class OpenClipProcessor(ImageTransform):
    """open_clip's own preprocessing for evaluation, as `preprocess_cfg` says."""

    def __init__(self, size: Any, *, settings: Mapping[str, Any]) -> None:
        from open_clip.transform import PreprocessCfg, image_transform

        height, width = as_pair(size)
        known = PreprocessCfg(**{**settings, "size": (height, width)})
        self.image_mean, self.image_std = tuple(known.mean), tuple(known.std)
        transform: Any = image_transform(
            (height, width),
            is_train=False,
            mean=known.mean,
            std=known.std,
            interpolation=known.interpolation,
            resize_mode=known.resize_mode,
            fill_color=known.fill_color,
        )
        super().__init__(transform, edge=min(height, width))


def _name_sizes(section: Mapping[str, Any], *, heads: int) -> SimpleNamespace:
    """Return the sizes of a tower by their names in transformers."""
    return SimpleNamespace(
        hidden_size=section["width"],
        intermediate_size=int(section["width"] * section["mlp_ratio"]),
        num_hidden_layers=section["layers"],
        num_attention_heads=heads,
    )


#: Sizes of a section, by the size of a model of transformers whose bound they have.
_BOUNDS = {
    "image_size": "image_size",
    "patch_size": "patch_size",
    "layers": "num_hidden_layers",
    "width": "hidden_size",
    "head_width": "hidden_size",
    "heads": "num_attention_heads",
    "context_length": "max_position_embeddings",
    "vocab_size": "vocab_size",
}


def _check_trunk(name: Any, *, where: str) -> None:
    """Raise UnsupportedModel for a model of timm that is no vision transformer."""
    if not name:
        return
    known = isinstance(name, str) and name.startswith(_TRUNKS)
    if not known or name.startswith(_OTHER_TRUNKS):
        raise UnsupportedModel(
            f"{where}.timm_model_name is {name!r:.80}: of timm's models ViT, EVA and MobileCLIP's "
            f"FastViT are taken: {_INSTEAD}"
        )


def _check_sizes(section: Mapping[str, Any], *, where: str) -> None:
    """Raise ModelError for sizes that no such model has."""
    for key, name in _BOUNDS.items():
        most = bounds.MODEL_SIZES[name]
        value = section.get(key, 1)
        for part in value if isinstance(value, list) else [value]:
            is_count = isinstance(part, int) and not isinstance(part, bool)
            if not (is_count and 0 < part <= most):
                raise ModelError(f"{where}.{key} is {value!r:.40}: expected 1 to {most}")
    ratio = section.get("mlp_ratio", 4.0)
    if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 0 < ratio <= 64:
        raise ModelError(f"{where}.mlp_ratio is {ratio!r:.40}: expected more than 0, at most 64")


FAMILY = EncoderFamily(
    name="open_clip",
    pretrained={
        "open_clip": OpenClip(
            towers=("vision", "text"),
            describe_towers=describe_towers,
            tokenizer=TokenizerClass(from_file=False, is_packaged=True),
        )
    },
)
