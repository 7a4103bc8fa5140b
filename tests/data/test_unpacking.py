"""unpack(): plain files below the target, and nothing left behind when an archive is anything else."""

import stat
import tarfile
import zipfile

import pytest
from fake_files import tar_gz, tree

from sameguard.data import unpacking
from sameguard.data.unpacking import unpack
from sameguard.errors import DownloadError

GOOD = {"set/a.bin": b"first", "set/deep/b.bin": b"second", "other/c.bin": b"not asked for"}


def zipped(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


MAKE = {"x.tar.gz": tar_gz, "x.zip": zipped}


def outside(tmp_path):
    return {name: content for name, content in tree(tmp_path).items() if not name.startswith("x.")}


@pytest.mark.parametrize("kind", MAKE)
def test_one_folder_of_the_archive_is_unpacked(tmp_path, kind):
    unpack(MAKE[kind](tmp_path / kind, GOOD), tmp_path / "out", inner="set")
    assert tree(tmp_path / "out") == {"a.bin": b"first", "deep/b.bin": b"second"}


@pytest.mark.parametrize("kind", MAKE)
def test_only_the_members_asked_for_are_unpacked(tmp_path, kind):
    unpack(MAKE[kind](tmp_path / kind, GOOD), tmp_path / "out", inner="set", members=("deep/b.bin",))
    assert tree(tmp_path / "out") == {"deep/b.bin": b"second"}


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("name", ["/etc/evil", "../evil", "set/../../evil", "set\\..\\evil", "C:evil"])
def test_a_name_that_leaves_the_folder_is_refused(tmp_path, kind, name):
    archive = MAKE[kind](tmp_path / kind, {**GOOD, name: b"evil"})
    with pytest.raises(DownloadError, match="must keep its names inside its folder, got"):
        unpack(archive, tmp_path / "out", inner="set")
    assert outside(tmp_path) == {}
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE])
def test_links_and_devices_in_a_tar_are_refused(tmp_path, kind):
    link = tarfile.TarInfo("set/link")
    link.type, link.linkname = kind, "/etc/passwd"
    with pytest.raises(DownloadError, match="must hold plain files and folders, got 'set/link', a link or device"):
        unpack(tar_gz(tmp_path / "x.tar.gz", {**GOOD, "set/link": link}), tmp_path / "out", inner="set")
    assert not (tmp_path / "out").exists()


def test_links_in_a_zip_are_refused(tmp_path):
    link = zipfile.ZipInfo("set/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr(link, "/etc/passwd")
    with pytest.raises(DownloadError, match="must hold plain files and folders, got 'set/link'"):
        unpack(tmp_path / "x.zip", tmp_path / "out", inner="set")


def test_folders_in_an_archive_are_fine(tmp_path):
    folder = tarfile.TarInfo("set/")
    folder.type = tarfile.DIRTYPE
    unpack(tar_gz(tmp_path / "x.tar.gz", {"set/": folder, **GOOD}), tmp_path / "out", inner="set")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        archive.writestr("set/", b"")
        archive.writestr("set/a.bin", b"first")
    unpack(tmp_path / "x.zip", tmp_path / "out2", inner="set")
    assert tree(tmp_path / "out2") == {"a.bin": b"first"}


@pytest.mark.parametrize("kind", MAKE)
def test_what_the_archive_lacks_is_named(tmp_path, kind):
    archive = MAKE[kind](tmp_path / kind, GOOD)
    with pytest.raises(DownloadError, match="must hold absent/, got an archive without it"):
        unpack(archive, tmp_path / "out", inner="absent")
    with pytest.raises(DownloadError, match=r"must hold set/z\.bin, got an archive without it"):
        unpack(archive, tmp_path / "out", inner="set", members=("a.bin", "z.bin"))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", MAKE)
def test_an_archive_that_grows_too_large_is_cut_off(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(unpacking, "MAX_UNPACKED_BYTES", 8)
    with pytest.raises(DownloadError, match="must unpack to at most 8 bytes, got more"):
        unpack(MAKE[kind](tmp_path / kind, GOOD), tmp_path / "out", inner="set")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", MAKE)
def test_an_archive_of_too_many_members_is_refused(tmp_path, kind, monkeypatch):
    monkeypatch.setattr(unpacking, "MAX_MEMBERS", 2)
    with pytest.raises(DownloadError, match="must have at most 2 members, got more"):
        unpack(MAKE[kind](tmp_path / kind, GOOD), tmp_path / "out", inner="set")


@pytest.mark.parametrize("kind", MAKE)
def test_a_damaged_archive_leaves_nothing_behind(tmp_path, kind):
    archive = MAKE[kind](tmp_path / kind, GOOD)
    archive.write_bytes(archive.read_bytes()[:-40])
    with pytest.raises(DownloadError, match=f"{kind} must unpack into .*out, got .*: make room, or delete it and fetch again"):
        unpack(archive, tmp_path / "out", inner="set")
    assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("kind", MAKE)
def test_a_file_is_never_written_twice(tmp_path, kind):
    archive = MAKE[kind](tmp_path / kind, GOOD)
    if kind == "x.zip":
        with zipfile.ZipFile(archive, "a") as again:
            again.writestr("set/a.bin", b"again")
    else:
        tar_gz(archive, {"set/a.bin": b"first", "./set/a.bin": b"again"})
    with pytest.raises(DownloadError, match=r"must unpack into .* File exists"):
        unpack(archive, tmp_path / "out", inner="set")


def test_an_interruption_leaves_nothing_behind_and_is_passed_on(tmp_path, monkeypatch):
    archive = tar_gz(tmp_path / "x.tar.gz", GOOD)
    monkeypatch.setattr(unpacking, "_check_member", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        unpack(archive, tmp_path / "out", inner="set")
    assert not (tmp_path / "out").exists()
