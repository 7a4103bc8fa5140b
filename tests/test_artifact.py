"""Artefacts: what was written is read back bit for bit, what was tampered with is refused, a full disk destroys nothing."""

import errno
import json
import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from sameguard import artifact
from sameguard.artifact import MANIFEST, SCHEMA, _manifest_digest, read_artifact, update_artifact, write_artifact
from sameguard.errors import ArtifactError

PLAIN = {"sameguard": "0.1", "contract": {}, "classes": 3, "score": {}, "views": [], "auxiliary": {"view": "full"}}
FILES = {"reconstruction.onnx": bytes(range(256)) * 40, "auxiliary.onnx": b"auxiliary"}
OLD = {"scores": np.arange(5.0), "digests.train": np.array([1, 2**63 + 5], np.uint64)}
NEW = {"scores": np.linspace(0, 1, 7), "names": np.array(["a", "bc"])}


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    write_artifact(tmp_path / "artefact", PLAIN, FILES)
    return tmp_path / "artefact"


def manifest_of(directory: Path) -> dict:
    return json.loads((directory / MANIFEST).read_text())


def edit_manifest(directory: Path, **changes) -> None:
    """Edits the manifest as a forger would: with the right digest over the new content."""
    edited = {**manifest_of(directory), **changes}
    (directory / MANIFEST).write_text(json.dumps({**edited, "sha256": _manifest_digest(edited)}))


def contents(directory: Path) -> dict[str, bytes]:
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


class FullDisk:
    """Makes the nth file opened for writing take half of its bytes and then run out of space."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, nth: int) -> None:
        self.left = nth
        self.reached = False
        opened = Path.open

        def open_on_full_disk(path: Path, mode: str = "r", *args, **kwargs):
            file = opened(path, mode, *args, **kwargs)
            if "w" in mode:
                self.left -= 1
                if self.left == 0:
                    self.reached = True
                    return HalfWritten(file)
            return file

        monkeypatch.setattr(Path, "open", open_on_full_disk)


class HalfWritten:
    def __init__(self, file) -> None:
        self.file = file

    def __enter__(self) -> "HalfWritten":
        return self

    def __exit__(self, *_) -> None:
        self.file.close()

    def write(self, content: bytes) -> None:
        self.file.write(content[: len(content) // 2])
        self.file.flush()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


# ---------------------------------------------------------------------- writing and reading


def test_files_are_read_back_bit_for_bit_with_the_manifest(directory):
    found = read_artifact(directory)
    assert found.files == FILES
    assert found.manifest["schema"] == SCHEMA
    assert {key: found.manifest[key] for key in PLAIN} == PLAIN
    assert found.manifest["files"]["auxiliary.onnx"]["bytes"] == 9
    assert sorted(contents(directory)) == sorted([*FILES, MANIFEST])


def test_only_the_named_files_are_read_and_absent_ones_are_left_out(directory):
    (directory / "reconstruction.onnx").unlink()  # not asked for, so not missed
    assert read_artifact(directory, names=("auxiliary.onnx", "benign.npz")).files == {"auxiliary.onnx": b"auxiliary"}


def test_arrays_are_added_and_replaced_with_the_manifest(directory):
    update_artifact(directory, {**manifest_of(directory), "thresholds": [1]}, OLD)
    first = read_artifact(directory)
    assert first.manifest["thresholds"] == [1]
    assert first.files["auxiliary.onnx"] == b"auxiliary"
    update_artifact(directory, {**manifest_of(directory), "thresholds": [2]}, NEW)
    second = read_artifact(directory)
    assert second.manifest["thresholds"] == [2]
    for found, expected in ((first, OLD), (second, NEW)):
        arrays = found.arrays("benign.npz")
        assert set(arrays) == set(expected)
        assert all(np.array_equal(arrays[name], expected[name]) and arrays[name].dtype == expected[name].dtype for name in expected)
    assert len(list(directory.glob("benign*"))) == 1  # the old arrays are gone


def test_saving_the_same_arrays_again_keeps_them(directory):
    for _ in range(2):
        update_artifact(directory, manifest_of(directory), OLD)
    assert np.array_equal(read_artifact(directory).arrays("benign.npz")["scores"], OLD["scores"])


def test_an_artefact_with_content_is_not_overwritten_unasked(directory):
    with pytest.raises(ArtifactError, match="must be new or empty, got one with content: choose another, or overwrite"):
        write_artifact(directory, PLAIN, {"auxiliary.onnx": b"other"})
    assert read_artifact(directory).files == FILES
    write_artifact(directory, PLAIN, {"auxiliary.onnx": b"other"}, overwrite=True)
    assert read_artifact(directory).files == {"auxiliary.onnx": b"other"}
    assert [path.name for path in directory.parent.iterdir()] == ["artefact"]  # nothing left beside it


def test_an_empty_directory_may_be_filled_and_parents_are_made(tmp_path):
    (tmp_path / "empty").mkdir()
    write_artifact(tmp_path / "empty", PLAIN, FILES)
    write_artifact(tmp_path / "a" / "b" / "artefact", PLAIN, FILES)
    assert read_artifact(tmp_path / "empty").files == read_artifact(tmp_path / "a" / "b" / "artefact").files == FILES


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_of_that_name_is_not_replaced_by_an_artefact(tmp_path, overwrite):
    (tmp_path / "artefact").write_text("precious")
    with pytest.raises(ArtifactError, match="artefact must be a directory, got a file of that name: choose another name"):
        write_artifact(tmp_path / "artefact", PLAIN, FILES, overwrite=overwrite)
    assert contents(tmp_path) == {"artefact": b"precious"}


# ---------------------------------------------------------------------- damaged, foreign, newer


@pytest.mark.parametrize("name", list(FILES))
@pytest.mark.parametrize(
    "damage", [lambda content: content[:-1], lambda content: b"", lambda content: content + b"\0", lambda content: b"X" + content[1:]]
)
def test_a_truncated_or_edited_file_is_refused(directory, name, damage):
    (directory / name).write_bytes(damage(FILES[name]))
    with pytest.raises(ArtifactError, match=rf"{name} must have SHA-256 [0-9a-f]{{64}}, got [0-9a-f]{{64}}: it was truncated or edited"):
        read_artifact(directory)


def test_a_missing_file_is_named(directory):
    (directory / "auxiliary.onnx").unlink()
    with pytest.raises(ArtifactError, match=r"auxiliary.onnx is named in the manifest and missing: restore it or fit again"):
        read_artifact(directory)


def test_a_file_that_cannot_be_read_is_refused(directory):
    (directory / "auxiliary.onnx").unlink()
    (directory / "auxiliary.onnx").mkdir()
    with pytest.raises(ArtifactError, match=r"auxiliary.onnx must be readable, got IsADirectoryError"):
        read_artifact(directory)


def test_a_file_too_large_to_be_ours_is_refused_unread(directory, monkeypatch):
    monkeypatch.setattr(artifact, "SIZE_LIMIT", 100)
    with pytest.raises(ArtifactError, match=r"reconstruction.onnx must be at most 100 bytes, got 10240: it is not ours"):
        read_artifact(directory)


@pytest.mark.parametrize(
    "path", ["../secret", "/etc/hostname", "sub/auxiliary.onnx", "..", ".", "", None, "./auxiliary.onnx", "auxiliary.onnx/"]
)
def test_a_manifest_cannot_point_outside_its_directory(directory, path):
    (directory.parent / "secret").write_bytes(b"auxiliary")  # the right content in the wrong place
    (directory / "sub").mkdir()
    (directory / "sub" / "auxiliary.onnx").write_bytes(b"auxiliary")
    files = manifest_of(directory)["files"]
    entry = files["auxiliary.onnx"] | {"file": path} if path is not None else {"sha256": files["auxiliary.onnx"]["sha256"]}
    edit_manifest(directory, files={**files, "auxiliary.onnx": entry})
    with pytest.raises(ArtifactError, match=r"artefact file auxiliary.onnx must be a plain file name in the artefact's directory, got"):
        read_artifact(directory)


def test_a_file_name_that_no_file_can_have_is_refused(directory):
    files = manifest_of(directory)["files"]
    edit_manifest(directory, files={"auxiliary.onnx": {**files["auxiliary.onnx"], "file": "a\0b"}})
    with pytest.raises(ArtifactError, match="must be readable, got ValueError"):
        read_artifact(directory)


def test_a_newer_schema_is_refused_with_the_version_that_wrote_it(directory):
    edit_manifest(directory, schema=SCHEMA + 1, sameguard="9.9")
    message = rf"has schema {SCHEMA + 1}, this version reads up to {SCHEMA}: upgrade sameguard \(it was written by 9.9\)"
    with pytest.raises(ArtifactError, match=message):
        read_artifact(directory)


def test_a_newer_schema_is_recognised_even_where_it_looks_quite_different(directory):
    (directory / MANIFEST).write_text(json.dumps({"schema": 7}))
    with pytest.raises(ArtifactError, match=r"has schema 7, .* written by an unknown version"):
        read_artifact(directory)


@pytest.mark.parametrize("text", ["[]", "3", '"text"', "{}", '{"schema": "1"}', '{"schema": null}'])
def test_a_manifest_that_is_not_ours_is_refused(directory, text):
    (directory / MANIFEST).write_text(text)
    with pytest.raises(ArtifactError, match=r"must be an object with a schema number, got something else: it is not ours"):
        read_artifact(directory)


@pytest.mark.parametrize("key", [*sorted(PLAIN), "files"])
def test_a_manifest_without_a_required_key_is_refused(directory, key):
    manifest = manifest_of(directory)
    del manifest[key]
    (directory / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(ArtifactError, match=rf"got no {key}: fit again"):
        read_artifact(directory)


def test_two_who_read_the_same_state_cannot_both_change_it(directory):
    first, second = manifest_of(directory), manifest_of(directory)
    update_artifact(directory, first, OLD)
    with pytest.raises(ArtifactError, match="must be as it was when it was read, got another manifest: someone fitted or calibrated it"):
        update_artifact(directory, second, NEW)
    assert np.array_equal(read_artifact(directory).arrays("benign.npz")["scores"], OLD["scores"])


def test_writers_and_readers_in_many_threads_never_meet_a_broken_artefact(directory):
    update_artifact(directory, manifest_of(directory), OLD)

    def write(seed: int) -> None:
        for step in range(8):
            with suppress_changed():
                update_artifact(directory, manifest_of(directory), {"scores": np.full(50, 100.0 * seed + step)})

    def read(_: int) -> None:
        for _ in range(30):
            assert "scores" in read_artifact(directory).arrays("benign.npz")

    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(work, seed) for seed in (1, 2) for work in (write, read)]:
            done.result()


@contextmanager
def suppress_changed():
    try:
        yield
    except ArtifactError as error:
        assert "someone fitted or calibrated it meanwhile" in str(error)  # noqa: PT017 - losing the race is fine, anything else is not


def test_an_edited_manifest_is_refused_whatever_was_edited(directory):
    update_artifact(directory, {**manifest_of(directory), "thresholds": [{"value": 1.5}]}, OLD)
    for old, new in (("1.5", "9.5"), ('"thresholds"', '"Thresholds"'), ('"bytes": 9', '"bytes": 8')):
        text = (directory / MANIFEST).read_text()
        assert old in text
        (directory / MANIFEST).write_text(text.replace(old, new))
        with pytest.raises(ArtifactError, match=r"must have SHA-256 \w{64} over its other entries, got \w{64}: it was edited"):
            read_artifact(directory)
        (directory / MANIFEST).write_text(text)
    assert read_artifact(directory).manifest["thresholds"] == [{"value": 1.5}]


@pytest.mark.parametrize("files", [[], "auxiliary.onnx", None, {"auxiliary.onnx": "auxiliary.onnx"}, {"auxiliary.onnx": None}])
@pytest.mark.parametrize("names", [None, ("auxiliary.onnx",)])
def test_a_manifest_whose_files_are_not_objects_is_refused(directory, files, names):
    edit_manifest(directory, files=files)
    with pytest.raises(ArtifactError, match="must name each of its files with an object, got something else: it was edited"):
        read_artifact(directory, names=names)


@pytest.mark.parametrize("damage", [lambda text: text[:-9], lambda text: b"", lambda text: b"\xff" + text])
def test_a_truncated_manifest_is_refused(directory, damage):
    path = directory / MANIFEST
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ArtifactError, match=r"manifest.json must be readable JSON, got \w+Error: restore it or fit again"):
        read_artifact(directory)


def test_a_directory_without_manifest_and_a_file_are_refused(directory, tmp_path):
    with pytest.raises(ArtifactError, match=r"must hold a manifest.json, got none: make one with `sameguard fit`"):
        read_artifact(tmp_path)
    with pytest.raises(ArtifactError, match="must be readable JSON, got NotADirectoryError"):
        read_artifact(directory / "auxiliary.onnx")


def test_arrays_that_are_absent_damaged_or_pickled_are_refused(directory, tmp_path):
    with pytest.raises(ArtifactError, match=r"must hold a readable benign.npz, got KeyError"):
        read_artifact(directory).arrays("benign.npz")
    with pytest.raises(ArtifactError, match=r"must hold a readable auxiliary.onnx, got"):
        read_artifact(directory).arrays("auxiliary.onnx")
    np.savez(tmp_path / "objects.npz", scores=np.array([{"a": 1}], object))
    write_artifact(tmp_path / "pickled", PLAIN, {"benign.npz": (tmp_path / "objects.npz").read_bytes()})
    with pytest.raises(ArtifactError, match=r"must hold a readable benign.npz, got ValueError: .*allow_pickle=False"):
        read_artifact(tmp_path / "pickled").arrays("benign.npz")


# ---------------------------------------------------------------------- the disk fills


@pytest.mark.parametrize("nth", [1, 2, 3])  # the two files, the manifest
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_disk_that_fills_while_writing_leaves_what_was_there(tmp_path, monkeypatch, nth, overwrite):
    target = tmp_path / "artefact"
    if overwrite:
        write_artifact(target, PLAIN, {"auxiliary.onnx": b"old"})
    before = contents(tmp_path)
    with monkeypatch.context() as patch:
        disk = FullDisk(patch, nth)
        with pytest.raises(ArtifactError, match=r"could not be written: .*No space left on device; nothing was changed"):
            write_artifact(target, PLAIN, FILES, overwrite=overwrite)
        assert disk.reached
    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == (["artefact"] if overwrite else [])


@pytest.mark.parametrize("arrays", [NEW, OLD], ids=["new-arrays", "same-arrays"])
@pytest.mark.parametrize("nth", [1, 2])  # the arrays, the manifest
def test_a_disk_that_fills_while_updating_leaves_the_old_state_loadable(directory, monkeypatch, nth, arrays):
    update_artifact(directory, {**manifest_of(directory), "thresholds": ["old"]}, OLD)
    before = manifest_of(directory)
    with monkeypatch.context() as patch:
        disk = FullDisk(patch, nth)
        with pytest.raises(ArtifactError, match=r"could not be changed: .*No space left on device; it is as it was"):
            update_artifact(directory, {**before, "thresholds": ["new"]}, arrays)
        assert disk.reached
    found = read_artifact(directory)
    assert found.manifest == before
    assert np.array_equal(found.arrays("benign.npz")["scores"], OLD["scores"])
    assert not list(directory.glob("*.tmp"))
    update_artifact(directory, {**before, "thresholds": ["new"]}, arrays)  # with space again, it goes through
    assert read_artifact(directory).manifest["thresholds"] == ["new"]
    assert len(list(directory.glob("benign*"))) == 1


def test_a_disk_without_room_for_a_directory_is_reported_like_any_full_disk(tmp_path, monkeypatch):
    def mkdtemp(**_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(artifact.tempfile, "mkdtemp", mkdtemp)
    with pytest.raises(ArtifactError, match=r"could not be written: .*No space left on device"):
        write_artifact(tmp_path / "artefact", PLAIN, FILES)
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="could not be written"):
        write_artifact(tmp_path / "file" / "artefact", PLAIN, FILES)


def test_where_the_last_rename_fails_the_old_artefact_is_put_back(directory, monkeypatch):
    renamed = Path.rename

    def rename(path: Path, target: Path):
        if path.name.endswith(".tmp"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return renamed(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(ArtifactError, match="could not be written"):
        write_artifact(directory, PLAIN, {"auxiliary.onnx": b"other"}, overwrite=True)
    assert read_artifact(directory).files == FILES
    assert [path.name for path in directory.parent.iterdir()] == ["artefact"]


def test_a_manifest_that_json_cannot_hold_changes_nothing(directory, tmp_path):
    before = contents(directory)
    with pytest.raises(ValueError, match="JSON"):
        update_artifact(directory, {**manifest_of(directory), "agreement": float("nan")}, NEW)
    assert contents(directory) == before
    with pytest.raises(ValueError, match="JSON"):
        write_artifact(tmp_path / "other", {**PLAIN, "agreement": float("inf")}, FILES)
    assert [path.name for path in tmp_path.iterdir()] == ["artefact"]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
@pytest.mark.parametrize("name", [MANIFEST, "auxiliary.onnx"])
def test_a_pipe_or_a_device_in_a_files_place_is_refused_at_once(directory, name):
    for make in (os.mkfifo, lambda path: os.symlink("/dev/zero", path)):
        (directory / name).unlink()
        make(directory / name)
        with pytest.raises(ArtifactError, match="must be a regular file, got something else"):
            read_artifact(directory)


def test_a_manifest_nested_beyond_reason_is_refused(directory):
    (directory / MANIFEST).write_text("[" * 100_000)
    with pytest.raises(ArtifactError, match=r"must be readable JSON, got \w+Error"):
        read_artifact(directory)


def test_ctrl_c_between_the_renames_of_an_overwrite_puts_the_old_artefact_back(directory, monkeypatch):
    before, rename = contents(directory), Path.rename

    def interrupted(self, target):
        if self.name.endswith(".tmp"):
            raise KeyboardInterrupt
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_artifact(directory, PLAIN, {"auxiliary.onnx": b"new"}, overwrite=True)
    assert contents(directory) == before
    assert [path.name for path in directory.parent.iterdir()] == [directory.name]
