"""Which template writes the kernel of a workload."""

from __future__ import annotations

from greencc.targets._tvm.kernels.template import Template
from greencc.targets._tvm.workload import BatchedProduct, Conv, Dense, Depthwise, Pool, Workload


def template_of(workload: Workload) -> Template:
    """The template for this kind of workload."""
    match workload:
        case Conv():
            from greencc.targets._tvm.kernels.conv import CONV

            return CONV
        case Dense():
            from greencc.targets._tvm.kernels.dense import DENSE

            return DENSE
        case BatchedProduct():
            from greencc.targets._tvm.kernels.batched import BATCHED

            return BATCHED
        case Depthwise():
            from greencc.targets._tvm.kernels.depthwise import DEPTHWISE

            return DEPTHWISE
        case Pool():
            from greencc.targets._tvm.kernels.pool import POOL

            return POOL
