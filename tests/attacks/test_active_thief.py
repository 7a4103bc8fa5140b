"""ActiveThief: how it divides its budget, what it selects, and that the validation answers choose the epoch."""

import numpy as np
import pytest
import torch

from sameguard.attacks import ActiveThief, Attack
from sameguard.attacks.active_thief import _macro_f1
from sameguard.attacks.selection import entropies
from sameguard.contract import InputContract
from sameguard.endpoint import Answers, MeteredEndpoint, Record
from sameguard.errors import ConfigurationError, InvalidDataError
from sameguard.networks import SmallConv, predict_logits
from sameguard.training import FitConfig
from sameguard.victim import BlackBox

CONTRACT = InputContract.images(1, 8, 8)
SHORT = FitConfig(epochs=4, batch_size=16, learning_rate=2e-3, precision="fp32")
WEIGHTS = np.random.default_rng(7).standard_normal((64, 4)).astype(np.float32)


class Watching:
    """The victim, and the sizes of what it was asked."""

    def __init__(self, refuses=lambda count: False):
        self.victim = BlackBox(lambda raw: raw.reshape(len(raw), -1) @ WEIGHTS, CONTRACT, classes=4, output="logits")
        self.contract, self.classes, self.refuses, self.batches = CONTRACT, 4, refuses, []

    def query(self, queries):
        self.batches.append(len(queries))
        probs, answered = self.victim.query(queries)
        if self.refuses(len(self.batches)):
            return Answers(np.full_like(probs, np.nan), np.zeros_like(answered))
        return Answers(probs, answered)


@pytest.fixture(scope="module")
def proxy():
    return np.random.default_rng(0).random((200, 1, 8, 8), dtype=np.float32)


def thief(proxy, budget=100, **changes):
    return ActiveThief(proxy, lambda: SmallConv(4, width=4), budget, **{"config": SHORT, "batch_size": 1000, **changes})


@pytest.mark.parametrize(
    ("budget", "changes", "batches"),
    [
        (100, {"rounds": 10}, [20, 10, *[7] * 10]),
        (100, {"rounds": 4}, [20, 10, 18, 18, 17, 17]),
        (50, {"validation_share": 0.0, "start_share": 0.5, "rounds": 2}, [25, 13, 12]),
        (10, {"rounds": 10}, [2, 1, *[1] * 7]),
        (1, {}, [1]),
        (2, {"validation_share": 0.9, "start_share": 0.1}, [1, 1]),
        (20, {"validation_share": 0.0, "start_share": 1.0}, [20]),
    ],
)
def test_validation_start_and_rounds_all_count_and_fill_the_budget(proxy, budget, changes, batches):
    endpoint = Watching()
    attack = thief(proxy, budget, **changes)
    assert isinstance(attack, Attack)
    found = attack.run(endpoint, 0)
    assert endpoint.batches == batches
    assert found.used == budget == len({row.tobytes() for row in found.queries})  # no image twice


def test_each_round_takes_the_images_that_the_substitute_doubts_most(proxy):
    attack = thief(proxy, 40, validation_share=0.0, start_share=0.5, rounds=1)
    found = attack.run(Watching(), 0)
    stand_in = thief(proxy, 20, validation_share=0.0, start_share=1.0).run(Watching(), 0)  # the substitute after the start
    np.testing.assert_array_equal(found.queries[:20], stand_in.queries)
    canonical = CONTRACT.canonicalise(proxy)
    asked = {row.tobytes() for row in found.queries[:20]}
    pool = np.array([index for index, row in enumerate(canonical) if row.tobytes() not in asked])
    network = thief(proxy, 40)._trained(
        Watching(), Record(stand_in.queries, stand_in.probs, stand_in.answered), None, 0, "substitute-round-1"
    )
    logits = predict_logits(network, proxy[pool])
    doubt = entropies(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True))
    expected = canonical[pool[np.argsort(-doubt, kind="stable")[:20]]]
    np.testing.assert_array_equal(found.queries[20:], expected)


def test_the_four_selections_ask_differently(proxy):
    sent = [
        thief(proxy, 60, selection=selection, rounds=2, candidates=100).run(Watching(), 0).queries
        for selection in ("entropy", "k-center", "dfal", "dfal+k-center")
    ]
    for index, queries in enumerate(sent):
        np.testing.assert_array_equal(queries[:18], sent[0][:18])  # validation and start are the same random images
        assert not any(np.array_equal(queries, other) for other in sent[:index])


def test_the_epoch_that_does_best_on_the_validation_answers_is_kept(proxy):
    """A constant, high rate, under which the last epoch is rarely the best one."""
    restless = FitConfig(epochs=18, batch_size=16, learning_rate=0.02, final_fraction=1.0, precision="fp32")
    canonical = CONTRACT.canonicalise(proxy)
    known, validation = (Record(part, *Watching().query(part)) for part in (canonical[:80], canonical[80:140]))
    gains = []
    for seed in range(4):
        kept, last = (thief(proxy, config=restless)._trained(Watching(), known, chosen_by, seed, "s") for chosen_by in (validation, None))
        gains.append(_macro_f1(kept, validation) - _macro_f1(last, validation))
        assert not kept.training
    assert min(gains) >= 0
    assert max(gains) > 0


def test_a_validation_set_that_is_refused_leaves_the_last_epoch(proxy):
    endpoint = Watching(refuses=lambda batch: batch == 1)
    found = thief(proxy, 40, rounds=1).run(endpoint, 0)
    assert not found.answered[:8].any()
    assert found.answered[8:].all()
    assert all(torch.isfinite(parameter).all() for parameter in found.substitute.parameters())


def test_epochs_to_try_that_the_user_names_are_those_that_are_tried(proxy):
    found = thief(proxy, 40, rounds=1, config=SHORT.with_(snapshot_epochs=(4,))).run(MeteredEndpoint(Watching(), budget=40), 0)
    plain = thief(proxy, 40, rounds=1, validation_share=0.2).run(MeteredEndpoint(Watching(), budget=40), 0)
    assert found.used == plain.used == 40


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"selection": "random"}, ConfigurationError, r"selection must be one of entropy, k-center, dfal, dfal\+k-center, got 'random'"),
        ({"validation_share": 1.0}, ConfigurationError, "validation_share must be in"),
        ({"start_share": 0.0}, ConfigurationError, r"got 0\.2 and 0\.0"),
        ({"validation_share": 0.6, "start_share": 0.5}, ConfigurationError, "their sum at most 1"),
        ({"rounds": 0}, ConfigurationError, "rounds and candidates must be at least 1, got 0 and 10000"),
        ({"candidates": 0}, ConfigurationError, "got 10 and 0"),
        ({"budget": 201}, InvalidDataError, "got 200 for a budget of 201"),
    ],
)
def test_impossible_settings_are_refused_at_once(proxy, changes, error, message):
    with pytest.raises(error, match=message):
        thief(proxy, **changes)
