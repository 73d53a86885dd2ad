"""What trtexec and the Python API are told, per version."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from greencc.core.errors import InputError, UsageError
from greencc.passes.float16 import ConvertFloat16
from greencc.passes.sparsify import Sparsify, SparsityMethod
from greencc.targets._tensorrt.flags import (
    BuilderFlags,
    ShapeProfile,
    ShapeRange,
    dynamic_inputs,
    flags_for,
    has_sparse_weights,
)
from greencc.targets._tensorrt.machine import TensorRtMachine, TensorRtVersion

from .emitting import VERSIONS, block, cnn, emitted, int8, machine, normal, parse, run_passes

PROFILE = ShapeProfile({"x": ShapeRange((1, 3, 16, 16), (4, 3, 16, 16), (8, 3, 16, 16))})
SHAPES = ("--minShapes=x:1x3x16x16", "--optShapes=x:4x3x16x16", "--maxShapes=x:8x3x16x16")


def of(model: ir.Model, on: TensorRtMachine) -> tuple[str, ...]:
    return flags_for(emitted(model, on), on, profile=PROFILE).trtexec("m.onnx", "m.plan")


@pytest.mark.parametrize("version", VERSIONS)
def test_int8(version: str) -> None:
    on = machine(version)
    held = ("--precisionConstraints=obey", "--layerPrecisions=Conv_stem:fp32,Relu_r0:fp32")
    expected = {
        "8.2": ("--int8", "--fp16"),
        "10.13": ("--stronglyTyped",),
        "11.4": (),
    }.get(version, ("--int8", "--fp16", *held))
    assert of(int8(cnn(), on), on) == ("--onnx=m.onnx", "--saveEngine=m.plan", *expected, *SHAPES)


def test_trtexec_of_8_2_cannot_hold_layers_and_says_so() -> None:
    on = machine("8.2")
    flags = flags_for(emitted(int8(cnn(), on), on), on, profile=PROFILE)
    assert "before 8.4 has no --layerPrecisions: 2 layers" in flags.notes[0]
    assert "OBEY_PRECISION_CONSTRAINTS" in flags.api_flags
    assert not flags_for(emitted(cnn(), on), on, profile=PROFILE).notes


def test_names_that_trtexec_cannot_read_are_said() -> None:
    flags = BuilderFlags(TensorRtVersion(10, 3), fp16=True, float32_nodes=("a/Softmax", "scope:Conv,1"))
    arguments = flags.trtexec("m", "e")
    assert "--layerPrecisions=a/Softmax:fp32" in arguments
    assert "cannot read their names: 1 layers" in flags.notes[0]


@pytest.mark.parametrize("version", VERSIONS)
def test_float_forms(version: str) -> None:
    on = machine(version)
    assert of(cnn(), on)[2:] == (("--stronglyTyped",) if version == "10.13" else ()) + SHAPES
    half = flags_for(
        emitted(run_passes(block(), on, (ConvertFloat16(),)), on),
        on,
        profile=ShapeProfile(
            {
                "x": ShapeRange((1, 8, 32), (1, 8, 32), (1, 8, 32)),
                "mask": ShapeRange((1, 1, 8, 8), (1, 1, 8, 8), (1, 1, 8, 8)),
            }
        ),
    )
    weak = version not in ("10.13", "11.4")
    assert half.fp16 == weak
    assert not half.int8
    assert ("Softmax_a" in half.float32_nodes) == weak


def test_a_gpu_without_int8_is_told_fp16_alone() -> None:
    nano = machine("8.2", 53)
    assert "--int8" not in of(run_passes(cnn(), nano, (ConvertFloat16(),)), nano)
    assert "--fp16" in of(run_passes(cnn(), nano, (ConvertFloat16(),)), nano)


def test_memory_levels_caches_and_skipping_by_version() -> None:
    def told(version: str) -> tuple[str, ...]:
        flags = BuilderFlags(
            TensorRtVersion.parse(version),
            workspace_bytes=2**30,
            optimization_level=5,
            timing_cache="t.cache",
            skip_inference=True,
        )
        return flags.trtexec("m", "e")[2:]

    assert told("8.2") == ("--workspace=1024", "--timingCacheFile=t.cache", "--buildOnly")
    assert told("8.5") == ("--memPoolSize=workspace:1024", "--timingCacheFile=t.cache", "--buildOnly")
    assert told("8.6") == (
        "--memPoolSize=workspace:1024",
        "--builderOptimizationLevel=5",
        "--timingCacheFile=t.cache",
        "--skipInference",
    )


def test_the_accelerator() -> None:
    on = machine("10.3", dla=2)
    model = emitted(int8(cnn(), on), on)
    flags = flags_for(model, on, profile=PROFILE, dla=True)
    arguments = flags.trtexec("m", "e")
    assert {"--useDLACore=0", "--allowGPUFallback", "--int8", "--fp16"} <= set(arguments)
    # It computes in no FP32.
    assert not flags.float32_nodes
    assert "GPU_FALLBACK" in flags.api_flags
    with pytest.raises(UsageError, match="no deep-learning accelerator"):
        flags_for(model, machine("10.3"), profile=PROFILE, dla=True)


def test_network_flags() -> None:
    assert BuilderFlags(TensorRtVersion(8, 6)).network_flags == ("EXPLICIT_BATCH",)
    assert BuilderFlags(TensorRtVersion(10, 3)).network_flags == ()
    assert BuilderFlags(TensorRtVersion(10, 13), strongly_typed=True).network_flags == ("STRONGLY_TYPED",)


def test_dynamic_inputs_need_a_profile() -> None:
    on = machine("10.3")
    model = emitted(cnn(), on)
    assert dynamic_inputs(model) == ("x",)
    with pytest.raises(InputError, match="'x' has sizes that are not known"):
        flags_for(model, on)
    fixed = ShapeProfile.fixed(model, {"x": (2, 3, 16, 16), "other": (1,)})
    assert fixed.inputs == {"x": ShapeRange((2, 3, 16, 16), (2, 3, 16, 16), (2, 3, 16, 16))}


@pytest.mark.parametrize(
    ("shape", "message"), [((1, 4, 16, 16), r"the model \[None, 3, 16, 16\]"), ((1, 3), "the shape")]
)
def test_profiles_that_contradict_the_model(shape: tuple[int, ...], message: str) -> None:
    on = machine("10.3")
    profile = ShapeProfile({"x": ShapeRange(shape, shape, shape)})
    with pytest.raises(InputError, match=message):
        flags_for(emitted(cnn(), on), on, profile=profile)


def test_profiles_of_other_inputs_and_that_shrink() -> None:
    on = machine("10.3")
    profile = ShapeProfile({**PROFILE.inputs, "z": ShapeRange((1,), (1,), (1,))})
    with pytest.raises(InputError, match="'z' that the model has not"):
        flags_for(emitted(cnn(), on), on, profile=profile)
    with pytest.raises(UsageError, match="does not grow"):
        ShapeRange((4,), (2,), (8,))
    with pytest.raises(UsageError, match="differ in rank"):
        ShapeRange((4,), (2, 1), (8,))


def test_two_of_four_weights_are_told_where_the_gpu_has_kernels() -> None:
    """Along the input channels of convolutions, K of products: as the pass prunes, so the check finds it."""
    text = """g (float[1, 32, 6, 6] x) => (float[1, 64] y) {
      c = Conv <pads=[1,1,1,1]> (x, w)
      p = GlobalAveragePool (c)
      f = Flatten (p)
      h = MatMul (f, v)
      y = Gemm <transB=1> (h, u)
    }"""
    model = parse(text, w=normal(32, 32, 3, 3), v=normal(32, 64, seed=1), u=normal(64, 64, seed=2))
    assert not has_sparse_weights(model)
    for version, sm, told in (("10.3", 87, True), ("11.4", 87, True), ("8.5", 72, False)):
        on = machine(version, sm)
        sparse = run_passes(model, on, (Sparsify(method=SparsityMethod.MAGNITUDE),))
        result = emitted(int8(sparse, on), on)
        assert has_sparse_weights(result)
        flags = flags_for(result, on)
        assert ("--sparsity=enable" in flags.trtexec("m", "e")) == told
        assert ("SPARSE_WEIGHTS" in flags.api_flags) == told
