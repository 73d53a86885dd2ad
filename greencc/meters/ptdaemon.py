"""A power analyser behind SPEC's PTDaemon, which MLPerf Power and SPEC's benchmarks measure with.

The daemon averages power over its interval, stamps each mean, and keeps it until it is asked. So nothing between two
readings is lost: a reading adds, for each new sample, its watts times the time since the sample before. Samples that
are errors, are missing or are out of step begin a new epoch, since the energy of their interval is not known.

The measurement starts with the first reading and is stopped by `close`, or when the meter is let go. The analyser's
ranges are left as they are: fixed ranges are more accurate, and with automatic ones the daemon tells no uncertainty.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field

from greencc.core.errors import UnavailableError
from greencc.core.meter import Grade, Reading
from greencc.meters._external import reason
from greencc.meters._ptd_line import Identity, Line, Sample

PORT = 8888
TIMEOUT_S = 10.0
DOMAIN = "analyser"
_MARK = "greencc"
_INTERVAL_S = 1.0
# Samples further apart than so many intervals are not neighbours.
_OUT_OF_STEP = 1.5
_STUCK_INTERVALS = 10.0


@dataclass
class _Session:
    line: Line
    identity: Identity
    hang_up: Callable[[], object]
    newest: Sample | None = None
    arrived: float = 0.0


@dataclass
class PtdMeter:
    """Implements `greencc.core.meter.Meter`.

    Attributes:
        host: Where the daemon runs.
        port: Its port.
        timeout_s: Longest wait for an answer; the daemon may take one interval for it.
        clock: Monotonic seconds.
        sleep: Waits.
    """

    host: str
    port: int = PORT
    timeout_s: float = TIMEOUT_S
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    _session: _Session | None = field(default=None, init=False, repr=False)
    _joules: float = field(default=0.0, init=False)
    _epoch: int = field(default=0, init=False)
    _uncertainty: float | None = field(default=None, init=False)

    @property
    def name(self) -> str:
        return "ptdaemon"

    @property
    def grade(self) -> Grade:
        return Grade.A

    @property
    def boundary(self) -> str:
        model = f" {self._session.identity.model}" if self._session else ""
        return f"power analyser{model}, PTDaemon at {self.host}:{self.port}"

    @property
    def period_s(self) -> float:
        """The daemon's interval; one second before it was asked."""
        return self._session.identity.interval_s if self._session else _INTERVAL_S

    @property
    def uncertainty(self) -> float | None:
        """What the daemon computes from the analyser's data sheet, of all samples so far.

        The daemon gives a bound; it is taken for a standard uncertainty as it is, which errs on the wide side.
        """
        return self._uncertainty

    def missing(self) -> str | None:
        """Starts to measure, and takes a reading."""
        return reason(self.read)

    def read(self) -> Reading:
        """Take a reading: joules since the first sample.

        Raises:
            UnavailableError: The daemon is out of reach, is busy, drives no power analyser, speaks nonsense, or its
                samples have errors, gaps or an end.
        """
        try:
            return self._read()
        except UnavailableError:
            # What happened since the last reading is not known.
            self._epoch += 1
            self._joules = 0.0
            if self._session is not None:
                self._session.newest = None
            raise

    def close(self) -> None:
        """Stop the measurement and disconnect; the next reading starts anew."""
        if self._session is not None:
            self._session.hang_up()
            self._session = None

    def _read(self) -> Reading:
        if self._session is None:
            self._session = self._start()
        session = self._session
        try:
            samples = session.line.unread()
            while session.newest is None and not samples:
                self._check_alive(session)
                self.sleep(session.identity.interval_s)
                samples = session.line.unread()
            now = self.clock()
            if session.identity.accuracy and samples:
                self._uncertainty = session.line.uncertainty()
        except UnavailableError:
            # Whatever is still on its way must not be taken for the next answer.
            self.close()
            raise
        if samples:
            session.arrived = now
        self._check_alive(session)
        for sample in samples:
            self._add(session, sample)
        return Reading(now, {DOMAIN: self._joules}, self._epoch)

    def _start(self) -> _Session:
        line = Line(self.host, self.port, self.timeout_s)
        try:
            identity = line.greet()
            line.go(_MARK)
        except UnavailableError:
            line.close()
            raise
        return _Session(line, identity, weakref.finalize(self, _hang_up, line), arrived=self.clock())

    def _check_alive(self, session: _Session) -> None:
        silence = self.clock() - session.arrived
        if silence > max(_STUCK_INTERVALS * session.identity.interval_s, self.timeout_s):
            self.close()
            raise UnavailableError(
                f"{session.line.where} has sent no sample for {silence:.0f} s",
                hint="its maximum number of samples may be reached, or the analyser was unplugged",
            )

    def _add(self, session: _Session, sample: Sample) -> None:
        if sample.watts < 0.0:
            what = {-1.0: "an error of the analyser", -2.0: "a missed sample"}.get(sample.watts, "no power")
            raise UnavailableError(f"{session.line.where} reports {sample.watts:g} W: {what}")
        before, session.newest = session.newest, sample
        if before is None:
            return
        elapsed = sample.seconds - before.seconds
        if not 0.0 < elapsed <= _OUT_OF_STEP * session.identity.interval_s:
            raise UnavailableError(
                f"two samples of {session.line.where} are {elapsed:g} s apart, "
                f"with an interval of {session.identity.interval_s:g} s"
            )
        self._joules += sample.watts * elapsed


def _hang_up(line: Line) -> None:
    """Stop the daemon's measurement, so that the next client finds it idle."""
    reason(line.stop)
    line.close()
