"""Which power modes are open to a budget, and what watts mean in them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import onnx_ir as ir
import pytest

from greencc.compiler.contender import Contender
from greencc.compiler.forms import INT8_RANK, PLAN_RANK, Form
from greencc.compiler.options import Precision
from greencc.compiler.planning.mode_points import Ask
from greencc.compiler.planning.modes import OpenModes, modes_of_profile
from greencc.core.data import Array, Feeds
from greencc.core.errors import UsageError
from greencc.core.report import Accuracy
from greencc.meters.device_store import find_profile
from greencc.planner.budget import Objective, parse_budget


def modes(device: str, budget: str = "") -> OpenModes:
    return modes_of_profile(find_profile(device), parse_budget(budget) if budget else ())


@pytest.mark.parametrize(
    ("device", "budget", "name", "exceeds"),
    [
        ("jetson-orin-nano", "5W", "7W", True),
        ("jetson-orin-nano", "7W", "7W", False),
        ("jetson-orin-nano", "14.9W", "7W", False),
        ("jetson-orin-nano", "16W,33ms", "15W", False),
        ("jetson-orin-nano", "100W", "25W", False),
        ("jetson-orin-nano", "jetson-orin-nano:15W", "15W", False),
        ("jetson-nano", "5W", "5W", False),
        ("jetson-nano", "jetson-nano:maxn", "MAXN", False),
        ("jetson-nano", "4W", "5W", True),
    ],
)
def test_watts_are_for_the_largest_mode_within_them_or_the_smallest(
    device: str, budget: str, name: str, exceeds: bool
) -> None:
    found = modes(device, budget)
    assert [mode.name for mode in found.open] == [name]
    assert found.exceeds is exceeds
    closed = {mode.name: found.closed(mode) for mode in found.all}
    assert closed.pop(name) == ""
    assert all(why.startswith("not open: ") for why in closed.values())


@pytest.mark.parametrize("budget", ["", "20mJ", "33ms,1MB"])
def test_without_watts_all_modes_are_open(budget: str) -> None:
    found = modes("jetson-orin-nano", budget)
    assert [mode.name for mode in found.open] == ["25W", "15W", "MAXN_SUPER", "7W"]
    assert not any(found.closed(mode) for mode in found.all)


def test_why_a_mode_is_not_open() -> None:
    found = modes("jetson-orin-nano", "16W")
    why = {mode.name: found.closed(mode) for mode in found.all}
    assert "allows 25 W" in why["25W"]
    assert "has no cap" in why["MAXN_SUPER"]
    assert "the largest mode within it, 15W" in why["7W"]


def test_a_device_without_modes_has_one_without_a_name() -> None:
    found = modes("raspberry-pi-5", "5W")
    (mode,) = found.open
    assert (mode.name, found.closed(mode), found.exceeds) == ("", "", False)
    assert "mode" not in found.meaning(mode, 30.0)


def test_what_watts_mean() -> None:
    orin = modes("jetson-orin-nano", "5W")
    assert orin.meaning(orin.open[0], 30.0) == (
        "the average of VDD_IN at 30 requests/s in the 7W mode (nvpmodel)"
    )
    nano = modes("jetson-nano", "5W")
    assert nano.meaning(nano.open[0], None) == "the average of POM_5V_IN flat out in the 5W mode (nvpmodel)"


def test_a_power_mode_of_another_device_is_refused() -> None:
    with pytest.raises(UsageError, match="jetson-xavier-nx:10W is a power mode of another device") as caught:
        modes("jetson-orin-nano", "jetson-xavier-nx:10W")
    assert caught.value.hint is not None
    assert "jetson-orin-nano:7W" in caught.value.hint
    with pytest.raises(UsageError, match="another device"):
        modes("raspberry-pi-5", "jetson-nano:5W")


@pytest.mark.parametrize(
    ("rank", "loss", "said"),
    [
        (INT8_RANK, 0.0101, "more than the limit"),
        (INT8_RANK, 0.01, ""),
        (PLAN_RANK, 0.01, "too close to the limit"),
        (PLAN_RANK, 0.006, ""),
    ],
)
def test_what_has_less_work_needs_room_for_other_samples(rank: int, loss: float, said: str) -> None:
    ask = Ask((), Objective.ENERGY, None, 0.01, modes("jetson-orin-nano"), samples=1000)
    form = Form("form", Precision.INT8, rank, ir.Model(ir.Graph([], [], nodes=[]), ir_version=10), Path("x"))
    item = Contender(form, Engineless(), _accuracy(loss))
    found = ask.loses_too_much(item)
    assert said in found
    assert bool(said) == bool(found)


class Engineless:
    """No engine is asked for anything here."""

    inputs = outputs = ()

    def run(self, feeds: Feeds, outputs: Sequence[str] | None = None) -> dict[str, Array]:
        raise AssertionError("it was run")

    def close(self) -> None:
        raise AssertionError("it was closed")


def _accuracy(drop: float) -> Accuracy:
    return Accuracy(
        "top-1", 0.9, 0.9 - drop, drop, None, None, None, 1000, False, 0.01, 0.95, None, None, None, ""
    )
