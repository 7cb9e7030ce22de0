"""The command `faceswap export`."""

from pathlib import Path
from typing import Any

import click

from faceswap.config import Recipe
from faceswap.options import FILE, common, overwrite, show, strength

TOOLS = click.Choice(("facefusion", "deepfacelive", "visomaster"))


@click.command()
@click.argument("model", type=FILE, metavar="RUN_OR_FILE")
@click.option("-o", "out", required=True, type=FILE, metavar="MODEL.dfm", help="File to make; with --preview a .png.")
@click.option("--for", "player", type=TOOLS, default="facefusion", show_default=True, help="Whose crop it expects.")
@click.option("--morph", is_flag=True, help="With a second input, from the target as itself (0) to the source (1).")
@click.option("--half", is_flag=True, help="Compute in half precision: half the size, and slower on a CPU.")
@click.option("--licence", default="", metavar="TEXT", help="Note in it of who may use it.  [default: not stated]")
@click.option(
    "--preview",
    type=FILE,
    metavar="VIDEO",
    help="Instead, pictures of how faces of VIDEO will look in the players; RUN_OR_FILE may be any .dfm.",
)
@click.option("--as", "shown", multiple=True, type=TOOLS, help="With --preview: in this player; may be given again.")
@strength
@overwrite
@common
def export(
    model: Path,
    out: Path,
    player: str,
    morph: bool,
    half: bool,
    licence: str,
    preview: Path | None,
    shown: tuple[str, ...],
    base: Path | None,
    strength: float,
    overwrite: bool,
    recipe: Recipe,
    device: str,
    as_json: bool,
) -> None:
    """Write a run as one file that facefusion, DeepFaceLive and VisoMaster draw with (.dfm, which is ONNX).

    The file draws the source of any face; who agreed to that, --consent of the run, is noted in it. Nothing that these
    tools render is marked as swapped: say so where you show it.

    \b
    Example: faceswap export anna_as_bert -o anna.dfm
    Example: faceswap export anna_as_bert --preview bert.mp4 --as visomaster -o sheet.png
    """
    from faceswap import export as exporting
    from faceswap.devices import resolve

    how: dict[str, Any] = {"base": base, "strength": strength, "morph": morph, "overwrite": overwrite}
    if preview is not None:
        if half or licence:
            raise click.UsageError("--half and --licence say how a file is written; leave them out with --preview")
        how |= {"player": player, "shown": shown, "device": resolve(device)}
        drawn = exporting.preview(model, preview, out, recipe, **how)
        show(drawn, f"{drawn.sheet}: {drawn.frames} frames as in {', '.join(drawn.players)}", as_json)
        return
    if shown:
        raise click.UsageError("--as belongs to --preview")
    report = exporting.export(model, out, player, half=half, licence=licence, **how)
    lines = [
        f"{report.file}: {report.size} px, {report.bytes / 1e6:.1f} MB, draws what the run draws within "
        f"{report.difference:.1g} of white",
        *(f"{name:14}{words}" for name, words in report.advice.items()),
    ]
    show(report, "\n".join(lines), as_json)
