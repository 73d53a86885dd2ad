"""Power modes of a Jetson: which there are, which one is in force, changing it for a while, and putting it back.

Modes are called by their names, as ``/etc/nvpmodel.conf`` has them: their numbers differ between modules and releases.
Before a mode is changed the one in force is written to a journal, which outlives crashes and reboots. It is put back

* when the host asks for it, or says goodbye;
* by the watchdog (``watchdog``, a process of its own), when the host has not been heard of for
  ``GREENCC_AGENT_SILENCE`` seconds (default 900), or for ``GREENCC_AGENT_LEASE`` seconds (default 60) after the agent
  that changed it is gone, and no job runs;
* by the next agent that starts, when the device was started anew in between: modes outlive reboots.

Where the device is in use, or nvpmodel refuses, the watchdog goes on trying, and `describe` tells why.

A mode that someone else has changed in the meantime is left as it is. Agents of other users, who have journals of their
own, are told by a note (`greencc.agent.holder`), and kept off until the mode is put back. While the agent that changed
it lives, nobody else changes it or puts it back, but for a new connection of the same run of the host, which says so by
an ``owner`` token: after a network that died in silence the old agent may wait for minutes yet, and its host reaches it
no more.

Source: NVIDIA Jetson Linux Developer Guide, "Platform Power and Performance", nvpmodel.
"""

import contextlib
import os
import re
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional

from greencc.agent import jobs
from greencc.agent.commands import run
from greencc.agent.device import InUse, used
from greencc.agent.holder import Note, agreed
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
_BRIEF_S = 2.0
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
    journal = read_json(_journal(places))
    changed = journal is not None and journal.get("before") != journal.get("set")
    return {
        "modes": [{"name": mode.name, "watts": budget(mode.name)} for mode in known],
        "mode": current(places),
        "default": default(places),
        "before": journal.get("before") if journal is not None and changed else None,
        "problem": (read_json(_trouble(places)) or {}).get("problem") if changed else None,
    }


def change(places: Places, name: Any, owner: str = "") -> Dict[str, Any]:
    """Set a mode until it is put back. One that is in force already is held: nobody else changes it meanwhile.

    Args:
        owner: Token of the host's run; the mode of another connection with the same one is taken over.

    Returns:
        {"mode": in force, "before": to be put back, or None where nothing was changed}.

    Raises:
        Problem: There is no such mode; it may not be set, or only by a restart; someone else has set one.
    """
    wanted = _mode(places, name)
    with agreed(places) as note:
        before = _before(places, note, owner)
        held = current(places) == wanted.name
        if held:
            _take(places, note, before, wanted.name, owner)
    if not held:
        with _alone(places, _WAIT_S) as note:
            # Another one may have set a mode while this one waited.
            before = _before(places, note, owner)
            _take(places, note, before, wanted.name, owner)
            try:
                _set(places, wanted)
            except Problem:
                now = current(places)
                if now == before:
                    _forget(places, note)
                elif now is not None:
                    _take(places, note, before, now, owner)
                raise
    guard(places)
    return {"mode": wanted.name, "before": None if before == wanted.name else before}


def restore(places: Places, owner: Optional[str] = None) -> Dict[str, Any]:
    """Put back the mode that was in force before `change`; nothing to put back is no error.

    A device that is in use is not waited for: the watchdog puts the mode back when it is free.

    Args:
        owner: As in `change`: the mode that another one has set, whose agent lives, is left alone. None: it is not.

    Raises:
        Problem: That cannot be done now; the journal stays, and the watchdog goes on trying.
    """
    try:
        _restore(places, owner)
    except Problem as problem:
        _tell(places, problem)
        guard(places)
        raise
    return {"mode": current(places), "before": None}


def _restore(places: Places, owner: Optional[str] = None) -> None:
    with agreed(places) as note:
        if _is_settled(places, note, owner):
            return
    with _alone(places, _BRIEF_S) as note:
        if not _is_settled(places, note, owner):
            _set(places, _mode(places, (read_json(_journal(places)) or {}).get("before")))
            _forget(places, note)


@contextlib.contextmanager
def _alone(places: Places, wait_s: float) -> Iterator[Note]:
    """Nobody uses the device, and nobody else decides on its mode."""
    with used(places, "a change of power mode", True, wait_s, lambda holder: None), agreed(places) as note:
        yield note


def _is_settled(places: Places, note: Note, owner: Optional[str]) -> bool:
    """Whether there is nothing to put back, or nothing that is this one's.

    Raises:
        InUse: Another user's agent has set a mode since; what it puts back then is what this one had set.
    """
    journal = read_json(_journal(places))
    if journal is None or (owner is not None and _is_of_others(journal, owner)):
        return True
    now = current(places)
    other = note.of_others(now)
    if other is not None:
        raise InUse("%s has set power mode %s" % (other, now), "it is put back after that")
    # Where the mode is neither that which was set nor the one before, someone has chosen it by hand since.
    if _is_ours(journal, now) and now != journal.get("before"):
        return False
    _forget(places, note)
    return True


def _before(places: Places, note: Note, owner: str) -> str:
    """The mode to put back after one that is to be set now.

    Raises:
        Problem: It is not known, or another one has set the mode that is in force.
    """
    journal, now = read_json(_journal(places)), current(places)
    if journal is not None and _is_of_others(journal, owner):
        raise InUse(
            "another connection has set power mode %s" % journal.get("set"), "wait until it has ended"
        )
    other = note.of_others(now)
    if other is not None:
        raise InUse(
            "the power mode is %s by order of %s, and has not been put back" % (now, other),
            "wait until that has ended; if it never does, set a mode on the device yourself: sudo nvpmodel -m",
        )
    if now is None:
        raise Problem("unavailable", "the power mode in force is not known, and could not be put back")
    if journal is not None and _is_ours(journal, now) and isinstance(journal.get("before"), str):
        return str(journal["before"])
    return now


def _take(places: Places, note: Note, before: str, name: str, owner: str) -> None:
    """This process answers for the mode from now on."""
    note.write(name)
    _write_journal(places, before, name, owner)
    remove(_trouble(places))
    heard(places)


def _forget(places: Places, note: Note) -> None:
    """Nothing is to be put back any more."""
    remove(_journal(places))
    remove(_trouble(places))
    note.clear()


def _tell(places: Places, problem: Problem) -> None:
    """Keep why the mode could not be put back, for `describe`."""
    write_json(_trouble(places), {"problem": problem.message}, lasting=True)


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
    except Problem:
        # It is kept with the journal, where `describe` finds it, and the watchdog tries again.
        return


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
        try:
            _restore(places)
        except InUse as problem:
            # That passes, however long it takes.
            _tell(places, problem)
            time.sleep(min(_RETRY_S, _seconds("LEASE", _LEASE_S)))
        except Problem as problem:
            # It needs a password, perhaps, which the next agent will tell.
            tries += 1
            _tell(places, problem)
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


def _trouble(places: Places) -> Path:
    return places.power / "problem.json"


def _is_ours(journal: Dict[str, Any], now: Optional[str]) -> bool:
    """Whether the mode in force is by the journal's order; a kill may have come before the last was carried out."""
    return now is not None and now in (journal.get("set"), journal.get("was"))


def _write_journal(places: Places, before: str, name: str, owner: str) -> None:
    facts = {
        "before": before,
        "was": current(places),
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
