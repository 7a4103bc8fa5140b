"""What a client could learn beside its answer: refusals of one kind are alike, whatever the score, the row, the rule or the failure was."""

import io
import json
import math
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from honest_proofs import header_of
from raw_client import Answer, asked, check_problem
from rig import INFER, Rig, demo_queries, infer_message, rigged

from sameguard.server.batching import QueueFullError
from sameguard.server.scoring import LocalBackend, ScoringQueue
from sameguard.server.telemetry import configure_logging

DIGITS, GLYPHS = demo_queries()
OF_REQUEST = ("date", "guard-request-id", "content-length", "www-authenticate")
CHALLENGE = {"algorithm", "cost", "keyLength", "keyPrefix", "keySignature", "nonce", "salt", "expiresAt", "data"}


def answer_to(rig: Rig, queries: np.ndarray, *more: tuple[str, str]) -> Answer:
    headers, body = infer_message(queries)
    return asked(rig.url, INFER, body, [*headers.items(), *more])


def looks(answer: Answer) -> tuple[int, tuple[tuple[str, str], ...], bytes]:
    """Everything of an answer that is not the request's own."""
    return answer.status, tuple(sorted(item for item in answer.headers.items() if item[0] not in OF_REQUEST)), answer.body


def without_challenge(answer: Answer) -> dict[str, Any]:
    return {name: value for name, value in json.loads(answer.body).items() if name not in ("challenge", "error", "expires_in")}


def numbers_in(text: str) -> set[float]:
    return {float(found) for found in re.findall(r"-?\d+\.\d+(?:[eE][+-]?\d+)?", text)}


def secrets_of(rig: Rig) -> list[float]:
    threshold = rig.service.snapshot.scorer.threshold()
    known = [threshold.value, threshold.stage_a]
    for decision in rig.noted.decisions:
        known += [decision.score, decision.stage_a_score, *decision.row_scores, *decision.row_stage_a_scores]
    return [value for value in known if math.isfinite(value) and abs(value) > 1e-3]


def check_silent(rig: Rig, text: str) -> None:
    """No number in the text is one of the scores or thresholds of this guard, at any rounding that is of use."""
    secret = secrets_of(rig)
    for number in numbers_in(text):
        near = [value for value in secret if math.isclose(number, value, rel_tol=1e-3)]
        assert not near, (number, near)
    for word in ("score", "threshold", "p_value", "p-value", "stage", "deviation", "reconstruction", "row ", "percentile"):
        assert word not in text.lower(), word


def test_all_rejected_queries_get_one_and_the_same_answer():
    with rigged(policy={"kind": "reject"}) as rig:
        refused = [answer for answer in (answer_to(rig, glyph[None]) for glyph in GLYPHS) if answer.status != 200]
        for place in range(4):
            batch = DIGITS[:4].copy()
            batch[place] = GLYPHS[3]
            refused.append(answer_to(rig, batch))
        refused.append(answer_to(rig, GLYPHS[:8]))
        assert [answer.status for answer in refused[-5:]] == [403] * 5
        assert len({looks(answer) for answer in refused}) == 1
        assert {answer.headers["content-length"] for answer in refused} == {str(len(refused[0].body))}
        check_silent(rig, refused[0].body.decode() + str(refused[0].headers))
        first = [decision for decision in rig.noted.decisions if decision.outcome == "refuse"]
        assert len({decision.score for decision in first}) > 5  # and the scores were not alike


def test_challenges_differ_in_their_level_alone():
    with rigged() as rig:
        found = [answer for answer in (answer_to(rig, glyph[None]) for glyph in GLYPHS) if answer.status == 402]
    levels = {decision.request_id: decision.level for decision in rig.noted.decisions}
    assert len(found) > 5
    assert len({json.dumps(without_challenge(answer)) for answer in found}) == 1
    assert len({looks(answer)[:2] for answer in found}) == 1
    assert len(set(levels.values())) > 1
    for answer in found:
        parameters = json.loads(answer.body)["challenge"]["parameters"]
        assert set(parameters) == CHALLENGE
        assert set(parameters["data"]) == {"d", "m", "k", "l", "a", "p", "b"}
        assert parameters["data"]["l"] == levels[answer.headers["guard-request-id"]]
        assert parameters["cost"] == json.loads(found[0].body)["challenge"]["parameters"]["cost"]
        check_silent(rig, json.dumps(without_challenge(answer)) + answer.headers["www-authenticate"])


def test_batches_that_cost_too_much_are_alike_whichever_row_it_is():
    with rigged() as rig:
        bad = next(glyph for glyph in GLYPHS if answer_to(rig, glyph[None]).status == 402)
        found = []
        for rows in (40, 64):
            found.append(answer_to(rig, np.stack([bad] * rows)))
            found.append(answer_to(rig, np.stack([bad] * (rows - 1) + [DIGITS[0]])))
        assert {answer.status for answer in found} == {413}
        assert len({looks(answer) for answer in found}) == 1


class Failing(LocalBackend):
    """Raises, or answers nonsense, at the stage it is told to."""

    def __init__(self, inner: Any, fault: str) -> None:
        super().__init__(inner)
        self.fault = fault

    def run(self, jobs: list[Any]) -> list[Any]:
        found = super().run(jobs) if self.fault != "crash" else []
        stage = type(jobs[0]).__name__
        if self.fault == "crash" or self.fault == f"crash in {stage}":
            raise RuntimeError("score 3.14159 at threshold 2.71828")
        if self.fault == f"NaN in {stage}":
            for result in found:
                if result.scores is not None:
                    result.scores[:] = np.nan
        return found


def broken_scorer(fault: str) -> Callable[[Rig], None]:
    def broken(rig: Rig) -> None:
        snapshot = rig.service.snapshot
        backend = Failing(snapshot.scorer, fault)
        object.__setattr__(snapshot, "queue", ScoringQueue(backend, batch_rows=8, waiting_rows=8, deadline_seconds=30.0))

    return broken


def unchecked(rig: Rig) -> None:
    rig.service.checked = False


def without_challenges(rig: Rig) -> None:
    async def submit(*args: object, **settings: object) -> None:
        raise QueueFullError("64 wait")

    rig.service.flow._issuing.submit = submit


FAULTS = {
    **{fault: broken_scorer(fault) for fault in ("crash", "crash in StageA", "crash in StageB", "NaN in StageA", "NaN in StageB")},
    "unchecked": unchecked, "challenges": without_challenges,
}  # fmt: skip


def test_whatever_is_down_is_told_in_the_same_words():
    found, reasons = [], set()
    for fault in FAULTS.values():
        with rigged() as rig:
            query = (
                next(glyph[None] for glyph in GLYPHS if answer_to(rig, glyph[None]).status == 402)
                if fault is without_challenges
                else DIGITS[:1]
            )
            rig.service.flow.cache._verdicts.clear()
            fault(rig)
            found.append(answer_to(rig, query))
        reasons |= {decision.reason for decision in rig.noted.decisions}
    assert {answer.status for answer in found} == {503}
    assert len({looks(answer) for answer in found}) == 1
    assert check_problem(found[0]) == "unavailable"
    assert {"scorer-failed", "upstream-unchecked", "challenges-full"} <= reasons
    for word in (b"scor", b"queue", b"store", b"detector", b"NaN", b"3.14"):
        assert word not in found[0].body


def test_an_answer_that_was_let_through_by_failing_open_looks_like_any_other():
    with rigged(policy={"kind": "reject"}, scorer={"fail_open": True}, cache={"seconds": 0}) as rig:
        query = next(digit[None] for digit in DIGITS if answer_to(rig, digit[None]).status == 200)
        before = answer_to(rig, query)
        broken_scorer("crash")(rig)
        after = answer_to(rig, query)
    assert looks(before) == looks(after)
    assert rig.noted.decisions[-1].degraded == "scorer-failed"


def test_a_coarsened_answer_has_no_other_headers_than_a_full_one():
    with rigged(policy={"kind": "coarsen"}) as rig:
        found = [answer_to(rig, query[None]) for query in (*GLYPHS[:20], *DIGITS[:20])]
        outcomes = {decision.request_id: decision.outcome for decision in rig.noted.decisions}
    assert {answer.status for answer in found} == {200}
    assert {outcomes.get(answer.headers["guard-request-id"], "") for answer in found} >= {"allow", "coarsen"}
    assert len({looks(answer)[1] for answer in found}) == 1
    assert len({len(answer.body) for answer in found}) == 1


def test_who_watches_the_guard_changes_nothing_for_its_clients(tmp_path):
    asked_for = [query[None] for query in (*DIGITS[:25], *GLYPHS[:25])] + [DIGITS[:6], GLYPHS[:6]]
    seen = []
    for changes in ({}, {"admin": {"thumbnails": True}, "audit": {"path": tmp_path / "audit.jsonl"}}, {"cache": {"seconds": 0}}):
        with rigged(policy={"kind": "reject"}, **changes) as rig:
            seen.append([looks(answer_to(rig, queries)) for queries in asked_for])
    assert seen[0] == seen[1] == seen[2]
    assert {status for status, _, _ in seen[0]} == {200, 403}


def test_with_uniform_latency_a_refusal_of_the_first_stage_asks_the_model_server_too():
    counts = []
    for uniform in (False, True):
        with rigged(policy={"kind": "reject"}, uniform_latency=uniform, cache={"seconds": 0}) as rig:
            before = rig.upstream.answered
            for glyph in GLYPHS[:30]:
                answer_to(rig, glyph[None])
            early = [decision for decision in rig.noted.decisions if decision.outcome == "refuse" and math.isnan(decision.score)]
            counts.append((rig.upstream.answered - before, len(early)))
    assert counts[0][1] == counts[1][1] > 0
    assert counts[0][0] == 30 - counts[0][1]
    assert counts[1][0] == 30


@pytest.mark.parametrize("form", ["json", "console"])
def test_the_log_tells_operators_what_happened_and_no_score_at_info(form):
    stream = io.StringIO()
    logs = configure_logging(form, stream=stream)
    try:
        with rigged(cache={"seconds": 0}) as rig:
            challenged = next(glyph[None] for glyph in GLYPHS if answer_to(rig, glyph[None]).status == 402)
            answer_to(rig, challenged, ("Guard-Proof", header_of({"forged": 1})))
            answer_to(rig, np.stack([challenged[0]] * 64))
            asked(rig.url, INFER, b"{}", [])
            for glyph in (*GLYPHS[:10], *DIGITS[:10]):
                answer_to(rig, glyph[None])
            broken_scorer("NaN in StageB")(rig)
            answer_to(rig, DIGITS[:1])
            rig.service.flow.cache = None  # nobody foresaw that
            assert answer_to(rig, DIGITS[:1]).status == 503
    finally:
        logs.close()
    text = stream.getvalue()
    assert text.count("decision") >= 5
    for word in ("unforeseen", "AttributeError", "Traceback", "too-costly", "challenge", "scorer-failed", "input-invalid"):
        assert word in text
    lines = [line for line in text.splitlines() if "Traceback" not in line and not line.startswith(" ")]
    told = re.sub(r'"?seconds"?[:=] ?[\d.e-]+|\d\d:\d\d:\d\d\.\d+', "", "\n".join(lines))  # times are no scores
    secret = secrets_of(rig)
    for number in numbers_in(told):
        assert not [value for value in secret if math.isclose(number, value, rel_tol=1e-4)], number
    assert "locals" not in text
    assert "snapshot = " not in text  # no local variables in tracebacks
