"""What one rank does, from joining to the last batch. The terminal (rank 0) decides, measures and reports."""

import contextlib
import os
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import torch
import torch.distributed as dist

from hw import comm, host
from hw.data import Inputs, Sample, load_images, load_text
from hw.job import Checked, Event, Outcome, Progress, RankJob, RunConfig
from hw.recorder import SpanRecorder
from hw.score import Tally, score
from hw.shaper import SharedMedium
from hw.staging import CudaStager, HostStager
from prism.adapters import adapter_for
from prism.config import convert
from prism.errors import ConfigError, ExchangeError, InputError, PeerLostError, PrismError
from prism.exchange import Exchange, InProcessExchange
from prism.metrics import Summary, summarise
from prism.model import DistributedTransformer, distribute
from prism.spec import ModelSpec
from prism.trace import Batch, Clock, Record, Span, Trace, TraceHeader, TraceWriter, aligned, now_text
from prism.zoo import Loaded, load_model

CLOCK_EVERY_S = 10.0  # two crystals drift apart by some 20 us a second


def run_rank(job: RankJob, emit: Callable[[Event], None]) -> None:
    """Run one rank to its end. Raises PrismError with what a user should read."""
    if job.cores:
        os.sched_setaffinity(0, job.cores)
    torch.set_grad_enabled(False)
    if job.world_size == 1:
        rank = _Rank(_config(job, None), job, emit)
        rank.run(InProcessExchange.group(1)[0])
        return
    store = comm.open_store(job.leader, job.port, job.rank == 0 and job.serve_store, job.timeout_s)
    try:
        rank = _join(store, job, emit)
    except dist.DistError as error:
        raise PeerLostError(
            f"the terminal was lost while rank {job.rank} joined ({error}); see what it says"
        ) from None
    with comm.process_group(
        store, job.rank, job.world_size, interface=job.interface, timeout_s=job.timeout_s
    ):
        rank.run(None)


def _join(store: dist.Store, job: RankJob, emit: Callable[[Event], None]) -> "_Rank":
    """Load what the terminal asks for, and wait until every rank has."""
    try:
        rank = _Rank(_config(job, store), job, emit)
    except PrismError as error:
        store.set(f"failed/{job.rank}", str(error))
        raise
    store.set(f"loaded/{job.rank}", rank.fingerprint)
    comm.await_ranks(store, range(job.world_size), "loaded", job.timeout_s)
    _check_same_model(store, job, rank.fingerprint)
    return rank


def _config(job: RankJob, store: dist.Store | None) -> RunConfig:
    """The terminal has the configuration and publishes it; the others read it from the store."""
    if job.rank == 0 and job.config is not None:
        if store is not None:
            store.set("config", msgspec.json.encode(job.config).decode())
        return job.config
    if store is None:
        raise ConfigError("a single rank needs a configuration; start it with prism-hw run")
    published = comm.await_key(store, "config", job.timeout_s)
    return convert(msgspec.json.decode(published), RunConfig, "the terminal's configuration")


def _check_same_model(store: dist.Store, job: RankJob, fingerprint: str) -> None:
    theirs = store.get("loaded/0").decode()
    if theirs != fingerprint:
        raise ExchangeError(
            f"rank {job.rank} holds other weights than the terminal (hash {fingerprint} against {theirs}); "
            f"copy the terminal's model folder here"
        )


def fingerprint(model: torch.nn.Module) -> str:
    """A hash of every parameter's name, shape and values."""
    import hashlib

    digest = hashlib.blake2b(digest_size=8)
    for name, parameter in model.state_dict().items():
        digest.update(f"{name}{tuple(parameter.shape)}{parameter.dtype}".encode())
        digest.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


class _Rank:
    """A loaded rank: model, inputs, recorder."""

    def __init__(self, config: RunConfig, job: RankJob, emit: Callable[[Event], None]) -> None:
        self._config, self._job, self._emit = config, job, emit
        torch.set_num_threads(config.threads)
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._loaded: Loaded = load_model(config.model, config.weights, config.seed, str(self._device))
        self._spec: ModelSpec = adapter_for(self._loaded.model).spec
        self._inputs: Inputs | None = None
        if job.rank == 0 or config.embed == "each":
            self._inputs = _load_inputs(config, self._loaded)
        self._tokens = self._check_plan()
        if job.rank == 0:
            emit(Checked())
        self.fingerprint = fingerprint(self._loaded.model) if job.world_size > 1 else ""
        cuda = self._device.type == "cuda"
        self._recorder = SpanRecorder(job.rank, torch.cuda.synchronize if cuda else lambda: None)
        self._stager = CudaStager(self._device, self._recorder) if cuda else HostStager()

    def _check_plan(self) -> int:
        """Tokens of the first input; 0 on a rank that has none. Refuses a plan that doesn't fit them."""
        if self._inputs is None:
            return 0
        first = self._inputs.collate(self._inputs.batch(0, 1, wrap=True))
        tokens = first["input_ids"].shape[1] if "input_ids" in first else self._spec.tokens
        self._config.plan().partition(tokens)
        return int(tokens)

    def run(self, solo: Exchange | None) -> None:
        exchange = solo or comm.GlooExchange(self._stager, self._recorder, self._medium())
        model = distribute(self._loaded.model, self._config.plan(), exchange, self._recorder)
        self._clock = _Clocks(self._job)
        if self._job.rank == 0:
            self._terminal(model)
        else:
            self._worker(model)

    def _medium(self) -> SharedMedium | None:
        link = self._config.link_spec()
        if link.rate_bps is None:
            return None
        if not self._job.medium:
            raise ConfigError(
                f"link {link}: the shaper serves the ranks of one machine; shape at the access point instead"
            )
        return SharedMedium(
            Path(self._job.medium), self._job.rank, self._job.world_size, link.rate_bps, link.latency_s
        )

    # -- batches --------------------------------------------------------------------------------------

    def _schedule(self) -> Iterator[tuple[int, bool, tuple[Sample, ...]]]:
        """Number, whether it is a warm-up, and the samples of each batch. The same on every rank."""
        if self._inputs is None:
            raise InputError("this rank has no inputs; use embed terminal")
        config = self._config
        for index in range(config.warmups):
            yield index, True, self._inputs.batch(index, config.batch, wrap=True)
        for index in range(self._measured()):
            yield (
                config.warmups + index,
                False,
                self._inputs.batch(index, config.batch, wrap=config.batches > 0),
            )

    def _measured(self) -> int:
        count = len(self._inputs.samples) if self._inputs else 0
        return self._config.batches or -(-count // self._config.batch)

    def _call(self, samples: tuple[Sample, ...]) -> dict[str, Any]:
        if self._inputs is None:
            return {}
        return {name: tensor.to(self._device) for name, tensor in self._inputs.collate(samples).items()}

    def _worker(self, model: DistributedTransformer) -> None:
        schedule = self._schedule() if self._inputs else None
        while model.follow(**(self._call(next(schedule, (0, False, ()))[2]) if schedule else {})):
            spans, _, _ = self._recorder.take()
            comm.send_bytes(msgspec.msgpack.encode(spans), 0)
            self._clock.refresh()
        comm.send_bytes(str(_peak_memory()).encode(), 0)

    def _terminal(self, model: DistributedTransformer) -> None:
        if self._inputs is None:
            raise InputError("the terminal has no inputs; pass --images or --text")
        config, tally = self._config, Tally()
        total, scored = config.warmups + self._measured(), set()
        header = self._header(self._tokens)
        records: list[Record] = []
        with _trace_file(config.trace) as file:
            writer = TraceWriter(file, header) if file else None

            def keep(new: list[Record]) -> None:
                records.extend(new)
                if writer:
                    writer.write(new)

            keep(list(self._clock.records))
            for number, warmup, samples in self._schedule():
                call = self._call(samples)
                output = self._measure(model, call, len(samples), warmup, keep)
                key = samples[0].name
                if not warmup and key not in scored:
                    scored.add(key)
                    reference = self._loaded.model(**call, **adapter_for(self._loaded.model).forced)
                    score(tally, output, reference, _to_cpu(call), samples, self._loaded.labels)
                self._emit(Progress(done=number + 1, total=total))
        memory = self._finish(model)
        whole = [record for record in records if not isinstance(record, Batch) or record.size == config.batch]
        summary = summarise(Trace(header=header, records=tuple(whole)))
        self._emit(self._outcome(header, summary, tally, memory))

    def _measure(
        self,
        model: DistributedTransformer,
        call: dict[str, Any],
        size: int,
        warmup: bool,
        keep: Callable[[list[Record]], None],
    ) -> Any:
        """One batch: run it, gather every rank's spans, write them. A batch that fails is written too."""
        try:
            output = model(**call)
        except PrismError as error:
            spans, start, end = self._recorder.take()
            number = spans[0].batch if spans else 0
            failed = Batch(
                batch=number, size=size, start_ns=start, end_ns=end, warmup=warmup, failed=str(error)
            )
            keep([*aligned(spans, {}), failed])
            raise
        spans, start, end = self._recorder.take()
        for peer in range(1, model.plan.ranks):
            spans = spans + msgspec.msgpack.decode(comm.receive_bytes(peer), type=list[Span])
        done = Batch(batch=spans[0].batch, size=size, start_ns=start, end_ns=end, warmup=warmup)
        keep([*aligned(spans, self._clock.offsets), done, *self._clock.refresh()])
        return output

    def _finish(self, model: DistributedTransformer) -> dict[int, int]:
        memory = {0: _peak_memory()}
        if self._job.world_size > 1:
            model.stop()
            memory |= {peer: int(comm.receive_bytes(peer)) for peer in range(1, self._job.world_size)}
        return memory

    # -- what is reported -----------------------------------------------------------------------------

    def _header(self, tokens: int) -> TraceHeader:
        config = self._config
        return TraceHeader(
            source="measured", created=now_text(), model=config.model, weights=self._loaded.weights,
            plan=config.plan(), batch=config.batch, tokens=tokens, link=str(config.link_spec()), seed=config.seed,
            command=self._job.command, oversubscribed=self._job.oversubscribed,
            config=msgspec.to_builtins(config), host=host.describe(config.threads, _device_name(self._device)),
        )  # fmt: skip

    def _outcome(
        self, header: TraceHeader, summary: Summary, tally: Tally, memory: dict[int, int]
    ) -> Outcome:
        plan = header.plan
        return Outcome(
            model=header.model, weights=header.weights, inputs=self._inputs.note if self._inputs else "",
            mode=plan.mode.value, devices=plan.ranks, segments=plan.segments, wire=plan.wire, embed=plan.embed,
            collective=self._collective(header.tokens), overlap=plan.overlap, batch=header.batch,
            batches=summary.batches, tokens=header.tokens, link=header.link, oversubscribed=header.oversubscribed,
            latency_ms=msgspec.to_builtins(summary.latency_ms), split_ms=summary.split_ms,
            split_per_rank_ms=summary.split_per_rank_ms, bytes_per_exchange=summary.bytes_per_exchange,
            effective_bandwidth_mbps=summary.effective_bandwidth_mbps, energy_j=summary.energy_j,
            agreement=tally.agreement, agreement_kind=tally.kind, top1=tally.top1, samples=tally.samples,
            max_rel_error=tally.max_rel_error, peak_memory_bytes=memory, predictions=tuple(tally.predictions),
            seed=header.seed, config=header.config, host=header.host, command=header.command,
        )  # fmt: skip

    def _collective(self, tokens: int) -> str:
        from prism.plan import payload_bytes

        plan = self._config.plan()
        size = payload_bytes(plan.wire, self._config.batch * plan.sent_rows(tokens)[0] * self._spec.width)
        return "none" if plan.ranks == 1 else "ring" if plan.uses_ring(size, self._spec.causal) else "mesh"


class _Clocks:
    """Offsets of the workers' clocks, measured at the start and again every few seconds between batches."""

    def __init__(self, job: RankJob) -> None:
        self._job = job
        self.offsets: dict[int, int] = {}
        self.records: list[Clock] = []
        self._next = 0.0
        self.refresh()

    def refresh(self) -> list[Record]:
        """All ranks call it after the same batch; the terminal says whether the clocks are due."""
        if self._job.world_size == 1:
            return []
        if self._job.rank:
            if comm.receive_bytes(0) == b"clock":
                comm.estimate_offset(self._job.rank, self._job.rank)
            return []
        due = time.monotonic() >= self._next
        new: list[Record] = []
        for peer in range(1, self._job.world_size):
            comm.send_bytes(b"clock" if due else b"", peer)
            if due:
                offset, error = comm.estimate_offset(0, peer)
                self.offsets[peer] = offset
                clock = Clock(rank=peer, at_ns=time.monotonic_ns(), offset_ns=offset, error_ns=error)
                self.records.append(clock)
                new.append(clock)
        if due:
            self._next = time.monotonic() + CLOCK_EVERY_S
        return new


def _load_inputs(config: RunConfig, loaded: Loaded) -> Inputs:
    if loaded.kind == "image":
        if config.text:
            raise InputError(f"{config.model} takes images, and --text is given; pass --images")
        if config.tokens:
            raise InputError(f"tokens {config.tokens}: an image model has its own number; leave --tokens out")
        # the bundled samples suit any image model once they are resized; the user's own are resized when asked
        return load_images(Path(config.images) if config.images else None, loaded, config.resize)
    if config.images:
        raise InputError(f"{config.model} takes text, and --images is given; pass --text")
    return load_text(Path(config.text) if config.text else None, loaded, config.tokens)


@contextlib.contextmanager
def _trace_file(path: str | None) -> Iterator[Any]:
    if path is None:
        yield None
        return
    try:
        file = open(path, "wb")  # noqa: SIM115 - closed below; only opening it may fail as bad input
    except OSError as error:
        raise InputError(f"trace {path} can't be written ({error}); choose another --trace") from None
    with file:
        yield file


def _to_cpu(call: dict[str, Any]) -> dict[str, Any]:
    return {name: tensor.cpu() for name, tensor in call.items()}


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def _peak_memory() -> int:
    """Peak resident bytes of this process (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
