"""Power modes: set by name, and put back whatever happens."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from greencc.agent import power
from greencc.agent.device import meeting_folder, used, who
from greencc.agent.places import Places
from greencc.agent.problem import Problem
from tests.devices.fake_jetpack import MODULES, make_jetpack

from .agents import Agent, Refused, until
from .conftest import Connect

LONG = {"kind": "idle", "seconds": 600}


class Calls:
    """Counts how often it is called."""

    def __init__(self) -> None:
        self.count = 0

    def __call__(self, *arguments: object) -> None:
        self.count += 1


def places_of(jetpack) -> Places:
    return Places.find(jetpack.environment)


@pytest.fixture
def places(jetpack, monkeypatch: pytest.MonkeyPatch) -> Places:
    """The Jetson, whose modes are changed from this process and not watched over."""
    monkeypatch.setattr(power, "guard", lambda places: None)
    return places_of(jetpack)


@pytest.mark.parametrize("module", MODULES)
def test_modes_come_from_the_devices_own_file(tmp_path: Path, module: str) -> None:
    jetpack = make_jetpack(tmp_path / "jetson", module, trtexec=False)
    places = places_of(jetpack)
    kind = jetpack.module
    assert [(mode.number, mode.name) for mode in power.modes(places)] == list(kind.modes)
    assert power.default(places) == power.current(places) == dict(kind.modes)[kind.default]


@pytest.mark.parametrize(
    ("name", "watts"),
    [("15W", 15.0), ("MODE_30W_6CORE", 30.0), ("MAXN", None), ("MAXN_SUPER", None), ("120W", 120)],
)
def test_a_modes_name_tells_its_watts(name: str, watts: float | None) -> None:
    assert power.budget(name) == watts


def test_the_file_of_nvpmodel_tells_the_mode_where_the_program_does_not(jetpack) -> None:
    (jetpack.root / "usr/sbin/nvpmodel").write_text(
        "#!/bin/sh\necho 'NVPM ERROR: Error opening status: 13'\nexit 1\n"
    )
    jetpack.set_mode("7W")
    assert power.current(places_of(jetpack)) == "7W"


def test_a_mode_is_set_and_put_back(agent: Agent, jetpack) -> None:
    assert agent.ask("power-mode", set="7W") == {"mode": "7W", "before": "25W"}
    assert jetpack.mode == "7W"
    # Once more is no harm, and the one before is not forgotten.
    assert agent.ask("power-mode", set="7W") == {"mode": "7W", "before": "25W"}
    assert agent.ask("power-mode", set="15W") == {"mode": "15W", "before": "25W"}
    assert agent.ask("power-mode", restore=True) == {"mode": "25W", "before": None}
    assert jetpack.mode == "25W"
    assert agent.ask("power-mode", restore=True) == {"mode": "25W", "before": None}


def test_setting_the_mode_in_force_changes_nothing(places: Places, jetpack) -> None:
    assert power.change(places, "25W") == {"mode": "25W", "before": None}
    assert not [call for call in jetpack.nvpmodel_calls if call.startswith("-m")]


def test_goodbye_puts_the_mode_back(agent: Agent, jetpack) -> None:
    agent.ask("power-mode", set="7W")
    agent.ask("bye")
    assert jetpack.mode == "25W"


def test_a_mode_that_needs_a_restart_is_reported_and_the_device_is_not_restarted(
    agent: Agent, jetpack
) -> None:
    jetpack.nvpmodel(reboot=("7W",))
    with pytest.raises(
        Refused, match="7W comes into force by a restart of the device only; it was left in 25W"
    ) as told:
        agent.ask("power-mode", set="7W")
    assert "sudo nvpmodel -m 3" in told.value.hint
    assert jetpack.mode == "25W"
    assert not (jetpack.root / "var/lib/nvpmodel/rebooted").exists()
    assert not (jetpack.home / "power/journal.json").exists()


def test_no_permission_is_told_with_what_would_give_it(places: Places, jetpack) -> None:
    jetpack.nvpmodel(fail="Must be root to change the power mode")
    with pytest.raises(Problem, match="cannot be set by this user") as told:
        power.change(places, "7W")
    assert told.value.kind == "permission"
    assert "NOPASSWD" in told.value.hint


def test_other_users_go_through_sudo(places: Places, jetpack, monkeypatch, tmp_path: Path) -> None:
    sudo = tmp_path / "bin/sudo"
    sudo.parent.mkdir()
    sudo.write_text("#!/bin/sh\necho 'sudo: a password is required' >&2\nexit 1\n")
    sudo.chmod(0o755)
    monkeypatch.setenv("PATH", f"{sudo.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(Problem, match="a password is required") as caught:
        power.change(places, "7W")
    assert caught.value.kind == "permission"
    sudo.write_text('#!/bin/sh\n[ "$1" = -n ] || exit 9\nshift\nexec "$@"\n')
    assert power.change(places, "7W")["mode"] == jetpack.mode == "7W"
    assert power.restore(places)["mode"] == jetpack.mode == "25W"


def test_a_device_without_modes_says_so(places: Places, jetpack) -> None:
    (jetpack.root / "etc/nvpmodel.conf").unlink()
    with pytest.raises(Problem, match="no power modes"):
        power.change(places, "7W")
    assert power.describe(places) is None


def test_the_watchdog_puts_the_mode_back_after_the_agent_was_killed(connect: Connect, jetpack) -> None:
    agent = connect(LEASE=0.3)
    agent.ask("power-mode", set="7W")
    agent.end()
    until("the mode before", lambda: jetpack.mode == "25W")
    until("the journal's end", lambda: not (jetpack.home / "power/journal.json").exists())


def test_the_watchdog_waits_for_a_job_that_runs(connect: Connect, jetpack) -> None:
    agent = connect(LEASE=0.1)
    agent.ask("power-mode", set="7W")
    agent.ask("start", job="long", spec=LONG)
    agent.end()
    second = connect(LEASE=0.1)
    with pytest.raises(Refused, match="in use by job long"):
        second.result("short", {"kind": "idle", "seconds": 0, "wait": 0.5})
    # The watchdog's patience has ended by then, several times over.
    assert jetpack.mode == "7W"
    second.ask("cancel", job="long")
    until("the mode before", lambda: jetpack.mode == "25W")


def test_the_watchdog_acts_when_the_host_is_silent(connect: Connect, jetpack) -> None:
    agent = connect(SILENCE=0.3)
    agent.ask("power-mode", set="7W")
    until("the mode before", lambda: jetpack.mode == "25W")
    # And the connection goes on.
    assert agent.ask("power-mode", set="15W")["before"] == "25W"


def test_an_agent_that_comes_back_takes_the_mode_over(connect: Connect, jetpack) -> None:
    first = connect(LEASE=30)
    first.ask("power-mode", set="7W")
    first.end()
    second = connect(LEASE=30)
    assert jetpack.mode == "7W"
    assert second.ask("power-mode", set="7W") == {"mode": "7W", "before": "25W"}
    second.ask("bye")
    assert jetpack.mode == "25W"


def test_after_a_reboot_the_next_agent_puts_the_mode_back(connect: Connect, jetpack) -> None:
    connect().ask("power-mode", set="7W")
    jetpack.reboot()
    assert jetpack.mode == "7W"
    connect().ask("has", sha256="0" * 64)
    assert jetpack.mode == "25W"


def test_what_cannot_be_put_back_is_kept_and_told(connect: Connect, jetpack) -> None:
    connect().ask("power-mode", set="7W")
    jetpack.reboot()
    jetpack.nvpmodel(fail="Must be root to change the power mode")
    connect().ask("has", sha256="0" * 64)
    journal = json.loads((jetpack.home / "power/journal.json").read_text())
    assert journal["before"] == "25W"
    told = power.describe(places_of(jetpack))
    assert told["before"] == "25W"
    assert "cannot be set by this user" in told["problem"]


def test_what_cannot_be_put_back_after_a_reboot_is_tried_again(
    connect: Connect, jetpack, monkeypatch
) -> None:
    monkeypatch.setattr(power, "guard", watchdogs := Calls())
    places = places_of(jetpack)
    power.change(places, "7W")
    (jetpack.root / "proc/sys/kernel/random/boot_id").write_text("the next boot")
    monkeypatch.setattr(power, "_owner_lives", lambda journal: False)
    jetpack.nvpmodel(fail="a glitch")
    watchdogs.count = 0
    power.look_after(places)
    assert (jetpack.mode, watchdogs.count) == ("7W", 1)
    jetpack.nvpmodel()
    monkeypatch.setenv("GREENCC_AGENT_LEASE", "0.1")
    power._watch(places)
    assert jetpack.mode == "25W"
    assert power.describe(places)["problem"] is None


def test_a_mode_that_someone_else_has_chosen_since_stays(places: Places, jetpack) -> None:
    power.change(places, "7W")
    jetpack.set_mode("MAXN_SUPER")
    assert power.restore(places) == {"mode": "MAXN_SUPER", "before": None}
    assert jetpack.mode == "MAXN_SUPER"


def test_two_connections_cannot_set_two_modes(connect: Connect, jetpack) -> None:
    one, two = connect(), connect()
    one.ask("power-mode", set="7W")
    with pytest.raises(Refused, match="another connection has set power mode 7W"):
        two.ask("power-mode", set="15W")
    two.ask("bye")
    assert jetpack.mode == "7W"


def test_a_new_connection_of_the_same_run_takes_the_mode_over_at_once(connect: Connect, jetpack) -> None:
    one, two, other = connect(LEASE=0.2), connect(LEASE=0.2), connect(LEASE=0.2)
    one.ask("power-mode", set="7W", owner="run-1")
    for owner in ("run-2", ""):
        with pytest.raises(Refused, match="another connection has set power mode 7W"):
            other.ask("power-mode", set="15W", owner=owner)
        assert other.ask("power-mode", restore=True, owner=owner) == {"mode": "7W", "before": None}
    # The first one lives, and its host does not reach it any more.
    assert two.ask("power-mode", set="7W", owner="run-1") == {"mode": "7W", "before": "25W"}
    assert two.ask("power-mode", set="15W", owner="run-1") == {"mode": "15W", "before": "25W"}
    one.ask("bye")
    one.end()
    assert jetpack.mode == "15W"
    # Now it is the second one whose death counts.
    two.end()
    until("the mode before", lambda: jetpack.mode == "25W")
    with pytest.raises(Refused, match="is no name of an owner"):
        other.ask("power-mode", set="7W", owner={"a": "b"})


def test_the_mode_is_not_changed_under_a_timed_job(
    places: Places, connect: Connect, jetpack, monkeypatch
) -> None:
    agent = connect()
    agent.ask("start", job="long", spec=LONG)
    monkeypatch.setattr(power, "_WAIT_S", 0.2)
    until("the job to have the device", lambda: who(places) is not None)
    with pytest.raises(Problem, match="in use by job long"):
        power.change(places, "7W")
    assert jetpack.mode == "25W"
    agent.ask("cancel", job="long")


@pytest.fixture
def other(jetpack, connect: Connect) -> Callable[..., Agent]:
    """Agents of another user of the same device."""
    return lambda **settings: connect(HOME=jetpack.root / "home/other", **settings)


def test_another_users_agent_is_refused_until_the_mode_is_put_back(
    connect: Connect, other: Callable[..., Agent], jetpack
) -> None:
    one, two = connect(LEASE=0.3), other()
    one.ask("power-mode", set="15W")
    for wanted in ("7W", "15W"):
        with pytest.raises(Refused, match=f"15W by order of .*process {one.pid}") as told:
            two.ask("power-mode", set=wanted, owner="run-2")
    assert "wait" in told.value.hint
    two.ask("power-mode", restore=True)
    assert jetpack.mode == "15W"
    # The watchdog of the first is still to put it back.
    one.end()
    until("the mode before", lambda: jetpack.mode == "25W")
    until("leave", lambda: not (jetpack.home / "power/journal.json").exists())
    assert two.ask("power-mode", set="7W") == {"mode": "7W", "before": "25W"}
    two.ask("bye")
    assert jetpack.mode == "25W"


def test_a_mode_in_force_is_held_against_others(agent: Agent, other: Callable[..., Agent], jetpack) -> None:
    agent.ask("power-mode", set="25W")
    with pytest.raises(Refused, match="25W by order of"):
        other().ask("power-mode", set="7W")
    agent.ask("power-mode", restore=True)
    other().ask("power-mode", set="7W")
    assert jetpack.mode == "7W"


def test_a_mode_that_another_user_left_for_good_can_be_set_by_hand(
    places: Places, other: Callable[..., Agent], jetpack, monkeypatch
) -> None:
    power.change(places, "15W")
    note = jetpack.root / "run/lock/greencc-power.lock"
    note.write_text(json.dumps(dict(json.loads(note.read_text()), started=1)))
    two = other()
    with pytest.raises(Refused, match="which has ended") as told:
        two.ask("power-mode", set="7W")
    assert "sudo nvpmodel" in told.value.hint
    jetpack.set_mode("25W")
    assert two.ask("power-mode", set="7W") == {"mode": "7W", "before": "25W"}


def test_two_users_and_a_reboot_come_back_to_the_mode_of_the_first(
    connect: Connect, other: Callable[..., Agent], jetpack
) -> None:
    connect().ask("power-mode", set="15W")
    jetpack.reboot()
    # The first has not been here since, and nothing but its own folder knows of it.
    two = other()
    assert two.ask("power-mode", set="7W") == {"mode": "7W", "before": "15W"}
    one = connect(LEASE=0.2)
    assert jetpack.mode == "7W"
    assert "has set power mode 7W" in power.describe(places_of(jetpack))["problem"]
    two.ask("bye")
    until("the mode of the beginning", lambda: jetpack.mode == "25W")
    one.ask("bye")


def test_what_is_refused_is_looked_at_again_once_the_device_is_free(
    places: Places, jetpack, monkeypatch
) -> None:
    """Between the first look and the lock another one sets a mode."""
    theirs = Places.find({**jetpack.environment, "GREENCC_AGENT_HOME": str(jetpack.root / "home/other")})

    @contextlib.contextmanager
    def late(*arguments: object) -> Iterator[None]:
        monkeypatch.setattr(power, "used", real)
        power.change(theirs, "15W")
        with real(*arguments):
            yield

    real = power.used
    monkeypatch.setattr(power, "used", late)
    with pytest.raises(Problem, match="15W by order of"):
        power.change(places, "7W")
    assert jetpack.mode == "15W"
    assert power.restore(theirs)["mode"] == jetpack.mode == "25W"


def test_nobody_waits_for_a_device_in_use_to_put_a_mode_back(connect: Connect, jetpack) -> None:
    agent = connect(LEASE=0.2)
    agent.ask("power-mode", set="7W")
    with used(places_of(jetpack), "job slow", False, 0, print):
        with pytest.raises(Refused, match="in use by job slow"):
            agent.ask("power-mode", restore=True)
        told = agent.ask("probe")["power"]
        assert (told["mode"], told["before"]) == ("7W", "25W")
        assert "in use by" in told["problem"]
        agent.end()
        # Nor is the next connection kept waiting.
        assert connect(LEASE=0.2).ask("has", sha256="0" * 64)["complete"] is False
    until("the mode before", lambda: jetpack.mode == "25W")


def test_a_change_that_fails_keeps_what_is_to_be_put_back(places: Places, jetpack) -> None:
    power.change(places, "7W")
    jetpack.nvpmodel(reboot=("15W",))
    with pytest.raises(Problem, match="restart"):
        power.change(places, "15W")
    assert power.restore(places)["mode"] == jetpack.mode == "25W"


@pytest.mark.parametrize("kind", ["link", "name", "pipe", "folder"])
@pytest.mark.parametrize("file", ["greencc-power.lock", "greencc-device.lock"])
def test_files_that_others_lay_out_are_not_written(
    places: Places, jetpack, tmp_path: Path, file: str, kind: str
) -> None:
    path, victim = jetpack.root / "run/lock" / file, tmp_path / "victim"
    victim.write_text("precious")
    {
        "link": lambda: path.symlink_to(victim),
        "name": lambda: path.hardlink_to(victim),
        "pipe": lambda: os.mkfifo(path),
        "folder": path.mkdir,
    }[kind]()
    with pytest.raises(Problem, match=f"{file}, by which users of the device agree, cannot be used") as told:
        power.change(places, "7W")
    assert "sudo rm" in told.value.hint
    assert (victim.read_text(), jetpack.mode, who(places)) == ("precious", "25W", None)


@pytest.mark.parametrize(
    "text", ["[1]", "{", '{"pid": "x"}', '{"pid": 1e99, "mode": "25W", "user": 7}', "[" * 5000, "\0\0"]
)
def test_a_note_of_nonsense_says_nothing(places: Places, jetpack, text: str) -> None:
    (jetpack.root / "run/lock/greencc-power.lock").write_text(text)
    assert power.change(places, "7W")["before"] == "25W"


def test_without_a_folder_for_all_the_agents_own_will_do(places: Places, jetpack) -> None:
    (jetpack.root / "run/lock").chmod(0o755)
    assert meeting_folder(places) == jetpack.home
    (jetpack.root / "tmp").mkdir()
    # Where everybody may remove what is another's, a lock is worth nothing.
    (jetpack.root / "tmp").chmod(0o777)
    assert meeting_folder(places) == jetpack.home
    (jetpack.root / "tmp").chmod(0o1777)
    assert meeting_folder(places) == jetpack.root / "tmp"
