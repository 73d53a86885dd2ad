"""A PTDaemon on loopback that speaks as the programs that drive it expect (see `_ptd_line`), and one that does not."""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import pytest

from greencc.core.errors import ExitCode, UnavailableError
from greencc.core.meter import Grade
from greencc.meters.opening import open_meter
from greencc.meters.ptdaemon import PtdMeter

IDENTITY = (
    "Yokogawa WT310E-na,1000,1,1,1,1,1,1,1,version=1.9.2-b1d44b6f-20200415,OS=Linux 5.4,mode=power,"
    "1,1,1,0,0,no_cal_date,Yokogawa"
)


@dataclass
class Daemon:
    """State of the played daemon: `unread` are (seconds, watts); `replies` override whole answers."""

    replies: dict[str, str | None] = field(default_factory=dict)
    unread: list[tuple[float, float]] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    measuring: bool = False
    uncertainty: str = "0.004"
    port: int = 0
    stopped: threading.Event = field(default_factory=threading.Event)

    def answer(self, command: str) -> str | None:
        self.seen.append(command)
        name = command.split(",")[0]
        if name in self.replies:
            return self.replies[name]
        if name == "Hello":
            return "Hello, PTDaemon here!"
        if name == "Identify":
            return IDENTITY
        if name == "Go":
            if self.measuring:
                return "Error: measurement already in progress"
            self.measuring = True
            return "Starting untimed measurement, maximum 500000 samples at 1000ms with 0 rampup samples"
        if name == "Stop":
            was, self.measuring = self.measuring, False
            self.stopped.set()
            return "Stopping untimed measurement" if was else "Error: no measurement to stop"
        if name == "RL":
            return self._unread()
        if name == "Uncertainty":
            return f"Uncertainty,{self.uncertainty},0.003,0.005,10,0,10,0"
        return "Unknown command"

    def _unread(self) -> str:
        samples, self.unread = self.unread, []
        if not samples:
            return "No unread samples available"
        lines = [f"Last {len(samples)} samples"]
        for seconds, watts in samples:
            stamp = datetime(2024, 2, 28, 23, 59, 50) + timedelta(seconds=seconds)
            text = stamp.strftime("%m-%d-%Y %H:%M:%S.") + f"{stamp.microsecond // 1000:03d}"
            lines.append(f"Time,{text},Watts,{watts:.6f},Volts,230.1,Amps,0.1,PF,0.9,Mark,greencc")
        return "\r\n".join(lines)


class _Handler(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        daemon: Daemon = self.server.daemon  # type: ignore[attr-defined]
        for line in self.rfile:
            assert line.endswith(b"\r\n")
            reply = daemon.answer(line.decode().strip())
            if reply is None:
                return
            self.wfile.write(reply.encode() + b"\r\n")


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Handler)
    server.daemon_threads = True
    played = Daemon(port=server.server_address[1])
    server.daemon = played  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield played
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def meter(daemon: Daemon, clock: Any) -> Iterator[PtdMeter]:
    made = PtdMeter("127.0.0.1", daemon.port, 5.0, clock, clock.sleep)
    yield made
    made.close()


def test_watts_times_the_time_between_samples(daemon: Daemon, meter: PtdMeter, clock: Any) -> None:
    daemon.unread = [(0.0, 99.0)]
    assert meter.missing() is None
    first = meter.read()
    assert (first.seconds, first.joules) == (100.0, {"analyser": 0.0})
    daemon.unread = [(1.0, 10.0), (2.0, 20.0), (3.001, 30.0)]
    clock.now = 103.2
    reading = meter.read()
    assert reading.seconds == 103.2
    assert reading.joules == {"analyser": pytest.approx(10.0 + 20.0 + 30.0 * 1.001)}
    assert reading.epoch == first.epoch
    assert daemon.seen[:3] == ["Hello", "Identify", "Go,0,0,greencc"]


def test_what_the_daemon_tells_of_itself(daemon: Daemon, meter: PtdMeter) -> None:
    assert (meter.period_s, meter.uncertainty) == (1.0, None)
    daemon.unread = [(0.0, 5.0), (1.0, 7.0)]
    meter.read()
    assert meter.boundary == f"power analyser Yokogawa WT310E, PTDaemon at 127.0.0.1:{daemon.port}"
    assert (meter.name, meter.grade, meter.period_s) == ("ptdaemon", Grade.A, 1.0)
    assert meter.uncertainty == 0.004
    daemon.uncertainty, daemon.unread = "-1", [(2.0, 7.0)]
    meter.read()
    assert meter.uncertainty is None


def test_no_new_sample_changes_nothing_until_they_stay_away(
    daemon: Daemon, meter: PtdMeter, clock: Any
) -> None:
    daemon.unread = [(0.0, 5.0), (1.0, 5.0)]
    before = meter.read()
    clock.now += 0.5
    after = meter.read()
    assert (after.joules, after.epoch) == (before.joules, before.epoch)
    assert after.seconds > before.seconds
    clock.now += 20.0
    with pytest.raises(UnavailableError, match=r"has sent no sample for 20 s"):
        meter.read()
    daemon.unread = [(0.0, 5.0)]
    assert meter.read().epoch == before.epoch + 1
    assert daemon.seen.count("Go,0,0,greencc") == 2, "the measurement was not started anew"


def test_the_first_reading_waits_for_a_sample(daemon: Daemon, meter: PtdMeter) -> None:
    reason = meter.missing()
    assert reason is not None
    assert "has sent no sample for" in reason


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([(1.0, -1.0)], "reports -1 W: an error of the analyser"),
        ([(1.0, -2.0)], "reports -2 W: a missed sample"),
        ([(1.0, -7.0)], "reports -7 W: no power"),
        ([(3.0, 5.0)], "are 3 s apart, with an interval of 1 s"),
        ([(-3600.0, 5.0)], "are -3600 s apart"),
        ([(0.0, 5.0)], "are 0 s apart"),
        ([(1.0, float("nan"))], "is not understood"),
        ([(1.0, 1e12)], "is not understood"),
    ],
)
def test_bad_samples_begin_a_new_epoch(
    daemon: Daemon, meter: PtdMeter, samples: list[tuple[float, float]], message: str
) -> None:
    daemon.unread = [(0.0, 5.0)]
    before = meter.read()
    daemon.unread = samples
    with pytest.raises(UnavailableError, match=message):
        meter.read()
    daemon.unread = [(10.0, 5.0), (11.0, 6.0)]
    after = meter.read()
    assert after.epoch > before.epoch
    assert after.joules == {"analyser": 6.0}


@pytest.mark.parametrize(
    ("command", "reply", "message"),
    [
        ("Hello", "220 mail ESMTP", "this is no PTDaemon"),
        ("Identify", "what", "identifies as 'what', which is not understood"),
        (
            "Identify",
            IDENTITY.replace("power", "temperature"),
            "in mode temperature, which measures no power",
        ),
        ("Identify", IDENTITY.replace(",1000,1,", ",1000,0,"), "measures no power"),
        ("Identify", IDENTITY.replace(",1000,", ",0,"), "tells an interval of '0' ms"),
        ("Uncertainty", "Invalid number of parameters", "answers Uncertainty with 'Invalid number"),
        ("Uncertainty", "Uncertainty,0.1,x,0,1,0,1,0", "answers Uncertainty with"),
        ("Go", "Error: meter busy", "does not start to measure: 'Error: meter busy' .*another program"),
        ("RL", "Last many samples", "answers RL with"),
        ("RL", "Last 99999999999 samples", "answers RL with"),
        ("RL", "Last 1 samples\r\nTime,yesterday,Watts,1", "sample that is not understood"),
        ("RL", "Last 1 samples\r\nTemp,1", "sample that is not understood"),
        ("RL", "Last 1 samples\r\nTime", "sample that is not understood"),
        ("RL", "x" * 100_000, "answers RL with|without an end"),
        ("RL", None, "closed the connection|was lost"),
    ],
)
def test_nonsense_is_refused(
    daemon: Daemon, meter: PtdMeter, command: str, reply: str | None, message: str
) -> None:
    daemon.unread = [(0.0, 5.0)]
    daemon.replies[command] = reply
    with pytest.raises(UnavailableError, match=message) as caught:
        meter.read()
    assert caught.value.exit_code == ExitCode.UNAVAILABLE
    # When the fault is over, a reading works again, in a new epoch.
    del daemon.replies[command]
    daemon.measuring = False
    daemon.unread = [(0.0, 5.0)]
    assert meter.read().epoch == 1


def test_closing_stops_the_measurement(daemon: Daemon, meter: PtdMeter) -> None:
    daemon.unread = [(0.0, 5.0)]
    meter.read()
    assert daemon.measuring
    meter.close()
    assert not daemon.measuring


def test_letting_go_stops_the_measurement(daemon: Daemon) -> None:
    daemon.unread = [(0.0, 5.0)]
    meter = open_meter(f"ptdaemon:127.0.0.1:{daemon.port}", {})
    assert meter.missing() is None
    del meter
    assert daemon.stopped.wait(10)
    assert not daemon.measuring


def test_nobody_listens_and_a_silent_one(daemon: Daemon, clock: Any) -> None:
    with pytest.raises(UnavailableError, match=r"PTDaemon at 127.0.0.1:9 cannot be reached"):
        PtdMeter("127.0.0.1", 9).read()
    with pytest.raises(UnavailableError, match="cannot be reached"):
        PtdMeter("x" * 70, 9).read()
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        meter = PtdMeter("127.0.0.1", silent.getsockname()[1], timeout_s=0.2)
        with pytest.raises(UnavailableError, match=r"did not answer within 0.2 s"):
            meter.read()
