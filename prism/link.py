"""The link between the ranks: what kind it is, and its text form, as in "testbed:100Mbps,2ms,0.5ms,1%"."""

from typing import Literal, cast, get_args

import msgspec

from prism.errors import ConfigError
from prism.units import format_rate, format_seconds, parse_rate, parse_seconds, parse_share

LinkKind = Literal["loopback", "network", "shaper", "testbed"]
CROSSINGS = 2  # of the medium by a byte between two stations: station to access point, access point to station
FORMS = {"shaper": "RATE[,LATENCY]", "testbed": "RATE[,LATENCY[,JITTER[,LOSS]]]"}
MOST_TIMES = {"shaper": 1, "testbed": 3}  # unnamed parts after the rate


class LinkSpec(msgspec.Struct, frozen=True, kw_only=True):
    """Describe what the ranks' messages cross.

    loopback: all ranks share a machine. network: the interface between several machines, as it is.
    shaper: as `loopback`, and each message also waits for its share of a half-duplex medium.
    testbed: each rank in a network namespace, around an access point with a half-duplex medium.

    The medium carries `rate_bps` of TCP payload; a byte between two stations crosses it CROSSINGS times.
    latency_s: added once per message or frame. jitter_s: standard deviation of the latency. loss: share of frames lost.
    rates: a CSV file (time_s, mbps) that replaces the constant rate (see prism.rates).
    """

    kind: LinkKind = "loopback"
    rate_bps: float | None = None
    latency_s: float = 0.0
    jitter_s: float = 0.0
    loss: float = 0.0
    overhead_bytes: int = 0
    rates: str = ""

    def __str__(self) -> str:
        """Write the text form; `parse` reads it back."""
        if self.kind not in FORMS:
            return self.kind
        rate = self.rates or _compact(format_rate(self.rate_bps or 0.0))
        parts = [
            _compact(format_seconds(self.latency_s)),
            _compact(format_seconds(self.jitter_s)),
            f"{100 * self.loss:g}%",
        ]
        while parts and not (self.latency_s, self.jitter_s, self.loss)[len(parts) - 1]:
            parts.pop()
        if self.overhead_bytes:
            parts.append(f"overhead={self.overhead_bytes}B")
        return f"{self.kind}:{','.join([rate, *parts])}"

    @classmethod
    def parse(cls, text: str) -> "LinkSpec":
        """Read "loopback", "network", "shaper:100Mbps,2ms" or "testbed:100Mbps,2ms,0.5ms,1%,overhead=40B".

        The rate of a testbed may be a .csv file. Raises ConfigError that names the part and shows the form.
        """
        kind, _, rest = text.partition(":")
        if text in get_args(LinkKind) and text not in FORMS:
            return cls(kind=cast(LinkKind, text))
        if kind not in FORMS or not rest:
            raise ConfigError(
                f"link {text!r} is unknown; use loopback, network, shaper:{FORMS['shaper']} or "
                f"testbed:{FORMS['testbed']}, as in testbed:100Mbps,2ms"
            )
        rate, *others = [part.strip() for part in rest.split(",")]
        named = [part for part in others if "=" in part]
        times = [part for part in others if "=" not in part]
        if len(times) > MOST_TIMES[kind] or (named and kind == "shaper"):
            raise ConfigError(f"link {text!r} has too many parts; a {kind} takes {kind}:{FORMS[kind]}")
        latency, jitter, loss = times + ["0s", "0s", "0%"][len(times) :]
        rates = rate if rate.endswith(".csv") and kind == "testbed" else ""
        return cls(
            kind=cast(LinkKind, kind),
            rate_bps=None if rates else parse_rate(rate),
            rates=rates,
            latency_s=parse_seconds(latency),
            jitter_s=parse_seconds(jitter),
            loss=parse_share(loss),
            overhead_bytes=_overhead_bytes(named, text),
        )


def _compact(quantity: str) -> str:
    return quantity.replace(" ", "")


def _overhead_bytes(named: list[str], text: str) -> int:
    """Read "overhead=40B", the one part with a name; 0 without it."""
    for part in named:
        key, _, value = part.partition("=")
        if key != "overhead" or len(named) > 1:
            raise ConfigError(f"link {text!r}: {part!r} is unknown; the one named part is overhead, as in overhead=40B")
        if not value.removesuffix("B").isdigit():
            raise ConfigError(f"link {text!r}: overhead {value!r} is no number of bytes; write overhead=40B")
        return int(value.removesuffix("B"))
    return 0
