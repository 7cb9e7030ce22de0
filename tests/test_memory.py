"""Tests of faceswap.memory: an estimate that is right to the byte where the truth is known."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from faceswap import adapters, checkpoint, memory
from faceswap.config import Recipe, check
from faceswap.errors import TrainingError
from faceswap.models import FaceModel

CPU = torch.device("cpu")


def recipe(**model: Any) -> Recipe:
    return check({"model": {"resolution": 32, "width": 4, "code": 16} | model}, "test").resolved()


def test_living_counts_what_lives_and_forgets_what_dies() -> None:
    before = torch.ones(1000)

    def work() -> None:
        kept = before * 2  # 4000 bytes
        for _ in range(3):
            kept = kept + 1  # the next lives beside the last
        kept.add_(1)  # nothing new
        kept.view(10, 100)

    curve = memory.living(work)
    assert max(curve) == 8000 and curve[0] == 0 and curve[-1] == 4000


def test_an_estimate_of_a_known_network_is_exact() -> None:
    layers = nn.Sequential(nn.Linear(100, 100, bias=False), nn.Tanh(), nn.Linear(100, 1, bias=False))

    def step(faces: int) -> None:
        layers(torch.zeros(faces, 100)).sum().backward()

    need = memory.Estimate(layers, step, people=1).at(5000)
    size = 4 * (100 * 100 + 100)
    assert (need.weights, need.gradients, need.optimizer, need.average) == (size, size, 2 * size, size)
    at_least = 4 * 5000 * 100 * 3  # input, what tanh gave, its gradient
    assert at_least <= need.activations <= at_least * 1.4
    assert all(weight.grad is None for weight in layers.parameters())
    assert memory.Estimate(layers, step, people=1, copies=2).at(1).gradients == 2 * size


def gradients(model: FaceModel, faces: Tensor, person: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    drawn, mask = model(faces, person)
    (drawn.square().mean() + mask.mean()).backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if weight.grad is not None}


@pytest.mark.parametrize("name", ["df", "liae"])
def test_checkpointing_gives_the_same_gradients_for_less_memory(name: str) -> None:
    torch.manual_seed(0)
    model = checkpoint.new_model(recipe(name=name, resolution=64, width=8), ["source", "target"])
    names = list(model.state_dict())
    faces, person = torch.rand(4, 3, 64, 64), torch.tensor([0, 0, 1, 1])
    before = gradients(model, faces, person)
    need = [max(memory.living(lambda: gradients(model, faces, person)))]
    assert memory.checkpointed(model) >= 4 and list(model.state_dict()) == names
    after = gradients(model, faces, person)
    need.append(max(memory.living(lambda: gradients(model, faces, person))))
    assert before.keys() == after.keys()
    for key, gradient in before.items():
        torch.testing.assert_close(after[key], gradient, atol=1e-7, rtol=1e-5)
    assert need[1] < need[0]


@pytest.mark.parametrize("name", ["df", "liae", "modulated"])
def test_checkpointing_bears_adapters(name: str) -> None:
    """What an adapter makes of a weight is computed again on the way back too."""
    torch.manual_seed(0)
    model = checkpoint.new_model(recipe(name=name), ["source", "target"]).requires_grad_(False)
    added = [*adapters.add_low_rank(model, 2, lambda key: "encoder" in key)]
    added += adapters.add_film(model, lambda key: "encoder" not in key)
    with torch.no_grad():
        for key in added:
            model.get_parameter(key).normal_(std=0.05)
    faces, person = torch.rand(4, 3, 32, 32), torch.tensor([0, 0, 1, 1])
    before = gradients(model, faces, person)
    assert memory.checkpointed(model) >= 4 and before.keys() == set(added)
    after = gradients(model, faces, person)
    assert after.keys() == before.keys()
    for key, gradient in before.items():
        torch.testing.assert_close(after[key], gradient, atol=1e-7, rtol=1e-5)


def test_frozen_weights_need_neither_gradients_nor_moments() -> None:
    layers = nn.Sequential(nn.Linear(100, 100, bias=False), nn.Linear(100, 10, bias=False))
    layers[0].requires_grad_(False)

    def step(faces: int) -> None:
        layers(torch.zeros(faces, 100)).sum().backward()

    need = memory.Estimate(layers, step, people=1).at(8)
    whole, part = 4 * (100 * 100 + 100 * 10), 4 * 100 * 10
    assert (need.weights, need.average, need.gradients, need.optimizer) == (whole, whole, part, 2 * part)
    assert need.activations < 4 * 100 * 100, "nothing of the size of what is frozen is made"
    assert layers[0].weight.grad is layers[1].weight.grad is None


def test_too_much_is_one_line_that_names_what_to_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("faceswap.console.say", said.append)
    monkeypatch.setattr(memory, "free", lambda device: 5 * memory.GB)
    need = memory.Need(memory.GB // 2, memory.GB // 2, memory.GB, memory.GB // 2, 2 * memory.GB)
    memory.check(need, 1, CPU, recipe())
    parts = "4.50 GB (weights 0.50, gradients 0.50, AdamW 1.00, EMA 0.50, activations 2.00), cpu has 5.00 GB free"
    assert said == [f"training needs {parts}"]
    with pytest.raises(TrainingError) as caught:
        memory.check(need, 2, CPU, recipe())
    assert str(caught.value) == (
        f"2 processes need 2 x {parts}: lower data.batch (now 8), raise train.accumulate (1), set "
        "train.checkpointing=true, or lower model.resolution (32) or model.width (4)"
    )
    monkeypatch.setattr(memory, "free", lambda device: None)
    memory.check(need, 99, CPU, recipe())


def test_running_out_is_one_line_too() -> None:
    how = recipe().changed(train={"accumulate": 2, "checkpointing": True})
    said = r"^out of memory on cpu: .*raise train.accumulate \(2\), or lower"
    with pytest.raises(TrainingError, match=said), memory.exhausted(CPU, how):
        raise torch.OutOfMemoryError
    with pytest.raises(TrainingError, match=said), memory.exhausted(CPU, how):
        torch.empty(2**50)  # which is another error
    with pytest.raises(RuntimeError, match="something else"), memory.exhausted(CPU, how):
        raise RuntimeError("something else")


def test_what_is_free_and_used_here() -> None:
    free = memory.free(CPU)
    assert free is not None and 10**7 < free < 10**14
    before = memory.used(CPU)
    held = torch.ones(100_000_000)
    assert memory.used(CPU) - before > 200_000_000 and held[-1] > 0


def test_the_limit_of_a_container_counts(tmp_path: Path) -> None:
    assert memory._granted(tmp_path) is None
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("700\n")
    (tmp_path / "memory.stat").write_text("anon 500\ninactive_file 100\n")
    assert memory._granted(tmp_path) is None
    (tmp_path / "memory.max").write_text("1000\n")
    assert memory._granted(tmp_path) == 400


def test_a_card_says_itself_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (1000, 9000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 500)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 300)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: 700)
    card = torch.device("cuda", 0)
    assert memory.free(card) == 1200 and memory.used(card) == 700
