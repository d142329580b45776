"""Ed25519 signatures over a bundle's manifest and its plan records. The extra `sign` (package cryptography).

Why: hashes detect accidents; against intent there is only a signature by a key that the device trusts. The manifest is
signed as a whole by whoever built the bundle, each plan's record by the device (or fleet) that built the plan: the
record holds the plan's sha256.

    openssl genpkey -algorithm ed25519 -out key.pem
    openssl pkey -in key.pem -pubout -out key.pub.pem
    edgemed build-engine RUN --out BUNDLE --sign key.pem
    edgemed predict BUNDLE image.png --verify key.pub.pem

A signature file holds the 64 raw bytes of RFC 8032.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edgemed.errors import InputError, first_line

LENGTH = 64


def sign(private_key: bytes, data: bytes) -> bytes:
    """The signature (64 bytes) of `data` by a private key in PEM. InputError where it is no Ed25519 key."""
    return bytes(_private(private_key).sign(data))


def public_of(private_key: bytes) -> bytes:
    """The public key, in PEM, of a private one."""
    serialization = _cryptography()
    encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    return bytes(_private(private_key).public_key().public_bytes(encoding, form))


def verify(public_key: bytes, data: bytes, signature: bytes, where: Path) -> None:
    """Raise InputError, naming the signed file `where`, unless `signature` is this key's signature of `data`."""
    load = _cryptography().load_pem_public_key
    from cryptography.exceptions import InvalidSignature

    key = _loaded(load, public_key, "public", "Ed25519PublicKey")
    try:
        key.verify(signature, data)
    except InvalidSignature as error:
        raise InputError(
            f"the signature of {where} is not by the given key: the file or the signature was changed, or the key "
            "is another one; get the bundle, or the public key, again from who signed it"
        ) from error


def read_key(path: Path) -> bytes:
    """The bytes of a key file. InputError where it cannot be read, or is empty: no key at all would check nothing."""
    try:
        key = path.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read the key {path}: {error.strerror}") from error
    if not key:
        raise InputError(f"the key {path} is empty; put the key there again")
    return key


def read_private_key(path: Path) -> bytes:
    """`read_key`, which also sees that it is what signs. InputError where not: before the work that it is to sign."""
    key = read_key(path)
    _private(key)
    return key


def _private(pem: bytes) -> Any:
    def load(data: bytes) -> Any:
        return _cryptography().load_pem_private_key(data, password=None)

    return _loaded(load, pem, "private", "Ed25519PrivateKey")


def _loaded(load: Any, pem: bytes, kind: str, type_name: str) -> Any:
    _cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric import ed25519

    try:
        key = load(pem)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InputError(
            f"the {kind} key is not an unencrypted PEM key ({first_line(error)}); make one with "
            "`openssl genpkey -algorithm ed25519 -out key.pem`"
        ) from error
    if not isinstance(key, getattr(ed25519, type_name)):
        raise InputError(f"the {kind} key is a {type(key).__name__}; edgemed signs with Ed25519 keys only")
    return key


def _cryptography() -> Any:
    try:
        from cryptography.hazmat.primitives import serialization
    except ImportError as error:
        raise InputError("signatures need the package cryptography: pip install 'edgemed[sign]'") from error
    return serialization
