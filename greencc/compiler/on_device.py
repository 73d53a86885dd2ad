"""Where a compile's engines run: this computer, or a device (`--device`), connected for as long as the work lasts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext

from greencc.bundle import Bundle
from greencc.compiler.options import DEFAULT_TARGET
from greencc.compiler.session import available_target
from greencc.core.capabilities import Capabilities
from greencc.core.engine import Engine, Target
from greencc.core.errors import UnavailableError, UsageError
from greencc.core.machine import CpuInfo
from greencc.core.progress import Progress, silent
from greencc.devices.address import LOCAL
from greencc.devices.client import AgentClient
from greencc.devices.facts import DeviceFacts
from greencc.devices.fitting import Fit, Needs, check, matching
from greencc.devices.opening import find_device, open_transport
from greencc.devices.site import DeviceSite
from greencc.devices.target import DeviceTarget
from greencc.targets import CpuTarget, TensorRtTarget, make_target
from greencc.targets._cpu_capabilities import cpu_capabilities
from greencc.targets._ort_facts import runtime_facts
from greencc.targets._tensorrt.gpus import Gpu, gpu_named
from greencc.targets._tensorrt.machine import architecture
from greencc.targets._tensorrt.presets import releases_by_preset
from greencc.targets.tensorrt import FoundTensorRtTarget


@contextmanager
def opened_target(
    spec: str, device: str = "", *, power_mode: str | None = None, progress: Progress = silent
) -> Iterator[Target]:
    """What a spec names, ready to build and run: here, or on a device.

    However the work ends, the device's power mode is put back and the connection closed.

    Args:
        spec: Of the target; empty: ``cpu``, or what fits the device.
        device: ``ssh://user@host``, a name of `greencc devices add`, or ``local``; empty: this computer.
        power_mode: None: that of the device stays as it is. A name: it is changed to that one. Empty: it may be changed
            (`DeviceTarget.with_power_mode`).
        progress: Shows what is sent, built and run there.

    Raises:
        UsageError: There is no such target, option or device, or a power mode is given without a device.
        UnavailableError: The target cannot run there, or the device is not to be reached.
        InputError: The device is another one than the target is for.
    """
    if not device:
        if power_mode is not None:
            raise UsageError(
                "a power mode is changed on a device, and none is given", hint="add --device ssh://user@host"
            )
        target = available_target(spec or DEFAULT_TARGET)
        if not _is_gpu_here(target):
            yield target
            return
        device = LOCAL
    known = find_device(device)
    wanted = spec or ("" if known is None else known.target)
    with AgentClient(open_transport(device), progress=progress) as client:
        there = device_target(client, wanted, may_change_mode=power_mode is not None, progress=progress)
        with there.with_power_mode(power_mode) if power_mode else nullcontext():
            yield there
    if power_mode is not None and client.farewell is not None:
        raise UnavailableError(
            f"{client.name}: what was asked for is done, but the power mode may not be what it was: {client.farewell}",
            hint="the agent's watchdog puts it back; look there with: nvpmodel -q",
        )


def _is_gpu_here(target: Target) -> bool:
    """TensorRT on the GPU of this computer: its engines are in the agent's processes, as on any device."""
    return isinstance(target, TensorRtTarget) and target.here


def opened_engine(bundle: Bundle, device: str, progress: Progress, opened: ExitStack) -> Engine:
    """A bundle's engine, here or on a device, open until the stack is closed.

    Raises:
        GreenccError: As `opened_target` and `Bundle.engine`.
    """
    if not device:
        return bundle.engine()
    target = opened.enter_context(opened_target(bundle.manifest.target, device, progress=progress))
    engine = target.open(bundle.runnable())
    opened.callback(engine.close)
    return engine


def device_target(
    client: AgentClient, spec: str = "", *, may_change_mode: bool = False, progress: Progress = silent
) -> DeviceTarget:
    """The target that a spec names on the device that a client is connected to.

    Args:
        client: Open for as long as the target is used.
        spec: Of the target; empty: what fits the device.
        may_change_mode: Whether the device's power mode may be changed.
        progress: Shows for whom a job waits there.

    Raises:
        UsageError: There is no such target or option, or it runs on this computer alone.
        UnavailableError: It cannot run there, or no target is known for the device.
        InputError: The device is another one than the target is for.
    """
    facts = client.facts()
    fit = matching(facts, releases_by_preset())
    base = _with_gpu(make_target(spec), facts) if spec else _fitting(facts, fit, client.name)
    if not base.builder:
        raise UsageError(
            f"{base.name} runs on this computer alone, not on {client.name}",
            hint="leave --target out: greencc takes what fits the device",
        )
    if missing := base.missing():
        raise UnavailableError(
            f"target {base.name!r} is not available here: {missing}", hint="see 'greencc doctor'"
        )
    _check_processor(base, facts, client.name)
    check(facts, _needs(base), client.name, fit)
    site = DeviceSite(client, base.processor, facts, progress)
    target = DeviceTarget(base, site, may_change_mode, _abilities(base, facts))
    if missing := target.missing():
        raise UnavailableError(missing, hint=f"see 'greencc devices probe {client.name}'")
    return target


def _fitting(facts: DeviceFacts, fit: Fit, name: str) -> Target:
    """The target that a device is; ONNX Runtime where nothing better can be compiled here."""
    reason = fit.reason
    if fit.target is not None:
        base = _with_gpu(make_target(fit.target), facts)
        lacking = base.missing()
        there = facts.backends.get(base.builder)
        if lacking is None and there is not None and there.missing is None:
            return base
        reason = lacking or (there.missing if there is not None else None) or reason
    runtime = facts.backends.get(CpuTarget.builder)
    if runtime is not None and runtime.missing is None:
        return CpuTarget()
    raise UnavailableError(
        f"nothing can be compiled for {name}: {reason}",
        hint=fit.remedy
        or "name a target with --target, or install onnxruntime there: pip install onnxruntime",
    )


def _with_gpu(base: Target, facts: DeviceFacts) -> Target:
    """A target for 'the GPU here' is for the GPU there, whatever it is called.

    Raises:
        UnavailableError: It has none, or one of a kind that is not known.
    """
    if not isinstance(base, TensorRtTarget) or not base.here:
        return base
    gpu = facts.gpu
    if gpu is None or gpu.sm is None:
        raise UnavailableError(
            "the device shows no NVIDIA GPU, which the target tensorrt needs",
            hint="is its driver installed (there: nvidia-smi)?",
        )
    try:
        architecture(gpu.sm)
    except UsageError as error:
        raise UnavailableError(
            f"the device's {gpu.name} is not known: {error.message}", hint=error.hint
        ) from error
    return FoundTensorRtTarget(
        batch=base.batch,
        max_batch=base.max_batch,
        sparse=base.sparse,
        version=base.version or ".".join((facts.tensorrt or "").split(".")[:2]),
        gpu=gpu_named(gpu.name, gpu.sm),
        found=Gpu(gpu.name, gpu.sm, gpu.memory_bytes),
    )


def _needs(base: Target) -> Needs:
    """What a device must have to run what is compiled for a target."""
    described = base.device()
    facts = described.facts
    if "tensorrt" not in facts:
        return Needs(described.name)
    return Needs(
        described.name,
        sm=int(facts["compute_capability"].replace(".", "")),
        tensorrt=facts["tensorrt"],
        preset=facts.get("preset") if base.name == "jetson" else None,
    )


def _check_processor(base: Target, facts: DeviceFacts, name: str) -> None:
    """Refuse compiled code for another kind of processor."""
    built_for = base.device().facts.get("architecture")
    if base.ships_code and built_for is not None and facts.machine not in (None, built_for):
        raise UnavailableError(
            f"{name} has a processor of the kind {facts.machine}, and {base.name} compiles for {built_for}",
            hint="leave --target out: greencc takes what fits the device",
        )


def _abilities(base: Target, facts: DeviceFacts) -> Capabilities | None:
    """What ONNX Runtime can do on the device's processor, rather than on this one; None: what the base says."""
    if not isinstance(base, CpuTarget):
        return None
    cpu = CpuInfo(
        architecture=facts.machine or "",
        model=facts.cpu or facts.title,
        vendor="",
        features=frozenset(facts.features),
        logical=facts.processors or 1,
        virtualised=None,
    )
    return cpu_capabilities(cpu, runtime_facts())
