"""Masks: a 32-byte seed expands to a stream of uniform residues, and two sites agree on a seed nobody else knows.

Expansion is AES-256 in counter mode with a zero counter, sound because every seed is used for one stream only. (Flower's own generator folds a seed
to 32 bits.) Agreement is X25519 with HKDF-SHA256; the salt is the step's transcript and the info names purpose and sites: no key serves twice.
"""

from __future__ import annotations

import secrets

import numpy as np
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from medsynx.secure_sum.ring import Residues

DOMAIN = b"medsynx secure sum 1 "  #: begins everything that is signed, derived or hashed here
CHUNK = 2**17  #: numbers masked at a time: a megabyte, which stays in cache
NONCE = 12


def mask(vector: Residues, seed: bytes, *, add: bool = True) -> None:
    """Add the seed's stream to a uint64 vector in place (or take it away), modulo 2^64."""
    stream = Cipher(algorithms.AES256(seed), modes.CTR(bytes(16))).encryptor()
    zeros = bytes(8 * min(CHUNK, vector.size))
    buffer = bytearray(len(zeros) + 15)
    for start in range(0, vector.size, CHUNK):
        part = vector[start : start + CHUNK]
        stream.update_into(memoryview(zeros)[: part.nbytes], buffer)
        numbers = np.frombuffer(buffer, "<u8", part.size)
        (np.add if add else np.subtract)(part, numbers, out=part)


def new_key() -> bytes:
    """A private X25519 key: 32 bytes from the operating system."""
    return secrets.token_bytes(32)


def load(private: bytes) -> X25519PrivateKey:
    """A private key to agree with; making it takes nearly as long as one agreement, so it is made once for all peers."""
    return X25519PrivateKey.from_private_bytes(private)


def public_key(private: bytes) -> bytes:
    """The public key of a private one, 32 bytes each."""
    return load(private).public_key().public_bytes_raw()


def agree(private: X25519PrivateKey, peer: bytes, transcript: bytes, purpose: str) -> bytes:
    """A 32-byte key shared with a peer, for one purpose of one transcript.

    Raises:
        ValueError: the peer's key is not a point that gives a secret.
    """
    shared = private.exchange(X25519PublicKey.from_public_bytes(peer))
    return HKDF(hashes.SHA256(), 32, transcript, DOMAIN + purpose.encode()).derive(shared)


def seal(key: bytes, content: bytes, transcript: bytes) -> bytes:
    """Authenticated encryption (AES-256-GCM), bound to the transcript."""
    nonce = secrets.token_bytes(NONCE)
    return nonce + AESGCM(key).encrypt(nonce, content, transcript)


def unseal(key: bytes, box: bytes, transcript: bytes) -> bytes:
    """Inverse of :func:`seal`. Raises ``cryptography.exceptions.InvalidTag`` or ValueError for anything that was not sealed so."""
    return AESGCM(key).decrypt(box[:NONCE], box[NONCE:], transcript)
