"""What a user gets with pip."""

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_the_wheel_holds_package_recipes_and_weights(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = tmp_path.iterdir()
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        scripts = next(name for name in names if name.endswith("entry_points.txt"))
        assert "faceswap = faceswap.cli:main" in archive.read(scripts).decode()
    for folder in ("configs", "pretrained"):
        files = {f"faceswap/_data/{folder}/{path.name}" for path in (ROOT / folder).iterdir() if path.is_file()}
        assert files and files <= names
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "faceswap").rglob("*.py")}
    assert modules | {"faceswap/py.typed"} <= names
    assert not any("tests/" in name or ".git" in name for name in names)
