"""Times of a runtime's nodes charged to the nodes of a graph, and profiles that noise is kept out of."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from greencc.compiler.charging import charge
from greencc.compiler.layers import Origins
from greencc.compiler.profiling import Repeats, merged, quiet_profiles
from greencc.core.engine import NodeTime

MACS = {"one": 300, "two": 100, "three": 100}


@pytest.fixture
def origins() -> Origins:
    model = ir.from_onnx_text(
        """<ir_version: 8, opset_import: ["" : 17]>
        g (float[1, 8, 6, 6] x, float[8, 8, 1, 1] w) => (float[1, 8, 1, 1] y) {
            a = Conv (x, w)
            relu = Relu (a)
            b = Conv (relu, w)
            sum = Add (b, relu)
            c = Conv (sum, w)
            y = GlobalAveragePool (c)
        }"""
    )
    for node, name in zip(model.graph, ("one", "relu", "two", "add", "three", "pool"), strict=True):
        node.name = name
    return Origins(model)


def rows(*items: tuple[str, str, float]) -> list[NodeTime]:
    return [NodeTime(*item) for item in items]


def test_fused_kernels_go_to_their_weighted_node_and_others_to_their_own(origins: Origins) -> None:
    found = charge(
        rows(
            ("ReorderInput", "ReorderInput", 5.0),
            # Named after a value that has the name of a node, too.
            ("relu_nchwc", "Conv", 10.0),
            # The sum is computed in the kernel of the convolution.
            ("sum_nchwc", "Conv", 20.0),
            ("three", "Conv", 30.0),
            ("y_nchwc", "GlobalAveragePool", 7.0),
            ("a_QuantizeLinear", "QuantizeLinear", 9.0),
        ),
        origins,
        ["one", "two", "three"],
        MACS,
    )
    assert found.times == {"one": 10.0, "two": 20.0, "three": 30.0}
    assert found.kernels == {"one": "Conv", "two": "Conv", "three": "Conv"}
    assert not found.findings
    assert not found.shared


def test_an_integer_sum_is_not_charged_to_the_convolution(origins: Origins) -> None:
    found = charge(
        rows(("two_quant", "QLinearConv", 4.0), ("add", "QLinearAdd", 6.0)), origins, ["two"], MACS
    )
    assert found.times == {"two": 4.0}
    assert found.kernels == {"two": "QLinearConv"}


def test_steps_that_a_dynamic_product_was_split_into_are_summed(origins: Origins) -> None:
    parts = rows(
        ("one_MatMulInteger", "MatMulInteger", 4.0), ("one_Cast", "Cast", 1.0), ("one_rescale", "Mul", 2.0)
    )
    found = charge(parts, origins, ["one"], MACS)
    assert found.times == {"one": 7.0}
    assert found.kernels == {"one": "MatMulInteger+Cast+Mul"}


def test_names_that_do_not_map_back_share_the_time_by_work_with_one_warning(origins: Origins) -> None:
    found = charge(rows(("fused_nn_7", "tvm", 60.0), ("fused_nn_8", "tvm", 40.0)), origins, list(MACS), MACS)
    assert found.times == {"one": 60.0, "two": 20.0, "three": 20.0}
    assert found.shared == {"one", "two", "three"}
    (finding,) = found.findings
    assert finding.kind == "warning"
    assert "3 of 3 nodes (first 'one') have no kernel of their name" in finding.message
    assert "shares by multiply-accumulates" in finding.message


def test_a_node_whose_kernel_vanished_takes_as_long_per_operation_as_the_others(origins: Origins) -> None:
    found = charge(rows(("one", "Conv", 30.0), ("two", "Conv", 10.0)), origins, list(MACS), MACS)
    assert found.times == {"one": 30.0, "two": 10.0, "three": 10.0}
    assert found.shared == {"three"}
    assert len(found.findings) == 1


def test_what_nothing_tells_is_missing_and_never_0(origins: Origins) -> None:
    found = charge([], origins, ["one", "two"], MACS)
    assert found.times == {}
    (finding,) = found.findings
    assert "times are not known" in finding.message
    assert charge(rows(("other", "tvm", 5.0)), origins, ["one"], {}).times == {}


def profile(factor: float) -> list[NodeTime]:
    return rows(("a", "Conv", 10.0 * factor), ("a", "Conv", 20.0 * factor), ("b", "Gemm", 70.0 * factor))


def test_profiles_that_others_slowed_down_are_left_out() -> None:
    taken = iter([1.8, 1.0, 1.01, 1.4, 1.02, 1.0])
    kept = quiet_profiles(lambda: profile(next(taken)), Repeats(runs=1, least=3, most=8))
    assert kept == [profile(1.0), profile(1.01), profile(1.02)]
    assert list(taken) == [1.0], "enough is enough"
    assert merged(kept) == profile(1.01)


def test_more_are_taken_until_they_are_enough() -> None:
    taken = iter([1.0, 1.01, 1.02, 1.0, 1.0, 1.0])
    kept = quiet_profiles(
        lambda: profile(next(taken)), Repeats(runs=1, least=3, most=8), lambda found: len(found) == 5
    )
    assert len(kept) == 5


def test_where_nothing_is_quiet_all_are_used() -> None:
    factors = list(np.linspace(1.0, 2.0, 4))
    taken = iter(factors)
    kept = quiet_profiles(lambda: profile(next(taken)), Repeats(runs=1, least=3, most=4))
    assert len(kept) == 4
