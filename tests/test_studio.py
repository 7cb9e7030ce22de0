"""The studio: who may ask for what, and each thing that a user does there, done by clicks in a real browser."""

import asyncio
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import crops
import cv2
import numpy as np
import pytest
from test_swap import CPU, RECIPE, weights

pytest.importorskip("aiohttp", reason="needs the extra: pip install 'faceswap[studio]'")
from browser import Page, browsing

from faceswap import curate, jobs, provenance, studio, swap
from faceswap.checkpoint import State, new_model, write
from faceswap.cli import main
from faceswap.config import MergeRecipe, Recipe
from faceswap.desk import POINTS, Desk, Kept, _thinned
from faceswap.errors import FaceswapError, UsageError
from faceswap.faceset import Faceset
from faceswap.video import read_frames

JOB = '[[step]]\nrun = "actors clip"\nout = "clip.mp4"\nseconds = {}\nsize = 64\n'
PAGE = (Path(studio.__file__).with_name("studio.html")).read_text()


def begin_run(run: Path) -> Path:
    """A run's folder as a training leaves it, without the training."""
    (run / "previews").mkdir(parents=True)
    (run / "recipe.toml").write_text(RECIPE.to_toml())
    people = ["source", "target"]
    tensors = {f"ema.{name}": tensor for name, tensor in new_model(RECIPE, people).state_dict().items()}
    write(run / "state-000000000.safetensors", State(RECIPE, people, tensors))
    weights(run / "best.safetensors")
    for number in range(3):
        measure(run, number * 400)
    return run


def measure(run: Path, images: int) -> None:
    """What a training writes when it measures, and a preview."""
    loss = 0.3 / (1 + images / 500)
    line = {"images": images, "seconds": images / 10, "train/loss": 1.2 * loss, "held_out/source/loss": loss}
    line |= {"held_out/target/loss": 1.1 * loss, "held_out/source/psnr": 20 - 10 * loss, "rate": 1e-3}
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\n")
    sheet = np.full((64, 160, 3), 40 + images // 20, np.uint8)
    cv2.imwrite(str(run / "previews" / f"{images:09d}.png"), sheet)


@pytest.fixture(scope="module")
def filled(clips: dict[str, Path], facesets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of everything: tests that move something take a set of their own."""
    root = tmp_path_factory.mktemp("studio")
    shutil.copy(clips["target"], root / "target.mp4")
    shutil.copytree(facesets["target"], root / "target")
    begin_run(root / "run")
    (root / "job.toml").write_text(JOB.format(0.2))
    (root / "long.toml").write_text(JOB.format(3000).replace("clip.mp4", "long.mp4"))
    (root / "recipe.toml").write_text("[merge]\ncolor = 'lct'\n")
    return root


@pytest.fixture
def ten(filled: Path, ten_faces: Path) -> Iterator[Path]:
    """A set of ten inside the folder."""
    path = shutil.copytree(ten_faces, filled / "ten")
    yield path
    shutil.rmtree(path)


def desk_of(root: Path) -> Desk:
    return Desk(root, Recipe.model_validate({}), CPU, main)


class Served:
    """A studio in this process, and somebody who asks it."""

    def __init__(self, desk: Desk) -> None:
        self.studio, self.place = studio.Studio(desk), studio.listen(0)
        self.port = self.place.getsockname()[1]
        self.loop = asyncio.new_event_loop()
        self.task = self.loop.create_task(studio._serve(self.studio, self.place))
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.loop.run_until_complete(self.task)
        except asyncio.CancelledError:
            self.loop.close()

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.task.cancel)
        self.thread.join()
        self.place.close()

    def ask(self, path: str, given: Any = None, **headers: str) -> tuple[int, Any]:
        """Status and answer; the key is shown unless `headers` say otherwise."""
        named = {
            name.replace("_", "-"): value for name, value in ({"X_Faceswap_Key": self.studio.key} | headers).items()
        }
        data = None if given is None else json.dumps(given).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, named)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, self._read(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, self._read(error)

    def _read(self, answer: Any) -> Any:
        self.headers, content = dict(answer.headers), answer.read()
        return json.loads(content) if "json" in answer.headers["Content-Type"] else content


@pytest.fixture(scope="module")
def served(filled: Path) -> Iterator[Served]:
    served = Served(desk_of(filled))
    yield served
    served.close()


# ---------------------------------------------------------------- who may ask


def test_nothing_is_said_without_the_key(served: Served) -> None:
    for path in [f"/{name}" for name in studio.READS]:
        for key in ("", "wrong", served.studio.key[:-1], "é"):
            status, said = served.ask(path, X_Faceswap_Key=key)
            assert status == 403 and "open the address that faceswap studio printed" in said["error"]
    assert served.ask("/here")[0] == served.ask(f"/here?key={served.studio.key}", X_Faceswap_Key="")[0] == 200
    assert len(served.studio.key) == 32 and served.studio.key != studio.Studio(served.studio.desk).key


def test_what_changes_something_is_a_post_with_the_key_in_a_header(served: Served, ten: Path) -> None:
    asked = {"faceset": "ten", "names": ["clip_000001_0.png"]}
    for name in studio.WRITES:
        assert served.ask(f"/{name}")[0] == 405
        assert served.ask(f"/{name}?key={served.studio.key}", asked, X_Faceswap_Key="")[0] == 403
        assert served.ask(f"/{name}", asked, X_Faceswap_Key="wrong")[0] == 403
        assert served.ask(f"/{name}", ["no object"])[0] == 400
    for name in studio.READS:
        assert served.ask(f"/{name}", {})[0] == 405
    assert len(Faceset.open(ten)) == 10
    assert served.ask("/throw_out", asked) == (200, {"names": ["hand/clip_000001_0.png"]})


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8765", "127.0.0.1.evil.example", "[", "0.0.0.0"])
def test_another_host_name_is_refused(served: Served, host: str) -> None:
    for path in ("/", "/here"):
        status, said = served.ask(path, Host=host)
        assert status == 403 and "another host name" in said["error"]


def test_a_tunnel_is_welcome_and_another_site_is_not(served: Served) -> None:
    assert served.ask("/here", Host="localhost:9000", Origin="http://localhost:9000")[0] == 200
    for origin in ("http://evil.example", "null", f"http://127.0.0.1:{served.port + 1}"):
        status, said = served.ask("/stop", {"job": "job.toml"}, Origin=origin)
        assert status == 403 and "another site" in said["error"]


def test_the_page_holds_no_secret_and_loads_nothing_from_elsewhere(served: Served) -> None:
    status, page = served.ask("/", X_Faceswap_Key="")
    assert status == 200 and served.studio.key not in page.decode()
    nonces = set(re.findall(r'nonce="([^"]+)"', page.decode()))
    policy = served.headers["Content-Security-Policy"]
    assert len(nonces) == 1 and f"script-src 'nonce-{nonces.pop()}'" in policy and "default-src 'none'" in policy
    assert served.headers["Cache-Control"] == "no-store" and served.headers["Referrer-Policy"] == "no-referrer"
    assert set(re.findall(r"https?://[^\"' ]+", PAGE)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"innerHTML|insertAdjacent|document\.write|eval\(", PAGE), "names of files are never HTML"


def test_it_listens_to_this_machine_alone_and_a_taken_port_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with studio.listen(0) as first:
        host, port = first.getsockname()
        assert host == "127.0.0.1"
        with pytest.raises(UsageError, match=f"--port {port}: taken"):
            studio.listen(port)
        monkeypatch.setattr(studio, "PORT", port)
        with studio.listen(None) as second:
            assert second.getsockname()[0] == "127.0.0.1" and second.getsockname()[1] != port


@pytest.mark.parametrize("given", ["../outside", "/etc", "link", "ten/../../outside", "a\0b", "ten/" + "x" * 5000])
def test_no_path_leads_out_of_the_folder(
    served: Served, ten: Path, filled: Path, given: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    outside = filled.parent / "outside"
    shutil.copytree(ten, outside)
    (filled / "link").symlink_to(outside)
    try:
        reads = [("faces", "faceset"), ("thrown", "faceset"), ("run", "run"), ("job", "job")]
        quoted = urllib.parse.quote(given)
        for path in [f"/{name}?{key}={quoted}" for name, key in reads] + [
            f"/face?faceset={quoted}&name=clip_000001_0.png",
            f"/face?faceset=ten&name={quoted}/clip_000001_0.png",
            f"/preview?run={quoted}&name=a.png",
            f"/preview?run=run&name={quoted}",
            f"/frames?footage={quoted}&faceset=target",
        ]:
            status, said = served.ask(path)
            assert status == 400 and re.search("leads out of|no path|not there", said["error"]), path
        for name, asked in {
            "throw_out": {"faceset": given, "names": ["clip_000001_0.png"]},
            "bring_back": {"faceset": given, "names": ["hand/clip_000001_0.png"]},
            "start": {"job": given},
            "stop": {"job": given},
            "compare": {"footage": "target.mp4", "faceset": "target", "model": given, "frame": 1, "settings": {}},
        }.items():
            status, said = served.ask(f"/{name}", asked)
            assert status == 400 and re.search("leads out of|no path|not there", said["error"]), name
        assert len(Faceset.open(outside)) == 10 and "link" not in json.dumps(served.ask("/here")[1])
    finally:
        (filled / "link").unlink()
        shutil.rmtree(outside)


def test_links_inside_a_set_lead_nowhere(served: Served, ten: Path, filled: Path, tmp_path: Path) -> None:
    secret = crops.make(tmp_path / "secret", [(crops.picture(77), crops.meta(77))]) / "clip_000077_0.png"
    (ten / "clip_000077_0.png").symlink_to(secret)
    assert served.ask("/faces?faceset=ten")[1]["all"] == 10
    assert served.ask("/face?faceset=ten&name=clip_000077_0.png")[0] == 400
    (ten / "removed").symlink_to(tmp_path / "secret", target_is_directory=True)
    status, said = served.ask("/throw_out", {"faceset": "ten", "names": ["clip_000001_0.png"]})
    assert status == 400 and "a link out of the studio's folder; nothing was moved" in said["error"]
    (filled / "run" / "previews" / "1.png").symlink_to(secret)
    assert served.ask("/preview?run=run&name=1.png")[0] == 400
    (filled / "run" / "previews" / "1.png").unlink()
    assert (ten / "clip_000001_0.png").is_file() and [p.name for p in secret.parent.iterdir()] == [secret.name]


def test_a_wrong_request_is_said_in_one_line(served: Served) -> None:
    for path, words in {
        "/faces": "faceset: Missing required",
        "/faces?faceset=target&count=many": "count: Input should be a valid integer",
        "/faces?faceset=target&by=beauty": "no such order",
        "/faces?faceset=nobody": "not there any more",
        "/nothing": "Not Found",
    }.items():
        status, said = served.ask(path)
        assert status in (400, 404) and words in said["error"] and "\n" not in said["error"]
    bad = {"footage": "target.mp4", "faceset": "target", "model": "run", "frame": 1, "settings": {"restore": "/etc"}}
    assert "merge.restore: cannot be tried here" in served.ask("/compare", bad)[1]["error"]
    assert "no face was found" in served.ask("/compare", bad | {"settings": {}, "frame": 5})[1]["error"]
    assert "less than or equal" in served.ask("/compare", bad | {"settings": {"erode": 3}})[1]["error"]
    assert "color" in served.ask("/compare", bad | {"settings": {"color": "mlk"}})[1]["error"]


# ---------------------------------------------------------------- the work


def test_what_is_there_is_found_by_kind(filled: Path, ten: Path) -> None:
    found = desk_of(filled).here()
    assert {entry["path"]: entry["faces"] for entry in found["facesets"]}["ten"] == 10
    assert found["footage"] == ["target.mp4"] and found["models"] == ["run"]
    assert [entry["path"] for entry in found["runs"]] == ["run"] and not found["runs"][0]["running"]
    assert [entry["path"] for entry in found["jobs"]] == ["job.toml", "long.toml"]
    with pytest.raises(UsageError, match="no such folder"):
        desk_of(filled / "nowhere")


def test_faces_come_in_pages_and_orders(filled: Path, ten: Path) -> None:
    desk = desk_of(filled)
    names = [face["name"] for first in (0, 4, 8) for face in desk.faces("ten", "brightness", first, 4)["faces"]]
    order = np.argsort(curate.SORTS["brightness"].numbers(desk._faces("ten")), kind="stable")
    assert names == [f"clip_{row:06d}_0.png" for row in order] and names != sorted(names)
    curate.pack_faces(ten, filled / "ten.faces")
    packed = desk.faces("ten.faces")
    (filled / "ten.faces").unlink()
    assert packed["fixed"] and packed["all"] == 10


def test_faces_go_out_and_come_back_with_their_masks(filled: Path, ten: Path) -> None:
    desk, before = desk_of(filled), {path.name: path.read_bytes() for path in ten.iterdir()}
    gone = ["clip_000002_0.png", "clip_000004_0.png"]
    names = desk.throw_out("ten", gone)["names"]
    assert names == [f"hand/{name}" for name in gone] and desk.faces("ten")["out"] == 2
    assert (ten / "removed/hand/clip_000002_0.mask.png").is_file() and desk.faces("ten")["all"] == 8
    assert [face["name"] for face in desk.thrown("ten")["faces"]] == names
    assert desk.face("ten/removed/hand", gone[0], 32).content.startswith(b"\xff\xd8")
    with pytest.raises(FaceswapError, match=r"ten/clip_000002_0\.png: is not there any more"):
        desk.throw_out("ten", ["clip_000001_0.png", *gone])
    with pytest.raises(FaceswapError, match="none of 8 faces would be left"):
        desk.throw_out("ten", [face["name"] for face in desk.faces("ten")["faces"]])
    with pytest.raises(FaceswapError, match=r"has no face \.\./\.\./run"):
        desk.bring_back("ten", ["../../run/best.safetensors"])
    assert desk.bring_back("ten", names)["names"] == gone
    assert {path.name: path.read_bytes() for path in ten.iterdir() if path.is_file()} == before


@pytest.mark.parametrize("by", ["time", "blur", "yaw", "similarity"])
def test_what_was_measured_of_the_others_holds(filled: Path, ten: Path, by: str) -> None:
    desk = desk_of(filled)
    before = [face["name"] for face in desk.faces("ten", by)["faces"]]
    measured = desk._faces("ten")
    names = desk.throw_out("ten", [before[1], before[7]])["names"]
    left = desk._faces("ten")
    assert left.__dict__.keys() == measured.__dict__.keys(), "nothing is measured again"
    after, afresh = desk.faces("ten", by)["faces"], desk_of(filled).faces("ten", by)["faces"]
    assert after == afresh and len(after) == 8
    desk.bring_back("ten", names)
    assert [face["name"] for face in desk.faces("ten", by)["faces"]] == before


def test_a_result_is_made_once_and_anew_when_its_thing_has_changed() -> None:
    kept, made = Kept(2), list[str]()

    def make(value: str, seconds: float = 0.0) -> str:
        time.sleep(seconds)
        made.append(value)
        return value

    with ThreadPoolExecutor(4) as pool:
        slow = [pool.submit(kept.once, "a", 1, lambda: make("a1", 0.2)) for _ in range(3)]
        assert pool.submit(kept.once, "b", 1, lambda: make("b1")).result(timeout=0.15) == "b1", (
            "nobody waits for others"
        )
        assert [one.result() for one in slow] == ["a1"] * 3
    assert kept.once("a", 2, lambda: make("a2")) == "a2" and kept.get("a", 1) is None and kept.get("a", 2) == "a2"
    kept.once("c", 1, lambda: make("c1"))
    assert kept.get("b", 1) is None and made == ["b1", "a1", "a2", "c1"]


def test_a_job_is_begun_once_and_asked_to_stop_once(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ended, stops = threading.Event(), list[int]()

    class Waiting(jobs.Runner):
        def __call__(self, *_: object) -> int:
            os.write(self._stdout or 0, b"begun\n")
            ended.wait()
            return 130

        def stop(self) -> None:
            self.asked = True
            stops.append(1)

    monkeypatch.setattr(jobs, "Runner", Waiting)
    desk = desk_of(filled)
    with ThreadPoolExecutor(4) as pool:
        tried = [pool.submit(desk.start, "long.toml") for _ in range(4)]
        errors = [str(one.exception()) for one in tried if one.exception()]
    assert len(errors) == 3 and set(errors) == {"long.toml: is being done already"}
    for _ in range(3):
        desk.stop("long.toml")
    while "begun" not in desk.job("long.toml")["log"]:
        time.sleep(0.01)
    ended.set()
    assert desk.close() == ["long.toml"] and stops == [1]
    with pytest.raises(UsageError, match="the studio is closing"):
        desk.start("long.toml")


def test_odd_names_are_served_and_those_that_are_no_text_are_passed_over(served: Served, ten: Path) -> None:
    odd = shutil.copytree(ten, ten.with_name("a b#%?'\"ü"))
    try:
        (odd / "clip_000003_0.png").rename(odd / "ü #%?&+'.png")
        if sys.platform == "linux":
            (odd / "clip_000004_0.png").rename(odd / os.fsdecode(b"\xfc.png"))
        found = served.ask(f"/faces?{urllib.parse.urlencode({'faceset': odd.name})}")[1]
        assert found["all"] == (9 if sys.platform == "linux" else 10)
        assert "ü #%?&+'.png" in [face["name"] for face in found["faces"]]
        asked = {"faceset": odd.name, "name": "ü #%?&+'.png", "side": 32}
        assert served.ask(f"/face?{urllib.parse.urlencode(asked)}")[1].startswith(b"\xff\xd8")
        assert odd.name in [entry["path"] for entry in served.ask("/here")[1]["facesets"]]
        moved = served.ask("/throw_out", {"faceset": odd.name, "names": [asked["name"]]})
        assert moved == (200, {"names": [f"hand/{asked['name']}"]})
    finally:
        shutil.rmtree(odd)


def test_a_mask_that_is_a_link_is_not_copied(filled: Path, ten: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (ten / "clip_000005_0.mask.png").symlink_to(tmp_path / "secret")
    with pytest.raises(UsageError, match=r"clip_000005_0\.mask\.png: a link out of"):
        desk_of(filled).throw_out("ten", ["clip_000005_0.png"])
    assert (ten / "clip_000005_0.png").exists() and not (ten / "removed").exists()


def test_frames_that_are_links_are_not_shown(filled: Path, tmp_path: Path) -> None:
    frames = filled / "frames"
    frames.mkdir()
    try:
        for number in range(3):
            cv2.imwrite(str(frames / f"{number}.png"), np.zeros((32, 32, 3), np.uint8))
        assert desk_of(filled)._footage("frames") == frames.resolve()
        (frames / "3.png").symlink_to(
            crops.make(tmp_path / "x", [(crops.picture(7), crops.meta(7))]) / "clip_000007_0.png"
        )
        with pytest.raises(UsageError, match="frames: has links out of the studio's folder"):
            desk_of(filled).frames("frames", "target")
    finally:
        shutil.rmtree(frames)


def test_what_nobody_foresaw_is_said_too(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA out\nof memory")

    monkeypatch.setattr(served.studio.desk, "settings", full)
    status, said = served.ask("/settings")
    assert status == 500 and said["error"] == "RuntimeError: CUDA out of memory"
    assert served.headers["Cache-Control"] == "no-store"


def test_the_studio_ends_though_somebody_waits(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, over = threading.Event(), threading.Event()

    def slow(*_: object, **__: object) -> None:
        begun.set()
        over.wait()

    own = Served(desk_of(filled))
    monkeypatch.setattr(own.studio.desk, "settings", slow)
    with ThreadPoolExecutor(1) as pool:
        asked = pool.submit(own.ask, "/settings")
        assert begun.wait(10)
        began = time.monotonic()
        own.close()
        assert time.monotonic() - began < 10
        over.set()
        assert asked.exception() is not None or asked.result()[0] >= 500


def test_a_run_without_a_state_and_a_long_curve(filled: Path) -> None:
    found = desk_of(filled).run("run")
    assert found["status"].images == 800 and found["curves"]["train/loss"][1] == (400, pytest.approx(0.2))
    assert found["previews"] == ["000000000.png", "000000400.png", "000000800.png"]
    young = filled / "young"
    young.mkdir()
    (young / "metrics.jsonl").write_text('{"images": 1, "train/loss": NaN}\n')
    assert desk_of(filled).run("young")["status"] is None
    shutil.rmtree(young)
    points = _thinned([(i, float(i)) for i in range(10 * POINTS)])
    assert len(points) == POINTS and points[0][0] == 0 and points[-1][0] == 10 * POINTS - 1


def test_a_comparison_is_what_a_merge_makes(filled: Path) -> None:
    desk = desk_of(filled)
    for setting in desk.settings():
        for value in setting.get("names", [setting.get("least"), setting.get("most")]):
            MergeRecipe.model_validate({setting["key"]: value})
    assert desk.frames("target.mp4", "target")["faces"][:3] == [0, 1, 2]
    where: dict[str, Any] = {"footage": "target.mp4", "model": "run", "faceset": "target", "frame": 3, "view": "frame"}
    shown = desk.compare(**where, settings={"color": "none"})
    frames, found = list(read_frames(filled / "target.mp4")), swap.recalling(filled / "target", filled / "target.mp4")
    made = swap.Swapper(filled / "run", MergeRecipe(color="none"), CPU)
    wanted = {f.index: f for f, _ in made((f, found.get(f.index, [])) for f in frames)}[3]
    assert np.array_equal(decoded(shown["swap"]), wanted.image)
    assert np.array_equal(decoded(shown["original"]), frames[3].image)
    assert shown["swap"] != desk.compare(**where, settings={})["swap"]
    marked = [provenance.SOURCE_TYPE.encode() in content(shown[name]) for name in ("swap", "original")]
    assert marked == [True, False]


def content(address: str) -> bytes:
    with urllib.request.urlopen(address) as answer:  # a data: address
        return bytes(answer.read())


def decoded(address: str) -> np.ndarray[Any, Any]:
    image = cv2.imdecode(np.frombuffer(content(address), np.uint8), cv2.IMREAD_COLOR)
    return np.asarray(image)[..., ::-1]


# ---------------------------------------------------------------- by clicks


def begin(root: Path) -> tuple[subprocess.Popen[str], str]:
    """`faceswap studio` as a user starts it, and the address that it prints."""
    words = [sys.executable, "-m", "faceswap", "studio", str(root), "--port", "0", "--no-browser", "--device", "cpu"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


@pytest.fixture(scope="module")
def page(filled: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browsing(tmp_path_factory.mktemp("browser")) as page:
        process, address = begin(filled)
        page.open(address)
        page.wait("document.querySelectorAll('.face').length")
        yield page
        page.open("about:blank")
        process.send_signal(signal.SIGINT)
        said = process.communicate(timeout=60)[1]
        assert process.returncode == 0 and "studio closed" in said and "Traceback" not in said
        origin = address.split("#")[0]
        assert all(asked.startswith((origin, "data:", "about:")) for asked in page.asked), "nothing from elsewhere"
        shown = [asked for asked in page.asked if address.split("#")[1] in asked]
        assert all(asked.startswith((f"{origin}face?", f"{origin}preview?")) for asked in shown)
        assert not page.errors


def test_a_face_is_thrown_out_and_comes_back(page: Page, ten: Path) -> None:
    page.click("#again")
    page.click("[data-path=ten]")
    page.wait("document.querySelectorAll('.face').length == 10")
    page.click("[data-name='clip_000003_0.png']")
    page.click("[data-name='clip_000005_0.png']")
    assert page.js("document.querySelector('#act').innerText") == "Throw out 2"
    page.shot("faces")
    page.click("#act")
    page.wait("document.querySelectorAll('.face').length == 8")
    assert not page.js("document.querySelector(\"[data-name='clip_000003_0.png']\")")
    assert not (ten / "clip_000003_0.png").exists() and (ten / "removed/hand/clip_000003_0.png").is_file()
    page.shot("thrown")
    page.click("#said button")
    page.wait("document.querySelectorAll('.face').length == 10")
    assert len(Faceset.open(ten)) == 10
    page.click("[data-name='clip_000007_0.png']")
    page.key("Delete")
    page.wait("document.querySelectorAll('.face').length == 9")
    page.click("#thrown")
    page.wait("document.querySelectorAll('.face').length == 1")
    page.click(".face")
    page.click("#act")
    page.wait("document.querySelector('#view').innerText.includes('Nothing was thrown out')")
    assert (ten / "clip_000007_0.png").is_file()


def test_the_curve_grows_with_the_run(page: Page, filled: Path) -> None:
    page.click("#tab-training")
    curve = "document.querySelector('#chart polyline')"
    page.wait(f"{curve}.dataset.points == 3")
    before = page.js(f"{curve}.getAttribute('points')")
    measure(filled / "run", 1200)
    page.wait(f"{curve}.dataset.points == 4")
    assert page.js(f"{curve}.getAttribute('points')") != before
    page.wait("document.querySelector('#preview').src.includes('000001200.png')")
    page.wait("document.querySelector('#preview').naturalWidth == 160")
    page.drag("#history", 0.0)
    page.wait("document.querySelector('#preview').src.includes('000000000.png')")
    page.shot("training")


def test_the_slider_goes_from_the_original_to_the_swap(page: Page) -> None:
    page.click("#tab-compare")
    ready = "document.querySelector('#stage img').src && !document.querySelector('#stage[aria-busy]')"
    page.wait(ready)
    page.drag("#stage", 0.25)
    assert page.js("document.querySelector('#stage').getAttribute('aria-valuenow')") == "25"
    cut = page.js("document.querySelectorAll('#stage img')[1].style.clipPath")
    assert cut.startswith("inset(0") and "75%" in cut, "the original is left, a quarter of it"
    sources = "[...document.querySelectorAll('#stage img')].map(image => image.src).join()"
    before = page.js(sources)
    page.js("(s => { s.value = 'none'; s.onchange({ target: s }) })(document.querySelector('[name=color]'))")
    page.wait(f"{sources} != {json.dumps(before)} && {ready}")
    assert page.js("document.querySelector('#line').innerText") == "--set merge.color=none"
    page.shot("compare")
    frame = page.js("document.querySelector('#frame').value")
    page.click("#after")
    page.wait(f"document.querySelector('#frame').value != {frame} && {ready}")


def test_numbers_are_said_as_they_are(page: Page) -> None:
    values = {
        "150, 3": "150",
        "420, 3": "420",
        "0.12300, 3": "0.123",
        "1e-10, 3": "1e-10",
        "61.04, 3": "61",
        "null": "\u2013",
    }
    assert {given: page.js(f"number({given})") for given in values} == values


def test_a_job_is_started_and_seen_to_end(page: Page, filled: Path) -> None:
    page.click("#tab-jobs")
    page.click("[data-path='job.toml']")
    page.click("#start")
    page.wait("document.querySelector('#job-state').innerText == 'done'")
    assert page.js("document.querySelector('.state').innerText") == "done before"
    assert "clip.mp4: 5 frames" in page.js("document.querySelector('#log').innerText")
    assert (filled / "clip.mp4").is_file()
    page.shot("jobs")
    page.click("[data-path='long.toml']")
    page.click("#start")
    page.wait("document.querySelector('#log').innerText.includes('step 1 of 1')")
    page.click("#stop")
    page.wait("document.querySelector('#job-state').innerText.includes('stopped')")
    assert not (filled / "long.mp4").exists()


def test_ctrl_c_stops_the_jobs_too(filled: Path) -> None:
    process, address = begin(filled)
    origin, key = address.split("#")

    def ask(path: str, given: Any = None) -> Any:
        data = None if given is None else json.dumps(given).encode()
        request = urllib.request.Request(f"{origin}{path}", data, {studio.KEY: key})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    ask("start", {"job": "long.toml"})
    until = time.monotonic() + 60
    while "step 1 of 1" not in ask("job?job=long.toml")["log"]:
        assert time.monotonic() < until
        time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == 0 and "long.toml: stopped; faceswap run long.toml goes on from there" in said
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(origin.split(":")[2].strip("/")))) != 0
