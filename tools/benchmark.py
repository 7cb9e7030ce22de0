"""Measure faceswap against what people would write themselves.

    python tools/benchmark.py extract [CLIP...] [--json]
    python tools/benchmark.py jitter [CLIP...] [--json]
    python tools/benchmark.py train [--json] [--minutes M] [--resolution R...] [--part PART...] [--set KEY=VALUE]
    python tools/benchmark.py merge [--json] [--frames N] [--height PX...] [--rounds N]
    python tools/benchmark.py finetune --base BASE [--json] [--images N] [--strategy NAME...] [--work DIR]

`extract`: the whole of `faceswap extract` (decoding, finding, following, writing), in a process of its own, against the
naive loop `facenet_pytorch.MTCNN(keep_all=True).detect(frame, landmarks=True)`, which writes nothing, on the same
frames. `speedup` compares frames per second from the first frame to the last, without the start of Python on either
side. `recall` is the share of the faces which the loop finds with a probability of 0.95 or more, and whose larger side
has the minimum size, that were extracted too (IoU of 0.4 or more). `recall_90` and `recall_any` count those from 0.9 on
and all of them (0.7 and more): among these are plants, hands and hair, which extraction leaves out on purpose.

`jitter`: how much the crop of the clip's largest face shakes while the head is still (it moves by less than 0.4 % of
the distance between the eyes per frame), in percent of that distance per coordinate: root mean square of the second
differences / sqrt(6), see `faceswap.tracks.jitter`; by MTCNN's points, by the landmarks, and after smoothing.

`train`: what the pipeline costs over its network, its speed beside plain PyTorch, the loader alone, and how soon the
model is as good as others; see `tools/benchmark_train.py`. About 20 minutes plus three times --minutes per pair.

`merge`: frames per second of a whole merge beside those of one face at a time over whole frames, and beside a bare
decode and encode, and its memory; see `tools/benchmark_merge.py`. About 8 minutes on two cores.

`finetune`: what each strategy makes of a base, and what it leaves of it, as a table in Markdown; see
`tools/benchmark_finetune.py`. Hours: with --work it may be interrupted, and goes on when started again.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

CLIPS = ("actor_a", "walking_720p", "stage_cuts", "crowd_1080p")
DATA = Path(__file__).parents[2] / "shared" / "data" / "clips"
SURE = {"recall": 0.95, "recall_90": 0.9, "recall_any": 0.0}  # least probability of the faces that count
PARTS = ("overhead", "plain", "loader", "quality", "gains", "gpu")  # of the measurement of training
STILL = 0.004  # of the distance between the eyes per frame: slower heads are still
SAME = 0.4  # IoU of boxes of one face


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def naive(clip: Path) -> tuple[float, dict[int, list[tuple[np.ndarray, float]]]]:
    """Seconds, and by frame index the boxes with their probabilities."""
    from facenet_pytorch import MTCNN

    from faceswap.video import read_frames

    detector, found = MTCNN(keep_all=True), {}
    started = time.monotonic()
    for frame in read_frames(clip):
        boxes, probabilities, _ = detector.detect(np.array(frame.image), landmarks=True)
        faces = [] if boxes is None else zip(np.asarray(boxes, float), map(float, probabilities), strict=True)
        found[frame.index] = list(faces)
    return time.monotonic() - started, found


def ours(clip: Path, out: Path) -> tuple[dict[str, Any], dict[int, list[np.ndarray]]]:
    """What `faceswap extract --json` says, and by frame index the boxes."""
    from faceswap.faceset import Faceset

    command = [sys.executable, "-m", "faceswap", "extract", str(clip), "-o", str(out), "--json", "-q"]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[int, list[np.ndarray]] = {}
    for entry in Faceset.open(out).entries:
        found.setdefault(entry.meta.frame, []).append(np.array(entry.meta.box))
    return json.loads(said), found


def compare(clip: Path) -> dict[str, Any]:
    from faceswap.config import Recipe
    from faceswap.tracks import overlap

    recipe = Recipe().extract
    with tempfile.TemporaryDirectory() as folder:
        report, extracted = ours(clip, Path(folder) / "faces")
    seconds, looped = naive(clip)
    counts = {name: [0, 0] for name in SURE}
    for index, faces in looped.items():
        for box, probability in faces:
            if max(box[2] - box[0], box[3] - box[1]) < recipe.min_size:
                continue
            seen = any(overlap(box, other) >= SAME for other in extracted.get(index, []))
            for name, least in SURE.items():
                if probability >= least:
                    counts[name][0] += seen
                    counts[name][1] += 1
    return {
        "frames": len(looped),
        "naive_frames_per_second": round(len(looped) / seconds, 2),
        "frames_per_second": round(report["frames"] / report["seconds"], 2),
        "speedup": round(report["frames"] / report["seconds"] / (len(looped) / seconds), 2),
        **{name: round(seen / there, 4) if there else None for name, (seen, there) in counts.items()},
        **{f"naive_faces{name.removeprefix('recall')}": there for name, (_, there) in counts.items()},
        "extracted": report["faces"],
        "tracks": report["tracks"],
        "frames_detected": report["frames_detected"],
        "jitter_before": report["jitter_before"],
        "jitter": report["jitter"],
    }


def jitter(clip: Path) -> dict[str, Any]:
    from faceswap import align, detectors, tracks
    from faceswap.config import Recipe
    from faceswap.landmarks import Landmarker
    from faceswap.video import read_frames

    recipe, frames = Recipe().extract, list(read_frames(clip))
    detector = detectors.build(recipe.detector, threshold=0.8, min_size=recipe.min_size, device="cpu")
    footage = tracks.follow(iter(frames), detector, Landmarker(), recipe)
    faces = max(footage.tracks, key=lambda track: track.area).faces
    found = {frame.index: detector([np.asarray(frame.image)])[0] for frame in frames if frame.index in faces}
    ways = {
        "mtcnn": {index: align.crop_matrix(seen[0].points, 1) for index, seen in found.items() if seen},
        "landmarks": {index: align.crop_matrix(face.points, 1) for index, face in faces.items()},
        "smoothed": {index: face.matrix(1) for index, face in faces.items()},
    }
    spread = {  # where the template's five points lie in the frame
        way: {index: align.apply(align.invert(place), align.TEMPLATE) for index, place in places.items()}
        for way, places in ways.items()
    }
    steady = spread["smoothed"]
    eyes = float(np.median([np.linalg.norm(points[1] - points[0]) for points in steady.values()]))
    still = [
        index
        for index in steady
        if all(index + step in places for places in spread.values() for step in (-1, 0, 1))
        and np.abs(steady[index + 1] - steady[index - 1]).mean() / 2 < STILL * eyes
    ]
    result: dict[str, Any] = {"frames": len(frames), "still": len(still)}
    for way, places in spread.items():
        bends = [((places[i - 1] - 2 * places[i] + places[i + 1]) ** 2).mean() / 6 for i in still]
        result[way] = round(100 * float(np.sqrt(np.mean(bends))) / eyes, 3) if bends else None
    return result


def train(options: argparse.Namespace) -> dict[str, Any]:
    import benchmark_train

    from faceswap.config import load, load_benchmark

    with tempfile.TemporaryDirectory() as folder:
        return benchmark_train.run(
            load(options.recipe, options.set),
            Path(folder),
            protocol=load_benchmark(),
            parts=options.part,
            resolutions=options.resolution,
            minutes=options.minutes,
            images=options.images,
            seconds=options.seconds,
            pairs=options.pairs,
            device=options.device,
            say=say,
        )


def merge(options: argparse.Namespace) -> str:
    import benchmark_merge

    from faceswap.config import load

    with tempfile.TemporaryDirectory() as folder:
        result = benchmark_merge.run(
            load(options.recipe, options.set),
            Path(folder),
            heights=options.height,
            frames=options.frames,
            rounds=options.rounds,
            longer=options.longer,
            device=options.device,
            say=say,
        )
    return json.dumps(result, indent=1) if options.json else benchmark_merge.text(result)


def finetune(options: argparse.Namespace) -> str:
    import benchmark_finetune

    from faceswap.config import load, load_benchmark
    from faceswap.errors import FaceswapError

    with tempfile.TemporaryDirectory() as folder:
        try:
            found = benchmark_finetune.run(
                load(options.recipe, options.set),
                options.base,
                options.work or Path(folder),
                protocol=load_benchmark(options.protocol),
                images=options.images,
                scratch_images=options.scratch_images,
                pairs=options.pairs,
                seeds=options.seeds,
                names=options.strategy,
                generic=options.generic,
                count=options.count,
                device=options.device,
                say=say,
            )
        except FaceswapError as error:
            sys.exit(f"error: {error}")
    return json.dumps(found, indent=1) if options.json else benchmark_finetune.text(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="what", required=True)
    for what in ("extract", "jitter"):
        kind = kinds.add_parser(what)
        kind.add_argument(
            "clips", nargs="*", type=Path, help="default: the four real clips, where a workplace has them"
        )
    kind = kinds.add_parser("train")
    kind.add_argument("--minutes", type=float, default=10, help="of training per model and pair, for the quality")
    kind.add_argument("--images", type=int, default=12_000, help="of training per change and pair, for the gains")
    kind.add_argument("--seconds", type=float, default=60, help="about so long for each row of the rest")
    kind.add_argument("--resolution", type=int, nargs="+", default=[64, 128, 256], metavar="R", help="px")
    most = [part for part in PARTS if part != "gains"]  # which takes a night
    kind.add_argument("--part", nargs="+", default=most, choices=PARTS, help=f"default: {' '.join(most)}")
    kind.add_argument("--pairs", type=int, default=1, help="how many of configs/benchmark.toml, for the quality")
    kind.add_argument("--recipe", type=Path, help="as of faceswap train")
    kind.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as of faceswap train")
    kind.add_argument("--device", default="auto")
    kind = kinds.add_parser("merge")
    kind.add_argument("--height", type=int, nargs="+", default=[480, 1080], metavar="PX", help="of the clips")
    kind.add_argument("--frames", type=int, default=60, help="rendered; each clip has them there and back")
    kind.add_argument("--rounds", type=int, default=3, help="runs of each way, of which the best counts")
    kind.add_argument("--longer", type=int, default=5, help="times as long is the clip that shows if memory grows")
    kind.add_argument("--recipe", type=Path, help="as of faceswap merge --config")
    kind.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as of faceswap merge")
    kind.add_argument("--device", default="cpu")
    kind = kinds.add_parser("finetune")
    kind.add_argument("--base", type=Path, required=True, help="as of faceswap finetune: a name, a run or a file")
    kind.add_argument("--images", type=int, default=4000, help="of the two people, per run")
    kind.add_argument("--scratch-images", type=int, default=0, help="the same for scratch; default: ten times as many")
    kind.add_argument("--pairs", type=int, default=3, help="how many of configs/benchmark.toml")
    kind.add_argument("--seeds", type=int, default=2, help="runs of each kind per pair")
    kind.add_argument("--strategy", nargs="+", default=[], metavar="NAME", help="default: all but resume")
    kind.add_argument("--generic", type=Path, metavar="FACESET", help="faces of anyone for prior; default: rendered")
    kind.add_argument("--count", type=int, default=500, help="strangers that show the damage")
    kind.add_argument("--work", type=Path, metavar="DIR", help="keep results here, and do what is not there yet")
    kind.add_argument("--protocol", type=Path, help="default: configs/benchmark.toml")
    kind.add_argument("--recipe", type=Path, help="as of faceswap train; the model is that of the base")
    kind.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="as of faceswap train")
    kind.add_argument("--device", default="auto")
    for kind in kinds.choices.values():
        kind.add_argument("--json", action="store_true", help="print JSON only")
    options = parser.parse_args()
    if options.what == "train":
        print(json.dumps(train(options), indent=1))
        return
    if options.what == "merge":
        print(merge(options))
        return
    if options.what == "finetune":
        print(finetune(options))
        return
    clips = options.clips or [path for name in CLIPS if (path := DATA / f"{name}.mp4").exists()]
    if not clips:
        parser.error(f"no clip given, and none found in {DATA}")
    missing = [path for path in clips if not path.is_file()]
    if missing:
        parser.error(f"{missing[0]}: no such file")
    found = {}
    for clip in clips:
        found[clip.stem] = result = (compare if options.what == "extract" else jitter)(clip)
        if not options.json:
            print(f"{clip.stem}: " + ", ".join(f"{name} {value}" for name, value in result.items()), flush=True)
    if options.json:
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
