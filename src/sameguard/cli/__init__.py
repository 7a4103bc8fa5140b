"""The command `sameguard`: parsing and printing; the library does the work.

Results go to stdout, progress and warnings to stderr. Exit codes: 0 ok, 1 finding, 2 usage or bad input, 75 time budget
spent (resume), 130 interrupted. A reader who goes away (`| head`) ends a command without a word, with 1.
"""

import sys
import warnings
from typing import Any

import typer
from typer.core import TyperGroup

from sameguard.cli.attack import attack_command
from sameguard.cli.audit import audit_command
from sameguard.cli.client_proxy import client_proxy_command
from sameguard.cli.data import data_app
from sameguard.cli.demo import demo_command
from sameguard.cli.doctor import doctor_command
from sameguard.cli.evaluate import evaluate_command, report_command
from sameguard.cli.fit import calibrate_command, fit_command
from sameguard.cli.score import score_command, show_command
from sameguard.cli.score_log import score_log_command
from sameguard.cli.serve import serve_command
from sameguard.errors import SameguardError


class _Group(TyperGroup):
    """Turns our errors into one sentence and exit code 2; anything else is a bug and keeps its traceback."""

    def invoke(self, ctx: Any) -> Any:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            warnings.simplefilter("always", UserWarning)
            try:
                try:
                    return super().invoke(ctx)
                finally:
                    sys.stdout.flush()
            except BrokenPipeError:  # `sameguard audit ... | head` has read enough: typer ends quietly
                raise
            except (SameguardError, OSError) as error:  # OSError: a full disk, a missing folder, a file that may not be written
                typer.echo(f"error: {error}", err=True)
                raise typer.Exit(2) from error

    def get_params(self, ctx: Any) -> list[Any]:
        return _flags_without_a_type(super().get_params(ctx))

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        command = super().get_command(ctx, cmd_name)
        for part in (command, *getattr(command, "commands", {}).values()):
            if part is not None:
                _flags_without_a_type(part.get_params(ctx))
        return command


def _flags_without_a_type(parameters: list[Any]) -> list[Any]:
    """The same parameters; help shows no `<bool>` beside a flag that takes no value."""
    for parameter in parameters:
        if getattr(parameter, "is_flag", False):
            parameter.metavar = ""
    return parameters


def _show_warning(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
    if issubclass(category, UserWarning):
        typer.echo(f"warning: {message}", err=True)


app = typer.Typer(
    cls=_Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Detect model-extraction queries and refuse them (SAME, AAAI 2024).",
)
app.command("fit")(fit_command)
app.command("calibrate")(calibrate_command)
app.command("score")(score_command)
app.command("show")(show_command)
app.command("demo")(demo_command)
app.command("attack")(attack_command)
app.command("evaluate")(evaluate_command)
app.command("report")(report_command)
app.command("serve")(serve_command)
app.command("audit")(audit_command)
app.command("score-log")(score_log_command)
app.command("doctor")(doctor_command)
app.command("client-proxy")(client_proxy_command)
app.add_typer(data_app, name="data")
