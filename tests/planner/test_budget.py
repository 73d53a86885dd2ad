"""The budget in one line: what is read, what is written, and what is said of mistakes."""

from __future__ import annotations

import math

import click
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from greencc.cli.types import BUDGET, OBJECTIVES
from greencc.core.errors import ExitCode, UsageError
from greencc.planner._units import UNITS, format_figure, format_least, round_up
from greencc.planner.budget import (
    PERCENTILES,
    BudgetLimit,
    Kind,
    Objective,
    format_budget,
    format_limit,
    parse_budget,
)

VALUES = st.floats(min_value=1e-12, max_value=1e18, allow_nan=False)


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("5W", Kind.POWER, 5.0),
        ("5w", Kind.POWER, 5.0),
        (" 5 W ", Kind.POWER, 5.0),
        ("750mW", Kind.POWER, 0.75),
        ("750mw", Kind.POWER, 0.75),
        ("0.5kW", Kind.POWER, 500.0),
        ("20mJ", Kind.ENERGY, 20.0),
        ("20mj", Kind.ENERGY, 20.0),
        ("0.02J", Kind.ENERGY, 20.0),
        (".02J", Kind.ENERGY, 20.0),
        ("500uJ", Kind.ENERGY, 0.5),
        ("500\N{MICRO SIGN}J", Kind.ENERGY, 0.5),
        ("500\N{GREEK SMALL LETTER MU}J", Kind.ENERGY, 0.5),
        ("2e-3J", Kind.ENERGY, 2.0),
        ("+20mJ", Kind.ENERGY, 20.0),
        ("40MB", Kind.SIZE, 40e6),
        ("40 MiB", Kind.SIZE, 40 * 2**20),
        ("40MIB", Kind.SIZE, 40 * 2**20),
        ("800KB", Kind.SIZE, 800e3),
        ("800kB", Kind.SIZE, 800e3),
        ("1.5 GMACs", Kind.MACS, 1.5e9),
        ("300MMACs", Kind.MACS, 300e6),
        ("300mmacs", Kind.MACS, 300e6),
        ("2 GMAC", Kind.MACS, 2e9),
        ("1e6 MACs", Kind.MACS, 1e6),
    ],
)
def test_one_limit(text: str, kind: Kind, value: float) -> None:
    (limit,) = parse_budget(text)
    assert (limit.kind, limit.value, limit.percentile) == (kind, value, None)
    assert limit.text == limit.shown == text.strip()


@pytest.mark.parametrize(
    ("text", "value", "percentile"),
    [
        ("33ms", 33.0, 95),
        ("33 mS", 33.0, 95),
        ("0.033s", 33.0, 95),
        ("800us", 0.8, 95),
        ("33ms p99", 33.0, 99),
        ("33ms@p99", 33.0, 99),
        ("33 ms @ P50", 33.0, 50),
        ("33ms  p95", 33.0, 95),
    ],
)
def test_a_latency_has_a_percentile(text: str, value: float, percentile: int) -> None:
    (limit,) = parse_budget(text)
    assert limit == BudgetLimit(Kind.LATENCY, value, percentile)
    assert limit.shown.endswith(f" p{percentile}")


def test_limits_keep_their_order() -> None:
    budget = parse_budget("40MB, 5W,20ms p50 ,33ms p99,20mJ,1GMACs")
    assert [limit.kind for limit in budget] == [
        Kind.SIZE, Kind.POWER, Kind.LATENCY, Kind.LATENCY, Kind.ENERGY, Kind.MACS,
    ]  # fmt: skip
    assert format_budget(budget) == "40MB,5W,20ms p50,33ms p99,20mJ,1GMACs"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the budget is empty"),
        (" , ", "the budget is empty"),
        ("5W,", "a comma too many"),
        ("fast", "'fast' is not a limit"),
        ("5", "the unit is missing .write 5W, 5mJ, 5ms, 5MB or 5MACs"),
        ("1,5W", r"did you mean 1\.5W\?"),
        ("0W", "a limit of zero"),
        ("-0.0ms", "a limit of zero"),
        ("1e-999J", "a limit of zero"),
        ("-5W", r"negative.*did you mean 5W\?"),
        ("nanW", "not finite"),
        ("infms", "not finite"),
        ("1e999W", "not finite"),
        ("1e99999W", "is not a limit"),
        ("20MJ", r"did you mean 20mJ\?"),
        ("5MW", r"did you mean 5mW\?"),
        ("33MS", r"did you mean 33ms\?"),
        ("33Ms", r"did you mean 33ms\?"),
        ("40Mb", r"bit.*did you mean 40MB\?"),
        ("40mb", r"bit.*did you mean 40MB\?"),
        ("40Mib", r"bit.*did you mean 40MiB\?"),
        ("5 watts", r"did you mean 5W\?"),
        ("2 seconds", r"did you mean 2s\?"),
        ("33m", r"did you mean 33ms\?"),
        ("300M", r"did you mean 300MB or 300MMACs\?"),
        ("30fps", "--rate 30/s"),
        ("30/s", "--rate 30/s"),
        ("1%", "--max-drop"),
        ("5mWh", "1 Wh is 3600 J"),
        ("3GFLOPs", "one is two operations"),
        ("20mJJ", "did you mean 'mJ'"),
        ("p99=33ms", r"did you mean 33ms@p99\?"),
        ("p99 < 33ms", r"did you mean 33ms@p99\?"),
        ("p99:33ms", r"did you mean 33ms@p99\?"),
        ("33ms p90", "p90 is not measured"),
        ("33ms p999", "p999 is not measured"),
        ("33msp99", "is not a limit"),
        ("20mJ p95", "percentiles are of latencies"),
        ("5 W 3", "is not a limit"),
        ("\N{ARABIC-INDIC DIGIT FIVE}W", "is not a limit"),
        ("5W,7W", "two limits on the power: 5W and 7W .keep 5W"),
        ("40MB,30 MiB", "two limits on the size.*keep 30 MiB"),
        ("33ms,30ms p95", "two limits on the p95 latency.*keep 30ms p95"),
        ("33ms p50,20ms p99", "p50 is never above p99"),
        ("20ms p99,20ms", "20ms p95 and 20ms p99 contradict"),
    ],
)
def test_mistakes_are_told_with_a_way_out(text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said) as caught:
        parse_budget(text)
    assert caught.value.hint


@given(st.text(max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        budget = parse_budget(text)
    except UsageError:
        return
    assert all(math.isfinite(limit.value) and limit.value > 0.0 for limit in budget)


@given(st.text("0123456789.eE+-@p ,smuMWJB", max_size=14))
def test_texts_of_its_own_letters_are_read_or_refused(text: str) -> None:
    try:
        budget = parse_budget(text)
    except UsageError:
        return
    assert parse_budget(format_budget(budget)) == budget


@given(st.sampled_from(Kind), VALUES, st.sampled_from((None, *PERCENTILES)))
def test_what_is_written_reads_the_same(kind: Kind, value: float, percentile: int | None) -> None:
    limit = BudgetLimit(kind, value, percentile if kind is Kind.LATENCY else None)
    assert parse_budget(format_limit(limit)) == (limit,)


@given(st.sampled_from(sorted(UNITS)), st.integers(1, 999))
def test_a_short_figure_stays_short(unit: str, number: int) -> None:
    kind, factor = UNITS[unit]
    assert len(format_figure(kind, float(factor * number))) <= len(f"{number}{unit}") + 1


@pytest.mark.parametrize(
    ("value", "rounded"),
    [
        (33.3333, 33.34),
        (0.0120001, 0.01201),
        (12.0, 12.0),
        (123456.0, 123500.0),
        (9999.5, 10000.0),
        (0.0, 0.0),
    ],
)
def test_rounding_up_is_enough(value: float, rounded: float) -> None:
    assert round_up(value) == rounded


@given(VALUES)
def test_rounding_up_never_rounds_down(value: float) -> None:
    assert value <= round_up(value) <= value * 1.0011


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_a_limit_made_in_python_is_checked_too(value: float) -> None:
    with pytest.raises(UsageError, match="above 0"):
        BudgetLimit(Kind.ENERGY, value)


def test_the_text_is_no_part_of_a_limit() -> None:
    assert parse_budget("0.02J") == parse_budget("20mJ")
    assert BudgetLimit(Kind.LATENCY, 33.0).percentile == 95


def test_repeated_enums_equal_the_real_ones() -> None:
    assert tuple(item.value for item in Objective) == OBJECTIVES
    assert all(len(item.weights) == 1 for item in Objective)


def test_the_option_of_the_command_line() -> None:
    seen: list[object] = []

    @click.command()
    @click.option("--budget", type=BUDGET, default=None)
    def command(budget: object) -> None:
        seen.append(budget)

    assert CliRunner().invoke(command, ["--budget", "5W,33ms"]).exit_code == ExitCode.OK
    assert seen == [parse_budget("5W,33ms")]
    refused = CliRunner().invoke(command, ["--budget", "20MJ"])
    assert refused.exit_code == ExitCode.USAGE
    assert "did you mean 20mJ?" in refused.output


@pytest.mark.parametrize(
    ("kind", "value", "text"),
    [
        (Kind.SIZE, 25866.0, "25.87KB"),
        (Kind.LATENCY, 0.028311, "28.32us"),
        (Kind.POWER, 4.5, "4.5W"),
        (Kind.SIZE, 3.0, "3B"),
        (Kind.POWER, 1e-5, "0.01mW"),
        (Kind.SIZE, 1.0e6, "1MB"),
    ],
)
def test_the_least_is_told_in_the_unit_that_people_read(kind: Kind, value: float, text: str) -> None:
    assert format_least(kind, value) == text
