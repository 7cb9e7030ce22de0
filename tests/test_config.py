"""Tests of faceswap.config: a recipe is read, checked, explained and written back."""

import random
from pathlib import Path

import pytest
from pydantic import ValidationError

from faceswap import config
from faceswap.config import Recipe
from faceswap.errors import RecipeError

CONFIGS = Path(__file__).parents[1] / "configs"
ODD_NAMES = ("df", 'say "é"', "a\\b", "# no comment")


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("model.resolution=128", 128),
        ("data.warp=0.1", 0.1),
        ("data.warp=1e-2", 0.01),
        ("data.holdout = 0.2 ", 0.2),
        ("model.name=liae", "liae"),
        ('model.name="liae"', "liae"),
        ("extract.format=jpg", "jpg"),
        ("extract.format= jpg ", "jpg"),
        ("extract.detector=a=b", "a=b"),
        ("train.images=12_000", 12000),
        ("seed=7", 7),
    ],
)
def test_a_setting_is_toml_or_else_text(setting: str, value: object) -> None:
    found: object = config.load(settings=[setting])
    for key in setting.partition("=")[0].strip().split("."):
        found = getattr(found, key)
    assert found == value and type(found) is type(value)


def test_settings_lie_over_the_file_and_the_last_one_counts(tmp_path: Path) -> None:
    path = written(tmp_path, "seed = 1\n[train]\nimages = 5\nkeep = 4\n")
    recipe = config.load(path, ["train.images=6", "train.images=7", "loss.l1=0"], seed=2)
    assert (recipe.seed, recipe.train.images, recipe.train.keep, recipe.loss.l1) == (2, 7, 4, 0)
    assert config.load(path).seed == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[train]\nimage = 5", r"recipe.toml: unknown key 'train.image'; did you mean 'images'\?"),
        ("[modle]", r"recipe.toml: unknown key 'modle'; did you mean 'model'\?"),
        (
            "[merge]\nzzz = 1",
            r"unknown key 'merge.zzz'; known: batch, blend, codec, color, crf, erode, feather, grain, mask",
        ),
        ("[train]\nimages = 'many'", r"recipe.toml: train.images = 'many': .*integer"),
        ("[extract]\nformat = 'gif'", r"extract.format = 'gif': .*'png' or 'jpg'"),
        ("[data]\nbatch = [1]", r"data.batch = \[1\]: .*integer"),
        ("train = 3", r"recipe.toml: train = 3: expected a section"),
        ("[model]\nname = {}", r"model.name = \{\}: .*string"),
        ("seed = -1", r"recipe.toml: seed = -1: .*greater than or equal to 0"),
        ("[model]\nresolution = 72", r"model.resolution = 72: .*multiple of 16"),
        ("[model]\nresolution = 2048", r"model.resolution = 2048: .*1024"),
        ("[model]\nresolution = 0", r"model.resolution = 0: .*32"),
        ("[data]\nflip = 1.5", r"data.flip = 1.5: .*less than or equal to 1"),
        ("[data]\nholdout = 0", r"data.holdout = 0: .*greater than 0"),
        ("[loss]\nl1 = nan", r"loss.l1 = nan: .*finite"),
        ("[train]\nrate = inf", r"train.rate = inf: .*finite"),
        ("a = 1\nb = = 2", r"recipe.toml: not valid TOML: .*line 2"),
    ],
)
def test_a_mistake_is_named_with_file_key_and_remedy(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(RecipeError, match=message) as caught:
        config.load(written(tmp_path, text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("setting", ["model.resolution", "=3", "", "128"])
def test_a_setting_without_a_value_is_told_the_form(setting: str) -> None:
    with pytest.raises(RecipeError, match=r"expected section\.key=value"):
        config.load(settings=[setting])


def test_a_setting_below_a_value_is_refused() -> None:
    with pytest.raises(RecipeError, match="'seed' is not a section"):
        config.load(settings=["seed=1", "seed.x=1"])


def test_what_is_no_text_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="no such recipe"):
        config.load(tmp_path / "none.toml")
    with pytest.raises(RecipeError, match="cannot be read"):
        config.load(tmp_path)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecipeError, match="cannot be read"):
        config.load(tmp_path / "binary.toml")


@pytest.mark.parametrize("seed", range(5))
def test_to_toml_and_load_are_inverse(tmp_path: Path, seed: int) -> None:
    draw = random.Random(seed)
    settings = [
        f"model.resolution={16 * draw.randint(2, 64)}",
        f"model.width={draw.choice([0, 20])}",
        f"train.rate={draw.random()!r}",
        f"train.decay={draw.random()!r}",
        f"model.name={draw.choice(ODD_NAMES)}",
        f"seed={draw.randrange(2**31)}",
    ]
    recipe = config.load(settings=settings)
    assert config.load(written(tmp_path, recipe.to_toml())) == recipe


@pytest.mark.parametrize(("resolution", "width", "code"), [(64, 16, 128), (128, 24, 256), (256, 48, 256)])
def test_the_dial_sets_width_and_code_unless_they_are_given(resolution: int, width: int, code: int) -> None:
    dial = f"model.resolution={resolution}"
    model = config.load(settings=[dial]).resolved().model
    assert (model.width, model.code) == (width, code)
    model = config.load(settings=[dial, "model.width=40"]).resolved().model
    assert (model.width, model.code) == (40, code)
    model = config.load(settings=[dial, "model.code=64"]).resolved().model
    assert (model.width, model.code) == (width, 64)


def test_the_rate_falls_with_the_square_root_of_the_side_unless_it_is_given() -> None:
    rates = [config.load(settings=[f"model.resolution={side}"]).resolved().train.rate for side in (64, 256)]
    assert rates[0] == pytest.approx(6e-4) and rates[1] == pytest.approx(rates[0] / 2)
    assert config.load(settings=["train.rate=0.01", "model.resolution=256"]).resolved().train.rate == 0.01


def test_from_a_base_the_encoder_learns_slowly_unless_it_is_told() -> None:
    recipe = config.load()
    assert [recipe.resolved(from_base=base).strategy.encoder for base in (False, True)] == [1.0, 0.1]
    assert recipe.changed(strategy={"encoder": 0}).resolved(from_base=True).strategy.encoder == 0
    with pytest.raises(RecipeError, match=r"strategy.encoder.*expected a share from 0 to 1, or -1"):
        config.load(settings=["strategy.encoder=2"])


def test_changed_is_a_checked_copy() -> None:
    recipe = Recipe()
    other = recipe.changed(train={"images": 5}, merge={"max_faces": 1})
    assert (other.train.images, other.merge.max_faces) == (5, 1) and recipe == Recipe()
    assert other.changed(train={"images": 0}, merge={"max_faces": 0}) == recipe
    with pytest.raises(RecipeError, match=r"train\.imges"):
        recipe.changed(train={"imges": 5})


def test_a_recipe_does_not_change_underway() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Recipe().model.resolution = 128  # type: ignore[misc]


def test_every_recipe_that_ships_loads_and_survives_a_round_trip(tmp_path: Path) -> None:
    paths = sorted(p for p in CONFIGS.glob("*.toml") if p.name != config.PROTOCOL)
    assert paths, f"{CONFIGS} holds no recipe"
    for path in paths:
        recipe = config.load(path)
        assert config.load(written(tmp_path, recipe.to_toml())) == recipe


@pytest.mark.parametrize("setting", ["model=liae", "model=5"])
def test_a_value_in_place_of_the_models_section_is_refused(setting: str) -> None:
    with pytest.raises(RecipeError, match="model = "):
        config.load(settings=[setting])


@pytest.mark.parametrize("setting", ["model.resolution=128.0", 'model.resolution="128"', "train.images=true"])
def test_a_number_of_another_kind_is_refused(setting: str) -> None:
    with pytest.raises(RecipeError, match="valid integer"):
        config.load(settings=[setting])


def test_the_dial_works_through_changed() -> None:
    assert Recipe().changed(model={"resolution": 256}).resolved().model.width == 48
