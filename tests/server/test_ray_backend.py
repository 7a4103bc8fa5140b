"""Replicas on a real Ray: the same results as in this process, and a dead or hanging replica costs at most a repetition."""

import os
import sys
import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from blur_artifact import write_blur_artifact
from sameguard.errors import ConfigurationError, InvalidQueryError
from sameguard.runtime import Scorer
from sameguard.server.ray_backend import RayBackend, Replica
from sameguard.server.scoring import Backend, Job, LocalBackend, ScorerFailedError, StageA, StageB
from stand_ins import linear_victim, noise_images, smooth_images, unchecked

pytestmark = pytest.mark.filterwarnings("ignore:::ray", "ignore::ResourceWarning")


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of Ray's own imports
        ray = pytest.importorskip("ray", reason="ray is not installed: no replicas")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield ray
    ray.shutdown()


@pytest.fixture(scope="module")
def guard(tmp_path_factory) -> Path:
    return write_blur_artifact(tmp_path_factory.mktemp("replicas") / "guard")


@pytest.fixture
def backend(ray, guard) -> Iterator[RayBackend]:
    made = RayBackend(guard, replicas=2)
    yield made
    made.close()


@pytest.fixture(scope="module")
def local(guard) -> LocalBackend:
    return LocalBackend(Scorer(guard, threads=1))


def first_jobs() -> list[Job]:
    return [StageA(smooth_images(3)), StageA(noise_images(2)), StageA(smooth_images(1, seed=5))]


def equal(first: Any, second: Any) -> bool:
    """Whether two lists of `Found` hold the same numbers."""
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.scores, other.scores)
        assert (one.reconstruction is None) == (other.reconstruction is None)
        if one.reconstruction is not None:
            for view in one.reconstruction.views:
                np.testing.assert_array_equal(one.reconstruction.views[view], other.reconstruction.views[view])
            for term in one.reconstruction.terms:
                np.testing.assert_array_equal(one.reconstruction.terms[term], other.reconstruction.terms[term])
    return len(first) == len(second)


def test_replicas_find_what_this_process_finds_in_both_stages(backend, local):
    assert isinstance(backend, Backend)
    assert backend.parallel == 2
    jobs = first_jobs()
    remote, here = backend.run(jobs), local.run(jobs)
    assert equal(remote, here)
    second = [StageB(found.reconstruction, linear_victim().answer(job.queries)) for found, job in zip(remote, jobs, strict=True)]
    assert equal(backend.run([*second, jobs[0]]), local.run([*second, jobs[0]]))


def test_many_threads_may_ask_at_once(backend, local):
    jobs = [[StageA(smooth_images(2, seed=seed))] for seed in range(12)]
    with ThreadPoolExecutor(6) as threads:
        remote = list(threads.map(backend.run, jobs))
    for found, asked in zip(remote, jobs, strict=True):
        assert equal(found, local.run(asked))


def test_what_the_scorer_raises_is_raised_here_and_the_replica_goes_on(backend, local):
    with pytest.raises(InvalidQueryError, match="query shape must be"):
        backend.run([StageA(np.zeros((1, 1, 5, 5), np.float32))])
    assert equal(backend.run(first_jobs()), local.run(first_jobs()))


def test_a_killed_replica_is_replaced_and_its_batch_is_answered_by_another(ray, backend, local):
    victims = list(backend._replicas)
    ray.kill(victims[0])  # which of them is asked first does not matter
    for _ in range(3):
        assert equal(backend.run(first_jobs()), local.run(first_jobs()))
    assert victims[0] not in backend._replicas
    assert len(backend._replicas) == 2


def test_a_batch_that_kills_two_replicas_fails_and_the_next_one_is_answered(ray, guard, local, monkeypatch):
    class Fragile:  # no subclass: `super` would not travel
        def __init__(self, *arguments: Any) -> None:
            self.replica = Replica(*arguments)

        def ready(self) -> bool:
            return self.replica.ready()

        def run(self, jobs: list[Job]) -> Any:
            if len(jobs) == 1:
                os._exit(1)
            return self.replica.run(jobs)

    monkeypatch.setattr(RayBackend, "replica_type", Fragile)
    backend = RayBackend(guard, replicas=2)
    with pytest.raises(ScorerFailedError, match="got two that died in a row"):
        backend.run([StageA(smooth_images(1))])
    assert equal(backend.run(first_jobs()), local.run(first_jobs()))
    backend.close()


def test_a_replica_that_hangs_is_replaced(ray, guard, local, monkeypatch):
    class Slow:  # no subclass: `super` would not travel
        def __init__(self, *arguments: Any) -> None:
            self.replica = Replica(*arguments)

        def ready(self) -> bool:
            return self.replica.ready()

        def run(self, jobs: list[Job]) -> Any:
            if len(jobs) == 1:
                time.sleep(60)
            return self.replica.run(jobs)

    monkeypatch.setattr(RayBackend, "replica_type", Slow)
    backend = RayBackend(guard, replicas=1, timeout_seconds=0.5)
    with pytest.raises(ScorerFailedError, match=r"must answer within 0\.5 s, got none: it was replaced"):
        backend.run([StageA(smooth_images(1))])
    backend.timeout_seconds = 60.0
    assert equal(backend.run(first_jobs()), local.run(first_jobs()))
    backend.close()


def test_a_closed_backend_answers_nobody_and_keeps_nobody_waiting(ray, guard):
    backend = RayBackend(guard, replicas=1)
    held = backend._idle.get()  # everybody waits for it
    with ThreadPoolExecutor(2) as threads:
        waiting = [threads.submit(backend.run, first_jobs()) for _ in range(2)]
        backend.close()
        for result in waiting:
            with pytest.raises(ScorerFailedError, match="after they were closed"):
                result.result(timeout=30)
    with pytest.raises(ray.exceptions.RayActorError):
        ray.get(held.ready.remote())


def test_an_artefact_that_cannot_be_opened_is_said_at_the_start(ray, tmp_path):
    with pytest.raises(ScorerFailedError, match=r"replicas must start, got .*ArtifactError"):
        RayBackend(tmp_path / "none", replicas=1)


def test_settings_out_of_range_and_a_missing_ray_are_refused(guard, monkeypatch):
    for change in ({"replicas": 0}, {"threads": 0}, {"timeout_seconds": 0.0}):
        with pytest.raises(ConfigurationError, match="replicas and threads must be at least 1"):
            unchecked(RayBackend, guard, **change)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigurationError, match=r"not installed: pip install 'sameguard\[ray\]'"):
        RayBackend(guard)
