"""Which device does the work, and in which precision."""

import re
from typing import Any

import torch

from faceswap import console
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
        return torch.device("cpu")
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
    return torch.device(kind)


def fabric_options(name: str, devices: int, precision: str) -> dict[str, Any]:
    """The arguments of `lightning_fabric.Fabric` for one process on the device `name`, or `devices` of its kind.

    Precision `auto` is bf16 autocast on CUDA where the card has it, else float32: on CPUs without AMX bf16 is more
    than ten times slower.
    """
    device = resolve(name)
    if precision == "auto":
        fast = device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
        precision = "bf16-mixed" if fast else "32-true"
    places: Any = devices
    if device.type == "cuda":
        found = torch.cuda.device_count()
        if devices > found:
            raise UsageError(f"train.devices = {devices}: {found} CUDA devices found")
        places = [(device.index + i) % found for i in range(devices)]
    options = {"accelerator": device.type, "devices": places, "precision": precision}
    return options | ({"strategy": "ddp"} if devices > 1 else {})
