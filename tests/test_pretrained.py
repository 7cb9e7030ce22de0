"""Tests of faceswap.pretrained: the manifest, weights found and looked at, and pulls from a server that misbehaves."""

import hashlib
import importlib.util
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from facenet_pytorch import InceptionResnetV1
from safetensors.torch import load_file, save, save_file
from torch import Tensor

from faceswap import checkpoint, console, doctor, embedding, files, landmarks, perceptual, pretrained
from faceswap.checkpoint import Progress, State
from faceswap.cli import main
from faceswap.config import Recipe
from faceswap.errors import CheckpointError, FaceswapError, OutputExistsError, UsageError

ROOT = Path(__file__).parents[1]
CONTENT = save({"weight": torch.arange(150_000, dtype=torch.float32)})  # 600 kB
SHA = hashlib.sha256(CONTENT).hexdigest()
FACENET = "inception-resnet-v1"


class Server(ThreadingHTTPServer):
    """Serves one content at any address, and misbehaves as told."""

    content = CONTENT
    kind = "application/octet-stream"
    status = 200
    ranges = True  # whether it goes on where it is asked to
    shift = 0  # bytes by which it goes on at another place than asked
    cut: int | None = None  # it hangs up after so many bytes
    length = True  # whether it says how much will come
    hang = False  # it takes the request and says nothing

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.asked: list[str | None] = []  # the Range of each request
        self.over = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/weights.bin"


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        asked = self.headers["Range"]
        server.asked.append(asked)
        if server.hang:
            server.over.wait()
            return
        whole, start = server.content, 0
        if server.ranges and asked:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(whole):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(whole)}")
                self.end_headers()
                return
            start += server.shift
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(whole) - 1}/{len(whole)}")
        else:
            self.send_response(server.status)
        self.send_header("Content-Type", server.kind)
        if server.length:
            self.send_header("Content-Length", str(len(whole) - start))
        self.end_headers()
        self.wfile.write(whole[start : server.cut])


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as made:
        thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield made
        made.over.set()
        made.shutdown()
        thread.join()


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of what ships, empty; and the user's own is `mine` beside it."""
    folder = tmp_path / "shipped"
    folder.mkdir()
    monkeypatch.setattr(files, "shipped", lambda _: folder)
    monkeypatch.setenv("FACESWAP_PRETRAINED", str(tmp_path / "mine"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    return folder


@pytest.fixture
def mine(shipped: Path) -> Path:
    """The folder that is pulled into."""
    return shipped.parent / "mine"


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(console, "say", lines.append)
    return lines


def table(name: str = "net", **values: object) -> str:
    """A table of the manifest."""
    entry = {"kind": "network", "file": f"{name}.safetensors", "licence": "MIT", "origin": "made here", **values}
    return f"[{name}]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in entry.items())


def write_manifest(shipped: Path, *tables: str) -> None:
    (shipped / "manifest.toml").write_text("\n".join(tables))


@pytest.fixture
def published(shipped: Path, server: Server) -> Server:
    """The server, with `net` in the manifest as what it serves."""
    write_manifest(shipped, table(origin=server.url, bytes=len(CONTENT), sha256=SHA))
    return server


def inside(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def fails(*words: Any, kind: type[FaceswapError] = CheckpointError, **more: Any) -> str:
    """The one line that a failing pull says."""
    with pytest.raises(kind) as caught:
        pretrained.pull(*words, **more)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# What ships


def test_what_ships_is_sound_and_says_where_it_comes_from() -> None:
    verdict = next(v for v in pretrained.verify("landmarks") if v.path)
    assert verdict.sound, f"{verdict.said} or, if it was replaced on purpose: python tools/ship.py landmarks"
    assert pretrained.find("landmarks").name == landmarks.FILE
    for entry in pretrained.entries().values():
        assert entry.published or (ROOT / "pretrained" / entry.file).is_file(), entry.name
        assert not entry.recipe or (ROOT / entry.recipe).is_file(), entry.name
    files_there = {path.name for path in (ROOT / "pretrained").glob("*.safetensors")}
    assert files_there <= {entry.file for entry in pretrained.entries().values()}
    assert pretrained.known(FACENET).file == embedding.FACENET_FILE and FACENET in embedding.FACENET_AGAIN
    assert pretrained.known("vgg16").file == perceptual.FILE and "pull vgg16" in perceptual.REMEDY


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"kind": "thing"}, r"net\.kind: input should be 'base' or 'network'"),
        ({"file": "../up.safetensors"}, r"net\.file: string should match"),
        ({"sha256": "abc"}, r"net\.sha256"),
        ({"bytes": "few"}, r"net\.bytes: input should be a valid integer"),
        ({"size": 3}, r"net\.size: unexpected keyword"),
    ],
)
def test_a_mistake_in_the_manifest_gives_one_line(change: dict[str, Any], why: str, shipped: Path) -> None:
    write_manifest(shipped, table(**change))
    with pytest.raises(CheckpointError, match=why) as caught:
        pretrained.entries()
    assert "\n" not in str(caught.value) and "manifest.toml" in str(caught.value)
    (shipped / "manifest.toml").write_text("net = 3")
    with pytest.raises(CheckpointError, match=r"net: "):
        pretrained.entries()


def test_an_unknown_name_is_refused_with_the_likely_one(shipped: Path) -> None:
    write_manifest(shipped, table("landmarks"))
    for ask in (pretrained.find, pretrained.pull, pretrained.verify, pretrained.known):
        with pytest.raises(UsageError, match=r"no weights called 'landmark'; did you mean 'landmarks'\?"):
            ask("landmark")  # type: ignore[operator]


def test_the_first_folder_that_has_a_file_counts(shipped: Path, mine: Path, tmp_path: Path) -> None:
    write_manifest(shipped, table())
    with pytest.raises(CheckpointError, match=r"net: expected net.safetensors on this machine, found none; install"):
        pretrained.find("net")
    for folder in (shipped, tmp_path / "data" / "faceswap", mine):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "net.safetensors").write_bytes(CONTENT)
        assert pretrained.find("net") == folder / "net.safetensors"


@pytest.mark.parametrize(
    ("content", "why"),
    [(CONTENT[:-1], "expected 600080 bytes, found 600079"), (CONTENT[:-1] + b"!", r"expected sha256 \w{12}\.\.\., ")],
)
def test_damaged_weights_are_not_found(content: bytes, why: str, shipped: Path) -> None:
    write_manifest(shipped, table(bytes=len(CONTENT), sha256=SHA))
    (shipped / "net.safetensors").write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"net.safetensors: damaged.*{why}.*; install faceswap again"):
        pretrained.find("net")
    (verdict,) = pretrained.verify()
    assert not verdict.sound and verdict.path and "install faceswap again" in verdict.said


def write_base(
    path: Path,
    recipe: Recipe,
    people: Sequence[str] = ("anyone",),
    seed: int = 0,
    more: Sequence[str] = (),  # other kinds of tensors
    best: float = 0.08125,
    images: int = 300_000,
) -> None:
    torch.manual_seed(seed)
    weights = checkpoint.new_model(recipe, list(people)).state_dict()
    tensors = {f"ema.{name}": weight for name, weight in weights.items()}
    for kind in more:
        tensors |= {f"{kind}.{name}": torch.zeros_like(weight) for name, weight in weights.items()}
    checkpoint.write(path, State(recipe, list(people), tensors, Progress(images=images, best=best)))


def test_bases_are_those_of_the_manifest_that_are_here(shipped: Path, tiny: Recipe) -> None:
    write_manifest(shipped, table(), table("small", kind="base"), table("large", kind="base"))
    for file in ("net", "stray"):
        (shipped / f"{file}.safetensors").write_bytes(CONTENT)
    assert pretrained.bases() == [] and pretrained.find_base(tiny) is None
    path = shipped / "small.safetensors"
    write_base(path, tiny)
    assert pretrained.bases() == [path] and pretrained.find_base(tiny) == path
    assert pretrained.find_base(tiny.changed(model={"code": 32})) is None
    assert [v.sound for v in pretrained.verify("small")] == [True]
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    (verdict,) = pretrained.verify("small")
    assert verdict.said == "damaged, the checksum does not match; install faceswap again"
    with pytest.raises(CheckpointError, match="checksum"):
        pretrained.find_base(tiny)


# Pulling


def test_a_pull_brings_the_file_and_nothing_else(published: Server, mine: Path, said: list[str]) -> None:
    verdict = pretrained.pull("net")
    assert verdict.path == mine / "net.safetensors" == pretrained.find("net") and verdict.said == "pulled, 0.6 MB"
    assert verdict.path.read_bytes() == CONTENT and inside(mine) == ["net.safetensors"]
    assert published.asked == [None] and said == ["net: licence: MIT"]
    assert pretrained.verify("net")[0].said == "sound, sha256 as in the manifest"


def test_what_is_there_and_sound_is_left_alone(published: Server, mine: Path) -> None:
    pretrained.pull("net")
    assert pretrained.pull("net").said == "already there and sound" and published.asked == [None]
    assert pretrained.pull("net", overwrite=True).said == "pulled, 0.6 MB" and len(published.asked) == 2


def test_what_is_damaged_is_replaced_when_asked(published: Server, mine: Path) -> None:
    mine.mkdir()
    (mine / "net.safetensors").write_bytes(b"mine")
    assert fails("net").endswith("; faceswap pretrained pull net --overwrite")
    assert (mine / "net.safetensors").read_bytes() == b"mine" and published.asked == []
    pretrained.pull("net", overwrite=True)
    assert (mine / "net.safetensors").read_bytes() == CONTENT


@pytest.mark.parametrize("length", [True, False])
def test_a_download_that_breaks_off_goes_on(length: bool, published: Server, mine: Path) -> None:
    published.cut, published.length = 250_000, True
    text = fails("net")
    assert "broke off after 0.2 of 0.6 MB" in text and text.endswith("; the same command goes on from there")
    assert inside(mine) == ["net.safetensors.partial"]
    published.cut, published.length = None, length
    pretrained.pull("net")
    assert published.asked == [None, "bytes=250000-"]
    assert inside(mine) == ["net.safetensors"] and pretrained.verify("net")[0].sound


@pytest.mark.parametrize("change", [{"ranges": False}, {"shift": 100}])
def test_a_server_that_cannot_go_on_starts_over(change: dict[str, Any], published: Server, mine: Path) -> None:
    published.cut = 250_000
    fails("net")
    published.cut = None
    for name, value in change.items():
        setattr(published, name, value)
    pretrained.pull("net")
    assert inside(mine) == ["net.safetensors"] and pretrained.verify("net")[0].sound


def test_a_part_that_is_whole_is_not_pulled_again_and_one_too_long_is(published: Server, mine: Path) -> None:
    mine.mkdir()
    part = mine / "net.safetensors.partial"
    for content, asked in ((CONTENT, ["bytes=600080-"]), (CONTENT + b"more", ["bytes=600084-", None])):
        part.write_bytes(content)
        published.asked.clear()
        pretrained.pull("net", overwrite=True)
        assert published.asked == asked and inside(mine) == ["net.safetensors"] and pretrained.verify("net")[0].sound


def test_a_part_of_another_file_is_thrown_away(published: Server, mine: Path) -> None:
    mine.mkdir()
    (mine / "net.safetensors.partial").write_bytes(b"another")
    assert "expected sha256" in fails("net") and inside(mine) == []
    pretrained.pull("net")
    assert inside(mine) == ["net.safetensors"]


def test_ctrl_c_keeps_what_came(published: Server, mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    receive, count = pretrained._receive, iter(range(100))

    def impatient(*words: Any) -> bytes:
        if next(count) == 3:
            raise KeyboardInterrupt
        return receive(*words)

    monkeypatch.setattr(pretrained, "_receive", impatient)
    result = faceswap("pull", "net", status=130)
    assert result.stderr.splitlines()[-1] == (
        "error: interrupted; what came is kept, and the same command goes on from there"
    )
    assert (mine / "net.safetensors.partial").read_bytes() == CONTENT[: 3 * pretrained.CHUNK]
    faceswap("pull", "net")
    assert published.asked[1] == f"bytes={3 * pretrained.CHUNK}-" and pretrained.verify("net")[0].sound


def test_two_pulls_at_once_do_not_mix(published: Server, mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    receive = pretrained._receive

    def meanwhile(*words: Any) -> bytes:
        chunk = receive(*words)
        if mine.is_dir() and (part := mine / "net.safetensors.partial").is_file():
            with part.open("ab") as file:
                file.write(b"theirs")
        return chunk

    monkeypatch.setattr(pretrained, "_receive", meanwhile)
    assert "another pull writes to it" in fails("net")


PAGE = b"<!DOCTYPE html><html><body>Please sign in</body></html>"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"content": PAGE, "kind": "text/html; charset=utf-8"}, r"expected a weight file, found text/html, .*DOCTYPE"),
        ({"content": b""}, "expected a weight file, found application/octet-stream, b''"),
        ({"status": 404}, "the server said 404 Not Found"),
        ({"content": CONTENT + b"more"}, "expected 600080 bytes at most, found 600084"),
        ({"content": CONTENT + b"more", "length": False}, "expected 600080 bytes at most, found more"),
        ({"content": CONTENT[:-4]}, "damaged: expected 600080 bytes, found 600076"),
        ({"content": CONTENT[:-4] + b"evil"}, "damaged or changed: expected sha256"),
    ],
)
def test_what_is_not_expected_is_refused_and_leaves_nothing(
    change: dict[str, Any], why: str, published: Server, mine: Path
) -> None:
    for name, value in change.items():
        setattr(published, name, value)
    with pytest.raises(CheckpointError, match=why) as caught:
        pretrained.pull("net")
    assert str(caught.value).startswith(f"{published.url}: ") and inside(mine) == []
    assert "--from FILE, or name a folder that has net.safetensors in $FACESWAP_PRETRAINED" in str(caught.value)


def test_an_address_without_a_server_gives_the_remedy(shipped: Path, mine: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        write_manifest(shipped, table(origin=f"http://127.0.0.1:{nobody.getsockname()[1]}/net"))
        text = fails("net")
    assert "not reachable (" in text and "--from FILE" in text and inside(mine) == []


def test_a_server_that_says_nothing_is_given_up(published: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    published.hang = True
    monkeypatch.setattr(pretrained, "PATIENCE", 0.1)
    assert "not reachable (timed out)" in fails("net")


def test_what_ships_cannot_be_pulled(shipped: Path, mine: Path) -> None:
    write_manifest(shipped, table())
    assert "install faceswap again" in fails("net", kind=UsageError)
    (shipped.parent / "net.bin").write_bytes(CONTENT)
    assert pretrained.pull("net", shipped.parent / "net.bin").path == mine / "net.safetensors"


def test_without_a_home_a_folder_is_asked_for(published: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "weight_folders", lambda: [files.shipped("pretrained")])
    assert "name one in $FACESWAP_PRETRAINED" in fails("net", kind=UsageError)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (PAGE, "expected a whole file with tensors and nothing else"),
        (CONTENT[:-3], "not a whole safetensors file"),
        (b"", "expected a whole file with tensors"),
    ],
)
def test_a_file_without_known_sums_must_at_least_hold_tensors(
    content: bytes, why: str, shipped: Path, mine: Path, tmp_path: Path
) -> None:
    write_manifest(shipped, table())
    (tmp_path / "given").write_bytes(content)
    text = fails("net", tmp_path / "given")
    assert (
        text.startswith(f"{tmp_path / 'given'}: ") and why in text and text.endswith("; give another file with --from")
    )
    assert inside(mine) == []


def test_a_folder_that_holds_the_file_by_its_name_is_a_source(published: Server, mine: Path, tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    text = fails("net", mirror, kind=UsageError)
    assert text.startswith(f"{mirror}: expected a weight file") and "found a folder without net.safetensors" in text
    (mirror / "net.safetensors").write_bytes(CONTENT)
    assert pretrained.pull("net", mirror).path == mine / "net.safetensors" == pretrained.find("net")
    assert published.asked == [] and pretrained.pull("net", mine, overwrite=True).sound  # onto itself
    (mirror / "net.safetensors").write_bytes(PAGE)
    assert f"{mirror / 'net.safetensors'}: damaged" in fails("net", mirror, overwrite=True)


# Bases of the user's own


@pytest.fixture
def run(shipped: Path, tiny: Recipe, tmp_path: Path) -> Path:
    """A run of `faceswap pretrain`, with all that a state holds, on which nothing was trained."""
    write_manifest(shipped, table())
    write_base(tmp_path / "run" / "state-000300000.safetensors", tiny, seed=1, more=("model", "optimizer", "random"))
    write_base(tmp_path / "run" / "best.safetensors", tiny, seed=2)
    return tmp_path / "run"


def refuses(*words: Any, kind: type[FaceswapError] = UsageError, **more: Any) -> str:
    """The one line that a failing `add` says; it leaves nothing behind."""
    folder = files.weight_folders()[0]
    before = {path: path.read_bytes() for path in folder.glob("*")}
    with pytest.raises(kind) as caught:
        pretrained.add(*words, **more)
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in folder.glob("*")} == before
    return str(caught.value)


def test_a_base_that_is_added_is_known_by_its_name(run: Path, mine: Path, tiny: Recipe) -> None:
    entry = pretrained.add(run, "anna-1", licence="CC BY 4.0", origin="of people\n who agreed")
    assert entry == pretrained.known("anna-1") and inside(mine) == ["anna-1.safetensors", "manifest.toml"]
    assert (entry.kind, entry.path, entry.manifest) == ("base", mine / entry.file, mine / "manifest.toml")
    assert (entry.licence, entry.origin) == ("CC BY 4.0", "of people who agreed")
    assert entry.figures == "held-out loss 0.08125 after 300,000 images"
    assert entry.recipe == "in the file: modulated, 32 px"
    assert entry.path is not None and (entry.bytes, entry.sha256) == (
        entry.path.stat().st_size,
        files.sha256(entry.path),
    )
    assert pretrained.verify("anna-1")[0].said == "sound, sha256 as in the manifest"
    assert pretrained.bases() == [entry.path] and pretrained.find_base(tiny) == entry.path


@pytest.mark.parametrize("given", ["", "best.safetensors", "state-000300000.safetensors"])
def test_the_averaged_weights_are_kept_and_nothing_else(given: str, run: Path, mine: Path) -> None:
    source = run / given
    best = checkpoint.read(run / (given or "best.safetensors"))
    kept = checkpoint.read(pretrained.find(pretrained.add(source, "b").name))
    assert {name.partition(".")[0] for name in kept.tensors} == {"ema"}
    assert kept.part("ema").keys() == best.part("ema").keys()
    assert all(torch.equal(weight, best.part("ema")[name]) for name, weight in kept.part("ema").items())
    assert (kept.recipe, kept.people, kept.progress) == (best.recipe, best.people, best.progress)
    entry = pretrained.known("b")
    assert (entry.licence, entry.origin) == ("not stated", f"added from {source}")


def test_figures_say_what_is_known(run: Path, tiny: Recipe) -> None:
    write_base(run / "best.safetensors", tiny, best=float("inf"), images=16)
    assert pretrained.add(run, "b").figures == "after 16 images"


def test_several_bases_share_a_manifest(run: Path, mine: Path) -> None:
    names = ["b", "a", "2", "A_-" + "x" * 37]
    for name in names:
        pretrained.add(run, name, licence='"quoted" \\ [x]\n', origin="\udcff")
    assert list(pretrained.entries()) == [*names, "net"]
    assert {entry.licence for entry in pretrained.entries().values()} == {'"quoted" \\ [x]', "MIT"}
    assert pretrained.known("b").origin == "?"
    assert [verdict.sound for verdict in pretrained.verify()] == [True] * 4 + [False]


def test_an_address_that_a_base_comes_from_is_not_one_to_pull_it_from(run: Path, mine: Path) -> None:
    entry = pretrained.add(run, "b", origin="https://example.org/b.safetensors")
    assert entry.origin == "made from https://example.org/b.safetensors" and not entry.published
    (mine / "b.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"found none; faceswap pretrained add FILE --name b --overwrite$"):
        pretrained.find("b")
    assert "expected an address to pull from, found none; faceswap pretrained add" in fails("b", kind=UsageError)


@pytest.mark.parametrize("name", ["", "a b", "../b", "b.c", "-b", "_b", "ä", "b\n", "b/c", "x" * 41])
def test_an_odd_name_is_refused(name: str, run: Path) -> None:
    assert "expected letters, digits, - and _" in refuses(run, name)
    assert refuses(run, name, overwrite=True).startswith(f"{name!r}: ")


def test_a_name_that_is_taken_is_refused(run: Path, shipped: Path, mine: Path, tiny: Recipe, said: list[str]) -> None:
    write_manifest(shipped, table(), table("b", kind="base"), table("odd", kind="base", file="even.safetensors"))
    write_base(shipped / "b.safetensors", tiny)
    text = refuses(run, "b", kind=OutputExistsError)
    assert text == "b: known already, in what ships with faceswap; choose another --name or add --overwrite"
    for name in ("net", "Net", "B", "even"):  # never: the network of that name would not be found any more
        assert "expected a name that no other weights have" in refuses(run, name, overwrite=True)
    assert pretrained.find_base(tiny) == shipped / "b.safetensors"
    entry = pretrained.add(run, "b", overwrite=True)
    assert said == ["b: from now on yours, not the one that ships"]
    assert pretrained.find("b") == pretrained.find_base(tiny) == entry.path == mine / "b.safetensors"
    assert refuses(run, "b", kind=OutputExistsError).startswith(f"b: known already, in {mine / 'manifest.toml'}; ")
    before = entry.sha256
    assert pretrained.add(run / "state-000300000.safetensors", "b", overwrite=True).sha256 != before
    assert len(said) == 1 and pretrained.verify("b")[0].sound
    (mine / "stray.safetensors").write_bytes(CONTENT)
    assert "stray.safetensors: exists already" in refuses(run, "stray", kind=OutputExistsError)


def test_what_is_no_base_is_refused(run: Path, tiny: Recipe, tmp_path: Path) -> None:
    path, remedy = tmp_path / "given.safetensors", "; give a run of faceswap pretrain, or a weight file of one"

    def why(source: Path = path) -> str:
        text = refuses(source, "b", kind=CheckpointError)
        assert text.startswith(f"{source}") and text.endswith(remedy)
        return text.removeprefix(f"{source}: ").removesuffix(remedy)

    assert why() == "no such weight file" and "no such weight file" in why(tmp_path)
    path.write_bytes(CONTENT)
    assert why() == "expected a faceswap weight file up to version 1, found format None version None"
    path.write_bytes(PAGE)
    assert why().startswith("not a whole safetensors file")
    write_base(path, tiny, people=["source", "target"])
    assert why() == "expected a base, which knows one person, found one of source, target"
    write_base(path, tiny)
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    assert why() == "damaged, the checksum does not match"
    state = checkpoint.read(run / "best.safetensors")
    name = next(iter(state.tensors))
    state.tensors[name] = torch.full_like(state.tensors[name], torch.nan)
    checkpoint.write(path, state)
    assert why() == "holds weights that are not finite"
    del state.tensors[name]
    checkpoint.write(path, state)
    assert why().startswith("of another architecture: ")


def test_a_manifest_of_the_user_that_is_damaged_is_one_line_with_the_way_out(run: Path, mine: Path) -> None:
    pretrained.add(run, "b")
    manifest = mine / "manifest.toml"
    for content in (b"[b", b"\xff\xfe", b"b = 3", b"[b]\nkind = 'base'", manifest.read_bytes() + b"colour = 3"):
        manifest.write_bytes(content)
        for work in (pretrained.entries, lambda: pretrained.add(run, "c"), lambda: pretrained.base("b")):
            with pytest.raises(CheckpointError) as caught:
                work()
            text = str(caught.value)
            assert text.startswith(f"{manifest}: ") and "\n" not in text
            assert text.endswith("; " + pretrained.AGAIN)
        finding = doctor._base()
        assert not finding.ok and finding.value.startswith(f"{manifest}: ") and finding.remedy == pretrained.AGAIN
    manifest.rename(mine / "away.toml")
    pretrained.add(mine / "b.safetensors", "b", overwrite=True)  # what the remedy says, onto itself
    assert pretrained.verify("b")[0].sound


def test_the_first_of_the_users_folders_counts(run: Path, mine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FACESWAP_PRETRAINED")
    home = files.weight_folders()[0]
    first = pretrained.add(run, "b").path
    assert first == home / "b.safetensors"
    monkeypatch.setenv("FACESWAP_PRETRAINED", str(mine))
    mine.mkdir()
    (mine / "b.safetensors").write_bytes(CONTENT)  # another file of that name, of which no manifest tells
    assert pretrained.find("b") == first
    (mine / "b.safetensors").unlink()
    assert pretrained.add(run / "state-000300000.safetensors", "b", overwrite=True).path == mine / "b.safetensors"
    assert pretrained.find("b") == mine / "b.safetensors" and first.exists()


def test_a_mirror_with_its_own_manifest_changes_nothing(published: Server, shipped: Path, mine: Path) -> None:
    mine.mkdir()
    (mine / "manifest.toml").write_bytes((shipped / "manifest.toml").read_bytes())
    assert pretrained.pull("net").path == mine / "net.safetensors" and list(pretrained.entries()) == ["net"]


def test_the_shipped_manifest_is_none_of_the_users(run: Path, shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FACESWAP_PRETRAINED", str(shipped))
    assert pretrained.known("net").manifest is None
    assert "expected a home folder to keep it in, found none" in refuses(run, "b")


def test_a_base_is_meant_by_place_or_by_name(run: Path, mine: Path, tmp_path: Path, monkeypatch: Any) -> None:
    assert pretrained.base(run) == run and pretrained.base(str(run)) == run
    for text, why in (
        ("b", "b: expected a run, a weight file or the name of a base, found none; no base has a name yet"),
        ("net", "net: expected a base, found a network that helps; no base has a name yet"),
    ):
        with pytest.raises(UsageError, match=f"^{why}"):
            pretrained.base(text)
    path = pretrained.add(run, "mine").path
    assert path is not None and pretrained.base("mine") == pretrained.base(Path("mine")) == path
    with pytest.raises(UsageError, match=r"found none; did you mean 'mine'\?$"):
        pretrained.base(Path("mind"))
    assert pretrained.base("gone", run) == Path("gone")  # the run goes on by itself
    assert pretrained.base("mine", run) == path, "by the same command again"
    with pytest.raises(UsageError, match=r"found none; known: mine$"):
        pretrained.base("gone", tmp_path / "new")
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(CheckpointError, match=r"damaged or changed.* add FILE --name mine --overwrite$"):
        pretrained.base("mine")
    monkeypatch.chdir(tmp_path)
    assert pretrained.base("run") == Path("run")


# FaceNet


@pytest.fixture(scope="module")
def state() -> dict[str, Tensor]:
    """Random weights of the network, as facenet-pytorch publishes them: with the layer of the people's names."""
    torch.manual_seed(0)
    made: dict[str, Tensor] = InceptionResnetV1().state_dict()
    made["logits.weight"], made["logits.bias"] = torch.zeros(8631, 512), torch.zeros(8631)
    return made


@pytest.fixture
def facenet(shipped: Path, server: Server) -> Server:
    write_manifest(shipped, table(FACENET, origin=server.url))
    return server


def test_facenet_is_pulled_converted_and_watched(
    state: dict[str, Tensor], facenet: Server, mine: Path, tmp_path: Path
) -> None:
    torch.save(state, tmp_path / "a.pt", _use_new_zipfile_serialization=False)  # as in 2019
    facenet.content = (tmp_path / "a.pt").read_bytes()
    verdict = pretrained.pull(FACENET)
    path = mine / embedding.FACENET_FILE
    assert verdict.path == path and inside(mine) == [path.name, f"{path.name}.sha256"]
    weights = load_file(path)
    assert weights.keys() == state.keys() - {"logits.weight", "logits.bias"}
    assert all(torch.equal(weight, state[name]) for name, weight in weights.items())
    assert files.sha256_note(path).read_text() == f"{files.sha256(path)}  {path.name}\n"
    assert pretrained.verify(FACENET)[0].said == "sound, sha256 as on the day it was pulled"
    assert isinstance(embedding.find_facenet(), embedding.FaceNet)
    with path.open("r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(b"\0\1\2\3")
    for find in (lambda: pretrained.find(FACENET), embedding.find_facenet):
        with pytest.raises(CheckpointError, match=r"changed.* pull inception-resnet-v1 --overwrite"):
            find()
    torch.save(state, tmp_path / "b.pt")
    pretrained.pull(FACENET, tmp_path / "b.pt", overwrite=True)
    assert pretrained.verify(FACENET)[0].sound


def test_a_mirror_of_converted_weights_needs_no_note(
    state: dict[str, Tensor], facenet: Server, mine: Path, tmp_path: Path
) -> None:
    own = {name: tensor for name, tensor in state.items() if "logits" not in name and "num_batches" not in name}
    save_file(own, tmp_path / "given.safetensors")
    assert pretrained.pull(FACENET, tmp_path / "given.safetensors").sound and facenet.asked == []
    files.sha256_note(mine / embedding.FACENET_FILE).unlink()
    assert pretrained.verify(FACENET)[0].said == "sound, sha256 not known"


class Trap:
    """A pickle that runs a program when it is read without care."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.system, (f"touch {self.path}",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_hostile_pickle_is_refused_and_not_run(zipped: bool, facenet: Server, mine: Path, tmp_path: Path) -> None:
    for content in (Trap(tmp_path / "run"), {"conv2d_1a.conv.weight": Trap(tmp_path / "run")}):
        torch.save(content, tmp_path / "a.pt", _use_new_zipfile_serialization=zipped)
        facenet.content = (tmp_path / "a.pt").read_bytes()
        for words in ((FACENET,), (FACENET, tmp_path / "a.pt")):
            assert "expected a whole file with tensors and nothing else" in fails(*words)
    assert not (tmp_path / "run").exists() and inside(mine) == []


WEIGHT = "conv2d_1a.conv.weight"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({WEIGHT: None}, f"{WEIGHT} is None, not \\[32, 3, 3, 3\\]"),
        ({WEIGHT: torch.zeros(3)}, f"{WEIGHT} is \\[3\\], not"),
        ({"logits.weight": torch.zeros(10575, 512)}, r"logits.weight is \[10575, 512\], not \[8631, 512\]"),
        ({"more": torch.zeros(3)}, "found 'more' among them"),
        ({WEIGHT: torch.full((32, 3, 3, 3), torch.nan)}, "found some that are not finite"),
        ({WEIGHT: torch.zeros(32, 3, 3, 3, device="meta")}, "found tensors that it cannot take"),
        ({WEIGHT: 3}, "expected tensors by name, found dict with other things"),
    ],
)
def test_another_network_is_refused(
    change: dict[str, Any], why: str, state: dict[str, Tensor], facenet: Server, mine: Path, tmp_path: Path
) -> None:
    wrong = {name: value for name, value in (state | change).items() if value is not None}
    torch.save(wrong, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=rf"a\.pt: .*{why}.*; give another file with --from"):
        pretrained.pull(FACENET, tmp_path / "a.pt")
    assert inside(mine) == []


def test_vgg16_is_pulled_and_its_first_part_kept(shipped: Path, server: Server, mine: Path, tmp_path: Path) -> None:
    write_manifest(shipped, table("vgg16", origin=server.url))
    tensors = {name: torch.randn(own.shape) for name, own in perceptual.Features().state_dict().items()}
    torch.save(
        tensors | {"classifier.6.bias": torch.zeros(1000)}, tmp_path / "a.pth", _use_new_zipfile_serialization=False
    )
    server.content = (tmp_path / "a.pth").read_bytes()
    assert pretrained.pull("vgg16").path == mine / perceptual.FILE
    perceptual.network.cache_clear()
    found = perceptual.network(torch.device("cpu")).state_dict()
    perceptual.network.cache_clear()
    assert found.keys() == tensors.keys() and all(torch.equal(found[name], tensors[name]) for name in tensors)
    for change, why in ((torch.zeros(3), r"is \[3\], not \[64\]"), (torch.full((64,), torch.nan), "not finite in")):
        torch.save(tensors | {"features.0.bias": change}, tmp_path / "b.pth")
        with pytest.raises(
            CheckpointError, match=rf"b\.pth: expected the weights of VGG16.*{why}.*; give another file"
        ):
            pretrained.pull("vgg16", tmp_path / "b.pth", overwrite=True)


# The command line and the tool


def faceswap(*words: object, status: int = 0) -> Any:
    result = CliRunner().invoke(main, ["pretrained", *(str(word) for word in words)])
    console.configure(console.QUIET)
    assert result.exit_code == status, result.output
    return result


def refused(status: int, *words: object) -> str:
    lines = faceswap(*words, "-q", status=status).stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error: ")
    return str(lines[0])


@pytest.mark.parametrize("command", ["list", "show", "pull", "add", "verify"])
def test_help_has_an_example_and_the_common_options(command: str) -> None:
    text = faceswap(command, "-h").stdout
    assert f"Example: faceswap pretrained {command}" in text and "--json" in text and "--quiet" in text


def test_the_commands_tell_what_is_here_and_what_is_not(published: Server, mine: Path) -> None:
    assert "not here; faceswap pretrained pull net\n" in faceswap("list").stdout
    assert "not here; faceswap pretrained pull net\n" in faceswap("show", "net").stdout
    assert "net: not on this machine" in faceswap("verify").stdout
    assert "not sound: net" in refused(1, "verify", "net")
    result = faceswap("pull", "net")
    assert (
        result.stdout == f"net: {mine / 'net.safetensors'}: pulled, 0.6 MB\n" and "pulling net: 1/1 MB" in result.stderr
    )
    assert "already there and sound" in faceswap("pull", "net").stdout
    assert str(mine / "net.safetensors") in faceswap("list").stdout
    text = faceswap("show", "net").stdout
    assert all(part in text for part in (SHA, "600080", "MIT", published.url, str(mine)))
    assert "sound, sha256 as in the manifest" in faceswap("verify").stdout


def test_the_commands_answer_in_json(published: Server, mine: Path) -> None:
    assert json.loads(faceswap("list", "--json").stdout)[0]["path"] is None
    assert json.loads(faceswap("pull", "net", "--json").stdout)["path"] == str(mine / "net.safetensors")
    assert json.loads(faceswap("show", "net", "--json").stdout)["sha256"] == SHA
    assert json.loads(faceswap("verify", "--json").stdout)[0]["sound"] is True


def test_wrong_use_gives_one_line(published: Server, mine: Path, tmp_path: Path) -> None:
    assert "no weights called 'nut'; did you mean 'net'?" in refused(2, "pull", "nut")
    assert "expected a weight file, or a folder with it, found nothing" in refused(
        2, "pull", "net", "--from", tmp_path / "none"
    )
    assert "found a folder without net.safetensors" in refused(2, "pull", "net", "--from", tmp_path)
    assert "damaged" in refused(1, "pull", "net", "--from", ROOT / "LICENSE")
    (mine.parent / "mine").write_text("a file")
    assert str(mine) in refused(1, "pull", "net")


def test_add_on_the_command_line(run: Path, mine: Path) -> None:
    result = faceswap("add", run, "--name", "b", "--licence", "CC0", "--origin", "made up")
    figures = "held-out loss 0.08125 after 300,000 images"
    assert result.stdout.startswith(f"b: {mine / 'b.safetensors'}: added, ") and result.stdout.endswith(f"{figures}\n")
    assert "known already" in refused(2, "add", run, "--name", "b")
    assert json.loads(faceswap("add", run, "--name", "b", "--overwrite", "--json").stdout)["figures"] == figures
    assert "expected letters" in refused(2, "add", run, "--name", "a b")
    assert "no such weight file" in refused(1, "add", run / "none", "--name", "c")
    shown = faceswap("show", "b").stdout
    assert f"figures   {figures}\n" in shown and f"manifest  {mine / 'manifest.toml'}\n" in shown
    assert faceswap("list").stdout.startswith(f"b     base      {mine / 'b.safetensors'}\nnet   network   not here")
    assert "b: " in faceswap("verify", "b").stdout


def test_the_tool_writes_size_and_sum_of_one_entry(shipped: Path) -> None:
    spec = importlib.util.spec_from_file_location("ship", ROOT / "tools" / "ship.py")
    assert spec is not None and spec.loader is not None
    ship = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(ship)
    (shipped / "net.safetensors").write_bytes(CONTENT)
    (shipped / "last.safetensors").write_bytes(CONTENT)
    write_manifest(shipped, "# A note", table(bytes=1, sha256="0" * 64), table("other"), table("last"))
    for name in ("net", "last", "net"):
        ship.refresh(name, shipped)
    known = table(bytes=len(CONTENT), sha256=SHA), table("other"), table("last", bytes=len(CONTENT), sha256=SHA)
    assert (shipped / "manifest.toml").read_text() == "\n".join(["# A note", *known])
    with pytest.raises(SystemExit, match=r"expected a table \[nut\]"):
        ship.refresh("nut", shipped)


def test_the_base_that_ships_is_what_the_defaults_start_from() -> None:
    path = pretrained.find_base(Recipe())
    assert path is not None and path.name == "base_96.safetensors"
