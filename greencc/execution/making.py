"""Executors by name: ``local``, ``ray``, ``ray://host:port``."""

from __future__ import annotations

from greencc.core.errors import UsageError, did_you_mean
from greencc.core.machine import usable_threads
from greencc.execution.executor import Executor, InProcess, Processes, share

MAX_WORKERS = 4096
_FEW_CORES = 2
_NAMES = ("local", "ray", "ray://HOST:PORT")


def check_engine(spec: str, workers: int = 0) -> None:
    """Refuse what `make_executor` would, as far as that can be told without starting anything.

    Raises:
        UsageError: The spec is unknown or malformed, or there cannot be so many workers.
    """
    if not 0 <= workers <= MAX_WORKERS:
        raise UsageError(f"{workers} workers", hint=f"expected 0 (chosen for you) to {MAX_WORKERS:,}")
    if spec in _NAMES[:2]:
        return
    if ":" not in spec:
        raise UsageError(f"unknown engine {spec!r}", hint=did_you_mean(spec, _NAMES))
    from greencc.execution.ray_engine import parse_address

    parse_address(spec)


def make_executor(spec: str = "local", workers: int = 0) -> Executor:
    """Make an executor; processes start with the first task.

    Args:
        spec: ``local``: processes of this machine. ``ray``: a Ray that is started on this machine. ``ray://host:port``
            or ``host:port``: a Ray cluster that runs.
        workers: How many tasks run at once; 0: as many as there are physical cores (`default_workers`), or processors
            in the cluster. With one local worker, tasks run in this process.

    Raises:
        UsageError: See `check_engine`.
        UnavailableError: Ray is missing, does not start, or nothing answers at the address.
    """
    check_engine(spec, workers)
    cores = usable_threads()
    if spec == "local":
        count = workers or default_workers(cores)
        return InProcess(cores) if runs_here(spec, workers) else Processes(count, share(cores, count))
    from greencc.execution.ray_engine import local_ray, ray_cluster

    if spec == "ray":
        count = workers or cores
        return local_ray(count, share(cores, count))
    return ray_cluster(spec, workers)


def runs_here(spec: str, workers: int) -> bool:
    """Whether what `make_executor` would make runs tasks in this process."""
    return spec == "local" and (workers or default_workers(usable_threads())) == 1


def default_workers(cores: int) -> int:
    """Local workers on so many cores: on one or two, starting them takes about what they save in a usual table."""
    return cores if cores > _FEW_CORES else 1
