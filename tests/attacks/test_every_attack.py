"""Every attack against the shipped contract, and against endpoints that are broken or die half-way."""

from functools import partial

import numpy as np
import pytest

from sameguard.attacks import (
    DFME,
    JBDA,
    MAZE,
    ActiveThief,
    AdaptiveKnockoff,
    BenignMix,
    CloudLeak,
    Copycat,
    FilteredKnockoff,
    KnockoffNets,
    NoiseQueries,
    ProjectedKnockoff,
    TargetedJBDA,
)
from sameguard.contract import InputContract
from sameguard.data import Split
from sameguard.data.transforms import blur
from sameguard.endpoint import Answers, MeteredEndpoint, Record
from sameguard.errors import ConfigurationError, InvalidDataError, InvalidVictimError
from sameguard.networks import SmallConv
from sameguard.testing import check_attack
from sameguard.training import FitConfig, RunControl, TrainingPausedError
from sameguard.victim import BlackBox

CONTRACT = InputContract.images(1, 8, 8)
CLASSES = 4
BUDGET = 60
SHORT = FitConfig(epochs=2, batch_size=16, learning_rate=1e-3, precision="fp32")
WEIGHTS = np.random.default_rng(7).standard_normal((64, CLASSES)).astype(np.float32)

_random = np.random.default_rng(0)
PROXY = Split(_random.integers(0, 256, (150, 1, 8, 8), dtype=np.uint8), _random.integers(0, 5, 150), 5)
MANY_CLASSES = Split(PROXY.raw, np.arange(150) % 35, 40)


def substitute():
    return SmallConv(CLASSES, width=4)


def victim():
    return BlackBox(lambda raw: raw.reshape(len(raw), -1) @ WEIGHTS, CONTRACT, classes=CLASSES, output="logits")


_jacobian = {"seed_count": 10, "round_fit": SHORT, "config": SHORT}

# A row for each attack and each way of running it. `make(proxy, budget, control)` gives a new one; NoiseQueries and the like have no use for a proxy.
ATTACKS = {
    "dfme": lambda proxy, budget, control: DFME(substitute, budget, batch_size=8, latent=8, control=control),
    "dfme, hard labels, kept": lambda proxy, budget, control: DFME(
        substitute, budget, batch_size=8, latent=8, labels="hard", keep=20, control=control
    ),
    "maze": lambda proxy, budget, control: MAZE(substitute, budget, batch_size=4, latent=8, probes=2, control=control),
    "filtered knockoff": lambda proxy, budget, control: FilteredKnockoff(
        proxy, substitute, budget, score=lambda queries: queries.reshape(len(queries), -1).std(axis=1), config=SHORT, control=control
    ),
    "projected knockoff": lambda proxy, budget, control: ProjectedKnockoff(
        proxy, substitute, budget, project=blur, config=SHORT, control=control
    ),
    "benign mix": lambda proxy, budget, control: BenignMix(
        proxy, substitute, budget, benign=PROXY.raw[::-1].copy(), ratio=0.4, config=SHORT, control=control
    ),
    "noise, uniform": lambda proxy, budget, control: NoiseQueries(substitute, budget, config=SHORT, control=control),
    "noise, bernoulli": lambda proxy, budget, control: NoiseQueries(substitute, budget, kind="bernoulli", config=SHORT, control=control),
    "knockoff": lambda proxy, budget, control: KnockoffNets(proxy, substitute, budget, config=SHORT, control=control),
    "knockoff, hard labels": lambda proxy, budget, control: KnockoffNets(
        proxy, substitute, budget, labels="hard", config=SHORT, control=control
    ),
    "knockoff, blurred": lambda proxy, budget, control: KnockoffNets(
        proxy, substitute, budget, transform=blur, config=SHORT, control=control
    ),
    "adaptive knockoff": lambda proxy, budget, control: AdaptiveKnockoff(proxy, substitute, budget, config=SHORT, control=control),
    "adaptive knockoff, two levels": lambda proxy, budget, control: AdaptiveKnockoff(
        Split(proxy.raw, MANY_CLASSES.labels, 40), substitute, budget, config=SHORT, control=control
    ),
    "jbda": lambda proxy, budget, control: JBDA(proxy, substitute, budget, **_jacobian, control=control),
    "jbda, loss, laundered": lambda proxy, budget, control: JBDA(
        proxy, substitute, budget, direction="loss", transform=blur, **_jacobian, control=control
    ),
    "jbda, logit, reservoir": lambda proxy, budget, control: JBDA(
        proxy, substitute, budget, of="logit", reservoir=8, reservoir_after=1, **_jacobian, control=control
    ),
    "jbda-tr": lambda proxy, budget, control: TargetedJBDA(proxy, substitute, budget, **_jacobian, control=control),
    **{
        f"active thief, {selection}": partial(
            lambda proxy, budget, control, selection: ActiveThief(
                proxy, substitute, budget, selection=selection, rounds=2, candidates=60, config=SHORT, control=control
            ),
            selection=selection,
        )
        for selection in ("entropy", "k-center", "dfal", "dfal+k-center")
    },
    "cloud leak": lambda proxy, budget, control: CloudLeak(
        proxy, substitute, budget, rounds=2, steps=4, round_fit=SHORT, config=SHORT, control=control
    ),
    "copycat": lambda proxy, budget, control: Copycat(proxy, substitute, budget, config=SHORT, control=control),
}
WITHOUT_PROXY = {"noise, uniform", "noise, bernoulli", "dfme", "dfme, hard labels, kept", "maze"}
every_attack = pytest.mark.parametrize("name", ATTACKS)
every_attack_with_a_proxy = pytest.mark.parametrize("name", [name for name in ATTACKS if name not in WITHOUT_PROXY])


def make(name, proxy=PROXY, budget=BUDGET, control=None):
    return ATTACKS[name](proxy, budget, control)


@every_attack
def test_it_keeps_the_contract_of_an_attack(name):
    check_attack(partial(make, name), victim, budget=BUDGET)


@every_attack
def test_it_spends_what_the_endpoint_still_allows_where_it_has_no_budget_of_its_own(name):
    meter = MeteredEndpoint(victim(), budget=37)
    assert make(name, budget=None).run(meter, 0).used == meter.used == 37


@every_attack
def test_a_budget_of_nothing_is_refused_at_once(name):
    with pytest.raises(ConfigurationError, match="budget must be at least 1 query, got 0"):
        make(name, budget=0)


@every_attack
def test_more_than_the_endpoint_allows_is_refused_before_the_first_query(name):
    meter = MeteredEndpoint(victim(), budget=BUDGET - 1)
    with pytest.raises(ConfigurationError, match=r"budget must be in \[1, 59\]"):
        make(name).run(meter, 0)
    assert meter.used == 0


@every_attack_with_a_proxy
@pytest.mark.parametrize(
    ("proxy", "message"),
    [
        (np.zeros((150, 1, 7, 8), np.uint8), r"must have the shape \(1, 8, 8\) .* got \(1, 7, 8\)"),
        (np.zeros((150, 3, 8, 8), np.uint8), r"got \(3, 8, 8\)"),
        (PROXY.inputs * np.float32(0.5), None),
    ],
)
def test_a_proxy_of_another_shape_is_refused_before_the_first_query_and_one_in_range_is_not(name, proxy, message):
    meter = MeteredEndpoint(victim(), budget=BUDGET)
    attack = make(name, Split(proxy, PROXY.labels, 5))
    if message is None:
        assert attack.run(meter, 0).used == BUDGET
        return
    with pytest.raises(InvalidDataError, match=message):
        attack.run(meter, 0)
    assert meter.used == 0


@pytest.mark.parametrize(
    ("proxy", "message"),
    [
        (PROXY.inputs * 255, r"must be finite and in \[0, 1\], .* got values from 0 to 255: divide pixels by 255"),
        (PROXY.inputs - np.float32(0.1), r"got values from -0.1 to 0.9"),
        (np.full((150, 1, 8, 8), np.nan, np.float32), "got values from nan to nan"),
        (PROXY.raw.astype(np.int64), "must be uint8 or float32, got int64"),
    ],
)
@pytest.mark.parametrize("name", ["knockoff", "jbda", "active thief, entropy", "cloud leak", "copycat"])
def test_a_proxy_of_another_range_or_type_is_refused_before_the_first_query(name, proxy, message):
    meter = MeteredEndpoint(victim(), budget=BUDGET)
    with pytest.raises(InvalidDataError, match=message):
        make(name, proxy).run(meter, 0)
    assert meter.used == 0


# ---------------------------------------------------------------------- broken endpoints


class Broken:
    """Answers like the victim until `after` queries have come, then as `what` says."""

    def __init__(self, what, after=15):
        self.victim, self.what, self.left = victim(), what, after
        self.contract, self.classes = self.victim.contract, self.victim.classes

    def query(self, queries):
        probs, answered = self.victim.query(queries)
        self.left -= len(queries)
        if self.left > 0:
            return Answers(probs, answered)
        if self.what == "dies":
            raise ConnectionResetError("the line is dead")
        if self.what == "says NaN":
            probs[-1] = np.nan
        return Answers(probs[:, 1:] if self.what == "loses a class" else probs, answered)


@every_attack
def test_answers_that_are_none_stop_it_and_name_the_endpoint(name):
    with pytest.raises(InvalidVictimError, match=r"endpoint Broken must give finite probabilities .* got NaN or infinity in 1 of"):
        make(name).run(Broken("says NaN"), 0)


@every_attack
def test_an_endpoint_that_dies_half_way_is_heard_of_as_it_died(name):
    with pytest.raises(ConnectionResetError, match="the line is dead"):
        make(name).run(Broken("dies"), 0)


def test_answers_of_another_shape_stop_it():
    with pytest.raises(InvalidVictimError, match=r"must answer 60 queries with probabilities of shape \(60, 4\).* got shapes \(60, 3\)"):
        make("knockoff").run(Broken("loses a class"), 0)


class Replaying:
    """Serves recorded answers as long as the queries are those of the record, then goes on live: what a ledger does."""

    def __init__(self, record):
        self.record, self.place, self.victim = record, 0, victim()
        self.contract, self.classes = self.victim.contract, self.victim.classes

    def query(self, queries):
        rows = slice(self.place, self.place + len(queries))
        self.place += len(queries)
        if self.place > len(self.record.queries):
            return self.victim.query(queries)
        np.testing.assert_array_equal(self.record.queries[rows], queries)
        return Answers(self.record.probs[rows], self.record.answered[rows])


@every_attack
def test_a_run_that_died_half_way_asks_the_same_queries_again_and_goes_on(name):
    whole, died = MeteredEndpoint(victim(), record=True), _Remembering(Broken("dies", after=40))
    make(name).run(whole, 0)
    with pytest.raises(ConnectionResetError):
        make(name).run(died, 0)
    resumed = MeteredEndpoint(Replaying(died.record()), record=True)
    make(name).run(resumed, 0)
    np.testing.assert_array_equal(resumed.recorded().queries, whole.recorded().queries)


class _Remembering:
    """Keeps what was answered, even nothing."""

    def __init__(self, endpoint):
        self.endpoint, self.records = endpoint, []
        self.contract, self.classes = endpoint.contract, endpoint.classes

    def query(self, queries):
        answers = self.endpoint.query(queries)
        self.records.append(Record(queries, *answers))
        return answers

    def record(self):
        nothing = Record(np.empty((0, *CONTRACT.shape), np.float32), np.empty((0, CLASSES), np.float32), np.empty(0, bool))
        return Record(*(np.concatenate(column) for column in zip(nothing, *self.records, strict=True)))


# ---------------------------------------------------------------------- progress and the time budget


@every_attack
def test_it_tells_how_many_queries_are_asked(name):
    heard = []
    make(name, control=RunControl(progress=heard.append)).run(victim(), 0)
    queries = [event for event in heard if event.stage == "queries"]
    assert [event.step for event in queries] == sorted({event.step for event in queries})
    assert queries[-1].step == queries[-1].steps == BUDGET
    assert queries[-1].seconds_left == 0
    assert any(event.stage == "substitute" for event in heard)


def test_it_stops_at_its_deadline_before_a_query_and_after_a_batch():
    meter = MeteredEndpoint(victim())
    with pytest.raises(TrainingPausedError, match="queries stopped at 0 of 60: the time budget is spent"):
        make("knockoff", control=RunControl(deadline=0.0)).run(meter, 0)
    assert meter.used == 0
    control = RunControl()
    control.progress = lambda event: setattr(control, "deadline", 0.0)
    attack = KnockoffNets(PROXY, substitute, BUDGET, config=SHORT, batch_size=20, control=control)
    with pytest.raises(TrainingPausedError, match="queries stopped at 20 of 60"):
        attack.run(meter, 0)
    assert meter.used == 20


def test_a_run_with_checkpoints_is_taken_up_again_in_whatever_round_it_was(tmp_path):
    whole = make("jbda").run(victim(), 0)
    control = RunControl(checkpoint_dir=tmp_path, resume=True)

    def stop(event):
        if event.stage == "substitute-round-2":
            control.deadline = 0.0

    control.progress = stop
    with pytest.raises(TrainingPausedError, match="substitute-round-2 stopped"):
        make("jbda", control=control).run(victim(), 0)
    resumed = make("jbda", control=RunControl(checkpoint_dir=tmp_path, resume=True)).run(victim(), 0)
    np.testing.assert_array_equal(resumed.queries, whole.queries)
