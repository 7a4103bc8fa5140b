"""One inference request through the guard: proof, verdict cache, stage A, the model server's answer held, stage B, action (serving.md 1).

Nothing that a client sent goes on as it came: the request is written anew from the canonical array that is scored. Whatever goes wrong,
no answer goes out; the exceptions are settings (`shadow`, `scorer.fail_open`), and they are counted.
"""

import asyncio
import time
from collections.abc import Awaitable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from sameguard.errors import SameguardError
from sameguard.policies import Action, Allow, Challenge, Coarsen, Refuse, TooCostly, action_of_batch, coarsened
from sameguard.protocol import InferRequest, InferResponse, WireError, travelling_headers
from sameguard.server import replies
from sameguard.server.batching import DeadlineError, MicroBatcher, QueueFullError
from sameguard.server.decision import Evidence
from sameguard.server.identity import Principal
from sameguard.server.proofs import Bound, IssuedChallenge, ProofResult, Proofs
from sameguard.server.replay import ReplayStore, StoreUnavailableError
from sameguard.server.replies import Refusal, Reply
from sameguard.server.scoring import NotANumberError, ScorerFailedError
from sameguard.server.settings import Settings
from sameguard.server.snapshot import Snapshot
from sameguard.server.trace import Trace
from sameguard.server.upstream import ERROR_BYTES, Upstream, UpstreamAnswer, UpstreamFailedError
from sameguard.server.verdicts import Verdict, VerdictCache

Scored = TypeVar("Scored")
OUTCOMES: dict[type, str] = {Allow: "allow", Coarsen: "coarsen", Challenge: "challenge", TooCostly: "too-costly", Refuse: "refuse"}
WAITING_CHALLENGES = 64  # each runs the key derivation once: what would wait longer is shed
PASSING_TROUBLE = frozenset({408, 425, 429})  # the model server would answer later: like 5xx, no reason to keep a proof
SMALLEST_PROBABILITY = 1e-6  # of a coarsened answer where the model server gives logits


@dataclass(frozen=True, eq=False)
class Asked:
    """A request that was read. headers: the client's, as `read_headers` makes them."""

    request: InferRequest
    digest: bytes
    headers: Mapping[str, str]
    principal: Principal


class Flow:
    """Judges and answers. proofs, store, cache, upstream live as long as the process; the snapshot is handed in with each request."""

    def __init__(
        self, settings: Settings, upstream: Upstream, proofs: Proofs, store: ReplayStore, cache: VerdictCache, issuing: Executor
    ) -> None:
        self.settings = settings
        self.upstream = upstream
        self.proofs = proofs
        self.store = store
        self.cache = cache
        self._issuing: MicroBatcher[tuple[Challenge, Bound, float], IssuedChallenge] = MicroBatcher(
            lambda charges: [self.proofs.issue(*charge) for charge in charges], issuing, max_rows=1, max_waiting_rows=WAITING_CHALLENGES
        )

    async def answer(self, asked: Asked, snapshot: Snapshot, trace: Trace) -> Reply:
        """The answer to an allowed, paid or shadowed request. Raises Refusal for every other."""
        trace.enforced = self.settings.mode == "enforce" and asked.principal.within(self.settings.rollout)
        proof = asked.headers.get("guard-proof")
        if proof is not None and trace.enforced and snapshot.largest_work is not None:  # where nothing is sold, nothing is bought
            await self._redeem(proof, asked, snapshot, trace)
            return await self._paid(asked, snapshot, trace)
        key = (asked.principal.name, asked.digest, snapshot.artifact_digest)
        verdict, response = self.cache.get(key), None
        trace.cached = verdict is not None
        if verdict is None:
            try:
                verdict, response = await self._judge(asked, snapshot, trace)
                self.cache.put(key, verdict)
            except (QueueFullError, DeadlineError) as error:
                reason = "queue-full" if isinstance(error, QueueFullError) else "queue-deadline"
                verdict = self._unjudged(reason, trace, open_door=False)
            except ScorerFailedError as error:
                trace.detail = str(error)
                open_door = self.settings.scorer.fail_open and not isinstance(error, NotANumberError)
                verdict = self._unjudged("scorer-failed", trace, open_door=open_door)
        if trace.degraded == "":
            trace.judged(OUTCOMES[type(verdict.action)], verdict)
        action = verdict.action if trace.enforced else Allow()
        if isinstance(action, Refuse | TooCostly):
            raise replies.refused() if isinstance(action, Refuse) else replies.too_costly()
        if isinstance(action, Challenge):
            reply = await self._challenge(action, verdict, asked, snapshot, trace)
            raise Refusal(reply, "challenge")
        if response is None:
            response = await self._asked_upstream(asked, snapshot, trace)
        trace.outcome = OUTCOMES[type(action)]
        return self._released(response, action, asked, snapshot, trace)

    # ------------------------------------------------------------------ judging

    async def _judge(self, asked: Asked, snapshot: Snapshot, trace: Trace) -> tuple[Verdict, InferResponse | None]:
        """The verdict, and the model server's answer where it was needed for it."""
        policy, rows = snapshot.policy, len(asked.request.queries)
        with trace.stage("stage_a"):
            found = await self._timed(snapshot.queue.stage_a(asked.request.queries, asked.principal.name))
        trace.evidence = Evidence(asked.request.queries, found.reconstruction.views)
        actions: list[Action] = [Allow()] * rows if found.scores is None else list(policy.decide_stage_a(found.scores))
        worst_a = float("nan") if found.scores is None else float(found.scores.max())
        trace.row_stage_a_scores = () if found.scores is None else tuple(found.scores.tolist())
        open_rows = np.flatnonzero([isinstance(action, Allow) for action in actions])
        refused = any(isinstance(action, Refuse) for action in actions)
        if refused or not len(open_rows):
            verdict = Verdict(action_of_batch(actions, snapshot.largest_work), worst_a, float("nan"))
            waits = self.settings.uniform_latency and trace.enforced
            response = await self._asked_upstream(asked, snapshot, trace) if waits else None
            return verdict, response  # where it is only coarsened, it is not asked twice
        response = await self._asked_upstream(asked, snapshot, trace)
        kept = found.reconstruction.take(open_rows)
        with trace.stage("stage_b"):
            scores = await self._timed(snapshot.queue.stage_b(kept, response.probs[open_rows]))
        row_scores = np.full(rows, np.nan)
        row_scores[open_rows] = scores
        trace.row_scores = tuple(row_scores.tolist())
        for row, action in zip(open_rows, policy.decide(scores), strict=True):
            actions[row] = action
        return Verdict(action_of_batch(actions, snapshot.largest_work), worst_a, float(scores.max())), response

    async def _timed(self, scoring: Awaitable[Scored]) -> Scored:
        try:
            async with asyncio.timeout(self.settings.scorer.timeout_seconds):
                return await scoring
        except DeadlineError:
            raise
        except TimeoutError as error:
            raise ScorerFailedError(f"scorer must answer in {self.settings.scorer.timeout_seconds:g} s, got nothing.") from error

    def _unjudged(self, reason: str, trace: Trace, *, open_door: bool) -> Verdict:
        """What stands for a verdict where there is none. Raises Refusal unless something explicit lets the request through."""
        if trace.enforced and not open_door:
            raise replies.unavailable(reason)
        trace.degraded = reason
        return Verdict(Allow(), float("nan"), float("nan"))

    async def _asked_upstream(self, asked: Asked, snapshot: Snapshot, trace: Trace, *, paid: bool = False) -> InferResponse:
        """The model server's answer, read and checked. Raises Refusal for any other; with a proof for another try where one was spent."""
        dialect, settings = snapshot.dialect, self.settings.upstream
        message = dialect.build_infer(asked.request)
        travelling = travelling_headers(
            asked.headers,
            also=settings.pass_headers,
            trusted_peer=asked.principal.trusted_peer,
            authorization=settings.pass_authorization,
        )
        try:
            with trace.stage("upstream"):
                answer = await self.upstream.infer(dialect.infer_path, message, travelling)
            if answer.status != 200:
                later = answer.status >= 500 or answer.status in PASSING_TROUBLE
                raise self._passed_on(answer, self._refund(asked, snapshot) if paid and later else None)
            response = dialect.parse_infer_response(answer.body, answer.headers, asked.request)
            self.upstream.understood()
            return response
        except UpstreamFailedError as error:
            trace.detail = str(error)
            raise replies.upstream_failed(error.status, error.reason, self._refund(asked, snapshot) if paid else None) from error
        except WireError as error:
            self.upstream.misunderstood()
            trace.detail = str(error)
            raise replies.upstream_failed(502, "upstream-answer", self._refund(asked, snapshot) if paid else None) from error

    def _passed_on(self, answer: UpstreamAnswer, retry_proof: str | None) -> Refusal:
        """The model server's own refusal, as it is; anything that is neither an answer nor an error is none of the client's business."""
        if answer.status < 400 or retry_proof is not None or len(answer.body) > ERROR_BYTES:
            reason = f"upstream-status-{answer.status}"
            return replies.upstream_failed(502, reason, retry_proof, answer.headers.get("retry-after") if retry_proof else None)
        return Refusal(passed_on(answer), "failed", f"upstream-status-{answer.status}")

    def _released(self, response: InferResponse, action: Action, asked: Asked, snapshot: Snapshot, trace: Trace) -> Reply:
        model = snapshot.model
        if isinstance(action, Coarsen):
            values = coarsened(response.probs, action)
            if model.output_kind == "logits":
                values = np.log(np.maximum(values, SMALLEST_PROBABILITY))
            elif model.output_kind == "labels":
                values = response.tensor(model.output).array
            response = response.replaced(model.output, values)
        told = {"guard-action": "coarsen"} if isinstance(action, Coarsen) and self.settings.policy.tell_coarsened else {}
        try:
            with trace.stage("respond"):
                message = snapshot.dialect.build_infer_response(response, asked.request)
        except WireError as error:
            trace.detail = str(error)
            raise replies.upstream_failed(502, "upstream-answer") from error
        return Reply(200, {**message.headers, **told}, message.body)

    # ------------------------------------------------------------------ proofs

    async def _redeem(self, proof: str, asked: Asked, snapshot: Snapshot, trace: Trace) -> None:
        """Returns where the proof is good and was spent by this request alone. Raises Refusal."""
        bound = _bound(asked, snapshot)
        with trace.stage("proof"):
            verdict = self.proofs.verify(proof, bound, time.time())
            trace.proof, trace.level = str(verdict.result), verdict.level
            if verdict.result is ProofResult.VALID:
                try:
                    redeemed = await self.store.redeem(verdict.nonce, verdict.expires_at)
                except StoreUnavailableError as error:
                    trace.detail = str(error)
                    raise replies.unavailable("replay-store") from error
                trace.proof = "valid" if redeemed else "replayed"
        known = self.cache.get((asked.principal.name, asked.digest, snapshot.artifact_digest))
        if known is not None and known.issued is not None and known.issued.nonce == verdict.nonce:
            known.issued = None  # it is spent
        if trace.proof == "valid":
            return
        trace.detail = verdict.detail
        if trace.proof != "invalid" and known is not None and isinstance(known.action, Challenge):
            reply = await self._challenge(known.action, known, asked, snapshot, trace, kind=f"proof-{trace.proof}")
        else:  # a forged one costs us no key derivation
            reply = replies.failed_proof(trace.proof, self.settings.proofs.status)
        raise Refusal(reply, "challenge", f"proof-{trace.proof}")

    async def _paid(self, asked: Asked, snapshot: Snapshot, trace: Trace) -> Reply:
        response = await self._asked_upstream(asked, snapshot, trace, paid=True)
        trace.outcome = "allow"
        return self._released(response, Allow(), asked, snapshot, trace)

    async def _challenge(
        self, charge: Challenge, verdict: Verdict, asked: Asked, snapshot: Snapshot, trace: Trace, kind: str = "proof-of-work-required"
    ) -> Reply:
        """A new challenge, or the last one for this query while most of its time is left: the derivation is ours to pay.

        Two who ask the same query as the same principal at the same time share a challenge. Whoever solves it first passes, the other one
        gets a new one: they are one payer, who is charged at least once for each answer. Nobody else is ever shown it.
        """
        now = time.time()
        trace.level, trace.work = charge.level, charge.work
        issued = verdict.issued
        if issued is None or issued.expires_at - now < self.proofs.ttl_seconds * 0.75:
            with trace.stage("challenge"):
                issued = await self._issued(charge, _bound(asked, snapshot), now, asked.principal.name)
            verdict.issued = issued if self.cache.seconds else None
            trace.issued = True
        return replies.challenged(issued, self.settings.proofs.status, snapshot.model.name, now, kind)

    async def _issued(self, charge: Challenge, bound: Bound, now: float, principal: str) -> IssuedChallenge:
        deadline = self._issuing.clock() + self.settings.scorer.deadline_seconds
        try:
            return await self._issuing.submit((charge, bound, now), 1, deadline=deadline, asker=principal)
        except (QueueFullError, DeadlineError) as error:
            raise replies.unavailable("challenges-full") from error
        except SameguardError as error:
            raise replies.unavailable("challenge-failed") from error

    def _refund(self, asked: Asked, snapshot: Snapshot) -> str:
        return self.proofs.refund(_bound(asked, snapshot), time.time())


def passed_on(answer: UpstreamAnswer) -> Reply:
    """The model server's answer that is not scored: metadata, health, its own errors. Of its headers only those that describe the body."""
    kept = {name: answer.headers[name] for name in ("content-type", "content-encoding", "retry-after") if name in answer.headers}
    return Reply(answer.status, {**kept, **(replies.NO_STORE if answer.status >= 400 else {})}, answer.body)


def _bound(asked: Asked, snapshot: Snapshot) -> Bound:
    return Bound(snapshot.model.name, snapshot.artifact_digest, asked.digest, snapshot.prices)
