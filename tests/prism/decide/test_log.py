"""A log of decisions: read whole or cut, and decided again."""

from pathlib import Path

import msgspec
import pytest
from support.serving import FULL, MODEL, cell

from prism.decide.log import Corrected, Decided, LogHeader, decided, read_decisions
from prism.decide.policy import FixedPolicy, LookupPolicy, PrismPolicy, State
from prism.decide.replay import Replay, replay
from prism.decide.table import CellPlace, Objective, Observation, Table, table_of
from prism.errors import TraceError
from prism.perfmap import PerformanceMap
from prism.plan import LOCAL


def table() -> Table:
    cells = [cell(LOCAL, b, None, 100.0 * b) for b in (1, 8)]
    cells += [cell(FULL, b, m, 50.0 * b + 5000 / m, 5000 / m) for b in (1, 8) for m in (10, 100, 1000)]
    return table_of([PerformanceMap(created="", command="", cells=tuple(cells))], MODEL)


def log(path, policy, correct=False):
    """Decisions over a rate that comes and goes, as a runtime logs them."""
    known, state = table(), State()
    lines = [LogHeader(created="", command="", model=MODEL, policy=policy, objective=Objective(), rows=known.rows)]
    for k in range(40):
        seen = Observation(
            batch=1 + k % 3,
            devices=2 if k % 7 else 1,
            bandwidth_bps=10 ** (7 + k % 20 / 10),
            bandwidth_deviation=0.1,
            at_s=0.3 * k,
        )
        decision = policy.decide(seen, known, Objective(), state)
        state = decision.state
        lines.append(decided(k, 1, seen, decision))
        if correct and k == 20:
            lines.append(Corrected(at_s=0.3 * k, version=1, place=CellPlace.at(LOCAL, 1, None), factor=3.0, batches=12))
            known = known.corrected({CellPlace.at(LOCAL, 1, None): 3.0})
    path.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))
    return lines


@pytest.mark.parametrize("policy", [PrismPolicy(), PrismPolicy(dwell_s=5.0), LookupPolicy(), FixedPolicy(FULL)])
def test_the_same_policy_decides_the_same_again(tmp_path, policy):
    lines = log(tmp_path / "log", policy)
    found = read_decisions(tmp_path / "log")
    assert found.header.policy == policy and not found.cut
    assert [each.plan for each in found.entries] == [each.plan for each in lines[1:]]
    assert replay(found) == Replay(decisions=40, identical=True)


def test_a_log_from_before_there_were_replicas_and_stages_is_decided_the_same():
    found = read_decisions(Path(__file__).parent / "decisions_before_replicas.jsonl")  # written by an older version
    assert replay(found) == Replay(decisions=40, identical=True)
    assert {entry.plan.mode.value for entry in found.entries if isinstance(entry, Decided)} == {
        "local",
        "segment_means",
    }


def test_a_correction_counts_from_where_it_stands(tmp_path):
    log(tmp_path / "log", PrismPolicy(), correct=True)
    found = read_decisions(tmp_path / "log")
    assert replay(found).identical
    without = tuple(entry for entry in found.entries if not isinstance(entry, Corrected))
    assert not replay(msgspec.structs.replace(found, entries=without)).identical


def test_another_policy_is_found_out(tmp_path):
    log(tmp_path / "log", PrismPolicy())
    found = read_decisions(tmp_path / "log")
    other = msgspec.structs.replace(found.header, policy=FixedPolicy(FULL))
    result = replay(msgspec.structs.replace(found, header=other))
    assert not result.identical and "in the log" in result.first_difference


def test_a_cut_log_is_read_as_far_as_it_goes(tmp_path):
    log(tmp_path / "log", PrismPolicy())
    raw = (tmp_path / "log").read_bytes()
    (tmp_path / "log").write_bytes(raw[:-20])
    found = read_decisions(tmp_path / "log")
    assert found.cut and len(found.entries) == 39 and replay(found).identical


def test_what_is_no_log_is_refused(tmp_path):
    for text in ("", "{}\n", "hello\n"):
        (tmp_path / "log").write_text(text)
        with pytest.raises(TraceError, match="no decision log"):
            read_decisions(tmp_path / "log")
    log(tmp_path / "log", PrismPolicy())
    (tmp_path / "log").write_bytes((tmp_path / "log").read_bytes().replace(b'"version":2', b'"version":1', 1))
    with pytest.raises(TraceError, match="version 1, not 2"):
        read_decisions(tmp_path / "log")
    with pytest.raises(TraceError, match="can't be read"):
        read_decisions(tmp_path / "none")
