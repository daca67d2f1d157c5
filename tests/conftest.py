from collections.abc import Iterator

import pytest
from support.gloo import GlooPool


@pytest.fixture(scope="session")
def gloo() -> Iterator[GlooPool]:
    pool = GlooPool()
    yield pool
    pool.close()
