"""What goes wrong on the device, as the host gets to read it."""

from typing import Any, Dict

KINDS = (
    "usage",
    "input",
    "unavailable",
    "disk",
    "memory",
    "timeout",
    "crashed",
    "lost",
    "permission",
    "internal",
)


class Problem(Exception):  # noqa: N818 - it is shown to people, not a fault of the program
    """One clear message.

    Args:
        kind: One of `KINDS`.
        message: What is wrong and where.
        hint: What to do about it; may be empty.
    """

    def __init__(self, kind: str, message: str, hint: str = "") -> None:
        super().__init__(message)
        assert kind in KINDS, kind
        self.kind = kind
        self.message = message
        self.hint = hint

    def in_a_line(self) -> str:
        """Message and hint."""
        return "%s (%s)" % (self.message, self.hint) if self.hint else self.message

    def as_json(self) -> Dict[str, Any]:
        """For a reply."""
        return {"kind": self.kind, "message": self.message, "hint": self.hint}

    @classmethod
    def from_json(cls, found: Dict[str, Any]) -> "Problem":
        """From a reply; kinds that are not known are internal."""
        kind = found.get("kind")
        return cls(
            kind if kind in KINDS else "internal",
            str(found.get("message", "no reason was given")),
            str(found.get("hint", "")),
        )
