"""Passes from a Relax module with our kernels and ordinary operators to one with kernel calls only."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from greencc.targets._tvm.machine import Machine
from greencc.targets._tvm.planning import VIEWS
from greencc.targets._tvm.schedule_default import schedule

if TYPE_CHECKING:
    from tvm.ir import IRModule


def llvm_target(machine: Machine) -> Any:
    """TVM's target for a machine."""
    from tvm.target import Target

    wanted: dict[str, Any] = {"kind": "llvm", "mtriple": machine.triple, "mcpu": machine.cpu}
    if machine.features:
        wanted["mattr"] = [f"+{name}" for name in sorted(machine.features)]
    if machine.triple.startswith("arm"):
        wanted["mfloat-abi"] = "hard"
    return Target(wanted)


def lower_to_kernels(module: IRModule, machine: Machine) -> IRModule:
    """Turn every ordinary operator into a kernel, and fuse what is element-wise into its neighbours.

    Functions that are scheduled already keep their names: their access pattern is opaque to the fusion. Reshapes stay
    operators, which `planning` makes views of.

    Args:
        module: ``main`` and the functions that it calls.
        machine: What code is generated for.
    """
    import tvm
    from tvm import relax

    transform = relax.transform
    passes = tvm.transform.Sequential(
        [
            transform.DecomposeOpsForInference(),
            transform.CanonicalizeBindings(),
            transform.LegalizeOps(skip_ops=list(VIEWS)),
            transform.AnnotateTIROpPattern(),
            transform.FoldConstant(),
            transform.FuseOps(),
            transform.FuseTIR(),
            transform.CanonicalizeBindings(),
            transform.DeadCodeElimination(["main"]),
            transform.AttachGlobalSymbol(),
        ]
    )
    with llvm_target(machine):
        return schedule(passes(module), machine)


def compile_object(module: IRModule, machine: Machine, *, checked: bool = False) -> bytes:
    """The object file of a module's TIR functions. `main` is left out: the plan takes its place.

    Args:
        module: From `lower_to_kernels`.
        machine: What code is generated for.
        checked: Functions check the shapes and types of their arguments. They follow from the plan, which is made from
            the same module: checks are much code for nothing.
    """
    import tempfile
    from pathlib import Path

    import tvm
    from tvm import tirx

    functions = {
        name: function for name, function in module.functions.items() if isinstance(function, tirx.PrimFunc)
    }
    with tvm.transform.PassContext(config={"tirx.disable_assert": not checked}):
        built = tirx.build(tvm.IRModule(functions), target=llvm_target(machine))
    with tempfile.TemporaryDirectory(prefix="greencc-") as folder:
        path = Path(folder) / "kernels.o"
        built.write_to_file(str(path), "o")
        return path.read_bytes()
