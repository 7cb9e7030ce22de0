"""Small changes to a frozen network: what they draw, what their files hold and what is refused."""

import copy
import math
import zlib
from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from faceswap import adapters, models
from faceswap.errors import CheckpointError
from faceswap.models import FaceModel

ADD: dict[str, Callable[[nn.Module], list[str]]] = {
    "low rank": lambda model: adapters.add_low_rank(model, 4, lambda name: True),
    "film": lambda model: adapters.add_film(model, lambda name: True),
}
PEOPLE = torch.tensor([0, 1, 1])


def network(name: str = "modulated", side: int = 32, seed: int = 0) -> FaceModel:
    torch.manual_seed(seed)
    return models.build(name, models.Shape(side, 4, 16, 4, 2), 2)


def draw(model: nn.Module, side: int = 32) -> Tensor:
    faces = torch.rand(3, 3, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return torch.cat(model(faces, PEOPLE), 1)


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def filed(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """As a file gives them back: neither channels_last nor aligned."""
    return load(save({name: tensor.contiguous() for name, tensor in tensors.items()}))


def stirred(before: dict[str, Tensor], size: float = 0.01, seed: int = 2) -> dict[str, Tensor]:
    """Each tensor a little changed."""
    own = torch.Generator().manual_seed(seed)
    return {n: t + size * torch.randn(t.shape, generator=own) for n, t in before.items()}


def same(some: dict[str, Tensor], others: dict[str, Tensor]) -> bool:
    return some.keys() == others.keys() and all(
        tensor.dtype == others[name].dtype and torch.equal(tensor, others[name]) for name, tensor in some.items()
    )


def train(model: nn.Module, names: list[str]) -> None:
    """Move the named parameters as far as training would."""
    found = dict(model.named_parameters())
    with torch.no_grad():
        for name in names:
            found[name].add_(0.05 * torch.randn_like(found[name]))


@pytest.fixture(params=ADD)
def add(request: pytest.FixtureRequest) -> Callable[[nn.Module], list[str]]:
    return ADD[request.param]


@pytest.mark.parametrize("side", [32, 64])
@pytest.mark.parametrize("name", ["modulated", "df-ud", "liae-ud", "df-t"])
def test_folded_draws_what_the_adapted_network_draws_to_the_bit(
    name: str, side: int, add: Callable[[nn.Module], list[str]]
) -> None:
    model = network(name, side)
    base, before = weights(model), draw(model, side)
    added = add(model)
    assert torch.equal(draw(model, side), before)
    train(model, added)
    drawn = draw(model, side)
    assert not torch.equal(drawn, before)
    state = weights(model)
    adapter = adapters.plain({new: state[new] for new in added})
    assert adapters.plain(state).keys() == base.keys() | adapter.keys() and not base.keys() & adapter.keys()
    fresh = network(name, side, seed=3)
    fresh.load_state_dict(adapters.fold(filed(base), filed(adapter)))
    assert torch.equal(draw(fresh, side), drawn)
    assert same(weights(network(name, side)), base)  # folding leaves the base alone
    twin = copy.deepcopy(model)
    assert torch.equal(draw(twin, side), drawn)
    train(twin, added)
    assert torch.equal(draw(model, side), drawn) and not torch.equal(draw(twin, side), drawn)


def test_adapted_weights_keep_their_memory_format(add: Callable[[nn.Module], list[str]]) -> None:
    model = network()
    add(model)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            assert layer.weight.is_contiguous(memory_format=torch.channels_last)


def test_only_the_new_learns_when_the_rest_is_frozen(add: Callable[[nn.Module], list[str]]) -> None:
    model = network()
    model.load_state_dict(stirred(weights(model)))  # a fresh residual is zero, and nothing before it learns
    before = dict(model.named_parameters())
    added = add(model)
    after = dict(model.named_parameters())
    assert after.keys() - set(added) == {n for n in after if any(after[n] is old for old in before.values())}
    assert all(weight.requires_grad for weight in after.values())  # nothing was frozen
    for name, weight in after.items():
        weight.requires_grad_(name in added)
    model(torch.rand(3, 3, 32, 32), PEOPLE)[0].square().mean().backward()
    reached = {name for name, weight in after.items() if weight.grad is not None}
    assert reached == set(added)
    still = {name for name in added if not after[name].grad.any()}  # type: ignore[union-attr]
    assert still == {name for name in added if name.endswith(".down")}  # which waits for its `up`


def test_only_the_chosen_are_adapted_and_parameters_are_named() -> None:
    model = network()
    assert adapters.add_low_rank(model, 3, lambda name: name == "narrow.weight") == [
        "narrow.parametrizations.weight.0.up",
        "narrow.parametrizations.weight.0.down",
    ]
    assert adapters.add_film(model, {"head.conv.weight"}.__contains__) == [
        "head.conv.parametrizations.weight.0.gain",
        "head.conv.parametrizations.bias.0.shift",
    ]
    assert adapters.add_film(nn.Linear(2, 3, bias=False), lambda name: name == "weight") == [
        "parametrizations.weight.0.gain"
    ]
    with pytest.raises(ValueError, match=r"narrow\.weight has an adapter"):
        adapters.add_film(model, lambda name: name == "narrow.weight")


def test_a_rank_is_cut_to_what_the_weight_has() -> None:
    layers = nn.Sequential(nn.Linear(5, 3), nn.Conv2d(2, 9, 3), nn.Conv2d(2, 40, 1))
    adapters.add_low_rank(layers, 7, lambda name: True)
    assert {n: tuple(t.shape) for n, t in adapters.plain(weights(layers)).items() if n[-2:] in ("up", "wn")} == {
        **{"0.weight.up": (3, 3), "0.weight.down": (3, 5)},
        **{"1.weight.up": (9, 7), "1.weight.down": (7, 18)},
        **{"2.weight.up": (40, 2), "2.weight.down": (2, 2)},
    }


def test_down_starts_within_the_bound_of_its_inputs() -> None:
    change = adapters.LowRank(torch.zeros(64, 25, 4, 4), 16)
    bound = 400**-0.5
    assert not change.up.any() and 0.98 * bound < change.down.abs().max() <= bound
    assert change.down.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)


def test_film_scales_and_shifts_what_a_layer_says() -> None:
    layer, x = nn.Conv2d(3, 4, 3), torch.rand(2, 3, 6, 6)
    said = layer(x)
    bare, bias = said - layer.bias.view(-1, 1, 1), layer.bias.detach()  # type: ignore[union-attr]
    adapters.add_film(layer, lambda name: True)
    gain, shift = torch.randn(4), torch.randn(4)
    with torch.no_grad():
        layer.parametrizations.weight[0].gain.copy_(gain)  # type: ignore[union-attr,index]
        layer.parametrizations.bias[0].shift.copy_(shift)  # type: ignore[union-attr,index]
    torch.testing.assert_close(layer(x), bare * (1 + gain).view(-1, 1, 1) + (bias + shift).view(-1, 1, 1))


def test_low_rank_adds_a_product_and_autocast_does_not_round_it() -> None:
    layer = nn.Linear(6, 5)
    weight = layer.weight.detach().clone()
    adapters.add_low_rank(layer, 2, lambda name: True)
    train(layer, ["parametrizations.weight.0.up"])
    part = adapters.plain(weights(layer))
    expected = weight + part["weight.up"] @ part["weight.down"]
    assert torch.linalg.matrix_rank(layer.weight - weight).item() == 2
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(layer.weight, expected)


def test_folding_replaces_whole_tensors_and_takes_the_dtype_of_the_base() -> None:
    base = {"a.weight": torch.rand(3, 2), "a.bias": torch.rand(3), "count": torch.tensor(3)}
    folded = adapters.fold(base, {"a.bias": torch.ones(3).half(), "a.weight.gain": torch.ones(3).half()})
    assert same(folded, {**base, "a.bias": torch.ones(3), "a.weight": base["a.weight"] * 2})
    assert same(adapters.fold(base, {}), base)


@pytest.mark.parametrize(
    ("adapter", "message"),
    [
        ({"b.weight.up": (3, 1)}, "changes b.weight.up, which its base does not have"),
        ({"up": (3, 1)}, "changes up, which its base does not have"),
        ({"a.weight.up": (3, 1)}, "holds for a.weight up; expected down and up"),
        ({"a.weight.down": (1, 8)}, "holds for a.weight down; expected down and up"),
        ({"a.weight.sideways": (3,)}, "holds for a.weight sideways; expected"),
        ({"a.weight.": (3,)}, "holds for a.weight ; expected"),
        ({"a.weight.up": (3, 1), "a.weight.down": (1, 8), "a.weight.gain": (3,)}, "holds for a.weight down and gain"),
        ({"a.weight": (3, 2, 2, 2), "a.weight.gain": (3,)}, "gain and a tensor in its place"),
        ({"a.weight.up": (3, 2), "a.weight.down": (1, 8)}, r"a.weight.up is \[3, 2\], expected \[3, 1\]"),
        ({"a.weight.up": (3, 1), "a.weight.down": (1, 9)}, r"a.weight.down is \[1, 9\], expected \[1, 8\]"),
        ({"a.weight.up": (3,), "a.weight.down": (8,)}, r"a.weight.up is \[3\]|a.weight.down is \[8\]"),
        ({"a.weight.up": (), "a.weight.down": ()}, "expected"),
        ({"a.weight.gain": (2,)}, r"a.weight.gain is \[2\], expected \[3\]"),
        ({"a.bias.shift": (1,)}, r"a.bias.shift is \[1\], expected \[3\]"),
        ({"a.bias": (4,)}, r"a.bias is \[4\], expected \[3\]"),
        ({"count.gain": (1,)}, "holds for count gain"),
        ({"ids.gain": (2,)}, "holds for ids gain"),
    ],
)
def test_what_does_not_fit_the_base_is_said(adapter: dict[str, tuple[int, ...]], message: str) -> None:
    base = {
        **{"a.weight": torch.rand(3, 2, 2, 2), "a.bias": torch.rand(3)},
        **{"count": torch.tensor(3.0), "ids": torch.tensor([1, 2])},
    }
    with pytest.raises(CheckpointError, match=message):
        adapters.fold(base, {name: torch.zeros(shape) for name, shape in adapter.items()})


def test_a_difference_comes_back_within_half_a_step_of_its_channel() -> None:
    base = weights(network())
    after = stirred(base)
    after["narrow.weight"][3] *= 50  # one loud channel costs the others nothing
    found = adapters.unpack_delta(filed(adapters.pack_delta(after, base)), base)
    assert found.keys() == after.keys()
    for name, tensor in after.items():
        moved = (tensor - base[name]).reshape(len(tensor) if tensor.dim() > 1 else 1, -1)
        error = (tensor - found[name]).abs().reshape(moved.shape)
        assert (error <= moved.abs().amax(1, keepdim=True) / 254 * 1.001 + 1e-6).all()
    ratio = adapters.distance(after, found) / adapters.distance(after, base)
    assert 1e-3 < ratio < 0.01


def test_a_difference_takes_a_quarter_of_the_bytes_and_nothing_where_nothing_changed() -> None:
    base = weights(network())
    after = stirred(base)
    packed = adapters.pack_delta(after, base)
    size = sum(tensor.nbytes for tensor in after.values())
    assert sum(tensor.nbytes for tensor in packed.values()) < 0.26 * size
    one = adapters.pack_delta({**base, "who.weight": after["who.weight"]}, base)
    assert one.keys() == {"scale.who.weight", "bytes"}
    nothing = adapters.pack_delta(base, base)
    assert nothing.keys() == {"bytes"} and len(nothing["bytes"]) < 20
    assert same(adapters.unpack_delta(nothing, base), base)
    again = adapters.pack_delta(dict(reversed(after.items())), dict(reversed(base.items())))
    assert same(again, packed)  # whatever the order


def test_what_is_no_difference_is_stored_whole() -> None:
    base = {
        **{"grown": torch.rand(2, 3), "half": torch.rand(4).half(), "count": torch.tensor(3), "gone": torch.rand(2)},
        **{"same": torch.tensor([1, 2]), "wider": torch.rand(3), "scalar": torch.tensor(2.0), "none": torch.rand(0, 3)},
    }
    after = {
        **{"grown": torch.rand(3, 3), "half": torch.rand(4).half(), "count": torch.tensor(4), "new": torch.rand(2, 2)},
        **{"same": torch.tensor([1, 2]), "wider": torch.rand(3).double(), "scalar": torch.tensor(2.5)},
        **{"none": torch.rand(0, 3), "flags": torch.tensor([True, False])},
    }
    packed = adapters.pack_delta(after, base)
    whole = {"whole.count", "whole.flags", "whole.grown", "whole.new", "whole.wider"}
    assert packed.keys() == whole | {"bytes", "gone.gone", "scale.half", "scale.scalar"}
    found = adapters.unpack_delta(packed, base)
    assert found.keys() == after.keys() and found["half"].dtype == torch.float16
    assert found["wider"].dtype == torch.float32 and torch.equal(found["wider"], after["wider"].float())
    exact = after.keys() - {"half", "wider"}
    assert same({n: found[n] for n in exact}, {n: after[n] for n in exact})
    torch.testing.assert_close(found["half"], after["half"], atol=0.01, rtol=0)


def test_a_difference_too_small_to_divide_is_none() -> None:
    base, after = {"a": torch.zeros(2, 2)}, {"a": torch.tensor([[1e-44, 0], [1, 0]])}
    found = adapters.unpack_delta(adapters.pack_delta(after, base), base)["a"]
    torch.testing.assert_close(found, after["a"])


@pytest.mark.parametrize("bad", [math.inf, math.nan])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    fine, wrong = {"a": torch.ones(2, 2)}, {"a": torch.tensor([[1, bad], [1, 1]])}
    for after, base in ((wrong, fine), (fine, wrong), (wrong, wrong), (wrong, {})):
        with pytest.raises(CheckpointError, match="a holds numbers that are not finite"):
            adapters.pack_delta(after, base)
    packed = adapters.pack_delta({"a": 2 * fine["a"], "b": fine["a"]}, fine)
    for name in ("scale.a", "whole.b"):
        with pytest.raises(CheckpointError, match="not finite"):
            adapters.unpack_delta({**packed, name: packed[name] * bad}, fine)


def as_tensor(data: bytes) -> Tensor:
    return torch.tensor(list(data), dtype=torch.uint8)


def test_damage_is_noticed() -> None:
    base = {"a": torch.rand(3, 4), "b": torch.rand(5), "n": torch.tensor([1, 2])}
    packed = adapters.pack_delta(stirred({"a": base["a"], "b": base["b"]}), base)
    data = bytes(packed["bytes"].tolist())
    half = len(data) // 2
    flipped = data[:half] + bytes([data[half] ^ 1]) + data[half + 1 :]
    short = {name: tensor for name, tensor in packed.items() if name != "bytes"}
    bad: list[dict[str, Tensor]] = [
        {**packed, "bytes": as_tensor(flipped)},
        *({**packed, "bytes": as_tensor(data[:length])} for length in (0, 1, len(data) - 1)),
        {**packed, "bytes": as_tensor(data + b"x")},
        {**packed, "bytes": as_tensor(zlib.compress(bytes(16)))},
        {**packed, "bytes": as_tensor(zlib.compress(bytes(18)))},
        {**packed, "bytes": packed["bytes"].bfloat16()},
        short,
        {name: tensor for name, tensor in packed.items() if name != "scale.b"},
        {**packed, "scale.a": packed["scale.a"][:2]},
        {**packed, "scale.a": packed["scale.a"].half()},
        {**packed, "scale.z": packed["scale.a"]},
        {**packed, "scale": packed["scale.a"]},
        {**packed, "bytes.a": packed["bytes"]},
        {**packed, "other": packed["bytes"]},
        {**packed, "gone.z": torch.zeros(0)},
        {"scale.n": torch.ones(1), "bytes": as_tensor(zlib.compress(bytes(2)))},
    ]
    for one in bad:
        with pytest.raises(CheckpointError, match="; use "):
            adapters.unpack_delta(one, base)
    for other in ({"a": base["a"]}, {**base, "a": torch.rand(3, 5)}, {**base, "a": torch.rand(2, 6)}):
        with pytest.raises(CheckpointError, match="its own base"):
            adapters.unpack_delta(packed, other)


def test_a_bomb_does_not_go_off(monkeypatch: pytest.MonkeyPatch) -> None:
    base = {"a": torch.zeros(2, 2)}
    bomb = as_tensor(zlib.compress(bytes(2**20), 9))
    limits: list[int] = []
    real = zlib.decompressobj

    class Watched:
        def __init__(self) -> None:
            self.real = real()

        def __getattr__(self, name: str) -> object:
            return getattr(self.real, name)

        def decompress(self, data: bytes, limit: int = 0) -> bytes:
            limits.append(limit)
            return self.real.decompress(data, limit)

    monkeypatch.setattr("zlib.decompressobj", Watched)
    for packed in ({"scale.a": torch.ones(2), "bytes": bomb}, {"bytes": bomb}):
        with pytest.raises(CheckpointError, match="damaged"):
            adapters.unpack_delta(packed, base)
    assert limits == [5, 1]


def test_the_ends_of_an_interpolation_are_exact() -> None:
    base = {**weights(network()), "zero": torch.tensor([-0.0, 0.0])}
    after = {**stirred(base), "zero": torch.tensor([1.0, -0.0])}
    for strength, expected in ((0.0, base), (1.0, after)):
        mixed = adapters.interpolate(base, after, strength)
        assert same(mixed, expected)
        assert torch.equal(mixed["zero"].signbit(), expected["zero"].signbit())


@pytest.mark.parametrize("strength", [0.3, 0.5, 0.8, 1.5])
def test_between_and_beyond_are_on_the_line(strength: float) -> None:
    base = weights(network())
    after = stirred(base)
    mixed = adapters.interpolate(base, after, strength)
    for name, tensor in mixed.items():
        expected = base[name].double() + strength * (after[name].double() - base[name].double())
        torch.testing.assert_close(tensor, expected.float())
    assert adapters.distance(base, mixed) == pytest.approx(strength * adapters.distance(base, after), rel=1e-4)


def test_what_cannot_be_interpolated_is_as_tuned() -> None:
    base = {"a": torch.zeros(2), "grown": torch.zeros(2), "n": torch.tensor(2), "gone": torch.zeros(1)}
    after = {"a": torch.ones(2), "grown": torch.ones(3), "n": torch.tensor(4), "new": torch.ones(1)}
    for strength in (0, 0.5):
        assert same(adapters.interpolate(base, after, strength), {**after, "a": torch.full((2,), float(strength))})


def test_adding_up_adds_each_difference_once() -> None:
    base = {"a": torch.rand(3, 3), "b": torch.rand(3), "n": torch.tensor(1)}
    one = {**base, "a": base["a"] + 1, "new": torch.ones(1)}
    other = {"a": base["a"] - 3, "b": torch.rand(4), "n": torch.tensor(2)}
    total = adapters.add_up(base, one, other)
    torch.testing.assert_close(total, {**base, "a": base["a"] - 2})
    assert same(adapters.add_up(base), base) and same(adapters.add_up(base, base, base), base)
    torch.testing.assert_close(adapters.add_up(base, one), {n: one[n] for n in base})


def test_low_rank_changes_on_other_layers_add_up_to_both() -> None:
    base = weights(network())
    own = {"narrow.weight.gain": torch.full((16,), 0.5)}
    theirs = {"head.conv.bias.shift": torch.ones(16)}
    both = adapters.add_up(base, adapters.fold(base, own), adapters.fold(base, theirs))
    torch.testing.assert_close(both, adapters.fold(base, own | theirs))


def test_distance_is_relative_to_the_base() -> None:
    base = {"a": torch.tensor([3.0, 0]), "b": torch.tensor([[4.0]]), "n": torch.tensor(7), "gone": torch.ones(9)}
    after = {"a": torch.tensor([3.0, 1]), "b": torch.tensor([[4.0]]), "n": torch.tensor(9), "new": torch.ones(9)}
    assert adapters.distance(base, after) == pytest.approx(0.2)
    assert adapters.distance(base, base) == adapters.distance({}, {}) == 0
    assert adapters.distance({"a": torch.zeros(2)}, {"a": torch.ones(2)}) == math.inf
