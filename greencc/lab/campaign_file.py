"""Read a campaign file: TOML that names every key it takes, and says where one is wrong.

The file is its user's own, like a Makefile: paths in it are relative to its folder and may point anywhere, and
functions that it names are run. (A bundle is somebody else's: a path that leaves its folder is refused when it is
opened.)
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar

from greencc.calibration.generators import is_function_spec
from greencc.compiler.campaign import make_plan
from greencc.compiler.options import CompileOptions, Effort, Precision, parse_rate, parse_seconds, parse_share
from greencc.core.errors import InputError, UsageError, did_you_mean
from greencc.core.pass_list import parse_passes
from greencc.core.toml import TomlTable, parse_toml, read_toml_text
from greencc.lab.campaign_meter import check_no_secret, meter_at
from greencc.lab.campaign_spec import (
    MAX_CELLS,
    SCHEMA,
    Build,
    CampaignSpec,
    DeviceSpec,
    ModelSpec,
    ProtocolSpec,
    VariantSpec,
    compile_options,
)
from greencc.passes import PASSES
from greencc.targets import format_spec, make_target

MAX_BYTES = 1 << 20
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MOST_REPETITIONS = 1000
_BUILD_KEYS = ("precision", "passes", "recipe", "max_drop", "effort", "seed")
_T = TypeVar("_T")
_E = TypeVar("_E", bound=Enum)


def read_campaign(path: Path) -> CampaignSpec:
    """Read a campaign file.

    Raises:
        InputError: The file is missing, too large or not TOML; a key is unknown, missing or makes no sense; a file that
            it names is not there.
    """
    return parse_campaign(read_toml_text(path, "campaign", MAX_BYTES), path)


def parse_campaign(text: str, path: Path) -> CampaignSpec:
    """Parse the text of a campaign file at `path`; see `read_campaign` for the errors."""
    data = parse_toml(text, str(path))
    if (found := data.get("schema")) != SCHEMA:
        raise InputError(f"{path} has schema {str(found)[:80]!r}", hint=f"this version reads {SCHEMA!r}")
    top = _Table(data, path, "")
    top.check(("schema", "name", "model", "variant", "device", "protocol"))
    devices = tuple(_device(table) for table in top.tables("device"))
    with top.located():
        check_no_secret(text)
    models = tuple(_model(table) for table in top.tables("model"))
    spec = CampaignSpec(
        name=top.name(default=path.stem),
        path=path,
        text=text,
        models=models,
        variants=tuple(_variant(table, models) for table in top.tables("variant")),
        devices=devices,
        protocol=_protocol(_Table(data.get("protocol", {}), path, "protocol")),
    )
    _check_unique(spec)
    _check_builds(spec)
    return spec


class _Table(TomlTable):
    """A table of a campaign file, whose files are relative to it."""

    def __init__(self, data: Any, path: Path, place: str) -> None:
        super().__init__(data, str(path), place)
        self.path = path

    def at(self, key: str) -> str:
        return f"{self.path}: {self.place_of(key)}"

    def tables(self, key: str) -> list[_Table]:
        """A list of tables, at least one."""
        value = self.data.get(key)
        if not isinstance(value, list) or not value:
            raise InputError(f"{self.path} has no [[{key}]]", hint=f"a campaign has at least one [[{key}]]")
        return [_Table(item, self.path, f"{key}[{number}]") for number, item in enumerate(value, 1)]

    def name(self, default: str | None = None) -> str:
        """Names stand in file names: letters, digits and ``._-``."""
        value = self.text("name")
        if value is None:
            if default is None:
                raise InputError(f"{self.at('name')} is missing")
            return re.sub(r"[^A-Za-z0-9._-]+", "-", default).strip("-._")[:64] or "campaign"
        if not _NAME.fullmatch(value):
            raise InputError(
                f"{self.at('name')} is {value[:80]!r}",
                hint="up to 64 letters, digits, '.', '_' and '-', a letter or digit first",
            )
        return value

    def text(self, key: str) -> str | None:
        value = self.data.get(key)
        if value is None:
            return None
        if not isinstance(value, str) or not value or not value.isprintable():
            raise InputError(f"{self.at(key)} is not a line of text")
        return value

    def flag(self, key: str) -> bool:
        value = self.data.get(key, False)
        if not isinstance(value, bool):
            raise InputError(f"{self.at(key)} is {str(value)[:80]!r}", hint="expected true or false")
        return value

    def whole(self, key: str, default: int, low: int, high: int) -> int:
        value = self.data.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise InputError(
                f"{self.at(key)} is {str(value)[:80]}", hint=f"expected a whole number from {low} to {high:,}"
            )
        return value

    def parsed(self, key: str, parse: Callable[[str], _T]) -> _T | None:
        """A text, or a number as its text, that a parser of the command line reads."""
        value = self.data.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise InputError(f"{self.at(key)} is {str(value)[:80]!r}, neither a text nor a number")
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{self.at(key)} is {value}")
        with self.located(key):
            return parse(str(value))

    def choice(self, key: str, kind: type[_E], default: _E) -> _E:
        value = self.text(key)
        if value is None:
            return default
        try:
            return kind(value)
        except ValueError:
            raise InputError(
                f"{self.at(key)} is {value[:80]!r}",
                hint=did_you_mean(value[:80], [str(item.value) for item in kind]),
            ) from None

    def file(self, key: str) -> Path | None:
        """A file that is there."""
        value = self.text(key)
        if value is None:
            return None
        found = self.path.parent / value
        if not found.is_file():
            raise InputError(
                f"{self.at(key)}: there is no file {found}", hint="paths are relative to the campaign file"
            )
        return found

    def source(self, key: str) -> str | None:
        """Data: a file, a folder, ``module:function``, ``file.py:function`` or ``synthetic``."""
        value = self.text(key)
        if value is None or re.fullmatch(r"synthetic(:[0-9]{1,9})?", value):
            return value
        found = self.path.parent / value
        if found.exists():
            return str(found)
        if is_function_spec(value):
            return self._function(value)
        raise InputError(
            f"{self.at(key)}: there is no {found}", hint="paths are relative to the campaign file"
        )

    def metric(self, key: str) -> str | None:
        value = self.text(key)
        return self._function(value) if value is not None and is_function_spec(value) else value

    def _function(self, spec: str) -> str:
        """The file of ``file.py:function`` is relative to the campaign, as all files are."""
        where, _, name = spec.rpartition(":")
        return f"{self.path.parent / where}:{name}" if where.endswith(".py") else spec

    @contextmanager
    def located(self, key: str = "") -> Iterator[None]:
        """Say where it is that an option makes no sense."""
        try:
            yield
        except UsageError as error:
            where = self.at(key) if key else f"{self.path}: {self.place}".removesuffix(": ")
            raise InputError(f"{where}: {error.message}", hint=error.hint) from error


def _model(table: _Table) -> ModelSpec:
    table.check(("name", "path", "calibration", "eval", "labels", "metric", "preprocess"))
    path = table.file("path")
    if path is None:
        raise InputError(f"{table.at('path')} is missing", hint="the ONNX file")
    return ModelSpec(
        name=table.name(default=path.stem),
        path=path,
        calibration=table.source("calibration"),
        evaluation=table.source("eval"),
        labels=table.file("labels"),
        metric=table.metric("metric"),
        preprocess=table.file("preprocess"),
    )


def _variant(table: _Table, models: Sequence[ModelSpec]) -> VariantSpec:
    table.check(("name", "original", "bundles", *_BUILD_KEYS))
    build = [key for key in _BUILD_KEYS if key in table.data]
    kinds = [key for key in ("original", "bundles") if key in table.data] + build[:1]
    if len(kinds) != 1:
        said = " and ".join(kinds) or "nothing"
        raise InputError(
            f"{table.path}: {table.place} says {said}",
            hint="one of: original = true, a [variant.bundles] table, or compile options "
            f"({', '.join(_BUILD_KEYS)})",
        )
    if "original" in kinds:
        if not table.flag("original"):
            raise InputError(f"{table.at('original')} is false", hint="leave it out, and say what to build")
        return VariantSpec(table.name())
    if "bundles" in kinds:
        return VariantSpec(table.name(), bundles=_bundles(table, models))
    passes = table.text("passes")
    if passes is not None:
        with table.located("passes"):
            parse_passes(passes, PASSES)
    max_drop = table.parsed("max_drop", parse_share)
    return VariantSpec(
        table.name(),
        Build(
            precision=table.choice("precision", Precision, Precision.AUTO),
            passes=passes,
            recipe=table.file("recipe"),
            max_drop=Build.max_drop if max_drop is None else max_drop,
            effort=table.choice("effort", Effort, Effort.STANDARD),
            seed=table.whole("seed", 0, 0, 2**32 - 1),
        ),
    )


def _bundles(table: _Table, models: Sequence[ModelSpec]) -> dict[str, Path]:
    inner = _Table(table.data["bundles"], table.path, f"{table.place}.bundles")
    inner.check([model.name for model in models])
    found = {}
    for model in models:
        value = inner.text(model.name)
        if value is None:
            raise InputError(f"{inner.at(model.name)} is missing", hint="one bundle folder for each model")
        found[model.name] = table.path.parent / value
        if not found[model.name].is_dir():
            raise InputError(f"{inner.at(model.name)}: there is no folder {found[model.name]}")
    return found


def _device(table: _Table) -> DeviceSpec:
    table.check(("name", "target", "threads", "meter"))
    target = table.text("target") or "cpu"
    if "threads" in table.data:
        threads = table.whole("threads", 1, 1, 4096)
        target += f"{',' if ':' in target else ':'}threads={threads}"
    with table.located("target"):
        target = format_spec(make_target(target))
    meter = table.text("meter")
    if meter is not None:
        with table.located("meter"):
            meter = meter_at(meter, table.path.parent)
    return DeviceSpec(table.name(), target, meter)


def _protocol(table: _Table) -> ProtocolSpec:
    table.check(("name", "rate", "poisson", "until", "limit", "repetitions", "seed", "confidence"))
    confidence = table.parsed("confidence", parse_share)
    spec = ProtocolSpec(
        name=table.text("name") or ProtocolSpec.name,
        rate=table.parsed("rate", parse_rate),
        poisson=table.flag("poisson"),
        until=table.parsed("until", parse_share),
        limit_seconds=table.parsed("limit", parse_seconds),
        repetitions=table.whole("repetitions", ProtocolSpec.repetitions, 1, _MOST_REPETITIONS),
        seed=table.whole("seed", 0, 0, 2**63 - 1),
        confidence=ProtocolSpec.confidence if confidence is None else confidence,
    )
    with table.located():
        CompileOptions(confidence=spec.confidence)
        make_plan(
            spec.name,
            rate=spec.rate,
            poisson=spec.poisson,
            until=spec.until,
            limit_seconds=spec.limit_seconds,
        )
    return spec


def _check_unique(spec: CampaignSpec) -> None:
    for kind, items in (("model", spec.models), ("variant", spec.variants), ("device", spec.devices)):
        names: set[str] = set()
        for item in items:
            if item.name in names:
                raise InputError(f"{spec.path} has two [[{kind}]] with the name {item.name!r}")
            names.add(item.name)
    count = len(spec.models) * len(spec.variants) * len(spec.devices) * spec.protocol.repetitions
    if count > MAX_CELLS:
        raise InputError(f"{spec.path} asks for {count:,} measurements", hint=f"at most {MAX_CELLS:,}")


def _check_builds(spec: CampaignSpec) -> None:
    """Options that contradict each other should not be found out after hours of measuring."""
    for variant in spec.variants:
        for model in spec.models:
            if variant.build is None:
                continue
            try:
                compile_options(model, variant.build, spec.devices[0], spec.protocol)
            except UsageError as error:
                raise InputError(
                    f"{spec.path}: variant {variant.name!r} of model {model.name!r}: {error.message}",
                    hint=error.hint,
                ) from error
