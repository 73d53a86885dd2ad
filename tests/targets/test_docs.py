"""docs/jetson.md and docs/targets.md name targets as the command line takes them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from greencc.core.errors import UsageError
from greencc.targets import TARGETS, make_target, split_specs

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ("jetson.md", "targets.md")
NAMES = [name for kind in TARGETS for name in (kind.name, *kind.aliases)]
# A name alone, or with options; not files such as `cpu.py`, nor what stands for a value (`cpu:threads=N`).
_SPEC = re.compile(rf"(?:{'|'.join(map(re.escape, NAMES))})(?::[^\s`]*)?")


def specs(page: str) -> list[str]:
    """Specs in backticks, and those that commands are given."""
    text = (DOCS / page).read_text(encoding="utf-8")
    quoted = [found for found in re.findall(r"`([^`\n]+)`", text) if _SPEC.fullmatch(found)]
    given = re.findall(r"(?:--target|(?<=[\s`])-t)[ =]([a-z][^\s`|]*)", text)
    return list(dict.fromkeys(spec for found in (*quoted, *given) for spec in split_specs(found)))


@pytest.mark.parametrize("page", PAGES)
def test_every_target_of_the_documentation_can_be_written_so(page: str) -> None:
    found = specs(page)
    assert len(found) >= 5
    for spec in found:
        make_target(spec)


def test_what_is_wrong_would_be_found() -> None:
    with pytest.raises(UsageError):
        make_target("jetson:jetpack=4.5")
    assert {"jetson:jetson-agx-orin,jetpack=5.1", "jetson-nano"} <= set(specs("jetson.md"))
    assert {"tensorrt:version=10.3,gpu=sm87", "tensorrt:10.3"} <= set(specs("targets.md"))


def test_the_table_of_jetpacks_is_that_of_the_presets() -> None:
    from greencc.targets._tensorrt.presets import releases_by_preset

    rows = re.findall(r"^\| `(jetson-[^|]*) \| [^|]* \| ([^|]*) \|$", (DOCS / "jetson.md").read_text(), re.M)
    told: dict[str, set[tuple[str, str]]] = {}
    for names, cell in rows:
        pairs = {
            (release, tensorrt)
            for releases, tensorrt in re.findall(r"([\d.]+(?: and [\d.]+)*) \(([\d.]+)\)", cell)
            for release in releases.split(" and ")
        }
        if "as Orin Nano" in cell:
            pairs |= told["jetson-orin-nano"]
        for name in re.findall(r"jetson-[\w-]+", names):
            told[name] = pairs
    assert told == {preset: set(found.items()) for preset, found in releases_by_preset().items()}
