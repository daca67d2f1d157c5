from collections.abc import Iterator

import pytest
import torch
from support.gloo import GlooPool


@pytest.fixture(scope="session")
def gloo() -> Iterator[GlooPool]:
    pool = GlooPool()
    yield pool
    pool.close()


@pytest.fixture(autouse=True)
def _gradients():
    """A server turns gradients off for its whole process; the next test may want them."""
    yield
    torch.set_grad_enabled(True)
