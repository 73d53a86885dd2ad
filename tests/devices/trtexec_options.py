"""The options of trtexec, release by release, and of tensorrt_rtx: what their doubles take, and refuse as they do.

Sources: NVIDIA/TensorRT, samples/common/sampleOptions.cpp of 8.2, 8.4, 8.6 and 10; NVIDIA TensorRT documentation,
"Migrating trtexec Usage from TensorRT 8.x to 10.x" and "10.x to 11.x"; of tensorrt_rtx NVIDIA TensorRT for RTX
documentation, "Performance Benchmarking" and "Optimizing TensorRT-RTX Performance", which names these alone.

The doubles are programs that import this by its name: it needs nothing but Python's own library.
"""

from __future__ import annotations

EVER, ALWAYS = (0,), (99,)
# Option -> whether it takes a value, and the first and the last version that has it.
TRTEXEC: dict[str, tuple[bool, tuple[int, ...], tuple[int, ...]]] = {
    "onnx": (True, EVER, ALWAYS),
    "saveEngine": (True, EVER, ALWAYS),
    "loadEngine": (True, EVER, ALWAYS),
    "loadInputs": (True, EVER, ALWAYS),
    "exportOutput": (True, EVER, ALWAYS),
    "exportTimes": (True, EVER, ALWAYS),
    "exportProfile": (True, EVER, ALWAYS),
    "dumpProfile": (False, EVER, ALWAYS),
    "duration": (True, EVER, ALWAYS),
    "iterations": (True, EVER, ALWAYS),
    "warmUp": (True, EVER, ALWAYS),
    "idleTime": (True, (8, 2), ALWAYS),
    "exposeDMA": (False, EVER, ALWAYS),
    "noDataTransfers": (False, EVER, ALWAYS),
    "useSpinWait": (False, EVER, ALWAYS),
    "avgRuns": (True, EVER, ALWAYS),
    "int8": (False, EVER, (10, 99)),
    "fp16": (False, EVER, (10, 99)),
    "bf16": (False, (9,), (10, 99)),
    "fp8": (False, (8, 6), (10, 99)),
    "noTF32": (False, (7,), ALWAYS),
    "stronglyTyped": (False, (9,), ALWAYS),
    "precisionConstraints": (True, (8, 4), (10, 99)),
    "layerPrecisions": (True, (8, 4), (10, 99)),
    "layerOutputTypes": (True, (8, 4), (10, 99)),
    "sparsity": (True, (8,), ALWAYS),
    "useDLACore": (True, EVER, ALWAYS),
    "allowGPUFallback": (False, EVER, ALWAYS),
    "minShapes": (True, EVER, ALWAYS),
    "optShapes": (True, EVER, ALWAYS),
    "maxShapes": (True, EVER, ALWAYS),
    "shapes": (True, EVER, ALWAYS),
    "timingCacheFile": (True, (8,), ALWAYS),
    "memPoolSize": (True, (8, 4), ALWAYS),
    "workspace": (True, EVER, (8, 99)),
    "builderOptimizationLevel": (True, (8, 6), ALWAYS),
    "buildOnly": (False, (8, 0), (8, 5)),
    "skipInference": (False, (8, 6), ALWAYS),
    "verbose": (False, EVER, ALWAYS),
    "help": (False, EVER, ALWAYS),
}
RTX: dict[str, bool] = {
    "onnx": True,
    "saveEngine": True,
    "loadEngine": True,
    "shapes": True,
    "minShapes": True,
    "optShapes": True,
    "maxShapes": True,
    "skipInference": False,
    "duration": True,
    "iterations": True,
    "warmUp": True,
    "profilingVerbosity": True,
    "dumpProfile": False,
    "maxAuxStreams": True,
    "runtimeCacheFile": True,
    "specializeStrategyDS": True,
    "rtxCudaGraphStrategy": True,
    "help": False,
}
"""Option of tensorrt_rtx -> whether it takes a value."""


class Refused(Exception):
    """Options that are not taken; one line each."""

    def __init__(self, *lines: str) -> None:
        super().__init__("\n".join(lines))
        self.lines = lines


def trtexec(version: tuple[int, ...]) -> dict[str, bool]:
    """Options of a version, and whether each takes a value."""
    short = version[:2]
    return {
        name: valued
        for name, (valued, since, until) in TRTEXEC.items()
        if since <= short and short <= (*until, 99)
    }


def parse(known: dict[str, bool], arguments: list[str]) -> dict[str, str]:
    """Values by option; empty for those that take none.

    Each option is looked for once and taken away: what is left over is unknown, be it the second of a kind.

    Raises:
        Refused: Some are unknown, are there twice, or have a value too much or too little.
    """
    found: dict[str, str] = {}
    unknown = []
    for argument in arguments:
        name, sign, value = argument.partition("=")
        name = name.removeprefix("--")
        if not argument.startswith("--") or name not in known or name in found:
            unknown.append(f"Unknown option: --{name} {value}")
        elif known[name] != bool(sign):
            raise Refused(f"Option {argument} has no value" if known[name] else f"Invalid: {argument}")
        else:
            found[name] = value
    if unknown:
        raise Refused(*unknown)
    return found


def pairs(text: str, *, quotes: bool = True) -> list[tuple[str, str]]:
    """``name:value,'na:me':value``: names end at a quote, else at the last colon; commas end pairs whatever the quotes.

    Raises:
        Refused: An odd number of quotes.
    """
    found = []
    for pair in text.split(",") if text else []:
        parts = pair.split("'") if quotes else [pair]
        if len(parts) == 1:
            name, _, value = pair.rpartition(":")
        elif len(parts) == 3:
            name, value = parts[0] + parts[1], parts[2][1:]
        else:
            raise Refused(f"Found invalid number of 's when parsing {pair}")
        found.append((name, value))
    return found
