"""MAZE (Kariyappa, Prakash, Qureshi, CVPR 2021): as DFME, with ten probes for each image, the KL divergence, and replayed answers.

Each iteration: a base batch and ten probes of it for the generator, the base batch again and four new ones for the substitute, then ten
steps on answers from before: 128 (11 + 4) = 1,920 queries, the base batch being asked once (algorithms.md 3.4). The last iteration has
smaller batches. Left out: the variant with a few natural images (PD-MAZE).
"""

import math
from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sameguard.attacks.base import Extraction
from sameguard.attacks.data_free import Asked, Game, Rows, begin, check_game, hard_loss
from sameguard.attacks.transcript import Means
from sameguard.endpoint import Endpoint
from sameguard.errors import ConfigurationError
from sameguard.training import FitConfig, RunControl, seeded

REMEMBERED = 256  # batches that can be replayed, the latest ones


def divergence(probs: Tensor, logits: Tensor) -> Rows:
    """KL(victim || substitute) in nats, summed over classes, one for each row; 0 log 0 = 0."""
    return F.kl_div(logits.log_softmax(dim=1), probs, reduction="none").sum(dim=1)


class MAZE:
    """The thief without images who probes ten directions. The arguments are those of DFME; replay_steps: steps on remembered batches."""

    def __init__(
        self,
        substitute: Callable[[], nn.Module],
        budget: int | None = None,
        *,
        probe_step: float = 1e-3,
        probes: int = 10,
        batch_size: int = 128,
        substitute_steps: int = 5,
        replay_steps: int = 10,
        latent: int = 100,
        learning_rate: float = 0.1,
        generator_learning_rate: float = 1e-4,
        keep: int | None = None,
        labels: str = "soft",
        device: str = "cpu",
        control: RunControl | None = None,
    ) -> None:
        check_game(probe_step, probes, latent, generator_learning_rate, keep)
        if substitute_steps < 1 or replay_steps < 0:
            raise ConfigurationError(
                f"substitute_steps must be at least 1 and replay_steps at least 0, got {substitute_steps} and {replay_steps}."
            )
        self.means = Means(substitute, budget, labels, FitConfig(learning_rate=learning_rate, device=device), batch_size, control)
        self.probe_step = probe_step
        self.probes = probes
        self.substitute_steps = substitute_steps
        self.replay_steps = replay_steps
        self.latent = latent
        self.generator_learning_rate = generator_learning_rate
        self.keep = keep

    @property
    def queries_per_iteration(self) -> int:
        return self.means.batch_size * self._cost

    @property
    def _cost(self) -> int:
        return self.probes + self.substitute_steps  # queries for each row of a batch: the base batch is the first of the substitute's

    def run(self, endpoint: Endpoint, seed: int = 0) -> Extraction:
        """As `DFME.run`."""
        transcript, network = begin(self.means, endpoint, seed, self.keep)
        with seeded(seed):
            loss = divergence if self.means.labels == "soft" else hard_loss
            config = self.means.config
            game = Game(
                transcript, network, loss,
                seed=seed, batch_size=self.means.batch_size, cost=self._cost, latent=self.latent, device=config.device,
            )  # fmt: skip
            learner = torch.optim.SGD(game.substitute.parameters(), lr=config.learning_rate, momentum=0.9, weight_decay=5e-4)
            searcher = torch.optim.SGD(game.generator.parameters(), lr=self.generator_learning_rate)
            remembered: deque[Asked] = deque(maxlen=REMEMBERED)
            while transcript.left:
                factor = 0.5 * (1.0 + math.cos(math.pi * game.done))
                learner.param_groups[0]["lr"] = config.learning_rate * factor
                searcher.param_groups[0]["lr"] = self.generator_learning_rate * factor
                rows = game.next_rows()
                for number in range(self.substitute_steps):
                    if number == 0 and rows:
                        batch = game.generator_step(searcher, rows, self.probes, self.probe_step)
                    elif transcript.left:
                        batch = game.fresh_batch(rows)
                    else:
                        break
                    game.substitute_step(learner, batch)
                    remembered.append(batch)
                for _ in range(self.replay_steps):
                    place = int(torch.randint(len(remembered), (1,), generator=game.draws, device=config.device))
                    game.substitute_step(learner, remembered[place])
                game.close_iteration()
        return game.extraction({"probe_step": self.probe_step})
