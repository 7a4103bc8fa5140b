"""A reload takes nothing into service that cannot guard: artefacts whose checksums are right and whose contents are not."""

import hashlib
import io
import json
import math
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
from processes import free_port
from rig import DEMO, INFER, Rig, demo_queries, infer_message, rigged, served, settings_for

from sameguard.artifact import _manifest_digest
from sameguard.errors import ArtifactError, SameguardError
from sameguard.server import service as service_module
from sameguard.server.checking import check_settings
from sameguard.server.demo_server import DemoServer
from sameguard.server.edge import send_reply
from sameguard.server.replies import Reply

DIGITS = demo_queries()[0]
Manifest = dict[str, Any]
Arrays = dict[str, np.ndarray]


def resealed(folder: Path, change: Callable[[Manifest, Arrays], None]) -> Path:
    """A copy of the demo's artefact with other contents, and checksums that are right over them."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(DEMO / "artefact", folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    entry = manifest["files"]["benign.npz"]
    with np.load(folder / entry["file"], allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    change(manifest, arrays)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    (folder / entry["file"]).write_bytes(buffer.getvalue())
    entry |= {"sha256": hashlib.sha256(buffer.getvalue()).hexdigest(), "bytes": len(buffer.getvalue())}
    manifest["sha256"] = _manifest_digest(manifest)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def manifest_with(**entries: Any) -> Callable[[Manifest, Arrays], None]:
    return lambda manifest, arrays: manifest.update(entries)


def arrays_with(**entries: Any) -> Callable[[Manifest, Arrays], None]:
    return lambda manifest, arrays: arrays.update({name: np.asarray(value) for name, value in entries.items()})


def without(name: str) -> Callable[[Manifest, Arrays], None]:
    return lambda manifest, arrays: arrays.__delitem__(name)


def halved(name: str) -> Callable[[Manifest, Arrays], None]:
    return lambda manifest, arrays: arrays.update({name: arrays[name][::2]})


def nan_in_the_score(manifest: Manifest, arrays: Arrays) -> None:
    for name in [name for name in arrays if name.startswith("combination.")]:
        arrays[name] = np.full_like(arrays[name], np.nan, dtype=np.float64)


def wider_contract(manifest: Manifest, arrays: Arrays) -> None:
    """Another model's: its canary queries are of the shape that it says."""
    manifest["contract"]["shape"] = [1, 16, 16]
    arrays["canary_queries"] = np.zeros((len(arrays["canary_queries"]), 1, 16, 16), np.float32)


def fewer_classes(manifest: Manifest, arrays: Arrays) -> None:
    manifest["classes"] = 7
    arrays["canary_probs"] = np.full((len(arrays["canary_queries"]), 7), 1 / 7, np.float32)


def threshold_with(**entries: Any) -> Callable[[Manifest, Arrays], None]:
    return lambda manifest, arrays: manifest["thresholds"][0].update(entries)


BAD = {
    "classes": manifest_with(classes=7),
    "classes and answers": fewer_classes,
    "contract": lambda manifest, arrays: manifest["contract"].update(shape=[1, 9, 9]),
    "contract and canaries": wider_contract,
    "view": manifest_with(views=["sideways"]),
    "no view": lambda manifest, arrays: manifest["score"].update(views=["full", "masked", "sideways"]),
    "scores NaN": lambda manifest, arrays: arrays["scores"].fill(np.nan),
    "scores text": arrays_with(scores=["a", "b"]),
    "no scores": arrays_with(scores=np.empty(0)),
    "scores a scalar": arrays_with(scores=1.0),
    "short stage A": halved("stage_a_scores"),
    "statistics NaN": lambda manifest, arrays: arrays["statistics_stage_a"].fill(np.inf),
    "canaries' shape": arrays_with(canary_queries=np.zeros((4, 3, 3), np.float32)),
    "canaries out of bounds": lambda manifest, arrays: arrays["canary_queries"].fill(1e6),
    "no canary answers": without("canary_probs"),
    "few canary answers": halved("canary_probs"),
    "score NaN": nan_in_the_score,
    "thresholds": manifest_with(thresholds=[{}]),
    "thresholds a number": manifest_with(thresholds=3),
    "threshold text": threshold_with(value="high"),
    "threshold NaN": threshold_with(value=math.nan),
    "threshold's interval": threshold_with(interval=[]),
    "victim": manifest_with(victim=[]),
    "provider": manifest_with(provider=7),
    "agreement": manifest_with(agreement="much"),
}  # fmt: skip


def answers(rig: Rig) -> int:
    headers, body = infer_message(DIGITS[:1])
    with urllib.request.urlopen(urllib.request.Request(rig.url + INFER, body, headers), timeout=30) as answer:
        return answer.status


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def shadow(tmp_path_factory):
    """A guard in shadow mode, and the folder that it reads its artefact from."""
    folder = resealed(tmp_path_factory.mktemp("reload") / "artefact", lambda manifest, arrays: None)
    with rigged(mode="shadow", artifact=folder) as rig:
        yield rig, folder


@pytest.mark.parametrize("change", BAD.values(), ids=BAD.keys())
def test_a_bad_artefact_is_refused_in_a_sentence_and_the_old_one_stays(shadow, change):
    rig, folder = shadow
    before = rig.service.snapshot
    resealed(folder, change)
    with pytest.raises(SameguardError) as caught:
        rig.run(rig.service.reload())
    assert "\n" not in str(caught.value)
    assert rig.service.snapshot is before
    assert rig.service.upstream.failures == 0
    assert rig.run(rig.service.readiness()).ready
    assert rig.service.description()["artifact"] == before.artifact_digest
    assert answers(rig) == 200


def test_a_good_artefact_is_taken_after_all_that(shadow):
    rig, folder = shadow
    before = rig.service.snapshot
    resealed(folder, manifest_with(note="another"))
    assert rig.run(rig.service.reload()) != before.artifact_digest
    assert rig.service.canary_shift < 1e-3
    assert answers(rig) == 200


@pytest.mark.parametrize("change", [manifest_with(provider=7), without("canary_probs"), manifest_with(thresholds=[{}])])
def test_a_start_and_a_check_of_the_settings_say_the_same_sentence(change, tmp_path):
    folder = resealed(tmp_path / "artefact", change)
    (mistake,) = check_settings(settings_for("http://127.0.0.1:1", artifact=folder)).mistakes
    assert mistake.startswith(f"artefact {folder} must ")
    with pytest.raises(ArtifactError) as caught, rigged(artifact=folder):
        pass
    assert str(caught.value) == mistake


def test_an_artefact_without_canary_queries_is_served(tmp_path):
    def emptied(manifest: Manifest, arrays: Arrays) -> None:
        arrays["canary_queries"], arrays["canary_probs"] = arrays["canary_queries"][:0], arrays["canary_probs"][:0]

    with rigged(mode="shadow", artifact=resealed(tmp_path / "artefact", emptied)) as rig:
        rig.run(rig.service.reload())
        assert rig.service.canary_shift is None
        assert answers(rig) == 200


# ---------------------------------------------------------------------- what the model server says of it


class Moody(DemoServer):
    """Answers inference with this status, if it is not 200."""

    status = 200

    async def __call__(self, scope, receive, send) -> None:
        if scope.get("path") == INFER and self.status != 200:
            await send_reply(send, Reply(self.status, {}, b""), "stub")
        else:
            await super().__call__(scope, receive, send)


def test_an_artefact_whose_canary_queries_the_model_server_refuses_is_not_taken():
    app = Moody(DEMO / "victim.onnx")
    with rigged(app, mode="shadow") as rig:
        before = rig.service.snapshot
        app.status = 400
        with pytest.raises(
            ArtifactError, match=r"must be of the model that is served, got canary queries without an answer: .* status 400"
        ):
            rig.run(rig.service.reload())
        assert rig.service.snapshot is before


def test_where_the_old_artefacts_canary_queries_were_refused_as_well_nothing_is_told_by_the_new_ones():
    app = Moody(DEMO / "victim.onnx")
    app.status = 401
    with rigged(app, mode="shadow") as rig:
        before = rig.service.snapshot
        rig.run(rig.service.reload())
        assert rig.service.snapshot is not before
        assert "status 401" in rig.service.canary_failure


def test_answers_that_moved_are_a_warning_and_no_refusal(tmp_path):
    folder = resealed(tmp_path / "artefact", lambda manifest, arrays: None)
    with structlog.testing.capture_logs() as events, rigged(mode="shadow", artifact=folder) as rig:
        resealed(folder, lambda manifest, arrays: arrays.update(canary_probs=np.roll(arrays["canary_probs"], 1, axis=1)))
        rig.run(rig.service.reload())
        assert rig.service.canary_shift > 0.1
        assert rig.run(rig.service.readiness()).ready
    assert [event["log_level"] for event in events if event["event"] == "canary"] == ["warning"]


def test_with_the_model_server_down_what_can_be_tried_without_it_is_tried(tmp_path, monkeypatch):
    monkeypatch.setattr(service_module, "LOOK_SECONDS", 0.02)
    folder = resealed(tmp_path / "artefact", lambda manifest, arrays: None)
    with served(DemoServer(DEMO / "victim.onnx")) as url, rigged(upstream_url=url, mode="shadow", artifact=folder) as rig:
        before, reached = rig.service.snapshot, rig.service.upstream.settings
        rig.service.upstream.settings = reached.model_copy(update={"url": f"http://127.0.0.1:{free_port()}"})
        resealed(folder, without("canary_probs"))
        with pytest.raises(ArtifactError, match=r"must hold what .* write, got KeyError: 'canary_probs'"):
            rig.run(rig.service.reload())
        assert rig.service.snapshot is before
        resealed(folder, manifest_with(note="another"))
        rig.run(rig.service.reload())
        assert rig.service.snapshot is not before
        assert not rig.service.checked
        rig.service.upstream.settings = reached
        until(lambda: rig.service.checked and rig.service.canary_shift is not None)
