"""Time a layer against what it may become, each alone in a model, on the target. Equal layers are timed once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from greencc.core.engine import Timer, Timing
from greencc.core.graph import Names, add_initializer, constant_tensor, input_at
from greencc.passes._decompose_factors import Candidate, emit, factor_name, stored_weights
from greencc.passes._decompose_problem import Problem
from greencc.passes._exclude import is_excluded


@dataclass
class LayerTimer:
    """Measures layers.

    Attributes:
        time: Of the target, for parts of a model.
        model: Gives opsets and types.
        shapes: Of its values, for one inference.
        spared: Names of nodes that later passes leave as they are: such a layer may take another time than its equals.
    """

    time: Timer
    model: ir.Model
    shapes: Mapping[str, tuple[int, ...]]
    spared: frozenset[str] = frozenset()
    _known: dict[tuple[object, ...], Timing] = field(default_factory=dict)

    def compare(self, problem: Problem, candidates: Sequence[Candidate]) -> Timing | None:
        """The layer, then the candidates; None when the layer's input has no known shape."""
        node = problem.view.node
        source = input_at(node, 0)
        shape = None if source is None else self.shapes.get(str(source.name))
        if shape is None or source is None:
            return None
        attributes = sorted((name, str(attribute.value)) for name, attribute in node.attributes.items())
        key = (
            node.op_type,
            tuple(attributes),
            shape,
            problem.view.weight_shape,
            input_at(node, 2) is not None,
            self._spared(node),
            *(candidate.signature for candidate in candidates),
        )
        if key not in self._known:
            weight = constant_tensor(input_at(node, 1))
            assert weight is not None
            values = np.random.default_rng(0).standard_normal(shape).astype(weight.dtype.numpy())
            models = [self._single(node, None, shape), *(self._single(node, c, shape) for c in candidates)]
            self._known[key] = self.time(models, [{"x": values}])
        return self._known[key]

    def _spared(self, node: ir.Node) -> str | None:
        """The name of a layer that later passes treat, or its factors, by name."""
        factors = factor_name(node, "")
        named = is_excluded(node, self.spared) or any(name.startswith(factors) for name in self.spared)
        return node.name if named else None

    def _single(self, layer: ir.Node, candidate: Candidate | None, shape: tuple[int, ...]) -> ir.Model:
        """A model of the layer alone, or of its factors."""
        weight = constant_tensor(input_at(layer, 1))
        assert weight is not None
        kind = ir.TensorType(weight.dtype)
        x = ir.Value(name="x", type=kind, shape=ir.Shape(shape))
        graph = ir.Graph([x], [], nodes=[], opset_imports=dict(self.model.opset_imports), name="layer")
        model = ir.Model(graph, ir_version=self.model.ir_version)
        inputs: list[ir.Value | None] = [x, add_initializer(graph, "weight", weight)]
        bias = constant_tensor(input_at(layer, 2))
        if bias is not None:
            inputs.append(add_initializer(graph, "bias", bias))
        y = ir.Value(name="y", type=kind)
        if bias is None and layer.op_type == "Gemm" and self.model.opset_imports.get("", 1) < 11:
            inputs.append(add_initializer(graph, "bias", np.zeros(1, weight.dtype.numpy())))
        attributes = {name: attribute.value for name, attribute in layer.attributes.items()}
        node = ir.node(layer.op_type, inputs, attributes, name=layer.name, outputs=[y])
        # Later passes go by names, and by the layers that factors came from.
        node.metadata_props.update(layer.metadata_props)
        nodes = [node]
        if candidate is not None:
            names = Names(model)
            weights = stored_weights(graph, node, candidate, weight.dtype.numpy(), names)
            nodes = emit(node, candidate, x, weights, names)
            for index in range(len(node.inputs)):
                node.replace_input_with(index, None)
            del graph.initializers["weight"]
        graph.extend(nodes)
        graph.outputs.append(nodes[-1].outputs[0])
        nodes[-1].outputs[0].name = "y"
        return model
