"""Segments by Ray: as by processes of our own; with a stand-in for the library, and with the library where it is."""

import importlib.util
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from test_segments import Killed, make, names, plan_for, work
from test_swap import RECIPE, swapper, weights
from test_video import make_clip

from faceswap import ray_engine, segments, swap
from faceswap.cli import main
from faceswap.errors import FaceswapError, UsageError
from faceswap.provenance import Marker
from faceswap.video import VideoWriter

BARE = Marker(False, None)


class RayError(Exception):
    pass


class RayTaskError(RayError):
    def __init__(self, cause: BaseException) -> None:
        super().__init__(f"a page of text\nabout {cause}")
        self.cause = cause


class Ray(SimpleNamespace):
    """What we use of Ray, in threads: `remote`, `ObjectRef.future`, `wait`, `cancel`."""

    def __init__(self) -> None:
        self.pool, self.cancelled, self.options = ThreadPoolExecutor(2), 0, {}  # type: ignore[var-annotated]
        self.exceptions = SimpleNamespace(RayError=RayError, RayTaskError=RayTaskError)

    def is_initialized(self) -> bool:
        return True

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 3.0, "GPU": 1.0}

    def nodes(self) -> list[dict[str, Any]]:
        return [{"Alive": True}, {"Alive": False}]

    def remote(self, **options: Any) -> Callable[..., Any]:
        self.options = options

        def wrapped(run: Callable[..., Any]) -> Any:
            def told(*given: Any) -> Any:
                try:
                    return run(*given)
                except BaseException as error:
                    raise RayTaskError(error) from error

            def submit(*given: Any) -> Any:
                future: Future[Any] = self.pool.submit(told, *given)
                return SimpleNamespace(future=lambda: future)

            return SimpleNamespace(remote=submit)

        return wrapped

    def cancel(self, task: Any) -> None:
        self.cancelled += task.future().cancel()

    def wait(self, tasks: list[Any], *, num_returns: int, timeout: float) -> None:
        self.pool.shutdown()


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[Ray]:
    found = Ray()
    monkeypatch.setitem(sys.modules, "ray", found)  # type: ignore[arg-type]
    yield found
    found.pool.shutdown()


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", frames=45)


def by_ray(clip: Path, out: Path, do: Any = work) -> None:
    plan = plan_for(clip, out)
    with segments.opened(plan, out, {"key": plan.key}) as parts, VideoWriter(out, clip, form=plan.form) as writer:
        parts.fill(do, 3, lambda stop: ray_engine.processes(stop, gpu=False))
        parts.write_to(writer)


def test_a_cluster_makes_the_same_file(clip: Path, tmp_path: Path, ray: Ray) -> None:
    whole = make(clip, tmp_path / "whole.mp4").read_bytes()
    by_ray(clip, tmp_path / "out.mp4")
    assert (tmp_path / "out.mp4").read_bytes() == whole and names(tmp_path) == ["out.mp4", "whole.mp4"]
    assert ray.options == {"num_cpus": 1, "num_gpus": 0, "max_retries": 0}


def test_an_error_of_a_task_is_ours_and_what_is_finished_stays(clip: Path, tmp_path: Path, ray: Ray) -> None:
    whole, out = make(clip, tmp_path / "whole.mp4").read_bytes(), tmp_path / "out.mp4"

    def failing(plan: segments.Plan, run: range, tick: Callable[[], None]) -> int | None:
        if run.start == 3:
            raise FaceswapError("the disk sank")
        return work(plan, run, tick)

    with pytest.raises(FaceswapError, match=r"^the disk sank$"):
        by_ray(clip, out, failing)
    assert list(segments.folder_of(out).glob("0*.json")) and not out.exists()
    by_ray_again = make(clip, out)
    assert by_ray_again.read_bytes() == whole


def test_ctrl_c_stops_the_tasks(clip: Path, tmp_path: Path, ray: Ray) -> None:
    begun, stop = threading.Event(), tmp_path / "stop"

    def endless() -> None:
        begun.set()
        while not stop.exists():
            pass

    with pytest.raises(Killed), ray_engine.processes(stop, gpu=False) as cluster:
        for _ in range(4):
            cluster.submit(endless)
        begun.wait()
        raise Killed
    assert stop.exists() and all(task.future().done() for task in cluster.tasks)


def test_what_ray_says_itself_is_one_line(tmp_path: Path, ray: Ray) -> None:
    with (
        pytest.raises(FaceswapError, match="--engine ray: a worker died, out of memory; what is finished is kept"),
        ray_engine.processes(tmp_path / "stop", gpu=True),
    ):
        raise RayError("a worker died,\n  out of memory")
    assert ray.options["num_gpus"] == 1 and (tmp_path / "stop").exists()


def test_a_task_per_core_or_gpu(ray: Ray) -> None:
    assert ray_engine.room(gpu=False) == 3 and ray_engine.room(gpu=True) == 1


def test_without_ray_one_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match=r"--engine ray: Ray cannot be imported .*pip install 'faceswap\[ray\]'"):
        ray_engine.room(gpu=False)


def test_images_are_not_made_by_ray(tmp_path: Path) -> None:
    words = ["merge", "a.mp4", "--model", "run", "--frames", str(tmp_path / "a"), "--engine", "ray"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 2 and "--engine belongs to -o" in done.stderr


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed")
def test_a_real_cluster_merges_bit_for_bit(clips: dict[str, Path], tmp_path: Path) -> None:
    import ray as library

    faces = swap.detecting(clips["target"], RECIPE.extract, "cpu")
    drawer = swapper(weights(tmp_path / "pair.safetensors"), segment=5, steady=3, batch=2)
    made = []
    try:
        for engine in ("local", "ray"):
            out = tmp_path / f"{engine}.mp4"
            report = swap.swap_video(clips["target"], out, drawer, faces, marks=BARE, engine=engine)
            assert report.frames_swapped == 14
            made.append(out.read_bytes())
    finally:
        library.shutdown()
    assert made[0] == made[1]
