"""Groups of options, spread out to a command's own."""

from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from prism.cli.option_groups import OptionGroup, grouped


class LinkOptions(OptionGroup, frozen=True, kw_only=True):
    rate: Annotated[str, typer.Option(help="A rate.", rich_help_panel="Link")] = "400Mbps"
    latency: Annotated[str, typer.Option(help="A latency.", rich_help_panel="Link")] = "0ms"


class NoisyLinkOptions(LinkOptions, frozen=True, kw_only=True):
    loss: Annotated[str, typer.Option(help="A share.", rich_help_panel="Link")] = "0%"


class ModelOptions(OptionGroup, frozen=True, kw_only=True):
    model: Annotated[str, typer.Argument(help="A model.")]


@pytest.fixture
def invoke():
    app, seen = typer.Typer(), []

    @app.command()
    @grouped
    def predict(model: ModelOptions, link: NoisyLinkOptions, batch: Annotated[int, typer.Option()] = 1) -> None:
        seen.append((model, link, batch))

    return lambda *words: (CliRunner().invoke(app, words), seen)


def test_a_group_is_filled_from_its_options(invoke):
    done, seen = invoke("vit", "--latency", "2ms", "--batch", "8", "--loss", "1%")
    assert done.exit_code == 0
    assert seen == [(ModelOptions(model="vit"), NoisyLinkOptions(latency="2ms", loss="1%"), 8)]


def test_help_shows_the_options_of_a_group_with_their_defaults_in_their_panel(invoke):
    shown = invoke("--help")[0].output
    assert "─ Link ─" in shown and "[default: 400Mbps]" in shown and "--link" not in shown
    assert shown.index("--rate") < shown.index("--latency") < shown.index("--loss")


def test_an_argument_of_a_group_is_required(invoke):
    assert invoke()[0].exit_code == 2
