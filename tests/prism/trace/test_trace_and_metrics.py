import io
import json

import msgspec
import pytest

from prism.errors import ConfigError, TraceError
from prism.plan import ExecutionPlan, Mode
from prism.spec import load_model_spec
from prism.trace import Batch, Probe, Span, Trace, TraceHeader, TraceWriter, aligned, perfetto, read_trace
from prism.trace.metrics import summarise

MS = 1_000_000


def header(**fields):
    return TraceHeader(
        source="measured",
        created="2026-01-01T00:00:00Z",
        model="m",
        weights="random",
        plan=ExecutionPlan(mode=Mode.FULL, devices=2),
        batch=1,
        tokens=8,
        link="loopback",
        seed=0,
        command="c",
        **fields,
    )


def span(rank, kind, start, end, op="exchange", block=0, **fields):
    return Span(batch=0, rank=rank, kind=kind, op=op, block=block, start_ns=start * MS, end_ns=end * MS, **fields)


def wire(rank, start, end, issued, source):
    return span(rank, "wire", start, end, issued_ns=issued * MS, sources=(source,), sent_bytes=100, received_bytes=100)


def write(path, records, **fields):
    with open(path, "wb") as file:
        TraceWriter(file, header(**fields)).write(records)


def test_what_is_written_is_read(tmp_path):
    records = (span(0, "compute", 0, 2, op="project"), Batch(batch=0, size=1, start_ns=0, end_ns=2 * MS))
    write(tmp_path / "t.jsonl", records)
    trace = read_trace(tmp_path / "t.jsonl")
    assert trace.records == records
    assert trace.header == header()
    assert not trace.cut


def test_a_file_cut_anywhere_loads_or_says_what_it_lacks(tmp_path):
    path = tmp_path / "t.jsonl"
    write(path, [span(0, "compute", k, k + 1) for k in range(5)])
    raw = path.read_bytes()
    first = raw.index(b"\n") + 1
    for length in range(len(raw)):
        path.write_bytes(raw[:length])
        if length < first:
            with pytest.raises(TraceError, match="header"):
                read_trace(path)
        else:
            trace = read_trace(path)
            assert len(trace.records) == raw[first:length].count(b"\n")
            assert trace.cut is not raw[:length].endswith(b"\n")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda raw: raw.replace(b'"span"', b'"spam"'), "line 2"),
        (lambda raw: raw + raw.split(b"\n")[1] + b'\n{"type":"span"\n' + raw.split(b"\n")[1] + b"\n", "line 4"),
        (lambda raw: raw + raw.split(b"\n")[1] + raw.split(b"\n")[1] + b"\n", "line 3"),
        (lambda raw: raw + b"\n" + raw.split(b"\n")[1] + b"\n", "line 3"),
        (lambda raw: raw.replace(b'"schema":1', b'"schema":9'), "schema 9"),
        (lambda raw: raw.replace(b'"devices":2', b'"devices":0'), r"t\.jsonl: line 1 .*0 devices.*\$\.plan"),
    ],
)
def test_damage_is_named(tmp_path, change, words):
    path = tmp_path / "t.jsonl"
    write(path, [span(0, "compute", 0, 1)])
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(TraceError, match=words):
        read_trace(path)


def test_waiting_for_the_slower_rank_is_wait_not_wire():
    # rank 1 hands over at 7 ms of the leader's clock; its own clock is 100 ms ahead
    spans = [wire(0, 3, 10, issued=2, source=1), wire(1, 107, 112, issued=107, source=0)]
    parts = aligned(spans, {1: 100 * MS})
    kinds = [(part.rank, part.kind, part.start_ns // MS, part.end_ns // MS) for part in parts]
    assert kinds == [(0, "wait", 3, 7), (0, "wire", 7, 10), (1, "wire", 7, 12)]


def test_a_source_that_never_handed_over_leaves_all_as_wire():
    parts = aligned([wire(0, 3, 10, issued=2, source=1)], {})
    assert [(part.kind, part.start_ns // MS) for part in parts] == [("wire", 3)]


def test_summary_leaves_warmups_and_failures_out():
    records = []
    for number, (length, fields) in enumerate([(50, {"warmup": True}), (10, {}), (20, {}), (90, {"failed": "x"})]):
        part = msgspec.structs.replace(span(0, "compute", 0, length, op="block"), batch=number)
        records += [part, Batch(batch=number, size=1, start_ns=0, end_ns=length * MS, **fields)]
    summary = summarise(Trace(header=header(), records=tuple(records)))
    assert summary.batches == 2
    assert summary.latency_ms.p50 == 15
    assert summary.split_ms["compute"] == 15
    assert summary.coverage == 1
    assert summary.energy_j is None


def test_effective_bandwidth_counts_overlapping_messages_once():
    # two messages of 100 bytes, under way from 2 to 6 ms and from 4 to 8 ms: 200 bytes in 6 ms
    records = [wire(0, 4, 8, issued=2, source=1), wire(1, 2, 6, issued=4, source=0)]
    records.append(Batch(batch=0, size=1, start_ns=0, end_ns=9 * MS))
    summary = summarise(Trace(header=header(), records=tuple(records)))
    assert summary.effective_bandwidth_mbps == pytest.approx(200 * 8 / 6e-3 / 1e6)
    assert summary.bytes_per_exchange == 100


def test_a_trace_without_batches_is_refused():
    with pytest.raises(TraceError, match="no complete measured batch"):
        summarise(Trace(header=header(), records=()))


def test_perfetto_has_a_lane_per_rank_and_kind():
    spans = (span(0, "compute", 1, 2), span(1, "wire", 2, 3))
    data = json.loads(perfetto(Trace(header=header(), records=spans)))
    events = [event for event in data["traceEvents"] if event["ph"] == "X"]
    assert [(e["pid"], e["tid"], e["ts"], e["dur"]) for e in events] == [(0, 0, 0, 1000), (1, 3, 1000, 1000)]
    lanes = {(e["pid"], e["args"]["name"]) for e in data["traceEvents"] if e["name"] == "thread_name"}
    assert len(lanes) == 10


OLD_PROBE = (
    b'{"type":"probe","rank":0,"op":"pack","shape":[10,768,2],"flops":0,"bytes":39360,"start_ns":607937111805,'
    b'"end_ns":607938698291,"calls":35,"warmup":true}\n'
)


def test_a_probe_names_its_codec_and_an_older_one_that_numbered_it_still_loads(tmp_path):
    path = tmp_path / "probes.jsonl"
    write(path, [])
    path.write_bytes(path.read_bytes() + OLD_PROBE)
    (old,) = read_trace(path).probes
    assert (old.codec, old.shape, old.bytes) == ("int8", (10, 768), 10 * 768 * 4 + 8640)
    write(path, [old])
    assert b'"codec":"int8"' in path.read_bytes() and read_trace(path).probes == [old]
    path.write_bytes(path.read_bytes().split(b"\n")[0] + b"\n" + OLD_PROBE.replace(b"768,2]", b"768,9]"))
    with pytest.raises(TraceError, match=r"line 2 .*codec 9 of a probe is unknown"):
        read_trace(path)


def test_a_probe_without_a_codec_is_the_bytes_that_it_was(tmp_path):
    path = tmp_path / "probes.jsonl"
    write(path, [Probe(rank=0, op="pace", shape=(1, 2), flops=3, bytes=4, start_ns=5, end_ns=6)])
    line = path.read_bytes().split(b"\n")[1]
    assert line == (
        b'{"type":"probe","rank":0,"op":"pace","shape":[1,2],"flops":3,"bytes":4,"start_ns":5,"end_ns":6,"calls":1,'
        b'"warmup":false}'
    )


def test_every_line_is_flushed():
    class Flushed(io.BytesIO):
        flushes = 0

        def flush(self):
            self.flushes += 1

    file = Flushed()
    writer = TraceWriter(file, header())
    writer.write([span(0, "compute", 0, 1)])
    assert file.flushes == 2


def test_bytes_that_are_no_text_are_one_line_about_the_file(tmp_path):
    path = tmp_path / "damaged"
    path.write_bytes(b'{"type":"header","created":"\xff"}\n')
    with pytest.raises(TraceError, match="line 1 is no trace record"):
        read_trace(path)
    path.write_bytes(b'{"name":"\xff"}')
    with pytest.raises(ConfigError, match="is no valid JSON"):
        load_model_spec(path)
