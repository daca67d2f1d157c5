"""How a command line ends."""

import sys

import pytest
import typer

from prism.cli.entry import run


@pytest.fixture
def ended(monkeypatch, capsys):
    def end_with(error: Exception) -> tuple[int, str]:
        app = typer.Typer()

        @app.command()
        def fail() -> None:
            raise error

        monkeypatch.setattr(sys, "argv", ["prism-hw"])
        with pytest.raises(SystemExit) as caught:
            run(app, "prism-hw")
        return caught.value.code, capsys.readouterr().err

    return end_with


def test_a_package_of_an_extra_that_is_missing_is_one_line_with_the_remedy(ended):
    code, said = ended(ModuleNotFoundError("No module named 'torch.nn'", name="torch.nn"))
    assert (code, said) == (2, "prism-hw: torch is not installed, and this needs it: pip install 'prism-edge[hw]'\n")


def test_a_module_of_ours_that_is_missing_is_a_fault_not_a_remedy(ended):
    with pytest.raises(ModuleNotFoundError):
        ended(ModuleNotFoundError("No module named 'hw.nowhere'", name="hw.nowhere"))
