"""JSON over HTTP: paths, units, tokens, queries that are passed on, and values that are refused."""

from __future__ import annotations

import socket
import threading
from typing import Any

import pytest

from greencc.core.errors import UnavailableError, UsageError
from greencc.core.meter import Grade, is_counter
from greencc.meters._digest import Challenge, Login, choose
from greencc.meters._values import UNITS, lookup, quantity
from greencc.meters.opening import open_meter


def test_power_with_everything_said(device: Any) -> None:
    device.pages["/api/power"] = lambda query: {"rails": [{"p": "1250"}]} if query == "room=lab%2F2" else None
    spec = (
        f"http:http://{device.host}/api/power?room=lab/2&path=rails.0.p&unit=mW&period=0.5"
        "&boundary=VDD_IN+rail&grade=B&uncertainty=0.02"
    )
    meter = open_meter(spec, {})
    assert meter.missing() is None
    assert meter.sample().watts == {"external": 1.25}
    assert (meter.name, meter.grade, meter.boundary) == ("http", Grade.B, "VDD_IN rail")
    assert (meter.period_s, meter.uncertainty) == (0.5, 0.02)


def test_energy_units_make_a_counter_that_must_not_go_back(device: Any) -> None:
    device.pages["/"] = {"total": 2.0}
    meter = open_meter(f"http://{device.host}?path=total&unit=kWh", {})
    assert is_counter(meter)
    assert meter.read().joules == {"external": 7.2e6}
    device.pages["/"] = {"total": 1.9}
    with pytest.raises(UnavailableError, match="went back"):
        meter.read()
    assert meter.read().epoch == 1


def test_a_token_is_sent_and_never_shown(device: Any) -> None:
    device.pages["/api/states/sensor.socket"] = {"state": "12.5"}
    spec = f"http:http://{device.host}/api/states/sensor.socket?path=state&unit=W"
    meter = open_meter(spec, {"GREENCC_METER_TOKEN": "abc-secret"})
    assert meter.sample().watts == {"external": 12.5}
    assert device.requests[-1][1]["Authorization"] == "Bearer abc-secret"
    device.status = 401
    shown = f"{meter!r} {meter.boundary} {meter.missing()}"
    assert "refuses" in shown
    assert "abc-secret" not in shown


@pytest.mark.parametrize(
    ("page", "message"),
    [
        (
            {"power": 3, "voltage": 230},
            r"has no 'a.pwer': at the top there is no 'a' \(known: power, voltage\)",
        ),
        ({"a": {"power": 3}}, r"at a there is no 'pwer' \(did you mean 'power'\?"),
        ({"a": [1, 2]}, r"at a there is no 'pwer' \(it is a list of 2\)"),
        ({"a": 5}, r"at a there is no 'pwer' \(it is 5\)"),
        ({"a": {}}, r"it is empty"),
        ({"a": {"pwer": "much"}}, r"gave 'much', not a number of W"),
        ({"a": {"pwer": "nan"}}, r"gave 'nan', not a number of W"),
        ({"a": {"pwer": {}}}, r"gave \{\}, not a number of W"),
    ],
)
def test_missing_paths_and_values(device: Any, page: Any, message: str) -> None:
    device.pages["/"] = page
    with pytest.raises(UnavailableError, match=message):
        open_meter(f"http:http://{device.host}/?path=a.pwer&unit=W", {}).sample()


def test_servers_that_fail(device: Any) -> None:
    device.pages["/"], device.status = {"a": 1}, 500
    reason = open_meter(f"http:http://{device.host}/?path=a&unit=W", {}).missing()
    assert reason == f"{device.host} answered HTTP 500"
    device.pages["/"], device.status, device.headers = b"123", 200, {"Content-Length": "5"}
    cut = open_meter(f"http:http://{device.host}/?path=&unit=W", {}).missing()
    assert cut == f"{device.host} ended its answer 2 bytes early"
    unresolved = open_meter("http:http://no-such-host.invalid/?path=a&unit=W", {}).missing()
    assert unresolved is not None
    assert "no-such-host.invalid:80 cannot be reached" in unresolved


def test_a_server_that_drips_is_given_up_too() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    over = threading.Event()

    def drip() -> None:
        connection, _ = listener.accept()
        connection.sendall(b"HTTP/1.1 200 OK\r\nX-Slow: ")
        # Each byte comes well within the time limit; all of them never do.
        try:
            while not over.wait(0.02):
                connection.sendall(b"x")
        except OSError:
            over.set()
        connection.close()

    thread = threading.Thread(target=drip)
    thread.start()
    host = f"127.0.0.1:{listener.getsockname()[1]}"
    reason = open_meter(f"http:http://{host}/?path=a&unit=W&timeout=0.3", {}).missing()
    given_up = over.wait(10)
    over.set()
    thread.join()
    listener.close()
    assert reason == f"{host} did not answer within 0.3 s"
    assert given_up, "the connection stayed open"


def test_tls_is_not_spoken_by_a_plain_server(device: Any) -> None:
    device.pages["/"] = {"a": 1}
    reason = open_meter(f"https://{device.host}/?path=a&unit=W", {}).missing()
    assert reason is not None
    assert "cannot be reached" in reason


def test_pointers_reach_names_with_dots() -> None:
    document = {"sensor.power": {"a/b": [5, 6]}}
    assert lookup(document, "/sensor.power/a~1b/1", "x") == 6
    assert lookup(7, "", "x") == 7


@pytest.mark.parametrize("path", ["a." + "7" * 5000, "/a/" + "7" * 5000, "a.2", "a.\u00b2"])
def test_positions_that_no_list_has(path: str) -> None:
    with pytest.raises(UnavailableError, match=r"it is a list of 2") as caught:
        lookup({"a": [1, 2]}, path, "x")
    assert len(str(caught.value)) < 200


def test_a_number_must_be_finite_in_its_unit_too() -> None:
    assert quantity(1e300, UNITS["J"], "x") == 1e300
    with pytest.raises(UnavailableError, match=r"x gave 1e\+305 kWh"):
        quantity("1e305", UNITS["kWh"], "x")


@pytest.mark.parametrize("name", sorted(UNITS))
def test_units_and_their_spelling(name: str) -> None:
    unit = UNITS[name]
    known = {"mW": 1e-3, "W": 1, "kW": 1e3, "mJ": 1e-3, "J": 1, "kJ": 1e3, "mWh": 3.6, "Wmin": 60, "Wh": 3600}
    assert quantity(2, unit, "x") == pytest.approx(2 * known.get(name, 3.6e6))
    assert unit.energy == (name[-1] != "W")


def test_the_digest_of_rfc_7616() -> None:
    # RFC 7616, section 3.9.1, with its nonces.
    headers = [
        'Digest realm="http-auth@example.org", qop="auth, auth-int", algorithm=MD5, '
        'nonce="7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v", opaque="FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS"',
        'Digest realm="http-auth@example.org", qop="auth, auth-int", algorithm=SHA-256, '
        'nonce="7ypf/xlj9XXwfDPEoM4URrv/xwf94BcCAzFZH4GiTo0v", opaque="FQhe/qaU925kfnzjCev0ciny7QMkPqMAFRtzCUYo5tdS"',
    ]
    login, own = Login("Mufasa", "Circle of Life"), "f2/wE4q74E6zIJEtWaHKaf5wv/H5QzzpXusqGemxURZJ"
    responses = {
        "SHA-256": "753927fa0e85d155564e2e272a28d1802ca10daf4496794697cf8db5856cb6c1",
        "MD5": "8ca523f5e9506fed4657c9700eebdbec",
    }
    for offered, expected in ((headers, "SHA-256"), (headers[:1], "MD5")):
        challenge = choose(offered)
        assert challenge is not None
        answer = challenge.answer(login, "GET", "/dir/index.html", token=lambda _: own)
        assert f'response="{responses[expected]}"' in answer
        assert f"algorithm={expected}, qop=auth, nc=00000001" in answer
        assert f'opaque="{challenge.opaque}"' in answer
    assert "Circle" not in repr(login)


def test_challenges_that_cannot_be_answered() -> None:
    assert (
        choose(['Digest realm="a", nonce="b", algorithm=SHA-512-256', "Negotiate", "Digest garbage"]) is None
    )
    assert choose(['Digest realm="a", nonce="b", qop="auth-int"']) is None
    assert choose(["Basic realm=x"]) == Challenge("basic")
    old = choose(['Digest realm="a", nonce="b"'])
    assert old is not None
    assert "qop" not in old.answer(Login("u", "p"), "GET", "/")


def test_an_unknown_unit_lists_the_known() -> None:
    with pytest.raises(UsageError, match=r"no unit 'KWh' \(did you mean '.*known: J, W, Wh, .*kWh"):
        open_meter("http:http://h/?path=a&unit=KWh", {})
