"""Which device does the work, and in which precision."""

import os
import re
from typing import Any

import torch

from faceswap import console
from faceswap.config import Recipe
from faceswap.errors import UsageError


def resolve(name: str) -> torch.device:
    """`auto`, `cpu`, `cuda`, `cuda:1` or `mps` as a device that is there.

    `auto` takes the first of CUDA, MPS and CPU; it says so when that is the CPU. `UsageError` if the device named is
    missing or unknown.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda", 0)
        if torch.backends.mps.is_available():
            return torch.device("mps")
        console.say("device: CPU, no GPU found (faceswap doctor says more)")
        name = "cpu"
    if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
        raise UsageError(f"--device {name}: expected auto, cpu, cuda, cuda:N or mps")
    kind, _, number = name.partition(":")
    if kind == "cuda":
        found = torch.cuda.device_count()
        if int(number or 0) >= found:
            raise UsageError(f"--device {name}: {found} CUDA devices found; see faceswap doctor, or use --device cpu")
        return torch.device("cuda", int(number or 0))
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UsageError("--device mps: not available here; use --device auto")
    if kind == "cpu":
        torch.set_flush_denormal(True)  # numbers below 1e-38 are slow and nothing; before the first thread starts
    return torch.device(kind)


def torchrun() -> tuple[int, int] | None:
    """Processes per host and hosts, if torchrun started this process."""
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return None
    world, local = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if world % local:
        raise UsageError(f"torchrun: {local} of {world} processes on this host; expected as many on every host")
    return local, world // local


def on_this_host(devices: int) -> int:
    """Processes of a training with so many `train.devices` that share this host."""
    outside = torchrun()
    return outside[0] if outside else devices


def counted(recipe: Recipe) -> Recipe:
    """The recipe with the number of processes that torchrun started, if it did."""
    outside = torchrun()
    return recipe.changed(train={"devices": outside[0] * outside[1]}) if outside else recipe


def fabric_options(name: str, devices: int, precision: str) -> dict[str, Any]:
    """The arguments of `lightning_fabric.Fabric` for one process on the device `name`, or `devices` of its kind.

    Under torchrun its processes take the place of `devices`. Precision `auto` is bf16 autocast on CUDA where the card
    has it, else float32: on CPUs without AMX bf16 is more than ten times slower.
    """
    from lightning_fabric.plugins.environments.lightning import LightningEnvironment  # a second, with torch._dynamo
    from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment

    device = resolve(name)
    if precision == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bf16-mixed" if fast else "32-true"
    outside = torchrun()
    here, hosts = outside or (devices, 1)
    places: Any = here
    if device.type == "cuda":
        found = torch.cuda.device_count()
        if here > found:
            raise UsageError(f"train.devices = {here}: {found} CUDA devices found")
        places = [(device.index + i) % found for i in range(here)]
    options = {"accelerator": device.type, "devices": places, "num_nodes": hosts, "precision": precision}
    # Named, so that nothing else that is found around us, such as SLURM, counts the processes.
    options["plugins"] = [TorchElasticEnvironment() if outside else LightningEnvironment()]
    return options | ({"strategy": "ddp"} if here * hosts > 1 else {})
