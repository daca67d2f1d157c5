"""The one reader of rate files: what it refuses, with the file, the line and the remedy."""

import pytest

from prism.errors import ConfigError
from prism.rates import RatePoint, read_numbers, read_rates


def test_a_rate_trace_is_read_in_bits_per_second(tmp_path):
    path = tmp_path / "rates.csv"
    path.write_text("mbps,note,time_s\n400,a,0\n\n100,b,0.5\n")
    assert read_rates(path) == (RatePoint(at_s=0.0, rate_bps=4e8), RatePoint(at_s=0.5, rate_bps=1e8))
    assert [row.line for row in read_numbers(path, ("time_s",))] == [2, 4]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty; write the header time_s,mbps"),
        ("\n\n", "is empty"),
        ("time_s,mbps\n", "holds no rates"),
        ("t,r\n1,5\n", "line 1 has no column time_s and no mbps"),
        ("time_s,mbps\n0,-5\n", "line 2: mbps '-5' must be a finite number"),
        ("time_s,mbps\n0,0\n", "line 2: mbps 0 must be above 0"),
        ("time_s,mbps\n-1,5\n", "line 2: time_s '-1' must be a finite number"),
        ("time_s,mbps\n0,5\n1,nan\n", "line 3: mbps 'nan' must be a finite number"),
        ("time_s,mbps\n0,inf\n", "line 2: mbps 'inf' must be a finite number"),
        ("time_s,mbps\n0,1e400\n", "line 2: mbps '1e400' must be a finite number"),
        ("time_s,mbps\n0,1e305\n", "line 2: mbps 1e[+]305 must be above 0 and finite"),
        ("time_s,mbps\nnan,5\n", "line 2: time_s 'nan' must be a finite number"),
        ("time_s,mbps\n0,fast\n", "line 2: mbps 'fast' is no number; write one like 100"),
        ("time_s,mbps\n1,5\n0,5\n", "line 3: time_s 0 must grow, 1 stands before it"),
        ("time_s,mbps\n0,5\n\n0,5\n", "line 4: time_s 0 must grow"),
        ("\ufefftime_s,mbps\n0,5\n", "line 1 begins with a byte order mark; save the file as UTF-8 without one"),
        ("time_s;mbps\n0;5\n", "line 1 separates columns by ';'; separate them by commas"),
        ("time_s,mbps\n0;5\n", "line 2 has 1 values for 2 columns; separate them by commas"),
        ("time_s,mbps\n0,2,5\n", "line 2 has 3 values for 2 columns; .*decimals with a point"),
    ],
)
def test_a_bad_rate_trace_names_the_file_the_line_and_the_remedy(tmp_path, text, words):
    (tmp_path / "rates.csv").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=rf"rates\.csv: {words}"):
        read_rates(tmp_path / "rates.csv")


def test_a_file_that_is_not_there_or_not_utf8_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="can't be read"):
        read_rates(tmp_path / "none.csv")
    (tmp_path / "rates.csv").write_text("time_s,mbps\n0,5\n", encoding="utf-16")
    with pytest.raises(ConfigError, match="is not UTF-8 text; save it as CSV in UTF-8"):
        read_rates(tmp_path / "rates.csv")
