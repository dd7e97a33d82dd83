"""The good hand-overs of the bench: files of other tools, those kept beside the checkout and those
that the installed tools write here."""

from __future__ import annotations

import copy
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).parents[2]
DATA = Path(os.environ.get("QUANTGATE_TEST_DATA", REPOSITORY.parent / "shared" / "data"))

#: The FP16 model that every hand-over was made from.
BASE = "clip-cifar10-tiny"

INPUT, IMAGE = "pixel_values", (3, 32, 32)

Maker = Callable[[Path, Path], None]


class Library:
    """Good hand-overs by name: `name` of the table is a path below the data, or is made once."""

    def __init__(self, folder: Path, *, data: Path = DATA) -> None:
        self.folder = folder
        self.data = data

    @property
    def base(self) -> Path:
        return self.data / BASE

    def find(self, file: Mapping[str, Any]) -> Path:
        """Return the folder or file of one row of the table's `files`."""
        if "path" in file:
            return self.data / "handed-over" / str(file["path"])
        maker, name = str(file["made"]), str(file["name"])
        path = self.folder / "made" / name / ("model.onnx" if maker in ONNX_MAKERS else "")
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            MAKERS[maker](self.data, path, **file.get("options", {}))
        return path


def calibration_images(data: Path, *, count: int = 16) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return photographs of the calibration data as pixels, [count, 3, 32, 32]."""
    import io
    import tarfile

    from PIL import Image
    from transformers import AutoImageProcessor

    processor = AutoImageProcessor.from_pretrained(data / BASE, use_fast=False)
    with tarfile.open(data / "cifar10" / "train" / "0.tar") as archive:
        names = [name for name in archive.getnames() if name.endswith((".webp", ".png", ".jpg"))]
        files = [archive.extractfile(name) for name in names[:count]]
        contents = [io.BytesIO(file.read()) for file in files if file is not None]
    images = [Image.open(content).convert("RGB") for content in contents]
    found: np.ndarray[Any, np.dtype[np.float32]] = processor(images, return_tensors="np")[INPUT]
    return found


class _Reader:
    """What ONNX Runtime calibrates on."""

    def __init__(self, pixels: np.ndarray[Any, Any]) -> None:
        self._rest = iter(pixels)

    def get_next(self) -> dict[str, Any] | None:
        image = next(self._rest, None)
        return None if image is None else {INPUT: image[None]}


def make_static(data: Path, path: Path, *, operators: bool = False, **options: Any) -> None:
    """Write what ONNX Runtime's quantize_static makes of the FP32 file."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    extra = {key: options.pop(key) for key in tuple(options) if key[0].isupper()}
    types = {key: getattr(QuantType, options.pop(key)) for key in ("activation", "weight")}
    quantize_static(
        data / "handed-over" / "onnx" / "base.onnx",
        path,
        _Reader(calibration_images(data)),
        quant_format=QuantFormat.QOperator if operators else QuantFormat.QDQ,
        activation_type=types["activation"],
        weight_type=types["weight"],
        extra_options=extra,
        **options,
    )


def make_dynamic(data: Path, path: Path, **options: Any) -> None:
    """Write what ONNX Runtime's quantize_dynamic makes of the FP32 file."""
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(data / "handed-over" / "onnx" / "base.onnx", path, **options)


def make_nbits(data: Path, path: Path, **options: Any) -> None:
    """Write what ONNX Runtime's MatMulNBitsQuantizer makes of the FP32 file."""
    import onnx
    from onnxruntime.quantization import QuantFormat
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    if "quant_format" in options:
        options["quant_format"] = getattr(QuantFormat, options["quant_format"])
    model = onnx.load(data / "handed-over" / "onnx" / "base.onnx")
    quantizer = MatMulNBitsQuantizer(model, **options)
    quantizer.process()
    quantizer.model.save_model_to_file(str(path), False)


def make_half(data: Path, path: Path) -> None:
    """Write what ONNX Runtime's FP16 converter makes of the FP32 file, types of values kept out."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = onnx.load(data / "handed-over" / "onnx" / "base_fixed.onnx")
    onnx.save(convert_float_to_float16(model, keep_io_types=False), path)


def make_saved(data: Path, path: Path, *, config: str, block: int = 0) -> None:
    """Write what ModelOpt's save_pretrained makes of the model, quantized by one of its presets."""
    import torch
    from transformers import CLIPModel

    from pytest_quantgate.quantization.modelopt import import_modelopt

    mto, mtq = (import_modelopt(f"modelopt.torch.{name}") for name in ("opt", "quantization"))
    settings = copy.deepcopy(getattr(mtq, config))
    entries = [e for e in settings["quant_cfg"] if "vis" not in str(e.get("quantizer_name"))]
    for entry in entries:
        blocks = (entry.get("cfg") or {}).get("block_sizes") if block else None
        if blocks:
            blocks[-1] = block
    settings["quant_cfg"] = entries
    mto.enable_huggingface_checkpointing()
    model = CLIPModel.from_pretrained(data / BASE, attn_implementation="eager").eval()
    pixels = torch.from_numpy(calibration_images(data))
    ids = torch.randint(
        model.config.text_config.vocab_size,
        (len(pixels), model.config.text_config.max_position_embeddings),
        generator=torch.Generator().manual_seed(0),
    )

    def calibrate(quantized: torch.nn.Module) -> None:
        quantized(pixel_values=pixels, input_ids=ids)

    with torch.no_grad():
        model = mtq.quantize(model, settings, forward_loop=calibrate)
    model.save_pretrained(path)


def make_engine(data: Path, path: Path, *, onnx: str) -> None:
    """Write an engine of TensorRT for RTX with its layer report and the checksums of all three."""
    from pytest_quantgate.runtimes.engine import InputShapes, build_engine
    from pytest_quantgate.runtimes.tensorrt_library import load_library

    path.mkdir(parents=True)
    shutil.copyfile(data / "handed-over" / "onnx" / onnx, path / "model.onnx")
    size = (8, *IMAGE)
    report = build_engine(
        onnx_path=path / "model.onnx",
        plan_path=path / "model.plan",
        library=load_library(name="tensorrt_rtx"),
        target="sm89",
        shapes=(InputShapes(name=INPUT, smallest=size, usual=size, largest=size),),
    )
    rows = [
        {
            "Name": layer.name,
            "LayerType": layer.type,
            "Inputs": [{"Name": "t", "Format/Datatype": kind} for kind in layer.input_dtypes],
            "Constants": [{"Name": "t", "Format/Datatype": kind} for kind in layer.constant_dtypes],
            "Outputs": [{"Name": "t", "Format/Datatype": kind} for kind in layer.output_dtypes],
            "TacticName": layer.tactic,
            "Metadata": "\x1f".join(f"[ONNX Layer: {node}]" for node in layer.onnx_nodes),
        }
        for layer in report.layers
    ]
    (path / "layers.json").write_text(json.dumps({"Layers": rows, "Bindings": []}))
    write_sums(path)


def write_sums(folder: Path) -> None:
    """Write what sha256sum prints of an engine, its ONNX file and its report."""
    names = ("model.onnx", "model.plan", "layers.json")
    lines = [f"{hashlib.sha256((folder / n).read_bytes()).hexdigest()}  {n}\n" for n in names]
    (folder / "build.sha256").write_text("".join(lines))


ONNX_MAKERS: Mapping[str, Callable[..., None]] = {
    "static": make_static,
    "dynamic": make_dynamic,
    "nbits": make_nbits,
    "half": make_half,
}
MAKERS: Mapping[str, Callable[..., None]] = {
    **ONNX_MAKERS,
    "saved": make_saved,
    "engine": make_engine,
}
