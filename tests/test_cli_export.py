"""Tests of `faceswap export`: what the command says, and what it says of mistakes."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from drawers import weights

from faceswap import console
from faceswap.cli import main


def export(*words: object, status: int = 0) -> str:
    result = CliRunner().invoke(main, ["export", *map(str, words), "-q"])
    console.configure(console.QUIET)
    assert result.exit_code == status, (result.output, result.exception)
    if status:
        assert result.stderr.count("\n") == 1 and result.stderr.startswith("error: ")
        return result.stderr
    return result.stdout


def test_a_file_comes_with_what_to_set_in_each_player(tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="needs faceswap[export]")
    pytest.importorskip("onnxruntime", reason="needs faceswap[export]")
    pair = weights(tmp_path / "pair.safetensors")
    said = export(pair, "-o", tmp_path / "x.dfm")
    assert "x.dfm: 64 px, 0.5 MB, draws what the run draws within" in said
    assert "facefusion    faces lie as in training" in said and "visomaster    export --for visomaster" in said
    found = json.loads(export(pair, "-o", tmp_path / "y.onnx", "--for", "visomaster", "--morph", "--json"))
    assert found["player"] == "visomaster" and found["difference"] < 1e-3 and list(found["advice"]) == ["visomaster"]


def test_a_preview_needs_nothing_more_than_the_run(clips: dict[str, Path], tmp_path: Path) -> None:
    pair = weights(tmp_path / "pair.safetensors")
    words = [pair, "--preview", clips["target"], "--as", "visomaster", "--set", "extract.min_size=40"]
    assert "5 frames as in faceswap, visomaster" in export(*words, "-o", tmp_path / "s.png")
    found = json.loads(export(*words, "--for", "visomaster", "-o", tmp_path / "t.png", "--json"))
    assert found["players"] == ["visomaster"], "the file would not take our crop"


def test_options_that_belong_to_the_other_way_are_refused(tmp_path: Path) -> None:
    pair = tmp_path / "pair.safetensors"
    assert "--as belongs to --preview" in export(pair, "-o", "x.dfm", "--as", "visomaster", status=2)
    words = [pair, "-o", tmp_path / "x.png", "--preview", "clip.mp4"]
    assert "say how a file is written" in export(*words, "--half", status=2)
    (tmp_path / "x.dfm").write_bytes(b"")
    ready = [tmp_path / "x.dfm", "-o", tmp_path / "x.png", "--preview", "clip.mp4", "--morph"]
    assert "leave out --for, --morph, --base and --strength" in export(*ready, status=2)
