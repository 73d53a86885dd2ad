"""NVIDIA GPUs through NVML, called by ctypes; by the rules of `greencc.meters.nvml`.

The library is ``libnvidia-ml.so.1``, or what ``GREENCC_AGENT_NVML`` names. Units (NVML API reference): energy in mJ,
power in mW, clocks in MHz.
"""

import ctypes
import os
import time
from typing import Any, Dict, List, Optional

from greencc.agent.meter import Meter
from greencc.agent.problem import Problem

_LIBRARY = "libnvidia-ml.so.1"
_POWER_INSTANT = 186
_CLOCK_SM = 1
_TEMPERATURE_GPU = 0
_MILLI = 1e-3
_PERIOD_S = 0.1
_AVERAGE_PERIOD_S = 1.0
_PROBE_S = 1.0
_STEP_S = 0.02
_NAME_BYTES = 96


class _Value(ctypes.Union):
    _fields_ = [
        ("d", ctypes.c_double),
        ("ui", ctypes.c_uint),
        ("ul", ctypes.c_ulong),
        ("ull", ctypes.c_ulonglong),
        ("sll", ctypes.c_longlong),
    ]


class _FieldValue(ctypes.Structure):
    _fields_ = [
        ("field", ctypes.c_uint),
        ("scope", ctypes.c_uint),
        ("timestamp", ctypes.c_longlong),
        ("latency", ctypes.c_longlong),
        ("kind", ctypes.c_uint),
        ("returned", ctypes.c_uint),
        ("value", _Value),
    ]


class Gpus:
    """The GPUs that NVML shows.

    Args:
        only: Number of the one that is wanted; None: all.

    Raises:
        Problem: There is no library, driver or GPU.
    """

    def __init__(self, only: Optional[int] = None) -> None:
        try:
            self._library = ctypes.CDLL(os.environ.get("GREENCC_AGENT_NVML") or _LIBRARY)
        except OSError as error:
            raise Problem("unavailable", "NVML is not there: %s" % error) from error
        self.call("cannot be started (is the NVIDIA driver loaded?)", "nvmlInit_v2")
        count = ctypes.c_uint()
        self.call("tells no GPUs", "nvmlDeviceGetCount_v2", ctypes.byref(count))
        if not count.value or (only is not None and only >= count.value):
            raise Problem(
                "unavailable", "NVML finds no NVIDIA GPU%s" % ("" if only is None else " %d" % only)
            )
        self.handles: Dict[int, ctypes.c_void_p] = {}
        self.names: Dict[int, str] = {}
        for number in range(count.value) if only is None else [only]:
            handle, name = ctypes.c_void_p(), ctypes.create_string_buffer(_NAME_BYTES)
            self.call("gives no handle", "nvmlDeviceGetHandleByIndex_v2", number, ctypes.byref(handle))
            self.call("tells no name", "nvmlDeviceGetName", handle, name, _NAME_BYTES)
            self.handles[number], self.names[number] = handle, name.value.decode("utf-8", "replace")

    def call(self, failing: str, function: str, *arguments: Any) -> None:
        """Call NVML.

        Raises:
            Problem: It says no; `failing` says what that means.
        """
        try:
            code = getattr(self._library, function)(*arguments)
        except AttributeError as error:
            raise Problem("unavailable", "this NVML has no %s" % function) from error
        if code != 0:
            describe = self._library.nvmlErrorString
            describe.restype = ctypes.c_char_p
            told = (describe(code) or b"").decode("utf-8", "replace")
            raise Problem("unavailable", "NVML %s: %s" % (failing, told or "error %d" % code))

    def joules(self) -> Dict[str, float]:
        """What each GPU has counted since its driver was loaded."""
        return self._each("tells no energy", "nvmlDeviceGetTotalEnergyConsumption", ctypes.c_ulonglong)

    def average(self) -> Dict[str, float]:
        """Watts, averaged over a second on most."""
        return self._each("tells no power", "nvmlDeviceGetPowerUsage", ctypes.c_uint)

    def instant(self) -> Dict[str, float]:
        """Watts now."""
        found = {}
        for number, handle in self.handles.items():
            field = _FieldValue(field=_POWER_INSTANT)
            self.call("tells no fields", "nvmlDeviceGetFieldValues", handle, 1, ctypes.byref(field))
            if field.returned != 0:
                raise Problem("unavailable", "NVML tells no instant power of GPU %d" % number)
            found["gpu-%d" % number] = field.value.ui * _MILLI
        return found

    def celsius(self) -> Optional[float]:
        """Of the hottest GPU; None: not told."""
        return self._most("nvmlDeviceGetTemperature", _TEMPERATURE_GPU)

    def clock_mhz(self) -> Optional[float]:
        """Of the fastest GPU; None: not told."""
        return self._most("nvmlDeviceGetClockInfo", _CLOCK_SM)

    def boundary(self) -> str:
        """E.g. ``GPU board (NVIDIA H200)``."""
        if len(self.names) == 1:
            ((number, name),) = self.names.items()
            return "GPU board (%s)" % name if number == 0 else "GPU board %d: %s" % (number, name)
        listed = ", ".join("%d: %s" % pair for pair in self.names.items())
        return "%d GPU boards (%s)" % (len(self.names), listed)

    def _each(self, failing: str, function: str, kind: Any) -> Dict[str, float]:
        found = {}
        for number, handle in self.handles.items():
            value = kind()
            self.call("%s of GPU %d" % (failing, number), function, handle, ctypes.byref(value))
            found["gpu-%d" % number] = value.value * _MILLI
        return found

    def _most(self, function: str, which: int) -> Optional[float]:
        values: List[float] = []
        for handle in self.handles.values():
            value = ctypes.c_uint()
            try:
                self.call("does not tell", function, handle, which, ctypes.byref(value))
            except Problem:
                return None
            values.append(float(value.value))
        return max(values)


class NvmlMeter(Meter):
    """The energy counters if they move, else power now, else averaged power.

    Args:
        only: Number of the one GPU that is wanted; None: all.
    """

    sees = ("gpu",)

    def __init__(self, only: Optional[int] = None) -> None:
        self._only = only
        self._gpus: Optional[Gpus] = None
        self._first: Dict[str, float] = {}
        self.name = "nvml" if only is None else "nvml:%d" % only
        self._read = "joules"

    @property
    def boundary(self) -> str:
        return "GPU boards" if self._gpus is None else self._gpus.boundary()

    @property
    def period_s(self) -> float:
        """The counters step about every 100 ms."""
        return _AVERAGE_PERIOD_S if self._read == "average" else _PERIOD_S

    def read(self) -> Dict[str, float]:
        if self._gpus is None:
            self._settle()
        values: Dict[str, float] = getattr(self._gpus, self._read)()
        if not self.counts:
            return values
        for name, value in values.items():
            self._first.setdefault(name, value)
        return {name: value - self._first[name] for name, value in values.items()}

    def _settle(self) -> None:
        gpus = Gpus(self._only)
        if _moves(gpus):
            self.counts = True
        else:
            suffix = "" if self._only is None else ":%d" % self._only
            try:
                gpus.instant()
                self._read, self.name = "instant", "nvml-instant" + suffix
            except Problem:
                gpus.average()
                self._read, self.name = "average", "nvml-average" + suffix
        self._gpus = gpus


def _moves(gpus: Gpus) -> bool:
    """Whether all energy counters count."""
    try:
        first, deadline = gpus.joules(), time.monotonic() + _PROBE_S
        while time.monotonic() < deadline:
            now = gpus.joules()
            if all(now[name] != first[name] for name in first):
                return True
            time.sleep(_STEP_S)
    except Problem:
        return False
    return False
