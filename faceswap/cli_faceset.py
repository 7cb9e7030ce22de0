"""The commands of `faceswap faceset`."""

from pathlib import Path
from typing import Any

import click

from faceswap.config import Recipe
from faceswap.options import FILE, F, Finite, common, overwrite, show, wrapped


@click.group()
def faceset() -> None:
    """Look through, choose from, pack and import sets of faces."""


def limits(command: F) -> F:
    """What makes a face leave a set; the command receives `limits`."""

    def run(
        blur: float | None,
        min_size: float | None,
        fit: float | None,
        duplicates: int | None,
        person: bool,
        references: tuple[Path, ...],
        tracks: tuple[int, ...],
        **rest: Any,
    ) -> Any:
        from faceswap.curate import Limits

        return command(limits=Limits(blur, min_size, fit, duplicates, person, references, tracks), **rest)

    options = [
        click.option("--blur", type=Finite(0), help="Lowest sharpness; faceset info shows what there is."),
        click.option("--min-size", type=Finite(0), help="Smallest face in the frame, in pixels."),
        click.option("--fit", type=Finite(0, 1), help="Lowest fit of the landmarks."),
        click.option(
            "--duplicates",
            type=click.IntRange(0, 32),
            metavar="BITS",
            help="Of faces whose 64-bit hashes differ in at most BITS, the sharpest stays; 4 is careful.",
        ),
        click.option(
            "--person", is_flag=True, help="One person's faces stay: the references', or the largest group's."
        ),
        click.option(
            "--reference",
            "references",
            multiple=True,
            type=FILE,
            metavar="FACE",
            help="Extracted face, or faceset, of that person; may be given again.",
        ),
        click.option(
            "--track",
            "tracks",
            multiple=True,
            type=click.IntRange(0),
            metavar="N",
            help="Only this track stays (faceset sheet shows them); may be given again.",
        ),
    ]
    return wrapped(command, run, options)


@faceset.command("info")
@click.argument("path", type=FILE, metavar="FACESET")
@common
def info_(path: Path, recipe: Recipe, device: str, as_json: bool) -> None:
    """Counts, sizes, sharpness, tracks, and how far the heads are turned.

    \b
    Example: faceswap faceset info anna
    """
    from faceswap.looks import info, info_text

    found = info(path)
    show(found, info_text(found), as_json)


@faceset.command("sort")
@click.argument("path", type=FILE, metavar="FACESET")
@click.option(
    "--by",
    required=True,
    type=click.Choice(["blur", "yaw", "pitch", "size", "brightness", "similarity", "time"]),
    help="What to sort by; time gives the names back.",
)
@common
def sort_(path: Path, by: str, recipe: Recipe, device: str, as_json: bool) -> None:
    """Rename the faces, so that a file browser shows them in order: look, then delete or move what you do not want.

    \b
    Example: faceswap faceset sort anna --by blur
    """
    from faceswap.curate import sort_faces

    report = sort_faces(path, by)
    damaged = f", {report.damaged} damaged ones at the end" if report.damaged else ""
    show(report, f"{path}: {report.faces} faces, {report.renamed} renamed, {report.means}{damaged}", as_json)


@faceset.command("filter")
@click.argument("path", type=FILE, metavar="FACESET")
@limits
@click.option("--dry-run", is_flag=True, help="Say what would move, and move nothing.")
@common
def filter_(path: Path, limits: Any, dry_run: bool, recipe: Recipe, device: str, as_json: bool) -> None:
    """Move faces out of the way, to FACESET/removed/REASON; nothing is deleted. Move a file back and it is back.

    \b
    Example: faceswap faceset filter anna --blur 30 --min-size 80 --duplicates 4
    """
    from faceswap.curate import filter_faces

    report = filter_faces(path, limits, dry_run=dry_run)
    moved = ", ".join(f"{len(names)} {reason}" for reason, names in report.removed.items() if names) or "none"
    verb = "would move" if dry_run else "moved"
    lines = [f"{reason:10}{name}" for reason, names in report.removed.items() for name in names] if dry_run else []
    lines += [*report.notes, f"{path}: {report.kept} faces stay, {verb} to {report.folder}: {moved}"]
    show(report, "\n".join(lines), as_json)


@faceset.command("sheet")
@click.argument("path", type=FILE, metavar="FACESET")
@click.option("-o", "out", required=True, type=FILE, metavar="SHEET.png", help="Picture to make.")
@click.option(
    "--by",
    default="track",
    show_default=True,
    type=click.Choice(["track", "source", "all"]),
    help="What faces are put together by.",
)
@click.option("--faces", "shown", type=click.IntRange(1, 480), default=12, show_default=True, help="Faces of each.")
@overwrite
@common
def sheet_(
    path: Path, out: Path, by: str, shown: int, overwrite: bool, recipe: Recipe, device: str, as_json: bool
) -> None:
    """A picture with some faces of each track, to choose by looking: the numbers are those that --track takes.

    \b
    Example: faceswap faceset sheet anna -o anna.png
    """
    from faceswap.sheet import sheet

    report = sheet(path, out, by=by, shown=shown, overwrite=overwrite)
    groups = "1 group" if len(report.groups) == 1 else f"{len(report.groups)} groups"
    show(report, f"{', '.join(map(str, report.pages))}: {groups} by {by}", as_json)


@faceset.command("copy")
@click.argument("path", type=FILE, metavar="FACESET")
@click.option("-o", "out", required=True, type=FILE, metavar="FACESET", help="Folder of faces to make.")
@limits
@click.option("--every", type=click.IntRange(1), default=1, show_default=True, help="Every Nth of what is left.")
@click.option("--max", "most", type=click.IntRange(1), help="At most so many, evenly spread.")
@overwrite
@common
def copy_(
    path: Path,
    out: Path,
    limits: Any,
    every: int,
    most: int | None,
    overwrite: bool,
    recipe: Recipe,
    device: str,
    as_json: bool,
) -> None:
    """Copy chosen faces to a new faceset; the one that is there stays as it is.

    \b
    Example: faceswap faceset copy crowd -o anna --track 3 --max 5000
    """
    from faceswap.curate import copy

    report = copy(path, out, limits, every=every, most=most, overwrite=overwrite)
    show(report, copied_text(report), as_json)


@faceset.command("pack")
@click.argument("path", type=FILE, metavar="FACESET")
@click.option("-o", "out", required=True, type=FILE, metavar="NAME.faces", help="File to make.")
@overwrite
@common
def pack_(path: Path, out: Path, overwrite: bool, recipe: Recipe, device: str, as_json: bool) -> None:
    """Put a faceset into one file, which every command takes where it takes a faceset. ZIP tools open it, too.

    \b
    Example: faceswap faceset pack anna -o anna.faces
    """
    from faceswap.curate import pack_faces

    report = pack_faces(path, out, overwrite=overwrite)
    show(report, copied_text(report), as_json)


@faceset.command("unpack")
@click.argument("path", type=FILE, metavar="NAME.faces")
@click.option("-o", "out", required=True, type=FILE, metavar="FACESET", help="Folder of faces to make.")
@overwrite
@common
def unpack_(path: Path, out: Path, overwrite: bool, recipe: Recipe, device: str, as_json: bool) -> None:
    """Make a folder of a pack again.

    \b
    Example: faceswap faceset unpack anna.faces -o anna
    """
    from faceswap.curate import unpack_faces

    report = unpack_faces(path, out, overwrite=overwrite)
    show(report, copied_text(report), as_json)


@faceset.command("import")
@click.argument("paths", nargs=-1, required=True, type=FILE, metavar="FOLDER_ZIP_OR_PAK...")
@click.option("-o", "out", required=True, type=FILE, metavar="FACESET", help="Folder of faces to make.")
@click.option(
    "--kind",
    type=click.Choice(["dfl", "faceswap", "ffhq", "images"]),
    help="What the sets are.  [default: as recognised]",
)
@overwrite
@common
def import_(
    paths: tuple[Path, ...],
    out: Path,
    kind: str | None,
    overwrite: bool,
    recipe: Recipe,
    device: str,
    as_json: bool,
) -> None:
    """Make a faceset of what other tools made.

    dfl is DeepFaceLab's aligned folder or faceset.pak, faceswap the face PNGs of deepfakes/faceswap, ffhq a copy of
    FFHQ, whole or partial, as a folder or a ZIP. Of other images the face in the middle is taken. The sets stay as they
    are, and nothing inside them is run.

    \b
    Example: faceswap faceset import workspace/data_src/aligned -o anna
    Example: faceswap faceset import ffhq/thumbnails128x128 -o ffhq_faces --set extract.size=128
    """
    from faceswap.devices import resolve
    from faceswap.foreign import import_faces

    report = import_faces(paths, out, recipe.extract, kind=kind, device=str(resolve(device)), overwrite=overwrite)
    left_out = f", {sum(report.skipped.values())} images left out" if report.skipped else ""
    kinds, rate = ", ".join(dict.fromkeys(report.kinds)), report.faces / report.seconds
    show(report, f"{report.faceset}: {report.faces} faces ({kinds}){left_out}, {rate:.1f} faces/s", as_json)


def copied_text(report: Any) -> str:
    masks = f" and {report.masks} mask{(report.masks > 1) * 's'}" if report.masks else ""
    return "\n".join([*report.notes, f"{report.out}: {report.faces} faces{masks}, {report.bytes / 1e6:.1f} MB"])
