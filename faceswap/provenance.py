"""Mark what was made, and say what marks a file carries.

A video says in its container that it was swapped or rendered, by what and how: tags, which anybody can read, write and
remove. Where c2pa-python is installed it also carries a signed manifest (see `signing`), which shows a change of one
byte. Both are lost when somebody re-encodes or re-muxes the file: that a file has no marks proves nothing.
"""

import html
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import cv2

import faceswap
from faceswap import console, files, signing
from faceswap.errors import MediaError, UsageError
from faceswap.video import file_tags, is_image

# IPTC's terms for real footage with parts made by a trained model, and for pictures made by an algorithm alone.
TERMS = "http://cv.iptc.org/newscodes/digitalsourcetype/"
SOURCE_TYPE = f"{TERMS}compositeWithTrainedAlgorithmicMedia"
RENDERED_TYPE = f"{TERMS}algorithmicMedia"
MEANING = {
    SOURCE_TYPE: "real footage with parts made by a trained model",
    RENDERED_TYPE: "made by an algorithm alone",
    f"{TERMS}trainedAlgorithmicMedia": "made by a trained model",
}
TYPE_TAG, MODEL_TAG, SIGNATURE_TAG = "digitalsourcetype", "faceswap_model", "faceswap_signature"

INTACT, CHANGED, NO_MARKS = 0, 1, 3  # exit status of faceswap verify; 2 is wrong use, as everywhere


# Marking


def tags(model: str) -> dict[str, str]:
    """Container tags for a swapped video; `model` names the weight file that drew the faces."""
    return {
        "comment": f"Faces in this video were swapped with faceswap {faceswap.__version__}.",
        TYPE_TAG: SOURCE_TYPE,
        MODEL_TAG: model,
    }


def packet(said: Mapping[str, str], note: str) -> bytes:
    """XMP for an image: what the tags `said` say of a video, and a note of ours, `faceswap:note`."""
    known = {"Iptc4xmpExt:DigitalSourceType": TYPE_TAG, "faceswap:model": MODEL_TAG, "faceswap:comment": "comment"}
    words = {name: said[tag] for name, tag in known.items() if tag in said} | {"faceswap:note": note}
    inside = " ".join(f'{name}="{html.escape(value)}"' for name, value in words.items())
    return (
        '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
        '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
        'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" xmlns:faceswap="urn:faceswap:" '
        f'{inside}/></rdf:RDF></x:xmpmeta><?xpacket end="r"?>'
    ).encode()


def noted(content: bytes) -> str | None:
    """The note of ours that an image holds, None if it holds none."""
    found = re.search(rb'faceswap:note="([^"]*)"', content[: signing.HEAD])
    return html.unescape(found[1].decode(errors="replace")) if found else None


def rendered_tags() -> dict[str, str]:
    """Container tags for a video of synthetic actors."""
    return {
        "comment": f"Rendered by faceswap {faceswap.__version__}: nobody in this video is real.",
        TYPE_TAG: RENDERED_TYPE,
    }


@dataclass(frozen=True)
class Marker:
    """How one output is marked; `marker` makes it."""

    on: bool
    credentials: signing.Credentials | None  # None: tags only

    def tags(self, model: str) -> dict[str, str]:
        """Container tags of the output; `model` names the weight file that drew the faces."""
        return tags(model) | {SIGNATURE_TAG: "C2PA" if self.credentials else "none"} if self.on else {}

    def sign(self, partial: Path, out: Path, footage: Path, model: str) -> None:
        """Sign the finished file `partial`, which will be called `out`, in its place."""
        if self.credentials is None:
            return
        action = {
            "action": "c2pa.edited",
            "digitalSourceType": SOURCE_TYPE,
            "description": "Faces were swapped",
            "parameters": {"model": model},
        }
        signed = files.partial_name(out)
        try:
            signing.sign(partial, signed, action, footage, self.credentials)
            signed.replace(partial)
        finally:
            signed.unlink(missing_ok=True)


def marker(
    out: Path, *, on: bool = True, cert: Path | None = None, key: Path | None = None, stills: bool = False
) -> Marker:
    """How `out` is to be marked: by tags, and signed if c2pa-python is there and its kind of file can be.

    stills: it is a folder of images, which are not signed: each would need a signature of its own.

    `on` False leaves out all marks, for research. `cert` and `key` are PEM files of a chain and its key; None: the
    user's own. `UsageError`: they cannot sign, or there is no signing.
    """
    if not on:
        kind = "images" if stills else "file"
        console.warn(
            f"{out.name}: --no-provenance: nothing in the {kind} will say that it was swapped; for research only, and "
            "whoever shows it has to say so"
        )
        return Marker(False, None)
    reason = ""
    if stills:
        reason = "images are not signed, only videos are"
    elif not signing.available():
        reason = f"c2pa-python is not installed; {signing.INSTALL}"
    elif out.suffix.lower() not in signing.TYPES:
        reason = f"C2PA does not sign {out.suffix} files; name it .mp4 or .mov"
    if cert is not None or key is not None:
        if reason or cert is None or key is None:
            raise UsageError(f"{out}: cannot be signed: {reason or 'a certificate and its key belong together'}")
        return Marker(True, signing.load(cert, key))
    if not reason:
        try:
            return Marker(True, signing.own())
        except OSError as error:
            reason = f"no key can be kept at {signing.key_file()}: {error.strerror or error}"
    _say_once(f"marked by tags only, not signed: {reason}")
    return Marker(True, None)


@cache
def _say_once(message: str) -> None:
    console.say(message)


# Verifying


@dataclass(frozen=True)
class Verdict:
    """What `verify` found in a file."""

    file: Path
    found: str  # signed, changed, tagged, removed or nothing
    manifest: signing.Manifest | None = None
    tags: Mapping[str, str] = field(default_factory=dict)  # those that mark, in lower case

    @property
    def status(self) -> int:
        """Exit status of faceswap verify."""
        return {"signed": INTACT, "tagged": INTACT, "changed": CHANGED}.get(self.found, NO_MARKS)


def verify(path: Path, trust: Path | None = None) -> Verdict:
    """Look for marks in a video or an image, and check its signature against all of it.

    `trust` holds certificates, PEM, of whom to trust as signer. `UsageError`: no such file, neither video nor image,
    or signed and c2pa-python is missing.
    """
    try:
        with path.open("rb"):
            manifest = None
    except OSError as error:
        raise UsageError(f"{path}: expected a video or an image that can be read ({error.strerror})") from error
    if signing.available():
        manifest = signing.read(path, trust)
    elif signing.holds_manifest(path):
        raise UsageError(f"{path}: holds a signed manifest, which c2pa-python checks; {signing.INSTALL}")
    marks = _marks(path, manifest is not None)
    if manifest is not None:
        return Verdict(path, "changed" if manifest.faults else "signed", manifest, marks)
    if marks.get(SIGNATURE_TAG, "none") != "none":
        return Verdict(path, "removed", None, marks)
    return Verdict(path, "tagged" if marks else "nothing", None, marks)


def _marks(path: Path, known: bool) -> dict[str, str]:
    """Tags that mark, by name in lower case; of an image the term in its XMP. `known`: the file is media anyway."""
    if is_image(path) or path.suffix.lower() == ".exr":
        if is_image(path) and not known and not cv2.haveImageReader(str(path)):
            raise UsageError(f"{path}: expected an image, found none that can be read; verify the file as it was made")
        with path.open("rb") as file:
            term = re.search(re.escape(TERMS).encode() + rb"\w+", file.read(signing.HEAD))
        return {TYPE_TAG: term[0].decode()} if term and not known else {}
    try:
        said = {name.lower(): value for name, value in file_tags(path).items()}
    except MediaError as error:
        if known:
            return {}
        raise UsageError(str(error)) from error
    comment = said.get("comment", "")
    ours = {"comment": comment} if re.search(r"(swapped with|Rendered by) faceswap", comment) else {}
    return ours | {name: said[name] for name in (TYPE_TAG, MODEL_TAG, SIGNATURE_TAG) if name in said}


def text(verdict: Verdict) -> str:
    """A verdict for people."""
    manifest, marks = verdict.manifest, verdict.tags
    types = manifest.source_types if manifest else [marks[TYPE_TAG]] if TYPE_TAG in marks else []
    says = [MEANING.get(term, term.removeprefix(TERMS)) for term in types]
    if manifest is None:
        says += [marks["comment"]] if "comment" in marks else []
        return _lines(verdict.file, [_UNSIGNED[verdict.found], *(f"says: {line}" for line in says)])
    if not manifest.faults:
        lines = ["signed, and nothing changed since"]
    elif all("mismatch" in fault or "cannot be read" in fault for fault in manifest.faults):
        lines = ["CHANGED since it was signed"]
    else:
        lines = ["NOT VALID: changed since it was signed, or signed with a key that may not"]
    lines += [f"fault: {fault}" for fault in manifest.faults]
    if manifest.generator:
        done = ", ".join(action.removeprefix("c2pa.") for action in manifest.actions)
        lines += [f"says: {line}" for line in [*says, f"{done}, by {manifest.generator}"]]
        lines += [f"signed by: {manifest.signer}: {_SIGNERS[manifest.signer_is]}"]
    lines += [f"made of: footage with marks of its own, by {program}" for program in manifest.parents]
    return _lines(verdict.file, lines)


def _lines(file: Path, lines: list[str]) -> str:
    """What a stranger wrote is shown without the control characters that a terminal obeys."""
    shown = ("".join(char if char.isprintable() else "?" for char in line) for line in lines)
    return f"{file}: " + "\n".join(shown)


_UNSIGNED = {
    "tagged": "marked by tags, not signed: anybody can write and change them, so they prove nothing",
    "removed": "marks removed: its tags say that it was signed, and the signature is gone (re-muxed or edited since)",
    "nothing": "marks removed or none: that proves nothing, since they are lost when a file is re-muxed or re-encoded",
}
_SIGNERS = {
    "own": "your own key, on this machine",
    "trusted": "vouched for by a certificate that you trust",
    "unknown": "an unknown key, which anybody can make under any name: proves only that nothing changed since",
}
