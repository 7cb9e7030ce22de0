"""The command line. A command parses, calls one function and prints the result; torch is imported when it runs."""

from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import click

import faceswap
from faceswap.cli_export import export
from faceswap.cli_faceset import faceset
from faceswap.cli_train import train
from faceswap.config import Recipe
from faceswap.options import (
    FILE,
    INTERRUPTED,
    Commands,
    Failure,
    Finite,
    budget,
    common,
    consent,
    marking,
    overwrite,
    show,
    strategy,
    strength,
    whose,
    workers,
)


@click.group(
    "faceswap", cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100}
)
@click.version_option(faceswap.__version__, prog_name="faceswap")
def main() -> None:
    """Train a face-swap autoencoder on two people and render the swap.

    SOURCE is the person whose face is put in, TARGET the footage that receives it. Only swap people who agreed to
    it; what faceswap renders is marked as swapped.
    """


main.add_command(export)
main.add_command(faceset)
main.add_command(train)


@main.command()
@click.argument("inputs", nargs=-1, required=True, type=FILE, metavar="VIDEO_OR_FOLDER...")
@click.option("-o", "out", required=True, type=FILE, metavar="FACESET", help="Folder of faces to make.")
@click.option("--every", type=click.IntRange(1), help="Look at every Nth frame.  [extract.every]")
@click.option("--min-size", type=Finite(12), help="Smallest face in pixels.  [extract.min_size]")
@click.option(
    "--max-faces", type=click.IntRange(0), help="Faces per frame, largest first; 0: all.  [extract.max_faces]"
)
@whose
@overwrite
@common
def extract(
    inputs: tuple[Path, ...],
    out: Path,
    who: Any,
    overwrite: bool,
    recipe: Recipe,
    device: str,
    as_json: bool,
    **given: Any,
) -> None:
    """Take the faces out of videos, folders of images or single images.

    \b
    Example: faceswap extract interview.mp4 photos/ -o anna
    """
    change = {name: value for name, value in given.items() if value is not None}
    recipe = recipe.changed(extract=change)
    from faceswap.devices import resolve
    from faceswap.extract import extract as run

    report = run(inputs, out, recipe.extract, who=who, device=str(resolve(device)), overwrite=overwrite)
    rate = report.frames / report.seconds
    text = (
        f"{report.faceset}: {report.faces} faces of {report.tracks} tracks ({report.tracks_found} found) from "
        f"{report.frames} frames, {report.frames_without_face} frames without a face, {rate:.1f} frames/s"
    )
    if report.jitter_before is not None:
        text += f"\njitter {report.jitter_before:.2f} % of the eye distance, {report.jitter:.2f} % after smoothing"
    show(report, text, as_json)


@main.command()
@click.argument("faces", nargs=-1, required=True, type=FILE, metavar="FACES...")
@click.option(
    "-o", "run", required=True, type=FILE, metavar="RUN", help="Folder of the run; one that is there goes on."
)
@click.option("--overwrite", is_flag=True, help="Throw away the run that is there and start anew.")
@consent
@partial(common, default=Path("pretrain_96"))
@budget
def pretrain(
    faces: tuple[Path, ...],
    run: Path,
    overwrite: bool,
    consent: str | None,
    recipe: Recipe,
    device: str,
    as_json: bool,
) -> None:
    """Train a generic base on the faces of many people, for finetune to start from.

    \b
    Example: faceswap pretrain ffhq_faces -o base --minutes 600
    """
    from faceswap.train import train as start

    people = {"anyone": list(faces)}
    show_training(start(recipe, people, run, device=device, overwrite=overwrite, consent=consent), as_json)


@main.command()
@click.option(
    "--source",
    "sources",
    required=True,
    multiple=True,
    type=FILE,
    metavar="FACESET",
    help="Who is put in; may be given again.",
)
@click.option(
    "--target",
    "targets",
    multiple=True,
    type=FILE,
    metavar="FACESET",
    help="Who is replaced; may be given again. Without one the source is learnt alone, from a base.",
)
@click.option(
    "--base",
    type=FILE,
    metavar="BASE",
    help="Base to start from: a name that faceswap pretrained list shows, a run or a file.",
)
@click.option(
    "--generic",
    multiple=True,
    type=FILE,
    metavar="FACESET",
    help="Faces of anyone, which --strategy prior draws too, so as not to forget them.",
)
@click.option(
    "-o", "run", required=True, type=FILE, metavar="RUN", help="Folder of the run; one that is there goes on."
)
@click.option("--overwrite", is_flag=True, help="Throw away the run that is there and start anew.")
@consent
@common
@strategy
@budget
def finetune(
    sources: tuple[Path, ...],
    targets: tuple[Path, ...],
    base: Path | None,
    generic: tuple[Path, ...],
    run: Path,
    overwrite: bool,
    consent: str | None,
    recipe: Recipe,
    device: str,
    as_json: bool,
) -> None:
    """Train on two people, from a base or from nothing; says at the end what became of the base.

    \b
    Example: faceswap finetune --source anna --target bert --base base_96 -o anna_as_bert --minutes 60
    Example: faceswap finetune --source anna --base base_96 --strategy lora -o anna --minutes 10
    """
    from faceswap import damage
    from faceswap.pretrained import base as find
    from faceswap.train import train as start

    people = {"source": list(sources)} | ({"target": list(targets)} if targets else {})
    if base is not None:
        base = find(base, run=None if overwrite else run)
    report = start(recipe, people, run, device=device, base=base, generic=generic, overwrite=overwrite, consent=consent)
    found = damage.of(report.run, device=device) if report.reason != "interrupted" else None
    if found:
        report = replace(report, damage=asdict(found))
    show_training(report, as_json, f"\nthe base, on faces of strangers:\n{damage.text(found)}" if found else "")


@main.command()
@click.argument("source", type=FILE, metavar="SOURCE_RUN")
@click.argument("target", type=FILE, metavar="TARGET_RUN")
@click.option("-o", "out", required=True, type=FILE, metavar="PAIR.safetensors", help="Weight file to make.")
@click.option("--base", type=FILE, metavar="BASE", help="The base that both started from, if it is not found.")
@overwrite
@common
def combine(
    source: Path,
    target: Path,
    out: Path,
    base: Path | None,
    overwrite: bool,
    recipe: Recipe,
    device: str,
    as_json: bool,
) -> None:
    """Make a pair of two people who were learnt apart, from one base, without training again.

    \b
    Example: faceswap combine anna bert -o anna_as_bert.safetensors
    """
    from faceswap.combine import combine as run
    from faceswap.pretrained import base as find

    report = run(source, target, out, base=None if base is None else find(base), overwrite=overwrite)
    text = f"{report.file}: a pair of {report.images} face images in all, from {report.base}"
    show(report, text, as_json)


@main.command("import")
@click.argument("folder", type=FILE, metavar="MODEL_DIR")
@click.option("-o", "run", required=True, type=FILE, metavar="RUN", help="Folder of the run to make.")
@click.option("--name", help="Of the model, where MODEL_DIR holds several.")
@overwrite
@common
def import_(
    folder: Path, run: Path, name: str | None, overwrite: bool, recipe: Recipe, device: str, as_json: bool
) -> None:
    """Make a run of a model that DeepFaceLab trained (SAEHD): merge draws with it, finetune trains it on.

    \b
    Example: faceswap import workspace/model -o run
    """
    from faceswap.saehd import import_model

    made = import_model(folder, run, recipe, name=name, overwrite=overwrite)
    after = "an unknown number of" if made.iterations is None else f"{made.iterations:,}"
    text = (
        f"{made.run}: {made.name}, {made.archi} at {made.resolution} px with {made.weights / 1e6:.1f} M weights after "
        f"{after} iterations; face type {made.face_type}: model.crop = {made.crop!r}"
    )
    show(made, text, as_json)


@main.command()
@click.argument("video", type=FILE)
@click.option(
    "--model",
    type=FILE,
    metavar="RUN_OR_FILE",
    help="Run of faceswap finetune, a weight file of one, or any .dfm.",
)
@click.option(
    "--map",
    "cast",
    multiple=True,
    metavar="PICTURE=RUN",
    help="Instead of --model: RUN draws who is in PICTURE, or track:N=RUN. Give it for each person.",
)
@click.option("--faces", type=FILE, metavar="FACESET", help="Swap the faces that were extracted from VIDEO, no others.")
@click.option("-o", "out", type=FILE, metavar="OUT.mp4", help="Video to make.")
@click.option(
    "--plan", type=FILE, metavar="PLAN.toml", help="Sections [[shot]] that change the recipe by frames and tracks."
)
@click.option(
    "--range",
    "part",
    metavar="FROM-TO",
    help="Only these frames, both included and counted from 0, or times: 100-250, 100-, 0:04-0:10.",
)
@click.option(
    "--preview",
    type=click.IntRange(0),
    metavar="FRAME",
    help="Make a picture instead, -o NAME.png: the face of that frame in several ways; quick with --faces.",
)
@click.option(
    "--frames", type=FILE, metavar="DIR", help="Make images instead, one per frame; VIDEO may be a folder of images."
)
@click.option("--alpha", is_flag=True, help="With --frames: the drawn faces alone, transparent around them.")
@click.option(
    "--format",
    "form",
    type=click.Choice(("png", "tiff", "exr")),
    help="With --frames: what kind of image; exr is half float, linear.  [default: png]",
)
@click.option(
    "--codec",
    type=click.Choice(("auto", "h264", "h265", "prores")),
    help="With -o: how it is coded; prores: 422 HQ or 4444, in .mov.  [merge.codec]",
)
@whose
@strength
@workers
@click.option(
    "--engine",
    type=click.Choice(("local", "ray")),
    default="local",
    show_default=True,
    help="Where segments are made: here, or on the hosts of a Ray cluster, one per core or GPU.",
)
@marking
@overwrite
@common
def merge(
    video: Path,
    model: Path | None,
    cast: tuple[str, ...],
    plan: Path | None,
    part: str | None,
    preview: int | None,
    base: Path | None,
    strength: float,
    faces: Path | None,
    out: Path | None,
    frames: Path | None,
    alpha: bool,
    form: str | None,
    codec: str | None,
    who: Any,
    marks: Any,
    workers: int,
    engine: str,
    overwrite: bool,
    recipe: Recipe,
    device: str,
    as_json: bool,
) -> None:
    """Put the source's face into footage of the target; sound and timing are kept.

    The same command again goes on where it was, after a crash too. With --frames each frame becomes an image for a
    compositor, in 8 or 16 bits as the footage has (exr: linear light), and DIR/faces.json says where the faces lie.

    \b
    Example: faceswap merge bert.mp4 --model anna_as_bert -o swapped.mp4
    Example: faceswap merge bert.mov --model anna_as_bert -o swapped.mov --codec prores
    Example: faceswap merge bert.mp4 --model anna_as_bert --frames layers --alpha
    Example: faceswap merge both.mp4 --map bert.jpg=anna_as_bert --map carl.jpg=dora_as_carl -o swapped.mp4
    Example: faceswap merge bert.mp4 --model anna_as_bert --plan plan.toml --range 100-250 -o part.mp4
    Example: faceswap merge bert.mp4 --model anna_as_bert --preview 120 -o ways.png
    """
    if (model is None) == (not cast):
        raise click.UsageError("expected --model RUN_OR_FILE or --map PICTURE=RUN, one of the two")
    if cast and who is not None:
        raise click.UsageError("--map says already whose faces are swapped; leave out the other option")
    if preview is not None and (frames or part or workers > 1):
        raise click.UsageError("--preview makes one picture, -o NAME.png; leave out --frames, --range and --workers")
    made = out or frames
    if made is None or (out and frames):
        raise click.UsageError("expected -o OUT.mp4 or --frames DIR, one of the two")
    if frames is None and (alpha or form):
        raise click.UsageError("--alpha and --format belong to --frames")
    if frames is not None and (workers > 1 or engine != "local"):
        option = "--workers" if workers > 1 else "--engine"
        raise click.UsageError(f"{option} belongs to -o; images are made by one process")
    if frames is not None and codec:
        raise click.UsageError("--codec belongs to -o; what kind of image --frames makes is said by --format")
    if faces is not None and who is not None:
        raise click.UsageError("--faces says already whose faces are swapped; leave out the other option")
    from faceswap import files, segments, shots, stills, swap, variants
    from faceswap.devices import resolve
    from faceswap.segments import WHOLE
    from faceswap.video import check_name, frame_count, probe
    from faceswap.who import cast_by_number, cast_of

    if out is None:
        stills.check(made, video, form or "png")
        frame_count(video)
    else:
        recipe = recipe.changed(merge={"codec": codec} if codec else {})
        variants.check(out) if preview is not None else check_name(out, recipe.merge.codec)
        files.refuse_same(out, [video])
        segments.refuse_existing(out, overwrite)
        frame_count(video) if preview is not None else probe(video)
    sections = shots.load(plan) if plan else ()
    wanted = shots.part_of(video, part) if part else WHOLE
    people, weights = cast_of(cast) if model is None else (None, [model])
    place, marked = resolve(device), marks(made, stills=out is None or preview is not None)
    swapper = swap.Swapper(weights, recipe.merge, place, shots=sections, base=base, strength=strength)
    if faces:
        found = swap.recalling(faces, video)
        found = cast_by_number(found, people) if people else found
    else:
        every_frame = recipe.extract.model_copy(update={"every": 1})
        kept_by = made if preview is None else None
        found = swap.detecting(video, every_frame, str(place), people or who, kept_by)
    if plan:
        shots.tell_idle(plan, sections, found)
    how = {"overwrite": overwrite, "marks": marked}
    if preview is not None:
        picture = variants.preview(video, preview, made, swapper, found, **how)
        show(picture, f"{picture.picture}: frame {preview}, {len(picture.tiles)} tiles", as_json)
    elif out is not None:
        report = swap.swap_video(video, out, swapper, found, workers=workers, engine=engine, part=wanted, **how)
        show(report, merge_text(report), as_json)
    else:
        images = stills.write_stills(video, made, swapper, found, alpha=alpha, form=form or "png", part=wanted, **how)
        show(images, stills_text(images), as_json)


@main.command("swap")
@click.argument("source", type=FILE, metavar="SOURCE_VIDEO")
@click.argument("target", type=FILE, metavar="TARGET_VIDEO")
@click.option("-o", "out", required=True, type=FILE, metavar="OUT.mp4", help="Video to make.")
@click.option(
    "--work",
    type=FILE,
    metavar="DIR",
    help="Work folder, gone on from if it is there.  [default: OUT.faceswap]",
)
@click.option("--overwrite", is_flag=True, help="Replace OUT.mp4 if it exists; the work folder is kept.")
@whose
@click.option(
    "--source-reference",
    multiple=True,
    type=FILE,
    metavar="IMG",
    help="Only the person in this picture of SOURCE_VIDEO.",
)
@click.option(
    "--source-track", multiple=True, type=click.IntRange(0), metavar="N", help="Only this track of SOURCE_VIDEO."
)
@workers
@marking
@consent
@common
@strategy
@budget
def swap_(
    source: Path,
    target: Path,
    out: Path,
    who: Any,
    marks: Any,
    workers: int,
    source_reference: tuple[Path, ...],
    source_track: tuple[int, ...],
    work: Path | None,
    overwrite: bool,
    consent: str | None,
    recipe: Recipe,
    device: str,
    as_json: bool,
) -> None:
    """All of it: extract both videos, fine-tune, merge. The same command again goes on where it was.

    Of each video the person who fills most of it is taken; --reference, --track and --everyone choose who is replaced
    in TARGET_VIDEO.

    \b
    Example: faceswap swap anna.mp4 bert.mp4 -o swapped.mp4 --minutes 20
    """
    from faceswap.pair import swap_pair
    from faceswap.who import Who

    people = {} if who is None else {"target": who}
    if source_reference or source_track:
        people["source"] = Who(source_reference, source_track)
    report = swap_pair(
        source,
        target,
        out,
        recipe,
        device=device,
        work=work,
        overwrite=overwrite,
        who=people,
        marks=marks(out),
        workers=workers,
        consent=consent,
    )
    text = training_text(report.training)
    if report.merge is None:
        show(report, text, as_json)
        raise Failure(f"training interrupted; the same command goes on from {report.work}", INTERRUPTED)
    show(report, f"{text}\n{merge_text(report.merge)}", as_json)


@main.command("verify")
@click.argument("file", type=FILE, metavar="FILE")
@click.option("--trust", type=FILE, metavar="CERTS.pem", help="Certificates of whom you trust as signer.")
@common
def verify_marks(file: Path, trust: Path | None, recipe: Recipe, device: str, as_json: bool) -> None:
    """Say how a video or an image is marked, and whether it was changed since it was signed.

    Exit status: 0 marks, and what is signed is intact; 1 changed since it was signed; 3 no marks, or their signature
    was removed. Absence proves nothing, and tags without a signature prove little.

    \b
    Example: faceswap verify swapped.mp4
    """
    from faceswap import provenance

    verdict = provenance.verify(file, trust)
    show(verdict, provenance.text(verdict), as_json)
    click.get_current_context().exit(verdict.status)


@main.command()
@click.option("-o", "out", default="demo", show_default=True, type=FILE, metavar="DIR", help="Folder to make it in.")
@partial(common, default=Path("swap_64"))
@budget
def demo(out: Path, recipe: Recipe, device: str, as_json: bool) -> None:
    """All of it on two rendered actors, no footage needed, scored against the true swap: DIR/index.html.

    \b
    Example: faceswap demo
    """
    from faceswap.demo import demo as run
    from faceswap.metrics import text_table

    report = run(out, recipe, device=device)
    if report.page is None:
        raise Failure(f"training interrupted; the same command goes on from {out}", INTERRUPTED)
    stages = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in report.seconds.items())
    show(report, f"{text_table(report.scores)}\n{stages}\nopen {report.page} in a browser", as_json)


@main.command()
@click.argument("path", type=FILE, metavar="RUN_OR_FILE")
@click.option(
    "--faces", type=FILE, metavar="FACESET", help="Measure on these faces, not on those held out: the target's."
)
@click.option("--truth", is_flag=True, help="Against the true swap of synthetic actors; see below.")
@click.option("--protocol", type=FILE, metavar="FILE.toml", help="Another protocol than configs/benchmark.toml.")
@click.option("-o", "out", type=FILE, metavar="PAGE.html", help="Page to write.  [default: evaluation.html in the run]")
@strength
@overwrite
@common
def evaluate(
    path: Path,
    base: Path | None,
    strength: float,
    faces: Path | None,
    truth: bool,
    protocol: Path | None,
    out: Path | None,
    overwrite: bool,
    recipe: Recipe,
    device: str,
    as_json: bool,
) -> None:
    """How good is a model: a table, and a page with pictures.

    With --truth, of a run on synthetic actors (of faceswap demo, or of faceswap swap on clips of faceswap actors): the
    swap against the true swap. If RUN_OR_FILE is no run but a folder that is new, or of an earlier such call: the truth
    benchmark, which trains each pair of its protocol there with the recipe given, and takes a while.

    \b
    Example: faceswap evaluate anna_as_bert
    Example: faceswap evaluate benchmark --truth
    """
    from faceswap import benchmark, config, metrics
    from faceswap.evaluate import evaluate as run

    if protocol is not None and not truth:
        raise click.UsageError("--protocol belongs to --truth")
    if truth and (faces is not None or out is not None or overwrite or base is not None or strength != 1):
        raise click.UsageError("--faces, --base, --strength, -o and --overwrite do not go with --truth")
    if truth:
        report = benchmark.evaluate_truth(path, config.load_benchmark(protocol), recipe, device=device)
    else:
        report = run(
            path, recipe, device=device, faces=faces, base=base, strength=strength, out=out, overwrite=overwrite
        )
    tables = [f"{title}\n{metrics.text_table(rows)}" for title, rows in report.tables.items()]
    show(report, "\n\n".join([*tables, *report.notes, f"page: {report.page}"]), as_json)


@main.command("run")
@click.argument("job", type=FILE, metavar="JOB.toml")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@common
def run_(job: Path, dry_run: bool, recipe: Recipe, device: str, as_json: bool) -> None:
    """Do the steps of a job, a list of commands in a file; the same command again goes on where it was.

    A folder of jobs is a queue, done in the order of their names. A step is skipped if it is finished and as it was and
    what it made is there; else it is done, and all after it. --config, --set, --device, --seed, -v and -q go to every
    step that does not say otherwise.

    \b
    Example: faceswap run job.toml
    """
    from faceswap import jobs

    given = jobs.given(click.get_current_context())
    reports = jobs.run(job, main, given, dry_run=dry_run, stdout=2 if as_json else None)
    show(reports, jobs.text(reports), as_json)
    if any(report.state == "interrupted" for report in reports):
        raise Failure("interrupted; the same command goes on from there", INTERRUPTED)
    bad = [report for report in reports if report.state == "failed"]
    if bad:
        of = f"{len(bad)} of {len(reports)} jobs failed, " if len(reports) > 1 else ""
        names = ", ".join(str(report.job) for report in bad)
        raise Failure(f"{of}{names}: mend what is said above; the same command goes on from there", 1)


@main.command()
@click.argument("folder", default=".", type=FILE, metavar="[DIR]")
@click.option("--port", type=click.IntRange(0, 65535), help="Where it listens.  [default: 8765, or any that is free]")
@click.option(
    "--no-browser",
    is_flag=True,
    help="Only print the address; on a machine of several users, who see what a browser is started with.",
)
@common
def studio(folder: Path, port: int | None, no_browser: bool, recipe: Recipe, device: str, as_json: bool) -> None:
    """A page in the browser for what lies in DIR: sort out faces, watch a training, try merge settings, do jobs.

    It is for this machine alone, until Ctrl-C: nothing is sent anywhere, and nothing outside DIR is shown. Whoever has
    the address may do what the page does. From elsewhere: ssh -L 8765:127.0.0.1:8765 MACHINE.

    \b
    Example: faceswap studio swapped.faceswap
    """
    from faceswap.desk import Desk
    from faceswap.devices import resolve
    from faceswap.studio import serve

    desk = Desk(folder, recipe, resolve(device), main)
    serve(desk, port, lambda where: show(where, where.address, as_json), browser=not no_browser)


@main.group(cls=Commands)
def actors() -> None:
    """Rendered people: clips and facesets of nobody, with their truth."""


@actors.command()
@click.option("-o", "out", required=True, type=FILE, metavar="OUT.mp4", help="Video to make; its truth goes beside it.")
@click.option("--identity", type=click.IntRange(0), default=1, show_default=True, help="Seed of the person.")
@click.option("--performance", type=click.IntRange(0), default=1, show_default=True, help="Seed of what happens.")
@click.option("--seconds", type=Finite(0, 3600, min_open=True), default=10, show_default=True, help="Length.")
@click.option("--size", type=click.IntRange(64, 2048), default=480, show_default=True, help="Side in px, even.")
@click.option("--fps", type=click.IntRange(1, 120), default=25, show_default=True, help="Frames per second.")
@overwrite
@common
def clip(
    out: Path,
    identity: int,
    performance: int,
    seconds: float,
    size: int,
    fps: int,
    overwrite: bool,
    recipe: Recipe,
    device: str,
    as_json: bool,
) -> None:
    """A clip of an actor with sound, and OUT.truth.npz: identity, pose, expression, landmarks and mask per frame.

    \b
    Example: faceswap actors clip -o actor.mp4 --identity 7
    """
    from fractions import Fraction

    from faceswap.actors import Take, write_clip
    from faceswap.heads import Identity

    take = Take(Identity.random(identity), performance, max(1, round(seconds * fps)), size, Fraction(fps))
    report = write_clip(take, out, overwrite=overwrite)
    rate = report.frames / report.seconds
    show(report, f"{report.out}: {report.frames} frames, {rate:.1f} frames/s; truth in {report.truth}", as_json)


@actors.command("faces")
@click.option("-o", "out", required=True, type=FILE, metavar="FACESET", help="Folder of faces to make.")
@click.option("--count", type=click.IntRange(1), default=2000, show_default=True, help="Faces; four per identity.")
@click.option("--size", type=click.IntRange(32, 1024), default=256, show_default=True, help="Side of the crops in px.")
@overwrite
@common
def faces_(out: Path, count: int, size: int, overwrite: bool, recipe: Recipe, device: str, as_json: bool) -> None:
    """A generic faceset of many people, each face with its truth in the metadata: something to pretrain on.

    \b
    Example: faceswap actors faces -o many --count 2000
    """
    from faceswap.actors import write_faces

    report = write_faces(out, count, size=size, seed=recipe.seed, overwrite=overwrite)
    show(report, f"{report.out}: {report.frames} faces, {report.frames / report.seconds:.1f} faces/s", as_json)


@main.group()
def pretrained() -> None:
    """Bases to start from and networks that help: what there is, what is here, and how to get the rest."""


@pretrained.command("list")
@common
def list_weights(recipe: Recipe, device: str, as_json: bool) -> None:
    """All weights by name, and where they lie.

    \b
    Example: faceswap pretrained list
    """
    from faceswap.pretrained import entries

    found = list(entries().values())
    width = max(len(e.name) for e in found) + 3
    lines = [f"{e.name:{width}}{e.kind:10}{e.path or f'not here; {e.remedy}'}" for e in found]
    show(found, "\n".join(lines), as_json)


@pretrained.command("show")
@click.argument("name")
@common
def show_weights(name: str, recipe: Recipe, device: str, as_json: bool) -> None:
    """What is known of the weights NAME: licence, origin, size, sha256, how good a base is, place.

    \b
    Example: faceswap pretrained show landmarks
    """
    from faceswap.pretrained import known

    entry = known(name)
    said = asdict(entry) | {"path": entry.path or f"not here; {entry.remedy}"}
    show(entry, "\n".join(f"{key:10}{value}" for key, value in said.items() if value), as_json)


@pretrained.command()
@click.argument("name")
@click.option(
    "--from",
    "source",
    type=FILE,
    metavar="FILE_OR_DIR",
    help="Take this file, or that of a folder, not what is at the address.",
)
@click.option("--overwrite", is_flag=True, help="Replace weights that are here.")
@common
def pull(name: str, source: Path | None, overwrite: bool, recipe: Recipe, device: str, as_json: bool) -> None:
    """Bring the weights NAME here: into $FACESWAP_PRETRAINED if it is set, else into your data folder.

    \b
    Example: faceswap pretrained pull inception-resnet-v1
    """
    from faceswap.pretrained import pull as run

    try:
        report = run(name, source, overwrite=overwrite)
    except KeyboardInterrupt:
        if source is not None:
            raise
        raise Failure("interrupted; what came is kept, and the same command goes on from there", INTERRUPTED) from None
    show(report, f"{report.name}: {report.path}: {report.said}", as_json)


@pretrained.command("add")
@click.argument("source", type=FILE, metavar="RUN_OR_FILE")
@click.option("--name", required=True, help="What to call it: letters, digits, - and _.")
@click.option("--licence", default="", metavar="TEXT", help="Who may do what with it.  [default: not stated]")
@click.option("--origin", default="", metavar="TEXT", help="How it was made.  [default: where it was added from]")
@click.option("--overwrite", is_flag=True, help="Take the place of a base of that name.")
@common
def add_base(
    source: Path,
    name: str,
    licence: str,
    origin: str,
    overwrite: bool,
    recipe: Recipe,
    device: str,
    as_json: bool,
) -> None:
    """Give a base of your own a name: its averaged weights are kept in your folder, where finetune finds them.

    \b
    Example: faceswap pretrained add base --name mine --licence "CC BY 4.0"
    """
    from faceswap.pretrained import add as run

    entry = run(source, name, licence=licence, origin=origin, overwrite=overwrite)
    show(entry, f"{entry.name}: {entry.path}: added, {(entry.bytes or 0) / 1e6:.1f} MB, {entry.figures}", as_json)


@pretrained.command()
@click.argument("name", required=False)
@common
def verify(name: str | None, recipe: Recipe, device: str, as_json: bool) -> None:
    """Read the weights NAME, or all that are here, and say whether they are whole.

    \b
    Example: faceswap pretrained verify
    """
    from faceswap.pretrained import verify as run

    verdicts = run(name)
    show(verdicts, "\n".join(f"{v.name}: {f'{v.path}: ' if v.path else ''}{v.said}" for v in verdicts), as_json)
    bad = [v.name for v in verdicts if not v.sound and (v.path or name)]
    if bad:
        raise Failure(f"not sound: {', '.join(bad)}; the remedies are above", 1)


@main.command()
@common
def doctor(recipe: Recipe, device: str, as_json: bool) -> None:
    """Versions, device, what works, what is missing and the remedy.

    \b
    Example: faceswap doctor
    """
    from faceswap.doctor import examine

    findings = examine(device)
    lines = [
        f"{'ok' if f.ok else 'MISSING':8}{f.name:18}{f.value}" + ("" if f.ok else f"  ({f.remedy})") for f in findings
    ]
    show(findings, "\n".join(lines), as_json)
    bad = [finding.name for finding in findings if not finding.ok]
    if bad:
        raise Failure(f"not ready: {', '.join(bad)}; the remedies are above", 1)


def show_training(report: Any, as_json: bool, more: str = "") -> None:
    show(report, training_text(report) + more, as_json)
    if report.reason == "interrupted":
        raise Failure(f"training interrupted; the same command goes on from {report.run}", INTERRUPTED)


def training_text(report: Any) -> str:
    held = ", ".join(f"{name.removeprefix('held_out/')} {value:.4g}" for name, value in report.held_out.items())
    return (
        f"{report.run}: {report.images} face images, {report.seconds / 60:.1f} minutes, "
        f"{report.faces_per_second:.1f} faces/s; held out: {held or 'not measured yet'}"
    )


def stills_text(report: Any) -> str:
    kept = f" ({report.kept} kept)" if report.kept else ""
    share = 100 * report.frames_swapped / report.frames
    return f"{report.folder}: {report.frames} images{kept}, a face drawn in {report.frames_swapped} ({share:.1f} %)"


def merge_text(report: Any) -> str:
    share = 100 * report.frames_swapped / report.frames
    return (
        f"{report.video}: {report.frames} frames, a face replaced in {report.frames_swapped} ({share:.1f} %), "
        f"{report.frames / report.seconds:.1f} frames/s"
    )
