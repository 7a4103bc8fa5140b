"""One thief with many accounts: who asks what, and the arithmetic of windows against its table and against drawn scores."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sameguard.errors import ConfigurationError
from sameguard.evaluation.accounts import SYBILS, accounts_of, gaussian_fpr95, separation, window_means, windowed_auroc
from sameguard.evaluation.metrics import auroc, fpr_at_tpr


@given(st.integers(0, 900), st.sampled_from(SYBILS))
def test_round_robin_deals_every_query_once_in_order_and_evenly(queries, accounts):
    dealt = accounts_of(queries, accounts)
    assert len(dealt) == accounts
    assert sorted(np.concatenate(dealt).tolist()) == list(range(queries))
    assert all((np.diff(rows) == accounts).all() for rows in dealt)
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1


def test_a_window_holds_consecutive_queries_of_one_account_and_an_unfinished_one_is_left_out():
    scores = np.arange(11.0)
    assert window_means(scores, 4).tolist() == [1.5, 5.5]
    assert window_means(scores, 2, accounts=3).tolist() == [1.5, 7.5, 2.5, 8.5, 3.5]  # 0 3 | 6 9 - 1 4 | 7 10 - 2 5 | 8
    assert window_means(scores, 1, accounts=400).tolist() == scores.tolist()
    assert window_means(scores, 2, accounts=400).shape == (0,)  # every account keeps below the window


@pytest.mark.parametrize(
    ("single", "window", "share", "wanted"),
    [(0.84, 5, 1.0, 0.987), (0.84, 16, 1.0, 0.99997), (0.8066, 10, 1.0, 0.997), (0.84, 100, 0.1, 0.84), (0.84, 500, 0.1, 0.987)],
)
def test_windows_gain_what_the_table_says(single, window, share, wanted):
    assert windowed_auroc(single, window, share) == pytest.approx(wanted, abs=5e-4 if wanted < 0.999 else 1e-5)


def test_the_arithmetic_agrees_with_drawn_gaussian_scores():
    assert separation(0.84) == pytest.approx(1.41, abs=0.005)
    rng = np.random.default_rng(0)
    benign, malicious = rng.normal(size=60_000), rng.normal(size=60_000) + separation(0.84)
    assert auroc(benign, malicious) == pytest.approx(0.84, abs=0.005)
    assert fpr_at_tpr(benign, malicious, 0.95) == pytest.approx(gaussian_fpr95(0.84), abs=0.01)
    measured = auroc(window_means(benign, 5, accounts=5), window_means(malicious, 5, accounts=5))
    assert measured == pytest.approx(windowed_auroc(0.84, 5), abs=0.005)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: accounts_of(10, 0), "accounts must be at least 1 and queries at least 0, got 0 and 10"),
        (lambda: window_means(np.zeros(3), 0), "window must be at least 1 query, got 0"),
        (lambda: windowed_auroc(0.8, 0), r"window must be at least 1 query and malicious_share in \[0, 1\], got 0 and 1.0"),
        (lambda: windowed_auroc(0.8, 2, 1.5), "got 2 and 1.5"),
        (lambda: separation(1.0), r"auroc must be in \(0, 1\), got 1.0"),
    ],
)
def test_what_is_no_window_and_no_account_is_refused(call, message):
    with pytest.raises(ConfigurationError, match=message):
        call()
