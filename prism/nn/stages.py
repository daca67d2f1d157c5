"""Split the blocks over stages: microbatches of a batch pass through them one behind another.

The first stage embeds, the last one runs the head and sends the answers to the leader. A stage may be of several parts,
which exchange in its blocks as they do without stages; rows go from each part to the same part of the next stage.

Shapes: m samples of a microbatch, B rows of the batch in its first dimension, N tokens, n own tokens, D width.
"""

from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import torch
from torch import Tensor

from prism.errors import ExchangeError
from prism.nn import inputs
from prism.nn.answers import Answer, Answers
from prism.nn.codecs import payload_like, stream_of
from prism.nn.exchange import Exchange, Expected, Subgroup
from prism.nn.families.base import Adapter, Block
from prism.nn.forward import Pass
from prism.nn.frame import BatchHeader, encode
from prism.nn.recorder import Recorder
from prism.partition import Rows
from prism.plan import ExecutionPlan, Place

Arguments = dict[str, Any]


class Stages:
    """One rank's side of a batch whose blocks are split over stages."""

    def __init__(
        self,
        adapter: Adapter,
        blocks: list[Block],
        exchange: Exchange,
        recorder: Recorder,
        device: torch.device,
        answers: Answers,
    ) -> None:
        self._adapter, self._blocks, self._exchange, self._recorder = adapter, blocks, exchange, recorder
        self._device, self._answers = device, answers

    def lead(
        self, header: BatchHeader, plan: ExecutionPlan, arguments: Arguments, embed: Callable[[Arguments], Tensor]
    ) -> Answer:
        """Embed the microbatches and run the first stage's part of them. The answer joins theirs in order.

        header: number and epoch. embed: from a microbatch's arguments to its rows [m.., N, D].
        """
        samples, kind = inputs.samples_of(arguments), inputs.kind_of(arguments)
        sizes, mask_BN = plan.microbatches(samples), self._adapter.padding(arguments)
        pieces = [inputs.piece(arguments, sum(sizes[:k]), sum(sizes[: k + 1])) for k in range(len(sizes))]
        layout = self._answers.layouts.get(kind)
        x_BND = embed(pieces[0])  # says how many rows and tokens there are
        each = len(x_BND) // sizes[0]
        header = msgspec.structs.replace(
            header,
            plan=plan,
            batch=each * samples,
            samples=samples,
            tokens=x_BND.shape[1],
            rows=self._adapter.rows(arguments, x_BND.shape[1]),
            padded=mask_BN is not None,
            dtype=str(x_BND.dtype).removeprefix("torch."),
            describe=layout is None,
        )
        self._announce(header, plan, arguments, mask_BN)
        head = {plan.rank_of(Place(0, plan.stages - 1, 0)): sizes}
        awaited = self._answers.post(layout, head) if layout is not None else None
        stage = _Stage(self._adapter, self._blocks, plan, self._exchange, self._recorder, self._device, header)
        for k, piece in enumerate(pieces):
            self._recorder.switch("compute", "embed", -1)
            stage.first(embed(piece) if k else x_BND, k, mask_BN)
            if awaited is None:  # no message may wait for a receive that this rank posts only after it has left
                layout = self._answers.learn(kind, head)
                awaited = self._answers.post(layout, head)
        return self._answers.joined(layout, [], awaited or [])

    def _announce(self, header: BatchHeader, plan: ExecutionPlan, arguments: Arguments, mask_BN: Tensor | None) -> None:
        """Header and mask to every rank, and what the head needs to the rank that runs it."""
        ranks = range(1, plan.ranks)
        last = plan.rank_of(Place(0, plan.stages - 1, 0))
        described, message = inputs.packed(self._adapter.head_arguments(arguments), None)
        frames = dict.fromkeys(ranks, encode(header))
        frames[last] = encode(msgspec.structs.replace(header, inputs=described))
        self._exchange.start(frames, {}, "header", -1)
        if mask_BN is not None:
            self._exchange.start(dict.fromkeys(ranks, mask_BN), {}, "mask", -1)
        if described.bytes:
            self._exchange.start({last: message}, {}, "inputs", -1)

    def join(self, header: BatchHeader, plan: ExecutionPlan) -> None:
        """Take part in every microbatch; on the last stage's first rank, run the head and send the answers."""
        if header.rows is None or not header.samples:
            raise ExchangeError("the batch header names no rows; run the same version of Prism on every device")
        masks: dict[int, Expected] = {0: ((header.batch, header.tokens), torch.uint8)} if header.padded else {}
        mask_BN = self._exchange.start({}, masks, "mask", -1).wait()[0] if header.padded else None
        arguments = {}
        if header.inputs is not None:
            arguments = inputs.received(header.inputs, self._exchange, self._recorder, self._device)
        stage = _Stage(self._adapter, self._blocks, plan, self._exchange, self._recorder, self._device, header)
        start = 0
        for k, rows_BRD in stage.follow(mask_BN, header.rows):
            if rows_BRD is None:
                continue
            piece = inputs.piece(arguments, start, start + stage.sizes[k]) if arguments else {}
            output = self._adapter.head(self._adapter.place(rows_BRD, header.tokens), {**piece, **self._adapter.forced})
            self._answers.send(output, stage.sizes[k], header.describe and not k)
            start += stage.sizes[k]


class _Stage:
    """The blocks of one rank's stage, for the microbatches of one batch."""

    def __init__(
        self,
        adapter: Adapter,
        blocks: list[Block],
        plan: ExecutionPlan,
        exchange: Exchange,
        recorder: Recorder,
        device: torch.device,
        header: BatchHeader,
    ) -> None:
        self._adapter, self._exchange, self._recorder, self._device = adapter, exchange, recorder, device
        self._place, self._header, self._last = plan.place(exchange.rank), header, plan.stages - 1
        self._plan, self._bounds = plan.stage(self._place.stage), plan.stage_blocks(len(blocks))
        start, stop = self._bounds[self._place.stage]
        self._blocks, self._dtype = blocks[start:stop], getattr(torch, header.dtype)
        self._parts = Subgroup(exchange, exchange.rank - self._place.part, plan.parts)
        self._each = header.batch // header.samples
        self.sizes = plan.microbatches(header.samples)

    def first(self, x_BND: Tensor, k: int, mask_BN: Tensor | None) -> None:
        """Run the k-th microbatch on the first stage's first rank, from its embedded rows."""
        pass_ = self._pass(k)
        own_BnD = pass_.run(pass_.hand_out(x_BND), self._mask(k, mask_BN))
        self._pass_on(own_BnD)

    def follow(self, mask_BN: Tensor | None, rows: Rows) -> Iterator[tuple[int, Tensor | None]]:
        """Run every microbatch on another rank; yield the rows that its head reads, where this rank has them."""
        if self._place.stage:
            self._expect_rows(0)
        for k in range(len(self.sizes)):
            pass_ = self._pass(k)
            x_BnD = self._arrived(k) if self._place.stage else pass_.receive(self._dtype)
            own_BnD = pass_.run(x_BnD, self._mask(k, mask_BN))
            if self._place.stage < self._last:
                self._pass_on(own_BnD)
                yield k, None
            else:
                yield k, pass_.gather(own_BnD, rows)

    def _pass(self, k: int) -> Pass:
        first = self._bounds[self._place.stage][0]
        rows = self.sizes[k] * self._each
        return Pass(
            self._adapter,
            self._blocks,
            self._plan,
            self._parts,
            self._recorder,
            self._device,
            rows,
            self._header.tokens,
            first,
        )

    def _mask(self, k: int, mask_BN: Tensor | None) -> Tensor | None:
        if mask_BN is None:
            return None
        start = sum(self.sizes[:k]) * self._each
        return mask_BN[start : start + self.sizes[k] * self._each]

    def _shape(self, k: int) -> tuple[int, int, int]:
        start, stop = self._plan.partition(self._header.tokens).bounds(self._place.part)
        return self.sizes[k] * self._each, stop - start, self._adapter.spec.width

    def _pass_on(self, own_BnD: Tensor) -> None:
        """Send own rows to the same part of the next stage."""
        block = self._bounds[self._place.stage][1]
        self._recorder.switch("compute", "rows", block)
        payload = stream_of(self._plan.wire, tuple(own_BnD.shape)).encode(own_BnD)
        target = self._exchange.rank + self._plan.parts
        self._exchange.start({target: payload.contiguous()}, {}, "rows", block)

    def _expect_rows(self, k: int) -> None:
        """Post the receive of a microbatch's rows."""
        source = self._exchange.rank - self._plan.parts
        block = self._bounds[self._place.stage][0]
        self._exchange.expect({source: payload_like(self._plan.wire, self._shape(k))}, "rows", block)

    def _arrived(self, k: int) -> Tensor:
        """Wait for a microbatch's rows, and post the receive of the next one's."""
        source, block = self._exchange.rank - self._plan.parts, self._bounds[self._place.stage][0]
        payload = self._exchange.start({}, {source: payload_like(self._plan.wire, self._shape(k))}, "rows", block)
        arrived = payload.wait()[source]
        self._recorder.switch("compute", "rows", block)
        x_BnD = stream_of(self._plan.wire, self._shape(k)).decode(arrived, self._dtype).clone()
        if k + 1 < len(self.sizes):  # into the memory that was just copied
            self._expect_rows(k + 1)
        return x_BnD
