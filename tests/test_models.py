from itertools import combinations
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from faceswap import models
from faceswap.errors import RecipeError, UsageError
from faceswap.models import FaceModel


def variants(root: str) -> list[str]:
    """The architecture `root` without letters and with each choice of them."""
    letters = getattr(models.load(root), "LETTERS", "")
    chosen = ["".join(some) for count in range(1, len(letters) + 1) for some in combinations(letters, count)]
    return [root, *(f"{root}-{some}" for some in chosen)]


def count(module: nn.Module) -> float:
    """Numbers to be learnt, in millions."""
    return sum(weight.numel() for weight in module.parameters()) / 1e6


def small(people: int = 2, name: str = "df") -> FaceModel:
    torch.manual_seed(0)
    return models.build(name, models.Shape(32, 4, 16, 4, 2), people)


@pytest.fixture(params=[name for root in models.SOCKET.names() for name in variants(root)])
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def same(drawn: Tensor, expected: Tensor) -> None:
    """Alike to a hundredth of what is to be seen: without the letter u a fresh model draws almost plain grey."""
    torch.testing.assert_close(drawn, expected, atol=0.01 * expected.std().item(), rtol=0)


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
        same(alone[0], together[i])
        same(mask[0], masks[i])


def test_who_is_drawn_matters(name: str) -> None:
    model = small(name=name)
    one, _ = model(FACES, torch.zeros(4, dtype=torch.int64))
    other, _ = model(FACES, torch.ones(4, dtype=torch.int64))
    assert (one - other).std() > 0.1 * one.std() > 0


def test_both_people_start_as_the_base_and_train_apart(name: str) -> None:
    base = small(people=1, name=name)
    pair = small(people=2, name=name)
    pair.load_base(base.state_dict())
    expected, mask = base(FACES, torch.zeros(4, dtype=torch.int64))
    for person in (0, 1):
        drawn, where = pair(FACES, torch.full((4,), person))
        same(drawn, expected)
        same(where, mask)
    optimizer = torch.optim.Adam(pair.parameters(), lr=0.01)
    pair(FACES, torch.zeros(4, dtype=torch.int64))[0].mean().backward()
    optimizer.step()
    drawn = [pair(FACES, torch.full((4,), person))[0] for person in (0, 1)]
    assert (drawn[0] - drawn[1]).abs().max() > 1e-4


def test_a_code_is_the_same_in_any_company(name: str) -> None:
    model = small(name=name)
    code = model.code(FACES)
    assert len(code) == 4 and code.ndim in (2, 4)
    torch.testing.assert_close(model.code(FACES[2:3]), code[2:3])


def test_every_weight_is_reached_by_the_gradient(name: str) -> None:
    model = small(name=name)
    with torch.no_grad():  # a residual starts as the identity, which what lies inside does not reach
        for weight in model.parameters():
            weight.add_(0.01 * torch.randn_like(weight))
    faces, mask = model(FACES, PEOPLE)
    ((faces - FACES).square().mean() + mask.mean()).backward()
    missing = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert missing == []


def test_three_people_start_as_the_base(name: str) -> None:
    base, three = small(people=1, name=name), small(people=3, name=name)
    three.load_base(base.state_dict())
    expected, _ = base(FACES, torch.zeros(4, dtype=torch.int64))
    drawn, _ = three(FACES, torch.tensor([2, 0, 1, 2]))
    same(drawn, expected)


def test_what_enters_a_convolution_is_channels_last(name: str) -> None:
    model = small(name=name)
    seen: list[bool] = []

    def look(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        seen.append(given[0].is_contiguous(memory_format=torch.channels_last))

    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    for module in convolutions:
        assert module.weight.is_contiguous(memory_format=torch.channels_last)
        module.register_forward_pre_hook(look)
    model(FACES, PEOPLE)
    assert seen and all(seen)


def test_faces_are_drawn_in_bf16_too(name: str) -> None:
    model = small(name=name)
    with torch.autocast("cpu", torch.bfloat16):
        faces, mask = model(FACES, PEOPLE)
    assert faces.dtype == mask.dtype == torch.float32
    (faces.mean() + mask.mean()).backward()


def test_letters_may_come_in_any_order() -> None:
    one, other = small(name="liae-udt").state_dict(), small(name="liae-tdu").state_dict()
    assert one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("name", ["df-x", "df-uu", "df-", "df-c", "df-u-d", "liae-udtx"])
def test_unknown_letters_are_refused_in_one_line(name: str) -> None:
    with pytest.raises(UsageError, match=rf"^no model called '{name}'; expected '(df|liae)' with letters of 'udt' .*$"):
        models.load(name)


@pytest.mark.parametrize("root", ["df", "liae"])
@pytest.mark.parametrize(
    ("letters", "sizes"),
    [("u", [16, 48, 80, 256]), ("d", [32, 96, 256]), ("t", [32, 64, 256]), ("udt", [32, 64, 160, 224, 256])],
)
def test_every_size_is_drawn(root: str, letters: str, sizes: list[int]) -> None:
    for size in sizes:
        model = models.build(f"{root}-{letters}", models.Shape(size, 2, 4, 2, 2), 2)
        faces, mask = model(torch.rand(2, 3, size, size), torch.tensor([1, 0]))
        assert faces.shape == (2, 3, size, size) and mask.shape == (2, 1, size, size)


@pytest.mark.parametrize("root", ["df", "liae"])
@pytest.mark.parametrize(
    ("letters", "size", "said"),
    [
        ("", 72, "a multiple of 16; try --set model.resolution=64 or --set model.resolution=80"),
        ("-ud", 48, "a multiple of 32 with the letters 'ud'; try --set model.resolution=32 or .*=64"),
        ("-t", 80, "a multiple of 32 with the letters 't'; try --set model.resolution=64 or .*=96"),
        ("-d", 16, "a multiple of 32 with the letters 'd'; try --set model.resolution=32"),
    ],
)
def test_a_size_that_cannot_be_halved_is_refused(root: str, letters: str, size: int, said: str) -> None:
    with pytest.raises(RecipeError, match=rf"^model.resolution = {size}: expected {said}$"):
        models.build(root + letters, models.Shape(size, 2, 4, 2, 2), 2)


@pytest.mark.parametrize(
    ("name", "shape", "encoder", "inter", "decoder", "total"),
    [
        ("df-ud", (96, 64, 128, 64, 16), 4.31, 3.10, 15.44, 38.3),  # Quick96
        ("df-ud", (128, 64, 256, 64, 22), 4.31, 11.80, 19.18, 54.5),
        ("liae-ud", (128, 64, 256, 64, 22), 4.31, 19.93, 38.20, 82.4),  # its default
        ("liae-ud", (256, 64, 256, 64, 22), 4.31, 51.4, 38.2, 145),
        ("liae-udt", (224, 64, 256, 64, 22), 15.65, 12.9, 53.5, 94.9),
        ("liae-udt", (320, 96, 384, 96, 32), 35.2, 59.1, 119.6, 273),
    ],
)
def test_sizes_are_those_of_deepfacelab(
    name: str, shape: tuple[int, int, int, int, int], encoder: float, inter: float, decoder: float, total: float
) -> None:
    with torch.device("meta"):
        model = models.build(name, models.Shape(*shape), 2)
    parts = dict(model.named_children())
    both = isinstance(parts.get("decoders"), nn.ModuleList)  # a decoder each, or an inter each
    shares = {
        "encoder": count(parts["encoder"]),
        "inter": count(parts["inter"]) if both else count(parts["common"]),
        "decoder": count(parts["decoders"]) / 2 if both else count(parts["decoder"]),
        "total": count(model),
    }
    assert shares == pytest.approx({"encoder": encoder, "inter": inter, "decoder": decoder, "total": total}, rel=4e-3)


def test_nobody_but_the_drawn_is_touched() -> None:
    for name, others in [("df-ud", "decoders.1."), ("liae-ud", "own.0.")]:
        model = small(name=name)
        model(FACES, torch.zeros(4, dtype=torch.int64))[0].mean().backward()
        idle = {key for key, weight in model.named_parameters() if weight.grad is None}
        assert idle == {key for key, _ in model.named_parameters() if key.startswith(others)}


def test_architectures_hear_of_tensors_only() -> None:
    for path in (Path(models.__file__).parent).glob("*.py"):
        text = path.read_text()
        assert not any(word in text for word in ("import cv2", "import av", "faceswap.video", "faceswap.faceset"))
