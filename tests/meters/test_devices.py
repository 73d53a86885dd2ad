"""Device profiles: shipped, round trips, the user's own, and everything that can be wrong with a file."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from greencc.core.errors import InputError, UsageError
from greencc.core.meter import Grade
from greencc.meters.device import BUSY_SHARE_OF_CAP, Calibration
from greencc.meters.device_file import MAX_BYTES, dump_profile, parse_profile, read_profile
from greencc.meters.device_store import calibrated_profile, find_profile, stored_profiles, user_folder
from greencc.meters.model import Range
from tests.meters.bench_device import exactly, make_device

FINGERPRINT = "ab" * 32
CALIBRATION = Calibration(
    "2026-11-29T10:00:00+00:00",
    40,
    0.1,
    1.5,
    0.05,
    1.2,
    "rapl",
    {"onnxruntime": "1.20"},
    {"cpu": 'A "quoted" \\ CPU'},
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    own = user_folder()
    own.mkdir(parents=True)
    return own


def test_shipped_profiles_are_sound() -> None:
    found = stored_profiles()
    assert len(found) >= 11
    for entry in found:
        profile = entry.profile
        assert profile is not None
        assert entry.problem is None
        assert entry.origin == "shipped"
        assert profile.grade is Grade.D
        assert len(profile.source) > 40
        for dtype, rates in profile.rates.items():
            assert all(rate.high <= profile.peaks[dtype] for rate in rates.values()), (profile.name, dtype)
        bandwidths = [level.bytes_per_second.central for level in profile.levels]
        assert bandwidths == sorted(bandwidths, reverse=True)
        assert profile.idle_watts.central < profile.busy_watts.central
        assert parse_profile(dump_profile(profile)) == profile


def test_a_calibrated_profile_survives_its_file(tmp_path: Path) -> None:
    profile = make_device(
        grade=Grade.C, fingerprint=FINGERPRINT, calibration=CALIBRATION, busy_watts=exactly(0.0)
    )
    path = tmp_path / "bench.toml"
    path.write_text(dump_profile(profile), encoding="utf-8")
    again = read_profile(path)
    assert dump_profile(again) == dump_profile(profile)
    assert (again.calibration, again.busy_watts) == (CALIBRATION, exactly(0.0))


BAD = {
    "not TOML": ("schema = ", "", "not valid TOML"),
    "another schema": ("greencc.device/1", "greencc.device/9", "schema"),
    "unknown key": ("cores = 4", "kores = 4", "unknown key 'kores'"),
    "a path as a name": ('name = "bench"', 'name = "../../etc"', "no valid name"),
    "control characters": ('title = "A test bench"', 'title = "A\\u001b[31m"', "no valid title"),
    "text for a number": ("cores = 4", 'cores = "4"', "cores is not a number"),
    "a boolean for a number": ("cores = 4", "cores = true", "cores is not a number"),
    "half a core": ("cores = 4", "cores = 4.5", "whole number"),
    "NaN": ("idle_w = [1.0, 1.0, 1.0]", "idle_w = nan", "finite"),
    "infinite": ("idle_w = [1.0, 1.0, 1.0]", "idle_w = inf", "finite"),
    "negative": ("idle_w = [1.0, 1.0, 1.0]", "idle_w = -1.0", "finite number above 0"),
    "zero": ("idle_w = [1.0, 1.0, 1.0]", "idle_w = 0", "above 0"),
    "out of order": ("idle_w = [1.0, 1.0, 1.0]", "idle_w = [1.0, 3.0, 2.0]", "low <= central <= high"),
    "two numbers": ("idle_w = [1.0, 1.0, 1.0]", "idle_w = [1.0, 3.0]", "[low, central, high]"),
    "missing": ("idle_w = [1.0, 1.0, 1.0]", "", "idle_w is missing"),
    "an energy of grade B": ('grade = "D"', 'grade = "B"', "grade C"),
    "grade C without a calibration": ('grade = "D"', 'grade = "C"', "leave-one-out"),
    "no fingerprint": ("cores = 4", 'fingerprint = "xyz"', "no valid fingerprint"),
    "a last level with a size": ('name = "DRAM"', 'name = "DRAM"\nbytes = 5000', "holds everything"),
    "a first level without": ("bytes = 1000", "", "bytes is missing"),
    "one level twice": ('name = "DRAM"', 'name = "L1"', "two levels of the same name"),
    "one mode twice": ('name = "3W"', 'name = "max"', "two modes of the same name"),
    "an unknown kind of work": ("product_gops = [100.0", "matmul_gops = [100.0", "unknown key"),
    "no rate": ("function_gops = [1.0, 1.0, 1.0]", "", "function_gops"),
    "an unknown type": ("[rate.int8]", "[rate.int5]", "unknown key 'rate.int5'"),
    "a table for a list": ("[[memory]]", "[memory]", ""),
}


@pytest.mark.parametrize(("old", "new", "message"), BAD.values(), ids=BAD)
def test_a_bad_file_is_refused_with_one_line(old: str, new: str, message: str, tmp_path: Path) -> None:
    text = dump_profile(make_device())
    assert old in text
    path = tmp_path / "bad.toml"
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(InputError) as caught:
        read_profile(path)
    assert message in str(caught.value)
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("content", [b"\xff\xfe", b"x = " + b"[" * 5000, b"# " + b"x" * MAX_BYTES, b""])
def test_hostile_bytes_are_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(InputError):
        read_profile(path)
    with pytest.raises(InputError, match="cannot read"):
        read_profile(tmp_path / "missing.toml")
    with pytest.raises(InputError, match="cannot read"):
        read_profile(tmp_path)


def test_own_profiles_come_before_shipped_ones(folder: Path) -> None:
    own = make_device(name="jetson-nano", title="My Nano")
    (folder / "mine.toml").write_text(dump_profile(own), encoding="utf-8")
    (folder / "broken.toml").write_text("schema = 3", encoding="utf-8")
    assert find_profile("jetson-nano").title == "My Nano"
    rows = {entry.name: entry for entry in stored_profiles()}
    assert rows["jetson-nano"].origin == str(folder / "mine.toml")
    assert rows["broken"].profile is None
    with pytest.raises(InputError, match="schema"):
        find_profile("broken")
    assert find_profile(str(folder / "mine.toml")).title == own.title


def test_an_unknown_device_gets_a_suggestion(folder: Path) -> None:
    with pytest.raises(UsageError) as caught:
        find_profile("jetson-oran-nano")
    assert "did you mean 'jetson-orin-nano'" in str(caught.value)
    with pytest.raises(UsageError, match="no calibrated profile"):
        find_profile("local", fingerprint=FINGERPRINT)


def test_the_latest_calibration_of_this_machine_counts(folder: Path) -> None:
    for name, date, fingerprint in (
        ("old", "2026-01-01", FINGERPRINT), ("new", "2026-02-01", FINGERPRINT), ("other", "2026-03-01", "cd" * 32)
    ):  # fmt: skip
        profile = make_device(name=name, fingerprint=fingerprint, calibration=replace(CALIBRATION, date=date))
        (folder / f"{name}.toml").write_text(dump_profile(profile), encoding="utf-8")
    assert find_profile("local", fingerprint=FINGERPRINT).name == "new"
    assert calibrated_profile("ef" * 32) is None
    assert calibrated_profile(None) is None


def test_modes_and_threads_change_the_clocks() -> None:
    device = make_device()
    slow = device.at(device.mode("3w"), threads=2)
    assert slow.rate("float32", next(iter(slow.rates["float32"]))).central == pytest.approx(
        1e11 * 0.5 * 2 / 4
    )
    assert [level.bytes_per_second.central for level in slow.levels] == [5e9, 1e9]
    hot = make_device(busy_watts=Range(1.0, 2.0, 9.0))
    assert hot.at(hot.mode("3W")).busy_watts.high == BUSY_SHARE_OF_CAP * 3.0
    assert device.mode(None).name == "MAX"
    with pytest.raises(UsageError, match="no power mode '5W'"):
        device.mode("5W")
    with pytest.raises(UsageError, match="no power modes"):
        make_device(modes=()).mode("5W")
    with pytest.raises(UsageError, match="1 to 4 threads"):
        device.at(device.mode(None), threads=5)
    with pytest.raises(UsageError, match="GPU"):
        make_device(cores=None).at(device.mode(None), threads=1)


def test_types_without_figures_take_wider_ones() -> None:
    device = make_device()
    assert [device.costed(name) for name in ("FLOAT", "UINT8", "FLOAT16", "DOUBLE", "INT32", "INT4")] == [
        "float32", "int8", "float32", "float32", "float32", "int8"
    ]  # fmt: skip
    assert math.isclose(device.operation_joules("int8").central, 1e-12)
