"""Engines on OpenVINO's CPU plugin.

Properties, and why:

* `INFERENCE_PRECISION_HINT=f32`: by default the plugin computes in BF16 where the CPU has it, and nobody asked for that
  error.
* `DYNAMIC_QUANTIZATION_GROUP_SIZE=0`: by default the inputs of products with compressed weights are rounded to 8 bits,
  silently.
* `NUM_STREAMS=1`, `PERFORMANCE_HINT=LATENCY`: one request at a time with all threads, as ONNX Runtime runs it.
* `ENABLE_CPU_PINNING=NO`: two engines measured in turns would otherwise be pinned onto each other's cores.
* No `CACHE_DIR`: a cached blob holds compiled code, which no hash of the model covers.

The model is read by OpenVINO's ONNX front end and no other: `Core.read_model` would hand a file that is no ONNX to
every parser there is.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from greencc.core.checked_engine import CheckedEngine
from greencc.core.data import Array, Feeds, TensorSpec
from greencc.core.errors import GreenccError, InputError
from greencc.targets._openvino_errors import translate

if TYPE_CHECKING:
    import openvino

DEVICE = "CPU"

_DTYPES: dict[str, np.dtype[Any]] = {
    "f32": np.dtype(np.float32),
    "f64": np.dtype(np.float64),
    "f16": np.dtype(np.float16),
    "i8": np.dtype(np.int8),
    "i16": np.dtype(np.int16),
    "i32": np.dtype(np.int32),
    "i64": np.dtype(np.int64),
    "u8": np.dtype(np.uint8),
    "u16": np.dtype(np.uint16),
    "u32": np.dtype(np.uint32),
    "u64": np.dtype(np.uint64),
    "boolean": np.dtype(np.bool_),
}


@cache
def core() -> openvino.Core:
    """The process's one `Core`: it holds the plugin and its thread pools."""
    import openvino

    return openvino.Core()


def properties(threads: int, *, profile: bool = False) -> dict[str, str]:
    """What a model is compiled with (see the module's docstring for the reasons)."""
    wanted = {
        "INFERENCE_PRECISION_HINT": "f32",
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": "0",
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": str(threads),
        "ENABLE_CPU_PINNING": "NO",
    }
    return wanted | ({"PERF_COUNT": "YES"} if profile else {})


@dataclass(frozen=True)
class LoadedModel:
    """A model OpenVINO has read.

    Attributes:
        name: How messages call it.
        file: Where it was read from.
        model: The graph of the runtime.
        inputs: Names, types and shapes in the model's order; dynamic dimensions have lost their names.
        outputs: Likewise.
        used: Names of the inputs that the runtime's graph has, in its order.
    """

    name: str
    file: Path
    model: openvino.Model
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    used: tuple[str, ...]

    def compile(self, settings: Mapping[str, str]) -> openvino.CompiledModel:
        """Make kernels for this CPU.

        Raises:
            InputError: The plugin refuses the model.
        """
        try:
            return core().compile_model(self.model, DEVICE, dict(settings))
        except Exception as error:
            raise translated(error, f"loading {self.name}", self.file) from error


def read_model(path: Path) -> LoadedModel:
    """Read an ONNX file.

    Raises:
        InputError: It is no ONNX model, an operator is not supported, or a type of an input or output is not.
    """
    from openvino.frontend import FrontEndManager

    name = path.name
    try:
        front_end = FrontEndManager().load_by_framework("onnx")
        source = front_end.load(str(path))
        inputs = [
            (place.get_names()[0], source.get_element_type(place), source.get_partial_shape(place))
            for place in source.get_inputs()
        ]
        names = [place.get_names()[0] for place in source.get_outputs()]
        model = front_end.convert(source)
        outputs = [
            (output, port.get_element_type(), port.partial_shape)
            for output in names
            for port in (model.output(output),)
        ]
        # Some versions drop inputs that nothing reads.
        used = [next(name for name, *_ in inputs if name in port.get_names()) for port in model.inputs]
    except Exception as error:
        raise translated(error, f"loading {name}", path) from error
    if not names:
        # What the parser makes of an empty file.
        raise InputError(
            f"loading {name}: it holds no model", hint="the file is not an ONNX model, or is truncated"
        )
    return LoadedModel(
        name,
        path,
        model,
        tuple(_spec(*found, role="input") for found in inputs),
        tuple(_spec(*found, role="output") for found in outputs),
        tuple(used),
    )


class OpenVinoEngine(CheckedEngine):
    """A model compiled by OpenVINO; implements `greencc.core.engine.Engine`.

    Args:
        path: An ONNX file.
        settings: From `properties`.

    Raises:
        InputError: OpenVINO cannot load the model.
    """

    def __init__(self, path: Path, settings: Mapping[str, str]) -> None:
        loaded = read_model(path)
        compiled = loaded.compile(settings)
        super().__init__(loaded.name, loaded.inputs, loaded.outputs)
        self._request: openvino.InferRequest | None = compiled.create_infer_request()
        self._used = loaded.used
        self._positions = {spec.name: index for index, spec in enumerate(loaded.outputs)}
        # A request runs once at a time; callers in several threads take turns.
        self._turn = threading.Lock()

    def close(self) -> None:
        """Free the compiled model."""
        self._request = None

    def _run(self, feeds: Feeds, outputs: list[str]) -> dict[str, Array]:
        with self._turn:
            request = self._request
            if request is None:
                raise RuntimeError(f"the engine of {self._name} was closed")
            try:
                infer(request, [feeds[name] for name in self._used])
                return {
                    name: np.array(request.get_output_tensor(self._positions[name]).data) for name in outputs
                }
            except Exception as error:
                raise translated(error, f"running {self._name}", None) from error


def infer(request: openvino.InferRequest, values: Sequence[Array]) -> None:
    """Run once; the results lie in the request's output tensors.

    Inputs go by position, as the runtime may know a tensor by several names, and are not copied. They come in a
    dictionary because the elements of a list are looked at one by one first: 30 us a run against 85 for an MLP.
    """
    request.infer(dict(enumerate(values)), share_inputs=True, share_outputs=True)


def translated(error: Exception, doing: str, file: Path | None) -> GreenccError:
    """The user's error. OpenVINO raises `RuntimeError`, and exceptions of its front ends that share no base class."""
    if isinstance(error, GreenccError):
        return error
    if type(error).__module__.startswith("openvino") or isinstance(
        error, RuntimeError | ValueError | TypeError | MemoryError
    ):
        return translate(error, doing, file)
    raise error


def _spec(name: str, element: openvino.Type, dims: openvino.PartialShape, *, role: str) -> TensorSpec:
    kind = element.get_type_name()
    if kind not in _DTYPES:
        raise InputError(
            f"{role} {name!r} has type {kind}, which the openvino target does not take",
            hint="compile for cpu, or export the model with float32 inputs and outputs",
        )
    shape = (
        None if dims.rank.is_dynamic else tuple(dim.get_length() if dim.is_static else None for dim in dims)
    )
    return TensorSpec(name, _DTYPES[kind], shape)
