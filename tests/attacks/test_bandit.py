"""The gradient bandit and its rewards in closed form, and that it finds what pays."""

import numpy as np
import pytest

from sameguard.attacks.bandit import ArmTree, Baseline, GradientBandit, Rewards
from sameguard.errors import ConfigurationError

THIRDS = np.log(np.full(3, 1 / 3))


def test_one_update_is_the_formula_and_preferences_keep_their_sum():
    bandit = GradientBandit(3)
    bandit.preferences[:] = [0.0, np.log(2.0), 0.0]
    policy = bandit.policy()
    np.testing.assert_allclose(policy, [0.25, 0.5, 0.25])
    bandit.update(1, policy, 0.8)
    np.testing.assert_allclose(bandit.preferences, [-0.8 * 0.25, np.log(2.0) + 0.8 * 0.5, -0.8 * 0.25])
    bandit.update(1, policy, 0.8)  # the second draw of an arm counts half
    np.testing.assert_allclose(bandit.preferences, [-1.2 * 0.25, np.log(2.0) + 1.2 * 0.5, -1.2 * 0.25])
    assert bandit.draws.tolist() == [0, 2, 0]


def test_preferences_keep_their_sum_at_both_levels_whatever_is_paid():
    tree, rng = ArmTree([[0, 3], [1, 2, 4]]), np.random.default_rng(0)
    tree.retire(2)
    for advantage in rng.normal(size=200):
        tree.update(tree.draw(rng), advantage)
        for bandit in (tree.upper, *tree.lower):
            assert abs(bandit.preferences.sum()) < 1e-9
    assert tree.lower[1].preferences[1] == 0  # retired: neither drawn nor moved
    assert tree.upper.draws.sum() == sum(bandit.draws.sum() for bandit in tree.lower) == 200


def test_the_policy_is_finite_after_a_reward_of_a_million():
    bandit = GradientBandit(3)
    for arm, advantage in ((0, 1e6), (1, -1e6), (2, 1e6)):
        bandit.update(arm, bandit.policy(), advantage)
        policy = bandit.policy()
        assert np.isfinite(policy).all()
        assert policy.sum() == pytest.approx(1)


def test_exhausted_arms_are_drawn_no_more_and_their_chances_are_shared():
    tree, rng = ArmTree([[0, 1], [2], [3, 4]]), np.random.default_rng(0)
    tree.retire(0)
    tree.retire(2)
    assert {tree.draw(rng).leaf for _ in range(200)} == {1, 3, 4}
    np.testing.assert_allclose(tree.draw(rng).node_policy, [0.5, 0, 0.5])
    tree.retire(3)
    tree.retire(4)
    assert {tree.draw(rng).leaf for _ in range(50)} == {1}


@pytest.mark.parametrize("nodes", [[[0, 1, 2]], [[0], [1, 2]]])
def test_a_toy_of_three_arms_converges_to_the_best_one(nodes):
    tree, baseline, rng = ArmTree(nodes), Baseline(25), np.random.default_rng(0)
    paid = np.array([0.1, 0.3, 0.9])
    drawn = []
    for _ in range(3000):
        draw = tree.draw(rng)
        tree.update(draw, baseline.advantage(paid[draw.leaf] + 0.05 * rng.standard_normal()))
        drawn.append(draw.leaf)
    counts = np.bincount(drawn[-1000:], minlength=3)
    assert counts.argmax() == 2
    assert counts[2] > 500


def test_draws_follow_the_policy():
    tree, rng = ArmTree([[0, 1, 2, 3]]), np.random.default_rng(0)
    tree.lower[0].preferences[:] = np.log([0.1, 0.2, 0.3, 0.4])
    counts = np.bincount([tree.draw(rng).leaf for _ in range(20_000)])
    np.testing.assert_allclose(counts / 20_000, [0.1, 0.2, 0.3, 0.4], atol=0.015)


# ---------------------------------------------------------------------- rewards


def test_raw_rewards_by_hand():
    rewards = Rewards(("certainty", "diversity", "loss"), 3, window=2)
    half = np.array([0.5, 0.3, 0.2])
    np.testing.assert_allclose(rewards.raw(half, THIRDS), [0.2, 0.0, np.log(3)])  # no answer before it: nothing to differ from
    rewards(np.array([1.0, 0.0, 0.0]), THIRDS)
    rewards(np.array([0.0, 1.0, 0.0]), THIRDS)
    assert rewards.raw(half, THIRDS)[1] == pytest.approx(0.2)  # mean (.5, .5, 0): only the third class is above it
    rewards(np.array([0.0, 1.0, 0.0]), THIRDS)  # the first answer leaves the window
    assert rewards.raw(half, THIRDS)[1] == pytest.approx(0.7)  # mean (0, 1, 0)


def test_a_certain_answer_loses_exactly_the_log_of_its_class_even_where_others_are_impossible():
    rewards = Rewards(("loss",), 3, window=2)
    log_probs = np.array([-0.5, -np.inf, -1.0])
    np.testing.assert_allclose(rewards.raw(np.array([1.0, 0.0, 0.0]), log_probs), [0.5])


def test_rewards_are_rescaled_by_the_extremes_seen_and_nothing_while_they_agree():
    rewards = Rewards(("certainty",), 3, window=5)

    def answer(margin):
        return np.array([0.4 + margin, 0.4, 0.2 - margin])

    found = [rewards(answer(margin), THIRDS) for margin in (0.1, 0.1, 0.2, 0.15, 0.0)]
    np.testing.assert_allclose(found, [0, 0, 1, 0.5, 0], atol=1e-9)


def test_the_baseline_is_the_mean_of_the_last_rewards():
    baseline = Baseline(2)
    np.testing.assert_allclose([baseline.advantage(reward) for reward in (1.0, 1.0, 0.0, 1.0)], [1.0, 0.0, -1.0, 0.5])


@pytest.mark.parametrize("names", [(), ("certainty", "certainty"), ("novelty",)])
def test_unknown_rewards_are_refused(names):
    with pytest.raises(ConfigurationError, match="rewards must be some of certainty, diversity and loss, each once"):
        Rewards(names, 3, 25)


def test_an_empty_window_is_refused():
    with pytest.raises(ConfigurationError, match="window must be at least 1 answer, got 0"):
        Rewards(("loss",), 3, 0)
