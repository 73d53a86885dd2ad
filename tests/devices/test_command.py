"""`greencc devices`, against a Jetson that is played behind a real SSH server."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from greencc.core.errors import ExitCode
from greencc.devices.registry import registered
from greencc.devices.ssh import CONFIG_VARIABLE
from tests.entry import Outcome, entry_point

from .fake_jetpack import FakeJetPack
from .sshd import Sshd


@pytest.fixture
def devices(capsys: pytest.CaptureFixture[str]) -> Iterator[Callable[..., Outcome]]:
    """`greencc devices`, through the real entry point."""
    with entry_point(capsys, "devices") as call:
        yield call


def test_a_jetson_from_its_name_to_its_removal(
    devices: Callable[..., Outcome],
    jetson: FakeJetPack,
    jetson_sshd: Sshd,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(CONFIG_VARIABLE, str(jetson_sshd.client_config))
    monkeypatch.setenv("COLUMNS", "200")
    key = jetson_sshd.folder / "user_key"
    added = devices(
        "add", "orin", jetson_sshd.address, "--identity", key, "--target", "tvm-arm", "--note", "on my desk"
    )
    assert added.code == ExitCode.OK
    assert "greencc devices probe orin" in added.out

    listed = json.loads(devices("list", "--json").out)
    assert listed["devices"] == [
        {
            "name": "orin",
            "address": str(jetson_sshd.address),
            "identity": str(key),
            "target": "tvm-arm",
            "note": "on my desk",
        }
    ]
    table = devices("list").out
    assert "orin" in table
    assert "on my desk" in table

    probed = devices("probe", "orin")
    assert probed.code == ExitCode.OK
    for text in (
        "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super; module Orin NX or Orin Nano, tegra234",
        "L4T 36.4.3, JetPack 6.2, CUDA 12.6.68, TensorRT 10.3.0.30",
        "compute capability 8.7",
        "25W (of 15W, 25W, MAXN_SUPER, 7W)",
        "VDD_IN 3.20 W",
        "jetson, grade B: ",
        "jetson:preset=jetson-orin-nano,jetpack=6.2",
        "chosen with 'devices add': tvm-arm",
    ):
        assert text in probed.out, probed.out

    told = json.loads(devices("probe", "orin", "--json").out)
    assert (told["name"], told["address"]) == ("orin", str(jetson_sshd.address))
    assert (told["target"], told["chosen_target"]) == (
        "jetson:preset=jetson-orin-nano,jetpack=6.2",
        "tvm-arm",
    )
    assert told["facts"]["power"]["mode"] == "25W"
    assert told["facts"]["tensorrt"] == "10.3.0.30"

    (jetson.home / "store" / ("0" * 64)).write_bytes(b"x" * 100_000)
    told = devices("clean", "orin").out
    assert "0.0 MB freed" in told
    assert "0.1 MB of models, engines and timing caches are kept for the next run; --all removes" in told
    cleaned = json.loads(devices("clean", "orin", "--all", "--json").out)
    assert cleaned["freed_bytes"] >= 100_000
    assert cleaned["kept_bytes"] < 100_000
    assert not list((jetson.home / "store").iterdir())

    removed = devices("remove", "orin")
    assert removed.code == ExitCode.OK
    assert registered() == {}
    assert devices("probe", "orin").code == ExitCode.USAGE


def test_nothing_yet(devices: Callable[..., Outcome]) -> None:
    assert "no device has a name yet" in devices("list").out
    assert json.loads(devices("list", "--json").out)["devices"] == []


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("add", "Orin", "ssh://orin"), ExitCode.USAGE, "cannot be the name of a device"),
        (("add", "orin", "orin"), ExitCode.USAGE, "is not the address of a device"),
        (("add", "orin", "ssh://u:hunter2@orin"), ExitCode.USAGE, "holds a password"),
        (("add", "orin", "ssh://orin", "--target", "toaster"), ExitCode.USAGE, "toaster"),
        (
            ("add", "orin", "ssh://orin", "--identity", "/no/key"),
            ExitCode.BAD_INPUT,
            "the key /no/key is not there",
        ),
        (("add", "orin"), ExitCode.USAGE, "Missing argument"),
        (("remove", "orin"), ExitCode.USAGE, "no device is called 'orin'"),
        (("probe", "orin"), ExitCode.USAGE, "no device is called 'orin'"),
        (("probe", "user@orin"), ExitCode.USAGE, "is not the address of a device"),
        (("clean", "ssh://-oProxyCommand=id"), ExitCode.USAGE, "is no host name"),
    ],
)
def test_bad_input(
    devices: Callable[..., Outcome], arguments: tuple[str, ...], code: ExitCode, message: str
) -> None:
    outcome = devices(*arguments)
    assert outcome.code == code
    assert message in outcome.err
    assert outcome.out == ""
    assert "hunter2" not in outcome.err
    assert "Traceback" not in outcome.err
    assert registered() == {}


def test_a_device_that_does_not_answer(
    devices: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "config"
    config.write_text("")
    monkeypatch.setenv(CONFIG_VARIABLE, str(config))
    with socket.socket() as taken:
        # Bound and not listening: nobody else gets the port.
        taken.bind(("127.0.0.1", 0))
        outcome = devices("probe", f"ssh://somebody@127.0.0.1:{taken.getsockname()[1]}", "--json")
    assert outcome.code == ExitCode.UNAVAILABLE
    assert "does not answer: Connection refused" in outcome.err
    assert "switched on" in outcome.err
    assert outcome.out == ""


def test_a_damaged_list(
    devices: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "devices.toml").write_text("[orin")
    monkeypatch.setenv("GREENCC_DEVICES", str(tmp_path / "devices.toml"))
    for arguments in (("list",), ("probe", "orin"), ("add", "a", "ssh://a"), ("remove", "a")):
        outcome = devices(*arguments)
        assert outcome.code == ExitCode.BAD_INPUT
        assert "is not valid TOML" in outcome.err
