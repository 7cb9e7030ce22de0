"""Who a synthetic actor is, what the face does at one moment, and the geometry of the head.

Convention: millimetres; the origin is the centre of the head, x points to image right, y up, z to the camera. Angles
of the public classes are degrees, those inside radians. Arrays of points end in an axis of length 3.

A head is a loft, a grid of height x azimuth, pushed around by smooth bumps. Every vertex remembers its *template*
position (x, t), the one it has on the average head: t is a height parameter that equals y except under the chin.
Landmarks, masks and textures are drawn in template coordinates and so correspond between all people.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Self

import cv2
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

EYE_X = 31.5  # template coordinates of the eyes' centres, (+-EYE_X, 0)
MOUTH_T = -68.0  # of the line between the lips
MOUTH_HALF = 25.5  # half the width of the lips
NOSE_T = -40.0  # of the tip of the nose
TOP_T, BOTTOM_T = 112.0, -130.0  # of crown and throat: the ends of the loft
NECK = np.array([0.0, -55.0, -12.0], np.float32)  # the joint about which the head turns
EYEBALL = 12.2  # radius
LONG = 0.3  # hair_length above this hangs, and covers the ears
JAW_OPENS = 19.0  # degrees, at jaw = 1


# ---------------------------------------------------------------- identity, expression, pose


def _normal(sigma: float) -> Any:
    """A field that is 0 for the average person and drawn from a normal clipped to two sigma."""
    return field(default=0.0, metadata={"sigma": sigma})


def _uniform(low: float, high: float) -> Any:
    """A field drawn uniformly from a range."""
    return field(default=(low + high) / 2, metadata={"range": (low, high)})


def make_plain(moment: Any) -> None:
    """Turn the fields of a frozen dataclass into `float`: a NumPy scalar would lift arrays of float32 to float64."""
    for each in fields(moment):
        object.__setattr__(moment, each.name, float(getattr(moment, each.name)))


@dataclass(frozen=True)
class Identity:
    """A person. Plain numbers throughout: `Identity(**json)` rebuilds one from `dataclasses.asdict`.

    The order of the fields is the order in which `random` draws them: to insert one is to change everybody.
    """

    # Shape. "ratio" is relative to the average head: 0.1 is ten per cent more.
    head_width: float = _normal(0.045)  # ratio
    head_height: float = _normal(0.04)  # ratio, of what lies above the eyes
    jaw_width: float = _normal(0.10)  # ratio
    chin_width: float = _normal(0.20)  # ratio
    chin_length: float = _normal(4.5)  # mm
    chin_forward: float = _normal(3.5)  # mm
    cheekbone: float = _normal(2.2)  # mm outward
    cheek: float = _normal(4.2)  # mm outward: full or hollow cheeks
    forehead: float = _normal(2.5)  # mm forward
    brow_ridge: float = _normal(1.8)  # mm forward
    eye_gap: float = _normal(2.1)  # mm that each eye stands further out
    eye_size: float = _normal(0.11)  # ratio
    eye_tilt: float = _normal(0.08)  # radians; positive lifts the outer corners
    eye_depth: float = _normal(1.6)  # mm backward
    eye_height: float = _normal(1.5)  # mm upward
    nose_length: float = _normal(4.0)  # mm
    nose_width: float = _normal(0.20)  # ratio
    nose_projection: float = _normal(3.5)  # mm forward
    nose_hump: float = _normal(1.8)  # mm forward, on the bridge
    nose_tip: float = _normal(2.6)  # mm upward
    mouth_width: float = _normal(2.6)  # mm that each corner stands further out
    mouth_height: float = _normal(2.0)  # mm upward
    upper_lip: float = _normal(0.27)  # ratio of the lip's height
    lower_lip: float = _normal(0.27)  # ratio of the lip's height
    mouth_curve: float = _normal(1.1)  # mm that the corners stand higher at rest
    philtrum: float = _normal(1.0)  # depth of the groove under the nose, in sigma
    ear_size: float = _normal(0.12)  # ratio
    neck_width: float = _normal(0.10)  # ratio
    # Looks. Without a unit: from little to much.
    melanin: float = _uniform(0.0, 1.0)  # palest to darkest skin
    ruddiness: float = _uniform(0.2, 0.9)  # red of cheeks, nose and chin
    iris: float = _uniform(0.0, 1.0)  # along skins.IRIS: brown, green, blue
    brow_thickness: float = _uniform(0.5, 1.5)
    brow_tilt: float = _uniform(-0.12, 0.16)  # slope: positive lifts the outer ends
    brow_arch: float = _uniform(0.3, 1.3)
    brow_height: float = _uniform(-1.5, 2.5)  # mm upward
    hair_tone: float = _uniform(0.0, 1.0)  # along skins.HAIR: black, brown, blond, red, grey
    hairline: float = _uniform(48.0, 70.0)  # mm above the eyes
    hair_volume: float = _uniform(5.0, 26.0)  # mm above the scalp
    hair_part: float = _uniform(-1.0, 1.0)  # which side is fuller
    lip_redness: float = _uniform(0.1, 0.9)
    freckles: float = _uniform(-1.2, 1.0)  # none below 0
    age: float = _uniform(-0.5, 1.0)  # wrinkles and folds; none below 0
    eyelid_crease: float = _uniform(0.0, 1.0)
    lashes: float = _uniform(0.3, 1.0)
    masculinity: float = _uniform(-1.0, 1.0)  # of neck and shoulders; correlated with jaw, brow and beard
    # What `random` draws with more thought.
    brow_tone: float = 0.3  # colour of brows and beard, along skins.HAIR
    beard: float = 0.0  # 0 (none) to 1
    moustache: float = 0.0  # 0 to 1
    hair_length: float = 0.1  # 0 bald, below 0.3 short, up to 1 to the shoulders
    bangs: float = 0.0  # 0 to 1: hair over the forehead
    skin_seed: int = 0  # pores, freckles, moles, single hairs of brows and beard
    hair_seed: int = 0  # strands and clumps
    cloth: tuple[int, int, int] = (90, 100, 130)  # sRGB, 0 to 255

    def __post_init__(self) -> None:
        object.__setattr__(self, "cloth", tuple(int(value) for value in self.cloth))  # JSON has lists only

    @classmethod
    def random(cls, seed: int) -> Self:
        """Somebody, the same for the same seed."""
        rng = np.random.default_rng(seed)
        who: dict[str, Any] = {}
        for each in fields(cls):
            if "sigma" in each.metadata:
                who[each.name] = float(np.clip(rng.normal(), -2, 2) * each.metadata["sigma"])
            elif "range" in each.metadata:
                who[each.name] = float(rng.uniform(*each.metadata["range"]))
        masculinity = who["masculinity"]
        for name, change in {"jaw_width": 0.05, "brow_ridge": 1.2, "chin_length": 2, "neck_width": 0.08}.items():
            who[name] += change * masculinity
        who["brow_thickness"] += 0.2 * masculinity
        who["lashes"] -= 0.3 * max(masculinity, 0)
        if masculinity > 0.1 and rng.random() < 0.6:
            who["beard"] = float(rng.uniform(0.15, 1))
            who["moustache"] = float(rng.uniform(0.2, 1))
        if rng.random() < 0.12 and masculinity > 0:
            who["hair_length"] = 0.0
        else:
            is_long = rng.random() < 0.5 - 0.45 * masculinity
            who["hair_length"] = float(rng.uniform(0.5, 1) if is_long else rng.uniform(0.06, 0.14))
        if rng.random() < 0.25:
            who["bangs"] = float(rng.uniform(0.4, 1))
        if rng.random() < 0.85:  # dark skin mostly goes with dark hair and eyes
            who["hair_tone"] *= 1 - 0.85 * who["melanin"] ** 0.6
            who["iris"] *= 1 - 0.9 * who["melanin"] ** 0.6
        who["brow_tone"] = who["hair_tone"]
        if rng.random() < 0.12:
            who["hair_tone"] = 1.0
        who["skin_seed"], who["hair_seed"] = (int(value) for value in rng.integers(1 << 30, size=2))
        who["cloth"] = tuple(int(value) for value in np.clip(rng.uniform(25, 200) + rng.normal(0, 35, 3), 10, 220))
        return cls(**who)

    def with_face_of(self, source: "Identity", *, keep_tone: bool = True) -> "Identity":
        """The true swap: `source`'s face on this person's skull, hair, ears, neck and clothes.

        `keep_tone` keeps this person's skin tone, which is what a colour-matched swap shows.
        """
        kept = OWN_TO_HEAD + (OWN_TO_SKIN if keep_tone else ())
        return replace(source, **{name: getattr(self, name) for name in kept})


OWN_TO_SKIN = ("melanin", "ruddiness")
OWN_TO_HEAD = (
    *("head_width", "head_height", "ear_size", "neck_width", "masculinity", "cloth"),
    *("hair_tone", "hairline", "hair_volume", "hair_part", "hair_length", "bangs", "hair_seed"),
)


@dataclass(frozen=True)
class Expression:
    """What the face does. Each from 0 (rest) to 1 (full), but for the gaze. Left is image-left throughout."""

    jaw: float = 0.0  # opens
    smile: float = 0.0
    pucker: float = 0.0
    frown: float = 0.0
    surprise: float = 0.0  # brows and upper lids rise
    blink_left: float = 0.0  # the image-left eye, the person's right one
    blink_right: float = 0.0
    gaze_x: float = 0.0  # degrees relative to the head; positive looks to image right
    gaze_y: float = 0.0  # degrees; positive looks up

    def __post_init__(self) -> None:
        make_plain(self)

    def openness(self, side: int) -> float:
        """How far an eye is open: 0 shut, 1 at rest, up to 1.3. `side` is -1 for the image-left eye, 1 for the other.

        The lids follow the gaze and take part in the rest of the face.
        """
        awake = 1 - (self.blink_left if side < 0 else self.blink_right)
        follow = 0.22 * self.surprise - 0.22 * self.smile - 0.15 * self.frown + 0.12 * self.gaze_y / 20
        return max(awake * (1 + follow), 0.0)


@dataclass(frozen=True)
class Pose:
    """How the head is turned, in degrees: yaw first, then pitch, then roll."""

    yaw: float = 0.0  # positive turns the nose to image right
    pitch: float = 0.0  # positive looks up
    roll: float = 0.0  # positive tilts the top of the head to image left

    def __post_init__(self) -> None:
        make_plain(self)

    def matrix(self) -> Array:
        """The rotation (3, 3) float32: points @ matrix.T turns points about the origin."""
        yaw, pitch, roll = np.radians([self.yaw, -self.pitch, self.roll])
        cos, sin = np.cos, np.sin
        about_y = np.array([[cos(yaw), 0, sin(yaw)], [0, 1, 0], [-sin(yaw), 0, cos(yaw)]])
        about_x = np.array([[1, 0, 0], [0, cos(pitch), -sin(pitch)], [0, sin(pitch), cos(pitch)]])
        about_z = np.array([[cos(roll), -sin(roll), 0], [sin(roll), cos(roll), 0], [0, 0, 1]])
        return np.asarray(about_z @ about_x @ about_y, np.float32)


FRONTAL, AT_REST = Pose(), Expression()


# ---------------------------------------------------------------- smooth functions


def smoothstep(value: Any, start: float, end: float) -> Array:
    """0 at `start`, 1 at `end`, level at both: 3 s^2 - 2 s^3. `end` may lie below `start`."""
    share = np.clip((np.asarray(value) - start) / (end - start), 0, 1)
    return np.asarray(share * share * (3 - 2 * share))


def bell(distance: Any, width: Any) -> Array:
    """A Gaussian of height 1 and standard deviation `width`."""
    return np.asarray(np.exp(-0.5 * np.square(distance / width)))


def spot(x: Array, y: Array, centre: tuple[float, float], sigma: tuple[float, float]) -> Array:
    """A Gaussian bump of height 1."""
    across, along = (x - centre[0]) / sigma[0], (y - centre[1]) / sigma[1]
    return np.asarray(np.exp(-0.5 * (across * across + along * along)))


def pair(x: Array, y: Array, centre: tuple[float, float], sigma: tuple[float, float]) -> Array:
    """The same bump on both sides of the face."""
    return spot(np.abs(x), y, centre, sigma)


# ---------------------------------------------------------------- the average head, as a loft

# Columns: t, half width, front z, back z, z of the section's widest point, y.
_SECTIONS = np.array(
    [
        [-130, 0, 60, 60, 60, -107],
        [-121, 13, 74, 45, 60, -111],
        [-112, 25, 84, 38, 60, -111.5],
        [-105, 34, 89, 28, 50, -105],
        [-95, 42.5, 91.5, 14, 36, -95],
        [-82, 50.5, 92.5, -3, 22, -82],
        [-68, 57, 94, -22, 12, -68],
        [-45, 64.5, 93, -55, 2, -45],
        [-20, 70, 91, -80, 0, -20],
        [0, 73, 92, -92, 0, 0],
        [20, 75, 98, -98, 0, 20],
        [35, 75, 98, -97, 0, 35],
    ]
)
_FINE_T = np.arange(-140, 60, 0.5)
_KERNEL = bell(np.arange(-12, 12.5, 0.5), 4.0)  # the sections' corners are rounded over 4 mm
_FINE = [
    np.convolve(np.interp(_FINE_T, _SECTIONS[:, 0], column), _KERNEL / _KERNEL.sum(), "same")
    for column in _SECTIONS.T[1:]
]


def profile(t: Any) -> tuple[Array, Array, Array, Array, Array]:
    """Half width, front z, back z, centre z and y of the horizontal sections at `t`."""
    t = np.asarray(t, float)
    dome = np.sqrt(1 - np.clip((t - 35) / 77.05, 0, 1) ** 2.3)
    width, front, back, centre, y = (np.interp(np.minimum(t, 45), _FINE_T, column) for column in _FINE)
    width = width * smoothstep(t, -130, -124)
    return width * dome, front * dome, back * dome, centre, np.where(t > 20, t, y)


def loft(azimuth: Array, t: Array) -> Array:
    """Points of the average head; azimuth 0 faces the camera, positive to image right."""
    width, front, back, centre, y = profile(t)
    cos = np.cos(azimuth)
    z = centre + np.where(cos > 0, (front - centre) * cos, (centre - back) * cos)
    return np.stack([width * np.sin(azimuth), y + 0 * azimuth, z], -1)


def azimuth_at(turn: Any) -> Array:
    """Azimuth of a position in [-1, 1] around the head: columns stand denser in the face than behind."""
    turn = np.asarray(turn, float)
    return np.asarray(np.pi * (0.5 * turn + 0.5 * turn**3))


_TURNS = np.linspace(-1, 1, 4001)
_AZIMUTHS = azimuth_at(_TURNS)


def turn_at(azimuth: Any) -> Array:
    """The inverse of `azimuth_at`."""
    return np.asarray(np.interp(azimuth, _AZIMUTHS, _TURNS))


COLUMNS = 120  # cells around the head; a grid has one column more, the last on top of the first: textures have ends
ROWS = np.concatenate(  # t of the grid's rows, from crown to throat; four in 0.8 mm where the mouth will open
    [
        35 + 77 * np.sin(np.linspace(np.pi / 2, 0, 16)),
        np.linspace(32, 6, 11),
        np.arange(4, -66.5, -2.0),
        MOUTH_T + np.array([0.8, 0.02, 0, -0.02, -0.8]),
        np.arange(-70, -112, -2.0),
        [-112, -115, -119, -124, -130],
    ]
)
MOUTH_ROW = int(np.flatnonzero(ROWS == MOUTH_T)[0])  # the row that goes inside when the mouth opens
UPPER_T, LOWER_T = MOUTH_T + 0.02, MOUTH_T - 0.02  # the lips' edges, just above and below it
AZIMUTH, TEMPLATE_T = np.meshgrid(azimuth_at(np.linspace(-1, 1, COLUMNS + 1)), ROWS)
TEMPLATE = loft(AZIMUTH, TEMPLATE_T)
TEMPLATE_X, TEMPLATE_Y = TEMPLATE[..., 0], TEMPLATE_T


# ---------------------------------------------------------------- one person's shape


def lip_heights(who: Identity) -> tuple[float, float]:
    """Heights of upper and lower lip in mm."""
    return 7.2 * (1 + who.upper_lip), 8.8 * (1 + who.lower_lip)


def lip_edges(x: Any, who: Identity) -> tuple[Array, Array]:
    """How far the lips' red reaches above and below `MOUTH_T` at template `x`: both positive, mm."""
    x = np.asarray(x, float)
    upper, lower = lip_heights(who)
    across = np.clip(1 - (x / MOUTH_HALF) ** 2, 0, 1)
    bow = 1 - 0.16 * bell(x, 3.2) + 0.10 * bell(np.abs(x) - 6, 3.5)  # Cupid's bow
    return upper * across**0.75 * bow, lower * across**0.6


def lids(along: Any, openness: float, who: Identity) -> tuple[Array, Array]:
    """Heights in mm of upper and lower lid over `along`, -1 at the inner and 1 at the outer corner of the eye."""
    along = np.asarray(along)
    across = np.clip(1 - along * along, 0, 1)
    size = 1 + who.eye_size
    lower = -4.3 * size * across**0.8 * (1 + 0.12 * along)
    upper = 5.4 * size * across**0.62 * (1 - 0.16 * along)
    shut = -2.6 * size * across**0.9
    return shut + (upper - shut) * openness, lower + (shut - lower) * max(1 - openness, 0) ** 2


def eye_half_width(who: Identity) -> float:
    """Half the length of the opening between the lids, mm."""
    return 14.6 * (1 + 0.7 * who.eye_size)


def brow_curve(along: Any, who: Identity) -> tuple[Array, Array]:
    """Template |x| and t of the middle of a brow, `along` from 0 (inner) to 1 (outer)."""
    along = np.asarray(along, float)
    arch = 5.2 * who.brow_arch * np.sin(np.pi * np.minimum(along * 0.92, 1) ** 1.25)
    return 11.5 + 36 * along, 17.5 + who.brow_height + arch - 2.5 * along + 30 * who.brow_tilt * (along - 0.5)


def _nose(x: Array, y: Array, who: Identity) -> Array:
    """Relief of the nose, mm forward."""
    wide = 1 + 0.6 * who.nose_width
    under = y - 2.6 * (1 - bell(x, 8.5 * wide)) * smoothstep(y, -30, -40)  # the lower edge rises to the sides
    heights = [-57, -53, -50, -47, -44, -40.5, -37, -33, -25, -15, -6, 2, 12]
    forward = np.interp(under, heights, [0, 1.2, 4.5, 10.5, 16, 19, 18.8, 17, 13.2, 9, 5.2, 2.6, 0])
    forward = forward * (1 + who.nose_projection / 22) + who.nose_hump * bell(y + 17, 7) * (y > -50)
    width = np.interp(y, [-50, -42, -36, -26, -12, 0, 10], [7.2, 8.0, 7.6, 6.4, 5.8, 6.4, 9]) * wide
    foot = 0.28 * smoothstep(y, -50, -36) * bell(x, 2.1 * width)
    wing = 13 * (1 + 0.7 * who.nose_width)
    z = forward * (0.72 * bell(x, width) + foot)
    z += 3.2 * spot(x, y, (0, -39.5), (7.5 * (1 + 0.5 * who.nose_width), 5.5))
    z += 7.5 * pair(x, y, (wing, -42), (4.4, 4.2)) * smoothstep(y, -49, -44.5)
    return np.asarray(z - 1.8 * pair(x, y, (wing + 6, -44), (3.2, 6)) - 1.5 * pair(x, y, (wing - 6, -41), (2.2, 4)))


def _mouth(x: Array, y: Array, who: Identity) -> Array:
    """Relief of lips, chin and what lies between, mm forward."""
    upper, lower = lip_heights(who)
    inside = np.clip(1 - (x / 27) ** 2, 0, 1) ** 0.8
    above = y - MOUTH_T
    z = 3.5 * spot(x, y, (0, MOUTH_T), (26, 13))
    z += inside * (2.6 + 1.2 * who.upper_lip) * bell(above - 0.5 * upper, 0.42 * upper)
    z += inside * (3.2 + 1.2 * who.lower_lip) * bell(above + 0.45 * lower, 0.42 * lower)
    z -= 2.6 * bell(above, 1.2) * inside + 1.5 * pair(x, y, (26.5, MOUTH_T - 0.5), (4, 4))
    z -= (0.6 + 0.65 * who.philtrum) * spot(x, y, (0, -55), (2.6, 5)) - 0.5 * pair(x, y, (5.5, -55), (2.4, 5))
    z += (4.5 + who.chin_forward) * spot(x, y, (0, -97), (15, 10)) - 3.6 * spot(x, y, (0, -83), (19, 4.6))
    age = max(who.age, 0)
    fold = np.abs(x) - (18 + (-44 - y) * 0.55)  # from the wings of the nose to the corners of the mouth
    z -= (0.7 + 1.6 * age) * bell(fold, 3) * smoothstep(y, -72, -62) * smoothstep(y, -38, -46)
    return np.asarray(z - 1.2 * age * pair(x, y, (24, -84), (5, 10)))


def _proportions(points: Array, x: Array, y: Array, facing: Array, who: Identity) -> None:
    """Warp the head in place: widths, distances, lengths. Slopes stay below 1, or the grid would fold."""
    side = np.sign(x)
    jaw = smoothstep(y, -15, -70) * smoothstep(y, -140, -95) + 0.55 * smoothstep(y, -95, -140)
    chin = smoothstep(y, -74, -104)
    points[..., 0] *= 1 + who.head_width + who.jaw_width * jaw + 0.8 * who.chin_width * chin
    outward = who.eye_gap * pair(x, y, (EYE_X, 3), (17, 16)) + who.mouth_width * pair(x, y, (25, MOUTH_T), (12, 9))
    points[..., 0] += side * (outward + 9 * who.nose_width * pair(x, y, (12, -42), (7, 8))) * facing
    face = 0.25 * smoothstep(y, -120, -75) + 0.75 * smoothstep(y, -74, -47) * bell(x, 22)
    upward = -who.nose_length * smoothstep(y, 0, -40) * face
    upward += who.eye_height * pair(x, y, (EYE_X, 4), (20, 14))
    upward += who.mouth_height * spot(x, y, (0, MOUTH_T), (34, 13))
    upward += 1.1 * pair(x, y, (8.5, MOUTH_T), (6, 6)) - 0.9 * spot(x, y, (0, MOUTH_T), (4, 5))
    upward += (0.9 + who.mouth_curve) * pair(x, y, (25, MOUTH_T), (8, 8))
    upward += who.nose_tip * spot(x, y, (0, -40), (8, 5))
    points[..., 1] += upward * facing - who.chin_length * smoothstep(y, -66, -104)
    points[..., 1] += np.maximum(points[..., 1], 0) * who.head_height


def sculpt(points: Array, x: Array, t: Array, azimuth: Array, who: Identity) -> Array:
    """Points (..., 3) of the average head as they lie on `who`'s; `x`, `t` are their template coordinates."""
    points = points.copy()
    facing = smoothstep(np.cos(azimuth), -0.05, 0.25)
    z = _nose(x, t, who) + _mouth(x, t, who)
    z -= 10 * pair(x, t, (30, 3), (13, 9)) + 4 * pair(x, t, (17, 3), (5, 9))  # sockets
    z += 7.5 * pair(x, t, (EYE_X, -0.5), (10.5, 7.5)) - who.eye_depth * pair(x, t, (31, 0), (16, 11))
    z += (3.5 + who.brow_ridge) * pair(x, t, (25, 17), (17, 6)) + 1.5 * spot(x, t, (0, 16), (10, 8))
    z += who.forehead * spot(x, t, (0, 48), (40, 22))
    z += (3 + who.cheekbone) * pair(x, t, (43, -22), (14, 11)) + 2.5 * pair(x, t, (24, -34), (9, 12))
    z += who.cheek * pair(x, t, (44, -52), (15, 16))
    points[..., 2] += z * facing
    outward = (1.5 + who.cheekbone) * pair(x, t, (58, -18), (16, 14))
    outward += 0.8 * who.cheek * pair(x, t, (56, -52), (18, 20))
    points[..., 0] += np.sign(x) * facing * outward
    _proportions(points, x, t, facing, who)
    return points


# ---------------------------------------------------------------- grids


def grid_triangles(rows: int, columns: int) -> Array:
    """Corner indices (3, N) of a grid's triangles, counter-clockwise seen from outside."""
    corner = (np.arange(rows - 1)[:, None] * columns + np.arange(columns - 1)).ravel()
    right, below = corner + 1, corner + columns
    return np.concatenate([np.stack([corner, below, right]), np.stack([right, below, below + 1])], 1)


def grid_normals(points: Array) -> Array:
    """Unit normals (rows, columns, 3) that point out of a grid that closes on itself sideways."""
    down, right = np.empty_like(points), np.empty_like(points)
    down[1:-1] = points[2:] - points[:-2]
    down[0], down[-1] = points[1] - points[0], points[-1] - points[-2]
    right[:, 1:-1] = points[:, 2:] - points[:, :-2]
    right[:, 0] = right[:, -1] = points[:, 1] - points[:, -2]
    normals = np.cross(down, right)
    length = np.sqrt(np.einsum("ijk,ijk->ij", normals, normals))
    return np.asarray(normals / (length[..., None] + 1e-6))


def grid_noise(rng: np.random.Generator, shape: tuple[int, int], cells: tuple[int, int]) -> Array:
    """Smooth noise of unit variance at `cells` (rows, columns) nodes, bilinear between them."""
    nodes = rng.standard_normal(cells)
    row, column = (np.linspace(0, count - 1, size) for count, size in zip(cells, shape, strict=True))
    across = np.stack([np.interp(column, np.arange(cells[1]), line) for line in nodes])
    return np.stack([np.interp(row, np.arange(cells[0]), line) for line in across.T], 1)


@dataclass(frozen=True)
class Sheet:
    """A part of the actor besides the head: a grid whose last column lies on its first."""

    name: str  # "ear", "neck", "torso" or "hair"
    points: Array  # (rows, columns, 3) float32 at rest
    normals: Array  # (rows, columns, 3) float32, unit
    follow: Array  # (rows, columns) float32: 1 turns with the head, 0 stays
    shade: Array  # (rows, columns) float32: brightness of the material, about 1


def _sheet(name: str, points: Array, follow: Any, shade: Array, normals: Array | None = None) -> Sheet:
    points = points.astype(np.float32)
    normals = grid_normals(points) if normals is None else normals.astype(np.float32)
    follow = np.broadcast_to(np.asarray(follow, np.float32), points.shape[:2])
    return Sheet(name, points, normals, follow, np.broadcast_to(shade, points.shape[:2]).astype(np.float32))


def _ear(side: int, who: Identity) -> Sheet:
    """An ear: a dish of rings, from the hollow of the concha to the rim, leaning out by 48 degrees."""
    ring, angle = np.meshgrid(np.linspace(0, 1, 10), np.linspace(0, 2 * np.pi, 25), indexing="ij")
    u, v = 16 * ring * np.cos(angle) * (1 + 0.22 * np.sin(angle)), 31 * ring * np.sin(angle)
    helix = 4.6 * bell(ring - 0.84, 0.10) * smoothstep(v, -26, -12)
    antihelix = 2.6 * bell(np.hypot(u - 1, 0.62 * (v - 3)) - 9, 2.2) * smoothstep(v, -14, 0)
    relief = helix + antihelix - 5 * spot(u, v, (3, -4), (6, 9)) + 2.5 * spot(u, v, (9, -4), (3, 5))
    relief = np.where(ring > 0.95, -3.5, relief)
    lean = np.radians(48)
    x, z = relief * np.cos(lean) - u * np.sin(lean), u * np.cos(lean) + relief * np.sin(lean)
    where = np.array([side * 1.62])  # azimuth of the ear's middle
    base = sculpt(loft(where, np.array([-8.0])), np.array([side * 70.0]), np.array([-8.0]), where, who)[0]
    size = 1 + who.ear_size
    points = np.stack(
        [base[0] + side * (x * size + 5.5), base[1] - 2 + v * size + 0.12 * z, base[2] - 2 + z * size], -1
    )
    shade = np.clip(0.66 + 0.075 * relief, 0.3, 1)
    if side > 0:
        points, shade = points[:, ::-1], shade[:, ::-1]
    normals = grid_normals(points.astype(np.float32))
    normals[0] = normals[1].mean(0) / np.linalg.norm(normals[1].mean(0))
    return _sheet("ear", points, 1.0, shade, normals)


def _neck(who: Identity) -> Sheet:
    around, down = np.meshgrid(np.linspace(-np.pi, np.pi, 41), np.linspace(0, 1, 22))
    y = -24 - 163 * down
    flare = 11 * smoothstep(down, 0, 0.3) - 3 * smoothstep(down, 0.3, 0.6) + 42 * smoothstep(down, 0.7, 1.1)
    x = (40 + flare) * (1 + who.neck_width) * np.sin(around)
    tendon = 2.2 * bell(np.abs(x) - 40 + 30 * down, 5) * (np.cos(around) > 0)
    relief = tendon + 3 * max(who.masculinity, 0) * spot(x, y, (0, -135), (6, 8))
    depth = 49 - 3 * np.sin(np.pi * down) + 14 * smoothstep(down, 0.7, 1.05) + relief
    points = np.stack([x, y, -14 - 8.8 * down + depth * np.cos(around)], -1)
    under_chin = smoothstep(down, 0.5, 0.3) * (np.cos(around) > 0)
    return _sheet("neck", points, 1 - smoothstep(down, 0.3, 0.85), 0.93 * (1 - 0.35 * under_chin))


def _torso(who: Identity) -> Sheet:
    around, down = np.meshgrid(np.linspace(-np.pi, np.pi, 49), np.linspace(0, 1, 20) ** 1.3)
    fold = 2.2 * np.sin(9 * around + 8 * down + who.hair_part * 5) * smoothstep(down, 0.1, 0.4)
    width = np.interp(down, [0, 0.03, 0.12, 0.3, 0.5, 1], [53, 59, 86, 170, 205, 215]) * (1 + 0.05 * who.masculinity)
    depth = np.interp(down, [0, 0.03, 0.1, 0.3, 1], [55, 61, 72, 85, 100]) + fold
    y = -165 - np.interp(down, [0, 0.12, 0.3, 0.5, 1], [0, 10, 34, 75, 300])
    sin, cos = np.sin(around), np.cos(around)
    x = np.sign(sin) * np.abs(sin) ** 0.8 * (width + fold)
    points = np.stack([x, y - 12 * cos * smoothstep(down, 0.5, 0), -22 + depth * cos], -1)
    stripes = 0.25 * (np.sin(down * 70) > 0.3) if who.hair_part > 0.4 else 0 * down
    return _sheet("torso", points, 0.0, 1 + stripes)


def hair_edge(azimuth: Array, who: Identity, *, to_the_tips: bool) -> Array:
    """Template t where the hair ends, by azimuth: on the skin, or with `to_the_tips` where long hair hangs to."""
    degrees = np.degrees(np.abs(azimuth))
    top = who.hairline - 8 * who.bangs
    edge = np.interp(
        degrees,
        [0, 22, 42, 54, 63, 70, 76, 82, 88, 98, 112, 130, 180],
        [top, top - 1 + 4 * (1 - who.bangs), top - 8, 30, 12, -6, -14, -14, 6, 12, -12, -58, -74],
    )
    if to_the_tips and who.hair_length > LONG:
        edge = np.where(degrees > 56, edge + (-60 - 95 * who.hair_length - edge) * smoothstep(degrees, 56, 70), edge)
    return np.asarray(edge + 4 * who.hair_part * np.sin(azimuth) * (degrees < 50))


HAIR_ROWS, HAIR_COLUMNS = 30, 112  # a hair grid has one column more
HAIR_DOWN = np.linspace(0, 1, HAIR_ROWS) ** 0.85  # how far down the strands each row lies: 0 crown, 1 tips


def _hair(who: Identity) -> Sheet:
    """A cap that stands off the scalp; long hair hangs from the widest part of the head."""
    rng, is_long = np.random.default_rng(who.hair_seed), who.hair_length > LONG
    around = azimuth_at(np.linspace(-1, 1, HAIR_COLUMNS + 1))
    jitter = (1.5 + 1.5 * who.bangs) * rng.standard_normal(HAIR_COLUMNS + 1)
    edge = hair_edge(around, who, to_the_tips=True) + jitter + 4 * (1 - who.bangs) * (np.cos(around) > 0.5)
    edge[-1] = edge[0]
    t = 111.9 + (edge - 111.9) * HAIR_DOWN[:, None]
    azimuth = np.broadcast_to(around, t.shape)
    scalp_t = np.maximum(t, 16.0) if is_long else t
    scalp = loft(azimuth, scalp_t)
    scalp = sculpt(scalp, scalp[..., 0], scalp_t, azimuth, who)
    outward = grid_normals(scalp)
    outward[0] = [0, 1, 0]
    if is_long:  # what hangs stands off sideways, as from an ellipse
        level = np.stack([scalp[..., 0] / 75**2, 0 * t, scalp[..., 2] / 96**2], -1)
        level /= np.linalg.norm(level, axis=-1, keepdims=True) + 1e-9
        outward = np.where(t[..., None] < 24, level, outward)
    lift = _hair_lift(who, rng, azimuth, t)
    points = scalp + outward * lift[..., None]
    points[:, -1] = points[:, 0]  # clumps do not know that the grid closes
    points[0] = points[0].mean(0)
    if is_long:
        drop = np.maximum(16 - t, 0)
        points[..., 1] += t - scalp_t
        points[..., 0] += np.tanh(4 * np.sin(azimuth)) * 2.5 * np.sin(drop / 40) + 0.02 * drop * np.sin(azimuth)
        points[..., 2] -= 0.10 * drop * (np.cos(azimuth) > 0)
    follow = np.where(t < -60, 1 - 0.8 * smoothstep(t, -60, -150), 1.0) if is_long else 1.0
    normals = grid_normals(points)
    normals[0] = [0, 1, 0]
    return _sheet("hair", points, follow, 0.55 + 0.45 * smoothstep(lift, 0, 9), normals)


def _hair_lift(who: Identity, rng: np.random.Generator, azimuth: Array, t: Array) -> Array:
    """How far the hair stands off the scalp, (rows, columns) mm: full above, none where its tips meet the skin."""
    down, is_long = HAIR_DOWN[:, None], who.hair_length > LONG
    clumps = 1.8 * grid_noise(rng, t.shape, (3, 40)) + 2 * grid_noise(rng, t.shape, (2, 16))
    free = who.bangs * smoothstep(np.cos(azimuth), 0.5, 0.75)  # where the hair hangs over the forehead
    falloff = 1 - (down / (0.86 + 0.14 * free)) ** (2 + 3 * free)
    if is_long:
        falloff += (1 - 0.5 * down - falloff) * smoothstep(np.cos(azimuth), 0.62, 0.42)
    lift = (who.hair_volume * (1 + 0.25 * who.hair_part * np.sin(azimuth)) + clumps) * np.clip(falloff, 0, 1)
    lift = 0.6 + lift * (1.0 if is_long else 0.35 + 0.65 * smoothstep(t, -20, 75))
    lift *= 1 - 0.6 * bell(np.degrees(np.abs(azimuth)) - 60, 13) * smoothstep(down, 0.25, 0.7)  # temples
    lift -= 2.2 * (1 - free) * smoothstep(down, 0.8, 0.95)  # tips enter the skin
    least = 5.5 * smoothstep(np.cos(azimuth), 0.62, 0.35) * (1 - 0.4 * down)
    return np.asarray(np.maximum(lift, least) if is_long else lift)


# ---------------------------------------------------------------- landmarks


def _both_sides(right: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points given from the middle to image right, mirrored: from image left to image right."""
    return [(-x, t) for x, t in reversed(right) if x > 0] + list(right)


_JAW = _both_sides(
    [(0, -111), (17, -108.5), (33, -101), (45, -88), (54, -71), (60.5, -52), (65.5, -34), (69, -16), (71, 2)]
)
_NOSE = [(0.0, 0.0), (0.0, -13.0), (0.0, -27.0), (0.0, NOSE_T), *_both_sides([(0, -49), (6, -48), (12, -46.5)])]
_EYE = [(-1.0, 0), (-0.35, 1), (0.35, 1), (1.0, 0), (0.35, -1), (-0.35, -1)]  # along the eye; which lid


def landmark_template(who: Identity, expression: Expression) -> Array:
    """Template coordinates (68, 2) of the iBUG 300-W points; the lids' depend on how far they are open."""
    along = np.array([0.02, 0.25, 0.5, 0.75, 0.98])
    brow = np.stack(brow_curve(along, who), -1)
    brows = np.concatenate([(brow * [-1, 1])[::-1], brow])
    eyes = np.concatenate([_eye_corners(side, who, expression) for side in (-1, 1)])
    x = np.array([-25, -16, -6, 0, 6, 16, 25], float)
    upper, lower = lip_edges(x, who)
    upper[[0, -1]] = UPPER_T - MOUTH_T  # the corners themselves
    outer = np.concatenate([np.stack([x, MOUTH_T + upper], -1), np.stack([x, MOUTH_T - lower], -1)[5:0:-1]])
    inner_x = np.array([-21, -9, 0, 9, 21, 9, 0, -9], float)
    inner = np.stack([inner_x, np.where(np.arange(8) < 5, UPPER_T, LOWER_T)], -1)
    return np.concatenate([_JAW, brows, _NOSE, eyes, outer, inner])


def _eye_corners(side: int, who: Identity, expression: Expression) -> Array:
    """Six points (6, 2) around one eye, in iBUG order: from image left over the upper lid and back."""
    along = np.array([side * place for place, _ in _EYE])
    lid = np.array([which for _, which in _EYE])
    upper, lower = lids(along, expression.openness(side), who)
    height = np.where(lid > 0, upper, lower) * (lid != 0)
    across = along * eye_half_width(who)
    cos, sin = np.cos(who.eye_tilt), np.sin(who.eye_tilt)
    return np.stack([side * (EYE_X + cos * across - sin * height), sin * across + cos * height], -1)


FIVE = np.array([[-EYE_X, 0], [EYE_X, 0], [0, NOSE_T], [-25, UPPER_T], [25, UPPER_T]])


# ---------------------------------------------------------------- the head


class Head:
    """One person's geometry, made once: the face at rest, how it moves, and the parts around it."""

    def __init__(self, who: Identity) -> None:
        self.who = who
        self.rest: Array = sculpt(TEMPLATE, TEMPLATE_X, TEMPLATE_Y, AZIMUTH, who).astype(np.float32)
        self.rest[0] = self.rest[0].mean(0)  # the loft ends short of the crown: close it
        self.shapes = _blend_shapes()
        self.jaw_weight, self.inside = _jaw_weights()
        self.ambient = _ambient(self.rest)
        self.sheets = [_neck(who), _torso(who)]
        if who.hair_length <= LONG:
            self.sheets += [_ear(-1, who), _ear(1, who)]
        if who.hair_length > 0:
            self.sheets.append(_hair(who))

    def deform(self, expression: Expression) -> Array:
        """The head's grid (rows, columns, 3) float32 with the face moved, not yet turned."""
        points = self.rest.copy()
        for name, shape in self.shapes.items():
            amount = getattr(expression, name)
            if amount:
                points += shape * amount
        if expression.jaw > 0:
            angle = np.radians(-JAW_OPENS * expression.jaw)
            cos, sin = np.float32(np.cos(angle) - 1), np.float32(np.sin(angle))
            above, before = points[..., 1] + 18, points[..., 2] - 4  # relative to the hinge
            points[..., 1] += (above * cos + before * sin) * self.jaw_weight
            points[..., 2] += (before * cos - above * sin) * self.jaw_weight
        if expression.jaw > MOUTH_SHUT:
            points[MOUTH_ROW, :, 2] -= self.inside * np.float32(14 * min(1.0, 0.15 + 2.5 * expression.jaw))
        return points

    def locate(self, points: Array, template: Array) -> Array:
        """Where template coordinates (N, 2) lie on a grid that `deform` returned: (N, 3)."""
        x, t = np.asarray(template, float).T
        turn = turn_at(np.arcsin(np.clip(x / profile(t)[0], -0.999, 0.999)))
        column = (turn + 1) / 2 * COLUMNS
        row = np.interp(-t, -ROWS, np.arange(len(ROWS)))
        left = np.minimum(column.astype(int), COLUMNS - 1)
        top = np.minimum(row.astype(int), len(ROWS) - 2)
        right_share, low_share = (column - left)[:, None], (row - top)[:, None]
        upper = points[top, left] * (1 - right_share) + points[top, left + 1] * right_share
        lower = points[top + 1, left] * (1 - right_share) + points[top + 1, left + 1] * right_share
        return np.asarray(upper * (1 - low_share) + lower * low_share)


MOUTH_SHUT = 0.01  # a jaw opened less than this shows no gap


def _blend_shapes() -> dict[str, Array]:
    """By expression: how far it moves each vertex at 1, (rows, columns, 3) float32 mm."""
    x, y, facing, side = TEMPLATE_X, TEMPLATE_Y, smoothstep(np.cos(AZIMUTH), 0, 0.3), np.sign(TEMPLATE_X)
    corner, cheek = pair(x, y, (26, MOUTH_T), (11, 9)), pair(x, y, (38, -40), (14, 13))
    middle = spot(x, y, (0, MOUTH_T), (16, 9))
    still = np.zeros_like(x)
    moves = {
        "smile": [
            side * (6.5 * corner + 2 * cheek),
            6 * corner + 4 * cheek - middle,
            3.2 * cheek - 3.5 * corner - 1.5 * middle,
        ],
        "pucker": [
            -0.3 * x * spot(x, y, (0, MOUTH_T), (24, 13)),
            still,
            6 * spot(x, y, (0, MOUTH_T), (17, 10)),
        ],
        "frown": [
            -2.5 * side * pair(x, y, (14, 19), (9, 8)),
            -4 * pair(x, y, (17, 19), (12, 8)) - 3.2 * corner,
            1.5 * pair(x, y, (12, 19), (8, 7)),
        ],
        "surprise": [still, 7 * pair(x, y, (27, 23), (22, 11)), still],
    }
    return {name: (np.stack(move, -1) * facing[..., None]).astype(np.float32) for name, move in moves.items()}


def _jaw_weights() -> tuple[Array, Array]:
    """How far each vertex follows the jaw (rows, columns), and how much of the mouth's line opens (columns)."""
    facing = smoothstep(np.cos(AZIMUTH), 0, 0.3)
    opening = np.sqrt(np.clip(1 - (TEMPLATE_X / MOUTH_HALF) ** 2, 0, 1)) * facing
    base = smoothstep(TEMPLATE_Y, -46, -100) * smoothstep(np.cos(AZIMUTH), -0.35, 0.45)
    below = np.arange(len(ROWS))[:, None] > MOUTH_ROW
    distance = np.abs(TEMPLATE_Y - MOUTH_T)
    lower = base + (1 - base) * opening * np.exp(-distance / 22)
    weight = np.where(below, lower, base * (1 - opening * np.exp(-distance / 9))).astype(np.float32)
    weight[MOUTH_ROW] = 0.5 * (weight[MOUTH_ROW - 1] + weight[MOUTH_ROW + 1])
    return weight, opening[MOUTH_ROW].astype(np.float32)


def _ambient(rest: Array) -> Array:
    """How open to the surroundings each vertex of the face lies, (rows, columns) float32: 1 free, less in hollows."""
    facing = smoothstep(np.cos(AZIMUTH), 0, 0.3)
    ring = np.concatenate([rest[:, -21:-1, 2], rest[..., 2], rest[:, 1:21, 2]], 1)
    near, wide = (np.asarray(cv2.GaussianBlur(ring, (0, 0), sigma))[:, 20:-20] for sigma in (3, 7))
    sunk = 0.055 * np.maximum(near - rest[..., 2], 0) + 0.03 * np.maximum(wide - rest[..., 2], 0)
    free = np.clip(1 - sunk, 0.35, 1)
    free -= 0.15 * pair(TEMPLATE_X, TEMPLATE_Y, (8, -49), (5, 2.5))  # under the nose
    free -= 0.25 * pair(TEMPLATE_X, TEMPLATE_Y, (17, 4), (4, 5))  # inner corners of the eyes
    free = 1 - (1 - free) * facing
    return np.asarray(free * (1 - 0.45 * smoothstep(TEMPLATE_T, -108, -120)), np.float32)
