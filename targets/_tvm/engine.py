"""Runs what `library` wrote. TVM is not needed."""

from __future__ import annotations

import ctypes
import itertools
import math
import os
import statistics
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from greencc.core.checked_engine import CheckedEngine
from greencc.core.data import Array, Feeds
from greencc.core.engine import NodeTime
from greencc.core.errors import GreenccError, InputError, UnavailableError, UsageError
from greencc.core.machine import CpuInfo
from greencc.targets._tvm import checked
from greencc.targets._tvm.description import FILE_NAME, LIBRARY, WEIGHTS, read_description
from greencc.targets._tvm.features import check_cpu, this_cpu

_ABI = 1
_NO_MEMORY = 2
_ERROR_BYTES = 1024
_ALIGNMENT = 64
_SMALL_BYTES = 16 << 10
"""Up to here, copying a tensor costs less than asking NumPy for its address."""
_loads = itertools.count(1)
_engines: weakref.WeakSet[TvmEngine] = weakref.WeakSet()
"""All that are open, for a forked child."""


class TvmEngine(CheckedEngine):
    """A compiled model; implements `greencc.core.engine.Engine`.

    Args:
        path: Its `model.json`; the files that it names lie beside it.
        threads: That compute, the caller's among them.
        cpu: This machine's processor, read when not given.

    Raises:
        InputError: A file is missing or not the one described, or the code is not for this machine: that is known
            before any of it is loaded.
        UnavailableError: Memory or threads cannot be had.
    """

    def __init__(self, path: Path, threads: int, *, cpu: CpuInfo | None = None) -> None:
        description = read_description(path)
        name = path.parent.name if path.name == FILE_NAME else path.name
        super().__init__(name, description.inputs, description.outputs)
        check_cpu(name, description.triple, description.features, this_cpu() if cpu is None else cpu)
        self._steps = description.steps
        self._names = [spec.name for spec in description.inputs]
        self._dtypes = [spec.dtype for spec in description.outputs]
        self._positions = {spec.name: index for index, spec in enumerate(description.outputs)}
        # One call at a time: the arrays of pointers below are shared.
        self._turn = threading.Lock()
        self._error = ctypes.create_string_buffer(_ERROR_BYTES)
        self._interrupted = False
        code = checked.contents(path.parent / LIBRARY, description.library)
        weights = path.parent / WEIGHTS
        with checked.opened(weights, description.weights) as file:
            self._library, handle, self._finalizer = self._open(
                code, path.parent / LIBRARY, weights, file, threads
            )
        self._handle: ctypes.c_void_p | None = handle
        self._key: tuple[tuple[int, ...], ...] | None = None
        inputs, outputs = len(description.inputs), len(description.outputs)
        self._input_pointers = (ctypes.c_void_p * max(1, inputs))()
        self._output_pointers = (ctypes.c_void_p * max(1, outputs))()
        self._output_bytes = (ctypes.c_uint64 * max(1, outputs))()
        self._output_shapes: list[tuple[int, ...]] = []
        self._own_inputs: list[Array | None] = []
        self._own_outputs: list[Array | None] = []
        self._large_outputs: list[int] = []
        self._check_counts()
        _engines.add(self)

    def close(self) -> None:
        """Free the model, its threads and its memory."""
        with self._turn:
            self._handle = None
            self._finalizer()

    def profile(self, feeds: Feeds, runs: int) -> list[NodeTime]:
        """Microseconds per step, the median of `runs` runs of feeds that fit the model's batch.

        Raises:
            InputError: As `run`.
        """
        if runs < 1:
            raise UsageError(f"profiling takes at least 1 run, not {runs}")
        ready = self._checked(feeds)
        wanted = [spec.name for spec in self.outputs]
        times: list[list[int]] = []
        buffer = (ctypes.c_uint64 * max(1, len(self._steps)))()
        # One turn for all: the times are those of these runs, and nobody closes the model between them.
        with self._turn:
            handle = self._opened()
            self._run_once(ready, wanted)
            self._library.greencc_profile(handle, 1)
            try:
                for _ in range(runs):
                    self._run_once(ready, wanted)
                    status = self._library.greencc_step_times(handle, buffer, len(self._steps))
                    self._raise(status, "profiling")
                    times.append(list(buffer[: len(self._steps)]))
            finally:
                self._library.greencc_profile(handle, 0)
        return [
            NodeTime(step.node, step.kind, statistics.median(column) / 1000)
            for step, column in zip(self._steps, zip(*times, strict=True), strict=True)
        ]

    def _run(self, feeds: Feeds, outputs: list[str]) -> dict[str, Array]:
        with self._turn:
            return self._run_once(feeds, outputs)

    def _run_once(self, feeds: Feeds, outputs: list[str]) -> dict[str, Array]:
        """Run; whoever calls has the turn."""
        try:
            handle = self._opened()
            key = tuple([feeds[name].shape for name in self._names])
            if key != self._key:
                self._prepare(handle, key)
            kept = []
            for index, (name, own) in enumerate(zip(self._names, self._own_inputs, strict=True)):
                if own is None:
                    # A contiguous copy must outlive the call.
                    array = np.ascontiguousarray(feeds[name])
                    kept.append(array)
                    self._input_pointers[index] = array.__array_interface__["data"][0]
                else:
                    np.copyto(own, feeds[name])
            large = {}
            for index in self._large_outputs:
                shape, dtype = self._output_shapes[index], self._dtypes[index]
                large[index], self._output_pointers[index] = _aligned(shape, dtype)
            status = self._library.greencc_run(
                handle,
                self._input_pointers,
                self._shapes,
                self._output_pointers,
                self._output_bytes,
                self._error,
                _ERROR_BYTES,
            )
            if status:
                self._raise(status, "running")
            found = {}
            for name in outputs:
                index = self._positions[name]
                own = self._own_outputs[index]
                found[name] = large[index] if own is None else own.copy()
            return found
        except MemoryError as error:
            raise _error(_NO_MEMORY, f"running {self._name}: out of memory: {error}") from error

    def _prepare(self, handle: ctypes.c_void_p, key: tuple[tuple[int, ...], ...]) -> None:
        """Shapes of the inputs as the library takes them, and of the outputs; arrays of our own for small tensors."""
        self._key = None
        flat = [size for shape in key for size in shape]
        self._shapes = (ctypes.c_int64 * max(1, len(flat)))(*flat)
        ranks = [len(spec.shape or ()) for spec in self.outputs]
        found = (ctypes.c_int64 * max(1, sum(ranks)))()
        status = self._library.greencc_output_shapes(handle, self._shapes, found, self._error, _ERROR_BYTES)
        self._raise(status, "running")
        sizes = iter(found)
        self._output_shapes = [tuple(next(sizes) for _ in range(rank)) for rank in ranks]
        input_dtypes = [spec.dtype for spec in self.inputs]
        self._own_inputs = _small_arrays(key, input_dtypes, self._input_pointers)
        self._own_outputs = _small_arrays(self._output_shapes, self._dtypes, self._output_pointers)
        self._large_outputs = [index for index, own in enumerate(self._own_outputs) if own is None]
        for index, (shape, dtype) in enumerate(zip(self._output_shapes, self._dtypes, strict=True)):
            self._output_bytes[index] = math.prod(shape) * dtype.itemsize
        self._key = key

    def _forked(self) -> None:
        """In a forked child. A run of another thread has stayed in the parent: what it left is half done."""
        if not self._turn.locked():
            return
        self._turn = threading.Lock()
        self._interrupted = True
        self._handle = None
        self._finalizer.detach()

    def _opened(self) -> ctypes.c_void_p:
        if self._interrupted:
            raise UnavailableError(
                f"{self._name} cannot be run in this process: it was forked while the model was running",
                hint="open the model again in the child, or start the child before the first run",
            )
        if self._handle is None:
            raise RuntimeError(f"the engine of {self._name} was closed")
        return self._handle

    def _raise(self, status: int, doing: str) -> None:
        if status:
            raise _error(status, f"{doing} {self._name}: {self._error.value.decode(errors='replace')}")

    def _open(
        self, code: bytes, path: Path, weights: Path, weights_file: int, threads: int
    ) -> tuple[Any, ctypes.c_void_p, weakref.finalize[Any, Any]]:
        """The library, a handle, and what frees both."""
        file = _in_memory(code)
        try:
            library = ctypes.CDLL(_unique_path(file))
        except OSError as error:
            os.close(file)
            raise InputError(f"{path} cannot be loaded: {error}", hint="compile the model again") from error
        try:
            _declare(library)
            if library.greencc_abi() != _ABI:
                raise InputError(f"{path} is of another version of greencc", hint="compile the model again")
            handle, name = ctypes.c_void_p(), checked.path_of(weights_file).encode()
            status = library.greencc_open(name, threads, ctypes.byref(handle), self._error, _ERROR_BYTES)
            if status:
                self._error.value = self._error.value.replace(name, os.fsencode(weights))[: _ERROR_BYTES - 1]
                self._raise(status, "loading")
        except AttributeError as error:
            _unload(library, file)
            raise InputError(f"{path} cannot be loaded: {error}", hint="compile the model again") from error
        except BaseException:
            _unload(library, file)
            raise
        finalizer = weakref.finalize(self, _free, library, handle, file)
        # At exit a thread may still be in a run, and the system frees all anyway.
        finalizer.atexit = False
        return library, handle, finalizer

    def _check_counts(self) -> None:
        """The description must be that of the library: arrays are made by its ranks."""
        counts = (ctypes.c_uint32 * 5)()
        self._library.greencc_counts(self._handle, counts)
        ranks = [sum(len(spec.shape or ()) for spec in specs) for specs in (self.inputs, self.outputs)]
        if list(counts) != [len(self.inputs), len(self.outputs), *ranks, len(self._steps)]:
            self.close()
            raise InputError(
                f"{self._name}: {FILE_NAME} does not describe {LIBRARY}", hint="compile the model again"
            )
        found, rank = ctypes.c_uint32(), ctypes.c_uint32()
        for role, specs in enumerate((self.inputs, self.outputs)):
            for index, spec in enumerate(specs):
                self._library.greencc_tensor(
                    self._handle, role, index, ctypes.byref(found), ctypes.byref(rank)
                )
                if (found.value, rank.value) != (spec.dtype.itemsize, len(spec.shape or ())):
                    self.close()
                    raise InputError(
                        f"{self._name}: {FILE_NAME} does not describe {spec.name!r} of {LIBRARY}",
                        hint="compile the model again",
                    )


def _error(status: int, message: str) -> GreenccError:
    if status == _NO_MEMORY:
        return UnavailableError(message, hint="use a smaller batch, or fewer threads")
    return InputError(message)


def _aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> tuple[Array, int]:
    """An array that starts at a multiple of 64 bytes, and its address."""
    memory = np.empty(math.prod(shape) * dtype.itemsize + _ALIGNMENT, np.uint8)
    address: int = memory.__array_interface__["data"][0]
    start = -address % _ALIGNMENT
    return np.ndarray(shape, dtype, memory, start), address + start


def _small_arrays(
    shapes: Sequence[tuple[int, ...]], dtypes: Sequence[np.dtype[Any]], pointers: Any
) -> list[Array | None]:
    """An array for each small tensor, with its address in `pointers`; None for the others."""
    arrays: list[Array | None] = []
    for index, (shape, dtype) in enumerate(zip(shapes, dtypes, strict=True)):
        small = math.prod(shape) * dtype.itemsize <= _SMALL_BYTES
        array, address = _aligned(shape, dtype) if small else (None, None)
        arrays.append(array)
        pointers[index] = address
    return arrays


def _in_memory(code: bytes) -> int:
    """A file without a name that holds the code.

    A second model built at the path of one that is still open is another file then, whatever happens to that path.
    """
    try:
        file = os.memfd_create("model.so")
    except OSError as error:
        raise UnavailableError(f"cannot load a compiled model: {error.strerror or error}") from error
    with open(file, "wb", closefd=False) as stream:
        stream.write(code)
    return file


def _unique_path(file: int) -> str:
    """A path of an open file that no other load in this process has had.

    The dynamic linker takes a path that it knows for the library that it knows, also where that could not be unmapped
    and the descriptor is another file's by now. So each path is spelled differently: the digits of a count, in steps
    that lead nowhere.
    """
    steps = "".join("../fd/" if digit == "1" else "./" for digit in f"{next(_loads):b}")
    return f"/proc/self/fd/{steps}{file}"


def _declare(library: Any) -> None:
    pointer, text, size = ctypes.c_void_p, ctypes.c_char_p, ctypes.c_size_t
    library.greencc_abi.argtypes = []
    library.greencc_open.argtypes = [text, ctypes.c_int, pointer, pointer, size]
    library.greencc_counts.argtypes = [pointer, pointer]
    library.greencc_counts.restype = None
    library.greencc_tensor.argtypes = [pointer, ctypes.c_int, ctypes.c_uint32, pointer, pointer]
    library.greencc_output_shapes.argtypes = [pointer, pointer, pointer, pointer, size]
    library.greencc_run.argtypes = [pointer, pointer, pointer, pointer, pointer, pointer, size]
    library.greencc_profile.argtypes = [pointer, ctypes.c_int]
    library.greencc_profile.restype = None
    library.greencc_step_times.argtypes = [pointer, pointer, ctypes.c_uint32]
    library.greencc_close.argtypes = [pointer]
    library.greencc_close.restype = None


def _free(library: Any, handle: ctypes.c_void_p, file: int) -> None:
    library.greencc_close(handle)
    _unload(library, file)


def _unload(library: Any, file: int) -> None:
    """Unmap the code. The file is closed behind that, so that no other library gets its name before."""
    unload = ctypes.CDLL(None).dlclose
    unload.argtypes = [ctypes.c_void_p]
    unload(library._handle)
    os.close(file)


def _after_fork() -> None:
    for engine in list(_engines):
        engine._forked()


os.register_at_fork(after_in_child=_after_fork)
