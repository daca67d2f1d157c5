"""Run a sweep: visit every cell, keep each visit's raw trace, and go on where an earlier run stopped."""

import fcntl
import itertools
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from hw.machine.overheating import cool_down
from hw.machine.scratch import scratch
from hw.run.config import RunConfig
from hw.run.launch import Site, cluster_job
from hw.run.messages import RunStep
from hw.run.processes import Ranks
from hw.sweep.config import SweepConfig, Visit, visits
from prism.cli.progress import Progress
from prism.config import load_json
from prism.errors import ConfigError, InputError
from prism.files import write_file
from prism.spec import ClusterSpec

log = logging.getLogger(__name__)

MANIFEST = "sweep.json"
Report = Callable[[Visit], None]
# from the missing visits to those to make, one by one: a later one may look at an earlier trace
Order = Callable[[Sequence[Visit]], Iterable[Visit]]


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a folder of traces was measured for."""

    digest: str
    command: str
    sweep: SweepConfig


def pending(sweep: SweepConfig, folder: Path) -> tuple[list[Visit], int]:
    """List the visits that the folder lacks, in order, and count those that it has. Raises ConfigError for another
    sweep's folder."""
    if (folder / MANIFEST).exists():
        before = load_json(folder / MANIFEST, Manifest)
        if before.digest != sweep.digest():
            raise ConfigError(
                f"{folder} holds the traces of another sweep ({before.digest}, this one is {sweep.digest()}); "
                f"choose another --output, or delete it"
            )
    planned = visits(sweep)
    missing = [visit for visit in planned if not (folder / visit.file).exists()]
    return missing, len(planned) - len(missing)


def run_sweep(
    sweep: SweepConfig, folder: Path, spec: ClusterSpec | None, command: str, on_done: Report, order: Order = iter
) -> None:
    """Measure what the folder lacks, on this machine or, as the leader, on a cluster. Raises PrismError.

    Each visit's trace appears under its name when it is whole. order: which of the missing visits are made, by default
    all of them.
    """
    if (sweep.link == "network") != (spec is not None) or (spec and sweep.devices != (len(spec.devices),)):
        size = f"devices = [{len(spec.devices)}]" if spec else "no cluster"
        raise ConfigError(
            f'link {sweep.link} and devices {list(sweep.devices)} with {size}: a cluster\'s sweep has link = "network" '
            f"and its number of devices; give --cluster with it, and only then"
        )
    with _owned(folder):
        todo, _ = pending(sweep, folder)
        for leftover in folder.glob("*.part"):
            leftover.unlink()  # of a visit that was cut short: it is measured again
        write_file(
            folder / MANIFEST, msgspec.json.encode(Manifest(digest=sweep.digest(), command=command, sweep=sweep))
        )
        for _, group in itertools.groupby(todo, key=lambda visit: visit.ranks):
            _session(list(group), folder, spec, command, on_done, order)


def _session(
    group: Sequence[Visit], folder: Path, spec: ClusterSpec | None, command: str, on_done: Report, order: Order
) -> None:
    """Start ranks, make the visits that need as many, and end them."""
    if spec is not None:
        job = cluster_job(spec, 0, group[0].config.threads, group[0].config.timeout_s, command)
        with scratch() as place, Ranks([job], place) as ranks:
            _visit(order(group), ranks, folder, lambda _: None, on_done)
            ranks.finish()
        return
    links = [visit.config.link_spec() for visit in group]
    shaped = next((link for link in links if link.rate_bps is not None), links[0])
    ranks_needed = max(visit.config.plan.ranks for visit in group)
    with Site(shaped, ranks_needed, group[0].config) as site, Ranks(site.jobs(command), site.folder) as ranks:
        _visit(order(group), ranks, folder, site.set_rate, on_done)


def _visit(
    group: Iterable[Visit], ranks: Ranks, folder: Path, set_rate: Callable[[float], None], on_done: Report
) -> None:
    rate: float | None = None
    for visit in group:
        wanted = visit.config.link_spec().rate_bps
        if wanted is not None and wanted != rate:
            rate = wanted
            set_rate(wanted)
        cool_down(log.warning)
        part = folder / f"{visit.file}.part"
        ranks.perform(RunStep(config=_traced(visit.config, part), score=False), _ignore)
        os.replace(part, folder / visit.file)
        on_done(visit)


def _traced(config: RunConfig, path: Path) -> RunConfig:
    return msgspec.structs.replace(config, trace=str(path.resolve()))


def _ignore(_: Progress) -> None:
    """A visit is short: the sweep's own bar counts visits."""


@contextmanager
def _owned(folder: Path) -> Iterator[None]:
    """Lock the folder; the kernel unlocks it however this process ends. Raises ConfigError, InputError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    except OSError as error:
        raise InputError(f"{folder} can't be written ({error}); choose another --output") from None
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(
                f"{folder} is in use by another profile; wait for it, or choose another --output"
            ) from None
        yield
    finally:
        os.close(lock)
