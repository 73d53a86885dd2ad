"""What to tell TensorRT's builder about an emitted graph: the same facts for trtexec and for its Python API.

Weak typing: `--int8` where the graph has pairs, `--fp16` (or `--bf16`) where its form or the pairs' float rest allows
it, and nodes that must stay float32 by `--layerPrecisions` and `--layerOutputTypes` under
`--precisionConstraints=obey`. Strong typing has no such flags: 10.12 to 10.x are told `--stronglyTyped`, 11 is strongly
typed always. GPUs with TF32 are told not to use it (`--noTF32`): float32 is computed as it was certified.

Sources: NVIDIA TensorRT documentation, "trtexec", "Migrating trtexec Usage from TensorRT 8.x to 10.x" and "10.x to
11.x"; NVIDIA/TensorRT, samples/common/sampleOptions.cpp and sampleEngines.cpp of 8.2, 8.4, 8.6 and 10: `--memPoolSize`,
`--layerPrecisions` and `--layerOutputTypes` came with 8.4, `--skipInference` (before: `--buildOnly`) and
`--builderOptimizationLevel` with 8.6; `--noTF32` and `--timingCacheFile` are in all. An option that is given twice is
refused. Names end at the last colon of what lies between commas, so that no name may have a comma or a quote.
TensorRT for RTX documentation, "Performance Benchmarking" and "Optimizing TensorRT-RTX Performance": the tool
`tensorrt_rtx` has `--minShapes`, `--optShapes`, `--maxShapes` and `--skipInference`; it keeps no timing cache.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import onnx_ir as ir

from greencc.core.errors import InputError, UsageError
from greencc.core.graph import attribute_int, constant_of, graphs_of, is_op
from greencc.targets._tensorrt.emit import FLOAT32_NODES, PRECISION
from greencc.targets._tensorrt.machine import TensorRtMachine, TensorRtVersion, Typing
from greencc.targets._tensorrt.pairs import is_quantized

_POOLS = TensorRtVersion(8, 4)
_LEVELS = TensorRtVersion(8, 6)
_MIB = 2**20
_KEEPS = 2
_GROUP = 4
_LEAST = 1024
# What trtexec reads as the end of a pair of name and value, or takes away.
_SEPARATORS = frozenset(",'")
_TF32_SINCE = 80


@dataclass(frozen=True)
class ShapeRange:
    """Sizes of one input that an engine is built for.

    Attributes:
        least: The smallest shape.
        best: The shape that kernels are chosen for.
        most: The largest shape.
    """

    least: tuple[int, ...]
    best: tuple[int, ...]
    most: tuple[int, ...]

    def __post_init__(self) -> None:
        if not len(self.least) == len(self.best) == len(self.most):
            raise UsageError("the shapes of a profile differ in rank", hint="give least, best and most alike")
        if any(not 0 <= a <= b <= c for a, b, c in zip(self.least, self.best, self.most, strict=True)):
            raise UsageError(
                f"a profile goes from {self.least} by {self.best} to {self.most}, which does not grow",
                hint="give sizes with least <= best <= most",
            )


@dataclass(frozen=True)
class ShapeProfile:
    """Ranges by input; inputs of fixed shape need none."""

    inputs: Mapping[str, ShapeRange] = field(default_factory=dict)

    @classmethod
    def fixed(cls, model: ir.Model, shapes: Mapping[str, Sequence[int]]) -> ShapeProfile:
        """An engine for one shape of each dynamic input.

        Args:
            model: The emitted graph.
            shapes: Of all inputs, or of the dynamic ones.
        """
        ranges = {}
        for name in dynamic_inputs(model):
            if name in shapes:
                size = tuple(int(dim) for dim in shapes[name])
                ranges[name] = ShapeRange(size, size, size)
        return cls(ranges)


@dataclass(frozen=True)
class BuilderFlags:
    """How an engine is built.

    Attributes:
        version: Of the TensorRT that is told.
        int8: INT8 kernels are allowed (weak typing).
        fp16: Likewise FP16.
        bf16: Likewise BF16.
        strongly_typed: The network is created strongly typed, which must be said.
        sparsity: Kernels for 2:4 sparse weights are tried.
        float32_nodes: Nodes that are computed in float32 whatever is allowed.
        float32_outputs: Those of them that give nothing but float32, and give it as such.
        tf32: Products of float32 may be computed in TF32, where the GPU has it.
        profile: Shapes of dynamic inputs.
        workspace_bytes: Largest scratch memory of a layer; None: all there is.
        dla_core: The deep-learning accelerator that is built for, the GPU for what it has not; None: the GPU.
        optimization_level: 0 to 5, of the builder; None: its default.
        timing_cache: File that kernel timings are kept in; None: nowhere.
        skip_inference: Build alone.
        rtx: It is TensorRT-RTX that is told.
    """

    version: TensorRtVersion
    int8: bool = False
    fp16: bool = False
    bf16: bool = False
    strongly_typed: bool = False
    sparsity: bool = False
    float32_nodes: tuple[str, ...] = ()
    float32_outputs: tuple[str, ...] = ()
    tf32: bool = True
    profile: ShapeProfile = field(default_factory=ShapeProfile)
    workspace_bytes: int | None = None
    dla_core: int | None = None
    optimization_level: int | None = None
    timing_cache: str | None = None
    skip_inference: bool = False
    rtx: bool = False

    def trtexec(self, onnx: str, engine: str) -> tuple[str, ...]:
        """Arguments of trtexec or tensorrt_rtx, without its own name; of `unreadable` inputs they say nothing.

        Args:
            onnx: The file that is read.
            engine: The file that is written.
        """
        arguments = [f"--onnx={onnx}", f"--saveEngine={engine}"]
        for flag, wanted in (("int8", self.int8), ("fp16", self.fp16), ("bf16", self.bf16)):
            if wanted:
                arguments.append(f"--{flag}")
        if self.strongly_typed:
            arguments.append("--stronglyTyped")
        if not self.tf32:
            arguments.append("--noTF32")
        if named := self._named(self.float32_nodes):
            arguments += ["--precisionConstraints=obey", f"--layerPrecisions={_all_float32(named)}"]
            if given := self._named(self.float32_outputs):
                arguments.append(f"--layerOutputTypes={_all_float32(given)}")
        if self.sparsity:
            arguments.append("--sparsity=enable")
        if self.dla_core is not None:
            arguments += [f"--useDLACore={self.dla_core}", "--allowGPUFallback"]
        for which in ("min", "opt", "max"):
            if shapes := self._shapes(which):
                arguments.append(f"--{which}Shapes={shapes}")
        if self.workspace_bytes is not None:
            size = max(1, self.workspace_bytes // _MIB)
            arguments.append(f"--memPoolSize=workspace:{size}" if self.pools else f"--workspace={size}")
        if self.optimization_level is not None and self.version >= _LEVELS:
            arguments.append(f"--builderOptimizationLevel={self.optimization_level}")
        if self.timing_cache is not None:
            arguments.append(f"--timingCacheFile={self.timing_cache}")
        if self.skip_inference:
            arguments.append("--skipInference" if self.version >= _LEVELS else "--buildOnly")
        return tuple(arguments)

    @property
    def api_flags(self) -> tuple[str, ...]:
        """Members of `tensorrt.BuilderFlag` to set."""
        wanted = (
            ("INT8", self.int8),
            ("FP16", self.fp16),
            ("BF16", self.bf16),
            ("SPARSE_WEIGHTS", self.sparsity),
            ("OBEY_PRECISION_CONSTRAINTS", bool(self.float32_nodes)),
            ("GPU_FALLBACK", self.dla_core is not None),
        )
        return tuple(name for name, each in wanted if each)

    @property
    def cleared_flags(self) -> tuple[str, ...]:
        """Members of `tensorrt.BuilderFlag` that are set where nobody clears them, and are to be cleared."""
        return () if self.tf32 else ("TF32",)

    @property
    def pools(self) -> bool:
        """Memory is told by `--memPoolSize`, not by `--workspace`."""
        return self.rtx or self.version >= _POOLS

    @property
    def unreadable(self) -> tuple[str, ...]:
        """Inputs with free sizes that no trtexec can be told, by their names."""
        return tuple(name for name in self.profile.inputs if _SEPARATORS & set(name))

    @property
    def network_flags(self) -> tuple[str, ...]:
        """Members of `tensorrt.NetworkDefinitionCreationFlag` to create the network with."""
        if self.strongly_typed:
            return ("STRONGLY_TYPED",)
        # From 10 on there is nothing but explicit batches.
        return ("EXPLICIT_BATCH",) if self.version < TensorRtVersion(10, 0) else ()

    @property
    def notes(self) -> tuple[str, ...]:
        """What trtexec cannot be told, one sentence each; the Python API can."""
        found = []
        if unsaid := len(self.float32_nodes) - len(self._named(self.float32_nodes)):
            why = "cannot read their names" if self.pools else "before 8.4 has no --layerPrecisions"
            found.append(
                f"trtexec {why}: {unsaid} layers that should stay FP32 may become FP16; build with the Python API to "
                "hold them"
            )
        found += [
            f"trtexec cannot read the name of the input {name!r}: build with the Python API (build.py)"
            for name in self.unreadable
        ]
        return tuple(found)

    def _named(self, nodes: Sequence[str]) -> tuple[str, ...]:
        """Those nodes that trtexec can be told."""
        return tuple(name for name in nodes if not _SEPARATORS & set(name)) if self.pools else ()

    def _shapes(self, which: str) -> str:
        parts = []
        for name, sizes in self.profile.inputs.items():
            if name in self.unreadable:
                continue
            shape = {"min": sizes.least, "opt": sizes.best, "max": sizes.most}[which]
            parts.append(f"{name}:{'x'.join(map(str, shape)) or 'scalar'}")
        return ",".join(parts)


def _all_float32(names: Sequence[str]) -> str:
    return ",".join(f"{name}:fp32" for name in names)


def dynamic_inputs(model: ir.Model) -> tuple[str, ...]:
    """Names of the inputs with a size that is not known."""
    return tuple(
        str(value.name)
        for value in model.graph.inputs
        if value.shape is None or any(not isinstance(dim, int) for dim in value.shape)
    )


def flags_for(
    model: ir.Model,
    machine: TensorRtMachine,
    *,
    profile: ShapeProfile | None = None,
    dla: bool = False,
) -> BuilderFlags:
    """What a graph that was emitted for a machine needs to be built there.

    Args:
        model: What `emit` gave, or the same read from its file.
        machine: What it was emitted for.
        profile: Shapes of the dynamic inputs.
        dla: Build for the first deep-learning accelerator.

    Raises:
        InputError: A dynamic input is without shapes.
        UsageError: The machine has no accelerator.
    """
    given = profile or ShapeProfile()
    for name in dynamic_inputs(model):
        if name not in given.inputs:
            raise InputError(
                f"the input {name!r} has sizes that are not known, and the shape profile says nothing of it",
                hint="give its smallest, usual and largest shape, or fix the sizes",
            )
    _check_ranges(model, given)
    if dla and not machine.dla:
        raise UsageError(
            "this device has no deep-learning accelerator that its TensorRT builds for",
            hint="leave dla out; Jetson Xavier NX, Orin NX and AGX Orin have one, with TensorRT up to 10.7 "
            "(JetPack 6.2), AGX Orin again from JetPack 7.2.2 on",
        )
    weak = machine.typing is Typing.WEAK
    precision = model.metadata_props.get(PRECISION, "") if weak else ""
    nodes = (
        json.loads(model.metadata_props.get(FLOAT32_NODES, "[]")) if weak and precision and not dla else []
    )
    return BuilderFlags(
        version=machine.version,
        int8=weak and is_quantized(model),
        fp16=precision == "fp16" or (weak and dla),
        bf16=precision == "bf16",
        strongly_typed=not weak and not machine.only_strong,
        sparsity=machine.gpu.sparsity and has_sparse_weights(model),
        float32_nodes=tuple(nodes),
        float32_outputs=_giving_float32(model, frozenset(nodes)),
        tf32=machine.gpu.sm < _TF32_SINCE,
        profile=given,
        dla_core=0 if dla else None,
        rtx=machine.rtx,
    )


def _giving_float32(model: ir.Model, names: frozenset[str]) -> tuple[str, ...]:
    """Nodes of those names that give nothing but float32.

    trtexec sets one type for all that a layer gives, and what gives integers (the places of TopK) must keep theirs.
    """
    return tuple(
        str(node.name)
        for node in model.graph
        if node.name in names and all(value.dtype is ir.DataType.FLOAT for value in node.outputs)
    )


def _check_ranges(model: ir.Model, profile: ShapeProfile) -> None:
    """Refuse ranges of inputs that there are none of, or that contradict a known size."""
    inputs = {str(value.name): value for value in model.graph.inputs}
    for name, sizes in profile.inputs.items():
        if name not in inputs:
            raise InputError(
                f"the shape profile names an input {name!r} that the model has not",
                hint=f"its inputs: {', '.join(inputs)}",
            )
        shape = inputs[name].shape
        if shape is None:
            continue
        known = [dim if isinstance(dim, int) else None for dim in shape]
        for given in (sizes.least, sizes.best, sizes.most):
            fits = len(given) == len(known) and all(
                dim is None or dim == size for dim, size in zip(known, given, strict=True)
            )
            if not fits:
                raise InputError(
                    f"the shape profile gives the input {name!r} the shape {list(given)}, the model {known}",
                    hint="change the sizes that are open alone",
                )


def has_sparse_weights(model: ir.Model) -> bool:
    """True where most weights of convolutions and products have two zeros in every four, along the inputs they sum.

    Convolutions: KCRS along C; products: along the rows of the weight. A layer pruned away to zeros, or a few that
    happen to look so, are no reason to try sparse kernels. Source: NVIDIA TensorRT documentation, "Structured
    Sparsity".
    """
    found = [
        _is_sparse(node)
        for graph in graphs_of(model)
        for node in graph
        if is_op(node, "Conv", "Gemm", "MatMul")
    ]
    counted = [each for each in found if each is not None]
    return 2 * sum(counted) > len(counted)


def _is_sparse(node: ir.Node) -> bool | None:
    """Whether a layer's weights have the pattern; None for one that is too small for sparse kernels, or all zeros."""
    array = constant_of(_stored(node.inputs[1]))
    if array is None or array.ndim < 2 or array.size < _LEAST or not array.any():
        return None
    transposed = node.op_type == "Gemm" and attribute_int(node, "transB", 0)
    axis = 1 if node.op_type == "Conv" or transposed else array.ndim - 2
    if array.shape[axis] % _GROUP:
        return None
    shape = (*array.shape[:axis], array.shape[axis] // _GROUP, _GROUP, *array.shape[axis + 1 :])
    return bool(((array == 0).reshape(shape).sum(axis + 1) >= _KEEPS).all())


def _stored(value: ir.Value | None) -> ir.Value | None:
    """The constant behind the pair of a quantized weight."""
    while value is not None and is_op(value.producer(), "DequantizeLinear", "QuantizeLinear"):
        producer = value.producer()
        value = producer.inputs[0] if producer is not None else None
    return value
