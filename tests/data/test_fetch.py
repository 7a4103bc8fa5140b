"""fetch(): from a loopback server into the layout that load reads, and never over what is there."""

import hashlib
import importlib
import json
import re

import pytest
from fake_files import (
    EMNIST_NAMES,
    tar_gz,
    tree,
    write_cifar_binary,
    write_emnist_zip,
    write_idx_folder,
    write_tiny_imagenet,
)

from sameguard.data import fetch, load
from sameguard.data.fetch import RECEIPT
from sameguard.data.official import OFFICIAL, Archive, OfficialFile, PlainFiles
from sameguard.errors import ConfigurationError, DownloadError

fetch_module = importlib.import_module("sameguard.data.fetch")  # the package's attribute of that name is the function


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


@pytest.fixture
def root(tmp_path):
    return tmp_path / "root"


def publish_files(server, monkeypatch, tmp_path, name="mnist"):
    """Tiny files under the official names, with their checksums in the official table."""
    write_idx_folder(tmp_path / "origin")
    source = OFFICIAL[name]
    contents = tree(tmp_path / "origin")
    server.files |= {f"/{file}": content for file, content in contents.items()}
    files = tuple(OfficialFile(file.name, md5(contents[file.name])) for file in source.files)
    monkeypatch.setitem(OFFICIAL, name, PlainFiles(source.base_url, source.folder, files))


def publish_archive(server, monkeypatch, tmp_path, name):
    source = OFFICIAL[name]
    packed, origin = tmp_path / source.file.name, tmp_path / "origin"
    if name == "emnist-digits":
        write_emnist_zip(packed)
    elif name == "tiny-imagenet":
        write_tiny_imagenet(origin)
        zip_tree(packed, origin, source.inner)
    else:
        write_cifar_binary(origin, 10 if name == "cifar10" else 100)
        tar_gz(packed, {f"{source.inner}/{file}": content for file, content in tree(origin).items()})
    content = packed.read_bytes()
    server.files[f"/mirror/{source.file.name}"] = content
    file = OfficialFile(source.file.name, md5(content))
    monkeypatch.setitem(OFFICIAL, name, Archive(source.base_url, file, source.inner, source.folder, source.members))
    return packed


def zip_tree(path, folder, inner):
    import zipfile

    with zipfile.ZipFile(path, "w") as archive:
        for file, content in tree(folder).items():
            archive.writestr(f"{inner}/{file}", content)


@pytest.mark.parametrize("name", ["mnist", "kmnist"])
def test_plain_files_are_fetched_where_load_looks(server, monkeypatch, tmp_path, root, name):
    publish_files(server, monkeypatch, tmp_path, name)
    fetched = fetch(name, root, server.url)
    assert fetched.folder == root / OFFICIAL[name].folder
    assert fetched.downloaded_bytes == sum(map(len, server.files.values()))
    assert len(load(name, root).train) == 6


def test_only_the_files_that_are_missing_are_downloaded(server, monkeypatch, tmp_path, root):
    publish_files(server, monkeypatch, tmp_path)
    fetch("mnist", root, server.url)
    (root / "MNIST/raw/t10k-labels-idx1-ubyte.gz").unlink()
    server.requests.clear()
    fetch("mnist", root, server.url)
    assert server.requests == [("/t10k-labels-idx1-ubyte.gz", None)]
    server.requests.clear()
    assert fetch("mnist", root, server.url).downloaded_bytes == 0
    assert server.requests == []


def test_a_file_with_another_checksum_is_not_overwritten(server, monkeypatch, tmp_path, root):
    publish_files(server, monkeypatch, tmp_path)
    mine = root / "MNIST/raw/train-labels-idx1-ubyte.gz"
    mine.parent.mkdir(parents=True)
    mine.write_bytes(b"mine")
    with pytest.raises(DownloadError, match=f"{mine} must have MD5 [0-9a-f]+, got a file with {md5(b'mine')}: move it away"):
        fetch("mnist", root, server.url)
    assert mine.read_bytes() == b"mine"


@pytest.mark.parametrize(("name", "train"), [("cifar10", 10), ("cifar100", 2), ("tiny-imagenet", 4), ("emnist-digits", 6)])
def test_an_archive_is_unpacked_where_load_looks_and_then_deleted(server, monkeypatch, tmp_path, root, name, train):
    publish_archive(server, monkeypatch, tmp_path, name)
    fetched = fetch(name, str(root), f"{server.url}/mirror/")
    assert fetched.downloaded_bytes == len(server.files[f"/mirror/{OFFICIAL[name].file.name}"])
    assert len(load(name, root).train) == train
    assert [path.name for path in root.iterdir()] == [OFFICIAL[name].folder]
    server.requests.clear()
    again = fetch(name, root, f"{server.url}/mirror")
    assert (again.downloaded_bytes, again.folder) == (0, fetched.folder)
    assert server.requests == []


def test_of_emnist_only_the_digits_are_kept(server, monkeypatch, tmp_path, root):
    publish_archive(server, monkeypatch, tmp_path, "emnist-digits")
    folder = fetch("emnist-digits", root, f"{server.url}/mirror").folder
    assert {path.name for path in folder.iterdir()} == {RECEIPT, *(f"{name}.gz" for name in EMNIST_NAMES)}


def test_an_archive_the_user_brought_is_used_and_kept(server, monkeypatch, tmp_path, root):
    packed = publish_archive(server, monkeypatch, tmp_path, "cifar10")
    root.mkdir()
    packed.rename(root / packed.name)
    assert fetch("cifar10", root, server.url).downloaded_bytes == 0
    assert server.requests == []
    assert (root / packed.name).exists()
    assert len(load("cifar10", root).train) == 10


def test_an_interrupted_archive_is_resumed(server, monkeypatch, tmp_path, root):
    publish_archive(server, monkeypatch, tmp_path, "cifar10")
    server.hang_up_after = 1000
    with pytest.raises(DownloadError, match="got 1000 before the server hung up"):
        fetch("cifar10", root, f"{server.url}/mirror")
    assert [path.name for path in root.iterdir()] == ["cifar-10-binary.tar.gz.part"]
    server.hang_up_after = None
    fetch("cifar10", root, f"{server.url}/mirror")
    assert server.requests[-1][1] == "bytes=1000-"
    assert len(load("cifar10", root).train) == 10


def test_an_archive_whose_part_was_complete_is_unpacked_and_deleted(server, monkeypatch, tmp_path, root):
    packed = publish_archive(server, monkeypatch, tmp_path, "cifar10")
    root.mkdir()
    packed.rename(root / f"{packed.name}.part")
    assert fetch("cifar10", root, f"{server.url}/mirror").downloaded_bytes == 0
    assert [path.name for path in root.iterdir()] == ["cifar-10-batches-bin"]


def test_a_folder_that_fetch_did_not_make_is_left_alone(server, monkeypatch, tmp_path, root):
    publish_archive(server, monkeypatch, tmp_path, "cifar10")
    write_cifar_binary(root / "cifar-10-batches-bin", 10)
    before = tree(root)
    for receipt in (None, "no json", "[1]"):
        if receipt:
            (root / "cifar-10-batches-bin" / RECEIPT).write_text(receipt)
        with pytest.raises(DownloadError, match=r"cifar-10-batches-bin must .*move it away"):
            fetch("cifar10", root, f"{server.url}/mirror")
    assert {name: content for name, content in tree(root).items() if not name.endswith(RECEIPT)} == before
    assert server.requests == []


def test_a_fetched_folder_that_was_changed_is_noticed(server, monkeypatch, tmp_path, root):
    publish_archive(server, monkeypatch, tmp_path, "cifar10")
    folder = fetch("cifar10", root, f"{server.url}/mirror").folder
    assert json.loads((folder / RECEIPT).read_text())["md5"] == OFFICIAL["cifar10"].file.md5
    (folder / "test_batch.bin").unlink()
    with pytest.raises(DownloadError, match=f"{folder} must be as fetch left it, got 5 files of .* bytes: move it away and run again"):
        fetch("cifar10", root, f"{server.url}/mirror")


def test_an_archive_that_is_right_but_unsafe_leaves_no_folder(server, monkeypatch, tmp_path, root):
    publish_archive(server, monkeypatch, tmp_path, "cifar10")
    evil = tar_gz(tmp_path / "evil.tar.gz", {"cifar-10-batches-bin/a.bin": b"a", "../evil": b"evil"}).read_bytes()
    server.files["/mirror/cifar-10-binary.tar.gz"] = evil
    source = OFFICIAL["cifar10"]
    file = OfficialFile(source.file.name, md5(evil))
    monkeypatch.setitem(OFFICIAL, "cifar10", Archive(source.base_url, file, source.inner, source.folder))
    with pytest.raises(DownloadError, match="must keep its names inside its folder"):
        fetch("cifar10", root, f"{server.url}/mirror")
    assert [path.name for path in root.iterdir()] == ["cifar-10-binary.tar.gz"]


def test_a_folder_that_cannot_be_put_in_place_is_named(server, monkeypatch, tmp_path, root):
    publish_archive(server, monkeypatch, tmp_path, "cifar10")

    def full(**_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(fetch_module.tempfile, "mkdtemp", full)
    with pytest.raises(DownloadError, match="cifar-10-batches-bin must be writable, got No space left on device"):
        fetch("cifar10", root, f"{server.url}/mirror")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("femnist-digits", "no official single download, emnist-digits is the official alternative"),
        ("digits", "it is made on this machine, there is nothing to fetch"),
        ("svhn", r"got 'svhn'\.$"),
    ],
)
def test_what_cannot_be_fetched_says_why(root, name, reason):
    with pytest.raises(ConfigurationError, match=rf"data set to fetch must be one of mnist, kmnist, .*{reason}"):
        fetch(name, root)


@pytest.mark.parametrize("address", ["file:///etc", "ftp://example.org/", "mirror"])
def test_only_http_is_fetched_from(root, address):
    with pytest.raises(ConfigurationError, match="base_url must start with http:// or https://, got"):
        fetch("mnist", root, address)


def test_the_official_table_is_well_formed():
    for source in OFFICIAL.values():
        assert source.base_url.startswith("http")
        assert source.base_url.endswith("/")
        for file in source.files if isinstance(source, PlainFiles) else [source.file]:
            assert re.fullmatch(r"[0-9a-f]{32}", file.md5)
            assert "/" not in file.name
