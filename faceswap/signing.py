"""Signed manifests (C2PA): made, read and checked. The only module that knows c2pa-python, which is an extra.

A manifest lies inside a file and says what was done to what; its signature covers the manifest and the file around
it. Of mp4 and mov every byte counts but the brands in their first box and padding inside the manifest itself.
Nothing here asks the network: no time stamps, no lists of revoked keys, no manifest that lies elsewhere.

Convention: certificates and keys are PEM; a chain begins with the certificate of the key.
"""

import io
import json
import mimetypes
import os
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import faceswap
from faceswap import console
from faceswap.errors import MediaError, OutputExistsError, UsageError
from faceswap.files import user_data, whole_file

# What is signed, by suffix; c2pa-python takes no mkv.
TYPES = {
    ".mp4": "video/mp4",
    ".mov": "video/quicktime",
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".webp": "image/webp",
    ".tif": "image/tiff",
    ".tiff": "image/tiff",
}
INSTALL = "pip install 'faceswap[provenance]'"

SELF_SIGNED = "faceswap, self-signed"  # the name in a certificate that nobody vouches for
NO_END = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)  # RFC 5280: no date of expiry is known
CURVES = {"secp256r1": "es256", "secp384r1": "es384", "secp521r1": "es512"}

HEAD = 2**20  # bytes at the start of a file among which a manifest begins
JUMBF = b"jumdc2pa"  # the start of a manifest, in every kind of file
LARGEST_MANIFEST = 2**24  # bytes to leave room for, the manifests of the footage included
IN_MEMORY = 16  # MB that c2pa copies in memory; more goes to the system's temporary folder
NOBODY = "signingCredential.untrusted"  # not a fault: says that the key is unknown
EMPTY_TYPE = "http://c2pa.org/digitalsourcetype/empty"
GIF = b"GIF89a\x01\x00\x01\x00\x00\x00\x00;"  # something to sign, to see whether a key can


@dataclass(frozen=True)
class Credentials:
    """A key to sign with."""

    chain: bytes = field(repr=False)
    key: bytes = field(repr=False)  # PKCS 8, not encrypted; never shown
    algorithm: str  # C2PA's name


@dataclass(frozen=True)
class Manifest:
    """What the newest manifest of a file says, and whether it holds."""

    generator: str  # the program that wrote it
    actions: list[str]  # C2PA's names, or their descriptions
    source_types: list[str]  # IPTC's terms
    signer: str  # the names in the certificate
    signer_is: str  # own: of this user on this machine; trusted: by the anchors given; unknown: anybody at all
    faults: list[str]  # why it does not hold: C2PA's code and words; empty: it holds
    parents: list[str]  # the programs that wrote the older manifests, which it carries along


def available() -> bool:
    """Whether c2pa-python is installed and runs here."""
    try:
        import c2pa  # noqa: F401
    except (ImportError, OSError, RuntimeError):  # the last two: its library does not load on this system
        return False
    return True


# Keys


def key_file() -> Path | None:
    """Where the user's own key lies, with its certificate; None for a user without a home."""
    home = user_data()
    return None if home is None else home / "faceswap" / "provenance-key.pem"


def own() -> Credentials:
    """The user's own key, made on first use: self-signed, so that it shows that nothing changed, not who signed.

    Files signed with one key can be told to come from one place; delete the file and the next is signed with another.
    `UsageError`: the file is damaged; `OSError`: it cannot be kept.
    """
    path = key_file()
    if path is None:
        raise OSError("this user has no folder for data")
    if not path.exists():
        try:
            with whole_file(path, overwrite=False) as partial:
                descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(descriptor, "wb") as file:
                    file.write(_self_signed())
        except OutputExistsError:
            console.detail(f"{path}: another process made it just now")
        else:
            console.say(f"{path}: made a key of your own to sign with; it is self-signed: nobody vouches for it")
    if os.name == "posix" and path.stat().st_mode & 0o077:
        console.warn(f"{path}: others may read this key; chmod 600 it")
    try:
        return load(path, path)
    except UsageError as error:
        raise UsageError(f"{error}; delete {path}, and a new one is made") from error


def load(cert: Path, key: Path) -> Credentials:
    """A certificate chain and its key, tried out. `UsageError` names what is wrong with them."""
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    kind = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    try:
        private = serialization.load_pem_private_key(_pem(key), None)
        algorithm, plain = _algorithm(private), bytes(private.private_bytes(*kind))
    except TypeError:
        raise UsageError(f"{key}: is encrypted; take the password off: openssl pkey -in {key} -out plain.pem") from None
    except (ValueError, AttributeError, KeyError):
        raise UsageError(
            f"{key}: expected a private key as PEM (EC P-256, P-384 or P-521, Ed25519, RSA), found none"
        ) from None
    try:
        chain = x509.load_pem_x509_certificates(_pem(cert))
    except ValueError:
        raise UsageError(f"{cert}: expected a chain of certificates as PEM, found none") from None
    if chain[0].public_key() != private.public_key():
        raise UsageError(f"{cert}: its first certificate is not that of {key}; put the one of the key first")
    found = Credentials(b"".join(part.public_bytes(serialization.Encoding.PEM) for part in chain), plain, algorithm)
    import c2pa

    try:
        _builder([{"action": "c2pa.created", "digitalSourceType": EMPTY_TYPE}]).sign(
            _signer(found), "image/gif", io.BytesIO(GIF), io.BytesIO()
        )
    except c2pa.C2paError as error:
        needs = "C2PA wants X.509 v3, in date, for digitalSignature and emailProtection, not a CA"
        raise UsageError(f"{cert}: cannot sign ({_line(error)}); {needs}") from error
    return found


def _pem(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error


def _algorithm(private: Any) -> str:
    """C2PA's name for what a private key signs with; `AttributeError` or `KeyError` for a key that cannot."""
    name = type(private).__name__.lower()
    if "ed25519" in name:
        return "ed25519"
    return "ps256" if "rsa" in name else CURVES[private.curve.name]


def _self_signed() -> bytes:
    """A fresh ES256 key and its certificate, as C2PA wants it: a leaf, for signatures and e-mail."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, names = ec.generate_private_key(ec.SECP256R1()), x509.NameOID
    name = x509.Name(
        [
            x509.NameAttribute(names.ORGANIZATION_NAME, SELF_SIGNED),
            x509.NameAttribute(names.COMMON_NAME, "a key made on a user's machine"),
        ]
    )
    uses = {"digital_signature": True} | dict.fromkeys(
        (
            *("content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
            *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
        ),
        False,
    )
    public = key.public_key()
    certificate = (
        x509.CertificateBuilder(name, name, public, x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - timedelta(days=1))  # clocks differ
        .not_valid_after(NO_END)  # without a time stamp, what an expired key signed no longer holds
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(**uses), critical=True)
        .add_extension(x509.ExtendedKeyUsage([x509.ExtendedKeyUsageOID.EMAIL_PROTECTION]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
    return bytes(secret + certificate.public_bytes(pem))


# Signing


def sign(
    source: Path,  # a finished file
    out: Path,  # the same with its manifest, another file; what is there is replaced
    action: Mapping[str, Any],  # C2PA's terms: what was done to `parent`
    parent: Path,  # footage that it was made of; its own manifests are carried along
    credentials: Credentials,
) -> None:
    """Write a signed copy. Names of files and of people stay out of it. Memory: up to 0.6 GB, however large the file.

    `UsageError`: a kind of file that is not signed; `MediaError`: disk full, or c2pa cannot.
    """
    import c2pa

    kind = TYPES.get(out.suffix.lower())
    if kind is None:
        raise UsageError(f"{out}: {out.suffix} files are not signed; expected one of {', '.join(TYPES)}")
    needed = source.stat().st_size + LARGEST_MANIFEST
    for folder in (out.absolute().parent, Path(tempfile.gettempdir())):
        if shutil.disk_usage(folder).free < needed:
            raise MediaError(f"{out}: disk full: signing takes {needed / 1e6:.0f} MB in {folder}; free some space")
    try:
        builder = _edit(action, parent)
        with source.open("rb") as unsigned, out.open("w+b") as signed:
            builder.sign(_signer(credentials), kind, unsigned, signed)
    except c2pa.C2paError as error:
        raise MediaError(
            f"{source}: cannot be signed ({_line(error)}); --no-provenance leaves all marks out"
        ) from error


def _edit(action: Mapping[str, Any], parent: Path) -> Any:
    """A builder of a manifest that says: `parent` was opened, then `action` was done."""
    import c2pa

    kind = mimetypes.guess_type(parent)[0] or "application/octet-stream"
    footage = {"title": "footage", "relationship": "parentOf"}
    builder = _builder([action])
    try:
        with parent.open("rb") as file:
            builder.add_ingredient(footage, kind, file)
    except c2pa.C2paError as error:  # of a kind that c2pa cannot read: named all the same
        if holds_manifest(parent):
            console.warn(f"{parent}: its own marks cannot be carried along ({_line(error)})")
        builder = _builder([action], [footage | {"format": kind}])
    builder.set_intent(c2pa.C2paBuilderIntent.EDIT)
    return builder


def _builder(actions: list[Mapping[str, Any]], ingredients: list[Any] | None = None) -> Any:
    import c2pa

    program = {"name": "faceswap", "version": faceswap.__version__}
    actions = [{"softwareAgent": program} | dict(action) for action in actions]
    manifest = {
        "claim_generator_info": [program],
        "ingredients": ingredients or [],
        "assertions": [{"label": "c2pa.actions.v2", "data": {"actions": actions}}],
    }
    return c2pa.Builder(manifest, context=_context())


def _signer(credentials: Credentials) -> Any:
    import c2pa

    info = c2pa.C2paSignerInfo(credentials.algorithm, credentials.chain, credentials.key, None)
    return c2pa.Signer.from_info(info)


def _context(trusted: str = "", mine: str = "") -> Any:
    """How c2pa works for us: without network and thumbnails; `trusted` and `mine` are certificates that it knows."""
    import c2pa

    settings: dict[str, Any] = {
        "core": {"backing_store_memory_threshold_in_mb": IN_MEMORY},
        "builder": {"thumbnail": {"enabled": False}},
        "verify": {"remote_manifest_fetch": False, "ocsp_fetch": False, "verify_trust": True},
    }
    known = {name: pem for name, pem in {"trust_anchors": trusted, "user_anchors": mine}.items() if pem}
    return c2pa.Context(c2pa.Settings.from_dict(settings | ({"trust": known} if known else {})))


# Reading


def holds_manifest(path: Path) -> bool:
    """Whether a file seems to hold a manifest, whole or not: told without c2pa."""
    with path.open("rb") as file:
        return JUMBF in file.read(HEAD)


def read(path: Path, trust: Path | None = None) -> Manifest | None:
    """The newest manifest of a file, checked against all of it; None: it has none.

    `trust` holds certificates, PEM, of whom to trust as signer. `UsageError`: they are none, or the manifest lies
    elsewhere.
    """
    import c2pa

    mine = _own_certificate()
    try:
        context = _context("" if trust is None else _pem(trust).decode(errors="replace"), mine)
    except c2pa.C2paError as error:
        raise UsageError(f"{trust}: expected certificates as PEM ({_line(error)})") from error
    try:
        with path.open("rb") as file:
            return _manifest(json.loads(c2pa.Reader(file, context=context).json()), mine)
    except c2pa.C2paError.NotSupported:
        return None
    except c2pa.C2paError as error:
        if str(error).startswith("Remote"):
            raise UsageError(f"{path}: its manifest lies elsewhere; no network is asked ({_line(error)})") from error
        if not holds_manifest(path):
            return None
        return Manifest("", [], [], "", "unknown", [f"the manifest cannot be read: {_line(error)}"], [])


def _manifest(store: dict[str, Any], mine: str) -> Manifest:
    manifests, active = store["manifests"], store.get("active_manifest")
    newest = manifests.get(active, {})
    results = store.get("validation_results", {}).get("activeManifest", {})
    faults = [f"{f['code']}: {f.get('explanation', '')}" for f in results.get("failure", []) if f["code"] != NOBODY]
    if store.get("validation_state") == "Invalid" and not faults:
        faults = ["its validation failed"]
    known = any(found["code"] == "signingCredential.trusted" for found in results.get("success", []))
    signature = newest.get("signature_info", {})
    names = [signature.get(key) for key in ("issuer", "common_name")]
    ours = mine and signature.get("cert_serial_number") == str(_serial(mine))
    done = [
        action
        for part in newest.get("assertions", [])
        if part.get("label", "").startswith("c2pa.actions") and isinstance(part.get("data"), dict)
        for action in part["data"].get("actions", [])
    ]
    return Manifest(
        generator=_generator(newest),
        actions=[str(action.get("description") or action.get("action")) for action in done],
        source_types=[str(action["digitalSourceType"]) for action in done if "digitalSourceType" in action],
        signer=", ".join(name for name in names if name),
        signer_is="unknown" if not known else "own" if ours else "trusted",
        faults=faults,
        parents=[_generator(manifest) for label, manifest in manifests.items() if label != active],
    )


def _generator(manifest: Mapping[str, Any]) -> str:
    programs = manifest.get("claim_generator_info") or [{"name": manifest.get("claim_generator") or "unknown"}]
    return ", ".join(f"{program.get('name')} {program.get('version', '')}".strip() for program in programs)


def _own_certificate() -> str:
    """That of the user's own key, "" if there is none that can be read."""
    path = key_file()
    if path is None or not path.is_file():
        return ""
    try:
        _, mark, certificate = path.read_text(errors="replace").partition("-----BEGIN CERTIFICATE-----")
        _serial(mark + certificate)
    except (OSError, ValueError):
        return ""
    return mark + certificate


def _serial(certificate: str) -> int:
    from cryptography import x509

    return int(x509.load_pem_x509_certificate(certificate.encode()).serial_number)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())
