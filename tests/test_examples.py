"""Every example runs as a user runs it, and every command and block of the README does what it says."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sameguard.cli import app

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize(("name", "expected"), [("own_model", "answered:"), ("tabular", "uniform rows")])
def test_an_example_runs_and_prints_its_result(name, expected, tmp_path):
    path = ROOT / "examples" / f"{name}.py"
    assert len(path.read_text().splitlines()) < 60
    done = subprocess.run(
        [sys.executable, str(path), str(tmp_path / "guard")], capture_output=True, text=True, timeout=400, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout
    assert (tmp_path / "guard" / "manifest.json").exists()


def test_the_readmes_python_runs_as_it_stands(tmp_path):
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    done = subprocess.run([sys.executable, "-c", block], capture_output=True, text=True, timeout=400, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(r"answered: 9\d\.\d% of test digits, [0-9]\.\d% of noise", done.stdout), done.stdout


def test_every_command_in_the_documents_exists_with_its_options():
    blocks = "".join(block for document in DOCUMENTS for block in re.findall(r"```bash\n(.*?)```", document.read_text(), re.DOTALL))
    commands = {line.strip() for line in blocks.splitlines() if line.startswith("sameguard ")}
    assert len(commands) >= 5
    for command in commands:
        words = command.split("#")[0].split()[1:]
        verb = words[:2] if words[0] == "data" else words[:1]
        shown = CliRunner().invoke(app, [*verb, "--help"], env={"COLUMNS": "200"})
        assert shown.exit_code == 0, command
        for option in (word for word in words if word.startswith("--")):
            assert option in shown.output, f"{option} of {command}"


def test_documents_link_to_files_that_exist():
    for document in DOCUMENTS:
        for target in re.findall(r"\]\(((?!https?:)[^)#]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document.name}: {target}"
