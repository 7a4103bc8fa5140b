"""Help: flags take no value and show no type, and each verb has an example."""

import pytest
import typer
from typer.testing import CliRunner

from sameguard.cli import app

COMMANDS = [[name] for name in typer.main.get_command(app).commands]
COMMANDS += [["data", name] for name in typer.main.get_command(app).commands["data"].commands]


def help_of(command: list[str]) -> str:
    done = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200"})
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize("command", [[], *COMMANDS], ids=" ".join)
def test_no_flag_shows_the_type_of_a_value_that_it_does_not_take(command):
    shown = help_of(command)
    assert "--help" in shown
    assert "<bool>" not in shown
    assert "BOOLEAN" not in shown


def test_options_that_take_a_value_still_say_which_kind():
    lines = {line.split()[1]: line for line in help_of(["fit"]).splitlines() if line.startswith("│    --")}
    assert "int" in lines["--seed"].lower()
    assert "SPEC" in help_of(["fit"])
    assert lines["--resume"].split()[2] == "Go"


@pytest.mark.parametrize("command", [command for command in COMMANDS if command != ["data"]], ids=" ".join)
def test_each_verb_has_an_example(command):
    assert f"Example: sameguard {' '.join(command)}" in help_of(command)
