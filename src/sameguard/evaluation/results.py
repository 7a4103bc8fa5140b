"""Reading a results folder: every result file, all seeds of an exhibit together, the paper's numbers, and what is not there.

Only small JSON is read, so tables and figures of a committed folder can be made again anywhere.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from sameguard.errors import InvalidDataError
from sameguard.evaluation.cache import SCHEMA
from sameguard.evaluation.run import read_folder
from sameguard.evaluation.scenarios import exhibits


@dataclass(frozen=True)
class Result:
    """All seeds of one exhibit, in order of seed; each is the content of a result file."""

    key: str
    runs: tuple[dict[str, Any], ...]

    @property
    def first(self) -> dict[str, Any]:
        return self.runs[0]

    @property
    def data(self) -> dict[str, Any]:
        return self.first["data"]

    @property
    def seeds(self) -> list[int]:
        return [run["seed"] for run in self.runs]


@cache
def reported() -> dict[str, Any]:
    """The paper's numbers, with notes where its text and tables disagree."""
    return json.loads((files("sameguard.evaluation") / "reported.json").read_text(encoding="utf-8"))


def read_results(out: Path) -> list[Result]:
    """Every result below a results folder, in the order of the plan. Raises InvalidDataError for a damaged or foreign file."""
    scale = read_folder(out)["scale"]
    found: dict[str, list[dict[str, Any]]] = {}
    for path in sorted((out / "results").glob("*.json")):
        try:
            run = json.loads(path.read_text(encoding="utf-8"))
            schema, key = run["schema"], f"{run['exhibit']}-{run['setting']['name']}"
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InvalidDataError(
                f"result {path} must be readable JSON, got {type(error).__name__}: delete it and evaluate again."
            ) from error
        if schema != SCHEMA:
            raise InvalidDataError(f"result {path} must be of version {SCHEMA}, got {schema}: delete it and evaluate again.")
        found.setdefault(key, []).append(run)
    order = [exhibit.key for exhibit in exhibits(scale)]
    keys = sorted(found, key=lambda key: (order.index(key) if key in order else len(order), key))
    return [Result(key, tuple(sorted(found[key], key=lambda run: run["seed"]))) for key in keys]


def absent(out: Path, results: Iterable[Result]) -> list[str]:
    """A sentence for each exhibit of the scale that is not there, or not whole, and why."""
    present = {result.key: result for result in results}
    sentences = []
    for exhibit in exhibits(read_folder(out)["scale"]):
        if exhibit.key not in present:
            sentences.append(f"{exhibit.title} ({exhibit.setting.title}): not run yet.")
            continue
        for run in present[exhibit.key].runs:
            sentences += [
                f"{exhibit.title} ({exhibit.setting.title}), seed {run['seed']}: no {entry['what']}: {entry['why']}"
                for entry in run["missing"]
            ]
    return list(dict.fromkeys(sentences))
