#!/usr/bin/env python3
"""A double of trtexec: its command line, log and files, with ONNX Runtime in the place of TensorRT.

It is given the machine that it plays by a file `trtexec.json` beside it, or by environment variables:

    version / TRTEXEC_DOUBLE_VERSION  of TensorRT (10.3.0)
    sm      / TRTEXEC_DOUBLE_SM       compute capability without the point (87)
    gpu     / TRTEXEC_DOUBLE_GPU      name of the GPU (Orin)
    dla     / TRTEXEC_DOUBLE_DLA      deep-learning accelerators (0)
    memory  / TRTEXEC_DOUBLE_MEMORY   bytes that a model may have before the builder runs out
    pace    / TRTEXEC_DOUBLE_PACE     milliseconds that a query takes at least (0)
    build   / TRTEXEC_DOUBLE_BUILD    seconds that a build takes at least (0)
    lint    / TRTEXEC_DOUBLE_LINT     0: graphs are not checked by greencc's linter, which takes a second (1)
    fault   / TRTEXEC_DOUBLE_FAULT    segfault, kill, hang, garbage: what it does instead of an inference or a build

A graph is checked with greencc's linter where that can be imported. Its "engine" holds the ONNX model, the version and
the GPU, and is refused elsewhere as TensorRT does. Formats are those of NVIDIA/TensorRT, samples/common (logging.h,
sampleDevice.cpp, sampleOptions.cpp, sampleInference.cpp, sampleReporting.cpp).
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import struct
import sys
import time
from pathlib import Path
from typing import Any

import trtexec_options

MAGIC = b"TRTDOUBLE\n"
DTYPES = {
    1: "float32", 2: "uint8", 3: "int8", 6: "int32", 7: "int64", 9: "bool", 10: "float16",
}  # fmt: skip


class Failed(Exception):
    """It ends with FAILED; lines say why."""

    def __init__(self, *lines: str) -> None:
        super().__init__(lines[0] if lines else "")
        self.lines = lines


@dataclasses.dataclass(frozen=True)
class Machine:
    """What it plays; see the module."""

    version: str = "10.3.0"
    sm: int = 87
    gpu: str = "Orin"
    dla: int = 0
    memory: int = 1 << 40
    pace: float = 0.0
    build: float = 0.0
    lint: int = 1
    fault: str = ""

    @property
    def numbers(self) -> tuple[int, ...]:
        return tuple(int(each) for each in self.version.split("."))

    @property
    def tag(self) -> str:
        major, minor, patch = (*self.numbers, 0, 0)[:3]
        if major >= 10:
            return f"[TensorRT v{major * 10000 + minor * 100 + patch}] [b30]"
        return f"[TensorRT v{major * 1000 + minor * 100 + patch}]"

    @property
    def options(self) -> dict[str, bool]:
        return trtexec_options.trtexec(self.numbers)


def machine() -> Machine:
    """By the file beside the program, then by the environment."""
    told: dict[str, Any] = {}
    beside = Path(sys.argv[0]).absolute().parent / "trtexec.json"
    if beside.is_file():
        told.update(json.loads(beside.read_text(encoding="utf-8")))
    for field in dataclasses.fields(Machine):
        value = os.environ.get("TRTEXEC_DOUBLE_" + field.name.upper())
        if value is not None:
            told[field.name] = value
    kinds = {field.name: type(field.default) for field in dataclasses.fields(Machine)}
    return Machine(**{name: kinds[name](value) for name, value in told.items()})


def say(severity: str, text: str) -> None:
    stream = sys.stderr if severity in "EFW" else sys.stdout
    stream.write(f"[{time.strftime('%m/%d/%Y-%H:%M:%S')}] [{severity}] {text}\n")
    stream.flush()


def report(state: str, here: Machine) -> None:
    sys.stdout.write(f"&&&& {state} TensorRT.trtexec {here.tag} # {' '.join(sys.argv)}\n")
    sys.stdout.flush()


def main() -> int:
    here = machine()
    report("RUNNING", here)
    try:
        options = parse(here, sys.argv[1:])
        if "help" in options:
            usage(here)
            return 0
        device(here)
        engine = Engine.build(here, options) if "onnx" in options else Engine.load(here, options)
        if options.keys() & {"skipInference", "buildOnly"}:
            say("I", "Skipped inference phase since --skipInference is added.")
        else:
            infer(here, engine, options)
    except Failed as failed:
        for line in failed.lines:
            say("E", line)
        report("FAILED", here)
        return 1
    report("PASSED", here)
    return 0


def parse(here: Machine, arguments: list[str]) -> dict[str, str]:
    try:
        options = trtexec_options.parse(here.options, arguments)
    except trtexec_options.Refused as refused:
        usage(here)
        raise Failed(*refused.lines) from refused
    if not options.keys() & {"onnx", "loadEngine", "help"}:
        raise Failed("Model missing or format not recognized")
    if "stronglyTyped" in options and options.keys() & {"int8", "fp16", "bf16", "fp8"}:
        raise Failed("Invalid usage, setting --fp16/--int8 mode is not allowed if --stronglyTyped is set.")
    return options


def usage(here: Machine) -> None:
    sys.stdout.write("=== Model Options ===\n")
    for name, valued in here.options.items():
        sys.stdout.write(f"  --{name + ('=<spec>' if valued else ''):<28}\n")
    sys.stdout.flush()


def device(here: Machine) -> None:
    say("I", "=== Device Information ===")
    say("I", f"Selected Device: {here.gpu}")
    say("I", f"Compute Capability: {here.sm // 10}.{here.sm % 10}")
    say("I", f"TensorRT version: {here.version}")
    say("I", "Loading standard plugins")


def shapes_of(text: str) -> dict[str, list[int]]:
    return {name: [int(size) for size in value.split("x")] for name, value in pairs(text)}


def pairs(text: str, *, quotes: bool = True) -> list[tuple[str, str]]:
    try:
        return trtexec_options.pairs(text, quotes=quotes)
    except trtexec_options.Refused as refused:
        raise Failed(*refused.lines) from refused


class Engine:
    """The container: a header of JSON, and the ONNX model."""

    def __init__(self, header: dict[str, Any], model: bytes) -> None:
        self.header, self.model = header, model

    @classmethod
    def load(cls, here: Machine, options: dict[str, str]) -> Engine:
        try:
            data = Path(options["loadEngine"]).read_bytes()
        except OSError:
            raise Failed(f"Error opening engine file: {options['loadEngine']}", *SETUP) from None
        say("I", f"Loaded engine size: {len(data) / 2**20:g} MiB")
        if not data.startswith(MAGIC) or len(data) < len(MAGIC) + 8:
            raise Failed(
                "[TRT] 1: [stdArchiveReader.cpp::StdArchiveReader::40] Error Code 1: Serialization (Serialization "
                "assertion stdArchiveReaderInitCommon.magicTag == kMAGIC_TAG failed.Magic tag does not match)",
                *DESERIALIZE,
            )
        (size,) = struct.unpack_from("<Q", data, len(MAGIC))
        begin = len(MAGIC) + 8
        header = json.loads(data[begin : begin + size])
        if header["version"] != here.version:
            raise Failed(
                "[TRT] IRuntime::deserializeCudaEngine: Error Code 6: API Usage Error (The engine plan file is not "
                f"compatible with this version of TensorRT, expecting library version {here.version}.30 got "
                f"{header['version']}.30, please rebuild.)",
                *DESERIALIZE,
            )
        if header["sm"] != here.sm:
            raise Failed(
                "[TRT] IRuntime::deserializeCudaEngine: Error Code 6: API Usage Error (The engine plan file is "
                f"generated on an incompatible device, expecting compute {here.sm // 10}.{here.sm % 10} got compute "
                f"{header['sm'] // 10}.{header['sm'] % 10}, please rebuild.)",
                *DESERIALIZE,
            )
        return cls(header, data[begin + size :])

    @classmethod
    def build(cls, here: Machine, options: dict[str, str]) -> Engine:
        import onnx

        path = Path(options["onnx"])
        say("I", "Start parsing network model.")
        try:
            model = onnx.load(path)
        except Exception as error:
            raise Failed(
                f"[TRT] ModelImporter: Failed to parse ONNX model from file: {path}", *PARSING
            ) from error
        say("I", "[TRT] " + "-" * 64)
        say("I", f"[TRT] Input filename:   {path}")
        say("I", f"[TRT] Opset version:    {model.opset_import[0].version}")
        check_operators(model)
        check_rules(here, model, options)
        say("I", "Finished parsing network model. Parse time: 0.01")
        profiles = check_profiles(here, model, options)
        if "useDLACore" in options and int(options["useDLACore"]) >= here.dla:
            raise Failed(f"Cannot create DLA engine, {options['useDLACore']} not available", *ENGINE)
        data = model.SerializeToString()
        time.sleep(here.build)
        misbehave(here)
        if len(data) > here.memory:
            say(
                "W",
                "[TRT] Tactic Device request: 2100MB Available: 42MB. Device memory is insufficient to use tactic.",
            )
            raise Failed(
                "[TRT] 2: [virtualMemoryBuffer.cpp::resizePhysical::145] Error Code 2: OutOfMemory (Requested size was "
                f"{len(data)} bytes.)",
                *ENGINE,
            )
        say("I", "[TRT] Global timing cache in use. Profiling results in this builder pass will be stored.")
        if "timingCacheFile" in options:
            Path(options["timingCacheFile"]).write_bytes(b"cache of " + here.version.encode())
        flags = sorted(
            options.keys() & {"int8", "fp16", "bf16", "fp8", "stronglyTyped", "sparsity", "useDLACore"}
        )
        held = [name for name, kind in pairs(options.get("layerPrecisions", "")) if kind == "fp32"]
        if held and options.get("precisionConstraints") not in ("obey", "prefer"):
            say("W", "--layerPrecisions flag has no effect when --precisionConstraints is not set.")
            held = []
        given = [name for name, kind in pairs(options.get("layerOutputTypes", "")) if kind == "fp32" and held]
        header = {
            "version": here.version,
            "sm": here.sm,
            "flags": flags,
            "profiles": profiles,
            "held": held,
            "held_outputs": given,
            "tf32": "noTF32" not in options,
        }
        say("I", "Engine built in 0.5 sec.")
        engine = cls(header, data)
        if "saveEngine" in options:
            told = json.dumps(header).encode()
            Path(options["saveEngine"]).write_bytes(MAGIC + struct.pack("<Q", len(told)) + told + data)
        return engine


SETUP = ("Engine set up failed",)
DESERIALIZE = (
    "[TRT] IRuntime::deserializeCudaEngine: Error Code 4: Internal Error (Engine deserialization failed.)",
    "Engine deserialization failed",
    "Got invalid engine!",
    "Inference set up failed",
)
PARSING = (
    "Failed to parse onnx file",
    "Parsing model failed",
    "Failed to create engine from model or file.",
    *SETUP,
)
ENGINE = ("Engine could not be created from network", "Building engine failed", *PARSING[2:])


def misbehave(here: Machine) -> None:
    if here.fault == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif here.fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif here.fault == "hang":
        time.sleep(3600)
    elif here.fault == "garbage":
        raise Failed("[TRT] Error Code 1: Myelin ([cask.cpp:exec:972] Platform (Cuda) error)")


def check_operators(model: Any) -> None:
    """What has no schema in ONNX has no importer in TensorRT either."""
    import onnx

    version = next(each.version for each in model.opset_import if each.domain in ("", "ai.onnx"))
    for number, node in enumerate(model.graph.node):
        if node.domain in ("", "ai.onnx") and onnx.defs.has(node.op_type, version):
            continue
        say("I", f"[TRT] No importer registered for op: {node.op_type}. Attempting to import as plugin.")
        say("I", f"[TRT] Searching for plugin: {node.op_type}, plugin_version: 1, plugin_namespace: ")
        outputs = " ".join(f'"{each}"' for each in node.output)
        raise Failed(
            f"[TRT] ModelImporter.cpp:948: While parsing node number {number} [{node.op_type} -> {outputs}]:",
            "[TRT] ModelImporter.cpp:953: ERROR: onnxOpImporters.cpp:5417 In function importFallbackPluginImporter:",
            '[8] Assertion failed: creator && "Plugin not found, are the plugin name, version, and namespace '
            'correct?"',
            *PARSING,
        )


def check_rules(here: Machine, model: Any, options: dict[str, str]) -> None:
    """greencc's linter, where it can be imported: what it calls an error is one here."""
    if not here.lint:
        return
    try:
        import onnx_ir as ir

        from greencc.targets._tensorrt.lint import Severity, lint
        from greencc.targets._tensorrt.machine import TensorRtMachine, TensorRtVersion, architecture
    except ImportError as error:
        say("V", f"the graph is not checked: {error}")
        return
    played = TensorRtMachine(TensorRtVersion.parse(here.version), architecture(here.sm), here.dla)
    checked = ir.from_proto(with_shapes(model))
    for fault in lint(checked, played, dla="useDLACore" in options):
        if fault.severity is Severity.ERROR:
            raise Failed(
                f"[TRT] ModelImporter.cpp:949: ERROR: ModelImporter.cpp:195 In node 0 with name: {fault.node} and "
                f"operator: checked (parseNode): INVALID_NODE: {fault.message}",
                *PARSING,
            )


def with_shapes(model: Any) -> Any:
    import onnx

    return onnx.shape_inference.infer_shapes(model)


def inputs_of(model: Any) -> list[Any]:
    valued = {each.name for each in model.graph.initializer}
    return [each for each in model.graph.input if each.name not in valued]


def check_profiles(here: Machine, model: Any, options: dict[str, str]) -> dict[str, list[list[int]]]:
    given = [shapes_of(options.get(name + "Shapes", "")) for name in ("min", "opt", "max")]
    profiles = {}
    for value in inputs_of(model):
        sizes = [each.dim_value if each.dim_value > 0 else -1 for each in value.type.tensor_type.shape.dim]
        found = [each.get(value.name) for each in given]
        if -1 not in sizes:
            fixed = [each for each in found if each is not None]
            if any(each != sizes for each in fixed):
                raise Failed(
                    f"[TRT] Error Code 4: {value.name}: dynamic shapes given for a static input", *ENGINE
                )
            profiles[value.name] = [sizes] * 3
        elif None in found:
            shape = "x".join(str(max(1, size)) for size in sizes)
            say("W", f"Dynamic dimensions required for input: {value.name}, but no shapes were provided. "
                f"Automatically overriding shape to: {shape}")  # fmt: skip
            profiles[value.name] = [[max(1, size) for size in sizes]] * 3
        else:
            profiles[value.name] = [each for each in found if each is not None]
    return profiles


def infer(here: Machine, engine: Engine, options: dict[str, str]) -> None:
    """`inferenceLoop`: queries until both the iterations and the duration are done, warm-up apart."""
    import numpy as np
    import onnx
    import onnxruntime as ort

    model = onnx.load_from_string(engine.model)
    feeds = {}
    # Before 8.4 names of files keep their quotes.
    files = dict(pairs(options.get("loadInputs", ""), quotes=here.numbers >= (8, 4)))
    asked = shapes_of(options.get("shapes", ""))
    names = {value.name for value in inputs_of(model)}
    for name in [*files, *asked]:
        if name not in names:
            raise Failed(
                f'Cannot find input tensor with name "{name}" in the engine bindings! Please make sure the input '
                "tensor names are correct.",
                "Invalid tensor names found in --loadInputs flag.",
                "Inference set up failed",
            )
    narrow = here.numbers < (10,)
    for value in inputs_of(model):
        low, usual, high = engine.header["profiles"][value.name]
        shape = asked.get(value.name, usual)
        if any(not a <= size <= b for a, size, b in zip(low, shape, high, strict=True)):
            raise Failed(
                f"[TRT] IExecutionContext::setInputShape: Error Code 3: API Usage Error (Parameter check failed, "
                f"condition: engineDims.d[i] == dims.d[i]. Static dimension mismatch: profile of {value.name}.)",
                "Inference set up failed",
            )
        dtype = DTYPES[value.type.tensor_type.elem_type]
        stored = "int32" if narrow and dtype == "int64" else dtype
        if value.name in files:
            raw = Path(files[value.name]).read_bytes()
            size = int(np.prod(shape)) * np.dtype(stored).itemsize
            if len(raw) != size:
                raise Failed(
                    f"Uncaught exception detected: Unexpected file size for input file: {files[value.name]}",
                    f"Note: Input binding size is: {size} bytes but the file size is {len(raw)} bytes.",
                    "Double check the size and datatype of the provided data.",
                )
            say("I", f"Using values loaded from {files[value.name]} for input {value.name}")
            feeds[value.name] = np.frombuffer(raw, stored).reshape(shape).astype(dtype)
        else:
            say("I", f"Using random values for input {value.name}")
            feeds[value.name] = np.random.default_rng(0).normal(size=shape).astype(dtype)
        say("I", f"Input binding for {value.name} with dimensions {'x'.join(map(str, shape))} is created.")
    settings = ort.SessionOptions()
    settings.intra_op_num_threads = 1
    # TensorRT's arithmetic: scale, round half to even, and no fused kernels of another rounding.
    settings.add_session_config_entry("session.disable_quant_qdq", "1")
    if "exportProfile" in options:
        settings.enable_profiling = True
        settings.profile_file_prefix = options["exportProfile"] + ".ort"
    session = ort.InferenceSession(engine.model, settings, providers=["CPUExecutionProvider"])
    say("I", "Starting inference")
    misbehave(here)
    whole = narrow
    duration = number(options, "duration", 3.0, whole) * 1e3
    warm_up, iterations = number(options, "warmUp", 200.0, True), number(options, "iterations", 10.0, True)
    idle = number(options, "idleTime", 0.0, whole)
    start, rows, skip, index, passed = time.monotonic(), [], 0, 0, 0.0
    outputs: list[Any] = []
    # `duration` includes the warm-up, as there.
    while index < iterations + skip or passed < duration + warm_up:
        row, outputs = query(session, feeds, start, here.pace)
        rows.append(row)
        passed, index = row["startComputeMs"], index + 1
        if passed < warm_up:
            skip += 1
        elif idle:
            time.sleep(idle / 1e3)
    names = [value.name for value in session.get_outputs()]
    if "exportTimes" in options:
        cold = 0 if here.numbers < (8, 6) else sum(row["startComputeMs"] < warm_up for row in rows)
        export_times(Path(options["exportTimes"]), rows[cold:])
    if "exportOutput" in options:
        export_output(Path(options["exportOutput"]), names, outputs, here)
    if "exportProfile" in options:
        export_profile(Path(options["exportProfile"]), session.end_profiling(), len(rows))
    say("I", "=== Performance summary ===")
    kept = [row for row in rows if row["startComputeMs"] >= warm_up]
    say(
        "I",
        f"Throughput: {len(kept) / max(1e-9, (kept[-1]['endD2hMs'] - kept[0]['startH2dMs']) / 1e3):g} qps",
    )


def number(options: dict[str, str], name: str, default: float, whole: bool) -> float:
    """Old releases read whole numbers, as std::stoi does."""
    value = float(options.get(name, default))
    return float(int(value)) if whole else value


def query(
    session: Any, feeds: dict[str, Any], start: float, pace: float
) -> tuple[dict[str, float], list[Any]]:
    def now() -> float:
        return (time.monotonic() - start) * 1e3

    begin = now()
    copies = {name: value.copy() for name, value in feeds.items()}
    computing = now()
    found = session.run(None, copies)
    if pace:
        time.sleep(max(0.0, pace - (now() - computing)) / 1e3)
    computed = now()
    found = [each.copy() for each in found]
    end = now()
    return {
        "startEnqMs": begin, "endEnqMs": computing, "startH2dMs": begin, "endH2dMs": computing,
        "startComputeMs": computing, "endComputeMs": computed, "startD2hMs": computed, "endD2hMs": end,
        "h2dMs": computing - begin, "computeMs": computed - computing, "d2hMs": end - computed,
        "latencyMs": end - begin,
    }, found  # fmt: skip


def export_times(path: Path, rows: list[dict[str, float]]) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write("[\n")
        for index, row in enumerate(rows):
            # The separator of the first row stays with its line, as there: "  { ", then ", { ".
            fields = ", ".join(f'"{name}" : {value:.6g}' for name, value in row.items())
            file.write(("  { " if index == 0 else ", { ") + fields + " }\n")
        file.write("]\n")


def export_output(path: Path, names: list[str], outputs: list[Any], here: Machine) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write("[\n")
        for index, (name, value) in enumerate(zip(names, outputs, strict=True)):
            values = ", ".join(
                f"{float(each):.6g}" if value.dtype.kind == "f" else str(int(each)) for each in value.flat
            )
            file.write(
                f'{"  " if index == 0 else ", "}{{ "name" : "{name}"\n'
                f'  , "dimensions" : "{"x".join(map(str, value.shape))}"\n'
                f'  , "values" : [ {values} ]\n  }}\n'
            )
        file.write("]\n")


def export_profile(path: Path, found: str, count: int) -> None:
    totals: dict[str, float] = {}
    for event in json.loads(Path(found).read_text(encoding="utf-8")):
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            name = event["name"].removesuffix("_kernel_time")
            totals[name] = totals.get(name, 0.0) + event["dur"] / 1e3
    Path(found).unlink()
    whole = sum(totals.values()) or 1.0
    with path.open("w", encoding="utf-8") as file:
        file.write(f'[\n  {{ "count" : {count} }}\n')
        for name, total in totals.items():
            file.write(
                f', {{ "name" : "{name}", "timeMs" : {total:.6g}, "averageMs" : {total / count:.6g}, '
                f'"percentage" : {total / whole * 100:.6g} }}\n'
            )
        file.write("]\n")


if __name__ == "__main__":
    sys.exit(main())
