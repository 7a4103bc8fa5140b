"""split: disjoint by content, deterministic, exact in size but for duplicates."""

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from sameguard.data import Split, split
from sameguard.data.splits import content_digests
from sameguard.errors import ConfigurationError, InvalidDataError


def distinct(n: int) -> Split:
    """Row i holds the number i, so that a row tells where it came from."""
    return Split(np.arange(n, dtype=np.float32)[:, None], np.zeros(n, np.int64), 1)


def rows(part: Split) -> list[int]:
    return part.raw[:, 0].astype(int).tolist()


@given(st.integers(20, 300), st.lists(st.floats(0.1, 1.0), min_size=1, max_size=5), st.integers(0, 2**40))
def test_parts_are_disjoint_ordered_and_of_the_asked_sizes(n, weights, seed):
    fractions = [weight / sum(weights) for weight in weights]
    assume(min(fractions) * n > 1)
    parts = [rows(part) for part in split(distinct(n), fractions, seed)]
    assert sorted(row for part in parts for row in part) == list(range(n))
    assert all(part == sorted(part) for part in parts)
    assert all(abs(len(part) - fraction * n) <= 1 for part, fraction in zip(parts, fractions, strict=True))


def test_the_official_training_set_is_cut_at_exactly_ninety_percent():
    fit_part, benign = split(distinct(1000), (0.9, 0.1), seed=0)
    assert (len(fit_part), len(benign)) == (900, 100)


@given(st.lists(st.integers(0, 6), min_size=8, max_size=60), st.integers(0, 20))
def test_duplicates_never_lie_in_two_parts(values, seed):
    whole = Split(np.array(values, np.float32)[:, None], None, 0)
    try:
        first, second = split(whole, (0.5, 0.5), seed)
    except InvalidDataError:  # too few distinct values for two parts
        return
    assert not set(rows(first)) & set(rows(second))
    assert len(first) + len(second) == len(whole)


@given(st.permutations(range(40)), st.integers(0, 20))
def test_parts_do_not_depend_on_the_order_of_the_rows(order, seed):
    whole = distinct(40)
    for one, other in zip(split(whole, (0.5, 0.3), seed), split(whole.take(order), (0.5, 0.3), seed), strict=True):
        assert set(rows(one)) == set(rows(other))


def test_the_same_seed_gives_the_same_parts_and_another_seed_others():
    one, again, other = (rows(split(distinct(50), [0.5], seed)[0]) for seed in (3, 3, 4))
    assert one == again
    assert one != other


def test_a_part_is_the_same_on_every_machine():
    assert rows(split(distinct(10), [0.4], seed=0)[0]) == [0, 4, 7, 8]


def test_fractions_below_one_leave_the_rest_out():
    assert sum(map(len, split(distinct(100), (0.25, 0.25)))) == 50


def test_labels_follow_their_rows():
    whole = Split(np.arange(30, dtype=np.float32)[:, None], np.arange(30), 30)
    for part in split(whole, (0.5, 0.5)):
        np.testing.assert_array_equal(part.labels, part.raw[:, 0].astype(int))


def test_digests_see_content_not_sign_of_zero_and_not_layout():
    plain = Split(np.array([[0.0, 1.0], [-0.0, 1.0], [1.0, 0.0]], np.float32), None, 0)
    first, second, third = content_digests(plain)
    assert first == second != third
    pixels = np.arange(24, dtype=np.uint8).reshape(2, 3, 2, 2)
    strided = np.asfortranarray(pixels)
    assert content_digests(Split(pixels, None, 0)) == content_digests(Split(strided, None, 0))


@pytest.mark.parametrize("fractions", [(), (0.5, 0.6), (0.0, 0.5), (-0.1,), (float("nan"),)])
def test_impossible_fractions_are_refused(fractions):
    with pytest.raises(ConfigurationError, match="fractions must be positive and add up to at most 1, got"):
        split(distinct(10), fractions)


def test_an_empty_part_is_refused():
    with pytest.raises(InvalidDataError, match=r"each part must get at least one row, got none for 0.01 of 10 rows"):
        split(distinct(10), (0.9, 0.01))


def test_images_kept_as_floats_are_cut_like_the_same_images_in_8_bits():
    pixels = np.random.default_rng(0).integers(0, 256, (200, 1, 4, 4), dtype=np.uint8)
    floats = (pixels / np.float32(255.0)).astype(np.float32)
    for mine, theirs in zip(*(split(Split(raw, None, 0), (0.8, 0.2)) for raw in (pixels, floats)), strict=True):
        assert np.array_equal(mine.inputs, theirs.inputs)
