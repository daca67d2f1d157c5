"""The partitioned forward pass. It takes an Exchange and knows no torch.distributed.

`distribute(model, plan, exchange)` is called by every rank. The terminal (rank 0) then calls the
result as it would call the model; each other rank calls `follow()` once a batch. The model's own
embedding and head run unchanged: only its stack of blocks is replaced for the time of the call.

Shapes: B batch, N tokens, n own tokens, L rows sent, M rows received, R rows the head reads, D width.
"""

import copy
from collections.abc import Callable
from typing import Any, Protocol

import msgspec
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from prism.adapters import adapter_for
from prism.adapters.base import Block, bind
from prism.errors import ExchangeError, PlanError
from prism.exchange import Exchange, Expected, Pending
from prism.plan import ExecutionPlan, Rows, payload_bytes
from prism.segment_means import attention_bias, segment_counts, segment_means
from prism.trace import Kind
from prism.wire import decode, encode, payload_like
from prism.workload import receivers, returned_rows

FRAME_BYTES = 1024  # room for a BatchHeader of the longest plan; one message, so no length goes first


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


class BatchHeader(msgspec.Struct, frozen=True, kw_only=True):
    """What the terminal tells the others before each batch. Without a plan: stop.

    batch, tokens, rows, padded and dtype are set when the terminal embeds; else each rank knows them.
    """

    number: int
    plan: ExecutionPlan | None = None
    batch: int = 0
    tokens: int = 0
    rows: Rows | None = None
    padded: bool = False
    dtype: str = "float32"


class _Embedded(Exception):
    """Carries a worker's embedded rows out of the model's forward before the head runs."""

    def __init__(self, x_BND: Tensor) -> None:
        self.x_BND = x_BND


def distribute(
    model: nn.Module, plan: ExecutionPlan, exchange: Exchange, recorder: Recorder | None = None
) -> "DistributedTransformer":
    """Wrap a model for the ranks of `exchange`. On one rank, or in local mode, calls go to the model as it is.

    Raises UnsupportedModelError (with the list of what can be distributed) and PlanError before
    anything is sent.
    """
    if plan.ranks > exchange.world_size:
        raise PlanError(
            f"the plan wants {plan.ranks} devices, the group has {exchange.world_size}: start more ranks or lower --devices"
        )
    return DistributedTransformer(model, plan, exchange, recorder or NullRecorder())


class DistributedTransformer(nn.Module):
    """A model whose blocks run on several ranks. Signature and output type are the model's own.

    `plan` may be replaced between batches: the terminal sends it with each.
    """

    def __init__(self, model: nn.Module, plan: ExecutionPlan, exchange: Exchange, recorder: Recorder) -> None:
        super().__init__()
        self.model = model
        self.plan = plan
        self._exchange = exchange
        self._recorder = recorder
        self._adapter = adapter_for(model)
        self._blocks = list(self._adapter.blocks())
        self._number = 0
        plan.uses_ring(0, self._adapter.causal)  # refuses what the family can't do

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The model's own call, on the terminal."""
        if self._exchange.rank != 0:
            raise PlanError(f"rank {self._exchange.rank} is not the terminal (rank 0); call follow() there")
        number, self._number = self._number, self._number + 1
        self._recorder.begin(number)
        try:
            if self.plan.ranks == 1:
                return self._local(args, kwargs)
            return self._terminal(number, args, kwargs)
        finally:
            self._recorder.end()

    def follow(self, *args: Any, **kwargs: Any) -> bool:
        """Take part in one batch as a worker; False when the terminal has stopped. With a plan of
        embed="each" the arguments are the terminal's own; else there are none."""
        frame: Expected = ((FRAME_BYTES,), torch.uint8)
        header = _parse(self._exchange.start({}, {0: frame}, "header", -1).wait()[0])
        if header.plan is None:
            return False
        self._recorder.begin(header.number)
        try:
            pass_ = _Pass(self, header.plan)
            if header.plan.embed == "each":
                self._recorder.switch("compute", "embed", -1)
                pass_.run_worker(*self._embed_only(args, kwargs))
            else:
                pass_.run_scattered(header)
            self._exchange.flush()
        finally:
            self._recorder.end()
        return True

    def stop(self) -> None:
        """Tell the workers, on the terminal, that no batch follows."""
        self._announce(BatchHeader(number=self._number), self._exchange.world_size)
        self._exchange.flush()

    def _announce(self, header: BatchHeader, ranks: int) -> None:
        frame = _frame(header)
        self._exchange.start(dict.fromkeys(range(1, ranks), frame), {}, "header", -1)

    def _local(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if isinstance(self._recorder, NullRecorder):
            return self.model(*args, **kwargs)

        blocks: Any = self.model.get_submodule(self._adapter.stack_path)

        def run(x_BND: Tensor, *rest: Any, **options: Any) -> Tensor:
            for index, block in enumerate(blocks):
                self._recorder.switch("compute", "block", index)
                x_BND = block(x_BND, *rest, **options)
            self._recorder.switch("compute", "head", len(self._blocks))
            return x_BND

        self._recorder.switch("compute", "embed", -1)
        return _with_stack(self.model, self._adapter.stack_path, run)(*args, **kwargs)

    def _terminal(self, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        arguments = bind(self.model, args, kwargs)
        mask_BN = self._adapter.padding(arguments)
        each = self.plan.embed == "each"
        self._recorder.switch("compute", "embed", -1)
        if each:
            self._announce(BatchHeader(number=number, plan=self.plan), self.plan.ranks)

        def run(x_BND: Tensor, *_: Any, **__: Any) -> Tensor:
            rows = self._adapter.rows(arguments, x_BND.shape[1])
            pass_ = _Pass(self, self.plan)
            if not each:
                pass_.scatter(x_BND, mask_BN, rows, number)
            return self._adapter.place(pass_.run_terminal(x_BND, mask_BN, rows), x_BND.shape[1])

        shell = _with_stack(self.model, self._adapter.stack_path, run)
        output = shell(*args, **{**self._adapter.forced, **kwargs})
        self._exchange.flush()
        return output

    def _embed_only(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Tensor, Tensor | None, Rows]:
        arguments = bind(self.model, args, kwargs)

        def run(x_BND: Tensor, *_: Any, **__: Any) -> Tensor:
            raise _Embedded(x_BND)

        try:
            _with_stack(self.model, self._adapter.stack_path, run)(
                *args, **{**self._adapter.forced, **kwargs}
            )
        except _Embedded as done:
            rows = self._adapter.rows(arguments, done.x_BND.shape[1])
            return done.x_BND, self._adapter.padding(arguments), rows
        raise PlanError(f"{type(self.model).__name__} never ran its blocks; pass a whole input")


class _Pass:
    """One batch on one rank."""

    def __init__(self, owner: DistributedTransformer, plan: ExecutionPlan) -> None:
        self._plan, self._exchange, self._recorder = plan, owner._exchange, owner._recorder
        self._blocks: list[Block] = owner._blocks
        self._causal = owner._adapter.causal
        self._rank = self._exchange.rank
        self._width = owner._adapter.spec.width
        self._device = next(owner.model.parameters()).device

    # -- getting the input and returning the answer ---------------------------------------------------

    def scatter(self, x_BND: Tensor, mask_BN: Tensor | None, rows: Rows, number: int) -> None:
        """Terminal: header, mask and rows to each rank, posted at once."""
        partition = self._plan.partition(x_BND.shape[1])
        header = BatchHeader(
            number=number, plan=self._plan, batch=x_BND.shape[0], tokens=x_BND.shape[1], rows=rows,
            padded=mask_BN is not None, dtype=str(x_BND.dtype).removeprefix("torch."),
        )  # fmt: skip
        peers = range(1, self._plan.ranks)
        frame = _frame(header)
        self._exchange.start(dict.fromkeys(peers, frame), {}, "header", -1)
        if mask_BN is not None:
            self._exchange.start(dict.fromkeys(peers, mask_BN), {}, "mask", -1)
        parts = {p: x_BND[:, slice(*partition.bounds(p))].contiguous() for p in peers}
        self._exchange.start(parts, {}, "scatter", -1)

    def run_scattered(self, header: BatchHeader) -> None:
        """Worker: receive the rows, run, return what the head reads."""
        if header.rows is None:
            raise ExchangeError(
                "the batch header names no rows; run the same version of Prism on every device"
            )
        mask_BN = None
        if header.padded:
            expected: Expected = ((header.batch, header.tokens), torch.uint8)
            mask_BN = self._exchange.start({}, {0: expected}, "mask", -1).wait()[0]
        start, stop = self._plan.partition(header.tokens).bounds(self._rank)
        part: Expected = ((header.batch, stop - start, self._width), getattr(torch, header.dtype))
        x_BnD = self._exchange.start({}, {0: part}, "scatter", -1).wait()[0]
        self._return(self._run_blocks(x_BnD, mask_BN, header.tokens), header.rows, header.tokens)

    def run_worker(self, x_BND: Tensor, mask_BN: Tensor | None, rows: Rows) -> None:
        """Worker that embedded its own input."""
        tokens = x_BND.shape[1]
        self._return(self._run_blocks(self._own(x_BND), mask_BN, tokens), rows, tokens)

    def run_terminal(self, x_BND: Tensor, mask_BN: Tensor | None, rows: Rows) -> Tensor:
        """Terminal: run the own part and put the rows that the head reads together: [B, R, D]."""
        tokens = x_BND.shape[1]
        own_BnD = self._run_blocks(self._own(x_BND), mask_BN, tokens)
        partition = self._plan.partition(tokens)
        expected: dict[int, Expected] = {}
        for peer in range(1, self._plan.ranks):
            if count := returned_rows(rows, *partition.bounds(peer)):
                expected[peer] = ((own_BnD.shape[0], count, self._width), own_BnD.dtype)
        arrived = self._exchange.start({}, expected, "collect", len(self._blocks)).wait() if expected else {}
        self._recorder.switch("compute", "head", len(self._blocks))
        mine = _selected(own_BnD, rows, 0)
        return _joined(mine, [arrived[peer] for peer in sorted(arrived)], rows, tokens)

    def _return(self, x_BnD: Tensor, rows: Rows, tokens: int) -> None:
        selected = _selected(x_BnD, rows, self._plan.partition(tokens).bounds(self._rank)[0])
        if selected.shape[1]:
            self._exchange.start({0: selected.contiguous()}, {}, "collect", len(self._blocks))

    def _own(self, x_BND: Tensor) -> Tensor:
        return x_BND[:, slice(*self._plan.partition(x_BND.shape[1]).bounds(self._rank))]

    # -- the blocks -----------------------------------------------------------------------------------

    def _run_blocks(self, x_BnD: Tensor, mask_BN: Tensor | None, tokens: int) -> Tensor:
        self._recorder.switch("compute", "prepare", -1)
        partition, sent, ranks = self._plan.partition(tokens), self._plan.sent_rows(tokens), self._plan.ranks
        peers = receivers(self._rank, ranks, self._causal)
        sources = [p for p in range(ranks) if self._rank in receivers(p, ranks, self._causal)]
        bounds = partition.bounds(self._rank)
        mask_Bn = None if mask_BN is None else mask_BN[:, slice(*bounds)]
        counts = [segment_counts(_cpu(mask_BN), *partition.bounds(p), sent[p]) for p in sources]
        bias = attention_bias(counts, x_BnD.shape[1], _cpu(mask_Bn), causal=self._causal, dtype=x_BnD.dtype)
        bias = None if bias is None else bias.to(self._device)
        mask_Bn = None if mask_Bn is None else mask_Bn.to(self._device)
        shapes = {p: (x_BnD.shape[0], sent[p], self._width) for p in sources}
        size = payload_bytes(self._plan.wire, x_BnD.shape[0] * sent[0] * self._width)
        send, expect = self._exchanger(peers, shapes, self._plan.uses_ring(size, self._causal))
        expect(0)
        for index, block in enumerate(self._blocks):
            self._recorder.switch("compute", "compress", index)
            pending = send(segment_means(x_BnD, sent[self._rank], mask_Bn), index)
            if index + 1 < len(self._blocks):
                expect(index + 1)
            x_BnD = self._block(block, index, x_BnD, pending, shapes, bias)
        return x_BnD

    def _exchanger(
        self, peers: tuple[int, ...], shapes: dict[int, tuple[int, int, int]], ring: bool
    ) -> tuple[Callable[[Tensor, int], Pending], Callable[[int], None]]:
        """How a block's rows go out, one payload to all peers by mesh or ring, and how a block's are expected."""
        incoming = {p: payload_like(self._plan.wire, shape) for p, shape in shapes.items()}

        def send(z_BLD: Tensor, index: int) -> Pending:
            payload = encode(self._plan.wire, z_BLD) if peers else z_BLD
            if ring:
                return self._exchange.start_ring(payload, incoming, "exchange", index)
            return self._exchange.start(dict.fromkeys(peers, payload), incoming, "exchange", index)

        def expect(index: int) -> None:
            if not ring:
                self._exchange.expect(incoming, "exchange", index)

        return send, expect

    def _block(
        self,
        block: Block,
        index: int,
        x_BnD: Tensor,
        pending: Pending,
        shapes: dict[int, tuple[int, int, int]],
        bias: Tensor | None,
    ) -> Tensor:
        arrived = None if self._plan.overlap else pending.wait()
        self._recorder.switch("compute", "project", index)
        query, key, value = block.project(x_BnD)
        arrived = pending.wait() if arrived is None else arrived
        self._recorder.switch("compute", "attend", index)
        if arrived:
            parts = [decode(self._plan.wire, arrived[p], shape, x_BnD.dtype) for p, shape in shapes.items()]
            key_z, value_z = block.project_kv(parts[0] if len(parts) == 1 else torch.cat(parts, dim=1))
            key, value = torch.cat([key, key_z], dim=2), torch.cat([value, value_z], dim=2)
        mixed = F.scaled_dot_product_attention(
            query, key, value, attn_mask=bias, dropout_p=block.dropout, scale=block.scale
        )
        return block.finish(x_BnD, mixed.transpose(1, 2).flatten(2))


def _selected(x_BnD: Tensor, rows: Rows, first: int) -> Tensor:
    """The own rows that the head reads; for a mean, the prefix rows and the sum of the others."""
    if rows.mean_from < 0:
        return x_BnD[:, max(0, rows.start - first) : max(0, rows.stop - first)]
    cut = max(0, rows.mean_from - first)
    if x_BnD.shape[1] <= cut:
        return x_BnD
    return torch.cat([x_BnD[:, :cut], x_BnD[:, cut:].sum(1, keepdim=True)], dim=1)


def _joined(mine_BRD: Tensor, others: list[Tensor], rows: Rows, tokens: int) -> Tensor:
    """What the head reads out of what each part returned. A mean's rows are the prefix rows, in the
    order of the parts, each part's sum behind them."""
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


def _with_stack(model: nn.Module, path: str, run: Callable[..., Tensor]) -> nn.Module:
    """A copy of the model that shares every parameter, with the modules at `path` replaced by one that
    calls `run`. Only the modules on the way to it are new, so a call costs no weights."""
    name, _, rest = path.partition(".")
    shell = copy.copy(model)
    shell._modules = dict(model._modules)
    child = model._modules[name]
    if not rest:
        shell._modules[name] = nn.Sequential(_Stack(run))
    elif child is not None:
        shell._modules[name] = _with_stack(child, rest, run)
    return shell


class _Stack(nn.Module):
    def __init__(self, run: Callable[..., Tensor]) -> None:
        super().__init__()
        self._run = run

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self._run(*args, **kwargs)


def _cpu(mask: Tensor | None) -> Tensor | None:
    return None if mask is None else mask.cpu()


def _frame(header: BatchHeader) -> Tensor:
    packed = msgspec.msgpack.encode(header)
    if len(packed) > FRAME_BYTES - 2:
        raise PlanError(
            f"the plan takes {len(packed)} bytes, the limit is {FRAME_BYTES - 2}; use fewer devices"
        )
    raw = bytearray(len(packed).to_bytes(2, "little") + packed)
    return F.pad(torch.frombuffer(raw, dtype=torch.uint8), (0, FRAME_BYTES - len(raw)))


def _parse(frame: Tensor) -> BatchHeader:
    raw = frame.cpu().numpy().tobytes()
    size = int.from_bytes(raw[:2], "little")
    try:
        return msgspec.msgpack.decode(raw[2 : 2 + size], type=BatchHeader)
    except msgspec.DecodeError as error:
        raise ExchangeError(
            f"a batch header can't be read ({error}); run the same version on every device"
        ) from None
