"""Recordings: what is refused, and how they are played against the clock and in steps."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from greencc.core.errors import ExitCode, InputError, UnavailableError, UsageError
from greencc.core.meter import Grade, is_counter
from greencc.meters.csv_replay import EnergyReplay, Pace, PowerReplay, load_recording, replay
from greencc.meters.opening import open_meter
from greencc.meters.sampling import Sampler

WATTS = "seconds,package-0.watts,dram.watts\n5.0,10,1\n5.5,20,1\n6.0,30,2\n"
JOULES = "seconds,joules\n0,100\n1,110\n2,125\n"


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], Path]:
    def make(text: str) -> Path:
        path = tmp_path / "trace.csv"
        path.write_text(text)
        return path

    return make


def test_power_against_the_clock(write: Callable[[str], Path], clock: Any) -> None:
    meter = replay(write(WATTS))
    assert isinstance(meter, PowerReplay)
    meter.clock = clock
    assert meter.missing() is None
    sample = meter.sample()
    assert (sample.seconds, sample.watts) == (100.0, {"package-0": 10.0, "dram": 1.0})
    clock.now = 100.49
    assert meter.sample().watts["package-0"] == 10.0
    clock.now = 100.9
    sample = meter.sample()
    assert (sample.seconds, sample.watts["package-0"]) == (100.5, 20.0)
    clock.now = 101.5
    assert meter.sample().watts == {"package-0": 30.0, "dram": 2.0}
    clock.now = 101.51
    with pytest.raises(UnavailableError, match=r"trace.csv is over after 1 s"):
        meter.sample()
    assert (meter.period_s, meter.grade, meter.name) == (0.5, Grade.D, "csv")
    assert meter.boundary == "replay of trace.csv (package-0 + dram)"


def test_the_sampler_integrates_a_replay_exactly(write: Callable[[str], Path], clock: Any) -> None:
    meter = replay(write(WATTS))
    meter.clock = clock
    sampler = Sampler(meter, clock=clock)
    readings = []
    for _ in range(5):
        readings.append(sampler.read())
        clock.sleep(0.25)
    # Trapezoids: (10 + 20) / 2 * 0.5 + (20 + 30) / 2 * 0.5.
    assert readings[-1].joules == pytest.approx({"package-0": 20.0, "dram": 1.25})


def test_energy_in_steps(write: Callable[[str], Path]) -> None:
    meter = open_meter(f"csv:{write(JOULES)}?pace=steps&grade=A", {})
    assert is_counter(meter)
    assert isinstance(meter, EnergyReplay)
    assert meter.missing() is None
    readings = [meter.read() for _ in range(3)]
    assert [(r.seconds, r.joules["replay"]) for r in readings] == [(0.0, 100.0), (1.0, 110.0), (2.0, 125.0)]
    assert meter.grade is Grade.A
    assert "is over" in (meter.missing() or "")
    with pytest.raises(UnavailableError, match="is over"):
        meter.read()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("\n", "is empty"),
        ("seconds,watts\n", "has 0 rows"),
        ("seconds,watts\n1,2\n", "has 1 rows"),
        ("time,watts\n1,2\n", r"the first line is 'time,watts' \(the columns are seconds"),
        ("seconds\n1\n", "the first line"),
        ("seconds,power\n1,2\n", "column 'power' is neither watts nor joules"),
        ("seconds,a.watts,b.joules\n1,2,3\n", "mixes watts and joules"),
        ("seconds,a.watts,a.watts\n1,2,3\n", "the domain 'a' is there twice"),
        ("seconds,watts\n1,2\n2,nan\n", "line 3: watts is 'nan'"),
        ("seconds,watts\n1,2\n2,inf\n", "line 3: watts is 'inf'"),
        ("seconds,watts\n1,2\n2,-1\n", "line 3: watts is '-1'"),
        ("seconds,watts\n1,2\n2,much\n", "line 3: watts is 'much'"),
        ("seconds,watts\nnan,2\n2,3\n", "line 2: seconds is 'nan'"),
        ("seconds,watts\n1,2\n2\n", "line 3: 1 values for 2 columns"),
        ("seconds,watts\n1,2\n1,3\n", "line 3: time does not increase"),
        ("seconds,watts\n2,2\n1,3\n", "line 3: time does not increase"),
        ("seconds,joules\n1,2\n2,1\n", "line 3: cumulative joules decrease"),
        ('seconds,watts\n1,"2\n', "is not a CSV file"),
    ],
)
def test_bad_recordings_name_the_line(write: Callable[[str], Path], text: str, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        load_recording(write(text))
    assert caught.value.exit_code == ExitCode.BAD_INPUT


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        open_meter(f"csv:{tmp_path / 'none.csv'}", {})
    with pytest.raises(InputError, match="Is a directory"):
        open_meter(f"csv:{tmp_path}", {})
    (tmp_path / "b.csv").write_bytes(b"seconds,watts\n\xff\xfe\n")
    with pytest.raises(InputError, match="is not a CSV file"):
        open_meter(f"csv:{tmp_path / 'b.csv'}", {})
    with pytest.raises(UsageError, match="csv: the uncertainty is 2"):
        open_meter(f"csv:{tmp_path / 'b.csv'}?uncertainty=2", {})


def test_what_would_never_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tmp_path / "pipe.csv"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/zero")):
        with pytest.raises(InputError, match="is no regular file"):
            load_recording(path)
    long = tmp_path / "long.csv"
    long.write_bytes(b"seconds,watts\n0,1\n" + b" " * (1 << 17) + b"1,1\n")
    with pytest.raises(InputError, match="line 3 has more than 65536 bytes"):
        load_recording(long)
    # What counts is what is read, not the size that the file system tells.
    monkeypatch.setattr("greencc.meters.csv_replay.MAX_BYTES", 30)
    long.write_text("seconds,watts\n0,1\n1,1\n2,1\n3,1\n4,1\n")
    with pytest.raises(InputError, match="has more than"):
        load_recording(long)


def test_the_period_is_computed_once(write: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    meter = replay(write(WATTS))
    monkeypatch.setattr("statistics.median", lambda values: pytest.fail("the median of all rows again"))
    assert meter.period_s == 0.5
    assert meter.missing() is None


def test_a_byte_order_mark_blank_lines_and_negative_times_are_fine(write: Callable[[str], Path]) -> None:
    recording = load_recording(write("\ufeffseconds, watts\n-1,2\n\n0,3\n"))
    assert (recording.seconds, recording.values) == ((-1.0, 0.0), ((2.0,), (3.0,)))


def test_a_question_mark_in_a_file_name_is_no_option(tmp_path: Path) -> None:
    path = tmp_path / "what?.csv"
    path.write_text(JOULES)
    meter = open_meter(f"csv:{path}", {})
    assert isinstance(meter, EnergyReplay)
    assert meter.pace is Pace.CLOCK
