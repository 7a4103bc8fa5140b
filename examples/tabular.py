"""Tabular rows instead of images: the breast-cancer table, a gradient-boosted victim, a thief who sends uniform rows."""

import sys

import numpy as np
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import HistGradientBoostingClassifier

from sameguard import SAME, FitConfig, InputContract, calibrate, from_predictor


def main(directory: str = "table-guard") -> None:
    rows, labels = load_breast_cancer(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(rows))
    rows, labels = rows[order].astype(np.float32), labels[order]
    train, benign, test = rows[:250], rows[250:470], rows[470:]

    contract = InputContract.vectors(rows.shape[1])
    victim = from_predictor(HistGradientBoostingClassifier(random_state=0).fit(train, labels[:250]), contract)
    same = SAME(contract, classes=2).fit(train, victim, FitConfig(epochs=60, batch_size=64), benign=benign)
    scorer = same.export(directory, overwrite=True)
    threshold = calibrate(scorer, benign, victim, false_positive_rate=0.1)
    scorer.save(threshold)
    print(threshold)

    low, high = train.min(axis=0), train.max(axis=0)
    uniform = np.random.default_rng(1).uniform(low, high, (200, rows.shape[1])).astype(np.float32)
    for name, queries in (("test rows", test), ("uniform rows", uniform)):
        flags = threshold.flags(scorer.score(queries, victim.query(queries).probs))
        print(f"flagged: {flags.mean():.1%} of {len(queries)} {name}")


if __name__ == "__main__":
    main(*sys.argv[1:])
