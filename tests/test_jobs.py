"""Jobs: what is checked before the start, what is done, and what is not done again."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from test_cli import faceswap, refused

from faceswap import jobs
from faceswap.cli import main
from faceswap.errors import UsageError

ROOT = Path(__file__).parents[1]
CLIP = '[[step]]\nrun = "actors clip"\nout = "{}.mp4"\nseconds = {}\nsize = 64\n'
STEPS = """
[[step]]
run = "extract"
inputs = ["a.mp4", "photos"]
out = "a"
every = 2

[[step]]
run = "finetune"
source = ["a"]
out = "run"
images = 8
set = ["model.resolution=32"]

[[step]]
run = "merge"
video = "b.mp4"
model = "run"
out = "swapped.mp4"
"""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    path = tmp_path / "job.toml"
    path.write_text(STEPS)
    return path


class Fake:
    """In the place of processes: notes what is run, and makes what -o names."""

    def __init__(self) -> None:
        self.ran: list[str] = []
        self.fails: dict[str, int] = {}
        self.stops: str = ""  # the command in which Ctrl-C comes, too late to change its end

    def __call__(self, runner: jobs.Runner, words: Sequence[str], folder: Path, lock: Sequence[int]) -> int:
        self.ran.append(words[0])
        if words[0] not in self.fails and "-o" in words:
            (folder / words[words.index("-o") + 1]).touch()
        runner.asked |= words[0] == self.stops
        return self.fails.get(words[0], 0)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> Fake:
    fake = Fake()
    monkeypatch.setattr(jobs.Runner, "__call__", lambda *words: fake(*words))
    return fake


def states(path: Path, **more: Any) -> list[str]:
    (report,) = jobs.run(path, main, **more)
    return [step.state for step in report.steps]


def lines(path: Path) -> list[str]:
    return [" ".join(step.words) for step in jobs.load(path, main, {}).steps]


# Reading


def test_a_step_is_a_command_line(job: Path) -> None:
    assert lines(job) == [
        "extract -o a --every 2 a.mp4 photos",
        "finetune --source a -o run --images 8 --set model.resolution=32",
        "merge --model run -o swapped.mp4 b.mp4",
    ]
    assert [step.outs for step in jobs.load(job, main, {}).steps] == [("a",), ("run",), ("swapped.mp4",)]


def test_flags_single_words_and_dashes(job: Path) -> None:
    job.write_text('[[step]]\nrun="extract"\ninputs="-a.mp4"\nlargest=true\noverwrite=false\ntrack=3\nout="-a"')
    assert lines(job) == ["extract --largest --track 3 -o -a -- -a.mp4"]
    job.write_text('[[step]]\nrun="combine"\ntarget="t"\nsource="s"\nout="p"\n[[step]]\nrun="train status"\npath="r"')
    assert lines(job) == ["combine -o p s t", "train status r"]
    job.write_text('[[step]]\nrun = "demo"')
    assert jobs.load(job, main, {}).steps[0].outs == ("demo",), "click knows the default"


def test_every_parameter_of_every_command_has_a_key_of_its_own() -> None:
    for name, command in jobs.commands_of(main).items():
        keys = [jobs.key_of(param) for param in command.params]
        assert len(set(keys)) == len(keys) and "run" not in keys, name
        assert set(jobs.PASSED_ON) <= set(keys), name
        assert not any(key.startswith("-") for key in keys), name


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[[step]\n", "not valid TOML: "),
        ("", "no steps; expected one [[step]] or more"),
        ("step = []", "no steps"),
        ('[step]\nrun = "doctor"', "no steps; expected one [[step]]"),
        ("step = [1]", "no steps"),
        ('seed = 1\n[[step]]\nrun = "doctor"', "unknown key 'seed'"),
        ("[[step]]\nout = 3", "step 1: no command; expected a line such as run"),
        ('[[step]]\nrun = "extrat"', "step 1: no command called 'extrat'; did you mean 'extract'?"),
        ('[[step]]\nrun = "actors"', "no command called 'actors'; did you mean 'actors"),
        ('[[step]]\nrun = "doctor"\n[[step]]\nrun = "run"\njob = "b"', "step 2: a job starts no jobs"),
        ('[[step]]\nrun = "extract"\nout = "a"\ninput = "b"', "extract has no 'input'; did you mean 'inputs'?"),
        ('[[step]]\nrun = "extract"\nout = "a"\ninputs = "b"\nmin_size = 9', "did you mean 'min-size'?"),
        ('[[step]]\nrun = "extract"\ninputs = "b"', "extract: out is missing; give it"),
        ('[[step]]\nrun = "combine"\nout = "a"\ntarget = "b"', "combine: source is missing"),
        ('[[step]]\nrun = "extract"\nout = "a"\ninputs = []', "inputs = []: expected one or more"),
        ('[[step]]\nrun = "extract"\nout = "a"\ninputs = "b"\nevery = "2"', "every = '2': expected a whole number"),
        ('[[step]]\nrun = "extract"\nout = "a"\ninputs = "b"\nevery = true', "every = True: expected a whole number"),
        ('[[step]]\nrun = "extract"\nout = "a"\ninputs = "b"\nevery = 0', "every = 0: 0 is not in the range x>=1"),
        ('[[step]]\nrun = "extract"\nout = "a"\ninputs = [1]', "inputs = [1]: expected text in quotes, or a list of"),
        ('[[step]]\nrun = "extract"\nout = ["a"]\ninputs = "b"', "out = ['a']: expected text in quotes"),
        ('[[step]]\nrun = "extract"\nout = ""\ninputs = "b"', "out = '': expected a path, found an empty word"),
        ('[[step]]\nrun = "extract"\nout = "a"\ninputs = "b"\nlargest = 1', "largest = 1: expected true or false"),
        ('[[step]]\nrun = "demo"\nminutes = "9"', "minutes = '9': expected a number"),
        ('[[step]]\nrun = "demo"\nminutes = nan', "minutes = nan: nan is no finite number"),
        ('[[step]]\nrun = "faceset sort"\npath = "a"\nby = "name"', "by = 'name': 'name' is not one of 'blur'"),
        ('[[step]]\nrun = "demo"\nset = ["model.size=3"]', "step 1: swap_64 and --set: unknown key 'model.size'"),
        ('[[step]]\nrun = "demo"\nconfig = "swap_65"', "step 1: swap_65: no such recipe"),
    ],
)
def test_mistakes_are_one_line_before_anything_starts(text: str, said: str, job: Path, fake: Fake) -> None:
    job.write_text(text)
    line = refused(2, "run", job)
    assert said in line and line.startswith(f"error: {job}: ")
    assert not fake.ran and list(job.parent.iterdir()) == [job]


def test_a_recipe_is_looked_for_beside_the_job(job: Path) -> None:
    job.write_text('[[step]]\nrun = "demo"\nconfig = "mine.toml"')
    (job.parent / "mine.toml").write_text("[train]\nrate = -1")
    assert "train.rate = -1" in refused(2, "run", job)
    (job.parent / "mine.toml").write_text("[train]\nminutes = 1")
    assert lines(job) == ["demo --config mine.toml"]


def test_no_job(tmp_path: Path) -> None:
    assert "no such job" in refused(2, "run", tmp_path / "job.toml")
    assert "no job in this folder; expected files NAME.toml" in refused(2, "run", tmp_path)
    (tmp_path / "job.toml").write_bytes(b"\xff")
    assert "cannot be read as text" in refused(2, "run", tmp_path / "job.toml")


def test_the_example_is_one() -> None:
    assert [step.run for step in jobs.load(ROOT / "docs" / "job_example.toml", main, {}).steps][-1] == "evaluate"


def test_what_the_command_line_gives_to_every_step(job: Path) -> None:
    (job.parent / "mine.toml").write_text("seed = 3")
    seen: list[str] = []

    @click.command()
    @click.pass_context
    def look(context: click.Context, **_: Any) -> None:
        given = jobs.given(context)
        seen.extend(" ".join(step.words) for step in jobs.load(job, main, given).steps)

    look.params = main.commands["run"].params
    words = ["job", "--device", "cpu", "--set", "train.keep=1", "-q", "--config", str(job.parent / "mine.toml")]
    CliRunner().invoke(look, words, catch_exceptions=False)
    common = f"--set train.keep=1 --device cpu --quiet -o a --every 2 a.mp4 photos --config {job.parent / 'mine.toml'}"
    assert sorted(seen[0].split()) == sorted(["extract", *common.split()])
    assert "--set train.keep=1 --set model.resolution=32" in seen[1], "the step's own come last and win"
    job.write_text(STEPS + 'device = "mps"')
    mine = jobs.load(job, main, {"device": "cpu"}).steps
    assert "cpu" in mine[0].words and "cpu" not in mine[2].words and "mps" in mine[2].words


# Doing


def test_what_is_finished_is_not_done_again(job: Path, fake: Fake) -> None:
    assert states(job) == ["done"] * 3 and fake.ran == ["extract", "finetune", "merge"]
    assert states(job) == ["done before"] * 3 and len(fake.ran) == 3
    kept = json.loads(jobs.journal(job).read_text())
    assert [entry["wrote"] for entry in kept] == [["a"], ["run"], ["swapped.mp4"]]
    assert {path.name for path in job.parent.iterdir()} == {
        "job.toml",
        "job.toml.state.json",
        "a",
        "run",
        "swapped.mp4",
    }


def test_a_failed_step_ends_the_job_and_the_next_start_goes_on_there(job: Path, fake: Fake) -> None:
    fake.fails = {"finetune": 1}
    line = refused(1, "run", job)
    assert f"{job}: mend what is said above; the same command goes on" in line
    result = faceswap("run", job, ok=False)
    assert f"{job}: failed: step 2 (finetune): exit status 1" in result.stdout
    assert [line.split()[:3] for line in result.stdout.splitlines()[1:]] == [
        ["1", "extract", "done"],
        ["2", "finetune", "failed"],
        ["3", "merge", "to"],
    ]
    assert fake.ran == ["extract", "finetune", "finetune"]
    fake.fails = {}
    assert states(job) == ["done before", "done", "done"]


def test_a_changed_step_is_done_again_with_all_after_it(job: Path, fake: Fake) -> None:
    states(job)
    job.write_text(STEPS.replace("images = 8", "images = 9"))
    assert states(job, dry_run=True) == ["done before", "to do", "to do"]
    assert states(job) == ["done before", "done", "done"] and fake.ran[3:] == ["finetune", "merge"]
    job.write_text(STEPS.replace("images = 8", 'images = 9\noverwrite = true\ndevice = "cpu"\n# a remark'))
    assert states(job) == ["done before"] * 3, "what is made is the same"
    job.write_text('[[step]]\nrun = "doctor"\n' + STEPS)
    assert states(job, dry_run=True) == ["to do"] * 4
    job.write_text(STEPS.replace("images = 8", "images = 9") + '\n[[step]]\nrun = "doctor"')
    assert states(job) == ["done before"] * 3 + ["done"], "a step was added"


def test_a_changed_step_that_fails_leaves_the_later_ones_to_do(job: Path, fake: Fake) -> None:
    states(job)
    fake.fails = {"finetune": 1}
    job.write_text(STEPS.replace("images = 8", "images = 9"))
    assert states(job) == ["done before", "failed", "to do"]
    fake.fails = {}
    job.write_text(STEPS)
    assert states(job) == ["done before", "done", "done"], "the old ends are not believed"


def test_a_missing_output_is_made_again(job: Path, fake: Fake) -> None:
    states(job)
    (job.parent / "run").unlink()
    (report,) = jobs.run(job, main, dry_run=True)
    assert report.steps[1].said.startswith("run is gone: faceswap finetune --source a")
    assert states(job) == ["done before", "done", "done"]
    shutil.move(job, job.parent / "other.toml")
    assert states(job.parent / "other.toml", dry_run=True) == ["to do"] * 3, "a job has its journal by its name"


def test_an_output_that_never_lay_under_its_name_is_not_missed(job: Path, fake: Fake) -> None:
    fake.fails = {"faceset": 0}  # as a sheet of several pages, which are numbered
    job.write_text('[[step]]\nrun = "faceset sheet"\npath = "a"\nout = "s.png"')
    assert states(job) == ["done"] and states(job) == ["done before"]


def test_a_damaged_journal(job: Path, fake: Fake) -> None:
    for text in ("{", "[1]", '[{"run": "extract"}]'):
        jobs.journal(job).write_text(text)
        assert "damaged; delete it, and all steps are done again" in refused(1, "run", job)
    assert not fake.ran


def test_a_dry_run_does_nothing(job: Path, fake: Fake) -> None:
    text = faceswap("run", job, "--dry-run").stdout
    assert "faceswap merge --model run -o swapped.mp4 b.mp4" in text and "to do" in text
    assert not fake.ran and list(job.parent.iterdir()) == [job]


def test_json(job: Path, fake: Fake) -> None:
    (report,) = json.loads(faceswap("run", job, "--json").stdout)
    assert report["state"] == "done" and report["job"] == str(job)
    assert [(step["step"], step["run"], step["state"], step["said"]) for step in report["steps"]] == [
        (1, "extract", "done", "a"),
        (2, "finetune", "done", "run"),
        (3, "merge", "done", "swapped.mp4"),
    ]
    assert all(step["seconds"] >= 0 for step in report["steps"])


def test_an_interrupt_stops_job_and_queue(job: Path, fake: Fake) -> None:
    (job.parent / "later.toml").write_text(STEPS)
    fake.stops = "extract"
    result = faceswap("run", job.parent, ok=False)
    assert result.exit_code == 130 and fake.ran == ["extract"]
    assert "goes on from there" in result.stderr and "later.toml: interrupted" in result.stdout
    assert "1  extract         done" in result.stdout, "it had finished all the same"
    fake.stops, fake.fails = "", {"finetune": 130}
    assert states(job) == ["done before", "interrupted", "to do"], "as a step says it that was asked itself"


def test_torchrun_is_refused(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "1")
    assert "every process would do every step" in refused(2, "run", job)


# Queues


def test_a_queue_goes_on_after_a_job_that_fails(tmp_path: Path, fake: Fake) -> None:
    for name, text in {"1": '[[step]]\nrun = "doctor"', "2": "[[step]", "3": STEPS}.items():
        (tmp_path / f"{name}.toml").write_text(text)
    (tmp_path / ".4.toml").write_text("hidden")
    fake.fails = {"doctor": 1}
    result = faceswap("run", tmp_path, ok=False)
    assert result.exit_code == 1 and fake.ran == ["doctor", "extract", "finetune", "merge"]
    assert "error: 2 of 3 jobs failed, " in result.stderr and "2.toml: not valid TOML" in result.stderr
    reports = json.loads(faceswap("run", tmp_path, "--json", ok=False).stdout)
    assert [report["state"] for report in reports] == ["failed", "failed", "done"]
    assert "not valid TOML" in reports[1]["error"] and "step 1 (doctor)" in reports[0]["error"]


@pytest.mark.skipif(os.name != "posix", reason="files are locked on POSIX")
def test_one_process_does_a_job(job: Path, fake: Fake, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "PATIENCE", -2)
    with jobs._alone(job), pytest.raises(UsageError, match="another process is doing it"):
        jobs.run(job, main)
    assert states(job) == ["done"] * 3


# Processes


def test_real_steps_run_in_the_folder_of_the_job(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "there"
    folder.mkdir()
    (folder / "torch.py").write_text("raise SystemExit('what lies in a job folder is not run')")
    (folder / "job.toml").write_text(CLIP.format("a", 0.08) + CLIP.format("a", 0.04))
    result = faceswap("run", folder / "job.toml", "--json", ok=False)
    (report,) = json.loads(result.stdout)
    assert [step["state"] for step in report["steps"]] == ["done", "failed"] and (folder / "a.mp4").is_file()
    assert report["error"] == "step 2 (actors clip): exit status 2"
    out, errors = capfd.readouterr()
    assert not out and "a.mp4: 2 frames" in errors, "standard output is the report's"
    assert "error: a.mp4: exists already; choose another name or add --overwrite" in errors
    (folder / "job.toml").write_text(CLIP.format("a", 0.08) + CLIP.format("a", 0.04) + "overwrite = true")
    assert states(folder / "job.toml") == ["done before", "done"]
    assert "a.mp4: 1 frames" in capfd.readouterr().out


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_step_that_is_killed_is_said(job: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    python = job.parent / "python"
    python.write_text("#!/bin/sh\nkill -9 $$\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    (report,) = jobs.run(job, main)
    assert report.error == "step 1 (extract): ended by SIGKILL: out of memory?" and report.state == "failed"


def start(path: Path, part: str) -> "subprocess.Popen[str]":
    """`faceswap run`, in the middle of making `part`."""
    words = [sys.executable, "-m", "faceswap", "run", str(path), "--json"]
    process = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: bool(list(path.parent.rglob(f".{part}.*partial*"))))
    return process


def wait_for(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not what():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a step outlives a runner that is killed")
def test_kill_9_in_the_middle(job: Path) -> None:
    job.write_text(CLIP.format("a", 0.04) + CLIP.format("b", 600))
    process = start(job, "b")
    process.kill()
    process.communicate()
    job.write_text(CLIP.format("a", 0.04) + CLIP.format("b", 0.04))
    assert states(job) == ["done before", "done"], "once the step that was left has ended"
    names = {"job.toml", "job.toml.state.json", *(f"{name}.{end}" for name in "ab" for end in ("mp4", "truth.npz"))}
    assert {path.name for path in job.parent.iterdir()} == names


@pytest.mark.skipif(os.name != "posix", reason="signals")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_are_passed_on(number: signal.Signals, job: Path) -> None:
    job.write_text(CLIP.format("b", 600))
    (job.parent / "later.toml").write_text(CLIP.format("c", 600))
    process = start(job.parent / "job.toml", "b")
    process.send_signal(number)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 130 and "Traceback" not in errors
    assert errors.count("error: interrupted; ") == 2 and [r["state"] for r in json.loads(out)] == ["interrupted"]
    assert {path.name for path in job.parent.iterdir()} == {"job.toml", "later.toml", "job.toml.state.json"}


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="/proc tells how processes are")
def test_ctrl_z_pauses_the_step_too(job: Path) -> None:
    def state(number: int) -> str:
        return Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]

    job.write_text(CLIP.format("b", 600))
    process = start(job, "b")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    step = int(children.read_text().split()[0])
    process.send_signal(signal.SIGTSTP)
    wait_for(lambda: state(process.pid) == state(step) == "T")
    process.send_signal(signal.SIGCONT)
    wait_for(lambda: state(step) != "T")
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
