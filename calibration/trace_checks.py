"""Check traces before anything is fitted to them: one machine, sound clocks, enough cells of enough kinds."""

import statistics
from collections.abc import Iterable, Sequence

import msgspec

from prism.errors import ConfigError, TraceError
from prism.link import LinkSpec
from prism.perfmap import Cell
from prism.perfmap.pooling import TraceFile, TraceSet, machine, same, whole_batches
from prism.plan import Mode
from prism.trace import Trace

LEAST_CELLS = 6
LEAST_VISITS = 3  # of a cell, for a median that one disturbed visit can't move
UNSTEADY = 1.2  # slowest visit over quickest of the median cell: 1.16 gave intervals that held, 1.30 did not
STRAY_NS = 5_000_000  # a span may lie so far outside of its batch: clocks of two hosts are known to less


def usable_traces(traces: TraceSet) -> tuple[TraceSet, tuple[str, ...]]:
    """Select the traces that can be used, with messages on the others and on what is missing.

    Raises TraceError for traces of several machines, power modes or versions, and ConfigError, with what measures
    the rest, for too few cells, one batch size alone, or a mode without which nothing can be compared.
    """
    sound = [file for file in traces.files if not _jump(file.trace)]
    jumped = [f"{file.name}: {_jump(file.trace)}" for file in traces.files if _jump(file.trace)]
    measured = [file for file in sound if file.trace.header.source == "measured"]
    files = tuple(measured or sound)
    messages = [
        *traces.left_out,
        *jumped,
        *(f"{f.name}: was cut short and counts as far as it goes" for f in files if f.trace.cut),
    ]
    if not files:
        raise TraceError(f"no usable trace: {messages[0] if messages else 'none given'}; measure with prism-hw profile")
    same([(file.name, machine(file.trace.header)) for file in files], "traces of one calibration")
    _enough(files)
    return msgspec.structs.replace(traces, files=files), (*messages, *_lacks(files))


def visits_apart(cells: Iterable[Cell]) -> float | None:
    """Measure how steady a machine was: the slowest visit over the quickest, in the median cell on one device.

    No link is in it. None where no such cell was visited twice.
    """
    apart = [
        max(cell.visit_p50_ms) / min(cell.visit_p50_ms) for cell in cells if cell.plan.ranks == 1 and cell.visits > 1
    ]
    return statistics.median(apart) if apart else None


def unpaced(cells: Sequence[Cell]) -> tuple[str, ...]:
    """Make the message for a map in which only some cells have a pace."""
    lacking = [cell.label for cell in cells if not cell.pace_ms]
    if not lacking or len(lacking) == len(cells):
        return ()
    return (
        f"{len(lacking)} of {len(cells)} cells have visits without the machine's pace on every rank (cut short, or of "
        f"an older version), as {lacking[0]}: no visit is brought to the usual pace; measure "
        f"those again with prism-hw profile",
    )


def usual_pace_ms(cells: Sequence[Cell]) -> float | None:
    """Find the pace (prism.trace.metrics.pace_ms) of the median cell; None where a cell has none."""
    paces = [cell.pace_ms for cell in cells if cell.pace_ms]
    return statistics.median(paces) if paces and len(paces) == len(cells) else None


def unsteady(cells: Iterable[Cell]) -> tuple[str, ...]:
    """Make the message for a machine that didn't keep its speed."""
    apart = visits_apart(cells)
    if apart is None or apart <= UNSTEADY:
        return ()
    return (
        f"the machine didn't keep its speed: in the median local cell the slowest visit took {apart:.2f} times the "
        f"quickest (steady: below {UNSTEADY}). Intervals don't hold how it differs later; stop what else runs, or "
        f"measure more visits (prism-hw profile --repeats)",
    )


def _jump(trace: Trace) -> str:
    """Say why a trace's times can't be right; empty where they can."""
    bounds = {batch.batch: batch for batch in trace.batches}
    for batch in trace.batches:
        if batch.end_ns <= batch.start_ns:
            return f"batch {batch.batch} ends before it begins: the clock jumped; measure it again"
    for span in trace.spans:
        whole = bounds.get(span.batch)
        if span.end_ns < span.start_ns or (whole and span.start_ns < whole.start_ns - STRAY_NS):
            return f"{span.op} of rank {span.rank} lies outside of batch {span.batch}: a clock jumped; measure it again"
    return ""


def cell_of(file: TraceFile) -> tuple[object, ...]:
    """Key of a cell: what its visits share."""
    header = file.trace.header
    link = header.link if header.plan.ranks > 1 else ""
    return header.model, header.tokens, header.batch, header.plan, link


def _enough(files: tuple[TraceFile, ...]) -> None:
    headers = [file.trace.header for file in files]
    cells, batches = {cell_of(file) for file in files}, {header.batch for header in headers}
    modes = {header.plan.mode for header in headers}
    if len(cells) < LEAST_CELLS:
        raise ConfigError(
            f"{len(cells)} cells: a profile needs at least {LEAST_CELLS}; measure more with prism-hw profile --config "
            f"experiments/unseen_models/calibration.toml"
        )
    if len(batches) < 2:
        raise ConfigError(
            f"all traces have batch {batches.pop()}: fixed costs and slopes can't be told apart; measure another, as "
            f"with batches = [1, 4] in the configuration of prism-hw profile"
        )
    if Mode.LOCAL not in modes or len(modes) < 2:
        missing = "distributed" if modes == {Mode.LOCAL} else "local"
        raise ConfigError(
            f"no {missing} cell: modes can't be compared; measure modes = "
            f'["local", "full", "segment_means"] with prism-hw profile'
        )


def _lacks(files: tuple[TraceFile, ...]) -> list[str]:
    """List what would make the fit better."""
    lacks = []
    rates = {LinkSpec.parse(f.trace.header.link).rate_bps for f in files if f.trace.header.plan.ranks > 1}
    if len(rates) < 2:
        lacks.append(
            "one rate of the link alone: its gain and the cost of a message can't be told apart; measure two, as with "
            'rates = ["50Mbps", "1Gbps"]'
        )
    counts: dict[object, int] = {}
    for file in files:
        if whole_batches(file.trace):
            counts[cell_of(file)] = counts.get(cell_of(file), 0) + 1
    few = sum(count < LEAST_VISITS for count in counts.values())
    if few:
        lacks.append(
            f"{few} of {len(counts)} cells have fewer than {LEAST_VISITS} visits: a disturbed one moves their median; "
            f"measure more with prism-hw profile --repeats {LEAST_VISITS}"
        )
    if len({file.trace.header.model for file in files}) < 2:
        lacks.append("one model alone: the error on another one can't be estimated; measure a second of another width")
    return lacks
