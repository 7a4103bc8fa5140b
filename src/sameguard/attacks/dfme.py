"""Data-free model extraction, DFME (Truong, Maini, Walls, Papernot, CVPR 2021): no images at all, a generator that looks for disagreement.

Each iteration, one generator step (a base batch and its probes) and five substitute steps: 256 (1 * 2 + 5) = 1,792 queries by default.
At the paper's 1,000 to 10,000 queries that is an almost untrained generator; `notes["generator_steps"]` says how much. The last iteration
has smaller batches, so that any budget is spent to the last query on all of its parts. This game is the one training outside
`training.train`: two networks take turns, and every batch is asked for (algorithms.md 3.3).
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from sameguard.attacks.base import Extraction
from sameguard.attacks.data_free import Game, Rows, begin, centred_logs, check_game, hard_loss
from sameguard.attacks.transcript import Means
from sameguard.endpoint import Endpoint
from sameguard.errors import ConfigurationError
from sameguard.training import FitConfig, RunControl, seeded

DROPS, DROP = (0.1, 0.3, 0.5), 0.3  # both learning rates are multiplied by DROP at these shares of the budget


def logit_distance(probs: Tensor, logits: Tensor) -> Rows:
    """Mean over classes of |recovered logits of the victim - centred logits of the substitute|, one for each row."""
    return (centred_logs(probs) - (logits - logits.mean(dim=1, keepdim=True))).abs().mean(dim=1)


def rate_factor(done: float) -> float:
    """What both learning rates are multiplied by when that share of the budget is spent."""
    return DROP ** sum(done >= share for share in DROPS)


class DFME:
    """The thief without images.

    substitute: the victim's architecture, where the thief knows it. probe_step: of the forward differences, before tanh; on an 8-bit grid
    the published 1e-3 is lost in rounding, 1 is not. probes: directions for each generated image. batch_size: images a step.
    generator_steps, substitute_steps: of one iteration. keep: store so many of the queries only, evenly spread (100,000 colour images of 32
    pixels fill 1.2 GB); the substitute learns from all. learning_rate: of the substitute's SGD. labels: under `hard` both losses become
    cross-entropy.
    """

    def __init__(
        self,
        substitute: Callable[[], nn.Module],
        budget: int | None = None,
        *,
        probe_step: float = 1e-3,
        probes: int = 1,
        batch_size: int = 256,
        generator_steps: int = 1,
        substitute_steps: int = 5,
        latent: int = 256,
        learning_rate: float = 0.1,
        generator_learning_rate: float = 1e-4,
        keep: int | None = None,
        labels: str = "soft",
        device: str = "cpu",
        control: RunControl | None = None,
    ) -> None:
        check_game(probe_step, probes, latent, generator_learning_rate, keep)
        if generator_steps < 0 or substitute_steps < 1:
            raise ConfigurationError(
                f"generator_steps must be at least 0 and substitute_steps at least 1, got {generator_steps} and {substitute_steps}."
            )
        self.means = Means(substitute, budget, labels, FitConfig(learning_rate=learning_rate, device=device), batch_size, control)
        self.probe_step = probe_step
        self.probes = probes
        self.generator_steps = generator_steps
        self.substitute_steps = substitute_steps
        self.latent = latent
        self.generator_learning_rate = generator_learning_rate
        self.keep = keep

    @property
    def queries_per_iteration(self) -> int:
        return self.means.batch_size * self._cost

    @property
    def _cost(self) -> int:
        return self.generator_steps * (self.probes + 1) + self.substitute_steps  # queries for each row of a batch

    def run(self, endpoint: Endpoint, seed: int = 0) -> Extraction:
        """Spends the budget to the last query and returns the substitute as the game left it.

        Raises ConfigurationError, before the first query, where the endpoint's queries are no square bounded images, the endpoint allows
        less than the budget or the substitute does not fit; TrainingError where the substitute's loss is no number any more.
        """
        transcript, network = begin(self.means, endpoint, seed, self.keep)
        with seeded(seed):  # dropout draws from torch's global generator
            loss = logit_distance if self.means.labels == "soft" else hard_loss
            config = self.means.config
            game = Game(
                transcript, network, loss,
                seed=seed, batch_size=self.means.batch_size, cost=self._cost, latent=self.latent, device=config.device,
            )  # fmt: skip
            learner = torch.optim.SGD(game.substitute.parameters(), lr=config.learning_rate, momentum=0.9, weight_decay=5e-4)
            searcher = torch.optim.Adam(game.generator.parameters(), lr=self.generator_learning_rate)
            while transcript.left:
                factor = rate_factor(game.done)
                learner.param_groups[0]["lr"] = config.learning_rate * factor
                searcher.param_groups[0]["lr"] = self.generator_learning_rate * factor
                rows = game.next_rows()
                for _ in range(self.generator_steps if rows else 0):
                    game.generator_step(searcher, rows, self.probes, self.probe_step)
                for _ in range(self.substitute_steps):
                    if transcript.left:
                        game.substitute_step(learner, game.fresh_batch(rows))
                game.close_iteration()
        return game.extraction({"probe_step": self.probe_step})
