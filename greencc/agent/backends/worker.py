"""The process that holds a vendor's code: it probes, builds, or keeps an engine and answers requests.

Its messages go to what was its standard output; whatever the vendor's code prints goes to standard error instead.
"""

import argparse
import importlib
import json
import os
import signal
import sys
import threading
import time
import traceback
from typing import IO, Any, Dict, List, Sequence, Tuple

from greencc.agent import wire
from greencc.agent.backends import driving
from greencc.agent.backends.tensors import Spec, all_specs, check, views
from greencc.agent.problem import Problem

IMPLEMENTATIONS = ("bindings", "trtexec", "ort", "tvm")
"""Modules ``greencc.agent.backends.NAME_child``: ``probe(setup)``, ``build(setup, main, folder, options)`` and
``load(setup, folder, options)``, which gives a `Loaded`."""


class Setup:
    """Where things are: root of the file system, and the agent's own folder."""

    def __init__(self, root: str, home: str) -> None:
        self.root = root
        self.home = home


class Loaded:
    """An engine in this process."""

    def __init__(self, inputs: Sequence[Spec], outputs: Sequence[Spec], facts: Dict[str, str]) -> None:
        self.inputs = list(inputs)
        self.outputs = list(outputs)
        self.facts = facts

    def run(self, given: List[Spec], data: Dict[str, memoryview]) -> Tuple[List[Spec], List[bytes], float]:
        """Outputs for inputs that were checked, and the milliseconds of the run.

        Raises:
            Problem: It fails.
        """
        raise NotImplementedError

    def drive(
        self, given: List[Spec], feeds: driving.FeedFile, count: int, plan: driving.Plan
    ) -> Dict[str, Any]:
        """Run for a stretch; returns the answer to ``drive``."""

        def each(index: int) -> None:
            self.run(given, views(given, feeds[index]))

        return dict(driving.drive(each, count, plan).save(plan.into), facts={})

    def profile(
        self, given: List[Spec], feeds: driving.FeedFile, count: int, runs: int, into: str
    ) -> List[Dict[str, Any]]:
        """Mean microseconds of each layer."""
        raise Problem("unavailable", "this engine does not tell how long its layers take")

    def close(self) -> None:
        """Free what it holds."""


class Watch(threading.Thread):
    """Ends this process and its children when who started it is gone."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self._parent = os.getppid()

    def run(self) -> None:
        while os.getppid() == self._parent:
            time.sleep(1.0)
        os.killpg(os.getpgrp(), signal.SIGKILL)


class Served:
    """Answers requests for an engine."""

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded

    def description(self) -> Dict[str, Any]:
        """As `greencc.agent.backends` has it."""
        return {
            "inputs": [spec.as_json() for spec in self._loaded.inputs],
            "outputs": [spec.as_json() for spec in self._loaded.outputs],
            "facts": self._loaded.facts,
        }

    def answer(self, op: str, args: Dict[str, Any], payload: bytes) -> Tuple[Dict[str, Any], bytes]:
        """The result of a request.

        Raises:
            Problem: It is refused, or fails.
        """
        if op == "describe":
            return self.description(), b""
        if op == "run":
            sent = all_specs(args.get("inputs", []))
            given = check(sent, self._loaded.inputs)
            specs, data, milliseconds = self._loaded.run(given, views(sent, memoryview(payload)))
            return {"outputs": [spec.as_json() for spec in specs], "ms": milliseconds}, b"".join(data)
        if op in ("drive", "profile"):
            return self._stretch(op, args), b""
        raise Problem("usage", "there is no operation %r" % op)

    def _stretch(self, op: str, args: Dict[str, Any]) -> Dict[str, Any]:
        sent, count = all_specs(args.get("inputs", [])), args.get("count")
        if not isinstance(count, int) or isinstance(count, bool):
            raise Problem("usage", "the number of inputs is missing")
        given = check(sent, self._loaded.inputs)
        if [spec.name for spec in sent] != [spec.name for spec in given]:
            raise Problem("usage", "the inputs of feeds are in the model's order")
        feeds = driving.FeedFile(str(args.get("feeds", "")), given, count)
        into = str(args.get("into", ""))
        if op == "drive":
            return self._loaded.drive(given, feeds, count, driving.Plan(args))
        runs = args.get("runs", 10)
        if not isinstance(runs, int) or isinstance(runs, bool) or runs < 1:
            raise Problem("usage", "a profile takes one run at least")
        return {"nodes": self._loaded.profile(given, feeds, count, runs, into)}


def serve(loaded: Loaded, requests: IO[bytes], answers: IO[bytes]) -> None:
    """Answer until ``quit``, or until the stream ends."""
    served = Served(loaded)
    wire.write(answers, {"id": 0, "result": served.description()})
    while True:
        message = wire.read(requests)
        if message is None:
            return
        header, payload = message
        number, op, args = header.get("id"), header.get("op"), header.get("args") or {}
        if op == "quit":
            wire.write(answers, {"id": number, "result": {}})
            return
        try:
            result, data = served.answer(str(op), args, payload)
        except Exception as error:  # noqa: BLE001 - told to the one who asked
            wire.write(answers, {"id": number, "error": told(error).as_json()})
        else:
            wire.write(answers, {"id": number, "result": result}, data)


def told(error: Exception) -> Problem:
    """An error as a problem; what is not one already is in the log in full."""
    if isinstance(error, Problem):
        return error
    traceback.print_exc()
    if isinstance(error, MemoryError):
        return Problem("memory", "the device's memory does not suffice")
    return Problem("internal", "%s: %s" % (type(error).__name__, error), "the log has more")


def main(argv: Sequence[str]) -> int:
    """``probe|build|run IMPLEMENTATION`` with what each needs; see `greencc.agent.backends`."""
    answers = _take_output()
    try:
        arguments = _parser().parse_args(list(argv))
        Watch().start()
        if arguments.implementation not in IMPLEMENTATIONS:
            raise Problem("usage", "there is no implementation %r" % arguments.implementation)
        child = importlib.import_module("greencc.agent.backends.%s_child" % arguments.implementation)
        setup = Setup(arguments.root, arguments.home)
        options = json.loads(arguments.options)
        if arguments.task == "probe":
            wire.write(answers, {"id": 0, "result": child.probe(setup)})
        elif arguments.task == "build":
            result = child.build(setup, arguments.main, arguments.folder, options)
            wire.write(answers, {"id": 0, "result": result})
        else:
            loaded = child.load(setup, arguments.folder, options)
            try:
                serve(loaded, sys.stdin.buffer, answers)
            finally:
                loaded.close()
    except Exception as error:  # noqa: BLE001 - told to the one who started it
        wire.write(answers, {"id": 0, "error": told(error).as_json()})
        return 1
    return 0


def _take_output() -> IO[bytes]:
    """What was standard output; that is standard error from now on, for C code too."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    return os.fdopen(kept, "wb")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="worker")
    parser.add_argument("task", choices=("probe", "build", "run"))
    parser.add_argument("implementation")
    parser.add_argument("--root", default="/")
    parser.add_argument("--home", default="")
    parser.add_argument("--main", default="")
    parser.add_argument("--folder", default="")
    parser.add_argument("--options", default="{}")
    return parser
