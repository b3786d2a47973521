"""Tokens: how a site that nobody knows yet, and a member, prove to each other what they know.

A token is the invitation's id and a secret of 32 bytes, written once, on the inviter's screen. The catalog
holds only a digest of the secret, the verifier. The member shows first that it knows the verifier, bound to
the certificate that its TLS connection showed, so whoever stands between the two cannot pass for it; only
then does the joiner send the secret, through that very connection.

Invariant: nothing a member has stored lets anybody join; a token is in no log and in no error.
"""

import base64
import binascii
import hashlib
import hmac
from typing import NamedTuple
from uuid import UUID

import msgspec

from syncagent.errors import UsageError

_MARK = "sa1-"
SECRET = 32
"""Bytes of chance in a token."""


class Token(NamedTuple):
    """What `invite` prints and `join` is given."""

    id: UUID
    secret: bytes

    def __str__(self) -> str:
        return _MARK + base64.urlsafe_b64encode(self.id.bytes + self.secret).decode().rstrip("=")

    def __repr__(self) -> str:
        return f"Token({self.id}, ...)"

    @classmethod
    def read(cls, text: str) -> "Token":
        """UsageError if it is none; the error does not show it."""
        text = text.strip()
        try:
            data = base64.b64decode(
                text.removeprefix(_MARK) + "=" * (-len(text.removeprefix(_MARK)) % 4), b"-_", True
            )
        except (binascii.Error, ValueError):
            data = b""
        if not text.startswith(_MARK) or len(data) != 16 + SECRET:
            raise UsageError(
                "this is not a token", hint="copy all of what `syncagent invite` printed at a member"
            )
        return cls(UUID(bytes=data[:16]), data[16:])


def verifier(secret: bytes) -> bytes:
    """What the cluster keeps of a secret."""
    return hashlib.sha256(b"syncagent invitation\0" + secret).digest()


def proof(verifier: bytes, certificate: str, nonce: bytes) -> bytes:
    """The member's: whoever has this certificate (the hex SHA-256 of its DER) knows the verifier."""
    return hmac.digest(verifier, b"\0".join((b"syncagent member", certificate.encode(), nonce)), "sha256")


def equal(one: bytes, other: bytes) -> bool:
    """Takes as long whatever differs."""
    return hmac.compare_digest(one, other)


class Application(msgspec.Struct, frozen=True, kw_only=True):
    """Who wants to join. `wall` is its clock, in seconds since 1970."""

    invitation: UUID
    secret: bytes
    name: str
    site: UUID
    incarnation: UUID
    address: str | None
    sha256: str
    protocol: int
    version: str
    wall: float


class Returning(msgspec.Struct, frozen=True, kw_only=True):
    """A site whose certificate is listed wants another number, as another incarnation. `void`: what is held of it is not to be applied."""

    incarnation: UUID
    protocol: int
    version: str
    wall: float
    void: bool = False


class Admission(msgspec.Struct, frozen=True):
    """What it is told: its number, whom it has asked, and the catalog as bytes."""

    node: int
    host: int
    catalog: bytes
