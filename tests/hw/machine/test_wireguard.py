"""doctor --secure, on fakes of the kernel's files."""

import json

import pytest

from hw.machine import wireguard as secure


@pytest.fixture
def net(tmp_path):
    for name, kind in (("wg0", "DEVTYPE=wireguard\nINTERFACE=wg0\n"), ("wlan0", "DEVTYPE=wlan\nINTERFACE=wlan0\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "uevent").write_text(kind)
    return tmp_path


@pytest.mark.parametrize(("interface", "status"), [("wg0", "ok"), ("wlan0", "missing"), ("gone0", "missing")])
def test_the_interface_on_the_way_is_what_counts(net, interface, status):
    way, kernel, _ = secure.examine("10.8.0.1", net, lambda _: interface)
    assert way.status == status and interface in way.found
    assert ("wg-quick" in way.remedy) == (status == "missing")
    assert kernel.status == "ok"


def test_the_command_says_so_of_the_loopback_and_of_nowhere(prism_hw):
    found = json.loads(prism_hw("doctor", "--json", "--secure", "127.0.0.1")[1])
    assert found[0]["status"] == "ok" and "nothing leaves" in found[0]["found"]
    code, _, errors = prism_hw("doctor", "--json", "--secure", "nonsense")
    assert code == 2 and len(errors.strip().splitlines()) == 1
