"""ActiveThief (Pal et al., AAAI 2020): active learning over a public pool, with the victim as the annotator.

A part of the budget is a validation set, a part a random start, the rest is asked in equal rounds, chosen by the substitute as it stands;
the substitute is trained from scratch each round (algorithms.md 3.5). Instead of stopping early, each training keeps the epoch with the
highest F1 on the validation answers, of a few that are tried.
"""

from collections.abc import Callable

import numpy as np
from sklearn.metrics import f1_score
from torch import nn

from sameguard.attacks.base import (
    ASK_BATCH,
    SUBSTITUTE_FIT,
    Extraction,
    as_queries,
    check_proxy,
    check_rows,
    fit_substitute,
    inputs_of,
)
from sameguard.attacks.selection import deepfool_distances, entropies, farthest_first
from sameguard.attacks.transcript import Means
from sameguard.data import Split
from sameguard.endpoint import Endpoint, Record
from sameguard.errors import ConfigurationError
from sameguard.networks import predict_logits
from sameguard.shapes import Probs
from sameguard.training import FitConfig, RunControl

SELECTIONS = ("entropy", "k-center", "dfal", "dfal+k-center")
EPOCHS_TRIED = 6


class ActiveThief:
    """The thief who asks about the images of his pool that tell him most.

    selection: entropy of the substitute's answer, k-center in the space of answers, dfal (smallest DeepFool perturbation), or
    dfal+k-center (the first chooses as many as the budget, the second among them). validation_share, start_share: of the budget.
    rounds: equal parts of the rest. candidates: dfal looks at so many random images of the pool each round. The rest as in KnockoffNets;
    where config names no snapshot_epochs, six evenly spread epochs are tried on the validation set.
    """

    def __init__(
        self,
        proxy: Split | np.ndarray,
        substitute: Callable[[], nn.Module],
        budget: int | None = None,
        *,
        selection: str = "entropy",
        validation_share: float = 0.2,
        start_share: float = 0.1,
        rounds: int = 10,
        candidates: int = 10_000,
        labels: str = "soft",
        config: FitConfig = SUBSTITUTE_FIT,
        batch_size: int = ASK_BATCH,
        control: RunControl | None = None,
    ) -> None:
        if selection not in SELECTIONS:
            raise ConfigurationError(f"selection must be one of {', '.join(SELECTIONS)}, got {selection!r}.")
        if not (0 <= validation_share < 1 and 0 < start_share <= 1 and validation_share + start_share <= 1):
            raise ConfigurationError(
                f"validation_share must be in [0, 1), start_share in (0, 1] and their sum at most 1, got {validation_share} and {start_share}."
            )
        if rounds < 1 or candidates < 1:
            raise ConfigurationError(f"rounds and candidates must be at least 1, got {rounds} and {candidates}.")
        self.proxy = inputs_of(proxy)
        self.means = Means(substitute, budget, labels, config, batch_size, control)
        if budget is not None:
            check_rows(self.proxy, budget)
        self.selection = selection
        self.validation_share = validation_share
        self.start_share = start_share
        self.rounds = rounds
        self.candidates = candidates

    def run(self, endpoint: Endpoint, seed: int = 0) -> Extraction:
        """Spends the budget, the validation set's part first, and trains a substitute. Same seed and same answers: same queries.

        Raises InvalidDataError where the proxy has another shape or range than the endpoint's queries or fewer rows than the budget,
        ConfigurationError where the endpoint allows less or the substitute does not fit; in each case before the first query.
        """
        check_proxy(self.proxy, endpoint, rows=1)
        transcript, network = self.means.begin(endpoint, seed)
        check_rows(self.proxy, transcript.budget)
        rng = np.random.default_rng(seed)
        validating, start, rounds = self._parts(transcript.budget)
        order = rng.permutation(len(self.proxy))
        validation = transcript.ask(as_queries(self.proxy[order[:validating]])) if validating else None
        transcript.ask(as_queries(self.proxy[order[validating : validating + start]]))
        pool = np.sort(order[validating + start :])
        for number, count in enumerate(rounds, start=1):
            known = _after(transcript.so_far(), validating)
            network = self._trained(endpoint, known, validation, seed, f"substitute-round-{number}")
            chosen = self._chosen(network, pool, count, known, transcript.budget, rng)
            transcript.ask(as_queries(self.proxy[pool[chosen]]))
            pool = np.delete(pool, chosen)
        network = self._trained(endpoint, _after(transcript.so_far(), validating), validation, seed, "substitute")
        notes = {"selection": self.selection, "validation": validating, "start": start, "rounds": len(rounds)}
        return transcript.extraction(network, notes=notes)

    def _parts(self, budget: int) -> tuple[int, int, list[int]]:
        """Queries of the validation set, of the start, and of each round; together the budget."""
        validating = min(round(self.validation_share * budget), budget - 1)
        start = min(max(1, round(self.start_share * budget)), budget - validating)
        share, more = divmod(budget - validating - start, self.rounds)
        rounds = [share + (number < more) for number in range(self.rounds)]
        return validating, start, [count for count in rounds if count]

    def _trained(self, endpoint: Endpoint, known: Record, validation: Record | None, seed: int, stage: str) -> nn.Module:
        """A fresh substitute trained on `known`, at the epoch that does best on the validation answers."""
        network, config = self.means.fresh(endpoint, seed), self.means.config
        if validation is not None and not config.snapshot_epochs:
            tried = np.linspace(0, config.epochs, EPOCHS_TRIED + 1)[1:]
            config = config.with_(snapshot_epochs=tuple(sorted({max(1, round(epoch)) for epoch in tried})))
        report = fit_substitute(network, *known, config, seed, self.means.control, stage)
        if report is None or validation is None or not validation.answered.any():
            return network
        scores = {}
        for epoch, weights in report.snapshots.items():
            network.load_state_dict(weights)
            scores[epoch] = _macro_f1(network, validation)
        best = max(scores, key=lambda epoch: (scores[epoch], epoch))  # of equals the longest trained
        network.load_state_dict(report.snapshots[best])
        return network.eval()

    def _chosen(self, network: nn.Module, pool: np.ndarray, count: int, known: Record, budget: int, rng: np.random.Generator) -> np.ndarray:
        """Positions in the pool, `count` of them."""
        if self.selection == "entropy":
            return np.argsort(-entropies(_softmax(network, self.proxy[pool])), kind="stable")[:count]
        if self.selection == "k-center":
            return farthest_first(_softmax(network, self.proxy[pool]), _centres(network, known), count)
        looked_at = np.sort(rng.choice(len(pool), size=max(count, min(self.candidates, len(pool))), replace=False))
        images = as_queries(self.proxy[pool[looked_at]]).astype(np.float32, copy=False)
        nearest = looked_at[np.argsort(deepfool_distances(network, images), kind="stable")]
        if self.selection == "dfal":
            return nearest[:count]
        nearest = nearest[:budget]
        return nearest[farthest_first(_softmax(network, self.proxy[pool[nearest]]), _centres(network, known), count)]


def _after(known: Record, rows: int) -> Record:
    return Record(*(column[rows:] for column in known))


def _softmax(network: nn.Module, raw: np.ndarray) -> Probs:
    logits = predict_logits(network, raw)
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def _centres(network: nn.Module, known: Record) -> Probs:
    """The victim's answers; where there is none, the substitute's to what was asked."""
    return known.probs[known.answered] if known.answered.any() else _softmax(network, known.queries)


def _macro_f1(network: nn.Module, validation: Record) -> float:
    """Macro F1 of the substitute's classes against those that the victim names."""
    answered = validation.answered
    named = validation.probs[answered].argmax(axis=1)
    return float(f1_score(named, predict_logits(network, validation.queries[answered]).argmax(axis=1), average="macro", zero_division=0))
