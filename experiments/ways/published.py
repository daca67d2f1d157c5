"""Ask what becomes of the published answer when the batch may be split as well.

    python -m experiments.ways.published    # prints, and writes experiments/results/ways/published.json

Two Orin Nanos, ViT-Base, 400 Mbps: the published latencies of one board and of the published method beside the fit's,
and the fit's prediction of two replicas, the batch split over the boards, and of two stages. Nobody has measured
replicas or stages on such boards, so each of their figures is tagged extrapolated.
"""

from typing import Any

import msgspec

from experiments.lib.places import RESULTS
from experiments.orin_nano.tables import MODEL, NOMINAL_BPS, table2
from prism.cost import load_profile
from prism.files import write_json
from prism.labels import plan_label
from prism.link import LinkSpec
from prism.plan import LOCAL, ExecutionPlan, Mode
from sim.ask.point import Point, plan_of, predict

OUT = RESULTS / "ways" / "published.json"
REPLICAS = ExecutionPlan(mode=Mode.LOCAL, devices=2, replicas=2)
STAGES = ExecutionPlan(mode=Mode.LOCAL, devices=2, stages=2)


class Row(msgspec.Struct, frozen=True):
    """One batch: published milliseconds, and predicted ones with their 90 % intervals and tags by plan."""

    batch: int
    published_local_ms: float
    published_means_ms: float
    predicted: dict[str, Any]


def rows() -> list[Row]:
    """Predict every published batch."""
    profile = load_profile("orin-nano")
    costs, link = profile.draws(48, 0), LinkSpec(kind="testbed", rate_bps=NOMINAL_BPS)
    published = {(row.mode, row.batch): row.published["total_ms"] for row in table2() if row.segments in (None, 10)}
    batches = sorted(batch for mode, batch in published if mode is Mode.LOCAL)
    means = plan_of(profile, Mode.SEGMENT_MEANS, 2, segments=10)
    found = []
    for batch in batches:
        plans = [LOCAL, means, *([REPLICAS] if batch > 1 else []), STAGES]
        points = [Point(model=MODEL, plan=plan, batch=batch, link=link) for plan in plans]
        guesses = [predict(profile, point, costs) for point in points]
        predicted = {
            plan_label(guess.plan): {"ms": guess.latency_ms, "interval_ms": guess.interval_ms, "tag": guess.tag}
            for guess in guesses
        }
        ours = published[Mode.LOCAL, batch], published[Mode.SEGMENT_MEANS, batch]
        found.append(Row(batch, *ours, predicted))
    return found


def main() -> None:
    found = rows()
    for row in found:
        texts = [f"{name} {guess['ms']:.0f} ({guess['tag']})" for name, guess in row.predicted.items()]
        published = f"published {row.published_local_ms:g} local, {row.published_means_ms:g} means"
        print(f"B={row.batch}: {published}; {', '.join(texts)}")
    OUT.parent.mkdir(exist_ok=True)
    write_json(OUT, found)


if __name__ == "__main__":
    main()
