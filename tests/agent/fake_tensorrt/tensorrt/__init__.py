"""The parts of TensorRT's Python API that the agent uses, as 8.2, 8.5, 10 and 11 have them, with ONNX Runtime inside.

FAKE_TRT_VERSION says which; FAKE_TRT_FAULT what goes wrong (segfault, kill, hang, memory, noise), and FAKE_TRT_WHERE
where (import, build, load, run); FAKE_TRT_DLA the number of accelerators. Names that a version lacks are absent, as
they are there.
"""

import ctypes
import json
import os
import signal
import struct
import time

__version__ = os.environ.get("FAKE_TRT_VERSION", "10.3.0")
_NUMBERS = tuple(int(each) for each in __version__.split(".")[:3])
_AWAY = 1 << 60
_SM = int(os.environ.get("FAKE_CUDA_SM", "87"))
MAGIC = b"FAKEPLAN"


def _go_wrong(where):
    fault = os.environ.get("FAKE_TRT_FAULT")
    if fault is None or os.environ.get("FAKE_TRT_WHERE", "build") != where:
        return None
    if fault == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    if fault == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if fault == "hang":
        time.sleep(3600)
    if fault == "noise":
        os.write(1, b"{this is no message}\n" * 3)
        return None
    return fault


_go_wrong("import")


class _Named:
    def __init__(self, name, value):
        self.name, self._value = name, value

    def __int__(self):
        return self._value

    def __repr__(self):
        return self.name


def _enum(title, *names):
    return type(title, (), {name: _Named(title + "." + name, number) for number, name in enumerate(names)})


class ILogger:
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = (_Named(n, i) for i, n in enumerate("FEWIV"))

    def __init__(self):
        self.ready = True


class IProfiler:
    def __init__(self):
        self.ready = True


_types = ["FLOAT", "HALF", "INT8", "INT32", "BOOL"]
if _NUMBERS >= (8, 5):
    _types += ["UINT8"]
if _NUMBERS >= (8, 6):
    _types += ["FP8"]
if _NUMBERS >= (9,):
    _types += ["BF16", "INT64"]
DataType = _enum("DataType", *_types)
DeviceType = _enum("DeviceType", "GPU", "DLA")
float32 = DataType.FLOAT
_flags = ["TF32", "SPARSE_WEIGHTS", "GPU_FALLBACK"]
if _NUMBERS < (11,):
    _flags += (
        ["FP16", "INT8", "OBEY_PRECISION_CONSTRAINTS"]
        + (["FP8"] if _NUMBERS >= (8, 6) else [])
        + (["BF16"] if _NUMBERS >= (9,) else [])
    )
BuilderFlag = _enum("BuilderFlag", *_flags)
_creation = ["EXPLICIT_BATCH"]
if _NUMBERS >= (11,):
    _creation = ["PREFER_AOT_PYTHON_PLUGINS"]
elif _NUMBERS >= (9,):
    _creation = ["EXPLICIT_BATCH", "STRONGLY_TYPED"]
NetworkDefinitionCreationFlag = _enum("NetworkDefinitionCreationFlag", *_creation)
if _NUMBERS >= (8, 4):
    MemoryPoolType = _enum("MemoryPoolType", "WORKSPACE")
if _NUMBERS >= (8, 5):
    TensorIOMode = _enum("TensorIOMode", "NONE", "INPUT", "OUTPUT")

_ONNX = {1: "FLOAT", 2: "UINT8", 3: "INT8", 6: "INT32", 7: "INT64", 9: "BOOL", 10: "HALF"}
_CTYPES = {
    "FLOAT": "float32",
    "UINT8": "uint8",
    "INT8": "int8",
    "INT32": "int32",
    "INT64": "int64",
    "BOOL": "bool",
    "HALF": "float16",
}


def init_libnvinfer_plugins(logger, namespace):
    assert logger.ready
    return True


def _values(model, outputs):
    valued = {each.name for each in model.graph.initializer}
    return list(model.graph.output) if outputs else [v for v in model.graph.input if v.name not in valued]


def _shape(value):
    return tuple(each.dim_value if each.dim_value > 0 else -1 for each in value.type.tensor_type.shape.dim)


class _Tensor:
    def __init__(self, value):
        self.name, self.shape, self.is_shape_tensor = value.name, _shape(value), False


class _Layer:
    """Of a node, with its name; all it gives is float."""

    def __init__(self, node):
        self.name, self.num_outputs, self.precision, self.types = node.name, len(node.output), None, {}

    def get_output(self, index):
        return type("Output", (), {"dtype": DataType.FLOAT})()

    def set_output_type(self, index, dtype):
        self.types[index] = dtype


class _Network:
    def __init__(self, flags):
        self.flags, self.model, self._layers = flags, None, None

    @property
    def layers(self):
        if self._layers is None:
            self._layers = [_Layer(node) for node in self.model.graph.node]
        return self._layers

    @property
    def num_layers(self):
        return len(self.layers)

    def get_layer(self, index):
        return self.layers[index]

    @property
    def num_inputs(self):
        return len(_values(self.model, False))

    def get_input(self, index):
        return _Tensor(_values(self.model, False)[index])


class _Error:
    def __init__(self, node, function, text):
        self._told = (node, function, text)

    def node(self):
        return self._told[0]

    def func(self):
        return self._told[1]

    def desc(self):
        return self._told[2]


class OnnxParser:
    def __init__(self, network, logger):
        assert logger.ready
        self._network, self._logger, self._errors = network, logger, []

    num_errors = property(lambda self: len(self._errors))

    def get_error(self, index):
        return self._errors[index]

    def parse_from_file(self, path):
        import onnx

        if _NUMBERS < (10,) and not self._network.flags & 1:
            self._errors.append(
                _Error(-1, "parse", "This version of the ONNX parser only supports explicit batch")
            )
            return False
        self._network.model = onnx.load(path)
        version = self._network.model.opset_import[0].version
        for number, node in enumerate(self._network.model.graph.node):
            if not onnx.defs.has(node.op_type, version):
                self._logger.log(
                    ILogger.INFO,
                    "No importer registered for op: %s. Attempting to import as plugin." % node.op_type,
                )
                self._errors.append(
                    _Error(
                        number,
                        "importFallbackPluginImporter",
                        "Assertion failed: creator && "
                        '"Plugin not found, are the plugin name, version, and namespace correct?"',
                    )
                )
                return False
        return True


class _Cache:
    def __init__(self, data):
        self.data = bytes(data)

    def serialize(self):
        return b"FAKECACHE" + __version__.encode()


class _Profile:
    def __init__(self):
        self.shapes = {}

    def set_shape(self, name, low, usual, high):
        self.shapes[name] = [list(low), list(usual), list(high)]


class _Config:
    def __init__(self):
        # The one that is set by itself.
        self.flags, self.profiles, self.cache = [BuilderFlag.TF32.name], [], None
        self.default_device_type, self.DLA_core, self.pools = DeviceType.GPU, -1, {}
        if _NUMBERS >= (8, 6):
            self.builder_optimization_level = 3
        if _NUMBERS < (8, 4):
            self.max_workspace_size = 0

    if _NUMBERS >= (8, 4):

        def set_memory_pool_limit(self, pool, size):
            self.pools[pool.name] = size

    def set_flag(self, flag):
        self.flags.append(flag.name)

    def clear_flag(self, flag):
        self.flags.remove(flag.name)

    def add_optimization_profile(self, profile):
        self.profiles.append(profile)

    def create_timing_cache(self, data):
        return _Cache(data) if not data or data.startswith(b"FAKECACHE") else None

    def set_timing_cache(self, cache, ignore_mismatch):
        if cache.data and cache.data != b"FAKECACHE" + __version__.encode():
            return False
        self.cache = cache
        return True

    def get_timing_cache(self):
        return self.cache


class Builder:
    def __init__(self, logger):
        assert logger.ready
        self._logger = logger
        self.num_DLA_cores = int(os.environ.get("FAKE_TRT_DLA", "0"))

    def create_network(self, flags=0):
        return _Network(flags)

    def create_builder_config(self):
        return _Config()

    def create_optimization_profile(self):
        return _Profile()

    def build_serialized_network(self, network, config):
        fault = _go_wrong("build")
        if fault == "memory":
            self._logger.log(
                ILogger.ERROR,
                "2: [virtualMemoryBuffer.cpp::resizePhysical::145] Error Code 2: OutOfMemory"
                " (no further information)",
            )
            return None
        free = [v.name for v in _values(network.model, False) if -1 in _shape(v)]
        shapes = config.profiles[0].shapes if config.profiles else {}
        if set(free) - set(shapes):
            self._logger.log(
                ILogger.ERROR,
                "4: [network.cpp::validate::2965] Error Code 4: Internal Error (Network has "
                "dynamic or shape inputs, but no optimization profile has been defined.)",
            )
            return None
        strong = hasattr(NetworkDefinitionCreationFlag, "STRONGLY_TYPED") and network.flags & 2
        header = json.dumps(
            {
                "version": __version__,
                "sm": _SM,
                "flags": config.flags,
                "held": [
                    layer.name
                    for layer in network.layers
                    if layer.precision is float32 and layer.types == {0: float32}
                ],
                "strong": bool(strong),
                "shapes": shapes,
                "device": config.default_device_type.name,
                "workspace": config.pools or getattr(config, "max_workspace_size", None),
            }
        ).encode()
        return MAGIC + struct.pack("<Q", len(header)) + header + network.model.SerializeToString()


class Runtime:
    def __init__(self, logger):
        assert logger.ready
        self._logger = logger

    def deserialize_cuda_engine(self, plan):
        _go_wrong("load")
        if not plan.startswith(MAGIC):
            self._logger.log(
                ILogger.ERROR,
                "1: [stdArchiveReader.cpp::StdArchiveReader::40] Error Code 1: Serialization "
                "(Serialization assertion magicTagRead == kMAGIC_TAG failed.Magic tag does not match)",
            )
            return None
        (size,) = struct.unpack_from("<Q", plan, len(MAGIC))
        begin = len(MAGIC) + 8
        header = json.loads(plan[begin : begin + size].decode())
        if header["version"] != __version__:
            self._logger.log(
                ILogger.ERROR,
                "6: The engine plan file is not compatible with this version of TensorRT, "
                "expecting library version %s.30 got %s.6, please rebuild."
                % (__version__, header["version"]),
            )
            return None
        if header["sm"] != _SM:
            self._logger.log(
                ILogger.ERROR,
                "6: The engine plan file is generated on an incompatible device, expecting "
                "compute %d.%d got compute %d.%d, please rebuild."
                % (_SM // 10, _SM % 10, header["sm"] // 10, header["sm"] % 10),
            )
            return None
        return _Engine(header, plan[begin + size :])


class _Engine:
    def __init__(self, header, data):
        import onnx

        self.header, self.data, model = header, data, onnx.load_from_string(data)
        inputs, outputs = _values(model, False), _values(model, True)
        self.tensors = [(v.name, v, True) for v in inputs] + [(v.name, v, False) for v in outputs]

    def create_execution_context(self):
        return _Context(self)

    def _type(self, index):
        name = _ONNX[self.tensors[index][1].type.tensor_type.elem_type]
        return getattr(DataType, "INT32" if name == "INT64" and _NUMBERS < (10,) else name)

    def _number(self, name):
        return [each[0] for each in self.tensors].index(name)

    if _NUMBERS < (10,):
        num_bindings = property(lambda self: len(self.tensors))

        def get_binding_name(self, index):
            return self.tensors[index][0]

        def get_binding_dtype(self, index):
            return self._type(index)

    if _NUMBERS >= (8, 5):
        num_io_tensors = property(lambda self: len(self.tensors))

        def get_tensor_dtype(self, name):
            return self._type(self._number(name))


class _Context:
    def __init__(self, engine):
        import onnxruntime

        self._engine, self._addresses, self.profiler = engine, {}, None
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            engine.data, settings, providers=["CPUExecutionProvider"]
        )
        self._shapes = {
            name: _shape(v) for name, v, is_input in engine.tensors if is_input and -1 not in _shape(v)
        }

    def _set_shape(self, name, shape):
        low, _, high = self._engine.header["shapes"].get(name, [self._shapes.get(name)] * 3)
        if len(shape) != len(low) or any(not a <= size <= b for a, size, b in zip(low, shape, high)):
            return False
        self._shapes[name] = tuple(shape)
        return True

    def _feeds(self):
        import numpy

        feeds = {}
        for index, (name, value, is_input) in enumerate(self._engine.tensors):
            if not is_input:
                continue
            stored = _CTYPES[repr(self._engine._type(index)).split(".")[1]]
            shape = self._shapes[name]
            raw = ctypes.string_at(
                self._addresses[name] - _AWAY, int(numpy.prod(shape)) * numpy.dtype(stored).itemsize
            )
            wanted = _CTYPES[_ONNX[value.type.tensor_type.elem_type]]
            feeds[name] = numpy.frombuffer(raw, stored).reshape(shape).astype(wanted)
        return feeds

    def _shape_of(self, name):
        """By running on zeros: the double has no shape inference of its own."""
        import numpy

        if name in self._shapes:
            return self._shapes[name]
        feeds = {
            n: numpy.zeros(self._shapes[n], _CTYPES[_ONNX[v.type.tensor_type.elem_type]])
            for n, v, is_input in self._engine.tensors
            if is_input
        }
        return self._session.run([name], feeds)[0].shape

    def _execute(self):
        fault = _go_wrong("run")
        if fault == "memory":
            return False
        names = [name for name, _, is_input in self._engine.tensors if not is_input]
        began = time.monotonic()
        found = dict(zip(names, self._session.run(names, self._feeds())))
        for name, value in found.items():
            stored = _CTYPES[repr(self._engine._type(self._engine._number(name))).split(".")[1]]
            raw = value.astype(stored).tobytes()
            ctypes.memmove(self._addresses[name] - _AWAY, raw, len(raw))
        if self.profiler is not None:
            self.profiler.report_layer_time("conv + relu", (time.monotonic() - began) * 1e3)
        return True

    if _NUMBERS < (10,):

        def set_binding_shape(self, index, shape):
            return self._set_shape(self._engine.tensors[index][0], shape)

        def get_binding_shape(self, index):
            return self._shape_of(self._engine.tensors[index][0])

        def execute_async_v2(self, bindings, stream_handle):
            assert stream_handle
            self._addresses = {name: bindings[i] for i, (name, _, _) in enumerate(self._engine.tensors)}
            return self._execute()

    if _NUMBERS >= (8, 5):

        def set_input_shape(self, name, shape):
            return self._set_shape(name, shape)

        def get_tensor_shape(self, name):
            return self._shape_of(name)

        def set_tensor_address(self, name, address):
            self._addresses[name] = address
            return True

        def execute_async_v3(self, stream_handle):
            assert stream_handle
            return self._execute()
