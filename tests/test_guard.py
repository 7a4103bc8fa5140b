"""Guard: one victim pass for each allowed query, none for those that stage A refuses, NaN probabilities where withheld."""

import copy
import dataclasses
import json
import tracemalloc

import numpy as np
import pytest

from sameguard.calibration import Threshold, calibrate, flag_count_range
from sameguard.contract import InputContract
from sameguard.endpoint import Endpoint, MeteredEndpoint
from sameguard.errors import ConfigurationError, InvalidQueryError, InvalidVictimError, NotFittedError
from sameguard.guard import Guard
from sameguard.policies import Allow, Challenge, CoarseAnswers, Coarsen, Ladder, Policy, Pricing, ProofOfWork, Puzzle, Refuse, Reject
from sameguard.scoring import ScoreConfig, TwoStageScorer
from sameguard.victim import BlackBox
from stand_ins import CLASSES, IMAGES, WEIGHTS, BlurScorer, Watched, linear_victim, noise_images, smooth_images, unchecked

EITHER = pytest.mark.parametrize("row_policy", ["each", "worst"])


@pytest.fixture(scope="module")
def scorer() -> BlurScorer:
    scorer = BlurScorer()
    calibrate(scorer, smooth_images(400), linear_victim(), 0.05)
    return scorer


@pytest.fixture(scope="module")
def free_scorer(scorer) -> BlurScorer:
    """The same scores without a calibration that a policy would have to keep to: cut-offs may be chosen by hand."""
    free = copy.copy(scorer)
    free.calibration = None
    return free


@pytest.fixture
def watched() -> Watched:
    return Watched(lambda raw: raw.reshape(len(raw), -1) @ WEIGHTS)


def victim_of(watched: Watched) -> BlackBox:
    return BlackBox(watched, IMAGES, classes=CLASSES, output="logits")


def guarding(watched: Watched, scorer: TwoStageScorer, policy: Policy, **settings: str) -> Guard:
    """A guard whose start-up question, the canaries, is forgotten: what is watched from here on is traffic."""
    guard = Guard(victim_of(watched), scorer, policy, **settings)
    watched.batches.clear()
    return guard


def cutting(scorer: BlurScorer, queries: np.ndarray, *, stage_a: float, score: float) -> Threshold:
    """A threshold with these shares of the queries above its two cut-offs."""
    probs = linear_victim().answer(queries)
    return Threshold(
        value=float(np.quantile(scorer.score(queries, probs), 1 - score)),
        stage_a=float(np.quantile(scorer.stage_a_score(scorer.reconstruct(queries)), 1 - stage_a)),
        false_positive_rate=0.05,
        n=99,
        k=5,
        interval=(0.0, 1.0),
    )


@pytest.fixture
def three_fates(scorer) -> tuple[np.ndarray, Threshold, np.ndarray, np.ndarray]:
    """Queries, a threshold, and which of them stage A and the whole score refuse; all three fates occur."""
    queries = smooth_images(80, seed=5)
    threshold = cutting(scorer, queries, stage_a=0.3, score=0.5)
    early = scorer.stage_a_score(scorer.reconstruct(queries)) > threshold.stage_a
    late = ~early & (scorer.score(queries, linear_victim().answer(queries)) > threshold.value)
    assert min(early.sum(), late.sum(), (~early & ~late).sum()) > 5
    return queries, threshold, early, late


# ---------------------------------------------------------------------- who is asked, who is answered


def test_the_victim_sees_exactly_what_stage_a_let_pass_and_once(free_scorer, watched, three_fates):
    queries, threshold, early, _ = three_fates
    guarding(watched, free_scorer, Reject(threshold)).query(queries)
    assert np.array_equal(watched.rows, queries[~early])


def test_allowed_rows_hold_the_victims_answer_and_refused_rows_nan(free_scorer, watched, three_fates):
    queries, threshold, early, late = three_fates
    answers = guarding(watched, free_scorer, Reject(threshold)).query(queries)
    assert np.array_equal(answers.answered, ~early & ~late)
    assert np.allclose(answers.probs[answers.answered], linear_victim().answer(queries)[answers.answered], atol=1e-6)
    assert np.isnan(answers.probs[~answers.answered]).all()


def test_rows_are_treated_alone_whatever_comes_with_them(free_scorer, watched, three_fates):
    queries, threshold, early, late = three_fates
    guard = guarding(watched, free_scorer, Reject(threshold))
    for row in (*np.flatnonzero(early)[:2], *np.flatnonzero(late)[:2], *np.flatnonzero(~early & ~late)[:2]):
        assert guard.query(queries[[row]]).answered.tolist() == [bool(~early[row] & ~late[row])]


def test_the_guard_refuses_what_the_threshold_flags(free_scorer, watched, three_fates):
    queries, threshold, _, _ = three_fates
    scores = free_scorer.score(queries, linear_victim().answer(queries))
    flags = threshold.flags(scores, free_scorer.stage_a_score(free_scorer.reconstruct(queries)))
    assert np.array_equal(guarding(watched, free_scorer, Reject(threshold)).query(queries).answered, ~flags)


@EITHER
def test_a_batch_that_stage_a_refuses_as_a_whole_costs_no_victim_pass(free_scorer, watched, row_policy):
    nothing = dataclasses.replace(cutting(free_scorer, smooth_images(20), stage_a=0.5, score=0.5), stage_a=-1.0)
    answers = guarding(watched, free_scorer, Reject(nothing), row_policy=row_policy).query(smooth_images(6))
    assert watched.batches == []
    assert not answers.answered.any()
    assert answers.probs.shape == (6, CLASSES)
    assert np.isnan(answers.probs).all()


def test_one_row_refused_by_stage_a_refuses_the_batch_under_worst_and_nobody_is_asked(free_scorer, watched, three_fates):
    queries, threshold, early, late = three_fates
    fine, bad = np.flatnonzero(~early & ~late)[:5], np.flatnonzero(early)[:1]
    guard = guarding(watched, free_scorer, Reject(threshold), row_policy="worst")
    assert not guard.query(queries[np.concatenate([fine, bad])]).answered.any()
    assert watched.batches == []


def test_one_row_refused_by_its_score_refuses_the_batch_under_worst_after_one_pass(free_scorer, watched, three_fates):
    queries, threshold, early, late = three_fates
    fine, bad = np.flatnonzero(~early & ~late)[:5], np.flatnonzero(late)[:1]
    guard = guarding(watched, free_scorer, Reject(threshold), row_policy="worst")
    answers = guard.query(queries[np.concatenate([fine, bad])])
    assert not answers.answered.any()
    assert np.isnan(answers.probs).all()
    assert len(watched.rows) == 6
    assert guard.query(queries[fine]).answered.all()


def test_a_score_without_stage_a_asks_the_victim_about_every_query(watched):
    scorer = BlurScorer(config=ScoreConfig("weighted", reconstruction_weight=0.0))
    threshold = calibrate(scorer, smooth_images(200), linear_victim(), 0.3)
    queries = smooth_images(40, seed=6)
    answers = guarding(watched, scorer, Reject(threshold)).query(queries)
    assert np.array_equal(watched.rows, queries)
    assert 0 < answers.answered.sum() < 40


@EITHER
def test_nan_scores_are_refused(watched, row_policy):
    class NanForTheFirst(BlurScorer):
        """Its auxiliary fails on the first row."""

        def _auxiliary_logits(self, images):
            logits = super()._auxiliary_logits(images)
            logits[0] = np.nan
            return logits

    queries, broken = smooth_images(200), NanForTheFirst()
    broken.fit_combination(BlurScorer().score_terms(queries, linear_victim().answer(queries)))
    everything = Threshold(value=np.inf, stage_a=np.inf, false_positive_rate=0.05, n=99, k=5, interval=(0.0, 1.0))
    answers = guarding(watched, broken, Reject(everything), row_policy=row_policy).query(queries[:3])
    assert answers.answered.tolist() == ([False, True, True] if row_policy == "each" else [False] * 3)
    assert np.isnan(answers.probs[0]).all()


# ---------------------------------------------------------------------- any number of rows


class Counting(BlurScorer):
    """Remembers the largest batch that it was asked to reconstruct at once."""

    def __init__(self, like: BlurScorer) -> None:
        super().__init__()
        self.combination = like.combination
        self.most_rows = 0

    def reconstruct(self, queries):
        self.most_rows = max(self.most_rows, len(queries))
        return super().reconstruct(queries)


@EITHER
def test_however_large_a_batch_few_rows_are_judged_at_once(scorer, watched, row_policy):
    counting = Counting(scorer)
    everything = Threshold(value=np.inf, stage_a=np.inf, false_positive_rate=0.05, n=99, k=5, interval=(0.0, 1.0))
    guard = guarding(watched, counting, Reject(everything), row_policy=row_policy)
    queries = smooth_images(1000)
    answers = guard.query(queries)
    assert counting.most_rows <= 64
    assert np.array_equal(watched.rows, queries)
    assert np.allclose(answers.probs, linear_victim().answer(queries), atol=1e-6)


def test_rows_of_a_large_batch_get_what_they_get_alone(free_scorer, watched):
    queries = np.concatenate([smooth_images(150, seed=5), noise_images(50)])[np.random.default_rng(0).permutation(200)]
    guard = guarding(watched, free_scorer, Reject(cutting(free_scorer, queries, stage_a=0.3, score=0.5)))
    together = guard.query(queries)
    alone = [guard.query(queries[row : row + 1]) for row in range(200)]
    assert together.answered.tolist() == [bool(answers.answered[0]) for answers in alone]
    assert np.allclose(together.probs, np.concatenate([answers.probs for answers in alone]), atol=1e-6, equal_nan=True)


def test_under_worst_one_bad_row_far_down_a_large_batch_refuses_it_and_nobody_is_asked(free_scorer, watched, three_fates):
    queries, threshold, early, late = three_fates
    fine = queries[np.flatnonzero(~early & ~late)]
    many = np.concatenate([np.resize(fine, (200, 1, 4, 4)), queries[np.flatnonzero(early)[:1]]])
    guard = guarding(watched, free_scorer, Reject(threshold), row_policy="worst")
    assert guard.query(many[:-1]).answered.all()
    watched.batches.clear()
    answers = guard.query(many)
    assert not answers.answered.any()
    assert np.isnan(answers.probs).all()
    assert watched.batches == []


@EITHER
def test_memory_beyond_queries_and_answers_does_not_grow_with_the_batch(row_policy):
    pictures = InputContract.images(1, 32, 32)
    weights = np.zeros((1024, CLASSES), np.float32)
    scorer = BlurScorer(pictures, ScoreConfig("weighted", reconstruction_weight=0.5), weights=weights)
    few = np.random.default_rng(0).integers(0, 256, (64, 1, 32, 32)).astype(np.float32) / np.float32(255)
    scorer.fit_combination(scorer.score_terms(few, linear_victim(pictures, weights).answer(few)))
    everything = Threshold(value=np.inf, stage_a=np.inf, false_positive_rate=0.05, n=99, k=5, interval=(0.0, 1.0))
    guard = Guard(linear_victim(pictures, weights), scorer, Reject(everything), row_policy=row_policy)

    def peak(rows: int) -> int:
        queries = np.resize(few, (rows, 1, 32, 32))
        guard.query(queries)
        tracemalloc.start()
        try:
            guard.query(queries)
            return tracemalloc.get_traced_memory()[1] // rows
        finally:
            tracemalloc.stop()

    per_query = few[0].nbytes
    assert peak(2048) < 4 * per_query  # checking, clipping and rounding copy the queries; their reconstructions alone would be 3 more


# ---------------------------------------------------------------------- what is paid, what is coarsened

CHEAP = Pricing(Puzzle("PBKDF2/SHA-256", cost=1000, seconds_per_try=0.01))


class Chosen:
    """A policy of given actions: the first part of the rows for stage A, then all that it is asked."""

    def __init__(self, stage_a: list, later: list) -> None:
        self.stage_a = stage_a
        self.later = later
        self.judged: list[int] = []
        self.largest_work = 100

    def decide_stage_a(self, stage_a_scores: np.ndarray) -> list:
        return self.stage_a[: len(stage_a_scores)]

    def decide(self, scores: np.ndarray) -> list:
        self.judged.append(len(scores))
        return self.later[: len(scores)]


def test_who_is_challenged_pays_and_is_answered(scorer, watched):
    policy = ProofOfWork(scorer.calibration, pricing=CHEAP)
    guard = guarding(watched, scorer, policy)
    queries = noise_images(60)
    answers = guard.query(queries)
    assert answers.answered.all()
    assert np.allclose(answers.probs, linear_victim().answer(queries), atol=1e-6)
    charged = [action for action in policy.decide_stage_a(scorer.stage_a_score(scorer.reconstruct(queries))) if action != Allow()]
    assert len(charged) > 30
    assert guard.challenged >= len(charged)
    works = sum(action.work for action in charged)
    assert guard.challenged <= guard.tries <= 2 * CHEAP.largest_work * guard.challenged
    assert 0.6 * works < guard.tries  # a mean of many uniform draws


def test_ordinary_users_pay_almost_nothing_and_the_price_is_drawn_from_the_seed(scorer, watched):
    policy = ProofOfWork(scorer.calibration, pricing=CHEAP)
    first, again, other = (Guard(victim_of(watched), scorer, policy, seed=seed) for seed in (0, 0, 1))
    for guard in (first, again, other):
        assert guard.query(smooth_images(300, seed=7)).answered.all()
        assert guard.query(noise_images(40)).answered.all()
    assert (first.challenged, first.tries) == (again.challenged, again.tries)
    assert first.challenged == other.challenged
    assert first.tries != other.tries
    honest = Guard(victim_of(watched), scorer, policy)
    honest.query(smooth_images(300, seed=7))
    low, high = flag_count_range(300, policy.benign_levels.thresholds[0].k, policy.benign_levels.thresholds[0].n)
    assert low <= honest.challenged <= high


def test_tries_are_uniform_from_one_to_twice_the_work(scorer, watched):
    guard = guarding(watched, scorer, Chosen([Challenge(1, 3)] * 40, []))
    seen = []
    for _ in range(600):
        before = guard.tries
        guard.query(smooth_images(1))
        seen.append(guard.tries - before)
    counts = np.bincount(seen, minlength=8)
    assert set(seen) == {1, 2, 3, 4, 5, 6}
    assert np.abs(counts[1:7] - 100).max() < 40  # four standard deviations
    assert guard.challenged == 600


def test_coarsened_answers_name_the_class_and_no_more(free_scorer, watched, three_fates):
    queries, threshold, early, late = three_fates
    answers = guarding(watched, free_scorer, CoarseAnswers(threshold)).query(queries)
    open_answers = linear_victim().answer(queries)
    assert answers.answered.all()
    poor = early | late
    assert np.array_equal(answers.probs[poor], np.eye(CLASSES, dtype=np.float32)[open_answers[poor].argmax(axis=1)])
    assert np.allclose(answers.probs[~poor], open_answers[~poor], atol=1e-6)
    assert len(watched.rows) == 80


def test_each_row_gets_what_its_own_action_says(scorer, watched):
    later = [Allow(), Coarsen(1), Coarsen(), Challenge(1, 5), Refuse()]
    guard = guarding(watched, scorer, Chosen([Allow()] * 5 + [Refuse(), Challenge(2, 9), Coarsen()], later))
    queries = smooth_images(8)
    answers, exact = guard.query(queries), linear_victim().answer(queries)
    assert answers.answered.tolist() == [True, True, True, True, False, False, True, True]
    assert np.allclose(answers.probs[[0, 3, 6]], exact[[0, 3, 6]], atol=1e-6)
    assert np.abs(answers.probs[1] * 10 - np.rint(answers.probs[1] * 10)).max() < 1e-5
    assert answers.probs[[2, 7]].max(axis=1).tolist() == [1.0, 1.0]
    assert np.isnan(answers.probs[[4, 5]]).all()
    assert guard.challenged == 2
    assert guard.policy.judged == [5]  # what stage A settled is not scored again
    assert len(watched.rows) == 7


def test_under_worst_a_batch_pays_the_sum_of_its_rows_once(scorer, watched):
    rows = [Challenge(1, 3), Challenge(2, 40), Allow(), Allow()]
    guard = guarding(watched, scorer, Chosen(rows, [Allow(), Challenge(1, 3)]), row_policy="worst")
    tries = []
    for _ in range(200):
        before = guard.tries
        assert guard.query(smooth_images(4)).answered.all()
        tries.append(guard.tries - before)
    assert guard.challenged == 200
    assert max(tries) <= 2 * 46
    assert abs(np.mean(tries) - 46.5) < 8  # four standard errors of 1.9


def test_a_batch_that_costs_too_much_is_asked_again_in_halves(scorer, watched):
    guard = guarding(watched, scorer, Chosen([Challenge(1, 40)] * 7, []), row_policy="worst")  # 280 tries, 100 are allowed
    queries = smooth_images(7)
    answers = guard.query(queries)
    assert answers.answered.all()
    assert np.allclose(answers.probs, linear_victim().answer(queries), atol=1e-6)
    assert guard.challenged == 4  # rows 0; 1, 2; 3, 4; 5, 6
    alone = guarding(watched, scorer, Chosen([Challenge(1, 101)], []), row_policy="worst")
    assert not alone.query(smooth_images(1)).answered.any()


def test_under_worst_one_coarsened_row_coarsens_the_batch(scorer, watched):
    guard = guarding(watched, scorer, Chosen([Allow()] * 3, [Allow(), Coarsen(), Allow()]), row_policy="worst")
    answers = guard.query(smooth_images(3))
    assert answers.probs.max(axis=1).tolist() == [1.0, 1.0, 1.0]


@EITHER
def test_a_ladder_answers_everyone_else_in_full(scorer, watched, row_policy):
    guard = guarding(watched, scorer, Ladder(scorer.calibration, pricing=CHEAP), row_policy=row_policy)
    assert not guard.query(noise_images(50)).answered.all()
    queries = smooth_images(1, seed=3)
    assert np.allclose(guard.query(queries).probs, linear_victim().answer(queries), atol=1e-6)


# ---------------------------------------------------------------------- the whole


def test_a_calibrated_guard_serves_benign_users_and_starves_noise(scorer, watched):
    threshold = scorer.calibration.threshold(0.05)
    guard = guarding(watched, scorer, Reject(threshold))
    low, high = flag_count_range(300, threshold.k, threshold.n)
    assert low <= (~guard.query(smooth_images(300, seed=7)).answered).sum() <= high
    assert guard.query(noise_images(100)).answered.mean() < 0.05


def test_guards_are_endpoints_and_meters_count_what_they_refuse(free_scorer, watched, three_fates):
    queries, threshold, early, late = three_fates
    guard = guarding(watched, free_scorer, Reject(threshold))
    assert isinstance(guard, Endpoint)
    metered = MeteredEndpoint(guard, budget=100, record=True)
    metered.query(queries)
    assert (metered.used, metered.remaining) == (80, 20)
    assert metered.recorded().answered.sum() == (~early & ~late).sum()


def test_queries_are_put_on_the_grid_before_they_are_judged_and_sent(free_scorer, watched):
    everything = Threshold(value=np.inf, stage_a=np.inf, false_positive_rate=0.05, n=99, k=5, interval=(0.0, 1.0))
    queries = smooth_images(4)
    guarding(watched, free_scorer, Reject(everything)).query(queries + np.float32(0.4 / 255))
    assert np.array_equal(watched.rows, queries)


# ---------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("queries", "message"),
    [
        (np.full((2, 1, 4, 4), np.nan, np.float32), "must be finite"),
        (np.full((2, 1, 4, 4), 2.0, np.float32), r"must lie in \[0, 1\]"),
        (np.zeros((2, 4, 4, 1), np.float32), r"must be \(batch, 1, 4, 4\)"),
        (np.zeros((0, 1, 4, 4), np.float32), "at least one query"),
        (np.zeros((2, 1, 4, 4), np.uint8), "must be float32, got uint8"),
    ],
)
def test_queries_that_break_the_contract_reach_nobody(scorer, watched, queries, message):
    guard = guarding(watched, scorer, Reject(scorer.calibration.threshold(0.05)))
    with pytest.raises(InvalidQueryError, match=message):
        guard.query(queries)
    assert watched.batches == []


def test_victim_and_scorer_must_share_contract_and_classes(scorer):
    policy = Reject(scorer.calibration.threshold(0.05))
    with pytest.raises(ConfigurationError, match=r"must share one input contract, got .*NHWC.* and .*NCHW"):
        Guard(linear_victim(InputContract.images(1, 4, 4, layout="NHWC")), scorer, policy)
    with pytest.raises(ConfigurationError, match="must have equally many classes, got 2 and 3"):
        Guard(linear_victim(weights=WEIGHTS[:, :2]), scorer, policy)


def test_a_victim_that_is_not_the_calibrated_one_is_refused_before_the_first_query(scorer, watched):
    policy = Reject(scorer.calibration.threshold(0.05))
    guarding(watched, scorer, policy)  # the same function in another object is the same victim
    for weights in (np.roll(WEIGHTS, 1, axis=1), WEIGHTS * np.float32(0.1)):  # classes in another order; the same classes, less sure
        with pytest.raises(InvalidVictimError, match=r"must answer as it did at calibration, got answers to 32 canary queries that moved"):
            Guard(linear_victim(weights=weights), scorer, policy)
    Guard(linear_victim(weights=WEIGHTS * np.float32(1 + 1e-6)), scorer, policy)  # rounding


def same_otherwise(scorer: BlurScorer, **changes) -> BlurScorer:
    """The scorer with something of its calibration changed."""
    other = copy.copy(scorer)
    other.calibration = dataclasses.replace(scorer.calibration, **changes)
    return other


POLICIES = pytest.mark.parametrize(
    "policy_of",
    [
        lambda calibration: Reject(calibration.threshold(0.05)),
        lambda calibration: Reject(calibration.threshold(0.3)),
        lambda calibration: CoarseAnswers(calibration.threshold(0.1)),
        lambda calibration: ProofOfWork(calibration, pricing=CHEAP),
        lambda calibration: Ladder(calibration, pricing=CHEAP),
    ],
    ids=["reject at 5 %", "reject at 30 %", "coarse", "proof of work", "ladder"],
)


@POLICIES
def test_a_policy_must_have_the_cut_offs_of_the_scorers_own_calibration(scorer, policy_of):
    own, victim = scorer.calibration, linear_victim()
    Guard(victim, scorer, policy_of(own))
    for change in (
        {"scores": own.scores + 1e-3},  # another fit, or another engine
        {"scores": own.scores[:-10], "stage_a_scores": own.stage_a_scores[:-10]},
        {"statistics_stage_a": own.statistics_stage_a - 1.0},
        {"biased": True},
    ):
        with pytest.raises(ConfigurationError, match=r"policy must cut where the scorer's own .*Take scorer.calibration.threshold\(rate\)"):
            Guard(victim, same_otherwise(scorer, **change), policy_of(own))
    few = same_otherwise(scorer, scores=own.scores[:2], stage_a_scores=own.stage_a_scores[:2])
    with pytest.raises(ConfigurationError, match="which is no such cut of its 2 benign scores"):
        Guard(victim, few, policy_of(own))


@pytest.mark.parametrize("rate", [0.02, 0.05, 0.3])
def test_a_threshold_that_was_stored_and_read_again_is_the_same(scorer, rate):
    for stage_a_scores in (scorer.calibration.stage_a_scores, np.full(len(scorer.calibration.scores), -np.inf)):
        own = same_otherwise(scorer, stage_a_scores=stage_a_scores)
        threshold = own.calibration.threshold(rate)
        Guard(linear_victim(), own, Reject(Threshold.from_json(json.loads(json.dumps(threshold.to_json())))))
        Guard(linear_victim(), own, Reject(dataclasses.replace(threshold, value=threshold.value * (1 + 1e-12))))


@pytest.mark.parametrize("change", [{"value": 0.0}, {"value": np.nan}, {"stage_a": np.inf}, {"false_positive_rate": 0.0}, {"k": 1}])
def test_a_threshold_by_hand_is_refused_beside_a_calibration(scorer, change):
    threshold = dataclasses.replace(scorer.calibration.threshold(0.3), **change)
    with pytest.raises(ConfigurationError, match="policy must cut where the scorer's own calibration does, got score > "):
        Guard(linear_victim(), scorer, Reject(threshold))


def test_where_stage_a_spends_the_whole_budget_its_cut_off_is_compared(scorer):
    n = len(scorer.calibration.scores)
    spent = same_otherwise(scorer, stage_a_scores=scorer.calibration.statistics_stage_a[-1] + 1.0 + np.arange(n))
    threshold = spent.calibration.threshold(0.05)
    assert threshold.value == np.inf
    Guard(linear_victim(), spent, Reject(threshold))
    with pytest.raises(ConfigurationError, match="policy must cut where"):
        Guard(linear_victim(), spent, Reject(dataclasses.replace(threshold, stage_a=threshold.stage_a + 1.0)))


def test_another_row_policy_is_refused(scorer):
    with pytest.raises(ConfigurationError, match="row_policy must be each or worst, got 'best'"):
        unchecked(Guard, linear_victim(), scorer, Reject(scorer.calibration.threshold(0.05)), row_policy="best")


def test_a_victim_that_breaks_its_declaration_is_not_handed_on(scorer):
    broken = BlackBox(lambda raw: np.full((len(raw), CLASSES), np.nan), IMAGES, classes=CLASSES)
    with pytest.raises(InvalidVictimError, match="must return finite probs"):
        Guard(broken, scorer, Reject(scorer.calibration.threshold(0.05))).query(smooth_images(5))


def test_a_guard_without_statistics_answers_nobody(scorer, watched):
    guard = guarding(watched, BlurScorer(), Reject(scorer.calibration.threshold(0.05)))
    with pytest.raises(NotFittedError, match="needs benign statistics"):
        guard.query(smooth_images(2))
    assert watched.batches == []
