"""Enumerate the cells of each set of held-out models."""

import enum
import hashlib
import os
from pathlib import Path

import msgspec

from hw.run.config import RunConfig
from hw.sweep.config import SweepConfig
from hw.sweep.config import cells as cells_of
from prism.config import load_toml
from prism.link import LinkSpec
from prism.nn.zoo import describe
from prism.perfmap import Cell
from sim.ask.point import Point

CONFIGS = Path(os.path.relpath(Path(__file__).parent))  # as a user would type it
SWEEPS = ("images", "large", "text")  # of each set of held-out models


class HeldOut(enum.StrEnum):
    """Name a set of held-out models, which is a folder of sweep configurations."""

    SET_1 = "set-1"
    SET_2 = "set-2"
    SET_3 = "set-3"
    SET_4 = "set-4"

    def config(self, name: str) -> Path:
        return CONFIGS / self / f"{name}.toml"

    def sweeps(self) -> list[SweepConfig]:
        return [load_toml(self.config(name), SweepConfig) for name in SWEEPS]


NEWEST = HeldOut.SET_4


def key(config: RunConfig) -> str:
    """Hash what defines a cell: its model, plan, batch, tokens and link, but not how it was visited."""
    same = (config.model, config.tokens, config.plan(), config.batch, config.link if config.plan().ranks > 1 else "")
    return hashlib.blake2b(msgspec.json.encode(same), digest_size=8).hexdigest()


def key_of(cell: Cell, tokens: int | None) -> str:
    """Hash a measured cell as `key` hashes its configuration."""
    same = (cell.model, tokens, cell.plan, cell.batch, str(cell.link) if cell.plan.ranks > 1 else "")
    return hashlib.blake2b(msgspec.json.encode(same), digest_size=8).hexdigest()


def points_of(held_out: HeldOut) -> dict[str, Point]:
    """List the points to predict, by the keys of their cells."""
    points: dict[str, Point] = {}
    for sweep in held_out.sweeps():
        specs = {model: describe(model) for model in sweep.models}
        for config, _ in cells_of(sweep):
            spec = msgspec.structs.replace(specs[config.model], tokens=config.tokens or specs[config.model].tokens)
            link = LinkSpec() if config.plan().ranks == 1 else config.link_spec()
            points[key(config)] = Point(model=spec, plan=config.plan(), batch=config.batch, link=link)
    return points
