"""perf energy events: a fake of the three system calls over a synthetic event source."""

from __future__ import annotations

import errno
import gc
import os
import sys
from dataclasses import dataclass, field

import pytest

from greencc.core.errors import UnavailableError
from greencc.core.meter import Grade
from greencc.meters.perf import PerfMeter, SystemPerf, parse_cpus

SCALE = 2.0**-32
PKG, RAM = 2, 3


@dataclass
class FakePerf:
    """Counters that start at 0 when they are opened, and advance by `watts` of their (config, cpu)."""

    watts: dict[tuple[int, int], float]
    refuse: int = 0
    broken: bool = False
    next: int = 10
    counts: dict[int, float] = field(default_factory=dict)
    keys: dict[int, tuple[int, int]] = field(default_factory=dict)

    def open(self, kind: int, config: int, cpu: int) -> int:
        assert kind == 12
        if self.refuse:
            raise OSError(self.refuse, os.strerror(self.refuse))
        self.next += 1
        self.counts[self.next], self.keys[self.next] = 0.0, (config, cpu)
        return self.next

    def read(self, descriptor: int) -> bytes:
        if self.broken:
            raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))
        return int(self.counts[descriptor]).to_bytes(8, sys.byteorder)

    def close(self, descriptor: int) -> None:
        del self.counts[descriptor]

    def advance(self, seconds: float) -> None:
        for descriptor in self.counts:
            self.counts[descriptor] += self.watts[self.keys[descriptor]] * seconds / SCALE


def source(tree, cpumask: str = "0", ram: bool = True) -> None:
    folder = "bus/event_source/devices/power"
    events = {"energy-pkg": "event=0x02", "energy-psys": "event=0x05", "energy-cores": "event=0x01"}
    events |= {"energy-ram": "event=0x03"} if ram else {}
    for name, text in events.items():
        tree.write(
            {name: text, f"{name}.scale": "2.3283064365386962890625e-10", f"{name}.unit": "Joules"},
            f"{folder}/events",
        )
    tree.write({"type": 12, "cpumask": cpumask}, folder)
    tree.write({"kernel/perf_event_paranoid": 4}, "sys")


def meter(tree, moment, calls: FakePerf) -> PerfMeter:
    moment.during = calls.advance
    return PerfMeter(tree.root, tree.root, calls, moment.clock, moment.sleep)


def test_package_and_dram_and_nothing_twice(tree, moment) -> None:
    source(tree)
    calls = FakePerf({(PKG, 0): 20.0, (RAM, 0): 3.0})
    perf = meter(tree, moment, calls)
    assert perf.missing() is None
    assert perf.boundary == "package-0 + package-0/dram"
    assert (perf.name, perf.grade) == ("perf", Grade.B)
    before = perf.read()
    moment.sleep(10.0)
    after = perf.read()
    assert {name: after.joules[name] - before.joules[name] for name in after.joules} == pytest.approx(
        {"package-0": 200.0, "package-0/dram": 30.0}
    )


def test_two_sockets(tree, moment) -> None:
    source(tree, "0,18", ram=False)
    for cpu, package in ((0, 0), (18, 1)):
        tree.write({"physical_package_id": package}, f"devices/system/cpu/cpu{cpu}/topology")
    perf = meter(tree, moment, FakePerf({(PKG, 0): 50.0, (PKG, 18): 70.0}))
    before = perf.read()
    moment.sleep(1.0)
    after = perf.read()
    assert after.joules["package-0"] - before.joules["package-0"] == pytest.approx(50.0)
    assert after.joules["package-1"] - before.joules["package-1"] == pytest.approx(70.0)


def test_dies_of_one_package_are_told_apart(tree, moment) -> None:
    source(tree, "0-1", ram=False)
    for cpu in (0, 1):
        tree.write({"physical_package_id": 0}, f"devices/system/cpu/cpu{cpu}/topology")
    perf = meter(tree, moment, FakePerf({(PKG, 0): 50.0, (PKG, 1): 70.0}))
    assert set(perf.read().joules) == {"package-0-cpu-0", "package-0-cpu-1"}


def test_dram_that_never_counts_is_outside(tree, moment) -> None:
    source(tree)
    perf = meter(tree, moment, FakePerf({(PKG, 0): 20.0, (RAM, 0): 0.0}))
    assert perf.missing() is None
    assert perf.boundary == "package-0"


def test_a_package_that_never_counts_is_missing_and_leaves_nothing_open(tree, moment) -> None:
    source(tree)
    calls = FakePerf({(PKG, 0): 0.0, (RAM, 0): 1.0})
    assert "package-0 never moves" in str(meter(tree, moment, calls).missing())
    assert calls.counts == {}


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM])
def test_permission_tells_the_setting(tree, moment, code) -> None:
    source(tree)
    missing = meter(tree, moment, FakePerf({}, refuse=code)).missing()
    assert missing is not None
    assert "perf_event_paranoid is 4" in missing
    assert "sudo sysctl kernel.perf_event_paranoid=0" in missing


def test_other_refusals_are_told(tree, moment) -> None:
    source(tree)
    missing = meter(tree, moment, FakePerf({}, refuse=errno.ENODEV)).missing()
    assert "cannot be opened: No such device" in str(missing)


def test_no_such_source(tree, moment) -> None:
    assert "no perf energy events under" in str(meter(tree, moment, FakePerf({})).missing())


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("type", "garbage", "no usable type and cpumask"),
        ("cpumask", "", "no usable type and cpumask"),
        ("events/energy-pkg", "event=two", "no usable event, unit and scale"),
        ("events/energy-pkg.scale", "nan", "no usable event, unit and scale"),
        ("events/energy-pkg.scale", "", "no usable event, unit and scale"),
        ("events/energy-pkg.unit", "Watts", "no usable event, unit and scale"),
    ],
)
def test_garbage_in_the_source_is_named(tree, moment, file, text, message) -> None:
    source(tree)
    tree.write({file: text}, "bus/event_source/devices/power")
    assert message in str(meter(tree, moment, FakePerf({})).missing())


def test_an_event_that_fails_is_opened_again_in_a_new_epoch(tree, moment) -> None:
    source(tree, ram=False)
    calls = FakePerf({(PKG, 0): 20.0})
    perf = meter(tree, moment, calls)
    first = perf.read()
    calls.broken = True
    with pytest.raises(UnavailableError, match="cannot be read: No such device"):
        perf.read()
    assert calls.counts == {}
    calls.broken = False
    again = perf.read()
    assert (again.epoch, again.joules) == (first.epoch + 1, {"package-0": 0.0})


def test_a_counter_that_sticks_is_named(tree, moment) -> None:
    source(tree, ram=False)
    calls = FakePerf({(PKG, 0): 20.0})
    perf = meter(tree, moment, calls)
    perf.read()
    calls.watts[(PKG, 0)] = 0.0
    moment.sleep(1.5)
    with pytest.raises(UnavailableError, match="package-0 is stuck"):
        perf.read()


def test_events_are_closed_with_the_meter(tree, moment) -> None:
    source(tree)
    calls = FakePerf({(PKG, 0): 20.0, (RAM, 0): 3.0})
    perf = meter(tree, moment, calls)
    perf.read()
    assert len(calls.counts) == 2
    del perf
    gc.collect()
    assert calls.counts == {}


@pytest.mark.parametrize(
    ("text", "cpus"), [("0", (0,)), ("0,18-19", (0, 18, 19)), ("", ()), ("0x1", ()), ("0,", ())]
)
def test_processor_lists(text, cpus) -> None:
    assert parse_cpus(text) == cpus


@pytest.mark.skipif(sys.platform != "linux", reason="a system call of Linux")
def test_the_system_call_reaches_the_kernel() -> None:
    """No event source has this number, so the kernel must refuse: which it can only do if the call is well-formed."""
    with pytest.raises(OSError) as caught:
        SystemPerf().open(0x7FFF_FFF0, 0, 0)
    assert caught.value.errno in (errno.ENOENT, errno.EACCES, errno.EPERM, errno.ENOSYS)


@pytest.mark.skipif(sys.platform != "linux", reason="a system call of Linux")
def test_the_system_calls_count_what_every_machine_has() -> None:
    """The kernel's own cpu-clock (type 1, config 0) counts nanoseconds, with or without energy events."""
    calls = SystemPerf()
    try:
        descriptor = calls.open(1, 0, 0)
    except OSError as error:
        pytest.skip(f"perf events are not allowed here: {error}")
    first, second = (int.from_bytes(calls.read(descriptor), sys.byteorder) for _ in range(2))
    calls.close(descriptor)
    assert 0 <= first < second
