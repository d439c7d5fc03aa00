"""TLS files: which are taken, which are not, and when they are read again."""

from __future__ import annotations

from pathlib import Path

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from service.errors import NotAllowed
from service.tls import Certificates, Tls, TlsError, check_caller
from tests.rlimits import no_descriptor_left

CA = trustme.CA()
PAIR = CA.issue_cert("localhost")
CERT, KEY = PAIR.cert_chain_pems[0].bytes(), PAIR.private_key_pem.bytes()
OTHER_PAIR = CA.issue_cert("localhost")
OTHER_CERT, OTHER_KEY = OTHER_PAIR.cert_chain_pems[0].bytes(), OTHER_PAIR.private_key_pem.bytes()


def files(directory: Path, cert: bytes = CERT, key: bytes = KEY, client_ca: bytes | None = None) -> Tls:
    """Writes the files; None: there is no such file."""
    paths = [directory / name for name in ("cert.pem", "key.pem", "ca.pem")]
    for path, content in zip(paths, (cert, key, client_ca), strict=True):
        if content is not None:
            path.write_bytes(content)
    return Tls(paths[0], paths[1], None if client_ca is None else paths[2])


@pytest.mark.parametrize(
    ("cert", "key", "client_ca", "message"),
    [
        (
            CERT,
            OTHER_KEY,
            None,
            "cert.pem and {}key.pem are not a certificate and its private key: KEY_VALUES_MISMATCH",
        ),
        (b"", KEY, None, "key.pem are not a certificate and its private key: not PEM"),
        (CERT, b"", None, "key.pem are not a certificate and its private key: not PEM"),
        # One file for both, as some renew it: what counts is the certificate that will be shown.
        (
            CERT,
            OTHER_KEY + OTHER_CERT,
            None,
            "{}key.pem are not a certificate and its private key: KEY_VALUES_MISMATCH",
        ),
        (CERT[:300], KEY, None, "key.pem are not a certificate and its private key: not PEM"),
        (CERT, KEY, b"", "ca.pem: holds no certificates in PEM"),
        (CERT, KEY, b"\xff", "ca.pem: holds no certificates in PEM"),
        (CERT, KEY, KEY, "ca.pem: holds no certificates in PEM"),
    ],
)
def test_files_that_are_no_good(tmp_path: Path, cert: bytes, key: bytes, client_ca: bytes | None, message: str) -> None:
    """gRPC itself would fail at the first handshake."""
    with pytest.raises(TlsError) as caught:
        Certificates(files(tmp_path, cert, key, client_ca), bool)

    assert message.format(f"{tmp_path}/") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_key_with_a_passphrase_is_refused_without_asking_for_it(tmp_path: Path) -> None:
    """A server has nobody at a terminal."""
    encrypted = load_pem_private_key(KEY, None).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")
    )
    assert b"ENCRYPTED" in encrypted
    with pytest.raises(TlsError, match="a passphrase is needed"):
        Certificates(files(tmp_path, key=encrypted), bool)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """With what the system says of it."""
    with pytest.raises(TlsError) as caught:
        Certificates(Tls(tmp_path / "none.pem", tmp_path / "none.pem"), bool)

    assert str(caught.value) == f"{tmp_path}/none.pem: No such file or directory"


def test_what_could_not_be_read_is_tried_again(tmp_path: Path) -> None:
    """A renewal that fell into a moment without descriptors is not lost, and is complained of once."""
    told: list[bool] = []
    certificates = Certificates(files(tmp_path), told.append)
    assert certificates.changed() is None
    files(tmp_path, OTHER_CERT, OTHER_KEY)

    with no_descriptor_left():
        assert certificates.changed() is None
        assert certificates.changed() is None
    assert told == [False]

    assert certificates.changed() is not None
    assert certificates.changed() is None
    assert told == [False, True]


def test_what_is_no_good_is_complained_of_once(tmp_path: Path) -> None:
    """Until it changes again."""
    told: list[bool] = []
    certificates = Certificates(files(tmp_path), told.append)
    files(tmp_path, OTHER_CERT, KEY)
    assert [certificates.changed(), certificates.changed()] == [None, None]
    assert told == [False]

    files(tmp_path, OTHER_CERT, OTHER_KEY)
    assert certificates.changed() is not None
    assert told == [False, True]


@pytest.mark.parametrize(
    ("names", "allowed"),
    [
        ([b"backend.example"], True),
        ([b"other", b"spiffe://x/y"], True),
        ([b"example"], False),
        ([], False),
        (None, False),
    ],
)
def test_who_may_call(names: list[bytes] | None, allowed: bool) -> None:
    """Whoever has one of the names, whole; a certificate without names has none."""
    may_call = frozenset({"backend.example", "spiffe://x/y"})
    if allowed:
        check_caller(names, may_call)
    else:
        with pytest.raises(NotAllowed):
            check_caller(names, may_call)
