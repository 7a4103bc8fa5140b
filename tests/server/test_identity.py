"""Principals, roll-out and quotas."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sameguard.errors import ConfigurationError
from sameguard.server.identity import Identity, Principal, Quotas
from sameguard.server.settings import IdentitySettings, QuotaSettings


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_key_names_the_principal_and_does_not_stand_in_its_name():
    identity = Identity(IdentitySettings(header="X-Api-Key"))
    one, two = (identity.principal({"x-api-key": "secret-key"}, peer) for peer in ("10.0.0.1", "10.0.0.2"))
    assert one.name == two.name
    assert "secret" not in one.name
    assert identity.principal({}, "10.0.0.1").name != identity.principal({}, "10.0.0.2").name


def test_forwarded_addresses_count_from_listed_proxies_alone_and_from_the_right():
    identity = Identity(IdentitySettings(), ["10.0.0.0/8", "::1"])
    direct = identity.principal({}, "203.0.113.5").name
    assert identity.principal({"x-forwarded-for": "1.1.1.1, 203.0.113.5, 10.2.3.4"}, "10.0.0.1").name == direct
    assert identity.principal({"x-forwarded-for": "203.0.113.5"}, "198.51.100.7").name != direct
    assert identity.principal({"x-forwarded-for": "203.0.113.5"}, "10.0.0.1").trusted_peer
    assert not identity.principal({}, "not an address").trusted_peer


def test_one_address_is_one_principal_however_it_is_written():
    identity = Identity(IdentitySettings(), ["10.0.0.0/8"])

    def name(peer: str, forwarded: str = "") -> str:
        return identity.principal({"x-forwarded-for": forwarded} if forwarded else {}, peer).name

    assert name("::ffff:203.0.113.5") == name("203.0.113.5")
    assert name("2001:db8::1") == name("2001:db8::ffff:1")
    assert name("2001:db8::1") != name("2001:db8:0:1::1")
    assert name("10.0.0.1", "203.0.113.5:1000") == name("10.0.0.1", "203.0.113.5:2000") == name("203.0.113.5")
    assert name("10.0.0.1", "[2001:db8::1]:443") == name("2001:db8::1")
    assert name("::ffff:10.0.0.1", "203.0.113.5") == name("203.0.113.5")


def test_a_proxy_that_is_no_address_is_refused():
    with pytest.raises(ConfigurationError, match="must be addresses or networks"):
        Identity(IdentitySettings(), ["example.org"])


@given(st.text("0123456789abcdef", min_size=32, max_size=32), st.floats(0, 1), st.floats(0, 1))
def test_who_is_in_a_small_roll_out_is_in_every_larger_one(name, one, two):
    principal = Principal(name)
    small, large = sorted((one, two))
    assert principal.within(large) or not principal.within(small)
    assert principal.within(1.0)
    assert not principal.within(0.0)


def test_a_bucket_refills_with_time_and_says_how_long_it_takes():
    clock = Clock()
    quotas = Quotas(QuotaSettings(rows_per_minute=60, burst_rows=5), clock=clock)
    assert quotas.take("a", 5) is None
    assert quotas.take("a", 2) == pytest.approx(2.0)
    assert quotas.take("b", 5) is None
    clock.now = 2.0
    assert quotas.take("a", 2) is None


def test_a_batch_larger_than_the_bucket_waits_for_a_full_one_and_leaves_a_debt():
    clock = Clock()
    quotas = Quotas(QuotaSettings(rows_per_minute=60, burst_rows=5), clock=clock)
    assert quotas.take("a", 20) is None
    assert quotas.take("a", 1) == pytest.approx(16.0)


def test_the_common_bucket_limits_all_principals_together_and_a_refusal_spends_nothing():
    quotas = Quotas(QuotaSettings(rows_per_minute=600, total_rows_per_minute=6, total_burst_rows=4), clock=Clock())
    assert quotas.take("a", 3) is None
    assert quotas.take("b", 3) == pytest.approx(20.0)
    assert quotas.take("b", 1) is None


def test_without_limits_everything_passes():
    assert Quotas(QuotaSettings()).take("a", 10**9) is None
