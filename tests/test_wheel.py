"""What is installed from a wheel: the whole package with what it serves and says, and nothing that is only ours."""

import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "sameguard"
NOT_SHIPPED = shutil.ignore_patterns("__pycache__", "*.egg-info")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Built from a copy, without a network and without a build environment of its own: nothing is left in the tree."""
    for part, oldest in (("pip", 22), ("setuptools", 77)):
        if _major(part) < oldest:
            pytest.skip(f"{part} {oldest} or newer is not installed here")
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheels")
    shutil.copytree(PACKAGE, copy / "src" / "sameguard", ignore=NOT_SHIPPED)
    shutil.copytree(ROOT / "tests" / "protocol", copy / "tests" / "protocol", ignore=NOT_SHIPPED)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(out), str(copy)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    (built,) = out.glob("*.whl")
    return built


def _major(distribution: str) -> int:
    """Its major version, 0 where it is not installed. It is not imported: setuptools changes the process that imports it."""
    try:
        return int(version(distribution).split(".")[0])
    except PackageNotFoundError:
        return 0


def test_the_wheel_has_every_file_of_the_package_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {str(path.relative_to(PACKAGE.parent)) for path in PACKAGE.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    assert found == expected
    for part in (
        "py.typed",
        "evaluation/reported.json",
        "server/demo/victim.onnx",
        "server/demo/queries.npz",
        "server/demo/artefact/manifest.json",
        "server/demo/artefact/reconstruction.onnx",
        "server/pages/static/dashboard.css",
        "server/pages/static/dashboard.js",
        "server/pages/templates/dashboard.html",
        "testing/__init__.py",
    ):
        assert f"sameguard/{part}" in found, part


def test_the_bundled_artefact_survives_the_wheel_and_the_command_is_installed(wheel, tmp_path):
    from sameguard.artifact import read_artifact

    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    artefact = read_artifact(tmp_path / "sameguard" / "server" / "demo" / "artefact")
    assert set(artefact.files) == {"reconstruction.onnx", "auxiliary.onnx", "benign.npz"}
    (points,) = tmp_path.glob("*.dist-info/entry_points.txt")
    assert "sameguard = sameguard.cli:app" in points.read_text()


def test_the_wheel_asks_for_what_the_guard_needs_and_leaves_training_to_an_extra(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith("METADATA")]
        needed = [line for line in archive.read(name).decode().splitlines() if line.startswith("Requires-Dist:")]
    always = {line.split()[1].split(">")[0] for line in needed if "extra ==" not in line}
    assert {"numpy", "onnxruntime", "starlette", "uvicorn", "aiohttp", "altcha"} <= always
    assert not {"torch", "safetensors", "onnx", "matplotlib"} & always
