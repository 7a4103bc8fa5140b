"""Settings: one model for file, environment and flags; every mistake is named with the place that it came from."""

import re
import runpy
from pathlib import Path

import pytest
from pydantic import ValidationError

from sameguard.errors import ConfigurationError
from sameguard.server.keys import read_keys
from sameguard.server.settings import ProofSettings, Settings, every_setting
from sameguard.server.settings_reading import read_settings

ROOT = Path(__file__).resolve().parents[2]
GOOD = "artifact: guard\nupstream:\n  url: http://127.0.0.1:8000\n  model: digits\n"
KEY = bytes(range(32)).hex()


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "guard.yaml"
    path.write_text(text)
    return path


def test_a_short_file_is_enough_and_starts_in_shadow(tmp_path):
    settings = read_settings(written(tmp_path, GOOD), environment={})
    assert settings.mode == "shadow"
    assert settings.policy.kind == "proof-of-work"
    assert settings.listen.host == "127.0.0.1"


def test_flags_win_over_the_environment_and_the_environment_over_the_file(tmp_path, monkeypatch):
    path = written(tmp_path, GOOD + "listen:\n  port: 1\n  max_rows: 5\nscorer:\n  batch_rows: 2\n")
    monkeypatch.setenv("SAMEGUARD_LISTEN__PORT", "2")
    monkeypatch.setenv("SAMEGUARD_SCORER__BATCH_ROWS", "3")
    settings = read_settings(path, {"listen": {"port": 4}})
    assert (settings.listen.port, settings.listen.max_rows, settings.scorer.batch_rows) == (4, 5, 3)


def test_every_mistake_is_listed_with_its_place(tmp_path, monkeypatch):
    path = written(tmp_path, GOOD + "listen:\n  port: 70000\n  prot: 1\n")
    monkeypatch.setenv("SAMEGUARD_SCORER__BATCH_ROWS", "0")
    with pytest.raises(ConfigurationError) as caught:
        read_settings(path, {"mode": "off"})
    text = str(caught.value)
    assert f"listen.port ({path})" in text
    assert f"listen.prot ({path})" in text
    assert "mode (flag): Input should be 'shadow' or 'enforce', got 'off'" in text
    assert "scorer.batch_rows (environment, SAMEGUARD_SCORER__BATCH_ROWS)" in text


def test_what_is_missing_is_named():
    with pytest.raises(ConfigurationError, match=r"artifact \(missing\)[\s\S]*upstream \(missing\)"):
        read_settings(None, environment={})


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("listen: {prot: 1}", "listen.prot (PLACE): is no setting: did you mean port?"),
        ("max_rows: 5", "max_rows (PLACE): is no setting: did you mean listen.max_rows?"),
        ("cache: {zzz: 5}", "cache.zzz (PLACE): is no setting: cache has seconds, entries"),
        ("upstream: {url: 'http://a', plain_json: {heath: /x}}", "upstream.plain_json.heath (PLACE): is no setting: did you mean health?"),
        ("zzz: 1", "zzz (PLACE): is no setting: the top has artifact, artifact_digest, mode"),
    ],
)
def test_an_unknown_name_is_answered_with_names_that_are_known(tmp_path, text, remedy):
    path = written(tmp_path, "artifact: a\n" + ("" if text.startswith("upstream") else "upstream: {url: 'http://a'}\n") + text)
    with pytest.raises(ConfigurationError) as caught:
        read_settings(path, environment={})
    assert remedy.replace("PLACE", str(path)) in str(caught.value)


def test_variables_values_and_contradictions_are_told_together(tmp_path):
    with pytest.raises(ConfigurationError, match=r"SAMEGUARD_LISTENN__PORT names no setting: did you mean listen\?[\s\S]*rollout"):
        read_settings(written(tmp_path, GOOD + "rollout: 2\n"), environment={"SAMEGUARD_LISTENN__PORT": "1"})
    with pytest.raises(ConfigurationError, match=r"needs admin\.token[\s\S]*needs audit\.path"):
        read_settings(written(tmp_path, GOOD + "audit: {block: true}\nadmin: {host: 0.0.0.0}\n"), environment={})


def test_a_variable_that_names_no_setting_is_a_mistake():
    with pytest.raises(ConfigurationError, match="SAMEGUARD_UPSTRAEM__URL names no setting"):
        read_settings(None, environment={"SAMEGUARD_UPSTRAEM__URL": "x", "SAMEGUARD_DATA": "data"})


@pytest.mark.parametrize(
    ("text", "match"),
    [
        (GOOD + "mode: shadow\nmode: enforce\n", "a mistake in line 6, column 1: this name stands twice in its section"),
        ("- a\n", "must hold a mapping"),
        ("a: [", "must be YAML, got a mistake in line 1, column 5: expected the node content"),
        ("a: 2026-99-99", "must be YAML, got a ValueError"),
        ("a: " + "[" * 5000, "must be YAML, got a RecursionError"),
        (GOOD + "proofs:\n  store: redis://localhost\n", "shared by several guards"),
        (GOOD + "proofs:\n  store: mysql://localhost\n", "must be memory, or a redis"),
        (GOOD + "proofs:\n  keys: a:1\n  keys_file: b\n", "give one of them"),
        (GOOD + "admin:\n  host: 0.0.0.0\n", "needs admin.token"),
        (GOOD + "admin:\n  token: short\n", "at least 16 characters"),
        (GOOD + "audit:\n  block: true\n", "needs audit.path"),
        (GOOD.replace("http://127.0.0.1:8000", "ftp://a"), "must be http://host"),
        (GOOD.replace("http://127.0.0.1:8000", "http://u:p@a"), "must be http://host"),
        (GOOD.replace("127.0.0.1:8000", "127.0.0.1:99999"), "upstream.url .* must be http://host"),
        (GOOD.replace("127.0.0.1:8000", "999.1.1.1"), "must be http://host"),
        (GOOD.replace("127.0.0.1:8000", "[::1"), "must be http://host"),
        (GOOD + "listen: {host: 999.1.1.1}\n", "listen.host .* must be an address or a host name, got '999.1.1.1'"),
        (GOOD + "listen: {host: ''}\n", "must be an address or a host name"),
        (GOOD + "admin: {host: a b}\n", "admin.host .* must be an address or a host name"),
        (GOOD + "admin: {port: 8080}\n", "listen.port and admin.port must differ on one address, got 8080 for both"),
        (GOOD + "listen: {host: 0.0.0.0}\nadmin: {port: 8080}\n", "must differ on one address"),
        (GOOD + "listen: {host: localhost, port: 8081}\n", "must differ on one address"),
        (GOOD + "identity: {header: ''}\n", "identity.header .* must be a header's name"),
        (GOOD + "identity: {header: x api key}\n", "must be a header's name, letters, digits and hyphens, got 'x api key'"),
        (GOOD + "  pass_headers: [x-tenant, content-length]\n", r"upstream.pass_headers.1 .* may travel on.*got 'content-length'"),
        (GOOD + "  pass_headers: [Guard-Proof]\n", "may travel on"),
        (GOOD + "  pass_headers: [connection]\n", "may travel on"),
        (GOOD + "  pass_headers: [x bad]\n", "must be a header's name"),
        (GOOD + "rollout: 1.5\n", "rollout"),
        (GOOD + "scorer:\n  deadline_seconds: .nan\n", "scorer.deadline_seconds"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path, text, match):
    with pytest.raises(ConfigurationError, match=match):
        read_settings(written(tmp_path, text), environment={})


@pytest.mark.parametrize(
    "text",
    [
        "listen: {host: '::', port: 0}\nadmin: {port: 0}\n",
        "listen: {host: 10.0.0.1, port: 8081}\n",
        "listen: {host: fe80::1%eth0}\n",
        "listen: {host: my_guard.internal.}\n",
        "admin: {port: null}\n",
        "identity: {header: X-API-Key}\n",
        "proofs: {keys_file: /run/secrets/proof-keys}\n",
        "proofs: {keys_file: proof-keys.txt}\n",
    ],
)
def test_what_can_be_is_taken(tmp_path, text):
    read_settings(written(tmp_path, GOOD + text), environment={})


def test_a_model_server_has_any_name_that_a_host_can_have(tmp_path):
    for url in ("http://model_server:8000/v1", "https://büro.example", "http://[::1]:8000", "http://10.0.0.1"):
        assert read_settings(written(tmp_path, GOOD.replace("http://127.0.0.1:8000", f"'{url}/'")), environment={}).upstream.url == url


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="must be readable"):
        read_settings(tmp_path / "none.yaml", environment={})


def test_secrets_are_never_shown(tmp_path):
    settings = read_settings(written(tmp_path, GOOD + f"proofs:\n  keys: a:{KEY}\nadmin:\n  token: hush-hush-hush-hush\n"), environment={})
    assert KEY not in repr(settings)
    assert "hush" not in repr(settings)
    with pytest.raises(ConfigurationError) as caught:
        read_settings(written(tmp_path, GOOD + "proofs:\n  keys: [1, 2]\n"), environment={})
    assert "[1, 2]" not in str(caught.value)


@pytest.mark.parametrize("shown", [repr, str, Settings.model_dump_json, lambda settings: str(settings.model_dump())])
def test_a_stores_password_is_never_shown(tmp_path, shown):
    text = GOOD + f"proofs:\n  keys: a:{KEY}\n  store: redis://user:hunter22@redis:6379\n"
    settings = read_settings(written(tmp_path, text), environment={})
    assert settings.proofs.shared_store == "redis://user:hunter22@redis:6379"
    assert "hunter22" not in shown(settings)
    assert "hunter22" not in shown(settings.model_copy(update={"mode": "enforce"}))


def test_a_mistake_of_a_caller_in_python_shows_no_secret_either():
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate(
            {"artifact": "a", "upstream": {"url": "x"}, "proofs": {"store": "redis://:hunter22@x", "keys": "k:hunter22", "x": 1}}
        )
    assert "hunter22" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "proofs:\n  key: a:SECRET\n",
        "proofs:\n  store: Redis://:SECRET@host\n",
        "upstream:\n  url: http://user:SECRET@host\n",
        "upstream: http://user:SECRET@host\n",
        "upstream:\n  url: http://[SECRET@host\n",
        "proofs: k1:SECRET\n",
        "proofs:\n  puzzle: k1:SECRET\n",
        "proofs:\n  keys_file: k1:SECRET\n",
        "proofs:\n  keys_file: [SECRET]\n",
        "admin: SECRET\n",
        "admin:\n  port: SECRET\n",
        "admin:\n  host: SECRET/\n",
        "proofs: {keys: 2026:SECRET: x}\n",
        'admin:\n  token: "SECRET\n',
        "admin:\n  token: SECRET: x\n",
        "admin:\n  token: *SECRET\n",
        "admin:\n  token: !SECRET\n",
        "admin:\n  token: !SECRET!x\n",
        "admin:\n  token: !it's\"SECRET x\n",
        "admin:\n  token: &SECRET\n  token: 5\n",
        "proofs:\n  keys: {k1:SECRET, k1:SECRET}\n",
        "proofs:\n  k1:SECRET: 1\n  k1:SECRET: 2\n",
        "admin:\n  token: @SECRET\n",
        "admin:\n  token: '\\qSECRET\n",
    ],
)
def test_a_secret_in_the_wrong_place_is_not_shown_either(tmp_path, text):
    content = text if text.startswith("upstream") else GOOD + text
    with pytest.raises(ConfigurationError) as caught:
        read_settings(written(tmp_path, f"artifact: a\n{text}" if content is text else content), environment={})
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize("name", [KEY, f"k1:{KEY}", f"k1:{KEY},k2:{KEY}", KEY.upper()])
def test_a_key_where_its_files_path_belongs_is_refused_and_not_shown(tmp_path, name):
    with pytest.raises(ConfigurationError, match="must be a file's path, and reads as a key") as caught:
        read_settings(written(tmp_path, GOOD + f"proofs:\n  keys_file: {name}\n"), environment={})
    assert name[:40] not in str(caught.value)


def test_keys_come_from_text_or_file_and_the_first_signs(tmp_path):
    path = tmp_path / "keys"
    path.write_text(f"new:{KEY}\nold:{KEY[::-1]}\n")
    assert [key.kid for key in read_keys(ProofSettings(keys_file=path))] == ["new", "old"]
    assert [key.kid for key in read_keys(ProofSettings(keys=f"new:{KEY},old:{KEY[::-1]}"))] == ["new", "old"]


def test_without_keys_each_process_draws_its_own():
    first, second = read_keys(ProofSettings())[0], read_keys(ProofSettings())[0]
    assert first.secret != second.secret


@pytest.mark.parametrize(
    ("keys", "match"),
    [
        ("a", "kid:hex"),
        ("a:xyz", "hexadecimal"),
        ("a:00", "at least 32"),
        (",", "one or two keys"),
        (f"a:{KEY},b:{KEY},c:{KEY}", "one or two keys"),
    ],
)
def test_keys_that_are_none_are_refused_without_being_shown(keys, match):
    with pytest.raises(ConfigurationError, match=match) as caught:
        read_keys(ProofSettings(keys=keys))
    assert KEY not in str(caught.value)


def test_a_key_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match="must be readable text"):
        read_keys(ProofSettings(keys_file=tmp_path / "none"))


# ---------------------------------------------------------------------- docs/settings.md


def test_the_reference_is_what_the_model_says():
    tool = runpy.run_path(str(ROOT / "tools" / "settings_reference.py"))
    document = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    assert tool["rewritten"](document) == document, "run tools/settings_reference.py"


def test_the_reference_names_every_setting_its_variable_and_what_it_means():
    document = (ROOT / "docs" / "settings.md").read_text(encoding="utf-8")
    for setting in every_setting():
        assert setting.field.description, setting.path
        assert f"| `{setting.path}` | `{setting.variable}` |" in document


@pytest.mark.parametrize("name", ["settings.md", "server.md"])
def test_the_documents_examples_are_valid_settings(name, tmp_path):
    blocks = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / name).read_text(encoding="utf-8"), re.DOTALL)
    assert blocks
    for block in blocks:
        read_settings(written(tmp_path, block), environment={})


def test_a_variable_as_the_reference_spells_it_is_read(monkeypatch):
    monkeypatch.setenv("SAMEGUARD_ARTIFACT", "guard")
    monkeypatch.setenv("SAMEGUARD_UPSTREAM__URL", "http://127.0.0.1:8000")
    monkeypatch.setenv("SAMEGUARD_UPSTREAM__PLAIN_JSON__HEALTH", "/healthz")
    monkeypatch.setenv("SAMEGUARD_LISTEN__TRUSTED_PROXIES", '["10.0.0.0/8"]')
    monkeypatch.setenv("SAMEGUARD_QUOTA", '{"rows_per_minute": 600}')
    settings = read_settings()
    assert settings.upstream.plain_json.health == "/healthz"
    assert settings.listen.trusted_proxies == ("10.0.0.0/8",)
    assert settings.quota.rows_per_minute == 600
