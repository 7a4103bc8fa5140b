"""Roles of data: disjoint by content, the same on every machine, and foreign data named after where they came from."""

import numpy as np
import pytest

from sameguard.calibration import short_digests
from sameguard.errors import DataNotFoundError, InvalidDataError
from sameguard.evaluation.roles import check_disjoint, digest_of, foreign_data, keys_of, roles_of
from sameguard.evaluation.scenarios import Source, settings_of

TINY = settings_of("tiny")["digits"]


@pytest.fixture(scope="module")
def roles(tmp_path_factory):
    return roles_of(TINY, tmp_path_factory.mktemp("no-data"))


def test_roles_share_no_query(roles):
    keys = {name: keys_of(getattr(roles, name), roles.contract) for name in ("train", "natural", "test")}
    keys["benign"] = short_digests(roles.contract.digests(roles.benign))
    for first in keys:
        for second in keys:
            assert first == second or not np.intersect1d(keys[first], keys[second]).size
    assert len(roles.natural) >= TINY.seeds
    assert roles.left_out == 0 or len(roles.test) < 360


def test_roles_are_the_same_each_time_and_their_digests_follow_content(roles, tmp_path):
    again = roles_of(TINY, tmp_path)
    assert again.digests == roles.digests
    assert len(set(roles.digests.values())) == 4
    assert digest_of(roles.test) != digest_of(roles.test.take(np.arange(10)))


def test_an_overlap_is_an_error_that_names_the_roles():
    with pytest.raises(InvalidDataError, match="roles train and test must share no query, got 1 that are in both"):
        check_disjoint({"train": np.array([1, 2], np.uint64), "test": np.array([2, 3], np.uint64)})


def test_proxy_and_outliers_are_disjoint_halves(roles, tmp_path):
    (proxy, name), (outliers, other) = foreign_data(TINY.proxies, tmp_path), foreign_data(TINY.outliers, tmp_path)
    assert (str(name), str(other)) == ("glyphs train, half 1 of 2", "glyphs train, half 2 of 2")
    assert not np.intersect1d(keys_of(proxy, roles.contract), keys_of(outliers, roles.contract)).size


def test_the_first_source_that_is_there_is_taken_and_none_is_an_error_with_a_remedy(tmp_path):
    found, source = foreign_data((Source("emnist-digits"), Source("glyphs")), tmp_path)
    assert source.name == "glyphs"
    assert len(found)
    with pytest.raises(DataNotFoundError, match="sameguard data fetch emnist-digits"):
        foreign_data((Source("emnist-digits"), Source("kmnist")), tmp_path)
