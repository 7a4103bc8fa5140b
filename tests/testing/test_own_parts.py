"""The examples of an attack and a detector of one's own: they keep their contracts, and docs/extending.md shows them as they are."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(name: str, *arguments: object) -> str:
    command = [sys.executable, str(ROOT / "examples" / f"{name}.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_own_attack_keeps_the_contract():
    assert "Blended keeps the contract of an attack" in run("own_attack")


def test_the_own_detector_keeps_the_contract_and_tells_saved_queries_apart(tmp_path):
    queries = np.random.default_rng(0).integers(0, 256, (50, 1, 8, 8)).astype(np.float32) / np.float32(255)
    np.savez(tmp_path / "stolen.npz", inputs=queries, victim_probs=np.full((50, 10), 0.1, np.float32), answered=np.ones(50, bool))
    said = run("own_detector", tmp_path / "stolen.npz")
    assert "LevelDistance keeps the contract of a detector" in said
    assert float(said.split("AUROC")[1]) > 0.99  # noise has other grey levels


@pytest.mark.parametrize("name", ["own_attack", "own_detector"])
def test_the_document_shows_the_example_as_it_is(name):
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "extending.md").read_text(encoding="utf-8"), re.DOTALL)
    example = (ROOT / "examples" / f"{name}.py").read_text(encoding="utf-8")
    (shown,) = [block for block in blocks if block in example]
    assert "class " in shown
    assert len(example.splitlines()) < 70
