"""Tests of faceswap.detail: what is known to have been done to footage is found, and done to the face."""

import sys
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest
import test_swap
import torch
from numpy.typing import NDArray

from faceswap import align, blend, color, detail, heads, swap
from faceswap.config import MergeRecipe
from faceswap.detectors import Face
from faceswap.errors import FaceswapError, UsageError
from faceswap.masks import face_mask
from faceswap.render import Actor
from faceswap.video import Frame

Image = NDArray[np.float32]
SIDE = 256
OFF = MergeRecipe(match_sharpness=0, motion_blur=0)


@pytest.fixture(scope="module")
def face() -> Image:
    """A rendered face without noise, sharp to the pixel."""
    shot = Actor(heads.Identity.random(3)).render(size=2 * SIDE, scale=0.6)
    crop = align.crop(shot.image, align.crop_matrix(shot.points, SIDE), SIDE)
    return np.asarray(crop / np.float32(255), np.float32)


@pytest.fixture(scope="module")
def mask() -> Image:
    return face_mask(align.TEMPLATE * SIDE, SIDE)


def blurred(image: Image, deviation: float) -> Image:
    return np.asarray(cv2.GaussianBlur(image, (0, 0), deviation), np.float32)


def noise(seed: int, deviation: float, softness: float = 0.0, side: int = SIDE) -> Image:
    """Noise (side, side, 3) whose grain is as soft as a blur of that deviation in px."""
    found = np.random.default_rng(seed).standard_normal((side, side, 3)).astype(np.float32)
    if softness:
        found = blurred(found, softness)
    return np.asarray(found * (deviation / found.std()), np.float32)


def rough(state: color.State, of: int = 0) -> NDArray[np.float64]:
    return state.values[of, len(detail.BLURS) :]


# ---------------------------------------------------------------- grain


@pytest.mark.parametrize("deviation", [1 / 255, 4 / 255, 0.1])
@pytest.mark.parametrize("softness", [0.0, 0.6, 1.0, 1.2])
def test_noise_is_found_within_a_tenth(deviation: float, softness: float, mask: Image) -> None:
    plain = np.full((SIDE, SIDE, 3), 0.5, np.float32)
    state = detail.measure(plain + noise(0, deviation, softness), plain, mask)
    for part in rough(state).T:
        found, grain = detail.noise_of(part)
        assert found == pytest.approx(deviation, rel=0.1)
        assert grain == pytest.approx(softness, abs=0.1 if softness else 0.4)  # white noise is hardly softer at 0.3
    assert [detail.noise_of(part) for part in rough(state, 1).T] == [(0, 0)] * 3


@pytest.mark.parametrize("deviation", [4 / 255, 8 / 255])
@pytest.mark.parametrize("softness", [0.0, 0.6])
def test_noise_over_a_face_is_told_from_its_skin(deviation: float, softness: float, face: Image, mask: Image) -> None:
    state = detail.measure(face + noise(0, deviation, softness), face, mask)
    for part in (rough(state) - rough(state, 1)).T:
        assert detail.noise_of(part)[0] == pytest.approx(deviation, rel=0.12)


@pytest.mark.parametrize("softness", [0.0, 0.5, 1.0])
def test_grain_is_as_rough_as_what_was_measured(softness: float, mask: Image) -> None:
    plain = np.full((SIDE, SIDE, 3), 0.5, np.float32)
    wanted = detail.measure(plain + noise(0, 0.03, softness), plain, mask)
    grained = detail.grain(plain, rough(wanted), 1.0, (3, 1))
    got = detail.measure(grained, plain, mask)
    np.testing.assert_allclose(rough(got), rough(wanted), rtol=0.2)  # of variances
    assert grained.std() == pytest.approx(0.03, rel=0.1) and grained.mean() == pytest.approx(0.5, abs=1e-3)
    half = detail.grain(plain, rough(wanted), 0.5, (3, 1)) - plain
    np.testing.assert_allclose(half, (grained - plain) / 2, atol=1e-6)


def test_grain_depends_on_frame_and_track_alone(face: Image) -> None:
    same = [detail.grain(face, np.full((2, 3), 1e-3), 1.0, (7, 2)) for _ in range(2)]
    np.testing.assert_array_equal(same[0], same[1])
    for seed in ((8, 2), (7, 3)):
        other = detail.grain(face, np.full((2, 3), 1e-3), 1.0, seed)
        assert abs(np.corrcoef((other - face).ravel(), (same[0] - face).ravel())[0, 1]) < 0.05


def test_grain_of_one_brightness_has_no_colour() -> None:
    plain = np.full((SIDE, SIDE, 3), 0.5, np.float32)
    grained = detail.grain(plain, np.array([[1e-3, 0, 0], [1e-3, 0, 0]]), 1.0, (0, 0))
    assert np.ptp(grained, axis=2).max() < 1e-6 < grained.std()


def test_what_is_rough_in_a_small_face_is_not_taken_for_grain(face: Image) -> None:
    small = align.resize(face, 64)
    seen = detail.measure(small, blurred(small, 1.0), face_mask(align.TEMPLATE * 64, 64))
    assert seen.weight > 0 and not rough(seen).any()
    assert finished(small, OFF.model_copy(update={"grain": 1.0}), seen) is small


# ---------------------------------------------------------------- sharpness


@pytest.mark.parametrize("deviation", [0.8, 1.0, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("strong", [0.0, 2 / 255, 4 / 255])
def test_blur_is_found_within_a_tenth(deviation: float, strong: float, face: Image, mask: Image) -> None:
    footage = blurred(face, deviation) + noise(0, strong or 1e-9)
    gap = detail.blur_gap(detail.measure(footage, face, mask).values)
    assert np.sqrt(gap) == pytest.approx(deviation, rel=0.1)
    back = detail.blur_gap(detail.measure(face, footage, mask).values)
    assert back == pytest.approx(-gap, abs=1e-9)


def test_alike_is_alike_whatever_the_contrast(face: Image, mask: Image) -> None:
    assert detail.blur_gap(detail.measure(face, face, mask).values) == 0
    soft = blurred(face, 1.5)
    gaps = [detail.blur_gap(detail.measure(soft * np.float32(gain) + 0.1, face, mask).values) for gain in (1, 0.5)]
    assert gaps[0] == pytest.approx(gaps[1], rel=0.1)


def test_a_face_that_was_matched_is_as_sharp_as_the_footage(face: Image, mask: Image) -> None:
    for deviation in (1.0, 2.0):
        footage = blurred(face, deviation)
        matched = detail.match_sharpness(face, detail.blur_gap(detail.measure(footage, face, mask).values), 1.0)
        assert abs(detail.blur_gap(detail.measure(footage, matched, mask).values)) < 0.1 * deviation**2
        assert error(matched, footage, mask) < 0.2 * error(face, footage, mask)


def test_a_soft_face_is_sharpened_a_little(face: Image, mask: Image) -> None:
    soft = blurred(face, 1.0)
    matched = detail.match_sharpness(soft, detail.blur_gap(detail.measure(face, soft, mask).values), 1.0)
    assert error(matched, face, mask) < 0.85 * error(soft, face, mask)
    softest = detail.match_sharpness(blurred(face, 4.0), -16.0, 1.0)
    expected = detail.sharpen(blurred(face, 4.0), detail.UNDONE, detail.MOST_SHARPENING)
    np.testing.assert_array_equal(softest, expected)


def error(one: Image, other: Image, mask: Image) -> float:
    return float(np.sqrt((np.square(one - other).mean(2) * mask).sum() / mask.sum()))


def test_sharpening_steepens_edges_and_keeps_what_is_flat() -> None:
    step = np.full((32, 32, 3), 0.3, np.float32)
    step[:, 16:] = 0.6
    soft = blurred(step, 1.5)
    weak, strong = (detail.sharpen(soft, amount, 1.5) for amount in (0.5, 2.0))
    slopes = [np.abs(np.diff(image[16, :, 0])).max() for image in (soft, weak, strong)]
    assert slopes[0] < slopes[1] < slopes[2]
    np.testing.assert_allclose(strong[:, :4], 0.3, atol=1e-5)
    wild = detail.sharpen(np.random.default_rng(0).uniform(0, 1, (9, 9, 3)).astype(np.float32), 2.0)
    assert wild.min() >= 0 and wild.max() <= 1


# ---------------------------------------------------------------- motion


def test_motion_blur_is_a_line_of_its_length() -> None:
    dot = np.zeros((41, 41, 3), np.float32)
    dot[20, 20] = 1
    for trail in ((9.0, 0.0), (0.0, 6.0), (5.0, -7.0), (-5.0, 7.0)):
        line = detail.motion_blur(dot, trail, 1.0)[..., 0].astype(np.float64)
        y, x = np.indices(line.shape) - 20.0
        assert line.sum() == pytest.approx(1, abs=1e-5)
        assert (line * x).sum() == pytest.approx(0, abs=1e-5) and (line * y).sum() == pytest.approx(0, abs=1e-5)
        length = np.hypot(*trail)
        along, across = (trail[0] * x + trail[1] * y) / length, (trail[1] * x - trail[0] * y) / length
        assert (line * along**2).sum() == pytest.approx(length**2 / 12, rel=0.1)
        assert (line * across**2).sum() < 0.4  # px²: what sampling between pixels makes


def smeared(face: Image, length: int, axis: int) -> Image:
    kernel = np.full((1, length) if axis == 0 else (length, 1), 1 / length)
    return np.asarray(cv2.filter2D(face, -1, kernel), np.float32)


@pytest.mark.parametrize("axis", [0, 1])
def test_the_trail_is_what_the_footage_shows_and_the_way_allows(axis: int, face: Image, mask: Image) -> None:
    def unit(length: float) -> tuple[float, float]:
        return (length, 0.0) if axis == 0 else (0.0, length)

    seen = detail.measure(smeared(face, 9, axis), face, mask)
    x, y = detail.trail_of(seen, unit(40.0))
    assert (5 < x < 11 and y == 0) if axis == 0 else (5 < y < 11 and x == 0)
    assert np.hypot(*detail.trail_of(seen, unit(8.0))) == pytest.approx(4)  # no longer than half the way
    assert np.hypot(*detail.trail_of(seen, unit(1.0))) == 0
    assert np.hypot(*detail.trail_of(seen, unit(40.0)[::-1])) < 4  # smeared the other way
    for footage in (face, blurred(face, 2.0)):  # sharp in spite of the way, or out of focus
        assert np.hypot(*detail.trail_of(detail.measure(footage, face, mask), unit(40.0))) < 3
    assert detail.trail_of(color.NOTHING, unit(40.0)) == (0, 0)


def test_the_way_of_a_face() -> None:
    middles = {index: np.array([3.0 * index, -index]) for index in (0, 1, 2, 5, 9)}
    assert [detail.way(middles, index) for index in (0, 1, 2)] == [(3, -1)] * 3
    assert detail.way(middles, 5) == detail.way(middles, 9) == (0, 0)
    assert detail.way({4: np.zeros(2), 6: np.array([4.0, 2.0])}, 5) == (2, 1)


def test_motion_blur_lowers_the_error_where_there_was_motion(face: Image, mask: Image) -> None:
    footage = smeared(face, 9, 0)
    seen = detail.measure(footage, face, mask)
    recipe = MergeRecipe(match_sharpness=0, motion_blur=1)
    moved = finished(face, recipe, seen, moved=(18.0, 0.0))
    assert error(moved, footage, mask) < 0.5 * error(face, footage, mask)
    isotropic = finished(face, MergeRecipe(match_sharpness=1, motion_blur=0), seen)
    assert error(moved, footage, mask) < error(isotropic, footage, mask)


# ---------------------------------------------------------------- all of it


def finished(
    face: Image, recipe: MergeRecipe, seen: color.State, moved: tuple[float, float] = (0.0, 0.0), frame: int = 0
) -> Image:
    return detail.finish(face, recipe, steady=seen, now=seen, moved=moved, pixel=1.0, seed=(frame, 0))


@pytest.mark.parametrize("moved", [(0.0, 0.0), (20.0, 5.0)])
def test_strength_0_is_the_face_itself(face: Image, mask: Image, moved: tuple[float, float]) -> None:
    seen = detail.measure(smeared(face, 9, 0) + noise(0, 0.03), face, mask)
    assert finished(face, OFF, seen, moved) is face and not detail.matching(OFF)
    assert detail.sharpen(face, 0) is detail.match_sharpness(face, 4.0, 0) is detail.motion_blur(face, (9, 9), 0)
    assert detail.grain(face, rough(seen), 0, (0, 0)) is face
    everything = MergeRecipe(match_sharpness=1, motion_blur=1, grain=1)
    assert finished(face, everything, color.NOTHING, moved) is face
    assert finished(face, everything, detail.measure(face, face, mask), moved) is face


@pytest.mark.parametrize("deviation", [1.2, 2.5])
def test_matching_lowers_the_error_and_grain_adds_the_noise_and_no_more(
    deviation: float, face: Image, mask: Image
) -> None:
    soft, strong = blurred(face, deviation), 5 / 255
    seen = detail.measure(soft + noise(1, strong), face, mask)
    matched = finished(face, MergeRecipe(), seen)
    assert error(matched, soft, mask) < 0.3 * error(face, soft, mask)
    grained = finished(face, MergeRecipe(grain=1), seen, frame=1)
    assert error(grained, matched, mask) == pytest.approx(strong, rel=0.12)
    np.testing.assert_array_equal(grained, finished(face, MergeRecipe(grain=1), seen, frame=1))


def test_states_are_smoothed_over_time(face: Image, mask: Image) -> None:
    soft = blurred(face, 1.5)
    states = {i: detail.measure(soft + noise(i, 6 / 255), face, mask) for i in range(9)}
    gaps = [detail.blur_gap(states[i].values) for i in range(9)]
    calm = [detail.blur_gap(color.smooth(states, i, 8).values) for i in range(9)]
    assert np.std(calm) < 0.6 * np.std(gaps) and np.mean(calm) == pytest.approx(1.5**2, rel=0.15)


@pytest.mark.parametrize("shape", [(1, 1), (2, 90), (40, 40)])
@pytest.mark.parametrize("kind", ["black", "white", "flat", "wild"])
def test_degenerate_faces_and_masks_do_no_harm(kind: str, shape: tuple[int, int]) -> None:
    level = {"black": 0.0, "white": 1.0, "flat": 0.4}.get(kind)
    wild = np.random.default_rng(0).integers(0, 2, (*shape, 3)).astype(np.float32)
    face = wild if level is None else np.full((*shape, 3), level, np.float32)
    recipe = MergeRecipe(match_sharpness=1, motion_blur=1, grain=2, sharpen=2)
    rng = np.random.default_rng(1)
    for mask in (np.zeros(shape), np.ones(shape), np.eye(*shape), rng.uniform(0, 1, shape), np.full(shape, 1e-9)):
        for footage in (face, wild, np.full_like(face, 0.5)):
            seen = detail.measure(footage, face, mask.astype(np.float32))
            assert np.isfinite(seen.values).all()
            changed = finished(face, recipe, seen, (30.0, 10.0))
            assert changed.shape == face.shape and changed.dtype == np.float32
            assert np.isfinite(changed).all() and changed.min() >= 0 and changed.max() <= 1


def test_a_face_is_scaled_about_its_middle() -> None:
    matrix = align.crop_matrix(align.TEMPLATE * 90 + (40, 60), 128)
    assert detail.scaled(matrix, 128, 1.0) is matrix
    np.testing.assert_allclose(detail.middle(matrix, 128), align.TEMPLATE.mean(0) * 90 + (40, 60))
    for by in (0.9, 1.1):
        larger = detail.scaled(matrix, 128, by)
        assert align.scale_of(larger) == pytest.approx(align.scale_of(matrix) / by)
        np.testing.assert_allclose(detail.middle(larger, 128), detail.middle(matrix, 128))
        lying = [align.apply(align.invert(one), align.TEMPLATE * 128) for one in (matrix, larger)]
        widths = [np.hypot(*(points[1] - points[0])) for points in lying]
        assert widths[1] == pytest.approx(by * widths[0])


# ---------------------------------------------------------------- in the swap


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return test_swap.weights(tmp_path_factory.mktemp("model") / "pair.safetensors")


def swapper(model: Path, **merge: object) -> swap.Swapper:
    return swap.Swapper(model, MergeRecipe.model_validate(merge), torch.device("cpu"))


def walking(frames: int = 9, pace: float = 6) -> list[tuple[Frame, list[Face]]]:
    """A face that walks through noise, and a stranger to every track."""
    given = []
    for i in range(frames):
        image = np.random.default_rng(i).integers(60, 190, (200, 240, 3), dtype=np.uint8)
        followed, other = replace(test_swap.face_at(70 + pace * i, 90), track=0), test_swap.face_at(40, 160, 15)
        given.append((Frame(i, Fraction(i, 25), Path("some.mp4"), image), [followed, other]))
    return given


ALL = {"match_sharpness": 1.0, "motion_blur": 1.0, "grain": 1.0, "sharpen": 0.5, "steady": 2, "mask": "landmarks"}


def test_a_video_in_parts_is_the_same_bit_for_bit(model: Path) -> None:
    given, drawer = walking(), swapper(model, **ALL)
    assert drawer.reach == 2
    whole = [out.image for out, _ in drawer(given)]
    part = [out.image for out, _ in swapper(model, **ALL)(given[2:9])]
    for index in (4, 5, 6):  # with all that they depend on
        np.testing.assert_array_equal(part[index - 2], whole[index])
    assert swapper(model, steady=0, motion_blur=1).reach == 1 and swapper(model, steady=0, motion_blur=0).reach == 0


@pytest.mark.parametrize(
    ("pace", "steady", "frames"),
    [(0, 12, [0, 4, 8]), (0, 2, [0, 2, 4, 6, 8]), (0, 0, [*range(10)]), (6, 12, [*range(10)])],
)
def test_who_is_averaged_is_looked_at_now_and_then(
    model: Path, monkeypatch: pytest.MonkeyPatch, pace: float, steady: int, frames: list[int]
) -> None:
    looked: list[int] = []
    real = swap.seen

    def seen(frame: Frame, laid: swap.Laid) -> color.State:
        looked.append(frame.index)
        return real(frame, laid)

    monkeypatch.setattr(swap, "seen", seen)
    given = [(frame, faces[:1]) for frame, faces in walking(10, pace)]
    whole = [out.image for out, _ in swapper(model, **ALL | {"steady": steady})(given)]
    assert sorted(looked) == frames, "and whoever moves in every frame"
    if steady == 2:
        part = [out.image for out, _ in swapper(model, **ALL)(given[1:])]
        np.testing.assert_array_equal(part[3], whole[4])
    looked.clear()
    swapped = [count for _, count in swapper(model, **ALL | {"steady": 12})(given[1:3])]
    assert swapped == [1, 1] and sorted(looked) == [1, 2], "where nothing is to be averaged each frame is"


def test_nothing_changes_outside_the_mask(model: Path) -> None:
    given = walking(3)
    plain = [out.image for out, _ in swapper(model, **ALL | {"match_sharpness": 0, "grain": 0, "sharpen": 0})(given)]
    full = [out.image for out, _ in swapper(model, **ALL)(given)]
    for (frame, _), one, other in zip(given, plain, full, strict=True):
        kept = (one == frame.image).all(2)
        assert (kept & (other != frame.image).any(2)).mean() < 0.002  # a pixel drawn like the footage by chance
        assert (one != other).any(2).mean() > 0.05
        assert kept[:10].all() and (other[:10] == frame.image[:10]).all()


def test_mask_0_stays_bit_for_bit() -> None:
    image = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    face, shut = np.full((32, 32, 3), 0.5, np.float32), np.zeros((32, 32), np.float32)
    shut[10:20, 10:20] = 1
    place, calls = np.array([[1.0, 0, -16], [0, 1, -16]]), []

    def finish(drawn: Image) -> Image:
        calls.append(drawn.shape)
        return np.ones_like(drawn)

    pixels, shown = blend.lay_in(image, (0, 0, 64, 64), face, shut, place, blend.feather, finish)
    assert calls == [(64, 64, 3)]
    np.testing.assert_array_equal(pixels[~shown], image[~shown])
    assert (pixels[shown & (cv2.erode(shown.astype(np.uint8), np.ones((3, 3))) > 0)] == 255).all()


def test_scale_makes_the_face_larger_in_the_frame(model: Path) -> None:
    frame, face = test_swap.frame(), test_swap.face_at(80, 80)
    areas = []
    for scale in (0.85, 1.0, 1.2):
        ((out, _),) = swapper(model, scale=scale, mask="landmarks")([(frame, [face])])
        areas.append(int((out.image != frame.image).any(2).sum()))
    assert areas[0] < 0.85 * areas[1] and areas[2] > 1.25 * areas[1]


def test_the_users_own_mask_stays_in_its_place_whatever_the_scale(model: Path, tmp_path: Path) -> None:
    own = np.zeros((64, 64), np.uint8)
    own[12:52, 12:32] = 255
    cv2.imwrite(str(tmp_path / "face.mask.png"), own)
    frame, face = test_swap.frame(), replace(test_swap.face_at(80, 80), mask=tmp_path / "face.png")
    edges = []
    for scale in (0.8, 1.0, 1.25):  # which would move the left edge by 6 px and more
        ((out, _),) = swapper(model, scale=scale, mask="landmarks", blend="alpha")([(frame, [face])])
        edges.append(int(np.nonzero((out.image != frame.image).any(2).sum(0) > 10)[0].min()))
    assert np.ptp(edges) <= 3


def test_a_thin_line_of_a_mask_shows_nothing() -> None:
    face, mask = np.zeros((600, 21, 3), np.float32), np.zeros((600, 21), np.float32)
    mask[:, 1:20] = 1
    assert np.isfinite(detail.measure(face, face, mask).values).all()
    mask[:, 17:] = 0
    assert detail.measure(face, face, mask) is color.NOTHING


def test_the_targets_mask_is_drawn_only_if_asked_for(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    real = swap.draw

    def draw(*given: Any) -> Any:
        drawn.append(given[2])
        for face, mask in real(*given):
            yield face, mask if given[2] == swap.SOURCE else np.zeros_like(mask)

    monkeypatch.setattr(swap, "draw", draw)
    counts = {}
    for name in ("learned", "landmarks", "target", "product", "union"):
        drawn.clear()
        ((_, counts[name]),) = swapper(model, mask=name)([(test_swap.frame(), [test_swap.face_at(80, 80)])])
        assert (swap.TARGET in drawn) == (name in ("target", "product", "union"))
    assert counts == {"learned": 1, "landmarks": 1, "target": 0, "product": 0, "union": 1}
    with pytest.raises(UsageError, match=r"merge\.mask: no mask called 'learnt'; did you mean 'learned'\?"):
        swapper(model, mask="learnt")


# ---------------------------------------------------------------- a restorer


class FakeSession:
    """An onnxruntime that runs a function."""

    def __init__(self, work: Callable[[Image], Any], *shapes: list[Any]) -> None:
        self.work, self.shapes, self.seen = work, shapes or ([1, 3, 512, 512],), list[Image]()

    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(name=f"input{i}", shape=shape) for i, shape in enumerate(self.shapes)]

    def run(self, names: None, given: dict[str, Image]) -> list[Any]:
        (image,) = given.values()
        self.seen.append(image)
        return [self.work(image)]


def restorer(monkeypatch: pytest.MonkeyPatch, folder: Path, session: FakeSession | Exception) -> detail.Restorer:
    def start(path: str, providers: list[str]) -> FakeSession:
        assert providers == ["CPUExecutionProvider"]
        if isinstance(session, Exception):
            raise session
        return session

    there = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    fake = SimpleNamespace(InferenceSession=start, get_available_providers=lambda: there)
    monkeypatch.setitem(sys.modules, "onnxruntime", fake)
    (folder / "restorer.onnx").write_bytes(b"weights")
    return detail.Restorer(folder / "restorer.onnx")


def test_a_restorer_gets_a_face_that_lies_as_in_ffhq(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, face: Image
) -> None:
    session = FakeSession(lambda image: image, ["batch", 3, 512, None])
    restore = restorer(monkeypatch, tmp_path, session)
    same = restore(face, 1.0)
    (image,) = session.seen
    assert image.shape == (1, 3, 512, 512) and image.dtype == np.float32
    assert -1 <= image.min() < -0.3 and 0.3 < image.max() <= 1
    back = align.crop(image[0].transpose(1, 2, 0), align.similarity(detail.FFHQ * 512, align.TEMPLATE * 512), 512)
    inside = face_mask(align.TEMPLATE * 512, 512) > 0
    assert np.abs(back / 2 + 0.5 - align.resize(face, 512))[inside].mean() < 0.01
    assert same.shape == (512, 512, 3) and np.abs(same - align.resize(face, 512))[inside].mean() < 0.01
    np.testing.assert_array_equal(restore(face, 0.0), np.clip(align.resize(face, 512), 0, 1))
    bright = restorer(monkeypatch, tmp_path, FakeSession(np.ones_like))
    np.testing.assert_allclose(bright(face, 1.0)[inside], 1, atol=1e-6)
    half = (1 + np.clip(align.resize(face, 512), 0, 1)) / 2
    np.testing.assert_allclose(bright(face, 0.5)[inside], half[inside], atol=1e-6)


def test_a_restored_face_is_laid_in(model: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    restorer(monkeypatch, tmp_path, FakeSession(lambda image: np.full_like(image, 0.6)))
    path = str(tmp_path / "restorer.onnx")
    given = (test_swap.frame(), [test_swap.face_at(80, 80)])
    ((out, count),) = swapper(model, restore=path, color="none", mask="landmarks", blend="feather")([given])
    assert count == 1 and np.abs(out.image[75:90, 75:85].astype(int) - 204).max() <= 1


def test_a_restorer_that_cannot_be_used_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, face: Image, model: Path
) -> None:
    with pytest.raises(UsageError, match=r"gone\.onnx: no such file; expected a face restorer in ONNX"):
        swapper(model, restore=str(tmp_path / "gone.onnx"))
    with pytest.raises(FaceswapError, match=r"not read as ONNX \(bad protobuf\); export it anew"):
        restorer(monkeypatch, tmp_path, ValueError("bad\nprotobuf"))
    for shapes in ([[1, 3, 256, 256]], [[1, 3, 512, 512], []], [[1, 512]]):
        with pytest.raises(UsageError, match=r"expected one input \[1, 3, 512, 512\], found "):
            restorer(monkeypatch, tmp_path, FakeSession(lambda image: image, *shapes))
    small = restorer(monkeypatch, tmp_path, FakeSession(lambda image: image[..., :256]))
    with pytest.raises(FaceswapError, match=r"expected an image \[1, 3, 512, 512\], found \[1, 3, 512, 256\]"):
        small(face, 1.0)

    def fails(image: Image) -> Image:
        raise RuntimeError("out of memory")

    with pytest.raises(FaceswapError, match=r"does not run \(out of memory\)"):
        restorer(monkeypatch, tmp_path, FakeSession(fails))(face, 1.0)
    broken = restorer(monkeypatch, tmp_path, FakeSession(lambda image: image * np.float32(np.nan)))
    with pytest.raises(FaceswapError, match="expected an image"):
        broken(face, 1.0)
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(FaceswapError, match=r"onnxruntime is not installed; pip install 'faceswap\[restore\]'"):
        detail.Restorer(tmp_path / "restorer.onnx")
