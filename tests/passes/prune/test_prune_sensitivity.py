"""What the outputs make of an error in the layers that read a group: measured, also where that takes a detour."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper

from greencc.calibration import open_data
from greencc.core.data import Array, Batch
from greencc.core.describe import input_specs
from greencc.core.graph import ensure_names
from greencc.core.groups import analyse
from greencc.core.model import infer_shapes
from greencc.core.passes import Context
from greencc.passes import _prune_sensitivity, _repair_gate
from greencc.passes._prune_costs import macs_per_sample
from greencc.passes._prune_sensitivity import sensitivities
from greencc.targets import CpuTarget

SIZE, WIDTH = 6, 8


def chain(*, grouped: bool = False, constant_nodes: bool = False, deaf: bool = False) -> ir.Model:
    """Three convolutions and class scores."""
    rng = np.random.default_rng(0)
    arrays = {
        "w0": rng.standard_normal((WIDTH, 3, 3, 3)),
        "w1": rng.standard_normal((WIDTH, WIDTH // (2 if grouped else 1), 3, 3)) / 5,
        "w2": rng.standard_normal((4, WIDTH, 3, 3)) / 5,
    }
    if deaf:
        arrays["w1"] = np.zeros_like(arrays["w1"])
    tensors = {
        name: numpy_helper.from_array(array.astype(np.float32), name) for name, array in arrays.items()
    }
    nodes = []
    if constant_nodes:
        nodes = [
            helper.make_node("Constant", [], [name], f"const_{name}", value=t) for name, t in tensors.items()
        ]
    nodes += [
        helper.make_node("Conv", ["image", "w0"], ["c0"], "conv0", pads=[1] * 4),
        helper.make_node("Relu", ["c0"], ["r0"], "relu0"),
        helper.make_node("Conv", ["r0", "w1"], ["c1"], "conv1", pads=[1] * 4, group=2 if grouped else 1),
        helper.make_node("Relu", ["c1"], ["r1"], "relu1"),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], "conv2", pads=[1] * 4),
        helper.make_node("GlobalAveragePool", ["c2"], ["p"], "pool"),
        helper.make_node("Flatten", ["p"], ["scores"], "flatten"),
    ]
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["n", 4])],
        [] if constant_nodes else list(tensors.values()),
    )
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    ensure_names(model)
    infer_shapes(model)
    return model


def measured(model: ir.Model, folder) -> dict[str, float]:  # type: ignore[no-untyped-def]
    path = folder / "data.npz"
    images = np.random.default_rng(1).standard_normal((24, 3, SIZE, SIZE)).astype(np.float32)
    np.savez(path, image=images)
    target = CpuTarget(threads=1)
    context = Context(
        capabilities=target.capabilities(),
        build=target.reference,
        samples=[{"image": images[:1]}],
        calibration=open_data(path, input_specs(model)),
    )
    return sensitivities(model, analyse(model).prunable, context)


@pytest.mark.parametrize("options", [{}, {"grouped": True}, {"constant_nodes": True}])
def test_every_group_is_disturbed_and_the_average_is_one(options: dict[str, bool], tmp_path) -> None:  # type: ignore[no-untyped-def]
    found = measured(chain(**options), tmp_path)
    assert set(found) >= {"conv0", "conv1"}
    assert np.mean(list(found.values())) == pytest.approx(1.0, abs=0.01)
    assert min(found.values()) > 0.02, "nothing here is harmless"


def test_constants_in_nodes_count_like_initializers(tmp_path) -> None:  # type: ignore[no-untyped-def]
    assert measured(chain(constant_nodes=True), tmp_path) == pytest.approx(measured(chain(), tmp_path))


def test_the_model_is_left_as_it_was(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model = chain()
    before = {name: value.const_value.numpy().copy() for name, value in model.graph.initializers.items()}
    measured(model, tmp_path)
    assert set(model.graph.initializers) == set(before)
    for name, array in before.items():
        np.testing.assert_array_equal(model.graph.initializers[name].const_value.numpy(), array)


def test_outputs_that_do_not_vary_make_all_groups_equal(tmp_path) -> None:  # type: ignore[no-untyped-def]
    found = measured(chain(deaf=True), tmp_path)
    assert all(np.isfinite(value) and value > 0 for value in found.values())


def test_an_output_without_axes_is_compared_too(tmp_path) -> None:  # type: ignore[no-untyped-def]
    model = chain()
    total = ir.node("ReduceSum", [model.graph.outputs[0]], {"keepdims": 0}, name="total")
    total.outputs[0].name, total.outputs[0].type = "total", ir.TensorType(ir.DataType.FLOAT)
    total.outputs[0].shape = ir.Shape([])
    model.graph.append(total)
    model.graph.outputs[0] = total.outputs[0]
    infer_shapes(model)
    assert min(measured(model, tmp_path).values()) > 0


@pytest.mark.parametrize("rows", [1, 4])
def test_budgets_of_work_count_sizes_that_only_the_samples_tell(rows: int, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    """Of convolutions on images of any size: as long as these are not bound the work seems to be nothing."""
    model = chain()
    macs = macs_per_sample(model, ())
    assert macs == SIZE * SIZE * 9 * (WIDTH * 3 + WIDTH * WIDTH + 4 * WIDTH)
    image = model.graph.inputs[0]
    image.shape = ir.Shape(["n", 3, "h", "w"])
    for node in model.graph:
        for value in node.outputs:
            value.shape = None
    infer_shapes(model)
    assert macs_per_sample(model, ()) < macs / 10
    samples = [{"image": np.zeros((rows, 3, SIZE, SIZE), np.float32)}]
    assert macs_per_sample(model, samples) == macs
    target = CpuTarget(threads=1)
    source = Images(np.random.default_rng(1).standard_normal((200, 3, SIZE, SIZE)).astype(np.float32))
    context = Context(target.capabilities(), target.reference, samples, calibration=source)
    monkeypatch.setattr(_repair_gate, "_WORK", 10.5 * macs)
    assert _repair_gate._judges(model, context).count == 10
    groups, seen = analyse(model).prunable, []
    monkeypatch.setattr(_prune_sensitivity, "_WORK", 10.5 * macs * len(groups))
    run_one = _prune_sensitivity.run_one
    monkeypatch.setattr(
        _prune_sensitivity, "run_one", lambda engine, item: (seen.append(item), run_one(engine, item))[1]
    )
    sensitivities(model, groups, context)
    assert len({id(item) for item in seen}) == 10


@dataclass(frozen=True)
class Images:
    """A data source over images in memory."""

    images: Array
    name: str = "images"
    has_labels: bool = False
    synthetic: bool = False

    @property
    def count(self) -> int:
        return len(self.images)

    def digest(self) -> str:
        return ""

    def batches(self, size: int) -> Iterator[Batch]:
        for start in range(0, self.count, size):
            yield Batch({"image": self.images[start : start + size]})
