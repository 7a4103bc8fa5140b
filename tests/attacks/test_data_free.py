"""DFME and MAZE: their accounts, and the arithmetic of logit recovery and forward differences against closed forms."""

import numpy as np
import pytest
import torch
from torch import nn

from sameguard.attacks import DFME, MAZE
from sameguard.attacks.data_free import Game, centred_logs, forward_differences, hard_loss, unit_directions
from sameguard.attacks.dfme import logit_distance, rate_factor
from sameguard.attacks.maze import divergence
from sameguard.attacks.transcript import Transcript
from sameguard.contract import InputContract
from sameguard.endpoint import Answers, MeteredEndpoint
from sameguard.errors import ConfigurationError, TrainingError
from sameguard.evaluation import fidelity
from sameguard.networks import SmallConv, predict_logits
from sameguard.networks.dfme_generator import DFMEGenerator
from sameguard.training import RunControl
from sameguard.victim import BlackBox

CONTRACT = InputContract.images(1, 8, 8)
WEIGHTS = np.random.default_rng(3).standard_normal((64, 3)).astype(np.float32)


def victim(contract: InputContract = CONTRACT, sharpness: float = 1.0) -> BlackBox:
    return BlackBox(lambda raw: sharpness * (raw.reshape(len(raw), -1) @ WEIGHTS), contract, classes=3, output="logits")


OFF_GRID = InputContract((1, 8, 8), grid="none")  # where a probe of any step differs from its base


def substitute():
    return SmallConv(3, width=4)


def linear():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3))


def game(endpoint, asked_at_once: int = 64) -> Game:
    torch.manual_seed(0)
    transcript = Transcript(endpoint, 100_000, asked_at_once, "soft")
    return Game(transcript, linear(), logit_distance, seed=0, batch_size=16, cost=1, latent=8, device="cpu")


# ---------------------------------------------------------------------- arithmetic


def test_centred_logs_of_probabilities_are_the_centred_logits():
    logits = torch.tensor([[1.0, -2.0, 4.5], [0.0, 0.0, 0.0]])
    found = centred_logs(logits.softmax(1))
    assert torch.allclose(found, logits - logits.mean(1, keepdim=True), atol=1e-5)
    assert torch.isfinite(centred_logs(torch.tensor([[1.0, 0.0, 0.0]]))).all()  # a rounded answer


def test_the_distance_of_equal_answers_is_zero_and_of_others_by_hand():
    logits = torch.tensor([[2.0, 0.0, 1.0]])
    assert logit_distance(logits.softmax(1), logits + 7.0).item() == pytest.approx(0.0, abs=1e-5)
    assert logit_distance(logits.softmax(1), torch.tensor([[0.0, 0.0, 0.0]])).item() == pytest.approx(2.0 / 3.0, abs=1e-5)


def test_the_divergence_is_summed_over_classes_in_nats():
    answers, logits = torch.tensor([[0.5, 0.5], [1.0, 0.0]]), torch.tensor([[0.25, 0.75], [1.0, 0.0]]).clamp_min(1e-30).log()
    assert divergence(answers, logits).tolist() == pytest.approx([0.1438, 0.0], abs=1e-4)
    assert hard_loss(torch.tensor([[0.0, 1.0]]), torch.zeros(1, 2)).item() == pytest.approx(np.log(2.0))


def test_directions_have_length_one_and_are_drawn_from_the_generator_given():
    like = torch.zeros(50, 1, 4, 4)
    first, second = (unit_directions(like, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.allclose(first.flatten(1).norm(dim=1), torch.ones(50), atol=1e-6)
    assert torch.equal(first, second)


@pytest.mark.parametrize(("values", "probes", "cosine"), [(16, 200, 0.96), (64, 600, 0.95)])
def test_forward_differences_of_a_linear_loss_have_the_cosine_of_theory(values, probes, cosine):
    generator = torch.Generator().manual_seed(0)
    slope = torch.randn(values, generator=generator)
    directions = torch.stack([unit_directions(torch.zeros(40, values), generator) for _ in range(probes)])
    estimated = forward_differences(torch.zeros(40), 0.5 * (directions @ slope), directions, 0.5)
    found = torch.nn.functional.cosine_similarity(estimated, slope.expand(40, -1)).mean().item()
    assert found == pytest.approx(np.sqrt(probes / (probes + values - 1)), abs=0.01)
    assert found == pytest.approx(cosine, abs=0.01)
    assert torch.allclose(estimated.mean(0), slope, rtol=0.25, atol=0.1)  # its size is right too


def test_probes_are_weighed_alike_however_they_are_cut_into_chunks():
    generator = torch.Generator().manual_seed(0)
    directions = torch.stack([unit_directions(torch.zeros(5, 1, 4, 4), generator) for _ in range(12)])
    base, probed = torch.randn(5, generator=generator), torch.randn(12, 5, generator=generator)
    whole = forward_differences(base, probed, directions, 0.1)
    for chunk in (1, 3, 4):
        parts = [forward_differences(base, probed[at : at + chunk], directions[at : at + chunk], 0.1) for at in range(0, 12, chunk)]
        assert torch.allclose(torch.stack(parts).mean(0), whole, rtol=1e-5, atol=1e-4)


def test_a_generator_step_does_not_depend_on_how_many_queries_go_out_at_once():
    def row_by_row(raw: np.ndarray) -> np.ndarray:  # a product of matrices rounds differently in batches of other sizes
        return (raw.reshape(len(raw), 64, 1) * WEIGHTS).sum(axis=1)

    steps = []
    for asked_at_once in (3, 16, 1000):
        play = game(BlackBox(row_by_row, OFF_GRID, classes=3, output="logits"), asked_at_once)
        optimizer = torch.optim.SGD(play.generator.parameters(), lr=0.1)
        play.generator_step(optimizer, rows=16, probes=5, step=1e-2)
        assert play.transcript.asked == 16 * 6
        steps.append(play.generator.first.weight.detach().clone())
    assert torch.equal(steps[0], steps[2])
    assert torch.equal(steps[1], steps[2])
    assert not torch.equal(steps[0], game(victim(OFF_GRID)).generator.first.weight)


def test_the_substitute_is_in_eval_mode_while_the_generator_learns():
    play = game(victim(OFF_GRID))
    play.substitute.append(nn.BatchNorm1d(3)).train()
    before = play.substitute[-1].running_mean.clone()
    play.generator_step(torch.optim.SGD(play.generator.parameters(), lr=0.1), rows=4, probes=2, step=1e-2)
    assert torch.equal(play.substitute[-1].running_mean, before)  # batches of probes do not leak into each other


def test_the_generator_climbs_towards_images_on_which_the_two_disagree():
    play = game(victim(OFF_GRID))
    optimizer = torch.optim.Adam(play.generator.parameters(), lr=2e-3)
    losses = [play._loss_of(play.generator_step(optimizer, rows=16, probes=8, step=1e-2)).mean().item() for _ in range(40)]
    assert np.mean(losses[-8:]) > 1.1 * np.mean(losses[:8])


@pytest.mark.parametrize(("step", "lowest", "highest"), [(1e-3, -0.15, 0.15), (1.0, 0.9, 1.0)])
def test_on_the_8_bit_grid_a_small_step_is_lost_in_rounding_and_a_large_one_is_not(step, lowest, highest):
    rng = np.random.default_rng(0)
    contract = InputContract.images(3, 32, 32)
    slope = rng.standard_normal(3072)
    before = rng.standard_normal((1000, 3072)).astype(np.float32)
    directions = rng.standard_normal((1000, 3072))
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)

    def loss(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        images = ((np.tanh(points) + 1) / 2).astype(np.float32)
        sent = contract.canonicalise(images.reshape(-1, 3, 32, 32)).reshape(-1, 3072)
        return images.astype(np.float64) @ slope, sent.astype(np.float64) @ slope

    (true_base, seen_base), (true_probe, seen_probe) = loss(before), loss((before + step * directions).astype(np.float64))
    correlation = np.corrcoef(true_probe - true_base, seen_probe - seen_base)[0, 1]
    assert lowest < correlation < highest


# ---------------------------------------------------------------------- accounts


@pytest.mark.parametrize(("kind", "cost"), [(DFME, 1792), (MAZE, 1920)])
def test_an_iteration_costs_what_is_published(kind, cost):
    attack = kind(substitute, cost)
    assert attack.queries_per_iteration == cost
    meter = MeteredEndpoint(victim(), budget=cost)
    found = attack.run(meter, 0)
    assert (meter.used, found.used) == (cost, cost)
    assert (found.notes["iterations"], found.notes["generator_steps"]) == (1, 1)


def test_no_query_of_an_iteration_is_asked_twice():
    for kind, cost in ((DFME, 112), (MAZE, 240)):
        found = kind(substitute, 2 * cost, batch_size=16).run(victim(OFF_GRID), 0)
        assert found.notes["iterations"] == 2
        assert len(np.unique(found.queries.reshape(2 * cost, -1), axis=0)) == 2 * cost


def test_several_probes_steps_and_no_generator_are_counted_as_they_cost():
    assert DFME(substitute, probes=3, batch_size=10, generator_steps=2, substitute_steps=1).queries_per_iteration == 90
    found = DFME(substitute, 90, probes=3, batch_size=10, generator_steps=2, substitute_steps=1).run(victim(), 0)
    assert (found.notes["iterations"], found.notes["generator_steps"]) == (1, 2)
    found = DFME(substitute, 100, batch_size=10, generator_steps=0).run(victim(), 0)
    assert (found.notes["iterations"], found.notes["generator_steps"]) == (2, 0)
    assert MAZE(substitute, 77, batch_size=2, probes=3, substitute_steps=1, replay_steps=0).run(victim(), 0).used == 77


@pytest.mark.parametrize("kind", [DFME, MAZE])
@pytest.mark.parametrize("budget", [1, 2, 8, 17, 37, 200, 300])
def test_any_budget_is_spent_to_the_last_query(kind, budget):
    meter = MeteredEndpoint(victim(), budget=budget, record=True)
    found = kind(substitute, batch_size=16).run(meter, 0)
    assert found.used == meter.used == budget
    assert np.array_equal(found.queries, meter.recorded().queries)
    assert not torch.equal(found.substitute.head[1].weight, kind(substitute, 1).means.fresh(victim(), 0).head[1].weight)  # it learnt


@pytest.mark.parametrize(("kind", "sent"), [(DFME, [42, 42, *[42] * 4, 48]), (MAZE, [*[20] * 11, 20, 20, 20, 20])])
def test_a_budget_below_one_iteration_pays_for_all_of_its_parts(kind, sent):
    class Watched(MeteredEndpoint):
        def query(self, queries: np.ndarray) -> Answers:
            batches.append(len(queries))
            return super().query(queries)

    batches: list[int] = []
    found = kind(substitute, 300).run(Watched(victim()), 0)
    assert batches == sent  # base and probes, then what the substitute learns from
    assert (found.notes["iterations"], found.notes["generator_steps"]) == (1, 1)


def test_both_learning_rates_drop_at_a_tenth_three_tenths_and_half_of_the_budget():
    shares = (0.0, 0.09, 0.1, 0.29, 0.3, 0.49, 0.5, 1.0)
    assert [rate_factor(share) for share in shares] == pytest.approx([1, 1, 0.3, 0.3, 0.09, 0.09, 0.027, 0.027])


def test_kept_queries_are_evenly_spread_and_the_substitute_learns_from_all():
    meter = MeteredEndpoint(victim(), budget=300, record=True)
    whole = DFME(substitute, batch_size=16).run(MeteredEndpoint(victim(), budget=300), 0)
    found = DFME(substitute, batch_size=16, keep=5).run(meter, 0)
    rows = np.linspace(0, 299, 5).round().astype(int)
    assert np.array_equal(found.queries, meter.recorded().queries[rows])
    assert np.array_equal(found.probs, meter.recorded().probs[rows])
    assert found.used == 300
    for mine, theirs in zip(found.substitute.parameters(), whole.substitute.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_the_generator_learns_where_probes_are_answered_and_not_where_none_is():
    class NoProbes(BlackBox):
        def query(self, queries: np.ndarray) -> Answers:
            probs = self.answer(self.contract.canonicalise(queries))
            probs[:] = np.nan
            return Answers(probs, np.zeros(len(queries), bool))

    refused = NoProbes(lambda raw: raw.reshape(len(raw), -1) @ WEIGHTS, CONTRACT, classes=3, output="logits")
    assert DFME(substitute, 500, batch_size=16).run(refused, 0).notes["generator_steps"] == 0
    assert DFME(substitute, 500, batch_size=16).run(victim(), 0).notes["generator_steps"] == 5


class PartlyRefusing:
    """Refuses about half of the queries, by their first pixel; what comes with a refusal is `withheld`."""

    def __init__(self, withheld: float) -> None:
        self.victim, self.withheld = victim(), withheld
        self.contract, self.classes = CONTRACT, 3

    def query(self, queries: np.ndarray) -> Answers:
        answered = np.rint(queries[:, 0, 0, 0] * 255) % 2 == 0
        return Answers(np.where(answered[:, None], self.victim.query(queries).probs, np.float32(self.withheld)), answered)


@pytest.mark.parametrize("kind", [DFME, MAZE])
def test_neither_network_learns_from_a_refused_row_whatever_comes_with_it(kind):
    runs = [kind(substitute, 500, batch_size=16).run(PartlyRefusing(withheld), 0) for withheld in (np.nan, 0.9)]
    assert 0.2 < runs[0].answered.mean() < 0.8
    assert np.array_equal(runs[0].queries, runs[1].queries)  # the generator is the same
    assert runs[0].notes["generator_steps"] > 0
    for one, other in zip(runs[0].substitute.parameters(), runs[1].substitute.parameters(), strict=True):
        assert torch.isfinite(one).all()
        assert torch.equal(one, other)


@pytest.mark.parametrize("labels", ["soft", "hard"])
@pytest.mark.parametrize("kind", [DFME, MAZE])
def test_the_substitute_of_a_long_game_names_what_the_victim_names(kind, labels):
    found = kind(linear, 12_000, batch_size=16, latent=16, labels=labels).run(victim(sharpness=0.3), 0)
    named_by_victim = found.probs[-1000:].argmax(1)
    assert np.bincount(named_by_victim).max() < 600  # the game has not settled on one class
    assert np.mean(predict_logits(found.substitute, found.queries[-1000:]).argmax(1) == named_by_victim) > 0.85
    if labels == "soft":  # and on noise that nobody asked about, which labels alone do not reach at this budget
        images = np.random.default_rng(0).random((2000, 1, 8, 8), np.float32)
        assert fidelity(found.substitute, victim(), images) > 0.75


def test_a_game_that_diverges_says_so_instead_of_asking_nonsense():
    for kind in (DFME, MAZE):
        with pytest.raises(TrainingError, match=r"the loss must stay finite, got (nan|inf) after \d+ queries: lower learning_rate"):
            kind(substitute, 2000, batch_size=16, learning_rate=1e30).run(victim(), 0)


def test_the_control_hears_of_the_substitute_s_loss_once_an_iteration():
    heard = []
    DFME(substitute, 300, batch_size=16, control=RunControl(progress=heard.append)).run(victim(), 0)
    losses = [event for event in heard if event.stage == "substitute"]
    assert [(event.step, event.steps) for event in losses] == [(112, 300), (224, 300), (300, 300)]
    assert all(np.isfinite(event.loss) for event in losses)
    assert losses[-1].seconds_left == 0


# ---------------------------------------------------------------------- settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"probe_step": 0.0}, "probe_step must be positive and finite, got 0"),
        ({"probe_step": float("inf")}, "probe_step must be positive and finite, got inf"),
        ({"generator_learning_rate": -1.0}, "generator_learning_rate must be positive and finite, got -1"),
        ({"probes": 0}, "probes and latent must be at least 1, got 0"),
        ({"keep": 0}, "keep must be at least 1 query"),
        ({"substitute_steps": 0}, "substitute_steps at least 1|substitute_steps must be at least 1"),
        ({"labels": "top-1"}, "labels must be soft or hard"),
    ],
)
@pytest.mark.parametrize("kind", [DFME, MAZE])
def test_settings_out_of_range_are_refused(kind, settings, message):
    with pytest.raises(ConfigurationError, match=message):
        kind(substitute, 100, **settings)


@pytest.mark.parametrize(
    ("contract", "message"),
    [
        (InputContract.vectors(64), "need square images, got queries of shape"),
        (InputContract.images(1, 4, 16), "need square images"),
        (InputContract.images(1, 6, 6), "side of at least 8 that is a multiple of 4, got 6"),
        (InputContract((1, 8, 8), bounds=(0.0, np.inf), grid="none"), r"need bounded queries, got bounds \(0.0, inf\)"),
    ],
)
def test_queries_that_a_generator_cannot_make_are_refused_before_the_first_one(contract, message):
    meter = MeteredEndpoint(victim(contract), budget=50)
    with pytest.raises(ConfigurationError, match=message):
        DFME(substitute).run(meter, 0)
    assert meter.used == 0


def test_the_generator_makes_images_of_the_side_and_channels_asked_for():
    assert DFMEGenerator(5, 3, 28)(torch.zeros(2, 5)).shape == (2, 3, 28, 28)
    with pytest.raises(ConfigurationError, match="generator images must have a side of at least 8"):
        DFMEGenerator(5, 3, 10)


def test_images_of_other_bounds_are_asked_about_in_those_bounds():
    contract = InputContract((1, 8, 8), bounds=(-1.0, 3.0), grid="none")
    found = DFME(substitute, 200, batch_size=16).run(victim(contract), 0)
    assert (found.queries.min(), found.queries.max()) == (pytest.approx(-1, abs=0.2), pytest.approx(3, abs=0.2))


@pytest.mark.parametrize("kind", [DFME, MAZE])
def test_a_network_with_batch_norm_and_a_normalisation_of_its_own_can_be_the_substitute(kind):
    class Normalised(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("centre", torch.zeros(1))
            self.layers = nn.Sequential(
                nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3), nn.BatchNorm1d(3)
            )

        def set_normalisation(self, images: torch.Tensor) -> None:
            self.centre.fill_(images.mean())

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.layers(images - self.centre)

    for budget in (1, 16, 300):
        found = kind(Normalised, budget, batch_size=16).run(victim(), 0)
        assert found.substitute.centre.item() == pytest.approx(0.5, abs=0.02)
        assert all(value.is_contiguous() and value.isfinite().all() for value in found.substitute.state_dict().values())
