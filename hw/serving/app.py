"""A terminal or a member put together: what `prism-hw serve` and `prism-hw join` run, and what experiments use."""

import contextlib
import hashlib
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import msgspec
import torch
from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from torch import nn

from hw.comm import group as comm
from hw.comm.recorder import SpanRecorder
from hw.comm.staging import CudaStager, HostStager
from hw.machine import facts as host
from hw.run.workpiece import fingerprint
from hw.serving.batching import Batcher
from hw.serving.channel import load_key
from hw.serving.follower import follow
from hw.serving.http import Endpoint, Server, inputs_of
from hw.serving.leader import Meeting, Members
from hw.serving.runtime import AdaptiveRuntime, DecisionWriter
from prism.config import NonNegativeNumber, Port, PositiveNumber
from prism.decide.accuracy import AccuracyTable, load_accuracy
from prism.decide.log import LogHeader
from prism.decide.policy import AnyPolicy, PrismPolicy
from prism.decide.table import Objective, Table, TableRow, table_of
from prism.errors import ConfigError
from prism.nn.families import adapter_for
from prism.nn.zoo import Loaded, load_model
from prism.perfmap import load_map
from prism.trace import now_text


class ServeConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`prism-hw serve` as one file. accuracy: what plans cost in answers, for a floor in the objective. key_file: without
    one nobody can join, and everything is local."""

    model: str = "fashion-vit"
    weights: str | None = None
    seed: int = 0
    map: str = ""
    accuracy: str = ""
    key_file: str = ""
    join_address: str = "127.0.0.1"
    join_port: Port | None = None
    devices: Annotated[int, msgspec.Meta(ge=1, le=64)] = 2
    http_address: str = "127.0.0.1"
    http_port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 8000
    token_file: str = ""
    max_batch: Annotated[int, msgspec.Meta(ge=1)] = 8
    max_wait_s: NonNegativeNumber = 0.0
    max_queue: Annotated[int, msgspec.Meta(ge=1)] = 256
    deadline_s: PositiveNumber | None = None
    timeout_s: PositiveNumber = 2.0
    threads: Annotated[int, msgspec.Meta(ge=1)] = 1
    policy: AnyPolicy = msgspec.field(default_factory=PrismPolicy)
    objective: Objective = Objective()
    learn: bool = True
    decisions: str = ""


class JoinConfig(msgspec.Struct, frozen=True, kw_only=True):
    """`prism-hw join`: where the terminal is, and what this device holds."""

    address: str
    port: int
    name: str
    key_file: str
    model: str = "fashion-vit"
    weights: str | None = None
    seed: int = 0
    threads: int = 1
    timeout_s: float = 2.0


class _Device(NamedTuple):
    loaded: Loaded
    fingerprint: str
    recorder: SpanRecorder
    exchange: Callable[[], comm.GlooExchange]


class Terminal(NamedTuple):
    """What serves: submit to `batcher`, or over HTTP at `server.port`."""

    model: nn.Module
    members: Members | None
    runtime: AdaptiveRuntime
    batcher: Batcher
    server: Server


class _Alone:
    """Membership of a terminal that nobody can join."""

    def __init__(self) -> None:
        self.using = threading.Lock()

    def group(self) -> None:
        return None

    def broken(self, epoch: int, why: str) -> None:
        """There is no group that could break."""


def _check_answers(known: Sequence[AccuracyTable], table: Table, objective: Objective, weights: str) -> None:
    """Raises ConfigError for figures of other weights, and for a floor that nothing known can keep."""
    for each in known:
        if each.weights != weights:
            raise ConfigError(
                f"the accuracy table is of weights {each.weights}, these are {weights}; run prism-hw evaluate with them"
            )
    if objective.least_accuracy is not None and all(row.accuracy is None for row in table.rows):
        raise ConfigError(
            f"least_accuracy {objective.least_accuracy:g}: no plan's accuracy is known (of a perplexity none is); "
            f"pass --accuracy, or use least_agreement"
        )


@contextlib.contextmanager
def terminal(config: ServeConfig, command: str) -> Iterator[Terminal]:
    """Serve as long as the context lasts. Raises PrismError for what a user can mend."""
    if not config.map:
        raise ConfigError("no map: a terminal decides by measured cells; make one with prism-hw profile and map")
    token = _token(config.token_file)
    endpoint = Endpoint(address=config.http_address, port=config.http_port, token=token)
    endpoint.check()
    known = [load_accuracy(Path(config.accuracy))] if config.accuracy else []
    table = table_of([load_map(Path(config.map))], config.model, known)
    device = _device(config.model, config.weights, config.seed, config.threads)
    _check_answers(known, table, config.objective, device.fingerprint)
    with contextlib.ExitStack() as stack:
        members = None
        if config.key_file:
            meeting = Meeting(
                address=config.join_address,
                port=config.join_port or 0,
                devices=config.devices,
                interface=comm.interface_to(config.join_address),
                timeout_s=config.timeout_s,
            )
            members = stack.enter_context(
                Members(meeting, load_key(Path(config.key_file)), config.model, device.fingerprint, device.exchange)
            )
        log = _log(config, table.rows, command)
        if log is not None:
            stack.callback(log.close)
        model: nn.Module = device.loaded.model
        runtime = stack.enter_context(
            AdaptiveRuntime(
                model,
                members or _Alone(),
                device.recorder,
                table,
                config.policy,
                config.objective,
                timeout_s=config.timeout_s,
                learn=config.learn,
                log=log,
            )
        )
        batcher = stack.enter_context(
            Batcher(
                runtime,
                largest=config.max_batch,
                patience_s=config.max_wait_s,
                queue=config.max_queue,
                deadline_s=config.deadline_s,
            )
        )
        registry = CollectorRegistry()
        registry.register(_Metrics(runtime, batcher, members))
        inputs = inputs_of(device.loaded.kind, _width(device.loaded))
        server = stack.enter_context(Server(endpoint, config.model, inputs, batcher, registry))
        yield Terminal(model, members, runtime, batcher, server)


def join(config: JoinConfig, say: Callable[[str], None], stopped: threading.Event) -> None:
    """Serve with a terminal until `stopped`. Raises PrismError for what a user can mend."""
    key = load_key(Path(config.key_file))
    device = _device(config.model, config.weights, config.seed, config.threads)
    meeting = Meeting(
        address=config.address,
        port=config.port,
        interface=comm.interface_to(config.address),
        timeout_s=config.timeout_s,
    )
    follow(
        meeting, key, config.name, config.model, device.loaded.model, device.fingerprint, device.exchange, say, stopped
    )


def _device(model: str, weights: str | None, seed: int, threads: int) -> _Device:
    torch.set_grad_enabled(False)
    torch.set_num_threads(threads)
    where = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cuda = where.type == "cuda"
    loaded = load_model(model, weights, seed, str(where))
    adapter_for(loaded.model)
    recorder = SpanRecorder(0, torch.cuda.synchronize if cuda else lambda: None)

    def exchange() -> comm.GlooExchange:
        return comm.GlooExchange(CudaStager(where, recorder) if cuda else HostStager(), recorder)

    return _Device(loaded, fingerprint(loaded.model), recorder, exchange)


def _log(config: ServeConfig, rows: tuple[TableRow, ...], command: str) -> DecisionWriter | None:
    if not config.decisions:
        return None
    header = LogHeader(
        created=now_text(),
        command=command,
        model=config.model,
        policy=config.policy,
        objective=config.objective,
        rows=rows,
        map_hash=hashlib.blake2b(Path(config.map).read_bytes(), digest_size=8).hexdigest(),
        host=host.describe(config.threads),
    )
    return DecisionWriter(Path(config.decisions), header)


def _token(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip() if path else ""
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"token file {path} can't be read ({error}); write the token into it") from None


def _width(loaded: Loaded) -> tuple[int, ...]:
    return tuple(loaded.image["input_size"]) if loaded.image else ()


class _Metrics:
    """For Prometheus, read off when asked."""

    def __init__(self, runtime: AdaptiveRuntime, batcher: Batcher, members: Members | None) -> None:
        self._runtime, self._batcher, self._members = runtime, batcher, members

    def collect(self) -> Iterator[Metric]:
        runtime, estimate = self._runtime, self._runtime.estimate
        served = CounterMetricFamily("prism_batches", "Batches answered, by the plan's mode", labels=["mode"])
        for mode, count in list(runtime.served.items()):
            served.add_metric([mode], count)
        yield served
        yield CounterMetricFamily(
            "prism_failures", "Batches that were answered locally after another plan failed", value=runtime.failures
        )
        yield CounterMetricFamily("prism_corrections", "Corrections of the table", value=runtime.corrections)
        yield CounterMetricFamily("prism_probe_seconds", "Seconds spent on probes of the link", value=runtime.probe_s)
        yield GaugeMetricFamily("prism_queue", "Requests that wait", value=self._batcher.waiting)
        group = self._members.group() if self._members else None
        yield GaugeMetricFamily("prism_devices", "Devices that serve", value=group.devices if group else 1)
        if estimate is not None:
            yield GaugeMetricFamily(
                "prism_bandwidth_bits_per_second", "What is believed of the medium", value=estimate.rate_bps
            )
