"""Describe a model, a device and a cluster: frozen data without weights or torch."""

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from prism.config import NonNegative, Port, Positive, load_json, load_toml
from prism.errors import ConfigError
from prism.families import FAMILIES, Structure
from prism.units import parse_bytes

Watts = Annotated[float, msgspec.Meta(ge=0, le=100_000)]  # an upper bound refuses inf


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The shape of a Transformer: enough for its FLOPs and bytes.

    family: a row of prism.families.
    tokens: N with prefix tokens, for the default input.
    patch_values: values of one image patch (channels * height * width); 0 where tokens are looked up.
    output_width: classes or vocabulary; 0 without a head.
    head: rows of the last block that the head reads.
    kv_heads: heads of keys and values where groups of query heads share them; 0 for as many as heads.
    """

    name: str
    family: str
    blocks: Positive
    width: Positive
    heads: Positive
    mlp_width: Positive
    tokens: Positive
    prefix_tokens: NonNegative = 0
    patch_values: NonNegative = 0
    output_width: NonNegative = 0
    head: Literal["first", "mean", "all", "last"] = "first"
    causal: bool = False
    parameters: NonNegative = 0
    kv_heads: NonNegative = 0

    def __post_init__(self) -> None:
        if self.family not in FAMILIES:
            raise ValueError(f"family {self.family!r} is unknown; use one of {', '.join(FAMILIES)}")
        if self.prefix_tokens >= self.tokens:
            raise ValueError(f"prefix_tokens {self.prefix_tokens} must be below tokens {self.tokens}")
        if self.kv_heads and self.heads % self.kv_heads:
            raise ValueError(f"kv_heads {self.kv_heads} must divide heads {self.heads}")

    @property
    def kv_width(self) -> int:
        """Channels of the keys, and of the values."""
        return self.width * (self.kv_heads or self.heads) // self.heads

    @property
    def structure(self) -> Structure:
        """How the blocks of the model's family are built."""
        return FAMILIES[self.family].structure


def load_model_spec(path: Path) -> ModelSpec:
    """Load a ModelSpec from a JSON file. Raises ConfigError with a hint for a misspelt key."""
    return load_json(path, ModelSpec)


class PowerProfile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Declared power of one device in each state, in watts; energy from it is modelled, never measured.

    covers: what the watts include ("module without carrier board", "at the wall").
    copy_w: between GPU and host.
    wait_w: for a slower rank.
    idle_w: a batch is under way and this rank has no part in it.
    """

    name: str
    covers: str
    idle_w: Watts
    compute_w: Watts
    copy_w: Watts
    transmit_w: Watts
    receive_w: Watts
    wait_w: Watts


def load_power_profile(path: Path) -> PowerProfile:
    """Load a PowerProfile from a TOML file. Raises ConfigError with a hint for a misspelt key."""
    return load_toml(path, PowerProfile)


class DeviceSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One device. address: where the others reach it. memory: that a plan may need there, as in 8GB; None: any."""

    name: str
    address: str
    memory: str | None = None

    def __post_init__(self) -> None:
        try:
            self.memory_limit()
        except ConfigError as error:
            raise ValueError(str(error)) from None

    def memory_limit(self) -> float | None:
        """Parse the bytes. Raises ConfigError."""
        return None if self.memory is None else parse_bytes(self.memory)


class ClusterSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The devices of a run over several machines. The first one leads: it is rank 0.

    interface: network interface to use; empty derives it from the route to the leader.
    """

    devices: tuple[DeviceSpec, ...]
    port: Port
    interface: str = ""

    def __post_init__(self) -> None:
        names = [device.name for device in self.devices]
        if not names:
            raise ValueError("devices is empty; add one [[devices]] table each, the leader first")
        if len(set(names)) < len(names):
            raise ValueError(f"device names {names} are not unique")

    def rank(self, name: str) -> int:
        """Look up the rank of a device. Raises ConfigError with the list of names."""
        names = [device.name for device in self.devices]
        if name not in names:
            raise ConfigError(f"device {name!r} is not in the cluster file; it names {', '.join(names)}")
        return names.index(name)
