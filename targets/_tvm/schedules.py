"""Where schedules of kernels come from: what was tuned, else the templates' own choice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from greencc.targets._tvm.database import Database, default_path
from greencc.targets._tvm.kernels.select import template_of
from greencc.targets._tvm.kernels.template import Schedule, Template
from greencc.targets._tvm.machine import Machine
from greencc.targets._tvm.records import place_of
from greencc.targets._tvm.workload import Workload, key_of

TemplateOf = Callable[[Workload], Template]
"""The template of a workload's kind."""


class Schedules(Protocol):
    """Chooses how a kernel is written. Asked once for every node that becomes one."""

    def schedule(self, workload: Workload, machine: Machine) -> Schedule: ...


@dataclass
class DefaultSchedules:
    """Those that are good without tuning; `asked` has the workloads of all nodes, in their order."""

    template_of: TemplateOf = template_of
    asked: list[Workload] = field(default_factory=list)

    def schedule(self, workload: Workload, machine: Machine) -> Schedule:
        """The template's own choice."""
        self.asked.append(workload)
        return self.template_of(workload).default(workload, machine)


@dataclass
class TunedSchedules:
    """The database's best schedules, and the templates' own choice for the rest.

    A schedule that is not in the template's space is not used: the file may come from elsewhere.

    Attributes:
        database: What was tuned.
        threads: That the kernels will run with.
        template_of: The templates.
        tuned: How many nodes have each workload that was tuned, by `key_of`.
        untuned: Likewise, without.
    """

    database: Database
    threads: int
    template_of: TemplateOf = template_of
    tuned: Counter[str] = field(default_factory=Counter)
    untuned: Counter[str] = field(default_factory=Counter)

    def schedule(self, workload: Workload, machine: Machine) -> Schedule:
        """The best that is known."""
        template, key = self.template_of(workload), key_of(workload)
        record = self.database.get(key, place_of(machine, self.threads))
        if record is not None and record.best in template.space(workload, machine):
            self.tuned[key] += 1
            return record.best
        self.untuned[key] += 1
        return template.default(workload, machine)

    def findings(self) -> tuple[str, ...]:
        """What was tuned and what was not."""
        if not self.tuned:
            return ()
        found = [f"{self.tuned.total()} kernels have schedules that were tuned"]
        if self.untuned:
            found.append(f"{self.untuned.total()} kernels were not tuned")
        return tuple(found)

    def digest(self, machine: Machine) -> str:
        """What they add to what decides the code of a model: changes when a better schedule is found."""
        return self.database.digest(place_of(machine, self.threads))


def tuned_schedules(threads: int, warn: Callable[[str], None]) -> TunedSchedules:
    """Those of this user; `warn` is told where the database cannot be used."""
    return TunedSchedules(Database(default_path(), warn), threads)
