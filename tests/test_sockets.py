"""Dropping a file into a folder adds a part; nothing else is touched."""

from pathlib import Path

import pytest

from faceswap import detectors, models, strategies
from faceswap.errors import UsageError
from faceswap.registry import Socket

SOCKETS = [detectors.SOCKET, models.SOCKET, strategies.SOCKET]


@pytest.mark.parametrize("socket", SOCKETS, ids=lambda socket: socket.noun)
def test_every_part_offers_build(socket: Socket) -> None:
    assert socket.names()
    for name in socket.names():
        assert callable(socket.load(name).build)


@pytest.mark.parametrize("socket", SOCKETS, ids=lambda socket: socket.noun)
def test_an_unknown_part_is_answered_with_the_known(socket: Socket) -> None:
    with pytest.raises(UsageError, match=f"no {socket.noun} called 'nonesuch'; known: .*{socket.names()[0]}"):
        socket.load("nonesuch")


def test_a_new_file_is_a_new_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "tiny.py").write_text("def build(*given):\n    return given\n")
    monkeypatch.setattr(models, "__path__", [*models.__path__, str(tmp_path)])
    assert "tiny" in models.SOCKET.names()
    built = models.build("tiny", shape := models.Shape(32, 1, 2, 1, 1), 1)
    assert built == (shape, 1)
