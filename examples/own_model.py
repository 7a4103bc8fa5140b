"""A scikit-learn classifier guarded in thirty lines: fit SAME, calibrate, refuse. Runs in about half a minute on two cores."""

import sys

import numpy as np
from sklearn.ensemble import RandomForestClassifier

from sameguard import SAME, FitConfig, Guard, InputContract, MeteredEndpoint, Reject, calibrate, from_predictor
from sameguard.data import load, split


def main(directory: str = "digits-guard") -> None:
    digits = load("digits")
    train, benign = split(digits.train, (0.6, 0.4))  # the victim never sees `benign`
    forest = RandomForestClassifier(200, random_state=0).fit(train.inputs.reshape(len(train), -1), train.labels)

    contract = InputContract.images(1, 8, 8, layout="flat")  # what clients send: 64 numbers in [0, 1]
    victim = from_predictor(forest, contract)
    same = SAME(contract, classes=10).fit(train, victim, FitConfig(epochs=40, batch_size=64), benign=benign.inputs)

    scorer = same.export(directory, overwrite=True)
    threshold = calibrate(scorer, benign.inputs, victim, false_positive_rate=0.05)
    scorer.save(threshold)
    print(f"auxiliary agreement {same.report['agreement']:.1%}\n{threshold}")

    endpoint = MeteredEndpoint(Guard(victim, scorer, Reject(threshold)), budget=1_000)
    honest = endpoint.query(digits.test.inputs)
    noise = endpoint.query(np.random.default_rng(0).random((200, 1, 8, 8), dtype=np.float32))
    print(f"answered: {honest.answered.mean():.1%} of test digits, {noise.answered.mean():.1%} of noise; {endpoint.remaining} queries left")


if __name__ == "__main__":
    main(*sys.argv[1:])
