"""Values of the graph in the layouts in which they were wanted."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir


class Layouts:
    """Relax expressions by value: as ONNX has it (plain), and images as NHWC.

    Args:
        builder: The Relax block builder that transpositions are written with.
    """

    def __init__(self, builder: Any) -> None:
        self._builder = builder
        self._plain: dict[ir.Value, Any] = {}
        self._images: dict[ir.Value, Any] = {}

    def __contains__(self, value: ir.Value) -> bool:
        return value in self._plain or value in self._images

    def define(self, value: ir.Value, expression: Any) -> None:
        """The value as ONNX has it."""
        self._plain[value] = expression

    def define_image(self, value: ir.Value, expression: Any) -> None:
        """The value as NHWC."""
        self._images[value] = expression

    def has_image(self, value: ir.Value) -> bool:
        return value in self._images

    def only_image(self, value: ir.Value) -> bool:
        """True where the plain form would have to be made."""
        return value in self._images and value not in self._plain

    def plain(self, value: ir.Value) -> Any:
        if value not in self._plain:
            self._plain[value] = self._moved(self._images[value], (0, 3, 1, 2))
        return self._plain[value]

    def image(self, value: ir.Value) -> Any:
        if value not in self._images:
            self._images[value] = self._moved(self._plain[value], (0, 2, 3, 1))
        return self._images[value]

    def _moved(self, expression: Any, order: tuple[int, ...]) -> Any:
        from tvm import relax

        shape = [expression.ty.shape[axis] for axis in order]
        sizes = [size for size in list(expression.ty.shape)[1:] if not _is_one(size)]
        if len(sizes) <= 1:
            # Nothing changes its place.
            return self._builder.emit(relax.op.reshape(expression, relax.ShapeExpr(shape)))
        return self._builder.emit(relax.op.permute_dims(expression, order))


def _is_one(size: Any) -> bool:
    from tvm.tirx import IntImm

    return isinstance(size, IntImm) and int(size) == 1
