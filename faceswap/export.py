"""A run as one file that players draw with: `.dfm` is ONNX by another name. See `faceswap.dfm` for the convention.

The file draws the source of whatever face it is given. Its input is fixed to one face, as all players give one: so
every size in the graph is a number, which those that bind buffers or compile the graph need. It is of opset 12, as
DeepFaceLab's are, which every onnxruntime since 2020 reads.

Every player cuts faces out in its own way. The canonical crop is facefusion's, where nothing is to be done. For another
player the graph can bring its crop to ours, and what is drawn back: as crops of one face differ by a scale and a shift,
that is a product with one fixed matrix from each side, which any runtime has, where a sampler by coordinates is new to
ONNX and missing in some. It makes the drawing a little softer, so it is done if asked only.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn

import faceswap
from faceswap import align, checkpoint, dfm, files, players
from faceswap.checkpoint import State
from faceswap.config import Recipe
from faceswap.dfm import Image, Outputs
from faceswap.errors import CheckpointError, UsageError
from faceswap.models import ANYONE, FaceModel

OPSET = 12
SOURCE, TARGET = 0, 1  # as a pair is trained
CLOSE, CLOSE_HALF = 1e-3, 2e-2  # by how much the file may draw otherwise than the run


@dataclass(frozen=True)
class Report:
    """What was exported."""

    file: Path
    size: int  # px
    bytes: int
    player: str
    difference: float  # the most, from what the run draws
    advice: dict[str, str]  # for each player, what to set


class Portable(nn.Module):
    """A model behind the .dfm convention: (1, R, R, 3) BGR -> the target's mask, the drawn face BGR, its mask."""

    def __init__(self, model: FaceModel, state: State, player: str = dfm.OUR_CROP, *, morph: bool = False) -> None:
        """`UsageError` for a morph of a model that knows one person only."""
        super().__init__()
        self.model, self.size, self.morphs, self.half_floats = model, state.recipe.model.resolution, morph, False
        if morph and len(state.people) < 2:
            raise UsageError("--morph: the run knows one person only; expected a pair, or a run from a base")
        for name, who in (("source", SOURCE), ("target", min(TARGET, len(state.people) - 1))):
            self.register_buffer(name, torch.tensor([who]))
        matrix = players.TABLE[player].to_ours
        self.moved = not np.allclose(matrix, np.eye(2, 3))
        for name, (there, border) in {
            "there": (matrix, cv2.BORDER_REPLICATE),
            "back": (align.invert(matrix), cv2.BORDER_REPLICATE),
            "back_mask": (align.invert(matrix), cv2.BORDER_CONSTANT),
        }.items():
            for axis, scale, shift in (("x", there[0, 0], there[0, 2]), ("y", there[1, 1], there[1, 2])):
                self.register_buffer(f"{name}_{axis}", resampling(self.size, scale, shift, border))

    def forward(self, face: Tensor, morph: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        seen = self._through("there", face[..., [2, 1, 0]].permute(0, 3, 1, 2))
        seen = seen.half() if self.half_floats else seen
        drawn, mask = self.model(seen, self.source)
        as_target, target_mask = self.model(seen, self.target)
        drawn, mask, target_mask = drawn.float(), mask.float(), target_mask.float()
        if morph is not None:
            drawn, mask = (old + (new - old) * morph for old, new in ((as_target.float(), drawn), (target_mask, mask)))
        masks = [self._through("back_mask", part).permute(0, 2, 3, 1) for part in (target_mask, mask)]
        return masks[0], self._through("back", drawn).permute(0, 2, 3, 1)[..., [2, 1, 0]], masks[1]

    def _through(self, way: str, image: Tensor) -> Tensor:
        """Images (1, C, R, R) from a player's crop to ours, or back."""
        if not self.moved:
            return image
        rows, columns = (self.get_buffer(f"{way}_{axis}") for axis in ("y", "x"))
        return (rows @ image @ columns.T).clamp(0, 1)

    def halved(self) -> "Portable":
        """Itself, computing in half precision inside."""
        self.model.half()
        self.half_floats = True
        return self

    @torch.inference_mode()
    def draw(self, face: Image, morph: float = 1.0) -> Outputs:
        """See `dfm.Dfm.__call__`."""
        given = [torch.from_numpy(np.ascontiguousarray(face)), torch.tensor([morph])]
        target, drawn, mask = (part.numpy() for part in self(*given[: 1 + self.morphs]))
        return target, drawn, mask


def resampling(size: int, scale: float, shift: float, border: int) -> Tensor:
    """The matrix (R, R) that moves columns of R numbers so that what lay at x lies at scale * x + shift * R."""
    moved = np.array([[scale, 0.0, shift * size], [0.0, 1.0, 0.0]])
    units = np.eye(size, dtype=np.float32)
    kernels = cv2.warpAffine(units, moved, (size, size), flags=cv2.INTER_CUBIC, borderMode=border)
    return torch.from_numpy(np.ascontiguousarray(kernels.T))


def load(
    run: Path, player: str = dfm.OUR_CROP, *, base: Path | None = None, strength: float = 1.0, morph: bool = False
) -> tuple[Portable, State]:
    """A run, or a weight file of one, as it is exported; `CheckpointError` if it knows nobody."""
    model, state = checkpoint.load_model(run, base, strength)
    if state.subjects == [ANYONE]:
        raise CheckpointError(f"{run}: a base, which knows nobody; expected a run of faceswap finetune")
    return Portable(model, state, player, morph=morph).eval(), state


def export(
    run: Path,  # or a weight file of one
    out: Path,
    player: str = dfm.OUR_CROP,  # whose crop it takes
    *,
    base: Path | None = None,  # where the base lies, if it is not where it was
    strength: float = 1.0,  # of what was trained, beside the base
    morph: bool = False,  # with a second input, from the target as itself to the source
    half: bool = False,  # computing in half precision: half the size
    licence: str = "",  # a note of who may use it
    overwrite: bool = False,
) -> Report:
    """Write a run as one .dfm file, adapters folded in, and compare what it draws with what the run draws.

    `FaceswapError` if onnx or onnxruntime is not installed, `CheckpointError` if the run cannot be used.
    """
    if not dfm.is_dfm(out):
        raise UsageError(f"{out}: expected the name of a model, ending in .dfm or .onnx; choose another -o")
    if dfm.is_dfm(run):
        raise UsageError(f"{run}: is exported already; expected a run or a weight file of one")
    onnx, _ = dfm.libraries()
    files.refuse_existing(out, overwrite)
    files.refuse_same(out, [checkpoint.find(run)])
    portable, state = load(run, player, base=base, strength=strength, morph=morph)
    notes = about(portable, state, player, licence)
    faces = probes(portable.size)
    wanted = [portable.draw(face) for face in faces]
    portable = portable.halved() if half else portable
    held = sum(weight.nbytes for weight in portable.state_dict().values())
    if held > 0.99 * dfm.MOST_BYTES:
        raise CheckpointError(f"{run}: {held / 1e9:.1f} GB; players read less than 2 GB: --half, or a smaller model")
    with files.whole_file(out, overwrite=overwrite) as partial:
        trace(portable, partial)
        model = onnx.load(partial, load_external_data=False)
        onnx.helper.set_model_props(model, {dfm.OURS + name: text for name, text in notes.items()})
        model.producer_name, model.producer_version = "faceswap", faceswap.__version__
        onnx.checker.check_model(model, full_check=True)
        partial.write_bytes(model.SerializeToString())
        written = dfm.Dfm(partial)
        apart = max(_apart(written(face), there) for face, there in zip(faces, wanted, strict=True))
        if not apart < (CLOSE_HALF if half else CLOSE):
            raise CheckpointError(f"{run}: as a .dfm it draws otherwise, by {apart:.2g} of white; leave out --half")
    return Report(out, portable.size, out.stat().st_size, player, apart, advice(player))


def preview(
    path: Path,  # a run, a weight file of one, or any .dfm
    video: Path,
    out: Path,  # a .png
    recipe: Recipe,  # how faces are found
    *,
    player: str = dfm.OUR_CROP,  # for whom the run would be exported
    base: Path | None = None,
    strength: float = 1.0,
    morph: bool = False,
    shown: Sequence[str] = players.TOOLS,  # in which players
    device: torch.device = dfm.CPU,  # to find faces on
    overwrite: bool = False,
) -> players.Preview:
    """Draw faces of `video` as the players would, and, of what takes our crop, as `merge` would, nearly; see
    `players.sheet`."""
    if dfm.is_dfm(path):
        if base is not None or strength != 1 or morph or player != dfm.OUR_CROP:
            raise UsageError(f"{path}: is exported already; leave out --for, --morph, --base and --strength")
        drawer: Portable | dfm.Dfm = dfm.Dfm(path)
    else:
        drawer, _ = load(path, player, base=base, strength=strength, morph=morph)
    draw = drawer if isinstance(drawer, dfm.Dfm) else drawer.draw
    ours = ["faceswap"] if player == dfm.OUR_CROP else []
    names = [*ours, *dict.fromkeys(shown or players.TOOLS)]
    how: dict[str, Any] = {"names": names, "device": str(device), "overwrite": overwrite}
    return players.sheet(draw, drawer.size, drawer.morphs, video, out, recipe, **how)


def advice(player: str) -> dict[str, str]:
    """What to set in each player for a file that was made for `player`."""
    if player != dfm.OUR_CROP:
        return {player: "faces lie as in training"}
    return {name: players.TABLE[name].advice for name in players.TOOLS}


def about(portable: Portable, state: State, player: str, licence: str) -> dict[str, str]:
    """What a file says of itself; no names of footage."""
    points = ", ".join(f"({x:.4f}, {y:.4f})" for x, y in players.TABLE[player].points)
    return {
        "version": faceswap.__version__,
        "made": "a face swap: whoever the face shows is drawn as another person; show it as such",
        "model": checkpoint.digest(portable.model.state_dict()),
        "architecture": state.recipe.model.name,
        "images": str(state.progress.images),
        "base": "" if state.base is None else state.base.name,
        "crop": player,
        "points": f"eyes, nose and mouth corners, in units of the side: {points}",
        "consent": state.consent or "nothing noted",
        "licence": licence or "not stated",
    }


def trace(portable: Portable, path: Path) -> None:
    """Write the model as ONNX."""
    given: tuple[Any, ...] = (torch.rand(1, portable.size, portable.size, 3), torch.ones(1))[: 1 + portable.morphs]
    with warnings.catch_warnings():
        # One face and who is drawn are fixed, as they shall be. The other exporter writes what old runtimes refuse.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            portable,
            given,
            path,
            dynamo=False,
            opset_version=OPSET,
            input_names=[dfm.FACE, dfm.MORPH][: len(given)],
            output_names=list(dfm.OUTPUTS),
        )


def probes(size: int) -> list[Image]:
    """Crops (1, R, R, 3) in [0, 1] to compare drawings of: a smooth one, a coarse one and noise."""
    random = np.random.default_rng(0)
    noises = [random.random((side, side, 3), np.float32) for side in (4, 16, size)]
    smooth = [cv2.resize(noise, (size, size), interpolation=cv2.INTER_CUBIC) for noise in noises]
    return [np.asarray(image, np.float32).clip(0, 1)[None] for image in smooth]


def _apart(ours: Outputs, theirs: Outputs) -> float:
    return max(float(np.abs(one - other).max()) for one, other in zip(ours, theirs, strict=True))
