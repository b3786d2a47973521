"""Who is at the other end: mutual TLS 1.3 between certificates that are listed by their SHA-256.

The catalog is the authority. Every site has a self-signed certificate, and the catalog lists its digest. A dialer
compares the digest inside the handshake, before its own certificate leaves. A server cannot do that:
OpenSSL refuses a client certificate that is no trust anchor before Python sees it. So a peer introduces
itself once, without a client certificate: it hands over the PEM, and if the digest is listed the
certificate becomes an anchor of the running server. The list decides again on every request.

A certificate says until when its key should be used, but nothing is refused for that: the list alone decides,
so that a site that was away for long can come back. A new pair is made beside the one in use and takes its place
by two renames, of which `Credentials.provide` finishes the second if nobody else did.

Invariants: a certificate that is not listed opens nothing, whatever it claims to be; at any moment the home
holds a key and its certificate.
"""

import asyncio
import datetime as dt
import hashlib
import os
import ssl
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from syncagent.core import limits
from syncagent.core.membership import Peer
from syncagent.errors import TrustError, UsageError

NOT_BEFORE = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
"""Long ago: a clock that is behind is no reason to refuse anybody."""
_ANY_TIME = 0x200000
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which `ssl` has no name for."""
KEY, CERTIFICATE = "key.pem", "certificate.pem"
NEXT_KEY, NEXT_CERTIFICATE = "next.key.pem", "next.certificate.pem"
NOBODY: Mapping[str, str] = MappingProxyType({})


class Credentials(NamedTuple):
    """A site's own key and certificate; `sha256` is what its peers list, `until` when they should be replaced."""

    key: Path
    certificate: Path
    sha256: str
    until: dt.datetime

    @classmethod
    def provide(cls, directory: Path, name: str) -> "Credentials":
        """Load `key.pem` and `certificate.pem` of a directory, making what is missing. Blocks."""
        key, certificate = directory / KEY, directory / CERTIFICATE
        _finish_turn(directory)
        if not key.exists():
            if certificate.exists():
                raise UsageError(
                    f"{certificate} is there, but its key {key} is not",
                    hint="restore the key from a backup, or remove the certificate and give the peers the new one",
                )
            _write(key, _new_key(), mode=0o600)
        if not certificate.exists():
            _write(certificate, _self_signed(key.read_bytes(), name), mode=0o644)
        return cls.read(key, certificate)

    @classmethod
    def read(cls, key: Path, certificate: Path) -> "Credentials":
        pem = certificate.read_text(encoding="ascii", errors="replace")
        return cls(key, certificate, digest_of_pem(pem), end_of_pem(pem))

    @classmethod
    def coming(cls, directory: Path) -> "Credentials | None":
        """The pair that is to replace the one in use, if there is one. Blocks."""
        key, certificate = directory / NEXT_KEY, directory / NEXT_CERTIFICATE
        return cls.read(key, certificate) if key.exists() and certificate.exists() else None

    @classmethod
    def prepare(cls, directory: Path, name: str) -> "Credentials":
        """Make the pair that is to replace the one in use; one that is there already is kept. Blocks."""
        if (there := cls.coming(directory)) is not None:
            return there
        key, certificate = directory / NEXT_KEY, directory / NEXT_CERTIFICATE
        _write(key, _new_key(), mode=0o600)
        _write(certificate, _self_signed(key.read_bytes(), name), mode=0o644)
        return cls.read(key, certificate)

    @classmethod
    def turn(cls, directory: Path) -> "Credentials":
        """The new pair is the one in use; the old key is gone. Blocks."""
        (directory / NEXT_KEY).replace(directory / KEY)
        _finish_turn(directory)
        return cls.read(directory / KEY, directory / CERTIFICATE)

    def load_into(self, context: ssl.SSLContext) -> None:
        try:
            context.load_cert_chain(self.certificate, self.key)
        except (ssl.SSLError, OSError) as error:
            raise UsageError(
                f"{self.certificate} and {self.key} cannot be used together",
                detail=str(error),
                hint="restore both from one backup, or remove both and give the peers the new SHA-256",
            ) from error


def digest_of_pem(pem: str) -> str:
    """SHA-256 of the DER inside, in hex; TrustError if there is no certificate in it."""
    return digest(der_of_pem(pem))


def der_of_pem(pem: str) -> bytes:
    try:
        return ssl.PEM_cert_to_DER_cert(pem)
    except ValueError as error:
        raise TrustError("this is not a certificate in PEM form", detail=str(error)) from error


def end_of_pem(pem: str) -> dt.datetime:
    """Until when a certificate is good by its own account."""
    try:
        return x509.load_pem_x509_certificate(pem.encode()).not_valid_after_utc
    except ValueError as error:
        raise TrustError("this is not a certificate", detail=str(error)) from error


def digest(der: bytes) -> str:
    return hashlib.sha256(der).hexdigest()


def pins(peer: Peer) -> tuple[str, ...]:
    """The digests that may be the peer's."""
    return (peer.sha256, *peer.also)


def normal(sha256: str) -> str:
    """A digest as people write it, with or without colons."""
    return sha256.replace(":", "").strip().lower()


# ---- the two ends of a handshake


class WrongCertificate(ssl.SSLCertVerificationError):
    """The server showed a certificate with another digest; raised by the handshake."""

    def __init__(self, presented: str) -> None:
        super().__init__(1, f"a certificate with SHA-256 {presented} was presented")
        self.presented = presented


class WatchedObject(ssl.SSLObject):
    """One end of a connection; remembers what was wrong with its bytes, for neither asyncio nor aiohttp tells."""

    fault: str | None = None

    def read(self, len: int = 1024, buffer: bytearray | None = None) -> bytes:  # type: ignore[override]  # noqa: A002
        try:
            return super().read(len, buffer)
        except ssl.SSLError as error:
            if error.errno == ssl.SSL_ERROR_SSL:
                self.fault = (error.reason or "a TLS error").lower().replace("_", " ")
            raise


class PinnedContext(ssl.SSLContext):
    """A client's side: the handshake fails unless the server's certificate has one of these digests.

    The check runs before the client's certificate and last handshake message are put on the wire.
    """

    pins: frozenset[str]

    @classmethod
    def to(cls, peer: Peer, credentials: Credentials | None) -> "PinnedContext":
        """Without credentials the dialer stays anonymous."""
        context = cls(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE  # the digest is compared instead, by _PinnedObject
        context.sslobject_class = _PinnedObject
        context.pins = frozenset(map(normal, pins(peer)))
        if credentials is not None:
            credentials.load_into(context)
        return context


class _PinnedObject(WatchedObject):
    def do_handshake(self) -> None:
        super().do_handshake()
        assert isinstance(self.context, PinnedContext)
        presented = digest(self.getpeercert(binary_form=True) or b"")
        if presented not in self.context.pins:
            raise WrongCertificate(presented)


class Trust:
    """A server's side: the listed peers, and the certificates known of them so far."""

    def __init__(self, site: str, credentials: Credentials, peers: Sequence[Peer], directory: Path) -> None:
        """`directory` keeps the certificates of peers that have introduced themselves. Blocks."""
        self._site = site
        self._peers: dict[str, Peer] = {}
        self._directory = directory
        self._anchored: set[str] = set()
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_3
        self.context.sslobject_class = WatchedObject
        credentials.load_into(self.context)
        self.context.verify_mode = ssl.CERT_OPTIONAL
        self.context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN | ssl.VerifyFlags(_ANY_TIME)
        self.context.num_tickets = 0  # every connection shows its certificate
        self.know(peers)

    def use(self, credentials: Credentials) -> None:
        """What is shown from the next handshake on. Blocks."""
        credentials.load_into(self.context)

    def know(self, peers: Sequence[Peer], removed: Mapping[str, str] = NOBODY) -> None:
        """These are listed from now on, and no others; `removed` are names by their certificates. Blocks."""
        self._removed = removed
        self._peers = {normal(pin): peer for peer in peers for pin in pins(peer)}
        for pin in self._peers.keys() - self._anchored:
            with suppress(OSError, TrustError):  # what is kept is a copy: a damaged one is as good as none
                der = der_of_pem(self._kept(pin).read_text(encoding="ascii", errors="replace"))
                if digest(der) == pin:
                    self._anchor(pin, der)

    def identify(self, connection: ssl.SSLObject | None) -> Peer | None:
        """The listed peer whose certificate this connection has proved, if any."""
        der = connection.getpeercert(binary_form=True) if connection is not None else None
        return self._peers.get(digest(der)) if der else None

    async def introduce(self, pem: str) -> Peer:
        """Accept a listed certificate for the handshakes to come; TrustError if it is not listed."""
        der = der_of_pem(pem)
        pin = digest(der)
        peer = self._peers.get(pin)
        if pin in self._removed:
            raise TrustError(
                f"site {self._removed[pin]} was removed from the cluster",
                hint="it comes back as a new site: `syncagent db uninstall` there, then `syncagent join` with a new --home",
            )
        if peer is None:
            raise TrustError(
                f"a certificate that calls itself {_name_in(der)!r} is not listed at site {self._site}",
                detail=f"its SHA-256 is {pin}",
                hint="a site joins with `syncagent join`; one that has just joined is known here as soon as this site"
                " has heard of it",
            )
        if pin not in self._anchored:
            self._anchor(pin, der)
            await asyncio.to_thread(
                _write, self._kept(pin), ssl.DER_cert_to_PEM_cert(der).encode(), mode=0o644
            )
        return peer

    def _anchor(self, pin: str, der: bytes) -> None:
        try:
            self.context.load_verify_locations(cadata=der)
        except ssl.SSLError as error:
            raise TrustError("OpenSSL does not accept this certificate", detail=str(error)) from error
        self._anchored.add(pin)

    def _kept(self, pin: str) -> Path:
        return self._directory / f"{pin}.pem"


# ---- making and keeping


def _new_key() -> bytes:
    return ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _self_signed(pem_key: bytes, name: str) -> bytes:
    key = serialization.load_pem_private_key(pem_key, password=None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise UsageError(
            "the site's key is not an elliptic-curve key", hint=f"remove {KEY} to have a new one made"
        )
    try:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        alternative = x509.SubjectAlternativeName([x509.DNSName(name)])
    except ValueError as error:
        raise UsageError(
            f"{name!r} cannot be a site's name",
            detail=str(error),
            hint="use up to 63 ASCII letters, digits, - and _",
        ) from error
    usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOT_BEFORE)
        .not_valid_after(dt.datetime.now(dt.UTC) + dt.timedelta(seconds=limits.CERTIFICATE_LIFETIME))
        .add_extension(alternative, critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .sign(key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM)


def _name_in(der: bytes) -> str:
    """What an unknown certificate says of itself: a claim, shown to help, never believed."""
    try:
        names = x509.load_der_x509_certificate(der).extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        )
        return ", ".join(names.value.get_values_for_type(x509.DNSName))[:64]
    except (ValueError, x509.ExtensionNotFound):
        return ""


def _write(path: Path, data: bytes, *, mode: int) -> None:
    """All of the file or nothing, with its rights from the first moment."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.replace(path)


def _finish_turn(directory: Path) -> None:
    """A new certificate without its new key beside it: the key is in use already."""
    new = directory / NEXT_CERTIFICATE
    if new.exists() and not (directory / NEXT_KEY).exists():
        new.replace(directory / CERTIFICATE)
