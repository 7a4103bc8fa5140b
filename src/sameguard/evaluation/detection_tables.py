"""A detection table as Markdown: the paper's cells above ours, how each defence was trained, every metric of the main scores, what the guard flags."""

from typing import Any

from sameguard.evaluation.detection import ALL, RIVALS
from sameguard.evaluation.families import EDM, OE, PAPER, RELEASED, REPORTED, TYPICALITY
from sameguard.evaluation.feasibility import infeasibilities
from sameguard.evaluation.printing import Row, amount, counts, interval, mean, noted, percent, table, three
from sameguard.evaluation.results import Result, reported

Column = dict[str, Any]
MAIN = (TYPICALITY, PAPER, OE, EDM)  # whose intervals stand below each table
DETAILED = (TYPICALITY, PAPER, RELEASED, OE, EDM, *RIVALS)  # whose every metric is printed, and with them the kNN of any k
METRICS = {
    "AP": "average_precision", "AUPR, trapezoid": "aupr_trapezoid", "FPR95": "fpr95", "FPR90": "fpr90", "TPR at 1 % FPR": "tpr_at_1_percent",
}  # fmt: skip


def detection_lines(result: Result) -> list[str]:
    """The Markdown lines of a detection table, budget by budget."""
    lines = training_lines(result)
    columns = _columns(result)
    for budget in dict.fromkeys(column["budget"] for column in columns):
        chosen = [column for column in columns if column["budget"] == budget]
        lines += [f"**{budget:,} queries.** AUROC / AP / FPR95{_papers_middle(result, chosen)}.", ""]
        heading = ["score", *[f"{column['title']} ({column['status']})" for column in chosen]]
        lines += [*table(heading, _rows(result, chosen)), ""]
        lines += _interval_lines(result, chosen) + _detail_lines(result, chosen, budget) + _attack_lines(result, chosen)
    return [*lines, *_guard_lines(result), *_impossible_lines(result)]


def _columns(result: Result) -> list[Column]:
    return [same[0] for same in result.rows("name", table="columns")]


def training_lines(result: Result) -> list[str]:
    """How long SAME, OE and EDM were trained, and the victim that answers under each."""
    if not all(run["data"].get("training") for run in result.runs):
        return []
    rows = []
    for same in result.rows("title", table="training"):
        accuracy = [entry["victim_accuracy"] for entry in same]
        rows.append([same[0]["title"], f"{percent(accuracy[0])}, frozen" if same[0]["frozen"] else mean(accuracy), _trained(same[0])])
    return [*table(["defence", "accuracy of its victim", "trained"], rows), ""]


def _trained(facts: dict[str, Any]) -> str:
    if facts["frozen"]:
        text = f"preset {facts['preset']}: autoencoder {_epochs(facts['epochs'])}, auxiliary ({facts['network']}) {_epochs(facts['auxiliary_epochs'])}"
        return f"{text}, on masked views {_epochs(facts['masked_auxiliary_epochs'])}"
    members = f"{facts['members']} members of " if facts["members"] > 1 else ""
    return f"{members}{facts['network']}, {_epochs(facts['epochs'])}, outliers {facts['outliers']}"


def _epochs(number: int) -> str:
    return f"{number} epoch{'' if number == 1 else 's'}"


# ---------------------------------------------------------------------- scores


def _rows(result: Result, columns: list[Column]) -> list[Row]:
    rows: list[Row] = []
    for method in ("OE", "EDM", "SAME"):
        cells = [_reported_cell(result, method, column) for column in columns]
        if any(cell != "–" for cell in cells):
            rows.append([f"*paper: {method}*", *cells])
    scores = [same[0] for same in result.rows("group", "title")]
    for group in dict.fromkeys(score["group"] for score in scores):
        rows.append([f"**{group}**", *[""] * len(columns)])
        titles = [score["title"] for score in scores if score["group"] == group]
        rows += [[title, *[three(cells_of(result, title, column["name"])) for column in columns]] for title in titles]
    return rows


def _reported(result: Result, method: str, column: Column) -> dict[str, Any] | None:
    """The paper's cell for a method, an attack and a budget; it counts JBDA's seeds."""
    for entry in reported().get(result.first["exhibit"], {}).get("rows", []):
        if (entry["method"], entry["attack"], entry["budget"], ALL) == (method, column["reported"], column["budget"], column["part"]):
            return entry
    return None


def _reported_cell(result: Result, method: str, column: Column) -> str:
    entry = _reported(result, method, column)
    return "–" if entry is None else f"{entry['auroc']:.1f} / {entry['aupr']:.1f} / {entry['fpr95']:.1f}"


def _papers_middle(result: Result, columns: list[Column]) -> str:
    known = any(_reported(result, method, column) for method in REPORTED.values() for column in columns)
    return "; the paper's rows have its trapezoid AUPR in place of AP, ours is among all metrics below" if known else ""


def cells_of(result: Result, title: str, column: str) -> list[dict[str, Any]]:
    """The cells of one score and column, one for each seed that has it."""
    rows = [row for run in result.runs for row in run["data"]["rows"] if row["title"] == title]
    return [row["cells"][column] for row in rows if column in row["cells"]]


def _interval_lines(result: Result, columns: list[Column]) -> list[str]:
    rows = []
    for title in MAIN:
        cells = [cells_of(result, title, column["name"]) for column in columns]
        if any(cells):
            rows.append([title, *[interval(cell[0]["intervals"]["auroc"]) if cell else "–" for cell in cells]])
    found = [next((cells_of(result, row["title"], column["name"]) for row in result.data["rows"]), []) for column in columns]
    rows.append(["positives / negatives", *[counts(cell[0]) if cell else "–" for cell in found]])
    heading = f"95 % interval of AUROC (seed {result.seeds[0]}), and counts:"
    return [heading, "", *table(["score", *[column["title"] for column in columns]], rows), ""]


def _detail_lines(result: Result, columns: list[Column], budget: int) -> list[str]:
    """Every metric of the main scores; a page folds it away."""
    titles = [same[0]["title"] for same in result.rows("title") if same[0]["title"] in DETAILED or same[0]["title"].startswith("kNN")]
    rows, theirs = [], False
    for column in columns:
        for title in titles:
            cells = cells_of(result, title, column["name"])
            if cells:
                entry = _reported(result, REPORTED.get(title, ""), column)
                theirs |= entry is not None
                values = [mean([cell[name] for cell in cells]) for name in METRICS.values()]
                values.insert(2, "–" if entry is None else f"{entry['aupr']:.1f}")
                auroc = mean([cell["auroc"] for cell in cells])
                rows.append(
                    [column["title"], RIVALS.get(title, title), auroc, interval(cells[0]["intervals"]["auroc"]), *values, counts(cells[0])]
                )
    names = list(METRICS)
    heading = [
        "attack",
        "score",
        "AUROC",
        f"95 %, seed {result.seeds[0]}",
        *names[:2],
        "the paper's AUPR",
        *names[2:],
        "positives / negatives",
    ]
    if not theirs:
        place = heading.index("the paper's AUPR")
        heading, rows = [*heading[:place], *heading[place + 1 :]], [[*row[:place], *row[place + 1 :]] for row in rows]
    summary = f"<details><summary>All metrics of the main scores, {budget:,} queries</summary>"
    return [summary, "", *table(heading, rows), "", "</details>", ""] if rows else []


# ---------------------------------------------------------------------- attacks and the guard


def _attack_lines(result: Result, columns: list[Column]) -> list[str]:
    lines = []
    for column in columns:
        if column["part"] != ALL:
            continue  # the same attack without its natural images: its facts stand there
        every = [entry for run in result.runs for entry in run["data"]["columns"] if entry["name"] == column["name"]]
        accuracy, fidelity = (mean([entry[name] for entry in every]) for name in ("accuracy", "fidelity"))
        parts = [_answered(every), f"substitute's accuracy {accuracy}, fidelity {fidelity}"]
        if column["scored"] < column["kept"]:
            parts.append(f"scored: the last {column['scored'] / column['kept']:.0%} of the queries that were kept")
        if "proxy" in column:
            parts.append(f"proxy {column['proxy']}")
        notes = {name: [entry["notes"][name] for entry in every if name in entry["notes"]] for name in column["notes"]}
        parts += [f"{name.replace('_', ' ')} {noted(values)}" for name, values in notes.items()]
        if column["caps"]:
            natural = f"{column['natural']:,} of {column['scored']:,} are natural images"
            parts.append(
                f"{natural}, so in expectation AUROC <= {percent(column['caps']['auroc'])}, FPR95 >= {percent(column['caps']['fpr'])}"
            )
        lines.append(f"- {column['title']}: {'; '.join(parts)}.")
    return [*lines, ""]


def _answered(every: list[Column]) -> str:
    used, kept, answered = (amount([entry[name] for entry in every]) for name in ("used", "kept", "answered"))
    if kept == used:
        return f"{answered} of {used} queries answered"
    return f"{used} queries, of which {kept} were kept, {answered} of these answered"


def _guard_lines(result: Result) -> list[str]:
    guards = [run["data"]["guard"] for run in result.runs]
    if not all(guards):
        return []
    columns, rows = _columns(result), []
    for place, entry in enumerate(guards[0]["rates"]):
        same = [guard["rates"][place] for guard in guards]
        low, high = entry["expected"]
        flagged = amount([other["flagged"] for other in same], ",.0f" if len(same) == 1 else ",.1f")
        caught = [[other["attacks"][column["name"]] for other in same if column["name"] in other["attacks"]] for column in columns]
        rows.append([f"{entry['rate']:.0%}", f"{flagged} of {entry['of']:,} ({low:,} to {high:,} expected)", *map(mean, caught)])
    heading = ["promised", "test images flagged", *[f"{column['title']}, {column['budget']:,}" for column in columns]]
    engine, calibrated = noted([guard["engine"] for guard in guards]), noted([guard["calibration"] for guard in guards])
    text = f"Flagged by the calibrated guard ({engine}, {calibrated} calibration images; "
    text += f"auxiliary agrees on {mean([guard['agreement'] for guard in guards])}):"
    return [text, "", *table(heading, rows), ""]


def _impossible_lines(result: Result) -> list[str]:
    ours = [
        sentence if len(result.runs) == 1 else f"seed {run['seed']}, {sentence}"
        for run in result.runs
        for sentence in run["data"]["infeasible"]
    ]
    lines = ["No cell of ours is beyond what a ROC curve can produce." if not ours else f"Beyond any ROC curve: {'; '.join(ours)}."]
    theirs = []
    if any(_reported(result, method, column) for method in REPORTED.values() for column in _columns(result)):
        theirs = papers_impossible(result.first["exhibit"])
    return [*lines, *([f"Of the paper's cells, at as many malicious as benign queries: {'; '.join(theirs)}."] if theirs else [])]


def papers_impossible(exhibit: str) -> list[str]:
    """A sentence for each printed cell of a detection table that no ROC curve can produce at a prevalence of one half."""
    found = []
    for entry in reported().get(exhibit, {}).get("rows", []):
        name = f"{entry['method']}, {entry['attack']} at {entry['budget']:,}"
        why = infeasibilities(entry["auroc"] / 100, entry["aupr"] / 100, 0.5, fpr95=entry["fpr95"] / 100)
        found += [f"{name}: {sentence}" for sentence in why]
    return found
