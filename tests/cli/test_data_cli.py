"""`sameguard data`: fetch, list, show; results on stdout, progress on stderr, errors passed to the top-level command."""

import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import numpy as np
import pytest
from typer.testing import CliRunner

from sameguard.cli.data import data_app
from sameguard.data import names
from sameguard.data.official import OFFICIAL, OfficialFile, PlainFiles
from sameguard.errors import DataNotFoundError, DownloadError

FILES = {f"/{file.name}": file.name.encode() * 50 for file in OFFICIAL["mnist"].files}


def run(*arguments, **environment):
    result = CliRunner().invoke(data_app, [str(argument) for argument in arguments], env=environment)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result


@pytest.fixture
def root(tmp_path):
    images = np.zeros((3, 4, 5), np.uint8)
    np.savez(tmp_path / "mnist.npz", train_images=images, train_labels=np.arange(3), test_images=images[:2], test_labels=np.arange(2))
    return tmp_path


@pytest.fixture
def mirror(monkeypatch):
    """The address of a server with made-up MNIST files, whose checksums stand in the official table."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            body = FILES.get(self.path)
            self.send_response(404 if body is None else 200)
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *arguments):
            pass

    official = OFFICIAL["mnist"]
    files = tuple(OfficialFile(name[1:], hashlib.md5(content).hexdigest()) for name, content in FILES.items())
    monkeypatch.setitem(OFFICIAL, "mnist", PlainFiles(official.base_url, official.folder, files))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_fetch_reports_what_it_did_and_the_second_time_that_nothing_was_to_do(tmp_path, mirror):
    size = sum(map(len, FILES.values()))
    result = run("fetch", "mnist", "--data-root", tmp_path, "--base-url", mirror)
    assert result.stdout == f"mnist: {size:,} bytes downloaded and checked, in {tmp_path}/MNIST/raw\n"
    assert "train-images-idx3-ubyte.gz" in result.stderr
    assert {path.name for path in (tmp_path / "MNIST/raw").iterdir()} == {name[1:] for name in FILES}
    again = run("fetch", "mnist", "--data-root", tmp_path, "--base-url", mirror)
    assert again.stdout == f"mnist: already there and right, in {tmp_path}/MNIST/raw; nothing was downloaded\n"


def test_the_root_may_come_from_the_environment(tmp_path, mirror):
    run("fetch", "mnist", "--base-url", mirror, SAMEGUARD_DATA=str(tmp_path))
    assert (tmp_path / "MNIST/raw").is_dir()


def test_list_tells_where_each_set_is(root):
    rows = {row["name"]: row for row in json.loads(run("list", "--data-root", root, "--json").stdout)}
    assert set(rows) == set(names())
    assert rows["mnist"] == {"name": "mnist", "found": f"{root}/mnist.npz", "generated": False, "fetchable": True}
    assert rows["cifar10"]["found"] is None
    assert rows["digits"]["generated"]
    assert not rows["femnist-digits"]["fetchable"]


def test_list_names_the_folder_of_a_set_of_many_files(tmp_path):
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    for name in ("train.bin", "test.bin"):
        (folder / name).touch()
    rows = {row["name"]: row for row in json.loads(run("list", "--data-root", tmp_path, "--json").stdout)}
    assert rows["cifar100"]["found"] == str(folder)


def test_list_prints_a_table_and_takes_brackets_in_paths_literally(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "400")
    (tmp_path / "[red]x").mkdir()
    np.savez(tmp_path / "[red]x" / "kmnist.npz")
    output = run("list", "--data-root", "[red]x").stdout
    assert "[red]x/kmnist.npz" in output
    assert re.search(r"digits .* made on call .* no ", output)
    assert re.search(r"cifar10 .* no .* yes ", output)


def test_show_counts_a_set(root):
    described = json.loads(run("show", "mnist", "--json", SAMEGUARD_DATA=str(root)).stdout)
    assert described == {
        "name": "mnist",
        "train": {"inputs": 3, "shape": [1, 4, 5], "classes": 10},
        "test": {"inputs": 2, "shape": [1, 4, 5], "classes": 10},
    }
    assert re.search(r"train .* 3 .* 1x4x5 .* 10 ", run("show", "mnist", "--data-root", root).stdout)


def test_the_example_of_show_runs():
    assert "1,438" in run("show", "digits").stdout


def test_errors_pass_to_the_top_level_command(tmp_path, mirror):
    with pytest.raises(DataNotFoundError, match="cifar10 must lie below the data root"):
        run("show", "cifar10", "--data-root", tmp_path)
    with pytest.raises(DataNotFoundError, match="must be a known name"):
        run("show", "svhn", "--data-root", tmp_path)
    with pytest.raises(DownloadError, match="got 404"):
        run("fetch", "mnist", "--data-root", tmp_path, "--base-url", f"{mirror}/absent")


@pytest.mark.parametrize("verb", ["fetch", "list", "show"])
def test_help_has_one_sentence_and_an_example(verb):
    output = run(verb, "--help").stdout
    assert f"Example: sameguard data {verb}" in output
