import sys
from collections.abc import Callable

import pytest

from hw.cli.main import main

Ran = tuple[int, str, str]


@pytest.fixture
def prism_hw(monkeypatch, capsys) -> Callable[..., Ran]:
    """Run the command in this process, which has torch loaded; returns exit status, stdout and stderr.

    For what is refused or starts no ranks: a run pins its leader to a core.
    """

    def command(*args: str) -> Ran:
        monkeypatch.setattr(sys, "argv", ["prism-hw", *args])
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, *capsys.readouterr()

    return command
