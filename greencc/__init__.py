"""greencc: an energy-aware model-compression compiler for ONNX models."""

__version__ = "0.1.0"
