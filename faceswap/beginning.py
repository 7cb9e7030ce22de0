"""What a run starts from: nothing, a base, or its own last state; and with which strategy it goes on."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from faceswap import checkpoint, console, files, strategies
from faceswap.checkpoint import Base, State
from faceswap.config import Recipe
from faceswap.errors import CheckpointError, RecipeError
from faceswap.models import ANYONE

Origin = tuple[State, Base]  # a base, and what it is known by


def with_strategy(recipe: Recipe, run: Path, state: State | None) -> Recipe:
    """The recipe with the run's own strategy, which `resume` stands for; a run cannot go on with another."""
    if state is None:
        return recipe
    ours, theirs = recipe.strategy, state.recipe.strategy
    if ours.name not in ("resume", theirs.name):
        raise RecipeError(
            f"{run}: trains with strategy {theirs.name!r}, not {ours.name!r}; add --strategy {theirs.name} or resume, "
            "or choose another -o"
        )
    if ours.name == "resume":
        return recipe.changed(strategy=theirs.model_dump())
    if ours.rank != theirs.rank and ours.name == "lora":
        raise RecipeError(
            f"{run}: trains with strategy.rank = {theirs.rank}, not {ours.rank}; keep it, or choose another -o"
        )
    return recipe


def check_strategy(
    recipe: Recipe, people: Collection[str], state: State | None, base: Path | None, generic: Sequence[Path]
) -> None:
    """`RecipeError` if the strategy and what is given do not go together."""
    name = recipe.strategy.name
    strategy = strategies.build(name, rate=recipe.train.rate, recipe=recipe.strategy)
    if base is not None and not strategy.takes_base:
        raise RecipeError(f"--base with strategy {name!r}, which begins from nothing; leave one of them out")
    if base is None and state is None and (strategy.needs_base or recipe.strategy.save == "delta"):
        why = f"strategy {name!r}" if strategy.needs_base else "strategy.save = 'delta'"
        raise RecipeError(f"{why} needs a base to start from: give --base, see faceswap pretrained list")
    if base is None and state is None and len(people) == 1 and ANYONE not in people:
        raise RecipeError("one person alone is learnt from a base: give --base, or the target's faces too")
    if recipe.strategy.save == "delta" and state is not None and state.base is None:
        raise RecipeError("strategy.save = 'delta' of a run that did not start from a base; set it to 'whole'")
    if state is not None and strategy.takes_generic and (ANYONE in state.footage) != bool(generic):
        raise RecipeError("--generic: as at the beginning of this run, please; give it again, or choose another -o")
    if generic and len(people) < 3:
        raise RecipeError("--generic needs two people beside it: give the target's faces too, or leave it out")
    if generic and not strategy.takes_generic:
        raise RecipeError(f"--generic with strategy {name!r}, which has no use for it; add --strategy prior")


def find_origin(recipe: Recipe, run: Path, state: State | None, base: Path | None) -> Origin | None:
    """The base to start from, or that the run started from; None if there is none.

    Where a run that goes on can do without its base, one that is gone is said, no more.
    """
    if state is None:
        return open_base(base, recipe, run) if base is not None else None
    if state.base is None:
        if base is not None:
            raise CheckpointError(f"{run}: did not start from a base; leave out --base, or choose another -o")
        return None
    strategy = strategies.build(recipe.strategy.name, rate=recipe.train.rate, recipe=recipe.strategy)
    try:
        return checkpoint.find_base(state.base, run, base), state.base
    except CheckpointError as error:
        if base is not None or strategy.needs_base or recipe.strategy.save == "delta":
            raise CheckpointError(f"{run}: {error}") from None
        console.warn(f"{run}: {error}; it goes on without it")
        return None


def known(people: Mapping[str, Sequence[Path]], origin: Origin | None, state: State | None) -> list[str]:
    """Whom the model is to know: those it trains on and, from a base, `ANYONE`."""
    names = list(people)
    from_base = origin is not None or (state is not None and state.base is not None)
    return [*names, ANYONE] if from_base and ANYONE not in names else names


def open_base(base: Path, recipe: Recipe, run: Path) -> Origin:
    """A base that fits the recipe, and what it is to be known by; `CheckpointError` with the remedy if it does not.

    Of a run that came from a base itself `ANYONE` is taken.
    """
    path = checkpoint.find(base)
    if path.resolve().parent == run.resolve():
        raise CheckpointError(f"{base}: is the run itself, which would replace it; choose another -o")
    origin = checkpoint.read_base(path)
    difference = checkpoint.same_architecture(recipe, origin.recipe, origin.people, origin.people)
    if difference:
        shape = " ".join(f"--set model.{key}={value}" for key, value in origin.recipe.model.model_dump().items())
        raise CheckpointError(f"{base}: {difference}; use another base, or its shape: {shape}")
    shelved = path.parent.resolve() in [folder.resolve() for folder in files.weight_folders()]
    name = path.name if shelved else relative(run, path)
    return origin, Base(name, checkpoint.digest(origin.part("ema")))


def relative(run: Path, folder: Path) -> str:
    """A file or folder as the run names it: relative if it lies beside the run."""
    run, folder = run.resolve(), folder.resolve()
    return f"../{folder.relative_to(run.parent)}" if folder.is_relative_to(run.parent) else str(folder)
