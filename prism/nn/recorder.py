"""Where a rank's time goes: what the forward pass tells, and who listens."""

from typing import Protocol

from prism.trace import Kind


class Recorder(Protocol):
    """Where a rank's time goes: a batch is one row of spans without gaps."""

    def begin(self, batch: int) -> None: ...

    def switch(self, kind: Kind, op: str, block: int) -> None:
        """End the running span and begin the next."""
        ...

    def end(self) -> None: ...


class NullRecorder:
    """Records nothing."""

    def begin(self, batch: int) -> None: ...

    def switch(self, kind: Kind, op: str, block: int) -> None: ...

    def end(self) -> None: ...
