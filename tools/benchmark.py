"""Measure faceswap against what people would write themselves.

    python tools/benchmark.py extract [CLIP...] [--json]

`extract`: the whole of `faceswap extract` (decoding, finding, following, writing), in a process of its own, against the
naive loop `facenet_pytorch.MTCNN(keep_all=True).detect(frame, landmarks=True)`, which writes nothing, on the same
frames. `speedup` compares frames per second from the first frame to the last, without the start of Python on either
side. `recall` is the share of the faces which the loop finds, and whose larger side has the minimum size, that were
extracted too (IoU of 0.4 or more); `recall_sure` counts those of which the loop is surer than extraction's threshold.
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
SAME = 0.4  # IoU of boxes of one face


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
    counts = {"all": [0, 0], "sure": [0, 0]}
    for index, faces in looped.items():
        for box, probability in faces:
            if max(box[2] - box[0], box[3] - box[1]) < recipe.min_size:
                continue
            seen = any(overlap(box, other) >= SAME for other in extracted.get(index, []))
            for name in ("all", "sure") if probability >= recipe.threshold else ("all",):
                counts[name][0] += seen
                counts[name][1] += 1
    return {
        "frames": len(looped),
        "naive_frames_per_second": round(len(looped) / seconds, 2),
        "frames_per_second": round(report["frames"] / report["seconds"], 2),
        "speedup": round(report["frames"] / report["seconds"] / (len(looped) / seconds), 2),
        "naive_faces": counts["all"][1],
        "recall": round(counts["all"][0] / counts["all"][1], 4) if counts["all"][1] else None,
        "naive_faces_sure": counts["sure"][1],
        "recall_sure": round(counts["sure"][0] / counts["sure"][1], 4) if counts["sure"][1] else None,
        "extracted": report["faces"],
        "tracks": report["tracks"],
        "frames_detected": report["frames_detected"],
        "jitter_before": report["jitter_before"],
        "jitter": report["jitter"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["extract"])
    parser.add_argument("clips", nargs="*", type=Path, help="default: the four real clips, where a workplace has them")
    parser.add_argument("--json", action="store_true", help="print JSON only")
    options = parser.parse_args()
    clips = options.clips or [path for name in CLIPS if (path := DATA / f"{name}.mp4").exists()]
    if not clips:
        parser.error(f"no clip given, and none found in {DATA}")
    missing = [path for path in clips if not path.is_file()]
    if missing:
        parser.error(f"{missing[0]}: no such file")
    found = {}
    for clip in clips:
        found[clip.stem] = result = compare(clip)
        if not options.json:
            print(
                f"{clip.stem}: {result['frames_per_second']} frames/s against {result['naive_frames_per_second']} "
                f"({result['speedup']} x), recall {result['recall']} of {result['naive_faces']}, "
                f"{result['recall_sure']} of {result['naive_faces_sure']} that are sure",
                flush=True,
            )
    if options.json:
        print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
