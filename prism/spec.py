"""What a model, a device, a link and a cluster are. Frozen data, no weights, no torch."""

from pathlib import Path
from typing import Annotated, Literal

import msgspec

from prism.config import load_json, load_toml
from prism.errors import ConfigError
from prism.units import format_rate, format_seconds, parse_rate, parse_seconds, parse_share

Positive = Annotated[int, msgspec.Meta(ge=1)]
NonNegative = Annotated[int, msgspec.Meta(ge=0)]
Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
Watts = Annotated[float, msgspec.Meta(ge=0, le=100_000)]  # an upper bound refuses inf
LinkKind = Literal["loopback", "network", "shaper", "testbed"]
FORM = "RATE[,LATENCY[,JITTER[,LOSS]]]"


class ModelSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The shape of a Transformer: enough for its FLOPs and bytes.

    tokens: N with prefix tokens, for the default input.
    patch_values: values of one image patch (channels * height * width); 0 where tokens are looked up.
    output_width: classes or vocabulary; 0 without a head.
    head: rows of the last block that the head reads.
    kv_heads: heads of keys and values where groups of query heads share them; 0 for as many as heads.
    """

    name: str
    family: Literal["vit", "bert", "gpt2", "llama"]
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
        if self.prefix_tokens >= self.tokens:
            raise ValueError(f"prefix_tokens {self.prefix_tokens} must be below tokens {self.tokens}")
        if self.kv_heads and self.heads % self.kv_heads:
            raise ValueError(f"kv_heads {self.kv_heads} must divide heads {self.heads}")

    @property
    def kv_width(self) -> int:
        """Channels of the keys, and of the values."""
        return self.width * (self.kv_heads or self.heads) // self.heads

    @property
    def gated(self) -> bool:
        """Whether the MLP has a gate: a third matrix, and a product."""
        return self.family == "llama"


def load_model_spec(path: Path) -> ModelSpec:
    """A ModelSpec from a JSON file. Raises ConfigError with a hint for a misspelt key."""
    return load_json(path, ModelSpec)


class LinkSpec(msgspec.Struct, frozen=True, kw_only=True):
    """What the ranks' messages cross.

    loopback: all ranks share a machine. network: the interface between several machines, as it is.
    shaper: as `loopback`, and each message also waits for its share of a half-duplex medium.
    testbed: each rank in a network namespace, around an access point with a half-duplex medium.

    The medium carries `rate_bps` of TCP payload; a byte between two stations crosses it twice (station
    to access point, access point to station). latency_s is added once per message or frame on its way;
    jitter_s is the standard deviation of that; loss is the share of frames lost. `rates` names a CSV
    file (time_s, mbps) that drives the rate instead.
    """

    kind: LinkKind = "loopback"
    rate_bps: float | None = None
    latency_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    overhead_bytes: int = 0
    rates: str = ""

    def __str__(self) -> str:
        if self.kind in ("loopback", "network"):
            return self.kind
        rate = self.rates or format_rate(self.rate_bps or 0.0).replace(" ", "")
        times = [format_seconds(value).replace(" ", "") for value in (self.latency_s, self.jitter_s)]
        parts = [*times, f"{100 * self.loss:g}%", f"overhead={self.overhead_bytes}B"]
        given = [bool(self.latency_s), bool(self.jitter_s), bool(self.loss), bool(self.overhead_bytes)]
        last = max((k for k in range(3) if given[k]), default=-1)
        shown = parts[: last + 1] + ([parts[3]] if given[3] else [])
        return f"{self.kind}:{','.join([rate, *shown])}"

    @classmethod
    def parse(cls, text: str) -> "LinkSpec":
        """From "loopback", "network", "shaper:100Mbps,2ms" or "testbed:100Mbps,2ms,0.5ms,1%,overhead=40B". A testbed's
        rate may be a .csv file of (time_s, mbps). Raises ConfigError."""
        kind, _, rest = text.partition(":")
        if text in ("loopback", "network"):
            return cls(kind=text)  # type: ignore[arg-type]
        if kind not in ("shaper", "testbed") or not rest:
            raise ConfigError(
                f"link {text!r} is unknown; use loopback, network, shaper:RATE[,LATENCY] or testbed:{FORM}, as in testbed:100Mbps,2ms"
            )
        first, *others = [part.strip() for part in rest.split(",")]
        named = [part for part in others if "=" in part]
        plain = [part for part in others if "=" not in part]
        if len(plain) > (3 if kind == "testbed" else 1) or (named and kind == "shaper"):
            raise ConfigError(
                f"link {text!r} has too many parts; a {kind} takes {kind}:{FORM if kind == 'testbed' else 'RATE[,LATENCY]'}"
            )
        latency, jitter, loss = plain + ["0s", "0s", "0%"][len(plain) :]
        rates = first if first.endswith(".csv") and kind == "testbed" else ""
        return cls(
            kind=kind,  # type: ignore[arg-type]
            rate_bps=None if rates else parse_rate(first),
            rates=rates,
            latency_s=parse_seconds(latency),
            jitter_s=parse_seconds(jitter),
            loss=parse_share(loss),
            overhead_bytes=_overhead(named, text),
        )


def _overhead(named: list[str], text: str) -> int:
    for part in named:
        key, _, value = part.partition("=")
        if key != "overhead" or len(named) > 1:
            raise ConfigError(f"link {text!r}: {part!r} is unknown; the one named part is overhead, as in overhead=40B")
        if not value.removesuffix("B").isdigit():
            raise ConfigError(f"link {text!r}: overhead {value!r} is no number of bytes; write overhead=40B")
        return int(value.removesuffix("B"))
    return 0


class PowerProfile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Declared power of one device in each state, in watts; energy from it is modelled, never measured.

    covers: what the watts include ("module without carrier board", "at the wall").
    copy_w: between GPU and host. wait_w: for a slower rank. idle_w: a batch is under way and this rank
    does nothing for it.
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
    """A PowerProfile from a TOML file. Raises ConfigError with a hint for a misspelt key."""
    return load_toml(path, PowerProfile)


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
