"""Run the blocks of a model on several ranks, over any Exchange: no torch.distributed here.

Every rank calls `distribute(model, plan, exchange)`. The leader (rank 0) then calls the result as it would call the
model; every follower calls `follow()` once a batch. The model's own embedding and head run unchanged: only its stack
of blocks is replaced for the time of the call.

Shapes: B batch, N tokens, D width.
"""

import contextlib
from typing import Any

import torch
from torch import Tensor, nn

from prism.errors import ExchangeError, PeerLostError, PlanError
from prism.nn.answers import Answer, Answers
from prism.nn.exchange import Exchange, Expected, Subgroup
from prism.nn.families import adapter_for
from prism.nn.families.base import Adapter, bind
from prism.nn.families.shell import with_replaced
from prism.nn.forward import Pass
from prism.nn.frame import FRAME, BatchHeader, decode, encode
from prism.nn.recorder import NullRecorder, Recorder
from prism.nn.replicas import Replicas, share_of
from prism.nn.stages import Stages
from prism.partition import Rows
from prism.plan import ExecutionPlan


class _Embedded(Exception):  # noqa: N818 (no error: it ends a forward pass early)
    """Carries a follower's embedded rows [B, N, D] out of the model's forward before the head runs."""

    def __init__(self, x_BND: Tensor) -> None:
        self.x_BND = x_BND


def distribute(
    model: nn.Module,
    plan: ExecutionPlan,
    exchange: Exchange,
    recorder: Recorder | None = None,
    epoch: int = 0,
    adapter: Adapter | None = None,
) -> "DistributedTransformer":
    """Wrap a model for the ranks of `exchange`. On one rank, or in local mode, calls go to the model as it is.

    epoch: of the group; ranks of another one are refused. adapter: the model's, where the caller has it already.
    Raises, before anything is sent, PlanError and UnsupportedModelError with the list of what can be distributed.
    """
    if plan.ranks > exchange.world_size:
        size = exchange.world_size
        raise PlanError(f"the plan wants {plan.ranks} devices, the group has {size}: start more or lower --devices")
    return DistributedTransformer(
        model, plan, exchange, recorder or NullRecorder(), epoch, adapter or adapter_for(model)
    )


class DistributedTransformer(nn.Module):
    """A model whose blocks run on several ranks. Signature and output type are the model's own.

    `plan` may be replaced between batches: the leader sends it with each.
    """

    def __init__(
        self,
        model: nn.Module,
        plan: ExecutionPlan,
        exchange: Exchange,
        recorder: Recorder,
        epoch: int,
        adapter: Adapter,
    ) -> None:
        super().__init__()
        self.model = model
        self.plan = plan
        self._exchange = exchange
        self._recorder = recorder
        self._epoch = epoch
        self._adapter = adapter
        self._blocks = list(self._adapter.blocks())
        self._number = 0
        # a stage's model has parameters of other stages that are nowhere
        self._device = next(p.device for p in model.parameters() if p.device.type != "meta")
        answers = Answers(exchange, recorder, self._device, len(self._blocks))
        self._replicas = Replicas(exchange, recorder, self._device, answers)
        self._stages = Stages(adapter, self._blocks, exchange, recorder, self._device, answers)
        self._groups: dict[tuple[int, int], DistributedTransformer] = {}
        plan.uses_ring(0, self._adapter.causal)  # refuses what the family can't do

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Call the model, on the leader. Raises PlanError elsewhere, PeerLostError where a follower is lost."""
        self._check_leads()
        number, self._number = self._number, self._number + 1
        self._recorder.begin(number)
        try:
            output = self.begin(self.plan, number, args, kwargs).wait()
            self._exchange.flush()
            return output
        finally:
            self._recorder.end()

    def start(self, *args: Any, **kwargs: Any) -> Answer:
        """Begin a batch on the leader and do the leader's own part; further ones may be begun before it is answered.

        So replicas and stages work on different batches at the same time. Nothing is recorded. Raises as calling does.
        """
        self._check_leads()
        number, self._number = self._number, self._number + 1
        return self.begin(self.plan, number, args, kwargs, turn=number)

    def follow(self, *args: Any, **kwargs: Any) -> bool:
        """Take part in one batch as a follower; False when the leader has stopped.

        With a plan of embed="each" the arguments are the leader's own; else there are none. Raises ExchangeError for
        a batch of another group or version, PeerLostError where the leader is lost.
        """
        header = self._header()
        if header.epoch != self._epoch:
            raise ExchangeError(f"a batch of epoch {header.epoch} came to a group of epoch {self._epoch}")
        if header.probe:
            self._exchange.start({0: torch.zeros(header.probe, dtype=torch.uint8)}, {}, "probe", -1)
            return self._await_next()
        if header.plan is None:
            return False
        self._recorder.begin(header.number)
        try:
            self._take_part(header, header.plan, args, kwargs)
            return self._await_next()
        finally:
            self._recorder.end()

    def _header(self) -> BatchHeader:
        header: BatchHeader = decode(self._exchange.start({}, {0: FRAME}, "header", -1).wait()[0], BatchHeader)
        return header

    def _await_next(self) -> bool:
        self._exchange.flush()
        with contextlib.suppress(PeerLostError):  # the wait for the next batch will raise it
            self._exchange.expect({0: FRAME}, "header", -1)  # before the leader has it
        return True

    def _take_part(
        self, header: BatchHeader, plan: ExecutionPlan, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        if plan.replicas > 1:
            self._serve_replica(header, plan, args, kwargs)
        elif plan.stages > 1:
            self._stages.join(header, plan)
        elif plan.embed == "each":
            self._recorder.switch("compute", "embed", -1)
            x_BND, mask_BN, rows = self._embedded(args, kwargs)
            self._pass(plan, *x_BND.shape[:2]).run_embedded(x_BND, mask_BN, rows)
        elif header.rows is None:
            raise ExchangeError("the batch header names no rows; run the same version of Prism on every device")
        else:
            pass_ = self._pass(plan, header.batch, header.tokens)
            pass_.run_scattered(header.padded, getattr(torch, header.dtype), header.rows)

    def _serve_replica(
        self, header: BatchHeader, plan: ExecutionPlan, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> None:
        """Lead or follow in this rank's replica. One without samples has nothing to do."""
        if not header.batch:
            return
        place, arguments = plan.place(self._exchange.rank), bind(self.model, args, kwargs) if args or kwargs else {}
        if place == (place.replica, 0, 0):
            self._replicas.join(
                header, plan, arguments, lambda own: self._run_replica(plan, place.replica, header.number, own)
            )
            return
        own = share_of(plan, arguments, self._exchange.rank, header.turn) if arguments else {}
        self._group(plan, place.replica).join(**own)

    def join(self, *args: Any, **kwargs: Any) -> None:
        """Take part in one batch as a follower, as a piece of a larger batch that the caller records.

        Arguments as for `follow`. Raises ExchangeError, PeerLostError.
        """
        header = self._header()
        if header.plan is None or header.epoch != self._epoch:
            raise ExchangeError("a replica's batch has no plan; run the same version of Prism on every device")
        self._take_part(header, header.plan, args, kwargs)

    def _check_leads(self) -> None:
        if self._exchange.rank != 0:
            raise PlanError(f"rank {self._exchange.rank} is not the leader (rank 0); call follow() there")

    def begin(
        self, plan: ExecutionPlan, number: int, args: tuple[Any, ...], kwargs: dict[str, Any], turn: int = 0
    ) -> Answer:
        """Begin a batch on the leader in a plan's way, without recording it. Raises as calling does.

        turn: as in BatchHeader.
        """
        if plan.replicas == plan.stages == 1:
            output = self._local(args, kwargs) if plan.ranks == 1 else self._lead(plan, number, args, kwargs)
            return Answer(lambda: output)
        arguments = {**self._adapter.forced, **bind(self.model, args, kwargs)}
        self._adapter.padding(arguments)  # refuses arguments that no rank may be given
        header = BatchHeader(number=number, epoch=self._epoch, turn=turn)
        if plan.replicas == 1:
            return self._stages.lead(header, plan, arguments, lambda own: self._embedded((), own)[0])
        return self._replicas.lead(
            header, plan, arguments, self._adapter.pixels, lambda own: self._run_replica(plan, 0, number, own)
        )

    def _run_replica(self, plan: ExecutionPlan, replica: int, number: int, arguments: dict[str, Any]) -> Any:
        """Run one replica's samples, as its first rank."""
        inner = plan.replica(replica)
        if inner.ranks == 1:
            return self._local((), arguments)
        return self._group(plan, replica).begin(inner, number, (), arguments).wait()

    def _group(self, plan: ExecutionPlan, replica: int) -> "DistributedTransformer":
        """The model on the ranks of one replica alone."""
        inner = plan.replica(replica)
        place = replica * inner.ranks, inner.ranks
        if place not in self._groups:
            exchange = Subgroup(self._exchange, *place)
            self._groups[place] = DistributedTransformer(
                self.model, inner, exchange, self._recorder, self._epoch, self._adapter
            )
        return self._groups[place]

    def _pass(self, plan: ExecutionPlan, batch: int, tokens: int) -> Pass:
        return Pass(self._adapter, self._blocks, plan, self._exchange, self._recorder, self._device, batch, tokens)

    def probe(self, size: int) -> None:
        """On the leader, have rank 1 send `size` bytes: the time that it takes measures the link."""
        self._announce(BatchHeader(number=self._number, epoch=self._epoch, probe=size), 2)
        self._exchange.start({}, {1: ((size,), torch.uint8)}, "probe", -1).wait()
        self._exchange.flush()

    def keep_alive(self) -> None:
        """On the leader, exchange a byte with every follower, so that nobody's time-out expires."""
        ranks = self._exchange.world_size
        self._announce(BatchHeader(number=self._number, epoch=self._epoch, probe=1), ranks)
        expected: Expected = ((1,), torch.uint8)
        self._exchange.start({}, dict.fromkeys(range(1, ranks), expected), "probe", -1).wait()
        self._exchange.flush()

    def stop(self) -> None:
        """On the leader, end every follower's `follow`."""
        self._announce(BatchHeader(number=self._number, epoch=self._epoch), self._exchange.world_size)
        self._exchange.flush()

    def _announce(self, header: BatchHeader, ranks: int) -> None:
        self._exchange.start(dict.fromkeys(range(1, ranks), encode(header)), {}, "header", -1)

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
        return with_replaced(self.model, {self._adapter.stack_path: run})(*args, **kwargs)

    def _lead(self, plan: ExecutionPlan, number: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        arguments = bind(self.model, args, kwargs)
        mask_BN = self._adapter.padding(arguments)
        each = plan.embed == "each"
        self._recorder.switch("compute", "embed", -1)
        if each:
            self._announce(BatchHeader(number=number, epoch=self._epoch, plan=plan), plan.ranks)

        def run(x_BND: Tensor, *_: Any, **__: Any) -> Tensor:
            rows = self._adapter.rows(arguments, x_BND.shape[1])
            pass_ = self._pass(plan, *x_BND.shape[:2])
            read = pass_.run_leader(x_BND, mask_BN, rows, number, self._epoch, scatter=not each)
            return self._adapter.place(read, x_BND.shape[1])

        shell = with_replaced(self.model, {self._adapter.stack_path: run})
        return shell(*args, **{**self._adapter.forced, **kwargs})

    def _embedded(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Tensor | None, Rows]:
        arguments = bind(self.model, args, kwargs)

        def run(x_BND: Tensor, *_: Any, **__: Any) -> Tensor:
            raise _Embedded(x_BND)

        try:
            with_replaced(self.model, {self._adapter.stack_path: run})(*args, **{**self._adapter.forced, **kwargs})
        except _Embedded as done:
            rows = self._adapter.rows(arguments, done.x_BND.shape[1])
            return done.x_BND, self._adapter.padding(arguments), rows
        raise PlanError(f"{type(self.model).__name__} never ran its blocks; pass a whole input")
