#!/usr/bin/env python3
"""Runs engine.plan on the samples and compares what it gives with what the graph gave where it was compiled.

It runs on Python 3.6 and later and needs nothing but its standard library and trtexec.
"""

import argparse
import array
import json
import math
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Match, Optional, Sequence, Tuple

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
# Whole numbers of these are quantities (pixels), which may be rounded the other way; of all others they are decisions.
NARROW = ("int8", "uint8", "int16", "uint16")
# What C++ writes of numbers that JSON has not.
BARE = re.compile(r"(?<=[\s\[,:])(-?)(nan|inf|infinity)\b", re.IGNORECASE)


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
    if settings["module"] == "tensorrt_rtx":
        check_options(program)
    narrow = int(settings["tensorrt"].split(".")[0]) < 10
    failures = 0
    decided = {}  # type: Dict[str, List[int]]
    for number, sample in enumerate(listing["samples"]):
        found = run(program, engine, sample, narrow)
        for value in sample["outputs"]:
            expected = numbers(value)
            if value["name"] not in found:
                raise CheckError(
                    "the engine has no output %r" % value["name"], "build it again from this folder"
                )
            given = found[value["name"]]
            if len(given) != len(expected):
                sys.stdout.write(
                    "sample %d, %s: %d values instead of %d\n"
                    % (number, value["name"], len(given), len(expected))
                )
                failures += 1
            elif value["dtype"].startswith("float"):
                failures += not compare(number, value["name"], expected, given, listing["tolerance"])
            else:
                seen = decided.setdefault(value["name"], [0, 0])
                slack = 1 if value["dtype"] in NARROW else 0
                seen[0] += sum(not abs(one - other) <= slack for one, other in zip(expected, given))
                seen[1] += len(expected)
    return failures + sum(
        not judge(name, different, total, listing["tolerance"])
        for name, (different, total) in decided.items()
    )


def check_options(program: str) -> None:
    """The options that this needs are not among those that are documented of every tool."""
    try:
        done = subprocess.run(
            [program, "--help"],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            universal_newlines=True,
            timeout=120,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise CheckError("%s cannot be started: %s" % (program, error)) from error
    missing = [name for name in ("--loadInputs", "--exportOutput") if name not in done.stdout]
    if missing:
        raise CheckError(
            "%s has no %s" % (Path(program).name, " and no ".join(missing)),
            "run the samples by TensorRT for RTX's Python API, and compare with samples/samples.json",
        )


def read_json(path: Path) -> Any:
    try:
        return json.loads(BARE.sub(spelled, path.read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise CheckError(
            "cannot read %s: %s" % (path.name, error), "copy the whole folder to the device"
        ) from error


def spelled(match: Match[str]) -> str:
    """A number as Python's JSON has it."""
    return "NaN" if match.group(2).lower() == "nan" else match.group(1) + "Infinity"


def find_program(tool: str, given: Optional[str]) -> str:
    for candidate in [given] if given else [tool, "/usr/src/tensorrt/bin/" + tool]:
        found = shutil.which(candidate)
        if found:
            return str(Path(found).absolute())
    raise CheckError(
        "%s is not there" % (given or tool + " is neither in PATH nor in /usr/src/tensorrt/bin, so it"),
        "on a Jetson: sudo apt install libnvinfer-bin; or give --trtexec FILE"
        if tool == "trtexec"
        else "it comes with the SDK of TensorRT for RTX, not with its Python package; or give --trtexec FILE",
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
            loads.append("%s:%s" % (readable(value["name"]), path))
        written = Path(folder) / "output.json"
        command = [
            program,
            "--loadEngine=%s" % engine.resolve(),
            "--loadInputs=" + ",".join(loads),
            "--exportOutput=%s" % written,
        ]
        command += ["--iterations=1", "--warmUp=0", "--duration=0"]
        shapes = [
            "%s:%s" % (v["name"], "x".join(map(str, v["shape"]))) for v in sample["inputs"] if v["free"]
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


def readable(name: str) -> str:
    """A name as trtexec takes it: it ends at the last colon of what lies between commas."""
    if set(name) & set(",'"):
        raise CheckError(
            "trtexec cannot read the name of the input %r" % name,
            "give the input a name without commas and quotes, and compile again",
        )
    return name


def compare(
    number: int, name: str, expected: Sequence[float], found: Sequence[float], tolerance: float
) -> bool:
    """Whether numbers are near: their largest difference, as a share of the largest that is expected."""
    broken = sum(math.isfinite(one) and not math.isfinite(other) for one, other in zip(expected, found))
    if broken:
        what = "NaN" if any(math.isnan(other) for other in found) else "infinity"
        text = "sample %d, %s: the engine gave %s, %d of %d values are no numbers: TOO MUCH\n"
        sys.stdout.write(text % (number, name, what, broken, len(found)))
        return False
    scale, worst = extent(expected, found)
    share = worst / scale if scale else worst
    passed = share <= tolerance
    text = "sample %d, %s: largest difference %.2g of the largest value, %s (tolerance %g)\n"
    sys.stdout.write(text % (number, name, share, "good" if passed else "TOO MUCH", tolerance))
    return passed


def extent(expected: Sequence[float], found: Sequence[float]) -> Tuple[float, float]:
    """The largest number that is expected, and the largest difference; those that are no numbers must be alike."""
    scale = max([abs(value) for value in expected if math.isfinite(value)] or [0.0])
    worst = 0.0
    for one, other in zip(expected, found):
        if math.isfinite(one) and math.isfinite(other):
            worst = max(worst, abs(one - other))
        elif not (one == other or (math.isnan(one) and math.isnan(other))):
            worst = math.inf
    return scale, worst


def judge(name: str, different: int, total: int, tolerance: float) -> bool:
    """Whether decisions (classes, places, yes or no) are alike, of all samples together.

    How far off one is says nothing: the next class is another class.
    """
    passed = different <= tolerance * total
    text = "all samples, %s: %d of %d whole numbers differ, %s (tolerance %g)\n"
    sys.stdout.write(text % (name, different, total, "good" if passed else "TOO MUCH", tolerance))
    return passed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
