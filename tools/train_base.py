"""Make the base that ships: `python tools/train_base.py FOLDER... --work DIR --images N`, and again to go on.

Each FOLDER holds images with one face each, which are imported into DIR once; grey ones are tinted, each in its own
tone, so that the base does not take people for statues. Rendered people come on top, four faces of each, and four of
them in each moment: half of these faces are drawn from another's, which teaches what of a face is the person and what
the moment. Then it trains with configs/pretrain_96.toml and writes the averaged weights, in half precision, to
pretrained/base_96.safetensors; `python tools/ship.py base_96` notes its hash.

At the end it says how well the base swaps strangers that it was never tuned to: rendered people drawn as others, told
by one photo of another moment, inside the face against the true swap; beside it, the face as it was.
"""

import argparse
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from faceswap import actors, checkpoint, config, console, files, foreign, losses, train
from faceswap.batches import Faces, Others, still
from faceswap.faceset import Faceset, read_image, write_face
from faceswap.models import ANYONE, FaceModel

SHIPPED = Path(__file__).parents[1] / "pretrained" / "base_96.safetensors"
SIZE = 128  # px, side of the crops on disk
SWAPS, STRANGERS = 256, 2**20  # faces to measure the swap on, and the seed of who they are
GREY = 3.0  # mean difference of the channels below which an image counts as grey
TONES = np.array([0.78, 1.0, 1.18])  # exponents of red, green and blue: a skin's, roughly


def tint(image: NDArray[np.uint8], seed: int) -> NDArray[np.uint8]:
    """A grey image (H, W, 3) uint8 in a tone of its own: each channel to a power, black and white stay."""
    random = np.random.default_rng(seed)
    powers = 1 + (TONES - 1) * random.uniform(0.3, 1.4) + random.normal(0, 0.03, 3)
    return np.round((image / 255) ** powers * 255).astype(np.uint8)


def is_grey(image: NDArray[np.uint8]) -> bool:
    return float(np.ptp(image.astype(np.float32), 2).mean()) < GREY


def imported(source: Path, out: Path, device: str) -> Path:
    """The faceset of a folder of images, made if it is not there."""
    if not out.exists():
        recipe = config.ExtractRecipe(size=SIZE, format="jpg")
        fresh = out.with_name(f"{out.name}.fresh")
        foreign.import_faces([source], fresh, recipe, kind="images", device=device, overwrite=True)
        with files.whole_folder(out, overwrite=False) as folder:
            for number, entry in enumerate(Faceset.open(fresh).entries):
                image = read_image(entry.path)
                image = tint(image, number) if is_grey(image) else image
                write_face(folder / entry.path.name, image, entry.meta)
        shutil.rmtree(fresh)
    return out


def ship(run: Path, out: Path) -> None:
    """The averaged weights of a run as a base in half precision."""
    state = checkpoint.read_base(checkpoint.find(run))
    halves = {name: weight.to(torch.float16) for name, weight in state.tensors.items()}
    checkpoint.write(out, replace(state, tensors=halves, footage={}))


@torch.inference_mode()
def swaps(model: FaceModel, folder: Path, size: int) -> tuple[float, float]:
    """PSNR (dB) of `SWAPS` rendered strangers drawn as others, and of the faces that were not drawn as others."""
    if not folder.exists():
        actors.write_faces(folder, SWAPS, size=SIZE, seed=STRANGERS)
    faces = Faces(Faceset.open(folder).entries, size, float("inf"), "strangers")
    rows = np.arange(len(faces))
    half = np.full(len(faces), 0.5)
    shown, photo = Others(faces.moments())(rows, half), Others(faces.people())(rows, half)
    whole = still(faces, rows.tolist(), 0, torch.device("cpu"))
    drawn, _ = model.eval()(whole.input[shown], whole.person, whole.input[photo])
    found = [losses.psnr(made, whole.target, whole.mask).mean() for made in (drawn, whole.input[shown])]
    return float(found[0]), float(found[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--rendered", type=int, default=8000, help="faces of rendered people")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--images", type=int, required=True, help="face images to train on, earlier sessions included")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--config", type=Path, default=Path("pretrain_96"))
    parser.add_argument("--device", default="auto")
    parser.add_argument("--out", type=Path, default=SHIPPED)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    facesets = [imported(folder, options.work / folder.name, options.device) for folder in options.folders]
    rendered = options.work / "rendered"
    if options.rendered and not rendered.exists():
        actors.write_faces(rendered, options.rendered, size=SIZE)
    recipe = config.load(options.config, options.set).changed(train={"images": options.images})
    people = {ANYONE: [*facesets, *([rendered] if options.rendered else [])]}
    report = train.train(recipe, people, options.work / "run", device=options.device)
    console.say(f"{report.images} images, held out {report.held_out}")
    ship(options.work / "run", options.out)
    model, state = checkpoint.load_model(options.out)
    drawn, left = swaps(model, options.work / "strangers", state.recipe.model.resolution)
    console.say(f"drawn as a stranger {drawn:.2f} dB, left as it is {left:.2f} dB")


if __name__ == "__main__":
    main()
