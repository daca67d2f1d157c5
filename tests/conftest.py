import os
import subprocess
from collections.abc import Iterator

import pytest
import torch
from support import warm
from support.gloo import GlooPool

subprocess.Popen = warm.Popen  # type: ignore[misc]


def pytest_runtest_setup(item):
    if item.get_closest_marker("root") and os.geteuid() != 0:
        pytest.skip("network namespaces need root")


@pytest.fixture(autouse=True)
def _starts(request):
    """Fork Prism's processes from one that holds the imports, but for tests that are marked `cold`."""
    warm.Popen.cold = request.node.get_closest_marker("cold") is not None
    yield
    warm.Popen.cold = False


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
