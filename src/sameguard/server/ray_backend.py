"""Scorer replicas as Ray actors, behind the guard's own queue: for models whose scoring one process cannot carry.

Each replica has the artefact's scorer and runs one batch at a time. A replica that dies, or hangs, is replaced; its batch is tried once more.
Ray ends with this process; it is left running until then, because replicas of a reloaded artefact start beside the old ones.
"""

import queue
import threading
from pathlib import Path
from typing import Any

from sameguard.errors import ConfigurationError
from sameguard.server.scoring import Found, Job, ScorerFailedError, run_jobs

START_SECONDS = 120.0  # importing the scorer and opening the artefact, on a busy machine


class Replica:
    """The actor: a scorer of its own."""

    def __init__(self, artifact: str, engine: str, threads: int) -> None:
        from sameguard.runtime import Scorer

        self.scorer = Scorer(artifact, engine=engine, threads=threads)

    def ready(self) -> bool:
        return True

    def run(self, jobs: list[Job]) -> list[Found]:
        return run_jobs(self.scorer, jobs)


class RayBackend:
    """Scores on `replicas` actors, any number of batches up to that at once. It is a Backend.

    artifact: must lie in the same place on every node of a cluster. threads: of each replica. timeout_seconds: for one batch.
    Replicas are spread over the nodes and reserve no cores, so that a reload has room for new ones beside the old.

    Raises ConfigurationError where Ray is not installed, ScorerFailedError where a replica does not start.
    """

    replica_type: type = Replica

    def __init__(
        self, artifact: str | Path, *, engine: str = "auto", threads: int | None = None, replicas: int = 2, timeout_seconds: float = 30.0
    ) -> None:
        if replicas < 1 or (threads is not None and threads < 1) or not timeout_seconds > 0:
            raise ConfigurationError(
                f"replicas and threads must be at least 1 and timeout_seconds positive, got {replicas}, {threads} and {timeout_seconds}."
            )
        self._ray = _ray()
        if not self._ray.is_initialized():
            self._ray.init(include_dashboard=False, log_to_driver=False, logging_level="ERROR")
        self.parallel = replicas
        self.timeout_seconds = timeout_seconds
        self._replica_class = self._ray.remote(num_cpus=0, max_restarts=0, scheduling_strategy="SPREAD")(self.replica_type)
        self._arguments = (str(Path(artifact).resolve()), engine, threads or 1)
        self._lock = threading.Lock()
        self._closed = False
        self._replicas = [self._start() for _ in range(replicas)]
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        try:
            self._ray.get([replica.ready.remote() for replica in self._replicas], timeout=START_SECONDS)
        except self._ray.exceptions.RayError as error:
            self.close()
            raise ScorerFailedError(f"scorer replicas must start, got {_said(error)}") from error
        for replica in self._replicas:
            self._idle.put(replica)

    def run(self, jobs: list[Job]) -> list[Found]:
        """One result for each job, from whichever replica is idle. Raises ScorerFailedError where two replicas died of it, or one hung."""
        try:
            return self._try(jobs)
        except self._ray.exceptions.RayActorError:
            try:
                return self._try(jobs)
            except self._ray.exceptions.RayActorError as error:
                raise ScorerFailedError(f"scorer replicas must live, got two that died in a row: {_said(error)}") from error

    def close(self) -> None:
        with self._lock:
            self._closed = True
            replicas, self._replicas = self._replicas, []
        for replica in replicas:
            self._ray.kill(replica)
        for _ in range(self.parallel):
            self._idle.put(None)  # wakes those who wait for a replica

    def _try(self, jobs: list[Job]) -> list[Found]:
        replica = self._idle.get()
        if replica is None:
            self._idle.put(None)
            raise ScorerFailedError("scorer replicas must be open, got a batch after they were closed.")
        try:
            return self._ray.get(replica.run.remote(jobs), timeout=self.timeout_seconds)
        except self._ray.exceptions.RayTaskError as error:  # what the scorer raised, as if it had run here
            raise error.cause from error
        except self._ray.exceptions.GetTimeoutError as error:
            replica = self._replace(replica)
            raise ScorerFailedError(f"scorer replica must answer within {self.timeout_seconds:g} s, got none: it was replaced.") from error
        except self._ray.exceptions.RayActorError:
            replica = self._replace(replica)
            raise
        finally:
            self._idle.put(replica)

    def _replace(self, replica: Any) -> Any:
        """A new replica in the place of one that cannot be used any more; it takes batches at once, and runs them when it is up."""
        self._ray.kill(replica)
        with self._lock:
            if self._closed:
                return None
            self._replicas.remove(replica)
            self._replicas.append(self._start())
            return self._replicas[-1]

    def _start(self) -> Any:
        return self._replica_class.remote(*self._arguments)


def _ray() -> Any:
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ConfigurationError("scorer.replicas need Ray, which is not installed: pip install 'sameguard[ray]'.") from error
    return ray


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[-1] if str(error).strip() else 'no reason given'}"
