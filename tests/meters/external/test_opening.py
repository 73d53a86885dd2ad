"""The specs: every kind, what is refused, and that nothing secret is quoted."""

from __future__ import annotations

import pytest

from greencc.core.errors import ExitCode, UsageError
from greencc.core.meter import Grade, PowerSample, Reading
from greencc.meters.mqtt import MqttSource
from greencc.meters.opening import open_meter
from greencc.meters.parts import part_of
from greencc.meters.ptdaemon import PtdMeter
from greencc.meters.rapl import RaplMeter


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("", "no meter ''"),
        ("rapll", "no meter 'rapll' (did you mean 'rapl'? known: "),
        ("shely:http://h", "no meter 'shely' (did you mean 'shelly'?"),
        ("shelly", "shelly: nothing follows (expected shelly:http://192.168.1.5?switch=0)"),
        ("shelly:", "shelly: nothing follows"),
        ("rapl:", "rapl: nothing follows"),
        ("shelly:http://h?swich=0", "no option 'swich' (did you mean 'switch'?"),
        ("shelly:http://h?switch=-1", "switch is '-1' (give a number from 0)"),
        ("shelly:http://h?switch=0&pm1=0", "both switch and pm1"),
        ("shelly:http://h?switch=0&switch=1", "switch is there twice"),
        ("shelly:http://h?counter=yes", "counter is 'yes' (known: false, true)"),
        ("shelly:http://h?period=0", "period is 0"),
        ("shelly:http://h?period=nan", "period is 'nan'"),
        ("shelly:http://h?uncertainty=5", "the uncertainty is 5"),
        ("shelly:http://h?switch", "options after '?' are malformed"),
        ("shelly:http://h/rpc", "a path follows the host"),
        ("shelly:ftp://h", "no scheme 'ftp'"),
        ("shelly:http://h:99999", "the address is malformed"),
        ("shelly:http://", "the address is malformed"),
        ("shelly:http://a b", "the address is malformed"),
        ("http:http://h/?unit=W", "no path into the answer"),
        ("http:http://h/?path=a", "no unit is given"),
        ("http:http://h/?path=a&unit=W&peroid=2", "no option 'peroid' (did you mean 'period'?"),
        ("http:http://h/?path=a&unit=W&grade=C", "grade C is an estimate"),
        ("http:http://h/?path=a&unit=W&grade=E", "grade is 'E'"),
        ("http:http://h/x#y?path=a&unit=W", "holds '#'"),
        ("mqtt:h?unit=W", "the topic is missing"),
        ("mqtt:h/a/+/b?unit=W", "has a wildcard"),
        ("mqtt:h/a", "no unit is given"),
        ("mqtt:h/a?unit=W&stale=0", "stale is 0"),
        ("ptdaemon:h:x", "the address is malformed"),
        ("ptdaemon:h/a", "more than host and port"),
        ("ptdaemon:h?a=1", "no option 'a'"),
        ("csv:f.csv?pace=fast", "pace is 'fast' (known: clock, steps)"),
    ],
)
def test_malformed_specs(spec: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_meter(spec, {})
    assert message in str(caught.value)
    assert caught.value.exit_code == ExitCode.USAGE


@pytest.mark.parametrize(
    "spec",
    [
        "shelly:http://root:sesame@h:99999",
        "shelly:http://root:sesame@h/path",
        "shelly:http://root:sesame@h?switc=1",
        "shelly:http://root:ses?sesame=1@h",
        "shelly:http://root:sesame@[h",
        "shelly:ftp://root:sesame@h",
        "http:http://root:sesame@h/?path=a",
        "mqtt:root:sesame@h",
        "ptdaemon:root:sesame@h",
        "http:http://root:ses%0Aame@h/?path=a&unit=W",
        "htp:http://root:sesame@h",
    ],
)
def test_no_message_quotes_a_password(spec: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_meter(spec, {})
    seen: BaseException | None = caught.value
    while seen is not None:
        text = f"{seen} {seen!r}"
        assert "ame" not in text.replace("name", "").replace("NAME", "")
        assert "root" not in text
        seen = seen.__cause__


@pytest.mark.parametrize("token", ["geheim\u20ac", "ses\name", "s\xe9same"])
def test_a_token_that_cannot_be_sent_is_refused_without_quoting_it(token: str) -> None:
    with pytest.raises(
        UsageError, match="GREENCC_METER_TOKEN holds characters that cannot be sent"
    ) as caught:
        open_meter("http:http://h/?path=a&unit=W", {"GREENCC_METER_TOKEN": token})
    assert token not in str(caught.value)


@pytest.mark.parametrize("host", ["a" * 64, "a..b", ".".join(["abc"] * 70)])
@pytest.mark.parametrize(
    "spec", ["shelly:http://{}", "http:http://{}/?path=a&unit=W", "mqtt:{}/a?unit=W", "ptdaemon:{}"]
)
def test_a_host_that_cannot_be_looked_up_is_refused(spec: str, host: str) -> None:
    with pytest.raises(UsageError, match="the host's name is none"):
        open_meter(spec.format(host), {})


def test_meters_do_not_show_their_login() -> None:
    for spec in (
        "shelly:http://root:sesame@h",
        "http:http://root:sesame@h/a?path=a&unit=W&apikey=sesame",
        "mqtt:root:sesame@h/a?unit=W",
    ):
        meter = open_meter(spec, {})
        for text in (meter.name, meter.boundary, repr(meter)):
            assert "sesame" not in text
            assert "root" not in text


def test_on_device_names_and_the_others() -> None:
    assert isinstance(open_meter("rapl", {}), RaplMeter)
    assert open_meter("rapl:0", {}).name == "rapl:0"
    analyser = open_meter("ptdaemon:lab-pc", {})
    assert isinstance(analyser, PtdMeter)
    assert (analyser.host, analyser.port) == ("lab-pc", 8888)
    mqtt = open_meter("mqtt:broker/tele/socket%201/SENSOR?path=ENERGY.Power&unit=W&tls=true&period=10", {})
    source = mqtt.source  # type: ignore[union-attr]
    assert isinstance(source, MqttSource)
    assert (source.topic.port, source.topic.topic, source.topic.secure) == (
        8883,
        "tele/socket 1/SENSOR",
        True,
    )
    assert (source.period_s, mqtt.period_s) == (10.0, 10.0)


class _Gpus:
    """Two GPUs and a package, as power or as energy."""

    name, grade, boundary, period_s, uncertainty = "nvml", Grade.B, "2 GPU boards", 0.1, None
    gone: str | None = None

    def missing(self) -> str | None:
        return self.gone


class _Power(_Gpus):
    def sample(self) -> PowerSample:
        return PowerSample(1.0, {"gpu-0": 10.0, "gpu-1": 20.0})


class _Energy(_Gpus):
    def read(self) -> Reading:
        return Reading(1.0, {"package-0": 1.0, "package-0/dram": 2.0, "package-10": 4.0}, 3)


def test_parts_of_a_meter() -> None:
    power = part_of(_Power(), "1")
    assert power.missing() is None
    assert power._take() == PowerSample(1.0, {"gpu-1": 20.0})
    assert (power.name, power.boundary, power.grade) == ("nvml:1", "1 of 2 GPU boards", Grade.B)
    energy = part_of(_Energy(), "0")
    assert energy._take() == Reading(1.0, {"package-0": 1.0, "package-0/dram": 2.0}, 3)
    assert part_of(_Energy(), "package-10")._take().joules == {"package-10": 4.0}  # type: ignore[union-attr]
    assert "nvml has no part '7' (known: gpu-0, gpu-1)" in (part_of(_Power(), "7").missing() or "")
    absent = _Power()
    absent.gone = "no driver"
    assert part_of(absent, "1").missing() == "no driver"
