"""`greencc devices`: machines that models are built, verified and measured on over SSH."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from greencc.devices.facts import DeviceFacts
    from greencc.devices.fitting import Fit
    from greencc.devices.registry import Registered

_Command = TypeVar("_Command", bound=Callable[..., Any])


@click.group("devices")
def command() -> None:
    """Machines that models are built, verified and measured on, over SSH.

    A device is named by its address, ssh://user@host, or by a name that 'greencc devices add' gives it; 'local' is this
    machine. Names are kept in ~/.config/greencc/devices.toml, or in the file $GREENCC_DEVICES; no password or key is.
    """


def _json(function: _Command) -> _Command:
    return click.option("--json", "as_json", is_flag=True, help="Print JSON.")(function)


def _identity(function: _Command) -> _Command:
    return click.option(
        "--identity",
        metavar="FILE",
        type=click.Path(path_type=Path),
        help="Private key to try first; default: as your SSH configuration says.",
    )(function)


@command.command("add")
@click.argument("name")
@click.argument("address")
@_identity
@click.option(
    "--target", help="What is compiled for it, such as jetson:jetson-orin-nano; default: what it is."
)
@click.option("--note", default="", help="Your own words about it.")
@click.option("--force", is_flag=True, help="Replace a device of this name.")
def add(name: str, address: str, identity: Path | None, target: str | None, note: str, force: bool) -> None:
    """Give the device at ADDRESS (ssh://user@host) a NAME. Nothing is connected."""
    from greencc.core.errors import InputError
    from greencc.devices.registry import Registered
    from greencc.devices.registry import add as write_down
    from greencc.targets import make_target

    if target:
        make_target(target)
    if identity is not None and not identity.expanduser().is_file():
        raise InputError(f"the key {identity} is not there", hint="give the file of a private key")
    key = "" if identity is None else str(identity.expanduser().absolute())
    where = write_down(Registered(name, address, key, target or "", note), replace=force)
    click.echo(f"{name} is {address} ({where}); try it: greencc devices probe {name}")


@command.command("list")
@_json
def list_devices(as_json: bool) -> None:
    """Show the devices that have a name."""
    from dataclasses import asdict

    from greencc.devices.registry import registered, registry_file

    devices = list(registered().values())
    if as_json:
        found = {"file": str(registry_file()), "devices": [asdict(device) for device in devices]}
        click.echo(json.dumps(found, indent=2))
        return
    if not devices:
        click.echo("no device has a name yet: greencc devices add NAME ssh://user@host")
        return
    _print_list(devices)


def _print_list(devices: list[Registered]) -> None:
    from rich.table import Table
    from rich.text import Text

    from greencc.cli.console import stdout

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("Name", no_wrap=True)
    table.add_column("Address", overflow="fold")
    table.add_column("Target", overflow="fold")
    table.add_column("Key and note", overflow="fold")
    for device in devices:
        more = "; ".join(filter(None, (device.identity, device.note)))
        table.add_row(device.name, Text(device.address), Text(device.target or "what it is"), Text(more))
    stdout().print(table)


@command.command("remove")
@click.argument("name")
def remove(name: str) -> None:
    """Forget the NAME of a device. Nothing changes on it: see 'greencc devices clean'."""
    from greencc.devices.registry import remove as forget

    device = forget(name)
    click.echo(f"{name} ({device.address}) has no name any more")


@command.command("probe")
@click.argument("device")
@_identity
@_json
def probe(device: str, identity: Path | None, as_json: bool) -> None:
    """Show what DEVICE is and has, and which target fits it.

    The agent is copied there if it is not; nothing else changes.
    """
    from greencc.cli.console import progress_bars
    from greencc.devices.advice import warnings
    from greencc.devices.client import AgentClient
    from greencc.devices.fitting import matching
    from greencc.devices.opening import find_device, open_transport
    from greencc.targets._tensorrt.presets import releases_by_preset

    known = find_device(device)
    with (
        progress_bars() as progress,
        AgentClient(open_transport(device, identity), progress=progress) as client,
    ):
        facts = client.facts()
        address, untidied = client.name, client.untidied
    fit = matching(facts, releases_by_preset())
    told = [*warnings(facts), *([untidied] if untidied else [])]
    if as_json:
        click.echo(json.dumps(_as_json(address, facts, fit, told, known), indent=2))
        return
    _print_facts(address, facts, fit, told, known)


def _as_json(
    address: str, facts: DeviceFacts, fit: Fit, told: list[str], known: Registered | None
) -> dict[str, Any]:
    from dataclasses import asdict

    found = asdict(facts)
    del found["told"]
    return {
        "address": address,
        "name": known.name if known else None,
        "target": fit.target,
        "target_problem": fit.reason or None,
        "chosen_target": (known.target or None) if known else None,
        "warnings": told,
        "facts": found,
    }


def _print_facts(
    address: str, facts: DeviceFacts, fit: Fit, told: list[str], known: Registered | None
) -> None:
    from rich.table import Table
    from rich.text import Text

    from greencc.cli.console import stdout

    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for heading, value in _rows(address, facts):
        table.add_row(heading, Text(value))
    target = fit.target or "none"
    if fit.reason:
        target += f": {fit.reason}; {fit.remedy}"
    table.add_row("Target", Text(target))
    if known is not None and known.target:
        table.add_row("", Text(f"chosen with 'devices add': {known.target}"))
    console = stdout()
    console.print(table)
    for line in told:
        console.print(Text(f"note: {line}", style="yellow"))


def _rows(address: str, facts: DeviceFacts) -> Iterator[tuple[str, str]]:
    from greencc.devices.advice import gigabytes

    yield "Device", f"{address} ({facts.user or '?'} on {facts.hostname or '?'})"
    yield "Board", facts.title + (f"; module {facts.module}, {facts.chip}" if facts.is_jetson else "")
    software = (
        ("L4T", facts.l4t),
        ("JetPack", facts.jetpack),
        ("CUDA", facts.cuda),
        ("TensorRT", facts.tensorrt),
        ("Python", facts.python),
        ("Linux", facts.kernel),
    )
    yield "Software", ", ".join(f"{name} {version}" for name, version in software if version)
    yield "Processor", f"{facts.cpu or '?'}, {facts.processors or '?'} cores ({facts.machine or '?'})"
    if facts.gpu is not None:
        sm = f", compute capability {facts.gpu.sm / 10:.1f}" if facts.gpu.sm else ""
        yield "GPU", facts.gpu.name + sm
    yield "Memory", f"{gigabytes(facts.memory_free_bytes)} of {gigabytes(facts.memory_bytes)} free"
    yield "Disk", f"{gigabytes(facts.disk_free_bytes)} free; greencc uses {gigabytes(facts.disk_used_bytes)}"
    if facts.power is not None:
        yield (
            "Power mode",
            f"{facts.power.mode or 'not known'} (of {', '.join(facts.power.modes)})",
        )
    if facts.rails:
        rails = (rail.label + ("" if rail.watts is None else f" {rail.watts:.2f} W") for rail in facts.rails)
        yield "Rails", ", ".join(rails)
    for meter in facts.meters:
        yield "Meter", f"{meter.name}, grade {meter.grade}: {meter.boundary}"
    clocks = (("CPU", facts.clocks.cpu_mhz), ("GPU", facts.clocks.gpu_mhz))
    if running := [f"{name} {mhz:,.0f} MHz" for name, mhz in clocks if mhz is not None]:
        governor = f", governor {facts.clocks.governor}" if facts.clocks.governor else ""
        yield "Clocks", ", ".join(running) + (", fixed" if facts.clocks_fixed else "") + governor
    if facts.celsius is not None:
        yield "Temperature", f"{facts.celsius:.0f} °C"
    for name, backend in facts.backends.items():
        versions = ", ".join(f"{key} {value}" for key, value in backend.facts.items())
        yield f"Runs {name}", f"no: {backend.missing}" if backend.missing else f"yes ({versions})"


@command.command("clean")
@click.argument("device")
@_identity
@click.option(
    "--all", "everything", is_flag=True, help="Engines and models as well, not just what is left over."
)
@_json
def clean(device: str, identity: Path | None, everything: bool, as_json: bool) -> None:
    """Remove what greencc keeps on DEVICE; jobs that run are left alone."""
    from greencc.devices.advice import gigabytes
    from greencc.devices.client import AgentClient
    from greencc.devices.opening import open_transport

    with AgentClient(open_transport(device, identity)) as client:
        cleaned = client.clean(everything=everything)
        name, untidied = client.name, client.untidied
    if untidied:
        click.echo(f"note: {untidied}", err=True)
    if as_json:
        told = {"address": name, "freed_bytes": cleaned.freed, "kept_bytes": cleaned.kept}
        click.echo(json.dumps(told))
        return
    click.echo(f"{name}: {gigabytes(cleaned.freed)} freed")
    if cleaned.kept:
        rest = "in use now" if everything else "kept for the next run; --all removes them as well"
        click.echo(f"{gigabytes(cleaned.kept)} of models, engines and timing caches are {rest}")
