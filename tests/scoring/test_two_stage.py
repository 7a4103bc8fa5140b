"""The two stages: terms of any batch equal those of its rows, stage B asks one answer per query, nothing is ranked before statistics."""

import numpy as np
import pytest

from sameguard.contract import InputContract
from sameguard.errors import InvalidQueryError, NotFittedError
from sameguard.scoring import ScoreConfig, deviations, texture_terms
from sameguard.scoring.two_stage import SCORING_BATCH
from stand_ins import CLASSES, IMAGES, WEIGHTS, BlurScorer, linear_victim, noise_images, smooth_images, softmax


@pytest.fixture(scope="module")
def fitted() -> BlurScorer:
    scorer = BlurScorer()
    queries = smooth_images(80)
    scorer.fit_combination(scorer.score_terms(queries, linear_victim().answer(queries)))
    return scorer


@pytest.mark.parametrize("view", ["full", "masked"])
def test_terms_are_errors_textures_and_deviations_of_the_reconstruction(view):
    scorer, queries = BlurScorer(auxiliary_view=view), smooth_images(5)
    probs = linear_victim().answer(queries)
    terms = scorer.score_terms(queries, probs)
    views, errors = scorer._reconstruct(queries)
    images = views["masked"] if view == "masked" else views["full"][:, None]
    logits = images.reshape(5, -1, 16) @ WEIGHTS
    expected = errors | texture_terms(queries, IMAGES) | deviations(probs, logits)
    assert set(terms) == set(expected)
    for name, values in expected.items():
        assert np.allclose(terms[name], values, rtol=1e-5), name
        assert terms[name].dtype == np.float64


def test_errors_are_mean_squares_by_hand():
    contract = InputContract.vectors(3)
    scorer = BlurScorer(contract, weights=np.ones((3, 2), np.float32))
    terms = scorer.reconstruct(np.array([[0.0, 3.0, 0.0]], np.float32)).terms  # blurred with edges repeated: 1, 1, 1
    assert terms["error_full"][0] == pytest.approx((1 + 4 + 1) / 3)


def test_texture_is_left_out_where_the_score_does_not_need_it():
    scorer = BlurScorer(config=ScoreConfig("weighted"))
    assert set(scorer.reconstruct(smooth_images(2)).terms) == {"error_full", "error_masked"}


@pytest.mark.parametrize("view", ["full", "masked"])
def test_memory_is_bounded_and_terms_do_not_depend_on_the_batch(view):
    scorer, queries = BlurScorer(auxiliary_view=view), smooth_images(2 * SCORING_BATCH + 3)
    probs = linear_victim().answer(queries)
    together = scorer.score_terms(queries, probs)
    assert scorer.largest_batch == SCORING_BATCH
    for row in (0, SCORING_BATCH - 1, SCORING_BATCH, len(queries) - 1):
        alone = scorer.score_terms(queries[[row]], probs[[row]])
        for name, values in together.items():
            assert alone[name][0] == pytest.approx(values[row], rel=1e-5, abs=1e-9), name


def test_both_stages_together_give_the_score(fitted):
    queries = np.concatenate([smooth_images(70, seed=1), noise_images(5)])
    probs = linear_victim().answer(queries)
    reconstruction = fitted.reconstruct(queries)
    by_stages = fitted.combined_score(reconstruction, fitted.deviation(reconstruction, probs))
    assert np.allclose(by_stages, fitted.score(queries, probs))
    assert fitted.stage_a_score(reconstruction).shape == (75,)


def test_what_is_left_after_stage_a_scores_as_it_did_among_the_others(fitted):
    queries = smooth_images(20, seed=2)
    probs = linear_victim().answer(queries)
    rows = np.array([3, 11, 4])
    kept = fitted.reconstruct(queries).take(rows)
    assert len(kept) == 3
    assert np.array_equal(kept.queries, queries[rows])
    assert np.allclose(fitted.combined_score(kept, fitted.deviation(kept, probs[rows])), fitted.score(queries, probs)[rows])


def test_noise_is_more_suspicious_than_benign_images(fitted):
    victim = linear_victim()
    benign, noise = smooth_images(100, seed=3), noise_images(100)
    scores = [fitted.score(queries, victim.answer(queries)) for queries in (benign, noise)]
    assert np.mean(scores[1][:, None] > scores[0]) > 0.99


@pytest.mark.parametrize("view", ["full", "masked"])
def test_the_auxiliary_s_own_answer_is_the_mean_over_its_passes(view):
    scorer = BlurScorer(auxiliary_view=view)
    reconstruction = scorer.reconstruct(smooth_images(SCORING_BATCH + 1))
    images = reconstruction.views["masked"].transpose(1, 0, 2, 3, 4) if view == "masked" else reconstruction.views["full"][None]
    expected = np.mean([softmax(images_of_pass.reshape(-1, 16) @ WEIGHTS) for images_of_pass in images], axis=0)
    found = scorer.auxiliary_probs(reconstruction)
    assert found.dtype == np.float32
    assert np.allclose(found, expected, atol=1e-6)


def test_scoring_changes_neither_queries_nor_answers(fitted):
    queries = smooth_images(3)
    probs = linear_victim().answer(queries)
    before = queries.copy(), probs.copy()
    fitted.score(queries, probs)
    assert np.array_equal(queries, before[0])
    assert np.array_equal(probs, before[1])


@pytest.mark.parametrize("rows", [1, SCORING_BATCH])
@pytest.mark.parametrize("shape", [lambda rows: (rows + 1, CLASSES), lambda rows: (rows - 1, CLASSES), lambda rows: (rows, CLASSES + 1)])
def test_answers_must_have_one_row_per_query_and_one_column_per_class(rows, shape):
    scorer, queries = BlurScorer(), smooth_images(rows)
    probs = np.full(shape(rows), 0.25, np.float32)
    with pytest.raises(InvalidQueryError, match=rf"victim_probs must be \({rows}, 3\), one row per query and one column per class, got"):
        scorer.score_terms(queries, probs)
    with pytest.raises(InvalidQueryError, match=rf"victim_probs must be \({rows}, 3\)"):
        scorer.deviation(scorer.reconstruct(queries), probs)


def test_queries_outside_the_contract_are_refused(fitted):
    broken = smooth_images(2)
    broken[1] = np.nan
    probs = np.full((2, CLASSES), 1 / 3, np.float32)
    with pytest.raises(InvalidQueryError, match="NaN or infinity in row 1 of 2"):
        fitted.score(broken, probs)
    with pytest.raises(InvalidQueryError, match="NaN or infinity in row 1 of 2"):
        fitted.reconstruct(broken)


def test_nothing_is_ranked_before_the_benign_statistics():
    scorer, queries = BlurScorer(), smooth_images(2)
    reconstruction = scorer.reconstruct(queries)
    with pytest.raises(NotFittedError, match=r"needs benign statistics before it can rank queries, got none: run calibrate\(\) first"):
        scorer.score(queries, linear_victim().answer(queries))
    with pytest.raises(NotFittedError, match="needs benign statistics"):
        scorer.stage_a_score(reconstruction)
    with pytest.raises(NotFittedError, match="needs benign statistics"):
        scorer.combined_score(reconstruction, {})
