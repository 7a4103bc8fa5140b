"""Reading a results folder: every result file, all seeds of an exhibit together, the paper's numbers, and what is not there and why.

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
from sameguard.evaluation.run import MISSING, read_folder
from sameguard.evaluation.scenarios import exhibits

LIMITS = {  # scale -> what its numbers cannot be held against
    "tiny": "Scale tiny is scikit-learn's 8x8 digits: it has no Table 2, and none of its numbers can be compared with the paper's.",
    "cpu": "Scale cpu trains everything for a fraction of the paper's epochs: beside the paper's numbers, ours show a distance and no reproduction.",
}


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

    def rows(self, *names: str, table: str = "rows") -> list[list[dict[str, Any]]]:
        """Rows of a table of the data, those together that agree in these names: one of each seed that has it, in order of seed."""
        found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
        for run in self.runs:
            for row in run["data"][table]:
                found.setdefault(tuple(row[name] for name in names), []).append(row)
        return list(found.values())


@cache
def reported() -> dict[str, Any]:
    """The paper's numbers, with notes where its text and tables disagree."""
    return json.loads((files("sameguard.evaluation") / "reported.json").read_text(encoding="utf-8"))


def read_results(out: Path) -> list[Result]:
    """Every result below a results folder, in the order of the plan. Raises InvalidDataError for a damaged or foreign file."""
    scale = read_folder(out)["scale"]
    found = _by_key(path for path in (out / "results").glob("*.json") if not path.name.endswith(MISSING))
    order = [exhibit.key for exhibit in exhibits(scale)]
    keys = sorted(found, key=lambda key: (order.index(key) if key in order else len(order), key))
    return [Result(key, tuple(found[key])) for key in keys]


def read_failures(out: Path) -> dict[str, list[dict[str, Any]]]:
    """Key of an exhibit -> what stands in for the results that could not be made, in order of seed. Raises as `read_results`."""
    return _by_key((out / "results").glob(f"*{MISSING}"))


def absent(out: Path, results: Iterable[Result]) -> list[str]:
    """A sentence for each exhibit of the scale that is not there, or not whole, and why; before them what the scale itself lacks."""
    scale, present, failures = read_folder(out)["scale"], {result.key: result.runs for result in results}, read_failures(out)
    titles = {exhibit.key: f"{exhibit.title} ({exhibit.setting.title})" for exhibit in exhibits(scale)}
    titles |= {key: f"{runs[0]['title']} ({runs[0]['setting']['title']})" for key, runs in {**present, **failures}.items()}
    sentences = [LIMITS[scale]] if scale in LIMITS else []
    for key, title in titles.items():
        runs, failed = present.get(key, ()), failures.get(key, [])
        if not runs and not failed:
            sentences.append(f"{title}: not run yet.")
        for run in runs:
            sentences += [f"{title}, seed {run['seed']}: no {entry['what']}: {entry['why']}" for entry in run["missing"]]
        for run in failed:
            earlier = any(run["seed"] == other["seed"] for other in runs)
            what = "the last run made nothing, what is here is an earlier one's" if earlier else "nothing could be made"
            sentences += [f"{title}, seed {run['seed']}: {what}: {why}" for why in dict.fromkeys(entry["why"] for entry in run["missing"])]
    return list(dict.fromkeys(sentences))


def _by_key(paths: Iterable[Path]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for path in paths:
        try:
            run = json.loads(path.read_text(encoding="utf-8"))
            schema, key, _ = run["schema"], f"{run['exhibit']}-{run['setting']['name']}", run["seed"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InvalidDataError(
                f"result {path} must be readable JSON, got {type(error).__name__}: delete it and evaluate again."
            ) from error
        if schema != SCHEMA:
            raise InvalidDataError(f"result {path} must be of version {SCHEMA}, got {schema}: delete it and evaluate again.")
        found.setdefault(key, []).append(run)
    return {key: sorted(runs, key=lambda run: run["seed"]) for key, runs in found.items()}
