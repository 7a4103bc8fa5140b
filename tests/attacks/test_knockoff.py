"""Random Knockoff: which queries it sends, what it learns from, and what it does where nothing is answered."""

import numpy as np
import pytest
import torch
from torch import nn

from sameguard.attacks import Attack, Extraction, KnockoffNets
from sameguard.contract import InputContract
from sameguard.data import Split
from sameguard.endpoint import Answers, MeteredEndpoint
from sameguard.errors import ConfigurationError, InvalidDataError
from sameguard.evaluation import fidelity
from sameguard.networks import SmallConv
from sameguard.training import FitConfig
from sameguard.victim import BlackBox

CONTRACT = InputContract.images(1, 8, 8)
SHORT = FitConfig(epochs=2, batch_size=32, learning_rate=1e-3, precision="fp32")
WEIGHTS = np.random.default_rng(7).standard_normal((64, 4)).astype(np.float32)


def linear_victim(raw):
    logits = raw.reshape(len(raw), -1) @ WEIGHTS
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


class Refusing:
    """Refuses where the first pixel is above `limit`; counts its batches."""

    def __init__(self, victim, limit):
        self.victim, self.limit = victim, limit
        self.contract, self.classes = victim.contract, victim.classes
        self.batches = []

    def query(self, queries):
        self.batches.append(queries.copy())
        probs, _ = self.victim.query(queries)
        answered = queries[:, 0, 0, 0] <= self.limit
        return Answers(np.where(answered[:, None], probs, np.float32(np.nan)), answered)


@pytest.fixture
def victim():
    return BlackBox(linear_victim, CONTRACT, classes=4)


@pytest.fixture(scope="module")
def proxy():
    return np.random.default_rng(0).random((300, 1, 8, 8), dtype=np.float32)


def thief(proxy, budget=100, **changes):
    return KnockoffNets(proxy, lambda: SmallConv(4), budget, **{"config": SHORT, "batch_size": 32, **changes})


def rows_in(images, proxy):
    """Row numbers of the proxy images that were sent."""
    known = {row.tobytes(): index for index, row in enumerate(CONTRACT.canonicalise(proxy))}
    return [known[row.tobytes()] for row in images]


def test_it_sends_exactly_the_budget_of_distinct_proxy_images_and_keeps_what_it_sent(victim, proxy):
    meter = MeteredEndpoint(victim, budget=150, record=True)
    attack = thief(proxy)
    assert isinstance(attack, Attack)
    found = attack.run(meter, seed=0)
    assert isinstance(found, Extraction)
    assert found.used == meter.used == 100
    assert meter.remaining == 50
    assert len(set(rows_in(found.queries, proxy))) == 100
    np.testing.assert_array_equal(found.queries, meter.recorded().queries)
    np.testing.assert_array_equal(found.probs, meter.recorded().probs)
    assert found.answered.all()
    assert not found.substitute.training


def test_queries_go_out_in_batches(victim, proxy):
    endpoint = Refusing(victim, limit=1.0)
    thief(proxy).run(endpoint, seed=0)
    assert [len(batch) for batch in endpoint.batches] == [32, 32, 32, 4]


def test_the_same_seed_gives_the_same_queries_and_weights_and_another_seed_others(victim, proxy):
    first, again, other = (thief(proxy).run(victim, seed=seed) for seed in (3, 3, 4))
    np.testing.assert_array_equal(first.queries, again.queries)
    for left, right in zip(first.substitute.parameters(), again.substitute.parameters(), strict=True):
        assert torch.equal(left, right)
    assert set(rows_in(first.queries, proxy)) != set(rows_in(other.queries, proxy))


def test_what_is_refused_changes_no_query_but_costs_budget_and_is_not_learned_from(victim, proxy):
    open_run = thief(proxy).run(victim, seed=0)
    meter = MeteredEndpoint(Refusing(victim, limit=0.5), budget=100)
    guarded = thief(proxy).run(meter, seed=0)
    np.testing.assert_array_equal(guarded.queries, open_run.queries)
    assert meter.remaining == 0
    assert guarded.used == 100
    np.testing.assert_array_equal(guarded.answered, guarded.queries[:, 0, 0, 0] <= 0.5)
    assert np.isnan(guarded.probs[~guarded.answered]).all()
    np.testing.assert_array_equal(guarded.probs[guarded.answered], open_run.probs[guarded.answered])
    assert all(torch.isfinite(parameter).all() for parameter in guarded.substitute.parameters())


def test_a_thief_without_answers_ends_with_an_untrained_substitute(victim, proxy):
    nothing = thief(proxy).run(Refusing(victim, limit=-1.0), seed=0)
    untouched = thief(proxy, config=SHORT.with_(epochs=9)).run(Refusing(victim, limit=-1.0), seed=0)
    trained = thief(proxy).run(victim, seed=0)
    assert not nothing.answered.any()
    assert nothing.used == 100
    weights = [dict(run.substitute.named_parameters())["head.1.weight"] for run in (nothing, untouched, trained)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_answers_teach_it_the_victim(victim, proxy):
    config = SHORT.with_(epochs=60, learning_rate=3e-3)
    fresh = np.random.default_rng(1).random((400, 1, 8, 8), dtype=np.float32)
    found = thief(proxy, 300, config=config).run(victim, seed=0)
    ignorant = thief(proxy, 300, config=config).run(Refusing(victim, limit=-1.0), seed=0)
    assert fidelity(found.substitute, victim, fresh) > fidelity(ignorant.substitute, victim, fresh) + 0.2


def test_the_global_random_state_is_left_alone(victim, proxy):
    before, state = torch.random.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002 - the global state is what is looked at
    thief(proxy).run(victim, seed=0)
    assert torch.equal(before, torch.random.get_rng_state())
    np.testing.assert_array_equal(state, np.random.get_state()[1])  # noqa: NPY002


def test_a_split_of_8_bit_images_is_a_proxy_too_and_no_budget_means_all_that_the_endpoint_allows(victim):
    raw = np.random.default_rng(0).integers(0, 256, (50, 1, 8, 8), dtype=np.uint8)
    found = thief(Split(raw, None, 0), budget=None).run(MeteredEndpoint(victim, budget=40), seed=0)
    assert found.used == 40
    sent = {row.tobytes() for row in np.rint(found.queries * 255).astype(np.uint8)}
    assert len(sent) == 40
    assert sent <= {row.tobytes() for row in raw}


def test_vectors_can_be_stolen_with():
    contract = InputContract.vectors(5)
    victim = BlackBox(lambda raw: np.eye(3, dtype=np.float32)[raw[:, :3].argmax(axis=1)], contract, classes=3)
    proxy = np.random.default_rng(0).standard_normal((40, 5)).astype(np.float32)
    found = KnockoffNets(proxy, lambda: nn.Linear(5, 3), 40, config=SHORT).run(victim, seed=0)
    assert found.queries.shape == (40, 5)


def test_a_transform_is_applied_to_canonical_images_before_they_are_sent(victim, proxy):
    seen = []

    def negative(queries):
        seen.append(queries)
        return 1 - queries

    meter = MeteredEndpoint(victim, budget=100, record=True)
    found, plain = thief(proxy, transform=negative).run(meter, seed=0), thief(proxy).run(victim, seed=0)
    np.testing.assert_array_equal(seen[0], plain.queries)
    np.testing.assert_array_equal(found.queries, CONTRACT.canonicalise(1 - plain.queries))
    np.testing.assert_array_equal(found.queries, meter.recorded().queries)


def test_a_transform_that_changes_the_shape_is_refused_before_the_first_query(victim, proxy):
    meter = MeteredEndpoint(victim, budget=100)
    with pytest.raises(ConfigurationError, match=r"transform must keep the shape of the queries, \(100, 1, 8, 8\), got \(50, 1, 8, 8\)"):
        thief(proxy, transform=lambda queries: queries[::2]).run(meter, seed=0)
    assert meter.used == 0


def test_one_answer_is_enough_to_train_a_network_with_batch_norm(victim, proxy):
    limit = np.sort(CONTRACT.canonicalise(thief(proxy).run(victim, seed=0).queries)[:, 0, 0, 0])[0]
    found = KnockoffNets(proxy, lambda: nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.BatchNorm1d(4)), 100, config=SHORT).run(
        Refusing(victim, limit), seed=0
    )
    assert 1 <= found.answered.sum() <= 2
    assert all(torch.isfinite(parameter).all() for parameter in found.substitute.parameters())


def test_what_the_machine_measures_today_does_not_choose_the_precision(victim, proxy):
    automatic, plain = (thief(proxy, config=SHORT.with_(precision=precision)).run(victim, seed=0) for precision in ("auto", "fp32"))
    for left, right in zip(automatic.substitute.parameters(), plain.substitute.parameters(), strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"budget": 0}, ConfigurationError, "budget must be at least 1 query, got 0"),
        ({"budget": 301}, InvalidDataError, "got 300 for a budget of 301"),
        ({"batch_size": 0}, ConfigurationError, "batch_size must be at least 1"),
    ],
)
def test_impossible_settings_are_refused_at_once(proxy, changes, error, message):
    with pytest.raises(error, match=message):
        thief(proxy, **changes)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda proxy: thief(proxy[:, :, :7]), InvalidDataError, r"shape \(1, 8, 8\) of the endpoint's queries, got \(1, 7, 8\)"),
        (lambda proxy: thief(np.repeat(proxy, 3, axis=1)), InvalidDataError, r"got \(3, 8, 8\)"),
        (lambda proxy: thief(proxy, 200), ConfigurationError, r"budget must be in \[1, 120\]"),
        (lambda proxy: thief(proxy[:110], None), InvalidDataError, "got 110 for a budget of 120"),
        (lambda proxy: KnockoffNets(proxy, lambda: SmallConv(5), 10), ConfigurationError, r"must give 4 logits .* got shape \(1, 5\)"),
        (
            lambda proxy: KnockoffNets(proxy, lambda: SmallConv(4, channels=3), 10),
            ConfigurationError,
            "substitute must take queries of shape",
        ),
    ],
)
def test_what_does_not_fit_the_endpoint_is_refused_before_the_first_query(victim, proxy, make, error, message):
    meter = MeteredEndpoint(victim, budget=120)
    with pytest.raises(error, match=message):
        make(proxy).run(meter, seed=0)
    assert meter.used == 0


def test_a_budget_must_come_from_somewhere(victim, proxy):
    with pytest.raises(ConfigurationError, match="budget must be set on the attack or on the endpoint, got neither"):
        thief(proxy, budget=None).run(victim, seed=0)
