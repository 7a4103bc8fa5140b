"""The dashboard's memory: bounded, fair to quiet minutes, and without pictures unless asked for."""

import base64
import io

import numpy as np
import pytest
from admin_guards import NOON, Clock, decision_of, settings_of
from PIL import Image

from sameguard.server.decision import Evidence, Observer
from sameguard.server.history import LAST_SCORES, LATENCIES, MINUTES, SAMPLE, History
from sameguard.server.thumbnails import thumbnails_of


def history_of(clock: Clock | None = None, **settings) -> History:
    return History(settings_of(**settings), clock=clock or Clock())


def refused(**changes):
    return decision_of(**{"outcome": "refuse", "verdict": "refuse", "status": 403, "enforced": True} | changes)


def test_requests_are_counted_by_the_minute_they_end_in():
    clock = Clock()
    history = history_of(clock)
    assert isinstance(history, Observer)
    history.observe(decision_of(), None)
    clock.now += 60
    history.observe(decision_of(), None)
    history.observe(refused(), None)
    clock.now += 120
    view = history.view(4)
    assert [start for start, _ in view.minutes] == [NOON, NOON + 60, NOON + 120, NOON + 180]
    assert [minute.counts.total() for _, minute in view.minutes] == [1, 2, 0, 0]
    assert view.counts == {("allow", "allow"): 2, ("refuse", "refuse"): 1}
    assert [minute.counts.total() for _, minute in history.view(2).minutes] == [0, 0]


def test_what_is_older_than_the_last_hours_is_forgotten():
    clock = Clock()
    history = history_of(clock)
    for _ in range(MINUTES + 50):
        history.observe(decision_of(), None)
        clock.now += 60
    assert len(history._minutes) <= MINUTES
    assert history.view().counts.total() == MINUTES - 1  # the present minute has none yet


def test_a_clock_that_is_set_back_leaves_no_future():
    clock = Clock()
    history = history_of(clock)
    history.observe(decision_of(), None)
    clock.now -= 3600
    history.observe(decision_of(), None)
    assert list(history._minutes) == [int(clock.now // 60)]


def test_a_refusal_that_is_only_repeated_shows_the_pictures_of_the_first():
    history = history_of(thumbnails=True)
    queries = np.linspace(0, 1, 64, dtype=np.float32).reshape(1, 1, 8, 8)
    history.observe(refused(digest="a" * 64), Evidence(queries, {"full": queries * 0}))
    history.observe(refused(digest="a" * 64, cached=True), None)
    history.observe(refused(digest="b" * 64, cached=True), None)
    other, repeated, first = [recent.thumbnails for recent in history.view().recent]
    assert repeated is first
    assert first is not None
    assert other is None


def test_memory_is_bounded_whatever_comes():
    history = history_of(recent=5)
    for number in range(LAST_SCORES + 500):
        history.observe(decision_of(score=float(number)), None)
        history.observe(refused(request_id=f"r-{number}"), None)
    view = history.view(1)
    assert len(view.scores) == LAST_SCORES
    assert len(view.minutes[0][1].scores) == SAMPLE
    assert {len(values) for values in view.latencies.values()} == {LATENCIES}
    assert [entry.decision.request_id for entry in view.recent] == [f"r-{number}" for number in range(4499, 4494, -1)]


def test_a_busy_minutes_sample_is_fair():
    history = history_of()
    for number in range(6400):
        history.observe(decision_of(score=float(number)), None)
    sample = np.array(history.view(1).minutes[0][1].scores)
    assert abs(sample.mean() - 3200) < 4 * 6400 / np.sqrt(12 * SAMPLE)  # four standard errors of a uniform sample's mean
    assert sample.min() < 640
    assert sample.max() > 5760


def test_drift_is_told_by_single_allowed_queries_that_are_new():
    history = history_of()
    history.observe(decision_of(score=0.5), None)
    history.observe(decision_of(score=0.6, rows=3), None)
    history.observe(decision_of(score=0.7, cached=True), None)
    history.observe(decision_of(score=9.0, verdict="refuse"), None)
    view = history.view(1)
    assert view.minutes[0][1].scores == [0.5]
    assert view.scores.tolist() == [0.5, 9.0]


def test_challenges_are_counted_when_issued_solved_and_failed():
    history = history_of()
    challenged = {"outcome": "challenge", "verdict": "challenge", "status": 402, "enforced": True}
    history.observe(decision_of(**challenged, issued=True), None)
    history.observe(decision_of(**challenged), None)  # the same one again
    history.observe(decision_of(verdict="", proof="valid"), None)
    history.observe(decision_of(**challenged, proof="expired"), None)
    assert history.view(1).challenges == {"issued": 1, "valid": 1, "expired": 1}


def test_what_was_flagged_is_remembered_in_shadow_mode_too():
    history = history_of()
    history.observe(decision_of(verdict="refuse", request_id="shadow"), None)
    history.observe(decision_of(verdict="", request_id="paid"), None)
    assert [entry.decision.request_id for entry in history.view().recent] == ["shadow"]


def test_a_view_is_a_copy():
    history = history_of()
    history.observe(decision_of(), None)
    view = history.view(1)
    history.observe(decision_of(), None)
    assert view.counts.total() == 1


# ---------------------------------------------------------------------- pictures


def evidence_of(*rows: float, channels: int = 1, side: int = 8, passes: int = 0) -> Evidence:
    """Grey queries of these values whose reconstruction is black."""
    queries = np.stack([np.full((channels, side, side), value, np.float32) for value in rows])
    view = np.zeros((len(rows), passes, channels, side, side), np.float32) if passes else np.zeros_like(queries)
    return Evidence(queries, {"masked" if passes else "full": view})


def picture(url: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.removeprefix("data:image/png;base64,")))))


def test_pictures_are_kept_of_flagged_requests_and_only_when_asked_for():
    silent, keeping = history_of(), history_of(thumbnails=True)
    assert (silent.wants_evidence, keeping.wants_evidence) == (False, True)
    for history in (silent, keeping):
        history.observe(refused(), evidence_of(0.5))
        history.observe(decision_of(), evidence_of(0.5))
    assert [entry.thumbnails for entry in silent.view().recent] == [None]
    (entry,) = keeping.view().recent
    assert entry.thumbnails is not None
    assert set(entry.thumbnails.urls) == {"query", "reconstruction", "error"}


def test_a_picture_shows_the_query_what_became_of_it_and_where_they_differ():
    found = thumbnails_of(refused(), evidence_of(1.0))
    assert picture(found.urls["query"]).shape == (96, 96)  # enlarged pixel by pixel
    assert picture(found.urls["query"]).min() == 255
    assert picture(found.urls["reconstruction"]).max() == 0
    assert picture(found.urls["error"])[0, 0].tolist() == [252, 255, 164]  # the brightest: they differ by everything
    same = Evidence(evidence_of(0.5).queries, {"full": evidence_of(0.5).queries})
    assert picture(thumbnails_of(refused(), same).urls["error"])[0, 0].tolist() == [0, 0, 4]


@pytest.mark.parametrize(
    "scores", [{"row_scores": (0.1, 0.9, 0.2)}, {"row_stage_a_scores": (0.1, 0.9, 0.2), "row_scores": (0.5, np.nan, 0.6)}]
)
def test_the_picture_is_of_the_row_with_the_highest_score(scores):
    found = thumbnails_of(refused(rows=3, **scores), evidence_of(0.2, 0.4, 1.0))
    assert found.query.max() == round(0.4 * 255)


@pytest.mark.parametrize("passes", [0, 2])
def test_without_scores_of_rows_it_is_of_the_one_reconstructed_worst(passes):
    assert thumbnails_of(refused(rows=3), evidence_of(0.2, 0.8, 0.4, passes=passes)).query.max() == round(0.8 * 255)


def test_large_pictures_are_thinned_out_and_colours_stay():
    found = thumbnails_of(refused(), evidence_of(0.5, channels=3, side=224))
    assert found.query.shape == (56, 56, 3)
    assert sum(part.nbytes for part in (found.query, found.reconstruction, found.error)) < 40_000
    assert thumbnails_of(refused(), evidence_of(0.5, channels=2)).query.shape == (8, 8)


def test_vectors_have_no_picture():
    vectors = np.zeros((1, 5), np.float32)
    assert thumbnails_of(refused(), Evidence(vectors, {"full": vectors})) is None
    assert thumbnails_of(refused(), Evidence(evidence_of(0.5).queries, {})) is None
