"""check_detector passes what keeps the contract and names the rule that anything else breaks."""

import numpy as np
import pytest
import torch

from sameguard.errors import ConfigurationError, InvalidQueryError
from sameguard.testing.detectors import check_detector
from stand_ins import IMAGES, BlurScorer, linear_victim, smooth_images

QUERIES = smooth_images(12)
PROBS = linear_victim().answer(QUERIES)


class Brightness:
    """The mean of each query: keeps the contract."""

    def score(self, queries, victim_probs):
        if len(queries):
            queries = IMAGES.canonicalise(queries)
        if len(victim_probs) != len(queries):
            raise InvalidQueryError("one answer for each query")
        return queries.astype(np.float64).mean(axis=(1, 2, 3))


class Changed(Brightness):
    """The same, after something was done to queries or scores."""

    def __init__(self, before=lambda queries: queries, after=lambda scores, queries: scores):
        self.before, self.after = before, after

    def score(self, queries, victim_probs):
        return self.after(super().score(self.before(queries), victim_probs), queries)


def overwrite(queries):
    queries[:1] *= 0.5
    return queries


def draw(of):
    def drawing(queries):
        of()
        return queries

    return drawing


def count_calls(scores, queries):
    count_calls.calls += 1
    return scores + count_calls.calls


count_calls.calls = 0


def test_a_good_detector_passes():
    check_detector(Brightness(), QUERIES, PROBS)


def test_the_two_stage_scorer_passes_but_refuses_an_empty_batch():
    scorer = BlurScorer()
    benign = smooth_images(80, seed=1)
    scorer.fit_combination(scorer.score_terms(benign, linear_victim().answer(benign)))
    check_detector(scorer, QUERIES, PROBS, empty="raises")
    with pytest.raises(AssertionError, match=r"or the check be told empty='raises', got InvalidQueryError: .*at least one query, got 0"):
        check_detector(scorer, QUERIES, PROBS)


def raise_value_error(queries):
    raise ValueError("operands could not be broadcast together")


def only_finite(queries):
    if not np.isfinite(queries).all():
        raise ValueError("input contains NaN")
    return queries


def whole_batches(queries):
    assert len(queries) > 1
    return queries


@pytest.mark.parametrize(
    ("detector", "rule"),
    [
        (Changed(before=raise_value_error), "score must take 12 queries of the contract and the answers to them, got ValueError: operands"),
        (Changed(before=only_finite), "a NaN must raise InvalidQueryError, got ValueError: input contains NaN"),
        (Changed(before=whole_batches), "score must take 1 query of the contract and the answers to them, got AssertionError"),
        (Changed(after=lambda scores, queries: scores if len(scores) > 1 else scores[0]), r"shape \(1,\), one for each query, got \(\)"),
        (Changed(after=lambda scores, queries: torch.from_numpy(scores)), "scores must be a numpy array, got Tensor"),
    ],
)
def test_what_a_detector_itself_raises_is_told_as_the_rule_that_it_breaks(detector, rule):
    with pytest.raises(AssertionError, match=rule) as broken:
        check_detector(detector, QUERIES.copy(), PROBS)
    assert not isinstance(broken.value, InvalidQueryError)


@pytest.mark.parametrize(
    ("detector", "rule"),
    [
        (object(), "a detector must have score"),
        (Changed(after=lambda scores, queries: scores[:, None]), r"shape \(12,\), one for each query, got \(12, 1\)"),
        (Changed(after=lambda scores, queries: scores.tolist()), r"shape \(12,\), one for each query, got None"),
        (Changed(after=lambda scores, queries: (scores > 0.5).astype(np.int64)), "scores must be floats, got int64"),
        (Changed(after=lambda scores, queries: scores * np.nan), "scores must be finite, got NaN or infinity in 12 rows"),
        (Changed(after=count_calls), "must score the same twice"),
        (Changed(after=lambda scores, queries: scores + len(scores)), "must score the same alone as in a batch"),
        (Changed(after=lambda scores, queries: scores if len(scores) != 6 else scores * 2), "whatever else is in its batch"),
        (Changed(after=lambda scores, queries: scores if len(scores) < 12 else np.sort(scores)), "alone as in a batch|reordered"),
        (Changed(before=overwrite), "twice|must not change its arguments"),
        (Changed(before=draw(lambda: np.random.random())), "must leave the global random states alone"),  # noqa: NPY002
        (Changed(before=draw(lambda: torch.rand(1))), "must leave the global random states alone"),
        (Changed(after=lambda scores, queries: scores if len(scores) else np.zeros(1)), r"shape \(0,\), got \(1,\)"),
        (Changed(before=np.nan_to_num), "a NaN must raise InvalidQueryError, got scores"),
        (Changed(before=lambda queries: np.where(np.isinf(queries), 1, queries).astype(np.float32)), "an infinity must raise"),
        (Changed(before=lambda queries: np.where(queries == 2, 1, queries).astype(np.float32)), "a value out of bounds must raise"),
        (Changed(before=lambda queries: queries[..., :4]), r"queries of shape \(12, 1, 4, 5\) must raise"),
    ],
)
def test_a_broken_detector_is_told_its_broken_rule(detector, rule):
    with pytest.raises(AssertionError, match=rule):
        check_detector(detector, QUERIES.copy(), PROBS)


def test_answers_to_other_queries_have_to_be_refused():
    class Careless(Brightness):
        def score(self, queries, victim_probs):
            return super().score(queries, np.zeros((len(queries), 3)))

    with pytest.raises(AssertionError, match="answers to other than these queries must raise"):
        check_detector(Careless(), QUERIES, PROBS)


def test_an_empty_batch_that_was_said_to_be_refused_must_be():
    with pytest.raises(AssertionError, match="an empty batch must raise InvalidQueryError"):
        check_detector(Brightness(), QUERIES, PROBS, empty="raises")


def test_where_all_values_are_allowed_none_is_out_of_bounds():
    lenient = Changed(before=lambda queries: np.where(queries == 2, 1, queries).astype(np.float32))
    check_detector(lenient, QUERIES, PROBS, out_of_bounds=None)


def test_it_needs_sensible_arguments_itself():
    with pytest.raises(ConfigurationError, match="at least 4 queries, got 3"):
        check_detector(Brightness(), QUERIES[:3], PROBS[:3])
    with pytest.raises(ConfigurationError, match="empty must be scores or raises, got 'nothing'"):
        check_detector(Brightness(), QUERIES, PROBS, empty="nothing")
