"""Every way to fine-tune a base, measured: `python tools/benchmark.py finetune --base BASE`.

Each strategy trains on the pairs of the truth protocol, with several seeds, for as many images of the two people;
generic faces come on top. `scratch` begins from nothing and has ten times as many. The faces are rendered and cropped
by their true points. The learning rate does not fall, so that any moment could be the end. On the way the averaged
weights are scored: held-out faces (SSIM and PSNR inside the mask) and the swap (PSNR inside the mask of the target
drawn as the source, against the true swap). Figures are means over the runs, `_std` their standard deviation.

over_full: dB of the swap more than `full` has in the same pair with the same seed. SCORE_images: until that score was
as good for the first time as that of `scratch` at its end, in the same pair with the same seed; null unless every run
got there, SCORE_reached says how many did. file_bytes: of what is kept to draw with, beside the base if that is needed;
file_share: in units of the base's file. Damage: what strangers, drawn as anyone, lost against the base, and the way of
the weights; null where nobody is known as anyone.

successive: `full` on one pair after another, each from where the last ended; damage is against the first base.

combined: each person is trained alone, from the base, on half of the images; the differences of both are added to it,
and that draws the pair as it is. `together` is the swap of the pair that was trained as one.

With a folder to work in, each result is kept there in results.jsonl, and a second start does what is left to do.
"""

import hashlib
import json
import math
import re
import shutil
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import benchmark_train
import numpy as np
import torch
from benchmark_train import PEOPLE, Row, reached
from lightning_fabric import Fabric
from torch import Tensor

from faceswap import (
    actors,
    adapters,
    beginning,
    checkpoint,
    combine,
    damage,
    devices,
    files,
    losses,
    pretrained,
    strategies,
)
from faceswap.batches import split
from faceswap.checkpoint import State
from faceswap.config import Benchmark, Recipe
from faceswap.errors import RecipeError, UsageError
from faceswap.faceset import Faceset
from faceswap.models import ANYONE, FaceModel
from faceswap.train import Trainer, check_recipe

GENERIC, HALF, DELTA = "prior, generic faces", "full at strength 0.5", "full, saved as delta"
DERIVED = {"prior": [GENERIC], "full": [HALF, DELTA]}  # rows that come with that of a strategy
COMBINED = ("full", "lora", "film", "embedding")
FACES = 1000  # generic ones that are rendered if there are none
FIRST, STEPS = 100, 20  # images at the first mark, which are twice as far apart each time; a STEPSth of all at most
SCORES = ("swap_psnr", "held_psnr", "ssim")
DAMAGE = ("psnr_lost", "ssim_lost", "ms_ssim_lost", "distance")
NEVER = {"preview_images": 10**9, "log_images": 10**9, "save_minutes": 1e9, "decay": 0.0}


def run(
    recipe: Recipe,  # as given; what it does not say of the model is as in the base
    base: Path,  # a run, a file or a name
    work: Path,  # where results are kept
    *,
    protocol: Benchmark,
    images: int = 4000,  # of the two people, per run
    scratch_images: int = 0,  # the same for `scratch`; 0: ten times as many
    pairs: int = 3,  # of the protocol
    seeds: int = 2,
    names: Sequence[str] = (),  # strategies; none: all
    generic: Path | None = None,  # a faceset of anyone; None: rendered
    count: int = 500,  # strangers
    device: str = "auto",
    say: Callable[[str], None] = lambda line: None,
) -> Row:
    """The object that `benchmark.py finetune --json` prints."""
    names = names or [name for name in strategies.SOCKET.names() if name != "resume"]
    if pairs > len(protocol.pairs):
        raise UsageError(f"{pairs} pairs: the protocol has {len(protocol.pairs)}")
    bench = Bench(recipe, checkpoint.find(pretrained.base(base)), work, protocol, count, device, say)
    most = scratch_images or 10 * images
    found: dict[str, list[Row]] = {}
    ordered = [name for name in names if name == "scratch"] + [name for name in names if name != "scratch"]
    successive: list[list[Row]] = []
    casts = [bench.faces(pair) for pair in range(pairs)]
    if "prior" in names and generic is None:
        generic = bench.generic()
    for seed in range(seeds):
        for pair, folder in enumerate(casts):
            people = {name: folder / name for name in PEOPLE}
            for name in ordered:
                job = Job(name, pair, seed, bench.recipe, people, bench.base, images)
                if name == "scratch":
                    job = replace(job, base=None, images=most)
                try:
                    for record in bench.ways(job, generic):
                        found.setdefault(record["strategy"], []).append(record)
                except RecipeError as error:  # it is not for this architecture
                    say(f"{name}: left out: {error}")
        if "full" in names:
            successive.append(bench.successive(bench.recipe, casts, seed, images))
    labels = [label for name in ordered for label in (name, *DERIVED.get(name, [])) if label in found]
    rows = {label: summary(label, found[label], bench.bytes, found) for label in labels}
    return {
        "base": bench.facts(),
        "machine": machine(bench.device),
        "images": {"tuned": images, "scratch": most},
        "rows": list(rows.values()),
        "successive": [
            {"in_a_row": number, **summary("full", list(records), bench.bytes, {})}
            for number, records in enumerate(zip(*successive, strict=True), 1)
        ],
        "combined": [
            summary(name, found[f"{name}, combined"], bench.bytes, {})
            | {"together": rows[name]["swap_psnr"], "together_std": rows[name]["swap_psnr_std"]}
            for name in ordered
            if f"{name}, combined" in found
        ],
    }


def machine(device: torch.device) -> Row:
    card = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    return {"device": str(device), "card": card, "threads": torch.get_num_threads(), "torch": torch.__version__}


@dataclass(frozen=True)
class Job:
    """One training."""

    label: str  # what the row is called: a strategy, or that and more after a comma
    pair: int
    seed: int
    recipe: Recipe
    people: Mapping[str, Path]  # name -> faceset
    base: Path | None  # a weight file
    images: int  # of its people, generic ones not counted
    examined: bool = True  # whether it knows both people, and can be scored

    @property
    def strategy(self) -> str:
        return self.label.partition(",")[0]

    @property
    def generic(self) -> float:
        """All images over those that count."""
        own = [name for name in self.people if name != ANYONE]
        return len(self.people) / len(own)

    def setup(self) -> Recipe:
        whole = {**NEVER, "images": math.ceil(self.images * self.generic)}
        made = self.recipe.changed(strategy={"name": self.strategy}, train=whole)
        made = made.resolved(from_base=self.base is not None)
        return made.model_copy(update={"seed": self.recipe.seed + self.seed})


class Bench:
    """What all runs share, and the results that there are."""

    def __init__(
        self,
        recipe: Recipe,
        base: Path,  # a weight file
        work: Path,
        protocol: Benchmark,
        count: int,
        device: str,
        say: Callable[[str], None],
    ) -> None:
        self.base, self.work, self.protocol, self.count, self.say = base, work, protocol, count, say
        self.device = devices.resolve(device)
        self.origin = checkpoint.read_base(base)
        self.recipe = recipe.over(Recipe().changed(model=self.origin.recipe.model.model_dump()))
        self.digests = {base: checkpoint.digest(self.origin.part("ema"))}
        self.bytes = base.stat().st_size
        self.model = self.start([]).to(self.device)
        self.strangers = damage.probe(self.recipe.model.resolution, count)
        self.before = damage.scores(self.model, self.strangers, 0, self.device)
        self.examinations: dict[int, benchmark_train.Examination] = {}
        work.mkdir(parents=True, exist_ok=True)
        self.results = work / "results.jsonl"
        self.known = read(self.results)
        if self.known and not self.results.read_bytes().endswith(b"\n"):
            with self.results.open("a") as results:
                results.write("\n")  # behind the line that was cut off

    def facts(self) -> Row:
        return {
            "name": checkpoint.Base(str(self.base), "").name,
            "digest": self.digests[self.base][:12],
            "file_bytes": self.bytes,
            "images": self.origin.progress.images,
            "parameters": sum(weight.numel() for weight in self.model.parameters()),
            "model": self.origin.recipe.model.model_dump(),
            "strangers": self.count,
            **{name: round(value, 4) for name, value in asdict(self.before).items()},
        }

    def start(self, people: Sequence[str]) -> FaceModel:
        """The base as a model that knows these people, none of them yet, and anyone."""
        model = checkpoint.new_model(self.recipe, [*people, ANYONE])
        model.load_base(self.origin.part("ema"))
        return model.eval()

    # ---- faces

    def faces(self, pair: int) -> Path:
        """The facesets of a pair of the protocol; see `benchmark_train.render`."""
        players = self.protocol.pairs[pair]
        folder = self.work / f"pair-{_hash([self._scene(), players.model_dump()])[:8]}"
        if not folder.exists():
            self.say(f"rendering pair {pair + 1}: actor {players.source} and actor {players.target}")
            with files.whole_folder(folder, overwrite=False) as partial:
                benchmark_train.render(self.protocol, players, partial)
        return folder

    def _scene(self) -> Row:
        return self.protocol.model_dump(exclude={"pairs", "images", "minutes"})

    def generic(self) -> Path:
        """Rendered faces of people who are none of the strangers: their seeds are below 2**31."""
        folder = self.work / f"generic-{FACES}"
        if not folder.exists():
            self.say(f"rendering {FACES} generic faces")
            actors.write_faces(folder, FACES, size=benchmark_train.SIZE, workers=1)
        return folder

    # ---- results

    def key(self, job: Job, label: str = "") -> Row:
        """What tells a result from others."""
        faces = {ANYONE: _of(job.people[ANYONE])} if ANYONE in job.people else {}
        scene = [self._scene(), self.protocol.pairs[job.pair].model_dump(), self.count, faces]
        return {
            "strategy": label or job.label,
            "pair": job.pair + 1,
            "seed": job.seed,
            "images": job.images,
            "recipe": _hash([job.setup().to_toml(), *scene])[:16],
            "base": self.digest(job.base)[:12] if job.base else None,
        }

    def digest(self, base: Path) -> str:
        if base not in self.digests:
            self.digests[base] = checkpoint.digest(checkpoint.read_base(base).part("ema"))
        return self.digests[base]

    def file(self, key: Row) -> Path:
        """What a result is drawn with."""
        name = re.sub(r"[^a-z0-9.]+", "-", key["strategy"])
        return self.work / "drawn" / f"{name}-{key['pair']}-{key['seed']}-{_hash(key)[:8]}.safetensors"

    def once(self, key: Row, make: Callable[[], Row], kept: bool = False) -> Row:
        """The result that is known, or else the new one; kept: the file must be there too."""
        name = json.dumps(key)
        if name not in self.known or (kept and not self.file(key).exists()):
            self.known[name] = key | make()
            with self.results.open("a", encoding="utf-8") as results:
                results.write(json.dumps(self.known[name]) + "\n")
            shown = {part: value for part, value in self.known[name].items() if part not in ("curve", "recipe")}
            last = self.known[name]["curve"][-1:]
            self.say(f"finetune: {shown | (last[0] if last else {})}")
        return self.known[name]

    def measured(self, key: Row, model: FaceModel, state: State, kept: bool = False) -> Row:
        """The size of the file, and the damage."""
        path = self.file(key)
        path.parent.mkdir(exist_ok=True)
        checkpoint.write(path, state)
        size = path.stat().st_size
        if not kept:
            path.unlink()
        return {"file_bytes": size, **self.harm(model, state.people)}

    def harm(self, model: FaceModel, people: Sequence[str]) -> Row:
        if people[-1] != ANYONE:
            return dict.fromkeys(DAMAGE)
        after = damage.scores(model, self.strangers, len(people) - 1, self.device)
        found = damage.Damage(self.before, after, damage.distance(self.model, model))
        return {f"{name}_lost": value for name, value in asdict(found.lost).items()} | {"distance": found.distance}

    def scores(self, pair: int, model: FaceModel) -> dict[str, float]:
        """`SCORES` of a model of source and target."""
        if pair not in self.examinations:
            self.examinations[pair] = benchmark_train.Examination(self.faces(pair), self.recipe, self.device)
        examination = self.examinations[pair]
        with torch.no_grad():
            held = [float(_psnr(model, batch, who)) for who, batch in enumerate(examination.held)]
        found = examination(cast(Trainer, SimpleNamespace(average=model)))  # which asks for no more
        return {**found, "held_psnr": round(float(np.mean(held)), 4)}

    # ---- ways to a result

    def ways(self, job: Job, generic: Path | None) -> Iterator[Row]:
        """The results of a strategy, and those that come with them."""
        yield self.tune(job)
        if job.label == "prior" and generic is not None:
            yield self.tune(replace(job, label=GENERIC, people={**job.people, ANYONE: generic}))
        if job.label == "full":
            yield from (self.half(job), self.delta(job))
        if job.label in COMBINED and self.model.named("codes"):
            yield self.combined(job)

    def tune(self, job: Job) -> Row:
        """Train; the file of a training that others build on is kept."""
        kept = job.strategy == "full" or not job.examined
        key = self.key(job)
        return self.once(key, lambda: self._tune(job, key, kept), kept)

    def _tune(self, job: Job, key: Row, kept: bool) -> Row:
        folder = self.work / "run"
        made = begin(job, folder, self.device)
        with closing(steps(made)) as coming:
            curve = []
            for mark in marks(job.images, made.recipe.data.batch):
                while made.progress.images < mark * job.generic:
                    next(coming)
                if job.examined:
                    done = {"images": round(made.progress.images / job.generic), "seconds": made.progress.seconds}
                    curve.append(done | self.scores(job.pair, made.average))
        if made.monitor is not None:
            made.monitor.close()
        found = {
            "curve": curve,
            "seconds": round(made.progress.seconds, 2),
            "trained": sum(weight.numel() for weight in made.raw.parameters() if weight.requires_grad),
            **self.measured(key, made.average, made.state(averaged_only=True), kept),
        }
        shutil.rmtree(folder)
        return found

    def half(self, job: Job) -> Row:
        """What was tuned, drawn half way from the base."""
        tuned = self.tune(job)

        def make() -> Row:
            path = self.file(self.key(job))
            model, state = checkpoint.load_model(path, self.base, 0.5)
            return self._later(tuned, job, model, state.people, path.stat().st_size)

        return self.once(self.key(job, HALF), make)

    def delta(self, job: Job) -> Row:
        """What was tuned, kept as a difference to the base."""
        tuned, key = self.tune(job), self.key(job, DELTA)

        def make() -> Row:
            state = checkpoint.read(self.file(self.key(job)))
            start = self.start(state.people[:-1]).state_dict()
            packed = adapters.pack_delta(state.part("ema"), start)
            path = self.file(key)
            checkpoint.write(path, replace(state, tensors={f"delta.{name}": part for name, part in packed.items()}))
            model, _ = checkpoint.load_model(path, self.base)
            size = path.stat().st_size
            path.unlink()
            return self._later(tuned, job, model, state.people, size)

        return self.once(key, make)

    def _later(self, tuned: Row, job: Job, model: FaceModel, people: Sequence[str], size: int) -> Row:
        """The result of a model that came of training as `tuned` says."""
        model.to(self.device)
        done = {"images": tuned["images"], "seconds": tuned["seconds"]}
        return {
            "curve": [done | self.scores(job.pair, model)],
            "seconds": tuned["seconds"],
            "trained": tuned["trained"],
            "file_bytes": size,
            **self.harm(model, people),
        }

    def combined(self, job: Job) -> Row:
        """Both people trained alone, put together."""
        halves = [
            replace(
                job, label=f"{job.label}, {name} alone", people={name: path}, images=job.images // 2, examined=False
            )
            for name, path in job.people.items()
        ]
        alone, key = [self.tune(half) for half in halves], self.key(job, f"{job.label}, combined")

        def make() -> Row:
            path = self.file(key)
            source, target = (self.file(self.key(half)) for half in halves)
            combine.combine(source, target, path, base=self.base, overwrite=True)
            model, state = checkpoint.load_model(path)
            path.unlink()
            sums = {name: sum(one[name] for one in alone) for name in ("seconds", "trained", "file_bytes")}
            total = {"images": job.images, **sums}
            return self._later(total, job, model, state.people, sums["file_bytes"])

        return self.once(key, make)

    def successive(self, recipe: Recipe, casts: Sequence[Path], seed: int, images: int) -> list[Row]:
        """One pair after another, each from where the last ended."""
        found, base = [], self.base
        for pair, folder in enumerate(casts):
            job = Job("full", pair, seed, recipe, {name: folder / name for name in PEOPLE}, base, images)
            found.append(self.tune(job))
            base = self.file(self.key(job))
        return found


def _psnr(model: FaceModel, batch: Any, person: int) -> Tensor:
    parts = []
    for faces in batch.input.split(16):
        parts.append(model(faces, torch.full((len(faces),), person, device=faces.device))[0])
    return losses.psnr(torch.cat(parts).float(), batch.target, batch.mask).mean()


def begin(job: Job, run: Path, device: torch.device) -> Trainer:
    """A training that stands before its first step, as `train.train` would begin it."""
    shutil.rmtree(run, ignore_errors=True)
    recipe, people = job.setup(), list(job.people)
    check_recipe(recipe, len(people))
    fabric = Fabric(**devices.fabric_options(str(device), 1, recipe.train.precision))
    fabric.launch()
    origin = beginning.open_base(job.base, recipe, run) if job.base is not None else None
    known = beginning.known({name: [path] for name, path in job.people.items()}, origin, None)
    made = Trainer(fabric, recipe, people, run, known)
    made.footage = dict.fromkeys(people, "rendered")
    made.start(None, origin)
    made.read({name: split([Faceset.open(path)], recipe.data.holdout) for name, path in job.people.items()})
    if origin is not None:
        made.begin()
    made._saved, made._logged = 0.0, (0, 0.0)
    made.open_folder()
    made.save()  # somewhere to go back to
    return made


def steps(made: Trainer) -> Generator[dict[str, float], None, None]:
    """Steps without end: a session ends at a setback, and another begins."""
    while True:
        yield from made.session()


def marks(images: int, batch: int) -> list[int]:
    """Where to score: at the beginning, at twice as many images each time, then at even steps."""
    step = max(float(batch), images / STEPS)
    first = min(FIRST, step)
    early = [first * 2**i for i in range(math.ceil(math.log2(step / first)))]
    even = [step * i for i in range(1, math.floor(images / step) + 1)]
    return sorted({0, *(round(mark) for mark in (*early, *even)), images})


def read(results: Path) -> dict[str, Row]:
    """The results by their keys; a line that was being written when all ended is passed over."""
    found: dict[str, Row] = {}
    for line in results.read_text(encoding="utf-8").splitlines() if results.exists() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        key = {name: row[name] for name in ("strategy", "pair", "seed", "images", "recipe", "base")}
        found[json.dumps(key)] = row
    return found


def _hash(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _of(folder: Path) -> str:
    """What tells a faceset from another: whose faces there are."""
    return _hash(sorted(entry.key for entry in Faceset.open(folder).entries))


# ---------------------------------------------------------------- what it comes to


def images_to(curve: Sequence[Row], score: str, goal: Row) -> float | None:
    """Images until a score was as high as in `goal` for the first time, linear between marks; None: not."""
    return reached([{**point, "seconds": point["images"]} for point in curve], {score: goal[score]})


def summary(label: str, records: Sequence[Row], base_bytes: int, found: Mapping[str, Sequence[Row]]) -> Row:
    """A row: means and standard deviations of the records of one strategy; found: those of all, as far as compared."""

    def same(record: Row, other: str) -> Row | None:
        ours = record["pair"], record["seed"]
        return next((one for one in found.get(other, ()) if (one["pair"], one["seed"]) == ours), None)

    ends = [record["curve"][-1] for record in records]
    spread: dict[str, Sequence[float | None]] = {name: [end[name] for end in ends] for name in SCORES}
    fulls = [same(record, "full") for record in records]
    spread["over_full"] = [
        None if full is None else end["swap_psnr"] - full["curve"][-1]["swap_psnr"]
        for end, full in zip(ends, fulls, strict=True)
    ]
    goals = [same(record, "scratch") for record in records]
    for score in SCORES:
        spread[f"{score}_images"] = [
            None if goal is None or label in (HALF, DELTA) else images_to(record["curve"], score, goal["curve"][-1])
            for record, goal in zip(records, goals, strict=True)
        ]
    spread["seconds"] = [record["seconds"] for record in records]
    spread |= {name: [record[name] for record in records] for name in DAMAGE}
    row: Row = {"strategy": label, "runs": len(records)}
    for name, values in spread.items():
        row |= dict(zip((name, f"{name}_std"), mean(values), strict=True))
    row |= {f"{score}_reached": sum(n is not None for n in spread[f"{score}_images"]) for score in SCORES}
    row["trained"] = records[0]["trained"]
    row["file_bytes"] = round(float(np.mean([record["file_bytes"] for record in records])))
    row["file_share"] = round(row["file_bytes"] / base_bytes, 5)
    row["curve"] = mean_curve([record["curve"] for record in records])
    return row


def mean(values: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean and standard deviation (0 of one value); None if there are not all."""
    there = [value for value in values if value is not None]
    if not there or len(there) < len(values):
        return None, None
    return round(float(np.mean(there)), 5), round(float(np.std(there, ddof=min(1, len(there) - 1))), 5)


def mean_curve(curves: Sequence[Sequence[Row]]) -> list[Row]:
    """The mean of runs that were scored at the same marks."""
    return [
        {name: round(float(np.mean([point[name] for point in points])), 4) for name in points[0]}
        | {"images": points[0]["images"]}
        for points in zip(*curves, strict=True)
    ]


# ---------------------------------------------------------------- as Markdown


def text(found: Row) -> str:
    """The report for `docs/FINETUNING.md`."""
    base, images, machine_ = found["base"], found["images"], found["machine"]
    runs = found["rows"][0]["runs"] if found["rows"] else 0
    intro = (
        f"Base: {base['name']} ({base['digest']}), {base['model']['name']} at {base['model']['resolution']} px, "
        f"{base['parameters']:,} weights, {base['file_bytes']:,} bytes, trained on {base['images']:,} images; "
        f"{base['strangers']} strangers drawn by it: PSNR {base['psnr']:.2f} dB, SSIM {base['ssim']:.4f}, "
        f"MS-SSIM {base['ms_ssim']:.4f}. {images['tuned']:,} images each, scratch {images['scratch']:,}; "
        f"{runs} runs each, ± standard deviation over them; {machine_['card'] or machine_['device']}, "
        f"{machine_['threads']} threads, torch {machine_['torch']}."
    )
    heads = ["", "swap, dB", "over full, dB", "held out, dB", "SSIM"]
    heads += ["images to scratch's swap", "to its held out", "to its SSIM", "seconds"]
    heads += ["trained", "file, bytes", "of base", *HARM]
    parts = [intro, _table(heads, [[row["strategy"], *_cells(row)] for row in found["rows"]])]
    if found["successive"]:
        rows = [[str(row["in_a_row"]), *_scores(row), *_harm(row)] for row in found["successive"]]
        heads = ["pairs in a row", "swap of the last, dB", "held out, dB", "SSIM", *HARM]
        parts.append("One after another, `full`:\n\n" + _table(heads, rows))
    if found["combined"]:
        rows = [
            [row["strategy"], _shown(row, "together", 2), *_scores(row), f"{row['file_bytes']:,}", *_harm(row)]
            for row in found["combined"]
        ]
        heads = ["", "trained together: swap, dB", "put together: swap, dB", "held out, dB", "SSIM", "files, bytes"]
        parts.append("Two people trained alone and put together:\n\n" + _table([*heads, *HARM], rows))
    return "\n\n".join(parts)


HARM = ("PSNR lost, dB", "SSIM lost", "MS-SSIM lost", "weights moved, %")


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _shown(row: Row, name: str, digits: int, times: float = 1) -> str:
    value, spread = row[name], row[f"{name}_std"]
    if value is None:
        return "-"
    return f"{value * times:,.{digits}f} ± {spread * times:,.{digits}f}"


def _scores(row: Row) -> list[str]:
    return [_shown(row, "swap_psnr", 2), _shown(row, "held_psnr", 2), _shown(row, "ssim", 4)]


def _harm(row: Row) -> list[str]:
    shown = [_shown(row, "psnr_lost", 2), _shown(row, "ssim_lost", 4), _shown(row, "ms_ssim_lost", 4)]
    return [*shown, _shown(row, "distance", 2, 100)]


def _needed(row: Row, score: str) -> str:
    if row[f"{score}_images"] is None and (count := row[f"{score}_reached"]):
        return f"{count} of {row['runs']} got there"
    return _shown(row, f"{score}_images", 0)


def _cells(row: Row) -> list[str]:
    swap, held, ssim = _scores(row)
    needed = [_needed(row, score) for score in SCORES]
    size = [f"{row['trained']:,}", f"{row['file_bytes']:,}", f"{100 * row['file_share']:.2f} %"]
    return [swap, _shown(row, "over_full", 2), held, ssim, *needed, _shown(row, "seconds", 0), *size, *_harm(row)]
