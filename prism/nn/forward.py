"""Run one batch on one rank: hand out rows, exchange in every block, return what the head reads.

Shapes: B batch, N tokens, n own tokens, L rows sent, M rows received, R rows the head reads, D width.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from prism.codecs import payload_bytes
from prism.errors import PlanError
from prism.nn.codecs import payload_like, stream_of
from prism.nn.exchange import Exchange, Expected, Pending
from prism.nn.families.base import Adapter, Block
from prism.nn.frame import BatchHeader, encode
from prism.nn.recorder import Recorder
from prism.nn.segment_means import attention_bias, segment_counts, segment_means, segment_positions
from prism.partition import Rows, receivers, returned_rows
from prism.plan import ExecutionPlan


class Pass:
    """A plan of parts applied to a batch of B samples of N tokens, on one rank.

    first: number of the first of `blocks`, where they are a stage's.

    Receives are posted as early as their sizes are known: gloo sends by rendezvous, so a message
    leaves only when its receiver is ready, and being ready late costs a latency.
    """

    def __init__(
        self,
        adapter: Adapter,
        blocks: list[Block],
        plan: ExecutionPlan,
        exchange: Exchange,
        recorder: Recorder,
        device: torch.device,
        batch: int,
        tokens: int,
        first: int = 0,
    ) -> None:
        self._first = first
        self._plan, self._exchange, self._recorder, self._blocks = plan, exchange, recorder, blocks
        self._causal, self._width, self._device = adapter.causal, adapter.spec.width, device
        self._rotation = adapter.rotation
        self._batch, self._tokens, self._rank = batch, tokens, exchange.rank
        self._partition, self._sent = plan.partition(tokens), plan.sent_rows(tokens)
        self._peers = receivers(self._rank, plan.ranks, self._causal)
        self._shapes = {
            p: (batch, self._sent[p], self._width)
            for p in range(plan.ranks)
            if self._rank in receivers(p, plan.ranks, self._causal)
        }
        self._incoming = {p: payload_like(plan.wire, shape) for p, shape in self._shapes.items()}
        self._outgoing = stream_of(plan.wire, (batch, self._sent[self._rank], self._width))
        self._streams = {p: stream_of(plan.wire, shape) for p, shape in self._shapes.items()}
        size = payload_bytes(plan.wire, batch * self._sent[0] * self._width)
        self._ring = plan.uses_ring(size, self._causal)

    # -- getting the input and returning the answer ---------------------------------------------------

    def run_leader(
        self, x_BND: Tensor, mask_BN: Tensor | None, rows: Rows, number: int, epoch: int, scatter: bool
    ) -> Tensor:
        """Hand out the rows, run the leader's part, and join what the head reads: [B, R, D]."""
        if scatter:
            self._scatter(x_BND, mask_BN, rows, number, epoch)
        back = self._returned(rows, x_BND.dtype)
        self._expect(0)
        own_BnD = self._run_blocks(self._own(x_BND), mask_BN, self._bias(mask_BN, x_BND.dtype), back)
        return self._collect(own_BnD, rows, back)

    def _collect(self, own_BnD: Tensor, rows: Rows, back: dict[int, Expected]) -> Tensor:
        """On the first part, join what the head reads: [B, R, D]."""
        last = self._first + len(self._blocks)
        arrived = self._exchange.start({}, back, "collect", last).wait() if back else {}
        self._recorder.switch("compute", "head", last)
        return _joined(_selected(own_BnD, rows, 0), [arrived[p] for p in sorted(arrived)], rows, self._tokens)

    # -- as a stage -----------------------------------------------------------------------------------

    def hand_out(self, x_BND: Tensor) -> Tensor:
        """Send the rows of the other parts; return the first part's own."""
        if self._plan.parts > 1:
            parts = {p: x_BND[:, slice(*self._partition.bounds(p))].contiguous() for p in range(1, self._plan.parts)}
            self._exchange.start(parts, {}, "scatter", -1)
        return self._own(x_BND)

    def receive(self, dtype: torch.dtype) -> Tensor:
        """Wait for the rows that the first part hands out."""
        start, stop = self._partition.bounds(self._rank)
        expected: Expected = ((self._batch, stop - start, self._width), dtype)
        return self._exchange.start({}, {0: expected}, "scatter", -1).wait()[0]

    def run(self, x_BnD: Tensor, mask_BN: Tensor | None) -> Tensor:
        """Run the blocks on own rows."""
        if self._plan.parts > 1:
            self._expect(0)
        return self._run_blocks(x_BnD, mask_BN, self._bias(mask_BN, x_BnD.dtype), {})

    def gather(self, own_BnD: Tensor, rows: Rows) -> Tensor | None:
        """Join what the head reads on the first part, [B, R, D]; another part sends what it has of it."""
        if self._rank:
            self._return(own_BnD, rows)
            return None
        return self._collect(own_BnD, rows, self._returned(rows, own_BnD.dtype))

    def _returned(self, rows: Rows, dtype: torch.dtype) -> dict[int, Expected]:
        """What the other parts send back, by part."""
        counts = {p: returned_rows(rows, *self._partition.bounds(p)) for p in range(1, self._plan.ranks)}
        return {p: ((self._batch, count, self._width), dtype) for p, count in counts.items() if count}

    def _scatter(self, x_BND: Tensor, mask_BN: Tensor | None, rows: Rows, number: int, epoch: int) -> None:
        """Header, mask and rows to each rank, posted at once."""
        header = BatchHeader(
            number=number,
            epoch=epoch,
            plan=self._plan,
            batch=self._batch,
            tokens=self._tokens,
            rows=rows,
            padded=mask_BN is not None,
            dtype=str(x_BND.dtype).removeprefix("torch."),
        )
        peers = range(1, self._plan.ranks)
        self._exchange.start(dict.fromkeys(peers, encode(header)), {}, "header", -1)
        if mask_BN is not None:
            self._exchange.start(dict.fromkeys(peers, mask_BN), {}, "mask", -1)
        parts = {p: x_BND[:, slice(*self._partition.bounds(p))].contiguous() for p in peers}
        self._exchange.start(parts, {}, "scatter", -1)

    def run_scattered(self, padded: bool, dtype: torch.dtype, rows: Rows) -> None:
        """Receive a follower's rows, run them, return what the head reads."""
        start, stop = self._partition.bounds(self._rank)
        masks: dict[int, Expected] = {0: ((self._batch, self._tokens), torch.uint8)} if padded else {}
        parts: dict[int, Expected] = {0: ((self._batch, stop - start, self._width), dtype)}
        self._exchange.expect(masks, "mask", -1)
        self._exchange.expect(parts, "scatter", -1)
        self._expect(0)
        mask_BN = self._exchange.start({}, masks, "mask", -1).wait()[0] if padded else None
        self._recorder.switch("compute", "prepare", -1)
        bias = self._bias(mask_BN, dtype)
        x_BnD = self._exchange.start({}, parts, "scatter", -1).wait()[0]
        self._return(self._run_blocks(x_BnD, mask_BN, bias, {}), rows)

    def run_embedded(self, x_BND: Tensor, mask_BN: Tensor | None, rows: Rows) -> None:
        """Run the rows that a follower embedded itself, return what the head reads."""
        self._expect(0)
        own_BnD = self._run_blocks(self._own(x_BND), mask_BN, self._bias(mask_BN, x_BND.dtype), {})
        self._return(own_BnD, rows)

    def _return(self, x_BnD: Tensor, rows: Rows) -> None:
        selected = _selected(x_BnD, rows, self._partition.bounds(self._rank)[0])
        if selected.shape[1]:
            self._exchange.start({0: selected.contiguous()}, {}, "collect", self._first + len(self._blocks))

    def _own(self, x_BND: Tensor) -> Tensor:
        return x_BND[:, slice(*self._partition.bounds(self._rank))]

    # -- the blocks -----------------------------------------------------------------------------------

    def _bias(self, mask_BN: Tensor | None, dtype: torch.dtype) -> Tensor | None:
        """Additive attention bias: log counts of the means, causality, padding. The same in every block."""
        start, stop = self._partition.bounds(self._rank)
        mask_BN = None if mask_BN is None else mask_BN.cpu()
        mask_Bn = None if mask_BN is None else mask_BN[:, start:stop]
        counts = [segment_counts(mask_BN, *self._segments_of(p)) for p in self._shapes]
        bias = attention_bias(counts, stop - start, mask_Bn, causal=self._causal, dtype=dtype)
        return None if bias is None else bias.to(self._device)

    def _segments_of(self, part: int) -> tuple[int, int, int, bool]:
        """First and last token, segments, and whether the first token stands alone."""
        return *self._partition.bounds(part), self._sent[part], self._plan.first_alone(part)

    def _rotations(self, mask_BN: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        """Positions of own and of received rows, as the family's blocks take them. The same in every block."""
        if self._rotation is None:
            return None, None
        start, stop = self._partition.bounds(self._rank)
        own = self._rotation(segment_positions(None, start, stop, stop - start).to(self._device))
        mask_BN = None if mask_BN is None else mask_BN.cpu()
        received = [segment_positions(mask_BN, *self._segments_of(p)) for p in self._shapes]
        return own, self._rotation(torch.cat(received, dim=1).to(self._device)) if received else None

    def _run_blocks(
        self, x_BnD: Tensor, mask_BN: Tensor | None, bias: Tensor | None, back: dict[int, Expected]
    ) -> Tensor:
        self._recorder.switch("compute", "prepare", -1)
        mask_Bn = None if mask_BN is None else self._own_mask(mask_BN)
        at = self._rotations(mask_BN)
        last = len(self._blocks) - 1
        _, _, segments, first_alone = self._segments_of(self._rank)
        for index, block in enumerate(self._blocks):
            if self._plan.parts == 1:
                x_BnD = self._alone(block, index, x_BnD, bias, at[0])
                continue
            self._recorder.switch("compute", "compress", self._first + index)
            pending = self._send(segment_means(x_BnD, segments, mask_Bn, first_alone), index)
            if index < last:
                self._expect(index + 1)
            else:
                self._exchange.expect(back, "collect", self._first + len(self._blocks))
            x_BnD = self._block(block, index, x_BnD, pending, bias, at)
        return x_BnD

    def _own_mask(self, mask_BN: Tensor) -> Tensor:
        return mask_BN[:, slice(*self._partition.bounds(self._rank))].to(self._device)

    def _send(self, z_BLD: Tensor, index: int) -> Pending:
        """One payload to all peers, by mesh or ring."""
        payload = self._outgoing.encode(z_BLD) if self._peers else z_BLD
        if self._ring:
            return self._exchange.start_ring(payload, self._incoming, "exchange", self._first + index)
        messages = dict.fromkeys(self._peers, payload)
        return self._exchange.start(messages, self._incoming, "exchange", self._first + index)

    def _expect(self, index: int) -> None:
        if not self._ring:
            self._exchange.expect(self._incoming, "exchange", self._first + index)

    def _block(
        self,
        block: Block,
        index: int,
        x_BnD: Tensor,
        pending: Pending,
        bias: Tensor | None,
        at: tuple[Tensor | None, Tensor | None],
    ) -> Tensor:
        arrived = None if self._plan.overlap else pending.wait()
        self._recorder.switch("compute", "project", self._first + index)
        query, key, value = block.project(x_BnD, at[0])
        arrived = pending.wait() if arrived is None else arrived
        self._recorder.switch("compute", "attend", self._first + index)
        if arrived:
            parts = [stream.decode(arrived[p], x_BnD.dtype) for p, stream in self._streams.items()]
            key_z, value_z = block.project_kv(parts[0] if len(parts) == 1 else torch.cat(parts, dim=1), at[1])
            key, value = torch.cat([key, key_z], dim=2), torch.cat([value, value_z], dim=2)
        return _attended(block, x_BnD, query, key, value, bias)

    def _alone(self, block: Block, index: int, x_BnD: Tensor, bias: Tensor | None, at: Tensor | None) -> Tensor:
        """One block where a single part has all tokens."""
        self._recorder.switch("compute", "block", self._first + index)
        return _attended(block, x_BnD, *block.project(x_BnD, at), bias)


def _attended(block: Block, x_BnD: Tensor, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    mixed = F.scaled_dot_product_attention(
        query, key, value, attn_mask=bias, dropout_p=block.dropout, scale=block.scale
    )
    return block.finish(x_BnD, mixed.transpose(1, 2).flatten(2))


def _selected(x_BnD: Tensor, rows: Rows, first: int) -> Tensor:
    """Own rows that the head reads; for a mean, the prefix rows and the sum of the others."""
    if rows.mean_from < 0:
        return x_BnD[:, max(0, rows.start - first) : max(0, rows.stop - first)]
    cut = max(0, rows.mean_from - first)
    if x_BnD.shape[1] <= cut:
        return x_BnD
    return torch.cat([x_BnD[:, :cut], x_BnD[:, cut:].sum(1, keepdim=True)], dim=1)


def _joined(mine_BRD: Tensor, others: list[Tensor], rows: Rows, tokens: int) -> Tensor:
    """Join the rows that the parts returned to those that the head reads, [B, R, D].

    A mean's rows are the prefix rows, in the order of the parts, each part's sum behind them.
    """
    if rows.mean_from < 0:
        return torch.cat([mine_BRD, *others], dim=1) if others else mine_BRD
    prefix: list[Tensor] = []
    total, missing = None, rows.mean_from
    for part_BRD in [mine_BRD, *others]:
        count = min(missing, part_BRD.shape[1])
        prefix.append(part_BRD[:, :count])
        missing -= count
        if part_BRD.shape[1] > count:
            rest = part_BRD[:, count:]
            total = rest if total is None else total + rest
    if total is None:
        raise PlanError(f"{tokens} tokens are all prefix tokens; a pooled head needs others")
    return torch.cat([*prefix, total / (tokens - rows.mean_from)], dim=1)
