"""The models, engine and data source of the quantization tests."""

from tests.passes.quantize.conftest import kit, parse, random

__all__ = ["kit", "parse", "random"]
