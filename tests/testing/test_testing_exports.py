"""sameguard.testing: every check by name; only the attack's needs torch, and says so where there is none."""

import subprocess
import sys

import pytest

import sameguard.testing

WITHOUT_TORCH = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name="torch")

sys.meta_path.insert(0, Blocked())
import numpy as np
from sameguard.calibration import Threshold
from sameguard.policies import Reject
from sameguard.server.replay import MemoryReplayStore
from sameguard.testing import check_detector, check_policy, check_replay_store

check_policy(Reject(Threshold(value=2.0, stage_a=3.0, false_positive_rate=0.05, n=99, k=5, interval=(0.01, 0.1))), np.linspace(0, 5, 30))
check_replay_store(lambda clock: MemoryReplayStore(clock=clock), now=1000.0)

class Brightness:
    def score(self, queries, victim_probs):
        from sameguard.contract import InputContract
        from sameguard.errors import InvalidQueryError
        if len(queries) != len(victim_probs):
            raise InvalidQueryError("one answer for each query")
        if len(queries):
            queries = InputContract.images(1, 2, 2).canonicalise(queries)
        return queries.astype(np.float64).mean(axis=(1, 2, 3))

rows = np.random.default_rng(0).integers(0, 256, (6, 1, 2, 2)).astype(np.float32) / np.float32(255)
check_detector(Brightness(), rows, np.full((6, 3), 1 / 3, np.float32))
try:
    from sameguard.testing import check_attack
except ImportError as error:
    print(error)
print("torch" in sys.modules)
"""


def test_every_check_is_there_by_name():
    for name in sameguard.testing.__all__:
        assert getattr(sameguard.testing, name).__name__ == name
    with pytest.raises(AttributeError, match=r"module 'sameguard.testing' has no attribute 'check_nothing'"):
        _ = sameguard.testing.check_nothing


def test_policies_replay_stores_and_detectors_are_checked_without_torch():
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "sameguard.testing.check_attack needs torch, which is not installed: pip install 'sameguard[train]'.",
        "False",
    ]
