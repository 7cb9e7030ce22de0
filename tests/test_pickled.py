"""Tests of faceswap.pickled: data come back, programs are refused and nothing is run."""

import os
import pickle
import tracemalloc
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from faceswap import pickled
from faceswap.errors import FacesetError

DATA: dict[Any, Any] = {
    "face_type": "whole_face",
    "landmarks": [[1.5, 2.0], [3, -4.25]],
    "source_rect": (1, 2, 300, 70_000, -(2**40)),
    "mat": np.arange(6, dtype=np.float64).reshape(2, 3),
    "fortran": np.asfortranarray(np.arange(6, dtype=">i4").reshape(2, 3)),
    "mask": np.frombuffer(b"\x89PNG\xff\x00", np.uint8),
    "yes": np.array([True, False]),
    "scalar": np.float32(0.5),
    "none": [None, True, False, {}, [], ()],
    "bytes": b"\x00\xff",
    "text": "名 é\n",
    7: {"deep": [{"er": (((1,),),)}]},
}


def assert_same(found: Any, expected: Any) -> None:
    if isinstance(expected, np.ndarray):
        assert isinstance(found, np.ndarray) and found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)
    elif isinstance(expected, dict):
        assert list(found) == list(expected)
        for key in expected:
            assert_same(found[key], expected[key])
    else:
        assert found == expected and (type(found) is type(expected) or isinstance(expected, np.generic))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_values_and_arrays_come_back(protocol: int) -> None:
    data = {key: value for key, value in DATA.items() if protocol > 0 or key != "yes"}
    assert_same(pickled.read(pickle.dumps(data, protocol), "a.jpg"), data)


def test_what_is_shared_and_what_refers_to_itself_come_back() -> None:
    array = np.arange(3.0)
    shared: list[Any] = [array, array]
    shared.append(shared)
    found = pickled.read(pickle.dumps(shared), "a.jpg")
    assert found[2] is found and found[0] is found[1]
    np.testing.assert_array_equal(found[1], array)


def test_arrays_of_older_numpy_come_back() -> None:
    old = pickle.dumps(np.arange(4), 3).replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
    np.testing.assert_array_equal(pickled.read(old, "a.jpg"), np.arange(4))


def test_a_number_with_a_name_of_deepfacelabs_is_the_number() -> None:
    assert pickled.read(b"\x80\x03cfacelib.FaceType\nFaceType\nK\x04\x85R.", "a.pak") == 4


class Calls:
    """Pickles as a call."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> Any:
        return self.call


def hostile(canary: Path) -> dict[str, bytes]:
    touch = f"touch {canary}"
    system, run = Calls(os.system, (touch,)), Calls(eval, (f"open({str(canary)!r}, 'w')",))
    objects = pickle.dumps(np.array([1, system], object))
    array = pickle.dumps(np.zeros(3), 3)
    return {
        "posix.system": pickle.dumps(system),
        "builtins.eval": pickle.dumps(run),
        "old protocol": pickle.dumps(system, 0),
        "inside": pickle.dumps({"landmarks": [1, {"deep": [np.zeros(3), run]}]}),
        "behind": pickle.dumps([np.zeros(3), Calls(getattr, ("", "join"))]),
        "written by hand": f"cos\nsystem\n(S'{touch}'\ntR.".encode(),
        "instance": f"(S'{touch}'\nios\nsystem\n.".encode(),
        "object": f"(cos\nsystem\nS'{touch}'\no.".encode(),
        "name from the stack": b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
        "persistent": b"\x80\x04K\x01Q.",
        "extension": b"\x80\x04\x82\x01.",
        "class": pickle.dumps(Path("x")),
        "array of objects": objects,
        "array of records": pickle.dumps(np.zeros(2, [("a", "f4")])),
        "array of text": pickle.dumps(np.array(["a"])),
        "attributes": b"\x80\x03]}b.",
        "array of a type of its own": array.replace(b"cnumpy\nndarray", b"cnumpy\nmatrix"),
        "array made otherwise": array.replace(b"_reconstruct", b"fromfile"),
        "array called": b"\x80\x03cnumpy\nndarray\nK\x04\x85R.",
        "encoding of its own": b"\x80\x03c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00zip\x86R.",
        "call of a value": b"\x80\x03K\x01K\x02\x85R.",
        "theirs with more than a number": b"\x80\x03csamplelib.Sample\nSample\nK\x01K\x02\x86R.",
    }


@pytest.mark.parametrize("name", hostile(Path("canary")))
def test_a_hostile_pickle_is_refused_in_one_line_and_nothing_is_run(name: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    with pytest.raises(
        FacesetError, match=r"^bad\.jpg: its pickled metadata asks for .+; nothing was run, delete"
    ) as error:
        pickled.read(hostile(canary)[name], "bad.jpg")
    assert "\n" not in str(error.value) and len(str(error.value)) < 250
    assert not canary.exists()


def test_what_is_hostile_is_what_pickle_would_run(tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    for name in ("posix.system", "written by hand", "instance", "array of objects"):
        pickle.loads(hostile(canary)[name])
        assert canary.exists(), name
        canary.unlink()


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
def test_a_damaged_pickle_is_said_to_be_damaged(protocol: int) -> None:
    whole = pickle.dumps({key: value for key, value in DATA.items() if key != "yes"}, protocol)
    for length in range(0, len(whole), 7):
        with pytest.raises(ValueError, match="damaged pickle"):
            pickled.read(whole[:length], "a.jpg")
    random = np.random.default_rng(0)
    for _ in range(500):
        spoiled = bytearray(whole)
        for place in random.integers(0, len(whole), 3):
            spoiled[place] = random.integers(256)
        with suppress(ValueError, FacesetError):  # and nothing else
            pickled.read(bytes(spoiled), "a.jpg")


@pytest.mark.parametrize(
    "data",
    [
        b"\x80\x04.",
        b"\x80\x04K\x01",
        b"\x80\x04(.",
        b"\x80\x04h\x07.",
        b"\x80\x04e.",
        b"\x80\x04K\x01K\x02a.",
        b"\x80\x04K\x01K\x02K\x03s.",
        b"\x80\x04}]K\x01s.",  # a list as a key
        b"\x80\x04cnumpy\ndtype\n.",  # a name alone
        b"\x80\x04]cnumpy\ndtype\na.",
        b"\x80\x04cnumpy\ndtype\nX\x02\x00\x00\x00f8\x85R.",  # no array
        b"\x80\x04K\x01\x86.",
        pickle.dumps(np.zeros(3), 3).replace(b"K\x03\x85", b"K\x04\x85"),  # content too short
        pickle.dumps(np.zeros(3), 3).replace(b"K\x03\x85", b"J\xff\xff\xff\xff\x85"),
    ],
)
def test_what_makes_no_sense_is_damaged(data: bytes) -> None:
    with pytest.raises(ValueError, match="damaged pickle"):
        pickled.read(data, "a.jpg")


def test_no_small_pickle_takes_much_memory_or_crashes() -> None:
    huge_array = pickle.dumps(np.zeros(3), 3).replace(b"K\x03\x85", b"\x8a\x05\xff\xff\xff\xff\x7f\x85")
    huge_memo = b"\x80\x02K\x01r\xff\xff\xff\x7f."
    huge_text = b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7fabc."
    deep_key = b"\x80\x04})" + b"\x85" * 60_000 + b"K\x01s."
    tracemalloc.start()
    try:
        for data in (huge_array, huge_text, deep_key):
            with pytest.raises(ValueError, match="damaged pickle"):
                pickled.read(data, "a.jpg")
        assert pickled.read(huge_memo, "a.jpg") == 1
        assert tracemalloc.get_traced_memory()[1] < 40_000_000
    finally:
        tracemalloc.stop()
