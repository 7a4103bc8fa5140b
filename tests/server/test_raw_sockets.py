"""Clients that no HTTP library writes: slow on purpose, or gone before they are answered. What else they may send is `test_smuggling`'s."""

import time

import pytest
from processes import sockets_to, until
from raw_client import answers_in, exchanged, request_text
from rig import INFER, demo_queries, infer_message, rigged

HEADERS, BODY = infer_message(demo_queries()[0][:1])
REQUEST = request_text("POST", INFER, list(HEADERS.items()), BODY)


@pytest.fixture(scope="module")
def rig():
    with rigged(mode="shadow", cache={"seconds": 0}, listen={"header_seconds": 1.5, "body_seconds": 1.5}) as running:
        yield running


@pytest.mark.parametrize("content", [b"", b"POST", REQUEST[:60], REQUEST[: -len(BODY) - 2]])
def test_headers_that_do_not_come_to_an_end_close_the_connection(rig, content):
    began = time.monotonic()
    assert exchanged(rig.url, content) == b""
    assert time.monotonic() - began < 15


def test_a_body_that_does_not_come_to_an_end_is_answered_408_in_time(rig):
    assert [answer.status for answer in answers_in(exchanged(rig.url, REQUEST[:-5]))] == [408]


def test_a_hundred_clients_that_leave_at_once_leave_nothing_behind(rig):
    for _ in range(100):
        with sockets_to(rig.url, 1)[0] as client:
            client.sendall(REQUEST)
    until(lambda: not rig.service._users, "requests are still under way")
    (answer,) = answers_in(exchanged(rig.url, REQUEST.replace(b"Host:", b"Connection: close\r\nHost:", 1)))
    assert answer.status == 200
