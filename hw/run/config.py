"""What a run is: the options of `prism-hw run` as one file. No torch."""

import hashlib
from typing import Any

import msgspec

from prism.config import NonNegative, Port, Positive, PositiveNumber
from prism.errors import ConfigError
from prism.link import LinkSpec
from prism.plan import ExecutionPlan, Mode, completed
from prism.trace import MeterName
from prism.units import parse_bytes

USUAL = ExecutionPlan(mode=Mode.FULL, devices=2)
MOST_DEVICES = 64
# a plan's fields as flags name them, and run files that have no [plan] table
FLAG_OF_FIELD = {name: "device_weights" if name == "weights" else name for name in ExecutionPlan.__struct_fields__}


class RunConfig(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`prism-hw run` as one file: every field is a flag of the same name, and so is every field of its plan.

    in_flight: batches that are begun before the first of them is answered.
    memory: of each device, as in 8GB; a plan that is predicted to need more is refused. It goes before what a cluster
    file says of its devices.
    """

    model: str = "fashion-vit"
    images: str | None = None
    text: str | None = None
    resize: bool = False
    tokens: Positive | None = None
    weights: str | None = None
    seed: NonNegative = 0
    plan: ExecutionPlan = USUAL
    batch: Positive = 1
    batches: NonNegative = 10
    warmups: NonNegative = 2
    link: str = "loopback"
    threads: Positive = 1
    timeout_s: PositiveNumber = 60.0
    in_flight: Positive = 1
    memory: str | None = None
    interface: str = ""
    port: Port | None = None
    meter: MeterName = "auto"
    power: str | None = None
    trace: str | None = None

    @staticmethod
    def upgraded(data: Any) -> Any:
        """Put a plan's fields that stand beside the others into [plan], over what it says, and complete it.

        Flags are such fields, and so are those of files from before there was a [plan] table.
        """
        if not isinstance(data, dict) or not isinstance(data.get("plan", {}), dict):
            return data
        flags = {**FLAG_OF_FIELD, "parts": "parts"}
        beside = {field: data[flag] for field, flag in flags.items() if flag in data}
        plan = completed({**data.get("plan", {}), **beside})
        return {**{key: value for key, value in data.items() if key not in flags.values()}, "plan": plan}

    def flat(self) -> dict[str, Any]:
        """The configuration with its plan's fields beside the others, as trace headers have it.

        Hashes and names of sweep files rest on it: beside mode local stands the usual number of devices, as ever.
        """
        fields = flattened(msgspec.to_builtins(self))
        return {**fields, "devices": USUAL.devices} if self.plan.ranks == 1 else fields

    def link_spec(self) -> LinkSpec:
        """Parse the link. Raises ConfigError."""
        return LinkSpec.parse(self.link)

    def memory_limit(self) -> float | None:
        """Parse the bytes of a device. Raises ConfigError."""
        return None if self.memory is None else parse_bytes(self.memory)

    def digest(self) -> str:
        """Hash all that matters to what is measured."""
        same = {**self.flat(), "trace": None, "port": None}
        for later, default in (("in_flight", 1), ("memory", None)):
            if same[later] == default:
                del same[later]
        for field in set(FLAG_OF_FIELD) - set(self.plan.hashed()):
            del same[FLAG_OF_FIELD[field]]
        return hashlib.blake2b(msgspec.json.encode(same), digest_size=6).hexdigest()

    def check(self) -> None:
        """Refuse what can be refused without loading the model. Raises ConfigError."""
        self.link_spec()
        self.memory_limit()
        if self.plan.devices > MOST_DEVICES:
            raise ConfigError(f"devices {self.plan.devices}: at most {MOST_DEVICES} run together; use fewer")
        if self.images and self.text:
            raise ConfigError("both --images and --text are given; a model takes one of them")


def flattened(fields: dict[str, Any]) -> dict[str, Any]:
    """Put the fields of `plan` beside the others, in its place, under the names of their flags."""
    plan = {FLAG_OF_FIELD[field]: value for field, value in fields["plan"].items()}
    names = [key for name in fields for key in (plan if name == "plan" else (name,))]
    return {name: plan[name] if name in plan else fields[name] for name in names}
