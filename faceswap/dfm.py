"""A .dfm: a face swapper in one ONNX file, ours or another tool's; what players draw with, `merge` and `evaluate` too.

Convention, DeepFaceLab's: input `in_face:0` is (N, R, R, 3) float32 BGR in [0, 1], where R is fixed, and a second one,
`morph_value:0`, may be (1,) float32: 1 is the source, 0 the target as itself. Outputs go by their place: the mask of
the target's face (N, R, R, 1), the drawn face (N, R, R, 3) BGR, its mask (N, R, R, 1), all float32 in [0, 1].

A file is data: it is parsed, checked and run by onnxruntime, which runs none of its author's code. Weights that lie
outside of it are refused.
"""

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from faceswap import checkpoint, console
from faceswap.checkpoint import Progress, State
from faceswap.config import Recipe
from faceswap.errors import CheckpointError, FaceswapError, UsageError
from faceswap.models import FaceModel

SUFFIXES = (".dfm", ".onnx")
FACE, MORPH = "in_face:0", "morph_value:0"
OUTPUTS = ("out_face_mask:0", "out_celeb_face:0", "out_celeb_face_mask:0")
CHANNELS = (1, 3, 1)  # of the outputs
MOST_BYTES = 2**31 - 1  # of a file in the format of ONNX
SIDES = range(32, 1025, 16)  # px, as `model.resolution` has them
INSTALL = "pip install 'faceswap[export]'"
OURS = "faceswap."  # before the names of our metadata
OUR_CROP = "facefusion"  # whose crop is the canonical one
CPU = torch.device("cpu")

Image = NDArray[np.float32]
Outputs = tuple[Image, Image, Image]  # the target's mask, face BGR and its mask: (1, R, R, C)


def is_dfm(path: Path) -> bool:
    """Whether its name says so."""
    return path.suffix.lower() in SUFFIXES


def libraries() -> tuple[Any, Any]:
    """The modules onnx and onnxruntime; `FaceswapError` if one is missing."""
    try:
        import onnx
        import onnxruntime
    except ImportError as error:
        raise FaceswapError(f"{error.name} is not installed, which .dfm files need; {INSTALL}") from None
    return onnx, onnxruntime


class Dfm:
    """A file that was read and checked, ready to draw one face after another."""

    def __init__(self, path: Path, device: torch.device = CPU) -> None:
        """`CheckpointError` if there is no such file, or it does not keep to the convention."""
        content = _read(path)
        self._session = _session(path, content, device)
        self.path, self.digest = path, hashlib.sha256(content).digest()
        said = self._session.get_modelmeta().custom_metadata_map
        self.metadata = {key.removeprefix(OURS): text for key, text in said.items() if key.startswith(OURS)}
        self.size, self.morphs = _convention(path, self._session)
        self(np.full((1, self.size, self.size, 3), 0.5, np.float32))

    def __call__(self, face: Image, morph: float = 1.0) -> Outputs:
        """What is drawn of a face (1, R, R, 3) BGR, within [0, 1]. morph: see above, if the file has it."""
        given = {FACE: np.ascontiguousarray(face)}
        if self.morphs:
            given[MORPH] = np.array([morph], np.float32)
        try:
            drawn = self._session.run(None, given)
        except Exception as error:  # as above
            raise CheckpointError(f"{self.path}: does not run ({_line(error)}); export it anew") from None
        wanted = [(1, self.size, self.size, channels) for channels in CHANNELS]
        if [part.shape for part in drawn] != wanted or not all(np.isfinite(part).all() for part in drawn):
            found = ", ".join(str(list(part.shape)) for part in drawn)
            raise CheckpointError(f"{self.path}: expected finite {wanted}, mask, face and mask, found {found}")
        target, source, mask = (np.clip(part, 0, 1) for part in drawn)
        return target, source, mask


def _read(path: Path) -> bytes:
    """The content of a file that is an ONNX model, and whole in itself."""
    onnx, _ = libraries()
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; expected a .dfm or .onnx of a face swapper")
    if not 0 < (found := path.stat().st_size) <= MOST_BYTES:
        raise CheckpointError(f"{path}: expected an ONNX file of less than 2 GB, found {found} bytes")
    content = path.read_bytes()
    try:
        model = onnx.load_model_from_string(content)
    except Exception as error:  # protobuf's, by any of its implementations
        raise CheckpointError(f"{path}: not read as ONNX ({_line(error)}); expected a face swapper") from None
    outside = next((tensor.name for tensor in _tensors(model) if tensor.external_data or tensor.data_location), None)
    if outside is not None:
        raise CheckpointError(f"{path}: its weights ({outside!r}) lie outside of it; expected one file: export it anew")
    return content


def _session(path: Path, content: bytes, device: torch.device) -> Any:
    """What runs the model; that it cannot on `device` is said."""
    _, runtime = libraries()
    options = runtime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, torch.get_num_threads()
    fast = device.type == "cuda" and "CUDAExecutionProvider" in runtime.get_available_providers()
    cuda = [("CUDAExecutionProvider", {"device_id": device.index or 0})] if fast else []
    try:
        session = runtime.InferenceSession(content, options, providers=[*cuda, "CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own have no common base
        raise CheckpointError(f"{path}: onnxruntime cannot run it ({_line(error)}); export it anew") from None
    if device.type != "cpu" and session.get_providers()[0] == "CPUExecutionProvider":
        console.warn(f"{path.name}: drawn on the CPU, as onnxruntime finds no {device.type}; CUDA: onnxruntime-gpu")
    return session


def _convention(path: Path, session: Any) -> tuple[int, bool]:
    """The side R in px, and whether there is a morph; `CheckpointError` if it is another kind of model."""
    inputs, outputs = session.get_inputs(), session.get_outputs()
    names = [one.name for one in inputs]
    if names not in ([FACE], [FACE, MORPH]) or {one.type for one in [*inputs, *outputs]} != {"tensor(float)"}:
        found = ", ".join(f"{one.name} {one.type}" for one in inputs) or "none"
        raise CheckpointError(f"{path}: expected the input {FACE} and perhaps {MORPH} in float32, found {found}")
    shape = list(inputs[0].shape)
    if len(shape) != 4 or shape[1] != shape[2] or shape[1] not in SIDES or shape[3] != 3:
        sides = f"R a multiple of {SIDES.step} from {SIDES[0]} to {SIDES[-1]}"
        raise CheckpointError(f"{path}: expected {FACE} as [N, R, R, 3], {sides}; found {shape}")
    if len(outputs) != len(OUTPUTS):
        raise CheckpointError(f"{path}: expected three outputs (mask, face, mask), found {len(outputs)}")
    return int(shape[1]), MORPH in names


def _tensors(model: Any) -> Iterator[Any]:
    """All tensors of a model, those inside of branches, loops and functions too."""
    graphs: list[Any] = [model.graph]
    nodes = chain.from_iterable(function.node for function in model.functions)
    while True:
        for node in nodes:
            for held in node.attribute:
                yield from [held.t, *held.tensors]
                yield from _dense([held.sparse_tensor, *held.sparse_tensors])
                graphs += [*held.graphs, *([held.g] if held.HasField("g") else [])]
        if not graphs:
            return
        graph = graphs.pop()
        yield from graph.initializer
        yield from _dense(graph.sparse_initializer)
        nodes = iter(graph.node)


def _dense(sparse: Iterable[Any]) -> Iterator[Any]:
    for one in sparse:
        yield from (one.values, one.indices)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


# ---------------------------------------------------------------- as one of our models


class Player(FaceModel):
    """A file that draws like a model of ours: person 0 is the source, person 1 the target.

    A file without `morph_value:0` knows the target's mask, and cannot draw the target: `people` is 1, and as person 1
    a face stays as it is.
    """

    def __init__(self, file: Dfm) -> None:
        super().__init__()
        self.file, self.people = file, 1 + file.morphs
        self.register_buffer("digest", torch.tensor(list(file.digest), dtype=torch.uint8))  # tells it from another

    def forward(self, faces: Tensor, person: Tensor, photos: Tensor | None = None) -> tuple[Tensor, Tensor]:
        drawn, masks = zip(*map(self._draw, faces, person.tolist()), strict=True)
        return torch.stack(drawn), torch.stack(masks)

    def _draw(self, face: Tensor, who: int) -> tuple[Tensor, Tensor]:
        """One face (3, R, R) RGB: how it is drawn, and the mask (1, R, R)."""
        target, source, mask = self.file(face.permute(1, 2, 0).flip(2)[None].cpu().numpy(), morph=1.0 - who)
        drawn = face if who and not self.file.morphs else _ours(source).flip(0).to(face.device)
        return drawn, _ours(target if who else mask).to(face.device)

    def code(self, faces: Tensor) -> Tensor:
        raise self._refused()

    def load_base(self, weights: Mapping[str, Tensor]) -> None:
        raise self._refused()

    def as_base(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        raise self._refused()

    def _refused(self) -> CheckpointError:
        return CheckpointError(f"{self.file.path}: a .dfm can draw and nothing else; expected a run")


def _ours(image: Image) -> Tensor:
    """(1, R, R, C) as (C, R, R)."""
    return torch.from_numpy(image[0]).permute(2, 0, 1)


def load_model(
    path: Path, base: Path | None = None, strength: float = 1.0, device: torch.device = CPU
) -> tuple[FaceModel, State]:
    """`checkpoint.load_model`, of a .dfm or .onnx file too, which draws on `device` as far as onnxruntime can.

    Of a file of another tool nothing is known of its training; it gets the canonical crop, as players do.
    """
    if not is_dfm(path):
        return checkpoint.load_model(path, base, strength)
    if base is not None or strength != 1:
        raise UsageError(f"{path}: a .dfm has no base and no strength; leave out --base and --strength")
    file = Dfm(path, device)
    if (crop := file.metadata.get("crop", OUR_CROP)) != OUR_CROP:
        raise CheckpointError(f"{path}: was made for the crop of {crop}; use its run, or export it without --for")
    images = file.metadata.get("images", "")
    return Player(file), State(
        Recipe().changed(model={"resolution": file.size}),
        ["source", "target"],
        {},
        Progress(images=int(images) if images.isdecimal() and len(images) < 16 else 0),
        consent=file.metadata.get("consent", ""),
    )
