"""Tests of faceswap.skins: textures that are whole, lie where the template says and tell people apart."""

from dataclasses import replace

import numpy as np
import pytest

from faceswap import heads, skins
from faceswap.heads import Array, Identity
from faceswap.skins import Skin

PLAIN = replace(Identity.random(7), freckles=-1.0, beard=0.0, moustache=0.0, age=-0.5)


def texel(texture: Array, x: float, t: float) -> Array:
    """The texel of template point (x, t), a 3 x 3 mean."""
    azimuth = np.arcsin(x / heads.profile(t)[0])
    column, row = round(float(skins.column_at(azimuth))), round(float(skins.row_at(t)))
    return np.asarray(texture[row - 1 : row + 2, column - 1 : column + 2].mean((0, 1)))


@pytest.fixture(scope="module")
def skin() -> Skin:
    return Skin(PLAIN)


@pytest.mark.parametrize("seed", range(4))
def test_textures_are_whole_and_in_range(seed: int) -> None:
    skin = Skin(Identity.random(seed))
    levels = [*skin.surface, *skin.detail, *skin.hair_colour, skin.hair_opacity]
    assert all(level.dtype == np.float32 and np.isfinite(level).all() for level in levels)
    for level in (*skin.surface, *skin.hair_colour):
        assert level[..., :3].min() >= 0
        assert level[..., :3].max() <= 1
    for face in (skin.detail[0][..., 0], skin.hair_opacity):
        assert 0 <= face.min() < 0.01
        assert 0.99 < face.max() <= 1


def test_a_pyramid_keeps_the_mean(skin: Skin) -> None:
    assert [level.shape[1] for level in skin.surface] == [skins.WIDTH >> level for level in range(skins.LEVELS)]
    for level in skin.surface[1:]:
        np.testing.assert_allclose(level.mean((0, 1)), skin.surface[0].mean((0, 1)), rtol=1e-3)


def test_the_same_person_has_the_same_skin() -> None:
    one, other = Skin(Identity.random(5)), Skin(Identity.random(5))
    np.testing.assert_array_equal(one.surface[0], other.surface[0])
    np.testing.assert_array_equal(one.detail[0], other.detail[0])
    np.testing.assert_array_equal(one.hair_opacity, other.hair_opacity)


def test_features_lie_where_the_template_says(skin: Skin) -> None:
    albedo, detail = skin.surface[0][..., :3], skin.detail[0]
    cheek, lip = texel(albedo, 35, -55), texel(albedo, 0, heads.MOUTH_T - 4)
    assert lip[0] / lip[1] > 1.2 * cheek[0] / cheek[1]  # redder
    x, t = (float(value) for value in heads.brow_curve(0.4, PLAIN))
    for side in (-1, 1):
        assert texel(albedo, side * x, t).mean() < 0.6 * cheek.mean()
    assert texel(albedo, 0, heads.MOUTH_T).mean() < 0.8 * lip.mean()  # the line between the lips
    for point, inside in (((0, 0), 1), ((20, -90), 1), ((0, 40), 0), ((0, -116), 0)):
        assert texel(detail, *point)[0] == pytest.approx(inside, abs=0.02)


def test_columns_and_rows_span_the_texture() -> None:
    assert skins.column_at(-np.pi) == pytest.approx(-0.5)
    assert skins.column_at(np.pi) == pytest.approx(skins.WIDTH - 0.5)
    assert skins.column_at(0.0) == pytest.approx(skins.WIDTH / 2 - 0.5, abs=1e-6)
    assert skins.row_at(heads.TOP_T) == pytest.approx(-0.5)
    assert skins.row_at(heads.BOTTOM_T) == pytest.approx(skins.HEIGHT - 0.5)


def test_tables_run_from_light_to_dark() -> None:
    pale, dark = (Skin(replace(PLAIN, melanin=melanin)).tone for melanin in (0.0, 1.0))
    assert pale.mean() > 5 * dark.mean()
    np.testing.assert_array_equal(skins.along_table(skins.HAIR, -1.0), skins.HAIR[0])
    np.testing.assert_array_equal(skins.along_table(skins.HAIR, 2.0), skins.HAIR[-1])
    assert skins.linear([255, 0, 188]).tolist() == pytest.approx([1, 0, 0.5115], abs=1e-3)


def test_a_beard_covers_chin_and_not_nose() -> None:
    shaven, bearded = (Skin(replace(PLAIN, beard=beard, moustache=beard)).surface[0] for beard in (0.0, 1.0))
    where = skins.row_at(-95), skins.row_at(-20)
    chin, nose = (slice(round(float(row)) - 8, round(float(row)) + 8) for row in where)
    middle = slice(skins.WIDTH // 2 - 20, skins.WIDTH // 2 + 20)
    assert bearded[chin, middle, :3].mean() < 0.75 * shaven[chin, middle, :3].mean()
    # The texture's random numbers move on, so that single pores differ: the means agree.
    np.testing.assert_allclose(bearded[nose, middle, :3].mean(), shaven[nose, middle, :3].mean(), rtol=0.05)


def test_hair_is_opaque_at_the_crown_and_ends_ragged(skin: Skin) -> None:
    assert (skin.hair_opacity[: int(skin.opaque_rows)] > 0.98).all()
    assert skin.opaque_rows > skins.HAIR_HEIGHT / 3
    ends = (skin.hair_opacity > 0.5).sum(0)
    assert ends.std() > 3
    assert (skin.hair_opacity[-1] < 0.6).all()
