"""What a hospital signs when it joins a federation, changes its keys or leaves: the same words at the site and at the server.

Two keys speak for a site. Its *identity* (Ed25519) signs what it asks and its part in secure sums; its *node key* (ECDSA P-384) opens the fleet
endpoints. Whoever registers a key shows that they hold its private half by signing the statement that names it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives import serialization as ser
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field

from medsynx.errors import MedsynxError
from medsynx.keys import public_pem

NAME = r"^[a-z0-9][a-z0-9_-]{0,62}$"
SECONDS = 300  #: a signed request is good for so long, and once
Action = Literal["rotate", "leave", "roster"]


class Keys(BaseModel):
    """A site's public keys, and both signatures over the statement that they are its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    identity: str = Field(max_length=64)  # base64 of 32 bytes
    node_key: str = Field(max_length=500)  # PEM
    identity_proof: str = Field(max_length=200)
    node_proof: str = Field(max_length=300)

    @staticmethod
    def prove(site: str, occasion: str, identity: Ed25519PrivateKey, node_key: ec.EllipticCurvePrivateKey) -> Keys:
        """Keys with their proofs. ``occasion`` is what they are registered for: a token's hash, or ``rotate``."""
        public, pem = encode(identity.public_key().public_bytes_raw()), public_pem(node_key.public_key()).decode()
        words = _keys_statement(site, occasion, public, pem)
        node_proof = node_key.sign(words, ec.ECDSA(hashes.SHA384()))
        return Keys(
            identity=public, node_key=pem, identity_proof=encode(identity.sign(words)), node_proof=encode(node_proof)
        )

    def verify(self, site: str, occasion: str) -> None:
        """Raise ``proof-invalid`` unless both keys are of the right kind and signed for this site and occasion."""
        words = _keys_statement(site, occasion, self.identity, self.node_key)
        check(self.identity, words, self.identity_proof)
        try:
            node = ser.load_pem_public_key(self.node_key.encode())
            if not isinstance(node, ec.EllipticCurvePublicKey) or not isinstance(node.curve, ec.SECP384R1):
                raise ValueError
            if public_pem(node).decode() != self.node_key:  # one spelling a key: it is compared as text
                raise ValueError
            node.verify(decode(self.node_proof), words, ec.ECDSA(hashes.SHA384()))
        except (ValueError, InvalidSignature):
            raise MedsynxError("proof-invalid", "the node key does not belong to who sent it") from None


class Join(BaseModel):
    """A site's answer to an invitation."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    token: str = Field(max_length=200)
    site: str = Field(pattern=NAME)
    keys: Keys


class Asked(BaseModel):
    """What an enrolled site asks, signed by its identity."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    action: Action
    site: str = Field(pattern=NAME)
    at: AwareDatetime
    keys: Keys | None = None
    signature: str = Field(default="", max_length=200)

    @staticmethod
    def sign(action: Action, site: str, identity: Ed25519PrivateKey, keys: Keys | None = None) -> Asked:
        """Signed now."""
        asked = Asked(action=action, site=site, at=datetime.now(UTC), keys=keys)
        return asked.model_copy(update={"signature": encode(identity.sign(asked.words()))})

    def words(self) -> bytes:
        """What is signed."""
        return statement("asked", self.model_dump(mode="json", exclude={"signature"}))


class Settings(BaseModel):
    """What a site needs to take part, and the public identities of all enrolled sites so far (to be compared, not trusted)."""

    site: str = Field(pattern=NAME)
    site_id: str = Field(pattern=r"^[0-9a-f]{32}$")
    superlink: str  # host:port of the gate
    roster: dict[Annotated[str, Field(pattern=NAME)], Annotated[str, Field(max_length=64)]]


class About(BaseModel):
    """What a server says of itself to anybody."""

    version: str = Field(pattern=r"^[0-9A-Za-z.+-]{1,40}$")
    ca: str = Field(max_length=20_000)  # PEM


def token_digest(token: str) -> str:
    """SHA-256 of a one-time token: all the server keeps of it."""
    return hashlib.sha256(token.encode()).hexdigest()


def fingerprint(key: bytes) -> str:
    """A public identity for people to compare: 32 hex digits of its SHA-256, in groups of four."""
    digits = hashlib.sha256(key).hexdigest()[:32]
    return " ".join(digits[k : k + 4] for k in range(0, 32, 4))


def statement(kind: str, body: dict[str, Any]) -> bytes:
    """Canonical bytes to sign."""
    return b"medsynx membership 1\n" + json.dumps({"kind": kind, **body}, sort_keys=True).encode()


def _keys_statement(site: str, occasion: str, identity: str, node_key: str) -> bytes:
    return statement("keys", {"site": site, "occasion": occasion, "identity": identity, "node_key": node_key})


def check(identity: str, words: bytes, signature: str) -> None:
    """Raise ``proof-invalid`` unless this identity signed these words."""
    try:
        Ed25519PublicKey.from_public_bytes(decode(identity)).verify(decode(signature), words)
    except (ValueError, InvalidSignature):
        raise MedsynxError("proof-invalid", "the signature is not that of the site's identity") from None


def encode(raw: bytes) -> str:
    """Base64."""
    return base64.b64encode(raw).decode()


def decode(text: str) -> bytes:
    """Base64 of exactly one spelling. Raises ValueError."""
    try:
        raw = base64.b64decode(text, validate=True)
    except binascii.Error as wrong:
        raise ValueError("not base64") from wrong
    if encode(raw) != text:
        raise ValueError("not canonical base64")
    return raw
