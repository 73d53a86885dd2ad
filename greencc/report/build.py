"""Where an artifact was built to the end: what keeps a plan for a device from being read as a measurement."""

from __future__ import annotations

from greencc.core.report import BuildCheck, Report
from greencc.report.figures import capitalized, latency_estimated, printable, worst_grade

_PASSED = {True: "passed", False: "failed", None: "not made"}


def notice(report: Report) -> str | None:
    """What stands above everything where an artifact has not run on its device; None: it has, or is of this machine."""
    build = report.build
    if build is None or build.built:
        return None
    device = printable(report.device.get("name", "the device"))
    text = f"{capitalized(printable(build.status))}."
    if latency_estimated(report.baseline, report.artifact):
        energies = [
            each for each in (report.baseline.energy_mj, report.artifact.energy_mj) if each is not None
        ]
        grade = f" (grade {worst_grade(*energies)})" if energies else ""
        text += f" Latency and energy are estimates{grade}: nothing ran on the device ({device})."
    if build.power_mode is not None:
        text += f" The figures are for its power mode {printable(build.power_mode)}."
    return text


def built_sentence(report: Report) -> str | None:
    """Where it was built, for what did run on its device."""
    build = report.build
    if build is None or not build.built:
        return None
    mode = f", in power mode {printable(build.power_mode)}" if build.power_mode is not None else ""
    return f"{capitalized(printable(build.status))}{mode}."


def check_rows(report: Report) -> tuple[tuple[str, str, str], ...]:
    """Name, result and note of each check."""
    checks: tuple[BuildCheck, ...] = () if report.build is None else report.build.checks
    return tuple(
        (printable(check.name), _PASSED[check.passed], capitalized(printable(check.note))) for check in checks
    )


def steps(report: Report) -> tuple[str, ...]:
    """What is left to do on the device."""
    return () if report.build is None else tuple(capitalized(printable(step)) for step in report.build.steps)
