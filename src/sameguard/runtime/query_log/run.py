"""From logs to scores: the pieces of a log through scorers in this process, or through Ray Data's actors, and into one output in order.

Both engines score the same pieces, each with one scorer per worker, and the pieces are what the scorer's batches are made of: so both give
equal scores. Ray keeps the order of its blocks; a piece that came out of turn would be noticed by its row number.
"""

import logging
import pickle
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import numpy as np

from sameguard.calibration import Threshold
from sameguard.errors import ConfigurationError, SameguardError
from sameguard.runtime.query_log.outputs import check_output, open_output
from sameguard.runtime.query_log.rows import LogScoringError, Piece, ScoredRows, Source, merged, output_columns
from sameguard.runtime.query_log.scoring import LogScorer, Options
from sameguard.runtime.query_log.sources import SOURCES, find_logs

ENGINES = ("local", "ray")
BATCH_ROWS = 256


@dataclass(frozen=True)
class LogSummary:
    """rows: of the log. answered: those scored with the victim's answer, the others by stage A alone. errors: rows without a score."""

    rows: int
    answered: int
    stage_a_only: int
    flagged: int
    errors: int
    first_error: str
    threshold: Threshold
    engine: str

    @property
    def flagged_share(self) -> float:
        """Of the rows that were scored; NaN where there are none."""
        scored = self.answered + self.stage_a_only
        return self.flagged / scored if scored else float("nan")


def score_log(
    artifact: str | Path,
    queries: str,
    out: str | Path,
    *,
    engine: str = "local",
    workers: int | None = None,
    batch_rows: int = BATCH_ROWS,
    rate: float | None = None,
    stage_a_only: bool = False,
    canonical: bool = False,
    overwrite: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> LogSummary:
    """Scores the rows of a log, or of several, and writes one output.

    queries: a path, a directory or a glob. workers: batches at once; local: threads with a scorer each (default 1, with all cores), ray:
    actors with one core each (default 2). progress: called with the rows done and the rows there are.

    Raises ConfigurationError for what cannot be asked, DataNotFoundError and InvalidDataError for files that are no logs, ArtifactError and
    NotFittedError for an artefact that cannot score, LogScoringError where Ray's workers failed. Then nothing is written.
    """
    if engine not in ENGINES:
        raise ConfigurationError(f"engine must be local or ray, got {engine!r}.")
    if batch_rows < 1 or (workers is not None and workers < 1):
        raise ConfigurationError(f"workers and batch_rows must be at least 1, got {workers} and {batch_rows}.")
    if engine == "ray":
        ray_data()
    out = Path(out)
    check_output(out, overwrite=overwrite)
    logs = find_logs(queries)
    if out.resolve() in [log.resolve() for log in logs]:
        raise ConfigurationError(f"output {out} must not be one of the logs: choose another name.")
    alone = engine == "local" and workers in (None, 1)
    options = Options(str(Path(artifact).resolve()), rate, stage_a_only, canonical, threads=None if alone else 1)
    scorer = LogScorer(options)  # refuses what cannot work before the log is read
    log = merged(_surveyed(SOURCES[logs[0].suffix](scorer.frame), logs, batch_rows))
    scored = _local(scorer, log.pieces, workers or 1) if engine == "local" else _on_ray(options, log.pieces, workers or 2)
    counts, first_error = np.zeros(4, int), ""
    with open_output(out, output_columns(log.columns), overwrite=overwrite) as output:
        for piece, rows in zip(log.pieces, scored, strict=True):
            if (rows.first_row, len(rows)) != (piece.first_row, piece.rows):
                raise LogScoringError(f"rows must come back in the log's order, got row {rows.first_row} in place of {piece.first_row}.")
            output.write(rows)
            bad = [row for row, error in enumerate(rows.errors) if error]
            if bad and not first_error:
                first_error = f"row {piece.first_row + bad[0]}: {rows.errors[bad[0]]}"
            good = [stage for stage in rows.stages if stage]
            flagged = sum(bool(flag) for flag, error in zip(rows.flagged, rows.errors, strict=True) if not error)
            counts += (good.count("A+B"), good.count("A"), flagged, len(bad))
            if progress is not None:
                progress(piece.first_row + piece.rows, log.rows)
    return LogSummary(log.rows, *counts.tolist(), first_error, scorer.threshold, f"{engine}, {scorer.scorer.provider}")


def _surveyed(source: Source, logs: list[Path], batch_rows: int) -> list[Any]:
    try:
        return [source.survey(str(log.resolve()), batch_rows) for log in logs]
    finally:
        source.close()


class PieceScorer:
    """A scorer and a reader of its own: what each worker has."""

    def __init__(self, scorer: LogScorer) -> None:
        self.scorer = scorer
        self._source: tuple[str, Source] | None = None

    def __call__(self, piece: Piece) -> ScoredRows:
        suffix = Path(piece.path).suffix
        if self._source is None:
            self._source = suffix, SOURCES[suffix](self.scorer.frame)
        return self.scorer.score(self._source[1].read(piece), piece.first_row)

    def close(self) -> None:
        if self._source is not None:
            self._source[1].close()


def _local(first: LogScorer, pieces: list[Piece], workers: int) -> Iterator[ScoredRows]:
    """In order; at most two pieces for each worker are read and not yet written."""
    idle: SimpleQueue[PieceScorer] = SimpleQueue()
    everyone = [PieceScorer(first if index == 0 else LogScorer(first.options)) for index in range(workers)]
    for worker in everyone:
        idle.put(worker)

    def work(piece: Piece) -> ScoredRows:
        worker = idle.get()
        try:
            return worker(piece)
        finally:
            idle.put(worker)

    executor = ThreadPoolExecutor(workers, thread_name_prefix="score-log")
    ahead: deque[Any] = deque()
    try:
        for piece in pieces:
            ahead.append(executor.submit(work, piece))
            if len(ahead) >= 2 * workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()
    finally:
        executor.shutdown(cancel_futures=True)
        for worker in everyone:
            worker.close()


# ---------------------------------------------------------------------- Ray


def ray_data() -> tuple[Any, Any]:
    """ray and ray.data. Raises ConfigurationError where they are not installed."""
    try:
        import ray
        import ray.data
    except ModuleNotFoundError as error:
        raise ConfigurationError("engine ray needs Ray Data, which is not installed: pip install 'sameguard[ray]'.") from error
    return ray, ray.data


class RayPieceScorer:
    """The class of Ray Data's actors. Scored rows travel as Ray's own messages do, pickled."""

    def __init__(self, options: Options) -> None:
        self.score = PieceScorer(LogScorer(options))

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        scored = np.empty(len(batch["piece"]), object)
        for index, piece in enumerate(batch["piece"]):
            try:
                scored[index] = pickle.dumps(self.score(pickle.loads(piece)))
            except SameguardError as error:  # Ray would wrap it in its own, and try again
                scored[index] = pickle.dumps(error)
        return {"scored": scored}


def _on_ray(options: Options, pieces: list[Piece], workers: int) -> Iterator[ScoredRows]:
    """In order, over an actor pool. Workers read the files themselves: on a cluster, logs and artefact must lie where all can read them."""
    ray, data = ray_data()
    if not pieces:
        return
    started = not ray.is_initialized()
    if started:
        ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    logger = logging.getLogger("ray.data")
    level = logger.level
    logger.setLevel(logging.ERROR)  # its plans and progress would drown the summary
    context = data.DataContext.get_current()
    before = context.execution_options.preserve_order, context.enable_progress_bars
    context.execution_options.preserve_order, context.enable_progress_bars = True, False
    try:
        blocks = min(len(pieces), 4 * workers)
        log = data.from_items([{"piece": pickle.dumps(piece)} for piece in pieces], override_num_blocks=blocks)
        scored = log.map_batches(
            RayPieceScorer,
            fn_constructor_args=(options,),
            batch_size=1,
            compute=data.ActorPoolStrategy(size=min(workers, blocks)),
            num_cpus=1,
        )
        for row in scored.iter_rows():
            found = pickle.loads(row["scored"])
            if isinstance(found, SameguardError):
                raise found
            yield found
    except ray.exceptions.RayError as error:
        raise LogScoringError(f"Ray's workers must score every piece, got {type(error).__name__}: {error}") from error
    finally:
        context.execution_options.preserve_order, context.enable_progress_bars = before
        logger.setLevel(level)
        if started:
            ray.shutdown()
