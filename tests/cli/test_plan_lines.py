"""What `evaluate` says on stderr where there is no terminal, and what a dry run refuses."""

import json

from typer.testing import CliRunner

from sameguard.cli import app
from sameguard.cli.evaluate import PlanLines
from sameguard.evaluation.cache import SCHEMA
from sameguard.evaluation.run import PlanEvent


def told(*events: tuple[int, str, bool, int]) -> list[str]:
    """Lines of events (step, title, making, cached so far) of a plan of 4 steps."""
    lines: list[str] = []
    show = PlanLines(lines.append)
    for step, title, making, cached in events:
        show(PlanEvent(step, 4, title, 0.5, 120.0, None, making, cached))
    show.close()
    return lines


def test_a_run_in_which_everything_is_cached_is_one_line():
    steps = [(step, name, False, cached) for step, name in enumerate("abcd", 1) for cached in (step - 1, step)]
    assert told(*steps) == ["4 of 4 steps cached"]


def test_only_what_is_made_has_a_line_and_the_time_left_and_what_was_cached_before_it_is_counted_once():
    made = [(3, "c", False, 2), (3, "c", True, 2), (3, "c", True, 2)]
    lines = told(
        (1, "a", False, 0), (1, "a", False, 1), (2, "b", False, 1), (2, "b", False, 2), *made, (4, "d", False, 2), (4, "d", True, 2)
    )
    assert lines == ["2 of 4 steps cached", "[3/4] c, about 2 min left", "[4/4] d, about 2 min left"]


def test_a_dry_run_refuses_a_folder_of_another_scale_as_the_run_would(tmp_path):
    (tmp_path / "laboratory.json").write_text(json.dumps({"schema": SCHEMA, "scale": "tiny"}))
    done = CliRunner().invoke(app, ["evaluate", "--scale", "cpu", "--out", str(tmp_path), "--dry-run"])
    assert done.exit_code == 2
    assert "is of scale tiny, got cpu: choose another --out" in done.output.replace("\n", " ")
    (tmp_path / "laboratory.json").rename(tmp_path / "thesis.tex")
    done = CliRunner().invoke(app, ["evaluate", "--scale", "cpu", "--out", str(tmp_path), "--dry-run"])
    assert done.exit_code == 2
    assert "must be new, empty or a results folder" in done.output.replace("\n", " ")
