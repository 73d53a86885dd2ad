"""The way to PyTorch, for those who must run without it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import onnx_ir as ir

from greencc.core.errors import UnavailableError
from greencc.core.gradients import Differentiable


def require_torch(purpose: str) -> None:
    """Make sure that PyTorch is there.

    Args:
        purpose: What needs it, as the subject of a sentence.

    Raises:
        UnavailableError: It is not installed, or cannot be imported.
    """
    hint = "pip install 'greencc[finetune]'"
    try:
        import torch  # noqa: F401 (only whether it can be imported)
    except ImportError as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == "torch"
        what = "which is not installed" if absent else f"which cannot be imported: {error}"
        raise UnavailableError(f"{purpose} needs PyTorch, {what}", hint=hint) from error


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """As many threads as the target: results depend on their number, and too many wait for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def differentiate(model: ir.Model, by: Sequence[str], *, threads: int = 1) -> Differentiable:
    """A model whose outputs can be differentiated by some of its inputs.

    Args:
        model: Left unchanged.
        by: Names of float inputs.
        threads: That PyTorch may use.

    Raises:
        UnavailableError: PyTorch is not there.
        InputError: The model has an operator without a gradient; the message names it.
    """
    require_torch("taking gradients")
    from greencc.torch_graph.gradients import Gradients

    return Gradients(model, by, threads)
