"""TensorRT by its Python bindings, in a process of its own: probing and building.

Versions 8.2 to 11 differ in names: what is there decides, and the version only where both are.
"""

import os
import re
import sys
from typing import Any, Dict, List, Optional

from greencc.agent.backends import manifest
from greencc.agent.backends.cuda import Cuda
from greencc.agent.backends.faults import failure
from greencc.agent.backends.onnx_io import OnnxFacts, read_facts
from greencc.agent.backends.tensors import Spec
from greencc.agent.backends.worker import Loaded, Setup
from greencc.agent.problem import Problem

ENGINE = "engine.plan"
_PRECISIONS = {"fp16": "FP16", "int8": "INT8", "bf16": "BF16", "fp8": "FP8"}


def version_of(trt: Any) -> List[int]:
    """Its numbers, such as [10, 3, 0]."""
    return [int(each) for each in re.findall(r"\d+", trt.__version__)[:3]]


def make_logger(trt: Any) -> Any:
    """A logger that writes to standard error, one line each, and keeps what it wrote."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.lines: List[str] = []

        def log(self, severity: Any, message: str) -> None:
            order = (
                trt.ILogger.INTERNAL_ERROR,
                trt.ILogger.ERROR,
                trt.ILogger.WARNING,
                trt.ILogger.INFO,
            )
            letter = next((name for name, each in zip("FEWI", order) if severity == each), "V")
            if letter == "V":
                return
            line = "[%s] [TRT] %s" % (letter, message)
            self.lines = [*self.lines[-200:], line]
            print(line, file=sys.stderr, flush=True)  # noqa: T201 - the log of this process

    return Logger()


def probe(setup: Setup) -> Dict[str, str]:
    """Versions and the GPU's compute capability.

    Raises:
        Problem: ``unavailable``: the bindings or the GPU are missing.
    """
    trt = _import()
    cuda = Cuda(setup.root)
    return {
        "tensorrt": trt.__version__,
        "implementation": "bindings",
        "compute_capability": cuda.compute_capability,
        "cuda_runtime": cuda.runtime,
    }


def _import() -> Any:
    try:
        import tensorrt
    except ImportError as error:
        raise Problem("unavailable", "TensorRT's Python bindings cannot be imported: %s" % error) from error
    return tensorrt


def build(setup: Setup, main: str, folder: str, options: Dict[str, Any]) -> Dict[str, Any]:
    """Build a plan; see `greencc.agent.backends`.

    Raises:
        Problem: The model is refused, or the builder fails.
    """
    facts = read_facts(main)
    trt = _import()
    found = probe(setup)
    logger = make_logger(trt)
    trt.init_libnvinfer_plugins(logger, "")
    builder = trt.Builder(logger)
    network = builder.create_network(_network_flags(trt, options))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(main):
        raise failure("the model", _parser_lines(parser) + logger.lines, "input")
    config = builder.create_builder_config()
    _configure(trt, builder, config, options)
    held = _keep_float32(trt, network, config, options.get("float32_nodes") or [])
    _add_profile(builder, config, network, facts, options.get("shapes") or {})
    cache = _TimingCache(setup.home, found) if options.get("timing_cache", True) else None
    if cache is not None:
        cache.lend(config)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise failure("building the engine", logger.lines)
    if cache is not None:
        cache.keep(config)
    manifest.write_file(os.path.join(folder, ENGINE), bytes(memoryview(plan)))
    kept = manifest.Manifest(
        "bindings",
        ENGINE,
        facts.inputs,
        facts.outputs,
        {"tensorrt": found["tensorrt"], "cuda_runtime": found["cuda_runtime"]},
        dict(held, compute_capability=found["compute_capability"], builder="TensorRT's Python bindings"),
        {"shapes": options.get("shapes") or {}, "op_types": facts.op_types},
    )
    return kept.save(folder)


def load(setup: Setup, folder: str, options: Dict[str, Any]) -> Loaded:
    """A loaded and warmed-up engine."""
    from greencc.agent.backends.bindings_engine import BindingsEngine

    trt = _import()
    return BindingsEngine(trt, Cuda(setup.root), make_logger(trt), manifest.read(folder), folder, options)


def _network_flags(trt: Any, options: Dict[str, Any]) -> int:
    """Strong typing is a flag since 9, and the only way from 11 on; an explicit batch is the only way from 10 on."""
    version, flags = version_of(trt), 0
    names = trt.NetworkDefinitionCreationFlag
    if version < [10]:
        flags |= 1 << int(names.EXPLICIT_BATCH)
    if options.get("typing") == "strong":
        if hasattr(names, "STRONGLY_TYPED"):
            flags |= 1 << int(names.STRONGLY_TYPED)
        elif version < [11]:
            raise Problem(
                "unavailable",
                "TensorRT %s has no strong typing" % trt.__version__,
                "compile for this version: it gets a weakly typed model",
            )
    elif version >= [11]:
        raise Problem(
            "unavailable",
            "TensorRT %s has strong typing alone" % trt.__version__,
            "compile for this version: it gets a strongly typed model",
        )
    return flags


def _configure(trt: Any, builder: Any, config: Any, options: Dict[str, Any]) -> None:
    flags = trt.BuilderFlag
    if options.get("typing") != "strong":
        for precision in options.get("precisions") or []:
            name = _PRECISIONS.get(precision, "")
            if not hasattr(flags, name):
                raise Problem("unavailable", "TensorRT %s does not know %s" % (trt.__version__, precision))
            config.set_flag(getattr(flags, name))
    if not options.get("tf32", True):
        config.clear_flag(flags.TF32)
    if options.get("sparsity"):
        config.set_flag(flags.SPARSE_WEIGHTS)
    if options.get("workspace_bytes"):
        if hasattr(config, "set_memory_pool_limit"):
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, int(options["workspace_bytes"]))
        else:
            config.max_workspace_size = int(options["workspace_bytes"])
    if options.get("level") is not None and hasattr(config, "builder_optimization_level"):
        config.builder_optimization_level = int(options["level"])
    core = options.get("dla")
    if core is not None:
        if not 0 <= int(core) < builder.num_DLA_cores:
            raise Problem(
                "unavailable",
                "DLA core %s was asked for, and TensorRT builds for %d here" % (core, builder.num_DLA_cores),
                "build without the DLA",
            )
        config.default_device_type = trt.DeviceType.DLA
        config.DLA_core = int(core)
        if options.get("gpu_fallback", True):
            config.set_flag(flags.GPU_FALLBACK)


def _keep_float32(trt: Any, network: Any, config: Any, nodes: List[str]) -> Dict[str, str]:
    """Hold layers to float32 whatever the flags allow, as the shipped ``build.py`` does; what is to be told of it.

    A layer is called as the node that it was made of; a node that was folded into constants has none.
    """
    if not nodes:
        return {}
    wanted, held = set(nodes), 0
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        if layer.name not in wanted:
            continue
        held += 1
        layer.precision = trt.float32
        for output in range(layer.num_outputs):
            if layer.get_output(output).dtype == trt.float32:
                layer.set_output_type(output, trt.float32)
    config.set_flag(trt.BuilderFlag.OBEY_PRECISION_CONSTRAINTS)
    return {"float32_layers": "%d of %d nodes are held to float32" % (held, len(wanted))}


def _add_profile(builder: Any, config: Any, network: Any, facts: OnnxFacts, shapes: Dict[str, Any]) -> None:
    free: List[Spec] = []
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        if tensor.is_shape_tensor:
            raise Problem("input", "input %r holds a shape, which is not supported" % tensor.name)
        shape = tuple(tensor.shape)
        if any(size < 0 for size in shape):
            free.append(Spec(tensor.name, "float32", shape))
    if not free:
        return
    profile = builder.create_optimization_profile()
    for spec in free:
        low, usual, high = profile_of(spec, shapes)
        profile.set_shape(spec.name, low, usual, high)
    config.add_optimization_profile(profile)


def profile_of(spec: Spec, shapes: Dict[str, Any]) -> List[List[int]]:
    """Least, usual and greatest shape of an input with free dimensions.

    Raises:
        Problem: ``input``: there is none, or it does not fit.
    """
    given = shapes.get(spec.name)
    if given is None:
        raise Problem(
            "input",
            "input %r has free dimensions, and no shape profile was given" % spec.name,
            "give the shapes (the least, the usual and the greatest), or fix them in the model",
        )
    found: List[List[int]] = []
    for name in ("min", "opt", "max"):
        shape = [int(size) for size in given.get(name) or []]
        fits = len(shape) == len(spec.shape) and all(
            size > 0 and want in (-1, size) for size, want in zip(shape, spec.shape)
        )
        if not fits:
            raise Problem("input", "the shape profile of %r: %s %s does not fit" % (spec.name, name, shape))
        found.append(shape)
    return found


def _parser_lines(parser: Any) -> List[str]:
    lines = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        lines.append("[E] In node %d (%s): %s" % (error.node(), error.func(), error.desc()))
    return lines


class _TimingCache:
    """Times of kernels, kept in the agent's folder for each version and GPU: the next build is quicker, and alike."""

    def __init__(self, home: str, found: Dict[str, str]) -> None:
        name = "trt-%s-sm%s.cache" % (found["tensorrt"], found["compute_capability"].replace(".", ""))
        self._path = timing_path(home, name)

    def lend(self, config: Any) -> None:
        """Give it to a builder; one that does not fit is left aside."""
        cache = config.create_timing_cache(_contents(self._path))
        if cache is None or not config.set_timing_cache(cache, False):
            config.set_timing_cache(config.create_timing_cache(b""), False)

    def keep(self, config: Any) -> None:
        """Store what the builder has added."""
        cache = config.get_timing_cache()
        if self._path and cache is not None:
            manifest.write_file(self._path, bytes(memoryview(cache.serialize())))


def timing_path(home: str, name: str) -> Optional[str]:
    """Of a timing cache; None without a folder of the agent's own."""
    if not home:
        return None
    folder = os.path.join(home, "timing")
    os.makedirs(folder, exist_ok=True)
    return os.path.join(folder, name)


def _contents(path: Optional[str]) -> bytes:
    if path is None or not os.path.exists(path):
        return b""
    with open(path, "rb") as file:
        return file.read()
