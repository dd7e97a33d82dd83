"""A CLIP that a team wrote itself, in plain PyTorch with `nn.MultiheadAttention`.

model: {source: factory, factory: own_clip:build, files: [FOLDER], towers: [vision, text]}
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import nn
from torchvision.transforms import v2

from pytest_quantgate.encoders.factory import PlainEncoder


class Block(nn.Module):
    def __init__(self, width: int, heads: int, inner: int) -> None:
        super().__init__()
        self.attend = nn.MultiheadAttention(width, heads, batch_first=True)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(2))
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        y = self.norms[0](x)
        x = x + self.attend(y, y, y, attn_mask=mask, need_weights=False)[0]
        y = self.up(self.norms[1](x))
        return x + self.down(y * torch.sigmoid(1.702 * y))


class Vision(nn.Module):
    def __init__(self, config: dict, out: int) -> None:
        super().__init__()
        width, patch = config["hidden_size"], config["patch_size"]
        tokens = (config["image_size"] // patch) ** 2 + 1
        self.patches = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.first = nn.Parameter(torch.zeros(width))
        self.positions = nn.Parameter(torch.zeros(tokens, width))
        self.before, self.after = nn.LayerNorm(width), nn.LayerNorm(width)
        self.blocks = make_blocks(config)
        self.project = nn.Linear(width, out, bias=False)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x = self.patches(pixels).flatten(2).transpose(1, 2)
        first = self.first.expand(x.shape[0], 1, -1)  # the export would write len(x) down
        x = self.before(torch.cat((first, x), dim=1) + self.positions)
        for block in self.blocks:
            x = block(x, None)
        return self.project(self.after(x[:, 0]))


class Text(nn.Module):
    def __init__(self, config: dict, out: int) -> None:
        super().__init__()
        width, tokens = config["hidden_size"], config["max_position_embeddings"]
        self.end = config["eos_token_id"]
        self.table = nn.Embedding(config["vocab_size"], width)
        self.positions = nn.Parameter(torch.zeros(tokens, width))
        self.after = nn.LayerNorm(width)
        self.blocks = make_blocks(config)
        self.project = nn.Linear(width, out, bias=False)
        mask = torch.full((tokens, tokens), -torch.inf).triu(1)
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.table(ids) + self.positions
        for block in self.blocks:
            x = block(x, self.mask)
        end = (ids == self.end).int().argmax(dim=-1)
        return self.project(self.after(x)[torch.arange(x.shape[0], device=x.device), end])


def make_blocks(config: dict) -> nn.ModuleList:
    sizes = config["hidden_size"], config["num_attention_heads"], config["intermediate_size"]
    return nn.ModuleList(Block(*sizes) for _ in range(config["num_hidden_layers"]))


def build(folder: Path) -> PlainEncoder:
    """Return the encoder whose weights are in a folder, by the names that transformers gives."""
    config = json.loads((folder / "config.json").read_text())
    stored = load_file(folder / "model.safetensors")
    vision = Vision(config["vision_config"], config["projection_dim"])
    text = Text(config["text_config"], config["projection_dim"])
    vision.load_state_dict(
        {
            "patches.weight": stored["vision_model.embeddings.patch_embedding.weight"],
            "first": stored["vision_model.embeddings.class_embedding"],
            "positions": stored["vision_model.embeddings.position_embedding.weight"],
            **take_norm(stored, "vision_model.pre_layrnorm", "before"),
            **take_norm(stored, "vision_model.post_layernorm", "after"),
            **take_blocks(stored, "vision_model", len(vision.blocks)),
            "project.weight": stored["visual_projection.weight"],
        }
    )
    text.load_state_dict(
        {
            "table.weight": stored["text_model.embeddings.token_embedding.weight"],
            "positions": stored["text_model.embeddings.position_embedding.weight"],
            **take_norm(stored, "text_model.final_layer_norm", "after"),
            **take_blocks(stored, "text_model", len(text.blocks)),
            "project.weight": stored["text_projection.weight"],
        }
    )
    size = config["vision_config"]["image_size"]
    preprocess = v2.Compose(
        [
            v2.RGB(),
            v2.Resize(size, interpolation=v2.InterpolationMode.BICUBIC),
            v2.CenterCrop(size),
            v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize([0.45] * 3, [0.25] * 3),
        ]
    )
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    length = config["text_config"]["max_position_embeddings"]
    tokenizer.enable_truncation(length)
    tokenizer.enable_padding(length=length)

    def tokenize(texts: list[str]) -> torch.Tensor:
        return torch.tensor([found.ids for found in tokenizer.encode_batch(texts)])

    return PlainEncoder(vision=vision, text=text, preprocess=preprocess, tokenize=tokenize)


def take_norm(stored: dict, name: str, own: str) -> dict[str, torch.Tensor]:
    return {f"{own}.{part}": stored[f"{name}.{part}"] for part in ("weight", "bias")}


def take_blocks(stored: dict, tower: str, count: int) -> dict[str, torch.Tensor]:
    found = {}
    for index in range(count):
        theirs, own = f"{tower}.encoder.layers.{index}", f"blocks.{index}"
        for part in ("weight", "bias"):
            names = (f"{theirs}.self_attn.{name}_proj.{part}" for name in "qkv")
            found[f"{own}.attend.in_proj_{part}"] = torch.cat([stored[name] for name in names])
        for name, other in (
            ("attend.out_proj", "self_attn.out_proj"),
            ("norms.0", "layer_norm1"),
            ("norms.1", "layer_norm2"),
            ("up", "mlp.fc1"),
            ("down", "mlp.fc2"),
        ):
            found |= take_norm(stored, f"{theirs}.{other}", f"{own}.{name}")
    return found
