"""`greencc estimate`: latency, energy and power of a model or bundle on a device, from its profile."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path

import onnx_ir as ir

from greencc.bundle import load
from greencc.core.errors import InputError, UsageError, did_you_mean
from greencc.core.kernels import Kernels, in_precision, kernels_of
from greencc.core.model import load_model
from greencc.meters.device import DeviceProfile, PowerMode
from greencc.meters.device_store import LOCAL, calibrated_profile, find_profile
from greencc.meters.roofline import Estimate, estimate
from greencc.targets import make_target


class EstimatePrecision(Enum):
    """What a float graph is counted as."""

    FP32 = "fp32"
    FP16 = "fp16"
    INT8 = "int8"


_MOST = 1024
_DTYPES = {
    EstimatePrecision.FP32: "FLOAT",
    EstimatePrecision.FP16: "FLOAT16",
    EstimatePrecision.INT8: "INT8",
}


@dataclass(frozen=True)
class EstimateOptions:
    """What is asked.

    Attributes:
        device: Name of a profile, ``local``, or a ``.toml`` file.
        mode: Power mode; None: the device's default one.
        precision: Count a float graph as if it ran so; None: as it is.
        batch: Samples per inference.
        threads: For a CPU; None: all cores of the profile.
        rate: Inferences per second asked for.
        sizes: Of named dynamic dimensions.
    """

    device: str
    mode: str | None = None
    precision: EstimatePrecision | None = None
    batch: int = 1
    threads: int | None = None
    rate: float | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class ModelEstimate:
    """An estimate and what it is of."""

    model: str
    device: DeviceProfile
    mode: PowerMode
    precision: str
    batch: int
    threads: int | None
    result: Estimate


def estimate_model(path: Path, options: EstimateOptions) -> ModelEstimate:
    """Estimate a model, or the artifact of a bundle.

    Args:
        path: An ONNX file or a bundle folder.
        options: See there.

    Raises:
        InputError: The model, the bundle or the profile is broken, the bundle holds compiled code, or a size does
            not fit.
        UsageError: An unknown device, mode or dimension; options that do not fit the model or the device.
    """
    _check(options)
    device = _device(options)
    mode = device.mode(options.mode)
    model = _model(path)
    _check_sizes(model, options)
    kernels = kernels_of(model, options.sizes, options.batch, fused_conversions=device.fuses_conversions)
    open_sizes = [
        name for name in _dynamic(model) if name not in options.sizes and name not in _batches(model)
    ]
    if kernels.unknown and open_sizes:
        first = kernels.unknown[0]
        raise InputError(
            f"the work of {len(kernels.unknown)} nodes (such as {first.op_type} {first.name!r}) depends on sizes "
            "that are not known",
            hint=f"give them with --size NAME=NUMBER: {', '.join(open_sizes)}",
        )
    kernels, precision, note = _counted_as(kernels, options.precision)
    result = estimate(kernels, device, mode, threads=options.threads, rate=options.rate)
    notes = (note, *result.notes) if note else result.notes
    return ModelEstimate(
        model=str(path),
        device=device,
        mode=mode,
        precision=precision,
        batch=options.batch,
        threads=options.threads,
        result=replace(result, notes=notes),
    )


def _check(options: EstimateOptions) -> None:
    for flag, value in (("--batch", options.batch), ("--threads", options.threads)):
        if value is not None and not 1 <= value <= _MOST:
            raise UsageError(f"{flag} {value}: expected 1 to {_MOST}")


def _device(options: EstimateOptions) -> DeviceProfile:
    """The profile; for this machine the one that was calibrated with as many threads, if there is one."""
    if options.device != LOCAL:
        return find_profile(options.device)
    if options.threads is not None:
        fingerprint = make_target(f"cpu:threads={options.threads}").device().fingerprint
        found = calibrated_profile(fingerprint)
        if found is not None:
            return found
    return find_profile(LOCAL, fingerprint=make_target("cpu").device().fingerprint)


def _model(path: Path) -> ir.Model:
    if not path.exists():
        raise InputError(f"{path} does not exist", hint="give an ONNX model or a bundle folder")
    if not path.is_dir():
        return load_model(path)
    with load(path) as bundle:
        return load_model(bundle.graph)


def _dynamic(model: ir.Model) -> list[str]:
    """Names of the inputs' dynamic dimensions, in order."""
    names = [
        dim.value
        for value in model.graph.inputs
        if value.shape is not None
        for dim in value.shape
        if isinstance(dim, ir.SymbolicDim) and dim.value
    ]
    return list(dict.fromkeys(names))


def _batches(model: ir.Model) -> set[str]:
    """Names of the inputs' first axes, which are bound to the batch."""
    firsts = [value.shape[0] for value in model.graph.inputs if value.shape is not None and len(value.shape)]
    return {dim.value for dim in firsts if isinstance(dim, ir.SymbolicDim) and dim.value}


def _check_sizes(model: ir.Model, options: EstimateOptions) -> None:
    known = _dynamic(model)
    for name, size in options.sizes.items():
        if name not in known:
            hint = did_you_mean(name, known) if known else "all its dimensions are fixed or have no name"
            raise UsageError(f"the model has no dynamic dimension {name!r}", hint=hint)
        if size < 1:
            raise UsageError(f"--size {name}={size}: expected a whole number above 0")
    firsts = [value.shape[0] for value in model.graph.inputs if value.shape is not None and len(value.shape)]
    if options.batch > 1 and firsts and all(isinstance(dim, int) for dim in firsts):
        raise UsageError(
            f"the model's batch is fixed at {firsts[0]}, so it cannot be estimated at {options.batch}",
            hint="leave out --batch, or export the model with a dynamic first axis",
        )


def _counted_as(kernels: Kernels, precision: EstimatePrecision | None) -> tuple[Kernels, str, str | None]:
    """The kernels in the precision asked for, what that is called, and what a reader must know about it."""
    types = sorted({kernel.dtype.lower() for kernel in kernels.items if kernel.multiplications}) or ["none"]
    if precision is None:
        return kernels, " and ".join(types), None
    if any(kernel.dtype in ("INT8", "UINT8") and kernel.multiplications for kernel in kernels.items):
        raise UsageError(
            "the graph is quantized already, and is estimated as it is", hint="leave out --precision"
        )
    if precision is EstimatePrecision.FP32:
        return kernels, " and ".join(types), None
    counted = in_precision(kernels, _DTYPES[precision])
    note = f"counted as if the float graph ran in {precision.value}; nothing was converted"
    if precision is EstimatePrecision.INT8:
        note += (
            ". Operators without integer kernels stay in float; conversions between the two are not counted"
        )
    return counted, f"{precision.value} (as if)", note
