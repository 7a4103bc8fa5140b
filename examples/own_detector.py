"""A detector of one's own: how far a query's grey levels are from honest ones. `python own_detector.py` tries it against the contract."""

import numpy as np

from sameguard import InputContract
from sameguard.errors import InvalidQueryError


class LevelDistance:
    """The distance of a query's sorted values from those of the nearest of some honest queries. Higher is more suspicious."""

    def __init__(self, contract: InputContract, benign: np.ndarray) -> None:
        self.contract = contract
        self.benign = self._sorted(contract.canonicalise(benign))

    def score(self, queries: np.ndarray, victim_probs: np.ndarray) -> np.ndarray:
        if len(queries) != len(victim_probs):
            raise InvalidQueryError(f"victim_probs must have one row for each of {len(queries)} queries, got {len(victim_probs)}.")
        if len(queries) == 0:
            return np.empty(0)
        canonical = self._sorted(self.contract.canonicalise(queries))  # refuses NaN, other shapes and values out of bounds
        return np.array([np.square(self.benign - row).mean(axis=1).min() for row in canonical])  # each row alone, whatever the batch

    def _sorted(self, queries: np.ndarray) -> np.ndarray:
        return np.sort(queries.reshape(len(queries), -1).astype(np.float64), axis=1)


def main(stolen: str | None = None) -> None:
    """stolen: an .npz of `sameguard attack --save-queries`, which is then told from the digits' test set."""
    from sameguard.data import load
    from sameguard.testing import check_detector

    digits = load("digits")
    detector = LevelDistance(InputContract.images(1, 8, 8), digits.train.inputs)
    honest = digits.test.inputs
    answers = np.full((len(honest), 10), 0.1, np.float32)  # this detector does not look at them
    check_detector(detector, honest[:20], answers[:20])
    print("LevelDistance keeps the contract of a detector")
    if stolen is not None:
        from sameguard.evaluation.metrics import auroc

        with np.load(stolen) as saved:
            malicious = detector.score(saved["inputs"], saved["victim_probs"])
        print(f"AUROC {auroc(detector.score(honest, answers), malicious):.3f}")


if __name__ == "__main__":
    import sys

    main(*sys.argv[1:])
