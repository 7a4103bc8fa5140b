"""Every cell of the README's tables stands in the results that the README names."""

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
DETECTION = {  # row of the README -> row of results/real_data/*.md
    "typicality": "typicality (default)",
    "two_sided": "two_sided",
    "disagreement alone": "L_dev disagreement (SAME-Y)",
    "weighted as the paper (masked, .5)": "weighted, paper (masked, z-scores, .5)",
    "weighted as the release (full, .99)": "weighted, like released (full, .99)",
    "no learning: compressed size": "compressed size, one-sided",
    "no learning: share of faint pixels": "share of faint pixels, one-sided",
    "no learning: Laplacian energy, two-sided": "Laplacian energy, two-sided",
    "no fit at all: the victim's energy": "victim energy",
}
MNIST = ["femnist-digits", "KMNIST", "CIFAR-100, grey", "JBDA .1 +", "JBDA .1 -", "JBDA .05 +", "JBDA .05 -"]
CIFAR = ["CIFAR-100", "Tiny ImageNet", "JBDA .1", "JBDA .05", "JBDA .1, blurred", "JBDA .1, median-filtered", "JBDA .1, JPEG 50"]
LABORATORY = {  # row of the README -> row of results/cpu/report.md
    "the paper's SAME": "*paper: SAME*",
    "SAME, typicality": "SAME, typicality (default)",
    "SAME, Eq. 6 as the paper": "SAME, Eq. 6 as the paper (masked, z-scores, .5)",
    "Outlier Exposure (2 epochs)": "Outlier Exposure",
    "Ensemble of Diverse Models (1 epoch)": "Ensemble of Diverse Models",
    "a plain autoencoder's error": "its reconstruction error",
    "no learning: share of faint pixels": "share faint",
}


def rows_after(text: str, mark: str) -> dict[str, list[str]]:
    """The first table after a mark: row -> cells, its header under "score"."""
    lines = text[text.index(mark) :].splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith("|"))
    table = []
    for line in lines[start:]:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line.strip("|").split("|")])
    return {row[0]: row[1:] for row in table if not set(row[0]) <= set("-: ")}


def plain(name: str) -> str:
    """A row's name without emphasis, and without what says that it is the default."""
    return re.sub(r"[`*]", "", name).replace(" (default)", "").strip()


@pytest.mark.parametrize(("mark", "file", "columns"), [("**MNIST**", "mnist-seed0.md", MNIST), ("**CIFAR-10**", "cifar10-seed0.md", CIFAR)])
def test_the_readmes_detection_tables_are_those_of_the_results(mark, file, columns):
    stored = rows_after((ROOT / "results" / "real_data" / file).read_text(), "AUROC in percent")
    places = {re.sub(r" \(\d+\)$", "", name): number for number, name in enumerate(stored["score"])}
    shown = rows_after(README, mark)
    shown.pop("score")
    assert len(shown) >= 6
    for name, cells in shown.items():
        found = [number for cell in cells for number in cell.split(" / ")]
        assert found == [stored[DETECTION[plain(name)]][places[column]] for column in columns], name


def test_the_readmes_table_1_is_that_of_the_results():
    report = (ROOT / "results" / "cpu" / "report.md").read_text()
    stored = rows_after(report[report.index("## Table 1: detection: MNIST") :], "**4,000 queries.** AUROC / AP / FPR95")
    shown = rows_after(README, "Table 1 of the paper as far as two cores carry it")
    shown.pop("score")
    assert len(shown) == len(LABORATORY)
    for name, cells in shown.items():
        kept = stored[LABORATORY[plain(name)]]
        assert cells == [cell if cell == "–" else " / ".join(cell.split(" / ")[::2]) for cell in kept], name


@pytest.mark.parametrize("dataset", ["mnist", "cifar10"])
def test_the_readmes_flags_and_accuracies_are_those_of_the_results(dataset):
    stored = json.loads((ROOT / "results" / "real_data" / f"{dataset}-seed0.json").read_text())
    assert f"{stored['test_flags']['flagged']} of the 10,000 test images were flagged" in README
    assert f"victim of {100 * stored['victim_accuracy']:.{2 if dataset == 'mnist' else 1}f} %" in README
