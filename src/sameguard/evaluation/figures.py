"""Results -> pictures, drawn from result JSON alone. Each is a PNG with a transparent ground and grey ink, readable on light and dark pages."""

import io
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from sameguard.evaluation.detection import RIVALS
from sameguard.evaluation.families import EDM, MASKED_X, OE, PAPER, RELEASED, SAME_X, SAME_Y, TYPICALITY
from sameguard.evaluation.results import Result, reported

INK = "#808890"
BENIGN, MALICIOUS = "#3b82c4", "#d9622b"
COLOURS = {
    TYPICALITY: "#3b82c4", PAPER: "#d9622b", RELEASED: "#c49a3b", SAME_X: "#4aa568", MASKED_X: "#2f7f6d", SAME_Y: "#9a6bc9", OE: "#b0455b",
    EDM: "#7a7f87", "MSP": "#5fb3b3", "energy": "#8a8f2f", "its reconstruction error": "#b07aa1", "share faint": "#a8642f",
}  # fmt: skip
CYCLE = ("#3b82c4", "#d9622b", "#4aa568", "#9a6bc9", "#c49a3b", "#b0455b", "#5fb3b3", "#7a7f87")
PANEL = 2.7  # inches
LETTERS = 34  # of a panel's title in one line
ACROSS = 4  # panels in a row


def figures_of(result: Result) -> list[tuple[str, bytes]]:
    """Caption and PNG of each picture of an exhibit: of its first seed, as the caption says."""
    drawn = DRAWN.get(result.first["kind"], lambda _: [])(result)
    return [(f"{caption}, seed {result.seeds[0]}", picture) for caption, picture in drawn if picture]


# ---------------------------------------------------------------------- by kind


def _detection(result: Result) -> list[tuple[str, bytes]]:
    curves, titles = (
        result.data["curves"],
        {column["name"]: f"{column['title']}, {column['budget']:,}" for column in result.data["columns"]},
    )
    if not curves:
        return []
    names = [name for name in titles if any(curve["column"] == name for curve in curves)]

    def roc(axis: Any, name: str) -> None:
        for curve in curves:
            if curve["column"] == name:
                title, dashes = curve["title"], "--" if curve["title"] in RIVALS else "-"
                axis.plot(curve["fpr"], curve["tpr"], color=COLOURS[title], linestyle=dashes, linewidth=1.4, label=RIVALS.get(title, title))
        axis.plot([0, 1], [0, 1], color=INK, linewidth=0.6, linestyle=":")
        axis.set(title=titles[name], xlabel="benign flagged", ylabel="malicious flagged")

    found = [("ROC curves", _panels(names, roc, legend=True))]
    for score in (TYPICALITY, PAPER):
        chosen = {curve["column"]: curve for curve in curves if curve["title"] == score}
        if chosen:
            found.append((f"{score}: share of queries over the score", _panels(list(chosen), _bars_of(chosen, titles), legend=True)))
    return found


def _histograms(result: Result) -> list[tuple[str, bytes]]:
    rows = {f"{row['title']}": row for row in result.data["rows"]}
    titles = {name: f"{name}\nAUROC {100 * row['auroc']:.1f}" for name, row in rows.items()}
    return [
        (f"{result.data['rows'][0]['attack']}: share of queries over the score", _panels(list(rows), _bars_of(rows, titles), legend=True))
    ]


def _bars_of(rows: dict[str, dict[str, Any]], titles: dict[str, str]) -> Callable[[Any, str], None]:
    def draw(axis: Any, name: str) -> None:
        edges = np.array(rows[name]["edges"])
        for kind, colour in (("benign", BENIGN), ("malicious", MALICIOUS)):
            axis.stairs(np.array(rows[name][kind]) * 100, edges, fill=True, color=colour, alpha=0.55, label=kind)
        axis.set(title=titles[name], xlabel="score", ylabel="queries, %")

    return draw


def _enforcement(result: Result) -> list[tuple[str, bytes]]:
    attacks = list(dict.fromkeys(row["attack"] for row in result.data["rows"]))
    costs = {None: 0.0, **{entry["rate"]: 100 * entry["flagged"] / entry["of"] for entry in result.data["benign"]}}

    def draw(axis: Any, attack: str) -> None:
        for labels, marker, colour in (("soft", "o", BENIGN), ("hard", "s", MALICIOUS)):
            rows = sorted(
                (row for row in result.data["rows"] if (row["attack"], row["labels"]) == (attack, labels)),
                key=lambda row: costs[row["rate"]],
            )
            axis.plot(
                [costs[row["rate"]] for row in rows],
                [100 * row["fidelity"] for row in rows],
                marker=marker,
                color=colour,
                label=f"{labels} answers",
            )
        axis.set(title=attack, xlabel="test images refused, %", ylabel="stolen fidelity, %", ylim=(0, 102))

    return [("Stolen fidelity against benign cost (0 %: the open victim)", _panels(attacks, draw, legend=True))]


def _ratios(result: Result) -> list[tuple[str, bytes]]:
    rows = [row for row in result.data["rows"] if row["title"] == TYPICALITY]
    stored = [row for row in reported()["table-4"]["rows"] if result.first["setting"]["name"].startswith(row["setting"])]

    def draw(axis: Any, metric: str) -> None:
        for place, attack in enumerate(dict.fromkeys(row["attack"] for row in rows)):
            chosen = [row for row in rows if row["attack"] == attack]
            axis.plot(
                [row["ratio"] for row in chosen], [100 * row[metric][0] for row in chosen], marker=".", color=CYCLE[place], label=attack
            )
        if stored:
            name = {"average_precision": "aupr"}.get(metric, metric)
            axis.plot([row["ratio"] for row in stored], [row[name] for row in stored], color=INK, linestyle="--", marker=".", label="paper")
        axis.set(title={"auroc": "AUROC", "average_precision": "average precision", "fpr95": "FPR95"}[metric], xlabel="ratio", xscale="log")

    return [(f"{TYPICALITY} over the ratio of malicious queries", _panels(["auroc", "average_precision", "fpr95"], draw, legend=True))]


def _components(result: Result) -> list[tuple[str, bytes]]:
    attacks = list(dict.fromkeys(row["attack"] for row in result.data["rows"]))

    def draw(axis: Any, attack: str) -> None:
        rows = [row for row in result.data["rows"] if row["attack"] == attack]
        for place, row in enumerate(rows):
            low, high = row["intervals"]["auroc"]
            ends = [[100 * max(0.0, row["auroc"] - low)], [100 * max(0.0, high - row["auroc"])]]
            axis.bar([place], [100 * row["auroc"]], color=COLOURS[row["title"]], label=row["title"], yerr=ends, ecolor=INK, capsize=2)
        axis.set(title=attack, ylabel="AUROC, %", ylim=(0, 102), xticks=[])
        axis.axhline(50, color=INK, linewidth=0.6, linestyle=":")

    return [("AUROC with 95 % intervals; all share one autoencoder", _panels(attacks, draw, legend=True))]


def _weights(result: Result) -> list[tuple[str, bytes]]:
    attacks = list(dict.fromkeys(row["attack"] for row in result.data["rows"]))
    return [
        ("AUROC over the weight of the reconstruction error", _panels(attacks, _lines(result, "attack", "title", "weight"), legend=True))
    ]


def _widths(result: Result) -> list[tuple[str, bytes]]:
    attacks = list(dict.fromkeys(row["attack"] for row in result.data["rows"]))
    return [
        (
            "AUROC of the reconstruction error over the encoder's width",
            _panels(attacks, _lines(result, "attack", "view", "width"), legend=True),
        )
    ]


def _lines(result: Result, panel: str, line: str, across: str) -> Callable[[Any, str], None]:
    def draw(axis: Any, name: str) -> None:
        rows = [row for row in result.data["rows"] if row[panel] == name]
        for place, title in enumerate(dict.fromkeys(row[line] for row in rows)):
            chosen = [row for row in rows if row[line] == title]
            axis.plot([row[across] for row in chosen], [100 * row["auroc"] for row in chosen], marker=".", color=CYCLE[place], label=title)
        axis.axhline(50, color=INK, linewidth=0.6, linestyle=":")
        axis.set(title=name, xlabel=across, ylabel="AUROC, %", ylim=(0, 102))

    return draw


def _epochs(result: Result) -> list[tuple[str, bytes]]:
    rows = result.data["rows"]

    def draw(axis: Any, view: str) -> None:
        for place, kind in enumerate(dict.fromkeys(row["queries"] for row in rows)):
            chosen = [row for row in rows if row["queries"] == kind]
            axis.plot(
                [row["epoch"] for row in chosen], [row[f"error_{view}"] for row in chosen], marker=".", color=CYCLE[place], label=kind
            )
        axis.set(title=f"{view} view", xlabel="epoch", ylabel="mean squared error", yscale="log")

    return [("Reconstruction error over the autoencoder's epochs", _panels(["full", "masked"], draw, legend=True))]


def _add_ons(result: Result) -> list[tuple[str, bytes]]:
    users = list(dict.fromkeys(row["user"] for row in result.data["rows"]))

    def draw(axis: Any, name: str) -> None:
        for place, defence in enumerate(("none", "refusal", "proof of work")):
            rows = {row["user"]: row for row in result.data["rows"] if row["defence"] == defence}
            values = [100 * rows[user]["answered"] if name == "answered" else rows[user]["mean_seconds"] for user in users]
            axis.bar(np.arange(len(users)) + 0.27 * (place - 1), values, 0.25, color=CYCLE[place], label=defence)
        axis.set_xticks(range(len(users)), [user.replace(", ", ",\n") for user in users], fontsize=7)
        axis.set(
            title="queries answered, %" if name == "answered" else "mean seconds until the answer",
            yscale="linear" if name == "answered" else "log",
        )

    return [("Refusal and proof of work", _panels(["answered", "seconds"], draw, legend=True))]


DRAWN: dict[str, Callable[[Result], list[tuple[str, bytes]]]] = {
    "detection": _detection, "histograms": _histograms, "enforcement": _enforcement, "ratios": _ratios, "components": _components,
    "weights": _weights, "widths": _widths, "epochs": _epochs, "add-ons": _add_ons,
}  # fmt: skip


# ---------------------------------------------------------------------- drawing


def _panels(names: list[str], draw: Callable[[Any, str], None], *, legend: bool) -> bytes:
    """One small picture for each name, in a grid, as a PNG."""
    if not names:
        return b""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    across = min(ACROSS, len(names))
    down = -(-len(names) // across)
    with _grey_ink():
        figure = Figure(figsize=(PANEL * max(across, 3), PANEL * down + (0.7 if legend else 0.0)), dpi=100, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(down, across, squeeze=False)
        for axis, name in zip(axes.flat, names, strict=False):
            draw(axis, name)
            axis.set_title(wrapped(axis.get_title()))
            axis.spines[["top", "right"]].set_visible(False)
        for axis in list(axes.flat)[len(names) :]:
            axis.axis("off")
        if legend:
            handles, labels = axes.flat[0].get_legend_handles_labels()
            columns = max(1, min(len(labels), int(PANEL * max(across, 3) * 14) // max(map(len, labels))))  # about 14 letters an inch
            figure.legend(handles, labels, loc="outside lower center", ncols=columns, frameon=False, fontsize=8)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", transparent=True)
    return buffer.getvalue()


def wrapped(title: str) -> str:
    """A panel's title in lines that its width holds."""
    return "\n".join(textwrap.fill(line, LETTERS) for line in title.splitlines())


@contextmanager
def _grey_ink() -> Iterator[None]:
    from matplotlib import rc_context

    ink = dict.fromkeys(
        ("text.color", "axes.edgecolor", "axes.labelcolor", "axes.titlecolor", "xtick.color", "ytick.color", "legend.labelcolor"), INK
    )
    with rc_context({**ink, "font.size": 8, "axes.titlesize": 8.5, "axes.linewidth": 0.6}):
        yield
