"""What this machine can do for faceswap, what is missing, and the remedy."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from faceswap.errors import CheckpointError, FaceswapError

PACKAGES = (
    "torch",
    "torchvision",
    "facenet-pytorch",
    "opencv-python",
    "albumentations",
    "tensorboard",
    "av",
    "lightning-fabric",
    "numpy",
    "pydantic",
    "safetensors",
)
EXTRAS = {  # optional ones, and the module that each brings
    "export": "onnx",
    "identity": "face_recognition_models",
    "provenance": "c2pa",
    "ray": "ray",
    "restore": "onnxruntime",
    "studio": "aiohttp",
}
ROOM = 5  # GB that a run with its facesets easily takes


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    name: str
    ok: bool
    value: str
    remedy: str = ""


def examine(device: str = "auto") -> list[Finding]:
    """Versions, device and each station of the flow tried for real."""
    python = Finding("python", sys.version_info >= (3, 11), platform.python_version(), "install Python 3.11 or newer")
    findings = [python, *(_package(name) for name in PACKAGES)]
    if all(finding.ok for finding in findings):
        findings += [_device(device), _detector(), _encoder(), _base()]
    findings.append(_extras())
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    findings.append(Finding("disk", free > ROOM, f"{free:.0f} GB free here", f"free {ROOM} GB or work elsewhere"))
    return findings


def _package(name: str) -> Finding:
    try:
        return Finding(name, True, importlib.metadata.version(name))
    except importlib.metadata.PackageNotFoundError:
        return Finding(name, False, "missing", "pip install faceswap again in this environment")


def _extras() -> Finding:
    there = {extra: importlib.util.find_spec(module) is not None for extra, module in EXTRAS.items()}
    missing = [extra for extra in EXTRAS if not there[extra]]
    said = ", ".join(extra for extra in EXTRAS if there[extra]) or "none"
    if missing:
        said += f"; pip install 'faceswap[NAME]' brings {', '.join(missing)}"
    return Finding("extras", True, said)


def _device(name: str) -> Finding:
    """The device that `--device name` takes, and whether a small network runs on it."""
    try:
        import torch

        from faceswap.devices import resolve

        device = resolve(name)
        torch.nn.Conv2d(3, 4, 3).to(device)(torch.zeros(1, 3, 8, 8, device=device)).sum().backward()
    except (ImportError, OSError, RuntimeError, FaceswapError) as error:
        return Finding("device", False, f"{name}: {error}", "a driver and a torch build that fit, or --device cpu")
    if device.type == "cuda":
        precision = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
        return Finding("device", True, f"{device}: {torch.cuda.get_device_name(device)}; {precision}")
    if device.type == "mps":
        return Finding("device", True, "mps; float32")
    threads = torch.get_num_threads()
    said = f"cpu, {threads} threads of {os.cpu_count()} cores; float32: small models only"
    return Finding("device", True, said)


def _detector() -> Finding:
    import numpy as np

    from faceswap import detectors

    try:
        detector = detectors.build("mtcnn", threshold=0.9, min_size=48, device="cpu")
        found = detector([np.zeros((96, 96, 3), np.uint8)])
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        return Finding("detector", False, f"mtcnn: {error}", "pip install facenet-pytorch==2.5.3 torch torchvision")
    return Finding("detector", found == [[]], "mtcnn, weights found")


def _encoder() -> Finding:
    import av

    if "libx264" in av.codecs_available:
        return Finding("video", True, f"H.264 by PyAV {av.__version__}")
    return Finding("video", False, "no libx264 in PyAV", "pip install --force-reinstall --only-binary av av")


def _base() -> Finding:
    from faceswap import pretrained

    try:
        bases = [path.stem for path in pretrained.bases()]
    except CheckpointError as error:
        said, _, remedy = str(error).rpartition("; ")
        return Finding("base", False, said, remedy)
    return Finding("base", True, ", ".join(bases) or "none ships yet: training starts from scratch, or from --base")
