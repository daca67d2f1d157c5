"""The alpha-beta fit: known parameters come back under bursts, and a break is only seen where there is one."""

from itertools import pairwise

import msgspec
import numpy as np
import pytest

from calibration.alpha_beta import AlphaBeta, fit_alpha_beta
from prism.errors import ConfigError

SIZES = np.repeat([1, 4, 16, 64, 256, *(1024 * 2**k for k in range(13))], 8)
ALPHA_S, BETA_BPS, BREAK = 1e-3, 1e8, 200_000


def line(sizes=SIZES, alpha_s=ALPHA_S, beta_bps=BETA_BPS):
    return alpha_s + 8 * sizes / beta_bps


def broken():
    return np.where(SIZES <= BREAK, line(), line(alpha_s=8e-3, beta_bps=2e8))


def disturbed(seconds, seed, spread=0.1):
    """Log-normal noise, and one sample in twenty in a burst that makes it 2 to 10 times as long."""
    rng = np.random.default_rng(seed)
    noisy = seconds * np.exp(rng.normal(0, spread, len(seconds)))
    return np.where(rng.random(len(seconds)) < 0.05, noisy * rng.uniform(2, 10, len(seconds)), noisy)


def test_an_exact_line_is_recovered():
    fit = fit_alpha_beta(SIZES, line())
    assert fit.break_bytes is None
    assert fit.alpha_s == pytest.approx(ALPHA_S, rel=1e-9)
    assert fit.beta_bps == pytest.approx(BETA_BPS, rel=1e-9)
    assert fit.mape < 1e-9
    assert (fit.from_bytes, fit.to_bytes, fit.samples) == (1, 4 << 20, len(SIZES))
    assert fit.seconds(10_000) == pytest.approx(1.8e-3)


def test_a_break_with_both_lines_is_recovered():
    fit = fit_alpha_beta(SIZES, broken())
    assert fit.break_bytes is not None and 131_072 < fit.break_bytes < 262_144
    assert [piece.alpha_s for piece in fit.lines] == pytest.approx([1e-3, 8e-3])
    assert [piece.beta_bps for piece in fit.lines] == pytest.approx([1e8, 2e8])
    assert fit.seconds(100_000) == pytest.approx(1e-3 + 8e5 / 1e8)
    assert fit.seconds(1_000_000) == pytest.approx(8e-3 + 8e6 / 2e8)


def test_bursts_leave_the_parameters_where_they_are():
    fits = [fit_alpha_beta(SIZES, disturbed(line(), seed)) for seed in range(40)]
    single = [fit for fit in fits if fit.break_bytes is None]
    assert len(single) >= 38  # a break in noise is a false alarm
    assert np.median([abs(fit.alpha_s / ALPHA_S - 1) for fit in single]) < 0.03
    assert np.median([abs(fit.beta_bps / BETA_BPS - 1) for fit in single]) < 0.03
    inside = [abs(fit.alpha_s - ALPHA_S) < 2 * fit.lines[0].alpha_se_s for fit in single]
    assert np.mean(inside) > 0.8  # the standard errors mean something


def test_a_break_is_found_under_bursts():
    found = [fit_alpha_beta(SIZES, disturbed(broken(), seed)).break_bytes for seed in range(40)]
    assert sum(edge is not None for edge in found) >= 38
    assert 80_000 < np.median([edge for edge in found if edge is not None]) < 400_000


AT = 128_000
SHAPES = {
    "larger messages are slower a byte": lambda sizes: 1e-3 + 8 * (sizes + 4 * np.maximum(sizes - AT, 0)) / 4e8,
    "larger messages are faster a byte": lambda sizes: 1e-3 + 8 * (sizes - 0.8 * np.maximum(sizes - AT, 0)) / 4e8,
    "the time jumps": lambda sizes: 1e-3 + 8 * sizes / 4e8 + 4e-3 * (sizes > AT),
}


def session(curve, seed, repeats, spread):
    """Rounds over all sizes, of which one in seven is in a burst as a whole."""
    rng = np.random.default_rng(seed)
    sizes = np.unique(SIZES)
    bursts = np.where(rng.random(repeats) < 0.15, rng.uniform(1.5, 5, repeats), 1.0)
    seconds = np.outer(bursts, curve(sizes)) * np.exp(rng.normal(0, spread, (repeats, len(sizes))))
    return np.tile(sizes, repeats), seconds.ravel()


@pytest.mark.parametrize("name", SHAPES)
def test_breaks_of_every_kind_are_found_where_they_are_without_bias(name):
    curve, sizes = SHAPES[name], np.unique(SIZES)
    fits = [fit_alpha_beta(*session(curve, seed, 15, 0.08)) for seed in range(20)]
    edges = [fit.break_bytes for fit in fits]
    assert all(edge is not None and AT / 2.5 < edge < 2.5 * AT for edge in edges)
    fitted = np.array([[fit.seconds(size) for size in sizes] for fit in fits])
    assert np.mean(abs(fitted / curve(sizes) - 1)) < 0.035
    truth = (curve(sizes[-1]) - curve(sizes[-2])) / (sizes[-1] - sizes[-2])
    assert np.median([8 / fit.beta_bps for fit in fits]) == pytest.approx(truth, rel=0.03)


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("spread", [0.08, 0.2])
def test_the_curve_never_falls_with_size(name, spread):
    for seed in range(20):
        fit = fit_alpha_beta(*session(SHAPES[name], seed, 5, spread))
        grid = [fit.seconds(size) for size in np.geomspace(1, 4 << 20, 200)]
        assert all(before <= after * (1 + 1e-9) for before, after in pairwise(grid))


def test_few_noisy_repeats_are_no_break():
    fits = [fit_alpha_beta(*session(line, seed, 5, 0.2)) for seed in range(40)]
    assert sum(fit.break_bytes is not None for fit in fits) <= 2


def test_a_bend_finer_than_one_per_cent_is_no_break():
    slightly = np.where(SIZES <= BREAK, line(), line() * 1.005)
    assert fit_alpha_beta(SIZES, slightly).break_bytes is None


def test_limits_of_physics_hold():
    fit = fit_alpha_beta([1, 10, 100, 1000] * 3, [2e-3, 1.9e-3, 1.8e-3, 1.7e-3] * 3)  # faster when larger
    assert fit.lines[0].beta_bps > 0 and np.isfinite(fit.lines[0].beta_bps)
    steep = fit_alpha_beta([1000, 2000, 4000], [1e-6, 1e-3, 4e-3])  # the line through them starts below zero
    assert steep.alpha_s == 0


def test_the_fit_is_plain_data():
    fit = fit_alpha_beta(SIZES, line())
    assert msgspec.json.decode(msgspec.json.encode(fit), type=AlphaBeta) == fit


@pytest.mark.parametrize(
    ("sizes", "seconds", "message"),
    [
        ([1, 1, 2], [1.0, 1.0, 1.0], "2 message sizes"),
        ([1, 2, 3], [1.0, 0.0, 1.0], "above 0"),
        ([1, 2, 3], [1.0, 1.0], "one size for each"),
        ([], [], "0 message sizes"),
    ],
)
def test_what_cannot_be_fitted_is_refused(sizes, seconds, message):
    with pytest.raises(ConfigError, match=message):
        fit_alpha_beta(sizes, seconds)
