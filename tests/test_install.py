"""What a user gets with pip."""

import os
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (path,) = folder.iterdir()
    return path


def test_the_wheel_holds_package_recipes_and_weights(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        scripts = next(name for name in names if name.endswith("entry_points.txt"))
        assert "faceswap = faceswap.cli:main" in archive.read(scripts).decode()
    for folder in ("configs", "pretrained"):
        files = {f"faceswap/_data/{folder}/{path.name}" for path in (ROOT / folder).iterdir() if path.is_file()}
        assert files and files <= names
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "faceswap").rglob("*.py")}
    assert modules | {"faceswap/py.typed", "faceswap/studio.html"} <= names
    assert not any("tests/" in name or ".git" in name for name in names)


def test_the_wheel_alone_is_enough(wheel: Path, tmp_path: Path) -> None:
    """In a fresh environment, that sees the dependencies of this one and nothing of the clone."""
    home = tmp_path / "venv"
    venv.create(home)
    (site,) = home.rglob("site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    python = next(path for path in home.glob("*/python*") if path.stem == "python")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--no-deps", "--no-index", "--no-compile"]
    subprocess.run([*pip, "--disable-pip-version-check", "-q", str(wheel)], check=True, capture_output=True)
    alone = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(*words: str) -> str:
        command = [str(python.with_name("faceswap")), *words]
        return subprocess.run(command, cwd=tmp_path, env=alone, check=True, capture_output=True, text=True).stdout

    said = run("doctor")
    assert "MISSING" not in said and "base_96" in said
    assert "Example: faceswap demo" in run("demo", "-h")
    where = "import faceswap, faceswap.config as c; print(faceswap.__file__, c.shipped('configs'))"
    found = subprocess.run(
        [str(python), "-c", where], cwd=tmp_path, env=alone, check=True, capture_output=True, text=True
    )
    assert all(path.startswith(str(home)) for path in found.stdout.split()), found.stdout
