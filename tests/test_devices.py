"""Tests of faceswap.devices: the device asked for, or a word on why not."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning_fabric import Fabric
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from faceswap import console, devices
from faceswap.config import check
from faceswap.errors import UsageError

Machine = Callable[..., None]


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    """Pretends what hardware torch finds."""

    def pretend(*, cuda: int = 0, mps: bool = False, bf16: bool = True) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16 or including_emulation)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)

    return pretend


@pytest.mark.parametrize("name", ["gpu", "", "cuda:", "cuda:-1", "CPU", "cpu:0", "cuda:one", "xla"])
def test_an_unknown_name_is_told_the_known(name: str) -> None:
    with pytest.raises(UsageError, match=f"--device {name}: expected auto, cpu, cuda, cuda:N or mps"):
        devices.resolve(name)


def test_a_card_that_is_not_there_is_refused_with_the_count() -> None:
    count = torch.cuda.device_count()
    with pytest.raises(UsageError, match=f"--device cuda:99: {count} CUDA devices found"):
        devices.resolve("cuda:99")


def test_the_first_missing_card_is_refused(machine: Machine) -> None:
    machine(cuda=2)
    assert devices.resolve("cuda:1") == torch.device("cuda", 1)
    assert devices.resolve("cuda") == torch.device("cuda", 0)
    with pytest.raises(UsageError, match="cuda:2: 2 CUDA devices found"):
        devices.resolve("cuda:2")


def test_mps_that_is_not_there_is_refused(machine: Machine) -> None:
    machine()
    with pytest.raises(UsageError, match="--device mps: not available"):
        devices.resolve("mps")
    machine(mps=True)
    assert devices.resolve("mps") == torch.device("mps")


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"), [(2, True, "cuda:0"), (1, False, "cuda:0"), (0, True, "mps"), (0, False, "cpu")]
)
def test_auto_takes_the_best_there_is(machine: Machine, cuda: int, mps: bool, expected: str) -> None:
    machine(cuda=cuda, mps=mps)
    assert devices.resolve("auto") == torch.device(expected)


def test_auto_can_be_used_here() -> None:
    assert torch.ones(2, device=devices.resolve("auto")).sum().item() == 2


@pytest.mark.parametrize(("cuda", "told"), [(0, True), (1, False)])
def test_auto_says_so_when_it_falls_back_to_the_cpu(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, cuda: int, told: bool
) -> None:
    said: list[str] = []
    monkeypatch.setattr(console, "say", said.append)
    machine(cuda=cuda)
    devices.resolve("auto")
    assert ["CPU, no GPU found" in line for line in said] == [True] * told


def without_plugins(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name != "plugins"}


def test_the_cpu_works_in_float32_by_itself() -> None:
    options = devices.fabric_options("cpu", 1, "auto")
    assert without_plugins(options) == {"accelerator": "cpu", "devices": 1, "num_nodes": 1, "precision": "32-true"}
    assert Fabric(**options).device == torch.device("cpu")


@pytest.mark.parametrize("name", ["cpu", "mps"])
def test_only_cards_work_in_bf16_by_themselves(machine: Machine, name: str) -> None:
    machine(cuda=1, mps=True, bf16=True)
    assert devices.fabric_options(name, 1, "auto")["precision"] == "32-true"


@pytest.mark.parametrize(("bf16", "precision"), [(True, "bf16-mixed"), (False, "32-true")])
def test_a_card_works_in_bf16_if_it_can(machine: Machine, bf16: bool, precision: str) -> None:
    machine(cuda=2, bf16=bf16)
    expected = {"accelerator": "cuda", "devices": [1], "num_nodes": 1, "precision": precision}
    assert without_plugins(devices.fabric_options("cuda:1", 1, "auto")) == expected


def test_a_precision_that_was_asked_for_is_kept(machine: Machine) -> None:
    machine(cuda=1)
    assert devices.fabric_options("cuda", 1, "32-true")["precision"] == "32-true"
    assert devices.fabric_options("cpu", 1, "bf16-mixed")["precision"] == "bf16-mixed"


def test_several_devices_work_side_by_side(machine: Machine) -> None:
    machine(cuda=4)
    options = devices.fabric_options("cuda", 3, "auto")
    assert options["devices"] == [0, 1, 2] and options["strategy"] == "ddp"
    assert devices.fabric_options("cpu", 2, "auto")["strategy"] == "ddp"


def test_more_cards_than_there_are_is_refused(machine: Machine) -> None:
    machine(cuda=1)
    with pytest.raises(UsageError, match=r"train\.devices = 2: 1 CUDA devices found"):
        devices.fabric_options("cuda", 2, "auto")


def test_a_number_that_torch_cannot_hold_is_refused() -> None:
    with pytest.raises(UsageError, match="CUDA devices found"):
        devices.resolve("cuda:99999999999999")


def test_a_card_that_was_named_is_among_several(machine: Machine) -> None:
    machine(cuda=4)
    assert 3 in devices.fabric_options("cuda:3", 2, "auto")["devices"]


def test_torchrun_says_how_many_there_are(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    machine(cuda=4)
    how = check({"train": {"devices": 3}}, "test")
    assert devices.torchrun() is None and devices.counted(how) is how and devices.on_this_host(3) == 3
    for name, value in {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    assert devices.torchrun() == (4, 2) and devices.counted(how).train.devices == 8 and devices.on_this_host(8) == 4
    options = devices.fabric_options("cuda", 8, "auto")
    assert (options["devices"], options["num_nodes"], options["strategy"]) == ([0, 1, 2, 3], 2, "ddp")
    assert isinstance(options["plugins"][0], TorchElasticEnvironment)
    monkeypatch.setenv("WORLD_SIZE", "6")
    with pytest.raises(UsageError, match="torchrun: 4 of 6 processes on this host; expected as many on every host"):
        devices.torchrun()


def test_slurm_around_us_counts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "7")
    monkeypatch.setenv("SLURM_JOB_NAME", "training")
    assert Fabric(**devices.fabric_options("cpu", 1, "auto")).world_size == 1


def test_the_cpu_flushes_what_is_nearly_nothing() -> None:
    devices.resolve("cpu")
    assert (torch.tensor(1e-38) * 0.1).item() == 0
