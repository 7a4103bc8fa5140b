"""Adaptive Knockoff: what its bandit does to the queries, class numbers with gaps, exhausted classes, and what it costs."""

import time

import numpy as np
import pytest
import torch
from torch import nn

from sameguard.attacks import AdaptiveKnockoff, Attack, KnockoffNets
from sameguard.attacks.bandit import ArmTree, Rewards
from sameguard.contract import InputContract
from sameguard.data import Split
from sameguard.endpoint import Answers, MeteredEndpoint
from sameguard.errors import ConfigurationError, InvalidDataError
from sameguard.networks import MLP, SmallConv
from sameguard.training import FitConfig
from sameguard.victim import BlackBox

CONTRACT = InputContract.images(1, 8, 8)
SHORT = FitConfig(epochs=2, batch_size=32, learning_rate=1e-3, precision="fp32")


def lit_images(rows_per_class, classes=3, seed=0):
    """Class k: noise with pixel k of the first row lit brightly. Labels have gaps: 0, 10, 20, ..."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(classes), rows_per_class)
    images = rng.integers(0, 60, (len(labels), 1, 8, 8), dtype=np.uint8)
    images[np.arange(len(labels)), 0, 0, labels] = 255
    return Split(images, 10 * labels.astype(np.int64), 10 * classes)


def sure_of_class_one(raw):
    """Sure where pixel 1 is lit, and of nothing elsewhere."""
    lit = raw[:, 0, 0, 1] > 0.9
    logits = np.zeros((len(raw), 3), np.float32)
    logits[lit, 2] = 8.0
    logits[:, 0] += raw[:, 0, 3, 3]
    return logits


def victim():
    return BlackBox(sure_of_class_one, CONTRACT, classes=3, output="logits")


def thief(proxy, budget, **changes):
    return AdaptiveKnockoff(proxy, lambda: SmallConv(3, width=4), budget, **{"config": SHORT, **changes})


def classes_asked(found):
    """Which pixel of the first row is lit brightest in each query."""
    return found.queries[:, 0, 0, :3].argmax(axis=1)


def test_it_asks_more_and_more_about_the_class_that_pays():
    proxy = lit_images(400)
    attack = thief(proxy, 600, rewards=("certainty",))
    assert isinstance(attack, Attack)
    asked = classes_asked(attack.run(victim(), 0))
    assert (asked == 1).sum() == 400  # it drew every image that pays
    assert (asked[100:300] == 1).mean() > 0.8
    random = KnockoffNets(proxy, lambda: SmallConv(3, width=4), 600, config=SHORT).run(victim(), 0)
    assert (classes_asked(random) == 1).mean() < 0.45


def test_no_image_is_asked_about_twice_and_a_proxy_as_large_as_the_budget_is_used_up():
    proxy = lit_images(20)
    meter = MeteredEndpoint(victim(), budget=60)
    found = thief(proxy, None).run(meter, 0)
    assert found.used == meter.used == 60
    sent = sorted(np.rint(row * 255).astype(np.uint8).tobytes() for row in found.queries)
    assert sent == sorted(row.tobytes() for row in proxy.raw)


def test_a_refused_class_earns_nothing_and_is_avoided():
    class Refusing:
        contract, classes = CONTRACT, 3

        def query(self, queries):
            probs, _ = victim().query(queries)
            answered = queries[:, 0, 0, 1] < 0.9
            return Answers(np.where(answered[:, None], probs, np.float32(np.nan)), answered)

    asked = classes_asked(thief(lit_images(400), 400, rewards=("loss",)).run(Refusing(), 0))
    assert (asked[100:] == 1).mean() < 0.25


def test_many_classes_make_two_levels_by_the_likeness_of_their_mean_images():
    rng = np.random.default_rng(0)
    labels = np.arange(360) % 36
    raw = rng.integers(0, 30, (360, 1, 8, 8), dtype=np.uint8) + np.where(labels < 18, 0, 200).astype(np.uint8)[:, None, None, None]
    attack = thief(Split(raw, labels, 36), 40)
    assert attack.coarse_nodes == 12  # twice the root of 36
    two = thief(Split(raw, labels, 36), 40, coarse_nodes=2)
    assert sorted(sorted(node) for node in two._nodes(0)) == [list(range(18)), list(range(18, 36))]
    for found in (attack, two):
        assert found.run(victim(), 0).notes["coarse_nodes"] == found.coarse_nodes
    assert thief(lit_images(5, classes=8), 40).coarse_nodes == 1


def families_of_pictures(rows_per_class=40, seed=0):
    """40 classes in 4 families of 10: the family lights a quarter of the image, the class one pixel of it. Only the last family pays below."""
    rng = np.random.default_rng(seed)
    labels = np.repeat(np.arange(40), rows_per_class)
    raw = rng.integers(0, 30, (len(labels), 1, 8, 8), dtype=np.uint8)
    for family in range(4):
        rows = labels // 10 == family
        raw[rows, :, 4 * (family // 2) : 4 * (family // 2) + 4, 4 * (family % 2) : 4 * (family % 2) + 4] += np.uint8(150)
    raw[np.arange(len(labels)), 0, labels % 8, labels // 8] = 255
    return Split(raw, labels, 40)


def family_of(queries):
    corners = np.stack([queries[:, 0, :4, :4], queries[:, 0, :4, 4:], queries[:, 0, 4:, :4], queries[:, 0, 4:, 4:]], axis=1)
    return corners.reshape(len(queries), 4, -1).mean(axis=2).argmax(axis=1)


def sure_of_the_last_family(raw):
    logits = np.zeros((len(raw), 3), np.float32)
    logits[family_of(raw) == 3, 2] = 8.0
    logits[:, 0] += raw[:, 0, 0, 0] / 10
    return logits


def test_two_levels_find_the_family_that_pays_among_many_classes():
    endpoint = BlackBox(sure_of_the_last_family, CONTRACT, classes=3, output="logits")
    proxy = families_of_pictures()
    attack = thief(proxy, 400, rewards=("certainty",))
    assert attack.coarse_nodes == 12  # above 30 classes there are two levels
    nodes = attack._nodes(0)
    assert sorted(leaf for node in nodes for leaf in node) == list(range(40))
    assert all(len({leaf // 10 for leaf in node}) == 1 for node in nodes)  # no node mixes families
    found = attack.run(endpoint, 0)
    assert found.notes["coarse_nodes"] == 12
    assert len({row.tobytes() for row in found.queries}) == 400
    adaptive = family_of(found.queries) == 3
    random = family_of(KnockoffNets(proxy, lambda: SmallConv(3, width=4), 400, config=SHORT).run(endpoint, 0).queries) == 3
    assert adaptive[:100].mean() < adaptive[-100:].mean() - 0.1  # it learns where to look
    assert adaptive.mean() > random.mean() + 0.3


def test_two_levels_come_to_the_end_of_every_class():
    proxy = families_of_pictures(rows_per_class=5)
    endpoint = BlackBox(sure_of_the_last_family, CONTRACT, classes=3, output="logits")
    found = thief(proxy, None).run(MeteredEndpoint(endpoint, budget=200), 0)
    sent = sorted(np.rint(row * 255).astype(np.uint8).tobytes() for row in found.queries)
    assert sent == sorted(row.tobytes() for row in proxy.raw)


def test_the_online_substitute_normalises_as_its_network_asks_and_draws_from_no_global_generator():
    contract = InputContract.vectors(4)
    endpoint = BlackBox(lambda raw: np.eye(3, dtype=np.float32)[raw[:, :3].argmax(axis=1)], contract, classes=3)
    rows = (1000 * np.random.default_rng(0).standard_normal((80, 4))).astype(np.float32)

    def make():
        return nn.Sequential(MLP(4, 8, width=8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))

    before = torch.get_rng_state()
    attack = AdaptiveKnockoff(Split(rows, np.arange(80) % 4, 4), make, 41, config=SHORT)
    first, again = attack.run(endpoint, 0), attack.run(endpoint, 0)
    np.testing.assert_array_equal(first.queries, again.queries)
    assert torch.equal(before, torch.get_rng_state())
    plain = AdaptiveKnockoff(Split(rows, np.arange(80) % 4, 4), lambda: MLP(4, 3, width=8), 41, config=SHORT).run(endpoint, 0)
    assert plain.used == 41


def test_the_bandits_bookkeeping_is_a_small_part_of_the_attack(monkeypatch):
    spent = []

    def timed(kind, name):
        inner = getattr(kind, name)

        def call(*args):
            began = time.perf_counter()
            found = inner(*args)
            spent.append(time.perf_counter() - began)
            return found

        monkeypatch.setattr(kind, name, call)

    for kind, name in ((ArmTree, "draw"), (ArmTree, "update"), (Rewards, "__call__")):
        timed(kind, name)
    began = time.perf_counter()
    AdaptiveKnockoff(lit_images(200), lambda: SmallConv(3, width=16), 400, config=SHORT.with_(epochs=20)).run(victim(), 0)
    assert sum(spent) < 0.15 * (time.perf_counter() - began)  # loose: annotations are checked here, and the machine may be busy


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"coarse_nodes": 4}, ConfigurationError, r"coarse_nodes must be in \[1, 3\], the proxy's classes, got 4"),
        ({"coarse_nodes": 0}, ConfigurationError, "got 0"),
        ({"rewards": ("luck",)}, ConfigurationError, "rewards must be some of certainty, diversity and loss"),
        ({"window": 0}, ConfigurationError, "window must be at least 1 answer"),
        ({"budget": 61}, InvalidDataError, "got 60 for a budget of 61"),
    ],
)
def test_impossible_settings_are_refused_at_once(changes, error, message):
    with pytest.raises(error, match=message):
        thief(lit_images(20), **{"budget": 30, **changes})


def test_a_proxy_without_labels_is_refused():
    with pytest.raises(InvalidDataError, match="proxy must carry labels, got none"):
        thief(Split(lit_images(20).raw, None, 0), 30)


def test_classes_that_all_look_alike_make_no_tree():
    alike = Split(np.zeros((60, 1, 8, 8), np.uint8), np.arange(60) % 3, 3)
    meter = MeteredEndpoint(victim(), budget=30)
    with pytest.raises(InvalidDataError, match="at least coarse_nodes = 2 classes whose mean images differ"):
        thief(alike, 30, coarse_nodes=2).run(meter, 0)
    assert meter.used == 0
