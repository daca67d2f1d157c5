"""What a model, a device, a link and a cluster are. Frozen data, no weights, no torch."""

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from prism.config import load_json
from prism.errors import ConfigError
from prism.units import format_rate, format_seconds, parse_rate, parse_seconds

Positive = Annotated[int, msgspec.Meta(ge=1)]
NonNegative = Annotated[int, msgspec.Meta(ge=0)]
Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The shape of a Transformer: enough for its FLOPs and bytes.

    tokens: N with prefix tokens, for the default input.
    patch_values: values of one image patch (channels * height * width); 0 where tokens are looked up.
    output_width: classes or vocabulary; 0 without a head.
    head: rows of the last block that the head reads.
    """

    name: str
    family: Literal["vit", "bert", "gpt2"]
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

    def __post_init__(self) -> None:
        if self.prefix_tokens >= self.tokens:
            raise ValueError(f"prefix_tokens {self.prefix_tokens} must be below tokens {self.tokens}")


def load_model_spec(path: Path) -> ModelSpec:
    """A ModelSpec from a JSON file. Raises ConfigError with a hint for a misspelt key."""
    return load_json(path, ModelSpec)


class LinkSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What the ranks' messages cross.

    network: the interface as it is (`loopback` when all ranks share a machine).
    shaper: as `network`, and each message also waits for its share of a half-duplex medium of
    `rate_bps` that it crosses twice (station to access point, access point to station), plus
    `latency_s` per dependent step.
    """

    kind: Literal["network", "shaper"] = "network"
    rate_bps: float | None = None
    latency_s: float = 0.0

    def __str__(self) -> str:
        if self.rate_bps is None:
            return "loopback" if self.kind == "network" else self.kind
        latency = f",{format_seconds(self.latency_s).replace(' ', '')}" if self.latency_s else ""
        return f"{self.kind}:{format_rate(self.rate_bps).replace(' ', '')}{latency}"

    @classmethod
    def parse(cls, text: str) -> "LinkSpec":
        """From "loopback" or "shaper:100Mbps" or "shaper:100Mbps,2ms"."""
        kind, _, rest = text.partition(":")
        if text == "loopback":
            return cls()
        if kind != "shaper" or not rest:
            raise ConfigError(
                f"link {text!r} is unknown; use loopback, or shaper:RATE[,LATENCY] as in shaper:100Mbps,2ms"
            )
        rate, _, latency = rest.partition(",")
        return cls(
            kind="shaper", rate_bps=parse_rate(rate), latency_s=parse_seconds(latency) if latency else 0.0
        )


class DeviceSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One device: a name, and the address the others reach it at."""

    name: str
    address: str


class ClusterSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The devices of a run over several machines. The first one is the terminal, rank 0.

    interface: network interface to use; empty derives it from the route to the terminal.
    """

    devices: tuple[DeviceSpec, ...]
    port: Port
    interface: str = ""

    def __post_init__(self) -> None:
        names = [device.name for device in self.devices]
        if not names:
            raise ValueError("devices is empty; add one [[devices]] table each, the terminal first")
        if len(set(names)) < len(names):
            raise ValueError(f"device names {names} are not unique")

    def rank(self, name: str) -> int:
        """The rank of a device. Raises ConfigError with the list of names."""
        names = [device.name for device in self.devices]
        if name not in names:
            raise ConfigError(f"device {name!r} is not in the cluster file; it names {', '.join(names)}")
        return names.index(name)
