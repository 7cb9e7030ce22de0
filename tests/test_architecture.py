"""Who may import whom: data runs in one direction, and so do imports."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "faceswap"

GROUND = {"faceswap", "errors", "files", "console", "registry"}  # anybody may stand on these
SEES = {
    "faceswap": {"api"},  # when a name is first used
    "errors": set(),
    "files": set(),
    "console": set(),
    "registry": set(),
    "config": set(),
    "video": set(),
    "align": set(),
    "landmarks": {"align"},
    "masks": {"align", "landmarks"},
    "detectors": {"align"},
    "tracks": {"align", "config", "detectors", "landmarks", "video"},
    "pack": set(),
    "faceset": {"align", "pack"},
    "embedding": {"align"},
    "who": {"align", "config", "detectors", "embedding", "faceset", "landmarks", "tracks", "video"},
    "extract": {"align", "config", "detectors", "faceset", "tracks", "video", "who"},
    "pickled": set(),
    "foreign": {"align", "config", "detectors", "faceset", "landmarks", "pickled"},
    "augment": {"config"},
    "batches": {"align", "augment", "config", "faceset", "landmarks", "looks", "masks"},
    "layers": set(),
    "models": {"layers"},
    "adapters": set(),
    "perceptual": set(),
    "losses": {"perceptual"},
    "checkpoint": {"adapters", "config", "models"},
    "adversaries": {"checkpoint"},
    "strategies": {"adapters", "adversaries", "batches", "config", "losses", "models"},
    "pretrained": {"checkpoint", "config", "perceptual"},
    "monitor": set(),
    "steering": {"checkpoint", "config", "monitor"},
    "interrupts": set(),
    "memory": {"config"},
    "devices": {"config"},
    "beginning": {"checkpoint", "config", "models", "strategies"},
    "train": {
        "adapters",
        "align",
        "beginning",
        "batches",
        "checkpoint",
        "config",
        "devices",
        "faceset",
        "interrupts",
        "losses",
        "memory",
        "models",
        "monitor",
        "steering",
        "strategies",
    },
    "finders": {
        "batches",
        "beginning",
        "checkpoint",
        "config",
        "devices",
        "faceset",
        "memory",
        "models",
        "strategies",
        "train",
    },
    "color": set(),
    "detail": {"align", "color", "config"},
    "blend": {"align"},
    "ahead": set(),
    "segments": {"ahead", "interrupts", "video"},
    "ray_engine": set(),
    "found": {"detectors", "faceset"},
    "shots": {"blend", "color", "config", "found", "masks", "segments", "video"},
    "signing": set(),
    "provenance": {"signing", "video"},
    "dfm": {"checkpoint", "config", "models"},
    "players": {"align", "blend", "color", "config", "detectors", "faceset", "video"},
    "export": {"align", "checkpoint", "config", "dfm", "models", "players"},
    "swap": {
        "ahead",
        "align",
        "blend",
        "checkpoint",
        "color",
        "config",
        "detail",
        "detectors",
        "dfm",
        "faceset",
        "found",
        "masks",
        "models",
        "provenance",
        "ray_engine",
        "segments",
        "shots",
        "video",
        "who",
    },
    "light": set(),
    "stills": {"align", "blend", "found", "light", "provenance", "segments", "swap", "video"},
    "heads": set(),
    "skins": {"heads"},
    "raster": {"heads"},
    "render": {"heads", "raster", "skins"},
    "actors": {"align", "faceset", "heads", "interrupts", "provenance", "render", "video"},
    "metrics": {"align", "losses"},
    "damage": {
        "actors",
        "adapters",
        "align",
        "batches",
        "checkpoint",
        "devices",
        "faceset",
        "heads",
        "losses",
        "metrics",
        "models",
        "render",
    },
    "looks": {"embedding", "faceset", "heads", "metrics", "pack"},
    "sheet": {"faceset", "looks"},
    "variants": {
        "align",
        "blend",
        "color",
        "config",
        "detectors",
        "found",
        "provenance",
        "sheet",
        "shots",
        "stills",
        "swap",
        "video",
    },
    "curate": {"embedding", "faceset", "looks", "pack"},
    "page": {"metrics"},
    "evaluate": {
        "align",
        "batches",
        "blend",
        "checkpoint",
        "config",
        "damage",
        "detail",
        "detectors",
        "devices",
        "dfm",
        "embedding",
        "faceset",
        "masks",
        "metrics",
        "models",
        "page",
        "swap",
    },
    "pair": {
        "checkpoint",
        "config",
        "detail",
        "devices",
        "extract",
        "pretrained",
        "provenance",
        "segments",
        "steering",
        "swap",
        "train",
        "video",
        "who",
    },
    "benchmark": {
        "actors",
        "align",
        "checkpoint",
        "config",
        "detectors",
        "devices",
        "evaluate",
        "faceset",
        "heads",
        "metrics",
        "page",
        "pair",
        "render",
        "swap",
        "video",
    },
    "demo": {
        "actors",
        "benchmark",
        "config",
        "evaluate",
        "faceset",
        "heads",
        "metrics",
        "page",
        "pair",
        "provenance",
        "video",
    },
    "doctor": {"detectors", "devices", "pretrained"},
    "combine": {"adapters", "checkpoint", "models"},
    "saehd": {"checkpoint", "config", "layers", "models", "pickled"},
    "api": {
        "config",
        "detectors",
        "devices",
        "evaluate",
        "extract",
        "faceset",
        "found",
        "pair",
        "pretrained",
        "provenance",
        "segments",
        "swap",
        "train",
        "video",
        "who",
    },
    "jobs": {"config", "interrupts"},
    "desk": {
        "align",
        "blend",
        "checkpoint",
        "color",
        "config",
        "curate",
        "faceset",
        "found",
        "interrupts",
        "jobs",
        "looks",
        "masks",
        "monitor",
        "pack",
        "provenance",
        "steering",
        "stills",
        "swap",
        "variants",
        "video",
    },
    "studio": {"desk"},
    "options": {"config", "pretrained", "provenance", "who"},
    "cli_export": {"config", "devices", "export", "options"},
    "cli_faceset": {"config", "curate", "devices", "foreign", "looks", "options", "sheet"},
    "cli_train": {"config", "finders", "options", "steering"},
    "cli": {
        "actors",
        "benchmark",
        "cli_export",
        "cli_faceset",
        "cli_train",
        "combine",
        "config",
        "damage",
        "demo",
        "desk",
        "devices",
        "doctor",
        "evaluate",
        "extract",
        "heads",
        "jobs",
        "metrics",
        "options",
        "pair",
        "pretrained",
        "provenance",
        "saehd",
        "segments",
        "shots",
        "stills",
        "studio",
        "swap",
        "train",
        "variants",
        "video",
        "who",
    },
    "__main__": {"cli"},
}


def modules() -> dict[str, list[Path]]:
    """Files by the name of their room: a module, or a folder of parts."""
    rooms: dict[str, list[Path]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        inside = path.relative_to(PACKAGE)
        room = "faceswap" if str(inside) == "__init__.py" else inside.parts[0].removesuffix(".py")
        rooms.setdefault(room, []).append(path)
    return rooms


def imports(path: Path) -> set[str]:
    """The rooms that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path.name}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "faceswap":
                found.add(parts[1] if len(parts) > 1 and parts[1] in SEES else "faceswap")
    return found


def test_every_room_is_in_the_table_and_the_table_names_no_other() -> None:
    assert set(modules()) == set(SEES)


@pytest.mark.parametrize("room", sorted(SEES))
def test_a_room_sees_only_those_before_it(room: str) -> None:
    for path in modules()[room]:
        extra = imports(path) - SEES[room] - GROUND - {room}
        assert not extra, f"{path.name} imports {sorted(extra)}"


def test_the_table_has_no_permission_that_nobody_uses() -> None:
    for room, allowed in SEES.items():
        used = set().union(*(imports(path) for path in modules()[room]))
        assert allowed <= used, f"{room}: {sorted(allowed - used)} unused"


def test_the_table_has_no_circle() -> None:
    done: set[str] = set()
    while ready := [room for room in SEES if room not in done and SEES[room] <= done]:
        done.update(ready)
    assert done == set(SEES)


def loaded_by(statement: str) -> set[str]:
    script = f"import sys; {statement}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_command_line_starts_without_torch() -> None:
    assert not {"torch", "cv2", "av", "albumentations", "lightning_fabric"} & loaded_by("import faceswap.cli")


def test_bare_words_that_hide_trouble_are_absent() -> None:
    for path in PACKAGE.rglob("*.py"):
        tree = ast.parse(path.read_text())
        bare = [node for node in ast.walk(tree) if isinstance(node, ast.ExceptHandler) and node.type is None]
        assert not bare, path.name
        calls = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and isinstance(n.func, ast.Name)}
        imported = {alias.name for n in ast.walk(tree) if isinstance(n, ast.Import) for alias in n.names}
        assert not calls & {"input", "breakpoint", "eval", "exec"} and "pickle" not in imported, path.name
        if path.name == "pretrained.py":  # reads what others publish: tensors and nothing else
            loads = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Call)]
            loads = [call for call in loads if call.startswith("torch.load")]
            assert loads and all("weights_only=True" in call for call in loads)
        else:
            assert "torch.load" not in path.read_text(), path.name


def test_folders_inside_the_package_are_sockets() -> None:
    folders = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name[0] != "_"}
    assert folders == {"detectors", "models", "strategies"}
