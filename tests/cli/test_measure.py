"""`greencc measure` with a meter: figures, what is saved, and a meter that dies."""

from __future__ import annotations

import csv
import json
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from greencc.compiler import energies, measurement
from greencc.compiler.options import Effort
from greencc.core.errors import ExitCode, UnavailableError
from greencc.core.meter import Grade, Meter, Reading
from greencc.measure import protocols
from greencc.measure.load import SystemLoad
from greencc.measure.thermal import SystemThermal, ThermalState
from greencc.meters import opening

Run = Callable[..., Any]


@dataclass
class BenchMeter:
    """Counts 5 W, and 20 J for every second of processor time of this process."""

    dies_after: float = float("inf")
    name: str = "bench"
    grade: Grade = Grade.A
    boundary: str = "test rail"
    period_s: float = 0.001
    uncertainty: float | None = 0.01
    reason: str | None = None
    began: float | None = None

    def missing(self) -> str | None:
        return self.reason

    def read(self) -> Reading:
        now = time.monotonic()
        self.began = self.began or now
        if now - self.began > self.dies_after:
            raise UnavailableError("the rail vanished")
        return Reading(now, {"rail": 5.0 * now + 20.0 * time.process_time()})


@pytest.fixture
def meter(brief: None, monkeypatch: pytest.MonkeyPatch) -> BenchMeter:
    """A meter that `--meter bench` opens, and protocols that take a second or two on a machine that is never busy."""
    found = BenchMeter()

    def open_meter(spec: str) -> Meter:
        assert spec == "bench"
        return found

    monkeypatch.setattr(opening, "open_meter", open_meter)
    monkeypatch.setitem(measurement.PROFILES, Effort.STANDARD, measurement.PROFILES[Effort.QUICK])
    monkeypatch.setattr(SystemLoad, "others_seconds", lambda self: None)
    monkeypatch.setattr(SystemThermal, "look", lambda self: ThermalState())
    short = [
        replace(each, idle_seconds=0.2 * bool(each.idle_seconds), block_seconds=0.1, warm_up_seconds=0.0)
        for each in protocols.PROTOCOLS
    ]
    monkeypatch.setattr(
        protocols, "PROTOCOLS", tuple(replace(each, rounds=2, target=None, periods=10) for each in short)
    )
    return found


QUICK = ("measure", "model.onnx", "-i", "eval.npz", "--protocol", "quick")
WITH_METER = (*QUICK, "--meter", "bench")


def test_a_measured_campaign_is_printed_and_saved(meter: BenchMeter, digits: Path, greencc: Run) -> None:
    outcome = greencc(*WITH_METER, "--save", "out", "--plot", "--rate", "50/s", "--poisson")
    assert outcome.code == ExitCode.OK, outcome.err
    for text in (
        "Energy, measured",
        "measured with bench",
        "Boundary: test rail",
        "Load: poisson, 50/s",
        "p99.9",
    ):
        assert text in " ".join(outcome.out.split())
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "blocks.csv",
        "measurement.json",
        "trace.csv",
        "trace.svg",
    ]
    data = json.loads(Path("out/measurement.json").read_text())
    campaign = data["campaign"]
    assert campaign["meter"]["grade"] == data["artifact"]["energy_mj"]["grade"] == "A"
    assert (campaign["complete"], campaign["problem"], campaign["load"]) == (True, None, "poisson, 50/s")
    assert [block["variant"] for block in campaign["blocks"]] == [
        "baseline", "artifact", "artifact", "baseline", "artifact", "baseline", "baseline", "artifact",
    ]  # fmt: skip
    assert 0.0 <= campaign["sampling"]["core_share"] < 1.0
    assert data["conditions"]["sampling_readings"] > 0
    load = campaign["under_load"]["artifact"]
    assert load["latency_ms"]["p50"] <= load["latency_ms"]["p999"]
    # What was saved adds up to what was printed.
    with Path("out/blocks.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == len(campaign["blocks"])
    gross = [1e3 * float(row["rail.joules"]) / int(row["inferences"]) for row in rows]
    energy = data["artifact"]["energy_mj"]
    assert min(gross) <= energy["gross"] <= max(gross)
    assert energy["low"] <= energy["value"] <= energy["high"]
    with Path("out/trace.csv").open() as stream:
        trace = list(csv.DictReader(stream))
    assert list(trace[0]) == ["seconds", "epoch", "block", "rail.joules", "rail.watts", "grade", "boundary"]
    assert {"idle before", "idle after", "baseline 0", "artifact 1"} <= {row["block"] for row in trace}
    idle = campaign["idle_power"]
    assert idle["low"] <= idle["value"] == campaign["idle_watts"] <= idle["high"]
    conditions = data["conditions"]
    assert conditions["idle_watts_low"] == idle["low"] < idle["high"] == conditions["idle_watts_high"]
    for each in (idle, *campaign["idle"], *campaign["blocks"], *rows, *trace):
        assert (each["grade"], each["boundary"]) == ("A", "test rail")
    assert f"W idle [{idle['low']:.3g}, {idle['high']:.3g}]" in energy["method"]
    times = [float(row["seconds"]) for row in trace]
    assert times == sorted(times)
    svg = ElementTree.fromstring(Path("out/trace.svg").read_text())
    assert "grade A, boundary test rail, gain uncertain by 1% (one standard uncertainty)" in "".join(
        svg.itertext()
    )
    shaded = [each.get("class") for each in svg.iter("{http://www.w3.org/2000/svg}rect")]
    # One each in the legend.
    assert [shaded.count(kind) for kind in ("idle", "baseline", "artifact")] == [11, 5, 5]


def test_beside_itself_a_model_shows_noise_and_saves_nothing(
    meter: BenchMeter, digits: Path, greencc: Run
) -> None:
    outcome = greencc(*WITH_METER, "--save", "out")
    words = " ".join(outcome.out.split())
    assert words.count("noise") == 2
    assert not any(claim in words for claim in ("saves", "costs", "faster", "slower", "no saving shown"))
    assert json.loads(Path("out/measurement.json").read_text())["conditions"]["same_artifact"] is True
    shutil.copy("model.onnx", "other.onnx")
    outcome = greencc(*WITH_METER, "--against", "other.onnx")
    assert "noise" not in outcome.out


def test_carbon_follows_the_energy(meter: BenchMeter, digits: Path, greencc: Run) -> None:
    outcome = greencc(*WITH_METER, "--grid-intensity", "100g", "--save", "out")
    assert "Carbon (SCI) per inference" in outcome.out
    assert "embodied emissions not included" in " ".join(outcome.out.split())
    data = json.loads(Path("out/measurement.json").read_text())
    # Gross millijoules times 100 g/kWh: 3.6e9 mJ to a kWh.
    gross = data["artifact"]["energy_mj"]["gross"]
    assert data["carbon"]["artifact_ug"]["value"] == pytest.approx(gross * 100e6 / 3.6e9)
    assert (data["carbon"]["grade"], data["carbon"]["boundary"]) == ("A", "test rail")


def test_it_is_saved_once(meter: BenchMeter, digits: Path, greencc: Run, refused: Run) -> None:
    assert greencc(*WITH_METER, "--save", "out").code == ExitCode.OK
    refused((*WITH_METER, "--save", "out"), ExitCode.BAD_INPUT, "out exists already", "--force")
    before = Path("out/measurement.json").read_text()
    assert greencc(*WITH_METER, "--save", "out", "--force").code == ExitCode.OK
    assert Path("out/measurement.json").read_text() != before


def test_a_place_that_cannot_be_written_is_refused_before_measuring(
    meter: BenchMeter, digits: Path, refused: Run
) -> None:
    Path("file").write_text("")
    refused((*WITH_METER, "--save", "file/out"), ExitCode.BAD_INPUT, "cannot write file/out", "folder")
    assert meter.began is None
    # What was tried leaves nothing, and neither does a measurement that is refused later.
    refused((*WITH_METER, "-i", "nothing.npz", "--save", "a/b/out"), ExitCode.BAD_INPUT, "nothing.npz")
    assert not Path("a").exists()


def test_figures_that_cannot_be_saved_are_printed_all_the_same(
    meter: BenchMeter, digits: Path, greencc: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = BenchMeter.read

    def read_and_spoil(self: BenchMeter) -> Reading:
        Path("out").mkdir(exist_ok=True)
        return read(self)

    monkeypatch.setattr(BenchMeter, "read", read_and_spoil)
    outcome = greencc(*WITH_METER, "--save", "out")
    assert outcome.code == ExitCode.BAD_INPUT
    assert "out already exists" in outcome.err
    assert "Energy, measured" in outcome.out
    assert "Saved in" not in outcome.out
    assert list(Path("out").iterdir()) == []


def test_a_meter_that_dies_leaves_what_was_measured(
    meter: BenchMeter, digits: Path, greencc: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the idle window and some of the rounds that were asked for."""
    longer = tuple(replace(each, rounds=30) for each in protocols.PROTOCOLS)
    monkeypatch.setattr(protocols, "PROTOCOLS", longer)
    meter.dies_after = 2.5
    shutil.copy("model.onnx", "other.onnx")
    outcome = greencc(*WITH_METER, "--save", "out", "--against", "other.onnx")
    assert outcome.code == ExitCode.UNAVAILABLE
    assert "no saving claimed" in " ".join(outcome.out.split())
    assert "Energy, measured" in outcome.out
    assert (
        "energy rests on part of the measurement: bench failed 3 times in a row: the rail vanished"
        in " ".join(outcome.err.split())
    )
    campaign = json.loads(Path("out/measurement.json").read_text())["campaign"]
    assert not campaign["complete"]
    assert campaign["stopped"].startswith("the meter failed")
    assert 2 <= campaign["rounds"] < 30
    assert campaign["discarded"]["a reading failed"] == 3


def test_a_meter_that_dies_at_once_gives_an_estimate(meter: BenchMeter, digits: Path, greencc: Run) -> None:
    meter.dies_after = 0.3
    outcome = greencc(*WITH_METER, "--save", "out", "--json")
    assert outcome.code == ExitCode.UNAVAILABLE
    data = json.loads(outcome.out)
    assert data["artifact"]["energy_mj"]["grade"] == "D"
    assert "failed 3 times in a row" in data["campaign"]["problem"]
    assert any("energy was not measured with bench" in warning for warning in data["warnings"])
    assert data == json.loads(Path("out/measurement.json").read_text())


def test_a_meter_that_gives_no_reading(meter: BenchMeter, digits: Path, greencc: Run, refused: Run) -> None:
    meter.reason = "no permission"
    refused(WITH_METER, ExitCode.UNAVAILABLE, "the bench meter gives no reading: no permission", "doctor")


def test_a_model_is_no_meter(meter: BenchMeter, digits: Path, refused: Run) -> None:
    meter.grade = Grade.C
    refused(WITH_METER, ExitCode.USAGE, "bench (grade C) estimates")


def second_meter(meter: BenchMeter, monkeypatch: pytest.MonkeyPatch) -> BenchMeter:
    """The best meter and another one, as on a machine that has both."""
    other = BenchMeter(name="other")

    def found(processor: str) -> list[BenchMeter]:
        assert processor == "cpu"
        return [meter, other]

    monkeypatch.setattr(energies, "available_meters", found)
    return other


def test_when_a_meter_fails_the_next_one_has_its_turn(
    meter: BenchMeter, digits: Path, greencc: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = second_meter(meter, monkeypatch)
    meter.dies_after = 0.3
    outcome = greencc(*QUICK)
    assert outcome.code == ExitCode.OK, outcome.err
    assert other.began is not None
    assert "measured with other" in " ".join(outcome.out.split())


def test_when_the_machine_is_busy_no_other_meter_is_tried(
    meter: BenchMeter, digits: Path, greencc: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = second_meter(meter, monkeypatch)
    monkeypatch.setattr(SystemLoad, "others_seconds", lambda self: 100.0 * time.monotonic())
    brief = tuple(replace(each, limit_seconds=2.0) for each in protocols.PROTOCOLS)
    monkeypatch.setattr(protocols, "PROTOCOLS", brief)
    outcome = greencc(*QUICK)
    assert outcome.code == ExitCode.UNAVAILABLE
    assert (meter.began is None, other.began is None) == (False, True)
    words = " ".join(outcome.err.split())
    assert "energy was not measured with bench: only 0 rounds of blocks were undisturbed" in words
    assert "Energy, estimated" in " ".join(outcome.out.split())


def test_a_meter_of_another_processor_is_named(
    meter: BenchMeter, digits: Path, greencc: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "open_meter", lambda spec: meter)
    meter.name = "nvml:0"
    outcome = greencc(*QUICK, "--meter", "nvml:0")
    assert "the nvml:0 meter covers test rail and sees nothing of the CPU" in " ".join(outcome.err.split())
    meter.name = "rapl"
    assert "sees nothing" not in greencc(*QUICK, "--meter", "rapl").err


def test_a_meter_too_slow_for_the_protocol_is_left_out(
    meter: BenchMeter, digits: Path, greencc: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    meter.period_s = 5.0
    monkeypatch.setattr(energies, "available_meters", lambda *processor: (meter,))
    outcome = greencc(*QUICK)
    assert outcome.code == ExitCode.OK, outcome.err
    assert "bench updates every 5 s, too seldom for the quick protocol" in " ".join(outcome.err.split())
    assert "Energy, estimated" in outcome.out


def test_without_a_meter_there_is_no_trace(meter: BenchMeter, digits: Path, greencc: Run) -> None:
    outcome = greencc(*QUICK, "--save", "out", "--plot")
    assert outcome.code == ExitCode.OK, outcome.err
    assert "No trace: no meter." in outcome.out
    assert "Load: flat-out" in outcome.out
    assert sorted(path.name for path in Path("out").iterdir()) == ["blocks.csv", "measurement.json"]
    data = json.loads(Path("out/measurement.json").read_text())
    assert data["artifact"]["energy_mj"]["grade"] == "D"
    for block in data["campaign"]["blocks"]:
        assert (block["joules"], block["grade"], block["boundary"]) == (None, None, None)
    assert data["campaign"]["meter"] is None


@pytest.mark.parametrize("protocol", ["mlperf-tiny", "mlperf-power"])
def test_mlperf_is_not_claimed(meter: BenchMeter, digits: Path, greencc: Run, protocol: str) -> None:
    arguments = ("measure", "model.onnx", "-i", "eval.npz", "--meter", "bench", "--protocol", protocol)
    outcome = greencc(*arguments)
    assert outcome.code == ExitCode.OK, outcome.err
    words = " ".join(outcome.out.split())
    assert "not an MLPerf result" in words
    assert "idle not subtracted" in words


def test_parquet_needs_its_extra(
    meter: BenchMeter, digits: Path, refused: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    arguments = (*WITH_METER, "--save", "out", "--trace-format", "parquet")
    refused(arguments, ExitCode.UNAVAILABLE, "takes pyarrow, which is not installed", "greencc[parquet]")


def test_parquet(meter: BenchMeter, digits: Path, greencc: Run) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    assert greencc(*WITH_METER, "--save", "out", "--trace-format", "parquet").code == ExitCode.OK
    table = parquet.read_table("out/trace.parquet")
    assert table.column_names == [
        "seconds",
        "epoch",
        "block",
        "rail.joules",
        "rail.watts",
        "grade",
        "boundary",
    ]
    assert table.num_rows > 5
