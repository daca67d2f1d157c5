"""The options of both command lines, frozen: a changed name breaks scripts.

`python tests/contract/test_command_lines.py` writes the list anew, where a change is meant.
"""

from pathlib import Path

import pytest
import typer.main

import hw.cli.main
import prism
import sim.cli.main

FROZEN = Path(__file__).with_name("command_lines.txt")
APPS = {"prism-hw": hw.cli.main.app, "prism-sim": sim.cli.main.app}


def options() -> list[str]:
    lines = []
    for name, app in APPS.items():
        group = typer.main.get_command(app)
        for command in (group, *(group.commands[key] for key in sorted(group.commands))):
            words = [name] if command is group else [name, command.name]
            names = sorted("/".join([*p.opts, *p.secondary_opts]) for p in command.params)
            lines.append(": ".join([" ".join(words), " ".join(names)]))
    return lines


def test_no_option_came_or_went_unnoticed():
    assert options() == FROZEN.read_text().splitlines()


def test_every_command_of_more_than_eight_options_groups_them():
    group = typer.main.get_command(APPS["prism-hw"])
    for command in group.commands.values():
        shown = [p for p in command.params if p.param_type_name == "option" and p.name != "help"]
        if len(shown) > 8:
            assert all(p.rich_help_panel for p in shown), f"{command.name}: give each option a rich_help_panel"


@pytest.mark.parametrize("name", APPS)
def test_the_version_is_one_line(name, capsys):
    assert typer.main.get_command(APPS[name]).main(["--version"], standalone_mode=False) in (0, None)
    assert capsys.readouterr().out == f"prism-edge {prism.__version__}\n"


@pytest.mark.parametrize(
    ("command", "default"),
    [("run", "[default: (full)]"), ("evaluate", "[default: (16)]"), ("serve", "[default: (127.0.0.1:8000)]")],
)
def test_help_shows_the_defaults_of_the_configuration(command, default, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit):
        typer.main.get_command(APPS["prism-hw"]).main([command, "--help"])
    assert default in capsys.readouterr().out


if __name__ == "__main__":
    FROZEN.write_text("".join(f"{line}\n" for line in options()))
