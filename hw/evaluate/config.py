"""Configure an evaluation. No torch."""

from typing import Annotated

import msgspec

from prism.codecs import Wire
from prism.config import Positive
from prism.errors import ConfigError
from prism.plan import LOCAL, Choices, ExecutionPlan, Mode, combinations
from prism.units import parse_rate


class Columns(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Names in a CSV or JSONL file. pair: the second text of a rated pair, which `score` rates."""

    path: str = "path"
    text: str = "text"
    label: str = "label"
    pair: str = ""
    score: str = "score"


class EvalConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`prism-hw evaluate` as one file. Plans are all combinations of modes, devices, segments and wires.

    limit: items of the data at most.
    map, bandwidth: performance map and rate of the medium, for each plan's milliseconds and joules.
    tokens: texts are cut there.
    """

    model: str = "fashion-vit"
    weights: str | None = None
    seed: int = 0
    data: str | None = None
    columns: Columns = Columns()
    limit: Positive | None = None
    tokens: Positive | None = None
    batch: Positive = 16
    threads: Positive | None = None
    modes: tuple[Mode, ...] = (Mode.FULL, Mode.SEGMENT_MEANS)
    devices: tuple[Annotated[int, msgspec.Meta(ge=2, le=64)], ...] = (2,)
    segments: tuple[Positive, ...] = ()
    wires: tuple[Wire, ...] = ("fp32",)
    map: str | None = None
    bandwidth: str | None = None

    def check(self) -> None:
        """Refuse what can be refused without loading the model. Raises ConfigError."""
        if not self.segments and Mode.FULL not in self.modes and any(mode.averages for mode in self.modes):
            raise ConfigError("modes that average need segments: pass --segments 1,4,10")
        if self.map is not None and self.bandwidth is None:
            raise ConfigError("a map has plans of several devices by rate: pass --bandwidth, as in 100Mbps")
        if self.bandwidth is not None:
            parse_rate(self.bandwidth)

    def plans(self, tokens: int) -> tuple[list[ExecutionPlan], list[str]]:
        """List local first, then every combination that fits so many tokens; also the reasons why others don't."""
        plans, misfits = combinations(
            tokens, Choices(devices=self.devices, modes=self.modes, segments=self.segments, wires=self.wires)
        )
        return [LOCAL, *plans], misfits
