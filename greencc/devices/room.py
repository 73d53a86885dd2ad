"""Whether a device can hold what it is to build, found before anything is sent."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from greencc.core.engine import BuildOrder
from greencc.core.errors import InputError, UnavailableError
from greencc.core.kernels import kernels_of
from greencc.core.model import load_model
from greencc.core.shapes import bind_sizes
from greencc.devices.facts import DeviceFacts

_SPARE_BYTES = 256 << 20
"""Of memory, for the operating system and the builder's own code."""
_GRAPH = ".onnx"


@dataclass(frozen=True)
class Room:
    """What a build takes at least.

    Attributes:
        memory_bytes: Weights, and what the most demanding kernel reads and writes; a builder takes more.
        disk_bytes: Of what is sent, and of an engine of that size.
        on_gpu: The engine is in the memory of the GPU, where that has its own.
    """

    memory_bytes: int
    disk_bytes: int
    on_gpu: bool = True


def most_samples(order: BuildOrder) -> int | None:
    """The largest batch that all inputs with a free one are built for; None: none has."""
    shapes = order.options.get("shapes")
    if not isinstance(shapes, Mapping) or not shapes:
        return None
    return min(int(each["max"][0]) for each in shapes.values())


def room_of(order: BuildOrder) -> Room:
    """What an artifact takes on a device, estimated from its files and its graph.

    Raises:
        InputError: A file cannot be read.
    """
    try:
        sent = sum(path.stat().st_size for path in order.files)
    except OSError as error:
        raise InputError(f"cannot read {error.filename}: {error.strerror}") from error
    return Room(sent + _activations(order), 2 * sent, order.backend == "tensorrt")


def check_room(facts: DeviceFacts, room: Room, title: str, name: str) -> None:
    """Refuse what a device cannot hold even when nothing else is on it.

    Args:
        facts: The device's.
        room: What is needed.
        title: Of what is built.
        name: The device's, for messages.

    Raises:
        InputError: It is larger than the device's memory.
        UnavailableError: It is larger than what the disk has left, with all that greencc keeps there.
    """
    memory, spare = _memory(facts, room.on_gpu)
    if memory is not None and room.memory_bytes + spare > memory:
        reserve = f", of which the system needs {_mb(spare)}" if spare else ""
        raise InputError(
            f"{title} needs at least {_mb(room.memory_bytes)} of memory (estimated before anything is copied), and "
            f"{name} has {_mb(memory)}{reserve}",
            hint="compile a smaller model or batch (max_batch), with fewer bits, or for a device with more memory",
        )
    free = facts.disk_free_bytes
    if free is not None and room.disk_bytes > free + (facts.disk_used_bytes or 0):
        raise UnavailableError(
            f"{name} has {_mb(free)} of free disk, and {title} needs about {_mb(room.disk_bytes)}",
            hint=f"free some there; 'greencc devices clean {name} --all' removes what greencc keeps there",
        )


def _memory(facts: DeviceFacts, on_gpu: bool) -> tuple[int | None, int]:
    """Where the engine will be, and what of it is not for engines; a Jetson's GPU shares the memory of the machine."""
    if on_gpu and not facts.is_jetson and facts.gpu is not None and facts.gpu.memory_bytes is not None:
        return facts.gpu.memory_bytes, 0
    return facts.memory_bytes, _SPARE_BYTES


def _activations(order: BuildOrder) -> int:
    """Bytes that the most demanding kernel of a graph reads and writes; 0 where they cannot be counted."""
    if order.main.suffix != _GRAPH:
        return 0
    model = load_model(order.main)
    try:
        return int(kernels_of(bind_sizes(model, {}, batch=most_samples(order) or 1)).activation_bytes)
    except InputError:
        # A graph whose sizes nothing tells: its weights are what is known.
        return 0


def _mb(count: int) -> str:
    return f"{count / 1e6:,.0f} MB"
