import errno
import json
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

import footage
import numpy as np
import pytest
from click.testing import CliRunner, Result

from faceswap import console, doctor
from faceswap.cli import main
from faceswap.errors import UsageError
from faceswap.video import probe
from faceswap.who import Who

COMMANDS = (
    "extract",
    "pretrain",
    "finetune",
    "import",
    "combine",
    "merge",
    "swap",
    "evaluate",
    "verify",
    "demo",
    "run",
    "doctor",
    "export",
    "studio",
)
GROUPS = {
    "actors": ("clip", "faces"),
    "faceset": ("info", "sort", "filter", "sheet", "copy", "pack", "unpack", "import"),
    "pretrained": ("list", "show", "pull", "add", "verify"),
    "train": ("status", "find-rate", "find-batch"),
}
INSIDE = tuple(f"{group} {command}" for group, commands in GROUPS.items() for command in commands)
TINY = [
    *("--set", "model.resolution=32", "--set", "model.width=4", "--set", "model.code=16"),
    *("--set", "data.batch=4", "--set", "extract.min_size=40", "--set", "extract.size=64"),
]


def faceswap(*words: object, ok: bool = True) -> Result:
    result = CliRunner().invoke(main, [str(word) for word in words])
    console.configure(console.QUIET)
    if ok:
        assert result.exit_code == 0, result.stderr
    elif result.exit_code == 0:
        pytest.fail(f"expected a failure: {result.output}")
    return result


def refused(status: int, *words: object) -> str:
    """The one line that a failing command says."""
    result = faceswap(*words, "-q", ok=False)
    assert result.exit_code == status, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: "), result.stderr
    return lines[0]


@pytest.fixture(scope="module")
def run(facesets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("cli") / "run"
    sides = ("--source", facesets["source"], "--target", facesets["target"])
    faceswap("finetune", *sides, "-o", path, "--images", 40, "-q", *TINY, "--set", "train.log_images=8")
    return path


@pytest.mark.parametrize("command", COMMANDS + INSIDE)
def test_help_has_an_example_and_the_common_options(command: str) -> None:
    for flag in ("-h", "--help"):
        text = faceswap(*command.split(), flag).stdout
        assert f"Example: faceswap {command}" in text
        for option in ("--config", "--set", "--device", "--seed", "--verbose", "--quiet", "--json"):
            assert option in text


def test_the_commands_are_those_of_the_readme() -> None:
    assert set(main.commands) == {*COMMANDS, *GROUPS}
    for group, commands in GROUPS.items():
        assert set(main.commands[group].commands) == set(commands)
    assert "SOURCE is the person whose face is put in" in faceswap("-h").stdout


def test_extract(clips: dict[str, Path], tmp_path: Path) -> None:
    result = faceswap("extract", *clips.values(), "-o", tmp_path / "faces", "--every", 4, "--json", *TINY)
    report = json.loads(result.stdout)
    assert report["frames"] == 8 and report["faces"] == len(list((tmp_path / "faces").iterdir()))
    for words in ("looking for faces in", "cutting out faces of"):
        assert f"{words} source.mp4: 4/4 frames" in result.stderr
    faceswap("extract", clips["source"], "-o", tmp_path / "one", "--max-faces", 1, "--min-size", 30, *TINY)


def test_pretrain_finetune_merge(clips: dict[str, Path], facesets: dict[str, Path], tmp_path: Path) -> None:
    base, pair, out = tmp_path / "base", tmp_path / "pair", tmp_path / "out.mp4"
    result = faceswap("pretrain", *facesets.values(), "-o", base, "--images", 16, "--json", *TINY)
    assert json.loads(result.stdout)["images"] == 16
    sides = ("--source", facesets["source"], "--target", facesets["target"])
    result = faceswap("finetune", *sides, "--base", base, "-o", pair, "--images", 16, *TINY)
    assert "starting from base, a base of 16 images" in result.stderr and "16 face images" in result.stdout
    assert "the base, on faces of strangers:" in result.stdout and "weights moved by" in result.stdout
    result = faceswap("merge", clips["target"], "--model", pair, "-o", out, *TINY)
    assert "a face replaced in 14 (87.5 %)" in result.stdout and probe(out).frames == 16
    assert "real footage with parts made by a trained model" in faceswap("verify", out).stdout
    more = ("--faces", facesets["target"], "--no-provenance")
    result = faceswap("merge", clips["target"], "--model", pair / "best.safetensors", *more, "-o", tmp_path / "two.mp4")
    assert "nothing in the file will say that it was swapped" in result.stderr
    assert faceswap("verify", tmp_path / "two.mp4", ok=False).exit_code == 3


def test_merge_to_images(clips: dict[str, Path], facesets: dict[str, Path], run: Path, tmp_path: Path) -> None:
    words = ("merge", clips["target"], "--model", run, "--frames", tmp_path / "out", *TINY)
    result = faceswap(*words, "--alpha", "--faces", facesets["target"])
    assert "out: 16 images, a face drawn in 14 (87.5 %)" in result.stdout
    assert len(list((tmp_path / "out").glob("*.png"))) == 16 and (tmp_path / "out" / "faces.json").is_file()
    assert "real footage with parts made by a trained model" in faceswap("verify", tmp_path / "out/000000.png").stdout
    said = refused(2, *words, "--format", "tiff")
    assert "holds images of another" in said and "kind of image; choose another folder or add --overwrite" in said
    report = json.loads(faceswap(*words, "--format", "tiff", "--overwrite", "--json").stdout)
    assert report["frames"] == 16 and report["kept"] == 0 and not list(tmp_path.glob("out/*.png"))
    assert "16 images (16 kept)" in faceswap(*words, "--format", "tiff").stdout
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    result = faceswap(*words, "--format", "exr", "--alpha", "--overwrite")
    assert "a face drawn in 14" in result.stdout and len(list(tmp_path.glob("out/*.exr"))) == 16
    assert "real footage with parts made by a trained model" in faceswap("verify", tmp_path / "out/000000.exr").stdout


def test_merge_by_another_codec(clips: dict[str, Path], run: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.mov"
    result = faceswap("merge", clips["target"], "--model", run, "-o", out, "--codec", "prores", *TINY)
    assert "a face replaced in 14" in result.stdout and probe(out).pixel_format == "yuv422p10le"
    assert "real footage with parts made by a trained model" in faceswap("verify", out).stdout


def test_a_folder_of_images_is_merged_to_images(run: Path, tmp_path: Path) -> None:
    import cv2

    (tmp_path / "plates").mkdir()
    for i in range(3):
        cv2.imwrite(str(tmp_path / "plates" / f"{i}.png"), footage.draw_face(mouth=i)[..., ::-1])
    words = ("merge", tmp_path / "plates", "--model", run)
    assert "3 images, a face drawn in 3" in faceswap(*words, "--frames", tmp_path / "out", *TINY).stdout
    assert "expected a video file, found a folder" in refused(1, *words, "-o", tmp_path / "out.mp4")
    assert "is the footage itself" in refused(2, *words, "--frames", tmp_path / "plates", "--overwrite")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    assert "found other files in it" in refused(2, *words, "--frames", tmp_path / "mine", "--overwrite")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "expected -o OUT.mp4 or --frames DIR, one of the two"),
        (["-o", "a.mp4", "--frames", "a"], "one of the two"),
        (["-o", "a.mp4", "--alpha"], "belong to --frames"),
        (["-o", "a.mp4", "--format", "png"], "belong to --frames"),
        (["--frames", "a", "--format", "gif"], "'gif' is not one of 'png', 'tiff', 'exr'"),
        (["--frames", "a", "--codec", "prores"], "--codec belongs to -o"),
        (["-o", "a.mp4", "--codec", "prores"], "a.mp4: .mp4 files do not take ProRes; name it a.mov"),
        (["-o", "a.mp4", "--set", "merge.codec='prores'"], ".mp4 files do not take ProRes"),
        (["-o", "a.mov", "--codec", "vp9"], "'vp9' is not one of 'auto', 'h264', 'h265', 'prores'"),
        (["--frames", "a", "--workers", 2], "--workers belongs to -o"),
        (["--frames", "a.mov"], "expected a folder for --frames"),
        (["--frames", "a", "--c2pa-cert", "c.pem", "--c2pa-key", "k.pem"], "images are not signed, only videos are"),
    ],
)
def test_images_or_a_video(
    words: list[Any], said: str, clips: dict[str, Path], run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refused(2, "merge", clips["target"], "--model", run, *words)
    assert not list(tmp_path.iterdir())


def test_merge_with_a_plan_and_several_people(
    clips: dict[str, Path], facesets: dict[str, Path], run: Path, tmp_path: Path
) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text('[[shot]]\nframes = "8-11"\nskip = true\n[[shot]]\ntrack = 9\ncolor = "mix"\n')
    known = ("merge", clips["target"], "--faces", facesets["target"], *TINY)
    words = (*known, "--map", f"track:0={run}", "--plan", plan)
    result = faceswap(*words, "-o", tmp_path / "out.mp4")
    assert "16 frames, a face replaced in 10" in result.stdout and probe(tmp_path / "out.mp4").frames == 16
    assert "plan.toml: shot 2 meets no face; tracks in its frames: 0" in result.stderr
    result = faceswap(*words, "-o", tmp_path / "part.mp4", "--range", "0:00.28-0:00.4")
    assert "3 frames, a face replaced in 1" in result.stdout and probe(tmp_path / "part.mp4").frames == 3
    result = faceswap(*words, "--frames", tmp_path / "images", "--range", "7-9")
    assert "3 images, a face drawn in 1" in result.stdout
    assert sorted(path.name for path in (tmp_path / "images").glob("*.png")) == [f"00000{i}.png" for i in (7, 8, 9)]
    report = json.loads(faceswap(*words, "-o", tmp_path / "ways.png", "--preview", 4, "--json").stdout)
    assert report["frame"] == 4 and len(report["tiles"]) == 16
    assert "the plan skips all faces there" in refused(2, *words, "-o", tmp_path / "more.png", "--preview", 9)
    said = refused(2, *known, "--map", f"track:4={run}", "-o", tmp_path / "no.mp4")
    assert "no track 4 among the faces; expected some of 0" in said
    plan.write_text('[[shot]]\ncolor = "mixed"\n')
    assert "shot 1: merge.color: no transfer called 'mixed'" in refused(2, *words, "-o", tmp_path / "no.mp4")
    assert not (tmp_path / "no.mp4").exists() and not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-o", "a.mp4"], "expected --model RUN_OR_FILE or --map PICTURE=RUN, one of the two"),
        (["-o", "a.mp4", "--model", "r", "--map", "a.jpg=r"], "one of the two"),
        (["-o", "a.mp4", "--map", "a.jpg=r", "--largest"], "--map says already whose faces are swapped"),
        (["-o", "a.mp4", "--map", "a.jpg"], "expected PICTURE=RUN or track:N=RUN"),
        (["-o", "a.mp4", "--model", "r", "--range", "9-3"], "ends before it begins"),
        (["-o", "a.mp4", "--model", "r", "--range", "16-"], "no frame lies there; target.mp4 has 0 to 15"),
        (["-o", "a.mp4", "--model", "r", "--plan", "no.toml"], "no such plan"),
        (["-o", "a.mp4", "--model", "r", "--preview", "3"], "expected -o NAME.png for a preview, found .mp4"),
        (["-o", "a.png", "--model", "r", "--preview", "3", "--range", "1-5"], "--preview makes one picture"),
        (["--frames", "a", "--model", "r", "--preview", "3"], "--preview makes one picture"),
    ],
)
def test_what_does_not_go_together_in_a_merge(
    words: list[Any], said: str, clips: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert said in refused(2, "merge", clips["target"], *words)
    assert not list(tmp_path.iterdir())


def test_adapters(clips: dict[str, Path], facesets: dict[str, Path], tmp_path: Path) -> None:
    faceswap("pretrain", *facesets.values(), "-o", tmp_path / "base", "--images", 16, *TINY)
    small = ("--base", tmp_path / "base", "--strategy", "lora", "--images", 8, "--json", *TINY)
    for name, faces in facesets.items():
        report = json.loads(faceswap("finetune", "--source", faces, "-o", tmp_path / name, *small).stdout)
        assert (
            report["damage"]["distance"] > 0 and report["damage"]["before"].keys() == report["damage"]["after"].keys()
        )
    pair = tmp_path / "pair.safetensors"
    result = faceswap("combine", tmp_path / "source", tmp_path / "target", "-o", pair)
    assert "a pair of 16 face images in all, from base" in result.stdout
    result = faceswap("merge", clips["target"], "--model", pair, "--strength", 0.5, "-o", tmp_path / "out.mp4", *TINY)
    assert "a face replaced in 14" in result.stdout
    (tmp_path / "base").rename(tmp_path / "moved")
    words = ("merge", clips["target"], "--model", tmp_path / "source", "-o", tmp_path / "two.mp4", *TINY)
    assert "there is none at ../base/best.safetensors; give it with --base" in refused(1, *words)
    faceswap(*words, "--base", tmp_path / "moved")
    said = refused(
        2,
        "finetune",
        "--source",
        facesets["source"],
        "-o",
        tmp_path / "run",
        "--strategy",
        "lorra",
        "--images",
        8,
        *TINY,
    )
    assert "did you mean 'lora'?" in said


def test_swap(clips: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    words = ("swap", clips["source"], clips["target"], "-o", out, "--images", 40, *TINY)
    result = faceswap(*words)
    assert "from scratch" in result.stderr and "a face replaced in 14" in result.stdout
    assert (tmp_path / "out.faceswap" / "run" / "previews" / "latest.png").is_file()
    again = faceswap(*words, "--overwrite", "--json")
    assert "extracted already" in again.stderr
    assert json.loads(again.stdout)["training"]["faces_per_second"] == 0


def test_train_status(run: Path) -> None:
    text = faceswap("train", "status", run).stdout
    assert "40 images" in text and "not running" in text and "100.0 % of the budget" in text and "psnr" in text
    assert "consent   nothing noted" in text and "source: " in text
    found = json.loads(faceswap("train", "status", run, "--json").stdout)
    assert found["images"] == found["saved_images"] == 40 and found["running"] is False and found["share"] == 1
    assert found["losses"].keys() >= {"loss", "ssim"} and 0 < found["best"] < 1
    assert "found no state in it" in refused(1, "train", "status", run / "previews")


def test_train_find_rate(run: Path) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    result = faceswap("train", "find-rate", run, "--steps", 30, "--device", "cpu")
    assert "suggestion: --set train.rate=" in result.stdout
    report = json.loads(faceswap("train", "find-rate", run, "--steps", 30, "--json", "--device", "cpu").stdout)
    assert report["images"] == 40 and report["rates"] == sorted(report["rates"])
    assert len(report["rates"]) == len(report["losses"]) > 10
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}


def test_train_find_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("faceswap.finders.LARGEST", 4)
    result = faceswap("train", "find-batch", "--device", "cpu", *TINY)
    assert "suggestion: --set data.batch=" in result.stdout and "stopped: 4 faces are the most" in result.stdout
    monkeypatch.setattr("faceswap.memory.free", lambda device: 30_000_000)
    monkeypatch.setattr("faceswap.finders.LARGEST", 4096)
    report = json.loads(faceswap("train", "find-batch", "--people", 1, "--json", "--device", "cpu", *TINY).stdout)
    assert [row["batch"] for row in report["rows"]] == [2**n for n in range(len(report["rows"]))]
    assert report["largest"] < 4096 and report["suggestion"] <= report["largest"]


def test_until_plateau_is_a_limit(facesets: dict[str, Path], tmp_path: Path) -> None:
    more = (
        "--until-plateau",
        "--set",
        "train.patience=1",
        "--set",
        "train.preview_images=4",
        "--set",
        "train.rate=1e-9",
    )
    result = faceswap("pretrain", facesets["source"], "-o", tmp_path / "b", *more, "--json", *TINY)
    assert json.loads(result.stdout)["reason"] == "plateau" and "plateau at 8 images" in result.stderr


def test_evaluate(run: Path, facesets: dict[str, Path], tmp_path: Path) -> None:
    result = faceswap("evaluate", run, *TINY)
    assert "target as target" in result.stdout and "noise floor" in result.stdout and "PSNR dB" in result.stdout
    assert f"page: {run / 'evaluation.html'}" in result.stdout
    words = ("evaluate", run / "best.safetensors", "--faces", facesets["target"], "-o", tmp_path / "p.html", *TINY)
    report = json.loads(faceswap(*words, "--json").stdout)
    assert report["images"] == 40 and report["tables"]["the swap against the target"]["swap"]["swap_back"] > 5
    assert "--overwrite" in refused(2, *words)


def test_evaluate_truth(benched: tuple[Path, Any], protocol: Any, tmp_path: Path) -> None:
    folder = benched[0]
    result = faceswap("evaluate", folder / "pair1" / "swapped.faceswap" / "run", "--truth", "--json")
    (rows,) = json.loads(result.stdout)["tables"].values()
    assert {"swap", "floor: target unswapped", "ceiling: truth at 32 px"} <= set(rows)
    (tmp_path / "p.toml").write_text("size = 3")
    assert "size = 3" in refused(2, "evaluate", tmp_path / "new", "--truth", "--protocol", tmp_path / "p.toml")
    assert "--protocol belongs to --truth" in refused(2, "evaluate", folder, "--protocol", tmp_path / "p.toml")
    assert "do not go with --truth" in refused(2, "evaluate", folder, "--truth", "--faces", folder)
    assert "no strategy called" in refused(2, "evaluate", tmp_path / "new", "--truth", "--set", "strategy.name=foo")
    assert "no such weight file" in refused(1, "evaluate", tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_actors(tmp_path: Path) -> None:
    clip = tmp_path / "a.mp4"
    words = ("actors", "clip", "-o", clip, "--identity", 3, "--seconds", 0.2, "--size", 96)
    report = json.loads(faceswap(*words, "--json").stdout)
    assert report["frames"] == 5 and Path(report["truth"]).is_file() and probe(clip).frames == 5
    assert "--overwrite" in refused(2, *words)
    assert "even" in refused(2, "actors", "clip", "-o", tmp_path / "b.mp4", "--size", 97)
    assert "actors clip -h says more" in refused(2, "actors", "clip")
    result = faceswap("actors", "faces", "-o", tmp_path / "many", "--count", 3, "--size", 64)
    assert "3 faces" in result.stdout and len(list((tmp_path / "many").iterdir())) == 3
    assert "Rendered people" in faceswap("actors", "-h").stdout


def test_a_number_that_is_none_is_refused(tmp_path: Path) -> None:
    for word in ("nan", "inf", "-1", "0"):
        assert "--seconds" in refused(2, "actors", "clip", "-o", tmp_path / "a.mp4", "--seconds", word)
    assert "--minutes" in refused(2, "demo", "-o", tmp_path / "d", "--minutes", "nan")


def test_evaluate_replaces_pages_only(run: Path, tmp_path: Path) -> None:
    weights = run / "best.safetensors"
    before = weights.read_bytes()
    assert "ending in .html" in refused(2, "evaluate", run, "-o", weights, "--overwrite")
    assert weights.read_bytes() == before
    assert "a new folder for the benchmark has no suffix" in refused(
        2, "evaluate", tmp_path / "w.safetensors", "--truth"
    )
    (tmp_path / "d" / "swapped.faceswap" / "run").mkdir(parents=True)
    assert "name the run: " in refused(2, "evaluate", tmp_path / "d", "--truth")


def test_demo_refuses_at_once_what_would_fail_later(tmp_path: Path) -> None:
    assert "no transfer called 'foo'" in refused(2, "demo", "-o", tmp_path / "d", "--set", "merge.color=foo")
    assert not (tmp_path / "d").exists()
    (tmp_path / "mine.txt").touch()
    assert "expected a folder of faceswap demo" in refused(2, "demo", "-o", tmp_path)
    assert "swap_64" in faceswap("demo", "-h").stdout


def test_doctor() -> None:
    findings = {f["name"]: f for f in json.loads(faceswap("doctor", "--json").stdout)}
    assert {"python", "torch", "device", "detector", "video", "disk"} < set(findings)
    assert all(finding["ok"] for finding in findings.values())
    assert "mtcnn" in faceswap("doctor").stdout
    extras = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    assert list(doctor.EXTRAS) == sorted(extras.keys() - {"test"})
    assert all(extra in findings["extras"]["value"] for extra in doctor.EXTRAS)


def test_doctor_says_what_is_missing_and_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("faceswap.doctor.PACKAGES", ("torch", "no-such-package"))
    result = faceswap("doctor", ok=False)
    assert result.exit_code == 1 and "MISSING no-such-package" in result.stdout and "pip install" in result.stdout


def test_the_seed_and_the_recipe_file_reach_the_run(facesets: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "my.toml").write_text("[model]\nresolution = 32\nwidth = 4\ncode = 16\n[data]\nbatch = 4\n")
    words = ("pretrain", facesets["source"], "--config", tmp_path / "my.toml", "--images", 8, "-q")
    faceswap(*words, "-o", tmp_path / "a", "--seed", 7)
    assert "seed = 7" in (tmp_path / "a" / "recipe.toml").read_text()
    runs = []
    for name, seed in (("b", 7), ("c", 8)):
        faceswap(*words, "-o", tmp_path / name, "--seed", seed)
        runs.append((tmp_path / name / "metrics.jsonl").read_text().splitlines()[-1])
    assert runs[0] == (tmp_path / "a" / "metrics.jsonl").read_text().splitlines()[-1] != runs[1]


def bad_inputs(tmp_path: Path, clips: dict[str, Path]) -> dict[str, tuple[Path, str]]:
    """Each kind of bad footage and what is said of it."""
    text, empty, broken = tmp_path / "notes.mp4", tmp_path / "empty.mp4", tmp_path / "broken.mp4"
    text.write_text("not a video, but long enough to be looked at" * 20)
    empty.touch()
    broken.write_bytes(clips["source"].read_bytes()[:200])
    (tmp_path / "hollow").mkdir()
    return {
        "missing": (tmp_path / "missing.mp4", "no such file"),
        "text": (text, "notes.mp4"),
        "empty": (empty, "empty.mp4"),
        "broken": (broken, "broken.mp4"),
        "hollow": (tmp_path / "hollow", "hollow"),
    }


@pytest.mark.parametrize("kind", ["missing", "text", "empty", "broken", "hollow"])
def test_footage_that_is_none(kind: str, clips: dict[str, Path], run: Path, tmp_path: Path) -> None:
    path, said = bad_inputs(tmp_path, clips)[kind]
    before = sorted(tmp_path.rglob("*"))
    assert said in refused(1, "extract", path, "-o", tmp_path / "faces")
    assert said in refused(1, "extract", clips["source"], path, "-o", tmp_path / "faces")
    assert said in refused(1, "merge", path, "--model", run, "-o", tmp_path / "out.mp4")
    assert said in refused(1, "swap", clips["source"], path, "-o", tmp_path / "out.mp4", "--images", 8)
    assert sorted(tmp_path.rglob("*")) == before


def test_truncated_footage_is_used_as_far_as_it_goes(clips: dict[str, Path], tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.mkv", tmp_path / "cut.mkv"
    footage.write_clip(whole, footage.performance("source", 16), sound=False)
    cut.write_bytes(whole.read_bytes()[: int(whole.stat().st_size * 0.6)])
    result = faceswap("extract", cut, "-o", tmp_path / "faces", "--json", *TINY)
    assert 0 < json.loads(result.stdout)["frames"] < 16
    assert "warning: cut.mkv: damaged after frame" in result.stderr


def test_nobody_in_the_footage(tmp_path: Path) -> None:
    clip = footage.write_clip(tmp_path / "wall.mp4", [np.full((96, 96, 3), 90, np.uint8)] * 4)
    line = refused(1, "extract", clip, "-o", tmp_path / "faces")
    assert "wall.mp4" in line and "no face of at least 48 px found in 4 frames; try --min-size 24" in line
    assert not (tmp_path / "faces").exists()


def test_a_faceset_of_one_image(facesets: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    shutil.copy(next(facesets["source"].iterdir()), tmp_path / "one")
    words = ("finetune", "--source", tmp_path / "one", "--target", facesets["target"], "-o", tmp_path / "run")
    assert "one: expected at least 2 faces" in refused(1, *words, "--images", 8)
    assert not (tmp_path / "run").exists()


def test_images_that_do_not_decode_are_skipped_and_counted(tmp_path: Path) -> None:
    import cv2

    (tmp_path / "photos").mkdir()
    for i in range(3):
        cv2.imwrite(str(tmp_path / "photos" / f"{i}.png"), footage.draw_face(mouth=i)[..., ::-1])
    (tmp_path / "photos" / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
    result = faceswap("extract", tmp_path / "photos", "-o", tmp_path / "faces", *TINY)
    assert "3 faces of 1 tracks (1 found) from 3 frames" in result.stdout and "bad.png" in result.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--set", "model.resolutoin=64"], "unknown key 'model.resolutoin'; did you mean 'resolution'?"),
        (["--set", "modle.resolution=64"], "unknown key 'modle'; did you mean 'model'?"),
        (["--set", "model.resolution=50"], "model.resolution = 50: input should be a multiple of 16"),
        (["--set", "model.resolution"], "expected section.key=value"),
        (["--set", "extract.detector=mtcn"], "no detector called 'mtcn'; did you mean 'mtcnn'?"),
        (["--config", "no.toml"], "no.toml: no such recipe"),
        (["--device", "cuda:9"], "--device cuda:9: 0 CUDA devices found"),
        (["--device", "gpu"], "--device gpu: expected auto, cpu, cuda"),
    ],
)
def test_wrong_use_is_answered_with_the_remedy(
    words: list[str], said: str, clips: dict[str, Path], tmp_path: Path
) -> None:
    assert said in refused(2, "extract", clips["source"], "-o", tmp_path / "faces", *words)
    assert not (tmp_path / "faces").exists()


def test_outputs_are_not_overwritten_unasked(
    clips: dict[str, Path], facesets: dict[str, Path], run: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.mp4"
    out.write_text("precious")
    for words in (("merge", clips["target"], "--model", run), ("swap", clips["source"], clips["target"])):
        assert "out.mp4: exists already; choose another name or add --overwrite" in refused(2, *words, "-o", out)
    assert out.read_text() == "precious"
    faces = sorted(facesets["source"].iterdir())
    assert "exists already" in refused(2, "extract", clips["source"], "-o", facesets["source"])
    assert sorted(facesets["source"].iterdir()) == faces
    assert list(tmp_path.iterdir()) == [out]


def test_the_footage_itself_is_never_the_output(clips: dict[str, Path], run: Path, tmp_path: Path) -> None:
    video = tmp_path / "mine.mp4"
    shutil.copy(clips["target"], video)
    for words in (("merge", video, "--model", run), ("swap", clips["source"], video)):
        assert "is the footage itself" in refused(2, *words, "-o", video, "--overwrite")
    assert video.read_bytes() == clips["target"].read_bytes()


def test_another_architecture(facesets: dict[str, Path], run: Path) -> None:
    sides = ("--source", facesets["source"], "--target", facesets["target"])
    line = refused(1, "finetune", *sides, "-o", run, "--images", 80, *TINY, "--set", "model.width=8")
    assert "its model.width is 4, not 8; use its recipe, or another run folder" in line


def test_no_model(clips: dict[str, Path], tmp_path: Path) -> None:
    words = ("merge", clips["target"], "-o", tmp_path / "out.mp4", "--model")
    assert "no such weight file" in refused(1, *words, tmp_path / "nothing")
    (tmp_path / "fake.safetensors").write_bytes(b"PK" * 99)
    assert "not a whole safetensors file" in refused(1, *words, tmp_path / "fake.safetensors")


def test_no_budget(facesets: dict[str, Path], tmp_path: Path) -> None:
    assert "no budget: give --minutes M or --images N" in refused(
        2, "pretrain", facesets["source"], "-o", tmp_path / "b"
    )


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", "/some/file")


@pytest.mark.parametrize("at", ["faceswap.extract.write_face", "faceswap.files.sync"])
def test_disk_full(at: str, clips: dict[str, Path], run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(at, full_disk)
    words = ("extract", clips["source"]) if "extract" in at else ("merge", clips["target"], "--model", run)
    line = refused(1, *words, "-o", tmp_path / "out.mp4", *TINY)
    assert "disk full" in line and "free" in line
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["extract", "a.mp4"], "error: Missing option '-o'; faceswap extract -h says more"),
        (["extrat"], "No such command 'extrat'"),
        (["extract", "a.mp4", "-o", "b", "--seed", "-1"], "--seed"),
        (["extract", "", "-o", "b"], "found an empty word"),
        (["pretrain", "a", "-o", "b", "--minutes", "-1"], "--minutes"),
    ],
)
def test_wrong_words_are_one_line_too(words: list[str], said: str) -> None:
    result = faceswap(*words, ok=False)
    assert result.exit_code == 2 and len(result.stderr.splitlines()) == 1 and said in result.stderr


@pytest.mark.parametrize("words", [["--largest"], ["--everyone"], ["--track", 0], ["--reference"]])
def test_whose_faces_are_taken_and_swapped(
    words: list[Any], clips: dict[str, Path], facesets: dict[str, Path], run: Path, tmp_path: Path
) -> None:
    if words == ["--reference"]:
        words = [*words, next(facesets["target"].iterdir())]
    result = faceswap("extract", clips["target"], "-o", tmp_path / "faces", *words, "--json", *TINY)
    assert json.loads(result.stdout)["faces"] == len(list((tmp_path / "faces").iterdir())) == 14
    result = faceswap("merge", clips["target"], "--model", run, "-o", tmp_path / "out.mp4", *words, "--json", *TINY)
    assert json.loads(result.stdout)["frames_swapped"] == 14


@pytest.mark.parametrize("words", [["--track", 7], ["--track", 0, "--track", 7]])
def test_a_track_that_is_none(words: list[Any], clips: dict[str, Path], run: Path, tmp_path: Path) -> None:
    for command in (["extract", clips["target"]], ["merge", clips["target"], "--model", run]):
        line = refused(2, *command, "-o", tmp_path / "out.mp4", *words, *TINY)
        assert "no track 7; expected one of 0 to" in line and "frames 0 to" in line
    assert not list(tmp_path.iterdir())


SEVERAL = [
    *(["--largest", "--track", 0], ["--reference", "a.png", "--track", 0], ["--reference", "a.png", "--largest"]),
    *(["--everyone", "--track", 0], ["--everyone", "--largest"], ["--everyone", "--reference", "a.png"]),
]


@pytest.mark.parametrize("words", SEVERAL)
def test_whose_faces_is_said_once(words: list[Any], clips: dict[str, Path], run: Path, tmp_path: Path) -> None:
    said = "expected one of --reference, --track, --largest and --everyone, found several"
    for command in (["extract"], ["merge", "--model", run], ["swap", clips["source"]]):
        assert said in refused(2, *command, clips["target"], "-o", tmp_path / "out.mp4", *words)
    reference = ("--source-reference", "a.png", "--source-track", 0)
    assert "found several" in refused(2, "swap", *clips.values(), "-o", tmp_path / "out.mp4", *reference)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [["--track", 1], ["--largest"], ["--everyone"], ["--reference", "a.png"]])
def test_faces_say_already_whose_they_are(
    words: list[Any], clips: dict[str, Path], facesets: dict[str, Path], run: Path, tmp_path: Path
) -> None:
    command = ("merge", clips["target"], "--model", run, "--faces", facesets["target"], "-o", tmp_path / "out.mp4")
    assert "--faces says already whose faces are swapped" in refused(2, *command, *words)
    assert not list(tmp_path.iterdir())


def test_whom_swap_takes_of_each_video(clips: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Who]] = []

    def stop(*_: Any, who: dict[str, Who], **__: Any) -> None:
        asked.append(who)
        raise UsageError("enough")

    monkeypatch.setattr("faceswap.pair.swap_pair", stop)
    for words in (
        [],
        ["--everyone"],
        ["--track", 2, "--track", 1],
        ["--source-track", 3],
        ["--source-reference", "a.png", "--largest"],
    ):
        assert "enough" in refused(2, "swap", *clips.values(), "-o", tmp_path / "out.mp4", *words)
    assert asked == [
        {},
        {"target": Who()},
        {"target": Who(tracks=(2, 1))},
        {"source": Who(tracks=(3,))},
        {"target": Who(largest=True), "source": Who(references=(Path("a.png"),))},
    ]


def test_a_track_of_the_source_that_is_none(clips: dict[str, Path], tmp_path: Path) -> None:
    words = ("--source-track", 9, "--images", 8, *TINY)
    assert "source.mp4: no track 9; expected one of 0 to" in refused(
        2, "swap", *clips.values(), "-o", tmp_path / "out.mp4", *words
    )


def test_a_number_of_a_track_is_of_one_input(clips: dict[str, Path], tmp_path: Path) -> None:
    line = refused(2, "extract", *clips.values(), "-o", tmp_path / "faces", "--track", 0)
    assert "--track names a track of one input, found 2 inputs" in line
    assert "--track" in refused(2, "extract", clips["source"], "-o", tmp_path / "faces", "--track", "-1")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words",
    [
        ["-o", "out.avi"],
        ["-o", "."],
        ["-o", "out.mp4", "--set", "merge.color=foo"],
        ["-o", "out.mp4", "--set", "merge.blend=foo"],
        ["-o", "out.mp4", "--set", "data.batch=3"],
        ["-o", "out.mp4", "--set", "model.name=foo"],
        ["-o", "out.mp4", "--set", "strategy.name=foo"],
    ],
)
def test_swap_refuses_at_once_what_would_fail_at_the_end(
    words: list[str], clips: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(2, "swap", clips["source"], clips["target"], *words, "--images", 8)
    assert not list(tmp_path.iterdir())


def test_extract_does_not_replace_the_folder_it_reads(facesets: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(facesets["source"], tmp_path / "faces")
    before = sorted(path.name for path in (tmp_path / "faces").iterdir())
    for given in (tmp_path / "faces", next((tmp_path / "faces").iterdir())):
        assert "is the footage itself" in refused(2, "extract", given, "-o", tmp_path / "faces", "--overwrite")
    assert sorted(path.name for path in (tmp_path / "faces").iterdir()) == before


def test_sigterm_cleans_up(clips: dict[str, Path], tmp_path: Path) -> None:
    long = tmp_path / "long.mp4"
    footage.write_clip(long, footage.performance("source", 12) * 60)
    words = [sys.executable, "-m", "faceswap", "extract", str(long), "-o", str(tmp_path / "faces"), *TINY]
    process = subprocess.Popen(words, stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 60
    while not list(tmp_path.glob(".faces.*/*.png")):
        assert process.poll() is None and time.monotonic() < end
        time.sleep(0.01)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "error: interrupted" in errors and "Traceback" not in errors
    assert list(tmp_path.iterdir()) == [long]
