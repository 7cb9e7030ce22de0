"""Write configs/*.toml: every option of a recipe with its meaning, as faceswap/config.py states them.

Run after a change in config.py; tests/test_recipes.py holds the files against this.
"""

import re
from pathlib import Path
from typing import Any

import tomli_w

from faceswap import config

ROOT = Path(__file__).parents[1]
FIELD = re.compile(r"^    (\w+): .*?  # (.*)$", re.MULTILINE)
SECTION = re.compile(
    r"^class (\w+)Recipe\(Section\):\n    \"\"\"(.*?)\"\"\"\n(.*?)(?=^class |\Z)", re.MULTILINE | re.DOTALL
)


def ffhq(resolution: int, crop: int, memory_gb: float, note: str) -> tuple[str, dict[str, Any]]:
    """A base of FFHQ's 70,000 people: all its faces a hundred times, whose commands tests/test_recipes.py runs."""
    name = f"pretrain_ffhq_{resolution}"
    images = "thumbnails128x128" if resolution == 128 else "images1024x1024"
    about = f"""\
A base of FFHQ's 70,000 faces at {resolution} px, for swap_{resolution} to start from. For those who have FFHQ:

  faceswap faceset import ffhq/{images} -o ffhq_faces --config {name}
  faceswap pretrain ffhq_faces -o base_{resolution} --config {name}
  faceswap pretrained add base_{resolution} --name ffhq_{resolution} --licence "CC BY-NC-SA 4.0, trained on FFHQ"
  faceswap finetune --source anna --target bert --base ffhq_{resolution} -o run --config swap_{resolution} --minutes 60

{note}
6,300,000 images are a hundred times each of the 63,000 faces that are not held out: a budget for a GPU, chosen and not
yet tried; --until-plateau may end it earlier. The dial sets width, code and batch; a large GPU may be faster with a
larger batch: faceswap train find-batch --people 1 --config {name}
FFHQ is published under CC BY-NC-SA 4.0, and not for face recognition: a base made from it should say so."""
    change = {
        "extract": {"size": crop, "format": "jpg"},
        "model": {"resolution": resolution},
        "data": {"warp": 0.01, "disguise": 0.8, "sampling": "person", "memory_gb": memory_gb},
        "train": {"images": 6_300_000, "warmup": 16_000, "ema": 0.9999, "preview_images": 63_000, "log_images": 3_200},
    }
    return about, change


RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "swap_64": ("A pair at 64 px: the quickest, for small faces.", {"model": {"resolution": 64}}),
    "swap_96": ("A pair at 96 px, the default: twenty minutes on two CPU cores.", {}),
    "swap_128": ("A pair at 128 px: a GPU, or a CPU over night.", {"model": {"resolution": 128}}),
    "swap_192": ("A pair at 192 px: a GPU.", {"model": {"resolution": 192}, "extract": {"size": 384}}),
    "swap_256": ("A pair at 256 px: a GPU.", {"model": {"resolution": 256}, "extract": {"size": 512}}),
    "swap_384": ("A pair at 384 px: a large GPU.", {"model": {"resolution": 384}, "extract": {"size": 768}}),
    "swap_512": (
        "A pair at 512 px, faces that fill half of a 1080p frame: a large GPU and days.",
        {"model": {"resolution": 512}, "extract": {"size": 1024}},
    ),
    "liae_ud_128": (
        "DeepFaceLab's default: liae-ud 128, dims 256/64/64/22, its learning rate and nearly its losses: a GPU.",
        {
            "model": {"name": "liae-ud", "resolution": 128, "code": 256, "width": 64, "decoder": 64, "mask": 22},
            "data": {"batch": 16},
            "loss": {"ssim": 5.0, "l1": 0.0, "mse": 10.0, "mask": 10.0, "background": 0.0},
            "train": {"rate": 5e-5},
        },
    ),
    "pretrain_96": (
        "A base of many people at 96 px, for swap_96 to start from.",
        {"data": {"warp": 0.01, "disguise": 0.8, "sampling": "person"}, "train": {"ema": 0.9995}},
    ),
    "pretrain_ffhq_128": ffhq(
        128,
        128,
        6.0,
        "The thumbnails (2 GB) hold 116 px of a face: nearly enough. Who has images1024x1024 (89 GB) imports\n"
        "that, with --set extract.size=256. All faces take 5 GB of memory.",
    ),
    "pretrain_ffhq_256": ffhq(
        256,
        512,
        24.0,
        "All faces take 20 GB of memory. With less, --set data.memory_gb=4: they are read from disk, time and again.",
    ),
    "pretrain_ffhq_512": ffhq(
        512,
        928,
        4.0,
        "928 px are all that FFHQ has of a face. All faces would take 80 GB of memory (--set data.memory_gb=80):\n"
        "they are read from disk, time and again, which wants many cores.",
    ),
    "debug": (
        "Trains in seconds and draws nothing worth seeing: to try the plumbing.",
        {
            "extract": {"size": 64, "every": 4},
            "model": {"resolution": 32, "width": 4, "code": 16},
            "data": {"batch": 4},
            "train": {"images": 80, "warmup": 16, "preview_images": 40, "log_images": 8},
        },
    ),
}


def text_of(name: str) -> str:
    """The file of the recipe `name`."""
    title, change = RECIPES[name]
    values = config.check(change, name).model_dump()
    head = [f"# {line}".rstrip() for line in title.splitlines()]
    lines = [*head, "", f"seed = {values['seed']}  # fixes all that is random"]
    source = (ROOT / "faceswap" / "config.py").read_text()
    for section, about, body in SECTION.findall(source):
        meaning = dict(FIELD.findall(body))
        lines += ["", f"[{section.lower()}]  # {about.splitlines()[0].lower().rstrip('.')}"]
        for key, value in values[section.lower()].items():
            lines.append(f"{tomli_w.dumps({key: value}).strip()}  # {meaning[key]}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for recipe in RECIPES:
        (ROOT / "configs" / f"{recipe}.toml").write_text(text_of(recipe))
