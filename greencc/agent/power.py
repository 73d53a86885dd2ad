"""Power modes of a Jetson: which there are, which one is in force, changing it for a while, and putting it back.

Modes are called by their names, as ``/etc/nvpmodel.conf`` has them: their numbers differ between modules and releases.
Before a mode is changed the one in force is written to a journal, which outlives crashes and reboots. It is put back

* when the host asks for it, or says goodbye;
* by the watchdog (``watchdog``, a process of its own), when the host has not been heard of for
  ``GREENCC_AGENT_SILENCE`` seconds (default 900), or for ``GREENCC_AGENT_LEASE`` seconds (default 60) after the agent
  that changed it is gone, and no job runs;
* by the next agent that starts, when the device was started anew in between: modes outlive reboots.

A mode that someone else has changed in the meantime is left as it is. While the agent that changed it lives, nobody
else changes it or puts it back, but for a new connection of the same run of the host, which says so by an ``owner``
token: after a network that died in silence the old agent may wait for minutes yet, and its host reaches it no more.

Source: NVIDIA Jetson Linux Developer Guide, "Platform Power and Performance", nvpmodel.
"""

import os
import re
import time
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional

from greencc.agent import jobs
from greencc.agent.commands import run
from greencc.agent.device import used
from greencc.agent.machine import user
from greencc.agent.places import Places, again, read_json, read_text, remove, write_json
from greencc.agent.problem import Problem
from greencc.agent.processes import detach, start_detached, started_at

_MODEL = re.compile(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>")
_DEFAULT = re.compile(r"<\s*PM_CONFIG\s+DEFAULT=(\d+)\s*>")
_STATUS = re.compile(r"pmode:0*(\d+)")
_NUMBER = re.compile(r"^\s*(\d+)\s*$", re.MULTILINE)
_NAME = re.compile(r"Power Mode\s*:\s*(\S+)", re.IGNORECASE)
_WATTS = re.compile(r"(?:^|_)(\d+)W(?:_|$)", re.IGNORECASE)
_REBOOT = re.compile(r"reboot", re.IGNORECASE)
_DENIED = re.compile(
    r"password is required|not in the sudoers|not allowed|permission|must be root|root privilege|not permitted",
    re.IGNORECASE,
)
_TIMEOUT_S = 30.0
_WAIT_S = 60.0
_SILENCE_S = 900.0
_LEASE_S = 60.0
_LONGEST_LOOK_S = 1.0
_RETRY_S = 10.0
_MOST_TRIES = 30

Mode = NamedTuple("Mode", [("number", int), ("name", str)])


def modes(places: Places) -> List[Mode]:
    """The modes that the device has, in the order of their numbers; empty: it has none."""
    text = "\n".join(_lines(places))
    return sorted(Mode(int(match.group(1)), match.group(2)) for match in _MODEL.finditer(text))


def default(places: Places) -> Optional[str]:
    """The mode after flashing."""
    match = _DEFAULT.search("\n".join(_lines(places)))
    return None if match is None else _called(places, int(match.group(1)))


def budget(name: str) -> Optional[float]:
    """Watts that a mode's name tells, such as ``15W`` and ``MODE_30W_6CORE``; None: it tells none (``MAXN``)."""
    match = _WATTS.search(name)
    return float(match.group(1)) if match else None


def current(places: Places) -> Optional[str]:
    """The mode in force; None: there are none, or it is not told."""
    if not modes(places):
        return None
    program = places.program("nvpmodel")
    if program is not None:
        for command in ([program, "-q"], ["sudo", "-n", program, "-q"]):
            code, text = run(command)
            name, number = _NAME.search(text), _NUMBER.search(text)
            if code == 0 and number is not None:
                return _called(places, int(number.group(1)))
            if code == 0 and name is not None:
                return name.group(1)
            if os.geteuid() == 0:
                break
    return _noted(places)


def quickly(places: Places) -> Optional[str]:
    """As `current`, without starting a program where a file tells it."""
    return _noted(places) or current(places)


def describe(places: Places) -> Optional[Dict[str, Any]]:
    """Modes, the one in force, and what is to be put back; None where there are no modes."""
    known = modes(places)
    if not known:
        return None
    journal = read_json(_journal(places)) or {}
    return {
        "modes": [{"name": mode.name, "watts": budget(mode.name)} for mode in known],
        "mode": current(places),
        "default": default(places),
        "before": journal.get("before"),
        "problem": journal.get("problem"),
    }


def change(places: Places, name: Any, owner: str = "") -> Dict[str, Any]:
    """Set a mode until it is put back.

    Args:
        owner: Token of the host's run; the mode of another connection with the same one is taken over.

    Returns:
        {"mode": in force, "before": to be put back, or None where nothing was changed}.

    Raises:
        Problem: There is no such mode; it may not be set, or only by a restart; someone else has set one.
    """
    wanted = _mode(places, name)
    journal = read_json(_journal(places))
    now = current(places)
    if journal is not None and _is_of_others(journal, owner):
        raise Problem(
            "unavailable",
            "another connection has set power mode %s" % journal.get("set"),
            "wait until it has ended",
        )
    if now == wanted.name:
        if journal is not None:
            _write_journal(places, str(journal["before"]), wanted.name, owner)
            guard(places)
        return {"mode": now, "before": None if journal is None else journal["before"]}
    before = str(journal["before"]) if journal is not None else now
    if before is None:
        raise Problem("unavailable", "the power mode in force is not known, and could not be put back")
    with used(places, "a change of power mode", True, _WAIT_S, lambda holder: None):
        _write_journal(places, before, wanted.name, owner)
        heard(places)
        try:
            _set(places, wanted)
        except Problem:
            if current(places) == before:
                remove(_journal(places))
            raise
    guard(places)
    return {"mode": wanted.name, "before": before}


def restore(places: Places, owner: Optional[str] = None) -> Dict[str, Any]:
    """Put back the mode that was in force before `change`; nothing to put back is no error.

    Args:
        owner: As in `change`: the mode that another one has set, whose agent lives, is left alone. None: it is not.

    Raises:
        Problem: It may not be set, or only by a restart; the journal stays.
    """
    journal = read_json(_journal(places))
    if journal is None or (owner is not None and _is_of_others(journal, owner)):
        return {"mode": current(places), "before": None}
    now, before = current(places), journal.get("before")
    # Where the mode is neither that which was set nor the one before, someone else has chosen it since.
    if now == journal.get("set") and now != before:
        with used(places, "a change of power mode", True, _WAIT_S, lambda holder: None):
            _set(places, _mode(places, before))
        now = str(before)
    remove(_journal(places))
    return {"mode": now, "before": None}


def mine(places: Places) -> bool:
    """Whether this process has changed the mode."""
    return (read_json(_journal(places)) or {}).get("pid") == os.getpid()


def heard(places: Places) -> None:
    """The host was heard of: the mode stays for a while. Costs nothing where none was changed."""
    if _journal(places).exists():
        write_json(places.power / "heard.json", {"until": time.monotonic() + _seconds("SILENCE", _SILENCE_S)})


def look_after(places: Places) -> None:
    """What an agent does at its start about a mode that was left behind."""
    journal = read_json(_journal(places))
    if journal is None or _owner_lives(journal):
        return
    if journal.get("boot") == places.boot_id:
        guard(places)
        return
    try:
        restore(places)
    except Problem as problem:
        write_json(_journal(places), dict(journal, problem=problem.message), lasting=True)


def guard(places: Places) -> None:
    """See that there is a watchdog."""
    start_detached(again("watchdog"), places.power / "watchdog.log")


def main() -> int:
    """``watchdog``: put the mode back when the host has gone, and end."""
    places = Places.find()
    lock = jobs.hold(places.power / "watchdog.lock")
    if lock is None:
        return 0
    if detach(lambda: None):
        _watch(places)
    return 0


def _watch(places: Places) -> None:
    gone: Optional[float] = None
    tries = 0
    while tries < _MOST_TRIES:
        journal = read_json(_journal(places))
        if journal is None:
            return
        now = time.monotonic()
        until = (read_json(places.power / "heard.json") or {}).get("until", now)
        if _owner_lives(journal):
            gone = None
        else:
            gone = now if gone is None else gone
            until = min(until, gone + _seconds("LEASE", _LEASE_S))
        if now < until or jobs.running(places):
            time.sleep(
                min(_LONGEST_LOOK_S, _seconds("LEASE", _LEASE_S) / 5, _seconds("SILENCE", _SILENCE_S) / 5)
            )
            continue
        tries += 1
        try:
            restore(places)
        except Problem as problem:
            # Another may be timing; or it needs a password, which the next agent will tell.
            write_json(_journal(places), dict(journal, problem=problem.message), lasting=True)
            time.sleep(_RETRY_S)


def _set(places: Places, mode: Mode) -> None:
    program = places.program("nvpmodel")
    if program is None:
        raise Problem(
            "unavailable", "nvpmodel is not on the device", "sudo apt-get install nvidia-l4t-nvpmodel"
        )
    command = [program, "-m", str(mode.number)]
    if os.geteuid() != 0:
        command = ["sudo", "-n", *command]
    # Some modes need a restart, which nvpmodel offers: the answer is no.
    code, text = run(command, _TIMEOUT_S, b"no\n")
    if current(places) == mode.name:
        return
    told = [line.strip() for line in text.splitlines() if line.strip()]
    if _REBOOT.search(text):
        raise Problem(
            "unavailable",
            "power mode %s comes into force by a restart of the device only; it was left in %s"
            % (mode.name, current(places)),
            "on the device: sudo nvpmodel -m %d, let it restart, and try again" % mode.number,
        )
    if _DENIED.search(text) or (code is None and command[0] == "sudo"):
        raise Problem(
            "permission",
            "the power mode cannot be set by this user: %s" % (told[-1] if told else "nvpmodel refused"),
            "on the device, as root: echo '%s ALL=(root) NOPASSWD: %s' > /etc/sudoers.d/greencc; "
            "or set the mode yourself" % (user(), program),
        )
    raise Problem("unavailable", "nvpmodel did not set mode %s: %s" % (mode.name, told[-1] if told else code))


def _mode(places: Places, name: Any) -> Mode:
    known = modes(places)
    if not known:
        raise Problem(
            "unavailable", "the device has no power modes", "only Jetson modules have them (nvpmodel.conf)"
        )
    for mode in known:
        if mode.name == name:
            return mode
    raise Problem(
        "usage",
        "%.60r is no power mode of the device" % (name,),
        "it has " + ", ".join(mode.name for mode in known),
    )


def _called(places: Places, number: int) -> Optional[str]:
    return next((mode.name for mode in modes(places) if mode.number == number), None)


def _noted(places: Places) -> Optional[str]:
    """By the file that nvpmodel keeps."""
    match = _STATUS.search(read_text(places.root / "var/lib/nvpmodel/status") or "")
    return None if match is None else _called(places, int(match.group(1)))


def _lines(places: Places) -> List[str]:
    text = read_text(places.root / "etc/nvpmodel.conf") or ""
    return [line for line in text.splitlines() if not line.lstrip().startswith("#")]


def _journal(places: Places) -> Path:
    return places.power / "journal.json"


def _write_journal(places: Places, before: str, name: str, owner: str) -> None:
    facts = {
        "before": before,
        "set": name,
        "pid": os.getpid(),
        "started": started_at(os.getpid()),
        "boot": places.boot_id,
        "owner": owner,
    }
    write_json(_journal(places), facts, lasting=True)


def _owner_lives(journal: Dict[str, Any]) -> bool:
    pid = journal.get("pid")
    return isinstance(pid, int) and started_at(pid) == journal.get("started") is not None


def _is_of_others(journal: Dict[str, Any], owner: str) -> bool:
    """Whether an agent that lives, and is not of the same run of the host, has set the mode."""
    if not _owner_lives(journal) or journal.get("pid") == os.getpid():
        return False
    return not owner or journal.get("owner") != owner


def _seconds(name: str, default_s: float) -> float:
    return float(os.environ.get("GREENCC_AGENT_" + name) or default_s)
