"""A synthetic actor before the camera: one moment in, a picture and the truth about it out.

Convention: pictures are (H, W, 3) uint8 RGB, masks (H, W) float32 in [0, 1], points (x, y) float32 in pixels with pixel
centres at integers. Inside, arrays are planar, (channels, N), and light is linear.

A picture is a sum of *fragments*: a fragment is a bit of surface that covers a known share of one pixel. Triangles are
rasterised at 2 x 2 samples per pixel. A pixel whose four samples show one smooth surface is shaded once, in its
centre; at edges, eyes and mouth each sample is shaded. Hair is a second layer with an opacity of its own. Everything
is a pure function of its arguments: no global state, no random numbers but those a seed asks for.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from faceswap import heads, skins
from faceswap.errors import UsageError
from faceswap.heads import EYE_X, NECK, Array, Expression, Head, Identity, Pose, smoothstep
from faceswap.raster import FAR, OFFSETS, Fragments, barycentric, covered_pixels, rasterise, take

NOTHING, HEAD, EAR, NECK_SKIN, CLOTH, HAIR = -1, 0, 1, 2, 3, 4  # kinds of surface
KINDS = {"ear": EAR, "neck": NECK_SKIN, "torso": CLOTH, "hair": HAIR}
PLAIN, EYE_LEFT, EYE_RIGHT, MOUTH = 0, 1, 2, 3  # parts of the head that are more than skin

EYE_ZONE = (24.0, 16.0)  # mm from the eye's centre that lids, lashes and creases may reach, in x and y
HEAD_HEIGHT = 225.0  # mm, what `scale` refers to
CAMERA = 950.0  # mm from the origin
PLACE = np.array([[0.0], [-8.0], [0.0]], np.float32)  # mm by which the actor stands below the middle of the picture
SMOOTH = 2.5  # depths of a pixel's samples that differ by less than this many pixels belong to one surface
SHADOW_SIDE, SHADOW_REACH = 112, 330.0  # cells and millimetres of the light's depth map
SHADOW_BIAS = (5.0, 11.0)  # mm over which a surface behind another falls into its shadow


@dataclass(frozen=True)
class Light:
    """A key light and its surroundings. Brightness 1 suits the camera."""

    azimuth: float = 35.0  # degrees; 0 from the camera, positive from image right
    elevation: float = 35.0  # degrees above the horizon
    key: float = 1.0  # brightness of the key light
    warmth: float = 0.0  # of the key light: -1 bluish to 1 reddish
    ambient: float = 0.38  # brightness of the surroundings
    fill: float = 0.25  # brightness of a soft light opposite the key

    def __post_init__(self) -> None:
        heads.make_plain(self)

    def direction(self) -> Array:
        """Unit vector (3,) float32 towards the key light."""
        azimuth, elevation = np.radians([self.azimuth, self.elevation])
        level = np.cos(elevation)
        return np.array([np.sin(azimuth) * level, np.sin(elevation), np.cos(azimuth) * level], np.float32)

    def colour(self) -> Array:
        """Linear RGB (3, 1) float32 of the key light."""
        return (1.5 * self.key * np.array([[1 + 0.18 * self.warmth], [1], [1 - 0.22 * self.warmth]])).astype(np.float32)


@dataclass(frozen=True)
class Shot:
    """A picture and the truth about it."""

    image: NDArray[np.uint8]  # (H, W, 3) RGB
    mask: NDArray[np.float32]  # (H, W) in [0, 1]: the face, brows to chin, where no hair covers it
    alpha: NDArray[np.float32]  # (H, W) in [0, 1]: the whole actor
    points: NDArray[np.float32]  # (5, 2) image-left eye, image-right eye, nose tip, image-left and -right mouth corner
    landmarks: NDArray[np.float32]  # (68, 2) iBUG 300-W; eyes follow the lids, inner lips the jaw


# ---------------------------------------------------------------- small tools


def rotate(matrix: Array, vectors: Array) -> Array:
    """`matrix` (3, 3) times `vectors` (3, N). Not BLAS, whose rounding depends on the number of threads."""
    return np.asarray(np.einsum("ij,jn->in", matrix, vectors))


def dot(direction: Array, vectors: Array) -> Array:
    """The product (N,) of a vector (3,) with `vectors` (3, N)."""
    return np.asarray(direction[0] * vectors[0] + direction[1] * vectors[1] + direction[2] * vectors[2])


def normalised(vectors: Array) -> Array:
    """`vectors` (3, N) at unit length."""
    length = np.sqrt(vectors[0] ** 2 + vectors[1] ** 2 + vectors[2] ** 2)
    return np.asarray(vectors / (length + np.float32(1e-6)))


def unit(*vector: float) -> Array:
    """The vector (3,) float32 at unit length."""
    return np.array(vector, np.float32) / (math.sqrt(sum(value * value for value in vector)) + 1e-6)


def mix(base: Array, other: Array, share: Array) -> Array:
    return np.asarray(base + (other - base) * share)


def lookup(texture: Array, column: Array, row: Array) -> Array:
    """Bilinear samples (C, N) of `texture` (H, W, C); the border repeats."""
    count, width = len(column), 8192  # cv2.remap takes at most 32,767 columns
    lines = max(1, -(-count // width))
    where: Array = np.zeros((2, lines * width), np.float32)
    where[0, :count], where[1, :count] = column, row
    where = where.reshape(2, lines, width)
    out = cv2.remap(texture, where[0], where[1], cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.ascontiguousarray(out.reshape(lines * width, -1)[:count].T)


def lookup_level(levels: list[Array], level: int, column: Array, row: Array) -> Array:
    """`lookup` in one level of a pyramid, by coordinates of level 0."""
    level = min(level, len(levels) - 1)
    size = 0.5**level
    return lookup(levels[level], (column + 0.5) * size - 0.5, (row + 0.5) * size - 0.5)


def level_for(pixel: float, texel: float) -> int:
    """The pyramid level whose texels are about as large as a pixel."""
    return max(0, int(np.floor(np.log2(max(pixel / texel, 1e-6)) + 0.3)))


# ---------------------------------------------------------------- mesh, camera, fragments


class Mesh:
    """All the actor's triangles in one list: the head's first, the hair's last, seen from both sides."""

    def __init__(self, head: Head, opaque_rows: float) -> None:
        sheets = head.sheets
        self.head_size = head.ambient.size  # vertices of the head, the first ones
        self.rest = _planar([each.points for each in sheets])  # (3, N): all but the head's
        self.normals = _planar([each.normals for each in sheets])
        self.follow: Array = np.concatenate([each.follow.ravel() for each in sheets])  # the same vertices
        self.shade: Array = np.concatenate([head.ambient.ravel(), *(each.shade.ravel() for each in sheets)])
        self.texture: Array = np.concatenate([_head_texture(), *(_sheet_texture(each) for each in sheets)], 1)
        self.template: Array = np.stack([heads.TEMPLATE_X, heads.TEMPLATE_T]).reshape(2, -1).astype(np.float32)
        grids = [(HEAD, head.ambient.shape)] + [(KINDS[each.name], each.shade.shape) for each in sheets]
        corners, kinds, casting, first, tips = [], [], [], 0, 0
        for kind, (rows, columns) in grids:
            mine = heads.grid_triangles(rows, columns) + first
            casts = _every_second(rows, columns) + first
            if kind == HAIR:
                is_tip = self.texture[1][mine].max(0) >= opaque_rows
                mine = np.concatenate([_both_faces(mine[:, ~is_tip]), _both_faces(mine[:, is_tip])], 1)
                casts = _both_faces(casts)
                tips = 2 * int(is_tip.sum())
            corners.append(mine)
            kinds.append(np.full(mine.shape[1], kind, np.int8))
            casting.append(casts)
            first += rows * columns
        self.corners: Array = np.concatenate(corners, 1)  # (3, T) vertices
        self.tips = self.corners.shape[1] - tips  # the first triangle of the translucent ends of the hair
        self.kinds: Array = np.concatenate([*kinds, [np.int8(NOTHING)]])  # (T + 1,); the last answers for owner -1
        self.casting: Array = np.concatenate(casting, 1)  # (3, N) what throws shadows, coarser
        self.parts = self._parts(head)

    def _parts(self, head: Head) -> Array:
        """Which triangles show eyes or mouth, (T + 1,) int8; the last answers for owner -1."""
        x, t = self.template
        front = (np.cos(heads.AZIMUTH) > 0).ravel()
        mouth = np.zeros(head.rest.shape[:2], bool)
        mouth[heads.MOUTH_ROW] = head.inside > 0.03
        near_eye = front & (np.abs(t) < EYE_ZONE[1])
        out = np.zeros(len(self.kinds), np.int8)
        mine = self.corners[:, self.kinds[:-1] == HEAD]
        for part, inside in (
            (MOUTH, mouth.ravel()),
            (EYE_LEFT, near_eye & (np.abs(x + EYE_X) < EYE_ZONE[0])),
            (EYE_RIGHT, near_eye & (np.abs(x - EYE_X) < EYE_ZONE[0])),
        ):
            out[np.flatnonzero(inside[mine].any(0))] = part
        return out


def _planar(grids: list[Array]) -> Array:
    return np.concatenate([grid.reshape(-1, 3).T for grid in grids], 1)


def _every_second(rows: int, columns: int) -> Array:
    """Triangles of the grid's every second row and column, as indices into the whole grid."""
    keep_rows = np.unique(np.append(np.arange(0, rows, 2), rows - 1))
    keep_columns = np.unique(np.append(np.arange(0, columns, 2), columns - 1))
    index = (keep_rows[:, None] * columns + keep_columns[None]).ravel()
    return np.asarray(index[heads.grid_triangles(len(keep_rows), len(keep_columns))])


def _both_faces(corners: Array) -> Array:
    return np.concatenate([corners, corners[::-1]], 1)


def _head_texture() -> Array:
    column, row = skins.column_at(heads.AZIMUTH), skins.row_at(heads.TEMPLATE_T)
    return np.stack([column.ravel(), row.ravel()]).astype(np.float32)


def _sheet_texture(sheet: heads.Sheet) -> Array:
    """Texture coordinates (2, N): hair has a texture, the rest does not."""
    rows, columns = sheet.points.shape[:2]
    out = np.zeros((2, rows, columns), np.float32)
    if sheet.name == "hair":
        out[0] = np.linspace(0, 1, columns) * skins.HAIR_WIDTH - 0.5
        out[1] = heads.HAIR_DOWN[:, None] * skins.HAIR_HEIGHT - 0.5
    return out.reshape(2, -1)


@dataclass(frozen=True)
class Camera:
    """A pinhole on the z axis that looks at the origin."""

    size: int  # pixels of the square picture
    scale: float  # head height / picture height
    shift: tuple[float, float]  # of the origin from the middle of the picture, in units of its side

    @property
    def pixel(self) -> float:
        """Millimetres that a pixel covers at the origin."""
        return HEAD_HEIGHT / (self.scale * self.size)

    def project(self, points: Array) -> Array:
        """Pixels (2, N) of `points` (3, N)."""
        focal = CAMERA / self.pixel / (CAMERA - points[2])
        x = self.size * (0.5 + self.shift[0]) - 0.5 + focal * points[0]
        return np.stack([x, self.size * (0.5 + self.shift[1]) - 0.5 - focal * points[1]]).astype(np.float32)


class Actor:
    """A person to render; making one takes a while, so keep it."""

    def __init__(self, identity: Identity) -> None:
        self.identity = identity
        self.head = Head(identity)
        self.skin = skins.Skin(identity)
        self.mesh = Mesh(self.head, self.skin.opaque_rows)
        tone = self.skin.tone[:, None]
        self.colours: dict[int, Array] = {
            EAR: tone * np.array([[1.03], [0.86], [0.84]], np.float32),
            NECK_SKIN: tone * np.array([[1.02], [0.95], [0.93]], np.float32),
            CLOTH: skins.linear(identity.cloth)[:, None],
        }

    def render(
        self,
        *,
        pose: Pose = heads.FRONTAL,
        expression: Expression = heads.AT_REST,
        light: Light = Light(),
        size: int = 256,
        background: Array | None = None,
        scale: float = 0.44,
        shift: tuple[float, float] = (0.0, 0.0),
        grain: int | None = None,
    ) -> Shot:
        """The actor at one moment, `size` pixels square.

        `background` is linear RGB (h, w, 3) float32 of any size, dark grey if None. `scale` is the head's height and
        `shift` its place relative to the middle, both in units of the picture's side. `grain` seeds the sensor's noise.
        """
        if size < 8:
            raise UsageError(f"size: expected at least 8 px, found {size}")
        camera, turn = Camera(size, float(scale), (float(shift[0]), float(shift[1]))), pose.matrix()
        face = self.head.deform(expression)
        vertices, normals = self._place(face, turn)
        flat = camera.project(vertices)
        canvas = Canvas(size)
        pieces = list(self._fragments(flat, vertices[2], camera))
        shadow = self._shadow(vertices, normals, light, pieces)
        stage = Stage(self, camera, turn, light, expression, face)
        values = np.concatenate([normals, shadow[None], self.mesh.shade[None], self.mesh.texture])
        for kind, fragments in pieces:
            canvas.add(fragments, *stage.shade(kind, fragments, values, vertices))
        template = np.concatenate([heads.FIVE, heads.landmark_template(self.identity, expression)])
        points = camera.project(_turned(self.head.locate(face, template).T.astype(np.float32), turn)).T
        image = canvas.develop(background, grain)
        return Shot(image, canvas.mask(), canvas.alpha(), points[:5].copy(), points[5:].copy())

    def _place(self, face: Array, turn: Array) -> tuple[Array, Array]:
        """All vertices and normals (3, V) as they stand before the camera."""
        facing = heads.grid_normals(face)
        facing[0] = [0, 1, 0]
        rest, normals, follow = self.mesh.rest, self.mesh.normals, self.mesh.follow
        places = [_turned(face.reshape(-1, 3).T, turn), mix(rest + PLACE, _turned(rest, turn), follow)]
        turned = [rotate(turn, facing.reshape(-1, 3).T), mix(normals, rotate(turn, normals), follow)]
        return np.concatenate(places, 1), np.concatenate(turned, 1)

    def _fragments(self, flat: Array, depth: Array, camera: Camera) -> Iterator[tuple[int, Fragments]]:
        """What the picture shows, by kind of surface."""
        mesh, size = self.mesh, camera.size
        x, y = (flat + 0.5) * 2
        owner, nearest = rasterise(x, y, depth, mesh.corners[:, : mesh.tips], 2 * size)
        tip, tip_nearest = rasterise(x, y, depth, mesh.corners[:, mesh.tips :], 2 * size)
        tip[tip_nearest <= nearest] = -1
        opacity = self._opacity(flat, tip, owner, size)
        tip[opacity < 0.02] = -1
        owner[opacity > 0.98] = -1
        tip[tip >= 0] += mesh.tips
        pixels, samples = covered_pixels((owner >= 0) | (tip >= 0), size)
        share = opacity[samples]
        yield from self._layer(flat, owner[samples], nearest[samples], 1 - share, pixels, camera)
        yield from self._layer(flat, tip[samples], tip_nearest[samples], share, pixels, camera)

    def _layer(
        self, flat: Array, owner: Array, depth: Array, share: Array, pixels: Array, camera: Camera
    ) -> Iterator[tuple[int, Fragments]]:
        """Fragments of one layer: owner, depth and share are (4, N), by sample and pixel."""
        mesh, size = self.mesh, camera.size
        kinds = mesh.kinds[owner]
        close = mesh.parts[owner]
        a, b, c, d = kinds
        plain = (a >= 0) & (a == b) & (a == c) & (a == d) & (np.minimum.reduce([*share]) > 0.98)
        plain &= np.maximum.reduce([*close]) == PLAIN
        plain &= np.maximum.reduce([*depth]) - np.minimum.reduce([*depth]) < SMOOTH * camera.pixel
        whole = np.flatnonzero(plain)
        sample, split = np.nonzero((kinds >= 0) & ~plain)
        sample_kind = kinds[sample, split]
        for kind in np.unique(np.concatenate([a[whole], sample_kind])).tolist():
            mine, some = whole[a[whole] == kind], np.flatnonzero(sample_kind == kind)
            of, which = split[some], sample[some]
            pixel = pixels[np.concatenate([mine, of])]
            triangle = np.concatenate([owner[0][mine], owner[which, of]])
            weight = np.concatenate([np.ones(len(mine), np.float32), 0.25 * share[which, of]])
            x, y = (pixel % size).astype(np.float32), (pixel // size).astype(np.float32)
            x[len(mine) :] += OFFSETS[0][which]
            y[len(mine) :] += OFFSETS[1][which]
            corners = take(mesh.corners, triangle)
            yield kind, Fragments(pixel, weight, triangle, corners, barycentric(flat, corners, x, y))

    def _opacity(self, flat: Array, tip: Array, owner: Array, size: int) -> Array:
        """How much of each sample the ends of the hair cover; `tip` counts from their first triangle."""
        mesh, opacity = self.mesh, np.zeros(len(tip), np.float32)
        samples = np.flatnonzero(tip >= 0)
        corners = take(mesh.corners, tip[samples] + mesh.tips)
        x = (samples % (2 * size)).astype(np.float32) / 2 - 0.25
        y = (samples // (2 * size)).astype(np.float32) / 2 - 0.25
        found = Fragments(samples, samples, samples, corners, barycentric(flat, corners, x, y))
        column, row = found.interpolate(mesh.texture)
        height = found.interpolate(np.concatenate([np.zeros(mesh.head_size, np.float32), mesh.rest[1]])[None])[0]
        opacity[samples] = lookup(self.skin.hair_opacity, column, row)[0]
        opacity[samples[(owner[samples] < 0) & (height > 12)]] = 1  # no see-through outline above the ears
        return opacity

    def _shadow(self, vertices: Array, normals: Array, light: Light, pieces: list[tuple[int, Fragments]]) -> Array:
        """How much of the key light reaches each vertex (V,) that is seen, 0 to 1: a soft look into a depth map."""
        towards, azimuth = light.direction(), math.radians(light.azimuth)
        across = np.array([math.cos(azimuth), 0, -math.sin(azimuth)], np.float32)
        view = rotate(np.stack([across, np.cross(towards, across), towards]).astype(np.float32), vertices)
        cells = SHADOW_SIDE / SHADOW_REACH
        x, y = SHADOW_SIDE / 2 + cells * view[0], SHADOW_SIDE / 2 - cells * view[1]
        nearest = rasterise(x, y, view[2], self.mesh.casting, SHADOW_SIDE)[1].reshape(SHADOW_SIDE, SHADOW_SIDE)
        nearest[[0, -1]] = nearest[:, [0, -1]] = FAR  # what lies beyond the map has no shadow
        seen = np.zeros(vertices.shape[1], bool)
        for _, fragments in pieces:
            seen[fragments.corners] = True
        index = np.flatnonzero(seen)
        x, y, depth = x[index] - 0.5, y[index] - 0.5, view[2][index]
        steps = np.array([(0, 0), (1.2, 0.4), (-1.2, -0.4), (0.4, -1.2), (-0.4, 1.2)], np.float32)
        before = lookup(nearest, (x + steps[:, :1]).ravel(), (y + steps[:, 1:]).ravel()).reshape(len(steps), -1) - depth
        free = 1 - sum(smoothstep(before, *SHADOW_BIAS)) / len(steps)
        turned_away = 0.4 * smoothstep(dot(towards, normals[:, index]), 0.5, -0.3)  # the shading does these already
        out = np.ones(vertices.shape[1], np.float32)
        out[index] = np.maximum(free, turned_away)
        return out


def _turned(points: Array, turn: Array) -> Array:
    """`points` (3, N) turned about the neck, as they stand before the camera."""
    joint = NECK[:, None]
    return np.asarray(rotate(turn, points - joint) + joint + PLACE)


# ---------------------------------------------------------------- shading


class Stage:
    """One moment's light and view: gives fragments their colour."""

    def __init__(
        self, actor: Actor, camera: Camera, turn: Array, light: Light, expression: Expression, face: Array
    ) -> None:
        self.actor, self.camera, self.turn, self.light, self.expression = actor, camera, turn, light, expression
        self.face = face  # the head's grid before it is turned
        self.towards = light.direction()
        self.half = unit(*(self.towards + np.array([0, 0, 1], np.float32)))  # between key light and camera
        self.key = light.colour()

    def shade(self, kind: int, fragments: Fragments, values: Array, vertices: Array) -> tuple[Array, Array | None]:
        """Linear RGB (3, N) of fragments, and for the head how much each belongs to the face (N,).

        `values` (7, V): normal, share of the key light, shade, texture column and row of each vertex.
        """
        found = fragments.interpolate(values)
        normal, shadow, shade = found[:3], np.clip(found[3], 0, 1), found[4]
        if kind == HEAD:
            return self._head(fragments, normal, shadow, shade, found[5:])
        normal = normalised(normal)
        if kind == HAIR:
            return self._hair(fragments, normal, shadow, shade, found[5:], vertices), None
        albedo = self.actor.colours[kind] * shade
        if kind == CLOTH:
            return albedo * self._lit(normal, shadow, np.clip(dot(self.towards, normal), 0, 1), 1), None
        return self._skin(albedo, normal, 0.4, shadow, 1), None

    def _lit(self, normal: Array, shadow: Array, diffuse: Array, ambient: Any) -> Array:
        """Light (3, N) that a matt surface returns; `diffuse` is the key light's share by angle."""
        light = self.light
        fill = light.fill * np.clip(dot(unit(-self.towards[0], 0.15, 0.6), normal) * 0.6 + 0.4, 0, 1)
        sky = 0.5 + 0.5 * normal[1]
        above, below = np.array([[0.95], [1.0], [1.08]], np.float32), np.array([[0.75], [0.62], [0.55]], np.float32)
        around = light.ambient * (below + (above - below) * sky) + fill
        return np.asarray(self.key * (diffuse * shadow * (0.45 + 0.55 * ambient)) + around * ambient)

    def _skin(self, albedo: Array, normal: Array, gloss: Any, shadow: Array, ambient: Any) -> Array:
        """Skin: light that wraps around, red furthest, as it scatters below the surface; two lobes of gloss."""
        cos = dot(self.towards, normal)
        wrap = np.array([[0.30], [0.16], [0.12]], np.float32)
        diffuse = np.clip((cos + wrap) / (1 + wrap), 0, 1)
        diffuse *= 0.85 + 0.15 * diffuse
        soft = np.stack([shadow * (1.35 - 0.35 * shadow), shadow, shadow])
        colour = albedo * self._lit(normal, soft, diffuse, ambient)
        glance = np.clip(dot(self.half, normal), 0, 1) ** 2
        wide = glance**8
        grazing = 1 - np.clip(normal[2], 0, 1)
        fresnel = 0.6 + 1.6 * grazing * grazing * grazing
        shine = (0.11 * wide + 0.16 * wide**4) * gloss * fresnel * shadow * np.clip(cos * 4, 0, 1)
        return np.asarray(colour + 0.5 * shine * self.key)

    def _hair(
        self, fragments: Fragments, normal: Array, shadow: Array, shade: Array, texture: Array, vertices: Array
    ) -> Array:
        """Hair: the strands' direction gives the band of light (Kajiya and Kay, SIGGRAPH 1989)."""
        skin = self.actor.skin
        level = level_for(self.camera.pixel, 0.5)
        albedo = lookup_level(skin.hair_colour, level, texture[0], texture[1]) * shade
        cos = dot(self.towards, normal)
        colour = albedo * self._lit(normal, shadow, np.clip(cos, 0, 1), 1)
        first = vertices.shape[1] - heads.HAIR_ROWS * (heads.HAIR_COLUMNS + 1)
        grid = vertices[:, first:].reshape(3, heads.HAIR_ROWS, heads.HAIR_COLUMNS + 1)
        strand = normalised(np.asarray(np.gradient(grid, axis=1)).reshape(3, -1))
        across = np.zeros((1, vertices.shape[1]), np.float32)
        across[0, first:] = np.sqrt(np.clip(1 - dot(self.half, strand) ** 2, 0, 1))
        sine = fragments.interpolate(across)[0]
        band = (sine**60 * 0.10 + sine**14 * 0.05) * shadow * np.clip(cos + 0.3, 0, 1)
        tone = skin.hair_tone[:, None]
        return np.asarray(colour + band * (3 * tone + 0.12) * self.key * albedo / (tone + 0.01))

    def _head(
        self, fragments: Fragments, normal: Array, shadow: Array, shade: Array, texture: Array
    ) -> tuple[Array, Array]:
        """The head: textured skin with fine relief, and eyes and mouth cut into it; also what belongs to the face."""
        skin = self.actor.skin
        level = level_for(self.camera.pixel, skins.MM_PER_TEXEL)
        red, green, blue, gloss = lookup_level(skin.surface, level, texture[0], texture[1])
        face, slope_across, slope_down = lookup_level(skin.detail, level, texture[0], texture[1])
        albedo = np.stack([red, green, blue])
        normal = normalised(normal - slope_across * self.turn[:, :1] + slope_down * self.turn[:, 1:2])
        look = Look(albedo, normal, gloss, shadow, shade)
        parts = self.actor.mesh.parts[fragments.triangle]
        glints = []
        for side, part in ((-1, EYE_LEFT), (1, EYE_RIGHT)):
            index = np.flatnonzero(parts == part)
            if len(index):
                glints.append((index, self._eye(side, index, fragments.only(index), look)))
        index = np.flatnonzero(parts == MOUTH)
        if self.expression.jaw > heads.MOUTH_SHUT and len(index):
            self._mouth(index, fragments.only(index), look)
        colour = self._skin(look.albedo, look.normal, look.gloss, look.shadow, look.ambient)
        for index, glint in glints:
            colour[:, index] += glint
        return colour, face

    def _rays(self, fragments: Fragments) -> tuple[Array, Array]:
        """Where the camera's rays meet the head's surface and their unit directions, (3, N), before it is turned."""
        at = fragments.interpolate(self.face.reshape(-1, 3).T)
        camera = np.array([[0], [0], [CAMERA]], np.float32) - PLACE - NECK[:, None]
        return at, normalised(at - (rotate(self.turn.T, camera) + NECK[:, None]))

    def _eye(self, side: int, index: Array, fragments: Fragments, look: "Look") -> Array:
        """Cut an eye into the skin, with lids, lashes and crease; returns the glint on it (N,)."""
        who, expression = self.actor.identity, self.expression
        x, t = fragments.interpolate(self.actor.mesh.template)
        cos, sin = math.cos(who.eye_tilt), math.sin(who.eye_tilt)
        outward = side * x - EYE_X
        along = (cos * outward + sin * t) / heads.eye_half_width(who)
        height = cos * t - sin * outward
        openness = expression.openness(side)
        upper, lower = heads.lids(along, openness, who)
        inside = np.abs(along) < 1
        soft = 0.3 * self.camera.pixel + 0.15  # mm: half a sample's width, and a little
        window = smoothstep(upper - height, -soft, soft) * smoothstep(height - lower, -soft, soft) * inside
        ball, facing = self._eyeball(side, fragments, along)
        below, above = np.maximum(upper - height, 0), np.maximum(height - lower, 0)
        lid_shadow = 1 - 0.55 * np.exp(-below / 1.6) - 0.25 * np.exp(-above)
        ball = ball * lid_shadow * (1 - 0.35 * smoothstep(np.abs(along), 0.5, 1))
        skin = self._lid_skin(look.albedo[:, index], along, height, openness)
        look.albedo[:, index] = mix(skin, ball, window)
        looking = rotate(self.turn, facing)
        shown = window > 0.5
        look.normal[:, index] = np.where(shown, looking, look.normal[:, index])
        look.gloss[index] = np.where(shown, 0, look.gloss[index])
        glint = np.clip(dot(self.half, looking), 0, 1)
        return np.asarray((1.6 * glint**420 + 0.05 * glint**60) * window * self.light.key, np.float32)

    def _eyeball(self, side: int, fragments: Fragments, along: Array) -> tuple[Array, Array]:
        """Colour (3, N) of iris, pupil and white, and the ball's unit normals (3, N) before the head is turned."""
        who, expression, radius = self.actor.identity, self.expression, heads.EYEBALL
        at, ray = self._rays(fragments)
        middle = self.actor.head.locate(self.face, np.array([[side * EYE_X, 0.0]]))[0]
        centre = (middle - [0, 0, radius + 1.2]).astype(np.float32)[:, None]
        away = at - centre
        nearing = (away * ray).sum(0)
        root = np.sqrt(np.maximum(nearing * nearing - (away * away).sum(0) + radius * radius, 0))
        facing = (away - ray * (nearing + root)) / radius
        gaze_x, gaze_y = np.radians([expression.gaze_x, expression.gaze_y])
        gaze = [np.sin(gaze_x) * np.cos(gaze_y), np.sin(gaze_y), np.cos(gaze_x) * np.cos(gaze_y)]
        from_pupil = np.arccos(np.clip(dot(np.array(gaze, np.float32), facing), -1, 1)) * radius  # mm on the ball
        spoke = np.arctan2(facing[1] - gaze[1], facing[0] - gaze[0])
        fibres = 1 + 0.18 * np.sin(spoke * 23 + who.skin_seed % 7) * np.sin(spoke * 11 + 2)
        rim = 1.25 - 0.35 * smoothstep(from_pupil, 2, IRIS_RADIUS)
        rim *= 1 - 0.65 * smoothstep(from_pupil, IRIS_RADIUS - 1.3, IRIS_RADIUS)
        iris = skins.iris_colour(who)[:, None] * (fibres * rim * smoothstep(from_pupil, 1.9, 2.5)) + 0.003
        white = WHITE * np.stack([1 + 0 * along, 1 - 0.1 * along**2, 1 - 0.1 * along**2])
        ball = mix(iris, white, smoothstep(from_pupil, IRIS_RADIUS - 0.35, IRIS_RADIUS + 0.35))
        tear_duct = self.actor.skin.tone[:, None] * np.array([[0.9], [0.56], [0.54]], np.float32)
        return mix(ball, tear_duct, smoothstep(-along, 0.80, 0.93)), facing

    def _lid_skin(self, albedo: Array, along: Array, height: Array, openness: float) -> Array:
        """The skin around an eye: crease, bag, lashes."""
        who = self.actor.identity
        upper, lower = heads.lids(along, openness, who)
        awake = heads.lids(along, 1.0, who)[0]
        inside, lashes = np.abs(along) < 1, who.lashes
        crease_at = awake * 0.92 + 2.6 + 1.8 * who.eyelid_crease * inside + 0.6 * (openness - 1)
        ends = smoothstep(1.2 - np.abs(along), 0, 0.5)
        crease = (0.16 + 0.26 * who.eyelid_crease) * heads.bell(height - crease_at, 0.9) * ends
        crease *= 0.4 + 0.6 * min(openness, 1.0)
        bag = 0.12 * heads.bell(height - lower + 4.5, 1.4) * smoothstep(1.1 - np.abs(along), 0, 0.5)
        lid = 0.10 * smoothstep(awake + 3 - height, 0, 2) * smoothstep(height - upper, 0, 1) * inside
        albedo = albedo * ((1 - crease - bag) * (1 - lid))
        shut = min(max(1 - openness * 1.6, 0.0), 1.0)
        above = height - upper
        line = heads.bell(np.where(above > 0, above / (0.65 + 0.55 * lashes), above / (0.5 + 0.7 * shut)), 1)
        line *= (0.6 + 0.38 * max(lashes, shut)) * (smoothstep(along, -1.02, -0.3) * 0.6 + 0.4)
        if openness > 0.25:
            line = line + 0.30 * heads.bell(height - lower, 0.6)
        line = line * smoothstep(1.16 - np.abs(along + 0.02), 0, 0.16)
        flick = 0.5 * lashes * heads.bell(along - 1.08, 0.10) * heads.bell(above - 1, 1.1)
        dark = np.clip(line + flick, 0, 0.95)
        return np.asarray(mix(albedo, LASH, dark) * (1 - 0.15 * (1 - lashes)) ** (dark > 0.01))

    def _mouth(self, index: Array, fragments: Fragments, look: "Look") -> None:
        """Look into the open mouth: teeth and tongue on a curved wall 9 mm behind the lips."""
        jaw = self.expression.jaw
        inner = np.zeros((1, self.actor.mesh.head_size), np.float32)
        columns = heads.COLUMNS + 1
        inner[0, heads.MOUTH_ROW * columns : (heads.MOUTH_ROW + 1) * columns] = self.actor.head.inside > 0.03
        open_here = fragments.interpolate(inner)[0] > 0.02
        index, fragments = index[open_here], fragments.only(np.flatnonzero(open_here))
        at, ray = self._rays(fragments)
        lip = self.actor.head.locate(self.face, np.array([[0.0, heads.UPPER_T]]))[0]
        wall = lip[2] - 9 - 0.9 * (at[0] / 9) ** 2
        x, y, _ = at + ray * ((wall - at[2]) / ray[2])
        x = x / (1 + self.actor.identity.mouth_width / 26)
        down = y - lip[1]  # mm, negative below the upper lip
        colour = np.repeat(0.8 * skins.linear((58, 14, 14))[:, None], len(index), 1)
        tongue = smoothstep(down, 9 - 34 * jaw, 2 - 34 * jaw) * smoothstep(np.abs(x), 19, 13)
        colour = mix(colour, 0.6 * skins.linear((176, 84, 82))[:, None], tongue)
        wave = np.abs(np.sin(x * np.pi / 8.2))
        upper = smoothstep(down - (0.6 * wave + 0.012 * x * x - 4.2), -0.4, 0.4) * smoothstep(np.abs(x), 22, 15)
        colour = mix(colour, skins.linear((236, 226, 208))[:, None] * (0.62 + 0.25 * np.sqrt(wave)), upper)
        wave = np.abs(np.sin(x * np.pi / 5.5))
        lower = smoothstep(0.4 * wave - 30 * jaw - 0.5 - down, -0.4, 0.4) * smoothstep(np.abs(x), 17, 12)
        colour = mix(colour, skins.linear((224, 212, 194))[:, None] * (0.35 + 0.15 * np.sqrt(wave)), lower)
        depth = np.clip(1 - np.abs(at[0]) / 30, 0.3, 1) * (0.35 + 0.65 * smoothstep(3 - down, 0, 5))
        look.albedo[:, index] = colour * depth
        look.gloss[index], look.ambient[index] = 0.25, 0.8
        look.shadow[index] = np.maximum(look.shadow[index], 0.55)
        look.normal[:, index] = unit(*(0.8 * self.turn[:, 2] + np.array([0, 0.2, 0.5])))[:, None]


IRIS_RADIUS = 6.0  # mm
WHITE = 0.62 * skins.linear((216, 205, 199))[:, None]
LASH = np.array([[0.012], [0.008], [0.006]], np.float32)


@dataclass(frozen=True)
class Look:
    """What the head's fragments look like before light falls on them; eyes and mouth change it in place."""

    albedo: Array  # (3, N)
    normal: Array  # (3, N), unit
    gloss: Array  # (N,)
    shadow: Array  # (N,) share of the key light that arrives
    ambient: Array  # (N,) share of the surroundings' light


# ---------------------------------------------------------------- picture


class Canvas:
    """Sums fragments into pixels."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.planes = np.zeros((5, size * size))  # red, green, blue, alpha, face

    def add(self, fragments: Fragments, colour: Array, face: Array | None) -> None:
        """Lay fragments with linear RGB (3, N) on the picture; `face` (N,) goes into the mask."""
        pixel, share, count = fragments.pixel, fragments.share, self.size * self.size
        layers = [*(np.clip(colour, 0, 4) * share), share]
        if face is not None:
            layers.append(face * share)
        for plane, layer in zip(self.planes, layers, strict=False):
            plane += np.bincount(pixel, layer, count)

    def alpha(self) -> NDArray[np.float32]:
        return np.asarray(np.clip(self.planes[3], 0, 1).reshape(self.size, self.size), np.float32)

    def mask(self) -> NDArray[np.float32]:
        mask = np.clip(self.planes[4], 0, self.planes[3]).reshape(self.size, self.size)
        return np.minimum(np.asarray(mask, np.float32), 1)

    def develop(self, background: Array | None, grain: int | None) -> NDArray[np.uint8]:
        """The picture before a background, exposed like a camera does: (H, W, 3) uint8 RGB."""
        shape = (self.size, self.size)
        light = self.planes[:3].T.astype(np.float32).reshape(*shape, 3)
        if background is None:
            behind: Array = np.full((*shape, 3), 0.2, np.float32)
        elif background.shape[:2] != shape:
            behind = np.asarray(cv2.resize(background, shape, interpolation=cv2.INTER_LINEAR))
        else:
            behind = background
        light = light + behind.astype(np.float32) * (1 - self.alpha())[..., None]
        picture = cv2.pow(np.clip(1.3 * light / (1 + 0.55 * light), 0, 1), 1 / 2.2)  # highlights roll off
        if grain is not None:
            picture = picture + 0.010 * np.random.default_rng(grain).standard_normal(picture.shape, np.float32)
        return np.asarray(np.clip(picture * 255 + 0.5, 0, 255), np.uint8)


def background(seed: int, height: int, width: int) -> Array:
    """Something like a room out of focus: linear RGB (height, width, 3) float32."""
    rng = np.random.default_rng(seed)
    side = 192

    def paint() -> Array:
        return skins.linear(np.clip(rng.uniform(20, 215) + rng.normal(0, 22, 3), 5, 245))

    down = np.linspace(0, 1, side, dtype=np.float32)[:, None, None]
    room = np.repeat(paint() * (1 - down) + paint() * down, side, 1)
    for _ in range(rng.integers(4, 14)):
        thing = np.zeros((side, side), np.float32)
        left, top, wide, high = (int(value) for value in rng.uniform(-0.1, 1.1, 4) * side)
        if rng.random() < 0.65:
            cv2.rectangle(thing, (left, top), (left + abs(wide) // 2, top + abs(high)), (1.0,), -1)
        else:
            cv2.circle(thing, (left, top), int(rng.uniform(0.02, 0.2) * side), (1.0,), -1)
        cover = cv2.GaussianBlur(thing, (0, 0), rng.uniform(1, 6))[..., None] * rng.uniform(0.3, 0.9)
        room = room + (paint() - room) * cover
    room = room * (1 + 0.02 * skins.noise(rng, (side, side), 90))[..., None]
    return np.asarray(
        cv2.resize(np.clip(room, 0, 2).astype(np.float32), (width, height), interpolation=cv2.INTER_CUBIC)
    )
