"""The meters that a campaign file may name: those whose text holds no password, for the file is kept in the results."""

from __future__ import annotations

import re
from pathlib import Path

from greencc.core.errors import UsageError

_REMOTE = r"\b(?:shelly|https?|mqtts?|ptdaemon):"
_LOGIN = re.compile(rf"{_REMOTE}[^\s\"']*@", re.IGNORECASE)
_TOKEN = re.compile(
    rf"{_REMOTE}[^\s\"']*[?&][^\s\"'=&]*(?:token|key|auth|pass|pwd|secret|signature|credential|session)[^\s\"'=&]*=",
    re.IGNORECASE,
)
_HINT = (
    "put it into GREENCC_METER_USER, GREENCC_METER_PASSWORD or GREENCC_METER_TOKEN (docs/energy.md): summary.json and "
    "index.html hold the campaign's text"
)


def check_no_secret(text: str) -> None:
    """Refuse a text with a meter's login or token in it, a comment too. The text is not quoted.

    Raises:
        UsageError: There is one.
    """
    if _LOGIN.search(text):
        raise UsageError("a user or password stands in a meter's address", hint=_HINT)
    if _TOKEN.search(text):
        raise UsageError("a password or token stands in a meter's options", hint=_HINT)


def meter_at(spec: str, folder: Path) -> str:
    """The spec with the file of ``csv:FILE`` relative to `folder`.

    Raises:
        UsageError: It holds a password or a token.
    """
    spec = spec.strip()
    kind, colon, rest = spec.partition(":")
    if kind == "csv" and rest:
        return f"{kind}{colon}{folder / rest}"
    # White space and quotes, at which the search in a whole file ends, have no place in an address.
    check_no_secret(re.sub(r"[\s\"']", "_", spec))
    return spec
