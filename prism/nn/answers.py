"""Bring answers from the ranks that run the head to the leader, and join them in order.

The layout of an answer is learnt once for each kind of input. From then on its receive is posted before the answer is
there.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from prism.nn import outputs
from prism.nn.exchange import Exchange, Expected, Pending
from prism.nn.frame import FRAME, decode, encode
from prism.nn.outputs import Layout
from prism.nn.recorder import Recorder


class Answer(NamedTuple):
    """A batch that was begun. wait: finishes it and returns the model's output; once, in the order of batches."""

    wait: Callable[[], Any]


class Awaited(NamedTuple):
    """One posted answer: the rank that gives it, its samples, and the message under way."""

    rank: int
    samples: int
    message: Pending


class Answers:
    """Both ends of the answers of one group. layouts: those known, by the kind of input."""

    def __init__(self, exchange: Exchange, recorder: Recorder, device: torch.device, blocks: int) -> None:
        self._exchange, self._recorder, self._device, self._blocks = exchange, recorder, device, blocks
        self.layouts: dict[tuple[Any, ...], Layout] = {}

    def learn(self, kind: tuple[Any, ...], ranks: Iterable[int]) -> Layout:
        """Wait for the layout that each rank sends ahead of its first answer."""
        frames = self._exchange.start({}, dict.fromkeys(ranks, FRAME), "layout", self._blocks).wait()
        layout: Layout = decode(next(iter(frames.values())), Layout)
        self.layouts[kind] = layout
        return layout

    def post(self, layout: Layout, counts: Mapping[int, Sequence[int]]) -> list[Awaited]:
        """Post the receives of all answers. counts: samples of each one, by the rank that gives it."""
        return [
            Awaited(rank, count, self._exchange.start({}, {rank: self._size(layout, count)}, "answer", self._blocks))
            for rank, answers in counts.items()
            for count in answers
        ]

    def joined(self, layout: Layout, own: Sequence[Sequence[Tensor]], awaited: Iterable[Awaited]) -> Answer:
        """The answer of the whole batch. own: tensors of the leader's samples, which come first."""

        def wait() -> Any:
            others = []
            for rank, samples, message in awaited:
                arrived = message.wait()[rank]
                self._recorder.switch("compute", "head", self._blocks)
                others.append(outputs.unpacked(layout, arrived, samples, self._device))
            return outputs.joined(layout, [*own, *others])

        return Answer(wait)

    def send(self, output: Any, samples: int, describe: bool) -> None:
        """Send the leader an answer, its layout ahead where that is asked for. Raises UnsupportedModelError."""
        layout = outputs.layout_of(output, samples)
        if describe:
            self._exchange.start({0: encode(layout)}, {}, "layout", self._blocks)
        self._exchange.start({0: outputs.packed(output)}, {}, "answer", self._blocks)

    def _size(self, layout: Layout, samples: int) -> Expected:
        return (outputs.size_of(layout, samples),), torch.uint8
