from pathlib import Path

import pytest
import torch

from faceswap import models
from faceswap.layers import Residual, Up
from faceswap.models import FaceModel


def small(people: int = 2, name: str = "df") -> FaceModel:
    torch.manual_seed(0)
    return models.build(name, models.Shape(32, 4, 16, 4, 2), people)


@pytest.fixture(params=models.SOCKET.names())
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


FACES = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))
PEOPLE = torch.tensor([0, 1, 1, 0])


def test_draws_faces_and_masks_in_range(name: str) -> None:
    faces, mask = small(name=name)(FACES, PEOPLE)
    assert faces.shape == (4, 3, 32, 32) and mask.shape == (4, 1, 32, 32)
    for image in (faces, mask):
        assert image.min() >= 0 and image.max() <= 1


def test_a_face_is_drawn_alike_in_any_company(name: str) -> None:
    model = small(name=name).eval()
    together, masks = model(FACES, PEOPLE)
    for i in range(4):
        alone, mask = model(FACES[i : i + 1], PEOPLE[i : i + 1])
        torch.testing.assert_close(alone[0], together[i], atol=1e-5, rtol=0)
        torch.testing.assert_close(mask[0], masks[i], atol=1e-5, rtol=0)


def test_who_is_drawn_matters(name: str) -> None:
    model = small(name=name)
    one, _ = model(FACES, torch.zeros(4, dtype=torch.int64))
    other, _ = model(FACES, torch.ones(4, dtype=torch.int64))
    assert (one - other).abs().mean() > 1e-3


def test_both_people_start_as_the_base_and_train_apart(name: str) -> None:
    base = small(people=1, name=name)
    pair = small(people=2, name=name)
    pair.load_base(base.state_dict())
    expected, mask = base(FACES, torch.zeros(4, dtype=torch.int64))
    for person in (0, 1):
        drawn, where = pair(FACES, torch.full((4,), person))
        torch.testing.assert_close(drawn, expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(where, mask, atol=1e-5, rtol=0)
    optimizer = torch.optim.SGD(pair.parameters(), lr=1.0)
    pair(FACES, torch.zeros(4, dtype=torch.int64))[0].mean().backward()
    optimizer.step()
    drawn = [pair(FACES, torch.full((4,), person))[0] for person in (0, 1)]
    assert (drawn[0] - drawn[1]).abs().max() > 1e-5


def test_every_weight_is_reached_by_the_gradient(name: str) -> None:
    model = small(name=name)
    faces, mask = model(FACES, PEOPLE)
    ((faces - FACES).square().mean() + mask.mean()).backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert [n for n in missing if "first" not in n] == []  # a residual starts as the identity: zero second convolution


def test_sub_pixels_start_without_checkerboard() -> None:
    torch.manual_seed(0)
    drawn = Up(8, 4)(torch.rand(1, 8, 6, 6))
    blocks = drawn.reshape(1, 4, 6, 2, 6, 2)
    assert (blocks.amax((3, 5)) - blocks.amin((3, 5))).max() < 1e-6


def test_residual_starts_as_identity_on_positive_values() -> None:
    x = torch.rand(1, 4, 5, 5)
    torch.testing.assert_close(Residual(4)(x), x)


def test_architectures_hear_of_tensors_only() -> None:
    for path in (Path(models.__file__).parent).glob("*.py"):
        text = path.read_text()
        assert not any(word in text for word in ("import cv2", "import av", "faceswap.video", "faceswap.faceset"))
