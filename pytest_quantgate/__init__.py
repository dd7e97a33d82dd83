"""pytest-quantgate decides, in pytest, whether a quantized CLIP-like model may ship."""

__version__ = "0.1.0"
