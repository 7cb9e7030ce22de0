"""Segments made by a Ray cluster: on the hosts that it has, or on this one if there is none.

Ray runs, schedules and ends the processes; what they do is `segments.write`, as in processes of our own. All hosts see
the same files under the same names, the video, the weights and the output's folder among them, and have the same
faceswap installed.
"""

import importlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

from faceswap import console
from faceswap.errors import FaceswapError, UsageError

INSTALL = "pip install 'faceswap[ray]'"
PATIENCE = 60.0  # seconds for tasks that were asked to stop: they look after each frame


def _ray() -> Any:
    """The library, joined to the cluster that `RAY_ADDRESS` or `ray start` names, or to one that begins and ends here.

    `UsageError` if Ray is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # before it is imported: nobody is told
    try:
        ray = importlib.import_module("ray")
    except ImportError as error:
        raise UsageError(f"--engine ray: Ray cannot be imported ({error}); {INSTALL}") from None
    if not ray.is_initialized():
        try:
            ray.init(log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, OSError, RuntimeError, ValueError) as error:
            raise FaceswapError(f"--engine ray: no cluster could be joined or started: {error}") from error
    return ray


def room(*, gpu: bool) -> int:
    """How many tasks the cluster has room for: one per GPU, or else one per core."""
    ray = _ray()
    resources, nodes = ray.cluster_resources(), [node for node in ray.nodes() if node["Alive"]]
    console.say(f"Ray: {len(nodes)} hosts, {resources.get('CPU', 0):g} cores, {resources.get('GPU', 0):g} GPUs")
    return max(1, int(resources.get("GPU" if gpu else "CPU", 1)))


class _Cluster(Executor):
    """Work becomes tasks, whose futures are Python's own."""

    def __init__(self, ray: Any, *, gpu: bool) -> None:
        self.tasks: list[Any] = []
        self._run = ray.remote(num_cpus=0 if gpu else 1, num_gpus=int(gpu), max_retries=0)(_run)

    def submit(self, work: Callable[..., Any], /, *given: Any, **named: Any) -> Future[Any]:
        self.tasks.append(self._run.remote(Path.cwd(), partial(work, *given, **named)))
        future: Future[Any] = self.tasks[-1].future()
        return future


def _run(folder: Path, work: Callable[[], Any]) -> Any:
    """In a process of Ray's, where relative names are to mean what they do here."""
    os.chdir(folder)
    return work()


@contextmanager
def processes(stop: Path, *, gpu: bool) -> Iterator[Executor]:
    """The cluster; after an error its tasks are asked to stop, by the file `stop`, and those that wait are dropped."""
    ray = _ray()
    cluster = _Cluster(ray, gpu=gpu)
    try:
        yield cluster
    except BaseException as error:
        with suppress(OSError):
            stop.touch()
        for task in cluster.tasks:
            ray.cancel(task)
        ray.wait(cluster.tasks, num_returns=len(cluster.tasks), timeout=PATIENCE)
        if isinstance(error, ray.exceptions.RayTaskError):  # which is ours, with a page of text around it
            raise error.cause from None
        if isinstance(error, ray.exceptions.RayError):
            line = " ".join(str(error).split())[:300]
            raise FaceswapError(f"--engine ray: {line}; what is finished is kept, the same command goes on") from error
        raise
