"""`greencc trust`: whose compiled code may run here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from greencc.bundle import Bundle
    from greencc.bundle.trust import Trusted

_SHOWN_FILES = 20


@click.command("trust")
@click.argument("bundle", metavar="[BUNDLE]", required=False)
@click.option("--list", "listing", is_flag=True, help="List what is trusted.")
@click.option(
    "--remove", is_flag=True, help="Trust BUNDLE (a folder, or the SHA-256 of a manifest) no longer."
)
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(bundle: str | None, listing: bool, remove: bool, yes: bool, as_json: bool) -> None:
    """Let the compiled code in BUNDLE run on this machine, after showing what it holds.

    Bundles of most targets hold no code, and need no trust; those that were compiled here are trusted.
    """
    import json
    from dataclasses import asdict

    from greencc.bundle import load
    from greencc.bundle.trust import store_folder, trust, trusted
    from greencc.core.errors import UsageError

    if listing:
        if bundle is not None or remove:
            raise click.UsageError("--list goes alone")
        records = trusted()
        if as_json:
            where = store_folder()
            data = {"folder": None if where is None else str(where), "bundles": [asdict(r) for r in records]}
            click.echo(json.dumps(data, indent=2))
            return
        _print_records(records)
        return
    if bundle is None:
        raise click.UsageError("give a BUNDLE, or --list")
    if remove:
        _remove(bundle, as_json)
        return
    with load(bundle) as loaded:
        facts = _facts(loaded)
        if not loaded.target.ships_code:
            _done(
                facts, as_json, "nothing to trust", f"{bundle} holds no compiled code, so it needs no trust"
            )
            return
        if not as_json:
            _print_facts(facts)
        if not yes:
            _confirm()
        where = trust(loaded.manifest, "added by hand")
        if where is None:
            raise UsageError(
                "$GREENCC_TRUST_STORE is set to nothing, so no record is kept",
                hint="set it to a folder, or give --trust to the commands that run the bundle",
            )
    _done(facts, as_json, "trusted", f"{bundle} is trusted on this machine ({where})")


def _confirm() -> None:
    import sys

    from greencc.core.errors import UntrustedError, UsageError

    if not sys.stdin.isatty():
        raise UsageError("nobody is there to be asked whether to trust this code", hint="add --yes")
    if not click.confirm("Let this code run with your rights?"):
        raise UntrustedError("the bundle was not trusted; nothing was recorded")


def _remove(bundle: str, as_json: bool) -> None:
    from greencc.bundle.manifest import read_manifest
    from greencc.bundle.trust import forget, parse_digests
    from greencc.core.errors import UsageError

    if Path(bundle).exists():
        # What was tampered with should be forgotten all the same: no hash but the manifest's own matters.
        digest = read_manifest(Path(bundle)).sha256
    else:
        (digest,) = parse_digests(bundle, "BUNDLE")
    if not forget(digest):
        raise UsageError(f"{bundle} is not among the trusted bundles", hint="see 'greencc trust --list'")
    _done({"sha256": digest}, as_json, "removed", f"{bundle} is trusted no longer")


def _done(facts: dict[str, Any], as_json: bool, state: str, sentence: str) -> None:
    import json

    click.echo(json.dumps({"state": state, **facts}, indent=2) if as_json else sentence)


def _facts(bundle: Bundle) -> dict[str, Any]:
    from dataclasses import asdict

    manifest = bundle.manifest
    return {
        "bundle": str(bundle.path),
        "sha256": manifest.sha256,
        "target": manifest.target,
        "device": manifest.device,
        "model": manifest.model_name,
        "model_sha256": manifest.model_sha256,
        "greencc": manifest.greencc,
        "files": {name: asdict(entry) for name, entry in sorted(manifest.files.items())},
    }


def _print_facts(facts: dict[str, Any]) -> None:
    files: dict[str, Any] = facts["files"]
    for key, text in (
        ("bundle", facts["bundle"]),
        ("model", f"{facts['model']} (sha256 {facts['model_sha256']})"),
        ("made for", f"{facts['target']}, on {facts['device']}, with greencc {facts['greencc']}"),
        ("manifest", f"sha256 {facts['sha256']}"),
    ):
        click.echo(f"{key:<9} {_plain(text)}")
    for name, entry in list(files.items())[:_SHOWN_FILES]:
        click.echo(f"  {entry['sha256']}  {entry['size']:>12,} B  {_plain(name)}")
    if len(files) > _SHOWN_FILES:
        click.echo(f"  and {len(files) - _SHOWN_FILES:,} more (--json shows all)")


def _plain(text: str) -> str:
    """A text of the bundle's, without what could move the cursor or hide the rest."""
    return "".join(mark if mark.isprintable() else "?" for mark in text)


def _print_records(records: list[Trusted]) -> None:
    if not records:
        click.echo("no bundle is trusted yet")
    for record in records:
        what = f"{_plain(record.name)}  {_plain(record.target)}, made on {_plain(record.device)}"
        click.echo(f"{record.sha256}  {what}  ({record.why}, {record.added})")
