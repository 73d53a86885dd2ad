"""RAPL against synthetic sysfs trees: wraps, permissions, stuck and vanishing counters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from greencc.core.errors import UnavailableError
from greencc.core.meter import Grade
from greencc.meters import Sources, probe
from greencc.meters import rapl as rapl_module
from greencc.meters.rapl import RaplMeter, design_power_watts, find_domains

RANGE_UJ = 262_143_328_850


@dataclass
class Machine:
    """A powercap tree whose counters advance by `watts` while the fake time passes."""

    root: Path
    watts: dict[str, float] = field(default_factory=dict)
    counters: dict[str, float] = field(default_factory=dict)
    ranges: dict[str, int] = field(default_factory=dict)
    now: float = 100.0

    def add(self, folder: str, name: str, *, watts: float, start: int = 0, range_uj: int = RANGE_UJ) -> None:
        path = self.root / "class/powercap" / folder
        path.mkdir(parents=True)
        (path / "name").write_text(name + "\n")
        (path / "max_energy_range_uj").write_text(f"{range_uj}\n")
        self.watts[folder], self.counters[folder], self.ranges[folder] = watts, start, range_uj
        self.write(folder)

    def write(self, folder: str, text: str | None = None) -> None:
        value = f"{int(self.counters[folder])}\n" if text is None else text
        (self.root / "class/powercap" / folder / "energy_uj").write_text(value)

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for folder, watts in self.watts.items():
            if (self.root / "class/powercap" / folder / "energy_uj").exists():
                self.counters[folder] = (self.counters[folder] + watts * seconds * 1e6) % self.ranges[folder]
                self.write(folder)

    def meter(self) -> RaplMeter:
        return RaplMeter(self.root, self.clock, self.sleep)


@pytest.fixture
def laptop(tmp_path: Path) -> Machine:
    """One socket with everything that must not be counted twice."""
    machine = Machine(tmp_path)
    machine.add("intel-rapl:0", "package-0", watts=20.0)
    machine.add("intel-rapl:0:0", "core", watts=15.0)
    machine.add("intel-rapl:0:1", "uncore", watts=2.0)
    machine.add("intel-rapl:0:2", "dram", watts=3.0, range_uj=65_712_999_613)
    machine.add("intel-rapl:1", "psys", watts=60.0)
    machine.add("intel-rapl-mmio:0", "package-0", watts=20.0)
    return machine


def joules(meter: RaplMeter, machine: Machine, seconds: float) -> float:
    before = meter.read()
    machine.sleep(seconds)
    after = meter.read()
    assert after.seconds - before.seconds == pytest.approx(seconds)
    return sum(after.joules[name] - before.joules[name] for name in after.joules)


def test_package_and_dram_and_nothing_twice(laptop: Machine) -> None:
    meter = laptop.meter()
    assert meter.missing() is None
    assert meter.boundary == "package-0 + dram"
    assert (meter.name, meter.grade) == ("rapl", Grade.B)
    assert joules(meter, laptop, 10.0) == pytest.approx(230.0, abs=1e-3)


def test_domains_nested_in_their_package_only(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.add("intel-rapl:0", "package-0", watts=20.0)
    machine.add("intel-rapl:0/intel-rapl:0:2", "dram", watts=3.0)
    assert [domain.name for domain in find_domains(tmp_path)] == ["package-0", "package-0/dram"]
    assert joules(machine.meter(), machine, 10.0) == pytest.approx(230.0, abs=1e-3)


def test_two_sockets_wrap_at_different_times(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.add("intel-rapl:0", "package-0", watts=100.0, start=RANGE_UJ - 150_000_000)
    machine.add("intel-rapl:1", "package-1", watts=50.0, start=RANGE_UJ - 1_000_000_000)
    machine.add("intel-rapl:0:0", "dram", watts=5.0, start=65_712_000_000, range_uj=65_712_999_613)
    machine.add("intel-rapl:1:0", "dram", watts=5.0, range_uj=65_712_999_613)
    meter = machine.meter()
    assert meter.missing() is None
    assert meter.boundary == "package-0 + package-0/dram + package-1 + package-1/dram"
    total = sum(joules(meter, machine, 2.0) for _ in range(20))
    assert total == pytest.approx(160.0 * 40.0, rel=1e-6)


def test_an_amd_package_without_dram(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.add("intel-rapl:0", "package-0", watts=30.0, range_uj=65_532_610_987)
    machine.add("intel-rapl:0:0", "core", watts=10.0)
    meter = machine.meter()
    assert meter.missing() is None
    assert meter.boundary == "package-0"
    assert joules(meter, machine, 1.0) == pytest.approx(30.0, abs=1e-3)


def test_a_dram_counter_that_never_moves_is_outside_the_boundary(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.add("intel-rapl:0", "package-0", watts=30.0)
    machine.add("intel-rapl:0:2", "dram", watts=0.0)
    meter = machine.meter()
    assert meter.missing() is None
    assert meter.boundary == "package-0"


def test_nothing_there(tmp_path: Path) -> None:
    missing = RaplMeter(tmp_path).missing()
    assert missing is not None
    assert "no RAPL package counter" in missing


def test_a_package_that_never_moves_is_missing(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.add("intel-rapl:0", "package-0", watts=0.0)
    assert "the RAPL counter of package-0 never moves" in str(machine.meter().missing())


def test_permission_denied_tells_the_rule(laptop: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    _deny(monkeypatch)
    missing = laptop.meter().missing()
    assert missing is not None
    assert "no permission to read" in missing
    assert 'SUBSYSTEM=="powercap", ACTION=="add", RUN+="/bin/chmod a+r /sys%p/energy_uj"' in missing
    assert "sudo chmod a+r" in missing


def _deny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root may read files without permission bits, so the refusal is played."""
    original: Callable[..., str] = Path.read_text

    def refuse(path: Path, *args: object, **options: object) -> str:
        if path.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(path))
        return original(path, *args, **options)

    monkeypatch.setattr(Path, "read_text", refuse)


def test_permission_withdrawn_while_measuring(laptop: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    meter = laptop.meter()
    meter.read()
    _deny(monkeypatch)
    with pytest.raises(UnavailableError, match="no permission"):
        meter.read()


def test_a_counter_that_sticks_is_named(laptop: Machine) -> None:
    meter = laptop.meter()
    assert meter.read().epoch == 0
    laptop.watts["intel-rapl:0"] = 0.0
    laptop.sleep(2.0)
    with pytest.raises(UnavailableError, match="package-0 is stuck at"):
        meter.read()
    assert meter.read().epoch == 1, "what happened while it was stuck is unknown"


def test_two_readings_in_quick_succession_are_not_stuck(laptop: Machine) -> None:
    meter = laptop.meter()
    first = meter.read()
    assert meter.read().joules == first.joules


def test_a_counter_that_goes_back_is_named_and_measuring_can_start_again(laptop: Machine) -> None:
    meter = laptop.meter()
    laptop.counters["intel-rapl:0"] = 5e9
    laptop.write("intel-rapl:0")
    meter.read()
    laptop.now += 1.0
    laptop.counters["intel-rapl:0"] = 1e9
    laptop.write("intel-rapl:0")
    with pytest.raises(UnavailableError, match=r"package-0 went back from 50\d{8} to 1000000000"):
        meter.read()
    assert joules(meter, laptop, 1.0) == pytest.approx(23.0, abs=1e-3)
    assert meter.read().epoch == 1


@pytest.mark.parametrize("text", ["nan\n", "", "-5\n", "12.5\n", "garbage"])
def test_what_is_not_a_number_is_named(laptop: Machine, text: str) -> None:
    meter = laptop.meter()
    meter.read()
    laptop.write("intel-rapl:0:2", text)
    with pytest.raises(UnavailableError, match="package-0/dram reads"):
        meter.read()


def test_a_domain_that_vanishes_is_named(laptop: Machine) -> None:
    meter = laptop.meter()
    meter.read()
    (laptop.root / "class/powercap/intel-rapl:0:2/energy_uj").unlink()
    with pytest.raises(UnavailableError, match="package-0/dram vanished"):
        meter.read()


def test_a_laptop_may_draw_a_multiple_of_its_design_power(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.add("intel-rapl:0", "package-0", watts=64.0, range_uj=65_532_610_987)
    (tmp_path / "class/powercap/intel-rapl:0/constraint_0_max_power_uw").write_text("15000000\n")
    meter = machine.meter()
    meter.read()
    # 22.5 W would take 2900 s for a wrap, in which there have been almost two.
    machine.sleep(2000.0)
    with pytest.raises(UnavailableError, match="may have wrapped more than once"):
        meter.read()


def test_too_long_a_gap_may_hide_a_wrap(laptop: Machine) -> None:
    meter = laptop.meter()
    meter.read()
    laptop.sleep(24 * 3600.0)
    with pytest.raises(UnavailableError, match="may have wrapped more than once"):
        meter.read()


def test_a_higher_design_power_shortens_the_gap_that_is_sure(laptop: Machine) -> None:
    """262 kJ last 349 s at 1.5 times the assumed 500 W, and 17.5 s at 1.5 times 10 kW."""
    laptop.meter().read()
    (laptop.root / "class/powercap/intel-rapl:0/constraint_0_max_power_uw").write_text("10000000000\n")
    meter = laptop.meter()
    meter.read()
    laptop.sleep(20.0)
    with pytest.raises(UnavailableError, match="may have wrapped more than once"):
        meter.read()


def test_two_packages_of_one_name_are_not_taken_for_one(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.add("intel-rapl:0", "package-0", watts=20.0)
    machine.add("intel-rapl:1", "package-0", watts=20.0)
    assert "two RAPL packages are called package-0" in str(machine.meter().missing())


def test_without_a_range_there_is_no_meter(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    machine.add("intel-rapl:0", "package-0", watts=1.0, range_uj=0)
    assert "max_energy_range_uj" in str(machine.meter().missing())


def test_design_power_needs_no_privileges(laptop: Machine) -> None:
    assert design_power_watts(laptop.root) is None
    (laptop.root / "class/powercap/intel-rapl:0/constraint_0_max_power_uw").write_text("28000000\n")
    assert design_power_watts(laptop.root) == 28.0


def test_probe_rows(laptop: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rapl_module, "_PROBE_SECONDS", 0.02)
    rapl, *_, model = probe(Sources(laptop.root, laptop.root))
    assert (rapl.name, rapl.grade, rapl.ok) == ("rapl", Grade.B, False)
    assert rapl.reason is not None
    assert "never moves" in rapl.reason
    assert (model.name, model.grade, model.ok) == ("model", Grade.D, True)
    assert "(estimated)" in model.boundary
