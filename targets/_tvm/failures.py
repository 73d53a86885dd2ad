"""Whatever goes wrong at a node is told of with the node's name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import onnx_ir as ir

from greencc.core.errors import GreenccError, InputError
from greencc.core.graph import label

UNSUPPORTED = "compile for the target 'cpu', or change the model so that it does without this operator"
_LONGEST = 200


@contextmanager
def named(node: ir.Node, what: str = "cannot be compiled") -> Iterator[None]:
    """Make an error of any kind one that names the node.

    Raises:
        InputError: In the place of anything but a `GreenccError`.
    """
    try:
        yield
    except GreenccError:
        raise
    except Exception as error:  # TVM raises whatever it meets
        reason = " ".join(str(error).split())[:_LONGEST] or type(error).__name__
        raise InputError(f"{label(node)}: {what}: {reason}", hint=UNSUPPORTED) from error
