"""The shipped checkpoint: small, FP16, and found without NumPy or torch."""

from __future__ import annotations

import subprocess
import sys

import torch
from safetensors import safe_open

from pytest_quantgate.reference import weights_dir


def test_importing_the_package_imports_no_numpy() -> None:
    code = (
        "import sys, pytest_quantgate.reference as r; r.weights_dir(); "
        "sys.exit('numpy' in sys.modules or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_files_are_small_and_half() -> None:
    assert sum(path.stat().st_size for path in weights_dir().iterdir()) < 12_000_000
    assert {path.name for path in weights_dir().iterdir()} >= {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    with safe_open(weights_dir() / "model.safetensors", framework="pt") as file:
        for name in file.keys():  # noqa: SIM118
            tensor = file.get_tensor(name)
            assert tensor.dtype == torch.float16, name
            assert bool(torch.isfinite(tensor).all()), name
