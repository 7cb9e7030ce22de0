"""Two people who were learnt apart, from one base, become a pair without training again.

What each training added to the base is added up (Ilharco et al., "Editing models with task arithmetic", arXiv
2212.04089); their codes stand side by side. How good that is, docs/FINETUNING.md says.
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from faceswap import adapters, checkpoint, files
from faceswap.checkpoint import Progress, State
from faceswap.errors import CheckpointError, UsageError
from faceswap.models import ANYONE


@dataclass(frozen=True)
class Report:
    """What was combined."""

    file: Path
    base: str
    images: int  # trained on, both together


def combine(
    source: Path,  # a run, or a file of one, whose first person becomes the source
    target: Path,  # the same for the target
    out: Path,  # weight file to make
    *,
    base: Path | None = None,  # where the base lies, if it is not where it was
    overwrite: bool = False,
) -> Report:
    """Write a pair that draws the first person of each; `CheckpointError` if they did not start from the same base, or
    their architecture has no codes to tell people apart by."""
    if out.suffix != ".safetensors":
        raise UsageError(f"{out}: expected the name of a weight file, ending in .safetensors; choose another -o")
    places = [checkpoint.find(path) for path in (source, target)]
    files.refuse_existing(out, overwrite)
    files.refuse_same(out, places)
    (one, first), (other, second) = (checkpoint.load_model(path, base) for path in places)
    for path, state in ((source, first), (target, second)):
        if state.base is None:
            raise CheckpointError(f"{path}: did not start from a base; expected a run of finetune --base")
    assert first.base is not None and second.base is not None
    if first.base.digest != second.base.digest:
        raise CheckpointError(f"{source} and {target}: started from different bases; train one anew")
    codes = one.named("codes")
    if not codes:
        raise CheckpointError(f"{source}: {first.recipe.model.name} has no codes of people; use modulated")
    people = ["source", "target", ANYONE]
    pair = checkpoint.new_model(first.recipe, people)
    pair.load_base(checkpoint.find_base(first.base, places[0].parent, base).part("ema"))
    start, tuned = pair.state_dict(), [one.state_dict(), other.state_dict()]
    weights = adapters.add_up(start, *({n: w for n, w in part.items() if n not in codes} for part in tuned))
    for name in codes:
        weights[name] = torch.cat([tuned[0][name][:1], tuned[1][name][:1], start[name][2:]])
    there = places[0].parent / first.base.file
    where = str(there.resolve()) if there.exists() else first.base.file
    state = State(
        first.recipe,
        people,
        {f"ema.{name}": weight for name, weight in weights.items()},
        Progress(images=first.progress.images + second.progress.images),
        {name: state.footage.get(state.people[0], "") for name, state in zip(people, (first, second), strict=False)},
        checkpoint.Base(where, first.base.digest),
        "; ".join(dict.fromkeys(note for note in (first.consent, second.consent) if note)),
    )
    checkpoint.write(out, state)
    return Report(out, first.base.name, state.progress.images)
