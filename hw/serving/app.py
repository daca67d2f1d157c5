"""Put a leader's service or a follower together: what `prism-hw serve` and `prism-hw join` run."""

import contextlib
import hashlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from hw.comm.interfaces import interface_to
from hw.machine import facts
from hw.serving.batching import Batcher
from hw.serving.channel import load_key
from hw.serving.config import JoinConfig, ServeConfig
from hw.serving.device import ServedModel, load_served
from hw.serving.follower import Follower
from hw.serving.http import Endpoint, Server, inputs_of
from hw.serving.leader import Leader
from hw.serving.membership import Alone, Meeting
from hw.serving.runtime import AdaptiveRuntime, DecisionWriter, Strategy
from prism.decide.accuracy import AccuracyTable, load_accuracy
from prism.decide.log import LogHeader
from prism.decide.table import Objective, Table, TableRow, table_of
from prism.errors import ConfigError
from prism.nn.zoo import Loaded, describe
from prism.perfmap import load_map
from prism.plan import LOCAL
from prism.trace import now_text
from prism.units import parse_bytes
from prism.workload.memory import check_memory


class Service(NamedTuple):
    """A model being served: submit to `batcher`, or over HTTP at `server.port`. leader: None where nobody can join."""

    served: ServedModel
    leader: Leader | None
    runtime: AdaptiveRuntime
    batcher: Batcher
    server: Server


@contextlib.contextmanager
def open_service(config: ServeConfig, command: str) -> Iterator[Service]:
    """Serve as long as the context lasts. Raises PrismError for what a user can mend."""
    if not config.map:
        raise ConfigError("no map: a leader decides by measured cells; make one with prism-hw profile and map")
    endpoint = Endpoint(address=config.http_address, port=config.http_port, token=_token(config.token_file))
    endpoint.check()
    accuracy = load_accuracy(Path(config.accuracy)) if config.accuracy else None
    table = table_of([load_map(Path(config.map))], config.model, [accuracy] if accuracy else [])
    if config.memory is not None:  # before weights are loaded that may not fit
        check_memory(describe(config.model), LOCAL, config.max_batch, None, [parse_bytes(config.memory)])
    served = load_served(config.model, config.weights, config.seed, config.threads)
    _check_answers(accuracy, table, config.objective, served.fingerprint)
    with contextlib.ExitStack() as stack:
        leader = stack.enter_context(_leader(config, served)) if config.key_file else None
        decisions = _decisions(config, table.rows, command)
        if decisions is not None:
            stack.callback(decisions.close)
        strategy = Strategy(table, config.policy, config.objective, config.learn)
        runtime = stack.enter_context(
            AdaptiveRuntime(served, leader or Alone(), strategy, timeout_s=config.timeout_s, decisions=decisions)
        )
        batcher = stack.enter_context(_batcher(config, runtime))
        registry = CollectorRegistry()
        registry.register(_Metrics(runtime, batcher, leader))
        inputs = inputs_of(served.loaded.kind, _width(served.loaded))
        server = stack.enter_context(Server(endpoint, config.model, inputs, batcher, registry))
        yield Service(served, leader, runtime, batcher, server)


def join(config: JoinConfig, stopped: threading.Event) -> None:
    """Serve under a leader until `stopped`. Raises PrismError for what a user can mend."""
    key = load_key(Path(config.key_file))
    served = load_served(config.model, config.weights, config.seed, config.threads)
    meeting = Meeting(
        address=config.address, port=config.port, interface=interface_to(config.address), timeout_s=config.timeout_s
    )
    Follower(meeting, key, config.name, served).run(stopped)


def _leader(config: ServeConfig, served: ServedModel) -> Leader:
    meeting = Meeting(
        address=config.join_address,
        port=config.join_port or 0,
        devices=config.devices,
        interface=interface_to(config.join_address),
        timeout_s=config.timeout_s,
    )
    return Leader(meeting, load_key(Path(config.key_file)), served)


def _batcher(config: ServeConfig, runtime: AdaptiveRuntime) -> Batcher:
    return Batcher(
        runtime,
        largest=config.max_batch,
        patience_s=config.max_wait_s,
        queue=config.max_queue,
        deadline_s=config.deadline_s,
    )


def _check_answers(accuracy: AccuracyTable | None, table: Table, objective: Objective, weights: str) -> None:
    """Raises ConfigError for figures of other weights, and for a floor that no plan of the table can satisfy."""
    if accuracy is not None and accuracy.weights != weights:
        raise ConfigError(
            f"the accuracy table is of weights {accuracy.weights}, these are {weights}; run prism-hw evaluate with them"
        )
    if objective.least_accuracy is not None and all(row.accuracy is None for row in table.rows):
        raise ConfigError(
            f"least_accuracy {objective.least_accuracy:g}: no plan's accuracy is known (of a perplexity none is); "
            f"pass --accuracy, or use least_agreement"
        )


def _decisions(config: ServeConfig, rows: tuple[TableRow, ...], command: str) -> DecisionWriter | None:
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
        host=facts.describe_machine(config.threads),
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
    """What Prometheus reads, collected when it asks."""

    def __init__(self, runtime: AdaptiveRuntime, batcher: Batcher, leader: Leader | None) -> None:
        self._runtime, self._batcher, self._leader = runtime, batcher, leader

    def collect(self) -> Iterator[Metric]:
        """Yield the present figures."""
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
        group = self._leader.group() if self._leader else None
        yield GaugeMetricFamily("prism_devices", "Devices that serve", value=group.devices if group else 1)
        if estimate is not None:
            yield GaugeMetricFamily(
                "prism_bandwidth_bits_per_second", "Estimated rate of the medium", value=estimate.rate_bps
            )
