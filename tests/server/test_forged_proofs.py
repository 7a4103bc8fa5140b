"""Forged proofs: nothing that was changed, moved, malleated or made up is taken, and none of it makes the server work."""

import base64
import json
from typing import Any

import altcha
import numpy as np
import pytest
from honest_proofs import BOUND, CHARGE, NEW, NOW, header_of, made, result_of, solved
from hypothesis import given, settings
from hypothesis import strategies as st

from sameguard.server import proofs as module
from sameguard.server.proofs import PROOF_BYTES, InvalidProofError, read_proof


@pytest.fixture(scope="module")
def proof() -> dict[str, Any]:
    return solved(made().issue(CHARGE, BOUND, NOW))


def paths_of(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    """The path of every member, inner ones too."""
    if not isinstance(value, dict):
        return []
    return [found for key, inner in value.items() for found in ((*path, key), *paths_of(inner, (*path, key)))]


def changed(proof: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    copy = json.loads(json.dumps(proof))
    holder = copy
    for key in path[:-1]:
        holder = holder[key]
    if value is KeyError:
        del holder[path[-1]]
    else:
        holder[path[-1]] = value
    return copy


EXAMPLE = solved(made(NEW, boot_id="life").issue(CHARGE, BOUND, NOW))
UNSIGNED = {("solution", "counter"), ("solution", "time")}  # never used: altcha's fast path does not look at them
SIGNED = [path for path in paths_of(EXAMPLE) if path not in UNSIGNED]
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-1, 2**64), st.floats(allow_nan=False), st.text(max_size=70), st.text("0123456789abcdef", min_size=32, max_size=64),
    st.just({}), st.just([]), st.dictionaries(st.text(max_size=3), st.integers(), max_size=3), st.just(KeyError),
)  # fmt: skip


@pytest.mark.parametrize("path", SIGNED, ids=".".join)
@given(value=VALUES)
@settings(max_examples=40, deadline=None)
def test_no_member_can_be_changed_or_left_out(path, value):
    holder = EXAMPLE
    for key in path:
        holder = holder[key]
    if value is not KeyError and json.dumps(value) == json.dumps(holder):
        return
    assert result_of(made(boot_id="life"), header_of(changed(EXAMPLE, path, value))) != "valid"


@given(number=st.integers(0, 10**6), digit=st.sampled_from("0123456789abcdefABCDEF"))
@settings(max_examples=300, deadline=None)
def test_no_digit_of_the_text_can_be_changed(number, digit):
    text = json.dumps({"challenge": EXAMPLE["challenge"], "solution": {"derivedKey": EXAMPLE["solution"]["derivedKey"], "counter": 1}})
    place = number % (len(text) - len(', "counter": 1}}'))
    other = text[:place] + digit + text[place + 1 :]
    if other.lower() == text.lower():  # the derived key may be written in capitals; nothing else may, see above
        return
    assert result_of(made(boot_id="life"), base64.b64encode(other.encode()).decode()) != "valid"


@given(text=st.one_of(st.text(max_size=200), st.binary(max_size=200).map(lambda raw: base64.b64encode(raw).decode())))
def test_whatever_a_client_sends_there_is_a_verdict(text):
    assert result_of(made(), text) == "invalid"


@pytest.mark.parametrize("path", [(), ("challenge",), ("challenge", "parameters"), ("challenge", "parameters", "data"), ("solution",)])
@pytest.mark.parametrize("name", ["extra", "__proto__", "number", "Counter"])
def test_unknown_members_are_refused_at_every_level(proof, path, name):
    with pytest.raises(InvalidProofError, match="must be an object of"):
        read_proof(header_of(changed(proof, (*path, name), 1)))
    assert result_of(made(), header_of(changed(proof, (*path, name), 1))) == "invalid"


@pytest.mark.parametrize("signature", ["changed", "made up"])
def test_a_time_that_is_over_excuses_no_forged_signature(proof, signature):
    late = changed(proof, ("challenge", "parameters", "expiresAt"), int(NOW) - 1_000_000)
    if signature == "made up":
        late = changed(late, ("challenge", "signature"), "0" * 64)
    verdict = made().verify(header_of(late), BOUND, NOW)
    assert verdict[:2] == ("invalid", "its challenge was not signed by us, and its time is over")


@pytest.mark.parametrize("model", ["cifar10", 'modèle "é" \\ \u2028 \U0001f600 \x7f \x01\t'])
def test_whose_time_is_over_is_told_so_where_we_signed_it_under_any_name(model):
    bound, then = BOUND._replace(model=model), NOW - 1_000_000
    late = header_of(solved(made().issue(CHARGE, bound, then)))
    assert result_of(made(), late, bound) == "expired"


def test_repeated_members_are_refused(proof):
    text = json.dumps(proof)
    for inner in ('"counter": ', '"nonce": ', '"challenge": ', '"l": '):
        start = text.index(inner)
        twice = text[:start] + inner + '"0", ' + text[start:]
        with pytest.raises(InvalidProofError, match="proof must be base64 of strict JSON"):
            read_proof(base64.b64encode(twice.encode()).decode())


def test_the_texts_of_one_proof_all_redeem_one_nonce(proof):
    spaced = base64.b64encode(json.dumps(proof, indent=2).encode()).decode()
    reordered = header_of(dict(reversed(proof.items())))
    shouting = header_of(changed(proof, ("solution", "derivedKey"), proof["solution"]["derivedKey"].upper()))
    otherwise_counted = header_of(changed(proof, ("solution", "counter"), 0))
    headers = {header_of(proof), spaced, reordered, shouting, otherwise_counted}
    assert len(headers) == 5
    assert {made().verify(header, BOUND, NOW)[::2] for header in headers} == {("valid", proof["challenge"]["parameters"]["nonce"], 2)}


def test_malleated_base64_is_refused(proof):
    header = header_of(changed(proof, ("solution", "time"), 1.0))
    assert result_of(made(), header) == "valid"
    for other in (
        header + "\n",
        header[:8] + "!!" + header[8:],
        header[:80] + "\r\n" + header[80:],
        " " + header,
        header + "====",
        header.rstrip("=") + "*",
    ):
        with pytest.raises(InvalidProofError, match="base64"):
            read_proof(other)
    for text in (json.dumps(proof) + " " * n for n in range(3)):
        padded = base64.b64encode(text.encode()).decode()
        if padded.endswith("="):
            last = padded.rstrip("=")[-1]
            alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
            loose = padded.rstrip("=")[:-1] + alphabet[alphabet.index(last) + 1] + "=" * padded.count("=")
            assert base64.b64decode(loose) == base64.b64decode(padded)
            with pytest.raises(InvalidProofError, match="canonical base64, got unused bits"):
                read_proof(loose)
            with pytest.raises(InvalidProofError, match="strict base64"):
                read_proof(padded.rstrip("="))


@pytest.mark.parametrize(
    "text",
    ["", "null", "[]", "1", '"x"', "{}", '{"challenge":NaN}', "[" * 2000, "\ufeff{}", "{'challenge':1}", '{"challenge":{},"solution":{}}'],
)
def test_what_is_not_the_json_of_a_proof_is_refused(text):
    with pytest.raises(InvalidProofError, match=r"proof must be base64 of strict JSON|must be an object of"):
        read_proof(base64.b64encode(text.encode()).decode())


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("solution", "counter"), -5, "counter must be a whole number from 0 to 4294967295"),
        (("solution", "counter"), True, "counter must be a whole number"),
        (("solution", "counter"), 2**32, "counter must be a whole number"),
        (("solution", "time"), "1", "time must be a number"),
        (("challenge", "parameters", "keySignature"), "", "keySignature must be text of hexadecimal digits"),
        (("challenge", "parameters", "nonce"), "A" * 32, "nonce must be text of hexadecimal digits"),
        (("challenge", "parameters", "expiresAt"), 1e9, "expiresAt must be a whole number"),
        (("challenge", "parameters", "data", "m"), None, "m must be text"),
    ],
)
def test_members_of_another_type_are_refused_by_name(proof, path, value, message):
    with pytest.raises(InvalidProofError, match=message):
        read_proof(header_of(changed(proof, path, value)))


def test_a_header_that_is_too_long_is_not_looked_at(monkeypatch, proof):
    monkeypatch.setattr(module.base64, "b64decode", lambda *_, **__: pytest.fail("it was decoded"))
    for header in ("A" * (PROOF_BYTES + 1), header_of(proof) + " " * PROOF_BYTES, "A" * 5_000_000):
        with pytest.raises(InvalidProofError, match="proof must have at most 4096 bytes, got more"):
            read_proof(header)


def test_payloads_of_the_first_version_are_refused():
    challenge = altcha.ChallengeV1("SHA-256", "0" * 64, 5, "salt?expires=9999999999&", "0" * 64)
    old = {
        "algorithm": challenge.algorithm, "challenge": challenge.challenge, "number": 1, "salt": challenge.salt, "signature": challenge.signature
    }  # fmt: skip
    for payload in (old, {**old, "took": 5}, {"challenge": old, "solution": {"counter": 1, "derivedKey": "0" * 64}}):
        assert result_of(made(), header_of(payload)) == "invalid"


def test_no_key_derivation_runs_on_the_way_whatever_the_client_claims(monkeypatch, proof):
    def never(*_: Any) -> bytes:
        pytest.fail("a client made the server work")

    proofs = made()
    for name in ("derive_key_pbkdf2", "derive_key_scrypt", "derive_key_argon2id", "derive_key_sha"):
        monkeypatch.setattr(altcha.v2, name, never)
    assert result_of(proofs, header_of(proof)) == "valid"
    for path, value in (
        (("challenge", "parameters", "cost"), 2**40),
        (("challenge", "parameters", "algorithm"), "SHA-256"),
        (("challenge", "parameters", "keySignature"), KeyError),
        (("challenge", "parameters", "memoryCost"), 2**30),
        (("solution", "derivedKey"), "0" * 64),
    ):
        assert result_of(proofs, header_of(changed(proof, path, value))) == "invalid"


def test_a_solution_of_another_challenge_is_wrong(proof):
    other = solved(made().issue(CHARGE, BOUND, NOW))
    swapped = {"challenge": proof["challenge"], "solution": other["solution"]}
    assert made().verify(header_of(swapped), BOUND, NOW)[:2] == ("invalid", "its solution is wrong")


def test_the_two_secrets_of_a_key_do_not_stand_in_for_each_other(proof):
    data = proof["challenge"]["parameters"]["data"]
    for secret, key_secret in ((b"solution", b"challenge"), (b"challenge", b"challenge"), (b"solution", b"solution")):
        forged = altcha.create_challenge(
            "PBKDF2/SHA-256",
            1,
            counter=1,
            expires_at=int(NOW) + 9,
            data=data,
            hmac_secret=NEW.part(secret),
            hmac_key_secret=NEW.part(key_secret),
        )
        assert result_of(made(), altcha.Payload(forged, altcha.solve_challenge(forged)).to_base64()) == "invalid"


@pytest.mark.slow
def test_a_million_mutations_make_no_forgery():
    """Bytes of the JSON replaced, dropped or doubled; a mutant that is still the same proof is not counted as one."""
    rng = np.random.default_rng(0)
    proofs, text = made(boot_id="life"), json.dumps(EXAMPLE).encode()
    signed = {"challenge": EXAMPLE["challenge"], "key": EXAMPLE["solution"]["derivedKey"]}
    for number in range(1_000_000):
        place, kind, byte = int(rng.integers(len(text))), number % 3, bytes([int(rng.integers(32, 127))])
        mutant = text[:place] + (byte, b"", text[place : place + 1] * 2)[kind] + text[place + 1 :]
        if result_of(proofs, base64.b64encode(mutant).decode()) == "valid":
            found = json.loads(mutant)
            assert {"challenge": found["challenge"], "key": found["solution"]["derivedKey"].lower()} == signed
