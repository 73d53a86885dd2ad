"""What devices answer is not believed unseen: stretches of load, tensors, and outputs beside this computer's."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import pytest

from greencc.core.elsewhere import Stretch
from greencc.core.engine import BuildOrder
from greencc.core.errors import InputError, UsageError
from greencc.devices.driven import parse_driven
from greencc.devices.engines import Port
from greencc.devices.protocol import ProtocolError
from greencc.devices.room import most_samples
from greencc.devices.site import _pace
from greencc.devices.target import _compared
from greencc.devices.tensors import as_arrays, as_bytes, packed, specs_of

TOLD: dict[str, Any] = {
    "begin": 100.0,
    "seconds": 2.0,
    "count": 3,
    "late": 1,
    "others": 0.05,
    "suspended": 0.0,
    "samples": [{"seconds": 99.9, "watts": {"VDD_IN": 5}}, {"seconds": 102.1, "watts": {"VDD_IN": 7.5}}],
    "before": {"celsius": 40.0, "clock_mhz": 900.0, "throttle_count": 1, "facts": {"load": "0.1"}},
    "after": {"celsius": 41.0, "clock_mhz": None, "throttle_count": None, "facts": {}},
    "problem": None,
}
TIMES = struct.pack("<3d", 1.0, 2.0, 3.0)


def test_a_stretch_is_read_whole() -> None:
    driven = parse_driven(TOLD, "orin", TIMES, TIMES)
    assert (driven.begin, driven.seconds, driven.count, driven.late, driven.others) == (
        100.0,
        2.0,
        3,
        1,
        0.05,
    )
    assert driven.latencies_ms == [1.0, 2.0, 3.0]
    assert [(each.seconds, each.watts) for each in driven.samples] == [
        (99.9, {"VDD_IN": 5.0}),
        (102.1, {"VDD_IN": 7.5}),
    ]
    assert (driven.before.celsius, driven.before.throttle_count, driven.after.clock_mhz) == (40.0, 1, None)
    counted = {**TOLD, "samples": [], "readings": [{"seconds": 1, "joules": {"gpu": 2}, "epoch": 4}]}
    (reading,) = parse_driven(counted, "orin").readings
    assert (reading.seconds, reading.joules, reading.epoch) == (1.0, {"gpu": 2.0}, 4)


@pytest.mark.parametrize(
    "change",
    [
        {"begin": None},
        {"seconds": -1.0},
        {"count": "3"},
        {"count": 4},
        {"samples": {}},
        {"samples": [{"seconds": 1.0}]},
        {"samples": [{"seconds": float("nan"), "watts": {"a": 1.0}}]},
        {"samples": [{"seconds": 1.0, "watts": {"a": "1"}}]},
        {"readings": [{"seconds": 1.0, "joules": {"a": 1.0}, "epoch": "x"}]},
        {"before": 7},
        {"problem": 7},
    ],
)
def test_what_is_no_stretch_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ProtocolError, match="orin"):
        parse_driven({**TOLD, **change}, "orin", TIMES, TIMES)


def test_times_that_are_none_are_refused() -> None:
    with pytest.raises(ProtocolError, match="times that are none"):
        parse_driven(TOLD, "orin", struct.pack("<3d", 1.0, float("inf"), 1.0), TIMES)


PORTS = (Port("x", "float32", (-1, 2)), Port("ids", "int64", (-1,)))


def test_tensors_go_over_as_they_are() -> None:
    feeds = {"ids": np.array([1, 2], np.int64), "x": np.arange(4, dtype=">f4").reshape(2, 2)}
    rows = as_bytes({**feeds, "x": feeds["x"].astype(np.float32)}, PORTS, "orin")
    assert [port.shape for port, _ in rows] == [(2, 2), (2,)]
    assert rows[0][1] == struct.pack("<4f", 0, 1, 2, 3)
    back = as_arrays(rows)
    np.testing.assert_array_equal(back["ids"], feeds["ids"])
    back["x"][0, 0] = 9.0
    half = Port("h", "bfloat16", (2,))
    assert as_arrays([(half, b"\x80\x3f\x00\x40")])["h"].astype(np.float32).tolist() == [1.0, 2.0]
    assert [spec.shape for spec in specs_of(PORTS)] == [(None, 2), (None,)]


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({"x": np.zeros((1, 2), np.float32)}, "'ids' is missing"),
        ({"x": np.zeros((1, 2), np.float32), "ids": np.zeros(1, np.int64), "y": np.zeros(1)}, "no input 'y'"),
        ({"x": np.zeros((1, 2)), "ids": np.zeros(1, np.int64)}, "float64, not float32"),
        ({"x": np.zeros((1, 3), np.float32), "ids": np.zeros(1, np.int64)}, r"1x3, not \?x2"),
    ],
)
def test_inputs_that_do_not_fit_are_named(feeds: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        as_bytes(feeds, PORTS, "orin")


def test_a_stretch_has_inputs_of_one_shape() -> None:
    one, two = ({"x": np.zeros((n, 2), np.float32), "ids": np.zeros(n, np.int64)} for n in (1, 2))
    ports, data = packed((one, one), PORTS, "orin")
    assert (ports[0].shape, len(data)) == ((1, 2), 2 * (8 + 8))
    with pytest.raises(InputError, match="differ in shape"):
        packed((one, two), PORTS, "orin")


def test_the_pace_of_a_stretch() -> None:
    assert _pace(Stretch(runs=7)) == {"runs": 7}
    assert _pace(Stretch(seconds=2.0, rate=5.0)) == {"seconds": 2.0, "rate": 5.0}
    random = _pace(Stretch(seconds=2.0, rate=50.0, poisson=True, seed=3))
    assert random["due"] == sorted(random["due"])
    assert random["due"] == _pace(Stretch(seconds=2.0, rate=50.0, poisson=True, seed=3))["due"]
    assert random["due"][-1] < 2.0
    assert 60 < len(random["due"]) < 140
    with pytest.raises(UsageError, match="random arrivals"):
        _pace(Stretch(runs=7, poisson=True, rate=5.0))


def test_the_largest_batch_is_that_of_all_inputs(tmp_path: Any) -> None:
    def order(**shapes: int) -> BuildOrder:
        each = {name: {"max": [size, 3]} for name, size in shapes.items()}
        return BuildOrder("tensorrt", tmp_path / "m.onnx", (), {"shapes": each}, 0.1)

    assert most_samples(order(x=8, y=4)) == 4
    assert most_samples(order()) is None


@pytest.mark.parametrize(
    ("given", "passed", "figure"),
    [
        ([1.0, -4.0], True, "0 of"),
        ([1.04, -4.0], True, "0.01 of"),
        ([1.4, -4.0], False, "0.1 of"),
        ([1.0, float("nan")], False, "inf of"),
        ([1.0], False, "inf of"),
    ],
)
def test_outputs_are_compared_with_those_computed_here(given: list[float], passed: bool, figure: str) -> None:
    check = _compared([{"y": np.array(given)}], [{"y": np.array([1.0, -4.0])}], 0.05, "orin")
    assert check.passed is passed
    assert figure in check.note
