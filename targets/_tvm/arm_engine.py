"""Open a library for ARM: in this process where it can run here, else behind an emulator."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from greencc.core.engine import Engine
from greencc.core.errors import InputError, UnavailableError
from greencc.core.files import translated_os_errors
from greencc.targets._tvm import checked
from greencc.targets._tvm.description import LIBRARY, RUNNER, WEIGHTS, Description, read_description
from greencc.targets._tvm.elf import needs_of
from greencc.targets._tvm.emulated import EmulatedEngine
from greencc.targets._tvm.emulator import FEATURES, Emulator
from greencc.targets._tvm.presets import ArmMachine

_THREADS = 2
"""Of emulated engines: more than one, so that what threads do to each other is seen."""


def open_arm(main: Path, arm: ArmMachine, *, native: bool) -> Engine:
    """Load a library.

    Args:
        main: Its ``model.json``.
        arm: The machine that it is checked as.
        native: This computer has what that machine has.

    Raises:
        InputError: A file is missing or is not the one described, or the code is not for the machine.
        UnavailableError: It cannot be run here.
    """
    if native:
        from greencc.targets._tvm.engine import TvmEngine

        return TvmEngine(main, min(_THREADS, os.cpu_count() or 1))
    description = read_description(main)
    name = main.parent.name
    check_emulated(name, description, arm)
    folder = main.parent
    if description.runner is None:
        raise InputError(f"{main} lists no {RUNNER}", hint="compile the model again for tvm-arm")
    emulator = Emulator.find()
    # The library and the runner are mapped before the engine is there: the copies are not needed for longer.
    with (
        translated_os_errors(Path(tempfile.gettempdir()) / "greencc-run"),
        tempfile.TemporaryDirectory(prefix="greencc-run-") as private,
        checked.opened(folder / WEIGHTS, description.weights) as weights,
    ):
        runner, library = Path(private) / RUNNER, Path(private) / LIBRARY
        library.write_bytes(checked.contents(folder / LIBRARY, description.library))
        runner.write_bytes(checked.contents(folder / RUNNER, description.runner))
        runner.chmod(0o700)
        if needs_of(runner).architecture != "aarch64":
            raise InputError(
                f"{folder / RUNNER} is no program for aarch64", hint="compile the model again for tvm-arm"
            )
        command = emulator.command(
            *(arm.emulated, runner, str(library), checked.path_of(weights)),
            *("--serve", "--threads", str(_THREADS)),
        )
        return EmulatedEngine(command, name, description.inputs, description.outputs, files=(weights,))


def check_emulated(name: str, description: Description, arm: ArmMachine) -> None:
    """Refuse code with instructions that the emulated processor does not have, before any of it runs.

    Raises:
        InputError: It is for another architecture, or uses instruction sets that the machine does not have.
    """
    if description.triple != arm.machine.triple:
        raise InputError(
            f"{name} is compiled for {description.triple}, {arm.title} runs {arm.machine.triple}",
            hint="open it with the target that it was compiled for",
        )
    missing = sorted(set(description.features) - FEATURES[arm.emulated])
    if missing:
        raise InputError(
            f"{name} needs {', '.join(missing)}, which {arm.title} (emulated as {arm.emulated}) does not have",
            hint=f"it was compiled for {description.cpu}: compile it for this preset",
        )


def check_runtime(folder: Path, architecture: str) -> str:
    """The oldest C library that the library and its runner run with, after checking that they need nothing else.

    Raises:
        UnavailableError: They need a library that a plain system does not have: the toolchain is an odd one.
    """
    found = [needs_of(folder / name) for name in (LIBRARY, RUNNER)]
    for name, needs in zip((LIBRARY, RUNNER), found, strict=True):
        odd = [library for library in needs.libraries if library not in _PLAIN]
        if odd or needs.architecture != architecture:
            raise UnavailableError(
                f"the compiler made a {name} that needs {', '.join(odd) or needs.architecture}",
                hint="a bundle may need the C library alone: use Debian's gcc",
            )
    return max((needs.glibc or "0.0" for needs in found), key=lambda text: tuple(map(int, text.split("."))))


_PLAIN = frozenset({"libc.so.6", "libm.so.6", "libpthread.so.0", "libdl.so.2", "ld-linux-aarch64.so.1"})
