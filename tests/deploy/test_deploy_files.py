"""What is under deploy/ is read here as its tools would read it: no container engine is needed to notice a door left open."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from sameguard.server.settings import Settings
from sameguard.server.settings_reading import read_settings

DEPLOY = Path(__file__).parents[2] / "deploy"
MANIFESTS = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
PINNED = re.compile(r"[a-z0-9./_-]+:[a-z0-9][a-z0-9._-]*[0-9][a-z0-9._-]*")  # a tag that names a version
WORKLOADS = ("Deployment", "StatefulSet")


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text(encoding="utf-8")) if document]


def objects() -> list[dict[str, Any]]:
    return [document for path in MANIFESTS for document in documents(path)]


def the(kind: str, name: str) -> dict[str, Any]:
    (found,) = [entry for entry in objects() if (entry["kind"], entry["metadata"]["name"]) == (kind, name)]
    return found


def pods() -> list[dict[str, Any]]:
    return [entry["spec"]["template"]["spec"] for entry in objects() if entry["kind"] in WORKLOADS]


def containers() -> list[dict[str, Any]]:
    return [container for pod in pods() for container in pod["containers"]]


def compose() -> dict[str, Any]:
    (document,) = documents(DEPLOY / "compose.yaml")
    return document


def default_of(image: str) -> str:
    """The image where no variable chooses another."""
    return re.sub(r"\$\{[A-Z_]+:-([^}]+)\}", r"\1", image)


def settings_of(path: Path) -> Settings:
    return read_settings(path, environment={})


@pytest.fixture
def pod_settings(tmp_path) -> Settings:
    (tmp_path / "guard.yaml").write_text(the("ConfigMap", "guarded-model")["data"]["guard.yaml"])
    return settings_of(tmp_path / "guard.yaml")


# ---------------------------------------------------------------------- settings


def test_the_sample_settings_are_valid_and_begin_in_shadow_mode():
    settings = settings_of(DEPLOY / "guard.yaml")
    assert settings.mode == "shadow"
    assert settings.admin.host == "127.0.0.1"
    assert str(settings.proofs.shared_store).startswith("redis://redis:")


def test_the_pods_settings_are_valid_and_the_upstream_is_on_loopback(pod_settings):
    assert pod_settings.upstream.url == "http://127.0.0.1:8000"
    assert pod_settings.proofs.shared_store == "redis://guarded-model-redis:6379/0"
    assert pod_settings.admin.host == "127.0.0.1"


def test_no_file_holds_a_key_that_works():
    for path in DEPLOY.rglob("*"):
        if path.is_file() and path.suffix != ".json":
            assert not re.search(r"[0-9a-f]{64}", path.read_text(encoding="utf-8")), path


# ---------------------------------------------------------------------- the container file


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"^\s*#.*\n", "", (DEPLOY / "Containerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    lines = [line.strip() for line in text.replace("\\\n", " ").splitlines() if line.strip()]
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines)]


def test_the_image_has_pinned_bases_and_ends_without_privileges():
    bases = [rest.split()[0] for name, rest in instructions() if name == "FROM"]
    assert bases
    assert all(PINNED.fullmatch(base) for base in bases)
    users = [rest for name, rest in instructions() if name == "USER"]
    assert re.fullmatch(r"[1-9][0-9]{3,}:[1-9][0-9]{3,}", users[-1])  # a number: Kubernetes cannot check a name
    last_stage = [name for name, _ in instructions()]
    assert last_stage.index("USER") > len(last_stage) - 1 - last_stage[::-1].index("COPY")


def test_the_image_has_no_torch_and_serves_with_a_health_check_on_the_admin_port():
    found = dict(instructions())
    installs = [word for name, rest in instructions() if name == "RUN" and "pip install" in rest for word in shlex.split(rest)]
    assert ".[redis]" in installs
    assert not [word for word in installs if word.startswith("torch") or "train" in word]
    assert "127.0.0.1:8081/healthz" in found["HEALTHCHECK"]
    assert found["ENTRYPOINT"] == '["sameguard"]'
    assert found["CMD"] == '["serve", "--config", "/etc/sameguard/guard.yaml"]'
    assert "PYTHONDONTWRITEBYTECODE=1" in found["ENV"]  # the root file system may be read-only


def test_what_the_image_copies_is_there_and_gets_past_the_ignore_file():
    kept = {line.removeprefix("!") for line in (DEPLOY / "Containerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    for name, rest in instructions():
        if name == "COPY" and not rest.startswith("--from"):
            for source in rest.split()[:-1]:
                assert (DEPLOY.parent / source).exists()
                assert source in kept


# ---------------------------------------------------------------------- compose


def test_only_the_guard_publishes_a_port_and_the_model_server_has_no_way_out():
    services = compose()["services"]
    assert [name for name, service in services.items() if "ports" in service] == ["guard"]
    assert services["guard"]["ports"] == ["8080:8080"]
    assert not any("network_mode" in service for service in services.values())
    assert services["model"]["networks"] == services["redis"]["networks"] == ["behind"]
    assert compose()["networks"]["behind"]["internal"] is True
    assert settings_of(DEPLOY / "guard.yaml").upstream.url == "http://model:8000"


def test_every_service_is_pinned_bounded_and_without_privileges():
    for name, service in compose()["services"].items():
        assert PINNED.fullmatch(default_of(service["image"])), name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert not service.get("privileged", False), name
        assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory"}, name
    for name in ("guard", "redis"):
        service = compose()["services"][name]
        assert service["read_only"] is True
        assert re.fullmatch(r"[1-9][0-9]*:[1-9][0-9]*", service["user"])


def test_the_composed_guard_has_what_its_settings_name():
    guard, settings = compose()["services"]["guard"], settings_of(DEPLOY / "guard.yaml")
    mounts = {volume.split(":")[1]: volume for volume in guard["volumes"]}
    assert mounts[str(settings.artifact)].endswith(":ro")
    assert mounts["/etc/sameguard/guard.yaml"].startswith("./guard.yaml:")
    assert str(settings.audit.path.parent) in mounts
    assert settings.proofs.keys_file == Path("/run/secrets") / guard["secrets"][0]
    assert guard["secrets"][0] in compose()["secrets"]
    assert (DEPLOY / guard["build"]["context"] / guard["build"]["dockerfile"]).resolve() == DEPLOY / "Containerfile"
    assert float(guard["stop_grace_period"].rstrip("s")) > settings.listen.grace_seconds


def test_the_secrets_of_compose_are_ignored_by_git():
    ignored = (DEPLOY / ".gitignore").read_text().splitlines()
    assert {"/secrets/", "/artifact/"} <= set(ignored)


@pytest.mark.parametrize("where", ["compose", "kubernetes"])
def test_the_replay_store_evicts_nothing_and_writes_down_what_is_spent(where):
    if where == "compose":
        command = compose()["services"]["redis"]["command"]
    else:
        (command,) = [container["command"] for container in containers() if container["name"] == "redis"]
    options = dict(zip(command[1::2], command[2::2], strict=True))
    assert options["--maxmemory-policy"] == "noeviction"
    assert options["--appendonly"] == "yes"


# ---------------------------------------------------------------------- Kubernetes


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_every_manifest_is_one_or_more_named_objects(path):
    for document in documents(path):
        assert {"apiVersion", "kind", "metadata"} <= document.keys()
        assert re.fullmatch(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?", document["metadata"]["name"])


def test_no_container_has_privileges_and_all_are_pinned_and_bounded():
    assert {container["name"] for container in containers()} == {"guard", "predictor", "redis"}
    for container in containers():
        context = container["securityContext"]
        assert PINNED.fullmatch(container["image"]), container["name"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert not context.get("privileged", False)
        for bound in ("requests", "limits"):
            assert set(container["resources"][bound]) == {"cpu", "memory"}
    for pod in pods():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] > 0
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert pod["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
        assert not [volume for volume in pod.get("volumes", []) if "hostPath" in volume]


def test_the_predictor_is_on_loopback_and_behind_no_service(pod_settings):
    (predictor,) = [container for container in containers() if container["name"] == "predictor"]
    environment = {entry["name"]: entry["value"] for entry in predictor["env"]}
    assert f"http://{environment['MLSERVER_HOST']}:{environment['MLSERVER_HTTP_PORT']}" == pod_settings.upstream.url
    assert "ports" not in predictor
    service = the("Service", "guarded-model")["spec"]
    (guard,) = [container for container in containers() if container["name"] == "guard"]
    assert guard["ports"] == [{"name": "http", "containerPort": pod_settings.listen.port}]
    assert [port["targetPort"] for port in service["ports"]] == ["http"]
    assert service["selector"] == the("Deployment", "guarded-model")["spec"]["selector"]["matchLabels"]


def test_the_network_policies_open_the_guards_port_and_the_stores_to_the_guard_only(pod_settings):
    labels = the("Deployment", "guarded-model")["spec"]["template"]["metadata"]["labels"]
    policy = the("NetworkPolicy", "guarded-model")["spec"]
    assert policy["podSelector"]["matchLabels"].items() <= labels.items()
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert [port["port"] for rule in policy["ingress"] for port in rule["ports"]] == [pod_settings.listen.port]
    assert all(rule["from"] for rule in policy["ingress"])
    store = the("NetworkPolicy", "guarded-model-redis")["spec"]
    assert store["podSelector"]["matchLabels"] == the("StatefulSet", "guarded-model-redis")["spec"]["selector"]["matchLabels"]
    assert store["ingress"][0]["from"] == [{"podSelector": {"matchLabels": labels}}]
    assert store["egress"] == []


def test_the_guards_probes_are_on_its_admin_port_inside_the_pod(pod_settings):
    (guard,) = [container for container in containers() if container["name"] == "guard"]
    address = f"http://{pod_settings.admin.host}:{pod_settings.admin.port}"
    paths = {"startupProbe": "healthz", "livenessProbe": "healthz", "readinessProbe": "readyz"}
    for probe, path in paths.items():
        assert f"{address}/{path}" in guard[probe]["exec"]["command"][-1]
        compile(guard[probe]["exec"]["command"][-1], probe, "exec")


def test_secrets_come_by_reference_and_mounts_are_what_the_settings_name(pod_settings):
    deployment = the("Deployment", "guarded-model")["spec"]["template"]["spec"]
    volumes = {volume["name"]: volume for volume in deployment["volumes"]}
    guard, predictor = deployment["containers"]
    mounts = {mount["mountPath"]: mount for mount in guard["volumeMounts"]}
    assert "secret" in volumes[mounts[str(pod_settings.proofs.keys_file.parent)]["name"]]
    assert mounts[str(pod_settings.artifact)]["readOnly"] is True
    assert volumes["settings"]["configMap"]["name"] == the("ConfigMap", "guarded-model")["metadata"]["name"]
    assert not {"keys", "artifact"} & {mount["name"] for mount in predictor["volumeMounts"]}
    assert not [entry for entry in objects() if entry["kind"] == "Secret"]
    patience = deployment["terminationGracePeriodSeconds"]
    assert patience > int(guard["lifecycle"]["preStop"]["exec"]["command"][1]) + pod_settings.listen.grace_seconds
    assert int(predictor["lifecycle"]["preStop"]["exec"]["command"][1]) >= pod_settings.listen.grace_seconds
