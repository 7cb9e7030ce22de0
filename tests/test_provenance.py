"""Marks: what is said, what is signed, what is found again. What is signed needs c2pa-python and is skipped without."""

import datetime
import json
import os
import stat
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest
from click.testing import CliRunner, Result

from faceswap import console, provenance, signing
from faceswap.cli import main
from faceswap.errors import MediaError, UsageError
from faceswap.provenance import CHANGED, INTACT, NO_MARKS
from faceswap.video import VideoWriter, file_tags, read_frames, write_video

signs = pytest.mark.skipif(not signing.available(), reason=f"c2pa-python is missing: {signing.INSTALL}")
MODEL = "best.safetensors 40 images"
ACTION = {"action": "c2pa.edited", "digitalSourceType": provenance.SOURCE_TYPE}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user without a key."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    provenance._say_once.cache_clear()
    return tmp_path / "data"


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    for name in ("say", "warn"):
        monkeypatch.setattr(console, name, lines.append)
    return lines


@pytest.fixture
def footage(tmp_path: Path) -> Path:
    images = (np.full((48, 64, 3), 20 * index, np.uint8) for index in range(6))
    write_video(tmp_path / "bert smith.mp4", images, Fraction(25))
    return tmp_path / "bert smith.mp4"


def made(footage: Path, out: Path, **how: Any) -> Path:
    """`out` as a merge makes it of `footage`, with nothing swapped."""
    marks = provenance.marker(out, **how)

    def sign(partial: Path) -> None:
        marks.sign(partial, out, footage, MODEL)

    with VideoWriter(out, footage, metadata=marks.tags(MODEL), finish=sign) as writer:
        for frame in read_frames(footage):
            writer.write(frame)
    return out


def flipped(path: Path, place: int) -> Path:
    """A copy with one bit of one byte changed."""
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    copy = path.with_name(f"flipped{path.suffix}")
    copy.write_bytes(data)
    return copy


def remuxed(path: Path, *, tags: bool) -> Path:
    copy = path.with_name(f"remuxed{path.suffix}")
    with av.open(path) as source, av.open(copy, "w", options={"movflags": "use_metadata_tags"}) as target:
        target.metadata.update(source.metadata if tags else {})
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    return copy


def found(path: Path) -> tuple[str, int]:
    verdict = provenance.verify(path)
    return verdict.found, verdict.status


def run(*words: object) -> Result:
    result = CliRunner().invoke(main, [str(word) for word in words])
    console.configure(console.QUIET)
    return result


# Tags


def test_tags_say_that_faces_were_swapped_and_by_what() -> None:
    tags = provenance.tags(MODEL)
    assert "swapped with faceswap" in tags["comment"] and tags["faceswap_model"] == MODEL
    assert tags["digitalsourcetype"].endswith("compositeWithTrainedAlgorithmicMedia")
    assert provenance.rendered_tags()["digitalsourcetype"].endswith("/algorithmicMedia")


@pytest.mark.parametrize("suffix", ["mp4", "mov", "mkv"])
def test_without_c2pa_there_are_tags_and_that_is_said_once(
    suffix: str, footage: Path, tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signing, "available", lambda: False)
    out = made(footage, tmp_path / f"out.{suffix}")
    assert found(out) == ("tagged", INTACT) and not signing.holds_manifest(out)
    assert "anybody can write and change them" in provenance.text(provenance.verify(out))
    made(footage, tmp_path / f"two.{suffix}")
    assert said == [f"marked by tags only, not signed: c2pa-python is not installed; {signing.INSTALL}"]


def test_no_provenance_leaves_out_all_marks_and_says_what_that_means(
    footage: Path, tmp_path: Path, said: list[str]
) -> None:
    out = made(footage, tmp_path / "out.mp4", on=False)
    assert found(out) == ("nothing", NO_MARKS) and not signing.holds_manifest(out)
    assert "comment" not in file_tags(out)
    assert len(said) == 1 and "nothing in the file will say that it was swapped" in said[0]
    assert "proves nothing" in provenance.text(provenance.verify(out))


def test_the_comment_alone_is_a_mark_and_that_of_somebody_else_is_none(tmp_path: Path) -> None:
    images = [np.zeros((32, 32, 3), np.uint8)]
    for name, comment, status in (("a", provenance.tags("m")["comment"], INTACT), ("b", "holidays", NO_MARKS)):
        write_video(tmp_path / f"{name}.mp4", images, Fraction(25), metadata={"comment": comment})
        assert provenance.verify(tmp_path / f"{name}.mp4").status == status
    write_video(tmp_path / "c.mkv", images, Fraction(25), metadata=provenance.rendered_tags())
    assert "made by an algorithm alone" in provenance.text(provenance.verify(tmp_path / "c.mkv"))


def test_the_term_in_a_picture_of_others_is_found(tmp_path: Path) -> None:
    picture = tmp_path / "a.png"
    cv2.imwrite(str(picture), np.zeros((8, 8, 3), np.uint8))
    assert found(picture) == ("nothing", NO_MARKS)
    xmp = f'<x Iptc4xmpExt:DigitalSourceType="{provenance.TERMS}trainedAlgorithmicMedia"/>'
    picture.write_bytes(picture.read_bytes() + xmp.encode())
    assert found(picture) == ("tagged", INTACT)
    assert "made by a trained model" in provenance.text(provenance.verify(picture))


def test_what_is_no_footage_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    for path, words in ((tmp_path, "directory"), (tmp_path / "no.mp4", "No such"), (tmp_path / "notes.txt", "notes")):
        with pytest.raises(UsageError, match=words):
            provenance.verify(path)


# Signatures


@signs
@pytest.mark.parametrize("suffix", ["mp4", "mov"])
def test_a_signed_file_verifies(suffix: str, footage: Path, tmp_path: Path) -> None:
    out = made(footage, tmp_path / f"out.{suffix}")
    verdict = provenance.verify(out)
    assert (verdict.found, verdict.status) == ("signed", INTACT) and verdict.manifest is not None
    assert verdict.manifest.source_types == [provenance.SOURCE_TYPE] and not verdict.manifest.faults
    assert verdict.manifest.actions == ["c2pa.opened", "Faces were swapped"] and not verdict.manifest.parents
    assert verdict.tags["faceswap_signature"] == "C2PA" and verdict.tags["faceswap_model"] == MODEL
    assert len(list(read_frames(out))) == 6 and not [path for path in tmp_path.iterdir() if path.name[0] == "."]
    assert b"smith" not in out.read_bytes()  # names of footage may be names of people


@signs
def test_the_samples_are_those_of_the_unsigned_file(footage: Path, tmp_path: Path) -> None:
    signed, plain = made(footage, tmp_path / "signed.mp4"), made(footage, tmp_path / "plain.mp4", on=False)
    streams = []
    for path in (signed, plain):
        with av.open(path) as container:
            streams.append([(packet.pts, bytes(packet)) for packet in container.demux(video=0)])
    assert streams[0] == streams[1]
    assert signed.stat().st_size - plain.stat().st_size < 6000


@signs
def test_one_changed_byte_is_found(footage: Path, tmp_path: Path) -> None:
    out = made(footage, tmp_path / "out.mp4")
    data = out.read_bytes()
    places = {
        "picture": data.rindex(b"mdat") + 40,
        "times": data.index(b"stts") + 12,
        "tag": data.index(b"swapped with"),
    }
    places |= {"end": len(data) - 1, "claim": data.index(b"Faces were swapped"), "uuid": data.index(b"uuid") + 1}
    for name, place in places.items():
        verdict = provenance.verify(flipped(out, place))
        assert (verdict.found, verdict.status) == ("changed", CHANGED), name
        assert "CHANGED since it was signed" in provenance.text(verdict), name


@signs
def test_a_file_cut_short_is_changed(footage: Path, tmp_path: Path) -> None:
    out = made(footage, tmp_path / "out.mp4")
    for kept in (out.stat().st_size - 1, 2000):
        (tmp_path / "cut.mp4").write_bytes(out.read_bytes()[:kept])
        assert found(tmp_path / "cut.mp4") == ("changed", CHANGED)


@signs
def test_a_remux_removes_the_marks(footage: Path, tmp_path: Path) -> None:
    out = made(footage, tmp_path / "out.mp4")
    bare = provenance.verify(remuxed(out, tags=False))
    assert (bare.found, bare.status) == ("nothing", NO_MARKS)
    assert "marks removed or none" in provenance.text(bare)
    tagged = provenance.verify(remuxed(out, tags=True))
    assert (tagged.found, tagged.status) == ("removed", NO_MARKS)
    assert "marks removed: its tags say that it was signed" in provenance.text(tagged)


@signs
def test_marks_of_the_footage_are_carried_along(footage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = made(footage, tmp_path / "first.mp4")
    second = provenance.verify(made(first, tmp_path / "second.mp4"))
    assert second.found == "signed" and second.manifest is not None and len(second.manifest.parents) == 1
    assert "made of: footage with marks of its own, by faceswap" in provenance.text(second)
    monkeypatch.setattr(signing, "available", lambda: False)
    third = made(first, tmp_path / "third.mp4")
    assert found(third) == ("tagged", INTACT)  # it was never signed, so nothing was removed
    with pytest.raises(UsageError, match="holds a signed manifest, which c2pa-python checks; pip install"):
        provenance.verify(first)


@signs
def test_footage_that_c2pa_cannot_read_is_named_all_the_same(tmp_path: Path, said: list[str]) -> None:
    mkv = tmp_path / "footage.mkv"
    write_video(mkv, [np.zeros((32, 32, 3), np.uint8)] * 3, Fraction(25))
    assert found(made(mkv, tmp_path / "a.mp4")) == ("signed", INTACT)
    misnamed = mkv.rename(tmp_path / "footage.mp4")
    assert found(made(misnamed, tmp_path / "b.mp4")) == ("signed", INTACT)
    assert not [line for line in said if "carried" in line]
    part = tmp_path / "part.mp4"
    part.write_bytes((tmp_path / "a.mp4").read_bytes()[:1500])  # breaks off inside its manifest
    signing.sign(tmp_path / "a.mp4", tmp_path / "c.mp4", ACTION, part, signing.own())
    assert any("its own marks cannot be carried along" in line for line in said)


@signs
def test_mkv_is_not_signed_which_is_said(footage: Path, tmp_path: Path, said: list[str]) -> None:
    assert found(made(footage, tmp_path / "out.mkv")) == ("tagged", INTACT)
    assert said == ["marked by tags only, not signed: C2PA does not sign .mkv files; name it .mp4 or .mov"]
    with pytest.raises(UsageError, match=r"does not sign \.mkv files"):
        provenance.marker(tmp_path / "out.mkv", cert=footage, key=footage)
    with pytest.raises(UsageError, match=r"expected one of \.mp4, \.mov"):
        signing.sign(footage, tmp_path / "out.mkv", ACTION, footage, signing.own())


@signs
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp", ".tif"])
def test_pictures_are_signed_too(suffix: str, tmp_path: Path) -> None:
    picture, out = tmp_path / f"a{suffix}", tmp_path / f"b{suffix}"
    cv2.imwrite(str(picture), np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8))
    signing.sign(picture, out, ACTION, picture, signing.own())
    assert found(out) == ("signed", INTACT) and np.array_equal(cv2.imread(str(picture)), cv2.imread(str(out)))
    assert found(flipped(out, out.stat().st_size - 20)) == ("changed", CHANGED)


@signs
def test_a_full_disk_leaves_nothing(footage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = type("Usage", (), {"free": 1000})
    monkeypatch.setattr("shutil.disk_usage", lambda _: full)
    with pytest.raises(MediaError, match="disk full: signing takes"):
        made(footage, tmp_path / "out.mp4")
    assert not list(tmp_path.glob("*out*"))


# Keys


@signs
def test_the_own_key_is_made_once_and_for_its_user_alone(
    footage: Path, tmp_path: Path, home: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = signing.own()
    path = home / "faceswap" / "provenance-key.pem"
    assert signing.key_file() == path and stat.S_IMODE(path.stat().st_mode) == 0o600
    assert "PRIVATE" in first.key.decode() and "PRIVATE" not in repr(first)
    assert signing.own() == first and len(said) == 1 and "self-signed: nobody vouches for it" in said[0]
    verdict = provenance.verify(made(footage, tmp_path / "out.mp4"))
    assert verdict.manifest is not None and verdict.manifest.signer_is == "own"
    path.chmod(0o644)
    signing.own()
    assert "others may read this key" in said[-1]
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "somebody else"))
    for _ in range(2):  # one without a key, then one with another
        verdict = provenance.verify(tmp_path / "out.mp4")
        assert verdict.status == INTACT and verdict.manifest is not None and verdict.manifest.signer_is == "unknown"
        assert "an unknown key" in provenance.text(verdict) and "faceswap, self-signed" in verdict.manifest.signer
        signing.own()


@signs
def test_a_damaged_own_key_is_said(home: Path, footage: Path) -> None:
    signing.own()
    (home / "faceswap" / "provenance-key.pem").write_text("nothing")
    with pytest.raises(UsageError, match=r"provenance-key.pem: expected a private key .* delete .* a new one is made"):
        signing.own()
    assert provenance.verify(footage).found == "nothing"  # verifying needs no key


@signs
def test_a_key_that_cannot_be_kept_leaves_tags(
    footage: Path, tmp_path: Path, said: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").write_text("no folder")
    assert found(made(footage, tmp_path / "a.mp4")) == ("tagged", INTACT)
    monkeypatch.setattr(signing, "user_data", lambda: None)
    assert found(made(footage, tmp_path / "b.mp4")) == ("tagged", INTACT)
    assert len(said) == 2 and all("marked by tags only, not signed: no key can be kept" in line for line in said)


def credentials(folder: Path, kind: str = "p256", *, days: int = 9, use: str = "EMAIL_PROTECTION") -> tuple[Path, Path]:
    """A chain and a key as an authority would give them out, and `authority.pem`."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

    makers: dict[str, Any] = {
        "p256": lambda: ec.generate_private_key(ec.SECP256R1()),
        "p384": lambda: ec.generate_private_key(ec.SECP384R1()),
        "ed25519": ed25519.Ed25519PrivateKey.generate,
        "rsa": lambda: rsa.generate_private_key(65537, 2048),
        "p224": lambda: ec.generate_private_key(ec.SECP224R1()),
    }
    root, key = makers["p256"](), makers[kind]()
    names = [x509.Name([x509.NameAttribute(x509.NameOID.ORGANIZATION_NAME, name)]) for name in ("Authority", "Studio")]
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    uses: dict[str, Any] = dict.fromkeys(
        (
            *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"),
            *("key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
        ),
        False,
    )
    chain = []
    for ca, name, public in ((True, names[0], root.public_key()), (False, names[1], key.public_key())):
        mine = uses | ({"key_cert_sign": True} if ca else {"digital_signature": True})
        builder = x509.CertificateBuilder(names[0], name, public, x509.random_serial_number())
        builder = builder.not_valid_before(now - 20 * day).not_valid_after(now + days * day)
        builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
        builder = builder.add_extension(x509.KeyUsage(**mine), critical=True)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        builder = builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(root.public_key()), critical=False
        )
        if not ca:
            purpose = x509.ExtendedKeyUsage([getattr(x509.ExtendedKeyUsageOID, use)])
            builder = builder.add_extension(purpose, critical=False)
        chain.insert(0, builder.sign(root, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    folder.mkdir(exist_ok=True)
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "chain.pem").write_bytes(b"".join(chain))
    (folder / "authority.pem").write_bytes(chain[-1])
    (folder / "key.pem").write_bytes(key.private_bytes(*form))
    return folder / "chain.pem", folder / "key.pem"


@signs
@pytest.mark.parametrize("kind", ["p256", "p384", "ed25519", "rsa"])
def test_a_real_key_signs_and_is_trusted_by_who_trusts_its_authority(kind: str, footage: Path, tmp_path: Path) -> None:
    cert, key = credentials(tmp_path / "keys", kind)
    out = made(footage, tmp_path / "out.mp4", cert=cert, key=key)
    manifest, trusting = signing.read(out), signing.read(out, cert.with_name("authority.pem"))
    assert manifest is not None and manifest.signer == "Studio" and manifest.signer_is == "unknown"
    assert trusting is not None and trusting.signer_is == "trusted" and not trusting.faults
    credentials(tmp_path / "others")
    stranger = signing.read(out, tmp_path / "others" / "authority.pem")
    assert stranger is not None and stranger.signer_is == "unknown" and not stranger.faults
    assert not (tmp_path / "data").exists()  # no key of our own was needed


@signs
def test_keys_that_cannot_sign_are_refused_with_the_reason(tmp_path: Path, footage: Path) -> None:
    from cryptography.hazmat.primitives import serialization

    cert, key = credentials(tmp_path / "good")
    locked = tmp_path / "locked.pem"
    private = serialization.load_pem_private_key(key.read_bytes(), None)
    form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
    locked.write_bytes(private.private_bytes(*form))
    for given, said in (
        ((cert, tmp_path / "no.pem"), "no.pem: cannot be read"),
        ((cert, footage), "expected a private key as PEM"),
        ((cert, locked), "is encrypted; take the password off"),
        ((footage, key), "expected a chain of certificates"),
        ((cert, credentials(tmp_path / "other")[1]), "its first certificate is not that of"),
        (credentials(tmp_path / "old", days=-1), "not valid at time of signing"),
        (credentials(tmp_path / "web", use="SERVER_AUTH"), "emailProtection"),
        (credentials(tmp_path / "p224", "p224"), "expected a private key as PEM"),
    ):
        with pytest.raises(UsageError, match=said):
            signing.load(*given)
    with pytest.raises(UsageError, match="expected certificates as PEM"):
        signing.read(made(footage, tmp_path / "out.mp4"), footage)


@signs
def test_what_strangers_write_does_not_reach_the_terminal(tmp_path: Path, footage: Path) -> None:
    loud = {"action": "c2pa.edited", "description": "a\x1b[2Jb\nc: fine"}
    signing.sign(footage, tmp_path / "out.mp4", loud, footage, signing.own())
    shown = provenance.text(provenance.verify(tmp_path / "out.mp4"))
    assert "a?[2Jb?c: fine" in shown and "\x1b" not in shown


@signs
def test_a_manifest_that_lies_elsewhere_is_not_fetched(tmp_path: Path) -> None:
    picture, out = tmp_path / "a.png", tmp_path / "b.png"
    cv2.imwrite(str(picture), np.zeros((8, 8, 3), np.uint8))
    builder = signing._builder([{"action": "c2pa.created", "digitalSourceType": signing.EMPTY_TYPE}])
    builder.set_no_embed()
    builder.set_remote_url("http://127.0.0.1:9/a.c2pa")
    with picture.open("rb") as source, out.open("w+b") as target:
        builder.sign(signing._signer(signing.own()), "image/png", source, target)
    with pytest.raises(UsageError, match=r"lies elsewhere; no network is asked .*127\.0\.0\.1"):
        provenance.verify(out)


# The command


@signs
def test_verify_prints_one_verdict_and_exits_with_it(footage: Path, tmp_path: Path) -> None:
    out = made(footage, tmp_path / "out.mp4")
    changed = flipped(out, out.stat().st_size - 1)
    for path, status, said in (
        (out, INTACT, "signed, and nothing changed since"),
        (changed, CHANGED, "CHANGED since it was signed"),
        (footage, NO_MARKS, "marks removed or none"),
    ):
        result = run("verify", path)
        assert result.exit_code == status and said in result.stdout and not result.stderr
        report = json.loads(run("verify", path, "--json").stdout)
        assert report["file"] == str(path) and report["found"] == provenance.verify(path).found
    missing = run("verify", tmp_path / "no.mp4")
    assert missing.exit_code == 2 and len(missing.stderr.splitlines()) == 1
    if os.name == "posix" and os.geteuid():
        out.chmod(0)
        assert run("verify", out).exit_code == 2


@pytest.mark.parametrize("command", ["merge", "swap"])
def test_options_that_contradict_each_other(command: str, footage: Path, tmp_path: Path) -> None:
    more = ["--model", "m"] if command == "merge" else [footage]
    words = [command, footage, *more, "-o", tmp_path / "out.mp4"]
    for given, said in (
        (["--c2pa-cert", "a.pem"], "--c2pa-cert and --c2pa-key belong together"),
        (["--c2pa-cert", "a.pem", "--c2pa-key", "b.pem", "--no-provenance"], "give one of them"),
    ):
        result = run(*words, *given)
        assert result.exit_code == 2 and said in result.stderr
