"""Split a batch over replicas: each runs the whole model, or its own stages and parts, on its samples."""

from collections.abc import Callable
from typing import Any

import msgspec
import torch
from torch import Tensor

from prism.nn import inputs, outputs
from prism.nn.answers import Answer, Answers
from prism.nn.exchange import Exchange
from prism.nn.frame import BatchHeader, encode
from prism.nn.inputs import Pixels
from prism.nn.recorder import Recorder
from prism.plan import ExecutionPlan, Place

Arguments = dict[str, Any]
Run = Callable[[Arguments], Any]  # a replica's own way from its samples to their output


class Replicas:
    """One rank's side of a batch that is split over replicas."""

    def __init__(self, exchange: Exchange, recorder: Recorder, device: torch.device, answers: Answers) -> None:
        self._exchange, self._recorder, self._device, self._answers = exchange, recorder, device, answers

    def lead(
        self, header: BatchHeader, plan: ExecutionPlan, arguments: Arguments, pixels: Pixels | None, run: Run
    ) -> Answer:
        """Hand out the samples, and run the leader's own. The answer joins all in order.

        header: number, epoch and turn. Raises UnsupportedModelError for arguments that can't be split, before anything
        is sent.
        """
        shares, kind = _shares(plan, arguments, header.turn), inputs.kind_of(arguments)
        pieces = [inputs.piece(arguments, sum(shares[:r]), sum(shares[: r + 1])) for r in range(plan.replicas)]
        counts = {_first(plan, r): _answers(plan, share) for r, share in enumerate(shares) if r and share}
        layout = self._answers.layouts.get(kind)
        header = msgspec.structs.replace(header, plan=plan, describe=layout is None and not shares[0])
        self._hand_out(header, plan, shares, pieces, pixels)
        awaited = self._answers.post(layout, counts) if layout is not None else None
        own = []
        if shares[0]:
            output = run(pieces[0])
            layout = self._answers.layouts[kind] = outputs.layout_of(output, shares[0])
            own.append(outputs.tensors_of(output))
        if layout is None:
            layout = self._answers.learn(kind, counts)
        return self._answers.joined(layout, own, self._answers.post(layout, counts) if awaited is None else awaited)

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
        """As the first rank of a replica, run its samples and send the leader their answers.

        arguments: the whole batch's, where every rank has them.
        """
        if header.inputs is not None:
            own = inputs.received(header.inputs, self._exchange, self._recorder, self._device)
        else:
            own = share_of(plan, arguments, self._exchange.rank, header.turn)
        start = 0
        for count in _answers(plan, header.batch):
            output = run(inputs.piece(own, start, start + count))
            self._answers.send(output, count, header.describe and not start)
            start += count


def share_of(plan: ExecutionPlan, arguments: Arguments, rank: int, turn: int) -> Arguments:
    """Cut the samples of a rank's replica out of the whole batch."""
    replica, shares = plan.place(rank).replica, _shares(plan, arguments, turn)
    start = sum(shares[:replica])
    return inputs.piece(arguments, start, start + shares[replica])


def _shares(plan: ExecutionPlan, arguments: Arguments, turn: int) -> tuple[int, ...]:
    """Samples of each replica. Equal replicas take the larger shares in turn."""
    shares = plan.shares(inputs.samples_of(arguments))
    turn = 0 if plan.weights else turn % plan.replicas
    return (*shares[-turn:], *shares[:-turn]) if turn else shares


def _answers(plan: ExecutionPlan, share: int) -> tuple[int, ...]:
    """Samples of each answer that a replica gives: stages take their microbatches by themselves."""
    return plan.microbatches(share) if plan.stages == 1 else (share,)


def _first(plan: ExecutionPlan, replica: int) -> int:
    return plan.rank_of(Place(replica, 0, 0))
