"""check_replay_store names a rule whatever the store itself raises; that its server is down is no broken rule. Rules: tests/server/test_replay.py."""

import pytest

from sameguard.server.replay import MemoryReplayStore, StoreUnavailableError
from sameguard.testing import check_replay_store


class Brittle(MemoryReplayStore):
    async def redeem(self, nonce, expires_at):
        int(nonce, 16)  # raises ValueError for what is no nonce
        return await super().redeem(nonce, expires_at)


class Down(MemoryReplayStore):
    async def check(self):
        raise StoreUnavailableError("the store does not answer")


class Unclosable(MemoryReplayStore):
    async def close(self):
        raise OSError("already closed")


@pytest.mark.parametrize(
    ("store", "rule"),
    [
        (Brittle, "redeem must answer True or False to any text, got ValueError: invalid literal"),
        (Unclosable, "close must return, got OSError: already closed"),
    ],
)
def test_what_a_store_itself_raises_is_told_as_the_rule_that_it_breaks(store, rule):
    with pytest.raises(AssertionError, match=rule):
        check_replay_store(lambda clock: store(clock=clock), now=1000.0)


def test_a_factory_that_fails_is_told_so():
    with pytest.raises(AssertionError, match="make_store must give a store, got TypeError"):
        check_replay_store(lambda clock: MemoryReplayStore(size=3), now=1000.0)


def test_a_store_whose_server_is_down_says_that_instead():
    with pytest.raises(StoreUnavailableError, match="does not answer"):
        check_replay_store(lambda clock: Down(clock=clock), now=1000.0)
