"""Follows a model to what ships: ONNX graphs, ONNX Runtime, engines. Knows no pytest."""
