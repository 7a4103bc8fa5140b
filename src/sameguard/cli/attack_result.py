"""What an attack ended with, as a table, as JSON and as an .npz: how much it cost, how good the copy is, and where the numbers come from."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from sameguard.endpoint import Answers


def result_of(found: Any, queries: np.ndarray, truth: Answers, labels: np.ndarray | None) -> dict[str, Any]:
    """Numbers of one attack. found: an Extraction. queries, labels: what the copy is judged on; truth: the victim's answers to them."""
    from sameguard.networks import predict_logits

    copied, own = predict_logits(found.substitute, queries).argmax(axis=1), truth.probs.argmax(axis=1)
    return {
        "used": found.used, "answered": int(found.answered.sum()), "test": len(queries), "judged": int(truth.answered.sum()),
        "fidelity": _share((copied == own)[truth.answered]), "accuracy": None if labels is None else _share(copied == labels),
        "victim_accuracy": None if labels is None else _share((own == labels)[truth.answered]), "notes": found.notes,
    }  # fmt: skip


def provenance(seconds: float) -> dict[str, Any]:
    """Code version, machine, library versions, time: what the laboratory records with every result. seconds: the attack's wall time."""
    from sameguard.evaluation.provenance import code_version, library_versions, machine, peak_memory_mib

    return {
        "seconds": round(seconds, 2), "finished": datetime.now(UTC).isoformat(timespec="seconds"), "code": code_version(),
        "machine": machine(), "versions": library_versions(), "peak_memory_mib": peak_memory_mib(),
    }  # fmt: skip


def save_npz(path: Path, found: Any, result: dict[str, Any]) -> None:
    """Queries as sent and the answers to them; `about` is the result as JSON."""
    natural = np.zeros(len(found.queries), bool) if found.natural is None else found.natural
    path.parent.mkdir(parents=True, exist_ok=True)
    about = np.array(json.dumps(result))
    with path.open("wb") as file:  # numpy would add .npz to another name
        np.savez_compressed(file, inputs=found.queries, victim_probs=found.probs, answered=found.answered, natural=natural, about=about)


def result_table(result: dict[str, Any]) -> Table:
    """The same for reading; machine and versions are in the JSON."""
    table = Table("", "value", title=f"{result['attack']}: {result['used']:,} of {result['budget']:,} queries spent")
    table.add_row("answered", f"{result['answered']:,} of {result['used']:,}")
    judged = f"{result['judged']:,} test inputs"
    if result["judged"] < result["test"]:
        judged += f", those of {result['test']:,} that are answered unpaid"
    table.add_row("fidelity of the copy", f"{_percent(result['fidelity'])} of {judged}")
    if result["accuracy"] is not None:
        table.add_row("accuracy of the copy", _percent(result["accuracy"]))
        table.add_row("accuracy of the victim", _percent(result["victim_accuracy"]))
    if result["cost"] is not None:
        cost = result["cost"]
        table.add_row("requests", f"{cost['requests']:,}, of them {cost['retries']:,} again")
        table.add_row(
            "proofs of work", f"{cost['challenges']:,} in {cost['cpu_seconds']:.1f} CPU seconds; {cost['unpaid_rows']:,} rows not paid for"
        )
    table.add_row("substitute", result["substitute"])
    table.add_row("seed, seconds", f"{result['seed']}, {result['seconds']:.0f}")
    for name, value in result["notes"].items():
        table.add_row(name.replace("_", " "), f"{value:.4g}" if isinstance(value, float) else str(value))
    return table


def _share(agreed: np.ndarray) -> float | None:
    return float(agreed.mean()) if len(agreed) else None


def _percent(share: float | None) -> str:
    return "unknown" if share is None else f"{100 * share:.1f} %"
