"""Trace files as `prism-hw profile` writes them, with latencies of the test's choice."""

from prism.plan import ExecutionPlan, Mode
from prism.trace import Batch, Meter, Power, Span, TraceHeader, TraceWriter

MS = 1_000_000
HOST = {
    "system": "Linux",
    "processor": "a CPU",
    "cores": 2,
    "threads": 1,
    "device": "cpu",
    "clock_mhz": 2000.0,
    "versions": {"python": "3.11", "torch": "2.14"},
    "testbed": {"medium": "ifb+tbf", "devices": 2},
}
FULL = ExecutionPlan(mode=Mode.FULL, devices=2)
MEANS = ExecutionPlan(mode=Mode.SEGMENT_MEANS, devices=2, segments=10)


def header(plan, link, batch=1, host=None, **fields):
    base = dict(
        source="measured",
        created="2026-01-01T00:00:00Z",
        model="vit",
        weights="random",
        plan=plan,
        batch=batch,
        tokens=197,
        link=link,
        seed=0,
        command="prism-hw profile",
        host={**HOST, **(host or {})},
        config={"batch": batch},
        config_hash="c0ffee",
    )
    return TraceHeader(**{**base, **fields})


def records(lengths_ms, ranks, size=1, warmup_ms=1000, start_ms=0, gap_ms=0, op="exchange"):
    """A warm-up, then a batch of each length: the leader computes half of it and waits on the wire for the rest."""
    found, at = [], start_ms
    for number, length in enumerate([warmup_ms, *lengths_ms]):
        begin, middle, end = (round((at + share * length) * MS) for share in (0, 0.5, 1))
        found.append(Span(batch=number, rank=0, kind="compute", op="block", block=0, start_ns=begin, end_ns=middle))
        if ranks > 1:
            for rank in range(ranks):
                found.append(
                    Span(
                        batch=number,
                        rank=rank,
                        kind="wire",
                        op=op,
                        block=0,
                        start_ns=middle,
                        end_ns=end,
                        issued_ns=begin,
                        sources=(1 - rank,),
                        sent_bytes=1000,
                        received_bytes=1000,
                    )
                )
        found.append(Batch(batch=number, size=size, start_ns=begin, end_ns=end, warmup=number == 0))
        at += length + gap_ms
    return found


def powered(found, watts, period_ms=1):
    """The records with a meter's samples over all of their time."""
    start = min(record.start_ns for record in found)
    end = max(record.end_ns for record in found)
    samples = [Power(rank=0, rail="VDD", at_ns=at, watts=watts) for at in range(start, end, round(period_ms * MS))]
    return [Meter(rank=0, source="ina3221", rails=("VDD",), covers=(0, 1)), *found, *samples]


def write(path, head, found):
    with open(path, "wb") as file:
        TraceWriter(file, head).write(found)
    return path


def visit(folder, plan, link, visits, batch=1, model="vit", **fields):
    """One file for each list of batch lengths, a minute apart. Returns the paths."""
    paths = []
    for number, lengths in enumerate(visits):  # at most ten
        split = f"R{plan.replicas}S{plan.stages}"
        what = f"{model}-{plan.mode.value}{plan.segments or ''}-{split}-{plan.wire}-B{batch}"
        name = f"{what}-{link.replace(':', '-')}.{number}.jsonl"
        head = header(plan, link, batch, **{"model": model, "created": f"2026-01-01T00:0{number}:00Z", **fields})
        op = "exchange" if plan.parts > 1 else "answer"
        paths.append(write(folder / name, head, records(lengths, plan.ranks, size=batch, op=op)))
    return paths
