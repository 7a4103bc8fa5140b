"""JBDA and JBDA-TR: direction and schedule in closed form, how the asked set grows, what is stored, what refusals do."""

import numpy as np
import pytest
import torch
from torch import nn

from sameguard.attacks import JBDA, Attack, TargetedJBDA
from sameguard.attacks.jbda import ascent_signs, classes_of, other_classes, step_of_round
from sameguard.contract import InputContract
from sameguard.data import Split
from sameguard.endpoint import Answers, MeteredEndpoint, Record
from sameguard.errors import ConfigurationError, InvalidDataError
from sameguard.networks import SmallConv
from sameguard.training import FitConfig
from sameguard.victim import BlackBox

CONTRACT = InputContract.images(1, 8, 8)
SHORT = FitConfig(epochs=2, batch_size=16, learning_rate=1e-3, precision="fp32")
WEIGHTS = np.random.default_rng(7).standard_normal((64, 4)).astype(np.float32)


class Linear(nn.Module):
    """Logits that are linear in the pixels."""

    def __init__(self, weights=WEIGHTS):
        super().__init__()
        self.weights = nn.Parameter(torch.from_numpy(weights.copy()))

    def forward(self, images):
        return images.flatten(1) @ self.weights


def victim():
    return BlackBox(lambda raw: raw.reshape(len(raw), -1) @ WEIGHTS, CONTRACT, classes=4, output="logits")


@pytest.fixture(scope="module")
def seeds():
    """Mid-grey grainy images, which no step of 0.1 takes out of bounds for some rounds."""
    levels = np.random.default_rng(0).integers(110, 146, (60, 1, 8, 8), dtype=np.uint8)
    return Split(levels, None, 0)


def thief(seeds, budget=100, kind=JBDA, **changes):
    settings = {"seed_count": 10, "round_fit": SHORT, "config": SHORT, **changes}
    return kind(seeds, lambda: SmallConv(4, width=4), budget, **settings)


def parents_and_children(found, start, end):
    """Rows of a full round, which doubles what was known: child i has parent i."""
    assert end == 2 * start
    return found.queries[:start], found.queries[start:end]


# ---------------------------------------------------------------------- one move


def test_the_sign_of_a_linear_network_is_its_closed_form():
    images = np.random.default_rng(0).random((40, 1, 8, 8), dtype=np.float32)
    classes = np.random.default_rng(1).integers(0, 4, 40)
    logits = images.reshape(40, -1) @ WEIGHTS
    probs = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    of_logit = np.sign(WEIGHTS.T[classes])  # 40, 64
    of_prob = np.sign(WEIGHTS.T[classes] - probs @ WEIGHTS.T)  # d log p_y = w_y - sum_k p_k w_k
    np.testing.assert_array_equal(ascent_signs(Linear(), images, classes, "logit").reshape(40, -1), of_logit)
    assert (ascent_signs(Linear(), images, classes, "prob").reshape(40, -1) == of_prob).mean() > 0.999  # but for rounding at 0
    assert (of_prob != of_logit).mean() > 0.05


def test_a_pixel_that_does_not_matter_does_not_move_and_the_log_does_not_saturate():
    weights = np.zeros((64, 2), np.float32)
    weights[0, 1] = 40.0  # p is 1 in float32, and its own gradient 0
    images = np.ones((1, 1, 8, 8), np.float32)
    signs = ascent_signs(Linear(weights), images, np.array([1])).reshape(-1)
    assert signs[0] == 1
    assert (signs[1:] == 0).all()


def test_the_step_turns_in_rounds_five_and_ten():
    signs = [np.sign(step_of_round(0.1, number, 5)) for number in range(1, 12)]
    assert signs == [1, 1, 1, 1, -1, -1, -1, -1, -1, 1, 1]
    assert step_of_round(0.1, 3, 5) == 0.1


def test_targets_are_other_classes_all_alike():
    classes = np.repeat(np.arange(4), 3000)
    targets = other_classes(classes, 4, np.random.default_rng(0))
    assert (targets != classes).all()
    counts = np.array([[((classes == own) & (targets == other)).sum() for other in range(4)] for own in range(4)])
    assert abs(counts[~np.eye(4, dtype=bool)] - 1000).max() < 120


def test_a_refused_query_has_the_class_that_the_substitute_names():
    queries = np.random.default_rng(0).random((6, 1, 8, 8), dtype=np.float32)
    probs = np.full((6, 4), np.nan, np.float32)
    probs[:3] = np.eye(4, dtype=np.float32)[[3, 1, 0]]
    answered = np.arange(6) < 3
    own = (queries.reshape(6, -1) @ WEIGHTS).argmax(axis=1)
    np.testing.assert_array_equal(classes_of(Record(queries, probs, answered), Linear()), [3, 1, 0, *own[3:]])


# ---------------------------------------------------------------------- growth


def test_what_is_asked_doubles_each_round_and_the_last_round_fills_the_budget(seeds):
    for budget, rounds in ((10, 0), (20, 1), (40, 2), (50, 3), (80, 3), (81, 4)):
        meter = MeteredEndpoint(victim(), budget=200)
        found = thief(seeds, budget).run(meter, 0)
        assert isinstance(thief(seeds, budget), Attack)
        assert found.used == meter.used == budget  # 10 * 2^rounds, or less
        assert found.notes["rounds"] == rounds
        assert found.natural.sum() == 10


@pytest.mark.parametrize("kind", [JBDA, TargetedJBDA])
def test_what_is_stored_was_answered_and_the_seeds_are_intact(seeds, kind):
    meter = MeteredEndpoint(victim(), budget=80, record=True)
    found = thief(seeds, 80, kind).run(meter, 0)
    np.testing.assert_array_equal(found.queries, meter.recorded().queries)
    np.testing.assert_array_equal(found.probs, meter.recorded().probs)
    owned = {row.tobytes() for row in CONTRACT.canonicalise(seeds.inputs)}
    assert [row.tobytes() in owned for row in found.queries] == found.natural.tolist() == [True] * 10 + [False] * 70
    assert len({row.tobytes() for row in found.queries[:20]}) == 20  # seeds and first round: nothing was overwritten


@pytest.mark.parametrize("kind", [JBDA, TargetedJBDA])
def test_an_unclipped_step_of_a_tenth_is_25_or_26_levels_and_a_20th_13(seeds, kind):
    for step, levels in ((0.1, {25, 26}), (0.05, {12, 13})):
        found = thief(seeds, 40, kind, step=step).run(victim(), 0)
        for start, end in ((10, 20), (20, 40)):
            parents, children = parents_and_children(found, start, end)
            moved = np.rint(255 * np.abs(children - parents)).astype(int)
            assert set(np.unique(moved)) - {0} <= levels
            assert (moved > 0).mean() > 0.95  # a dead unit may leave a pixel without gradient
        assert found.notes["largest_change"] == pytest.approx(step, abs=0.5 / 255 + 1e-6)
        assert found.notes["mean_distance"] == pytest.approx(step * 8, rel=0.05)  # 64 pixels, each by the step


def test_moves_are_clipped_to_the_bounds(seeds):
    found = thief(seeds, 40, step=0.9).run(victim(), 0)
    assert found.queries.min() == 0
    assert found.queries.max() == 1


def test_the_loss_goes_the_opposite_way_of_the_jacobian(seeds):
    up, down = (thief(seeds, 20, direction=direction).run(victim(), 0) for direction in ("jacobian", "loss"))
    turned = thief(seeds, 20, flip_every=1).run(victim(), 0)  # the sign turns in round 1 already
    np.testing.assert_array_equal(up.queries[:10], down.queries[:10])
    np.testing.assert_array_equal(np.sign(up.queries[10:] - up.queries[:10]), -np.sign(down.queries[10:] - down.queries[:10]))
    np.testing.assert_array_equal(turned.queries, down.queries)


def test_the_first_move_climbs_the_class_that_the_victim_named_and_the_targeted_one_leaves_it(seeds):
    """The substitute learns well here, so that its gradient is nearly the victim's."""
    fit = FitConfig(epochs=200, batch_size=16, learning_rate=0.05, weight_decay=0.0, precision="fp32")

    def gain(kind, **changes):
        attack = kind(seeds, Linear, 80, seed_count=40, round_fit=fit, config=SHORT, **changes)
        found = attack.run(victim(), 0)
        named = found.probs[:40].argmax(axis=1)
        return (found.probs[40:][np.arange(40), named] - found.probs[:40][np.arange(40), named]).mean()

    assert gain(JBDA) >= 0
    assert gain(JBDA, direction="loss") < -0.2
    assert gain(TargetedJBDA) < -0.2


def test_a_reservoir_bounds_the_parents_after_its_round(seeds):
    batches = []

    class Watching(Answering):
        def query(self, queries):
            batches.append(len(queries))
            return super().query(queries)

    found = thief(seeds, 76, reservoir=12, reservoir_after=2).run(Watching(), 0)
    assert batches == [10, 10, 20, 12, 12, 12]  # rounds 1 and 2 double, then 12 parents each
    assert found.notes["rounds"] == 5


def test_every_round_learns_from_all_that_was_answered_and_hard_labels_change_what_it_asks_next(seeds):
    soft, hard = (thief(seeds, 40, labels=labels).run(victim(), 0) for labels in ("soft", "hard"))
    np.testing.assert_array_equal(soft.queries[:10], hard.queries[:10])
    assert set(np.unique(hard.probs)) == {0.0, 1.0}
    assert not np.array_equal(soft.queries[10:], hard.queries[10:])


# ---------------------------------------------------------------------- refusals and laundering


class Answering:
    """The victim, but for what `refuses` says of it."""

    def __init__(self, refuses=lambda queries: np.zeros(len(queries), bool)):
        self.victim, self.refuses = victim(), refuses
        self.contract, self.classes = self.victim.contract, self.victim.classes

    def query(self, queries):
        refused = self.refuses(queries)
        return Answers(np.where(refused[:, None], np.float32(np.nan), self.victim.query(queries).probs), ~refused)


def test_refusals_cost_budget_and_refused_images_are_parents_too(seeds):
    found = thief(seeds, 40).run(Answering(lambda queries: queries[:, 0, 0, 0] > 0.5), 0)
    assert found.used == 40
    assert 0 < found.answered.sum() < 40
    parents, children = parents_and_children(found, 20, 40)
    assert (np.abs(children - parents).reshape(20, -1).max(axis=1) > 0.09).all()


def test_a_guard_that_refuses_everything_does_not_stop_it(seeds):
    nothing = thief(seeds, 40).run(Answering(lambda queries: np.ones(len(queries), bool)), 0)
    assert nothing.used == 40
    assert not nothing.answered.any()


def test_laundering_is_done_to_moved_images_alone_before_they_are_stored(seeds):
    calls = []

    def darken(queries):
        calls.append(queries.copy())
        return queries * np.float32(0.5)

    found = thief(seeds, 20, transform=darken).run(victim(), 0)
    plain = thief(seeds, 20).run(victim(), 0)
    np.testing.assert_array_equal(found.queries[:10], plain.queries[:10])
    assert len(calls) == 1
    np.testing.assert_array_equal(CONTRACT.canonicalise(calls[0]), plain.queries[10:])
    np.testing.assert_array_equal(found.queries[10:], CONTRACT.canonicalise(calls[0] * np.float32(0.5)))


# ---------------------------------------------------------------------- bad settings


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"direction": "down"}, ConfigurationError, "direction must be jacobian or loss and of prob or logit, got 'down' and 'prob'"),
        ({"of": "margin"}, ConfigurationError, "got 'jacobian' and 'margin'"),
        ({"direction": "loss", "of": "logit"}, ConfigurationError, "of must be prob where direction is loss, got logit"),
        ({"flip_every": 0}, ConfigurationError, "flip_every must be at least 1 round, got 0"),
        ({"step": -0.1}, ConfigurationError, r"step must be positive, got -0\.1"),
        ({"seed_count": 0}, ConfigurationError, "seed_count must be at least 1, got 0"),
        ({"reservoir": 0}, ConfigurationError, "reservoir must be at least 1 parent a round or None"),
        ({"reservoir_after": -1}, ConfigurationError, "got None and -1"),
        ({"seed_count": 61}, InvalidDataError, "seeds must hold at least seed_count = 61 images, got 60"),
        ({"labels": "firm"}, ConfigurationError, "labels must be soft or hard, got 'firm'"),
    ],
)
def test_impossible_settings_are_refused_at_once(seeds, changes, error, message):
    with pytest.raises(error, match=message):
        thief(seeds, **changes)


def test_a_budget_smaller_than_the_seeds_is_refused_before_the_first_query(seeds):
    meter = MeteredEndpoint(victim(), budget=9)
    with pytest.raises(ConfigurationError, match="budget must cover the seeds, 10 queries, got 9: raise it or lower seed_count"):
        thief(seeds, None).run(meter, 0)
    assert meter.used == 0


def test_a_transform_that_changes_the_size_is_refused(seeds):
    with pytest.raises(ConfigurationError, match=r"transform must keep the shape of the queries, \(10, 1, 8, 8\), got \(10, 1, 8, 7\)"):
        thief(seeds, transform=lambda queries: queries[..., 1:]).run(victim(), 0)
