#!/usr/bin/env python3
"""Runs engine.plan on the samples and compares what it gives with what the graph gave where it was compiled.

It runs on Python 3.6 and later and needs nothing but its standard library and trtexec.
"""

import argparse
import array
import json
import math
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

HERE = Path(__file__).resolve().parent
SAMPLES = HERE / "samples"
# Codes of Python's array for the types of samples; sizes are checked.
CODES = {
    "float32": ("f", 4),
    "float64": ("d", 8),
    "int8": ("b", 1),
    "uint8": ("B", 1),
    "int16": ("h", 2),
    "uint16": ("H", 2),
    "int32": ("i", 4),
    "uint32": ("I", 4),
    "int64": ("q", 8),
    "uint64": ("Q", 8),
    "bool": ("B", 1),
}


class CheckError(Exception):
    """What stops the check, and what to do about it."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.hint = hint


def main(arguments: List[str]) -> int:
    parser = argparse.ArgumentParser(
        description="Compare engine.plan with the outputs that were shipped with it."
    )
    parser.add_argument("--engine", type=Path, default=HERE / "engine.plan", help="what to check")
    parser.add_argument("--trtexec", help="default: from PATH, else /usr/src/tensorrt/bin/trtexec")
    options = parser.parse_args(arguments)
    try:
        failures = check(options.engine, options.trtexec)
    except CheckError as problem:
        sys.stderr.write("check.py: %s\n" % problem)
        if problem.hint:
            sys.stderr.write("  %s\n" % problem.hint)
        return 1
    if failures:
        sys.stderr.write("check.py: %d outputs differ by more than the tolerance\n" % failures)
        sys.stderr.write("  the engine does not compute what was certified: do not use it\n")
        return 1
    sys.stdout.write("all outputs are within the tolerance\n")
    return 0


def check(engine: Path, trtexec: Optional[str]) -> int:
    """The number of outputs that differ too much."""
    listing = read_json(SAMPLES / "samples.json")
    settings = read_json(HERE / "device.json")
    if not engine.is_file():
        raise CheckError("%s is not there" % engine, "build it first: sh build.sh")
    program = find_program(settings["tool"], trtexec)
    narrow = int(settings["tensorrt"].split(".")[0]) < 10
    failures = 0
    for number, sample in enumerate(listing["samples"]):
        found = run(program, engine, sample, narrow)
        for value in sample["outputs"]:
            expected = numbers(value)
            if value["name"] not in found:
                raise CheckError(
                    "the engine has no output %r" % value["name"], "build it again from this folder"
                )
            failures += not compare(
                number, value["name"], expected, found[value["name"]], listing["tolerance"]
            )
    return failures


def read_json(path: Path) -> Any:
    try:
        with path.open(encoding="utf-8") as stream:
            return json.load(stream)
    except (OSError, ValueError) as error:
        raise CheckError(
            "cannot read %s: %s" % (path.name, error), "copy the whole folder to the device"
        ) from error


def find_program(tool: str, given: Optional[str]) -> str:
    for candidate in [given] if given else [tool, "/usr/src/tensorrt/bin/" + tool]:
        found = shutil.which(candidate)
        if found:
            return str(Path(found).absolute())
    raise CheckError(
        "%s is not there" % (given or tool + " is neither in PATH nor in /usr/src/tensorrt/bin, so it"),
        "on a Jetson: sudo apt install libnvinfer-bin; or give --trtexec FILE",
    )


def numbers(value: Dict[str, Any]) -> Sequence[float]:
    """A sample's values as they were shipped: raw and little-endian."""
    path = SAMPLES / value["file"]
    code, size = CODES[value["dtype"]]
    found = array.array(code)
    if found.itemsize != size:
        raise CheckError("this Python's array type %r has %d bytes" % (code, found.itemsize))
    try:
        found.frombytes(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckError(
            "cannot read %s: %s" % (value["file"], error), "copy the whole folder here again"
        ) from error
    if sys.byteorder == "big":
        found.byteswap()
    if len(found) != count(value["shape"]):
        raise CheckError(
            "%s has %d values" % (value["file"], len(found)), "copy the whole folder to the device"
        )
    return found


def count(shape: Sequence[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product


def run(program: str, engine: Path, sample: Dict[str, Any], narrow: bool) -> Dict[str, List[float]]:
    with tempfile.TemporaryDirectory(prefix="greencc-check-") as folder:
        loads = []
        for index, value in enumerate(sample["inputs"]):
            # From here: the option has separators that the name of this folder may have as well.
            path = Path(SAMPLES.name) / value["file"]
            if narrow and value["dtype"] == "int64":
                # Before TensorRT 10 such inputs are INT32.
                path = Path(folder) / ("input%d.bin" % index)
                path.write_bytes(array.array("i", [int(item) for item in numbers(value)]).tobytes())
            loads.append("%s:%s" % (quoted(value["name"]), path))
        written = Path(folder) / "output.json"
        command = [
            program,
            "--loadEngine=%s" % engine.resolve(),
            "--loadInputs=" + ",".join(loads),
            "--exportOutput=%s" % written,
        ]
        command += ["--iterations=1", "--warmUp=0", "--duration=0"]
        shapes = [
            "%s:%s" % (quoted(v["name"]), "x".join(map(str, v["shape"])))
            for v in sample["inputs"]
            if v["free"]
        ]
        if shapes:
            command.append("--shapes=" + ",".join(shapes))
        try:
            done = subprocess.run(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                universal_newlines=True,
                timeout=600,
                cwd=str(HERE),
            )
        except subprocess.TimeoutExpired as error:
            raise CheckError("%s did not finish within ten minutes" % Path(program).name) from error
        except OSError as error:
            raise CheckError("%s cannot be started: %s" % (program, error.strerror)) from error
        if done.returncode != 0 or not written.is_file():
            sys.stderr.write("\n".join(done.stdout.splitlines()[-12:]) + "\n")
            raise CheckError(
                "%s failed (exit status %d)" % (Path(program).name, done.returncode),
                "an engine runs with the TensorRT and on the GPU that it was built with: build it here",
            )
        return {item["name"]: [float(number) for number in item["values"]] for item in read_json(written)}


def quoted(name: str) -> str:
    """A name as trtexec wants it: those with its separators between quotes."""
    return "'%s'" % name if set(name) & set(":,") else name


def compare(
    number: int, name: str, expected: Sequence[float], found: Sequence[float], tolerance: float
) -> bool:
    if len(expected) != len(found):
        sys.stdout.write(
            "sample %d, %s: %d values instead of %d\n" % (number, name, len(found), len(expected))
        )
        return False
    scale = max([abs(value) for value in expected if math.isfinite(value)] or [0.0])
    worst = 0.0
    for one, other in zip(expected, found):
        if math.isfinite(one) and math.isfinite(other):
            worst = max(worst, abs(one - other))
        elif not (one == other or (math.isnan(one) and math.isnan(other))):
            worst = math.inf
    share = worst / scale if scale else worst
    passed = share <= tolerance
    text = "sample %d, %s: largest difference %.2g of the largest value, %s (tolerance %g)\n"
    sys.stdout.write(text % (number, name, share, "good" if passed else "TOO MUCH", tolerance))
    return passed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
