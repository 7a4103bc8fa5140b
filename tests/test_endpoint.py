"""MeteredEndpoint: every query counts, nothing goes out beyond the budget, and the record holds what was answered."""

import numpy as np
import pytest

from sameguard.contract import InputContract
from sameguard.endpoint import Endpoint, MeteredEndpoint
from sameguard.errors import BudgetExceededError, ConfigurationError, InvalidQueryError
from stand_ins import EchoEndpoint, unchecked

PIXEL = InputContract.images(1, 1, 2)


def pixels(*firsts: float) -> np.ndarray:
    """One query per argument, which is its first pixel; 1 is refused by EchoEndpoint."""
    return np.array([[[[first, 0.3]]] for first in firsts], np.float32)


def test_refused_queries_count_like_answered_ones():
    metered = MeteredEndpoint(EchoEndpoint(PIXEL), budget=10)
    answers = metered.query(pixels(0.0, 1.0, 1.0))
    assert answers.answered.tolist() == [True, False, False]
    assert (metered.used, metered.remaining) == (3, 7)


def test_a_batch_beyond_the_budget_is_refused_before_anything_is_sent():
    inner = EchoEndpoint(PIXEL)
    metered = MeteredEndpoint(inner, budget=4)
    metered.query(pixels(0.0, 0.1, 0.2))
    with pytest.raises(BudgetExceededError, match=r"query batch of 2 exceeds the remaining budget of 1 \(used 3 of 4\)"):
        metered.query(pixels(0.3, 0.4))
    assert len(inner.received) == 1
    assert (metered.used, metered.remaining) == (3, 1)
    metered.query(pixels(0.3))  # what fits still goes through
    assert metered.remaining == 0


def test_without_a_budget_queries_are_only_counted():
    metered = MeteredEndpoint(EchoEndpoint(PIXEL))
    for _ in range(3):
        metered.query(pixels(0.0, 0.5))
    assert (metered.used, metered.remaining, metered.budget) == (6, None, None)


def test_queries_count_even_where_the_victim_fails():
    class Failing(EchoEndpoint):
        def query(self, queries):
            raise RuntimeError("down")

    metered = MeteredEndpoint(Failing(PIXEL), budget=5)
    with pytest.raises(RuntimeError, match="down"):
        metered.query(pixels(0.0, 0.0))
    assert metered.used == 2


def test_a_query_that_breaks_the_contract_costs_nothing():
    inner = EchoEndpoint(PIXEL)
    metered = MeteredEndpoint(inner, budget=5)
    with pytest.raises(InvalidQueryError, match="must be finite"):
        metered.query(pixels(np.nan))
    assert metered.used == 0
    assert inner.received == []


def test_the_record_holds_queries_on_the_grid_and_the_answers_in_order():
    inner = EchoEndpoint(PIXEL)
    metered = MeteredEndpoint(inner, record=True)
    metered.query(pixels(0.5001))
    metered.query(pixels(1.0, 0.2))
    record = metered.recorded()
    assert np.array_equal(record.queries, np.concatenate(inner.received))
    assert np.rint(record.queries[:, 0, 0, 0] * 255).tolist() == [128, 255, 51]
    assert np.array_equal(PIXEL.canonicalise(record.queries), record.queries)
    assert record.answered.tolist() == [True, False, True]
    assert np.array_equal(np.isnan(record.probs[:, 0]), ~record.answered)


def test_meters_nest_and_are_endpoints():
    inner = MeteredEndpoint(EchoEndpoint(PIXEL, classes=5), budget=3)
    outer = MeteredEndpoint(inner, budget=100)
    assert isinstance(outer, Endpoint)
    assert (outer.contract, outer.classes) == (PIXEL, 5)
    outer.query(pixels(0.0, 0.0))
    with pytest.raises(BudgetExceededError, match="remaining budget of 1"):
        outer.query(pixels(0.0, 0.0))
    assert (inner.used, outer.used) == (2, 4)


def test_the_record_has_to_be_asked_for_and_filled():
    with pytest.raises(ConfigurationError, match=r"recorded\(\) needs MeteredEndpoint\(..., record=True\), got record=False"):
        MeteredEndpoint(EchoEndpoint(PIXEL)).recorded()
    with pytest.raises(InvalidQueryError, match=r"recorded\(\) needs at least one query, got 0"):
        MeteredEndpoint(EchoEndpoint(PIXEL), record=True).recorded()


@pytest.mark.parametrize("budget", [0, -3, 2.5, float("nan"), float("inf"), "9"])
def test_a_budget_that_is_no_number_of_queries_is_refused(budget):
    with pytest.raises(ConfigurationError, match=rf"budget must be at least 1 query, a whole number, got {budget}: pass None for no limit"):
        unchecked(MeteredEndpoint, EchoEndpoint(PIXEL), budget=budget)


def test_a_budget_may_be_a_numpy_integer():
    metered = unchecked(MeteredEndpoint, EchoEndpoint(PIXEL), budget=np.int64(2))
    metered.query(pixels(0.0, 0.1))
    assert metered.remaining == 0
