"""Labels through Einsum: every letter is an axis."""

from __future__ import annotations

import onnx_ir as ir

from greencc.core.graph import label
from greencc.core.groups.analysis import Analysis
from greencc.core.groups.labels import AxisLabels
from greencc.core.groups.roles import Role

# An operand and the axis of it that a letter stands for.
_Place = tuple[int, int]


def einsum(state: Analysis, node: ir.Node) -> None:
    """`terms -> result` without ellipsis; a letter that is summed over has to be in two terms."""
    equation = node.attributes["equation"].as_string().replace(" ", "")
    left, arrow, result = equation.partition("->")
    terms = left.split(",")
    if not arrow or "." in equation or any(len(set(term)) != len(term) for term in (*terms, result)):
        state.refuse(node, f"{label(node)}: a form of Einsum that is not known")
        return
    letters = dict.fromkeys("".join(terms))
    found: dict[str, AxisLabels] = {}
    for letter in letters:
        places = [(index, term.index(letter)) for index, term in enumerate(terms) if letter in term]
        found[letter] = _letter(state, node, places, stays=letter in result)
    state.give(node.outputs[0], [found[letter] for letter in result])


def _letter(state: Analysis, node: ir.Node, places: list[_Place], stays: bool) -> AxisLabels:
    wide: list[tuple[ir.Value, _Place]] = []
    for place in places:
        value = node.inputs[place[0]]
        assert value is not None
        if state.dim(value, place[1]) != 1:
            wide.append((value, place))
    weights = [place for value, place in wide if state.is_constant(value)]
    computed = [(value, place[1]) for value, place in wide if not state.is_constant(value)]
    if not computed:
        # Only weights have it: it is made here.
        if not stays or len(weights) != 1:
            return None
        return state.constant(node, *weights[0], Role.PRODUCER)
    labelled = [labels for value, axis in computed if (labels := state.axes(value)[axis]) is not None]
    if not labelled:
        return None
    merged = labelled[0]
    for labels in labelled[1:]:
        state.unite(merged, labels, f"{label(node)}: sizes differ")
    if len(labelled) < len(computed):
        state.lock(merged, f"{label(node)} joins it with values that cannot be cut")
    if not stays and len(wide) == 1:
        state.lock(merged, f"{label(node)} reduces over it")
    for index, axis in weights:
        role = Role.PARAMETER if stays else Role.CONSUMER
        state.unite(merged, state.constant(node, index, axis, role), f"{label(node)}: sizes differ")
        if not stays:
            for value, along in computed:
                state.read(node, value, along)
    return merged
