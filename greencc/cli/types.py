"""Parameter types shared by commands."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import click

from greencc.core.errors import UsageError

if TYPE_CHECKING:
    from greencc.planner.budget import BudgetLimit


class Share(click.ParamType[float]):
    """A share such as ``1%`` or ``0.01``."""

    name = "percent"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        from greencc.compiler.options import parse_share

        try:
            return parse_share(str(value))
        except UsageError as error:
            self.fail(str(error), param, ctx)


class Seconds(click.ParamType[float]):
    """A duration such as ``90s``, ``5m``, ``1h`` or ``30d``."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        from greencc.compiler.options import parse_seconds

        try:
            return parse_seconds(str(value))
        except UsageError as error:
            self.fail(str(error), param, ctx)


class Bytes(click.ParamType[int]):
    """A size such as ``500MB`` (10^6 bytes) or ``2GiB`` (2^30)."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", str(value).strip().lower())
        if match is None or (match[3] and not match[2]):
            self.fail(f"{value!r} is no size: write 500MB, 2GB or 1GiB", param, ctx)
        base = 1024 if match[3] else 1000
        return int(float(match[1]) * base ** " kmgt".index(match[2] or " "))


class Rate(click.ParamType[float]):
    """Requests per time such as ``30/s``, ``1800/min`` or plainly ``30`` (per second)."""

    name = "rate"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, float):
            return value
        from greencc.compiler.options import parse_rate

        try:
            return parse_rate(str(value))
        except UsageError as error:
            self.fail(str(error), param, ctx)


class Budget(click.ParamType["tuple[BudgetLimit, ...]"]):
    """Limits of a plan such as ``5W,33ms p99`` or ``jetson-orin-nano:7W``."""

    name = "budget"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[BudgetLimit, ...]:
        if isinstance(value, tuple):
            return value
        from greencc.planner.budget import parse_budget

        try:
            return parse_budget(str(value))
        except UsageError as error:
            self.fail(str(error), param, ctx)


class Size(click.ParamType[tuple[str, int]]):
    """The size of a named dimension, such as ``sequence=64``."""

    name = "name=number"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int]:
        if isinstance(value, tuple):
            return value
        name, _, number = str(value).rpartition("=")
        if not name or not number.isdecimal() or not 0 < int(number) <= 2**31:
            self.fail(f"{value!r} is no size: write sequence=64", param, ctx)
        return name, int(number)


SHARE = Share()
SECONDS = Seconds()
BYTES = Bytes()
RATE = Rate()
SIZE = Size()
BUDGET = Budget()
OBJECTIVES = ("energy", "latency", "size", "error")
"""Values of greencc.planner.budget.Objective, repeated like those below."""
PROTOCOLS = ("default", "quick", "mlperf-tiny", "mlperf-power")
"""Names of greencc.measure.protocols.PROTOCOLS, repeated like those below."""
TRACE_FORMATS = ("csv", "parquet")
"""Values of greencc.compiler.campaign_files.TraceFormat, likewise."""
ESTIMATE_PRECISIONS = ("fp32", "fp16", "int8")
"""Values of greencc.lab.estimate.EstimatePrecision, likewise."""
FORMATS = ("qdq", "qoperator")
"""Values of greencc.compiler.options.QuantizedFormat, repeated like those below."""
EFFORTS = ("quick", "standard", "full")
"""Values of greencc.compiler.options.Effort, repeated so that --help imports nothing; a test compares them."""
PRECISIONS = (
    "auto",
    "fp32",
    "fp16",
    "bf16",
    "int8",
    "int8-dynamic",
    "int8-weights",
    "int4-weights",
    "mixed",
)
"""Values of greencc.compiler.options.Precision, likewise."""
TABLE_PRECISIONS = ("int8", "int8-weights", "int4-weights")
"""Values of greencc.compiler.inspect.TABLE_PRECISIONS, likewise."""
