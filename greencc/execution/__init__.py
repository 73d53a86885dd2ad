"""Work in other processes: on this machine by default, on a Ray cluster when it is outgrown.

The compiler hands `Work` to an `Executor` and gets outcomes as they finish. Where the work runs changes how long it
takes, never what comes out.
"""

from greencc.execution.executor import Executor, InProcess
from greencc.execution.making import check_engine, make_executor, runs_here
from greencc.execution.schedule import Demand, Scheduler
from greencc.execution.task import Blob, Files, Outcome, Task, Work

__all__ = [
    "Blob",
    "Demand",
    "Executor",
    "Files",
    "InProcess",
    "Outcome",
    "Scheduler",
    "Task",
    "Work",
    "check_engine",
    "make_executor",
    "runs_here",
]
