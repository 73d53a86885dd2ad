"""docs/planner.md says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

from greencc.planner._units import UNITS
from greencc.planner.budget import parse_budget
from greencc.planner.presets import known_modes, presets_of

TEXT = (Path(__file__).parents[2] / "docs/planner.md").read_text(encoding="utf-8")


def _rows(heading: str) -> list[list[str]]:
    table = TEXT.split(heading, 1)[1].split("\n\n", 1)[0]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[1:]]


def test_every_limit_of_the_table_is_read() -> None:
    rows = _rows("| limit | means | units |")
    texts = [text for row in rows[1:] for text in re.findall(r"`([^`]+)`", row[0])]
    assert len(texts) == 8
    for text in texts:
        (limit,) = parse_budget(text)
        assert limit.value > 0.0
    units = [unit for row in rows[1:] for unit in re.findall(r"`([^`]+)`", row[2])]
    assert {unit.replace("µ", "u") for unit in units} == set(UNITS)


def test_every_example_is_read() -> None:
    budgets = re.findall(r"--budget (\"[^\"]+\"|\S+)", TEXT)
    assert len(budgets) == 8
    for budget in budgets:
        assert parse_budget(budget.strip('"'))


def test_the_power_modes_are_those_of_the_shipped_profiles(monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    rows = {row[0].strip("`"): re.findall(r"`([^`]+)`", row[1]) for row in _rows("| device | modes")[1:]}
    assert rows == {device: [each.mode for each in presets_of(device)] for device in known_modes()}
