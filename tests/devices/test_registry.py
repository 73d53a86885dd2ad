"""The user's list of devices."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from greencc.core.errors import InputError, UsageError
from greencc.devices import registry
from greencc.devices.opening import find_device, open_transport
from greencc.devices.registry import Registered, add, registered, registry_file, remove

_ORIN = Registered(
    "orin", "ssh://user@orin:2222", "/home/u/.ssh/id", "jetson:preset=jetson-nano", 'the "old" one'
)


def test_round_trip() -> None:
    assert registered() == {}
    path = add(_ORIN)
    add(Registered("a-pi", "ssh://pi@[fe80::1]"))
    assert path == registry_file()
    assert list(registered()) == ["a-pi", "orin"]
    assert registered()["orin"] == _ORIN
    assert remove("a-pi").address == "ssh://pi@[fe80::1]"
    assert list(registered()) == ["orin"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


_LINE = st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), max_size=30)


@settings(max_examples=25)
@given(identity=_LINE, target=_LINE, note=_LINE)
def test_any_line_is_kept(
    tmp_path_factory: pytest.TempPathFactory, identity: str, target: str, note: str
) -> None:
    file = tmp_path_factory.mktemp("registry") / "devices.toml"
    device = Registered("x.1", "ssh://h", identity, target, note)
    add(device, file=file)
    assert registered(file) == {"x.1": device}


def test_a_name_is_not_taken_twice() -> None:
    add(_ORIN)
    with pytest.raises(UsageError, match=r"there is a device 'orin' already, at ssh://user@orin:2222"):
        add(Registered("orin", "ssh://other"))
    add(Registered("orin", "ssh://other"), replace=True)
    assert registered()["orin"].address == "ssh://other"


@pytest.mark.parametrize(
    ("device", "message"),
    [
        (Registered("Orin", "ssh://orin"), "cannot be the name"),
        (Registered("orin", "orin"), "not the address"),
        (Registered("orin", "ssh://u:p@orin"), "holds a password"),
        (Registered("orin", "ssh://orin", note="a\nb"), "one line"),
        (Registered("orin", "ssh://orin", note="x" * 2000), "one line"),
    ],
)
def test_what_is_not_written_down(device: Registered, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        add(device)
    assert registered() == {}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[orin", "not valid TOML"),
        ("orin = 1", "orin is not a table"),
        ("[orin]\naddress = 'ssh://orin'\npassword = 'x'", "unknown key"),
        ("[orin]\naddress = 'orin'", "not the address"),
        ("[orin]\n", "not the address"),
        ("[orin]\naddress = 7", "not one line of text"),
        ("['-oProxyCommand=id']\naddress = 'ssh://orin'", "cannot be the name"),
        ("#" * (2 << 20), "too large"),
    ],
)
def test_damaged_lists(text: str, message: str) -> None:
    registry_file().parent.mkdir()
    registry_file().write_text(text)
    with pytest.raises(InputError, match=message):
        registered()
    with pytest.raises(InputError, match=message):
        add(_ORIN)
    assert registry_file().read_text() == text


def test_names_that_are_not_known() -> None:
    with pytest.raises(UsageError, match="no device is called 'orin'") as caught:
        find_device("orin")
    assert "greencc devices add" in str(caught.value.hint)
    add(_ORIN)
    with pytest.raises(UsageError) as caught:
        remove("orim")
    assert "did you mean 'orin'?" in str(caught.value.hint)
    with pytest.raises(UsageError, match="not the address") as caught:
        find_device("user:hunter2@orin")
    assert "hunter2" not in str(caught.value)


def test_where_names_lead() -> None:
    add(_ORIN)
    assert find_device("orin") == _ORIN
    assert find_device("ssh://user@orin") is None
    assert find_device("local") is None
    assert open_transport("orin").name == "ssh://user@orin:2222"
    assert open_transport("local").name == "this machine"
    assert open_transport("ssh://a@b").name == "ssh://a@b"


def test_the_folder_cannot_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(registry.VARIABLE, str(tmp_path / "file" / "devices.toml"))
    with pytest.raises(InputError, match="cannot"):
        add(_ORIN)


def test_where_the_list_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(registry.VARIABLE)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    assert registry_file() == tmp_path / "greencc/devices.toml"
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert registry_file() == tmp_path / ".config/greencc/devices.toml"
