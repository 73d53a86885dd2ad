"""The text protocol of SPEC's PTDaemon: a command in a line, answers in lines that end with CR LF.

What is known of it, from the programs that drive it: MLPerf's power client (mlcommons/power-dev) and SPEC CPU 2017's
harness.

    Hello               Hello, PTDaemon here!
    Identify            MODEL,INTERVAL_MS,watts,volts,amps,pf,energy,frequency,accepted,version=...,OS=...,mode=power,
                        accuracy,ranges,CHANNELS,...                   (1 where it can do so)
    Go,0,0,MARK         Starting untimed measurement, maximum ...      (or Error: ...)
    RL,*                Last N samples, then N lines:
                        Time,MM-DD-YYYY HH:MM:SS.mmm,Watts,W,Volts,V,Amps,A,PF,P,Mark,MARK
                        (No or Insufficient unread samples where there is none; the sum channel comes first)
    Uncertainty         Uncertainty,AVERAGE,MIN,MAX,TOTAL,INVALID,VALID,UNKNOWN  (relative; below 0: unknown)
    Stop                Stopping untimed measurement                   (or Error: no measurement to stop)

A negative number of watts is no power: -1 is an error of the analyser, -2 a missed sample.
"""

from __future__ import annotations

import math
import socket
from dataclasses import dataclass
from datetime import datetime
from typing import Self

from greencc.core.errors import UnavailableError

_EOL = b"\r\n"
_MAX_LINE = 1 << 16
_MAX_SAMPLES = 1_000_000
_MAX_WATTS = 1e9
_TIME = "%m-%d-%Y %H:%M:%S.%f"
_SHOWN = 80


@dataclass(frozen=True)
class Identity:
    """What `Identify` tells: the analyser, its averaging interval in seconds, and whether it tells uncertainties."""

    model: str
    interval_s: float
    accuracy: bool


@dataclass(frozen=True)
class Sample:
    """One interval's mean power in watts, and the daemon's local time, in seconds of an arbitrary origin."""

    seconds: float
    watts: float


class Line:
    """A connection to a PTDaemon. One command at a time; every method raises `UnavailableError`."""

    def __init__(self, host: str, port: int, timeout_s: float) -> None:
        self.where = f"PTDaemon at {host}:{port}"
        self.timeout_s = timeout_s
        self._buffer = b""
        try:
            self._socket = socket.create_connection((host, port), timeout=timeout_s)
        except (OSError, UnicodeError) as error:
            why = getattr(error, "strerror", None) or str(error)
            raise UnavailableError(
                f"{self.where} cannot be reached: {why}",
                hint="is it running, and does it listen on this port?",
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()

    def greet(self) -> Identity:
        """Say hello, and ask which analyser is there."""
        hello = self.ask("Hello")
        if not hello.startswith("Hello, PTDaemon here"):
            raise UnavailableError(f"{self.where} answers {_shown(hello)}: this is no PTDaemon")
        answer = self.ask("Identify")
        fields = answer.split(",")
        at = next((number for number, text in enumerate(fields) if text.startswith("mode=")), 0)
        if at < 4:
            raise UnavailableError(f"{self.where} identifies as {_shown(answer)}, which is not understood")
        mode = fields[at].removeprefix("mode=")
        if mode != "power" or fields[2] != "1":
            raise UnavailableError(
                f"{self.where} drives {fields[0]!r} in mode {mode}, which measures no power",
                hint="give the port of the PTDaemon of the power analyser",
            )
        interval = _number(fields[1])
        if interval is None or interval <= 0.0:
            raise UnavailableError(f"{self.where} tells an interval of {_shown(fields[1])} ms")
        accuracy = fields[at + 1 : at + 2] == ["1"]
        return Identity(fields[0].removesuffix("-na"), interval * 1e-3, accuracy)

    def go(self, mark: str) -> None:
        """Start an untimed measurement."""
        answer = self.ask(f"Go,0,0,{mark}")
        if not answer.startswith("Starting untimed measurement"):
            raise UnavailableError(
                f"{self.where} does not start to measure: {_shown(answer)}",
                hint="another program may be using it: end that one's measurement first",
            )

    def stop(self) -> None:
        """End the measurement."""
        answer = self.ask("Stop")
        if not answer.startswith("Stopping"):
            raise UnavailableError(f"{self.where} does not stop: {_shown(answer)}")

    def unread(self) -> list[Sample]:
        """All samples that were not read yet."""
        header = self.ask("RL,*")
        if header.startswith(("No ", "Insufficient ")):
            return []
        words = header.split()
        if len(words) != 3 or words[0] != "Last" or not words[1].isdecimal() or int(words[1]) > _MAX_SAMPLES:
            raise UnavailableError(f"{self.where} answers RL with {_shown(header)}")
        return [self._sample(self._receive()) for _ in range(int(words[1]))]

    def uncertainty(self) -> float | None:
        """Mean relative uncertainty of the samples since Go; None where the daemon does not know it."""
        average = self._numbers("Uncertainty", "Uncertainty", 7)[0]
        return average if 0.0 <= average < 1.0 else None

    def ask(self, command: str) -> str:
        """Send a command and receive the first line of its answer."""
        try:
            self._socket.sendall(command.encode("ascii") + _EOL)
        except OSError as error:
            raise self._lost(error) from error
        return self._receive()

    def _receive(self) -> str:
        while b"\n" not in self._buffer:
            try:
                chunk = self._socket.recv(1 << 16)
            except OSError as error:
                raise self._lost(error) from error
            if not chunk:
                raise UnavailableError(f"{self.where} closed the connection")
            self._buffer += chunk
            if b"\n" not in self._buffer and len(self._buffer) > _MAX_LINE:
                raise UnavailableError(f"{self.where} sends a line without an end")
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line.rstrip(b"\r").decode("utf-8", "replace")

    def _sample(self, line: str) -> Sample:
        fields = line.split(",")
        watts = _number(fields[3]) if len(fields) > 3 and fields[2] == "Watts" else None
        try:
            stamp = datetime.strptime(fields[1], _TIME) if fields[0] == "Time" and len(fields) > 1 else None
        except ValueError:
            stamp = None
        if watts is None or stamp is None or watts > _MAX_WATTS:
            raise UnavailableError(f"{self.where} sent a sample that is not understood: {_shown(line)}")
        # Only differences of the daemon's local time are used, so it has no zone.
        return Sample((stamp - datetime.min).total_seconds(), watts)

    def _numbers(self, command: str, tag: str, count: int) -> list[float]:
        answer = self.ask(command)
        name, *texts = answer.split(",")
        numbers = [_number(text) for text in texts[:count]]
        known = [number for number in numbers if number is not None]
        if name != tag or len(known) != count:
            raise UnavailableError(f"{self.where} answers {command} with {_shown(answer)}")
        return known

    def _lost(self, error: OSError) -> UnavailableError:
        if isinstance(error, TimeoutError):
            return UnavailableError(f"{self.where} did not answer within {self.timeout_s:g} s")
        return UnavailableError(f"the connection to {self.where} was lost: {error.strerror or error}")


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")
