import numpy as np
import pytest

from prism.trace.quantiles import median, nearest_quantiles, quantile, quantiles


def test_they_are_those_of_numpy():
    values = list(np.random.default_rng(0).normal(size=101))
    assert median(values) == np.median(values) and median(values[:100]) == np.median(values[:100])
    assert quantile(values, 95) == np.percentile(values, 95)
    assert quantiles(values, 10, 50, 90) == tuple(np.percentile(values, (10, 50, 90)))
    assert set(nearest_quantiles(values, 10, 90)) <= set(values)


def test_a_generator_and_an_array_will_do():
    assert quantiles((float(k) for k in range(5)), 50) == (2.0,)
    assert median(np.arange(4.0)) == pytest.approx(1.5)
