"""Split a batch over replicas: each runs the whole model, or its own stages and parts, on its samples."""

from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec
import torch
from torch import Tensor

from prism.nn import inputs, outputs
from prism.nn.exchange import Exchange, Expected, Pending
from prism.nn.frame import FRAME, BatchHeader, decode, encode
from prism.nn.inputs import Pixels
from prism.nn.outputs import Layout
from prism.nn.recorder import Recorder
from prism.plan import ExecutionPlan, Place

Arguments = dict[str, Any]
Run = Callable[[Arguments], Any]  # a replica's own way from its samples to their output


class Answer(NamedTuple):
    """A batch that was begun. wait: finishes it and returns the model's output; once, in the order of batches."""

    wait: Callable[[], Any]


class Replicas:
    """One rank's side of a batch that is split over replicas.

    The layout of an answer is learnt once for each kind of input. From then on its receive is posted before the answer
    is there.
    """

    def __init__(self, exchange: Exchange, recorder: Recorder, device: torch.device, blocks: int) -> None:
        self._exchange, self._recorder, self._device, self._blocks = exchange, recorder, device, blocks
        self._layouts: dict[tuple[Any, ...], Layout] = {}

    def lead(
        self, header: BatchHeader, plan: ExecutionPlan, arguments: Arguments, pixels: Pixels | None, run: Run
    ) -> Answer:
        """Hand out the samples, and run the leader's own. The answer joins all in order.

        header: number and epoch. Raises UnsupportedModelError for arguments that can't be split, before anything is
        sent.
        """
        shares, kind = plan.shares(inputs.samples_of(arguments)), inputs.kind_of(arguments)
        pieces = [inputs.piece(arguments, sum(shares[:r]), sum(shares[: r + 1])) for r in range(plan.replicas)]
        counts = {_first(plan, r): _answers(plan, share) for r, share in enumerate(shares) if r and share}
        layout = self._layouts.get(kind)
        header = msgspec.structs.replace(header, plan=plan, describe=layout is None and not shares[0])
        self._hand_out(header, plan, shares, pieces, pixels)
        pending = self._await_answers(layout, counts) if layout is not None else None
        found = []
        if shares[0]:
            output = run(pieces[0])
            layout = layout or outputs.layout_of(output, shares[0])
            found.append(outputs.tensors_of(output))
        if header.describe:
            frames = self._exchange.start({}, dict.fromkeys(counts, FRAME), "layout", self._blocks).wait()
            layout = decode(next(iter(frames.values())), Layout)
        self._layouts[kind] = layout
        pending = pending or self._await_answers(layout, counts)

        def joined() -> Any:
            others = []
            for rank, count, message in pending:
                arrived = message.wait()[rank]
                self._recorder.switch("compute", "head", self._blocks)
                others.append(outputs.unpacked(layout, arrived, count, self._device))
            return outputs.joined(layout, found + others)

        return Answer(joined)

    def _await_answers(self, layout: Layout, counts: dict[int, tuple[int, ...]]) -> list[tuple[int, int, Pending]]:
        """Post the receives of all answers. counts: samples of each one, by the rank that gives it."""
        posted = []
        for rank, count in ((rank, count) for rank, answers in counts.items() for count in answers):
            expected: Expected = ((outputs.size_of(layout, count),), torch.uint8)
            posted.append((rank, count, self._exchange.start({}, {rank: expected}, "answer", self._blocks)))
        return posted

    def _hand_out(
        self,
        header: BatchHeader,
        plan: ExecutionPlan,
        shares: tuple[int, ...],
        pieces: list[Arguments],
        pixels: Pixels | None,
    ) -> None:
        """Announce the batch to every rank, and send each replica's first rank its samples."""
        frames, messages = dict[int, Tensor](), dict[int, Tensor]()
        for rank in range(1, plan.ranks):
            place = plan.place(rank)
            own = msgspec.structs.replace(header, batch=shares[place.replica])
            if plan.embed == "terminal" and own.batch and place == (place.replica, 0, 0) and place.replica:
                described, messages[rank] = inputs.packed(pieces[place.replica], pixels)
                own = msgspec.structs.replace(own, inputs=described)
            frames[rank] = encode(own)
        self._exchange.start(frames, {}, "header", -1)
        self._exchange.start(messages, {}, "inputs", -1)

    def join(self, header: BatchHeader, plan: ExecutionPlan, arguments: Arguments, run: Run) -> None:
        """As the first rank of a replica, run its samples and send the leader their answer.

        arguments: the whole batch's, where every rank has them.
        """
        if header.inputs is not None:
            expected: Expected = ((header.inputs.bytes,), torch.uint8)
            raw = self._exchange.start({}, {0: expected}, "inputs", -1).wait()[0]
            self._recorder.switch("compute", "embed", -1)
            own = inputs.unpacked(header.inputs, raw, self._device)
        else:
            own = share_of(plan, arguments, self._exchange.rank)
        start, describe = 0, header.describe
        for count in _answers(plan, header.batch):
            output = run(inputs.piece(own, start, start + count))
            layout = outputs.layout_of(output, count)
            if describe:
                self._exchange.start({0: encode(layout)}, {}, "layout", self._blocks)
            self._exchange.start({0: outputs.packed(output)}, {}, "answer", self._blocks)
            start, describe = start + count, False


def share_of(plan: ExecutionPlan, arguments: Arguments, rank: int) -> Arguments:
    """Cut the samples of a rank's replica out of the whole batch."""
    replica, shares = plan.place(rank).replica, plan.shares(inputs.samples_of(arguments))
    start = sum(shares[:replica])
    return inputs.piece(arguments, start, start + shares[replica])


def _answers(plan: ExecutionPlan, share: int) -> tuple[int, ...]:
    """Samples of each answer that a replica gives: stages take their microbatches by themselves."""
    return plan.microbatches(share) if plan.stages == 1 else (share,)


def _first(plan: ExecutionPlan, replica: int) -> int:
    return plan.rank_of(Place(replica, 0, 0))
