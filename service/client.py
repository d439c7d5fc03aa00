"""Channels to a server, for the commands that have a --target."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import grpc

# gRPC takes names without a port for ones with 443, and anything else for a name.
_TARGET = re.compile(r"((dns:(//[^/]*/)?|ipv4:|ipv6:)?[^/]+:[0-9]+)|unix:.+")


def host_and_port(text: str) -> str:
    """A server's HOST:PORT (or a name of gRPC's kinds dns, ipv4, ipv6, unix) from the command line."""
    if not _TARGET.fullmatch(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    return text


def add_tls_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the flags that `open_channel` goes by."""
    parser.add_argument("--tls-ca", metavar="FILE", type=Path, help="use TLS; the server's certificate must lead here")
    parser.add_argument("--tls-cert", metavar="FILE", type=Path, help="certificate to show to a server that asks")
    parser.add_argument("--tls-key", metavar="FILE", type=Path, help="its private key")
    parser.set_defaults(usage_error=parser.error)


def open_channel(arguments: argparse.Namespace, target: str | None = None) -> grpc.Channel:
    """A channel to `target`, or to `arguments.target`, with TLS if there are files for it.

    Raises:
        SystemExit: The flags do not fit together or a file can not be read; as argparse does it, with a line on stderr.
    """
    ca, cert, key = arguments.tls_ca, arguments.tls_cert, arguments.tls_key
    if (cert is None) != (key is None):
        arguments.usage_error("--tls-cert and --tls-key go together")
    if cert is not None and ca is None:
        arguments.usage_error("--tls-cert needs --tls-ca")
    target = target or arguments.target
    if ca is None:
        return grpc.insecure_channel(target)
    try:
        pems = [None if path is None else path.read_bytes() for path in (ca, key, cert)]
    except OSError as error:
        arguments.usage_error(f"{error.filename}: {error.strerror}")
    return grpc.secure_channel(target, grpc.ssl_channel_credentials(*pems))
