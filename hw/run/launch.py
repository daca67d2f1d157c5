"""Start ranks where they meet: on this machine, over a cluster, or under torchrun."""

import contextlib
import os
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from hw.comm.shaper import SharedMedium
from hw.link.report import LinkReport
from hw.machine.scratch import scratch
from hw.machine.threads import core_shares
from hw.run.config import RunConfig
from hw.run.messages import LinkStep, Outcome, ProbeStep, RankJob, RunStep
from hw.run.processes import Ranks
from hw.testbed.namespaces import INTERFACE, NamespaceTestbed
from prism.cli.progress import Progress
from prism.errors import ConfigError
from prism.link import LinkSpec
from prism.spec import ClusterSpec

TESTBED_PORT = 29400  # a namespace has no other user


class Site:
    """The place where the ranks of this machine meet. Use as a context manager.

    It is the loopback, with a shaped medium where the link has one, or a testbed of namespaces.
    """

    def __init__(self, link: LinkSpec, ranks: int, config: RunConfig) -> None:
        self._link, self._ranks, self._config = link, ranks, config
        self._stack = contextlib.ExitStack()
        self._testbed: NamespaceTestbed | None = None
        self._shaper: SharedMedium | None = None
        self._medium = ""

    def __enter__(self) -> "Site":
        if self._link.kind == "network":
            raise ConfigError("link network: it lies between several machines; name them with --cluster")
        self.folder = self._stack.enter_context(scratch())
        with contextlib.ExitStack() as undo:
            undo.push(self._stack)
            if self._link.kind == "testbed" and self._ranks > 1:
                self._testbed = self._stack.enter_context(NamespaceTestbed(self._link, self._ranks))
            elif self._link.rate_bps is not None and self._ranks > 1:
                self._medium = str(self.folder / "medium")
                SharedMedium.create(self._medium, self._ranks, self._link.rate_bps, self._link.latency_s)
                self._shaper = SharedMedium(self._medium, 0, self._ranks)
            undo.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.close()

    def set_rate(self, rate_bps: float) -> None:
        """Change the rate of the medium, between steps."""
        medium = self._testbed or self._shaper
        if medium is not None:
            medium.set_rate(rate_bps)

    def play(self) -> None:
        """Let the link's rate trace drive the rate from now on, where it has one."""
        if self._testbed is not None:
            self._testbed.play()

    def jobs(self, command: str) -> list[RankJob]:
        """Make the jobs of all ranks. Raises ConfigError for an interface that doesn't exist."""
        from hw.comm.interfaces import check_interface, free_port

        config, testbed = self._config, self._testbed
        shares, oversubscribed = core_shares(self._ranks, config.threads)
        if config.interface and testbed is None:
            check_interface(config.interface)
        port = config.port or (TESTBED_PORT if testbed else free_port("127.0.0.1"))
        return [
            RankJob(
                rank=rank,
                world_size=self._ranks,
                leader=testbed.addresses[0] if testbed else "127.0.0.1",
                port=port,
                interface=INTERFACE if testbed else config.interface or "lo",
                timeout_s=config.timeout_s,
                threads=config.threads,
                cores=shares[rank],
                oversubscribed=oversubscribed,
                netns=testbed.stations[rank].path if testbed else "",
                medium=self._medium,
                meter_covers=tuple(range(self._ranks)) if rank == 0 else (),  # one meter for the whole machine
                facts={"testbed": testbed.facts()} if testbed else {},
                command=command,
            )
            for rank in range(self._ranks)
        ]


def run_local(config: RunConfig, command: str, on_progress: Callable[[Progress], None]) -> Outcome:
    """Run a configuration on this machine, one process a rank."""
    config.check()
    with Site(config.link_spec(), config.plan.ranks, config) as site, Ranks(site.jobs(command), site.folder) as ranks:
        site.play()
        return ranks.perform(RunStep(config=config, shares=config.plan.stages > 1), on_progress)


def cluster_job(spec: ClusterSpec, rank: int, threads: int, timeout_s: float, command: str) -> RankJob:
    """Make the job of one device of a cluster. Raises ConfigError for an interface that doesn't exist."""
    from hw.comm.interfaces import check_interface, interface_to

    leader = spec.devices[0].address
    interface = check_interface(spec.interface) if spec.interface else interface_to(leader)
    return RankJob(
        rank=rank,
        world_size=len(spec.devices),
        leader=leader,
        port=spec.port,
        interface=interface,
        timeout_s=timeout_s,
        threads=threads,
        meter_covers=(rank,),
        memory=tuple(device.memory_limit() for device in spec.devices),
        command=command,
    )


def network(link: str) -> str:
    """Name the link of a run over several machines. Raises ConfigError for one that serves a single machine."""
    if LinkSpec.parse(link).kind not in ("loopback", "network"):
        raise ConfigError(
            f"link {link}: it serves the ranks of one machine; shape at the access point, and use link network"
        )
    return "network"


def run_cluster(config: RunConfig, spec: ClusterSpec, command: str, on_progress: Callable[[Progress], None]) -> Outcome:
    """Lead a run over several machines. Raises PrismError."""
    config = msgspec.structs.replace(config, plan=config.plan.on(len(spec.devices)), link=network(config.link))
    config.check()
    if config.plan.ranks == 1:
        return run_local(config, command, on_progress)
    job = cluster_job(spec, 0, config.threads, config.timeout_s, command)
    with scratch() as folder, Ranks([job], folder) as ranks:
        outcome = ranks.perform(RunStep(config=config, shares=config.plan.stages > 1), on_progress)
        ranks.finish()  # the leader tells the other devices' ranks to end
        return outcome


def measure(
    config: RunConfig,
    steps: Sequence[LinkStep | ProbeStep],
    spec: ClusterSpec | None,
    command: str,
    on_progress: Callable[[Progress], None],
) -> list[LinkReport | None]:
    """Perform measuring steps between ranks on this machine or, as the leader, on the devices of a cluster."""
    if spec is None:
        with Site(config.link_spec(), config.plan.devices, config) as site:
            site.play()
            with Ranks(site.jobs(command), site.folder) as ranks:
                return [ranks.measure(step, on_progress) for step in steps]
    job = cluster_job(spec, 0, config.threads, config.timeout_s, command)
    with scratch() as folder, Ranks([job], folder) as ranks:
        reports = [ranks.measure(step, on_progress) for step in steps]
        ranks.finish()
        return reports


def run_worker(spec: ClusterSpec, rank: int, threads: int, timeout_s: float, command: str) -> None:
    """Run as a worker of a cluster until the leader exits."""
    job = cluster_job(spec, rank, threads, timeout_s, command)
    with scratch() as folder, Ranks([job], folder) as ranks:
        ranks.finish()


def run_under_torchrun(config: RunConfig, command: str) -> Outcome | None:
    """Run as the rank that torchrun's environment variables name. Returns the outcome on rank 0. Raises PrismError.

    torchrun's agent may hold the store's port already; then every rank only connects to it.
    """
    from hw.comm.interfaces import interface_to
    from hw.run.session import run_rank

    try:
        rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        leader, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    except (KeyError, ValueError) as error:
        raise ConfigError(
            f"torchrun's variables are incomplete ({error}); start with torchrun, or unset RANK"
        ) from None
    config = msgspec.structs.replace(config, plan=config.plan.on(world))
    if config.plan.ranks != world:
        raise ConfigError(
            f"mode {config.plan.mode.value} runs on one device, torchrun started {world}; use prism-hw run"
        )
    outcomes: list[Outcome] = []
    run_rank(
        RankJob(
            rank=rank,
            world_size=world,
            leader=leader,
            port=port,
            interface=config.interface or interface_to(leader),
            timeout_s=config.timeout_s,
            threads=config.threads,
            serve_store=os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True",
            command=command,
        ),
        iter([RunStep(config=config)]),
        lambda event: outcomes.append(event) if isinstance(event, Outcome) else None,
    )
    return outcomes[0] if outcomes else None
