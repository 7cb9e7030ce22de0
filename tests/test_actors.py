"""Tests of faceswap.actors: takes, clips and facesets of people that do not exist."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import astuple, replace
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from faceswap import actors, align, detectors, extract, provenance
from faceswap.actors import Take
from faceswap.config import ExtractRecipe
from faceswap.errors import FaceswapError, MediaError, OutputExistsError, UsageError
from faceswap.faceset import Faceset, read_image
from faceswap.heads import Identity
from faceswap.video import probe, read_frames

TAKE = Take(Identity.random(31), performance=21, frames=12, size=96)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("actors") / "actor.mp4"
    report = actors.write_clip(TAKE, path)
    assert (report.out, report.truth, report.frames) == (path, path.with_name("actor.truth.npz"), 12)
    return path


def test_a_take_renders_the_same_in_one_process_and_in_several() -> None:
    numbers = [0, 11, 5] * 6 + [7]  # more than a process takes at once
    alone, together = (list(TAKE.shots(numbers, workers=workers)) for workers in (1, 2))
    assert len(alone) == len(numbers)
    for ours, theirs in zip(alone, together, strict=True):
        for field in ("image", "mask", "points", "landmarks"):
            assert np.array_equal(getattr(ours, field), getattr(theirs, field))
    assert np.array_equal(alone[0].image, alone[3].image) and not np.array_equal(alone[0].image, alone[1].image)


def test_a_longer_take_begins_like_a_shorter_one() -> None:
    for seed in (21, 1):
        assert actors.perform(seed, 500, 25.0)[:50] == actors.perform(seed, 50, 25.0)


def test_a_performance_is_smooth_bounded_and_alive() -> None:
    for seed in range(8):
        moments = actors.perform(seed, 500, 25.0)
        pose = np.array([astuple(moment.pose) for moment in moments])
        expression = np.array([astuple(moment.expression) for moment in moments])
        assert (np.abs(pose) <= (30, 14, 10)).all() and np.ptp(pose[:, 0]) > 30
        assert np.abs(np.diff(pose, axis=0)).max() < 5, "degrees from frame to frame"
        assert (expression[:, :7] >= 0).all() and (expression[:, :7] <= 1).all()
        assert expression[:, 0].max() > 0.3, "speaks"
        shut = expression[:, 5] > 0.9
        assert 4 <= int((np.diff(shut.astype(int)) == 1).sum()) <= 17, "blinks in 20 s"
        light = np.array([astuple(moment.light)[:2] for moment in moments])
        assert np.abs(light[:, 0]).max() <= 50 and light[:, 1].min() >= 12
    assert actors.perform(1, 5, 25.0) != actors.perform(2, 5, 25.0)
    assert actors.perform(1, 0, 25.0) == []


def test_a_random_moment_stays_in_its_range() -> None:
    random = np.random.default_rng(0)
    poses = np.array([astuple(actors.at_random(random).pose) for _ in range(300)])
    assert (np.abs(poses) <= (35, 20, 20)).all()
    assert (np.abs(poses).max(0) > (33, 18, 18)).all()


def test_the_true_swap_keeps_the_take_and_changes_the_face() -> None:
    truth = TAKE.with_face_of(Identity.random(26))
    assert replace(truth, identity=TAKE.identity) == TAKE
    ours, theirs = next(TAKE.shots([3])), next(truth.shots([3]))
    difference = np.abs(ours.image.astype(int) - theirs.image).mean(2)
    assert difference[theirs.mask > 0.9].mean() > 8
    assert difference[np.maximum(ours.alpha, theirs.alpha) == 0].max() == 0, "the room stays"
    assert TAKE.with_face_of(TAKE.identity) == TAKE


def test_a_take_survives_json() -> None:
    odd = replace(TAKE, rate=Fraction(30000, 1001))
    assert Take.from_json(odd.to_json()) == odd
    with pytest.raises(KeyError):
        Take.from_json("{}")


def test_a_clip_is_a_video_with_sound_that_is_marked(clip: Path) -> None:
    info = probe(clip)
    assert (info.width, info.height, info.rate, info.frames, info.has_audio) == (96, 96, 25, 12, True)
    with av.open(str(clip)) as container:
        assert container.metadata["digitalsourcetype"] == provenance.RENDERED_TYPE
        assert "nobody in this video is real" in container.metadata["comment"]
        sound = np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], 1)
    assert abs(sound.shape[1] / 44100 - 12 / 25) < 0.06 and 0.001 < np.abs(sound).max() < 1


def test_the_voice_is_louder_when_the_mouth_is_open() -> None:
    moments = actors.perform(21, 250, 25.0)
    sound = actors.voice(moments, 25.0, 150.0)
    loud = np.sqrt((sound.reshape(250, -1) ** 2).mean(1))
    jaw = np.array([moment.expression.jaw for moment in moments])
    assert np.abs(sound).max() <= 1 and np.corrcoef(loud, jaw)[0, 1] > 0.9


def test_the_truth_tells_what_the_clip_shows(clip: Path) -> None:
    truth = np.load(actors.truth_path(clip), allow_pickle=False)
    assert actors.read_take(actors.truth_path(clip)) == TAKE
    moments = TAKE.moments()
    assert np.allclose(truth["pose"], [astuple(m.pose) for m in moments])
    assert np.allclose(truth["expression"], [astuple(m.expression) for m in moments])
    assert list(truth["expression_names"][:2]) == ["jaw", "smile"] and truth["light"].shape[1] == len(
        truth["light_names"]
    )
    assert truth["points"].shape == (12, 5, 2) and truth["landmarks"].shape == (12, 68, 2)
    assert truth["mask"].shape == (12, 96, 96) and truth["mask"].dtype == np.uint8
    frames = [frame.image for frame in read_frames(clip)]
    for number in (0, 7):
        shot = next(TAKE.shots([number]))
        assert np.abs(frames[number].astype(float) - shot.image).mean() < 4, "but for the codec"
        assert np.abs(truth["mask"][number] / 255 - shot.mask).max() <= 0.5 / 255 + 1e-6
        left, right = truth["points"][number][:2]
        assert left[0] < right[0], "image-left eye first"


def test_nothing_is_overwritten_and_nothing_half_made_stays(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputExistsError, match="--overwrite"):
        actors.write_clip(TAKE, clip)
    (tmp_path / "b.truth.npz").write_text("mine")
    with pytest.raises(OutputExistsError):
        actors.write_clip(TAKE, tmp_path / "b.mp4")
    assert (tmp_path / "b.truth.npz").read_text() == "mine" and not (tmp_path / "b.mp4").exists()
    actors.write_clip(replace(TAKE, frames=2), tmp_path / "b.mp4", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.mp4", "b.truth.npz"]


@pytest.mark.parametrize("change", [{"size": 97}, {"frames": 0}])
def test_what_cannot_be_rendered_is_refused(change: dict[str, int], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="expected an even size and at least one frame"):
        actors.write_clip(replace(TAKE, **change), tmp_path / "a.mp4")
    with pytest.raises(UsageError, match="ending in"):
        actors.write_clip(TAKE, tmp_path / "a.gif")


def test_a_damaged_truth_gives_one_clear_line(clip: Path, tmp_path: Path) -> None:
    with pytest.raises(MediaError, match="no such truth file; faceswap actors clip"):
        actors.read_take(tmp_path / "none.truth.npz")
    whole = actors.truth_path(clip).read_bytes()
    for number, content in enumerate((b"", b"text", whole[: len(whole) // 2])):
        path = tmp_path / f"{number}.truth.npz"
        path.write_bytes(content)
        with pytest.raises(MediaError, match=r"damaged truth file .*; render the clip again"):
            actors.read_take(path)
    later = tmp_path / "later.truth.npz"
    np.savez(later, version=actors.VERSION + 1, take="{}")
    with pytest.raises(MediaError, match="update faceswap"):
        actors.read_take(later)


def test_the_detector_finds_the_actor_and_its_points(clip: Path, tmp_path: Path) -> None:
    report = extract.extract([clip], tmp_path / "faces", ExtractRecipe(size=64, min_size=30))
    assert report.faces == 12
    truth = np.load(actors.truth_path(clip))["points"]
    for entry in Faceset.open(tmp_path / "faces").entries:
        true = truth[entry.meta.frame]
        error = np.linalg.norm(np.array(entry.meta.points) - true, axis=1).mean()
        assert error < 0.25 * np.linalg.norm(true[1] - true[0])


def test_a_faceset_of_many_people_with_their_truth(tmp_path: Path) -> None:
    report = actors.write_faces(tmp_path / "many", 6, size=64, seed=3)
    faceset = Faceset.open(tmp_path / "many")
    assert report.frames == len(faceset) == 6 and not faceset.skipped
    seeds = [entry.meta.truth["identity"] for entry in faceset.entries if entry.meta.truth]
    assert sorted(seeds.count(seed) for seed in set(seeds)) == [2, 4]
    for entry in faceset.entries:
        meta, image = entry.meta, read_image(entry.path)
        assert image.shape == (64, 64, 3) and meta.detector == "truth" and meta.truth is not None
        points = align.apply(np.array(meta.matrix), np.array(meta.points))
        assert np.abs(points - align.TEMPLATE * 64).mean() < 4, "cropped by the true points"
        assert len(meta.truth["landmarks"]) == 68 and set(meta.truth["pose"]) == {"yaw", "pitch", "roll"}
    again = actors.write_faces(tmp_path / "again", 6, size=64, seed=3)
    other = actors.write_faces(tmp_path / "other", 1, size=64, seed=4)
    names = sorted(path.name for path in again.out.iterdir())
    assert all((again.out / name).read_bytes() == (report.out / name).read_bytes() for name in names)
    assert (other.out / names[0]).read_bytes() != (again.out / names[0]).read_bytes()


def test_a_faceset_replaces_nothing_but_a_faceset(tmp_path: Path) -> None:
    folder = tmp_path / "mine"
    folder.mkdir()
    (folder / "letter.txt").write_text("dear")
    with pytest.raises(OutputExistsError, match="--overwrite"):
        actors.write_faces(folder, 1, size=64)
    with pytest.raises(OutputExistsError, match=r"letter\.txt is no extracted face"):
        actors.write_faces(folder, 1, size=64, overwrite=True)


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is asked of POSIX")
def test_a_killed_rendering_leaves_no_clip(tmp_path: Path) -> None:
    words = [
        sys.executable,
        "-m",
        "faceswap",
        "actors",
        "clip",
        "-o",
        "a.mp4",
        "--seconds",
        "60",
        "--size",
        "128",
        "-q",
    ]
    process = subprocess.Popen(words, cwd=tmp_path, start_new_session=True)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".*partial*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.5)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "a.mp4").exists() and not (tmp_path / "a.truth.npz").exists()
    actors.write_clip(replace(TAKE, frames=2), tmp_path / "a.mp4")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "a.truth.npz"], "and the parts are swept"


@pytest.mark.skipif(os.name != "posix", reason="kill -9 is asked of POSIX")
def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    words = ["actors", "clip", "-o", "a.mp4", "--seconds", "60", "--size", "96", "-q"]
    process = subprocess.Popen([sys.executable, "-m", "faceswap", *words], cwd=tmp_path, start_new_session=True)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    if not children.exists():
        process.kill()
        pytest.skip("no /proc that lists children")
    deadline, workers = time.monotonic() + 60, list[int]()
    while len(workers) < 3 and time.monotonic() < deadline and os.cpu_count() != 1:  # two, and their tracker
        workers = [int(word) for word in children.read_text().split()]
        time.sleep(0.1)
    time.sleep(1.5)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 20
    while any(is_running(worker) for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not [worker for worker in workers if is_running(worker)]


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_worker_that_dies_is_one_clear_line() -> None:
    with pytest.raises(FaceswapError, match="a rendering process died: out of memory"):
        list(actors._spread(os._exit, [1, 1, 1], 2))


def test_a_folder_in_the_way_of_the_truth_is_seen_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "a.truth.npz").mkdir()
    with pytest.raises(OutputExistsError, match="a folder, which is never replaced"):
        actors.write_clip(TAKE, tmp_path / "a.mp4", overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a.truth.npz"]


def test_the_detector_is_sure_of_a_dozen_people() -> None:
    detector = detectors.build("mtcnn", threshold=0.0, min_size=30, device="cpu")
    random = np.random.default_rng(5)
    images = []
    for seed in range(12):
        moment = actors.at_random(random)
        actor = actors.Actor(Identity.random(seed))
        room = actors.background(seed, 160, 160)
        images.append(actor.render(**actors.as_arguments(moment), size=160, background=room, scale=0.6).image)
    found = detector(images)
    assert sum(bool(faces) and faces[0].probability > 0.95 for faces in found) >= 11
