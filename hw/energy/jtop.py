"""The jtop service of jetson-stats, through its socket."""

import threading
from pathlib import Path
from typing import Any

from hw.energy.meter import absent, one_line
from prism.trace import Meter

ROOT = Path("/run/jtop.sock")
INTERVAL_S = 0.5  # below it the service's updates are unstable


class Jtop:
    """Milliwatts by rail at each update of the service; not its `avg`, which is no average over time.

    A sample is seen up to one period of reading after its update. Raises ConfigError where no service answers.
    """

    period_s = 0.05
    averages = False

    def __init__(self, root: Path = ROOT) -> None:
        if not root.exists():
            raise absent("jtop", f"{root} is not there", "start the service: sudo systemctl start jtop")
        try:
            from jtop import JtopException, jtop
        except ImportError as error:
            remedy = "pip install 'prism-edge[jetson]'"
            raise absent("jtop", f"jetson-stats can't be loaded ({error})", remedy) from None
        self._new = threading.Event()
        self._client = jtop(interval=INTERVAL_S)
        self._client.attach(lambda _: self._new.set())
        try:
            self._client.start()
        except (JtopException, OSError, EOFError) as error:
            raise absent("jtop", f"{root} doesn't serve ({one_line(error)})", "restart the service") from None
        self._total = str(self._client.power.get("tot", {}).get("name", ""))
        self._rails = tuple(self._watts())
        if not self._rails:
            self.close()
            raise absent("jtop", "the service knows no power rail", "see docs/jetson.md for INA3221")

    def _watts(self) -> dict[str, float]:
        """Read the monitors on the board only: jtop also lists power supplies, which feed the same rails."""
        power: dict[str, Any] = self._client.power
        rails: dict[str, Any] = dict(power.get("rail", {}))
        if self._total:
            rails[self._total] = power["tot"]
        return {name: rail["power"] / 1e3 for name, rail in rails.items() if str(rail.get("type")).startswith("INA")}

    def describe(self, rank: int, covers: tuple[int, ...]) -> Meter:
        return Meter(rank=rank, source="jtop", rails=self._rails, total=self._total, covers=covers)

    def sample(self) -> dict[str, float]:
        try:
            alive = self._client.ok(spin=True)
        except Exception as error:  # whatever ended the client's own thread
            raise OSError(f"the jtop service was lost ({one_line(error)})") from None
        if not alive:
            raise OSError("the jtop service was lost")
        if not self._new.is_set():
            return {}
        self._new.clear()
        return self._watts()

    def close(self) -> None:
        self._client.close()


open_meter = Jtop
