"""The commands of `faceswap train`: how a training stands, and what to set before one."""

import math
from pathlib import Path
from typing import Any

import click

from faceswap.config import Recipe
from faceswap.options import FILE, Commands, common, show


@click.group(cls=Commands)
def train() -> None:
    """Look after a training that goes on, or find its settings. (pretrain and finetune do the training.)

    A training looks at recipe.toml in its run folder at every log line: weights of losses, train.rate, limits and
    intervals of preview, log and save may be edited there while it goes on.
    """


@train.command()
@click.argument("run", type=FILE)
@common
def status(run: Path, recipe: Recipe, device: str, as_json: bool) -> None:
    """How RUN stands: images, speed, losses, time left, and whether it still goes on; it is not disturbed.

    \b
    Example: faceswap train status anna_as_bert
    """
    from faceswap.steering import status as look

    found = look(run)
    show(found, status_text(found), as_json)


def status_text(found: Any) -> str:
    def figures(values: dict[str, float]) -> str:
        return ", ".join(f"{name} {value:.4g}" for name, value in values.items()) or "not yet known"

    def known(value: float | None, form: str) -> str:
        return "not yet known" if value is None else form.format(value)

    left = "not running" if not found.running else known(found.seconds_left, "{:.0f} s left")
    rows = {
        "run": f"{found.run}: {'training' if found.running else 'not running'}, {', '.join(found.people)}",
        "done": f"{found.images} images in {found.minutes:.1f} minutes, {100 * found.share:.1f} % of the budget",
        "speed": f"{known(found.faces_per_second, '{:.1f} faces/s')}, {left}",
        "memory": known(found.memory_gb, "{:.2f} GB"),
        "rate": known(found.rate, "{:.3g}"),
        "gradient": known(found.gradient, "{:.3g}"),
        "losses": figures(found.losses),
        "held out": figures(found.held_out),
        "best": f"{known(found.best, '{:.4g}')}, {found.measurements_without_gain} measurements without a gain",
        "faces of": "; ".join(f"{name}: {files}" for name, files in found.footage.items()) or "not known",
        "consent": found.consent or "nothing noted",
        "saved": f"at {found.saved_images} images, {found.saved_seconds_ago:.0f} s ago",
    }
    return "\n".join(f"{name:10}{value}" for name, value in rows.items())


@train.command("find-rate")
@click.argument("run", type=FILE)
@click.option("--steps", type=click.IntRange(10, 10000), default=100, show_default=True, help="Rates to try.")
@common
def find_rate(run: Path, steps: int, recipe: Recipe, device: str, as_json: bool) -> None:
    """A learning rate for RUN: raised from 1e-6 until the loss grows, on a copy of its newest state.

    RUN stays as it is. A run that is yet to begin has a state once it was started with --images 1.

    \b
    Example: faceswap train find-rate anna_as_bert
    """
    from faceswap.finders import find_rate as find

    report = find(run, recipe, device=device, steps=steps)
    every = max(1, math.ceil(len(report.rates) / 20))
    rows = list(zip(report.rates, report.losses, strict=True))[::every]
    lines = ["rate        loss", *(f"{rate:<12.3g}{loss:.4f}" for rate, loss in rows)]
    lines.append(f"suggestion: --set train.rate={report.suggestion:g} (now {report.now:g})")
    show(report, "\n".join(lines), as_json)


@train.command("find-batch")
@click.option("--people", type=click.IntRange(1, 2), default=2, show_default=True, help="1: as pretrain, 2: finetune.")
@common
def find_batch(people: int, recipe: Recipe, device: str, as_json: bool) -> None:
    """A batch for this machine: doubled while that is faster and fits into memory; needs no faces.

    \b
    Example: faceswap train find-batch --config swap_128
    """
    from faceswap.finders import find_batch as find

    report = find(recipe, people=people, device=device)
    lines = ["batch     memory GB   faces/s"]
    lines += [f"{row.batch:<10}{row.memory_gb:<12.2f}{row.faces_per_second:.1f}" for row in report.rows]
    lines.append(f"stopped: {report.stopped}")
    lines.append(f"suggestion: --set data.batch={report.suggestion} (largest tried: {report.largest})")
    show(report, "\n".join(lines), as_json)
