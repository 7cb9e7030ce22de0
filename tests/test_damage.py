import math
import time
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from crops import SIDE
from torch import Tensor, nn
from torch.nn.utils import parametrize

from faceswap import actors, damage, files
from faceswap.damage import Damage, Probe, Scores
from faceswap.errors import FacesetError, UsageError
from faceswap.faceset import mask_path, read_meta
from faceswap.heads import Identity
from faceswap.models import FaceModel, Shape, build

CPU = torch.device("cpu")
SIZE, COUNT = 48, 6


class Shifted(FaceModel):
    """Draws every face as it is, brighter by a weight of the person's own."""

    def __init__(self, *shifts: float) -> None:
        super().__init__()
        self.people, self.shifts = len(shifts), nn.Parameter(torch.tensor(shifts, dtype=torch.float32))

    def forward(self, faces: Tensor, person: Tensor, photos: Tensor | None = None) -> tuple[Tensor, Tensor]:
        assert torch.is_inference_mode_enabled() and not self.training and person.dtype == torch.int64
        return faces + self.shifts[person][:, None, None, None], torch.ones_like(faces[:, :1])

    def code(self, faces: Tensor) -> Tensor:
        raise NotImplementedError

    def load_base(self, weights: Mapping[str, Tensor]) -> None:
        raise NotImplementedError

    def as_base(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        raise NotImplementedError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which strangers are kept."""
    monkeypatch.setattr(files, "weight_folders", lambda: [tmp_path / "mine", files.shipped("pretrained")])
    return tmp_path / "mine" / "probes"


@pytest.fixture(scope="module")
def faces() -> Probe:
    images, masks = zip(*damage._strangers(SIZE, COUNT), strict=True)
    return Probe(np.stack(images), np.stack(masks))


def same(one: Probe, other: Probe) -> bool:
    return np.array_equal(one.images, other.images) and np.array_equal(one.masks, other.masks)


def never(*_: object) -> None:
    raise AssertionError("rendered again")


def test_strangers_are_faces_in_the_middle_of_their_crops(faces: Probe) -> None:
    assert faces.images.shape == (COUNT, SIZE, SIZE, 3) and faces.masks.shape == (COUNT, SIZE, SIZE)
    assert faces.images.dtype == faces.masks.dtype == np.uint8
    inside = faces.masks > 127
    assert (inside[:, SIZE // 2, SIZE // 2]).all()
    assert ((inside.mean((1, 2)) > 0.2) & (inside.mean((1, 2)) < 0.8)).all()
    assert len({image.tobytes() for image in faces.images}) == COUNT


def test_a_small_probe_is_the_start_of_a_large_one(home: Path, faces: Probe) -> None:
    few = damage.probe(SIZE, damage.SHOTS + 1)
    assert same(few, Probe(faces.images[: len(few)], faces.masks[: len(few)]))


def test_strangers_are_rendered_once(home: Path, faces: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    assert same(damage.probe(SIZE, COUNT), faces)
    assert [path.name for path in home.iterdir()] == [f"strangers-1-{SIZE}-{COUNT}.npz"]
    monkeypatch.setattr(damage, "_strangers", never)
    started = time.process_time()
    assert same(damage.probe(SIZE, COUNT), faces)
    assert time.process_time() - started < 0.2
    with pytest.raises(AssertionError, match="rendered again"):
        damage.probe(SIZE, COUNT + 1)
    monkeypatch.setattr(damage, "VERSION", 2)
    with pytest.raises(AssertionError, match="rendered again"):
        damage.probe(SIZE, COUNT)


def test_what_is_kept_and_damaged_is_made_anew(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Probe(np.full((2, 12, 12, 3), 7, np.uint8), np.full((2, 12, 12), 255, np.uint8))
    monkeypatch.setattr(damage, "_strangers", lambda *_: zip(whole.images, whole.masks, strict=True))
    damage.probe(12, 2)
    path = next(home.iterdir())
    content = path.read_bytes()
    random = np.random.default_rng(0)
    flips = [(int(place), int(bit)) for place, bit in random.integers([0, 0], [len(content), 8], (300, 2))]
    cut = [content[:length] for length in range(0, len(content), 50)]
    for wrong in [
        *cut,
        b"no archive",
        *(content[:p] + bytes([content[p] ^ 1 << b]) + content[p + 1 :] for p, b in flips),
    ]:
        path.write_bytes(wrong)
        assert same(damage.probe(12, 2), whole)
    path.write_bytes(content[:100])
    damage.probe(12, 2)
    assert damage._read(path, 12, 2) is not None


def test_what_is_kept_and_foreign_is_made_anew(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Probe(np.full((2, 12, 12, 3), 7, np.uint8), np.full((2, 12, 12), 255, np.uint8))
    monkeypatch.setattr(damage, "_strangers", lambda *_: zip(whole.images, whole.masks, strict=True))
    damage.probe(12, 2)
    path = next(home.iterdir())
    sound = {"version": np.array(1), "images": whole.images + np.uint8(1), "masks": whole.masks}
    np.savez(path, **sound)  # type: ignore[arg-type]
    assert (damage.probe(12, 2).images == 8).all()
    others = [
        {"version": np.array(2)},
        {"images": sound["images"].astype(np.float32)},
        {"images": sound["images"][:1]},
        {"masks": whole.masks[:, :6]},
        {"masks": np.array([{"any": "object"}], object)},
    ]
    for other in others:
        np.savez(path, **{**sound, **other})  # type: ignore[arg-type]
        assert same(damage.probe(12, 2), whole)
        assert damage._read(path, 12, 2) is not None
    path.unlink()
    path.mkdir()
    assert same(damage.probe(12, 2), whole) and path.is_dir()


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Probe(np.full((1, 12, 12, 3), 7, np.uint8), np.full((1, 12, 12), 255, np.uint8))
    monkeypatch.setattr(damage, "_strangers", lambda *_: zip(whole.images, whole.masks, strict=True))
    (tmp_path / "file").write_text("no folder")
    shipped = tmp_path / "shipped"
    monkeypatch.setattr(files, "weight_folders", lambda: [tmp_path / "file", shipped])
    assert same(damage.probe(12, 1), whole)
    monkeypatch.setattr(
        files, "weight_folders", lambda: [tmp_path / name for name in ("file", "second", "third", "shipped")]
    )
    assert same(damage.probe(12, 1), whole) and (tmp_path / "second").exists() and not (tmp_path / "third").exists()
    monkeypatch.setattr(files, "weight_folders", lambda: [shipped])  # a user without a home
    assert same(damage.probe(12, 1), whole) and not shipped.exists()


def test_no_generic_faceset_shows_a_stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    class Watched(Identity):
        @classmethod
        def random(cls, seed: int) -> "Watched":
            asked.append(seed)
            return super().random(seed)

    monkeypatch.setattr(damage, "Identity", Watched)
    list(damage._strangers(32, damage.SHOTS + 1))
    assert asked == [damage.FIRST, damage.FIRST + 1]
    for seed in (0, 2**63):
        actors.write_faces(tmp_path / str(seed), 5, size=32, seed=seed, workers=1)
        for path in (tmp_path / str(seed)).iterdir():
            meta = read_meta(path)
            assert meta is not None and meta.truth is not None
            assert meta.truth["identity"] < 2**31 < damage.FIRST


def test_a_probe_of_a_faceset(ten_faces: Path) -> None:
    found = damage.probe(SIDE, 4, ten_faces)
    assert found.images.shape == (4, SIDE, SIDE, 3) and found.masks.shape == (4, SIDE, SIDE)
    everyone = damage.probe(SIDE, 500, ten_faces)
    assert len(everyone) == 10 and (everyone.masks[2] == 200).all()
    assert same(found, Probe(everyone.images[[0, 3, 6, 9]], everyone.masks[[0, 3, 6, 9]]))


def test_faces_whose_masks_are_empty_are_left_out(ten_faces: Path, tmp_path: Path) -> None:
    images = sorted(path for path in ten_faces.iterdir() if ".mask" not in path.name)
    for image in images[1:]:
        cv2.imwrite(str(mask_path(image)), np.zeros((SIDE, SIDE), np.uint8))
    assert len(damage.probe(32, faceset=ten_faces)) == 1
    cv2.imwrite(str(mask_path(images[0])), np.zeros((SIDE, SIDE), np.uint8))
    with pytest.raises(FacesetError, match="only empty masks"):
        damage.probe(32, faceset=ten_faces)
    with pytest.raises(FacesetError, match="expected a faceset"):
        damage.probe(32, faceset=tmp_path / "none")
    with pytest.raises(UsageError, match="at least one"):
        damage.probe(32, 0)


def test_a_model_that_changes_nothing_is_perfect(faces: Probe) -> None:
    for training in (True, False):
        model = Shifted(0.0).train(training)
        assert scored(damage.scores(model, faces, 0, CPU)) == pytest.approx((100, 1, 1))
        assert model.training == training


def scored(found: Scores) -> tuple[float, float, float]:
    return found.psnr, found.ssim, found.ms_ssim


@pytest.mark.parametrize("shift", [0.1, -0.01])
def test_a_shift_costs_what_it_must(faces: Probe, shift: float) -> None:
    found = damage.scores(Shifted(0.0, shift), faces, 1, CPU)
    assert found.psnr == pytest.approx(-20 * math.log10(abs(shift)), abs=1e-3)
    assert found.ssim < 1 and found.ms_ssim < 1


def test_what_lies_outside_the_face_does_not_count(faces: Probe) -> None:
    left = np.zeros_like(faces.masks)
    left[:, :, : SIZE // 4] = 255

    class Half(Shifted):
        def forward(self, faces: Tensor, person: Tensor, photos: Tensor | None = None) -> tuple[Tensor, Tensor]:
            right = (torch.arange(SIZE) >= SIZE // 2).float()
            return faces + 0.5 * right, right

    found = damage.scores(Half(0.0), Probe(faces.images, left), 0, CPU)
    assert found.psnr == pytest.approx(100) and found.ssim == pytest.approx(1)


def test_how_many_are_drawn_at_once_does_not_matter(faces: Probe) -> None:
    torch.manual_seed(0)
    model = build("df", Shape(SIZE // 16 * 16, 4, 16, 4, 2), 2)
    found = [scored(damage.scores(model, faces, 1, CPU, batch)) for batch in (1, 4, 32)]
    assert found[0] == pytest.approx(found[1], rel=1e-5) and found[1] == pytest.approx(found[2], rel=1e-5)
    assert scored(damage.scores(model, faces, 0, CPU)) != pytest.approx(found[0], rel=1e-5)


def test_a_copy_does_no_damage(faces: Probe) -> None:
    for name in ("df", "liae", "modulated"):
        torch.manual_seed(0)
        before = build(name, Shape(SIZE, 4, 16, 4, 2), 1)
        after = build(name, Shape(SIZE, 4, 16, 4, 2), 1)
        after.load_state_dict(before.state_dict())
        found = damage.measure(before, after, faces, (0, 0), CPU)
        assert found.lost == Scores(0, 0, 0) and found.distance == 0


def test_damage_is_what_was_better_before(faces: Probe) -> None:
    found = damage.measure(Shifted(0.01, 0.5), Shifted(0.3, 0.1), faces, (0, 1), CPU)
    assert found.lost.psnr == pytest.approx(20, abs=1e-3)
    assert found.lost.ssim == found.before.ssim - found.after.ssim > 0
    assert found.lost.ms_ssim == found.before.ms_ssim - found.after.ms_ssim > 0
    assert found.distance == pytest.approx(math.hypot(0.29, 0.4) / math.hypot(0.01, 0.5))


def test_distance_sees_what_both_have() -> None:
    def model(people: int, shared: float) -> FaceModel:
        made = Shifted(*range(1, people + 1))
        made.register_parameter("shared", nn.Parameter(torch.tensor([3.0, 4.0]) * shared))
        return made

    assert damage.distance(model(1, 1), model(3, 1.5)) == pytest.approx(0.5)  # tables of 1 and 3 people
    assert damage.distance(model(1, 1), model(1, 1.5)) == pytest.approx(2.5 / math.sqrt(26))
    assert damage.distance(Shifted(1.0), Shifted(1.0, 2.0)) == 0, "nothing that both have"


def test_adapters_move_the_weights_they_change() -> None:
    class Half(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return weight / 2

    before, after = Shifted(3.0, 4.0), Shifted(3.0, 4.0)
    parametrize.register_parametrization(after, "shifts", Half())
    assert damage.distance(before, after) == pytest.approx(0.5)


def test_damage_in_words() -> None:
    shown = damage.text(Damage(Scores(31.26, 0.9, 0.95), Scores(28.1, 0.85, 0.96), 0.1234))
    assert shown.splitlines() == [
        "        PSNR dB   SSIM  MS-SSIM",
        "before     31.3  0.900    0.950",
        "after      28.1  0.850    0.960",
        "lost      3.160  0.050   -0.010",
        "weights moved by 12.3 %",
    ]
    assert damage.text(Damage(Scores(1, 1, 1), Scores(1, 1, 1), math.nan)).endswith("by - %")
