"""The laboratory's attacks against a URL: the same transcript as in process, the attack's contract kept, nothing lost when a run dies."""

import numpy as np
import pytest
from stub_guard import MODEL, Sleeps, StubGuard, die_half_way, served
from torch import nn

from sameguard.attacks import KnockoffNets, NoiseQueries
from sameguard.client import ClientConfig, EndpointUnavailableError, RemoteEndpoint
from sameguard.endpoint import Answers, MeteredEndpoint
from sameguard.ledger import Ledger
from sameguard.networks import MLP
from sameguard.testing import check_attack
from sameguard.training import FitConfig
from stand_ins import CLASSES, linear_victim, noise_images, smooth_images

SHORT = FitConfig(epochs=1, batch_size=32, learning_rate=1e-3, precision="fp32")


class WhiteRefused:
    """In process what the stub guard does to single rows: those that begin with a white pixel are refused."""

    def __init__(self):
        self.victim = linear_victim()
        self.contract, self.classes = self.victim.contract, self.victim.classes

    def query(self, queries):
        probs, _ = self.victim.query(queries)
        answered = queries.reshape(len(queries), -1)[:, 0] != 1
        return Answers(np.where(answered[:, None], probs, np.float32(np.nan)), answered)


def substitute():
    return nn.Sequential(nn.Flatten(), MLP(16, CLASSES, width=8))


def noise():
    return NoiseQueries(substitute, 40, kind="bernoulli", config=SHORT)


def knockoff():
    pictures = np.concatenate([smooth_images(20), noise_images(20)])
    return KnockoffNets(pictures, substitute, 40, config=SHORT)


@pytest.fixture
def guard():
    return StubGuard()


@pytest.fixture
def url(guard):
    with served(guard) as url:
        yield url


@pytest.mark.parametrize("thief", [noise, knockoff])
@pytest.mark.parametrize(("suspicion", "solve"), [("reject", True), ("challenge", True), ("challenge", False)])
def test_an_attack_over_http_has_the_transcript_of_the_one_in_process(guard, url, thief, suspicion, solve):
    guard.suspicion = suspicion
    paid = suspicion == "challenge" and solve
    with RemoteEndpoint(url, MODEL, config=ClientConfig(solve=solve), batch_rows=None if paid else 1) as endpoint:
        remote = thief().run(MeteredEndpoint(endpoint, budget=40), 3)
    local = thief().run(MeteredEndpoint(linear_victim() if paid else WhiteRefused(), budget=40), 3)
    np.testing.assert_array_equal(remote.queries, local.queries)
    np.testing.assert_array_equal(remote.answered, local.answered)
    np.testing.assert_allclose(remote.probs, local.probs, atol=1e-7)
    assert 0 < remote.answered.sum() <= 40
    assert remote.answered.all() == paid


def test_an_endpoint_behind_a_url_is_one_that_every_attack_can_be_put_to(guard, url):
    guard.suspicion = "allow"
    with RemoteEndpoint(url, MODEL) as endpoint:
        check_attack(noise, lambda: endpoint, budget=40)


def test_an_attack_whose_guard_died_is_started_again_and_pays_only_for_what_is_new(guard, url, tmp_path):
    def run(**config):
        with RemoteEndpoint(url, MODEL, config=ClientConfig(**config), sleep=Sleeps()) as endpoint:
            thief = KnockoffNets(noise_images(40, seed=4), substitute, 40, config=SHORT, batch_size=8)
            return thief.run(MeteredEndpoint(Ledger(endpoint, tmp_path / "run.ledger"), budget=40), 0), endpoint.traffic

    guard.faults.extend([None] * 4 + [die_half_way])
    with pytest.raises(EndpointUnavailableError, match="the same run goes on from there"):
        run(attempts=1)
    before = [heard.rows for heard in guard.heard]
    found, traffic = run()
    assert found.answered.all()
    assert traffic.challenges <= 3
    assert sum(before[:4:2]) + sum(heard.rows for heard in guard.heard[len(before) :: 2]) == 40
