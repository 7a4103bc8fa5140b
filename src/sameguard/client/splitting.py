"""Asks with a body that nobody here has a model contract for, and in halves where the server takes it in smaller batches only.

What RemoteEndpoint does with arrays, for bytes. A batch is cut where it is refused with 413 or its price takes too long; the answers to its
parts become one. One request has one answer, so the first part that is refused for good refuses the whole.
"""

import asyncio
import logging

from sameguard.client.batch import OF_THE_BODY, Batch
from sameguard.client.errors import CallTooCostlyError, ChallengeTooCostlyError, InvalidChallengeError
from sameguard.client.session import GuardSession, Reply
from sameguard.client.solving import Spending

LOG = logging.getLogger("sameguard.client")


async def ask_splitting(session: GuardSession, method: str, path: str, headers: list[tuple[str, str]], body: bytes) -> Reply:
    """The server's answer, or the one joined from its answers to parts; where the parts come to nothing, what it said to the whole.

    What the client does not pay for is a reply here: the challenge, or 413 if only a part's challenge could not be paid for. Bodies of more
    than the config's response_bytes are not cut.

    Raises EndpointUnavailableError, UnexpectedAnswerError.
    """
    spending = Spending()
    try:
        reply = await session.request(method, path, headers, body, spending=spending)
        if reply.status != 413:
            return reply
    except (InvalidChallengeError, ChallengeTooCostlyError, CallTooCostlyError) as error:
        LOG.warning("%s", error)
        if error.reply is None:
            raise
        reply = error.reply
        if not isinstance(error, ChallengeTooCostlyError):
            return reply
    batch = await asyncio.to_thread(Batch.read, path, headers, body, session.config.response_bytes)
    if batch is None:
        return reply
    try:
        return await _in_halves(session, method, batch, spending) or reply
    except (InvalidChallengeError, CallTooCostlyError) as error:
        LOG.warning("%s", error)
        return reply


async def _in_halves(session: GuardSession, method: str, batch: Batch, spending: Spending) -> Reply | None:
    """None where a part is not to be had."""
    answers: list[Reply] = []
    for half in batch.halves():
        answer = await _asked(session, method, half, spending)
        if answer is None or answer.status != 200:
            return answer
        answers.append(answer)
    parts = [(answer.headers(), answer.body) for answer in answers]
    joined = await asyncio.to_thread(batch.joined, parts, session.config.response_bytes)
    if joined is None:
        LOG.warning("answers to the halves of a batch of %d rows cannot be joined: send fewer rows at once.", batch.rows)
        return None
    own, body = joined
    kept = [(name, value) for name, value in answers[0].headers() if name.lower() not in OF_THE_BODY]
    return Reply(200, tuple((name.encode("latin-1"), value.encode("latin-1")) for name, value in [*kept, *own]), body)


async def _asked(session: GuardSession, method: str, batch: Batch, spending: Spending) -> Reply | None:
    headers, body = await asyncio.to_thread(batch.message)
    try:
        reply = await session.request(method, batch.path, headers, body, spending=spending)
        if reply.status != 413:
            unpaid = reply.status != 200 and reply.problem.kind.startswith("proof-")
            return None if unpaid else reply  # a part's challenge is of no use to who asked for the whole
    except ChallengeTooCostlyError as error:
        LOG.warning("%s", error)
    return await _in_halves(session, method, batch, spending) if batch.rows > 1 else None
