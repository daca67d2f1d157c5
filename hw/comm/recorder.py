"""Spans of one rank: a row without gaps, each span ending where the next begins."""

import time
from collections.abc import Callable

import torch

from prism.trace import Kind, Span


def recorder_for(device: torch.device, rank: int) -> "SpanRecorder":
    """Make the recorder of a rank that computes on `device`."""
    return SpanRecorder(rank, torch.cuda.synchronize) if device.type == "cuda" else SpanRecorder(rank)


class SpanRecorder:
    """Collects the spans of the batch under way on this rank's monotonic clock.

    `synchronise` waits for the device, so that a batch ends when its work has; a no-op on a CPU.
    """

    def __init__(self, rank: int, synchronise: Callable[[], None] = lambda: None) -> None:
        self._rank, self._synchronise = rank, synchronise
        self._spans: list[Span] = []
        self._batch: int | None = None
        self._open: tuple[Kind, str, int] | None = None
        self._since = 0
        self._started = 0
        self._wire: dict[str, object] = {}
        self._handed: dict[tuple[str, int], tuple[int, int]] = {}

    @property
    def recording(self) -> bool:
        """Whether a batch is under way."""
        return self._batch is not None

    def begin(self, batch: int) -> None:
        """Begin a batch, and its first span."""
        self._spans, self._batch, self._handed = [], batch, {}
        self._open = ("compute", "prepare", -1)
        self._started = self._since = time.monotonic_ns()

    def switch(self, kind: Kind, op: str, block: int, at_ns: int | None = None) -> None:
        """End the running span and begin the next one: now, or at a given time within the running one."""
        if self._batch is None:
            return
        now = time.monotonic_ns() if at_ns is None else max(at_ns, self._since)
        self._close(now)
        self._open, self._since = (kind, op, block), now

    def handed_over(self, op: str, block: int, sent_bytes: int) -> None:
        """Note when this rank posted its own message, for the wire span of the same op and block.

        One that comes before such a span has taken the last one, as of a microbatch, leaves the last one a span of its
        own.
        """
        self._unanswered(op, block)
        self._handed[op, block] = (time.monotonic_ns(), sent_bytes)

    def received(self, sources: tuple[int, ...], received_bytes: int) -> None:
        """Note what the running wire span waited for. sources: ranks."""
        self._wire = {"sources": sources, "received_bytes": received_bytes}

    def end(self) -> None:
        """End the batch once its work on the device is done."""
        if self._batch is None:
            return
        self._synchronise()
        now = time.monotonic_ns()
        self._close(now)
        # a message that nobody here waited behind is still part of the record, as a span of no length
        for op, block in list(self._handed):
            self._unanswered(op, block)
        self._batch, self._handed = None, {}

    def _unanswered(self, op: str, block: int) -> None:
        """Record a message of which nobody here awaited an answer, as a span of no length."""
        if (op, block) in self._handed:
            issued, sent = self._handed.pop((op, block))
            self._spans.append(self._span("wire", op, block, issued, issued, issued_ns=issued, sent_bytes=sent))

    def take(self) -> tuple[list[Span], int, int]:
        """Return the spans, start and end (ns) of the last batch, or of the one under way when it failed."""
        if self._batch is not None:
            self.end()
        end = max((span.end_ns for span in self._spans), default=self._started)
        return self._spans, self._started, end

    def _close(self, now: int) -> None:
        if self._open is None:
            return
        kind, op, block = self._open
        extra: dict[str, object] = {}
        if kind == "wire":
            issued, sent = self._handed.pop((op, block), (self._since, 0))
            extra = {"issued_ns": issued, "sent_bytes": sent, **self._wire}
            self._wire = {}
        self._spans.append(self._span(kind, op, block, self._since, now, **extra))
        self._open = None

    def _span(self, kind: Kind, op: str, block: int, start: int, end: int, **extra: object) -> Span:
        return Span(
            batch=self._batch or 0,
            rank=self._rank,
            kind=kind,
            op=op,
            block=block,
            start_ns=start,
            end_ns=end,
            **extra,  # type: ignore[arg-type]
        )
