"""`greencc lab calibrate`: from benchmarks on this machine to a device profile.

With a meter the energy coefficients are fitted to it (grade C). Without one the times alone are calibrated, and the
energy coefficients are those of the uncalibrated model of this machine (grade D, `greencc.meters.model`).
"""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass
from pathlib import Path

from greencc import __version__
from greencc.core import machine
from greencc.core.cache import cache_key
from greencc.core.engine import Device
from greencc.core.errors import InputError, UnavailableError, UsageError
from greencc.core.files import atomic_file
from greencc.core.meter import Meter, PowerMeter
from greencc.core.progress import Progress, silent
from greencc.lab.benchmarks import suite
from greencc.lab.fit import EnergyFit, Sample, TimeFit, fit_energies, fit_times
from greencc.lab.fitted import Setup, blank_profile, fitted_profile, local_name
from greencc.lab.observations import Journal
from greencc.lab.runner import QUICK, STANDARD, Bench, BenchmarkRun, RunOptions, run_suite
from greencc.meters import available_meters
from greencc.meters.device import DeviceProfile
from greencc.meters.device_file import dump_profile, read_profile
from greencc.meters.device_store import user_folder
from greencc.meters.opening import open_working_meter
from greencc.meters.roofline import demands
from greencc.meters.sampling import Sampler
from greencc.targets import make_target


@dataclass(frozen=True)
class Calibrated:
    """What a calibration gave: the profile, where it lies, how the benchmarks fit, and what a reader must know."""

    profile: DeviceProfile
    path: Path
    times: TimeFit
    energies: EnergyFit | None
    warnings: tuple[str, ...]


def default_path(device: Device) -> Path:
    """Where the profile of a machine goes unless told otherwise."""
    return user_folder() / f"{local_name(device)}.toml"


def calibrate(
    *,
    target: str = "cpu",
    meter: Meter | PowerMeter | None = None,
    output: Path | None = None,
    quick: bool = False,
    progress: Progress = silent,
) -> Calibrated:
    """Calibrate this machine and write its profile.

    Args:
        target: What runs the benchmarks, as ``cpu:threads=2``.
        meter: A working meter of grade A or B; None: times alone.
        output: The profile's file; default `default_path`.
        quick: Shorter runs.
        progress: Shows how far it is.

    Raises:
        UsageError: The meter estimates.
        UnavailableError: The target does not run here, or too little could be measured.
        InputError: The file cannot be written, or is something else than a device profile.
    """
    made = make_target(target)
    if missing := made.missing():
        raise UnavailableError(
            f"target {made.name!r} is not available here: {missing}", hint="see 'greencc doctor'"
        )
    setup = Setup(
        device=made.device(),
        level_bytes=cache_levels(int(made.device().facts.get("threads", "1"))),
        versions={"greencc": __version__, **made.versions()},
        now=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    )
    path = output or default_path(setup.device)
    check_replaceable(path)
    options = QUICK if quick else STANDARD
    if meter is None:
        return calibrate_on(Bench(made, options), setup, path, progress)
    with Sampler(meter) as sampler:
        return calibrate_on(Bench(made, options, sampler), setup, path, progress)


def chosen_meter(spec: str | None) -> Meter | PowerMeter | None:
    """The meter of that spec, the best one that works (None), or no meter (``none``, or none works).

    Raises:
        UsageError: There is no such meter.
        UnavailableError: It gives no reading.
    """
    if spec == "none":
        return None
    if spec is None:
        return next(iter(available_meters()), None)
    return open_working_meter(spec)


def check_replaceable(path: Path) -> None:
    """Refuse to overwrite what is no device profile.

    Raises:
        InputError: It is something else, or cannot be read.
    """
    if not os.path.lexists(path):
        return
    try:
        read_profile(path)
    except InputError as error:
        raise InputError(
            f"{path} exists and is no device profile: it is not overwritten",
            hint="choose another file with -o",
        ) from error


def cache_levels(threads: int, root: Path = machine.ROOT) -> dict[str, int]:
    """Bytes of the caches that so many threads use, by name, growing; empty where the kernel does not tell."""
    levels: dict[str, int] = {}
    largest = 0
    for cache in machine.data_caches(machine.allowed_cpus(), root):
        size = cache.bytes * min(cache.instances, threads)
        if size > largest:
            levels[f"L{cache.level}"] = largest = size
    return levels


def calibrate_on(bench: Bench, setup: Setup, path: Path, progress: Progress = silent) -> Calibrated:
    """`calibrate` with everything given; an interrupted call goes on from the journal beside `path`."""
    meter = bench.meter
    if meter is not None and not meter.grade.measured:
        raise UsageError(
            f"{meter.name} (grade {meter.grade.name}) estimates; a profile is calibrated with grade A or B",
            hint="'--meter none' calibrates the times alone",
        )
    benchmarks = suite(bench.target.capabilities(), tuple(setup.level_bytes.values()))
    key = cache_key(
        setup.device.fingerprint, dict(setup.versions), [item.name for item in benchmarks], _key(bench.options),
        None if meter is None else (meter.name, meter.boundary),
    )  # fmt: skip
    journal = Journal(path.with_name(f".{path.name}.journal.json"), key)
    run = run_suite(bench, benchmarks, journal, progress)
    blank = blank_profile(setup, meter)
    samples = _samples(run, blank)
    times = fit_times(samples)
    warnings = _disturbed(run)
    energies = None
    if meter is not None:
        energies = fit_energies(samples)
        if energies.collinear:
            warnings.append(
                f"the benchmarks cannot tell {', '.join(energies.collinear)} apart: only their sum is known"
            )
    profile = fitted_profile(blank, setup, times, energies, run, meter)
    with atomic_file(path) as file:
        file.write_text(dump_profile(profile), encoding="utf-8")
    journal.remove()
    return Calibrated(profile, path, times, energies, tuple(warnings))


def _key(options: RunOptions) -> list[float]:
    return [options.seconds, options.warm_up_seconds, options.idle_seconds]


def _samples(run: BenchmarkRun, blank: DeviceProfile) -> list[Sample]:
    return [
        Sample(seen.name, tuple(demands(kernels, blank)), seen.seconds, seen.joules, seen.busy_seconds)
        for seen, kernels in run.rows
    ]


def _disturbed(run: BenchmarkRun) -> list[str]:
    count = sum(seen.disturbed for seen, _ in run.rows)
    if not count:
        return []
    return [
        f"{count} of {len(run.rows)} benchmarks were disturbed (other processes, throttling, a suspend): calibrate "
        "again on an idle machine"
    ]
