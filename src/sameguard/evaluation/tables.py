"""Results -> Markdown: the paper's numbers and ours side by side, how many queries each rests on, and what is missing and why.

Several seeds of one exhibit become mean and spread (half the range).
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sameguard.evaluation.families import EDM, OE, PAPER, TYPICALITY
from sameguard.evaluation.feasibility import infeasibilities
from sameguard.evaluation.results import Result, absent, read_results, reported
from sameguard.evaluation.run import read_folder

Row = Sequence[str]
MAIN = (TYPICALITY, PAPER, OE, EDM)  # methods whose intervals are printed


# ---------------------------------------------------------------------- Markdown


def markdown(out: Path) -> str:
    """All tables of a results folder as one Markdown document."""
    results = read_results(out)
    parts = ["# Results of the laboratory", "", f"Scale `{read_folder(out)['scale']}`. {PREFACE}", ""]
    for result in results:
        parts += [f"## {result.first['title']}: {result.first['setting']['title']}", "", *section(result), ""]
    lost = absent(out, results)
    parts += [
        "## What is missing",
        "",
        *([f"- {sentence}" for sentence in lost] or ["Nothing."]),
        "",
        "## Notes on the paper's numbers",
        "",
    ]
    return "\n".join([*parts, *[f"- {note}" for note in reported()["notes"]], ""])


PREFACE = (
    "Percent, unless said otherwise; higher is better but for FPR. Positives are malicious queries. Average precision (AP) is the step sum; the "
    "paper's AUPR is a trapezoid. Intervals are 95 % and cover the choice of queries alone; with several seeds, ± is half their range."
)


def section(result: Result) -> list[str]:
    """The Markdown lines of one exhibit."""
    lines = SECTIONS[result.first["kind"]](result)
    run = result.first
    code = run["code"]["commit"]
    made = f"Victim accuracy {_percent(run['setting']['victim_accuracy'])} %. Seeds: {', '.join(map(str, result.seeds))}. sameguard {run['code']['sameguard']}"
    made += "" if code is None else f" ({code[:10]}{', changed' if run['code']['changed'] else ''})"
    return [*lines, "", f"{made}, {run['machine']['processor']}, {run['machine']['threads']} threads."]


def table(heading: Row, rows: Iterable[Row]) -> list[str]:
    return ["| " + " | ".join(heading) + " |", "|" + "---|" * len(heading), *("| " + " | ".join(row) + " |" for row in rows)]


def _detection(result: Result) -> list[str]:
    lines: list[str] = []
    columns = result.data["columns"]
    for budget in dict.fromkeys(column["budget"] for column in columns):
        chosen = [column for column in columns if column["budget"] == budget]
        lines += [f"**{budget:,} queries.** AUROC / AP / FPR95.", ""]
        lines += [*table(["score", *[f"{column['title']} ({column['status']})" for column in chosen]], _detection_rows(result, chosen)), ""]
        lines += _interval_lines(result, chosen) + _attack_lines(result, chosen)
    lines += _guard_lines(result.data["guard"], columns)
    impossible = result.data["infeasible"]
    lines.append(
        "No cell of ours is beyond what a ROC curve can produce." if not impossible else f"Beyond any ROC curve: {'; '.join(impossible)}."
    )
    theirs = _paper_impossible(result.first["exhibit"])
    return [*lines, *([f"Of the paper's cells, at as many malicious as benign queries: {'; '.join(theirs)}."] if theirs else [])]


def _paper_impossible(exhibit: str) -> list[str]:
    """A sentence for each printed cell of a detection table that no ROC curve can produce at a prevalence of one half."""
    found = []
    for entry in reported().get(exhibit, {}).get("rows", []):
        name = f"{entry['method']}, {entry['attack']} at {entry['budget']:,}"
        why = infeasibilities(entry["auroc"] / 100, entry["aupr"] / 100, 0.5, fpr95=entry["fpr95"] / 100)
        found += [f"{name}: {sentence}" for sentence in why]
    return found


def _detection_rows(result: Result, columns: list[dict[str, Any]]) -> list[Row]:
    rows: list[Row] = []
    stored = reported().get(result.first["exhibit"], {}).get("rows", [])
    for method in ("OE", "EDM", "SAME"):
        cells = [_reported_cell(stored, method, column) for column in columns]
        if any(cell != "–" for cell in cells):
            rows.append([f"*paper: {method}*", *cells])
    group = None
    for row in result.data["rows"]:
        if row["group"] != group:
            group = row["group"]
            rows.append([f"**{group}**", *[""] * len(columns)])
        rows.append([row["title"], *[three(cells_of(result, row["title"], column["name"])) for column in columns]])
    return rows


def _reported_cell(stored: list[dict[str, Any]], method: str, column: dict[str, Any]) -> str:
    for entry in stored:
        if (entry["method"], entry["attack"], entry["budget"]) == (method, column["reported"], column["budget"]) and column[
            "part"
        ] == "all":
            return f"{entry['auroc']:.1f} / {entry['aupr']:.1f} / {entry['fpr95']:.1f}"
    return "–"


def cells_of(result: Result, title: str, column: str) -> list[dict[str, Any]]:
    """The cells of one score and column, one for each seed that has it."""
    rows = [row for run in result.runs for row in run["data"]["rows"] if row["title"] == title]
    return [row["cells"][column] for row in rows if column in row["cells"]]


def three(cells: list[dict[str, Any]]) -> str:
    """AUROC / AP / FPR95 in percent."""
    return " / ".join(mean([cell[name] for cell in cells]) for name in ("auroc", "average_precision", "fpr95")) if cells else "–"


def mean(values: Sequence[float]) -> str:
    """Percent with one decimal; with several values mean ± half the range."""
    spread = f" ± {50 * (max(values) - min(values)):.1f}" if len(values) > 1 else ""
    return f"{100 * float(np.mean(values)):.1f}{spread}"


def _interval_lines(result: Result, columns: list[dict[str, Any]]) -> list[str]:
    rows = []
    for title in MAIN:
        cells = [cells_of(result, title, column["name"]) for column in columns]
        if any(cells):
            rows.append([title, *[_interval(cell[0]["intervals"]["auroc"]) if cell else "–" for cell in cells]])
    counts = [next((cells_of(result, row["title"], column["name"]) for row in result.data["rows"]), []) for column in columns]
    rows.append(["positives / negatives", *[f"{cell[0]['n_pos']:,} / {cell[0]['n_neg']:,}" if cell else "–" for cell in counts]])
    return ["95 % interval of AUROC (first seed), and counts:", "", *table(["score", *[column["title"] for column in columns]], rows), ""]


def _attack_lines(result: Result, columns: list[dict[str, Any]]) -> list[str]:
    lines = []
    for column in columns:
        parts = [
            _answered(column),
            f"substitute's accuracy {_percent(column['accuracy'])}, fidelity {_percent(column['fidelity'])}",
        ]
        if "proxy" in column:
            parts.append(f"proxy {column['proxy']}")
        parts += [f"{name.replace('_', ' ')} {_short(value)}" for name, value in column["notes"].items()]
        if column["caps"]:
            natural = f"{column['natural']:,} of {column['scored']:,} are natural images"
            parts.append(
                f"{natural}, so in expectation AUROC <= {_percent(column['caps']['auroc'])}, FPR95 >= {_percent(column['caps']['fpr'])}"
            )
        lines.append(f"- {column['title']}: {'; '.join(parts)}.")
    return [*lines, ""]


def _answered(column: dict[str, Any]) -> str:
    if column["kept"] == column["used"]:
        return f"{column['answered']:,} of {column['used']:,} queries answered"
    return f"{column['used']:,} queries, of which {column['kept']:,} were kept, {column['answered']:,} of these answered"


def _guard_lines(guard: dict[str, Any], columns: list[dict[str, Any]]) -> list[str]:
    if not guard:
        return []
    rows = []
    for entry in guard["rates"]:
        low, high = entry["expected"]
        benign = f"{entry['flagged']:,} of {entry['of']:,} ({low:,} to {high:,} expected)"
        rows.append([f"{entry['rate']:.0%}", benign, *[_percent(entry["attacks"][column["name"]]) for column in columns]])
    heading = ["promised", "test images flagged", *[f"{column['title']}, {column['budget']:,}" for column in columns]]
    text = f"Flagged by the calibrated guard ({guard['engine']}, {guard['calibration']:,} calibration images; "
    text += f"auxiliary agrees on {_percent(guard['agreement'])}):"
    return [text, "", *table(heading, rows), ""]


def _enforcement(result: Result) -> list[str]:
    rows = []
    for entry in result.data["rows"]:
        same = [
            row
            for run in result.runs
            for row in run["data"]["rows"]
            if all(row[name] == entry[name] for name in ("attack", "rate", "labels"))
        ]
        guard = "open" if entry["rate"] is None else f"refuses, {entry['rate']:.0%}"
        answered = mean([row["answered"] / row["used"] for row in same])
        rows.append(
            [
                entry["attack"],
                guard,
                entry["labels"],
                answered,
                mean([row["accuracy"] for row in same]),
                mean([row["fidelity"] for row in same]),
            ]
        )
    cost = "; ".join(
        f"at {entry['rate']:.0%}, {entry['flagged']:,} of {entry['of']:,} test images are refused ({_interval(entry['interval'])})"
        for entry in result.data["benign"]
    )
    return [*table(["attack", "guard", "answers used", "answered", "accuracy", "fidelity"], rows), "", f"Benign cost: {cost}."]


def _costs(result: Result) -> list[str]:
    paper = {"SAME": "SAME", OE: "OE", EDM: "EDM"}
    stored = {entry["method"]: entry for entry in reported()["table-3"]["rows"]}
    rows = []
    for entry in result.data["rows"]:
        theirs = stored[paper[entry["method"]]]
        parts = ", ".join(f"{name} {seconds:,.0f}" for name, seconds in entry["seconds"].items())
        rows.append([
            entry["method"], f"{theirs['victim_accuracy']:.2f}", _percent(entry["victim_accuracy"]), f"{theirs['training_seconds']:,.0f}",
            f"{entry['training_seconds']:,.0f} ({parts})", f"{entry['peak_memory_mib']:,.0f}",
        ])  # fmt: skip
    lines = table(["method", "accuracy, paper", "accuracy", "seconds, paper", "seconds", "peak memory, MiB"], rows)
    memory = result.data["memory_bytes"]
    lines += [
        "",
        f"Victim and auxiliary together: {memory['alone']['together']:,} bytes; with the trunk shared {memory['shared']['together']:,} "
        f"(victim alone {memory['alone']['victim']:,}).",
    ]
    shown = [
        [entry["attack"], entry["title"], three([entry]), f"{entry['n_pos']:,} / {entry['n_neg']:,}"] for entry in result.data["detection"]
    ]
    return [*lines, "", *table(["attack", "score", "AUROC / AP / FPR95", "positives / negatives"], shown)]


def _ratios(result: Result) -> list[str]:
    rows = []
    for entry in reported()["table-4"]["rows"]:
        if result.first["setting"]["name"].startswith(entry["setting"]):
            why = infeasibilities(
                entry["auroc"] / 100, entry["aupr"] / 100, entry["ratio"], fpr95=entry["fpr95"] / 100, fpr90=entry["fpr90"] / 100
            )
            rows.append(
                [
                    "*paper, attack not named*",
                    "",
                    f"{entry['ratio']:.2f}",
                    "–",
                    f"{entry['auroc']:.1f} / {entry['aupr']:.1f} / {entry['fpr95']:.1f} / {entry['fpr90']:.1f}",
                    "; ".join(why),
                ]
            )
    for entry in result.data["rows"]:
        values = " / ".join(_percent(entry[name][0]) for name in ("auroc", "average_precision", "fpr95", "fpr90"))
        rows.append([entry["attack"], entry["title"], f"{entry['ratio']:.2f}", f"{entry['n_pos']:,} / {entry['n_neg']:,}", values, ""])
    heading = ["attack", "score", "ratio", "positives / negatives", "AUROC / AP / FPR95 / FPR90", "impossible at a prevalence of the ratio"]
    return [f"Mean of {result.data['draws']} subsamples of one set of scores.", "", *table(heading, rows)]


def _components(result: Result) -> list[str]:
    rows = [
        [
            entry["attack"],
            entry["title"],
            three([entry]),
            _interval(entry["intervals"]["auroc"]),
            f"{entry['n_pos']:,} / {entry['n_neg']:,}",
        ]
        for entry in result.data["rows"]
    ]
    return table(["attack", "score", "AUROC / AP / FPR95", "AUROC, 95 %", "positives / negatives"], rows)


def _weights(result: Result) -> list[str]:
    weights = list(dict.fromkeys(entry["weight"] for entry in result.data["rows"]))
    pairs = list(dict.fromkeys((entry["attack"], entry["title"]) for entry in result.data["rows"]))
    value = {(entry["attack"], entry["title"], entry["weight"]): entry["auroc"] for entry in result.data["rows"]}
    rows = [[attack, title, *[_percent(value[attack, title, weight]) for weight in weights]] for attack, title in pairs]
    return [
        "AUROC; weight 1 is the reconstruction error alone, 0 the deviation alone.",
        "",
        *table(["attack", "terms", *map(str, weights)], rows),
    ]


def _histograms(result: Result) -> list[str]:
    rows = [
        [entry["attack"], entry["title"], _percent(entry["auroc"]), f"{entry['n_pos']:,} / {entry['n_neg']:,}"]
        for entry in result.data["rows"]
    ]
    return table(["attack", "score", "AUROC", "positives / negatives"], rows)


def _epochs(result: Result) -> list[str]:
    rows = [
        [str(entry["epoch"]), entry["queries"], f"{entry['error_full']:.5f}", f"{entry['error_masked']:.5f}", f"{entry['n']:,}"]
        for entry in result.data["rows"]
    ]
    return table(["epoch", "queries", "error, full view", "error, masked view", "queries"], rows)


def _widths(result: Result) -> list[str]:
    rows = [
        [str(entry["width"]), entry["attack"], entry["view"], _percent(entry["auroc"]), _interval(entry["intervals"]["auroc"])]
        for entry in result.data["rows"]
    ]
    return table(["width", "attack", "view", "AUROC of the error alone", "95 %"], rows)


def _add_ons(result: Result) -> list[str]:
    rows = [
        [
            entry["user"],
            entry["defence"],
            _percent(entry["answered"]),
            *(f"{entry[name]:.3g}" for name in ("mean_seconds", "median_seconds", "p95_seconds", "mean_tries", "core_hours_per_10000")),
        ]
        for entry in result.data["rows"]
    ]
    data = result.data
    prices = ", ".join(f"{level['work']:,} beyond the {level['benign_share']:.0%}" for level in data["levels"])
    text = f"Refusal at {data['rate']:.0%}. Proof of work ({data['puzzle']['algorithm']}): tries on average {prices} most unusual benign queries; "
    text += f"{data['tries_per_second']:,.0f} tries a second measured on one core; a client gives up after {data['patience_seconds']:g} s. In process: "
    text += "answers are timed, tries are drawn and multiplied by their time."
    head = ["user", "defence", "answered, %", "mean seconds", "median", "95 %", "mean tries", "core hours for 10,000 queries"]
    return [text, "", *table(head, rows)]


def _accounts(result: Result) -> list[str]:
    rows = [
        [
            entry["user"],
            f"{entry['accounts']:,}",
            _percent(entry["alarmed_accounts"]),
            "–" if entry["alarmed_queries"] is None else _percent(entry["alarmed_queries"]),
        ]
        for entry in result.data["rows"]
    ]
    text = f"PRADA's threshold {result.data['threshold']:.3f}: none of {result.data['users']} benign users with {result.data['stream']} queries each alarms."
    return [text, "", *table(["user", "accounts", "accounts that alarm, %", "queries under alarm, %"], rows)]


SECTIONS = {
    "detection": _detection, "enforcement": _enforcement, "costs": _costs, "ratios": _ratios, "components": _components, "weights": _weights,
    "histograms": _histograms, "epochs": _epochs, "widths": _widths, "add-ons": _add_ons, "accounts": _accounts,
}  # fmt: skip


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _percent(rate: float) -> str:
    return f"{100 * rate:.1f}"


def _interval(ends: Sequence[float]) -> str:
    return f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f}"
