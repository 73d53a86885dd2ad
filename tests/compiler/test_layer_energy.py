"""Energy by layer: whose work and time goes where, and what there is to share out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from greencc.compiler.layer_energy import layer_energies
from greencc.compiler.measurement import Measurement
from greencc.core.engine import Device
from greencc.core.report import REST, Energy, Figures, Interval, Latency, LayerEnergies, LayerTime, Ratio

DEVICE = Device("test", {"cpu": "test", "physical_cores": "1", "threads": "1"}, "0")
FEEDS = {"x": np.zeros((1, 8, 4, 4), np.float32)}


def model(custom: bool = False) -> ir.Model:
    """conv0 -> relu0 -> conv1 -> relu1, conv1 with four times the work; `custom`: an operator nobody can count."""
    weights = [
        numpy_helper.from_array(np.ones(shape, np.float32), name)
        for name, shape in (("w0", (8, 8, 1, 1)), ("w1", (32, 8, 1, 1)))
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["c0"], name="conv0"),
        helper.make_node("Relu", ["c0"], ["r0"], name="relu0"),
        helper.make_node("Conv", ["r0", "w1"], ["c1"], name="conv1"),
        helper.make_node("Odd", ["c1"], ["y"], name="odd", domain="custom")
        if custom
        else helper.make_node("Relu", ["c1"], ["y"], name="relu1"),
    ]
    graph = helper.make_graph(
        nodes,
        "test",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 32, 4, 4])],
        weights,
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("custom", 1)]
    return ir.from_proto(helper.make_model(graph, opset_imports=opsets))


def energy(value: float, gross: float | None = None, grade: str = "D") -> Energy:
    return Energy(value, value - 1.0, value + 1.0, grade, "package", "test", gross)


def measured(
    before: Energy | None, after: Energy | None, milliseconds: float = 1.0, clean: bool = True
) -> Measurement:
    figures = [
        Figures(Latency(milliseconds, milliseconds, milliseconds, 10), item, 1, None, None)
        for item in (before, after)
    ]
    one = Interval(1.0, 1.0, 1.0)
    return Measurement(*figures, Ratio(one, None, one), {"clean": clean})


def times(*rows: tuple[str, float | None, float | None]) -> list[LayerTime]:
    return [LayerTime(name, "Conv", before, after) for name, before, after in rows]


def shared(
    rows: Sequence[LayerTime],
    found: Measurement,
    before: ir.Model | None = None,
    after: ir.Model | None = None,
) -> LayerEnergies:
    result = layer_energies(model(), rows, (before, after), found, FEEDS, DEVICE)
    assert result is not None
    for side, total in (("baseline", result.baseline_mj), ("artifact", result.artifact_mj)):
        parts = [part for row in result.rows if (part := getattr(row, side)) is not None]
        assert abs(math.fsum(part.mj.value for part in parts) - total.value) <= math.ulp(total.value)
        assert math.fsum(part.share.value for part in parts) == pytest.approx(1.0)
    return result


def shares(found: LayerEnergies, side: str = "baseline") -> dict[str, float]:
    return {row.name: part.share.value for row in found.rows if (part := getattr(row, side)) is not None}


def test_time_that_no_layer_explains_is_a_row_of_its_own() -> None:
    found = shared(
        times(("conv0", 200.0, 100.0), ("conv1", 300.0, 100.0)), measured(energy(10.0), energy(5.0))
    )
    assert shares(found) == pytest.approx({"conv0": 0.2, "conv1": 0.3, REST: 0.5})
    assert shares(found, "artifact") == pytest.approx({"conv0": 0.1, "conv1": 0.1, REST: 0.8})
    assert found.rows[-1].name == REST
    assert (found.baseline_mj.value, found.artifact_mj.value) == (10.0, 5.0)
    assert (found.grade, found.boundary) == ("D", "package")
    assert "attributed by model" in found.method
    assert "estimated, gross" in found.method
    assert "could not be counted" in found.method


def test_a_profile_that_takes_longer_than_the_inference_is_scaled() -> None:
    found = shared(
        times(("conv0", 500.0, 500.0), ("conv1", 1500.0, 1500.0)), measured(energy(1.0), energy(1.0))
    )
    assert shares(found) == pytest.approx({"conv0": 0.25, "conv1": 0.75, REST: 0.0})


def test_layers_without_any_time_leave_all_to_the_rest() -> None:
    found = shared(times(("conv0", 0.0, 0.0)), measured(energy(1.0), energy(1.0)))
    assert shares(found) == {"conv0": 0.0, REST: 1.0}


def test_a_layer_that_is_gone_has_no_energy() -> None:
    found = shared(times(("conv0", 500.0, None), ("conv1", 500.0, 900.0)), measured(energy(1.0), energy(1.0)))
    assert found.rows[0].artifact is None
    assert set(shares(found, "artifact")) == {"conv1", REST}


def test_the_work_of_a_fused_node_goes_to_the_layer_before_it() -> None:
    """Both Relus ran inside the convolutions. Times are equal: work alone tells the layers apart."""
    rows = times(("conv0", 500.0, 500.0), ("conv1", 500.0, 500.0))
    found = shared(rows, measured(energy(1.0), energy(1.0), 1.0), model(), model())
    assert "counted operations and bytes" in found.method
    conv0, conv1 = (row.baseline for row in found.rows[:2])
    assert conv0 is not None
    assert conv1 is not None
    assert conv1.share.value > conv0.share.value
    # No time and no work is left over.
    assert shares(found)[REST] == 0.0


def test_work_that_leads_to_no_layer_goes_to_the_rest() -> None:
    found = shared(times(("conv1", 1000.0, 1000.0)), measured(energy(1.0), energy(1.0)), model(), model())
    assert 0.0 < shares(found)[REST] < shares(found)["conv1"]


def test_an_operator_nobody_can_count_is_no_obstacle() -> None:
    rows = times(("conv0", 400.0, 400.0), ("odd", 400.0, 400.0))
    found = shared(rows, measured(energy(1.0), energy(1.0)), model(custom=True), model(custom=True))
    assert shares(found).keys() == {"conv0", "odd", REST}


def test_without_the_graph_of_one_side_both_go_by_time() -> None:
    rows = times(("conv0", 500.0, 500.0), ("conv1", 500.0, 500.0))
    found = shared(rows, measured(energy(1.0), energy(1.0)), model(), None)
    assert shares(found) == pytest.approx({"conv0": 0.5, "conv1": 0.5, REST: 0.0})


def test_measured_energy_is_net_and_called_measured() -> None:
    found = shared(
        times(("conv0", 500.0, 500.0)), measured(energy(10.0, 30.0, grade="B"), energy(5.0, 15.0, grade="B"))
    )
    assert found.baseline_mj.value == 10.0
    assert "measured, net of the idle power" in found.method
    assert found.grade == "B"


def test_net_energy_lost_in_the_noise_gives_way_to_gross() -> None:
    rows = times(("conv0", 500.0, 500.0))
    found = shared(rows, measured(energy(-0.5, 8.0, grade="B"), energy(0.1, 7.0, grade="B")))
    assert (found.baseline_mj.value, found.artifact_mj.value) == (8.0, 7.0)
    assert (found.baseline_mj.low, found.baseline_mj.high) == (7.0, 9.0)
    assert "measured, gross" in found.method


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, energy(1.0)),
        (energy(1.0), None),
        (energy(-1.0, -0.5), energy(1.0, 2.0)),
        (energy(0.0), energy(1.0)),
    ],
)
def test_nothing_to_share_out(before: Energy | None, after: Energy | None) -> None:
    rows = times(("conv0", 500.0, 500.0))
    assert layer_energies(model(), rows, (None, None), measured(before, after), FEEDS, DEVICE) is None


def test_without_times_there_is_nothing_to_share_by() -> None:
    assert (
        layer_energies(model(), [], (None, None), measured(energy(1.0), energy(1.0)), FEEDS, DEVICE) is None
    )


def test_an_untouched_model_has_the_same_shares_twice() -> None:
    same = measured(energy(1.0), energy(1.0))
    same = replace(same, artifact=same.baseline)
    found = shared(times(("conv0", 500.0, 520.0), ("conv1", 300.0, None)), same, model(), model())
    assert all(row.baseline == row.artifact for row in found.rows)


def test_a_busy_machine_is_named() -> None:
    found = shared(times(("conv0", 500.0, 520.0)), measured(energy(1.0), energy(1.0), clean=False))
    assert "other processes were busy" in found.method
