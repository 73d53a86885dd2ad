"""Where schedules of kernels come from."""

from __future__ import annotations

from typing import Protocol

from greencc.targets._tvm.kernels.select import template_of
from greencc.targets._tvm.kernels.template import Schedule
from greencc.targets._tvm.machine import Machine
from greencc.targets._tvm.workload import Workload


class Schedules(Protocol):
    """Chooses how a kernel is written."""

    def schedule(self, workload: Workload, machine: Machine) -> Schedule: ...


class DefaultSchedules:
    """Those that are good without tuning."""

    def schedule(self, workload: Workload, machine: Machine) -> Schedule:
        """The template's own choice."""
        return template_of(workload).default(workload, machine)
