"""Several processes train one model: started by Fabric or by torchrun, on CPUs here."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from test_train import command, newest, recipe

from faceswap.cli import main
from faceswap.errors import UsageError

BATCH, IMAGES = 8, 80
ONE = ("data.batch=8", "train.images=80", "train.preview_images=40")
TWO = (*ONE, "train.devices=2")
HALF = ("train.images=40", "train.decay=0.0")  # of the same training: the rate falls in the last 30 % alone
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "faceswap"]


def work(words: list[str], *, torchrun: bool = False) -> subprocess.CompletedProcess[str]:
    words = [*TORCHRUN, *words[3:]] if torchrun else words  # without `python -m faceswap`
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1, "the first process alone speaks"
    return done


def lines(run: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def curve(run: Path, *names: str) -> list[float]:
    return [line[name] for line in lines(run) for name in names if name in line]


def close(one: Path, other: Path) -> None:
    """Two runs have the same losses to 1e-5, at every step and on held-out faces."""
    for name in ("train/loss", "train/ssim", "train/mask", "train/gradient", "held_out/target/loss"):
        ours, theirs = curve(one, name), curve(other, name)
        tolerance = 1e-4 if name == "train/gradient" else 1e-5
        assert len(ours) == len(theirs) > 2 and ours == pytest.approx(theirs, abs=tolerance), name
    assert newest(one).progress.images == newest(other).progress.images == IMAGES


def alone_with(run: Path, facesets: dict[str, Path], *settings: str) -> Path:
    """The same in this process: it starts sooner."""
    values = [part for setting in settings for part in ("--set", setting)]
    words = [*command(run, facesets, *ONE)[3:], *values]
    assert CliRunner().invoke(main, [*words, "-q"]).exit_code == 0
    return run


@pytest.fixture(scope="module")
def alone(facesets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return alone_with(tmp_path_factory.mktemp("alone") / "run", facesets)


def test_two_processes_have_the_losses_of_one(facesets: dict[str, Path], alone: Path, tmp_path: Path) -> None:
    work(command(tmp_path / "run", facesets, *TWO))
    close(tmp_path / "run", alone)
    assert newest(tmp_path / "run").progress.steps == newest(alone).progress.steps == IMAGES // BATCH


def test_torchrun_has_them_too(facesets: dict[str, Path], alone: Path, tmp_path: Path) -> None:
    work(command(tmp_path / "run", facesets, *ONE), torchrun=True)
    close(tmp_path / "run", alone)
    assert newest(tmp_path / "run").recipe.train.devices == 2


def test_a_run_of_two_goes_on_with_one(facesets: dict[str, Path], alone: Path, tmp_path: Path) -> None:
    work(command(tmp_path / "run", facesets, *TWO, *HALF))
    alone_with(tmp_path / "run", facesets)
    assert curve(tmp_path / "run", "train/loss") == pytest.approx(curve(alone, "train/loss"), abs=1e-5)


def test_a_run_of_one_goes_on_with_two_of_torchrun(facesets: dict[str, Path], alone: Path, tmp_path: Path) -> None:
    alone_with(tmp_path / "run", facesets, *HALF)
    done = work(command(tmp_path / "run", facesets, *ONE), torchrun=True)
    assert "continuing at 40 images" in done.stderr
    assert curve(tmp_path / "run", "train/loss") == pytest.approx(curve(alone, "train/loss"), abs=1e-5)


def test_parts_of_a_batch_and_adversaries_in_two_processes(facesets: dict[str, Path], tmp_path: Path) -> None:
    more = ("train.accumulate=2", "loss.swap_back=0.1", "loss.adversarial=0.1", "loss.patch=8")
    more = (*more, "loss.adversarial_from=0.3")
    alone_with(tmp_path / "one", facesets, *more)
    work(command(tmp_path / "two", facesets, *TWO, *more))
    for name in ("train/loss", "train/adversarial", "train/adversarial_adversary"):
        ours, theirs = curve(tmp_path / "two", name), curve(tmp_path / "one", name)
        assert len(ours) >= 7 and ours == pytest.approx(theirs, abs=1e-4), name


def test_swap_under_torchrun_is_told_what_to_do(
    clips: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from faceswap.pair import swap_pair

    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match="every process would extract; use faceswap extract, then finetune"):
        swap_pair(clips["source"], clips["target"], tmp_path / "out.mp4", recipe())
    assert not list(tmp_path.iterdir())
