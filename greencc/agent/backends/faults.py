"""Known complaints of TensorRT and trtexec, and what each means: one clear message for many lines of log.

Each pattern is what a version since 8.2 writes, as its documentation ("Troubleshooting: Understanding Error Messages"),
its open sources (NVIDIA/TensorRT: parsers/onnx, samples/common) or its users' reports have it.
"""

import re
from typing import Iterable, List, Optional, Sequence, Tuple

from greencc.agent.problem import Problem


class Fault:
    """A complaint.

    Args:
        pattern: A regular expression for one line of the log.
        kind: Of the `Problem`.
        message: What it means; ``{0}``, ``{1}`` are the pattern's groups.
        hint: What to do.
        warning: Lines of warnings count as well as those of errors.
    """

    def __init__(self, pattern: str, kind: str, message: str, hint: str, warning: bool = False) -> None:
        self.pattern = re.compile(pattern)
        self.kind = kind
        self.message = message
        self.hint = hint
        self.warning = warning


_REBUILD = "build it again on this device"
_LESS_MEMORY = (
    "close other programs, add swap, give the builder less workspace, or compile for smaller inputs"
)

# The first that matches wins: causes come before what follows from them.
FAULTS = (
    Fault(
        r"engine plan file is not compatible with this version of TensorRT"
        r"(?:, expecting (?:library|format) version (\S+?) got (\S+?))?(?:,|\)|\.?$| )",
        "input",
        "the engine was built by another version of TensorRT",
        _REBUILD + ": a plan runs with the version that built it",
    ),
    Fault(
        r"generated on an incompatible device(?:, expecting compute (\S+) got compute (\S+?))?(?:,|\.?$| )",
        "input",
        "the engine was built for another GPU",
        _REBUILD + ": a plan runs on the GPU that it was built for",
    ),
    Fault(
        r"[Mm]agic tag does not match|kMAGIC_TAG failed|Cannot deserialize|stdArchiveReader.*failed",
        "input",
        "the engine is damaged, or was built by another version of TensorRT",
        _REBUILD,
    ),
    Fault(
        r"Networks? with (\S+) .*requires? hardware with \S+ support",
        "unavailable",
        "this GPU does not compute in {0}",
        "compile for this device's GPU: it keeps to the precisions that it has",
    ),
    Fault(
        r"(?i)\b(FP8|E4M3|float8\w*)\b.*(?:not supported|unsupported|only supported)",
        "unavailable",
        "this GPU or this TensorRT has no FP8",
        "FP8 begins with Ada and TensorRT 9; compile for INT8 or FP16",
    ),
    Fault(
        r"Cannot create DLA engine|DLA cores? .*(?:not available|invalid|out of range)|DLA.* is not supported on this"
        r"|[Dd]evice does not have (?:a )?DLA|Builder failed to find DLA",
        "unavailable",
        "this device has no DLA that this TensorRT builds for",
        "build without the DLA",
    ),
    Fault(
        r"layer \{?(.+?)\}? (?:\[\w+\] )?is not supported on DLA",
        "unavailable",
        "the DLA does not run the layer {0}",
        "allow the GPU for what the DLA lacks, or build without the DLA",
    ),
    Fault(
        r"has dynamic or shape inputs, but no optimization profile|optimization profile is missing values",
        "input",
        "the model has free dimensions, and no shape profile was given",
        "give the shapes (the least, the usual and the greatest), or fix them in the model",
    ),
    Fault(
        r"Dynamic dimensions required for input: (.+?), but no shapes were provided",
        "input",
        "input {0} has free dimensions, and no shape profile was given",
        "give the shapes (the least, the usual and the greatest), or fix them in the model",
        warning=True,
    ),
    Fault(
        r"(?:[Ss]upplied|[Ss]tatic|[Ss]et) dim(?:ension)?s?.*(?:bound|profile|range|satisfy)"
        r"|setInputShape.*Error|does not satisfy any optimization profiles",
        "input",
        "an input has a shape that the engine was not built for",
        "build it with a shape profile that covers the shape",
    ),
    Fault(
        r"No importer registered for op: (\w+)",
        "input",
        "TensorRT does not know the operator {0}",
        "replace it in the model; `greencc lint` lists what this version refuses",
        warning=True,
    ),
    Fault(
        r"could not find plugin:? '?(\w+)|Plugin not found.*\[?(?:name|op)?:?",
        "input",
        "TensorRT does not know an operator of the model",
        "replace it in the model; `greencc lint` lists what this version refuses",
    ),
    Fault(
        r"UNSUPPORTED_NODE(?:_\w+)?:? *(.*)",
        "input",
        "TensorRT does not support a node of the model: {0}",
        "replace it in the model; `greencc lint` lists what this version refuses",
    ),
    Fault(
        r"(?:CUDA initialization failure with error|[Cc]uda failure|CUDA error)[: ]*(?:35|100|999)\b"
        r"|CUDA driver version is insufficient|no CUDA-capable device",
        "unavailable",
        "CUDA does not start here: there is no GPU, or its driver is too old",
        "check `nvidia-smi`, or the JetPack installation",
    ),
    Fault(
        r"(?i)out ?of ?memory|could not allocate|cudaMalloc.*fail|bad_alloc|insufficient memory"
        r"|Requested amount of GPU memory",
        "memory",
        "the device's memory does not suffice",
        _LESS_MEMORY,
    ),
    Fault(
        r"insufficient to use tactic|due to (?:insufficient memory|oom)",
        "memory",
        "the device's memory does not suffice for building",
        _LESS_MEMORY,
        warning=True,
    ),
    Fault(
        r"No space left on device",
        "disk",
        "the disk is full",
        "`greencc devices` can clean up what the agent has stored; else make room on the device",
    ),
    Fault(
        r"Unknown option: (\S+)",
        "unavailable",
        "this trtexec has no option {0}",
        "the device's TensorRT is older than what the model was compiled for; compile for its version",
    ),
    Fault(
        r"Could not find any implementation for node (.+?)\.?(?:\)|$)",
        "unavailable",
        "TensorRT has no implementation of {0} here",
        "give the builder more workspace, or keep that node in FP32",
    ),
    Fault(
        r"In node -?\d+[^:]*:\s*(?:[A-Z_]+:\s*)?(.+)",
        "input",
        "TensorRT refuses a node of the model: {0}",
        "`greencc lint` lists what this version refuses",
    ),
    Fault(
        r"[Ff]ailed to parse (?:ONNX|onnx)|While parsing node number \d+",
        "input",
        "TensorRT cannot read the model",
        "check it with `greencc lint`",
    ),
)

_NODE = re.compile(r"While parsing node number (\d+) \[(\w+)")
_SEVERITY = re.compile(r"^(?:\[[^\]]*\] )?\[([FEWIV])\]")


def severity(line: str) -> str:
    """F, E, W, I or V of a log's line; E where it has none, as what goes to standard error without one matters."""
    match = _SEVERITY.match(line)
    return match.group(1) if match else "E"


def explain(lines: Iterable[str]) -> Optional[Problem]:
    """The first known complaint that a failed run's log has; None: it has none.

    Lines of information count only where the fault says that warnings do.
    """
    found = [(severity(line), line) for line in lines]
    for fault in FAULTS:
        for grade, line in found:
            if grade in "V" or (grade in "WI" and not fault.warning):
                continue
            match = fault.pattern.search(line)
            if match is not None:
                groups = [group or "" for group in match.groups()]
                message = fault.message.format(*groups, "", "")
                expected = [group for group in groups if group]
                if "another" in message and len(expected) == 2:
                    message += " (%s here, and not %s)" % (expected[0], expected[1])
                return Problem(fault.kind, message.rstrip(": ") + _place(fault, message, found), fault.hint)
    return None


def _place(fault: Fault, message: str, found: Sequence[Tuple[str, str]]) -> str:
    """The node that was being read, where a fault of the model does not name one."""
    for _, line in found:
        match = _NODE.search(line)
        if match is not None and fault.kind == "input" and match.group(2) not in message:
            return " (node %s, %s)" % match.groups()
    return ""


def last_errors(lines: Iterable[str], most: int = 3) -> List[str]:
    """The last lines that are errors, or else the last lines, without their stamps."""
    texts = list(lines)
    errors = [line for line in texts if _SEVERITY.match(line) and severity(line) in "FE"]
    return [
        re.sub(r"^(?:\[[^\]]*\] )?\[[FEWIV]\] *(?:\[TRT\] *)?", "", line)
        for line in (errors or texts)[-most:]
    ]


def failure(what: str, lines: Iterable[str], kind: str = "internal") -> Problem:
    """What a failed run is told as: a known complaint, or the last that it said."""
    texts = list(lines)
    known = explain(texts)
    if known is not None:
        return Problem(known.kind, "%s: %s" % (what, known.message), known.hint)
    said = "; ".join(line.strip() for line in last_errors(texts) if line.strip())
    return Problem(kind, "%s: %s" % (what, said or "it said nothing"), "the log of the build has more")
