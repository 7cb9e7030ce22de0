"""Tests of faceswap.saehd, on models written in DeepFaceLab's form: what they draw is known from a forward pass of our
own, in NumPy alone and in its layout, that was written from a description of that network."""

import os
import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray

from faceswap import align, checkpoint
from faceswap.cli import main
from faceswap.config import MergeRecipe, Recipe
from faceswap.detectors import Face
from faceswap.errors import CheckpointError, OutputExistsError, UsageError
from faceswap.models import FaceModel
from faceswap.saehd import import_model
from faceswap.swap import SOURCE, TARGET, Swapper, bound, draw
from faceswap.video import Frame

Array = NDArray[Any]

# ------------------------------------------------- the network, NHWC, BGR, kernels (k, k, in, out)


def conv(x: Array, weight: Array, bias: Array, stride: int = 1) -> Array:
    """(B, H, W, I) -> (B, H / stride, W / stride, O), with k // 2 zeros around."""
    k = len(weight)
    padded = np.pad(x, ((0, 0), (k // 2, k // 2), (k // 2, k // 2), (0, 0)))
    high, wide = x.shape[1] // stride, x.shape[2] // stride
    total = np.zeros((len(x), high, wide, weight.shape[3])) + bias
    for dy in range(k):
        for dx in range(k):
            total += padded[:, dy : dy + high * stride : stride, dx : dx + wide * stride : stride] @ weight[dy, dx]
    return total


def depth_to_space(x: Array) -> Array:
    """Channel (2 * dy + dx) * C + c becomes pixel (2 * y + dy, 2 * x + dx) of channel c."""
    count, high, wide, depth = x.shape
    split = x.reshape(count, high, wide, 2, 2, depth // 4).transpose(0, 1, 3, 2, 4, 5)
    return split.reshape(count, high * 2, wide * 2, depth // 4)


def sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))


@dataclass
class Theirs:
    """A model there: its files' content, made of noise where a layer is first used, and what it draws."""

    archi: str = "df"
    resolution: int = 64
    ae: int = 6
    e: int = 4
    d: int = 4
    m: int = 6
    files: dict[str, dict[str, Array]] = field(default_factory=dict)
    names: Callable[[str], str] = str  # what a layer is called in the file

    def __post_init__(self) -> None:
        self.random = np.random.default_rng(7)
        self.root, _, self.letters = self.archi.partition("-")
        noise = self.random.random((1, self.resolution, self.resolution, 3))
        for person in ("source", "target"):
            self(noise, person)  # makes the layers

    def act(self, x: Array, slope: float) -> Array:
        return x * np.cos(x) if "c" in self.letters else np.where(x > 0, x, slope * x)

    def layer(self, file: str, name: str, *shape: int) -> tuple[Array, Array]:
        held, key = self.files.setdefault(file, {}), self.names(name)
        if f"{key}/weight:0" not in held:
            gain = 0.7 if "c" in self.letters else 1.5  # far from 0, x * cos(x) makes chaos of rounding errors
            scale = gain / np.sqrt(np.prod(shape[:-1]))
            held[f"{key}/weight:0"] = (self.random.standard_normal(shape) * scale).astype(np.float32)
            held[f"{key}/bias:0"] = (self.random.standard_normal(shape[-1]) * 0.1).astype(np.float32)
        return held[f"{key}/weight:0"], held[f"{key}/bias:0"]

    def down(self, x: Array, name: str, out: int) -> Array:
        return self.act(conv(x, *self.layer("encoder", f"{name}/conv1", 5, 5, x.shape[3], out), stride=2), 0.1)

    def up(self, x: Array, file: str, name: str, out: int) -> Array:
        return depth_to_space(self.act(conv(x, *self.layer(file, f"{name}/conv1", 3, 3, x.shape[3], out * 4)), 0.1))

    def residual(self, x: Array, file: str, name: str) -> Array:
        c = x.shape[3]
        inner = self.act(conv(x, *self.layer(file, f"{name}/conv1", 3, 3, c, c)), 0.2)
        return self.act(x + conv(inner, *self.layer(file, f"{name}/conv2", 3, 3, c, c)), 0.2)

    def encoder(self, x: Array) -> Array:
        deep = "t" in self.letters
        for number, times in enumerate((1, 2, 4, 8, 8) if deep else (1, 2, 4, 8), 1):
            x = self.down(x, f"down{number}", self.e * times)
            if deep and number == 1:
                x = self.residual(x, "encoder", "res1")
        if deep:
            x = self.residual(x, "encoder", "res5")
        flat = x.transpose(0, 3, 1, 2).reshape(len(x), -1)
        return flat / np.sqrt((flat**2).mean(1, keepdims=True) + 1e-6) if "u" in self.letters else flat

    def inter(self, flat: Array, file: str, out: int) -> Array:
        side = self.resolution // (32 if "d" in self.letters else 16)
        weight, bias = self.layer(file, "dense1", flat.shape[1], self.ae)
        code = flat @ weight + bias
        weight, bias = self.layer(file, "dense2", self.ae, side * side * out)
        x = (code @ weight + bias).reshape(-1, out, side, side).transpose(0, 2, 3, 1)
        return x if "t" in self.letters else self.up(x, file, "upscale1", out)

    def decoder(self, z: Array, file: str) -> tuple[Array, Array]:
        times = (8, 8, 4, 2) if "t" in self.letters else (8, 4, 2)
        x, mask = z, z
        for number, by in enumerate(times):
            x = self.residual(self.up(x, file, f"upscale{number}", self.d * by), file, f"res{number}")
            mask = self.up(mask, file, f"upscalem{number}", self.m * by)
        if "d" in self.letters:
            heads = [("out_conv", 1), ("out_conv1", 3), ("out_conv2", 3), ("out_conv3", 3)]
            parts = [conv(x, *self.layer(file, name, k, k, x.shape[3], 3)) for name, k in heads]
            face = depth_to_space(np.concatenate(parts, 3))
            mask = self.up(mask, file, f"upscalem{len(times)}", self.m)
        else:
            face = conv(x, *self.layer(file, "out_conv", 1, 1, x.shape[3], 3))
        return sigmoid(face), sigmoid(conv(mask, *self.layer(file, "out_convm", 1, 1, mask.shape[3], 1)))

    def __call__(self, x: Array, person: str) -> tuple[Array, Array]:
        """Faces (B, R, R, 3) BGR drawn as `person`, and their masks (B, R, R, 1)."""
        flat = self.encoder(x)
        if self.root == "df":
            return self.decoder(
                self.inter(flat, "inter", self.ae), {"source": "decoder_src"}.get(person, "decoder_dst")
            )
        common = self.inter(flat, "inter_AB", self.ae * 2)
        own = common if person == "source" else self.inter(flat, "inter_B", self.ae * 2)
        return self.decoder(np.concatenate([own, common], 3), "decoder")

    def options(self, **change: Any) -> dict[str, Any]:
        sizes = {"ae_dims": self.ae, "e_dims": self.e, "d_dims": self.d, "d_mask_dims": self.m}
        known = {"archi": self.archi, "resolution": self.resolution, "face_type": "wf", "batch_size": 4, **sizes}
        history = [[0.5, np.float32(0.25)]] * 3
        return {"iter": 1234, "options": known | change, "loss_history": history, "sample": [np.zeros((2, 2), "f4")]}

    def write(self, folder: Path, name: str = "me_", **change: Any) -> Path:
        folder.mkdir(exist_ok=True)
        for file, content in self.files.items():
            (folder / f"{name}SAEHD_{file}.npy").write_bytes(pickle.dumps(content, 4))
        (folder / f"{name}SAEHD_data.dat").write_bytes(pickle.dumps(self.options(**change)))
        (folder / f"{name}SAEHD_src_dst_opt.npy").write_bytes(b"not looked at")
        return folder


def drawn(model: FaceModel, faces: Array, person: int) -> tuple[Array, Array]:
    """`faces` (B, R, R, 3) BGR through our model, in their layout."""
    ours = torch.from_numpy(faces[..., ::-1].copy()).permute(0, 3, 1, 2).float()
    with torch.no_grad():
        face, mask = model(ours, torch.full((len(faces),), person))
    return face.permute(0, 2, 3, 1).numpy()[..., ::-1], mask.permute(0, 2, 3, 1).numpy()


def assert_same(theirs: Theirs, run: Path) -> None:
    model, _ = checkpoint.load_model(run)
    faces = np.random.default_rng(1).random((2, theirs.resolution, theirs.resolution, 3))
    for index, person in ((SOURCE, "source"), (TARGET, "target")):
        for ours, expected in zip(drawn(model, faces, index), theirs(faces, person), strict=True):
            assert expected.std() > 0.01
            np.testing.assert_allclose(ours, expected, atol=1e-4)
    assert np.abs(theirs(faces, "source")[0] - theirs(faces, "target")[0]).mean() > 0.003


@pytest.mark.parametrize("root", ["df", "liae"])
@pytest.mark.parametrize("letters", ["", "-u", "-d", "-ud", "-t", "-ut", "-udt", "-c", "-udtc"])
def test_what_is_imported_draws_what_it_drew_there(root: str, letters: str, tmp_path: Path) -> None:
    theirs = Theirs(root + letters)
    report = import_model(theirs.write(tmp_path / "model"), tmp_path / "run", Recipe())
    assert_same(theirs, tmp_path / "run")
    assert report.weights == sum(array.size for file in theirs.files.values() for array in file.values())


@pytest.mark.parametrize("m", [2, 4, 8, 16])
@pytest.mark.parametrize("archi", ["df-ud", "liae-udt"])
def test_a_mask_s_layers_of_the_face_s_shapes_are_told_by_their_names(archi: str, m: int, tmp_path: Path) -> None:
    theirs = Theirs(archi, m=m)
    import_model(theirs.write(tmp_path / "model"), tmp_path / "run", Recipe())
    assert_same(theirs, tmp_path / "run")


def test_layers_may_be_called_otherwise_and_lie_in_any_order(tmp_path: Path) -> None:
    theirs = Theirs("df-udt", names=lambda name: f"net/{name.replace('/', '_')}/w")
    theirs.files = {file: dict(reversed(content.items())) for file, content in theirs.files.items()}
    import_model(theirs.write(tmp_path / "model"), tmp_path / "run", Recipe())
    theirs_again = Theirs("df-udt", names=theirs.names)
    assert_same(theirs_again, tmp_path / "run")


def test_branches_that_cannot_be_told_apart_are_refused(tmp_path: Path) -> None:
    theirs = Theirs("df", m=4, names=lambda name: name.replace("upscalem", "upscale1"))
    with pytest.raises(
        CheckpointError, match=r"decoder_src.npy: layers of the shape .* which is which cannot be told$"
    ):
        import_model(theirs.write(tmp_path / "model"), tmp_path / "run", Recipe())


def test_the_run_says_where_it_comes_from_and_what_it_is(tmp_path: Path) -> None:
    folder = Theirs("liae-ud").write(tmp_path / "model", face_type="f")
    report = import_model(folder, tmp_path / "run", Recipe(seed=3))
    state = checkpoint.read(checkpoint.find(tmp_path / "run"))
    model = state.recipe.model
    assert (model.name, model.resolution, model.crop) == ("liae-ud", 64, "full")
    assert (model.code, model.width, model.decoder, model.mask) == (6, 4, 4, 6)
    assert (state.people, state.recipe.seed, state.recipe.train.rate) == (["source", "target"], 3, 5e-5)
    assert state.footage["source"] == "DeepFaceLab's me_SAEHD, 1234 iterations" and report.iterations == 1234
    assert (tmp_path / "run" / "recipe.toml").read_text() == state.recipe.to_toml()


# ---------------------------------------------------------------- what cannot be used


def spoil(folder: Path, file: str, change: Callable[[Any], Any]) -> None:
    path = folder / f"me_SAEHD_{file}"
    path.write_bytes(pickle.dumps(change(pickle.loads(path.read_bytes()))))


class Attack:
    def __reduce__(self) -> Any:
        return os.mkdir, ("attacked",)


@pytest.mark.parametrize("file", ["data.dat", "encoder.npy", "decoder_src.npy"])
def test_a_pickle_that_is_a_program_is_refused_and_not_run(
    file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = Theirs().write(tmp_path / "model")
    spoil(folder, file, lambda data: data | {"more": Attack()})
    with pytest.raises(
        CheckpointError, match=rf"{file}: its pickled \w+ asks for \w+.mkdir, which no model needs and .*"
    ):
        import_model(folder, tmp_path / "run", Recipe())
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


@pytest.mark.parametrize("file", ["data.dat", "inter.npy", "decoder_dst.npy"])
@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_a_file_that_ends_too_early_is_refused(file: str, share: float, tmp_path: Path) -> None:
    folder = Theirs().write(tmp_path / "model")
    path = folder / f"me_SAEHD_{file}"
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(CheckpointError, match=rf"{file}: damaged pickle, .*; take it from a backup of the model$"):
        import_model(folder, tmp_path / "run", Recipe())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("file", ["encoder", "inter", "decoder_src", "decoder_dst"])
def test_a_missing_file_is_said(file: str, tmp_path: Path) -> None:
    folder = Theirs().write(tmp_path / "model")
    (folder / f"me_SAEHD_{file}.npy").unlink()
    with pytest.raises(CheckpointError, match=rf"me_SAEHD_{file}.npy: missing; .*$"):
        import_model(folder, tmp_path / "run", Recipe())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"archi": "df-udx"}, "archi 'df-udx': the letter x is not known here; expected df or liae with letters of .*"),
        ({"archi": "dfhd"}, "archi 'dfhd': which is not known here; expected df or liae .*"),
        ({"archi": ["df"]}, r"archi \['df'\]: which is not known here; .*"),
        ({"archi": "liae"}, "me_SAEHD_inter_AB.npy: missing; .*"),
        (
            {"archi": "df-t"},
            r"encoder.npy: holds too few layers of the shape \(.*\) for the df-t that .* describes; .*",
        ),
        ({"archi": "df-d"}, r"inter.npy: holds too few layers of the shape \(.*\) for the df-d that .*"),
        ({"e_dims": 8}, r"encoder.npy: holds too few layers of the shape \(5, 5, 3, 8\) for the df .*"),
        ({"resolution": 128}, r"inter.npy: holds too few layers of the shape \(2048, 6\) .*"),
        ({"resolution": 72}, "beyond what a model may be here: .*model.resolution = 72: .*"),
        ({"ae_dims": 10**9}, "beyond what a model may be here: .*model.code = 1000000000: .*"),
        ({"ae_dims": "6"}, "ae_dims is '6'; expected a whole number above 0"),
        ({"d_dims": True}, "d_dims is True; .*"),
        ({"face_type": "custom"}, "face_type 'custom'; expected one of h, mf, f, wf, head"),
        ({"face_type": ["f"]}, r"face_type \['f'\]; .*"),
    ],
)
def test_options_that_do_not_fit_are_said(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    folder = Theirs().write(tmp_path / "model", **change)
    with pytest.raises(CheckpointError, match=said) as caught:
        import_model(folder, tmp_path / "run", Recipe())
    assert "\n" not in str(caught.value) and "me_SAEHD" in str(caught.value) and not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda data: [1], "expected a dictionary of arrays, found list"),
        (lambda data: data | {"a/weight:0": "text"}, "holds 'a/weight:0'; expected arrays of weight and bias alone"),
        (lambda data: data | {"a/gamma:0": np.ones(3)}, "holds 'a/gamma:0'; .*"),
        (
            lambda data: data | {"a/weight:0": np.ones((3, 3))},
            r"a has weight \(3, 3\); expected a weight and a bias .*",
        ),
        (lambda data: data | {"down1/conv1/bias:0": np.ones(3)}, r"down1/conv1 has bias \(3,\), weight \(5, .*"),
        (
            lambda data: data | {"a/weight:0": np.ones((3, 3)), "a/bias:0": np.ones(3)},
            r"holds a \(3, 3\), which the df .*",
        ),
        (lambda data: data | {"down1/conv1/bias:0": np.full(4, np.nan)}, "down1/conv1/bias:0 is not finite: .*"),
    ],
)
def test_weights_that_do_not_fit_are_said(change: Callable[[Any], Any], said: str, tmp_path: Path) -> None:
    folder = Theirs().write(tmp_path / "model")
    spoil(folder, "encoder.npy", change)
    with pytest.raises(CheckpointError, match=f"me_SAEHD_encoder.npy: {said}$"):
        import_model(folder, tmp_path / "run", Recipe())


@pytest.mark.parametrize("data", [{}, [1], {"options": {"archi_": 1}}])
def test_options_without_an_archi_are_refused(data: Any, tmp_path: Path) -> None:
    folder = Theirs().write(tmp_path / "model")
    spoil(folder, "data.dat", lambda _: data)
    with pytest.raises(CheckpointError, match=r"expected the options of a SAEHD model, with its archi, found none$"):
        import_model(folder, tmp_path / "run", Recipe())


def test_which_model_is_asked(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    for nothing in (folder, tmp_path):
        with pytest.raises(UsageError, match=r"expected (the folder of a DeepFaceLab|a SAEHD) model"):
            import_model(nothing, tmp_path / "run", Recipe())
    folder.mkdir()
    (folder / "x_Quick96_data.dat").touch()
    with pytest.raises(UsageError, match=r"found x_Quick96_data.dat, of another kind$"):
        import_model(folder, tmp_path / "run", Recipe())
    theirs, other = Theirs().write(folder), Theirs("liae-u").write(folder, "you_")
    assert theirs == other
    with pytest.raises(UsageError, match=r"holds several models \(me, you\); say which with --name$"):
        import_model(folder, tmp_path / "run", Recipe())
    with pytest.raises(UsageError, match=r"holds no model called 'us', but me, you$"):
        import_model(folder, tmp_path / "run", Recipe(), name="us")
    assert import_model(folder, tmp_path / "run", Recipe(), name="you").archi == "liae-u"


def test_nothing_is_replaced_unasked(tmp_path: Path) -> None:
    folder = Theirs().write(tmp_path / "model")
    import_model(folder, tmp_path / "run", Recipe())
    with pytest.raises(OutputExistsError):
        import_model(folder, tmp_path / "run", Recipe())
    import_model(folder, tmp_path / "run", Recipe(seed=1), overwrite=True)
    with pytest.raises(CheckpointError, match="expected a run or an empty folder"):
        import_model(folder, folder, Recipe(), overwrite=True)
    assert (folder / "me_SAEHD_encoder.npy").exists()


# ---------------------------------------------------------------- what faceswap does with it


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A full-face model there, whose mask is wide open."""
    theirs = Theirs("df-ud", resolution=32)
    theirs.files["decoder_src"]["out_convm/bias:0"][:] = 20
    return theirs.write(tmp_path_factory.mktemp("workspace") / "model", face_type="f")


def test_the_model_sees_a_face_as_it_did_there(folder: Path, tmp_path: Path) -> None:
    import_model(folder, tmp_path / "run", Recipe())
    swapper = Swapper(tmp_path / "run", MergeRecipe(), torch.device("cpu"))
    points = np.float32(align.TEMPLATE * 80 + 40)
    face = Face(np.float32([50, 50, 110, 110]), points, 1.0)
    image = np.random.default_rng(0).integers(0, 256, (160, 160, 3), np.uint8)
    ((_, (laid,)),) = swapper.faces([(Frame(0, Fraction(0), Path("a.mp4"), image), [face])])
    eyes = align.apply(laid.matrix, points[:2]) / 32
    np.testing.assert_allclose(eyes, [[0.328, 0.322], [0.660, 0.322]], atol=1e-3)  # as DeepFaceLab has them in f
    crop = align.as_uint8(align.crop(image, laid.matrix, 32))
    ((expected, _),) = draw(swapper.models[0].network, [crop], SOURCE, 1, torch.device("cpu"))
    np.testing.assert_allclose(laid.face, expected, atol=0.02)
    assert laid.mask[16, 16] > 0.99
    canonical = bound(face, face.matrix(160), 160)
    ours = align.uncrop(bound(face, laid.matrix, 32, "full"), align.onto("full", 160, 32), (0, 0, 160, 160))
    assert np.abs(ours - canonical).mean() < 0.03


def run_ok(*words: object) -> str:
    result = CliRunner().invoke(main, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    return result.output


def test_it_is_merged_trained_on_and_measured(
    folder: Path, facesets: dict[str, Path], clips: dict[str, Path], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    said = run_ok("import", folder, "-o", run)
    assert "me_SAEHD, df-ud at 32 px" in said and "1,234 iterations; face type f: model.crop = 'full'" in said
    run_ok("merge", clips["target"], "--model", run, "--faces", facesets["target"], "-o", tmp_path / "out.mp4")
    before = checkpoint.load_model(run)[0].state_dict()
    people = ["--source", facesets["source"], "--target", facesets["target"]]
    wrong = CliRunner().invoke(main, ["finetune", *map(str, people), "-o", str(run), "--images", "16"])
    assert wrong.exit_code == 1 and "its model.name is 'df-ud', not 'modulated'; use its recipe" in wrong.output
    said = run_ok("finetune", "--config", run / "recipe.toml", *people, "-o", run, "--images", 16)
    assert "the source now comes from source.mp4, so far it came from DeepFaceLab's me_SAEHD, 1234 iterations" in said
    after = checkpoint.load_model(run)[0].state_dict()
    change = [float((after[name] - before[name]).abs().max()) for name in after]
    assert 0 < max(change) < 1e-3  # it went on from there
    assert "swap" in run_ok("evaluate", run)


def test_a_head_is_merged_with_alone(folder: Path, facesets: dict[str, Path], tmp_path: Path) -> None:
    theirs = Theirs("df-ud", resolution=32)
    run = tmp_path / "run"
    said = run_ok("import", theirs.write(tmp_path / "model", face_type="head"), "-o", run)
    assert "DeepFaceLab moves this crop aside as a head turns" in said
    people = ["--source", facesets["source"], "--target", facesets["target"], "--images", 16]
    words = ["finetune", "--config", run / "recipe.toml", *people, "-o", run]
    wrong = CliRunner().invoke(main, [str(word) for word in words])
    assert wrong.exit_code == 2 and "cannot be trained here, only merged with" in wrong.output


@pytest.mark.parametrize("words", [["--name", "us"], []])
def test_one_line_says_what_is_wrong(words: list[str], folder: Path, tmp_path: Path) -> None:
    where = folder if words else folder / "nothing"
    result = CliRunner().invoke(main, ["import", str(where), "-o", str(tmp_path / "run"), *words])
    assert result.exit_code == 2 and len(result.output.strip().splitlines()) == 1 and str(where) in result.output
