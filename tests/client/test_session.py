"""The session: what it does about each kind of answer, and how long it waits, against a real server on loopback."""

import asyncio
import gzip
import random
import socket
import threading
import time

import pytest
from stub_guard import MODEL, Sleeps, StubGuard, die_half_way, never_answer, problem, respond, served

from sameguard.client import (
    CallTooCostlyError,
    ChallengeTooCostlyError,
    ClientConfig,
    EndpointUnavailableError,
    GuardSession,
    InvalidChallengeError,
    SolveLimits,
    Spending,
    UnexpectedAnswerError,
)
from sameguard.errors import ConfigurationError
from sameguard.protocol import OpenInference, Problem, ask
from sameguard.server.proofs import Bound, read_proof
from stand_ins import noise_images, smooth_images

DIALECT = OpenInference(MODEL)
WHITE = noise_images(1)
WHITE[:, 0, 0, 0] = 1
SMOOTH = smooth_images(1)


class Posted:
    """The session's last reply, counts and waits of one post."""

    def __init__(self, url, queries=SMOOTH, headers=None, **config):
        self.sleeps = Sleeps()

        async def post():
            async with GuardSession(url, config=ClientConfig(**config), sleep=self.sleeps) as session:
                self.traffic = session.traffic
                message = DIALECT.build_infer(ask(queries, MODEL))
                return await session.post(DIALECT.infer_path, {**message.headers, **(headers or {})}, message.body)

        self.reply = asyncio.run(post())


@pytest.fixture
def guard():
    return StubGuard()


@pytest.fixture
def url(guard):
    with served(guard) as url:
        yield url


# ---------------------------------------------------------------------- proofs


@pytest.mark.parametrize(("status", "text_only"), [(402, False), (429, False), (402, True)])
def test_a_challenge_is_solved_and_the_same_request_sent_once_more_with_the_proof(guard, url, status, text_only):
    guard.status, guard.text_only = status, text_only
    posted = Posted(url, WHITE)
    assert posted.reply.status == 200
    first, second = guard.heard
    assert second.body == first.body
    assert "guard-proof" not in first.headers
    assert "guard-proof" in second.headers
    assert (posted.traffic.requests, posted.traffic.challenges, posted.traffic.retries) == (2, 1, 0)
    assert 1 <= posted.traffic.tries <= 8
    assert posted.sleeps == []


@pytest.mark.parametrize("kind", ["proof-expired", "proof-replayed", "proof-invalid", "proof-mismatch"])
def test_a_proof_that_does_not_count_is_followed_by_a_request_for_a_new_challenge(guard, url, kind):
    guard.faults.extend([None, problem(kind, 402)])
    posted = Posted(url, WHITE)
    assert posted.reply.status == 200
    assert ["guard-proof" in heard.headers for heard in guard.heard] == [False, True, False, True]
    assert posted.traffic.challenges == 2


def test_a_guard_that_never_takes_a_proof_is_paid_a_bounded_number_of_times(guard, url):
    guard.store.redeem = lambda *_: _no()
    posted = Posted(url, WHITE, most_challenges=3)
    assert posted.reply.problem.kind == "proof-replayed"
    assert posted.traffic.challenges == 3
    assert len(guard.heard) == 6


async def _no():
    return False


def test_a_client_that_does_not_pay_gets_the_challenge_as_it_is(guard, url):
    posted = Posted(url, WHITE, solve=False)
    assert posted.reply.status == 402
    assert "challenge" in posted.reply.problem.extensions
    assert posted.traffic.requests == 1


def test_absurd_and_endless_challenges_are_refused_with_the_reply_that_carried_them(guard, url):
    guard.faults.append(problem("proof-of-work-required", 402, challenge={"parameters": {}}))
    with pytest.raises(InvalidChallengeError, match="must be an object of parameters and signature") as caught:
        Posted(url, WHITE)
    assert caught.value.reply.status == 402
    guard.work = 2**29
    with pytest.raises(ChallengeTooCostlyError, match=r"must be solved within 0.02 s") as caught:
        Posted(url, WHITE, solving=SolveLimits(max_seconds=0.02))
    assert caught.value.reply.status == 402


def test_what_one_call_spends_on_all_its_challenges_is_bounded_and_the_error_says_by_what(guard, url):
    guard.work = 2**29
    with pytest.raises(
        CallTooCostlyError, match=r"solved within 0.02 s in all, got 0.0\d* s spent and 0 solved: ask for fewer rows"
    ) as caught:
        Posted(url, WHITE, solving=SolveLimits(max_seconds=60.0, call_seconds=0.02))
    assert caught.value.reply.status == 402


def test_a_guard_that_sets_challenge_after_challenge_is_paid_for_no_longer_than_a_call_may_take(guard, url):
    guard.store.redeem = lambda *_: _no()
    spending = Spending(seconds=600.0, solved=7)

    async def post():
        async with GuardSession(url) as session:
            message = DIALECT.build_infer(ask(WHITE, MODEL))
            await session.post(DIALECT.infer_path, message.headers, message.body, spending=spending)

    with pytest.raises(CallTooCostlyError, match=r"within 600 s in all, got 600 s spent and 7 solved"):
        asyncio.run(post())
    assert len(guard.heard) == 1


def test_what_was_spent_counts_for_the_whole_call(guard, url):
    spending = Spending()

    async def twice():
        async with GuardSession(url) as session:
            message = DIALECT.build_infer(ask(WHITE, MODEL))
            for _ in range(2):
                await session.post(DIALECT.infer_path, message.headers, message.body, spending=spending)
            return session.traffic

    traffic = asyncio.run(twice())
    assert (spending.seconds, spending.solved) == (pytest.approx(traffic.solve_seconds), 2)


def test_sessions_that_race_for_one_challenge_all_get_their_answers(guard, url):
    """A guard gives the same principal the same challenge for the same query: one proof counts, the others are replays."""
    issued = []
    challenge = guard.challenge

    def shared(bound, rows):
        if not issued:
            issued.append(challenge(bound, rows))
        return issued[0]

    guard.challenge = shared
    redeem = guard.store.redeem

    async def redeem_and_forget(*proof):
        issued.clear()
        return await redeem(*proof)

    guard.store.redeem = redeem_and_forget

    async def race():
        async def one():
            async with GuardSession(url) as session:
                message = DIALECT.build_infer(ask(WHITE, MODEL))
                return (await session.post(DIALECT.infer_path, message.headers, message.body)).status

        return await asyncio.gather(*(one() for _ in range(5)))

    assert asyncio.run(race()) == [200] * 5


def test_solving_leaves_the_event_loop_free_and_stops_with_the_task_that_waits(guard, url):
    guard.work = 2**29

    async def cancelled():
        async with GuardSession(url) as session:
            message = DIALECT.build_infer(ask(WHITE, MODEL))
            task = asyncio.create_task(session.post(DIALECT.infer_path, message.headers, message.body))
            while not any(thread.name.startswith("sameguard-solver") for thread in threading.enumerate()):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(cancelled())
    for thread in threading.enumerate():
        if thread.name.startswith("sameguard-solver"):
            thread.join(10)
            assert not thread.is_alive()


@pytest.mark.parametrize("status", [502, 504])
def test_a_paid_request_whose_model_server_failed_passes_with_the_guards_retry_proof(guard, url, status):
    issued = []

    async def fail_once_paid(receive, send):
        request = DIALECT.parse_infer(guard.heard[-1].body, guard.heard[-1].headers)
        issued.append(guard.proofs.refund(Bound(MODEL.name, "ab" * 32, request.digest(MODEL)), time.time()))
        await problem("upstream-error", status, retry_proof=issued[0])(receive, send)

    guard.faults.extend([None, fail_once_paid])
    posted = Posted(url, WHITE)
    assert posted.reply.status == 200
    assert guard.heard[-1].headers["guard-proof"] == issued[0]
    assert (posted.traffic.challenges, posted.traffic.retries, len(posted.sleeps)) == (1, 1, 1)


@pytest.mark.parametrize("token", [7, "", "x\r\ny: z", "é", "x" * 5000])
def test_a_retry_proof_that_is_no_header_value_is_not_sent(guard, url, token):
    guard.faults.append(problem("upstream-error", 502, retry_proof=token))
    posted = Posted(url)
    assert posted.reply.status == 200
    assert not guard.heard[-1].headers.get("guard-proof")


# ---------------------------------------------------------------------- waiting


def test_an_overloaded_server_is_asked_again_after_waits_that_double_and_never_before_it_says(guard, url):
    guard.faults.extend(
        [problem("unavailable"), problem("unavailable"), problem("quota", 429, {"retry-after": "9"}), problem("unavailable")]
    )
    posted = Posted(url, first_wait_seconds=1.0)
    assert posted.reply.status == 200
    assert 0.75 <= posted.sleeps[0] <= 1.0
    assert 1.5 <= posted.sleeps[1] <= 2.0
    assert posted.sleeps[2] == 9.0
    assert 6.0 <= posted.sleeps[3] <= 8.0
    assert posted.traffic.retries == 4


@pytest.mark.parametrize("status", [408, 425, 429, 502, 503, 504])
def test_whatever_may_pass_later_is_asked_again(guard, url, status):
    guard.faults.append(problem("unavailable", status))
    posted = Posted(url)
    assert posted.reply.status == 200
    assert (posted.traffic.retries, len(posted.sleeps)) == (1, 1)


def test_a_date_and_nonsense_in_retry_after_are_understood_or_ignored(guard, url):
    guard.faults.extend([problem("unavailable", headers={"retry-after": text}) for text in ("Wed, 21 Oct 2015 07:28:00 GMT", "²", "later")])
    posted = Posted(url, first_wait_seconds=1.0)
    assert posted.reply.status == 200
    assert max(posted.sleeps) <= 4.0


def test_a_wait_is_never_longer_than_the_longest():
    jitter = random.Random(0)
    config = ClientConfig(first_wait_seconds=1.0, longest_wait_seconds=20.0)
    for failures in range(1, 200):
        assert config.wait_seconds(failures, 1e9 if failures % 2 else None, jitter) <= 20.0


def test_after_the_last_attempt_the_caller_sees_the_answer_that_came(guard, url):
    guard.faults.extend([problem("unavailable")] * 3)
    posted = Posted(url, attempts=3)
    assert posted.reply.status == 503
    assert len(guard.heard) == 3
    assert len(posted.sleeps) == 2


@pytest.mark.parametrize("fault", [die_half_way, never_answer])
def test_a_server_that_dies_half_way_or_keeps_silent_is_asked_again(guard, url, fault):
    guard.faults.append(fault)
    posted = Posted(url, timeout_seconds=0.3)
    assert posted.reply.status == 200
    assert posted.traffic.retries == 1


@pytest.mark.parametrize("spent", [False, True])
def test_a_proof_whose_answer_was_lost_is_sent_again_and_a_new_one_paid_where_it_was_spent(guard, url, spent):
    async def dies(receive, send):
        if spent:
            payload = read_proof(guard.heard[-1].headers["guard-proof"])
            assert await guard.store.redeem(payload.challenge.parameters.nonce, payload.challenge.parameters.expires_at)
        await die_half_way(receive, send)

    guard.faults.extend([None, dies])
    posted = Posted(url, WHITE)
    assert posted.reply.status == 200
    assert guard.heard[1].headers["guard-proof"] == guard.heard[2].headers["guard-proof"]
    assert posted.traffic.challenges == 1 + spent


def test_a_server_that_is_not_there_is_given_up_on_and_the_error_says_what_a_ledger_keeps():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(EndpointUnavailableError, match=r"must answer, got ClientConnectorError.* at the last of 2 attempts.*ledger"):
            Posted(f"http://127.0.0.1:{port}", attempts=2)


def test_a_silent_server_is_named_as_one(guard, url):
    guard.faults.append(never_answer)
    with pytest.raises(EndpointUnavailableError, match=r"got no answer within 0.2 s at the last of 1 attempts"):
        Posted(url, attempts=1, timeout_seconds=0.2)


def test_requests_are_spread_over_time_as_told(url):
    sleeps, now = Sleeps(), [100.0]

    async def three():
        config = ClientConfig(requests_per_second=4.0)
        async with GuardSession(url, config=config, sleep=sleeps, clock=lambda: now[0]) as session:
            for _ in range(3):
                await session.get("/v2")
            now[0] += 60.0
            await session.get("/v2")

    asyncio.run(three())
    assert sleeps == [0.25, 0.5]  # time stands still: the third waits for two turns


# ---------------------------------------------------------------------- what is sent and taken


def test_nothing_is_sent_that_the_caller_did_not_say(guard, url):
    posted = Posted(url, headers={"X-Api-Key": "k"})
    assert posted.reply.status == 200
    sent = guard.heard[0].headers
    assert sent.keys() == {"host", "content-type", "content-length", "x-api-key"}


def test_redirects_are_not_followed_and_cookies_not_kept(guard, url):
    guard.faults.append(respond(307, {"location": f"{url}/elsewhere", "set-cookie": "a=b"}))
    posted = Posted(url)
    assert posted.reply.status == 307
    assert len(guard.heard) == 1


def test_an_answer_that_is_too_large_is_not_read_to_its_end(guard, url):
    guard.faults.append(respond(200, {}, b"x" * 5000))
    with pytest.raises(UnexpectedAnswerError, match=r"must have at most 1,000 bytes, got [0-9,]+ and more: ask for fewer rows"):
        Posted(url, response_bytes=1000)


def test_a_compressed_refusal_is_understood(guard, url):
    guard.faults.append(respond(418, {"content-encoding": "gzip"}, gzip.compress(Problem("quota", "slowly").to_message().body)))
    assert Posted(url).reply.said() == "status 418: quota, slowly"
    guard.faults.append(respond(418, {"content-encoding": "br"}, b"?" * 400))
    assert Posted(url).reply.said() == "status 418: " + "?" * 200


@pytest.mark.parametrize(
    "url",
    ["localhost:8000", "ftp://host", "http://", "http://u:p@host", "http://host?x=1", "http://host:port", "http://a b", "http://h\n/x"],
)
def test_an_address_must_be_plain(url):
    with pytest.raises(ConfigurationError, match="url must be http://host"):
        GuardSession(url)


def test_a_server_that_cannot_be_trusted_is_not_asked_twice(url):
    with pytest.raises(EndpointUnavailableError, match="must be reachable, got ClientConnectorSSLError"):
        Posted(url.replace("http:", "https:"))


def test_a_path_cannot_name_another_host(url):
    async def elsewhere():
        async with GuardSession(url) as session:
            await session.get("@evil.example/")

    with pytest.raises(ConfigurationError, match=r"path must be absolute, got '@evil.example/'"):
        asyncio.run(elsewhere())


def test_a_session_asks_only_while_it_is_open(url):
    with pytest.raises(RuntimeError, match="session must be open before it asks"):
        asyncio.run(GuardSession(url).get("/v2"))


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ({"attempts": 0}, "attempts must be at least 1, got 0"),
        ({"requests_per_second": 0.0}, "requests_per_second must be above 0 and finite"),
        ({"timeout_seconds": float("nan")}, "timeout_seconds must be above 0 and finite"),
    ],
)
def test_settings_out_of_range_are_refused(setting, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        ClientConfig(**setting)
