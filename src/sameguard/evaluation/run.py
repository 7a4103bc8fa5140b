"""Runs a plan: every stage that the chosen tables and figures need, then each table's result as small JSON beside its raw scores.

    <out>/laboratory.json            scale, and which version of sameguard began it
    <out>/results/<key>-seed<n>.json what a report is made from: small, to be committed
    <out>/results/<key>-seed<n>.missing.json  in its place, why nothing could be made; goes when something can
    <out>/pictures/...               a PNG of each attack's queries
    <out>/scores/<key>-seed<n>.npz   raw scores, from which every metric can be computed again
    <out>/cache/                     stages (cache.py)

What cannot be made (no such data, an attack that fails) is left out and named; the rest goes on.
"""

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from sameguard.errors import ConfigurationError, SameguardError
from sameguard.evaluation.cache import SCHEMA, Stage, small_json, source_digest, write_text
from sameguard.evaluation.detection import Found, Made, save_picture
from sameguard.evaluation.exhibits import KINDS, SOURCES, Step, inputs_of, steps
from sameguard.evaluation.provenance import code_version, library_versions, machine
from sameguard.evaluation.scenarios import Exhibit, select
from sameguard.evaluation.stages import Laboratory
from sameguard.training import ProgressEvent, RunControl, TrainingPausedError

LABORATORY = "laboratory.json"
MISSING = ".missing.json"  # ends the name of what stands in for a result
OWN = (LABORATORY, "results", "pictures", "scores", "cache", "queries", "report.html", "report.md")


class PlanEvent(NamedTuple):
    """Where the whole plan stands. share: of the guessed work that is done. inner: the training within the step, where there is one.

    making: whether the step makes something; what is cached is only loaded. cached: steps that were, until now.
    """

    step: int
    steps: int
    title: str
    share: float
    seconds_left: float
    inner: ProgressEvent | None
    making: bool = False
    cached: int = 0


@dataclass(frozen=True)
class Outcome:
    """path: of the result, None where nothing could be made. missing: what is not in it, and why. cached: whether it was there already."""

    exhibit: Exhibit
    path: Path | None
    missing: tuple[dict[str, str], ...]
    cached: bool
    seconds: float


@dataclass(frozen=True)
class Order:
    """What to run. names: tables and figures (all without any). reuse: see Laboratory. save_queries: also write attacks' queries as .npz."""

    out: Path
    scale: str
    names: tuple[str, ...] = ()
    seed: int = 0
    data_root: Path = Path("data")
    device: str = "cpu"
    reuse: tuple[Path, ...] = ()
    save_queries: bool = False


def evaluate(order: Order, control: RunControl | None = None, progress: Callable[[PlanEvent], None] | None = None) -> list[Outcome]:
    """Runs what is not cached and returns what came out, table by table.

    Raises ConfigurationError for an unknown scale, table or results folder, TrainingPausedError where the time budget is spent or Ctrl-C
    came: the same call goes on from there.
    """
    return evaluate_exhibits(order, select(order.scale, order.names), control, progress)


def evaluate_exhibits(
    order: Order,
    chosen: Sequence[Exhibit],
    control: RunControl | None = None,
    progress: Callable[[PlanEvent], None] | None = None,
) -> list[Outcome]:
    """`evaluate` for exhibits of one's own: other settings, attacks or budgets than the scale's."""
    open_folder(order.out, order.scale)
    plan = _Plan([step for exhibit in chosen for step in steps(exhibit)], progress)
    control = replace(control or RunControl(), progress=plan.inner)
    lab = Laboratory(order.out, seed=order.seed, data_root=order.data_root, device=order.device, control=control, reuse=order.reuse)
    lab.cache.watch = plan.begins
    with _threads(order.scale):
        return [_exhibited(lab, exhibit, plan, order) for exhibit in chosen]


@contextmanager
def _threads(scale: str) -> Iterator[None]:
    """One thread at the `tiny` scale: networks this small gain nothing from a second one, and lose much where another process wants its core."""
    before = torch.get_num_threads()
    if scale == "tiny":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def open_folder(out: Path, scale: str) -> None:
    """Makes a results folder, or checks that this is one of this version and scale. Raises ConfigurationError where it is not."""
    check_folder(out, scale)
    if not (out / LABORATORY).exists():
        write_text(out / LABORATORY, json.dumps({"schema": SCHEMA, "scale": scale, "begun_with": code_version()}, indent=1))


def check_folder(out: Path, scale: str) -> None:
    """Writes nothing. Raises ConfigurationError where the folder is neither new nor empty nor a results folder of this version and scale."""
    if (out / LABORATORY).exists():
        known = read_folder(out)
        if known["scale"] != scale:
            raise ConfigurationError(f"results folder {out} is of scale {known['scale']}, got {scale}: choose another --out.")
        return
    foreign = [entry.name for entry in out.iterdir() if entry.name not in OWN] if out.is_dir() else []
    if foreign:
        raise ConfigurationError(f"--out {out} must be new, empty or a results folder, got one with {foreign[0]} in it: choose another.")


def read_folder(out: Path) -> dict[str, Any]:
    """What laboratory.json says. Raises ConfigurationError where there is none or it is of another version."""
    path = out / LABORATORY
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        schema, _ = known["schema"], known["scale"]
    except FileNotFoundError as error:
        raise ConfigurationError(
            f"results folder {out} must hold {LABORATORY}, got none: run sameguard evaluate --out {out} first."
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{path} must be readable JSON of a results folder, got {type(error).__name__}: {error}") from error
    if schema != SCHEMA:
        raise ConfigurationError(
            f"results folder {out} must be of version {SCHEMA}, got {schema}: use the sameguard that wrote it, or another --out."
        )
    return known


# ---------------------------------------------------------------------- the plan


class _Plan:
    """The unique steps of all exhibits, what failed, and how far the work is."""

    def __init__(self, every: list[Step], progress: Callable[[PlanEvent], None] | None) -> None:
        unique = {step.title: step for step in every}
        self.titles = list(unique)
        self.guessed = {title: step.seconds for title, step in unique.items()}
        self.done: set[str] = set()
        self.failed: dict[str, str] = {}  # title of a step -> why
        self.stages: dict[str, list[Stage]] = {}  # title of a step -> what it asked for first
        self._progress = progress
        self._current, self._making, self._cached = "", False, 0
        self._ran, self._guessed_of_ran = 0.0, 0.0

    def run(self, step: Step, lab: Laboratory) -> str | None:
        """Runs a step once. Returns why it failed, None where it is done."""
        if step.title in self.failed:
            return self.failed[step.title]
        if step.title in self.done:
            return None
        lab.stop_at_deadline("evaluation")
        self._current, self._making = step.title, False
        self._tell(None)
        began, asked = time.monotonic(), len(lab.cache.asked)
        try:
            step.run(lab)
        except TrainingPausedError:
            raise
        except (SameguardError, ModuleNotFoundError) as error:
            self.failed[step.title] = str(error)
            return str(error)
        finally:
            seconds = time.monotonic() - began
            if seconds > 0.5:  # what was cached says nothing about pace
                self._ran += seconds
                self._guessed_of_ran += self.guessed[step.title]
        self.stages[step.title] = lab.cache.asked[asked:]
        self.done.add(step.title)
        self._cached += not self._making
        self._tell(None)
        return None

    def begins(self, stage: Stage) -> None:
        """A stage of the current step is not cached."""
        self._making = True
        self._tell(None)

    def skip(self, step: Step) -> None:
        """Counts a step that hangs on one that failed as dealt with."""
        self.done.add(step.title)
        self._tell(None)

    def inner(self, event: ProgressEvent) -> None:
        self._tell(event)

    def _tell(self, event: ProgressEvent | None) -> None:
        if self._progress is None or not self._current:
            return
        finished = sum(self.guessed[title] for title in self.done | set(self.failed))
        if event is not None and event.steps and self._current not in self.done:
            finished += self.guessed[self._current] * event.step / event.steps
        total = sum(self.guessed.values())
        pace = self._ran / self._guessed_of_ran if self._guessed_of_ran > 1 else 1.0
        place = self.titles.index(self._current) + 1
        share, left = min(1.0, finished / total), max(0.0, total - finished) * pace
        self._progress(PlanEvent(place, len(self.titles), self._current, share, left, event, self._making, self._cached))


def _exhibited(lab: Laboratory, exhibit: Exhibit, plan: _Plan, order: Order) -> Outcome:
    began = time.monotonic()
    missing: dict[str, str] = {}
    for step in steps(exhibit):
        if any(part in missing for part in step.parts) or (missing and "" in missing):
            plan.skip(step)
            continue
        why = plan.run(step, lab)
        if why is not None:
            missing[step.parts[-1] if step.parts else ""] = why
    lost = tuple({"what": what or exhibit.title, "why": why} for what, why in missing.items())
    made = Made(
        [row for row in exhibit.attacks if row.name not in missing], [family for family in exhibit.families if family not in missing]
    )
    name = f"{exhibit.key}-seed{order.seed}"
    failure = order.out / "results" / f"{name}{MISSING}"
    if "" in missing or not made.attacks:
        write_text(failure, small_json({**_identity(exhibit, order), "missing": list(lost), "code": code_version()}))
        return Outcome(exhibit, None, lost, False, time.monotonic() - began)
    failure.unlink(missing_ok=True)
    if order.save_queries:
        for row in made.attacks:
            save_queries(lab, exhibit, row.name, order.out)
    path = order.out / "results" / f"{name}.json"
    stages = [stage for step in steps(exhibit) for stage in plan.stages.get(step.title, []) if stage.done]
    key = _key(lab, exhibit, made, lost, stages)
    if path.exists() and _stored_key(path) == key:
        return Outcome(exhibit, path, lost, True, time.monotonic() - began)
    found = KINDS[exhibit.kind](lab, exhibit, made)
    _write(order, name, found)
    result = {
        **_identity(exhibit, order), "kind": exhibit.kind, "key": key, "setting": _setting_facts(lab, exhibit), "data": found.data,
        "missing": list(lost), "code": code_version(), "machine": machine(), "versions": library_versions(), **_spent(stages),
    }  # fmt: skip
    write_text(path, small_json(result))
    return Outcome(exhibit, path, lost, False, time.monotonic() - began)


def _identity(exhibit: Exhibit, order: Order) -> dict[str, Any]:
    return {
        "schema": SCHEMA, "exhibit": exhibit.name, "title": exhibit.title, "scale": order.scale, "seed": order.seed,
        "setting": {"name": exhibit.setting.name, "title": exhibit.setting.title},
    }  # fmt: skip


def _key(lab: Laboratory, exhibit: Exhibit, made: Made, lost: tuple[dict[str, str], ...], stages: list[Stage]) -> str:
    known = {
        "exhibit": repr(exhibit),
        "inputs": inputs_of(lab, exhibit, made),
        "stages": {stage.folder.name: stage.digest for stage in stages},
        "sources": source_digest(SOURCES),
        "seed": lab.seed,
        "missing": lost,
    }
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def _stored_key(path: Path) -> str | None:
    try:
        return json.loads(path.read_text(encoding="utf-8")).get("key")
    except (OSError, ValueError, AttributeError):
        return None


def _setting_facts(lab: Laboratory, exhibit: Exhibit) -> dict[str, Any]:
    setting, roles = exhibit.setting, lab.roles(exhibit.setting)
    victim = lab.victim_stage(setting)
    return {
        "name": setting.name, "title": setting.title, "dataset": setting.dataset, "victim": setting.victim, "preset": setting.preset,
        "victim_accuracy": victim.facts["accuracy"], "substitute": asdict(setting.substitute),
        "rows": {"train": len(roles.train), "benign": len(roles.benign), "natural": len(roles.natural), "test": len(roles.test)},
        "left_out_of_test": roles.left_out,
    }  # fmt: skip


def _spent(stages: list[Stage]) -> dict[str, Any]:
    """Seconds of every stage that a result rests on, whenever it was made, their sum, and the largest of their peaks of memory.

    reused: stages whose training was taken over from elsewhere, and the seconds that it took there; `seconds` has its loading only.
    """
    records = {stage.known["stage"]: stage.record for stage in stages}
    reused = {}
    for name, record in records.items():
        facts = record["facts"]
        if "reused" in facts:
            parts = {"training": facts["training_seconds"]} if "training_seconds" in facts else facts["seconds"]
            reused[name] = round(sum(value for part, value in parts.items() if part != "this_call"), 1)
    return {
        "seconds": round(sum(record["seconds"] for record in records.values()), 1),
        "peak_memory_mib": max(record["peak_memory_mib"] for record in records.values()),
        "stages": {name: record["seconds"] for name, record in records.items()}, "reused": reused,
    }  # fmt: skip


def _write(order: Order, name: str, found: Found) -> None:
    if found.arrays:
        path = order.out / "scores" / f"{name}.npz"
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{name}.tmp.npz")
        np.savez_compressed(temporary, **found.arrays)
        temporary.replace(path)
    folder = order.out / "pictures" / name
    shutil.rmtree(folder, ignore_errors=True)
    for column, picture in found.pictures.items():
        save_picture(folder / f"{column}.png", picture)


def save_queries(lab: Laboratory, exhibit: Exhibit, name: str, out: Path) -> Path:
    """Writes an attack's queries and the victim's answers as .npz, for others to test their own detectors on."""
    row = next(row for row in exhibit.attacks if row.name == name)
    theft = lab.theft(exhibit.setting, row)
    path = out / "queries" / f"{exhibit.setting.name}-{row.name}-seed{lab.seed}.npz"
    path.parent.mkdir(parents=True, exist_ok=True)
    natural = np.zeros(len(theft.queries), bool) if theft.natural is None else theft.natural
    np.savez_compressed(path, inputs=theft.queries, victim_probs=theft.probs, answered=theft.answered, natural=natural)
    return path
