"""How reports print numbers: percent with one decimal, several seeds as mean ± half the range, and tables as Markdown."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

Row = Sequence[str]
Number = float | int  # JSON does not tell 1 from 1.0


def table(heading: Row, rows: Iterable[Row]) -> list[str]:
    """The lines of a Markdown table."""
    return ["| " + " | ".join(heading) + " |", "|" + "---|" * len(heading), *("| " + " | ".join(row) + " |" for row in rows)]


def percent(rate: Number) -> str:
    """Percent with one decimal."""
    return f"{100 * rate:.1f}"


def mean(rates: Sequence[Number]) -> str:
    """Percent with one decimal; of several rates mean ± half the range, of none a dash."""
    if not rates:
        return "–"
    spread = f" ± {50 * (max(rates) - min(rates)):.1f}" if len(rates) > 1 else ""
    return f"{percent(float(np.mean(rates)))}{spread}"


def amount(values: Sequence[Number], form: str = ",.0f") -> str:
    """A number that is no rate; of several that differ by what is printed mean ± half the range."""
    spread = f"{(max(values) - min(values)) / 2:{form}}"
    return f"{float(np.mean(values)):{form}}{f' ± {spread}' if float(spread.replace(',', '')) else ''}"


def three(cells: Sequence[dict[str, Any]]) -> str:
    """AUROC / AP / FPR95 of one cell of each seed."""
    return " / ".join(mean([cell[name] for cell in cells]) for name in ("auroc", "average_precision", "fpr95")) if cells else mean([])


def interval(ends: Sequence[Number]) -> str:
    """The ends in percent."""
    return f"{percent(ends[0])} to {percent(ends[1])}"


def counts(cell: dict[str, Any]) -> str:
    """How many malicious and benign queries a cell rests on."""
    return f"{cell['n_pos']:,} / {cell['n_neg']:,}"


def noted(values: Sequence[Any]) -> str:
    """A note on an attack, of each seed: numbers as mean ± half the range, words once."""
    if len(set(map(str, values))) > 1 and all(isinstance(value, float | int) for value in values):
        return amount(values, ".3g")
    values = [f"{value:.3g}" if isinstance(value, float) else value for value in values]
    return ", ".join(dict.fromkeys(map(str, values)))
