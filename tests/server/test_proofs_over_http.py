"""Proofs over HTTP: none that was forged, moved, copied or kept from another life passes, or reaches the scorer or the model server."""

import base64
import json
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from honest_proofs import header_of, proof_of
from processes import NO_REDIS, REDIS, key, redis_process
from raw_client import Answer, answers_in, asked, check_problem, exchanged, request_text
from rig import DEMO, INFER, Rig, demo_queries, infer_message, rigged, served
from test_forged_proofs import changed, paths_of

from sameguard.policies import Challenge
from sameguard.runtime import Scorer
from sameguard.server.demo_server import DemoServer
from sameguard.server.keys import make_proofs
from sameguard.server.proofs import Bound, ProofKey, Proofs
from sameguard.server.scoring import LocalBackend, ScoringQueue
from sameguard.server.settings import ProofSettings

DIGITS, GLYPHS = demo_queries()


class Counting(LocalBackend):
    """The scorer; jobs: that it was given."""

    jobs = 0

    def run(self, jobs: list[Any]) -> list[Any]:
        self.jobs += len(jobs)
        return super().run(jobs)


@dataclass
class Sold:
    """A guard that counts, a query that it challenges, and the proof that pays for it."""

    rig: Rig
    scorer: Counting
    query: np.ndarray
    proof: dict[str, Any]

    @property
    def work(self) -> tuple[int, int]:
        """What scorer and model server were asked so far."""
        return self.scorer.jobs, self.rig.upstream.answered

    def bound(self, **changes: Any) -> Bound:
        digest = next(decision.digest for decision in self.rig.noted.decisions if decision.outcome == "challenge")
        snapshot = self.rig.service.snapshot
        return Bound("digits", snapshot.artifact_digest, bytes.fromhex(digest), snapshot.prices)._replace(**changes)

    def issued(self, *, at: float = 0.0, proofs: Proofs | None = None, **changes: Any) -> str:
        """A solved proof, by the guard's own keys unless others are given. at: seconds from now. changes: of what it is bound to."""
        made = (proofs or self.rig.service.flow.proofs).issue(Challenge(level=1, work=2), self.bound(**changes), time.time() + at)
        return header_of(proof_of(made.document))


def paid(url: str, queries: np.ndarray, *proofs: str) -> Answer:
    headers, body = infer_message(queries)
    return asked(url, INFER, body, [*headers.items(), *(("Guard-Proof", proof) for proof in proofs)])


def challenged(url: str) -> tuple[np.ndarray, dict[str, Any]]:
    for glyph in GLYPHS:
        answer = paid(url, glyph[None])
        if answer.status == 402:
            return glyph[None], proof_of(json.loads(answer.body)["challenge"])
    raise AssertionError("no glyph is challenged")


def sold_by(rig: Rig) -> Sold:
    snapshot = rig.service.snapshot
    scorer = Counting(snapshot.scorer)
    object.__setattr__(snapshot, "queue", ScoringQueue(scorer, batch_rows=8, waiting_rows=64, deadline_seconds=30.0))
    return Sold(rig, scorer, *challenged(rig.url))


@pytest.fixture(scope="module")
def sold() -> Iterator[Sold]:
    with rigged(proofs={"puzzle": "pbkdf2", "worst_seconds": 0.3, "ttl_seconds": 600}) as rig:
        yield sold_by(rig)


def check_refused(sold: Sold, *proofs: str, kind: str | None = None, queries: np.ndarray | None = None) -> None:
    before = sold.work
    answer = paid(sold.rig.url, sold.query if queries is None else queries, *proofs)
    found = check_problem(answer)
    assert answer.status == 402, answer
    assert found == kind if kind else found in ("proof-invalid", "proof-expired", "proof-mismatch")
    assert sold.work == before


VALUES = (None, True, 0, 1, -1, 2**31, 2**64, 0.5, "", "0" * 32, "f" * 64, "PBKDF2/SHA-256", [], {}, KeyError)
EXAMPLE_PATHS = [
    *[("challenge", "parameters", name) for name in ("algorithm", "cost", "keyLength", "keyPrefix", "nonce", "salt", "keySignature",
    "expiresAt", "data")],
    *[("challenge", "parameters", "data", name) for name in ("d", "m", "k", "l", "a", "p", "b")],
    ("challenge", "parameters"), ("challenge", "signature"), ("challenge",), ("solution", "derivedKey"), ("solution",),
]  # fmt: skip


def test_the_fields_that_are_tampered_with_are_all_there_are(sold):
    free = {("solution", "counter"), ("solution", "time")}  # the signed key is what counts
    assert set(paths_of(sold.proof)) - free == set(EXAMPLE_PATHS)


@pytest.mark.parametrize("path", EXAMPLE_PATHS, ids=".".join)
def test_a_field_that_was_tampered_with_voids_the_proof(sold, path):
    holder: Any = sold.proof
    for name in path:
        holder = holder[name]
    nearby = [holder + 1, holder - 1, holder * 2, str(holder)] if isinstance(holder, int) else []
    if isinstance(holder, str):
        nearby = [
            holder[:-1],
            holder + holder[-1],
            holder[:-1] + ("0" if holder[-1] != "0" else "1"),
            holder.swapcase() + " ",
            f" {holder}",
        ]
    for value in (*VALUES, *nearby):
        if value != holder:
            check_refused(sold, header_of(changed(sold.proof, path, value)))


def test_the_same_proof_in_another_base64_or_json_is_refused_or_is_the_same_proof(sold):
    good = header_of(sold.proof)
    text = json.dumps(sold.proof)
    for header in (
        good + "=", good + "====", good.rstrip("=") + "*", good[:40] + "!" + good[40:], good[:40] + " " + good[40:], good.replace("e", "-",
        1), good[:-4], good + good,
        f'"{good}"', f"{good}, {good}", f"Bearer {good}", good.swapcase(), "", "0", "\xe9" * 40,
    ):  # fmt: skip
        check_refused(sold, header, kind="proof-invalid")
    for other in (
        text + text, text + " x", f"[{text}]", json.dumps(text), text.replace('"challenge"', '"Challenge"', 1),
        text[:-1] + ', "extra": 1}', text.replace('"solution"', '"s\\u006flution"')[:-1],
        text.replace('"signature"', '"signature": "", "signature"', 1), text.replace('"cost"', '"cost": 1, "cost"', 1), "\ufeff" + text,
        text.replace("{", "{/**/", 1), "null", "{}", "[]", "1",
        "[" * 1000, '{"challenge": NaN, "solution": {}}',
    ):  # fmt: skip
        check_refused(sold, base64.b64encode(other.encode()).decode(), kind="proof-invalid")


def test_payloads_of_the_first_version_are_refused(sold):
    old = {"algorithm": "SHA-256", "challenge": "0" * 64, "number": 1, "salt": "salt?expires=9999999999&", "signature": "0" * 64}
    for payload in (old, {**old, "took": 5}, {"challenge": old, "solution": {"counter": 1, "derivedKey": "0" * 64}}):
        check_refused(sold, header_of(payload), kind="proof-invalid")


def test_a_proof_is_good_for_its_time_alone(sold):
    ttl = sold.rig.service.flow.proofs.ttl_seconds
    for late in (-ttl - 1, -ttl - 3600, -(10**9)):
        check_refused(sold, sold.issued(at=late), kind="proof-expired")
    assert paid(sold.rig.url, sold.query, sold.issued(at=-ttl + 30)).status == 200


def test_a_proof_is_good_for_its_query_model_artefact_and_prices_alone(sold):
    check_refused(sold, sold.issued(prices="0" * 16), kind="proof-mismatch")
    check_refused(sold, sold.issued(model="other"), kind="proof-mismatch")
    check_refused(sold, sold.issued(artifact_digest="0" * 64), kind="proof-mismatch")
    check_refused(sold, sold.issued(query_digest=bytes(32)), kind="proof-mismatch")
    good = header_of(sold.proof)
    for queries in (1 - sold.query, np.concatenate([sold.query] * 2), np.concatenate([sold.query, DIGITS[:1]]), DIGITS[:1], GLYPHS[:3]):
        check_refused(sold, good, kind="proof-mismatch", queries=queries)
    pixel = sold.query.copy()
    pixel[0, 0, 0, 0] = 1 / 255 if pixel[0, 0, 0, 0] != np.float32(1 / 255) else 0
    check_refused(sold, good, kind="proof-mismatch", queries=pixel)


def test_a_proof_by_another_key_of_the_same_name_is_none(sold):
    ours = sold.rig.service.flow.proofs
    for boot_id in (ours.boot_id, None, "another"):
        proofs = Proofs([ProofKey("process", np.random.default_rng(1).bytes(32))], ours.puzzle, boot_id=boot_id)
        check_refused(sold, sold.issued(proofs=proofs), kind="proof-invalid")


def test_two_proofs_in_one_request_are_none(sold):
    before = sold.work
    for proofs in ((header_of(sold.proof), header_of(sold.proof)), (header_of(sold.proof), "AAAA")):
        assert paid(sold.rig.url, sold.query, *proofs).status == 400
    check_refused(sold, f"{header_of(sold.proof)},{header_of(sold.proof)}", kind="proof-invalid")
    assert sold.work == before


@pytest.mark.parametrize(
    ("size", "statuses"), [(4_097, {402}), (12_000, {402}), (20_000, {431}), (100_000, {400, 431}), (5_000_000, {400, 431})]
)
def test_a_proof_that_is_too_long_is_not_looked_at(sold, size, statuses):
    headers, body = infer_message(sold.query)
    before = sold.work
    content = request_text("POST", INFER, [("Connection", "close"), *headers.items(), ("Guard-Proof", "A" * size)], body)
    found = answers_in(exchanged(sold.rig.url, content))
    assert {answer.status for answer in found} <= statuses  # none where it closes while we still send
    assert sold.work == before


def test_hundreds_of_forgeries_cost_neither_scorer_nor_model_server_anything(sold):
    rng = np.random.default_rng(0)
    before, good = sold.work, header_of(sold.proof)
    for _ in range(300):
        place = int(rng.integers(len(good)))
        forged = good[:place] + "ABCDEFGHIJKLMNOP0123456789+/"[int(rng.integers(28))] + good[place + 1 :]
        if _meaning(forged) != _meaning(good):
            check_refused(sold, forged)
    assert sold.work == before


def _meaning(header: str) -> Any:
    """What is signed of a proof: counter and time are not, and the derived key's digits have two cases."""
    try:
        found = json.loads(base64.b64decode(header))
        return found["challenge"], found["solution"]["derivedKey"].lower(), sorted(found), sorted(found["solution"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return header


def test_ten_thousand_mutations_make_no_forgery(sold):
    rng = np.random.default_rng(1)
    proofs, bound, text, now = sold.rig.service.flow.proofs, sold.bound(), json.dumps(sold.proof).encode(), time.time()
    assert proofs.verify(base64.b64encode(text).decode(), bound, now).result == "valid"
    same = _meaning(header_of(sold.proof))
    for number in range(10_000):
        mutant = bytearray(text)
        for _ in range(1 + number % 3):
            place, kind = int(rng.integers(len(mutant))), int(rng.integers(4))
            piece = bytes(mutant[place : place + int(rng.integers(1, 9))])
            mutant[place : place + len(piece)] = (bytes([int(rng.integers(32, 127))]), b"", piece * 2, piece[::-1])[kind]
        header = base64.b64encode(mutant).decode()
        if proofs.verify(header, bound, now).result == "valid":
            assert _meaning(header) == same, mutant


def test_after_all_of_this_the_proof_still_passes_and_then_never_again(sold):
    before = sold.work
    assert paid(sold.rig.url, sold.query, header_of(sold.proof)).status == 200
    assert sold.work == (before[0], before[1] + 1)  # paid for: not scored again
    for other in (
        sold.proof, changed(sold.proof, ("solution", "counter"), 7), changed(sold.proof, ("solution", "time"), 1),
        dict(reversed(sold.proof.items())),
        changed(sold.proof, ("solution", "derivedKey"), sold.proof["solution"]["derivedKey"].upper()),
    ):  # fmt: skip
        answer = paid(sold.rig.url, sold.query, header_of(other))
        assert check_problem(answer) == "proof-replayed"
    answer = paid(sold.rig.url, sold.query, base64.b64encode(json.dumps(sold.proof, indent=1).encode()).decode())
    assert check_problem(answer) == "proof-replayed"
    assert sold.work == (before[0], before[1] + 1)


def test_forty_redemptions_at_once_buy_one_answer(sold):
    proof, before = sold.issued(), sold.work
    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(lambda _: paid(sold.rig.url, sold.query, proof), range(40)))
    assert [answer.status for answer in answers].count(200) == 1
    assert {check_problem(answer) for answer in answers if answer.status != 200} == {"proof-replayed"}
    assert sold.work == (before[0], before[1] + 1)


# ---------------------------------------------------------------------- across lives, artefacts and keys

FIXED = key("one", 1)


def test_a_proof_from_before_a_restart_buys_nothing_with_a_store_in_memory():
    for keys, kind in ((None, "proof-invalid"), (FIXED, "proof-expired")):
        with rigged(proofs={"keys": keys}) as rig:
            query, proof = challenged(rig.url)
        with rigged(proofs={"keys": keys}) as rig:
            sold = sold_by(rig)
            check_refused(sold, header_of(proof), kind=kind, queries=query)


def test_a_reload_voids_the_proofs_of_the_artefact_before(tmp_path):
    folder = tmp_path / "artefact"
    shutil.copytree(DEMO / "artefact", folder)
    with rigged(artifact=folder) as rig:
        query, proof = challenged(rig.url)
        other, second = challenged(rig.url)
        scorer = Scorer(folder)
        scorer.save(scorer.calibration.threshold(0.2))
        old = rig.service.snapshot.artifact_digest
        assert rig.run(rig.service.reload()) != old
        before = rig.upstream.answered
        answer = paid(rig.url, query, header_of(proof))
        assert check_problem(answer) == "proof-mismatch"
        assert "challenge" not in json.loads(answer.body)  # what it costs now is not known before it is judged again
        assert check_problem(paid(rig.url, other, header_of(second))) == "proof-mismatch"
        assert rig.upstream.answered == before
        again, fresh = challenged(rig.url)
        assert paid(rig.url, again, header_of(fresh)).status == 200


def test_a_key_that_is_rotated_verifies_until_it_is_gone():
    old, new = key("old", 2), key("new", 3)
    with rigged(proofs={"keys": old}) as rig:
        query, proof = challenged(rig.url)
        _, second = challenged(rig.url)
        boot_id = rig.service.flow.proofs.boot_id

        def rotate(keys: str) -> None:
            rig.service.flow.proofs = make_proofs(ProofSettings(keys=keys, puzzle="pbkdf2"), boot_id=boot_id)

        rotate(f"{new},{old}")
        assert paid(rig.url, query, header_of(proof)).status == 200
        rig.service.flow.cache._verdicts.clear()
        _, fresh = challenged(rig.url)
        assert fresh["challenge"]["parameters"]["data"]["k"] == "new"
        rotate(new)
        assert check_problem(paid(rig.url, query, header_of(second))) == "proof-invalid"
        assert paid(rig.url, query, header_of(fresh)).status == 200


@pytest.mark.skipif(REDIS is None, reason=NO_REDIS)
def test_guards_that_share_a_store_rotate_keys_without_a_client_noticing():
    old, new = key("old", 4), key("new", 5)
    upstream = DemoServer(DEMO / "victim.onnx")

    def sharing(address: str, store: str, keys: str) -> Any:
        return rigged(upstream_url=address, proofs={"store": store, "keys": keys})

    with (
        redis_process() as (_, store), served(upstream) as address,
        sharing(address, store, old) as first, sharing(address, store, f"{new},{old}") as second, sharing(address, store, new) as third,
    ):  # fmt: skip
        query, proof = challenged(first.url)
        _, other = challenged(second.url)
        before = upstream.answered
        assert check_problem(paid(third.url, query, header_of(proof))) == "proof-invalid"
        assert paid(second.url, query, header_of(proof)).status == 200
        assert check_problem(paid(first.url, query, header_of(proof))) == "proof-replayed"
        assert check_problem(paid(first.url, query, header_of(other))) == "proof-invalid"  # its key is not known there yet
        assert paid(third.url, query, header_of(other)).status == 200
        assert upstream.answered == before + 2


def test_in_shadow_mode_a_forged_proof_changes_nothing():
    with rigged(mode="shadow") as rig:
        assert {paid(rig.url, glyph[None], "forged").status for glyph in GLYPHS[:8]} == {200}
        assert {decision.proof for decision in rig.noted.decisions} == {""}
