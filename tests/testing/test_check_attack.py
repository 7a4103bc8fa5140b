"""The check itself: an honest attack passes, and each rule is broken by one that is not."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from sameguard.attacks import Extraction
from sameguard.contract import InputContract
from sameguard.endpoint import BudgetExceededError, MeteredEndpoint
from sameguard.testing import check_attack
from sameguard.victim import BlackBox

CONTRACT = InputContract.images(1, 4, 4)
WEIGHTS = np.random.default_rng(7).standard_normal((16, 3)).astype(np.float32)


def victim():
    return BlackBox(lambda raw: raw.reshape(len(raw), -1) @ WEIGHTS, CONTRACT, classes=3, output="logits")


class Honest:
    """Asks 20 images of noise and never learns. `spoil` may change what it sends, `after` what it hands over."""

    def __init__(self, queries=20, spoil=lambda images: images, after=lambda found: found, look=lambda endpoint: None):
        self.count, self.spoil, self.after, self.look = queries, spoil, after, look

    def run(self, endpoint, seed=0):
        self.look(endpoint)
        images = CONTRACT.canonicalise(np.random.default_rng(seed).random((self.count, *CONTRACT.shape), dtype=np.float32))
        images = self.spoil(images)
        answers = endpoint.query(images)
        network = nn.Sequential(nn.Flatten(), _fixed_linear()).eval()
        return self.after(Extraction(network, images, answers.probs, answers.answered, used=len(images)))


def _fixed_linear(classes=3):
    with torch.random.fork_rng(devices=[]):
        return nn.Linear(16, classes)


def check(**changes):
    check_attack(lambda: Honest(**changes), victim, budget=20)


def test_an_honest_attack_passes():
    check()
    check(queries=5)


def test_an_attack_may_keep_some_of_its_queries_in_order():
    def some(found):
        rows = np.arange(0, 20, 3)
        return replace(found, queries=found.queries[rows], probs=found.probs[rows], answered=found.answered[rows])

    def turned(found):
        rows = np.arange(10)[::-1]
        return replace(found, queries=found.queries[rows], probs=found.probs[rows], answered=found.answered[rows])

    check(after=some)
    with pytest.raises(AssertionError, match="one that was sent, in the order of sending"):
        check(after=turned)


def test_an_attack_may_keep_the_class_alone():
    def hard(found):
        probs = np.full_like(found.probs, np.nan)
        probs[found.answered] = np.eye(3, dtype=np.float32)[found.probs[found.answered].argmax(axis=1)]
        return replace(found, probs=probs)

    check(after=hard)


def test_what_is_no_attack_is_named():
    with pytest.raises(AssertionError, match=r"an attack must have run\(endpoint, seed\), got str"):
        check_attack(lambda: "knockoff", victim, budget=20)


@pytest.mark.parametrize("name", ["endpoint", "used", "budget", "_meter", "predict", "recorded", "name"])
def test_a_look_behind_the_endpoint_is_seen(name):
    with pytest.raises(AssertionError, match=f"an attack may look at query, contract, classes and remaining .* got a look at {name}"):
        check(look=lambda endpoint: getattr(endpoint, name, None))


def test_what_an_attack_may_see_it_sees():
    seen = []
    check(look=lambda endpoint: seen.append((endpoint.contract, endpoint.classes, endpoint.remaining)))
    assert seen == [(CONTRACT, 3, 20)] * 4


def test_a_budget_is_a_budget():
    with pytest.raises(AssertionError, match="an attack must stay within its budget, got 21 with 20 left"):
        check(queries=21)
    with pytest.raises(BudgetExceededError):  # what the meter itself would say
        Honest(21).run(MeteredEndpoint(victim(), budget=20))


def _off_the_grid(images):
    return images + np.float32(0.001) * (images < 0.9)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_off_the_grid, "must lie on the contract's grid when they are sent"),
        (lambda images: images + np.float32(1), "must keep the contract when they are sent: query values must lie in"),
        (lambda images: images.astype(np.float64), "queries must be float32, got float64"),
        (lambda images: images[:, :, :3], "must keep the contract when they are sent: query shape must be"),
        (lambda images: CONTRACT.canonicalise(np.roll(images, next(_counter), axis=0)), "the same seed and the same answers must give"),
    ],
)
def test_queries_that_break_a_rule_are_seen(spoil, message):
    with pytest.raises(AssertionError, match=message):
        check(spoil=spoil)


_counter = iter(range(1, 1000))


def _mangled(found):
    return replace(found, queries=found.queries[::-1].copy())


@pytest.mark.parametrize(
    ("after", "message"),
    [
        (lambda found: found.queries, "run must return an Extraction, got ndarray"),
        (lambda found: replace(found, used=19), "must agree with the meter on the queries used, got 19 and 20"),
        (_mangled, "the stored queries must be those that were sent, bit by bit"),
        (lambda found: replace(found, probs=found.probs[:, :2]), r"the stored answers must be \(20, 3\), a row a query, got \(20, 2\)"),
        (lambda found: replace(found, probs=np.roll(found.probs, 1, axis=1)), "must name the class that came back"),
        (lambda found: replace(found, probs=np.nan_to_num(found.probs, nan=0.5)), "the stored answer to a refused query must be NaN"),
        (lambda found: replace(found, answered=np.ones(20, bool)), "the stored flags must be those of the answers that came back"),
        (lambda found: replace(found, substitute=found.substitute.train()), "must be handed over in eval mode"),
        (lambda found: replace(found, substitute=nn.Sequential(nn.Flatten(), _fixed_linear(4)).eval()), "must give 3 logits a query"),
        (lambda found: replace(found, substitute=_ruined(found.substitute)), "logits must be finite, whatever was refused"),
    ],
)
def test_results_that_break_a_rule_are_seen(after, message):
    with pytest.raises(AssertionError, match=message):
        check(after=after)


def _ruined(network):
    with torch.no_grad():
        network[1].weight.fill_(torch.nan)
    return network


def test_one_flag_for_each_query_is_asked_of_natural():
    class Stored(Honest):
        def run(self, endpoint, seed=0):
            found = super().run(endpoint, seed)
            object.__setattr__(found, "natural", np.zeros(3, bool))
            return found

    with pytest.raises(AssertionError, match="natural must hold one flag for each stored query"):
        check_attack(Stored, victim, budget=20)


@pytest.mark.parametrize("draw", [lambda: np.random.rand(), lambda: torch.rand(1)])  # noqa: NPY002
def test_a_draw_from_a_global_generator_is_seen(draw):
    numpy_state, torch_state = np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        with pytest.raises(AssertionError, match="must leave the global random state of numpy and torch alone"):
            check(look=lambda endpoint: draw())
    finally:
        np.random.set_state(numpy_state)  # noqa: NPY002
        torch.set_rng_state(torch_state)


# ---------------------------------------------------------------------- what an attack itself raises


class Fragile(Honest):
    """An attack that needs an answer."""

    def run(self, endpoint, seed=0):
        found = super().run(endpoint, seed)
        if not found.answered.any():
            raise IndexError("index 0 is out of bounds")
        return found


class Greedy(Honest):
    def run(self, endpoint, seed=0):
        assert endpoint.remaining > 100
        return super().run(endpoint, seed)


def test_an_attack_that_cannot_bear_refusals_is_told_so():
    with pytest.raises(AssertionError, match="must come to its end at an endpoint that refuses everything, got IndexError: index 0 is out"):
        check_attack(Fragile, victim, budget=20)


def test_the_attacks_own_assertions_and_a_constructor_that_fails_are_told_as_rules():
    with pytest.raises(AssertionError, match="must come to its end at an endpoint that answers everything, got AssertionError"):
        check_attack(Greedy, victim, budget=20)
    with pytest.raises(AssertionError, match=r"make_attack must give a new attack, got TypeError: .*unexpected keyword"):
        check_attack(lambda: Honest(width=3), victim, budget=20)


def test_an_extraction_and_a_substitute_of_other_things_are_told_as_rules():
    def without_queries(found):
        object.__setattr__(found, "queries", None)
        return found

    def without_a_network(found):
        object.__setattr__(found, "substitute", "a network")
        return found

    def for_other_inputs(found):
        with torch.random.fork_rng(devices=[]):
            return replace(found, substitute=nn.Sequential(nn.Flatten(), nn.Linear(7, 3)).eval())

    with pytest.raises(AssertionError, match="an extraction must hold its queries, answers and flags as arrays"):
        check(after=without_queries)
    with pytest.raises(AssertionError, match="the substitute must be a torch module, got str"):
        check(after=without_a_network)
    with pytest.raises(AssertionError, match=r"must take queries of shape \(1, 4, 4\), got RuntimeError"):
        check(after=for_other_inputs)


def test_queries_that_are_no_array_are_named():
    with pytest.raises(AssertionError, match="queries must be a numpy array, got list"):
        check(look=lambda endpoint: endpoint.query([[0.5] * 16]))
