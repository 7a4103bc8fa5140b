"""Combinations of terms: tails, Eq. 6 under each normaliser by hand, two-sided tails, typicality and its state."""

import io
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sameguard.errors import CalibrationError, ConfigurationError
from sameguard.scoring import Combination, ScoreConfig, combination_for
from sameguard.scoring.combination import MINIMUM_STATISTICS, BenignTail
from stand_ins import unchecked

CONFIGS = [
    ScoreConfig("weighted"),
    ScoreConfig("weighted", normaliser="rank_benign", reconstruction_view="masked", reconstruction_weight=0.2),
    ScoreConfig("weighted", normaliser="std_ratio", deviation="kl", reconstruction_weight=1.0),
    ScoreConfig("two_sided"),
    ScoreConfig("two_sided", deviation="squared", views=("masked",)),
    ScoreConfig("typicality"),
    ScoreConfig("typicality", views=("full",)),
]
every_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"{config.combination}-{config.normaliser}")


def benign_terms(rows: int = 120, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    size = rng.lognormal(size=rows)
    return {
        "error_full": 0.01 * size * rng.lognormal(sigma=0.2, size=rows),
        "error_masked": 0.03 * size * rng.lognormal(sigma=0.2, size=rows),
        "total_variation": rng.uniform(0.1, 0.3, rows),
        "share_black": np.where(rng.random(rows) < 0.4, 0.0, rng.random(rows)),
        "deviation_disagreement": rng.beta(1, 8, rows),
        "deviation_squared": rng.beta(1, 9, rows),
        "deviation_kl": rng.exponential(0.3, rows),
    }


def only(names: tuple[str, ...], terms: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: values for name, values in terms.items() if name in names}


def weighted(weight: float, normaliser: str, **settings):
    return combination_for(ScoreConfig("weighted", reconstruction_weight=weight, normaliser=normaliser, **settings))


# ---------------------------------------------------------------------- benign tails


def test_the_tail_of_known_values_by_hand():
    tail = BenignTail(np.array([3.0, 1.0, 2.0, 2.0]))
    assert np.allclose(np.exp(-tail(np.array([1.0, 2.0, 3.0]))), [5 / 5, 4 / 5, 2 / 5])
    assert np.exp(-tail(np.array([2.5]))[0]) == pytest.approx(np.sqrt(4 / 5 * 2 / 5))  # log p is linear in between
    assert tail(np.array([0.0]))[0] == 0.0
    assert np.exp(-tail(np.array([3.0 + 1e-12]))[0]) == pytest.approx(1 / 5)
    assert tail(np.array([10.0]))[0] == pytest.approx(np.log(5) + np.log(1 + 7))  # in units of the upper half's width, 3 - 2
    assert BenignTail(np.array([0.0, 4.0, 8.0]))(np.array([10.0]))[0] == pytest.approx(np.log(4) + np.log(1 + 2 / 4))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=30),
    st.lists(st.floats(-1e7, 1e7) | st.sampled_from([np.inf, -np.inf]), min_size=2, max_size=30),
)
def test_tails_never_fall_as_the_value_grows(benign, values):
    found = BenignTail(np.array(benign))(np.sort(values))
    assert (np.diff(found[np.isfinite(found)]) >= 0).all()
    assert not np.isnan(found).any()
    assert (found >= 0).all()


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(-1000, 1000), min_size=3, max_size=30, unique=True))
def test_tails_rise_strictly_over_the_benign_range_and_beyond(benign):
    ordered = np.sort(np.array(benign, np.float64))
    halves = (ordered[:-1] + ordered[1:]) / 2
    values = np.sort(np.concatenate([ordered, halves, ordered[-1] + [0.5, 1.0, 1e3, 1e9]]))
    assert (np.diff(BenignTail(ordered)(values)) > 0).all()


def test_at_most_a_share_p_of_benign_values_has_a_tail_below_p():
    tail = BenignTail(np.random.default_rng(0).normal(size=99))
    p = np.exp(-tail(tail.values))
    for level in (0.02, 0.1, 0.5):
        assert (p <= level + 1e-12).sum() == round(100 * level) - 1  # p = (1 + rank) / 100, rank from 1


def test_nan_has_no_tail():
    found = BenignTail(np.arange(5.0))(np.array([np.nan, 2.0]))
    assert np.isnan(found).tolist() == [True, False]


# ---------------------------------------------------------------------- what all combinations share


@every_config
def test_combinations_follow_the_protocol_and_give_one_finite_score_per_row(config):
    terms = benign_terms()
    combination = combination_for(config)
    assert isinstance(combination, Combination)
    assert combination.fit(terms) is combination
    assert combination.score(terms).shape == combination.stage_a(terms).shape == (120,)
    assert np.isfinite(combination.score(terms)).all()


@every_config
def test_state_survives_a_file_of_arrays_with_equal_scores(config):
    combination = combination_for(config).fit(benign_terms())
    buffer = io.BytesIO()
    np.savez(buffer, **combination.state())
    buffer.seek(0)
    with np.load(buffer, allow_pickle=False) as archive:
        restored = combination_for(config).restore({name: archive[name] for name in archive.files})
    fresh = benign_terms(seed=1)
    assert np.array_equal(restored.score(fresh), combination.score(fresh))
    assert np.array_equal(restored.stage_a(fresh), combination.stage_a(fresh))


@every_config
def test_a_row_scores_the_same_alone_and_in_any_batch(config):
    combination = combination_for(config).fit(benign_terms())
    terms = benign_terms(70, seed=2)
    together = combination.score(terms)
    alone = [combination.score({name: values[[row]] for name, values in terms.items()})[0] for row in range(70)]
    backwards = combination.score({name: values[::-1] for name, values in terms.items()})[::-1]
    assert np.allclose(alone, together, rtol=1e-9, atol=1e-12)
    assert np.allclose(backwards, together, rtol=1e-9, atol=1e-12)


@every_config
@pytest.mark.parametrize("name", ["error_full", "error_masked", "deviation"])
def test_a_nan_term_that_counts_makes_its_score_nan_and_no_other(config, name):
    name = config.deviation_term if name == "deviation" else name
    used = (config.deviation_term, *config.error_terms)
    if config.combination == "weighted":
        view = (f"error_{config.reconstruction_view}",)
        used = view if config.reconstruction_weight == 1.0 else (*view, config.deviation_term)
    elif config.combination == "typicality":
        used = (config.deviation_term, "error_full", "error_masked")  # whatever the benign terms held
    combination = combination_for(config).fit(benign_terms())
    terms = benign_terms(seed=3)
    terms[name] = terms[name].copy()
    terms[name][5] = np.nan
    assert np.flatnonzero(np.isnan(combination.score(terms))).tolist() == ([5] if name in used else [])


@every_config
def test_too_few_statistics_are_refused_with_the_number_needed(config):
    combination_for(config).fit(benign_terms(MINIMUM_STATISTICS))
    with pytest.raises(CalibrationError, match="need at least 40 benign queries, got 39: give more"):
        combination_for(config).fit(benign_terms(MINIMUM_STATISTICS - 1))


# ---------------------------------------------------------------------- Eq. 6

ERRORS = np.repeat([1.0, 3.0], 20)  # mean 2, standard deviation 1
DEVIATIONS = np.tile([0.0, 0.4], 20)  # mean .2, standard deviation .2
PLAIN = {"error_full": ERRORS, "deviation_disagreement": DEVIATIONS}
QUERY = {"error_full": np.array([5.0]), "deviation_disagreement": np.array([0.3])}


@pytest.mark.parametrize(
    ("normaliser", "error", "deviation"),
    [
        ("none", 5.0, 0.3),
        ("zscore_benign", (5.0 - 2.0) / 1.0, (0.3 - 0.2) / 0.2),
        ("std_ratio", 5.0 * 0.2 / 1.0, 0.3),
        ("rank_benign", 1.0, 0.5),
    ],
)
@pytest.mark.parametrize("weight", [0.0, 0.25, 1.0])
def test_the_weighted_sum_under_each_normaliser_by_hand(normaliser, error, deviation, weight):
    combination = weighted(weight, normaliser).fit(PLAIN)
    assert combination.score(QUERY)[0] == pytest.approx(weight * error + (1 - weight) * deviation)


def test_factors_undo_a_release_s_units_before_the_weights():
    combination = weighted(0.99, "none", error_factor=4.0, deviation_factor=0.1).fit(PLAIN)
    assert combination.score(QUERY)[0] == pytest.approx(0.99 * 4 * 5.0 + 0.01 * 0.1 * 0.3)


def test_weight_one_ignores_the_deviation_which_may_be_missing():
    combination = weighted(1.0, "zscore_benign").fit(PLAIN)
    assert combination.score(only(("error_full",), QUERY))[0] == pytest.approx(3.0)
    assert combination.score({**QUERY, "deviation_disagreement": np.array([np.nan])})[0] == pytest.approx(3.0)
    assert combination.stage_a(QUERY)[0] == combination.score(QUERY)[0]


def test_weight_zero_ignores_the_errors_and_has_no_stage_a():
    combination = weighted(0.0, "zscore_benign").fit(PLAIN)
    assert combination.score(only(("deviation_disagreement",), QUERY))[0] == pytest.approx(0.5)
    assert combination.stage_a(QUERY) is None


def test_stage_a_of_a_mixed_weight_is_the_normalised_error():
    assert weighted(0.5, "zscore_benign").fit(PLAIN).stage_a(QUERY)[0] == pytest.approx(3.0)


def test_constant_benign_terms_do_not_divide_by_zero():
    constant = {"error_full": np.full(40, 0.5), "deviation_disagreement": np.zeros(40)}
    for normaliser in ("zscore_benign", "std_ratio", "rank_benign"):
        assert np.isfinite(weighted(0.5, normaliser).fit(constant).score(QUERY)).all()


# ---------------------------------------------------------------------- two-sided tails


def test_an_error_that_is_too_low_is_as_suspicious_as_one_too_high():
    spread = np.linspace(1.0, 2.0, 101)
    combination = combination_for(ScoreConfig("two_sided", views=("full",))).fit({"error_full": spread, "deviation_disagreement": spread})
    low, middle, high = combination.stage_a({"error_full": np.array([0.5, 1.5, 2.5])})
    assert low == pytest.approx(high)
    assert middle == 0.0
    assert low > -np.log(2 / 102)


def test_the_two_sided_score_is_the_sum_over_its_terms_and_stage_a_leaves_the_deviation_out():
    terms = benign_terms()
    combination = combination_for(ScoreConfig("two_sided")).fit(terms)
    names = ("error_full", "error_masked", "deviation_disagreement")
    parts = []
    for name in names:
        benign, values = np.sort(terms[name]), terms[name]
        upper, lower = BenignTail(benign)(values), BenignTail(-benign)(-values)
        parts.append(np.maximum(np.maximum(upper, lower) - np.log(2), 0))
    assert np.allclose(combination.score(terms), sum(parts))
    assert np.allclose(combination.stage_a(only(names[:2], terms)), parts[0] + parts[1])


# ---------------------------------------------------------------------- typicality


def test_typicality_is_meaning_plus_texture_only_where_texture_is_rare():
    combination = combination_for(ScoreConfig()).fit(benign_terms())
    terms = benign_terms(300, seed=4)
    texture = combination.stage_a(terms)
    meaning = BenignTail(benign_terms()["deviation_disagreement"])(terms["deviation_disagreement"])
    quiet = texture <= 3.0
    assert 0 < quiet.sum() < 300
    assert np.allclose(combination.score(terms)[quiet], meaning[quiet])
    assert np.allclose(combination.score(terms)[~quiet], (meaning + 1.5 * (texture - 3.0))[~quiet])


def test_texture_is_the_distance_to_the_tenth_neighbour_in_whitened_log_space():
    combination = combination_for(ScoreConfig()).fit(benign_terms())
    state, terms = combination.state(), benign_terms(5, seed=5)
    names = [str(name) for name in state["names"]]
    assert names == ["error_full", "error_masked", "total_variation", "share_black"]  # no deviation
    for row in range(5):
        log = np.array([np.log1p(terms[name][row] / offset) for name, offset in zip(names, state["offsets"], strict=True)])
        white = ((log - state["location"]) / state["spread"]) @ state["whitening"]
        distance = np.sort(np.sqrt(((white - state["bank"]) ** 2).sum(axis=1)))[9]
        expected = BenignTail(state["texture"])(np.array([distance]))[0]
        assert combination.stage_a(terms)[row] == pytest.approx(expected, rel=1e-9)


def test_the_bank_is_white():
    bank = combination_for(ScoreConfig()).fit(benign_terms(2000)).state()["bank"]
    assert bank.shape == (1000, 4)
    assert np.allclose(np.cov(bank.T), np.eye(4), atol=0.02)


@pytest.mark.parametrize("factor", [0.01, 100.0])
def test_texture_far_from_benign_is_suspicious_in_either_direction(factor):
    combination = combination_for(ScoreConfig()).fit(benign_terms())
    terms = benign_terms(20, seed=6)
    strange = {**terms, "total_variation": terms["total_variation"] * factor}
    assert combination.score(strange).min() > np.quantile(combination.score(terms), 0.8)


def test_terms_of_either_sign_and_constant_terms_are_scored():
    terms = {**benign_terms(), "mean": np.linspace(-1, 1, 120), "share_white": np.zeros(120)}
    combination = combination_for(ScoreConfig()).fit(terms)
    assert np.isfinite(combination.score(terms)).all()
    assert (combination.stage_a({**terms, "mean": np.full(120, -1e6)}) > 3.0).all()
    assert (combination.stage_a({**terms, "share_white": np.full(120, 0.01)}) > 3.0).all()


# ---------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"combination": "median"}, "combination must be one of weighted, two_sided, typicality, got 'median'"),
        ({"deviation": "cosine"}, "deviation must be squared, kl or disagreement, got 'cosine'"),
        ({"views": ()}, r"views must name full, masked or both, got \(\)"),
        ({"views": ("full", "half")}, "views must name full, masked or both"),
        ({"reconstruction_weight": 1.5}, r"reconstruction_weight must be in \[0, 1\], got 1.5"),
        ({"reconstruction_weight": float("nan")}, r"reconstruction_weight must be in \[0, 1\], got nan"),
        ({"normaliser": "minmax"}, "normaliser must be none, zscore_benign, rank_benign or std_ratio, got 'minmax'"),
        ({"combination": "weighted", "views": ("masked",)}, r"reconstruction_view must be one of the views \('masked',\), got 'full'"),
    ],
)
def test_impossible_scores_are_refused(settings, message):
    with pytest.raises(ConfigurationError, match=message):
        unchecked(ScoreConfig, **settings)


@every_config
def test_score_settings_survive_json(config):
    assert ScoreConfig.from_json(json.loads(json.dumps(config.to_json()))) == config
