"""Headers that a setting lets through to the model server, which may answer by them: a verdict or a proof for one value is none for another."""

import pytest
from processes import answer_of, paid_for, until
from rig import INFER, demo_queries, infer_message, rigged

from sameguard.protocol import read_problem
from sameguard.server.decision import Decision

GLYPHS = demo_queries()[1]


def asked(url: str, query, headers: dict[str, str]) -> tuple[int, bytes]:
    head, body = infer_message(query)
    return answer_of(url + INFER, body, {**head, **headers})


@pytest.fixture(scope="module")
def rig():
    settings = {"pass_headers": ["X-Tenant"], "pass_authorization": True}
    with rigged(upstream=settings, identity={"header": "x-api-key"}) as running:
        yield running


@pytest.mark.parametrize("header", ["X-Tenant", "Authorization"])
def test_a_proof_is_good_for_the_headers_that_it_was_charged_with(rig, header):
    query = next(glyph[None] for glyph in GLYPHS if asked(rig.url, glyph[None], {header: "a"})[0] == 402)
    proof = paid_for(asked(rig.url, query, {header: "a"})[1])
    for other in ({header: "b"}, {}, {header: "a", "X-Api-Key": "other", "X-Tenant": "c"}):
        status, body = asked(rig.url, query, {**other, "Guard-Proof": proof})
        assert (status, read_problem(status, body).kind) == (402, "proof-mismatch")
    assert asked(rig.url, query, {header: "a", "Guard-Proof": proof})[0] == 200


def decisions_of(rig, query, *headers: dict[str, str]) -> list[Decision]:
    """On requests that differ in their headers alone."""
    before = len(rig.noted.decisions)
    for number, chosen in enumerate(headers, 1):
        assert asked(rig.url, query, chosen)[0] in (200, 402)
        until(lambda told=before + number: len(rig.noted.decisions) == told, "the observer was not told")
    return rig.noted.decisions[before:]


def test_a_verdict_is_kept_for_the_headers_that_it_was_made_with(rig):
    found = decisions_of(rig, GLYPHS[-1:], {"x-tenant": "v"}, {"X-TENANT": "v"}, {"x-tenant": "w"}, {}, {})
    assert [decision.cached for decision in found] == [False, True, False, False, True]
    assert len({decision.digest for decision in found}) == 3


def test_a_header_that_does_not_decide_the_answer_changes_no_digest(rig):
    others = {}, {"User-Agent": "other"}, {"Traceparent": "00-1-2-3"}, {"X-Unknown": "1"}
    assert len({decision.digest for decision in decisions_of(rig, GLYPHS[-2:-1], *others)}) == 1


def test_what_travels_only_by_a_setting_counts_only_by_that_setting():
    with rigged() as rig:
        found = decisions_of(rig, GLYPHS[:1], {"X-Tenant": "a"}, {"X-Tenant": "b"}, {"Authorization": "c"})
    assert len({decision.digest for decision in found}) == 1
