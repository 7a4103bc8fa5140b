"""The whole guard over HTTP: honest queries pass unchanged, suspicious ones are refused or pay, whatever fails lets nothing out."""

import json
import urllib.error
import urllib.request

import numpy as np
import pytest
from honest_proofs import header_of, proof_of
from processes import answer_of
from rig import DEMO, INFER, demo_queries, infer_message, rigged

from sameguard.protocol import read_problem
from sameguard.server.demo_server import DemoServer
from sameguard.server.replies import Reply
from sameguard.server.scoring import LocalBackend, ScoringQueue
from sameguard.server.settings import PolicySettings
from sameguard.server.snapshot import make_policy

DIGITS, GLYPHS = demo_queries()


def asked(url: str, queries: np.ndarray, headers: dict[str, str] | None = None) -> tuple[int, dict[str, str], bytes]:
    head, body = infer_message(queries)
    request = urllib.request.Request(url + INFER, body, {**head, **(headers or {})})
    try:
        with urllib.request.urlopen(request, timeout=20) as found:
            return found.status, {name.lower(): value for name, value in found.headers.items()}, found.read()
    except urllib.error.HTTPError as error:
        return error.code, {name.lower(): value for name, value in error.headers.items()}, error.read()


def suspicious(url: str) -> np.ndarray:
    """The first glyph that the guard at this address challenges or refuses."""
    for glyph in GLYPHS:
        if asked(url, glyph[None])[0] in (402, 403):
            return glyph[None]
    raise AssertionError("no glyph is suspicious")


def allowed(url: str) -> np.ndarray:
    for digit in DIGITS:
        if asked(url, digit[None])[0] == 200:
            return digit[None]
    raise AssertionError("no digit is allowed")


def test_an_honest_query_gets_the_model_servers_answer_byte_for_byte():
    with rigged(policy={"kind": "reject"}) as rig:
        query = allowed(rig.url)
        through = asked(rig.url, query)
        direct = asked(rig.service.settings.upstream.url, query)
    assert through[2] == direct[2]
    assert through[1]["content-type"] == direct[1]["content-type"]


def test_most_digits_pass_and_most_glyphs_do_not():
    with rigged(policy={"kind": "reject"}) as rig:
        digits = [asked(rig.url, digit[None])[0] for digit in DIGITS]
        glyphs = [asked(rig.url, glyph[None])[0] for glyph in GLYPHS]
    assert digits.count(200) >= 43
    assert glyphs.count(403) >= 25
    assert set(digits + glyphs) == {200, 403}


def test_a_refusal_tells_no_score_and_is_not_stored():
    with rigged(policy={"kind": "reject"}) as rig:
        status, headers, body = asked(rig.url, suspicious(rig.url))
    problem = json.loads(body)
    assert status == 403
    assert problem["type"].endswith("query-rejected")
    assert problem["error"]
    assert set(problem) == {"type", "title", "status", "detail", "error"}
    assert headers["cache-control"] == "no-store"
    assert headers["guard-action"] == "reject"


def test_a_challenged_query_passes_with_its_proof_once():
    with rigged() as rig:
        query = suspicious(rig.url)
        status, headers, body = asked(rig.url, query)
        assert status == 402
        assert headers["www-authenticate"].startswith('PoW realm="digits"')
        proof = header_of(proof_of(json.loads(body)["challenge"]))
        before = rig.upstream.answered
        paid = asked(rig.url, query, {"Guard-Proof": proof})
        again = asked(rig.url, query, {"Guard-Proof": proof})
    assert paid[0] == 200
    assert rig.upstream.answered == before + 1
    assert again[0] == 402
    assert read_problem(402, again[2]).kind == "proof-replayed"
    assert "challenge" in read_problem(402, again[2]).extensions
    assert [decision.proof for decision in rig.noted.decisions[-2:]] == ["valid", "replayed"]


def test_a_proof_for_one_query_buys_no_other():
    with rigged() as rig:
        query = suspicious(rig.url)
        proof = header_of(proof_of(json.loads(asked(rig.url, query)[2])["challenge"]))
        other = asked(rig.url, 1.0 - query, {"Guard-Proof": proof})
        forged = asked(rig.url, query, {"Guard-Proof": "AAAA"})
    assert read_problem(402, other[2]).kind == "proof-mismatch"
    assert read_problem(402, forged[2]).kind == "proof-invalid"
    assert "challenge" not in read_problem(402, forged[2]).extensions


def test_a_coarsened_row_beside_a_challenged_one_has_no_price_together():
    with rigged(policy={"kind": "ladder", "coarsen_at": 0.2, "challenge_at": (0.05,), "refuse_at": None}) as rig:
        verdicts = {}
        for glyph in (*GLYPHS, *DIGITS):
            asked(rig.url, glyph[None])
        for item, decision in zip((*GLYPHS, *DIGITS), list(rig.noted.decisions), strict=False):
            verdicts.setdefault(decision.verdict, item)
        both = np.stack([verdicts["coarsen"], verdicts["challenge"]])
        status, _, body = asked(rig.url, both)
    assert status == 413
    assert read_problem(413, body).kind == "batch-too-costly"


def test_a_proof_is_good_for_the_prices_that_it_was_charged_by():
    """After a restart with dearer levels, over a shared store and with the same keys, an old proof is worth nothing."""
    with rigged() as rig:
        query = suspicious(rig.url)
        proof = header_of(proof_of(json.loads(asked(rig.url, query)[2])["challenge"]))
        snapshot, proofs = rig.service.snapshot, rig.service.settings.proofs
        object.__setattr__(
            snapshot, "policy", make_policy(PolicySettings(), proofs.model_copy(update={"worst_seconds": 1.0}), snapshot.scorer)
        )
        snapshot.__dict__.pop("prices", None)
        assert read_problem(402, asked(rig.url, query, {"Guard-Proof": proof})[2]).kind == "proof-mismatch"


def test_a_proof_buys_nothing_where_nothing_is_sold():
    with rigged() as rig:
        query = suspicious(rig.url)
        proof = header_of(proof_of(json.loads(asked(rig.url, query)[2])["challenge"]))
        snapshot = rig.service.snapshot
        object.__setattr__(snapshot, "policy", make_policy(PolicySettings(kind="reject"), rig.service.settings.proofs, snapshot.scorer))
        rig.service.flow.cache._verdicts.clear()
        assert asked(rig.url, query, {"Guard-Proof": proof})[0] == 403


def test_a_key_that_comes_twice_is_refused():
    import http.client

    with rigged(identity={"header": "x-api-key"}) as rig:
        connection = http.client.HTTPConnection(rig.url.removeprefix("http://"), timeout=20)
        head, body = infer_message(DIGITS[:1])
        connection.putrequest("POST", INFER)
        for name, value in (*head.items(), ("X-Api-Key", "good"), ("X-Api-Key", "other"), ("Content-Length", str(len(body)))):
            connection.putheader(name, value)
        connection.endheaders(body)
        assert connection.getresponse().status == 400
        connection.close()


def test_what_is_not_understood_counts_against_the_quota():
    with rigged(quota={"rows_per_minute": 0.5, "burst_rows": 2}) as rig:
        request = urllib.request.Request(rig.url + INFER, b"{}", {"Content-Type": "application/json"})
        statuses = []
        for _ in range(4):
            with pytest.raises(urllib.error.HTTPError) as caught:
                urllib.request.urlopen(request, timeout=20)
            statuses.append(caught.value.code)
            caught.value.close()
    assert statuses == [400, 400, 429, 429]


def test_shadow_answers_everything_and_notes_what_it_would_have_done():
    with rigged(mode="shadow", policy={"kind": "reject"}) as rig:
        assert {asked(rig.url, glyph[None])[0] for glyph in GLYPHS[:20]} == {200}
    assert {decision.outcome for decision in rig.noted.decisions} == {"allow"}
    assert "refuse" in {decision.verdict for decision in rig.noted.decisions}
    assert not any(decision.enforced for decision in rig.noted.decisions)


def test_shadow_notes_the_price_that_nobody_pays():
    with rigged() as rig:
        asked(rig.url, suspicious(rig.url))
    [charged] = {(decision.level, decision.work) for decision in rig.noted.decisions if decision.outcome == "challenge"}
    with rigged(mode="shadow") as rig:
        for glyph in GLYPHS:
            asked(rig.url, glyph[None])
    noted = {(decision.level, decision.work) for decision in rig.noted.decisions if decision.verdict == "challenge"}
    assert charged in noted
    assert (0, 0) not in noted
    assert not any(decision.issued for decision in rig.noted.decisions)


def test_a_roll_out_acts_on_its_share_of_principals_alone():
    with rigged(policy={"kind": "reject"}, rollout=0.5, identity={"header": "x-api-key"}) as rig:
        statuses = [asked(rig.url, GLYPHS[:8], {"X-Api-Key": f"key {number}"})[0] for number in range(24)]
    assert {200, 403} == set(statuses)


def test_a_repeated_query_is_judged_once_but_not_for_somebody_else():
    with rigged(policy={"kind": "reject"}, identity={"header": "x-api-key"}) as rig:
        for key in ("a", "a", "b"):
            asked(rig.url, GLYPHS[:1], {"X-Api-Key": key})
    assert [decision.cached for decision in rig.noted.decisions] == [False, True, False]


def test_coarsened_answers_name_the_class_alone():
    with rigged(policy={"kind": "coarsen"}) as rig:
        found = [asked(rig.url, glyph[None]) for glyph in GLYPHS[:20]]
        outcomes = [decision.outcome for decision in rig.noted.decisions]
    assert {status for status, _, _ in found} == {200}
    assert "coarsen" in outcomes
    body = found[outcomes.index("coarsen")][2]
    logits = np.frombuffer(body[-40:], "<f4")
    assert len(set(logits.tolist())) == 2


@pytest.mark.parametrize("told", [False, True])
def test_a_coarsened_answer_says_so_where_the_operator_wants_it(told):
    with rigged(policy={"kind": "coarsen", "tell_coarsened": told}) as rig:
        found = [asked(rig.url, glyph[None])[1].get("guard-action") for glyph in GLYPHS[:20]]
    outcomes = [decision.outcome for decision in rig.noted.decisions]
    assert {"allow", "coarsen"} >= set(outcomes)
    assert found == ["coarsen" if told and outcome == "coarsen" else None for outcome in outcomes]


def test_with_uniform_latency_the_model_server_is_asked_once_for_every_query():
    with rigged(policy={"kind": "coarsen"}, uniform_latency=True, cache={"seconds": 0}) as rig:
        before = rig.upstream.answered
        for glyph in GLYPHS:
            asked(rig.url, glyph[None])
        assert rig.upstream.answered == before + len(GLYPHS)
    settled = [decision for decision in rig.noted.decisions if "stage_b" not in decision.seconds]
    assert {decision.outcome for decision in settled} == {"coarsen"}


class Verbose(DemoServer):
    """Its answers are mostly blanks."""

    async def _replied(self, scope, receive) -> Reply:
        reply = await super()._replied(scope, receive)
        return Reply(reply.status, reply.headers, reply.body.ljust(4000)) if scope["method"] == "POST" else reply


def test_an_answer_may_be_larger_than_a_request_may():
    quiet = {"mode": "shadow", "canary": {"enabled": False}, "listen": {"body_bytes": 600}}
    with rigged(Verbose(DEMO / "victim.onnx"), upstream={"binary": False}, **quiet) as rig:
        assert asked(rig.url, DIGITS[:1])[0] == 200
        assert asked(rig.url, DIGITS[:4])[0] == 413
    with rigged(Verbose(DEMO / "victim.onnx"), upstream={"binary": False, "response_bytes": 3999}, **quiet) as rig:
        assert asked(rig.url, DIGITS[:1])[0] == 502


def test_a_request_has_no_more_text_than_its_model_can_need():
    """64 rows of 64 numbers: 8 MiB of text would be blanks, or nonsense that costs its parser time."""
    tensor = {"name": "digit", "datatype": "FP32", "shape": [64, 1, 8, 8], "data": DIGITS.ravel().tolist() + DIGITS[:14].ravel().tolist()}
    with rigged(mode="shadow") as rig:
        assert rig.service.settings.listen.body_bytes == 8 * 2**20
        bodies = json.dumps({"inputs": [tensor]}, indent=8).encode(), b" " * 400_000 + b"{}"
        assert [answer_of(rig.url + INFER, body, {"Content-Type": "application/json"})[0] for body in bodies] == [200, 413]


def test_a_batch_that_costs_too_much_is_refused_for_its_size():
    with rigged() as rig:
        query = suspicious(rig.url)
        status, _, body = asked(rig.url, np.concatenate([query] * 64))
    assert status == 413
    assert read_problem(413, body).kind == "batch-too-costly"


class BrokenBackend:
    """A scorer that fails as it is told to."""

    parallel = 1

    def __init__(self, inner: LocalBackend) -> None:
        self.inner = inner
        self.broken = False
        self.infinite = False

    def run(self, jobs):
        if self.broken:
            raise RuntimeError("engine crashed")
        found = self.inner.run(jobs)
        if self.infinite:
            for result in found:
                if result.scores is not None:
                    result.scores[:] = np.nan
        return found

    def close(self) -> None: ...


def with_backend(rig) -> BrokenBackend:
    snapshot = rig.service.snapshot
    backend = BrokenBackend(LocalBackend(snapshot.scorer))
    queue = ScoringQueue(backend, batch_rows=8, waiting_rows=64, deadline_seconds=30.0)
    object.__setattr__(snapshot, "queue", queue)
    return backend


@pytest.mark.parametrize("fault", ["broken", "infinite"])
def test_a_scorer_that_fails_lets_nothing_out_and_recovers(fault):
    with rigged(policy={"kind": "reject"}) as rig:
        backend = with_backend(rig)
        setattr(backend, fault, True)
        status, headers, body = asked(rig.url, DIGITS[:1])
        assert status == 503
        assert read_problem(503, body).kind == "unavailable"
        assert b"scor" not in body
        assert headers["retry-after"]
        setattr(backend, fault, False)
        assert asked(rig.url, allowed(rig.url))[0] == 200
    assert rig.noted.decisions[0].reason == "scorer-failed"


def test_fail_open_answers_and_is_counted():
    with rigged(policy={"kind": "reject"}, scorer={"fail_open": True}) as rig:
        with_backend(rig).broken = True
        assert asked(rig.url, GLYPHS[:1])[0] == 200
    metrics = rig.service.telemetry.render()[0].decode()
    assert rig.noted.decisions[0].degraded == "scorer-failed"
    assert 'guard_degraded_total{reason="scorer-failed"} 1.0' in metrics


def test_a_score_that_is_no_number_passes_not_even_a_guard_that_fails_open():
    with rigged(policy={"kind": "reject"}, scorer={"fail_open": True}) as rig:
        with_backend(rig).infinite = True
        assert asked(rig.url, DIGITS[:1])[0] == 503
    assert rig.noted.decisions[0].degraded == ""


def test_quotas_count_rows_and_tell_when_to_come_back():
    with rigged(policy={"kind": "reject"}, quota={"rows_per_minute": 0.5, "burst_rows": 2}) as rig:
        statuses = [asked(rig.url, DIGITS[:1])[0] for _ in range(4)]
        status, headers, _ = asked(rig.url, DIGITS[:1])
    assert 429 not in statuses[:2]
    assert statuses[2:] == [429, 429]
    assert status == 429
    assert 60 <= int(headers["retry-after"]) <= 120


def test_the_guard_answers_as_the_guard_in_process_does():
    from sameguard.contract import InputContract
    from sameguard.guard import Guard
    from sameguard.policies import Reject
    from sameguard.runtime import Scorer
    from sameguard.victim import from_onnx

    scorer = Scorer(DEMO / "artefact")
    victim = from_onnx(str(DEMO / "victim.onnx"), InputContract.images(1, 8, 8, name="digit"), output="logits")
    guard = Guard(victim, scorer, Reject(scorer.threshold()), row_policy="worst")
    queries = [*(digit[None] for digit in DIGITS[:25]), *(glyph[None] for glyph in GLYPHS[:25]), DIGITS[:5], GLYPHS[:5]]
    with rigged(policy={"kind": "reject"}) as rig:
        over_http = [asked(rig.url, query)[0] == 200 for query in queries]
    assert over_http == [bool(guard.query(query).answered.all()) for query in queries]


def test_reload_swaps_the_artefact_and_a_bad_one_changes_nothing(tmp_path):
    import shutil

    folder = tmp_path / "artefact"
    shutil.copytree(DEMO / "artefact", folder)
    with rigged(policy={"kind": "reject"}, artifact=folder) as rig:
        digest = rig.service.snapshot.artifact_digest
        assert rig.run(rig.service.reload()) == digest
        (folder / "auxiliary.onnx").write_bytes(b"nothing")
        with pytest.raises(Exception, match="SHA-256"):
            rig.run(rig.service.reload())
        assert asked(rig.url, allowed(rig.url))[0] == 200
        assert rig.run(rig.service.readiness()).ready


def test_a_pinned_artefact_is_the_only_one_that_is_served():
    with pytest.raises(Exception, match="must have digest"), rigged(artifact_digest="0" * 64):
        pass


def test_canary_queries_tell_that_the_model_was_replaced():
    class Other:
        """The demo's server, whose answers are turned round."""

        def __init__(self) -> None:
            from sameguard.server.demo_server import DemoServer

            self.inner = DemoServer(DEMO / "victim.onnx")
            session = self.inner._session
            self.inner._session = type("Turned", (), {"run": lambda _, names, feed: [-session.run(names, feed)[0]]})()

        async def __call__(self, scope, receive, send) -> None:
            await self.inner(scope, receive, send)

    with rigged(policy={"kind": "reject"}) as rig:
        assert rig.service.canary_shift < 1e-3
        assert rig.run(rig.service.readiness()).warnings == []
    with rigged(Other(), policy={"kind": "reject"}) as rig:
        assert rig.service.canary_shift > 0.1
        readiness = rig.run(rig.service.readiness())
    assert readiness.ready
    assert "canary" in readiness.warnings[0]
