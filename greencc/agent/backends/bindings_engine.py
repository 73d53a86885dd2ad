"""A TensorRT engine that is run by its Python bindings, with copies of inputs and outputs as a deployment has them."""

import ctypes
import os
import time
from typing import Any, Dict, List, Tuple

from greencc.agent.backends.cuda import Cuda
from greencc.agent.backends.driving import FeedFile
from greencc.agent.backends.faults import failure
from greencc.agent.backends.manifest import Manifest
from greencc.agent.backends.tensors import ITEM_BYTES, Spec, converted, product, views
from greencc.agent.backends.worker import Loaded
from greencc.agent.problem import Problem

# TensorRT's names of types (8.2 has the first five).
_DTYPES = {
    "FLOAT": "float32",
    "HALF": "float16",
    "INT8": "int8",
    "INT32": "int32",
    "BOOL": "bool",
    "UINT8": "uint8",
    "BF16": "bfloat16",
    "INT64": "int64",
    "FP8": "float8_e4m3fn",
}
_TIMED = "host to device, compute, device to host, then waiting for the stream (asleep, not spinning)"


class _Buffer:
    """Memory of one tensor on both sides, which grows and is used again."""

    def __init__(self, cuda: Cuda) -> None:
        self._cuda = cuda
        self.device = self.host = self.room = self.size = 0

    def fit(self, size: int) -> bool:
        """Make room; whether the addresses have changed."""
        self.size = size
        if self.room >= size and self.room:
            return False
        self.free()
        self.device = self._cuda.allocate(size)
        self.host = self._cuda.allocate_host(size)
        self.room = max(1, size)
        return True

    def free(self) -> None:
        """Give it back."""
        if self.room:
            self._cuda.free(self.device)
            self._cuda.free_host(self.host)
        self.device = self.host = self.room = 0


class BindingsEngine(Loaded):
    """See `Loaded`.

    Args:
        trt: The package ``tensorrt``.
        cuda: The runtime library.
        logger: Of `bindings_child.make_logger`.
        built: What lies in the folder.
        folder: Of the built engine.
        options: {"warm_up": bool}.

    Raises:
        Problem: The plan is refused.
    """

    def __init__(
        self, trt: Any, cuda: Cuda, logger: Any, built: Manifest, folder: str, options: Dict[str, Any]
    ) -> None:
        super().__init__(built.inputs, built.outputs, dict(built.facts, timed=_TIMED, **built.versions))
        self._trt, self._cuda, self._logger = trt, cuda, logger
        self._op_types = built.extra.get("op_types") or {}
        trt.init_libnvinfer_plugins(logger, "")
        with open(os.path.join(folder, built.engine), "rb") as file:
            plan = file.read()
        self._runtime = trt.Runtime(logger)
        self._engine = self._runtime.deserialize_cuda_engine(plan)
        if self._engine is None:
            raise failure("loading the engine", logger.lines, "input")
        self._context = self._engine.create_execution_context()
        if self._context is None:
            raise failure("loading the engine", logger.lines, "memory")
        self._stream = cuda.stream()
        self._names = _Names(trt, self._engine)
        self._dtypes = {spec.name: self._names.dtype(spec.name) for spec in self.inputs + self.outputs}
        self._buffers = {name: _Buffer(cuda) for name in self._dtypes}
        self._shapes: object = None
        self._results: List[Spec] = []
        if options.get("warm_up", True):
            self._warm_up(built.extra.get("shapes") or {})

    def close(self) -> None:
        for buffer in self._buffers.values():
            buffer.free()

    def run(self, given: List[Spec], data: Dict[str, memoryview]) -> Tuple[List[Spec], List[bytes], float]:
        self._prepare(given)
        raw = self._raw(given, data)
        start = time.monotonic()
        self._execute(given, raw)
        milliseconds = (time.monotonic() - start) * 1e3
        outputs = []
        for spec in self._results:
            buffer = self._buffers[spec.name]
            found = memoryview(ctypes.string_at(buffer.host, buffer.size))
            outputs.append(bytes(converted(found, self._dtypes[spec.name], spec.dtype)))
        return self._results, outputs, milliseconds

    def drive(self, given: List[Spec], feeds: FeedFile, count: int, plan: Any) -> Dict[str, Any]:
        from greencc.agent.backends import driving

        self._prepare(given)
        ready = [self._raw(given, views(given, feeds[index])) for index in range(count)]
        recorded = driving.drive(lambda index: self._execute(given, ready[index]), count, plan)
        return dict(recorded.save(plan.into), facts={"timed": _TIMED})

    def profile(
        self, given: List[Spec], feeds: FeedFile, count: int, runs: int, into: str
    ) -> List[Dict[str, Any]]:
        """By a context of its own: one that was profiled waits for each run from then on."""
        totals: Dict[str, float] = {}
        context, kept = self._engine.create_execution_context(), self._context
        if context is None:
            raise failure("profiling", self._logger.lines, "memory")
        context.profiler = _make_profiler(self._trt, totals)
        self._context, self._shapes = context, None
        try:
            self._prepare(given)
            for index in range(runs):
                self._execute(given, self._raw(given, views(given, feeds[index % count])))
        finally:
            self._context, self._shapes = kept, None
        return [
            {"name": name, "op_type": self._kind(name), "us": milliseconds * 1e3 / runs}
            for name, milliseconds in totals.items()
        ]

    def _kind(self, layer: str) -> str:
        return kind_of(layer, self._op_types)

    def _warm_up(self, shapes: Dict[str, Any]) -> None:
        given = []
        for spec in self.inputs:
            shape = shapes.get(spec.name, {}).get("opt") if spec.free else spec.shape
            if shape is None:
                return
            given.append(Spec(spec.name, spec.dtype, shape))
        self.run(given, {spec.name: memoryview(bytes(spec.nbytes)) for spec in given})

    def _prepare(self, given: List[Spec]) -> None:
        """Shapes and memory for inputs; nothing where they are those of the run before."""
        shapes = [spec.shape for spec in given]
        if shapes == self._shapes:
            return
        self._shapes = None
        for spec in given:
            if not self._names.set_shape(self._context, spec.name, spec.shape):
                raise Problem(
                    "input",
                    "input %r: the engine was not built for the shape %s" % (spec.name, list(spec.shape)),
                    "build it with a shape profile that covers the shape",
                )
        results = []
        for spec in self.outputs:
            shape = self._names.shape(self._context, spec.name)
            if any(size < 0 for size in shape):
                raise Problem("unavailable", "the shape of output %r depends on values" % spec.name)
            results.append(Spec(spec.name, spec.dtype, shape))
        for spec in given + results:
            self._buffers[spec.name].fit(product(spec.shape) * ITEM_BYTES[self._dtypes[spec.name]])
            self._names.set_address(self._context, spec.name, self._buffers[spec.name].device)
        self._results, self._shapes = results, shapes

    def _raw(self, given: List[Spec], data: Dict[str, memoryview]) -> List[bytes]:
        """Inputs as TensorRT takes them, in order."""
        return [bytes(converted(data[spec.name], spec.dtype, self._dtypes[spec.name])) for spec in given]

    def _execute(self, given: List[Spec], raw: List[bytes]) -> None:
        cuda, stream = self._cuda, self._stream
        for spec, each in zip(given, raw):
            buffer = self._buffers[spec.name]
            ctypes.memmove(buffer.host, each, buffer.size)
            cuda.to_device(buffer.device, buffer.host, buffer.size, stream)
        if not self._names.enqueue(self._context, stream):
            raise failure("running the engine", self._logger.lines)
        for spec in self._results:
            buffer = self._buffers[spec.name]
            cuda.to_host(buffer.host, buffer.device, buffer.size, stream)
        cuda.wait(stream)


def kind_of(layer: str, op_types: Dict[str, str]) -> str:
    """Types of the ONNX nodes that a layer is made of: TensorRT joins their names with ``+``."""
    found: List[str] = []
    for name in layer.replace("{", " ").replace("}", " ").split(" + "):
        op_type = op_types.get(name.strip())
        if op_type is not None and op_type not in found:
            found.append(op_type)
    return "+".join(found)


def _make_profiler(trt: Any, totals: Dict[str, float]) -> Any:
    class Profiler(trt.IProfiler):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            totals[layer_name] = totals.get(layer_name, 0.0) + ms

    return Profiler()


class _Names:
    """Tensors by name: natively since 8.5, and by the numbers of bindings before."""

    def __init__(self, trt: Any, engine: Any) -> None:
        self._engine = engine
        self._named = hasattr(engine, "num_io_tensors")
        self._of = {value: name for name, value in _types(trt)}
        self._index: Dict[str, int] = {}
        self._addresses: List[int] = []
        if not self._named:
            self._index = {engine.get_binding_name(i): i for i in range(engine.num_bindings)}
            self._addresses = [0] * engine.num_bindings

    def dtype(self, name: str) -> str:
        """Numpy's name of a tensor's type."""
        if self._named:
            found = self._engine.get_tensor_dtype(name)
        else:
            found = self._engine.get_binding_dtype(self._number(name))
        if found not in self._of:
            raise Problem("unavailable", "%r has the type %s, which is not known" % (name, found))
        return self._of[found]

    def set_shape(self, context: Any, name: str, shape: Tuple[int, ...]) -> bool:
        if self._named:
            return bool(context.set_input_shape(name, shape))
        return bool(context.set_binding_shape(self._number(name), shape))

    def shape(self, context: Any, name: str) -> Tuple[int, ...]:
        if self._named:
            return tuple(context.get_tensor_shape(name))
        return tuple(context.get_binding_shape(self._number(name)))

    def set_address(self, context: Any, name: str, address: int) -> None:
        if self._named:
            context.set_tensor_address(name, address)
        else:
            self._addresses[self._number(name)] = address

    def enqueue(self, context: Any, stream: int) -> bool:
        if self._named:
            return bool(context.execute_async_v3(stream))
        return bool(context.execute_async_v2(self._addresses, stream))

    def _number(self, name: str) -> int:
        if name not in self._index:
            raise Problem("input", "the engine has no tensor %r" % name)
        return self._index[name]


def _types(trt: Any) -> List[Tuple[str, Any]]:
    known = trt.DataType
    return [(dtype, getattr(known, name)) for name, dtype in _DTYPES.items() if hasattr(known, name)]
