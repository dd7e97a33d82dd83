"""Run by vLLM's interpreter, which has nothing of this package: load_in_vllm.py FOLDER DTYPE.

vLLM makes the model of the folder's config.json and its own loader fills it; no engine is started.
Written are two lines of JSON: the version, and then where each tensor of the folder lies. Checked
with vLLM 0.32 on a CPU.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

#: Names that loaders give to several weights which they put behind each other.
FUSED = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj"), "qkv_proj"),
    **dict.fromkeys(("gate_proj", "up_proj"), "gate_up_proj"),
}

#: What is in no embedding: counted places, and what multiplies the similarity of a pair.
IDLE = ("position_ids", "logit_scale", "logit_bias")

#: Of a fused parameter a tensor is at most such a part.
MOST_PARTS = 3


def main() -> None:
    folder, dtype = Path(sys.argv[1]), sys.argv[2]
    # vLLM and its parts write to the standard output.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    import vllm

    print(json.dumps({"version": vllm.__version__}), file=answers, flush=True)
    with tempfile.TemporaryDirectory() as store:
        print(json.dumps(load(folder, dtype=dtype, store=store)), file=answers, flush=True)


def load(folder: Path, *, dtype: str, store: str) -> dict[str, Any]:
    """Return what vLLM's loader made of a folder, as `Loaded` has it."""
    from vllm.config import set_current_vllm_config
    from vllm.distributed import init_distributed_environment, initialize_model_parallel
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader.utils import (
        initialize_model,
        process_weights_after_loading,
    )

    tensors = dict(read(folder))
    try:
        config = EngineArgs(
            model=str(folder), runner="pooling", enforce_eager=True, dtype=dtype
        ).create_engine_config()
    except Exception as error:  # noqa: BLE001 (whatever the runtime says is the answer)
        return {"refused_at": "config", "error": describe(error), "tensors": len(tensors)}
    found: dict[str, Any] = {
        "reads_as": type(config.quant_config).__name__ if config.quant_config else "",
        "tensors": len(tensors),
        "codes": sum(is_code(tensor) for tensor in tensors.values()),
    }
    with set_current_vllm_config(config):
        init_distributed_environment(1, 0, f"file://{store}/rendezvous", 0, "gloo")
        initialize_model_parallel(1, 1)
        try:
            model = initialize_model(vllm_config=config)
            filled = model.load_weights(iter(tensors.items()))
        except Exception as error:  # noqa: BLE001 (as above)
            return {**found, "refused_at": "load", "error": describe(error)}
        parameters = {name: value.detach() for name, value in model.named_parameters()}
        found |= {
            "parameters": len(parameters),
            "unfilled": sorted(set(parameters) - set(filled or parameters)),
            **place_all(tensors, parameters),
        }
        try:
            import torch

            process_weights_after_loading(model, config.model_config, torch.device("cpu"))
        except Exception as error:  # noqa: BLE001 (as above)
            found["unprepared"] = describe(error)
    return found


def read(folder: Path) -> Iterator[tuple[str, Any]]:
    """Yield the tensors of all safetensors files of a folder; nothing else is opened."""
    from safetensors import safe_open

    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as stored:
            for name in stored.keys():  # noqa: SIM118 (it is no mapping)
                yield name, stored.get_tensor(name)


def is_code(tensor: Any) -> bool:
    return bool(tensor.dtype.itemsize == 1)


def place_all(tensors: Mapping[str, Any], parameters: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return tensors whose place holds something else, those that lie nowhere, and those that are
    of no embedding and lie nowhere."""
    changed: list[str] = []
    lost: list[str] = []
    unused: list[str] = []
    for name, tensor in tensors.items():
        home = parameters.get(name, parameters.get(fuse(name)))
        places = [home] if home is not None else list(parameters.values())
        if any(lies_in(tensor, place) for place in places):
            continue
        if home is not None:
            changed.append(name)
        else:
            (unused if name.endswith(IDLE) else lost).append(name)
    return {"changed": changed, "lost": lost, "unused": unused}


def fuse(name: str) -> str:
    """Return the parameter that holds a tensor together with others, by vLLM's names."""
    return ".".join(FUSED.get(part, part) for part in name.split("."))


def lies_in(tensor: Any, parameter: Any) -> bool:
    """Return whether a parameter holds a tensor: whole, as one of a few parts of equal size, or in
    front of rows that were filled up (embeddings)."""
    import torch

    size = tensor.numel()
    if is_code(tensor) != is_code(parameter) or not 0 < size <= parameter.numel():
        return False
    if is_code(tensor):
        if tensor.dtype != parameter.dtype:
            return False
        one, two = (value.contiguous().view(torch.uint8) for value in (tensor, parameter))
    else:
        one, two = tensor.to(parameter.dtype), parameter
    one, two = one.reshape(1, -1), two.reshape(-1)
    if bool((two[:size] == one[0]).all()):
        return True
    if two.numel() % size or two.numel() > MOST_PARTS * size:
        return False
    return bool((two.reshape(-1, size) == one).all(dim=1).any())


def describe(error: Exception) -> str:
    """Return the first lines of what was said, on one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:3])}"[:400]


if __name__ == "__main__":
    main()
