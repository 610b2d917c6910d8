"""The signed generator bundle: one ZIP that a coordinator hands to the world.

Layout: ``statement.json`` (an in-toto statement over every file's SHA-256, in a DSSE envelope signed with Ed25519), ``signer.pem``,
``study.json``, ``privacy.json``, ``sampler.json``, ``artefact/*`` and, when made, ``rounds.json``, ``evaluation.json``, ``report.html``, ``card.md``.

Reading verifies, in this order and before any parser sees a file: sizes, signature, digests. There is no pickle in it and none can be read from it.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from medsynx.errors import MedsynxError
from medsynx.files import replacing
from medsynx.study import Study, parse_study

PAYLOAD_TYPE = "application/vnd.in-toto+json"
PREDICATE_TYPE = "https://medsynx.org/bundle/v1"
MAX_FILES, MAX_FILE, MAX_TOTAL = 64, 256 * 2**20, 512 * 2**20


@dataclass(frozen=True)
class Bundle:
    """A verified bundle: every file by name, and who signed it (hexadecimal SHA-256 of the public key's DER)."""

    files: dict[str, bytes]
    signer: str

    def json(self, name: str) -> dict[str, Any]:
        """A JSON file of the bundle. Raises ``bundle-unreadable`` when it is absent or not an object, or has a number that JSON has not."""
        try:
            value = json.loads(self.files[name], parse_float=_finite, parse_constant=_finite)
        except (KeyError, ValueError, RecursionError):
            raise MedsynxError("bundle-unreadable", f"the bundle has no readable {name}") from None
        if not isinstance(value, dict):
            raise MedsynxError("bundle-unreadable", f"{name} is not a JSON object")
        return value

    @cached_property
    def study(self) -> Study:
        """The study it came from."""
        return parse_study(self.json("study.json"), "study.json")

    @cached_property
    def digest(self) -> str:
        """SHA-256 over the signed statement: the bundle's identity."""
        return hashlib.sha256(self.files["statement.json"]).hexdigest()

    @property
    def private(self) -> bool:
        """False when noise was off or seeded; such a bundle is never served."""
        return self.json("privacy.json").get("private") is True


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(text)
    return value


def new_key(path: Path) -> str:
    """Create an Ed25519 signing key (PEM, mode 0600) and ``path.pub`` beside it; returns the key's fingerprint. Raises ``file-exists``."""
    from cryptography.hazmat.primitives import serialization as ser
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    if path.exists():
        raise MedsynxError("file-exists", f"{path} exists")
    key = Ed25519PrivateKey.generate()
    path.touch(mode=0o600)
    path.write_bytes(key.private_bytes(ser.Encoding.PEM, ser.PrivateFormat.PKCS8, ser.NoEncryption()))
    pem = key.public_key().public_bytes(ser.Encoding.PEM, ser.PublicFormat.SubjectPublicKeyInfo)
    path.with_name(path.name + ".pub").write_bytes(pem)
    return fingerprint(pem)


def fingerprint(public_pem: bytes) -> str:
    """SHA-256 of the DER form of an Ed25519 public key. Raises ``bundle-signature`` for anything else."""
    from cryptography.hazmat.primitives import serialization as ser

    return hashlib.sha256(
        _public_key(public_pem).public_bytes(ser.Encoding.DER, ser.PublicFormat.SubjectPublicKeyInfo)
    ).hexdigest()


def write_bundle(path: Path, files: dict[str, bytes], key_file: Path) -> str:
    """Sign ``files`` and write them as one ZIP. Returns the SHA-256 of the statement.

    Args:
        path: target; replaced whole or not at all.
        files: without ``statement.json`` and ``signer.pem``.
        key_file: PEM of an Ed25519 private key.
    """
    from cryptography.hazmat.primitives import serialization as ser
    from securesystemslib.dsse import Envelope
    from securesystemslib.signer import CryptoSigner

    private = ser.load_pem_private_key(key_file.read_bytes(), password=None)
    signer = CryptoSigner(private)
    body = {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": n, "digest": {"sha256": hashlib.sha256(b).hexdigest()}} for n, b in sorted(files.items())],
        "predicateType": PREDICATE_TYPE,
        "predicate": {"sizes": {n: len(b) for n, b in sorted(files.items())}},
    }
    envelope = Envelope(json.dumps(body, sort_keys=True).encode(), PAYLOAD_TYPE, {})
    envelope.sign(signer)
    statement = json.dumps(envelope.to_dict(), sort_keys=True).encode()
    pem = private.public_key().public_bytes(ser.Encoding.PEM, ser.PublicFormat.SubjectPublicKeyInfo)
    with replacing(path) as out, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in {"statement.json": statement, "signer.pem": pem, **files}.items():
            archive.writestr(name, content)
    return hashlib.sha256(statement).hexdigest()


def read_bundle(source: Path | bytes, *, trusted: frozenset[str] | None = None) -> Bundle:
    """Verify and read a bundle.

    Args:
        source: a file or its bytes.
        trusted: fingerprints of accepted signers; None accepts any (then only integrity is shown, not origin).

    Raises:
        MedsynxError: ``bundle-unreadable``, ``bundle-signature`` or ``bundle-changed``.
    """
    files = _unzip(source)
    try:
        pem, raw = files.pop("signer.pem"), files["statement.json"]
    except KeyError as missing:
        raise MedsynxError("bundle-unreadable", f"the bundle has no {missing.args[0]}") from None
    signer = fingerprint(pem)
    if trusted is not None and signer not in trusted:
        raise MedsynxError("bundle-signature", f"signed by an unknown key {signer[:16]}")
    body = _verified_statement(raw, pem)
    signed = {s["name"]: s["digest"]["sha256"] for s in body["subject"]}
    found = {n: hashlib.sha256(b).hexdigest() for n, b in files.items() if n != "statement.json"}
    if signed != found:
        wrong = sorted(n for n in signed.keys() | found.keys() if signed.get(n) != found.get(n))
        raise MedsynxError("bundle-changed", f"not as signed: {', '.join(wrong)}")
    return Bundle(files, signer)


def _unzip(source: Path | bytes) -> dict[str, bytes]:
    try:
        with zipfile.ZipFile(io.BytesIO(source) if isinstance(source, bytes) else source) as archive:
            entries = archive.infolist()
            sizes = [e.file_size for e in entries]
            if len(entries) > MAX_FILES or max(sizes, default=0) > MAX_FILE or sum(sizes) > MAX_TOTAL:
                raise MedsynxError("bundle-unreadable", "the bundle is larger than any MedSynX writes")
            if len({e.filename for e in entries}) != len(entries):
                raise MedsynxError("bundle-changed", "the bundle names a file twice")
            return {e.filename: archive.read(e) for e in entries}
    except (OSError, zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError, ValueError):
        raise MedsynxError("bundle-unreadable", "not a bundle, or damaged") from None
    except Exception as error:
        if type(error).__module__ == "zlib":
            raise MedsynxError("bundle-unreadable", "not a bundle, or damaged") from None
        raise


def _public_key(pem: bytes) -> Any:
    from cryptography.hazmat.primitives import serialization as ser
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        key = ser.load_pem_public_key(pem)
    except ValueError:
        raise MedsynxError("bundle-signature", "the signer's key is not readable") from None
    if not isinstance(key, Ed25519PublicKey):
        raise MedsynxError("bundle-signature", "the signer's key is not Ed25519")
    return key


def _verified_statement(raw: bytes, pem: bytes) -> dict[str, Any]:
    from securesystemslib.dsse import Envelope
    from securesystemslib.exceptions import VerificationError
    from securesystemslib.signer import SSlibKey

    try:
        envelope = Envelope.from_dict(json.loads(raw))
        envelope.verify([SSlibKey.from_crypto(_public_key(pem))], 1)
        body = json.loads(envelope.payload)
        if envelope.payload_type != PAYLOAD_TYPE or body["predicateType"] != PREDICATE_TYPE:
            raise MedsynxError("bundle-signature", "the statement is not a MedSynX bundle's")
        sizes, names = body["predicate"]["sizes"], [s["name"] for s in body["subject"]]
        if sorted(sizes) != sorted(names):
            raise MedsynxError("bundle-signature", "the statement contradicts itself")
    except VerificationError:
        raise MedsynxError("bundle-signature", "the signature does not verify") from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise MedsynxError("bundle-signature", "the statement is not readable") from None
    assert isinstance(body, dict)
    return body
