"""download(): resumed, checked, and put in place only when right, against a real server with real faults."""

import hashlib
import os
import socket
from pathlib import Path

import numpy as np
import pytest

from sameguard.data import downloading
from sameguard.data.downloading import download, md5_of
from sameguard.errors import DownloadError

BODY = np.random.default_rng(0).bytes(700_000)
MD5 = hashlib.md5(BODY).hexdigest()


@pytest.fixture
def target(tmp_path, server) -> Path:
    server.files["/set.gz"] = BODY
    return tmp_path / "deep" / "set.gz"


@pytest.fixture
def part(target) -> Path:
    target.parent.mkdir()
    return target.with_name("set.gz.part")


def get(server, target, **options):
    return download(f"{server.url}/set.gz", target, md5=MD5, **options)


def test_a_file_arrives_whole_and_progress_is_told(server, target):
    steps = []
    assert get(server, target, progress=lambda *step: steps.append(step)) == len(BODY)
    assert target.read_bytes() == BODY
    assert os.listdir(target.parent) == ["set.gz"]
    assert steps[0] == ("set.gz", 0, len(BODY))
    assert steps[-1] == ("set.gz", len(BODY), len(BODY))
    assert [done for _, done, _ in steps] == sorted(done for _, done, _ in steps)


def test_an_interrupted_download_goes_on_where_it_stopped(server, target, part):
    server.hang_up_after = 300_000
    with pytest.raises(DownloadError, match=r"set.gz must have 700000 bytes, got 300000 before the server hung up: the part file is kept"):
        get(server, target)
    assert part.read_bytes() == BODY[:300_000]
    assert not target.exists()
    server.hang_up_after = None
    assert get(server, target) == 400_000
    assert target.read_bytes() == BODY
    assert server.requests == [("/set.gz", None), ("/set.gz", "bytes=300000-")]
    assert not part.exists()


def test_a_server_that_ignores_ranges_restarts_the_file_cleanly(server, target, part):
    part.write_bytes(b"x" * 1000)
    server.ranges = False
    assert get(server, target) == len(BODY)
    assert target.read_bytes() == BODY


def test_a_server_without_lengths_is_believed_by_checksum(server, target):
    server.send_length = False
    steps = []
    assert get(server, target, progress=lambda *step: steps.append(step)) == len(BODY)
    assert steps[-1] == ("set.gz", len(BODY), None)


def test_a_complete_part_is_only_checked(server, target, part):
    part.write_bytes(BODY)
    assert get(server, target) == 0
    assert target.read_bytes() == BODY
    assert server.sent == 0


@pytest.mark.parametrize("content", [BODY[:-1] + b"x", BODY + b"x", BODY[:10][::-1]])
def test_a_part_of_another_file_ends_in_the_wrong_checksum_and_is_deleted(server, target, part, content):
    part.write_bytes(content)
    with pytest.raises(DownloadError, match=f"must have MD5 {MD5}, got [0-9a-f]{{32}}: the part file was deleted"):
        get(server, target)
    assert not part.exists()
    get(server, target)
    assert target.read_bytes() == BODY


def test_wrong_content_is_never_put_in_place(server, target, part):
    server.files["/set.gz"] = b"<html>moved</html>"
    wrong = hashlib.md5(b"<html>moved</html>").hexdigest()
    with pytest.raises(DownloadError, match=f"set.gz must have MD5 {MD5}, got {wrong}: the part file was deleted"):
        get(server, target)
    assert os.listdir(target.parent) == []


def test_a_server_that_goes_on_from_elsewhere_is_refused_and_the_part_kept(server, target, part):
    part.write_bytes(BODY[:5000])
    server.first_byte = 4000
    with pytest.raises(DownloadError, match=r"must go on from byte 5000, got byte 4000: delete .*set\.gz\.part"):
        get(server, target)
    assert part.read_bytes() == BODY[:5000]


def test_a_missing_file_tells_the_status(server, target):
    with pytest.raises(DownloadError, match=r"absent must answer with the file, got 404 Not Found: try later or name a mirror"):
        download(f"{server.url}/absent", target, md5=MD5)


def test_a_server_that_stalls_is_given_up_and_the_part_kept(server, target, part):
    server.stall_after = 300_000
    with pytest.raises(DownloadError, match=r"must keep sending, got timed out after \d+ bytes: the part file is kept"):
        get(server, target, timeout_seconds=0.2)
    assert part.stat().st_size > 0
    assert BODY.startswith(part.read_bytes())


def test_a_server_that_is_not_there_is_named(target):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(DownloadError, match=rf"http://127.0.0.1:{port}/set.gz must be reachable, got .*refused"):
        download(f"http://127.0.0.1:{port}/set.gz", target, md5=MD5)


def test_an_address_that_is_none_is_refused(target):
    with pytest.raises(DownloadError, match=r"http://not a host/x must be reachable, got .*control characters"):
        download("http://not a host/x", target, md5=MD5)


def test_a_length_beyond_every_official_file_is_refused_before_anything_is_written(server, target, part):
    server.length = 2**40
    with pytest.raises(DownloadError, match="must have at most 1073741824 bytes, got a length of 1099511627776"):
        get(server, target)
    assert not part.exists()


def test_an_endless_body_is_cut_off(server, target, monkeypatch):
    monkeypatch.setattr(downloading, "MAX_DOWNLOAD_BYTES", 600_000)
    server.send_length = False
    with pytest.raises(DownloadError, match="must have at most 600000 bytes, got more"):
        get(server, target)


def test_a_folder_that_cannot_be_made_is_named(server, tmp_path):
    (tmp_path / "deep").write_text("a file")
    server.files["/set.gz"] = BODY
    with pytest.raises(DownloadError, match=r"deep/set\.gz must be writable, got File exists: make room or choose another data root"):
        get(server, tmp_path / "deep" / "set.gz")


def test_a_full_disk_is_told(server, target, part, monkeypatch):
    part.symlink_to("/dev/full")
    with pytest.raises(DownloadError, match="must be writable, got No space left on device"):
        get(server, target)


def test_a_file_that_cannot_be_read_has_no_checksum(tmp_path):
    with pytest.raises(DownloadError, match="must be readable, got Is a directory: check its permissions"):
        md5_of(tmp_path)
