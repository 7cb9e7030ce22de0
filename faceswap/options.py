"""What the commands share: kinds of values, options that several have, and how a failure is said in one line."""

import errno
import json
import math
import os
import signal
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import Any, TypeVar

import click

from faceswap import config, console
from faceswap.config import Recipe
from faceswap.errors import FaceswapError

INTERRUPTED = 130  # exit status, as shells have it
F = TypeVar("F", bound=Callable[..., Any])


class FilePath(click.Path):
    """A path; an empty word is none, though pathlib takes it for the current folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value == "":
            self.fail("expected a path, found an empty word", param, ctx)
        return super().convert(value, param, ctx)


FILE = FilePath(path_type=Path)


class Finite(click.FloatRange):
    """A number within bounds, which "nan" is not."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value} is no finite number", param, ctx)
        return number


class Failure(click.ClickException):
    """One line without a traceback."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(" ".join(message.split()))
        self.status = status

    @property
    def exit_code(self) -> int:  # type: ignore[override]
        return self.status

    def show(self, file: Any = None) -> None:
        click.echo(f"error: {self.message}", err=True)


class Commands(click.Group):
    """A group whose commands fail in one line."""

    def invoke(self, ctx: click.Context) -> Any:
        if threading.current_thread() is threading.main_thread():
            for name in ("SIGTERM", "SIGHUP"):  # like Ctrl-C: clean up, say so
                if hasattr(signal, name):
                    signal.signal(getattr(signal, name), signal.default_int_handler)
        try:
            return super().invoke(ctx)
        except click.exceptions.NoArgsIsHelpError:
            raise
        except click.UsageError as error:
            where = error.ctx.command_path if error.ctx else "faceswap"
            raise Failure(f"{error.format_message().rstrip('.')}; {where} -h says more", 2) from error
        except FaceswapError as error:
            raise Failure(str(error), error.exit_status) from error
        except OSError as error:
            if error.errno == errno.ENOSPC:
                place = error.filename or "the output"
                text = f"disk full at {place}: free space and start the same command again; what was whole is kept"
                raise Failure(text, 1) from error
            if error.filename is None:
                raise
            raise Failure(f"{error.filename}: {error.strerror}", 1) from error
        except KeyboardInterrupt:
            raise Failure("interrupted; nothing unfinished stands under its final name", INTERRUPTED) from None


def wrapped(command: F, run: Callable[..., Any], options: Sequence[Callable[..., Any]]) -> F:
    """`run` in the place of `command`, with more options, which the help lists in this order."""
    run = wraps(command)(run)
    for option in reversed(options):
        run = option(run)
    return run  # type: ignore[return-value]


def common(command: F, default: Path | None = None) -> F:
    """The options that every command has; the command receives `recipe`, `device` and `as_json`.

    `default` is the recipe that shipped with faceswap which the command starts from; None: the defaults of all.
    """

    def run(
        config_file: Path | None,
        settings: tuple[str, ...],
        seed: int | None,
        verbose: bool,
        quiet: bool,
        **rest: Any,
    ) -> Any:
        rank = os.environ.get("RANK", os.environ.get("LOCAL_RANK", "0"))
        helper = rank != "0"  # a process that Fabric or torchrun started beside the first
        level = console.QUIET if quiet or helper else console.VERBOSE if verbose else console.NORMAL
        console.configure(level)
        return command(recipe=config.load(config_file, settings, seed), **rest)

    options = [
        click.option(
            "--config",
            "config_file",
            type=FILE,
            metavar="FILE.toml",
            default=default,
            show_default=default is not None,
            help="Recipe: a file, or the name of one that ships.",
        ),
        click.option(
            "--set",
            "settings",
            multiple=True,
            metavar="KEY=VALUE",
            help="Change the recipe: section.key=value.",
        ),
        click.option(
            "--device",
            default="auto",
            show_default=True,
            metavar="NAME",
            help="auto, cpu, cuda, cuda:N or mps.",
        ),
        click.option("--seed", type=click.IntRange(0, 2**31 - 1), help="Fixes all that is random.  [default: 0]"),
        click.option("-v", "--verbose", is_flag=True, help="Say more."),
        click.option("-q", "--quiet", is_flag=True, help="Say nothing but the result and errors."),
        click.option("--json", "as_json", is_flag=True, help="Print the result as JSON."),
    ]
    return wrapped(command, run, options)


def budget(command: F) -> F:
    """--minutes, --images and --until-plateau."""

    def run(recipe: Recipe, minutes: float | None, images: int | None, until_plateau: bool | None, **rest: Any) -> Any:
        given = {"minutes": minutes, "images": images, "until_plateau": until_plateau}
        change = {name: value for name, value in given.items() if value is not None}
        return command(recipe=recipe.changed(train=change), **rest)

    limits = "Stop after so {} in all, earlier sessions of the run included."
    minutes = click.option("--minutes", type=Finite(0), help=limits.format("many minutes of training"))
    images = click.option("--images", type=click.IntRange(0), help=limits.format("many face images"))
    plateau = click.option(
        "--until-plateau",
        is_flag=True,
        default=None,
        help="Stop once held-out faces get no better, at the latest at a limit given.",
    )
    return wrapped(command, run, [minutes, images, plateau])


def consent(command: F) -> F:
    """--consent, a note that weight files keep."""
    words = "Note, kept in every weight file of the run, of who agreed to this use of their face."
    return click.option("--consent", metavar="TEXT", help=words)(command)


def strategy(command: F) -> F:
    """--strategy, which the command finds in `recipe`."""

    def run(recipe: Recipe, strategy: str | None, **rest: Any) -> Any:
        return command(recipe=recipe if strategy is None else recipe.changed(strategy={"name": strategy}), **rest)

    option = click.option(
        "--strategy",
        metavar="NAME",
        help="What trains: full, prior, lora, film, embedding, hypernetwork, decoder-only, last-block, linear-probe, "
        "lp-ft, l2-sp, scratch or resume; docs/FINETUNING.md compares them.  [default: full]",
    )
    return wrapped(command, run, [option])


def strength(command: F) -> F:
    """--base and --strength, of a model that is drawn with."""
    options = [
        click.option(
            "--base", type=FILE, metavar="BASE", help="The base that the model started from, if it is not found."
        ),
        click.option(
            "--strength",
            type=Finite(0, 4),
            default=1.0,
            show_default=True,
            help="How far to go from the base (0) to what was trained (1), or beyond.",
        ),
    ]

    def run(base: Path | None, **rest: Any) -> Any:
        if base is not None:
            from faceswap.pretrained import base as find

            base = find(base)
        return command(base=base, **rest)

    return wrapped(command, run, options)


def marking(command: F) -> F:
    """--no-provenance, --c2pa-cert and --c2pa-key; the command receives `marks`, a function from output to `Marker`."""

    def run(no_provenance: bool, c2pa_cert: Path | None, c2pa_key: Path | None, **rest: Any) -> Any:
        if (c2pa_cert is None) != (c2pa_key is None):
            raise click.UsageError("--c2pa-cert and --c2pa-key belong together")
        if no_provenance and c2pa_cert is not None:
            raise click.UsageError("--no-provenance leaves out what --c2pa-cert signs; give one of them")

        def marks(out: Path, *, stills: bool = False) -> Any:
            from faceswap.provenance import marker

            return marker(out, on=not no_provenance, cert=c2pa_cert, key=c2pa_key, stills=stills)

        return command(marks=marks, **rest)

    options = [
        click.option(
            "--no-provenance",
            is_flag=True,
            help="For research: neither tags nor a signature say that the video was swapped. You have to say so.",
        ),
        click.option(
            "--c2pa-cert",
            type=FILE,
            metavar="CHAIN.pem",
            help="Certificate to sign with.  [default: self-signed, made on first use]",
        ),
        click.option("--c2pa-key", type=FILE, metavar="KEY.pem", help="Its private key, without a password."),
    ]
    return wrapped(command, run, options)


overwrite = click.option("--overwrite", is_flag=True, help="Replace the output if it exists.")
workers = click.option(
    "--workers",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    metavar="N",
    help="Processes that merge segments side by side; each holds the model.",
)


def whose(command: F) -> F:
    """--reference, --track, --largest and --everyone; the command receives `who`, None if none was given."""

    def run(reference: tuple[Path, ...], track: tuple[int, ...], largest: bool, everyone: bool, **rest: Any) -> Any:
        if everyone and (reference or track or largest):
            raise click.UsageError("expected one of --reference, --track, --largest and --everyone, found several")
        who = None
        if everyone or largest or reference or track:
            from faceswap.who import Who

            who = Who(reference, track, largest)
        return command(who=who, **rest)

    options = [
        click.option(
            "--reference",
            multiple=True,
            type=FILE,
            metavar="IMG",
            help="Only the person in this picture; may be given again.",
        ),
        click.option(
            "--track",
            multiple=True,
            type=click.IntRange(0),
            metavar="N",
            help="Only this track (faceset sheet shows them); may be given again.",
        ),
        click.option("--largest", is_flag=True, help="Only who fills most of the footage."),
        click.option("--everyone", is_flag=True, help="All faces."),
    ]
    return wrapped(command, run, options)


def show(result: Any, text: str, as_json: bool) -> None:
    """Print a result on standard output, for people or as JSON."""
    if not as_json:
        click.echo(text)
        return
    plain = [asdict(part) for part in result] if isinstance(result, list) else asdict(result)
    click.echo(json.dumps(plain, default=str, indent=1, allow_nan=False))
