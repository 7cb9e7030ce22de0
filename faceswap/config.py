"""A recipe: every option of the work, in one TOML file, checked.

`configs/NAME.toml` are complete examples. A recipe given with `--config` or `--set section.key=value` changes the
defaults below; unknown keys are refused. One dial, `model.resolution`, fixes width, batch and learning rate unless
they are given.
"""

import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

import tomli_w
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from faceswap.errors import RecipeError
from faceswap.files import shipped
from faceswap.registry import suggest

PROTOCOL = "benchmark.toml"  # the one file in configs/ that is no recipe

OPEN = -1  # left to the dial, where 0 means something


def _open_or_share(value: float) -> float:
    if value != OPEN and not 0 <= value <= 1:
        raise ValueError(f"expected a share from 0 to 1, or {OPEN} to leave it to the dial")
    return value


Share = Annotated[float, Field(ge=0, le=1)]
OpenShare = Annotated[float, AfterValidator(_open_or_share)]
Preset = Literal["ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow"]
Weight = Annotated[float, Field(ge=0)]
Crop = Literal["canonical", "half", "mid-full", "full", "whole", "head"]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


Checked = TypeVar("Checked", bound=Section)


class ExtractRecipe(Section):
    """Which faces are taken from footage."""

    detector: str = "mtcnn"  # a part of faceswap/detectors
    threshold: Share = 0.9  # lowest probability of a face
    min_size: float = Field(48, ge=12)  # px, larger side of the box
    max_faces: int = Field(0, ge=0)  # per frame, the largest first; 0: all
    every: int = Field(1, ge=1)  # look at every Nth frame
    who: Literal["everyone", "largest"] = "everyone"  # whose faces: of all, or of who fills most of the footage
    key_every: int = Field(7, ge=1, le=60)  # frames between looks of the detector, twice as many with one or two faces
    min_fit: Share = 0.2  # lowest fit of landmarks that are believed, see faceswap.landmarks
    gap: int = Field(5, ge=0)  # frames for which a face may be lost, to be filled in
    smooth: int = Field(9, ge=0)  # frames, window in which a face's place is smoothed; below 5: off
    size: int = Field(256, ge=32, le=2048)  # px, side of the crops
    format: Literal["png", "jpg"] = "png"  # png keeps 16 bit, jpg is smaller
    batch: int = Field(8, ge=1)  # frames looked at side by side


class ModelRecipe(Section):
    """What draws the faces."""

    name: str = "modulated"  # a part of faceswap/models, of df and liae with DeepFaceLab's letters: liae-ud
    resolution: int = Field(96, ge=32, le=1024, multiple_of=16)  # px, THE dial
    crop: Crop = "canonical"  # what it sees of a face: as it is extracted, or DeepFaceLab's half, mid-full, full, whole
    width: int = Field(0, ge=0, le=512)  # channels of the encoder's first stage; 0: by the dial
    code: int = Field(0, ge=0, le=8192)  # length of the bottleneck's code; 0: by the dial
    decoder: int = Field(0, ge=0, le=512)  # half the channels of the decoder's last stage; 0: as width
    mask: int = Field(0, ge=0, le=512)  # the same of the mask's own branch, of df and liae; 0: a third of decoder


class DataRecipe(Section):
    """How batches are made from facesets."""

    batch: int = Field(0, ge=0)  # faces per step, of both people together; 0: by the dial
    warp: Weight = 0.015  # random warp of the input, standard deviation along x and y in units of the side
    rotation: float = Field(4, ge=0, le=180)  # degrees, both ways
    scale: float = Field(0.05, ge=0, lt=1)  # relative, both ways
    shift: Share = 0.02  # units of the side, both ways
    flip: Share = 0.5  # probability
    color: float = Field(0.08, ge=0, lt=1)  # random gain, offset and saturation, both images alike
    degrade: Share = 0.1  # probability that an input is blurred, sharpened, noisy or recompressed
    disguise: OpenShare = OPEN  # probability that an input looks like others'; -1: by the dial
    occlude: Share = 0.0  # probability that something lies before a face, for the mask to leave out
    blur_out: bool = False  # what lies outside the face is blurred in what is to be drawn
    transfer: Literal["none", "reinhard", "mkl", "sliced-ot"] = "none"  # the first person in the light of the last
    sampling: Literal["shuffle", "pose", "person"] = "shuffle"  # all as often, or all poses; or two of each
    holdout: float = Field(0.1, gt=0, le=0.5)  # share of faces never trained on
    memory_gb: float = Field(4.0, ge=0)  # images are kept in memory up to this size, read again and again beyond


class LossRecipe(Section):
    """Weights of the losses; 0 turns one off."""

    ssim: Weight = 0.8  # structural similarity
    ms_ssim: Weight = 0.0  # structural similarity at several scales
    l1: Weight = 0.6  # absolute difference
    charbonnier: Weight = 0.0  # absolute difference, smooth at zero
    mse: Weight = 0.0  # squared difference
    focal_frequency: Weight = 0.0  # difference of spectra, the worst frequencies most
    haar: Weight = 0.0  # absolute difference of fine detail
    perceptual: Weight = 0.0  # difference of a classifier's features, once its weights are pulled
    mask: Weight = 0.2  # squared difference of the masks
    background: Share = 0.1  # weight of what lies outside the face, where the face has 1; 0: masked training
    priority: Weight = 0.0  # how much more than other pixels eyes and mouth count
    swap_back: Weight = 0.0  # a face drawn as the other and back again, against itself
    true_face: Weight = 0.0  # an adversary that tells people apart by their codes
    adversarial: Weight = 0.0  # an adversary that tells drawn patches from real ones
    r1: Weight = 0.0  # how much adversaries are held steady by a penalty on their gradient
    patch: int = Field(0, ge=0, le=640)  # px, what that adversary sees at once; 0: an eighth of the resolution
    adversarial_from: Share = 0.6  # part of the budget after which adversaries set in


class StrategyRecipe(Section):
    """Which weights train."""

    name: str = "full"  # a part of faceswap/strategies
    encoder: OpenShare = OPEN  # where everything trains: of the rate, for all before the decoder; -1: by the dial
    rank: int = Field(2, ge=1, le=256)  # lora: of the updates
    prior: Weight = 1.0  # prior: how much faces of anyone count beside those of the two people
    first: Share = 0.2  # lp-ft: part of the budget in which the last layer and the codes train alone
    penalty: Weight = 0.01  # l2-sp: how much it costs to leave the base, times the square of the way
    save: Literal["whole", "delta"] = "whole"  # what is drawn with: all weights, or how they differ from the base


class TrainRecipe(Section):
    """How long, how fast, how safe."""

    images: int = Field(0, ge=0)  # stop after so many face images; 0: no such limit
    minutes: float = Field(0, ge=0)  # stop after so much training time, over all sessions; 0: no such limit
    until_plateau: bool = False  # stop once held-out faces get no better: first the rate falls, then it ends
    patience: int = Field(10, ge=1)  # held-out measurements without a gain of 0.5 % that make a plateau
    rate: float = Field(0, ge=0)  # learning rate; 0: by the dial
    warmup: int = Field(OPEN, ge=OPEN)  # images over which the rate rises from 0; -1: by the dial
    decay: Share = 0.3  # last part of the budget over which the rate falls to a hundredth
    weight_decay: Weight = 0.01  # of AdamW
    clip: Weight = 1.0  # largest norm of the gradient; 0: no limit
    ema: float = Field(0.999, ge=0, lt=1)  # exponential moving average of the weights, per step
    precision: Literal["auto", "32-true", "bf16-mixed"] = "auto"  # auto: bf16 on CUDA that has it, else float32
    devices: int = Field(1, ge=1)  # processes side by side (DDP); under torchrun as many as it started
    accumulate: int = Field(1, ge=1)  # parts that a batch goes through one after another: less memory, the same step
    checkpointing: bool = False  # activations are computed again on the way back: less memory, a third slower
    compile: bool = False  # torch.compile: minutes at the start, faster steps on CUDA
    cuda_graphs: bool = False  # with compile, on CUDA: kernels are replayed, for small models that wait for the CPU
    save_minutes: float = Field(5, gt=0)  # time between checkpoints
    save_images: int = Field(0, ge=0)  # images between checkpoints; 0: by time alone
    keep: int = Field(2, ge=1)  # checkpoints kept
    preview_images: int = Field(8000, ge=1)  # images between held-out measurements and previews
    log_images: int = Field(320, ge=1)  # images between log lines


class MergeRecipe(Section):
    """How swapped faces enter the footage."""

    max_faces: int = Field(0, ge=0)  # per frame, the largest first; 0: all
    color: str = "mkl"  # colour transfer: none, reinhard, lct, mkl, idt, sliced-ot, mix, histogram
    steady: int = Field(12, ge=0, le=120)  # frames before and after over which colours are averaged; 0: none
    blend: str = "laplacian"  # how the face is laid in: alpha, feather, laplacian, poisson
    erode: float = Field(0.0, ge=-0.2, le=0.2)  # the mask shrinks by so much (< 0: grows), in units of the crop's side
    feather: float = Field(0.02, ge=0, le=0.2)  # standard deviation of its soft edge, in units of the crop's side
    mask: str = "learned"  # where the face is laid in: learned, landmarks, target, product, union; see faceswap.masks
    scale: float = Field(1.0, ge=0.8, le=1.25)  # size of the drawn face beside that of the footage
    restore: str = ""  # a face restorer of yours: an ONNX file, see faceswap.detail; "": none
    restored: Share = 1.0  # how much of its work is taken
    match_sharpness: Share = 1.0  # how far the face is blurred or sharpened towards the footage
    motion_blur: Share = 1.0  # how much of the footage's motion blur it gets, up to the way at a shutter of 180 degrees
    grain: float = Field(0.0, ge=0, le=2)  # how much of the footage's grain it gets
    sharpen: float = Field(0.0, ge=0, le=2)  # how much it is sharpened beyond that
    batch: int = Field(8, ge=1)  # frames drawn side by side
    segment: int = Field(240, ge=1)  # frames written as a whole, which an interruption leaves
    codec: Literal["auto", "h264", "h265", "prores"] = "auto"  # auto: h264, or h265 above 10 bits; prores: in .mov
    crf: int = Field(15, ge=0, le=51)  # quality of H.264 and H.265; lower is better, 0 is lossless
    preset: Preset = "veryfast"  # of H.264 and H.265, ultrafast to veryslow: slower makes smaller files


class BenchmarkPair(Section):
    """Who plays what: seeds of two identities and of their performances."""

    source: int = Field(ge=0)
    source_performance: int = Field(ge=0)
    target: int = Field(ge=0)
    target_performance: int = Field(ge=0)


class Benchmark(Section):
    """The protocol of the truth benchmark, see `configs/benchmark.toml`."""

    size: int = Field(ge=64, le=1024, multiple_of=2)  # px, side of the frames
    rate: int = Field(ge=1, le=120)  # frames/s
    seconds: float = Field(gt=0, le=3600)  # of each clip
    images: int = Field(ge=0)  # training budget per pair; 0: by minutes
    minutes: float = Field(0.0, ge=0)  # the same in time, to compare recipes at equal time; 0: by images
    every: int = Field(ge=2)  # every Nth frame of the target is scored, with the one after it
    pairs: list[BenchmarkPair] = Field(min_length=1)

    @property
    def frames(self) -> int:
        return round(self.seconds * self.rate)


class Recipe(Section):
    """All options. `to_toml` and `load` are inverse to each other."""

    seed: int = Field(0, ge=0, lt=2**31)  # fixes all that is random
    extract: ExtractRecipe = ExtractRecipe()
    model: ModelRecipe = ModelRecipe()
    data: DataRecipe = DataRecipe()
    loss: LossRecipe = LossRecipe()
    strategy: StrategyRecipe = StrategyRecipe()
    train: TrainRecipe = TrainRecipe()
    merge: MergeRecipe = MergeRecipe()

    def resolved(self, from_base: bool = False) -> "Recipe":
        """A copy in which the dial has set what was left to it, by the resolution R in px.

        Width 16 up to 96, 24 up to 160, 48 up to 256, then 64; code 128 up to 96, 256 up to 256, then 512; batch 8.
        From nothing: learning rate 6e-4 * sqrt(64 / R) after 1600 images, no input disguised. From a base, which can
        draw already but lets much of who it is through its bottleneck: twice that rate after 160 images, a tenth of it
        before the decoder, a quarter of the inputs disguised.
        """
        size, part = self.model.resolution, self.model
        width = part.width or (16 if size <= 96 else 24 if size <= 160 else 48 if size <= 256 else 64)
        decoder = part.decoder or width
        return self.changed(
            model={
                "width": width,
                "code": part.code or (128 if size <= 96 else 256 if size <= 256 else 512),
                "decoder": decoder,
                "mask": part.mask or max(2, decoder // 3 + decoder // 3 % 2),
            },
            data={
                "batch": self.data.batch or 8,
                "disguise": (0.25 if from_base else 0.0) if self.data.disguise == OPEN else self.data.disguise,
            },
            strategy={
                "encoder": (0.1 if from_base else 1.0) if self.strategy.encoder == OPEN else self.strategy.encoder
            },
            train={
                "rate": self.train.rate or round((12e-4 if from_base else 6e-4) * (64 / size) ** 0.5, 7),
                "warmup": (160 if from_base else 1600) if self.train.warmup == OPEN else self.train.warmup,
            },
        )

    def to_toml(self) -> str:
        return tomli_w.dumps(self.model_dump())

    def over(self, base: "Recipe") -> "Recipe":
        """`base` with what was given here, in a file or by `--set`, laid over it."""
        given = self.model_dump(exclude_unset=True)
        return base.changed(**{name: part for name, part in given.items() if isinstance(part, dict)})

    def changed(self, **sections: Mapping[str, Any]) -> "Recipe":
        """A copy with other values in some sections; checked like a file."""
        values = self.model_dump()
        for section, change in sections.items():
            values[section] |= change
        return check(values, "recipe")


def load(path: Path | None = None, settings: Sequence[str] = (), seed: int | None = None) -> Recipe:
    """The recipe of a TOML file (or the defaults) with `section.key=value` settings laid over it.

    A name without a suffix, such as `swap_128`, is one of the recipes that ship in `configs/`.
    `RecipeError` names the file, the key, what was expected, and for an unknown key the one that was likely meant.
    """
    values: dict[str, Any] = {}
    if path is not None:
        values = parse(_read(path), str(path))
    for setting in settings:
        _set(values, setting)
    if seed is not None:
        values["seed"] = seed
    where = " and ".join([str(path)] * (path is not None) + ["--set"] * bool(settings))
    return check(values, where or "recipe")


def load_benchmark(path: Path | None = None) -> Benchmark:
    """The protocol of the truth benchmark: that of a file, or the one that ships."""
    path = path or shipped("configs") / PROTOCOL
    protocol = checked(Benchmark, parse(_read(path), str(path)), str(path))
    if protocol.frames < 2:
        raise RecipeError(f"{path}: clips of {protocol.frames} frames; expected at least 2: raise seconds or rate")
    if not (protocol.images or protocol.minutes):
        raise RecipeError(f"{path}: no budget; set images or minutes above 0")
    return protocol


def _read(path: Path) -> str:
    ours = {file.stem: file for file in shipped("configs").glob("*.toml") if file.name != PROTOCOL}
    if not path.exists() and str(path) in ours:
        path = ours[str(path)]
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        hint = f"expected a TOML file or one of {', '.join(sorted(ours))}"
        raise RecipeError(f"{path}: no such recipe; {hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read as text ({error}); expected a TOML file") from None


def parse(text: str, where: str) -> dict[str, Any]:
    """TOML to plain values; `RecipeError` with the line of a mistake."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{where}: not valid TOML: {error}") from None


def check(values: Mapping[str, Any], where: str) -> Recipe:
    """Plain values to a recipe; `RecipeError` on the first mistake."""
    return checked(Recipe, values, where)


def checked(kind: type[Checked], values: Mapping[str, Any], where: str) -> Checked:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        unknown = [
            found for found in error.errors() if found["type"] == "extra_forbidden"
        ]  # the likely cause of others
        first = (unknown or error.errors())[0]
        keys = [str(part) for part in first["loc"]]
        key = ".".join(keys)
        if first["type"] == "extra_forbidden":
            raise RecipeError(f"{where}: unknown key {key!r}; {suggest(keys[-1], _siblings(kind, keys))}") from None
        if first["type"] == "missing":
            raise RecipeError(f"{where}: {key} is missing; give it") from None
        if first["type"] == "model_type":
            raise RecipeError(f"{where}: {key} = {first['input']!r}: expected a section with keys of its own") from None
        raise RecipeError(f"{where}: {key} = {first['input']!r}: {first['msg'].lower()}") from None


def _siblings(model: type[BaseModel], keys: Sequence[str]) -> list[str]:
    """The keys that are known where `keys` points."""
    for key in keys[:-1]:
        if not key.isdecimal():  # the number of a section in a list of them
            annotation = model.model_fields[key].annotation
            annotation = next(iter(get_args(annotation)), annotation)
            assert isinstance(annotation, type)
            model = annotation
    return list(model.model_fields)


def _set(values: dict[str, Any], setting: str) -> None:
    """Lay one `section.key=value` over plain values; the value is TOML, or else text."""
    name, equals, text = setting.partition("=")
    if not equals or not name.strip():
        raise RecipeError(f"--set {setting}: expected section.key=value, for example model.resolution=128")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    *sections, key = name.strip().split(".")
    for section in sections:
        values = values.setdefault(section, {})
        if not isinstance(values, dict):
            raise RecipeError(f"--set {setting}: {section!r} is not a section")
    values[key] = value
