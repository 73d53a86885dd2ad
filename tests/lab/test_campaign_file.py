"""Campaign files: what is read, and what is refused with the place and the reason."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from greencc.compiler.options import Effort, Precision
from greencc.core.errors import ExitCode, InputError
from greencc.lab.campaign_file import read_campaign
from tests.lab.campaign_fakes import TEXT, make_spec

FULL = """
schema = "greencc.campaign/1"
[[model]]
name = "net"
path = "sub/../net.onnx"
calibration = "synthetic:64"
eval = "data.py:samples"
labels = "labels.csv"
metric = "top1"
[[variant]]
name = "given"
bundles = { net = "given.greencc" }
[[variant]]
name = "pruned"
passes = "prune:ratio=0.3"
max_drop = "2%"
effort = "quick"
seed = 4
[[variant]]
name = "share"
max_drop = 0.05
[[device]]
name = "one"
target = "cpu:optimization=extended"
threads = 1
meter = "shelly:http://127.0.0.1"
[protocol]
name = "mlperf-tiny"
rate = "30/s"
poisson = true
until = "3%"
limit = "20m"
repetitions = 2
confidence = "90%"
"""


def test_everything_is_read(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "given.greencc").mkdir()
    (tmp_path / "labels.csv").write_text("0\n")
    spec = make_spec(tmp_path, FULL)
    (model,), (given, pruned, share), (device,) = spec.models, spec.variants, spec.devices
    assert spec.name == "campaign"
    assert model.path.samefile(tmp_path / "net.onnx")
    assert (model.calibration, model.evaluation) == ("synthetic:64", f"{tmp_path / 'data.py'}:samples")
    assert given.bundles == {"net": tmp_path / "given.greencc"}
    assert pruned.build is not None
    assert share.build is not None
    assert (pruned.build.passes, pruned.build.max_drop, pruned.build.effort) == (
        "prune:ratio=0.3",
        0.02,
        Effort.QUICK,
    )
    assert (share.build.max_drop, share.build.precision) == (0.05, Precision.AUTO)
    assert device.target == "cpu:threads=1,optimization=extended"
    assert device.meter == "shelly:http://127.0.0.1"
    protocol = spec.protocol
    assert (protocol.rate, protocol.until, protocol.limit_seconds) == (30.0, 0.03, 1200.0)
    assert (protocol.poisson, protocol.repetitions, protocol.confidence) == (True, 2, 0.9)


def test_the_example_is_read() -> None:
    spec = read_campaign(Path(__file__).parents[2] / "examples/campaign/campaign.toml")
    assert [variant.name for variant in spec.variants] == ["original", "fp32", "int8"]
    assert spec.protocol.repetitions == 2


def test_every_repetition_holds_each_combination_once_in_an_order_of_its_own(tmp_path: Path) -> None:
    more = "".join(f'[[variant]]\nname = "v{n}"\nprecision = "fp32"\n' for n in range(6))
    spec = make_spec(tmp_path, TEXT.replace("[[device]]", more + "[[device]]"))
    cells = spec.cells()
    assert cells == spec.cells()
    parts = [cells[start : start + 8] for start in range(0, 24, 8)]
    for repetition, part in enumerate(parts, 1):
        assert {cell.repetition for cell in part} == {repetition}
        assert len({cell.variant for cell in part}) == 8
    orders = {tuple(cell.variant for cell in part) for part in parts}
    assert len(orders) == 3
    assert replace(spec, protocol=replace(spec.protocol, seed=6)).cells() != cells


BAD = {
    "no schema": (TEXT.replace("greencc.campaign/1", "x"), "has schema 'x'", "greencc.campaign/1"),
    "no TOML": ("a = = 1", "is not valid TOML", ""),
    "an unknown key": (TEXT.replace("seed =", "sede ="), "'protocol.sede'", "did you mean 'seed'"),
    "an unknown key of a model": (TEXT.replace("path =", "paht ="), "'model[1].paht'", "did you mean 'path'"),
    "no variant": (TEXT.replace("[[variant]]", "[[model]]"), "unknown key", ""),
    "no device": (TEXT.replace('[[device]]\nname = "here"', ""), "has no [[device]]", "at least one"),
    "a table instead of a list": (TEXT.replace("[[device]]", "[device]"), "has no [[device]]", ""),
    "no such model": (TEXT.replace("net.onnx", "no.onnx"), "model[1].path: there is no file", "relative"),
    "no such data": (TEXT.replace('"synthetic"', '"no.npz"'), "model[1].calibration: there is no", ""),
    "an odd name": (TEXT.replace('"small"', '"../x"'), "variant[2].name is '../x'", "letters"),
    "two of a name": (TEXT.replace('"small"', '"original"'), "two [[variant]] with the name 'original'", ""),
    "a variant that is nothing": (TEXT.replace("original = true", ""), "variant[1] says nothing", "original = true"),
    "a variant that is two things": (
        TEXT.replace('precision = "int8"', 'precision = "int8"\noriginal = true'),
        "says original and precision",
        "one of",
    ),
    "an unknown precision": (TEXT.replace('"int8"', '"int9"'), "precision is 'int9'", "did you mean 'int8'"),
    "an unknown pass": (TEXT.replace('precision = "int8"', 'passes = "prnue"'), "variant[2].passes: ", "prune"),
    "options that contradict": (
        TEXT.replace('precision = "int8"', 'precision = "int8"\npasses = "prune"'),
        "variant 'small' of model 'net'",
        "decides the precision",
    ),
    "no data for a precision": (TEXT.replace('calibration = "synthetic"', ""), "needs calibration data", ""),
    "an unknown target": (TEXT.replace("[protocol]", 'target = "gpu"\n[protocol]'), "unknown target 'gpu'", "cpu"),
    "threads twice": (
        TEXT.replace('name = "here"', 'name = "here"\ntarget = "cpu:threads=1"\nthreads = 2'),
        "given twice",
        "",
    ),
    "an unknown protocol": (TEXT.replace('name = "quick"', 'name = "quik"'), "there is no protocol 'quik'", "quick"),
    "a time limit that is too short": (TEXT.replace("seed = 5", 'limit = "2s"'), "more than the limit", ""),
    "arrivals without a rate": (TEXT.replace("seed = 5", "poisson = true"), "random arrivals take a rate", ""),
    "no whole number": (TEXT.replace("repetitions = 3", "repetitions = 0"), "repetitions is 0", "from 1"),
    "a flag that is a number": (TEXT.replace("original = true", "original = 1"), "original is '1'", "true or false"),
    "an impossible confidence": (TEXT.replace("seed = 5", 'confidence = "30%"'), "confidence is 0.3", ""),
    "bundles of an unknown model": (
        TEXT.replace('precision = "int8"', 'bundles = { nte = "x" }'),
        "'variant[2].bundles.nte'",
        "did you mean 'net'",
    ),
    "a bundle that is not there": (
        TEXT.replace('precision = "int8"', 'bundles = { net = "x" }'),
        "there is no folder",
        "",
    ),
    "a password in a meter": (
        TEXT.replace("[protocol]", 'meter = "shelly:http://admin:hunter2@plug"\n[protocol]'),
        "device[1].meter: a user or password",
        "GREENCC_METER_PASSWORD",
    ),
    "a user without a scheme": (
        TEXT.replace("[protocol]", 'meter = "shelly:admin:hunter2@plug"\n[protocol]'),
        "device[1].meter: a user or password",
        "GREENCC_METER_PASSWORD",
    ),
    "an at sign in disguise": (
        TEXT.replace("[protocol]", 'meter = "shelly:http://admin:hunter2\\u0040plug"\n[protocol]'),
        "device[1].meter: a user or password",
        "GREENCC_METER_PASSWORD",
    ),
    "a token in a meter": (
        TEXT.replace("[protocol]", 'meter = "http:http://plug/x?path=w&unit=W&auth_key=hunter2"\n[protocol]'),
        "device[1].meter: a password or token",
        "GREENCC_METER_TOKEN",
    ),
    "a password in a comment": (
        f"{TEXT}\n# was mqtt:mqtt://me:hunter2@broker/topic",
        "a user or password",
        "GREENCC_METER_PASSWORD",
    ),
    "too many cells": (
        TEXT.replace("repetitions = 3", "repetitions = 1000").replace(
            "[[device]]", "".join(f'[[device]]\nname = "d{n}"\n' for n in range(10)) + "[[device]]"
        ),
        "asks for 22,000 measurements",
        "at most",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_what_is_wrong_is_said_with_its_place(case: str, tmp_path: Path) -> None:
    text, message, hint = BAD[case]
    with pytest.raises(InputError) as caught:
        make_spec(tmp_path, text)
    assert message in caught.value.message
    assert str(tmp_path / "campaign.toml") in caught.value.message
    assert hint in (caught.value.hint or "")
    assert "hunter2" not in str(caught.value)
    assert caught.value.exit_code == ExitCode.BAD_INPUT


@pytest.mark.parametrize(
    "meter",
    [
        "none",
        "rapl",
        "shelly:http://192.168.1.5?switch=0",
        "http:http://plug/power?path=a.b&unit=W&id=3",
        "mqtt:broker:1883/home/socket?path=power&unit=W",
        "hwmon:acpitz-acpi-0/power1+nct6799-isa-0290/power1",
        "ptdaemon:host:8888",
    ],
)
def test_meters_without_a_secret_are_taken_as_they_are(meter: str, tmp_path: Path) -> None:
    spec = make_spec(tmp_path, TEXT.replace("[protocol]", f'meter = "{meter}"\n[protocol]'))
    assert spec.devices[0].meter == meter
    assert spec.devices[0].metered == (meter != "none")


def test_recordings_are_relative_to_the_campaign(tmp_path: Path) -> None:
    def meter(text: str) -> str | None:
        spec = make_spec(tmp_path, TEXT.replace("[protocol]", f'meter = "{text}"\n[protocol]'))
        return spec.devices[0].meter

    assert meter("csv:a@b.csv?grade=B") == f"csv:{tmp_path}/a@b.csv?grade=B"
    assert meter("csv:/data/power.csv") == "csv:/data/power.csv"


def test_files_that_are_no_campaign(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot read the campaign"):
        read_campaign(tmp_path / "none.toml")
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="not a text file"):
        read_campaign(binary)
    binary.write_bytes(b"#" * (1 << 20) + b"##")
    with pytest.raises(InputError, match="too large"):
        read_campaign(binary)
