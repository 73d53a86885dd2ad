"""Calibration of a machine whose coefficients are known."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from greencc.core.errors import InputError, UnavailableError, UsageError
from greencc.core.kernels import Work
from greencc.core.meter import Grade, Reading
from greencc.lab.benchmarks import working_sets
from greencc.lab.calibrate import cache_levels, calibrate_on, check_replaceable
from greencc.lab.fitted import Setup
from greencc.lab.observations import Journal, Observation
from greencc.lab.runner import Bench
from greencc.meters.device_file import read_profile
from tests.lab.conftest import TRUTH, Machine, MachineMeter

Benches = Callable[..., Bench]


def test_times_and_energies_of_a_known_machine(
    machine: Machine, make_bench: Benches, setup: Setup, tmp_path: Path
) -> None:
    path = tmp_path / "new" / "mine.toml"
    done = calibrate_on(make_bench(MachineMeter(machine)), setup, path)
    profile = read_profile(path)
    assert profile.grade is Grade.C
    assert profile.fingerprint == setup.device.fingerprint
    assert profile.boundary == "the made-up machine"
    calibration = profile.calibration
    assert calibration is not None
    assert calibration.benchmarks == len(done.times.error.errors) > 40
    # The truth is a roofline: what is left is what the fit itself gets wrong.
    assert calibration.latency_mape < 0.03
    assert calibration.energy_mape is not None
    assert calibration.energy_mape < 0.02
    for dtype, rates in TRUTH.rates.items():
        for work, rate in rates.items():
            assert profile.rates[dtype][work].central == pytest.approx(rate.central, rel=0.1), (dtype, work)
    assert profile.kernel_seconds.central == pytest.approx(1e-6, rel=0.1)
    assert profile.run_seconds.central == pytest.approx(8e-6, rel=0.1)
    assert profile.levels[-1].bytes_per_second.central == pytest.approx(4e9, rel=0.1)
    assert profile.busy_watts.central == pytest.approx(3.0, rel=0.05)
    assert profile.idle_watts.central == pytest.approx(2.0)
    assert profile.operation_joules("float32").central == pytest.approx(2e-10, rel=0.1)
    assert profile.operation_joules("int8").central == pytest.approx(4e-11, rel=0.1)
    assert profile.levels[-1].joules_per_byte.central == pytest.approx(1e-10, rel=0.1)
    assert [file.name for file in path.parent.iterdir()] == ["mine.toml"]


def test_without_a_meter_the_energy_stays_uncalibrated(
    make_bench: Benches, setup: Setup, tmp_path: Path
) -> None:
    done = calibrate_on(make_bench(), setup, tmp_path / "mine.toml")
    profile = read_profile(done.path)
    assert profile.grade is Grade.D
    assert done.energies is None
    assert profile.calibration is not None
    assert profile.calibration.energy_mape is None
    assert profile.calibration.latency_mape < 0.03
    assert profile.busy_watts.low < profile.busy_watts.high
    assert profile.operation_joules("float32").low < profile.operation_joules("float32").high


def test_the_stated_error_covers_noise(
    machine: Machine, make_bench: Benches, setup: Setup, tmp_path: Path
) -> None:
    factors = np.exp(np.random.default_rng(0).normal(0.0, 0.2, 500))
    machine.noise = lambda number: float(factors[number])
    done = calibrate_on(make_bench(), setup, tmp_path / "mine.toml")
    error = done.times.error
    assert 0.1 < error.mape < 0.3
    inside = [1.0 / error.factor <= ratio <= error.factor for ratio in error.errors.values()]
    assert 0.9 <= sum(inside) / len(inside) < 1.0
    # Noise averages out in the coefficients.
    assert done.profile.rates["float32"][Work.PRODUCT].central == pytest.approx(2e10, rel=0.15)


def test_an_interrupted_calibration_goes_on(
    machine: Machine, make_bench: Benches, setup: Setup, tmp_path: Path
) -> None:
    path = tmp_path / "mine.toml"
    machine.interrupt_after = 5
    with pytest.raises(KeyboardInterrupt):
        calibrate_on(make_bench(), setup, path)
    assert not path.exists()
    assert [file.name for file in tmp_path.iterdir()] == [".mine.toml.journal.json"]
    machine.interrupt_after = None
    done = calibrate_on(make_bench(), setup, path)
    assert done.profile.calibration is not None
    assert len(machine.opened) == done.profile.calibration.benchmarks
    assert [file.name for file in tmp_path.iterdir()] == ["mine.toml"]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"schema": "greencc.calibration-run/1", "key": "k", "rows": 7}']
)
def test_a_damaged_journal_counts_as_absent(content: bytes, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal.json", "k")
    assert journal.read() == {}
    journal.path.write_bytes(content)
    assert journal.read() == {}


def test_rows_of_the_journal_are_checked(tmp_path: Path) -> None:
    good = Observation("a", 1.0, 2.0, 1.0, 5, disturbed=False)
    bad = [
        Observation("b", math.nan, None, None, 5, disturbed=False),
        Observation("c", -1.0, None, None, 5, disturbed=False),
        Observation("d", 1.0, 2.0, None, 5, disturbed=False),
    ]
    journal = Journal(tmp_path / "journal.json", "k")
    journal.write({row.name: row for row in (good, *bad)})
    assert journal.read() == {"a": good}
    assert Journal(journal.path, "another machine").read() == {}


def test_disturbed_benchmarks_are_said_and_lose_their_joules(
    machine: Machine, make_bench: Benches, setup: Setup, tmp_path: Path
) -> None:
    done = calibrate_on(make_bench(share=0.5), setup, tmp_path / "mine.toml")
    assert any("were disturbed (other processes" in warning for warning in done.warnings)
    with pytest.raises(
        UnavailableError, match="idle power could not be measured, idle before: other processes used 50%"
    ):
        calibrate_on(make_bench(MachineMeter(machine), share=0.5), setup, tmp_path / "other.toml")
    assert not (tmp_path / "other.toml").exists()
    # On a quieter machine the disturbed ones are measured again.
    done = calibrate_on(make_bench(MachineMeter(machine)), setup, tmp_path / "other.toml")
    assert done.energies is not None
    assert done.warnings == ()


def test_a_meter_that_fails_now_and_then_is_asked_again(
    machine: Machine, make_bench: Benches, setup: Setup, tmp_path: Path
) -> None:
    meter = MachineMeter(machine, failing=lambda number: number < 60 and number % 7 == 0)
    done = calibrate_on(make_bench(meter), setup, tmp_path / "mine.toml")
    assert done.energies is not None
    assert done.energies.error.mape < 0.02


def test_a_meter_that_dies_ends_it_and_keeps_what_was_measured(
    machine: Machine, make_bench: Benches, setup: Setup, tmp_path: Path
) -> None:
    meter = MachineMeter(machine, failing=lambda number: number > 40)
    with pytest.raises(UnavailableError, match="hiccuped"):
        calibrate_on(make_bench(meter), setup, tmp_path / "mine.toml")
    assert [file.name for file in tmp_path.iterdir()] == [".mine.toml.journal.json"]


def test_an_idle_window_is_measured_again_where_it_was_disturbed(
    machine: Machine, make_bench: Benches, setup: Setup, tmp_path: Path
) -> None:
    # Two of five parts, in which others run and draw as much again; a third is throttled.
    machine.busy = lambda now: now < 0.35
    machine.throttles = lambda now: int(now > 0.7)
    done = calibrate_on(make_bench(MachineMeter(machine)), setup, tmp_path / "mine.toml")
    assert done.profile.idle_watts.central == pytest.approx(2.0)
    machine.busy = lambda now: True
    with pytest.raises(UnavailableError, match="idle power could not be measured, idle before") as caught:
        calibrate_on(make_bench(MachineMeter(machine)), setup, tmp_path / "other.toml")
    assert "stop other programs" in (caught.value.hint or "")


def test_a_counter_that_goes_backwards_or_begins_anew_is_no_energy(
    machine: Machine, make_bench: Benches, setup: Setup, tmp_path: Path
) -> None:
    @dataclass
    class Backwards(MachineMeter):
        def read(self) -> Reading:
            return replace(super().read(), joules={"total": -self.machine.joules})

    @dataclass
    class Restarting(MachineMeter):
        def read(self) -> Reading:
            return replace(super().read(), epoch=self.readings)

    for meter, words in (
        (Backwards(machine), "the meter counted -"),
        (Restarting(machine), "the meter has a gap"),
    ):
        with pytest.raises(UnavailableError, match=words):
            calibrate_on(make_bench(meter), setup, tmp_path / "mine.toml")


@pytest.mark.parametrize("grade", [Grade.C, Grade.D])
def test_a_meter_that_estimates_calibrates_nothing(
    grade: Grade, machine: Machine, make_bench: Benches, setup: Setup, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=f"grade {grade.name}.* estimates"):
        calibrate_on(make_bench(MachineMeter(machine, grade=grade)), setup, tmp_path / "mine.toml")
    assert list(tmp_path.iterdir()) == []


def test_a_meter_without_power_is_refused(
    machine: Machine, make_bench: Benches, setup: Setup, tmp_path: Path
) -> None:
    with pytest.raises(UnavailableError, match=r"the energy of benchmark .* is 0\.0"):
        calibrate_on(make_bench(MachineMeter(machine, gain=0.0)), setup, tmp_path / "mine.toml")


def test_only_a_profile_is_overwritten(make_bench: Benches, setup: Setup, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    check_replaceable(path)
    calibrate_on(make_bench(), setup, path)
    check_replaceable(path)
    path.write_text("important = true", encoding="utf-8")
    with pytest.raises(InputError, match="not overwritten"):
        check_replaceable(path)


def test_caches_as_the_threads_use_them(tmp_path: Path) -> None:
    for cpu in (0, 1):
        own = str(cpu)
        caches = (
            (1, "Data", "32K", own),
            (1, "Instruction", "32K", own),
            (2, "Unified", "1024K", own),
            (3, "Unified", "32M", "0-1"),
        )
        for index, (level, kind, size, shared) in enumerate(caches):
            folder = tmp_path / f"sys/devices/system/cpu/cpu{cpu}/cache/index{index}"
            folder.mkdir(parents=True)
            for name, value in (
                ("level", level),
                ("type", kind),
                ("size", size),
                ("shared_cpu_list", shared),
            ):
                (folder / name).write_text(f"{value}\n")
    # Processors beyond the two are not in the tree, and do not count.
    assert cache_levels(1, tmp_path) == {"L1": 32 << 10, "L2": 1 << 20, "L3": 32 << 20}
    assert cache_levels(64, tmp_path)["L3"] == 32 << 20
    assert cache_levels(2, tmp_path / "nothing") == {}


def test_working_sets_lie_in_every_level_and_beyond() -> None:
    levels = (64 << 10, 2 << 20, 32 << 20)
    sizes = working_sets(levels)
    assert sum(size <= levels[0] for size in sizes) >= 1
    for below, size in itertools.pairwise(levels):
        assert any(below < each <= size for each in sizes)
    assert sizes[-1] == 128 << 20
    # A cache of 768 MiB is exceeded too, by as little as it takes.
    assert working_sets((1 << 20, 768 << 20))[-1] == 1536 << 20
    assert working_sets(()) == [256 << 20]


def test_what_a_machine_tells_of_itself_may_be_odd(make_bench: Benches, setup: Setup, tmp_path: Path) -> None:
    odd = {**setup.device.facts, "board": 'Odd "board"\x00\n\\' + "x" * 5000, "empty": "\x07"}
    device = replace(setup.device, name="\x1b[31mCPU", facts=odd)
    done = calibrate_on(make_bench(), replace(setup, device=device), tmp_path / "mine.toml")
    calibration = read_profile(done.path).calibration
    assert calibration is not None
    assert calibration.facts["board"].startswith('Odd "board"\\xx')
    assert "empty" not in calibration.facts
