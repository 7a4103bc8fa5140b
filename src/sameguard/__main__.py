"""`python -m sameguard`: the same as the command."""

from sameguard.cli import app

app(prog_name="sameguard")
