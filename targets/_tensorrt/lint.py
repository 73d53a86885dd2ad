"""Finds what a TensorRT version on a GPU refuses in an ONNX model, gets wrong, or runs slower than it could.

TensorRT accepts several faults silently and computes something else: a Conv whose weight scales lie along another axis,
UINT8 or missing zero points, opsets newer than its parser. They are looked for in the graph, without TensorRT.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from greencc.targets._tensorrt.faults import Fault, Rule, Severity
from greencc.targets._tensorrt.machine import TensorRtMachine
from greencc.targets._tensorrt.rules import CHECKS, Context

__all__ = ["Fault", "Rule", "Severity", "errors", "lint"]


def lint(
    model: ir.Model,
    machine: TensorRtMachine,
    *,
    dla: bool = False,
    gpu: bool = True,
    defaults: Collection[str] = (),
) -> tuple[Fault, ...]:
    """Check a model.

    Args:
        model: With inferred shapes; not changed.
        machine: What it is checked against.
        dla: It is to run on a deep-learning accelerator.
        gpu: The GPU is known. Without it the rules that depend on it are left out, and `machine.gpu` is not read.
        defaults: Graph inputs that have a default in the file, which `load_model` drops from the inputs.

    Returns:
        Faults, each once, errors before warnings, otherwise rule by rule and in graph order.
    """
    context = Context(model, machine, dla=dla, gpu=gpu, defaults=defaults)
    found = dict.fromkeys(fault for check in CHECKS for fault in check(context))
    return tuple(sorted(found, key=lambda fault: fault.severity is Severity.WARNING))


def errors(faults: Collection[Fault]) -> tuple[Fault, ...]:
    """Those that make TensorRT refuse the graph or compute something else."""
    return tuple(fault for fault in faults if fault.severity is Severity.ERROR)
