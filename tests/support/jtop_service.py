"""The jtop service's side of its socket, for jetson-stats' own client: `python jtop_service.py SOCKET`.

Serves the rails of an Orin Nano, VDD_IN growing by 1 W with every update, 20 updates a second.
"""

import queue
import sys
import threading
import time

from jtop import __version__, service

POWER = {"type": "INA3221", "online": True, "volt": 5000, "avg": 1}


def main(socket: str) -> None:
    control: queue.Queue = queue.Queue()
    data: dict = {}
    event = threading.Event()
    service.JTOP_PIPE = socket
    service.JtopManager.register("get_queue", callable=lambda: control)
    service.JtopManager.register("sync_data", callable=lambda: data)
    service.JtopManager.register("sync_event", callable=lambda: event)
    server = service.JtopManager().get_server()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    threading.Thread(target=answer, args=(control,), daemon=True).start()
    for update in range(1_000_000):
        rails = {
            "VDD_CPU_GPU_CV": {**POWER, "power": 1500, "curr": 300},
            "VDD_SOC": {**POWER, "power": 900, "curr": 180},
            "usb-psy": {"type": "SYSTEM", "online": True, "power": 9999, "avg": 9999},
        }
        total = {**POWER, "power": 4000 + 1000 * update, "curr": 800, "name": "VDD_IN"}
        data.update(gpu={}, mem={}, fan={}, power={"rail": rails, "tot": total})
        event.set()
        time.sleep(0.05)


def answer(control: queue.Queue) -> None:
    init = {"version": __version__, "interval": 0.5, "board": {"hardware": {}}, "memory": "", "fan": {}, "jc": False}
    while True:
        if "interval" in control.get():
            control.put({"init": init})
            time.sleep(0.2)  # the client takes it; nobody else asks


if __name__ == "__main__":
    main(sys.argv[1])
