"""Help: flags take no value and show no type, and each verb has an example."""

import pytest
import typer
from typer.testing import CliRunner

from sameguard.cli import app

COMMANDS = [[name] for name in typer.main.get_command(app).commands]
COMMANDS += [["data", name] for name in typer.main.get_command(app).commands["data"].commands]


def help_of(command: list[str], columns: int = 200) -> str:
    done = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": str(columns)})
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize("command", [[], *COMMANDS], ids=" ".join)
def test_no_flag_shows_the_type_of_a_value_that_it_does_not_take(command):
    shown = help_of(command)
    assert "--help" in shown
    assert "<bool>" not in shown
    assert "BOOLEAN" not in shown


@pytest.mark.parametrize("command", [[], *COMMANDS], ids=" ".join)
def test_a_narrow_terminal_shows_every_word_and_no_name_of_a_python_type(command):
    shown = help_of(command, columns=80)
    assert "…" not in shown
    assert max(len(line.rstrip()) for line in shown.splitlines()) <= 80
    for noise in (" range>", "<list", "Optional"):
        assert noise not in shown


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_option_says_in_a_sentence_what_it_is(command):
    verb = typer.main.get_command(app)
    for name in command:
        verb = verb.commands[name]
    for parameter in verb.params:
        assert (parameter.help or "").rstrip().endswith("."), f"{parameter.name} of {' '.join(command)}"


def test_options_that_take_a_value_still_say_which_kind():
    lines = {line.split()[1]: line for line in help_of(["fit"]).splitlines() if line.startswith("│    --")}
    assert "int" in lines["--seed"].lower()
    assert "SPEC" in help_of(["fit"])
    assert lines["--resume"].split()[2] == "Go"


@pytest.mark.parametrize("command", [command for command in COMMANDS if command != ["data"]], ids=" ".join)
def test_each_verb_has_an_example(command):
    assert f"Example: sameguard {' '.join(command)}" in help_of(command)
