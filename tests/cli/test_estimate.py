"""`greencc estimate` and `greencc lab` on the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from greencc.cli.commands import lab
from greencc.cli.types import ESTIMATE_PRECISIONS
from greencc.core.errors import ExitCode
from greencc.core.meter import Grade
from greencc.lab.calibrate import Calibrated
from greencc.lab.estimate import EstimatePrecision
from greencc.lab.fit import EnergyFit, LeaveOneOut, TimeFit
from greencc.lab.observations import Observation
from greencc.meters.device import Calibration
from greencc.meters.device_file import dump_profile
from greencc.targets import CpuTarget
from tests.meters.bench_device import exactly, make_device


@pytest.fixture(autouse=True)
def own_profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return tmp_path / "data" / "greencc" / "devices"


def test_precisions_are_those_of_the_estimate() -> None:
    assert tuple(item.value for item in EstimatePrecision) == ESTIMATE_PRECISIONS


def test_an_estimate_says_what_it_is(digits, greencc) -> None:
    outcome = greencc(
        "estimate", "model.onnx", "--device", "jetson-orin-nano", "--mode", "15w", "--rate", "30/s"
    )
    assert outcome.code == ExitCode.OK, outcome.err
    text = " ".join(outcome.out.split())
    for words in (
        "mode 15W, cap 15 W", "ms (estimated)", "estimated, gross, grade D", "VDD_IN rail", "hidden", "Gemm+Relu",
        "overhead", "at 30/s", "not calibrated", "mJ, grade D", "before any slowing down by a power cap",
    ):  # fmt: skip
        assert words in text, words
    assert "measured" not in text
    # Energy, power, at the rate and the layers.
    assert (
        text.count("estimated, grade D, module: GPU") + text.count("estimated, gross, grade D, module: GPU")
        == 4
    )
    layers = outcome.out.split("Bound", 1)[1].split("Note:", 1)[0]
    assert len(re.findall(r"^(?:hidden|head) ", layers, re.MULTILINE)) == 2
    assert len(re.findall(r"\[[\d.e-]+, [\d.e-]+\]", layers)) == 2


def test_json_has_every_figure_with_its_interval(digits, greencc) -> None:
    outcome = greencc(
        "estimate", "model.onnx", "-d", "raspberry-pi-5", "--batch", "8", "--threads", "2", "--json"
    )
    data = json.loads(outcome.out)
    assert data["schema"] == "greencc.estimate/1"
    assert (data["batch"], data["threads"], data["precision"]) == (8, 2, "float")
    for key in ("latency_ms", "energy", "watts"):
        assert 0 < data[key]["low"] <= data[key]["value"] <= data[key]["high"]
    assert data["energy"]["grade"] == "D"
    assert data["energy"]["boundary"]
    for figure in (data["watts"], *(layer["millijoules"] for layer in data["layers"])):
        assert 0 < figure["low"] < figure["value"] < figure["high"]
        assert (figure["grade"], figure["boundary"]) == ("D", data["energy"]["boundary"])
    # 8 x (64 x 48 + 48 x 10) multiply-accumulates.
    assert sum(layer["operations"] for layer in data["layers"]) == 2 * 8 * (64 * 48 + 48 * 10)


def test_integers_are_said_to_be_counted_only(digits, bundle, greencc) -> None:
    outcome = greencc("estimate", "model.onnx", "-d", "x86-desktop", "--precision", "int8", "--json")
    data = json.loads(outcome.out)
    assert data["precision"] == "int8 (as if)"
    assert "nothing was converted" in data["notes"][0]
    assert {layer["dtype"] for layer in data["layers"]} == {"int8"}
    real = json.loads(greencc("estimate", bundle, "-d", "x86-desktop", "--json").out)
    assert real["precision"] in ("int8", "uint8")
    refused = greencc("estimate", bundle, "-d", "x86-desktop", "--precision", "int8")
    assert refused.code == ExitCode.USAGE
    assert "quantized already" in refused.err


BAD = {
    "an unknown device": (
        ("-d", "jetson-oran-nano"),
        ExitCode.USAGE,
        "no device",
        "did you mean 'jetson-orin-nano'",
    ),
    "a machine that was not calibrated": (
        ("-d", "local"),
        ExitCode.USAGE,
        "no calibrated profile",
        "lab calibrate",
    ),
    "an unknown mode": (("-d", "jetson-nano", "--mode", "50W"), ExitCode.USAGE, "no power mode '50W'", "5W"),
    "threads of a GPU": (
        ("-d", "jetson-nano", "--threads", "2"),
        ExitCode.USAGE,
        "threads do not apply",
        "--threads",
    ),
    "too many threads": (("-d", "raspberry-pi-5", "--threads", "5"), ExitCode.USAGE, "1 to 4 threads", ""),
    "no threads": (("-d", "local", "--threads", "0"), ExitCode.USAGE, "--threads 0", ""),
    "no batch": (("-d", "jetson-nano", "--batch", "0"), ExitCode.USAGE, "--batch 0", ""),
    "a rate of nothing": (("-d", "jetson-nano", "--rate", "0/s"), ExitCode.USAGE, "not a rate", ""),
    "a rate in nonsense": (("-d", "jetson-nano", "--rate", "30/week"), ExitCode.USAGE, "not a rate", ""),
    "a size of nothing": (("-d", "jetson-nano", "--size", "T=0"), ExitCode.USAGE, "no size", ""),
    "an unknown dimension": (
        ("-d", "jetson-nano", "--size", "T=4"),
        ExitCode.USAGE,
        "no dynamic dimension 'T'",
        "batch",
    ),
    "a missing profile": (("-d", "missing.toml"), ExitCode.BAD_INPUT, "cannot read the device profile", ""),
    "a broken profile": (("-d", "broken.toml"), ExitCode.BAD_INPUT, "not valid TOML", ""),
}


@pytest.mark.parametrize(("options", "code", "message", "hint"), BAD.values(), ids=BAD)
def test_bad_options_are_refused(options, code, message, hint, digits, refused) -> None:
    Path("broken.toml").write_text("[[[", encoding="utf-8")
    refused(("estimate", "model.onnx", *options), code, message, hint)


def test_a_missing_model_is_refused(digits, refused) -> None:
    refused(("estimate", "none.onnx", "-d", "jetson-nano"), ExitCode.BAD_INPUT, "does not exist")


def test_devices_are_listed_with_grade_and_source(greencc, own_profiles: Path) -> None:
    own_profiles.mkdir(parents=True)
    (own_profiles / "odd.toml").write_text("schema = 1", encoding="utf-8")
    rows = {row["name"]: row for row in json.loads(greencc("lab", "devices", "--json").out)}
    assert rows["jetson-nano"]["grade"] == "D"
    assert rows["jetson-nano"]["source"]
    assert "schema" in rows["odd"]["problem"]
    text = greencc("lab", "devices").out
    assert "jetson-agx-orin-64" in text
    assert "unusable" in text


def test_calibrating_makes_the_local_device(digits, greencc, own_profiles: Path, monkeypatch) -> None:
    # The benchmarks themselves are tested elsewhere; here each is one short run of the real runtime.
    from greencc.lab import runner

    def observe(bench, name, engine, feeds):
        start = bench.machine.clock()
        engine.run(feeds)
        return Observation(name, max(bench.machine.clock() - start, 1e-6), None, None, 1, disturbed=False)

    monkeypatch.setattr(runner, "observe", observe)
    monkeypatch.setattr("greencc.lab.calibrate.cache_levels", lambda threads: {"L1": 32 << 10, "L2": 1 << 20})
    outcome = greencc("lab", "calibrate", "--target", "cpu:threads=1", "--meter", "none", "--quick")
    assert outcome.code == ExitCode.OK, outcome.err
    text = " ".join(outcome.out.split())
    assert "estimated, grade D" in text
    assert re.search(r"W while busy; CPU package \+ DRAM", text)
    # Every pJ and watt with its range.
    table = outcome.out.split("Overhead:")[0].splitlines()
    rows = [line for line in table if re.match(r"(float32|int8|L\d|DRAM) ", line)]
    assert len(rows) >= 4
    assert all(re.search(r"\d \[[\d.e+-]+, [\d.e+-]+\]\s*$", row) for row in rows), rows
    assert re.search(r"\d \[[\d.]+, [\d.]+\] W while busy", text)
    [profile] = own_profiles.iterdir()
    assert profile.suffix == ".toml"
    estimate = greencc("estimate", "model.onnx", "-d", "local", "--threads", "1", "--json")
    data = json.loads(estimate.out)
    assert data["device"] == profile.stem
    assert "leave-one-out error" in data["latency_method"]
    assert "calibrated here" in greencc("lab", "devices").out


def test_fitted_energies_are_printed_within_their_factor(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    error = LeaveOneOut(0.2, 1.5, {})
    energies = EnergyFit(3.0, {"float32": 2e-10}, {0: 1e-11}, error, ())
    device = make_device(
        grade=Grade.C, busy_watts=exactly(3.0), joules_per_operation={"float32": exactly(2e-10)}
    )
    lab._print(Calibrated(device, tmp_path / "x.toml", TimeFit({}, {}, 1e-6, 1e-5, error), energies, ()))
    text = " ".join(capsys.readouterr().out.split())
    assert "200 [133, 300]" in text
    assert "estimated, grade C), 3 [2, 4.5] W while busy" in text
    assert device.boundary in text


def test_bad_calibrations_are_refused(digits, refused) -> None:
    refused(
        ("lab", "calibrate", "-o", "model.onnx", "--meter", "none"),
        ExitCode.BAD_INPUT,
        "not overwritten",
        "-o",
    )
    refused(("lab", "calibrate", "--meter", "rapple"), ExitCode.USAGE, "no meter 'rapple'", "rapl")
    refused(("lab", "calibrate", "--target", "gpu"), ExitCode.USAGE, "gpu")


def test_a_calibrated_machine_estimates_energy_with_grade_c(
    digits, greencc, own_profiles: Path, brief
) -> None:
    device = CpuTarget().device()
    calibration = Calibration("2026-11-29", 40, 0.1, 1.5, 0.05, 1.2, "rapl")
    profile = make_device(grade=Grade.C, fingerprint=device.fingerprint, calibration=calibration)
    own_profiles.mkdir(parents=True)
    (own_profiles / "mine.toml").write_text(dump_profile(profile), encoding="utf-8")
    data = json.loads(greencc("measure", "model.onnx", "--protocol", "quick", "--json").out)
    energy = data["artifact"]["energy_mj"]
    assert (energy["grade"], energy["boundary"]) == ("C", "test bench")
    assert energy["method"].startswith("estimated")
    assert energy["high"] / energy["value"] == pytest.approx(1.2)
    assert data["ratio"]["energy"]["low"] < 1.0 < data["ratio"]["energy"]["high"]
