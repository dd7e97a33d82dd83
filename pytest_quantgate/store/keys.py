"""The one door to the cache: every kind of entry is declared here, and its key derived from that.

A key is the SHA-256 of all that can change the entry: its inputs, and what it runs in (packages by
content, this package's code and version, Python, processor, threads, environment, device). Nobody
writes one by hand. To keep a measurement of your own:

1. Declare it below, and name it in `MEASUREMENTS`:

       NORMS = Measurement(kind="norms", inputs=("fp16", "data"), packages=CLIP)

   `inputs` are what a caller gives: digests of other entries, data and settings of the suite.
   Constants in the code are not among them, as the code is in every key already.

2. Ask for it, in `Case` or with one:

       key = case.key(NORMS, fp16=case.fp16_key, data=samples.digest)
       found = case.measured(NORMS, key, measure=..., read=...)

   `measure()` returns plain JSON, `read` makes a value of it and may raise ValueError: what is
   stored is then measured again. Entries of files use `case.cache.get_and_read(kind=NORMS.kind,
   key=key, ...)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pytest_quantgate.evidence.fingerprint import digest_of
from pytest_quantgate.store.surroundings import Code, Surroundings

#: What a forward of either variant runs through, from a file of pixels to an embedding.
CLIP = (
    *("torch", "torchvision", "triton", "numpy", "scipy", "PIL"),
    *("transformers", "tokenizers", "regex", "safetensors", "kernels"),
    *("modelopt", "modelopt_recipes", "omegaconf", "yaml", "pydantic", "pydantic_core"),
    *("diffusers", "clip_benchmark", "open_clip", "timm", "ftfy", "webdataset", "pyarrow"),
)

#: What turns a file into pixels, and these into a perceptual hash.
PICTURES = (
    *("PIL", "torchvision", "numpy", "scipy", "imagehash"),
    *("clip_benchmark", "webdataset", "pyarrow"),
)

#: What an ONNX file is written and read with.
ONNX = (*CLIP, "onnx", "ml_dtypes", "google.protobuf")

#: What an exported model runs in.
ONNX_RUNTIME = (*ONNX, "onnxruntime")

#: What an engine is built by and runs in, whichever of them is there.
ENGINES = (
    *ONNX_RUNTIME,
    *("tensorrt", "tensorrt_bindings", "tensorrt_libs"),
    *("tensorrt_rtx", "tensorrt_rtx_bindings", "tensorrt_rtx_libs"),
)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """A kind of cache entry, and what its value depends on.

    `packages` are import names; one that is not installed counts as such. `code` is `whole` where
    judgement or report is part of the value.
    """

    kind: str
    inputs: tuple[str, ...]
    packages: tuple[str, ...]
    code: Code = "measuring"


def make_key(
    measurement: Measurement, *, surroundings: Surroundings, device: str, **inputs: Any
) -> str:
    """Return the key of one entry; raises TypeError where an input is missing or not declared."""
    if inputs.keys() != set(measurement.inputs):
        raise TypeError(
            f"{measurement.kind} is declared with the inputs {sorted(measurement.inputs)}, "
            f"and was given {sorted(inputs)}"
        )
    about = surroundings.describe(
        packages=measurement.packages, device=device, code=measurement.code
    )
    return digest_of({"kind": measurement.kind, "inputs": inputs, "surroundings": about})


#: The model before it is quantized, and the packages that bring families of encoders. Never stored
#: itself: an input of what is.
FP16 = Measurement(
    kind="fp16", inputs=("model", "dtype", "attn_implementation", "families"), packages=CLIP
)
#: What must be true of the model and its data; `tasks` are (task, samples, first) and their `data`.
#: Its search stops where a gate says that chance is beaten.
SANITY = Measurement(
    kind="sanity", inputs=("fp16", "pairs", "tasks", "data"), packages=CLIP, code="whole"
)
#: Which format each layer gets, where the recipe leaves that to a search.
SEARCH = Measurement(
    kind="search",
    inputs=("fp16", "recipe", "calibration"),
    packages=(*CLIP, "onnx", "pulp"),
)
#: The quantized variant's checkpoint, with its audit and how it was calibrated; `given` is the
#: digest of one that was handed over.
VARIANT = Measurement(
    kind="variant",
    inputs=("fp16", "recipe", "calibration", "given"),
    packages=(*CLIP, "onnx"),  # ModelOpt's attention quantizers import it
)
#: A variant with some of its quantizers off. Never stored itself.
WITHOUT = Measurement(kind="without", inputs=("variant", "quantizers"), packages=())
#: A variant of a suite's model and calibration data by another recipe. Never stored itself.
REPAIRED = Measurement(kind="repaired", inputs=("variant", "recipe"), packages=())
#: The exported variant in ONNX Runtime, and its engines. Never stored themselves. `given` are the
#: digests of files that were handed over.
EXPORTED = Measurement(kind="exported", inputs=("softmax", "given"), packages=ONNX_RUNTIME)
EXECUTED = Measurement(kind="executed", inputs=("plans",), packages=ENGINES)
#: What the images of a data set show: ids, decoded pixels and perceptual hashes.
CONTENTS = Measurement(kind="contents", inputs=("data", "samples", "first"), packages=PICTURES)
#: Evaluated pictures that look like calibrated ones.
NEAR_COPIES = Measurement(
    kind="near_copies", inputs=("evaluated", "calibrated"), packages=("numpy",)
)
#: Image embeddings of one variant at one stage; `stage` is empty for PyTorch.
EMBEDDINGS = Measurement(kind="embeddings", inputs=("variant", "data", "stage"), packages=CLIP)
#: The largest values inside FP16, on held-out pairs.
ACTIVATIONS = Measurement(kind="activations", inputs=("fp16", "calibration"), packages=CLIP)
#: What a timed gate gives both variants of a tower: so many held-out inputs, preprocessed.
TIMED_INPUTS = Measurement(
    kind="timed_inputs", inputs=("fp16", "calibration", "tower", "samples"), packages=CLIP
)
#: What both variants answer to each sample of a task; `code` is the digest of the package that a
#: task of others is in.
OUTCOMES = Measurement(
    kind="outcomes",
    inputs=(
        *("fp16", "variant", "data", "bank", "task", "code", "metric"),
        *("positive", "samples", "first", "stage"),
    ),
    packages=CLIP,
)
FIDELITY = Measurement(
    kind="fidelity", inputs=("fp16", "variant", "data", "samples", "first", "stage"), packages=CLIP
)
ROUNDTRIP = Measurement(kind="roundtrip", inputs=("variant",), packages=(*CLIP, "onnx"))
#: The ONNX file of one tower; `given` is the digest of one that was handed over.
ONNX_FILE = Measurement(
    kind="onnx", inputs=("variant", "tower", "precision", "softmax", "given"), packages=ONNX
)
ONNX_AUDIT = Measurement(kind="onnx_audit", inputs=("onnx",), packages=ONNX)
#: What `quantgate check` says of a given ONNX file against its base; both are digests.
ONNX_CHECK = Measurement(kind="onnx_check", inputs=("given", "base"), packages=ONNX, code="whole")
PARITY = Measurement(
    kind="parity", inputs=("fp16", "variant", "softmax", "samples", "given"), packages=ONNX_RUNTIME
)
#: The exported towers in the number format that ships.
SHIPPED = Measurement(kind="shipped", inputs=("fp16", "onnx", "samples"), packages=ONNX_RUNTIME)
#: The plan of one tower's engine, and what its builder says of it.
#: `given` are the digests of a report that was handed over; the plan is then not kept.
ENGINE = Measurement(
    kind="engine", inputs=("onnx", "target", "batch", "library", "given"), packages=ENGINES
)
SENSITIVITY = Measurement(
    kind="sensitivity",
    inputs=("fp16", "variant", "data", "task", "samples", "directions"),
    packages=CLIP,
)
EXCLUSION = Measurement(
    kind="exclusion",
    inputs=("fp16", "variant", "sensitivity", "gates", "fidelity", "coverage", "data", "day"),
    packages=CLIP,
    code="whole",
)
#: Pictures of the samples that flipped.
PREVIEWS = Measurement(
    kind="previews",
    inputs=("outcomes", "images"),
    packages=("PIL", "numpy", "clip_benchmark", "webdataset", "pyarrow"),
    code="whole",
)

MEASUREMENTS = (
    *(
        FP16,
        SANITY,
        SEARCH,
        VARIANT,
        WITHOUT,
        REPAIRED,
        EXPORTED,
        EXECUTED,
        CONTENTS,
        NEAR_COPIES,
        EMBEDDINGS,
    ),
    *(ACTIVATIONS, TIMED_INPUTS, OUTCOMES, FIDELITY, ROUNDTRIP, ONNX_FILE, ONNX_AUDIT, ONNX_CHECK),
    *(PARITY, ENGINE, SHIPPED, SENSITIVITY, EXCLUSION, PREVIEWS),
)
