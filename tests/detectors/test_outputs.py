"""Scores from the victim's answer alone, against values by hand."""

import numpy as np
import pytest

from sameguard.contract import InputContract
from sameguard.detectors import Detector, Energy, Entropy, MaxProbability
from sameguard.errors import InvalidQueryError, InvalidVictimError
from sameguard.networks import predict_logits
from sameguard.testing.detectors import check_detector

QUERIES = np.zeros((3, 2), np.float32)
PROBS = np.array([[1.0, 0.0], [0.5, 0.5], [0.25, 0.75]], np.float32)


def test_max_probability_is_its_negative_so_that_doubt_scores_higher():
    np.testing.assert_allclose(MaxProbability().score(QUERIES, PROBS), [-1.0, -0.5, -0.75])


def test_entropy_is_in_nats_and_a_sure_answer_has_none():
    quarter = -(0.25 * np.log(0.25) + 0.75 * np.log(0.75))
    np.testing.assert_allclose(Entropy().score(QUERIES, PROBS), [0.0, np.log(2), quarter], atol=1e-12)


@pytest.mark.parametrize("constant", [-3.0, 0.0, 900.0])
def test_energy_of_constant_logits_is_minus_their_value_and_log_of_the_classes(constant):
    energy = Energy(lambda queries: np.full((len(queries), 7), constant, np.float32))
    np.testing.assert_allclose(energy.score(QUERIES, np.full((3, 7), 1 / 7, np.float32)), -(constant + np.log(7)))


def test_energy_falls_where_any_logit_rises():
    energy = Energy(lambda queries: np.array([[0.0, 0.0], [0.0, 5.0], [9.0, 0.0]]))
    scores = energy.score(QUERIES, PROBS)
    assert scores[0] > scores[1] > scores[2]


def test_all_of_them_keep_the_contract_of_detectors(digits, victim):
    queries = digits.test.inputs[:20]
    probs = victim.answer(queries)
    for detector in (
        MaxProbability(digits.contract),
        Entropy(digits.contract),
        Energy(lambda rows: predict_logits(victim.module, rows), digits.contract),
    ):
        assert isinstance(detector, Detector)
        check_detector(detector, queries, probs)


def everything():
    return [MaxProbability(), Entropy(), Energy(lambda queries: np.zeros((len(queries), 2)))]


@pytest.mark.parametrize("detector", everything())
def test_without_a_contract_broken_queries_and_missing_answers_are_refused_still(detector):
    with pytest.raises(InvalidQueryError, match="must be finite, got NaN"):
        detector.score(np.full((3, 2), np.nan, np.float32), PROBS)
    with pytest.raises(InvalidQueryError, match=r"queries must be float32 \(batch, \*input\), got int64"):
        detector.score(np.zeros((3, 2), np.int64), PROBS)
    with pytest.raises(InvalidQueryError, match=r"victim_probs must be \(3, classes\), one row per query, got \(2, 2\)"):
        detector.score(QUERIES, PROBS[:2])


@pytest.mark.parametrize("detector", [MaxProbability(), Entropy()])
def test_withheld_answers_never_pass_as_sure_ones(detector):
    withheld = np.array([[np.nan, np.nan], [0.5, 0.5], [0.5, 0.5]], np.float32)
    with pytest.raises(InvalidQueryError, match="got NaN or infinity in 1 of 3 rows"):
        detector.score(QUERIES, withheld)


def test_logits_that_are_no_logits_are_refused():
    contract = InputContract.vectors(2)
    with pytest.raises(InvalidVictimError, match=r"logits must be finite and \(3, 2\), as the answers are, got shape \(3, 3\)"):
        Energy(lambda queries: np.zeros((3, 3)), contract).score(QUERIES, PROBS)
    with pytest.raises(InvalidVictimError, match="6 values that are not finite"):
        Energy(lambda queries: np.full((3, 2), np.nan), contract).score(QUERIES, PROBS)
