"""How much is read of what others made: the bounds of every reader, in one place.

Each is far beyond what anybody needs and small enough that a run stays within a few gigabytes:
a file is refused by its size, its number of parts, or how deep it is nested, before it is unfolded.
What is written in C or C++ and cannot be bounded so is read in a process of its own, which may have
`WORKER_BYTES` and `WORKER_SECONDS` (`bounded_process.py`).
"""

from __future__ import annotations

# -- text ------------------------------------------------------------------------------------------

#: A suite. YAML is read slowly: a file of a megabyte took 13 s.
SUITE_BYTES = 256 << 10
RECIPE_BYTES = 1 << 20
BASELINE_BYTES = 8 << 20
LOOK_BYTES = 1 << 16
#: A model card.
CARD_BYTES = 1 << 20
#: A config, tokenizer, manifest or report.
JSON_BYTES = 64 << 20
#: Values and names in one JSON text, at least: each takes up to 100 bytes in memory.
JSON_VALUES = 10_000_000
#: A value in the cache, which is ours: the outcomes of millions of samples.
CACHED_BYTES = 256 << 20
YAML_DEPTH = 50
YAML_VALUES = 100_000

# -- checkpoints -----------------------------------------------------------------------------------

#: The header of a safetensors file: 100,000 tensors.
HEADER_BYTES = 16 << 20
#: More than any library takes, and few enough to multiply.
DIMENSIONS = 64
#: The pickle in a modelopt_state.pth, and the archive around it.
STATE_BYTES = 32 << 20
STATE_ENTRIES = 10_000
#: The largest sizes of a CLIP: nothing of its kind comes near.
MODEL_SIZES = {
    "num_hidden_layers": 1_000,
    "num_attention_heads": 1_000,
    "hidden_size": 65_536,
    "intermediate_size": 262_144,
    "projection_dim": 65_536,
    "image_size": 1_024,
    "patch_size": 1_024,
    "num_channels": 64,
    "vocab_size": 10_000_000,
    "max_position_embeddings": 65_536,
}
#: Protobuf reads no larger message.
ONNX_BYTES = 2 << 30
#: Nodes, initializers, inputs, outputs and properties of a graph, each.
ONNX_PARTS = 1_000_000

# -- data sets -------------------------------------------------------------------------------------

SHARDS = 1_000_000
#: Samples of a split.
SAMPLES = 4_000_000
#: One file of a shard: an image, or its label or captions; names and long headers of an archive.
IMAGE_BYTES = 256 << 20
TEXT_BYTES = 1 << 20
#: The images in one row group of a Parquet file: they are read together.
ROW_GROUP_BYTES = 1 << 30
#: All labels and captions of a split.
TEXTS_BYTES = 1 << 30
CLASS_NAMES_BYTES = 16 << 20
#: All class names in all templates, in characters.
PROMPT_CHARACTERS = 256 << 20
#: Pixels that are decoded at once, in one image or several; Pillow refuses more in one.
PIXELS = 1 << 26
#: How many times longer than the other one side of an image may be: it is resized by the shorter.
IMAGE_RATIO = 50

# -- git -------------------------------------------------------------------------------------------

GIT_FILES = 20_000
GIT_FILE_BYTES = 8 << 20
GIT_BYTES = 256 << 20
GIT_LISTING_BYTES = 16 << 20

# -- a process of its own --------------------------------------------------------------------------

WORKER_BYTES = 4 << 30
WORKER_SECONDS = 900


def is_size(name: str, value: object, *, pair: bool = True) -> bool:
    """Return whether a value is a size of `MODEL_SIZES`; of an image or a patch, two (a `pair`)."""
    sides = value if isinstance(value, (list, tuple)) else (value,)
    pair = pair and name in ("image_size", "patch_size")
    return len(sides) in ((1, 2) if pair else (1,)) and all(
        type(side) is int and 0 < side <= MODEL_SIZES[name] for side in sides
    )
