"""Workers on Ray: of this machine, or of a cluster.

A worker is an actor. Files go through Ray's object store, each once however many workers read it, and are checked by
their hash where they are written. Tasks travel pickled by Ray between processes that run greencc as the same user:
whoever can reach a Ray cluster can run code on it, with or without greencc.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from greencc.core.data import Array
from greencc.core.errors import InputError, UnavailableError, UsageError
from greencc.execution.executor import Pool
from greencc.execution.schedule import Place
from greencc.execution.task import Blob, Files, Task
from greencc.execution.transport import Reply, Worker, WorkerLostError, answer

_CONNECT_SECONDS = 5.0
_LEAVE_SECONDS = 2.0
_HINT = (
    "Ray and Python must be of the same versions there; a cluster with tokens wants RAY_AUTH_MODE=token and "
    "RAY_AUTH_TOKEN; Ray's own logs say more"
)
_START_SECONDS = 300.0
_ADDRESS = re.compile(r"(?:ray://)?(?P<host>\[[0-9a-fA-F:]+\]|[\w.-]+):(?P<port>\d{1,5})")
# Ray talks a lot when it starts, and would report its use.
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


def parse_address(address: str) -> tuple[str, int]:
    """Host and port of ``ray://host:port`` (Ray Client) or ``host:port`` (the cluster's own).

    Raises:
        UsageError: It is neither.
    """
    match = _ADDRESS.fullmatch(address)
    if match is None or not 0 < int(match["port"]) < 1 << 16:
        raise UsageError(f"{address!r} is no address of a Ray cluster", hint="write ray://HOST:PORT")
    return match["host"].strip("[]"), int(match["port"])


def import_ray() -> ModuleType:
    """Ray itself.

    Raises:
        UnavailableError: It is not installed, or cannot be imported.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        import ray
    except ImportError as error:
        absent = isinstance(error, ModuleNotFoundError) and error.name == "ray"
        what = "which is not installed" if absent else f"which cannot be imported: {error}"
        raise UnavailableError(
            f"the engine 'ray' needs Ray, {what}", hint="pip install 'greencc[ray]'"
        ) from error
    return ray  # type: ignore[no-any-return]


def local_ray(workers: int, threads: int) -> RayPool:
    """Workers of a Ray that is started on this machine, and stopped with the pool.

    Raises:
        UnavailableError: Ray is missing or does not start.
    """
    ray = import_ray()
    if ray.is_initialized():
        _require_processors(ray, workers * threads, "the Ray that runs here")
        return RayPool(ray, workers, threads, own=False)
    _init(ray, "starting Ray", address="local", num_cpus=workers * threads, include_dashboard=False)
    return RayPool(ray, workers, threads, own=True)


def ray_cluster(address: str, workers: int) -> RayPool:
    """Workers of a cluster, each with one processor.

    Args:
        address: See `parse_address`.
        workers: How many; 0: as many as the cluster has processors.

    Raises:
        UsageError: The address is malformed.
        UnavailableError: Ray is missing, nothing answers there, or the cluster is too small.
    """
    host, port = parse_address(address)
    ray = import_ray()
    try:
        # Ray itself tries for minutes.
        socket.create_connection((host, port), _CONNECT_SECONDS).close()
    except OSError as error:
        raise UnavailableError(
            f"no Ray cluster answers at {address}: {error.strerror or error}",
            hint="start one with 'ray start --head', or leave --engine out",
        ) from error
    _init(ray, f"connecting to {address}", address=address)
    try:
        cores = _require_processors(ray, max(workers, 1), f"the Ray cluster at {address}")
    except UnavailableError:
        ray.shutdown()
        raise
    return RayPool(ray, workers or cores, 1, own=True)


def _require_processors(ray: ModuleType, wanted: int, where: str) -> int:
    """How many processors a running Ray has: Ray itself would wait for more without a word."""
    cores = int(ray.cluster_resources().get("CPU", 0))
    if wanted > cores:
        raise UnavailableError(
            f"{where} has {cores} processors, and {wanted} are wanted", hint="use fewer workers"
        )
    return cores


def _init(ray: ModuleType, doing: str, **options: Any) -> None:
    if options.get("address") == "local":
        # The workers import what this process can.
        paths = os.pathsep.join(path or str(Path.cwd()) for path in sys.path)
        options["runtime_env"] = {"env_vars": {"PYTHONPATH": paths}}
    try:
        ray.init(log_to_driver=False, logging_level="error", **options)
    except Exception as error:  # Ray raises errors of many kinds: its own, gRPC's, of versions that differ
        text = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UnavailableError(f"{doing} failed: {text}", hint=_HINT) from error


class RayPool(Pool):
    """An executor on Ray; `own` says whether Ray is shut down with it."""

    def __init__(self, ray: ModuleType, workers: int, threads: int, *, own: bool) -> None:
        super().__init__(workers, threads)
        self._ray = ray
        self._own = own
        self._shared: dict[str, Any] = {}

    def hire(self, place: Place) -> Worker:
        """An actor; one that only waits for a device takes no processor."""
        processors = self.threads if place.device is None else 0
        # A second call at a time: `leave`.
        kind = self._ray.remote(num_cpus=processors, max_restarts=0, max_concurrency=2)(Runner)
        return RayWorker(self._ray, kind.remote(), self.reference)

    def reference(self, blob: Blob) -> Any:
        """A blob in the object store, put there once."""
        found = self._shared.get(blob.digest)
        if found is None:
            found = self._ray.put({name: np.fromfile(blob.folder / name, np.uint8) for name, _ in blob.files})
            if blob.shared:
                self._shared[blob.digest] = found
        return found

    def close(self) -> None:
        """End the actors, and Ray if it was started here."""
        super().close()
        self._shared.clear()
        if self._own:
            self._ray.shutdown()
            self._own = False


class RayWorker:
    """Driver's end of an actor."""

    def __init__(self, ray: ModuleType, actor: Any, reference: Any) -> None:
        self._ray, self._actor, self._reference = ray, actor, reference
        self._ready = False

    def run(self, task: Task) -> dict[str, Array]:
        """Run a task; see `Worker.run`."""
        lost = self._ray.exceptions
        self._wait_for_a_processor()
        references = [self._reference(blob) for blob in task.blobs]
        try:
            reply = self._ray.get(self._actor.run.remote(task, *references))
        except (
            lost.RayActorError,
            lost.WorkerCrashedError,
            lost.OutOfMemoryError,
            lost.ObjectLostError,
        ) as error:
            first = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise WorkerLostError(f"was lost: {first}") from error
        assert isinstance(reply, Reply)
        return reply.result()

    def _wait_for_a_processor(self) -> None:
        """Others may use the cluster as well; a new worker waits until there is room for it."""
        if not self._ready:
            ready, _ = self._ray.wait([self._actor.ready.remote()], timeout=_START_SECONDS)
            if not ready:
                raise UnavailableError(
                    f"the Ray cluster had no free processor for a worker within {_START_SECONDS:g} s",
                    hint="use fewer workers, or wait until others have finished",
                )
            self._ready = True

    def close(self) -> None:
        """Kill the actor, once it has removed its files; a thread that waits for it sees it gone."""
        self._ray.wait([self._actor.leave.remote()], timeout=_LEAVE_SECONDS)
        self._ray.kill(self._actor)


class Runner:
    """The actor: runs tasks on the files that came with them."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="greencc-ray-")

    def ready(self) -> None:
        """Answer."""

    def leave(self) -> None:
        """Remove the files."""
        self._folder.cleanup()

    def run(self, task: Task, *contents: Mapping[str, Array]) -> Reply:
        """Run a task, whose blobs have these contents, in their order."""
        found: dict[str, Path] = {}
        try:
            for blob, content in zip(task.blobs, contents, strict=True):
                found[blob.digest] = written(blob, content, Path(self._folder.name))
        except InputError as error:
            return Reply(error=(type(error).__name__, error.message, error.hint))
        files: Files = lambda blob: found[blob.digest]  # noqa: E731
        reply = answer(task, files)
        for blob in task.blobs:
            if not blob.shared:
                shutil.rmtree(found[blob.digest], ignore_errors=True)
        return reply


def written(blob: Blob, content: Mapping[str, Array], root: Path) -> Path:
    """The folder under `root` with the files of a blob, written there unless they are.

    Raises:
        InputError: They are not what the blob says, or cannot be written.
    """
    final = root / blob.digest
    if final.is_dir():
        return final
    work = Path(tempfile.mkdtemp(dir=root))
    for name, expected in blob.files:
        data = np.ascontiguousarray(content[name])
        if Path(name).name != name or hashlib.sha256(data.data).hexdigest() != expected:
            raise InputError(f"the file {name!r} changed on its way to a worker")
        try:
            data.tofile(work / name)
        except OSError as error:
            raise InputError(f"a worker cannot write {work / name}: {error.strerror or error}") from error
    work.rename(final)
    return final
