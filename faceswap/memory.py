"""How much memory a training takes, before it takes it, and what it takes now."""

import os
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from faceswap import console
from faceswap.config import Recipe
from faceswap.errors import TrainingError

GB = 10**9


@dataclass(frozen=True)
class Need:
    """What one process needs, in bytes."""

    weights: int
    gradients: int
    optimizer: int  # AdamW's two moments
    average: int  # the exponential moving average
    activations: int  # of a batch, or of its part if it is accumulated

    @property
    def total(self) -> int:
        return self.weights + self.gradients + self.optimizer + self.average + self.activations

    @property
    def more(self) -> int:
        """What is still to come once the weights and their average are there."""
        return self.total - self.weights - self.average

    def __str__(self) -> str:
        parts = {"weights": self.weights, "gradients": self.gradients, "AdamW": self.optimizer, "EMA": self.average}
        parts["activations"] = self.activations
        return f"{self.total / GB:.2f} GB ({', '.join(f'{name} {size / GB:.2f}' for name, size in parts.items())})"


class Estimate:
    """The need of a training by its batch, from two small batches.

    What lives at each operation of a step is a constant plus something per face. Two sizes tell both, operation by
    operation; the peak of a large batch may lie elsewhere than that of a small one.
    """

    def __init__(
        self,
        model: nn.Module,
        step: Callable[[int], None],  # losses of so many faces and the way back; gradients are left in the weights
        people: int,
        copies: int = 1,  # of the gradients: 2 with DDP, which keeps buckets of its own
    ) -> None:
        trained = [weight for weight in model.parameters() if weight.requires_grad]
        size = sum(weight.nbytes for weight in trained)
        self.weights = sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])
        self.moments, self.gradients = 2 * size, size * copies
        self.sizes = (people, 2 * people)
        for weight in trained:
            weight.grad = torch.zeros_like(weight)  # there before, so not counted among the activations
        self.curves = [living(partial(step, faces)) for faces in self.sizes]
        for weight in trained:
            weight.grad = None

    def at(self, faces: int) -> Need:
        """The need of a batch of so many faces in one process."""
        (one, two), (small, large) = self.sizes, self.curves
        if len(small) != len(large):  # a step that runs otherwise with more faces: the peaks have to do
            small, large = [max(small)], [max(large)]
        slope = (faces - one) / (two - one)
        peak = max(a + (b - a) * slope for a, b in zip(small, large, strict=True))
        return Need(self.weights, self.gradients, self.moments, self.weights, round(peak))


class Living(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes after each operation how many bytes live that were born since it began."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = 0
        self.curve: list[int] = [0]
        self._known: set[int] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        for tensor in tree_leaves((args, kwargs)):
            self._meet(tensor, born=False)
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            self._meet(tensor, born=True)
        self.curve.append(self.now)
        return result

    def _meet(self, tensor: object, *, born: bool) -> None:
        if not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key not in self._known:
            self._known.add(key)
            size = storage.nbytes() if born else 0
            self.now += size
            weakref.finalize(storage, self._lose, key, size)

    def _lose(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


def living(work: Callable[[], None]) -> list[int]:
    """The bytes of tensors that `work` made and that live, after each of its operations."""
    mode = Living()
    with mode:
        work()
    return mode.curve


def free(device: torch.device) -> int | None:
    """Bytes that this process could still take; None where nobody says."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + unused
    if device.type == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.current_allocated_memory()
    found = [size for size in (_available(), _granted()) if size is not None]
    return min(found, default=None)


def _available() -> int | None:
    """What Linux says is available, or else what the machine has in all."""
    info = Path("/proc/meminfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    if "SC_PHYS_PAGES" in getattr(os, "sysconf_names", {}):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


def _granted(folder: Path = Path("/sys/fs/cgroup")) -> int | None:
    """What is left of a container's limit, page cache counted as free; None without a limit."""
    try:
        limit = (folder / "memory.max").read_text().strip()
        used = int((folder / "memory.current").read_text())
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return None if limit == "max" else int(limit) - used + int(stat.get("inactive_file", 0))
    except (OSError, ValueError):
        return None


def used(device: torch.device) -> int:
    """Bytes that this process takes now (CPU), or has taken at most (CUDA)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        if os.name != "posix":
            return 0
        import resource

        largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return largest if sys.platform == "darwin" else largest * 1024


def remedies(recipe: Recipe) -> str:
    """What to lower, with what it is now."""
    train, model = recipe.train, recipe.model
    parts = [f"lower data.batch (now {recipe.data.batch})", f"raise train.accumulate ({train.accumulate})"]
    parts += [] if train.checkpointing else ["set train.checkpointing=true"]
    return f"{', '.join(parts)}, or lower model.resolution ({model.resolution}) or model.width ({model.width})"


def check(need: Need, processes: int, device: torch.device, recipe: Recipe) -> None:
    """Say what `processes` on one device need; `TrainingError` if that is more than it has.

    To be asked once the weights and their average are there: they take nothing more of what is free.
    """
    there, more = free(device), need.more * processes
    many = f"{processes} processes need {processes} x " if processes > 1 else "training needs "
    room = "" if there is None else f", {device} has {there / GB:.2f} GB free"
    if there is not None and more > there:
        raise TrainingError(f"{many}{need}{room}: {remedies(recipe)}")
    console.say(f"{many}{need}{room}")


@contextmanager
def exhausted(device: torch.device, recipe: Recipe) -> Iterator[None]:
    """Running out of memory becomes one line that names what to lower."""
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and "DefaultCPUAllocator" not in str(error):
            raise
        raise TrainingError(f"out of memory on {device}: {remedies(recipe)}") from None


def checkpointed(model: nn.Module) -> int:
    """Let a model's stages forget their activations and compute them again on the way back; gives how many.

    A stage is a member of an outermost `nn.Sequential`, or a part that holds none. Names of weights stay.
    """
    found = list(stages(model))
    for stage in found:
        stage.forward = partial(checkpoint, stage.forward, use_reentrant=False)
    return len(found)


def stages(model: nn.Module) -> Iterator[nn.Module]:
    for child in model.children():
        if isinstance(child, nn.Sequential):
            yield from (part for part in child if any(True for _ in part.parameters()))
        elif isinstance(child, nn.ModuleList) or any(isinstance(part, nn.Sequential) for part in child.modules()):
            yield from stages(child)
        elif any(True for _ in child.parameters()):
            yield child
