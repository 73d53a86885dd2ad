"""What trtexec and the Python API are told, per version."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from greencc.core.errors import InputError, UsageError
from greencc.passes.float16 import ConvertFloat16
from greencc.passes.sparsify import Sparsify, SparsityMethod
from greencc.targets import make_target
from greencc.targets._tensorrt.emit import FLOAT32_NODES, PRECISION
from greencc.targets._tensorrt.flags import (
    BuilderFlags,
    ShapeProfile,
    ShapeRange,
    dynamic_inputs,
    flags_for,
    has_sparse_weights,
)
from greencc.targets._tensorrt.machine import TensorRtMachine, TensorRtVersion
from tests.devices import trtexec_options

from .emitting import VERSIONS, block, cnn, emitted, int8, machine, normal, parse, quantized, run_passes

PROFILE = ShapeProfile({"x": ShapeRange((1, 3, 16, 16), (4, 3, 16, 16), (8, 3, 16, 16))})
SHAPES = ("--minShapes=x:1x3x16x16", "--optShapes=x:4x3x16x16", "--maxShapes=x:8x3x16x16")


def of(model: ir.Model, on: TensorRtMachine) -> tuple[str, ...]:
    return flags_for(emitted(model, on), on, profile=PROFILE).trtexec("m.onnx", "m.plan")


@pytest.mark.parametrize("version", VERSIONS)
def test_int8(version: str) -> None:
    on = machine(version)
    held = (
        "--precisionConstraints=obey",
        "--layerPrecisions=Conv_stem:fp32,Relu_r0:fp32",
        "--layerOutputTypes=Conv_stem:fp32,Relu_r0:fp32",
    )
    expected = {
        "8.2": ("--int8", "--fp16", "--noTF32"),
        "10.13": ("--stronglyTyped", "--noTF32"),
        "11.4": ("--noTF32",),
    }.get(version, ("--int8", "--fp16", "--noTF32", *held))
    assert of(quantized(cnn, version), on) == ("--onnx=m.onnx", "--saveEngine=m.plan", *expected, *SHAPES)


def test_trtexec_of_8_2_cannot_hold_layers_and_says_so() -> None:
    on = machine("8.2")
    flags = flags_for(emitted(quantized(cnn, str(on.version)), on), on, profile=PROFILE)
    assert "before 8.4 has no --layerPrecisions: 2 layers" in flags.notes[0]
    assert "OBEY_PRECISION_CONSTRAINTS" in flags.api_flags
    assert not flags_for(emitted(cnn(), on), on, profile=PROFILE).notes


def test_names_that_trtexec_cannot_read_are_said() -> None:
    nodes = ("a/Softmax", "scope::Add 1", "scope:Conv,1")
    one = ShapeRange((1,), (1,), (1,))
    flags = BuilderFlags(
        TensorRtVersion(10, 3),
        fp16=True,
        float32_nodes=nodes,
        float32_outputs=nodes[1:],
        profile=ShapeProfile({"in:0": one, "a,b": one}),
    )
    arguments = flags.trtexec("m", "e")
    assert "--layerPrecisions=a/Softmax:fp32,scope::Add 1:fp32" in arguments
    assert "--layerOutputTypes=scope::Add 1:fp32" in arguments
    assert "--minShapes=in:0:1" in arguments
    # As it reads them: names end at the last colon.
    assert trtexec_options.pairs("a/Softmax:fp32,scope::Add 1:fp32") == [
        ("a/Softmax", "fp32"),
        ("scope::Add 1", "fp32"),
    ]
    assert "cannot read their names: 1 layers" in flags.notes[0]
    assert "cannot read the name of the input 'a,b'" in flags.notes[1]


def test_what_gives_whole_numbers_keeps_their_type() -> None:
    """trtexec sets one type for all outputs of a layer; the places that TopK gives are no floats."""
    text = """g (float[1, 8] x) => (float[1, 2] y, int64[1, 2] i, float[1, 8] z) {
      y, i = TopK <axis=1> (x, k)
      z = Relu (x)
    }"""
    model = parse(text, k=np.array([2], np.int64))
    names = [str(node.name) for node in model.graph]
    model.metadata_props[PRECISION] = "fp16"
    model.metadata_props[FLOAT32_NODES] = json.dumps(names)
    flags = flags_for(model, machine("10.3"))
    assert flags.float32_nodes == tuple(names)
    assert flags.float32_outputs == (names[1],)


@pytest.mark.parametrize(("sm", "told"), [(75, False), (80, True), (87, True), (120, True)])
def test_float32_is_computed_in_full(sm: int, told: bool) -> None:
    """TF32 came with Ampere, is on by default, and is coarser than what was certified."""
    on = machine("10.3", sm)
    flags = flags_for(emitted(cnn(), on), on, profile=PROFILE)
    assert ("--noTF32" in flags.trtexec("m", "e")) is told
    assert flags.cleared_flags == (("TF32",) if told else ())


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("form", ["float", "int8"])
def test_every_version_knows_what_it_is_told(version: str, form: str) -> None:
    on = machine(version, dla=1)
    model = emitted(quantized(cnn, version) if form == "int8" else cnn(), on)
    for dla in (False, True):
        flags = replace(
            flags_for(model, on, profile=PROFILE, dla=dla),
            timing_cache="t.cache",
            skip_inference=True,
            workspace_bytes=2**30,
            optimization_level=3,
            sparsity=True,
        )
        known = trtexec_options.trtexec((on.version.major, on.version.minor))
        arguments = flags.trtexec("m", "e")
        assert len(trtexec_options.parse(known, list(arguments))) == len(arguments)


@pytest.mark.parametrize("version", VERSIONS)
def test_float_forms(version: str) -> None:
    on = machine(version)
    typed = ("--stronglyTyped",) if version == "10.13" else ()
    assert of(cnn(), on)[2:] == (*typed, "--noTF32", *SHAPES)
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
    model = emitted(quantized(cnn, str(on.version)), on)
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


def test_an_agent_is_asked_for_what_the_scripts_build(tmp_path: Path) -> None:
    target = make_target("jetson:jetpack=6.2")
    on = machine("10.3")
    options = target.order(target.build(emitted(quantized(cnn, "10.3"), on), tmp_path)).options
    assert options["float32_nodes"] == ["Conv_stem", "Relu_r0"]
    assert (options["typing"], options["precisions"]) == ("weak", ["fp16", "int8"])
    plain = target.order(target.build(emitted(cnn(), on), tmp_path / "plain")).options
    assert options["float32_outputs"] == ["Conv_stem", "Relu_r0"]
    assert options["tf32"] is False
    assert not {"float32_nodes", "float32_outputs"} & plain.keys()
    nano = make_target("jetson-nano")
    assert (
        nano.order(nano.build(emitted(cnn(), machine("8.2", 53)), tmp_path / "nano")).options["tf32"] is True
    )
