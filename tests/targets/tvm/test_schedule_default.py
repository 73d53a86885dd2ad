"""Scheduled functions compute what the ONNX reference does, without libm, with threads and for any batch."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from greencc.targets._tvm.schedule_default import schedule

from .kernels.window_runs import ARM, X86, on_every_machine

tvm = pytest.importorskip("tvm")

FLOAT = TensorProto.FLOAT


def model(nodes, inputs, *constants, output=FLOAT):
    """A model of float inputs [N, ...] and the output y."""
    given = [helper.make_tensor_value_info(name, FLOAT, ["N", *shape]) for name, shape in inputs.items()]
    wanted = [helper.make_tensor_value_info("y", output, None)]
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants]
    graph = helper.make_graph(nodes, "graph", given, wanted, initializers)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)


def op(name, *inputs, **attributes):
    return helper.make_node(name, inputs, ["y"], **attributes)


def one(name, shape, *inputs, constants=(), **attributes):
    return model([op(name, "x", *inputs, **attributes)], {"x": shape}, *constants)


F32 = np.float32
RNG = np.random.default_rng(0)
CASES = {
    "softmax": one("Softmax", (3, 16, 128), axis=-1),
    "softmax of a prime": one("Softmax", (2, 9, 37), axis=-1),
    "softmax of a middle axis": one("Softmax", (12, 5), axis=1),
    "layer norm": one(
        "LayerNormalization",
        (7, 384),
        "scale",
        "bias",
        constants=(("scale", RNG.uniform(0.5, 2.0, 384).astype(F32)), ("bias", np.ones(384, F32))),
        axis=-1,
    ),
    "gelu": one("Gelu", (64, 1025)),
    "tanh": one("Tanh", (33,)),
    "sigmoid": one("Sigmoid", (8, 9, 1000)),
    "hard swish": one("HardSwish", (64, 40, 28)),
    "to channels last": one("Transpose", (3, 30, 31), perm=[0, 2, 3, 1]),
    "to channels first": one("Transpose", (24, 24, 32), perm=[0, 3, 1, 2]),
    "matrix transpose": one("Transpose", (4, 48, 80), perm=[0, 1, 3, 2]),
    "resize": one(
        "Resize", (3, 7, 8), "", "scales", constants=(("scales", np.array([1, 1, 2, 2], F32)),), mode="linear"
    ),
    "pad": one("Pad", (3, 5, 6), "pads", constants=(("pads", np.array([0, 0, 1, 2, 0, 0, 0, 1])),)),
    "slice": one(
        "Slice",
        (9, 40),
        "starts",
        "ends",
        "axes",
        constants=(("starts", np.array([2])), ("ends", np.array([7])), ("axes", np.array([1]))),
    ),
    "mean of an image": one(
        "ReduceMean", (13, 16, 12), "axes", constants=(("axes", np.array([2, 3])),), keepdims=1
    ),
    "mean of tokens": one("ReduceMean", (17, 24), "axes", constants=(("axes", np.array([1])),), keepdims=0),
    "channel bias": model(
        [helper.make_node("Add", ["x", "b"], ["z"]), op("Relu", "z")],
        {"x": (20, 64, 64)},
        ("b", RNG.standard_normal((20, 1, 1)).astype(F32)),
    ),
    "concat": model([op("Concat", "x", "z", axis=1)], {"x": (5, 6, 7), "z": (3, 6, 7)}),
    "product": model([op("MatMul", "x", "z")], {"x": (3, 17, 24), "z": (3, 24, 19)}),
    "running sum": one("CumSum", (40,), "axis", constants=(("axis", np.array(1)),)),
}


def legalized(onnx_model):
    from tvm import relax
    from tvm.relax.frontend.onnx import from_onnx

    module = from_onnx(onnx_model)
    for step in (
        relax.transform.DecomposeOpsForInference(),
        relax.transform.LegalizeOps(),
        relax.transform.AnnotateTIROpPattern(),
        relax.transform.FoldConstant(),
        relax.transform.FuseOps(),
        relax.transform.FuseTIR(),
    ):
        module = step(module)
    return module


def target(machine):
    features = [f"+{feature}" for feature in sorted(machine.features)]
    return tvm.target.Target(
        {
            "kind": "llvm",
            "mtriple": machine.triple,
            "mcpu": machine.cpu,
            **({"mattr": features} if features else {}),
        }
    )


def run(module, inputs, machine):
    from tvm import relax

    runtime = relax.VirtualMachine(tvm.compile(module, target=target(machine)), tvm.cpu())
    return runtime["main"](*(tvm.runtime.tensor(each) for each in inputs)).numpy()


def random_inputs(onnx_model, batch):
    rng = np.random.default_rng(1)
    shapes = [
        [each.dim_value for each in value.type.tensor_type.shape.dim][1:] for value in onnx_model.graph.input
    ]
    return [(3 * rng.standard_normal((batch, *shape))).astype(F32) for shape in shapes]


def functions(module):
    return [value for _, value in module.functions_items() if isinstance(value, tvm.tirx.PrimFunc)]


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("ignore")  # TVM's importer
def test_same_as_the_reference(name):
    fastest = X86["avx2"]
    scheduled = schedule(legalized(CASES[name]), fastest)
    assert all(function.attrs["tirx.is_scheduled"] for function in functions(scheduled))
    for batch in (1, 3):
        inputs = random_inputs(CASES[name], batch)
        names = [value.name for value in CASES[name].graph.input]
        (want,) = ReferenceEvaluator(CASES[name]).run(None, dict(zip(names, inputs, strict=True)))
        np.testing.assert_allclose(run(scheduled, inputs, fastest), want, rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize("dtype", ["uint8", "int8"])
@pytest.mark.filterwarnings("ignore")
@on_every_machine
def test_quantizing_is_bit_exact(dtype, machine):
    zero_point, scale = np.array(3, dtype), F32(0.25)
    constants = (("s", scale), ("z", zero_point))
    quantize = helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"])
    inputs = {"x": (4096,)}
    halves = (np.arange(4096, dtype=F32) - 2048)[None] / 8
    random = (RNG.standard_normal((1, 4096)) * 20).astype(F32)
    limits = np.iinfo(dtype)
    given = model([quantize, op("DequantizeLinear", "q", "s", "z")], inputs, *constants)
    scheduled = schedule(legalized(given), machine)
    for values in (halves, random):
        steps = np.clip(np.rint(values / scale).astype(np.float64) + 3, limits.min, limits.max)
        want = (steps.astype(np.int32) - 3).astype(F32) * scale
        np.testing.assert_array_equal(run(scheduled, [values], machine), want)


@pytest.mark.parametrize("name", ["gelu", "tanh", "sigmoid", "softmax"])
@pytest.mark.parametrize("processor", [X86["avx2"], ARM["neon"]], ids=["x86", "arm"])
@pytest.mark.filterwarnings("ignore")
def test_no_function_calls_libm(name, processor):
    (function,) = functions(schedule(legalized(CASES[name]), processor))
    module = tvm.IRModule({"kernel": function.with_attr("global_symbol", "kernel")})
    code = tvm.tirx.build(module, target=target(processor)).inspect_source("asm")
    words = set(code.replace("@", " ").split())
    assert not words & {"expf", "erff", "tanhf"}


@pytest.mark.filterwarnings("ignore")
def test_big_functions_share_their_loops_among_threads():
    many, single = X86["avx2"], X86["plain"]
    assert many.cores > 1
    (big,) = functions(schedule(legalized(CASES["gelu"]), many))
    (small,) = functions(schedule(legalized(CASES["tanh"]), single))
    assert "T.parallel" in big.script()
    assert "T.parallel" not in small.script()


def test_scheduled_functions_stay_as_they_are():
    from tvm.script.ir_builder import IRBuilder

    from greencc.targets._tvm.kernels.emit import Emit

    emit = Emit(X86["avx2"])
    with IRBuilder() as builder, emit.function("kernel"):
        buffer = emit.argument("buffer", (16,), "float32")
        emit.store(buffer, [0], emit.T.exp(emit.load(buffer, [0], 4)), 4)
    module = tvm.IRModule({"kernel": builder.get()})
    assert schedule(module, X86["avx2"])["kernel"].same_as(module["kernel"])
