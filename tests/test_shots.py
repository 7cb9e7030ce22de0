"""Other settings by shot: what a plan says, what it changes in which frame, and a part of a video."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import footage
import numpy as np
import pytest
from numpy.typing import NDArray
from test_stills import contents
from test_swap import CPU, RECIPE, face_at, frame, weights
from test_video import make_clip, packets, planes

from faceswap import console, segments, shots, stills, swap
from faceswap.config import MergeRecipe
from faceswap.detectors import Face
from faceswap.errors import RecipeError, UsageError
from faceswap.found import FoundFaces
from faceswap.segments import WHOLE
from faceswap.shots import Shot, Shots
from faceswap.video import Frame, frame_times, read_frames

BASE = MergeRecipe()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return weights(tmp_path_factory.mktemp("model") / "pair.safetensors")


@pytest.fixture(scope="module")
def found(clips: dict[str, Path]) -> FoundFaces:
    return swap.detecting(clips["target"], RECIPE.extract, "cpu")


def swapper(model: Path, plan: Shots = (), **merge: object) -> swap.Swapper:
    return swap.Swapper(model, MergeRecipe.model_validate(merge), CPU, shots=plan)


def plan(folder: Path, text: str) -> Path:
    path = folder / "plan.toml"
    path.write_text(text)
    return path


def walk(frames: int, tracks: tuple[int, ...] = (0, 1)) -> list[tuple[Frame, list[Face]]]:
    """Two faces that move, in noise."""
    faces = {0: (50.0, 60.0), 1: (115.0, 100.0)}
    return [
        (frame(i), [replace(face_at(faces[t][0] + i, faces[t][1], 20), track=t) for t in tracks]) for i in range(frames)
    ]


def render(made: swap.Swapper, given: list[tuple[Frame, list[Face]]]) -> list[NDArray[Any]]:
    return [np.asarray(out.image) for out, _ in made(given)]


# ---------------------------------------------------------------- what a plan says


@pytest.mark.parametrize(
    ("text", "start", "stop"),
    [("120-240", 120, 241), ("120-", 120, WHOLE.stop), ("-240", 0, 241), ("7", 7, 8), (" 3-3 ", 3, 4)],
)
def test_frames_are_a_span_with_both_ends(text: str, start: int, stop: int) -> None:
    assert shots.span(text) == range(start, stop)


@pytest.mark.parametrize("text", ["", "-", "a-b", "1-2-3", "1.5-2", "240-120", "0:04"])
def test_other_spans_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match='expected frames such as "120-240"'):
        shots.span(text)


def test_later_sections_win_key_by_key(tmp_path: Path) -> None:
    held = shots.load(
        plan(
            tmp_path,
            """
            [[shot]]
            frames = "10-20"
            color = "reinhard"
            erode = 0.05
            [[shot]]
            track = [3, 4]
            color = "lct"
            [[shot]]
            frames = "18-"
            track = 4
            skip = true
            [[shot]]
            frames = "30-"
            skip = false
            """,
        )
    )

    def at(frame: int, track: int | None) -> tuple[str, float] | None:
        recipe = shots.recipe_at(BASE, held, frame, track)
        return None if recipe is None else (recipe.color, recipe.erode)

    assert shots.recipe_at(BASE, held, 9, 0) is BASE and at(9, None) == (BASE.color, 0)
    assert at(10, 0) == at(20, None) == ("reinhard", 0.05) and at(21, 0) == (BASE.color, 0)
    assert at(15, 3) == ("lct", 0.05) and at(25, 3) == ("lct", 0)
    assert at(17, 4) == ("lct", 0.05) and at(18, 4) is None and at(30, 4) == ("lct", 0)
    assert shots.recipe_at(BASE, held, 15, 3) is shots.recipe_at(BASE, held, 16, 3), "what is alike is one"
    assert {recipe.color for recipe in shots.recipes(BASE, held)} == {BASE.color, "reinhard", "lct"}
    assert pickle.loads(pickle.dumps(held)) == held and hash(held)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[[shot]]\ncolr = "mkl"', r"plan.toml: shot 1: unknown key 'colr'; did you mean 'color'\?"),
        (
            '[[shot]]\ncolor = "reinhart"',
            r"shot 1: merge.color: no transfer called 'reinhart'; did you mean 'reinhard'",
        ),
        ('[[shot]]\nblend = "feathr"', r"shot 1: merge.blend: .*did you mean 'feather'"),
        ("[[shot]]\nerode = 0.5", r"shot 1: erode = 0.5: input should be less than or equal to 0.2"),
        ('[[shot]]\nerode = "0.05"', r"shot 1: erode = '0.05': input should be a valid number"),
        (
            "[[shot]]\nskip = true\n[[shot]]\ncrf = 3",
            r"shot 2: crf cannot differ by shot; give it as --set merge.crf=3",
        ),
        ("[[shot]]\nbatch = 3", r"shot 1: batch cannot differ by shot"),
        ('[[shot]]\nframes = "9-3"\nskip = true', r"shot 1: '9-3': ends before it begins"),
        ("[[shot]]\nframes = 9\nskip = true", r"shot 1: frames = 9: input should be a valid string"),
        ("[[shot]]\ntrack = -1\nskip = true", r"shot 1: track.0 = -1: input should be greater than or equal to 0"),
        ("[[shot]]\ntrack = []\nskip = true", r"shot 1: track = \[\]: list should have at least 1 item"),
        ('[[shot]]\ntrack = "a"\nskip = true', r"shot 1: track.0 = 'a': input should be a valid integer"),
        ('[[shot]]\nframes = "1-2"', r"shot 1: changes nothing; give keys of \[merge\]"),
        ("[[shot]]\nskip = true\nerode = 0.1", r"shot 1: skip leaves the face as it is; leave out 'erode', or skip"),
        (
            '[[shot]]\nframes = "1-9"\nerode = 0.1\n[[shot]]\nframes = "0-20"\nerode = 0.0\ncolor = "mix"',
            r"shot 1 never takes effect: shot 2 says all of it otherwise",
        ),
        ("[[shot]]\nerode = 0.1\n[[shot]]\nskip = true", r"shot 1 never takes effect"),
        (
            '[[shot]]\ntrack = 3\nskip = true\n[[shot]]\ntrack = 3\nframes = "5-"\nerode = 0.1',
            r"shot 2 never takes effect: shot 1 skips those faces; add skip = false to it",
        ),
        ("", r"no shots; expected one \[\[shot\]\] or more"),
        ("[shot]\nerode = 0.1", r"no shots; expected one \[\[shot\]\]"),
        ('color = "mkl"', r"unknown key 'color'; expected nothing but \[\[shot\]\]"),
        ("[[shot]", r"not valid TOML"),
    ],
)
def test_mistakes_in_a_plan_are_one_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(RecipeError, match=said) as error:
        shots.load(plan(tmp_path, text))
    assert "\n" not in str(error.value)


def test_a_plan_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"no such plan; expected a TOML file"):
        shots.load(tmp_path / "no.toml")


def test_a_section_that_meets_nobody_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(console, "warn", lines.append)
    faces = {3: [replace(face_at(0, 0), track=2)], 9: [replace(face_at(0, 0), track=5)]}
    met = (Shot(range(4)), Shot(range(4), frozenset({2})), Shot(tracks=frozenset({5})))
    shots.tell_idle(Path("p.toml"), (*met, Shot(range(4), frozenset({5})), Shot(range(20, 30))), faces)
    assert [line.partition(": ")[2] for line in lines] == [
        "shot 4 meets no face; tracks in its frames: 2",
        "shot 5 meets no face; tracks in its frames: none",
    ]


# ---------------------------------------------------------------- what it changes


def test_a_shot_is_drawn_as_with_its_own_recipe_and_the_others_as_before(model: Path) -> None:
    given, change = walk(7), {"color": "none", "blend": "feather", "erode": 0.05, "sharpen": 0.5, "mask": "landmarks"}
    held = (Shot(range(2, 5), None, None, tuple(change.items())),)
    how: dict[str, object] = {"steady": 0, "motion_blur": 0.0, "batch": 3}
    mixed, plain, other = (
        render(swapper(model, held, **how), given),
        render(swapper(model, **how), given),
        render(swapper(model, **how | change), given),
    )
    for i in range(7):
        assert np.array_equal(mixed[i], (other if 2 <= i < 5 else plain)[i]), i
        assert not np.array_equal(other[i], plain[i])


def test_a_track_is_left_as_it_is_and_draws_nobody_else_in(model: Path) -> None:
    given = walk(4)
    skipped = render(swapper(model, (Shot(tracks=frozenset({1}), skip=True),), batch=1, max_faces=1), given[:1])
    assert not np.array_equal(skipped[0], given[0][0].image), "of the largest one alone"
    held = (Shot(range(2), frozenset({1}), True),)
    mixed = render(swapper(model, held, steady=0, batch=1), given)
    alone = render(swapper(model, steady=0, batch=1), walk(4, (0,)))
    both = render(swapper(model, steady=0, batch=1), given)
    assert [np.abs(a.astype(int) - b).max() <= 1 for a, b in zip(mixed, alone, strict=True)] == [
        True,
        True,
        False,
        False,
    ]
    assert [np.abs(a.astype(int) - b).max() <= 1 for a, b in zip(mixed, both, strict=True)] == [
        False,
        False,
        True,
        True,
    ]


def test_nothing_is_averaged_over_frames_that_were_measured_otherwise(model: Path) -> None:
    """The states of two transfers are of different shapes; and what is seen beyond the border has no say."""
    given = walk(9, (0,))
    held = (Shot(range(4, 9), changes=(("color", "histogram"),)),)
    mixed = render(swapper(model, held, steady=3, motion_blur=0.0, batch=1), given)
    first = render(swapper(model, steady=3, motion_blur=0.0, batch=1), given[:4])
    last = render(swapper(model, steady=3, motion_blur=0.0, batch=1, color="histogram"), given[4:])
    for got, wanted in zip(mixed, [*first, *last], strict=True):
        assert np.array_equal(got, wanted)


def test_an_edge_alone_does_not_part_what_is_measured(model: Path) -> None:
    given = walk(9, (0,))
    held = (Shot(range(4, 9), changes=(("erode", 0.05),)),)
    mixed, plain = render(swapper(model, held, batch=1), given), render(swapper(model, batch=1), given)
    assert all(np.array_equal(a, b) for a, b in zip(mixed[:4], plain[:4], strict=True))
    assert not np.array_equal(mixed[4], plain[4])


def test_the_reach_is_that_of_the_farthest_section(model: Path) -> None:
    held = (Shot(range(4), changes=(("steady", 30),)), Shot(range(9), changes=(("steady", 2),)))
    assert swapper(model, held, steady=5).reach == 30 and swapper(model, held[1:], steady=5).reach == 5
    given = walk(12, (0,))
    some = (Shot(range(6), changes=(("steady", 1),)),)
    whole = render(swapper(model, some, steady=3, batch=2), given)
    part = swapper(model, some, steady=3, batch=2)(given[2:], range(6, 8))
    assert [np.array_equal(out.image, whole[out.index]) for out, _ in part] == [True, True]


def test_a_mask_of_the_target_is_refused_in_a_section_too(tmp_path: Path) -> None:
    one = weights(tmp_path / "one.safetensors", ("source",))
    with pytest.raises(UsageError, match=r"merge.mask = 'target': .* knows one person only"):
        swapper(one, (Shot(range(4), changes=(("mask", "target"),)),))
    with pytest.raises(UsageError, match=r"gone.onnx: no such file"):
        swapper(one, (Shot(range(4), changes=(("restore", str(tmp_path / "gone.onnx")),)),))


def test_masks_of_the_target_in_some_frames(model: Path) -> None:
    given = walk(5)
    held = (Shot(range(2, 4), frozenset({1}), None, (("mask", "product"),)),)
    mixed = render(swapper(model, held, steady=0, batch=1), given)
    plain, other = (render(swapper(model, steady=0, batch=1, mask=name), given) for name in ("learned", "product"))
    for i in (0, 1, 4):
        assert np.array_equal(mixed[i], plain[i])
    where = np.s_[75:130, 95:140]  # of track 1
    assert np.array_equal(mixed[2][where], other[2][where])


def test_another_plan_is_other_work(model: Path, clips: dict[str, Path], found: FoundFaces) -> None:
    keys = [
        segments.key_of(swap.what_decides(clips["target"], swapper(model, held), found))
        for held in ((), (Shot(range(4), skip=True),), (Shot(range(5), skip=True),), (Shot(range(4), skip=False),))
    ]
    assert len(set(keys)) == 4
    again = pickle.loads(pickle.dumps(swapper(model, (Shot(range(4), skip=True),)).made_from)).swapper()
    assert segments.key_of(swap.what_decides(clips["target"], again, found)) == keys[1]


def test_otherwise_is_another_plan_for_the_same_models(model: Path) -> None:
    first = swapper(model, (Shot(skip=True),))
    other = first.otherwise((Shot(skip=False), Shot(changes=(("steady", 40),))))
    assert other.models is first.models and (other.reach, first.reach) == (40, BASE.steady)
    assert len(first.shots) == 1 and other.made_from.shots == other.shots


# ---------------------------------------------------------------- a part


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", frames=45)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("10-20", range(10, 21)),
        ("10-", range(10, 45)),
        ("-3", range(4)),
        ("44", range(44, 45)),
        ("40-90", range(40, 45)),
        ("0:01-0:01.2", range(25, 30)),
        ("0:00:01-", range(25, 45)),
        ("0:00.99-0:01.01", range(25, 26)),
    ],
)
def test_a_part_is_frames_or_times(clip: Path, text: str, part: range) -> None:
    assert shots.part_of(clip, text) == part


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("45-50", r"no frame lies there; clip.mp4 has 0 to 44, 0:00 to 0:01.76"),
        ("0:02-0:09", r"no frame lies there"),
        ("0:01-30", r"expected frames such as 120-240, or times"),
        ("fast", r"--range 'fast': expected frames such as .*, or times such as 0:04-0:10"),
        ("20-10", r"ends before it begins"),
    ],
)
def test_another_part_is_refused(clip: Path, text: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        shots.part_of(clip, text)


def test_images_have_numbers_and_no_times(tmp_path: Path) -> None:
    for i in range(5):
        (tmp_path / f"{i}.png").touch()
    assert shots.part_of(tmp_path, "3-") == range(3, 5)
    with pytest.raises(UsageError, match="images have no times"):
        shots.part_of(tmp_path, "0:01-0:02")


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".ts"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_part_has_the_frames_of_the_whole_and_its_own_sound(
    model: Path, tmp_path: Path, suffix: str, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segments, "_processes", lambda count, stop: ThreadPoolExecutor(count))
    clip = footage.write_clip(tmp_path / "in.mp4", footage.performance("target", 24))
    if suffix != ".mp4":
        clip = _remuxed(clip, tmp_path / f"in{suffix}")
    faces: FoundFaces = {i: [replace(face_at(80 + i / 4, 78), track=0)] for i in range(24) if i not in (3, 20)}
    held = (Shot(range(8, 14), changes=(("color", "none"),)),)
    made = swapper(model, held, steady=2, batch=4, segment=5, crf=0)
    whole, part = tmp_path / "whole.mp4", tmp_path / "part.mp4"
    swap.swap_video(clip, whole, made, faces, workers=workers)
    report = swap.swap_video(clip, part, made, faces, workers=workers, part=range(7, 19))
    assert (report.frames, report.frames_swapped) == (12, 12)
    assert [planes(f) for f in read_frames(part)] == [planes(f) for f in read_frames(whole)][7:19]
    times = frame_times(clip)
    assert frame_times(part) == [time - times[7] for time in times[7:19]]
    begin = frame_times(whole)[7]
    sounds = {data: time for time, data in _sound(whole)}
    got = _sound(part)
    assert [data for _, data in got] == [
        data for time, data in _sound(whole) if begin <= time < begin + Fraction(12, 25)
    ]
    assert len(got) > 15 and all(abs(sounds[data] - time - begin) < Fraction(1, 10_000) for time, data in got)
    assert not list(tmp_path.glob(".*"))


def _remuxed(path: Path, out: Path) -> Path:
    with av.open(str(path)) as source, av.open(str(out), "w") as output:
        streams = {stream.index: output.add_stream_from_template(stream) for stream in source.streams}
        for packet in source.demux():
            if packet.size:
                packet.stream = streams[packet.stream.index]
                output.mux(packet)
    return out


def _sound(path: Path) -> list[tuple[Fraction, bytes]]:
    with av.open(str(path)) as container:
        return [(p.pts * p.time_base, bytes(p)) for p in container.demux(audio=0) if p.size and p.pts is not None]


def test_a_part_goes_on_where_it_was(
    model: Path, clips: dict[str, Path], found: FoundFaces, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = swapper(model, steady=1, batch=2, segment=3)
    whole, out = tmp_path / "whole.mp4", tmp_path / "out.mp4"
    bare = swap.Marker(True, None)
    swap.swap_video(clips["target"], whole, made, found, marks=bare, part=range(2, 13))
    write, ran = segments._write_one, []

    def stop(plan: segments.Plan, number: int, *rest: Any) -> None:
        ran.append(number)
        if number == 2 and len(ran) == 3:
            raise KeyboardInterrupt
        write(plan, number, *rest)

    monkeypatch.setattr(segments, "_write_one", stop)
    with pytest.raises(KeyboardInterrupt):
        swap.swap_video(clips["target"], out, made, found, marks=bare, part=range(2, 13))
    swap.swap_video(clips["target"], out, made, found, marks=bare, part=range(2, 13))
    assert ran == [0, 1, 2, 2, 3] and out.read_bytes() == whole.read_bytes()


def test_images_of_a_part_are_those_of_the_whole(
    model: Path, clips: dict[str, Path], found: FoundFaces, tmp_path: Path
) -> None:
    held = (Shot(range(10, 12), skip=True),)

    def write(name: str, part: range = WHOLE) -> stills.Report:
        made = swapper(model, held, steady=2, batch=4)
        return stills.write_stills(clips["target"], tmp_path / name, made, found, part=part)

    write("whole")
    wanted = contents(tmp_path / "whole")
    report = write("out", range(7, 12))
    assert (report.frames, report.kept, report.frames_swapped) == (5, 0, 3)
    images = {name: data for name, data in contents(tmp_path / "out").items() if name != "faces.json"}
    assert images == {name: wanted[name] for name in (f"{i:06d}.png" for i in range(7, 12))}
    report = write("out", range(9, 14))
    assert (report.frames, report.kept) == (7, 5), "another part adds to it"
    assert write("out", range(8, 11)).kept == 7
    report = write("out")
    assert (report.frames, report.kept) == (16, 7) and contents(tmp_path / "out") == wanted
    assert write("out").kept == 16


def test_sound_of_a_part_in_a_clip_with_odd_times(tmp_path: Path) -> None:
    from faceswap.video import VideoWriter, form_like

    like = make_clip(tmp_path / "in.mp4", ticks=lambda i: 24 * i + i % 3, time_base=Fraction(1, 600))
    times, out = frame_times(like), tmp_path / "out.mp4"
    assert times == [frame.time for frame in read_frames(like)]
    form = form_like(like, crf=0, part=(times[6], times[15]))
    with VideoWriter(out, like, form=form) as writer:
        for frame in list(read_frames(like))[6:15]:
            writer.write(copy.copy(frame))
    assert frame_times(out) == [time - times[6] for time in times[6:15]]
    assert [data for _, data in packets(out)] == [data for time, data in _sound(like) if times[6] <= time < times[15]]
