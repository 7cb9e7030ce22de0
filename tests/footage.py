"""Footage that the tests make themselves: a drawn face that MTCNN finds, and clips of it. No picture of a person."""

from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from faceswap import video

DATA = Path(__file__).parents[1].parent / "shared" / "data"  # real footage, where a workplace has it

BACKGROUND = (120, 130, 140)
LOOKS = {  # skin, hair, iris: RGB
    "source": ((150, 105, 80), (40, 30, 25), (60, 40, 30)),
    "target": ((225, 185, 165), (150, 110, 60), (70, 110, 130)),
}
UNIT_POINTS = np.array([[-12.5, -6], [12.5, -6], [0, 10], [-9, 23], [9, 23]])  # eyes, nose, mouth corners


def draw_face(
    size: int = 160,
    centre: tuple[float, float] = (80, 80),
    scale: float = 1.0,  # the head is about 60 px wide at 1
    look: str = "target",
    mouth: float = 0.0,  # how far open, 0 to 5
    turn: float = 0.0,  # to the image's right, -4 to 4
) -> NDArray[np.uint8]:
    """A face (size, size, 3) uint8 RGB; its points lie near `UNIT_POINTS * scale + centre`."""
    fine = 2  # drawn larger, then averaged
    skin, hair, iris = (np.array(color, np.float32) for color in LOOKS[look])
    unit = scale * fine
    image = np.empty((size * fine, size * fine, 3), np.float32)
    image[:] = BACKGROUND

    def dab(x: float, y: float, rx: float, ry: float, color: NDArray[np.float32], soft: float, angle: int = 0) -> None:
        mask = np.zeros(image.shape[:2], np.uint8)
        place = (int(centre[0] * fine + x * unit), int(centre[1] * fine + y * unit))
        cv2.ellipse(mask, place, (int(rx * unit), int(ry * unit)), angle, 0, 360, 255, -1)
        alpha = cv2.GaussianBlur(mask.astype(np.float32) / 255, (0, 0), soft * unit)[..., None]
        image[:] = image * (1 - alpha) + color * alpha

    dab(0, -12, 36, 42, hair, 1)
    dab(0, 55, 14, 30, skin * 0.75, 2)
    dab(0, 0, 30, 40, skin, 1)
    dab(-10, 8, 14, 12, skin * 1.06, 6)
    dab(10, 8, 14, 12, skin * 1.06, 6)
    for side in (-1, 1):
        x = side * 12.5 + turn
        dab(x, -6, 9, 6, skin * 0.72, 2.5)
        dab(x, -6, 5.6, 2.9, np.float32([235, 232, 228]), 0.3)
        dab(x, -6, 2.7, 2.8, iris, 0.2)
        dab(x, -6, 1.2, 1.2, np.float32([15, 12, 10]), 0.2)
        dab(x, -8.8, 6, 0.9, skin * 0.35, 0.3)
        dab(x, -14, 7.5, 1.6, hair, 0.6, side * 5)
    dab(turn * 1.5, 5, 3, 9, skin * 1.10, 1.5)
    dab(turn * 1.5 + 4, 6, 2, 8, skin * 0.82, 1.5)
    dab(turn * 1.6, 13, 5, 2.4, skin * 0.9, 1)
    for side in (-1, 1):
        dab(turn * 1.6 + side * 3, 14.3, 1.7, 0.9, skin * 0.45, 0.5)
    dab(turn, 23, 10, 2.6 + mouth / 2, np.float32([170, 85, 80]), 0.5)
    dab(turn, 23, 8.5, 0.5 + mouth, np.float32([70, 25, 25]), 0.3)
    dab(turn, 29 + mouth, 7, 1.5, skin * 0.82, 1.5)
    return np.clip(cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA), 0, 255).astype(np.uint8)


def performance(look: str, frames: int, *, empty: tuple[int, ...] = ()) -> list[NDArray[np.uint8]]:
    """Frames (160, 160, 3) of a face that moves, turns and speaks; those numbered in `empty` show nobody."""
    shown = []
    for i in range(frames):
        phase = 2 * np.pi * i / 12
        move = (80 + 4 * np.sin(phase), 78 + 3 * np.cos(phase))
        image = draw_face(centre=move, look=look, mouth=2 + 2 * np.sin(2 * phase), turn=3 * np.sin(phase / 2))
        shown.append(np.full_like(image, BACKGROUND) if i in empty else image)
    return shown


def write_clip(
    path: Path, images: list[NDArray[np.uint8]], *, rate: Fraction = Fraction(25), sound: bool = True
) -> Path:
    """An H.264 clip of the images, with a tone."""
    count = int(video.SOUND_RATE * len(images) / rate)
    tone = np.sin(2 * np.pi * 440 * np.arange(count) / video.SOUND_RATE).astype(np.float32) / 4
    video.write_video(path, images, rate, sound=tone if sound else None)
    return path
