"""How well the detector finds synthetic actors, and how fast they are rendered: the figures of docs/BENCHMARK.md.

python tools/measure_actors.py [COUNT [SIZE]]    one core; 200 identities at 256 px take half a minute
"""

import os
import sys
import time

os.environ["OMP_NUM_THREADS"] = "1"

import cv2
import numpy as np
import torch

from faceswap import actors, detectors
from faceswap.heads import Identity


def main(count: int = 200, size: int = 256) -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    detector = detectors.build("mtcnn", threshold=0.0, min_size=20, device="cpu")
    probabilities, errors, biases, seconds, missed = [], [], [], [], []
    for seed in range(count):
        random = np.random.default_rng([seed, 7])
        moment, room = actors.at_random(random), actors.background(seed, size, size)
        actor = actors.Actor(Identity.random(seed))
        started = time.perf_counter()
        shot = actor.render(**actors.as_arguments(moment), size=size, background=room)
        seconds.append(time.perf_counter() - started)
        front = actor.render(size=size, background=room).points
        eyes = np.linalg.norm(front[1] - front[0])
        faces = detector([shot.image])[0]
        offsets = [face.points - shot.points for face in faces]
        near = [i for i, offset in enumerate(offsets) if np.linalg.norm(offset.mean(0)) < 0.6 * eyes]
        if not near:
            missed.append(seed)
            continue
        best = min(near, key=lambda i: np.linalg.norm(offsets[i].mean(0)))
        probabilities.append(faces[best].probability)
        errors.append(100 * np.linalg.norm(offsets[best], axis=1).mean() / eyes)
        biases.append(offsets[best].mean(0))
    sure = sum(probability > 0.95 for probability in probabilities)
    print(f"{count} identities at {size} px: found {len(errors) / count:.1%}, p > 0.95 {sure / count:.1%}")
    print(f"lowest probability {min(probabilities):.3f}; missed identities: {missed or 'none'}")
    bias = np.mean(biases, 0).round(2)
    print(f"five points: mean error {np.mean(errors):.2f} % of the frontal eye distance, bias {bias} px")
    print(f"rendering: {1 / np.median(seconds):.1f} frames/s (median), {1 / np.mean(seconds):.1f} (mean), one core")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
