"""Define what the forward pass reports of a rank's time."""

from typing import Protocol

from prism.trace import Kind


class Recorder(Protocol):
    """Takes down where a rank's time goes: a batch is one row of spans without gaps."""

    def begin(self, batch: int) -> None:
        """Begin a batch."""
        ...

    def switch(self, kind: Kind, op: str, block: int) -> None:
        """End the running span and begin the next."""
        ...

    def end(self) -> None:
        """End the running span and the batch."""
        ...


class NullRecorder:
    """Records nothing."""

    def begin(self, batch: int) -> None: ...

    def switch(self, kind: Kind, op: str, block: int) -> None: ...

    def end(self) -> None: ...
