"""TLS of the gRPC port: what the server shows, whom it lets connect, and whose calls it answers.

The files are looked at before every handshake and read again when they changed. What can not be used is logged and
counted, and the certificates read last stay: a bad renewal breaks nothing while they are valid.
"""

from __future__ import annotations

import logging
import os
import ssl
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc

from service.errors import NotAllowed

logger = logging.getLogger(__name__)

# Time of the last change in ns, size and inode of each file; None for a file that is not there.
_Fingerprint = tuple[tuple[int, int, int] | None, ...]


class TlsError(ValueError):
    """The files are no good for TLS; the text names them and says why, in one line."""


@dataclass(frozen=True, slots=True)
class Tls:
    """How the gRPC port is secured.

    Attributes:
        cert: The server's certificate and those between it and its root, PEM.
        key: The private key of the first of them, PEM, not encrypted.
        client_ca: Certificates that clients' certificates must lead to, PEM; None: clients show none.
        allow: Names, one of which a caller of the ranking service must have in its certificate; empty: any will do.
    """

    cert: Path
    key: Path
    client_ca: Path | None = None
    allow: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        if self.allow and self.client_ca is None:
            raise ValueError("tls_allow needs tls_client_ca: without it callers have no names")
        if "" in self.allow:
            raise ValueError("tls_allow has an empty name")


class Certificates:
    """The certificates of one server, kept in step with their files."""

    def __init__(self, tls: Tls, on_change: Callable[[bool], object]) -> None:
        """Reads the files.

        Args:
            tls: Which files.
            on_change: Told of each change of the files, and whether the new ones are in use. Called on gRPC's threads.

        Raises:
            TlsError: The files are no good.
        """
        self._tls = tls
        self._on_change = on_change
        self._seen = _fingerprint(tls)  # before reading: what changes meanwhile is read again
        self._complained: _Fingerprint | None = None  # of files that were complained of
        self._first = _read(tls)

    def credentials(self) -> grpc.ServerCredentials:
        """What gRPC secures a port with."""
        return grpc.dynamic_ssl_server_credentials(
            self._first,
            self.changed,  # type: ignore[arg-type] # the stubs do not know that None means no change
            require_client_authentication=self._tls.client_ca is not None,
        )

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """The certificates if they are others than at the last call; gRPC calls it before each handshake, in turn.

        Files that are no good, or can not be read at that moment, are complained of once and tried again at each call.
        """
        seen = _fingerprint(self._tls)
        if seen == self._seen:
            self._complained = None
            return None
        try:
            configuration = _read(self._tls)
        except TlsError as error:
            if seen != self._complained:
                logger.error("TLS: the new files are not used, those before them are: %s", error)
                self._on_change(False)
            self._complained = seen
            return None
        self._seen = seen
        logger.info("TLS: the files changed; new connections use the new ones")
        self._on_change(True)
        return configuration


def check_caller(names: Iterable[bytes] | None, allowed: frozenset[str]) -> None:
    """Lets a call through, or not.

    Args:
        names: The caller's: the subject alternative names of its certificate, or the common name if it has none.
        allowed: The names that may call, at least one.

    Raises:
        NotAllowed: None of the names may.
    """
    known = [name.decode(errors="replace") for name in names or ()]
    if allowed.isdisjoint(known):
        raise NotAllowed(f"none of the names in the client's certificate may call: {', '.join(known) or 'it has none'}")


def _fingerprint(tls: Tls) -> _Fingerprint:
    return tuple(_fingerprint_of(path) for path in (tls.cert, tls.key, tls.client_ca) if path is not None)


def _fingerprint_of(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _read(tls: Tls) -> grpc.ServerCertificateConfiguration:
    try:
        cert, key = tls.cert.read_bytes(), tls.key.read_bytes()
        client_ca = None if tls.client_ca is None else tls.client_ca.read_bytes()
        _check(tls, cert, key, client_ca)
    except OSError as error:
        raise TlsError(f"{error.filename or tls.cert}: {error.strerror}") from error
    return grpc.ssl_server_certificate_configuration([(key, cert)], client_ca)


def _check(tls: Tls, cert: bytes, key: bytes, client_ca: bytes | None) -> None:
    """Raises TlsError for what gRPC would take, and fail with at the first handshake."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    with _in_memory(cert) as cert_path, _in_memory(key) as key_path:
        try:
            context.load_cert_chain(cert_path, key_path, password="")  # or it would ask a terminal for one
        except ssl.SSLError as error:
            reason = error.reason or "not PEM, or a passphrase is needed"
            raise TlsError(f"{tls.cert} and {tls.key} are not a certificate and its private key: {reason}") from error
    if client_ca is not None:
        try:
            context.load_verify_locations(cadata=client_ca.decode("ascii"))
        except (ssl.SSLError, ValueError) as error:
            raise TlsError(f"{tls.client_ca}: holds no certificates in PEM: {error}") from error


@contextmanager
def _in_memory(content: bytes) -> Iterator[str]:
    """The path of a file that holds it and is on no disk, for `ssl` takes only paths."""
    descriptor = os.memfd_create("tls")
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(content)
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)
