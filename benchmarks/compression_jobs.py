"""Jobs of the compression benchmark that run in processes of their own: Torch-Pruning, TensorLy, and fine-tuning.

Each peer is called as its documentation advises. Every import is inside its job.
"""

from __future__ import annotations

import math
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.compression_resnet import make_resnet50
from benchmarks.job_tools import Clock, Result

if TYPE_CHECKING:
    import numpy as np
    import onnx

OPSET = 17
"""The newest that onnx2torch knows for every operator of the models here; also what is exported."""
STEPS = 200
"""Of Torch-Pruning's iterative pruning to a speed-up; its own benchmark takes 200 to 400."""
SEARCH_STEPS = 12


def prune_torch(
    model: str,
    calibration: str,
    samples: int,
    folder: str,
    ratio: float,
    everywhere: bool = True,
    round_to: int | None = None,
) -> Result:
    """Torch-Pruning: `BasePruner` with `GroupMagnitudeImportance`, step by step until the MACs are reached.

    As in its own benchmark (`progressive_pruning`). The model is converted by onnx2torch, the layer that makes the
    outputs is left out of the pruning, as its documentation asks for, and the result is exported by PyTorch.
    """
    _torchvision_or_none()
    import numpy as np
    import onnx
    import onnx2torch
    import torch
    import torch_pruning

    del samples
    clock = Clock()
    source = at_opset(onnx.load(model), OPSET)
    names = [value.name for value in source.graph.input]
    with np.load(calibration) as archive:
        example = tuple(torch.from_numpy(archive[name][:1]) for name in names)
    network = onnx2torch.convert(source).eval()
    for parameter in network.parameters():
        parameter.requires_grad_(True)
    weighted = [layer for layer in network.modules() if isinstance(layer, torch.nn.Linear | torch.nn.Conv2d)]
    before, _ = torch_pruning.utils.count_ops_and_params(network, example)
    pruner = torch_pruning.pruner.BasePruner(
        network,
        example,
        importance=torch_pruning.importance.GroupMagnitudeImportance(),
        global_pruning=everywhere,
        pruning_ratio=1.0,
        iterative_steps=STEPS,
        ignored_layers=weighted[-1:],
        round_to=round_to,
    )
    left = before
    while left > (1.0 - ratio) * before and pruner.current_step < STEPS:
        pruner.step()
        left, _ = torch_pruning.utils.count_ops_and_params(network, example)
    artifact = Path(folder) / "model.onnx"
    artifact.parent.mkdir(parents=True, exist_ok=True)
    torch.onnx.export(
        network,
        example,
        str(artifact),
        input_names=names,
        output_names=[value.name for value in source.graph.output],
        dynamic_axes={name: {0: "N"} for name in names},
        opset_version=OPSET,
        dynamo=False,
    )
    return clock.result(artifact, notes={"steps": pruner.current_step})


def tucker_tensorly(model: str, calibration: str, samples: int, folder: str, ratio: float) -> Result:
    """TensorLy's `partial_tucker` over the channels of every k x k convolution: naive Tucker-2, no data, no repair.

    All convolutions keep the same share of their channels as ranks (Kim et al., arXiv 1511.06530, without its rank
    selection); the share is searched for that gives the MACs. A convolution that would not get cheaper stays whole.
    """
    import numpy as np
    import onnx
    from tensorly.decomposition import partial_tucker

    clock = Clock()
    del samples
    source = onnx.load(model)
    with np.load(calibration) as archive:
        shapes = {name: (1, *archive[name].shape[1:]) for name in archive.files if name != "labels"}
    work = _work_by_output(Path(model), shapes)
    weights = {tensor.name: tensor for tensor in source.graph.initializer}
    layers, convolutions = {}, {}
    for node in source.graph.node:
        tensor = weights.get(node.input[1]) if node.op_type == "Conv" else None
        if tensor is not None and _is_dense(node, tensor.dims):
            layers[node.output[0]] = onnx.numpy_helper.to_array(tensor)
            strides = next((item.ints for item in node.attribute if item.name == "strides"), ())
            convolutions[node.output[0]] = Convolution(tuple(tensor.dims), math.prod(strides))
    if not layers:
        raise RuntimeError("the model has no k x k convolution that is not grouped")
    share = rank_share(convolutions, work, ratio)
    nodes = []
    for node in source.graph.node:
        key = node.output[0] if node.output else ""
        ranks = convolutions[key].ranks(share) if key in convolutions else None
        if ranks is None:
            nodes.append(node)
            continue
        weight = layers[key]
        (core, (left, right)), _ = partial_tucker(weight, rank=list(ranks), modes=[0, 1], init="svd")
        nodes += tucker_nodes(node, np.asarray(core), np.asarray(left), np.asarray(right), source)
    del source.graph.node[:]
    source.graph.node.extend(nodes)
    # Shapes of values and weights that are no more.
    del source.graph.value_info[:]
    used = {name for node in source.graph.node for name in node.input}
    for tensor in [tensor for tensor in source.graph.initializer if tensor.name not in used]:
        source.graph.initializer.remove(tensor)
    artifact = Path(folder) / "model.onnx"
    artifact.parent.mkdir(parents=True, exist_ok=True)
    onnx.save(source, artifact)
    return clock.result(artifact, notes={"rank_share": share})


@dataclass(frozen=True)
class Convolution:
    """What Tucker-2 costs.

    Attributes:
        shape: Of the weight: outputs, inputs, kernel.
        stride: Input positions by output positions: the first of the three layers runs on the input's.
    """

    shape: tuple[int, ...]
    stride: int = 1

    def cost(self, ranks: tuple[int, int]) -> float:
        """Work of the three layers, as a share of the convolution's."""
        outputs, inputs, *kernel = self.shape
        size = math.prod(kernel)
        first, core, last = inputs * ranks[1] * self.stride, ranks[0] * ranks[1] * size, outputs * ranks[0]
        return (first + core + last) / (outputs * inputs * size)

    def ranks(self, share: float) -> tuple[int, int] | None:
        """Ranks (outputs, inputs) at a share of the channels; None where the three layers are no cheaper."""
        ranks = max(1, round(share * self.shape[0])), max(1, round(share * self.shape[1]))
        return ranks if self.cost(ranks) < 1.0 else None


def rank_share(convolutions: dict[str, Convolution], work: dict[str, int], ratio: float) -> float:
    """The share of channels whose ranks remove `ratio` of all the work, by bisection."""
    total = sum(work.values())

    def removed(share: float) -> float:
        saved = 0.0
        for key, convolution in convolutions.items():
            ranks = convolution.ranks(share)
            saved += 0.0 if ranks is None else work[key] * (1.0 - convolution.cost(ranks))
        return saved / total

    low, high = 0.0, 1.0
    if removed(low) < ratio:
        raise RuntimeError(f"Tucker-2 with ranks of 1 removes {removed(low):.0%} of the MACs")
    for _ in range(SEARCH_STEPS):
        middle = (low + high) / 2
        low, high = (middle, high) if removed(middle) >= ratio else (low, middle)
    return low


def tucker_nodes(
    node: onnx.NodeProto, core: np.ndarray, left: np.ndarray, right: np.ndarray, model: onnx.ModelProto
) -> list[onnx.NodeProto]:
    """1 x 1 to the input rank, k x k with the strides and pads of the original, 1 x 1 to the outputs with its bias."""
    import numpy as np
    import onnx

    name, rank = node.output[0], core.ndim - 2
    ones = (1,) * rank
    parts = {
        "in": right.T.reshape(*right.T.shape, *ones),
        "core": core,
        "out": left.reshape(*left.shape, *ones),
    }
    for part, values in parts.items():
        tensor = np.ascontiguousarray(values, dtype=np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(tensor, f"{name}.{part}.weight"))
    middle = onnx.helper.make_node("Conv", [f"{name}.in", f"{name}.core.weight"], [f"{name}.core"])
    middle.attribute.extend(node.attribute)
    bias = list(node.input[2:])
    return [
        onnx.helper.make_node("Conv", [node.input[0], f"{name}.in.weight"], [f"{name}.in"]),
        middle,
        onnx.helper.make_node("Conv", [f"{name}.core", f"{name}.out.weight", *bias], [name]),
    ]


def at_opset(model: onnx.ModelProto, newest: int) -> onnx.ModelProto:
    """The model at an opset that is no newer: the peers' converters know no newer operators."""
    import onnx
    import onnx.version_converter

    if next(item.version for item in model.opset_import if item.domain in ("", "ai.onnx")) <= newest:
        return model
    older = onnx.version_converter.convert_version(model, newest)
    for node in older.graph.node:
        # The converter leaves the attribute of version 18 on reductions, where it has no meaning yet.
        kept = [item for item in node.attribute if item.name != "noop_with_empty_axes"]
        del node.attribute[:]
        node.attribute.extend(kept)
    return older


def _is_dense(node: onnx.NodeProto, dims: Any) -> bool:
    groups = next((item.i for item in node.attribute if item.name == "group"), 1)
    return groups == 1 and any(extent > 1 for extent in dims[2:])


def _work_by_output(model: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, int]:
    """MACs of the weighted nodes, by the name of their output."""
    from greencc.core.describe import nodes_cost
    from greencc.core.model import load_model
    from greencc.core.shapes import bind_dims

    bound = bind_dims(load_model(model), shapes)
    costs = nodes_cost(bound)
    outputs = [node.outputs[0].name or "" for node in bound.graph]
    return {name: cost.macs for name, cost in zip(outputs, costs, strict=True) if cost.macs}


def _torchvision_or_none() -> None:
    """onnx2torch imports torchvision for detectors' operators alone, and PyPI's is built for PyTorch with CUDA.

    Beside PyTorch for the CPU its import fails; no model here has those operators.
    """
    try:
        import torchvision  # noqa: F401
    except (ImportError, RuntimeError):
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        package, ops = types.ModuleType("torchvision"), types.ModuleType("torchvision.ops")
        vars(ops).update(nms=None, roi_align=None)
        vars(package)["ops"] = ops
        sys.modules.update({"torchvision": package, "torchvision.ops": ops})


def recover(model: str, start: str, training: str, folder: str, epochs: int, images: bool) -> Result:
    """Fine-tune what is at `start` with the original as the teacher: the training of `greencc recover`.

    Whoever made the network, the data, the optimiser, the loss (the teacher's softened outputs, no labels, no inner
    values: peers' exports have other names) and the augmentation are the same.
    """
    from greencc.calibration import open_data, take
    from greencc.core.describe import input_specs
    from greencc.core.model import digest, load_model
    from greencc.core.passes import Context
    from greencc.recover._student import teach
    from greencc.recover._train import Job
    from greencc.recover.options import RecoverOptions
    from greencc.targets.cpu import CpuTarget

    clock = Clock()
    target = CpuTarget()
    teacher, student = load_model(Path(model)), load_model(Path(start))
    data = open_data(training, input_specs(teacher), role="training")
    options = RecoverOptions(epochs=epochs, features=0.0, mixup=images, shift=2 if images else 0)
    context = Context(
        capabilities=target.capabilities(),
        build=target.reference,
        samples=[batch.feeds for batch in take(data, 2).batches(1)],
        calibration=data,
        observe=target.calibration_engine,
    )
    taught = teach(teacher, student, (), Job(data, options, digest(student)), context, options.batch)
    artifact = target.build(target.lower(taught.model), Path(folder))
    losses = [loss for run in taught.runs for loss in run.loss]
    notes = {"epochs": epochs, "samples": data.count, "loss": [losses[0], losses[-1]]}
    return clock.result(artifact, notes=notes)


COMPRESSION_JOBS: dict[str, Callable[..., Result]] = {
    "prune-torch": prune_torch,
    "tucker-tensorly": tucker_tensorly,
    "recover": recover,
    "make-resnet50": make_resnet50,
}
