"""Queue requests, and batch them where their shapes allow: one thread serves them."""

import threading
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future
from typing import Any

import msgspec
import torch
from torch import Tensor

from hw.serving.runtime import AdaptiveRuntime
from prism.errors import PrismError
from prism.plan import ExecutionPlan


class OverloadedError(PrismError):
    """The queue is full."""


class Answer(msgspec.Struct, frozen=True):
    """A request's outputs by name. ran: the plan that gave them."""

    outputs: dict[str, Tensor]
    ran: ExecutionPlan


class _Request:
    def __init__(self, call: Mapping[str, Tensor]) -> None:
        self.call, self.future = call, Future[Answer]()
        self.size = len(next(iter(call.values())))
        self.arrived = time.monotonic()

    @property
    def kind(self) -> tuple[tuple[str, tuple[int, ...], torch.dtype], ...]:
        """What requests must share to be batched: names, shapes and types of their inputs."""
        return tuple((name, tuple(t.shape[1:]), t.dtype) for name, t in self.call.items())


class Batcher:
    """Batches requests and runs them. Used as a context manager.

    largest: samples of a batch at most. patience_s: how long the first request of a batch waits for others.
    queue: requests that wait at most. deadline_s: from a request's arrival, for the policy.
    """

    def __init__(
        self,
        runtime: AdaptiveRuntime,
        *,
        largest: int = 8,
        patience_s: float = 0.0,
        queue: int = 256,
        deadline_s: float | None = None,
    ) -> None:
        self._runtime, self._largest, self._patience_s = runtime, largest, patience_s
        self._most, self._deadline_s = queue, deadline_s
        self._waiting: deque[_Request] = deque()
        self._news = threading.Condition()
        self._closing = False

    def __enter__(self) -> "Batcher":
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        with self._news:
            self._closing = True
            self._news.notify_all()
        self._thread.join()

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    def submit(self, call: Mapping[str, Tensor]) -> "Future[Answer]":
        """Queue a request. Raises OverloadedError where too many wait already."""
        request = _Request(call)
        with self._news:
            if len(self._waiting) >= self._most or self._closing:
                raise OverloadedError(f"{len(self._waiting)} requests wait, the limit is {self._most}; come again")
            self._waiting.append(request)
            self._news.notify_all()
        return request.future

    def _take(self) -> list[_Request]:
        """Take the next batch off the queue; empty when serving is over."""
        with self._news:
            self._news.wait_for(lambda: self._waiting or self._closing)
            if not self._waiting:
                return []
            until = self._waiting[0].arrived + self._patience_s
            while sum(r.size for r in self._waiting) < self._largest and not self._closing:
                left = until - time.monotonic()
                if left <= 0 or not self._news.wait(left):
                    break
            taken = [self._waiting.popleft()]
            total = taken[0].size
            while self._waiting and self._waiting[0].kind == taken[0].kind:
                total += self._waiting[0].size
                if total > self._largest:
                    break
                taken.append(self._waiting.popleft())
            return taken

    def _serve(self) -> None:
        torch.set_grad_enabled(False)
        while taken := self._take():
            try:
                self._answer(taken)
            except Exception as error:  # the model's own refusal of an input; the server lives on
                for request in taken:
                    request.future.set_exception(error)

    def _answer(self, taken: list[_Request]) -> None:
        call = {name: torch.cat([r.call[name] for r in taken]) for name in taken[0].call}
        left = None
        if self._deadline_s is not None:
            left = max(taken[0].arrived + self._deadline_s - time.monotonic(), 0.0) * 1e3
        served = self._runtime.run(call, queued=len(self._waiting), left_ms=left)
        outputs, start = named(served.output), 0
        for request in taken:
            rows = slice(start, start + request.size)
            start += request.size
            request.future.set_result(Answer({k: v[rows] for k, v in outputs.items()}, served.ran))


def named(output: Any) -> dict[str, Tensor]:
    """Name the tensors of a model's output: a timm model's one tensor is its logits."""
    if isinstance(output, Tensor):
        return {"logits": output}
    return {name: value for name, value in output.items() if isinstance(value, Tensor)}
