"""Derivatives of the outputs of a graph by its inputs (`greencc.core.gradients`), from PyTorch's reverse mode."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import torch

from greencc.core.data import Array, Feeds
from greencc.torch_graph.extra import torch_threads
from greencc.torch_graph.graph import TorchGraph
from greencc.torch_graph.node import Tensor


class Gradients:
    """A model that can be differentiated by some of its inputs; its weights are constants.

    Args:
        model: Left unchanged.
        by: Names of float inputs.
        threads: That PyTorch may use.
    """

    def __init__(self, model: ir.Model, by: Sequence[str], threads: int) -> None:
        self._by, self._threads = tuple(by), threads
        self._graph = TorchGraph(model)
        for weight in self._graph.parameters.values():
            weight.requires_grad_(False)

    def run(self, feeds: Feeds) -> _Tape:
        leaves = {
            name: torch.from_numpy(np.array(feeds[name], np.float32)).requires_grad_() for name in self._by
        }
        others = {name: values for name, values in feeds.items() if name not in leaves}
        with torch_threads(self._threads):
            return _Tape(self._graph.run(others, tensors=leaves), leaves, self._threads)


@dataclass(frozen=True, eq=False)
class _Tape:
    values: Mapping[str, Tensor]
    leaves: Mapping[str, Tensor]
    threads: int

    @property
    def outputs(self) -> dict[str, Array]:
        return {name: value.detach().numpy() for name, value in self.values.items()}

    def pull(self, weights: Mapping[str, Array]) -> dict[str, Array]:
        # An output that no leaf has a part in (indices, constants) has no gradient to give.
        used = {name: self.values[name] for name in weights if self.values[name].requires_grad}
        if not used:
            return {name: np.zeros(tuple(leaf.shape), np.float32) for name, leaf in self.leaves.items()}
        with torch_threads(self.threads):
            found = torch.autograd.grad(
                list(used.values()),
                list(self.leaves.values()),
                [torch.from_numpy(np.array(weights[name], np.float32)) for name in used],
                retain_graph=True,
                allow_unused=True,
                materialize_grads=True,
            )
        return {name: value.numpy() for name, value in zip(self.leaves, found, strict=True)}
