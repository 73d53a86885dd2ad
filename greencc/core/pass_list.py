"""Passes in one line, as `greencc compile --passes` takes them: ``prune:ratio=0.3,decompose:tucker,quantize``.

```
list  = pass {"," pass}
pass  = name [":" value] {":" option "=" value}
```

A bare value sets the primary option of the pass (`Pass.primary`). Values are written as in a recipe file but without
quotes; the items of a list are separated by "+". A backslash before any character takes its meaning away, so that a
node may be called ``/a\\:b``. A colon needs none in an enum's value (``2:4``) and, in a list, before a digit
(``/conv=svd:16``).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import MISSING, fields
from enum import Enum
from typing import Any, get_type_hints

from greencc.core.errors import UsageError, did_you_mean
from greencc.core.passes import Pass
from greencc.core.recipe import make_pass

ALIASES = {"quantize": "quantize-int8"}
"""Short names."""

_SPECIAL = frozenset(",:=+\\")
# One character, and whether a backslash stands before it.
_Chars = list[tuple[str, bool]]


def parse_passes(text: str, known: Sequence[type[Pass]], where: str = "passes") -> tuple[Pass, ...]:
    """The passes of a list, in its order.

    Raises:
        UsageError: The list is empty or malformed, it names an unknown pass or option, or a value does not fit.
    """
    chars = _chars(text, where)
    if not _text(chars):
        raise UsageError(f"{where}: the list is empty", hint="write pass[:value][:option=value],...")
    return tuple(_parse_pass(part, known, where) for part in _split(chars, ","))


def pass_names(text: str) -> tuple[str, ...]:
    """The names in a list of passes as they were written; of any text, without judging it."""
    try:
        parts = _split(_chars(text, "passes"), ",")
    except UsageError:
        return (text,)
    return tuple(_text(next(_split(part, ":"))) for part in parts)


def format_passes(passes: Iterable[Pass]) -> str:
    """The list that `parse_passes` reads; options at their defaults are left out, the primary one comes first."""
    return ",".join(_format_pass(step) for step in passes)


def format_option(value: Any) -> str:
    """The value of an option as it stands in a list."""
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, tuple):
        return "+".join(_escaped(str(item)) for item in value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return _escaped(value) if isinstance(value, str) else repr(value)


def _format_pass(step: Pass) -> str:
    parts, primary = [step.name], []
    for option in fields(step):
        value = getattr(step, option.name)
        if option.default is not MISSING and value == option.default:
            continue
        if option.name == step.primary and value not in ("", ()):
            primary = [format_option(value)]
        else:
            parts.append(f"{option.name}={format_option(value)}")
    return ":".join([parts[0], *primary, *parts[1:]])


def _parse_pass(chars: _Chars, known: Sequence[type[Pass]], where: str) -> Pass:
    first, *rest = _split(chars, ":")
    name = _text(first)
    if not name:
        raise UsageError(f"{where}: a pass has no name", hint="write pass[:value][:option=value],...")
    by_name = {kind.name: kind for kind in known}
    kind = by_name.get(ALIASES.get(name, name))
    if kind is None:
        short = [alias for alias, full in ALIASES.items() if full in by_name]
        raise UsageError(f"{where}: unknown pass {name!r}", hint=did_you_mean(name, [*by_name, *short]))
    hints = get_type_hints(kind)
    options = [option.name for option in fields(kind)]
    entry: dict[str, Any] = {"name": kind.name}
    while rest:
        key, value = _option(rest.pop(0), kind, options, where, bare=len(entry) == 1)
        while rest and _goes_on(joined := [*value, (":", False), *rest[0]], rest[0], hints[key]):
            value = joined
            rest.pop(0)
        if key in entry:
            raise UsageError(f"{where}: {name} is given {key} twice", hint="give every option once")
        entry[key] = _value(value, hints[key], f"{where}: {name}.{key}")
    return make_pass(entry, known, where)


def _option(
    part: _Chars, kind: type[Pass], options: Sequence[str], where: str, *, bare: bool
) -> tuple[str, _Chars]:
    """The option that a part of a pass sets, and its value."""
    key, *values = _split(part, "=", most=1)
    text = _text(key)
    if values:
        if text not in options:
            raise UsageError(
                f"{where}: pass {kind.name!r} has no option {text!r}", hint=did_you_mean(text, options)
            )
        return text, values[0]
    if not text:
        raise UsageError(f"{where}: an option of {kind.name} is empty", hint="leave the ':' out")
    listed = f"its options: {', '.join(options)}" if options else "it has no options"
    if kind.primary is None:
        raise UsageError(
            f"{where}: {kind.name} takes no value of its own, and {text!r} names no option",
            hint=f"write option=value; {listed}",
        )
    if not bare:
        raise UsageError(
            f"{where}: {text!r} says no option of {kind.name}",
            hint=f"only the first value may stand alone (it is {kind.primary}); {listed}",
        )
    return kind.primary, key


def _goes_on(joined: _Chars, part: _Chars, hint: Any) -> bool:
    """Whether the part behind a colon belongs to the value before it: no option begins with a digit."""
    return _is_member(joined, hint) or (hint == tuple[str, ...] and _text(part)[:1].isdigit())


def _is_member(chars: _Chars, hint: Any) -> bool:
    """Whether a text is a value of an enum: a pattern such as 2:4 needs no backslash."""
    text = _text(chars)
    return (
        isinstance(hint, type)
        and issubclass(hint, Enum)
        and any(str(member.value) == text for member in hint)
    )


def _value(chars: _Chars, hint: Any, where: str) -> Any:
    """The value of an option as a recipe file would hold it."""
    text = _text(chars)
    if isinstance(hint, type) and issubclass(hint, Enum):
        # An unknown one goes on as it is: `make_pass` knows what to say.
        return next((member.value for member in hint if str(member.value) == text), text)
    if hint == tuple[str, ...]:
        return [_text(item) for item in _split(chars, "+")] if text else []
    if hint is str:
        return text
    if hint is bool:
        if text in ("true", "false"):
            return text == "true"
        raise UsageError(f"{where} is {text!r}", hint="write true or false")
    try:
        return hint(text)
    except ValueError:
        what = "a whole number" if hint is int else "a number"
        raise UsageError(f"{where} is {text!r}", hint=f"expected {what}") from None


def _chars(text: str, where: str) -> _Chars:
    found: _Chars = []
    escaped = False
    for char in text:
        if char == "\\" and not escaped:
            escaped = True
            continue
        found.append((char, escaped))
        escaped = False
    if escaped:
        raise UsageError(f"{where}: the list ends in a backslash", hint="write \\\\ for a backslash")
    return found


def _split(chars: _Chars, separator: str, most: int = -1) -> Iterator[_Chars]:
    """The parts between separators without a backslash, at most `most` + 1 of them."""
    start = 0
    for index, char in enumerate(chars):
        if char == (separator, False) and most != 0:
            yield chars[start:index]
            start, most = index + 1, most - 1
    yield chars[start:]


def _text(chars: _Chars) -> str:
    """The text without the blanks around it, but for those after a backslash."""
    kept = [index for index, (char, escaped) in enumerate(chars) if escaped or not char.isspace()]
    return "".join(char for char, _ in chars[kept[0] : kept[-1] + 1]) if kept else ""


def _escaped(text: str) -> str:
    return "".join(f"\\{char}" if char in _SPECIAL or char.isspace() else char for char in text)
