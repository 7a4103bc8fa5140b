"""Scoring off the event loop: both stages as jobs for one queue, run by this process or by replicas.

A job is data, so that it can travel; a batch of jobs is run in as few network passes as its kinds allow. A score that is no number is a
failure of the scorer, not a property of the query: it is raised here, before any policy could treat it as a very high or very low one.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from sameguard.errors import SameguardError
from sameguard.scoring.two_stage import Reconstruction, TwoStageScorer
from sameguard.server.batching import MicroBatcher
from sameguard.shapes import Probs, Queries, Scores


class ScorerFailedError(SameguardError, RuntimeError):
    """The scorer gave no score for these rows."""


class NotANumberError(ScorerFailedError):
    """A score is NaN or infinite: nothing may be answered on it, not even by a guard that fails open."""


@dataclass(frozen=True, eq=False)
class StageA:
    """Job: what do these queries alone tell? queries: canonical."""

    queries: Queries


@dataclass(frozen=True, eq=False)
class StageB:
    """Job: what does the victim's answer add? One row of probs for each of the reconstruction's."""

    reconstruction: Reconstruction
    probs: Probs


@dataclass(frozen=True, eq=False)
class Found:
    """scores: of stage A, None where the configured score has no such part; or the whole score. reconstruction: of stage A's jobs."""

    scores: Scores | None
    reconstruction: Reconstruction | None = None


Job = StageA | StageB


@runtime_checkable
class Backend(Protocol):
    """Where jobs are run. parallel: how many batches at once. run: blocking, from `parallel` threads; one result for each job."""

    parallel: int

    def run(self, jobs: list[Job]) -> list[Found]: ...

    def close(self) -> None: ...


class LocalBackend:
    """This process's scorer, one batch at a time: the engine has the cores to itself."""

    parallel = 1

    def __init__(self, scorer: TwoStageScorer) -> None:
        self.scorer = scorer

    def run(self, jobs: list[Job]) -> list[Found]:
        return run_jobs(self.scorer, jobs)

    def close(self) -> None:
        """Nothing is held."""


def run_jobs(scorer: TwoStageScorer, jobs: list[Job]) -> list[Found]:
    """Each job's result, in order; jobs of one stage share their network passes."""
    found: list[Found | None] = [None] * len(jobs)
    first = [index for index, job in enumerate(jobs) if isinstance(job, StageA)]
    second = [index for index, job in enumerate(jobs) if isinstance(job, StageB)]
    if first:
        whole = scorer.reconstruct(np.concatenate([jobs[index].queries for index in first]))
        scores = scorer.stage_a_score(whole)
        for index, rows in zip(first, _row_ranges([len(jobs[index].queries) for index in first]), strict=True):
            found[index] = Found(None if scores is None else scores[rows], whole.take(rows))
    if second:
        whole = _joined([jobs[index].reconstruction for index in second])
        scores = scorer.combined_score(whole, scorer.deviation(whole, np.concatenate([jobs[index].probs for index in second])))
        for index, rows in zip(second, _row_ranges([len(jobs[index].reconstruction) for index in second]), strict=True):
            found[index] = Found(scores[rows])
    return found


def _row_ranges(sizes: list[int]) -> list[np.ndarray]:
    ends = np.cumsum(sizes)
    return [np.arange(end - size, end) for end, size in zip(ends, sizes, strict=True)]


def _joined(parts: list[Reconstruction]) -> Reconstruction:
    if len(parts) == 1:
        return parts[0]
    return Reconstruction(
        np.concatenate([part.queries for part in parts]),
        {view: np.concatenate([part.views[view] for part in parts]) for view in parts[0].views},
        {name: np.concatenate([part.terms[name] for part in parts]) for name in parts[0].terms},
    )


class ScoringQueue:
    """The bounded queue before a backend. Raises QueueFullError, DeadlineError, ScorerFailedError, NotANumberError; see `MicroBatcher`."""

    def __init__(self, backend: Backend, *, batch_rows: int, waiting_rows: int, deadline_seconds: float) -> None:
        self.backend = backend
        self.deadline_seconds = deadline_seconds
        self._threads = ThreadPoolExecutor(backend.parallel, thread_name_prefix="scorer")
        self._batcher: MicroBatcher[Job, Found] = MicroBatcher(
            backend.run, self._threads, max_rows=batch_rows, max_waiting_rows=waiting_rows, parallel=backend.parallel
        )

    @property
    def waiting_rows(self) -> int:
        return self._batcher.waiting_rows

    async def stage_a(self, queries: Queries, asker: str = "") -> Found:
        """Reconstruction and stage-A scores of these queries. asker: whose they are, for the turns."""
        return await self._run(StageA(queries), len(queries), asker=asker)

    async def stage_b(self, reconstruction: Reconstruction, probs: Probs) -> Scores:
        """Whole scores, (rows,)."""
        return (await self._run(StageB(reconstruction, probs), len(reconstruction), begun=True)).scores

    async def _run(self, job: Job, rows: int, *, asker: str = "", begun: bool = False) -> Found:
        deadline = self._batcher.clock() + self.deadline_seconds
        try:
            found = await self._batcher.submit(job, rows, deadline=deadline, asker=asker, begun=begun)
        except SameguardError:
            raise
        except Exception as error:  # whatever the engine raises
            raise ScorerFailedError(f"scorer gave no score, got {type(error).__name__}: {error}") from error
        if found.scores is not None and not np.isfinite(found.scores).all():
            raise NotANumberError(f"scores must be finite, got {int((~np.isfinite(found.scores)).sum())} of {rows} that are not.")
        return found

    def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)
        self.backend.close()
