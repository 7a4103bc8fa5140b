"""Too many connections: whoever opens most loses the newest, whatever he does with them, and the process does not run out of files."""

import asyncio
import resource
import socket
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from processes import raw_request, sockets_to, until
from rig import demo_queries, rigged
from structlog.testing import capture_logs

from sameguard.server.connection_limits import ACCEPTED_AT_ONCE, OWN_FILES, Connections, affordable_connections

DIGIT = demo_queries()[0][:1]


class Transport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.aborted = False

    def abort(self) -> None:
        self.aborted = True


def opened(connections: Connections, address: str, count: int) -> list[Transport]:
    transports = [Transport() for _ in range(count)]
    for transport in transports:
        connections.opened(transport, address)
    return transports


def aborted(transports: list[Transport]) -> list[bool]:
    return [transport.aborted for transport in transports]


def test_one_peer_has_its_share_and_the_newest_beyond_it_is_closed():
    shed = []
    connections = Connections(100, 3, shed=lambda: shed.append(1))
    assert aborted(opened(connections, "10.0.0.1", 5)) == [False, False, False, True, True]
    assert aborted(opened(connections, "10.0.0.2", 3)) == [False] * 3
    assert len(shed) == 2


def test_beyond_the_total_who_holds_most_loses_his_newest():
    connections = Connections(6, 100)
    greedy, honest = opened(connections, "10.0.0.1", 5), opened(connections, "10.0.0.2", 3)
    assert aborted(greedy) == [False, False, False, True, True]
    assert aborted(honest) == [False] * 3


def test_where_all_hold_as_much_the_newcomer_goes():
    connections = Connections(2, 100)
    first, second, third = (opened(connections, f"10.0.0.{number}", 1) for number in range(3))
    assert aborted(first + second + third) == [False, False, True]


def test_an_ipv6_network_is_one_peer_and_a_trusted_proxy_has_no_share():
    connections = Connections(100, 2, is_trusted=lambda address: address == "10.0.0.9")
    found = [transport for number in range(4) for transport in opened(connections, f"2001:db8::{number}", 1)]
    assert aborted(found) == [False, False, True, True]
    assert aborted(opened(connections, "10.0.0.9", 50)) == [False] * 50


def test_what_was_closed_makes_room():
    connections = Connections(2, 2)
    first = opened(connections, "10.0.0.1", 3)
    for transport in first:
        connections.closed(transport, "10.0.0.1")  # also the one that was not counted any more
    assert aborted(opened(connections, "10.0.0.1", 2)) == [False, False]


@given(st.lists(st.tuples(st.integers(0, 3), st.booleans()), max_size=60))
def test_limits_hold_and_nothing_is_kept_of_what_is_gone(events):
    connections, live = Connections(5, 3), []
    for peer, leaves in events:
        if leaves and live:
            transport, address = live.pop(peer % len(live))
            connections.closed(transport, address)
        else:
            address = f"10.0.0.{peer}"
            live += [(transport, address) for transport in opened(connections, address, 1)]
            live = [(transport, address) for transport, address in live if not transport.aborted]
        counts = Counter(address for _, address in live)
        assert len(live) <= 5
        assert max(counts.values(), default=0) <= 3
        assert {peer: len(held) for peer, held in connections._held.items()} == dict(counts)


def test_connections_beyond_a_peers_share_are_closed_and_counted_and_the_rest_goes_on():
    with rigged(mode="shadow", listen={"peer_connections": 8}) as rig:
        held = sockets_to(rig.url, 8)
        for client in held:
            client.sendall(raw_request(DIGIT)[:-1])
        for client in sockets_to(rig.url, 5):
            with client:
                client.settimeout(20)
                assert closed(client)
        for client in held:
            client.sendall(raw_request(DIGIT)[-1:])
            assert client.recv(20).startswith(b"HTTP/1.1 200")
            client.close()
        until(lambda: b'guard_failures_total{reason="connections"} 5.0' in rig.service.telemetry.render()[0], "they are not counted")
        [client] = sockets_to(rig.url, 1)
        with client:
            client.sendall(raw_request(DIGIT))
            assert client.recv(20).startswith(b"HTTP/1.1 200")


def closed(client: socket.socket) -> bool:
    try:
        return client.recv(1) == b""
    except ConnectionError:
        return True


OTHERS = 100 + OWN_FILES + 3 * ACCEPTED_AT_ONCE


@pytest.mark.parametrize(
    ("soft", "hard", "found", "raised"),
    [
        (10_000, 10_000, 1000, None),
        (1024, 524_288, 1000, 1000 + OTHERS),
        (1024, resource.RLIM_INFINITY, 1000, 1000 + OTHERS),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, 1000, None),
        (256, 1024, 1024 - OTHERS, 1024),
        (64, 64, 16, 64),
    ],
)
def test_there_are_no_more_connections_than_files(monkeypatch, soft, hard, found, raised):
    set_to = []
    monkeypatch.setattr(resource, "getrlimit", lambda which: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda which, limits: set_to.append(limits))
    with capture_logs() as logs:
        assert affordable_connections(1000, 100) == found
    assert set_to == ([] if raised is None else [(raised, hard)])
    assert [entry["event"] for entry in logs] == ([] if found == 1000 else ["few files"])
