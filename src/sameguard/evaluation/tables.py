"""Results -> Markdown: the paper's numbers and ours side by side, how many queries each rests on, and what is missing and why.

Several seeds of one exhibit become mean and spread (half the range); intervals are those of the first seed, and say so. Detection tables
are in detection_tables.py.
"""

from pathlib import Path
from typing import Any

from sameguard.evaluation.detection_tables import detection_lines, training_lines
from sameguard.evaluation.families import EDM, OE
from sameguard.evaluation.feasibility import infeasibilities
from sameguard.evaluation.printing import amount, counts, interval, mean, percent, table, three
from sameguard.evaluation.results import Result, absent, read_results, reported
from sameguard.evaluation.run import read_folder

PAPERS_NAMES = {"SAME": "SAME", OE: "OE", EDM: "EDM"}
MIB = 2**20


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
    "paper's AUPR is a trapezoid. Intervals are 95 %, of the seed that is named, and cover the choice of queries alone; with several seeds, "
    "numbers are their mean ± half their range."
)


def section(result: Result) -> list[str]:
    """The Markdown lines of one exhibit."""
    return [*SECTIONS[result.first["kind"]](result), "", *_closing(result)]


def _closing(result: Result) -> list[str]:
    """Which seeds, code and machine made a table, and what it took."""
    accuracy, several = percent(result.first["setting"]["victim_accuracy"]), len(result.runs) > 1
    made, spent = [], []
    for run in result.runs:
        code, threads = run["code"], run["machine"]["threads"]
        commit = "" if code["commit"] is None else f" ({code['commit'][:10]}{', changed' if code['changed'] else ''})"
        made.append(f"sameguard {code['sameguard']}{commit}, {run['machine']['processor']}, {threads} thread{'' if threads == 1 else 's'}")
        if "stages" in run:  # earlier results summed a few stages only
            took = f"{run['seconds']:,.0f} s, at most {run['peak_memory_mib']:,.0f} MiB in the process"
            took += "".join(f", {name} trained elsewhere in {seconds:,.0f} s" for name, seconds in run["reused"].items())
            spent.append(took + (f" (seed {run['seed']})" if several else ""))
    line = f"Victim accuracy {accuracy} %. Seed{'s' if several else ''}: {', '.join(map(str, result.seeds))}. {'; '.join(dict.fromkeys(made))}."
    return [line + (f" All stages: {'; '.join(spent)}." if spent else "")]


# ---------------------------------------------------------------------- by kind


def _enforcement(result: Result) -> list[str]:
    rows = []
    for same in result.rows("attack", "rate", "labels"):
        attack, rate, labels = (same[0][name] for name in ("attack", "rate", "labels"))
        answered = mean([row["answered"] / row["used"] for row in same])
        stolen = [mean([row[name] for row in same]) for name in ("accuracy", "fidelity")]
        rows.append([attack, "open" if rate is None else f"refuses, {rate:.0%}", labels, answered, *stolen])
    costs = []
    for same in result.rows("rate", table="benign"):
        first = same[0]
        flagged = f"{amount([entry['flagged'] for entry in same], ',.1f' if len(same) > 1 else ',.0f')} of {first['of']:,} test images"
        costs.append(f"at {first['rate']:.0%}, {flagged} are refused (seed {result.seeds[0]}: {interval(first['interval'])} %)")
    heading = ["attack", "guard", "answers used", "answered", "accuracy", "fidelity"]
    return [*table(heading, rows), "", f"Benign cost: {'; '.join(costs)}."]


def _costs(result: Result) -> list[str]:
    papers = {entry["method"]: entry for entry in reported()["table-3"]["rows"]}
    shown = result.first["setting"]["dataset"] == reported()["table-3"]["setting"]  # on other data the paper has no such numbers
    rows = []
    for same in result.rows("method"):
        theirs = papers[PAPERS_NAMES[same[0]["method"]]]
        parts = ", ".join(f"{name} {amount([entry['seconds'][name] for entry in same])}" for name in same[0]["seconds"])
        accuracy = [entry["victim_accuracy"] for entry in same]
        rows.append([
            same[0]["method"], *([f"{theirs['victim_accuracy']:.2f}"] if shown else []), percent(accuracy[0]) if len(set(accuracy)) == 1 else mean(accuracy),
            *([f"{theirs['training_seconds']:,.0f}"] if shown else []), f"{amount([entry['training_seconds'] for entry in same])} ({parts})",
            _weights_kept(same[0]), _growth(same),
        ])  # fmt: skip
    heading = ["method", "accuracy, paper", "accuracy", "seconds, paper", "seconds", "weights kept, MiB", "growth while training, MiB"]
    lines = table(heading if shown else [name for name in heading if not name.endswith("paper")], rows)
    memory = result.data["memory_bytes"]
    lines += [
        "",
        f"Victim and auxiliary together: {memory['alone']['together']:,} bytes; with the trunk shared {memory['shared']['together']:,} "
        f"(victim alone {memory['alone']['victim']:,}). Weights are counted exactly, in 32 bits: SAME's are victim, auxiliary and autoencoder, the "
        "others' their own victims. Growth is what the process grew by at most while the stage was made: an upper bound that depends on what "
        "the process had freed before; a dash where it was not recorded, or where the training was taken over from elsewhere.",
        "",
    ]
    cells = [
        [same[0]["attack"], same[0]["title"], three(same), counts(same[0])] for same in result.rows("attack", "title", table="detection")
    ]
    return [*lines, *table(["attack", "score", "AUROC / AP / FPR95", "positives / negatives"], cells)]


def _weights_kept(entry: dict[str, Any]) -> str:
    if "weights_bytes" not in entry:
        return "–"
    shared = f" ({entry['weights_bytes_shared'] / MIB:,.1f} with the trunk shared)" if "weights_bytes_shared" in entry else ""
    return f"{entry['weights_bytes'] / MIB:,.1f}{shared}"


def _growth(same: list[dict[str, Any]]) -> str:
    known = [entry["memory_growth_mib"] for entry in same if entry.get("memory_growth_mib") is not None]
    return amount(known) if known else "–"


def _ratios(result: Result) -> list[str]:
    rows = []
    for entry in reported()["table-4"]["rows"]:
        if result.first["setting"]["name"].startswith(entry["setting"]):
            rates = (entry[name] / 100 for name in ("auroc", "aupr"))
            why = infeasibilities(*rates, entry["ratio"], fpr95=entry["fpr95"] / 100, fpr90=entry["fpr90"] / 100)
            values = " / ".join(f"{entry[name]:.1f}" for name in ("auroc", "aupr", "fpr95", "fpr90"))
            rows.append(["*paper, attack not named*", "", f"{entry['ratio']:.2f}", "–", values, "; ".join(why)])
    for same in result.rows("attack", "title", "ratio"):
        values = " / ".join(mean([entry[name][0] for entry in same]) for name in ("auroc", "average_precision", "fpr95", "fpr90"))
        rows.append([same[0]["attack"], same[0]["title"], f"{same[0]['ratio']:.2f}", counts(same[0]), values, ""])
    heading = ["attack", "score", "ratio", "positives / negatives", "AUROC / AP / FPR95 / FPR90", "impossible at a prevalence of the ratio"]
    return [f"Mean of {result.data['draws']} subsamples of one set of scores.", "", *table(heading, rows)]


def _components(result: Result) -> list[str]:
    rows = [
        [same[0]["attack"], same[0]["title"], three(same), interval(same[0]["intervals"]["auroc"]), counts(same[0])]
        for same in result.rows("attack", "title")
    ]
    return table(["attack", "score", "AUROC / AP / FPR95", f"AUROC, 95 %, seed {result.seeds[0]}", "positives / negatives"], rows)


def _weights(result: Result) -> list[str]:
    weights = list(dict.fromkeys(entry["weight"] for entry in result.data["rows"]))
    value = {(same[0]["attack"], same[0]["title"], same[0]["weight"]): same for same in result.rows("attack", "title", "weight")}
    pairs = dict.fromkeys((attack, title) for attack, title, _ in value)
    rows = [
        [attack, title, *[mean([entry["auroc"] for entry in value[attack, title, weight]]) for weight in weights]]
        for attack, title in pairs
    ]
    return [
        "AUROC; weight 1 is the reconstruction error alone, 0 the deviation alone.",
        "",
        *table(["attack", "terms", *map(str, weights)], rows),
    ]


def _histograms(result: Result) -> list[str]:
    rows = [
        [same[0]["attack"], same[0]["title"], mean([entry["auroc"] for entry in same]), counts(same[0])]
        for same in result.rows("attack", "title")
    ]
    return [*training_lines(result), *table(["attack", "score", "AUROC", "positives / negatives"], rows)]


def _epochs(result: Result) -> list[str]:
    rows = []
    for same in result.rows("epoch", "queries"):
        errors = [amount([entry[name] for entry in same], ".5f") for name in ("error_full", "error_masked")]
        rows.append([str(same[0]["epoch"]), same[0]["queries"], *errors, f"{same[0]['n']:,}"])
    return table(["epoch", "whose queries", "error, full view", "error, masked view", "how many"], rows)


def _widths(result: Result) -> list[str]:
    rows = []
    for same in result.rows("width", "attack", "view"):
        first = same[0]
        auroc = mean([entry["auroc"] for entry in same])
        rows.append([str(first["width"]), first["attack"], first["view"], auroc, interval(first["intervals"]["auroc"])])
    return table(["width", "attack", "view", "AUROC of the error alone", f"95 %, seed {result.seeds[0]}"], rows)


def _add_ons(result: Result) -> list[str]:
    names = ("mean_seconds", "median_seconds", "p95_seconds", "mean_tries", "core_hours_per_10000")
    rows = []
    for same in result.rows("user", "defence"):
        values = [amount([entry[name] for entry in same], ".3g") for name in names]
        rows.append([same[0]["user"], same[0]["defence"], mean([entry["answered"] for entry in same]), *values])
    data, pace = result.data, amount([run["data"]["tries_per_second"] for run in result.runs])
    prices = ", ".join(f"{level['work']:,} beyond the {level['benign_share']:.0%}" for level in data["levels"])
    text = f"Refusal at {data['rate']:.0%}. Proof of work ({data['puzzle']['algorithm']}): tries on average {prices} most unusual benign queries; "
    text += f"{pace} tries a second measured on one core; a client gives up after {data['patience_seconds']:g} s. In process: "
    text += "answers are timed, tries are drawn and multiplied by their time."
    head = ["user", "defence", "answered, %", "mean seconds", "median", "95 %", "mean tries", "core hours for 10,000 queries"]
    return [text, "", *table(head, rows)]


def _accounts(result: Result) -> list[str]:
    rows = []
    for same in result.rows("user", "accounts"):
        first = same[0]
        under = [entry["alarmed_queries"] for entry in same if entry["alarmed_queries"] is not None]
        rows.append([first["user"], _opened(first), mean([entry["alarmed_accounts"] for entry in same]), mean(under)])
    data = result.data
    threshold = amount([run["data"]["threshold"] for run in result.runs], ".3f")
    text = f"PRADA's threshold {threshold}: none of {data['users']} benign users with {data['stream']} queries each alarms. "
    text += "An account that holds no query counts neither way."
    return [text, "", *table(["user", "accounts", "accounts that alarm, %", "queries under alarm, %"], rows)]


def _opened(entry: dict[str, Any]) -> str:
    empty = entry["accounts"] - entry.get("queries", entry["accounts"])
    return f"{entry['accounts']:,}" + (f" ({empty:,} hold none)" if empty > 0 else "")


SECTIONS = {
    "detection": detection_lines, "enforcement": _enforcement, "costs": _costs, "ratios": _ratios, "components": _components, "weights": _weights,
    "histograms": _histograms, "epochs": _epochs, "widths": _widths, "add-ons": _add_ons, "accounts": _accounts,
}  # fmt: skip
