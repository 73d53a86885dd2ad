"""TensorRT by trtexec alone, where JetPack was installed without the Python bindings.

Each run, stretch and profile is a process of trtexec, which loads the engine anew. Three things are weaker than with
the bindings, and said in the facts: a stretch runs one input, times are those of CUDA's events (copy, compute, copy),
and outputs come as decimal numbers with six digits.
"""

import os
import tempfile
import time
from typing import Any, Dict, List, Sequence, Tuple

from greencc.agent.backends import driving, manifest
from greencc.agent.backends.bindings_child import profile_of, timing_path
from greencc.agent.backends.bindings_engine import kind_of
from greencc.agent.backends.driving import FeedFile
from greencc.agent.backends.manifest import Manifest
from greencc.agent.backends.onnx_io import read_facts
from greencc.agent.backends.tensors import Spec, converted, product, views
from greencc.agent.backends.trtexec_tool import (
    Trtexec,
    dims,
    ended,
    find,
    make_pack,
    named,
    read_json,
    read_profile,
    read_times,
    readable,
)
from greencc.agent.backends.worker import Loaded, Setup
from greencc.agent.problem import Problem

ENGINE = "engine.plan"
_STARTS = "Starting inference"
_WARM_UP_MS = 200
_TIMED = (
    "trtexec's latency: host to device, compute, device to host, one query after the other (--exposeDMA), "
    "by CUDA's events"
)
_FLAGS = {"fp16": "fp16", "int8": "int8", "bf16": "bf16", "fp8": "fp8"}


def _tool(setup: Setup) -> Trtexec:
    path = find(setup.root, dict(os.environ))
    if path is None:
        raise Problem(
            "unavailable",
            "neither TensorRT's Python bindings nor trtexec are installed",
            "sudo apt install nvidia-jetpack (or python3-libnvinfer libnvinfer-bin)",
        )
    return Trtexec(path)


def probe(setup: Setup) -> Dict[str, str]:
    """Its version.

    Raises:
        Problem: ``unavailable``: there is none.
    """
    return {"tensorrt": _tool(setup).version, "implementation": "trtexec"}


def build(setup: Setup, main: str, folder: str, options: Dict[str, Any]) -> Dict[str, Any]:
    """Build a plan; see `greencc.agent.backends`.

    Raises:
        Problem: The model is refused, or the builder fails.
    """
    facts = read_facts(main)
    tool = _tool(setup)
    path = os.path.join(folder, ENGINE)
    precise, told = _float32(tool, options)
    flags = ["--onnx=" + main, "--saveEngine=" + path, *precise, *_build_flags(tool, options)]
    shapes = options.get("shapes") or {}
    free = [(spec, profile_of(spec, shapes)) for spec in facts.inputs if spec.free]
    for index, name in enumerate(("min", "opt", "max")):
        if free:
            values = [(spec.name, dims(profile[index])) for spec, profile in free]
            flags.append("--%sShapes=%s" % (name, named(values)))
    if options.get("timing_cache", True):
        cache = timing_path(setup.home, "trtexec-%s.cache" % tool.version)
        if cache is not None:
            flags.append("--timingCacheFile=" + cache)
    called = tool.call(flags)
    if not called.passed or not os.path.exists(path):
        if os.path.exists(path):
            os.remove(path)
        raise ended(called, "building the engine")
    device = _device(called.lines)
    kept = Manifest(
        "trtexec",
        ENGINE,
        facts.inputs,
        facts.outputs,
        {"tensorrt": tool.version},
        dict(device, builder="trtexec " + " ".join(_short(flag) for flag in flags), **told),
        {"shapes": shapes, "op_types": facts.op_types},
    )
    return kept.save(folder)


def load(setup: Setup, folder: str, options: Dict[str, Any]) -> Loaded:
    """An engine that trtexec has loaded once, as a check."""
    return TrtexecEngine(_tool(setup), manifest.read(folder), folder, options)


def _short(flag: str) -> str:
    """A flag without the folders of its files, and without a long list of layers."""
    name, sign, value = flag.partition("=")
    if name in ("--layerPrecisions", "--layerOutputTypes"):
        return "%s=(%d layers):fp32" % (name, len(value.split(",")))
    return name + sign + (os.path.basename(value) if "/" in value else value)


def _device(lines: Sequence[str]) -> Dict[str, str]:
    """What the log says of the GPU."""
    found = {}
    for key, text in (("gpu", "Selected Device: "), ("compute_capability", "Compute Capability: ")):
        for line in lines:
            if text in line:
                found[key] = line.split(text, 1)[1].strip()
    return found


def _float32(tool: Trtexec, options: Dict[str, Any]) -> Tuple[List[str], Dict[str, str]]:
    """Flags that hold nodes to float32 whatever else is allowed, and what is to be told of it."""
    nodes, flags, told = options.get("float32_nodes") or [], [], {}
    if not options.get("tf32", True):
        if tool.knows("noTF32"):
            flags.append("--noTF32")
        else:
            told["tf32"] = (
                "trtexec %s has no --noTF32: float32 may be computed in TF32; TensorRT's Python bindings "
                "(python3-libnvinfer) hold it" % tool.version
            )
    named = [name for name in nodes if tool.knows("layerPrecisions") and readable(name)]
    if nodes:
        told["float32_layers"] = "%d of %d nodes are held to float32" % (len(named), len(nodes))
    if len(named) < len(nodes):
        why = "cannot read their names" if tool.knows("layerPrecisions") else "has no --layerPrecisions"
        told["float32_layers"] += (
            "; trtexec %s %s, and the others may become FP16: TensorRT's Python bindings (python3-libnvinfer) "
            "hold them" % (tool.version, why)
        )
    if named:
        flags += ["--precisionConstraints=obey", "--layerPrecisions=" + _all_float32(named)]
        given = [name for name in options.get("float32_outputs") or [] if readable(name)]
        if given:
            flags.append("--layerOutputTypes=" + _all_float32(given))
    return flags, told


def _all_float32(names: Sequence[str]) -> str:
    return ",".join("%s:fp32" % name for name in names)


def _build_flags(tool: Trtexec, options: Dict[str, Any]) -> List[str]:
    flags = []
    if options.get("typing") == "strong":
        if tool.knows("stronglyTyped"):
            flags.append("--stronglyTyped")
        elif tool.numbers < [11]:
            raise Problem(
                "unavailable",
                "TensorRT %s has no strong typing" % tool.version,
                "compile for this version: it gets a weakly typed model",
            )
    elif tool.numbers >= [11]:
        raise Problem(
            "unavailable",
            "TensorRT %s has strong typing alone" % tool.version,
            "compile for this version: it gets a strongly typed model",
        )
    else:
        for precision in options.get("precisions") or []:
            name = _FLAGS.get(precision, "")
            if not name or not tool.knows(name):
                raise Problem("unavailable", "TensorRT %s does not know %s" % (tool.version, precision))
            flags.append("--" + name)
    if options.get("sparsity"):
        flags.append("--sparsity=enable")
    if options.get("workspace_bytes"):
        size = max(1, int(options["workspace_bytes"]) >> 20)
        flags.append(
            "--memPoolSize=workspace:%d" % size if tool.knows("memPoolSize") else "--workspace=%d" % size
        )
    if options.get("level") is not None and tool.knows("builderOptimizationLevel"):
        flags.append("--builderOptimizationLevel=%d" % int(options["level"]))
    if options.get("dla") is not None:
        flags.append("--useDLACore=%d" % int(options["dla"]))
        if options.get("gpu_fallback", True):
            flags.append("--allowGPUFallback")
    # Neither, in the oldest: then it runs a while after it has built.
    for name in ("skipInference", "buildOnly"):
        if tool.knows(name):
            return [*flags, "--" + name]
    return flags


class TrtexecEngine(Loaded):
    """See `Loaded` and the module.

    Args:
        tool: The program.
        built: What lies in the folder.
        folder: Of the built engine.
        options: {"warm_up": bool}.

    Raises:
        Problem: The plan is refused.
    """

    def __init__(self, tool: Trtexec, built: Manifest, folder: str, options: Dict[str, Any]) -> None:
        facts = dict(built.facts, timed=_TIMED, outputs="six significant digits", **built.versions)
        super().__init__(built.inputs, built.outputs, facts)
        self._tool = tool
        self._path = os.path.join(folder, built.engine)
        self._op_types = built.extra.get("op_types") or {}
        shapes = built.extra.get("shapes") or {}
        if options.get("warm_up", True):
            given = [
                Spec(spec.name, spec.dtype, shapes.get(spec.name, {}).get("opt") if spec.free else spec.shape)
                for spec in self.inputs
            ]
            self.run(given, {spec.name: memoryview(bytes(spec.nbytes)) for spec in given})

    def run(self, given: List[Spec], data: Dict[str, memoryview]) -> Tuple[List[Spec], List[bytes], float]:
        with tempfile.TemporaryDirectory(prefix="greencc-agent-") as work:
            outputs, times = os.path.join(work, "outputs.json"), os.path.join(work, "times.json")
            self._call(
                given,
                data,
                work,
                [
                    "--iterations=1",
                    "--duration=0",
                    "--warmUp=0",
                    "--exportOutput=" + outputs,
                    "--exportTimes=" + times,
                ],
            )
            specs, raw = self._outputs(read_json(outputs, "running the engine"))
            return specs, raw, read_times(times)[-1].latency

    def drive(self, given: List[Spec], feeds: FeedFile, count: int, plan: driving.Plan) -> Dict[str, Any]:
        if plan.due is not None:
            raise Problem(
                "unavailable",
                "trtexec alone cannot be driven at random arrivals",
                "install TensorRT's Python bindings (python3-libnvinfer), or measure at a steady rate",
            )
        started = time.monotonic()
        with tempfile.TemporaryDirectory(prefix="greencc-agent-") as work:
            path = os.path.join(work, "times.json")
            pause = self._pause(given, feeds, plan)
            options = ["--warmUp=%d" % _WARM_UP_MS, "--exportTimes=" + path, *self._length(plan, pause)]
            feed = feeds[plan.first % count]
            called = self._call(given, views(given, feed), work, options)
            # Its releases differ in whether queries of the warm-up are in the file.
            times = [each for each in read_times(path) if each.compute >= _WARM_UP_MS]
        if not times:
            raise Problem("internal", "driving: trtexec timed no query")
        begin = called.moments.get(_STARTS, started) + times[0].start / 1e3
        recorded = driving.Recorded(begin)
        for each in times:
            recorded.services.append(each.latency)
            recorded.latencies.append(each.latency)
        recorded.end = begin + (times[-1].end - times[0].start) / 1e3
        facts = {"timed": _TIMED, "feeds": "1 of %d" % count, "digits": "times have six significant digits"}
        if pause:
            facts["pacing"] = "a pause of %g ms after each query (--idleTime)" % pause
        return dict(recorded.save(plan.into), facts=facts)

    def profile(
        self, given: List[Spec], feeds: FeedFile, count: int, runs: int, into: str
    ) -> List[Dict[str, Any]]:
        with tempfile.TemporaryDirectory(prefix="greencc-agent-") as work:
            path = os.path.join(work, "profile.json")
            options = ["--iterations=%d" % runs, "--duration=0", "--dumpProfile", "--exportProfile=" + path]
            self._call(given, views(given, feeds[0]), work, options)
            layers = read_profile(path)
        return [
            {"name": name, "op_type": kind_of(name, self._op_types), "us": milliseconds * 1e3}
            for name, milliseconds in layers
        ]

    def _pause(self, given: List[Spec], feeds: FeedFile, plan: driving.Plan) -> float:
        """Milliseconds between queries that give the rate; 0: none."""
        if plan.rate is None:
            return 0.0
        _, _, service = self.run(given, views(given, feeds[0]))
        pause = max(0.0, 1e3 / plan.rate - service)
        # It reads whole milliseconds before 10.
        return pause if self._tool.numbers >= [10] else float(round(pause))

    def _length(self, plan: driving.Plan, pause: float) -> List[str]:
        if plan.runs is not None:
            options = ["--iterations=%d" % plan.runs, "--duration=0"]
        else:
            seconds = plan.seconds or 0.0
            whole = self._tool.numbers < [10]
            options = [
                "--iterations=1",
                "--duration=%s" % (max(1, round(seconds)) if whole else "%g" % seconds),
            ]
        return options + (["--idleTime=%g" % pause] if pause else [])

    def _call(self, given: List[Spec], data: Dict[str, memoryview], work: str, options: Sequence[str]) -> Any:
        files = []
        for number, spec in enumerate(given):
            path = os.path.join(work, "input%d.bin" % number)
            with open(path, "wb") as file:
                file.write(converted(data[spec.name], spec.dtype, self._dtype(spec)))
            files.append((spec.name, path))
        flags = ["--loadEngine=" + self._path, "--loadInputs=" + named(files), "--exposeDMA"]
        shapes = [(spec.name, dims(spec.shape)) for spec, own in zip(given, self.inputs) if own.free]
        if shapes:
            flags.append("--shapes=" + named(shapes))
        called = self._tool.call(flags + list(options), (_STARTS,))
        if not called.passed:
            raise ended(called, "running the engine", "input")
        return called

    def _dtype(self, spec: Spec) -> str:
        """What the engine takes: before 10, whole numbers have 32 bits."""
        return "int32" if spec.dtype == "int64" and self._tool.numbers < [10] else spec.dtype

    def _outputs(self, found: List[Any]) -> Tuple[List[Spec], List[bytes]]:
        by_name = {row.get("name"): row for row in found}
        specs, raw = [], []
        for spec in self.outputs:
            row = by_name.get(spec.name)
            if row is None:
                raise Problem("internal", "trtexec gave no output %r" % spec.name)
            shape = [int(size) for size in str(row["dimensions"]).split("x") if size] if spec.shape else []
            values = row["values"]
            if product(shape) != len(values):
                raise Problem("internal", "output %r has %d values for %s" % (spec.name, len(values), shape))
            specs.append(Spec(spec.name, spec.dtype, shape))
            raw.append(make_pack(spec.dtype)(values))
        return specs, raw
