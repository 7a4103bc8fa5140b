"""The demonstration's picture: queries, what the autoencoder paints in their place, and the scores of all of them.

Each patch is shown as painted in the passes in which it was hidden, so the picture is what the masked view's error is computed from. The
score also weighs texture and the disagreement of two classifiers, so a small error alone does not let a query pass.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sameguard.calibration import Threshold

BENIGN_COLOUR, MALICIOUS_COLOUR, INK = "#2b6cb0", "#c2410c", "#222222"
ERROR_CEILING = 0.5  # squared error that is drawn darkest
TEXT_WIDTH = 1.75  # of the column with the verdict, in image widths


@dataclass(frozen=True, eq=False)
class Shown:
    """queries, reconstructions, errors: (shown, 1, height, width) of the first queries, with both classifiers' classes. scores, flagged: of all."""

    queries: np.ndarray
    reconstructions: np.ndarray
    errors: np.ndarray
    victim_classes: np.ndarray
    auxiliary_classes: np.ndarray
    scores: np.ndarray
    flagged: np.ndarray


def draw(path: Path, benign: Shown, malicious: Shown, threshold: Threshold, rows: int) -> None:
    """Writes the picture as PNG: examples of both kinds above, the histogram of all scores below."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 1.28 * rows + 4.4), dpi=110, facecolor="white")
    FigureCanvasAgg(figure)
    upper, lower = figure.subfigures(2, 1, height_ratios=(1.28 * rows + 0.9, 3.5))
    left, right = upper.subfigures(1, 2)
    _examples(left, benign, rows, f"Honest queries: test digits, the first {rows} of {len(benign.scores)}", BENIGN_COLOUR)
    _examples(right, malicious, rows, f"Thief's queries: glyphs, the first {rows} of {len(malicious.scores)}", MALICIOUS_COLOUR)
    _histogram(lower, benign, malicious, threshold)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _examples(figure: Any, shown: Shown, rows: int, title: str, colour: str) -> None:
    figure.suptitle(title, fontsize=12, fontweight="bold", color=colour, y=0.98)
    axes = figure.subplots(
        rows, 4, squeeze=False, gridspec_kw={"width_ratios": (1, 1, 1, TEXT_WIDTH), "wspace": 0.12, "hspace": 0.12,
        "left": 0.04, "right": 0.99, "top": 0.885, "bottom": 0.02},
    )  # fmt: skip
    for column, heading in enumerate(("query", "reconstruction\nwhile hidden", "squared error", "score and verdict")):
        axes[0, column].set_title(heading, fontsize=9.5, color=INK, pad=6)
    for row in range(rows):
        for axis in axes[row]:
            axis.set_xticks([])
            axis.set_yticks([])
        if row >= len(shown.queries):
            for axis in axes[row]:
                axis.axis("off")
            continue
        axes[row, 0].imshow(shown.queries[row, 0], cmap="gray", vmin=0, vmax=1)
        axes[row, 1].imshow(shown.reconstructions[row, 0], cmap="gray", vmin=0, vmax=1)
        axes[row, 2].imshow(shown.errors[row, 0], cmap="magma_r", vmin=0, vmax=ERROR_CEILING)
        _verdict(axes[row, 3], shown, row)


def _verdict(axis: Any, shown: Shown, row: int) -> None:
    axis.axis("off")
    axis.set_box_aspect(1 / TEXT_WIDTH)  # as high as the square images beside it
    refused = bool(shown.flagged[row])
    place = {"transform": axis.transAxes, "va": "center", "ha": "left"}
    axis.text(0.06, 0.74, f"score {shown.scores[row]:.1f}", fontsize=11, color=INK, **place)
    axis.text(0.06, 0.50, "refused" if refused else "answered", fontsize=11, fontweight="bold", color=INK, **place)
    classes = f"victim says {shown.victim_classes[row]}, auxiliary {shown.auxiliary_classes[row]}"
    axis.text(0.06, 0.26, classes, fontsize=8.5, color="#555555", **place)


def _histogram(figure: Any, benign: Shown, malicious: Shown, threshold: Threshold) -> None:
    axis = figure.subplots(gridspec_kw={"left": 0.075, "right": 0.975, "top": 0.9, "bottom": 0.17})
    both = np.concatenate([benign.scores, malicious.scores])
    edges = np.linspace(both.min(), both.max(), 41) if both.max() > both.min() else np.linspace(both[0] - 0.5, both[0] + 0.5, 41)
    for shown, label, colour in (
        (benign, "honest: test digits", BENIGN_COLOUR),
        (malicious, "thief: glyphs", MALICIOUS_COLOUR),
    ):
        text = f"{label}, {int(shown.flagged.sum())} of {len(shown.scores)} refused"
        weights = np.full(len(shown.scores), 100.0 / len(shown.scores))
        axis.hist(shown.scores, edges, weights=weights, color=colour, alpha=0.55, label=text)
    promise = f"threshold {threshold.value:.2f}: on average at most {threshold.false_positive_rate:.0%} of honest queries refused"
    axis.axvline(threshold.value, color=INK, linestyle="--", linewidth=1.5, label=promise)
    axis.set_xlabel("score (higher = more suspicious)", fontsize=10)
    axis.set_ylabel("share of queries, %", fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=10, frameon=False, loc="best")
