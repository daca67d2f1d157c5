"""Between the device that computes and the host memory that gloo sends from.

On a CPU both are the same memory and nothing is copied. On a GPU every copy goes through a reusable
pinned buffer and is timed by CUDA events, so that what the host waits for (compute still running) is
not counted as copying.
"""

import time
from typing import Protocol

import torch
from torch import Tensor

from hw.comm.recorder import SpanRecorder
from prism.nn.exchange import Expected


class Stager(Protocol):
    """Moves tensors between the device that computes and host memory. op, block: what the copy is recorded as."""

    def to_host(self, tensor: Tensor, op: str, block: int) -> Tensor:
        """Copy a tensor to memory that gloo can send from."""
        ...

    def to_device(self, arrived: dict[int, Tensor], op: str, block: int) -> dict[int, Tensor]:
        """Copy arrived tensors to memory that the model can compute on."""
        ...

    def buffer(self, key: tuple[object, ...] | None, expected: Expected) -> Tensor:
        """Provide host memory for a tensor to arrive in: the same for the same key and shape, new without a key."""
        ...


def stager_for(device: torch.device, recorder: SpanRecorder) -> Stager:
    """Choose the stager of the device that computes. recorder: where the copies' spans go."""
    return CudaStager(device, recorder) if device.type == "cuda" else HostStager()


class HostStager:
    """Stages CPU tensors: no copies. pin: page-locked buffers, for copies from a GPU."""

    def __init__(self, pin: bool = False) -> None:
        self._pin = pin
        self._buffers: dict[tuple[object, ...], Tensor] = {}

    def to_host(self, tensor: Tensor, op: str, block: int) -> Tensor:
        return tensor

    def to_device(self, arrived: dict[int, Tensor], op: str, block: int) -> dict[int, Tensor]:
        return arrived

    def buffer(self, key: tuple[object, ...] | None, expected: Expected) -> Tensor:
        shape, dtype = expected
        buffer = self._buffers.get(key) if key else None
        if buffer is None or tuple(buffer.shape) != shape or buffer.dtype != dtype:
            buffer = torch.empty(shape, dtype=dtype, pin_memory=self._pin)
        if key:
            self._buffers[key] = buffer
        return buffer


class CudaStager:
    """Stages GPU tensors: asynchronous copies on the current stream, an event on either side of each."""

    def __init__(self, device: torch.device, recorder: SpanRecorder) -> None:
        self._device, self._recorder = device, recorder
        self._host = HostStager(pin=True)
        self._before = torch.cuda.Event(enable_timing=True)
        self._after = torch.cuda.Event(enable_timing=True)

    def buffer(self, key: tuple[object, ...] | None, expected: Expected) -> Tensor:
        return self._host.buffer(key, expected)

    def to_host(self, tensor: Tensor, op: str, block: int) -> Tensor:
        if not tensor.is_cuda:
            return tensor  # a header is made on the host
        # two buffers in turn: the last exchange's may still be leaving
        pinned = self.buffer(("out", op, block % 2), (tuple(tensor.shape), tensor.dtype))
        self._before.record()
        pinned.copy_(tensor, non_blocking=True)
        self._after.record()
        self._after.synchronize()
        self._span("stage_d2h", op, block)
        return pinned

    def to_device(self, arrived: dict[int, Tensor], op: str, block: int) -> dict[int, Tensor]:
        if not arrived or op in ("header", "mask"):  # read on the host
            return arrived
        self._recorder.switch("compute", "queued", block)
        self._before.record()
        moved = {peer: tensor.to(self._device, non_blocking=True) for peer, tensor in arrived.items()}
        self._after.record()
        if self._recorder.recording:
            self._after.synchronize()
            self._span("stage_h2d", op, block)
        return moved

    def _span(self, kind: str, op: str, block: int) -> None:
        now = time.monotonic_ns()
        copied = int(self._before.elapsed_time(self._after) * 1e6)
        self._recorder.switch(kind, op, block, at_ns=now - copied)  # type: ignore[arg-type]
