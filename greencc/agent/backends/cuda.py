"""Memory and streams of the GPU by ctypes on CUDA's runtime library: JetPack has no Python package for it.

(NVIDIA CUDA Runtime API: "Memory Management", "Stream Management", "Device Management".)
"""

import ctypes
import glob
import os
import sys
from typing import Any, List, Optional

from greencc.agent.problem import Problem

_NAMES = ("libcudart.so", "libcudart.so.13", "libcudart.so.12", "libcudart.so.11.0", "libcudart.so.10.2")
_TO_DEVICE, _TO_HOST = 1, 2
# cudaDeviceScheduleBlockingSync: who waits for the GPU sleeps. Spinning would burn a core, and show in the energy.
_SLEEP_WHILE_WAITING = 4
_MAJOR, _MINOR = 75, 76
_OUT_OF_MEMORY = 2


def candidates(root: str) -> List[str]:
    """Where the library may be, the likeliest first."""
    found = list(_NAMES)
    folders = ["usr/local/cuda/lib64", "usr/local/cuda/targets/*/lib"]
    for folder in folders:
        for name in _NAMES:
            found.extend(sorted(glob.glob(os.path.join(root, folder, name))))
    # NVIDIA's wheels.
    for place in sys.path:
        found.extend(sorted(glob.glob(os.path.join(place, "nvidia", "*", "lib", "libcudart.so*"))))
    return found


class Cuda:
    """The runtime library, set up for the first GPU.

    Args:
        root: Where the file system begins.

    Raises:
        Problem: ``unavailable``: there is no library, or no GPU.
    """

    def __init__(self, root: str) -> None:
        self._library = _open(root)
        self._check(
            self._library.cudaSetDeviceFlags(_SLEEP_WHILE_WAITING), "setting up the GPU", "unavailable"
        )
        count = ctypes.c_int()
        self._check(self._library.cudaGetDeviceCount(ctypes.byref(count)), "looking for a GPU", "unavailable")
        if count.value < 1:
            raise Problem("unavailable", "there is no GPU that CUDA can use")

    @property
    def compute_capability(self) -> str:
        """Of the GPU, such as ``8.7``."""
        values = []
        for attribute in (_MAJOR, _MINOR):
            value = ctypes.c_int()
            status = self._library.cudaDeviceGetAttribute(ctypes.byref(value), attribute, 0)
            self._check(status, "asking the GPU", "unavailable")
            values.append(value.value)
        return "%d.%d" % (values[0], values[1])

    @property
    def runtime(self) -> str:
        """Version of the library, such as ``12.6``."""
        value = ctypes.c_int()
        self._check(self._library.cudaRuntimeGetVersion(ctypes.byref(value)), "asking for a version")
        return "%d.%d" % (value.value // 1000, value.value % 1000 // 10)

    def allocate(self, size: int) -> int:
        """Memory of the GPU: its address there."""
        return self._allocated(self._library.cudaMalloc, size, "%d MB of the GPU's memory" % (size >> 20))

    def allocate_host(self, size: int) -> int:
        """Memory of the host that the GPU copies from and to directly (page-locked)."""
        return self._allocated(self._library.cudaMallocHost, size, "%d MB of memory" % (size >> 20))

    def free(self, address: int) -> None:
        """Memory of `allocate`."""
        self._library.cudaFree(ctypes.c_void_p(address))

    def free_host(self, address: int) -> None:
        """Memory of `allocate_host`."""
        self._library.cudaFreeHost(ctypes.c_void_p(address))

    def stream(self) -> int:
        """A new stream's handle."""
        handle = ctypes.c_void_p()
        self._check(self._library.cudaStreamCreate(ctypes.byref(handle)), "making a stream")
        return handle.value or 0

    def to_device(self, device: int, host: int, size: int, stream: int) -> None:
        """Copy, in the order of the stream."""
        self._copy(device, host, size, _TO_DEVICE, stream)

    def to_host(self, host: int, device: int, size: int, stream: int) -> None:
        """Copy, in the order of the stream."""
        self._copy(host, device, size, _TO_HOST, stream)

    def wait(self, stream: int) -> None:
        """Until all of a stream's work is done."""
        self._check(self._library.cudaStreamSynchronize(ctypes.c_void_p(stream)), "waiting for the GPU")

    def _copy(self, to: int, source: int, size: int, kind: int, stream: int) -> None:
        status = self._library.cudaMemcpyAsync(
            ctypes.c_void_p(to),
            ctypes.c_void_p(source),
            ctypes.c_size_t(size),
            kind,
            ctypes.c_void_p(stream),
        )
        self._check(status, "copying")

    def _allocated(self, function: Any, size: int, what: str) -> int:
        address = ctypes.c_void_p()
        status = function(ctypes.byref(address), ctypes.c_size_t(max(1, size)))
        if status == _OUT_OF_MEMORY:
            raise Problem("memory", "%s cannot be had" % what, "close other programs, or use a smaller batch")
        self._check(status, "allocating %s" % what)
        return address.value or 0

    def _check(self, status: int, what: str, kind: str = "internal") -> None:
        if status != 0:
            text = self._library.cudaGetErrorString(status)
            reason = text.decode("ascii", "replace") if text else "error"
            raise Problem(kind, "%s: CUDA reports %s (%d)" % (what, reason, status))


def _open(root: str) -> ctypes.CDLL:
    refused: Optional[OSError] = None
    for name in candidates(root):
        try:
            library = ctypes.CDLL(name)
        except OSError as error:
            refused = error
            continue
        library.cudaGetErrorString.restype = ctypes.c_char_p
        return library
    raise Problem(
        "unavailable",
        "CUDA's runtime library (libcudart) cannot be loaded: %s" % refused,
        "install CUDA's runtime (JetPack: cuda-cudart; else the wheel nvidia-cuda-runtime)",
    )
