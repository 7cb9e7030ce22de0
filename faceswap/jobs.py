"""A job: commands of faceswap in a TOML file, done one after another; what is finished is not done again.

    [[step]]
    run = "extract"          # the command
    inputs = ["anna.mp4"]    # its arguments by their names, its options by their long names; out is -o
    out = "anna"
    every = 2

Which keys there are, click's own definitions say. Paths are seen from the job's folder. Each step is a process of its
own there: one that crashes takes nothing else along. A journal beside the job tells which steps are finished.
"""

import ctypes
import hashlib
import json
import os
import shlex
import signal
import subprocess
import sys
import sysconfig
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from pydantic import TypeAdapter, ValidationError

from faceswap import config, console, files
from faceswap.errors import FaceswapError, UsageError
from faceswap.interrupts import PATIENCE, STATUS
from faceswap.registry import suggest

if os.name == "posix":
    import fcntl

RENAMED = {"-o": "out", "run": "path"}  # keys of what has no long name, and of arguments that are called `run`
HOW = {"device", "verbose", "quiet", "json", "overwrite"}  # keys that do not change what is made
PASSED_ON = ("config", "set", "device", "seed", "verbose", "quiet")  # from the command line to every step
PR_SET_PDEATHSIG = 1  # of Linux's prctl
Words = tuple[str, ...]


@dataclass(frozen=True)
class Step:
    """A command line, checked."""

    run: str  # the command, of one word or two
    words: Words  # the whole line after `faceswap`
    outs: Words  # what it writes to, as far as -o says it
    mark: str  # sha256 of what is asked for


@dataclass(frozen=True)
class Job:
    path: Path
    steps: tuple[Step, ...]


class Done(config.Section):
    """What the journal keeps of a finished step."""

    run: str
    mark: str
    ended: str  # ISO 8601, UTC
    seconds: float
    wrote: list[str]  # seen from the job's folder


JOURNAL = TypeAdapter(list[Done])  # of the first steps of a job, in order


@dataclass(frozen=True)
class Outcome:
    """What became of a step."""

    step: int  # from 1
    run: str
    state: str  # done, done before, failed, interrupted, to do
    seconds: float | None = None
    said: str = ""


@dataclass(frozen=True)
class Report:
    """What became of a job."""

    job: Path
    state: str  # done, failed, interrupted, to do
    steps: list[Outcome]
    error: str = ""  # why it failed


def run(
    path: Path,  # a job, or a folder of them: a queue
    commands: click.Group,
    given: Mapping[str, Any] | None = None,  # keys of every step that does not say otherwise
    *,
    dry_run: bool = False,
    stdout: int | None = None,  # where steps print to; None: as we do
) -> list[Report]:
    """Do a job, or those of a folder by name: one that fails is said, and the next is begun.

    Every step of all jobs is checked before the first begins. `FaceswapError` if a job alone cannot be begun.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise UsageError("run under torchrun: every process would do every step; set train.devices in a step instead")
    queue = [path]
    if path.is_dir():
        queue = sorted(file for file in path.glob("*.toml") if file.name[0] != ".")
        if not queue:
            raise UsageError(f"{path}: no job in this folder; expected files NAME.toml")
    checked: list[Job | Report] = []
    for file in queue:
        try:
            checked.append(load(file, commands, given or {}))
        except FaceswapError as error:
            checked.append(_refused(file, error, path))
    reports = []
    with Runner(stdout) as runner:
        for job in checked:
            if isinstance(job, Report):
                reports.append(job)
                continue
            try:
                reports.append(_planned(job) if dry_run else _done(job, runner))
            except FaceswapError as error:
                reports.append(_refused(job.path, error, path))
    return reports


def _refused(file: Path, error: FaceswapError, path: Path) -> Report:
    """The report of a job that cannot be begun, in a queue; alone it raises."""
    if file == path:
        raise error
    console.warn(f"{error}; left out")
    return Report(file, "failed", [], str(error))


def text(reports: Sequence[Report]) -> str:
    """A line per job and per step."""
    lines = []
    for report in reports:
        lines.append(f"{report.job}: {report.state}" + (f": {report.error}" if report.error else ""))
        for part in report.steps:
            seconds = "" if part.seconds is None else f"{part.seconds:.1f} s"
            lines.append(f"{part.step:4}  {part.run:16}{part.state:13}{seconds:>10}  {part.said}".rstrip())
    return "\n".join(lines)


# Reading


def key_of(param: click.Parameter) -> str:
    """What an argument or an option is called in a job."""
    long = [word for word in param.opts if word.startswith("--")]
    word = max(long, key=len).removeprefix("--") if long else param.opts[0]
    return RENAMED.get(word, word)


def commands_of(group: click.Group, before: str = "") -> dict[str, click.Command]:
    """All commands by their whole names, such as `extract` and `actors clip`."""
    found: dict[str, click.Command] = {}
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            found |= commands_of(command, f"{before}{name} ")
        else:
            found[before + name] = command
    return found


def given(context: click.Context) -> dict[str, Any]:
    """The keys of `PASSED_ON` that the user gave on the command line of `context`."""
    found = {}
    for param in context.command.params:
        name, key = param.name or "", key_of(param)
        if key in PASSED_ON and context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE:
            value = context.params[name]
            if isinstance(value, Path):
                value = str(value.absolute() if value.exists() else value)
            found[key] = list(value) if isinstance(value, tuple) else value
    return found


def load(path: Path, commands: click.Group, given: Mapping[str, Any]) -> Job:
    """The job of a file; `UsageError` names the step and the key of a mistake."""
    try:
        values = config.parse(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        raise UsageError(f"{path}: no such job; expected a TOML file of steps, or a folder of such files") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as text ({error}); expected a TOML file of steps") from None
    steps = values.pop("step", None)
    if not isinstance(steps, list) or not steps or not all(isinstance(step, dict) for step in steps):
        raise UsageError(f'{path}: no steps; expected one [[step]] or more, each with a line such as run = "extract"')
    if values:
        raise UsageError(f"{path}: unknown key {min(values)!r}; expected nothing but [[step]], in which keys belong")
    found, known = [], commands_of(commands)
    for number, step in enumerate(steps, 1):
        try:
            found.append(_step(step, known, given, path.parent))
        except UsageError as error:
            raise UsageError(f"{path}: step {number}: {error}") from None
    return Job(path, tuple(found))


def _step(values: dict[str, Any], known: Mapping[str, click.Command], given: Mapping[str, Any], folder: Path) -> Step:
    run = values.pop("run", None)
    if not isinstance(run, str):
        raise UsageError('no command; expected a line such as run = "extract"')
    if run == "run":
        raise UsageError("a job starts no jobs; put the steps of the other here, or both jobs into a folder")
    if run not in known:
        raise UsageError(f"no command called {run!r}; {suggest(run, known.keys() - {'run'})}")
    command, params = known[run], {key_of(param): param for param in known[run].params}
    for key in values:
        if key not in params:
            raise UsageError(f"{run} has no {key!r}; {suggest(key, params)}")
    for key, param in params.items():
        if param.required and key not in values:
            raise UsageError(f"{run}: {key} is missing; give it")
    if "set" in given:
        values["set"] = [*given["set"], *_list(values.get("set", []))]
    values = {**given, **values}
    words = {key: _words(key, value, params[key]) for key, value in values.items()}
    line = [word for key in words if isinstance(params[key], click.Option) for word in words[key]]
    arguments = [key for key, param in params.items() if isinstance(param, click.Argument)]  # these have an order
    last = [word for key in arguments for word in words.get(key, [])]
    line += [*["--"] * any(word.startswith("-") for word in last), *last]
    try:
        read = command.make_context(run, list(line)).params
    except click.BadParameter as error:
        key = key_of(error.param) if error.param else run
        what = error.message.rstrip(".") or f"expected {'one or more' if error.param else 'a value'}"
        raise UsageError(f"{key} = {values.get(key)!r}: {what}") from None
    except click.UsageError as error:
        raise UsageError(f"{run}: {error.format_message().rstrip('.')}") from None
    file = read["config_file"]
    config.load(folder / file if file and (folder / file).exists() else file, read["settings"], read["seed"])
    outs = [str(read[param.name or ""]) for param in command.params if "-o" in param.opts and read[param.name or ""]]
    asked = json.dumps([run, {key: value for key, value in values.items() if key not in HOW}], sort_keys=True)
    return Step(run, (*run.split(), *line), tuple(outs), hashlib.sha256(asked.encode()).hexdigest())


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _words(key: str, value: Any, param: click.Parameter) -> list[str]:
    """A value of TOML as words of a command line; `UsageError` if it is of another kind than the parameter."""
    flag = max(param.opts, key=len)
    if isinstance(param, click.Option) and param.is_flag:
        if not isinstance(value, bool):
            raise UsageError(f"{key} = {value!r}: expected true or false")
        return [flag] * value
    kinds: type | tuple[type, ...] = str
    what, several = "text in quotes", param.multiple or param.nargs == -1
    if isinstance(param.type, click.types.IntParamType):
        kinds, what = int, "a whole number"
    elif isinstance(param.type, click.types.FloatParamType):
        kinds, what = (int, float), "a number"
    parts = _list(value) if several else [value]
    if not all(isinstance(part, kinds) and not isinstance(part, bool) for part in parts):
        raise UsageError(f"{key} = {value!r}: expected {what}{', or a list of such' * several}")
    before = [flag] if isinstance(param, click.Option) else []
    return [word for part in parts for word in (*before, str(part))]


# Doing


def journal(job: Path) -> Path:
    """The file beside a job that tells which steps are finished."""
    return job.with_name(f"{job.name}.state.json")


def _finished(job: Job) -> tuple[list[Done], str]:
    """The first steps that need not be done again, and why the next one is done, if it was done before."""
    note, kept = journal(job.path), list[Done]()
    try:
        entries = JOURNAL.validate_json(note.read_bytes()) if note.exists() else []
    except ValidationError:
        raise FaceswapError(f"{note}: damaged; delete it, and all steps are done again") from None
    for step, entry in zip(job.steps, entries, strict=False):
        gone = [out for out in entry.wrote if not (job.path.parent / out).exists()]
        if entry.mark != step.mark or gone:
            return kept, f"{gone[0]} is gone" if entry.mark == step.mark else "changed"
        kept.append(entry)
    return kept, ""


def _keep(job: Job, finished: list[Done]) -> None:
    with files.whole_file(journal(job.path), overwrite=True) as partial:
        partial.write_bytes(JOURNAL.dump_json(finished, indent=1))


def _before(finished: Sequence[Done]) -> list[Outcome]:
    return [Outcome(i, done.run, "done before", done.seconds, done.ended) for i, done in enumerate(finished, 1)]


def _planned(job: Job) -> Report:
    """What `_done` would do."""
    finished, why = _finished(job)
    steps = _before(finished)
    for step in job.steps[len(finished) :]:
        line = f"faceswap {shlex.join(step.words)}"
        steps.append(Outcome(len(steps) + 1, step.run, "to do", said=f"{why}: {line}" if why else line))
        why = ""
    return Report(job.path, "to do" if len(finished) < len(job.steps) else "done", steps)


def _done(job: Job, runner: "Runner") -> Report:
    """Do the steps of a job that are to be done, up to one that fails or is interrupted."""
    with _alone(job.path) as lock:
        finished, why = _finished(job)
        steps, folder = _before(finished), job.path.absolute().parent
        for step in job.steps[len(finished) :]:
            if runner.asked:
                break
            number, line = len(steps) + 1, f"faceswap {shlex.join(step.words)}"
            console.say(f"{job.path}: step {number} of {len(job.steps)}{f' ({why})' if why else ''}: {line}")
            why = ""
            _keep(job, finished)  # from here on later steps count as not done
            started = time.monotonic()
            status = runner(step.words, folder, lock)
            seconds = round(time.monotonic() - started, 2)
            if status != 0:
                runner.asked |= status == STATUS
                state = "interrupted" if runner.asked else "failed"
                steps.append(Outcome(number, step.run, state, seconds, _said(status)))
                break
            wrote = [out for out in step.outs if (folder / out).exists()]
            ended = datetime.now(UTC).isoformat(timespec="seconds")
            finished.append(Done(run=step.run, mark=step.mark, ended=ended, seconds=seconds, wrote=wrote))
            _keep(job, finished)
            steps.append(Outcome(number, step.run, "done", seconds, ", ".join(wrote)))
    rest = [Outcome(i, step.run, "to do") for i, step in enumerate(job.steps, 1)][len(steps) :]
    if len(finished) == len(job.steps):
        return Report(job.path, "done", steps)
    if runner.asked:
        return Report(job.path, "interrupted", steps + rest)
    error = f"step {len(steps)} ({steps[-1].run}): {steps[-1].said}"
    console.warn(f"{job.path}: {error}")
    return Report(job.path, "failed", steps + rest, error)


def _said(status: int) -> str:
    if status > 0:
        return f"exit status {status}"
    return f"ended by {signal.Signals(-status).name}{': out of memory?' * (status == -9)}"


@contextmanager
def _alone(job: Path) -> Iterator[list[int]]:
    """Nobody else does this job meanwhile: the file is locked, by us and by the step that holds what is yielded."""
    if os.name != "posix":
        yield []
        return
    with job.open("rb") as file:
        patient_until = time.monotonic() + PATIENCE + 2  # a step whose parent was killed is about to leave
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > patient_until:
                    raise UsageError(f"{job}: another process is doing it; wait for its end, or end it") from None
            time.sleep(0.1)
        yield [file.fileno()]


class Runner:
    """Runs a step as a process of its own, and passes on to it what asks us to stop or to pause.

    The step is in a process group of its own, so that what the terminal sends comes once, from us.
    """

    def __init__(self, stdout: int | None = None, stderr: int | None = None) -> None:
        self.asked = False  # to stop
        self._stdout, self._stderr, self._old = stdout, stderr, dict[int, Any]()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "Runner":
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGTSTP"):
                if hasattr(signal, name):
                    number = getattr(signal, name)
                    self._old[number] = signal.signal(number, self._pause if name == "SIGTSTP" else self._pass_on)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def __call__(self, words: Words, folder: Path, lock: Sequence[int]) -> int:
        """The exit status of `faceswap WORDS` in `folder`, negative if a signal ended it."""
        ours, path = str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")
        if ours != sysconfig.get_path("purelib"):  # a clone: the step's faceswap is this one, too
            path = os.pathsep.join([ours, path]).rstrip(os.pathsep)
        more: dict[str, Any] = {}
        if os.name == "posix":
            more = {"process_group": 0, "pass_fds": lock}
        if sys.platform == "linux":
            libc = ctypes.CDLL(None)
            more["preexec_fn"] = lambda: libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)  # should we be killed
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", "faceswap", *words],  # -P: Python files in the job's folder are not run
            cwd=folder,
            env=os.environ | {"PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            stdout=self._stdout,
            stderr=self._stderr,
            **more,
        )
        if self.asked:  # while it was being started
            self._process.terminate()
        return self._process.wait()

    def stop(self) -> None:
        """Ask the step to stop, as Ctrl-C does."""
        self._pass_on(signal.SIGINT, None)

    def _send(self, number: int) -> None:
        if os.name == "posix" and self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def _pass_on(self, number: int, _: object) -> None:
        self.asked = True
        if number == signal.SIGINT:
            self._send(number)  # to all of them, as a terminal does
        elif self._process is not None:
            self._process.terminate()

    def _pause(self, _: int, __: object) -> None:
        self._send(signal.SIGSTOP)
        os.kill(os.getpid(), signal.SIGSTOP)
        self._send(signal.SIGCONT)
