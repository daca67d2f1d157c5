"""Quantities as text: only finite ones, each with its unit."""

import pytest

from prism.errors import ConfigError
from prism.units import format_bytes, format_rate, format_seconds, parse_rate, parse_seconds, parse_share


def test_quantities_are_read_in_si():
    assert parse_rate("1.5 Gbit/s") == 1.5e9 and parse_rate("800 kbps") == 8e5 and parse_rate("5bps") == 5
    assert parse_seconds("2ms") == 2e-3 and parse_seconds("150µs") == pytest.approx(1.5e-4)
    assert parse_share("1%") == 0.01 and parse_share("0.25") == 0.25
    assert (format_rate(1e8), format_bytes(303104), format_seconds(2.5e-3)) == ("100 Mbps", "303.1 kB", "2.5 ms")


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "1e400", "1e308"])
def test_what_is_not_finite_is_refused_wherever_it_is_parsed(number):
    for parse, unit in ((parse_rate, "Mbps"), (parse_seconds, "s"), (parse_share, ""), (parse_share, "%")):
        if (number, unit) == ("1e308", "s"):
            continue  # so many seconds are a number
        with pytest.raises(ConfigError, match=number):
            parse(number + unit)


@pytest.mark.parametrize(("parse", "text"), [(parse_rate, "100"), (parse_rate, "0Mbps"), (parse_seconds, "-1s")])
def test_a_bare_or_negative_quantity_is_refused_with_the_form(parse, text):
    with pytest.raises(ConfigError, match=r"100Mbps|2ms"):
        parse(text)


def test_a_share_stays_below_one():
    with pytest.raises(ConfigError, match="1%"):
        parse_share("100%")
