"""What docs/*.md say is tried: Python runs, diffs apply, TOML loads, and every command and key exists."""

import re
import shlex
import shutil
import subprocess
from itertools import pairwise
from pathlib import Path

import blocks
import footage
import numpy as np
import pytest
import torch
from click.testing import CliRunner

from faceswap import checkpoint, config, console, detectors, models, shots, strategies
from faceswap.cli import main

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
GUIDES = [path for path in DOCS if path.name not in ("BENCHMARK.md", "LOG.md")]  # the others hold tables of figures
PROGRAMS = ("faceswap ", "torchrun ", "tensorboard ", "srun ", "python -m faceswap ", "eval ", "_FACESWAP_COMPLETE=")
LANGUAGES = {"", "python", "diff", "toml", "toml plan"}
SECTIONS = {
    name: set(getattr(config.Recipe(), name).model_dump()) for name in config.Recipe().model_dump(exclude={"seed"})
}

DEEPFACELAB = """
resolution archi ae_dims e_dims d_dims d_mask_dims masked_training eyes_mouth_prio uniform_yaw blur_out_mask
models_opt_on_gpu adabelief lr_dropout random_warp random_hsv_power gan_power gan_patch_size true_face_power
face_style_power bg_style_power ct_mode clipgrad pretrain batch_size target_iter random_src_flip random_dst_flip
autobackup_hour write_preview_history mask_mode erode_mask_modifier blur_mask_modifier motion_blur_power
output_face_scale color_transfer_mode super_resolution_power
"""


def by_name(path: Path) -> str:
    return path.name


@pytest.mark.parametrize("path", DOCS, ids=by_name)
def test_every_command_line_parses(path: Path) -> None:
    for words in blocks.commands(path):
        blocks.parse(words)


@pytest.mark.parametrize("path", GUIDES, ids=by_name)
def test_every_block_is_of_a_kind_that_is_tried(path: Path) -> None:
    for language, text in blocks.blocks(path):
        assert language in LANGUAGES, language
        if not language:
            assert all(line.startswith(PROGRAMS) for line in text.splitlines()), text


@pytest.mark.parametrize("path", [ROOT / "README.md", *DOCS], ids=by_name)
def test_links_lead_somewhere(path: Path) -> None:
    for file, anchor in re.findall(r"\]\((?!https?:)([^)#\s]*)(?:#([^)]*))?\)", path.read_text()):
        there = path.parent / file if file else path
        assert there.exists(), file
        if anchor:
            titles = re.findall(r"^#+ (.*)$", there.read_text(), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles], anchor


@pytest.mark.parametrize("path", [ROOT / "README.md", *GUIDES], ids=by_name)
def test_every_key_and_option_that_is_named_exists(path: Path) -> None:
    text = path.read_text()
    for section, key in re.findall(rf"\b({'|'.join(SECTIONS)})\.(\w+)\b(?!\()", "".join(re.findall(r"`[^`]+`", text))):
        assert key in SECTIONS[section] | {"py", "mp4", "mov"}, f"{section}.{key}"
    ours = {option for command in blocks.leaves().values() for each in command.params for option in each.opts}
    if path.name in ("DEEPFACELAB.md", "FINETUNING.md"):
        return  # name options of another program
    for option in re.findall(r"`(--[a-z0-9-]+)[^`]*`", text):
        assert option in ours, option


@pytest.mark.parametrize("path", GUIDES, ids=by_name)
def test_every_setting_and_recipe_of_a_command_is_taken(path: Path) -> None:
    for words in blocks.commands(path):
        given = {name: [value for option, value in pairwise(words) if option == name] for name in ("--set", "--config")}
        config.load(settings=given["--set"])
        for name in given["--config"]:
            assert name == "mine.toml" or config.load(Path(name)), name


@pytest.mark.parametrize("path", GUIDES, ids=by_name)
def test_toml_loads_as_what_it_is_called(path: Path, tmp_path: Path) -> None:
    for language, text in blocks.blocks(path):
        file = tmp_path / "block.toml"
        file.write_text(text)
        if language == "toml":
            config.load(file)
        elif language == "toml plan":
            assert shots.load(file)


def test_recipes_names_every_key() -> None:
    text = (ROOT / "docs" / "RECIPES.md").read_text()
    named = set(re.findall(r"`(\w+\.\w+)(?: = [^`]*)?`", text))
    missing = {f"{section}.{key}" for section, keys in SECTIONS.items() for key in keys} - named
    assert not missing
    assert re.findall(r"^## (\w+):", text, re.MULTILINE) == list(SECTIONS), "each section, in order"


def test_deepfacelabs_options_are_all_there() -> None:
    text = (ROOT / "docs" / "DEEPFACELAB.md").read_text()
    assert not [name for name in DEEPFACELAB.split() if f"`{name}`" not in text]


# PYTHON.md


def test_the_notebook_runs_from_top_to_bottom(
    clips: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, clip in clips.items():
        shutil.copy(clip, tmp_path / f"{name}.mp4")
    monkeypatch.chdir(tmp_path)
    path = ROOT / "docs" / "PYTHON.md"
    namespace: dict[str, object] = {}
    try:
        for language, text in blocks.blocks(path):
            if language == "python":
                exec(compile(text, str(path), "exec"), namespace)
    finally:
        console.configure(console.QUIET)
    said = capsys.readouterr().out
    assert "a face replaced in 14 of 16 frames" in said and "; stopped" in said and said.endswith("160\n")
    assert (tmp_path / "swapped.mp4").is_file() and (tmp_path / "run" / "evaluation.html").is_file()
    state = checkpoint.latest(tmp_path / "run")
    assert state is not None and state.consent.startswith("Anna Smith")


# ADDING.md


@pytest.fixture(scope="module")
def added(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the differences of ADDING.md were applied."""
    folder = tmp_path_factory.mktemp("added")
    diffs = [text for language, text in blocks.blocks(ROOT / "docs" / "ADDING.md") if language == "diff"]
    assert len(diffs) == 3
    for text in diffs:
        assert text.count("\n") < 30
        subprocess.run(["git", "apply", "-"], cwd=folder, input=text.encode(), check=True)
    return folder


@pytest.fixture
def parts(added: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, with the files in their sockets."""
    for socket in (detectors, models, strategies):
        more = str(added / socket.__name__.replace(".", "/"))
        monkeypatch.setattr(socket, "__path__", [*socket.__path__, more])
    return added


def test_the_files_are_formatted_and_checked_like_ours(added: Path) -> None:
    for check in (["ruff", "check"], ["ruff", "format", "--check"]):
        done = subprocess.run(
            [*check, "--config", str(ROOT / "pyproject.toml"), str(added)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout + done.stderr


def faceswap(*words: object) -> str:
    result = CliRunner().invoke(main, [*map(str, words), "--device", "cpu", "-q"])
    console.configure(console.QUIET)
    assert result.exit_code == 0, result.output
    return result.output


SMALL = [
    word
    for setting in ("model.resolution=32", "model.width=4", "model.code=16", "data.batch=4")
    for word in ("--set", setting)
]


def test_the_strategy_trains_offsets_and_codes(parts: Path, facesets: dict[str, Path], tmp_path: Path) -> None:
    faceswap("pretrain", facesets["source"], "-o", tmp_path / "base", "--images", 8, *SMALL)
    people = ["--source", facesets["source"], "--target", facesets["target"], "--base", tmp_path / "base"]
    faceswap("finetune", *people, "-o", tmp_path / "run", "--strategy", "bitfit", "--images", 16, *SMALL)
    state = checkpoint.latest(tmp_path / "run")
    assert state is not None and state.recipe.strategy.name == "bitfit"
    tuned, _ = checkpoint.load_model(tmp_path / "run")
    started, _ = checkpoint.load_model(tmp_path / "run", strength=0.0)
    before = dict(started.named_parameters())
    moved = {name for name, weight in tuned.named_parameters() if (weight != before[name]).any()}
    codes = set(tuned.named("codes"))
    assert codes < moved and all(name.endswith("bias") for name in moved - codes)


def test_the_architecture_draws_mirrored_faces_mirrored(parts: Path, facesets: dict[str, Path], tmp_path: Path) -> None:
    people = ["--source", facesets["source"], "--target", facesets["target"]]
    faceswap("finetune", *people, "-o", tmp_path / "run", "--set", "model.name=mirrored", "--images", 8, *SMALL)
    model, state = checkpoint.load_model(tmp_path / "run")
    assert state.recipe.model.name == "mirrored"
    faces, person = torch.rand(2, 3, 32, 32), torch.tensor([0, 1])
    with torch.no_grad():
        drawn, mask = model(faces, person)
        other, seen = model(faces.flip(3), person)
    torch.testing.assert_close(other.flip(3), drawn, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(seen.flip(3), mask, atol=1e-5, rtol=1e-4)


def test_the_detector_finds_what_mtcnn_finds(parts: Path) -> None:
    image = footage.draw_face(size=320, centre=(160, 160), scale=2.0)
    halved = detectors.build("halved", threshold=0.9, min_size=80, device="cpu")
    ((face,),) = halved([image])
    truth = footage.UNIT_POINTS * 2 + 160
    assert np.linalg.norm(face.points - truth, axis=1).max() < 8
    assert face.points.dtype == face.box.dtype == np.float32 and 80 < face.side < 320


# the command line


@pytest.mark.parametrize("name", sorted(blocks.leaves()))
def test_the_examples_of_every_command_are_its_own_and_parse(name: str) -> None:
    examples = re.findall(r"Example: faceswap (.*)", blocks.leaves()[name].help or "")
    assert examples
    for words in examples:
        assert blocks.parse(shlex.split(words)) == name


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_what_the_docs_say(shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (ROOT / "docs" / "TROUBLESHOOTING.md").read_text()
    assert f"_FACESWAP_COMPLETE={shell}_source faceswap" in text
    monkeypatch.setenv("_FACESWAP_COMPLETE", f"{shell}_complete")
    monkeypatch.setenv("COMP_WORDS", "faceswap mer")
    monkeypatch.setenv("COMP_CWORD", "mer" if shell == "fish" else "1")
    result = CliRunner().invoke(main, [], prog_name="faceswap")
    assert "merge" in result.output
