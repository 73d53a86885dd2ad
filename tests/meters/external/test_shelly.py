"""A Shelly on loopback: both generations, logins, switched off, resets, and answers that are none."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest

from greencc.core.errors import ExitCode, UnavailableError
from greencc.core.meter import Grade, is_counter
from greencc.meters.opening import open_meter
from greencc.meters.sampling import Sampler

Make = Callable[..., dict[str, Any]]
CREDENTIALS = {"GREENCC_METER_PASSWORD": "mysecretpassword"}


def test_power_of_the_second_generation(device: Any, gen2: Make) -> None:
    status = gen2(42.5)
    meter = open_meter(f"shelly:http://{device.host}?switch=0", {})
    assert not is_counter(meter)
    assert meter.missing() is None
    first = meter.sample()
    status["apower"] = 50
    second = meter.sample()
    assert (first.watts, second.watts) == ({"wall": 42.5}, {"wall": 50.0})
    assert second.seconds > first.seconds
    assert (meter.name, meter.grade, meter.period_s, meter.uncertainty) == ("shelly", Grade.A, 1.0, None)
    assert meter.boundary == "wall socket, Lab socket"


def test_it_works_behind_the_sampler(device: Any, gen2: Make) -> None:
    gen2(10.0)
    sampler = Sampler(open_meter(f"shelly:{device.host}", {}))
    first, second = sampler.read(), sampler.read()
    assert second.joules["wall"] == pytest.approx(10.0 * (second.seconds - first.seconds))


def test_the_counter_in_joules_and_its_long_period(device: Any, gen2: Make) -> None:
    status = gen2(wh=1.0)
    meter = open_meter(f"shelly:http://{device.host}?counter=true&uncertainty=0.01&name=orin+board", {})
    assert is_counter(meter)
    first = meter.read()
    status["aenergy"]["total"] = 1.5
    assert meter.read().joules["wall"] - first.joules["wall"] == pytest.approx(0.5 * 3600)
    assert (meter.period_s, meter.uncertainty) == (60.0, 0.01)
    assert meter.boundary == "wall socket, orin board"


def test_a_counter_that_a_restart_reset_begins_a_new_epoch(device: Any, gen2: Make) -> None:
    status = gen2(wh=100.0)
    meter = open_meter(f"shelly:http://{device.host}?counter=true", {})
    assert is_counter(meter)
    before = meter.read()
    status["aenergy"]["total"] = 0.2
    with pytest.raises(UnavailableError, match=r"went back from 360000 to 720 J .*restarted"):
        meter.read()
    assert meter.read().epoch == before.epoch + 1


def test_a_metering_only_component(device: Any, gen2: Make) -> None:
    gen2()
    device.pages["/rpc/PM1.GetStatus"] = lambda query: {"id": 1, "apower": 3.5} if query == "id=1" else None
    assert open_meter(f"shelly:http://{device.host}?pm1=1", {}).sample().watts == {"wall": 3.5}


def test_the_first_generation(device: Any) -> None:
    device.pages["/shelly"] = {
        "type": "SHPLG-S",
        "mac": "AABBCC",
        "auth": True,
        "fw": "1.11",
        "num_meters": 1,
    }
    device.pages["/meter/0"] = {"power": 8.11, "is_valid": True, "timestamp": 1600000000, "total": 13124}
    device.auth = "basic"
    power = open_meter(f"shelly:http://admin:mysecretpassword@{device.host}", {})
    assert power.sample().watts == {"wall": 8.11}
    assert power.boundary == "wall socket, Shelly SHPLG-S at 127.0.0.1"
    counter = open_meter(f"shelly:{device.host}?counter=true", CREDENTIALS)
    assert counter.read().joules == {"wall": pytest.approx(13124 * 60.0)}
    device.pages["/meter/0"]["is_valid"] = False
    with pytest.raises(UnavailableError, match="not valid"):
        power.sample()


@pytest.mark.parametrize("algorithm", ["SHA-256", "MD5"])
def test_digest_logins_use_a_nonce_again_and_take_a_new_one(device: Any, gen2: Make, algorithm: str) -> None:
    gen2()
    device.auth = algorithm
    meter = open_meter(f"shelly:http://{device.host}", CREDENTIALS)
    assert meter.sample().watts == {"wall": 42.5}
    asked = len(device.requests)
    assert meter.sample().watts == {"wall": 42.5}
    assert len(device.requests) == asked + 1, "the nonce was not used again"
    device.nonce = "another"
    device.counts.clear()
    assert meter.sample().watts == {"wall": 42.5}


def test_a_wrong_password_and_none_at_all(device: Any, gen2: Make) -> None:
    gen2()
    device.auth = "SHA-256"
    reason = open_meter(f"shelly:http://{device.host}", {}).missing()
    assert reason is not None
    assert "asks for a password (set GREENCC_METER_USER and GREENCC_METER_PASSWORD" in reason
    wrong = open_meter(f"shelly:http://admin:guess-7@{device.host}", {})
    with pytest.raises(UnavailableError, match="refuses the user, password") as caught:
        wrong.sample()
    assert caught.value.exit_code == ExitCode.UNAVAILABLE
    shown = f"{caught.value} {wrong!r} {wrong.boundary} {wrong.name} {wrong.missing()}"
    assert "guess-7" not in shown
    assert "admin" not in shown


def test_switched_off_errors_and_no_meter(device: Any, gen2: Make) -> None:
    status = gen2()
    meter = open_meter(f"shelly:http://{device.host}", {})
    status["output"] = False
    with pytest.raises(UnavailableError, match=r"switch 0 of .* is off: .*switch it on"):
        meter.sample()
    status["output"], status["errors"] = True, ["overpower"]
    with pytest.raises(UnavailableError, match="overpower"):
        meter.sample()
    del status["errors"], status["apower"]
    with pytest.raises(UnavailableError, match="has no power meter"):
        meter.sample()


@pytest.mark.parametrize(
    ("page", "message"),
    [
        (b"<html>not json</html>", "did not give JSON: <html>not json</html>"),
        (b'{"apower": NaN}', "gave NaN, which is no number"),
        (b'{"apower": 1e999}', "not a number of W"),
        (b'{"apower": null}', "not a number of W"),
        (b'{"apower": true}', "not a number of W"),
        (b'{"apower": -3}', "gave -3 W .*direction"),
        (b'{"apower": ' + b"9" * 400 + b"}", "not a number of W"),
        (b"[" * 100_000, "did not give JSON"),
        (b"[]", "does not tell the status of switch 0"),
        (b" " * (2 << 20), "more than 1048576 bytes"),
        (b"\xff\xfe\x00", "did not give JSON"),
    ],
)
def test_garbage_is_refused(device: Any, gen2: Make, page: bytes, message: str) -> None:
    gen2()
    device.pages["/rpc/Switch.GetStatus"] = page
    with pytest.raises(UnavailableError, match=message):
        open_meter(f"shelly:http://{device.host}", {}).sample()


def test_what_is_no_shelly(device: Any) -> None:
    device.pages["/shelly"] = {"hello": 1}
    assert "is no Shelly" in (open_meter(f"shelly:{device.host}", {}).missing() or "")
    del device.pages["/shelly"]
    assert "HTTP 404 (is this the right address?)" in (
        open_meter(f"shelly:{device.host}", {}).missing() or ""
    )


def test_a_slow_device_is_given_up(device: Any, gen2: Make) -> None:
    gen2()
    device.stall = threading.Event()
    meter = open_meter(f"shelly:http://{device.host}?timeout=0.2", {})
    with pytest.raises(UnavailableError, match=r"did not answer within 0.2 s"):
        meter.sample()


def test_redirects_are_not_followed(device: Any, gen2: Make) -> None:
    gen2()
    device.status, device.headers = 302, {"Location": "http://example.com/"}
    with pytest.raises(UnavailableError, match=r"redirects \(HTTP 302\)"):
        open_meter(f"shelly:http://{device.host}", {}).sample()


def test_nobody_is_there(device: Any) -> None:
    with pytest.raises(UnavailableError, match=r"127.0.0.1:9 cannot be reached") as caught:
        open_meter("shelly:http://127.0.0.1:9", {}).sample()
    assert caught.value.exit_code == ExitCode.UNAVAILABLE
