"""A compiled model behind its runner (`targets/_tvm/runtime/runner.c`), which times the runs itself.

The clock of both is the system's monotonic one, so the moments agree. What goes through the pipes is not timed.
"""

import array
import contextlib
import json
import os
import platform
import statistics
import struct
import subprocess
import tempfile
import time
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

from greencc.agent.backends import driving, manifest
from greencc.agent.backends.driving import FeedFile
from greencc.agent.backends.manifest import Manifest
from greencc.agent.backends.tensors import Spec, views
from greencc.agent.backends.worker import Loaded, Setup
from greencc.agent.problem import Problem

LIBRARY, WEIGHTS, RUNNER = "model.so", "weights.bin", "runner"
_MAGIC = b"GCR1"
_TIMED = "one run of the compiled model, with inputs and outputs in memory"
_MOST_TEXT = 4096
_ALLOW_EMULATED = "GREENCC_AGENT_EMULATED"
"""Tests set it to 1: then times are given where the runner finds that it is emulated, and the facts say so."""


def probe(setup: Setup) -> Dict[str, str]:
    """The machine."""
    return {"implementation": "tvm", "machine": platform.machine()}


def build(setup: Setup, main: str, folder: str, options: Dict[str, Any]) -> Dict[str, Any]:
    """Take the compiled model over; there is nothing to build.

    Raises:
        Problem: A file is missing, or does not run here.
    """
    try:
        with open(main, encoding="utf-8") as file:
            described = json.load(file)
        inputs, outputs = _specs(described["inputs"]), _specs(described["outputs"])
        triple, cpu = str(described["triple"]), str(described["cpu"])
        steps = [[str(row["node"]), _kind(row)] for row in described["kernels"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Problem("input", "%s does not describe a compiled model: %s" % (main, error)) from error
    names = manifest.adopt(main, folder)
    for name in (LIBRARY, WEIGHTS, RUNNER):
        if name not in names:
            raise Problem(
                "input",
                "%s is missing beside %s" % (name, os.path.basename(main)),
                "compile the model again for tvm-arm, and send all files of the folder",
            )
    # A copy: what may be linked elsewhere keeps its mode.
    runner = os.path.join(folder, RUNNER)
    with open(runner, "rb") as file:
        program = file.read()
    os.remove(runner)
    manifest.write_file(runner, program)
    os.chmod(runner, 0o700)
    kept = Manifest(
        "tvm",
        LIBRARY,
        inputs,
        outputs,
        {"tvm": str(described.get("tvm", ""))},
        {"triple": triple, "cpu": cpu},
        {"options": options, "steps": steps},
    )
    result = kept.save(folder)
    Runner(folder, inputs, outputs, int(options.get("threads") or 1)).close()
    return result


def load(setup: Setup, folder: str, options: Dict[str, Any]) -> Loaded:
    """A runner that has run once."""
    return TvmEngine(manifest.read(folder), folder, options)


def _specs(rows: Sequence[Dict[str, Any]]) -> List[Spec]:
    """Dimensions with a name are free."""
    return [
        Spec(
            str(row["name"]),
            str(row["dtype"]),
            [size if isinstance(size, int) and size >= 0 else -1 for size in row["shape"]],
        )
        for row in rows
    ]


def _kind(row: Dict[str, str]) -> str:
    """What a step does: as reports call it on the host (`greencc.targets._tvm.description.Label.kind`)."""
    kind, arithmetic = str(row["op_type"]), str(row["arithmetic"])
    return kind if arithmetic == "float" else kind + ":int8"


class Runner:
    """The program with its model, answering (see its source for the messages).

    Args:
        folder: With the model's files.
        inputs: In the model's order.
        outputs: Likewise.
        threads: Of the model.
        feeds: Inputs to drive it with: the runner keeps them; None: it runs what it is sent.
        profiled: It times the steps of so many runs of the first of the feeds, instead of being driven.

    Raises:
        Problem: It does not start, or refuses the model.
    """

    def __init__(
        self,
        folder: str,
        inputs: Sequence[Spec],
        outputs: Sequence[Spec],
        threads: int,
        feeds: Optional[str] = None,
        profiled: int = 0,
    ) -> None:
        self._inputs, self._outputs = inputs, outputs
        more = ["--serve"] if feeds is None else ["--profile" if profiled else "--drive", feeds]
        if profiled:
            more += ["--repeat", str(profiled)]
        names = [os.path.join(folder, name) for name in (RUNNER, LIBRARY, WEIGHTS)]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - as long as the process
        try:
            self._process = subprocess.Popen(
                names + more + ["--threads", str(threads)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
            )
        except OSError as error:
            self._log.close()
            raise Problem(
                "unavailable",
                "the runner cannot be started: %s" % error.strerror,
                "it is a program for another processor, or compiled by hand: compile for this device",
            ) from error
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._to, self._from = self._process.stdin, self._process.stdout
        try:
            if self._read(4) != _MAGIC:
                raise Problem("internal", "the runner does not say what it is")
            counts = struct.unpack("<II", self._read(8))
            if counts != (len(inputs), len(outputs)):
                raise Problem("input", "the library has other inputs or outputs than its description")
            self._read(8 * sum(counts))
            self.emulated = feeds is not None and struct.unpack("<I", self._read(4))[0] != 0
        except BaseException:
            self.close()
            raise

    def run(self, given: Sequence[Spec], data: Dict[str, memoryview]) -> Tuple[List[Spec], List[bytes]]:
        """Outputs of one run.

        Raises:
            Problem: It fails.
        """
        self._write(packed(given, data))
        self._check_status()
        specs, found = [], []
        for spec in self._outputs:
            rank = len(spec.shape)
            shape = struct.unpack("<%dq" % rank, self._read(8 * rank))
            (size,) = struct.unpack("<Q", self._read(8))
            got = Spec(spec.name, spec.dtype, shape)
            if min(shape, default=0) < 0 or size != got.nbytes:
                raise Problem("internal", "the runner answered something that is no output")
            specs.append(got)
            found.append(self._read(size))
        return specs, found

    def drive(self, plan: driving.Plan) -> driving.Recorded:
        """A stretch.

        Raises:
            Problem: It fails.
        """
        due = array.array("d", plan.due or [])
        self._write(
            struct.pack(
                "<dQdQQ",
                -1.0 if plan.seconds is None else plan.seconds,
                plan.runs or 0,
                plan.rate or 0.0,
                plan.first,
                len(due) if plan.due is not None else 2**64 - 1,
            )
            + due.tobytes()
        )
        self._check_status()
        begin, end, count, late = struct.unpack("<ddQQ", self._read(32))
        recorded = driving.Recorded(begin)
        recorded.end, recorded.late = end, late
        recorded.services.frombytes(self._read(8 * count))
        recorded.latencies.frombytes(self._read(8 * count))
        return recorded

    def step_times(self, runs: int) -> List[List[int]]:
        """Of a profiled one: nanoseconds of each step, for each run.

        Raises:
            Problem: It fails.
        """
        self._check_status()
        (count,) = struct.unpack("<I", self._read(4))
        return [list(struct.unpack("<%dQ" % count, self._read(8 * count))) for _ in range(runs)]

    def close(self) -> None:
        """End it."""
        self._to.close()
        self._from.close()
        try:
            self._process.wait(5.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def _check_status(self) -> None:
        (status,) = struct.unpack("<I", self._read(4))
        if status:
            (length,) = struct.unpack("<I", self._read(4))
            text = self._read(min(length, _MOST_TEXT)).decode("utf-8", "replace")
            raise Problem("input", "the model cannot run: %s" % text)

    def _write(self, data: bytes) -> None:
        try:
            self._to.write(data)
            self._to.flush()
        except BrokenPipeError:
            raise self._ended() from None

    def _read(self, size: int) -> bytes:
        data = self._from.read(size) if size else b""
        if len(data) != size:
            raise self._ended()
        return data

    def _ended(self) -> Problem:
        code = self._process.wait()
        self._log.seek(0)
        said = self._log.read(_MOST_TEXT).decode("utf-8", "replace").strip()
        lines = said.splitlines()
        last = lines[-1] if lines else "it said nothing"
        if code < 0:
            return Problem("crashed", "the runner crashed (signal %d): %s" % (-code, last))
        if code == 4:
            return Problem("unavailable", last, "compile for this device's processor")
        if code == 2:
            return Problem(
                "unavailable",
                "this runner is of an older version: it cannot be driven or profiled",
                "compile the model again for tvm-arm",
            )
        return Problem("input", "the runner ended (%d): %s" % (code, last))


def packed(given: Sequence[Spec], data: Dict[str, memoryview]) -> bytes:
    """Inputs as the runner reads them."""
    parts: List[bytes] = []
    for spec in given:
        size = len(data[spec.name])
        parts.append(struct.pack("<%dqQ" % len(spec.shape), *((*tuple(spec.shape), size))))
        parts.append(bytes(data[spec.name]))
    return b"".join(parts)


class TvmEngine(Loaded):
    """See `Loaded`.

    Args:
        built: What lies in the folder.
        folder: Of the compiled model.
        options: {"threads": N, "warm_up": bool}; otherwise as it was built.
    """

    def __init__(self, built: Manifest, folder: str, options: Dict[str, Any]) -> None:
        options = dict(built.extra.get("options") or {}, **options)
        self._threads = int(options.get("threads") or 1)
        facts = dict(built.facts, timed=_TIMED, threads=str(self._threads), **built.versions)
        super().__init__(built.inputs, built.outputs, facts)
        self._folder = folder
        self._steps = [(str(name), str(kind)) for name, kind in built.extra.get("steps") or []]
        self._runner = Runner(folder, self.inputs, self.outputs, self._threads)
        if options.get("warm_up", True) and not any(spec.free for spec in self.inputs):
            zeros = {spec.name: memoryview(bytes(spec.nbytes)) for spec in self.inputs}
            self._runner.run(self.inputs, zeros)

    def close(self) -> None:
        self._runner.close()

    def run(self, given: List[Spec], data: Dict[str, memoryview]) -> Tuple[List[Spec], List[bytes], float]:
        """`ms` includes the pipes; `drive` does not."""
        start = time.monotonic()
        specs, found = self._runner.run(given, data)
        return specs, found, (time.monotonic() - start) * 1e3

    def drive(self, given: List[Spec], feeds: FeedFile, count: int, plan: driving.Plan) -> Dict[str, Any]:
        with self._fed(given, feeds, count) as runner:
            recorded = runner.drive(plan)
        facts = {"timed": _TIMED}
        if runner.emulated:
            facts["emulated"] = "times are those of an emulator, and say nothing about a device"
        return dict(recorded.save(plan.into), facts=facts)

    def profile(
        self, given: List[Spec], feeds: FeedFile, count: int, runs: int, into: str
    ) -> List[Dict[str, Any]]:
        """The median of each step."""
        with self._fed(given, feeds, 1, runs) as runner:
            times = runner.step_times(runs)
        if any(len(each) != len(self._steps) for each in times):
            raise Problem(
                "input", "the library has other steps than its description", "compile the model again"
            )
        return [
            {"name": name, "op_type": kind, "us": statistics.median(column) / 1e3}
            for (name, kind), column in zip(self._steps, zip(*times))
        ]

    @contextlib.contextmanager
    def _fed(self, given: List[Spec], feeds: FeedFile, count: int, profiled: int = 0) -> Iterator[Runner]:
        """A runner of its own with inputs in a file; where it is emulated, times are for tests alone."""
        with tempfile.NamedTemporaryFile(prefix="greencc-agent-") as file:
            for index in range(count):
                file.write(packed(given, views(given, feeds[index])))
            file.flush()
            runner = Runner(
                self._folder, self.inputs, self.outputs, self._threads, file.name, profiled=profiled
            )
            try:
                if runner.emulated and os.environ.get(_ALLOW_EMULATED) != "1":
                    raise Problem(
                        "unavailable",
                        "the model runs under emulation: its times would say nothing about a device",
                    )
                yield runner
            finally:
                runner.close()
