"""Raw micro-benchmark records as a trace file."""

import contextlib
from collections.abc import Callable, Iterator, Sequence

import msgspec

from hw import host
from hw.job import LinkStep, RankJob
from hw.tracefile import trace_file
from prism.plan import ExecutionPlan, Mode
from prism.trace import Probe, TraceHeader, TraceWriter, now_text


@contextlib.contextmanager
def probe_file(path: str | None, job: RankJob, step: LinkStep) -> Iterator[Callable[[Sequence[Probe]], None]]:
    """What keeps probes in a file as they come; without a path they are dropped."""
    header = TraceHeader(
        source="measured", created=now_text(), model="probe", weights="none", plan=ExecutionPlan(mode=Mode.LOCAL),
        batch=1, tokens=1, link=step.link, seed=step.config.seed, command=job.command,
        oversubscribed=job.oversubscribed, config=msgspec.to_builtins(step.config),
        host={**host.describe(job.threads, "cpu"), **job.facts},
    )  # fmt: skip
    with trace_file(path) as file:
        if file is None:
            yield lambda probes: None
            return
        yield TraceWriter(file, header).write
