"""What carries the words of host and agent: a stream to a process that is, or becomes, the agent.

Everything that comes out of a channel is untrusted: it is read with limits of size and time.
"""

from __future__ import annotations

from typing import Protocol

from greencc.core.errors import UnavailableError
from greencc.devices.package import AgentPackage


class ConnectionLostError(UnavailableError):
    """A connection that could not be made, or that broke.

    Args:
        message: What happened, and to which device.
        hint: What to do about it.
        passing: It may go away by itself, as a reboot or a network failure does: worth another try. A refused key is
            not.
    """

    def __init__(self, message: str, *, hint: str | None = None, passing: bool = True) -> None:
        super().__init__(message, hint=hint)
        self.passing = passing


class SlowReplyError(ConnectionLostError):
    """A deadline passed; the stream is of no more use."""


class Channel(Protocol):
    """One connection. Deadlines are moments of `time.monotonic`.

    After an error, or an exception between the parts of a reply, a channel can only be closed.
    """

    def send(self, data: bytes | memoryview, deadline: float) -> None:
        """Send all of it.

        Raises:
            SlowReplyError: Not by the deadline.
            ConnectionLostError: The other end is gone; the message says why where that is known.
        """

    def read_line(self, most: int, deadline: float) -> bytes:
        """The next line, without its end.

        Raises:
            ConnectionLostError: As `send`, or the line is longer than `most` bytes.
        """

    def read(self, size: int, deadline: float) -> bytes:
        """Exactly so many bytes.

        Raises:
            ConnectionLostError: As `send`.
        """

    def established(self) -> None:
        """The agent has greeted: what breaks from now on is no matter of keys or addresses."""

    def close(self) -> None:
        """End the connection and what carries it; may be called twice."""


class Transport(Protocol):
    """A way to a machine."""

    @property
    def name(self) -> str:
        """For people, such as ``ssh://user@orin``."""

    @property
    def identity(self) -> str:
        """The same for the same device in every run; keeps the journals of devices apart."""

    @property
    def package(self) -> AgentPackage:
        """The agent that runs over there."""

    def connect(self) -> Channel:
        """A channel whose other end starts the agent: `greencc.devices.greeting.greet` comes next.

        Raises:
            ConnectionLostError: It cannot be started. What goes wrong on the way is told by the channel.
        """
