from itertools import combinations
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor, nn

from faceswap import models
from faceswap.errors import RecipeError, UsageError
from faceswap.models import FaceModel, Part
from faceswap.models.modulated import Modulated, Modulation


def variants(root: str) -> list[str]:
    """The architecture `root` without letters and with each choice of them; c, which has no weights, in two only."""
    letters = getattr(models.load(root), "LETTERS", "")
    shapes = letters.replace("c", "")
    chosen = ["".join(some) for count in range(1, len(shapes) + 1) for some in combinations(shapes, count)]
    return [root, *(f"{root}-{some}" for some in chosen + [letters, "c"] * ("c" in letters))]


def count(module: nn.Module) -> float:
    """Numbers to be learnt, in millions."""
    return sum(weight.numel() for weight in module.parameters()) / 1e6


def small(people: int = 2, name: str = "df", *, anyone: bool = False, seed: int = 0) -> FaceModel:
    torch.manual_seed(seed)
    return models.build(name, models.Shape(32, 4, 16, 4, 2, anyone=anyone), people)


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


@pytest.mark.parametrize("name", ["df-x", "df-uu", "df-", "df-u-d", "liae-udtx"])
def test_unknown_letters_are_refused_in_one_line(name: str) -> None:
    with pytest.raises(
        UsageError, match=rf"^no model called '{name}'; expected '(df|liae)' with letters of 'udtc' .*$"
    ):
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


PARTS: tuple[Part, ...] = get_args(Part)


def test_parts_lie_inside_each_other_and_apart(name: str) -> None:
    """Whoever freezes or trains a part relies on what else it is a part of."""
    for people, anyone in [(1, True), (2, False), (3, True)]:
        model = small(people, name, anyone=anyone)
        order = [key for key, _ in model.named_parameters()]
        parts = {part: model.named(part) for part in PARTS}
        assert all(found == [key for key in order if key in found] for found in parts.values()), "in order, each once"
        decoder, block, layer = (set(parts[part]) for part in ("decoder", "last block", "last layer"))
        assert set() < layer < block < decoder < set(order)
        assert not set(parts["codes"]) & (decoder | set(parts["anyone"])) and len(parts["codes"]) < 2
        assert not set(parts["anyone"]) & {key for key in order if key.startswith(("encoder.", "inter.", "common."))}
        if people > 1:
            assert bool(parts["anyone"]) or not anyone


def test_the_last_layer_is_the_last(name: str) -> None:
    """What it is multiplied by reaches the picture; with it at 0 all is as grey as the sigmoid's middle."""
    model = small(name=name)
    for key in model.named("last layer"):
        torch.nn.init.zeros_(model.get_parameter(key))
    faces, mask = model(FACES, PEOPLE)
    assert (faces == 0.5).all() and (mask == 0.5).all()


def test_what_lies_before_the_decoder_alone_makes_the_code(name: str) -> None:
    model = small(name=name)
    before = model.code(FACES)
    for key in model.named("decoder"):
        torch.nn.init.zeros_(model.get_parameter(key))
    assert torch.equal(model.code(FACES), before)


def test_only_anyone_uses_what_is_theirs(name: str) -> None:
    model = small(3, name, anyone=True)
    drawn, mask = model(FACES, PEOPLE)
    (drawn.square().mean() + mask.mean()).backward()
    for key in model.named("anyone"):
        assert model.get_parameter(key).grad is None, "the others are drawn without"
    with torch.no_grad():
        for key in model.named("anyone"):
            model.get_parameter(key).add_(1)
    model.eval()
    assert torch.equal(model(FACES, PEOPLE)[0], drawn)
    model.zero_grad()
    anyone = torch.full((4,), 2)
    model(FACES, anyone, FACES)[0].square().mean().backward()
    grads = [model.get_parameter(key).grad for key in model.named("anyone")]
    assert grads and all(grad is not None for grad in grads)


def test_a_base_comes_back_out_of_a_pair(name: str) -> None:
    base = small(1, name, anyone=True).state_dict()
    pair = small(3, name, anyone=True, seed=1)
    pair.load_base(base)
    back = pair.as_base(pair.state_dict())
    assert back.keys() == base.keys() and all(torch.equal(back[key], weight) for key, weight in base.items())


def test_a_tuned_pair_as_a_base_draws_anyone_as_the_pair_does(name: str) -> None:
    tuned = small(3, name, anyone=True, seed=1).eval()
    if name.startswith("liae"):  # a base has one half: what is common stands for anyone's own
        tuned.get_submodule("own.1").load_state_dict(tuned.get_submodule("common").state_dict())
    again = small(1, name, anyone=True).eval()
    again.load_state_dict(tuned.as_base(tuned.state_dict()))
    expected, mask = tuned(FACES, torch.full((4,), 2))
    drawn, where = again(FACES, torch.zeros(4, dtype=torch.int64))
    same(drawn, expected)
    same(where, mask)


def test_everybody_begins_as_the_base_draws_them(name: str) -> None:
    base, three = small(1, name, anyone=True).eval(), small(3, name, anyone=True, seed=1).eval()
    three.load_base(base.state_dict())
    same(three(FACES, torch.full((4,), 2))[0], base(FACES, torch.zeros(4, dtype=torch.int64))[0])
    one, other = (three(FACES, torch.full((4,), person))[0] for person in (0, 1))
    same(one, other)


def test_only_codes_are_met(name: str) -> None:
    model = small(3, name, anyone=True)
    before = {key: weight.clone() for key, weight in model.state_dict().items()}
    code = model.told(FACES)
    model.meet(1, FACES)
    changed = {key for key, weight in model.state_dict().items() if not torch.equal(weight, before[key])}
    assert changed == set(model.named("codes")) and (code is None) == (changed == set())
    for key in changed:
        now = model.get_parameter(key)
        assert torch.equal(now[[0, 2]], before[key][[0, 2]]) and code is not None and torch.equal(now[1], code)
        assert now.requires_grad and now.grad_fn is None, "it is still to be trained"


def modulated(*, training: bool = False) -> Modulated:
    """With a person of their own and anyone; fresh modulations all but pass over who is drawn."""
    model = small(3, "modulated", anyone=True)
    assert isinstance(model, Modulated)
    with torch.no_grad():
        for stage in model.modules():
            if isinstance(stage, Modulation):
                stage.style.weight.mul_(10)
    return model.train(training)


def test_a_told_code_has_the_size_of_a_fresh_one() -> None:
    model = modulated()
    assert model.teller is not None
    for photos in (FACES, FACES * 0.1, torch.rand(2, 3, 32, 32) * 5):
        torch.testing.assert_close(model.teller(photos).square().mean(1), torch.ones(len(photos)), atol=1e-3, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        assert model.teller(FACES).dtype == torch.float32
    told = model.told(FACES)
    assert told is not None and not told.requires_grad
    torch.testing.assert_close(told, model.teller(FACES).mean(0))


def test_anyone_is_whoever_the_photos_show() -> None:
    model, other = modulated(), torch.rand(4, 3, 32, 32)
    anyone = torch.full((4,), 2)
    untold, own, told = (model(FACES, anyone, photos)[0] for photos in (None, FACES, other))
    assert torch.equal(untold, own), "without photos it is who the face shows"
    assert (told - own).abs().max() > 1e-3, "with them who they show"
    assert torch.equal(modulated(training=True)(FACES, anyone, other)[0], told), "in training too"


def test_in_training_without_photos_everybody_has_a_code_of_their_own() -> None:
    model = modulated(training=True)
    anyone = torch.full((4,), 2)
    assert torch.equal(model.codes(FACES, anyone, None), model.who(anyone))
    model(FACES, anyone)[0].mean().backward()
    assert all(model.get_parameter(key).grad is None for key in model.named("anyone"))


@pytest.mark.parametrize("photos", [None, torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(2))])
def test_in_mixed_company_each_is_drawn_as_alone(photos: Tensor | None) -> None:
    model, mixed = modulated(), torch.tensor([2, 0, 1, 2])
    together, masks = model(FACES, mixed, photos)
    for row in range(4):
        one = slice(row, row + 1)
        alone, mask = model(FACES[one], mixed[one], None if photos is None else photos[one])
        torch.testing.assert_close(alone[0], together[row], atol=1e-5, rtol=0)
        torch.testing.assert_close(mask[0], masks[row], atol=1e-5, rtol=0)
    own = mixed < 2
    assert torch.equal(model(FACES, mixed)[0][own], together[own]), "photos tell of anyone alone"


def test_anyones_faces_leave_the_codes_of_others_alone() -> None:
    model = modulated(training=True)
    model(FACES, torch.tensor([2, 0, 2, 2]), FACES)[0].square().mean().backward()
    grad = model.who.weight.grad
    assert grad is not None and grad[0].abs().sum() > 0 and not grad[1:].any(), "a gradient, but of nothing"


def test_a_model_without_anyone_has_no_teller() -> None:
    model = small(2, "modulated").eval()
    assert model.named("anyone") == [] and model.told(FACES) is None
    assert torch.equal(model(FACES, PEOPLE)[0], model(FACES, PEOPLE, FACES.flip(0))[0])


def test_architectures_hear_of_tensors_only() -> None:
    for path in (Path(models.__file__).parent).glob("*.py"):
        text = path.read_text()
        assert not any(word in text for word in ("import cv2", "import av", "faceswap.video", "faceswap.faceset"))
