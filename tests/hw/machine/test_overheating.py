"""The guard against measuring a throttled board, over made thermal zones."""

import pytest

from hw.machine.overheating import MARGIN_C, POLL_S, cool_down, zones


def zone(root, number, celsius, trips, name="cpu-thermal"):
    folder = root / f"thermal_zone{number}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "type").write_text(f"{name}\n")
    (folder / "temp").write_text(f"{round(1000 * celsius)}\n")
    for index, (kind, limit) in enumerate(trips):
        (folder / f"trip_point_{index}_type").write_text(f"{kind}\n")
        (folder / f"trip_point_{index}_temp").write_text(f"{round(1000 * limit)}\n")


def test_the_zone_nearest_to_its_limit_comes_first(tmp_path):
    zone(tmp_path, 0, 60, [("active", 50), ("passive", 99), ("critical", 104)])
    zone(tmp_path, 1, 85, [("passive", 90)], "gpu-thermal")
    zone(tmp_path, 2, 120, [("critical", 104)])  # nothing throttles for it
    assert [(z.name, z.celsius, z.throttles_at) for z in zones(tmp_path)] == [
        ("gpu-thermal", 85.0, 90.0),
        ("cpu-thermal", 60.0, 99.0),
    ]
    assert not any(z.throttled for z in zones(tmp_path))


@pytest.mark.parametrize("broken", ["", "hot"])
def test_a_zone_that_can_not_be_read_is_left_out(tmp_path, broken):
    zone(tmp_path, 0, 60, [("passive", 99)])
    (tmp_path / "thermal_zone0" / "temp").write_text(broken)
    assert zones(tmp_path) == zones(tmp_path / "nowhere") == []


def test_a_cool_board_is_not_waited_for(tmp_path):
    zone(tmp_path, 0, 98.9, [("passive", 99)])
    warnings, slept = [], []
    cool_down(warnings.append, tmp_path, sleep=slept.append)
    assert not warnings and not slept


def test_a_throttled_board_is_waited_for_until_it_has_cooled(tmp_path):
    course = iter([98.0, 95.0, 99 - MARGIN_C, 20.0])
    zone(tmp_path, 0, 99.5, [("passive", 99)])
    warnings, slept = [], []

    def sleep(seconds):
        slept.append(seconds)
        zone(tmp_path, 0, next(course), [("passive", 99)])

    cool_down(warnings.append, tmp_path, sleep=sleep)
    assert len(slept) == 3
    (warning,) = warnings
    assert "cpu-thermal is at 99.5 °C and throttles from 99.0" in warning


def test_patience_ends_with_a_warning_and_the_measurement_goes_on(tmp_path):
    zone(tmp_path, 0, 101, [("passive", 99)])
    warnings, slept = [], []
    cool_down(warnings.append, tmp_path, patience_s=3 * POLL_S, sleep=slept.append)
    assert len(slept) == 3
    assert len(warnings) == 2 and "still at 101 °C after 6 s" in warnings[1] and "fan" in warnings[1]
