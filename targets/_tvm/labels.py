"""What kernels are called for people: enough to tell one from another in a list."""

from __future__ import annotations

import math

from greencc.targets._tvm.epilogue import (
    AddChannels,
    AddTensor,
    Apply,
    Clip,
    Epilogue,
    ScaleChannels,
    Step,
)
from greencc.targets._tvm.workload import (
    BatchedProduct,
    Conv,
    Dense,
    Depthwise,
    Pool,
    Window,
    Workload,
    form_of,
)


def label_of(workload: Workload) -> str:
    """A workload, such as ``conv 56x56 64->128 3x3/2 pad 1 uint8, relu, to uint8``: what follows a comma is fused."""
    form = form_of(workload)
    return ", ".join([_computed(form), *_fused(form.epilogue)])


def _computed(workload: Workload) -> str:
    if isinstance(workload, BatchedProduct):
        m, k, n = workload.shape
        return f"product {m}x{k}x{n} float32" + (" transposed" if workload.transposed else "")
    if isinstance(workload, Dense):
        return f"dense {workload.rows}x{workload.channels[0]}->{workload.channels[1]} {workload.data}"
    window = workload.window
    size = f"{window.height}x{window.width}"
    if isinstance(workload, Conv):
        groups = f" {workload.groups} groups" if workload.groups > 1 else ""
        channels = f"{workload.channels[0]}->{workload.channels[1]}{groups}"
        return f"conv {size} {channels} {_slides(window)} {workload.data}"
    assert isinstance(workload, Depthwise | Pool)
    kind = "depthwise" if isinstance(workload, Depthwise) else f"{workload.kind.value}-pool"
    return f"{kind} {size} {workload.channels} {_slides(window)} {workload.data}"


def _slides(window: Window) -> str:
    text = _sizes(window.kernel, "x", keep=True)
    if max(window.strides) > 1:
        text += f"/{_sizes(window.strides, 'x')}"
    if any(window.pads):
        text += f" pad {_sizes(window.pads, ',')}"
    if max(window.dilations) > 1:
        text += f" dilation {_sizes(window.dilations, 'x')}"
    return text


def _sizes(sizes: tuple[int, ...], separator: str, *, keep: bool = False) -> str:
    """All of them, or one where all are the same."""
    return str(sizes[0]) if len(set(sizes)) == 1 and not keep else separator.join(map(str, sizes))


def _fused(epilogue: Epilogue) -> list[str]:
    parts = ["bias"] if epilogue.bias else []
    parts += [_step(step) for step in epilogue.steps]
    if epilogue.quantize is not None:
        scaled = "scaled " if epilogue.quantize.scale != 1.0 else ""
        parts.append(f"{scaled}to {epilogue.quantize.dtype}")
    return parts


def _step(step: Step) -> str:
    match step:
        case AddTensor():
            return "add" if step.dtype == "float32" else f"add {step.dtype}"
        case Clip():
            return "relu" if (step.low, step.high) == (0.0, math.inf) else f"clip {step.low:g}..{step.high:g}"
        case Apply():
            return step.function.value
        case ScaleChannels():
            return "scale"
        case AddChannels():
            return "shift"
